# One job per bundle: all seeds of one data set x backbone x upstream x refiner on one device.
#
# The output is a marker, which the Snakefile sets aside when settings, protocol, source or data are no
# longer those of its records: exactly the bundles that an edit or a new file touches run again.
# The records are no outputs of Snakemake's, which deletes those of a job that failed or was killed: what
# is finished stays, and the next job of the bundle does only the rest.


rule bundle:
    input:
        # `ancient`: the marker's time says nothing about whether the data are still the same.
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
    threads: lambda wildcards: COST[wildcards.bundle].at_once(CONFIG.processes)
    resources:
        mem_mb=lambda wildcards, threads: threads * COST[wildcards.bundle].memory_mb,
        # Not divided by the processes: how much they gain by sharing a GPU is not known before.
        runtime=lambda wildcards: COST[wildcards.bundle].runtime_minutes,
    params:
        suite=CONFIG.suite,
        results=lambda wildcards: RESULTS,
    shell:
        "OMP_NUM_THREADS=1 python -m benchmarks run --suite {params.suite:q}"
        " --results {params.results:q} --bundle {wildcards.bundle:q}"
        # That every seed failed is a result, which the tables show.
        " --processes {threads} > {log:q} 2>&1"
        f" || [ $? -eq {AllFailed.status} ]"
