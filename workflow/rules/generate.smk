# One job per generated set of images (Table 3): made once, whatever suites and bundles use it.
#
# The images lie in the data folder, each under the hash of what made it, and the output here is a
# marker: running the rule again makes only what is missing, so a killed or edited job loses nothing.
from benchmarks.forecast import images as generation

# Sets that each bundle's upstream serves, as (data set, images).
GENERATED = {bundle: generation.sets_of(specs) for bundle, specs in BUNDLES.items()}


rule generate:
    input:
        ancient(f"{RESULTS}/done/fetch/{{dataset}}"),
    output:
        touch(f"{RESULTS}/done/generate/{{dataset}}/{{images}}"),
    log:
        f"{RESULTS}/logs/generate/{{dataset}}/{{images}}.log",
    conda:
        "../../environment.yml"
    threads: 1
    resources:
        # Diffusion needs a GPU; a stand-in is a minute of image editing.
        gpu=lambda wildcards: int(wildcards.images in generation.DIFFUSION),
        mem_mb=lambda wildcards: 16000 if wildcards.images in generation.DIFFUSION else 1000,
        runtime=lambda wildcards: 720 if wildcards.images in generation.DIFFUSION else 20,
    params:
        # `--config generate="--batch-size 16 --dtype bfloat16"`
        options=CONFIG.generate,
        source=module_hash(
            "benchmarks.generate.make",
            "benchmarks.generate.pipelines",
            "benchmarks.generate.stand_in",
        ),
    shell:
        "OMP_NUM_THREADS={threads} python -m benchmarks generate make --dataset {wildcards.dataset:q}"
        " --images {wildcards.images:q} {params.options} > {log:q} 2>&1"
