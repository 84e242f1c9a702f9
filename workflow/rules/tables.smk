# Cards of the data at hand, then tables and figures from whatever records there are; cells that were not
# run say so.


rule tables:
    input:
        expand(f"{RESULTS}/bundles/{{bundle}}.json", bundle=BUNDLES),
    output:
        touch(f"{RESULTS}/done/tables"),
    log:
        f"{RESULTS}/logs/tables.log",
    localrule: True  # seconds; a card that is of the data at hand is not counted again
    conda:
        "../../environment.yml"
    params:
        suite=CONFIG.suite,
        results=lambda wildcards: RESULTS,
        source=module_hash("benchmarks.tables", "benchmarks.studies.curves"),
    shell:
        "(python -m benchmarks cards --missing --suite {params.suite:q} --results {params.results:q} &&"
        " python -m benchmarks tables --suite {params.suite:q} --results {params.results:q}) > {log:q} 2>&1"
