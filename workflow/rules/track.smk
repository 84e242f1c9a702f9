# The one writer into MLflow. Training jobs never talk to it: parallel writers break a fresh store.

import shlex


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
        suite=CONFIG.suite,
        results=lambda wildcards: RESULTS,
        uri=f"--uri {shlex.quote(CONFIG.uri)}" if CONFIG.uri else "",
        source=module_hash("benchmarks.tracking"),
    shell:
        "python -m benchmarks track sync --suite {params.suite:q} --results {params.results:q}"
        " {params.uri} > {log:q} 2>&1"
