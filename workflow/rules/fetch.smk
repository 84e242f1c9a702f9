# One job per data set: downloads and checks its files; nothing to do where scikit-learn ships it.
#
# The marker says that this was done, not that the files are still the same: see rule `bundle`.


rule fetch:
    output:
        touch(f"{RESULTS}/done/fetch/{{dataset}}"),
    log:
        f"{RESULTS}/logs/fetch/{{dataset}}.log",
    localrule: True  # network and disk, not computing: on a cluster it runs where Snakemake does
    conda:
        "../../environment.yml"
    shell:
        "python -m benchmarks fetch --dataset {wildcards.dataset:q} > {log:q} 2>&1"
