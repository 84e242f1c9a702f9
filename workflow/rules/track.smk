# The one writer into MLflow. Training jobs never talk to it: parallel writers break a fresh store.


rule track:
    input:
        f"{RESULTS}/done/tables",
    output:
        touch(f"{RESULTS}/done/track"),
    log:
        f"{RESULTS}/logs/track.log",
    localrule: True  # a database is written from one place
    conda:
        "../../environment.yml"
    params:
        suite=config["suite"],
        results=lambda wildcards: RESULTS,
        uri=f"--uri {config['uri']}" if config["uri"] else "",
        source=module_hash("benchmarks.tracking"),
    shell:
        "python -m benchmarks track sync --suite {params.suite} --results {params.results}"
        " {params.uri} > {log} 2>&1"
