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
from benchmarks.errors import AllFailed, BenchmarkError, machine_refusals
from benchmarks.forecast import cost
from benchmarks.running import markers
from benchmarks.verbs.workflow import configured
from benchmarks.running.source_hash import module_hash

try:
    with machine_refusals():
        # The jobs of this command write `--config` anew, from what it was read as here.
        CONFIG, SUITE = configured(config, sys.argv if workflow.is_main_process else ())
        RESULTS = CONFIG.results
        BUNDLES = suites.bundles(suites.to_run(SUITE))
        COST = cost.per_bundle(SUITE)
        outdated = {}
        markers.settle(Path(RESULTS))
        if workflow.is_main_process:  # a job of a bundle leaves the other bundles' markers alone
            outdated = markers.set_outdated_aside(Path(RESULTS), BUNDLES)
except BenchmarkError as error:
    sys.exit("\n".join(f"error: {line}" for line in str(error).splitlines()))
FIRST = {bundle: specs[0] for bundle, specs in BUNDLES.items()}
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


onsuccess:
    if markers.all_failed(Path(RESULTS), BUNDLES):
        sys.exit(f"error: all runs of {RESULTS} failed; its tables and records say with what")


rule all:
    default_target: True
    input:
        f"{RESULTS}/done/tables",
        f"{RESULTS}/done/track" if CONFIG.track else [],
    localrule: True
