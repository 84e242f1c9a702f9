# One job per bundle: all seeds of one data set x backbone x upstream x refiner on one device.
#
# The output is a marker. The records are no outputs of Snakemake's, which deletes those of a job that
# failed or was killed: what is finished stays, and the next job of the bundle does only the rest.


rule bundle:
    input:
        # `ancient`: whether the data are still those of the records the Snakefile asks
        # (`markers.withdraw_outdated`); the time of the marker says nothing about it.
        lambda wildcards: ancient(
            f"{RESULTS}/done/fetch/{FIRST[wildcards.bundle].settings.dataset.name}"
        ),
        lambda wildcards: [
            ancient(f"{RESULTS}/done/generate/{dataset}/{images}")
            for dataset, images in GENERATED[wildcards.bundle]
        ],
    output:
        f"{RESULTS}/bundles/{{bundle}}.json",
    log:
        f"{RESULTS}/logs/{{bundle}}.log",
    wildcard_constraints:
        bundle="|".join(map(re.escape, BUNDLES)),
    conda:
        "../../environment.yml"
    # One core a process; Snakemake lowers it to what the machine has.
    threads: lambda wildcards: COST[wildcards.bundle].at_once(PROCESSES)
    resources:
        mem_mb=lambda wildcards, threads: threads * COST[wildcards.bundle].memory_mb,
        # Not divided by the processes: how much they gain by sharing a GPU is not known before.
        runtime=lambda wildcards: COST[wildcards.bundle].runtime_minutes,
    params:
        suite=config["suite"],
        results=lambda wildcards: RESULTS,
        # Snakemake does not look into `python -m`. These two make it see an edited refiner and an
        # edited suite, and run again exactly the bundles they touch.
        source=lambda wildcards: source_hash(FIRST[wildcards.bundle]),
        runs=lambda wildcards: [spec.key for spec in BUNDLES[wildcards.bundle]],
    shell:
        "OMP_NUM_THREADS=1 python -m benchmarks run --suite {params.suite}"
        " --results {params.results} --bundle {wildcards.bundle}"
        " --processes {threads} > {log} 2>&1"
