# Tables and figures from whatever records there are; cells that were not run say so.


rule tables:
    input:
        expand(f"{RESULTS}/bundles/{{bundle}}.json", bundle=BUNDLES),
    output:
        touch(f"{RESULTS}/done/tables"),
    log:
        f"{RESULTS}/logs/tables.log",
    localrule: True  # seconds
    conda:
        "../../environment.yml"
    params:
        suite=CONFIG.suite,
        results=lambda wildcards: RESULTS,
        source=module_hash("benchmarks.tables", "benchmarks.studies.curves"),
    shell:
        "python -m benchmarks tables --suite {params.suite:q} --results {params.results:q} > {log:q} 2>&1"
