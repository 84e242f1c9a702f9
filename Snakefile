# The front door of the DAG: one job per bundle of a suite, then its tables, then the dashboard.
#
#   snakemake --config suite=demo            demo | cpu | paper | path of a suite file
#
# Further settings: results=DIR (default results/<suite>), track=false (no MLflow), uri=MLFLOW_STORE,
# processes=N (runs of a bundle at once; default: what the suite says).
# profiles/default is taken without asking. Every cluster job parses this file again, so nothing here
# imports torch, pandas or MLflow.
import os
import sys
from collections import Counter
from pathlib import Path

sys.path.insert(0, workflow.basedir)

from benchmarks import suite as suites
from benchmarks.forecast import cost
from benchmarks.running import markers
from benchmarks.running.source_hash import module_hash

config = {"suite": "demo", "results": "", "track": True, "uri": "", "processes": 0} | config
SUITE = suites.load(config["suite"])
BUNDLES = suites.bundles(suites.to_run(SUITE))
FIRST = {bundle: specs[0] for bundle, specs in BUNDLES.items()}
COST = cost.per_bundle(SUITE)
TRACK = str(config["track"]).lower() not in {"false", "no", "0"}
RESULTS = config["results"] or f"results/{SUITE.name}"
PROCESSES = int(config["processes"]) or SUITE.processes
markers.settle(Path(RESULTS))
if workflow.is_main_process:  # a job of a bundle leaves the other bundles' markers alone
    outdated = markers.set_outdated_aside(Path(RESULTS), BUNDLES)
    for reason, count in sorted(Counter(outdated.values()).items()):
        print(f"{count} bundles to be run again: {reason}", file=sys.stderr)

# `python` in a rule is the one that runs this, unless `--sdm conda` puts another before it.
here = str(Path(sys.executable).parent)
os.environ.update(PATH=f"{here}:{os.getenv('PATH')}", PYTHONPATH=workflow.basedir)


include: "workflow/rules/fetch.smk"
include: "workflow/rules/generate.smk"
include: "workflow/rules/bundle.smk"
include: "workflow/rules/tables.smk"
include: "workflow/rules/track.smk"


rule all:
    default_target: True
    input:
        f"{RESULTS}/done/tables",
        f"{RESULTS}/done/track" if TRACK else [],
    localrule: True
