"""One bundle as a job: locked against a second invocation, ending in the marker Snakemake waits for."""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks.record import Record, atomic_write
from benchmarks.running.execute import run_bundle
from benchmarks.running.locks import bundle_lock
from benchmarks.running.markers import marker_path
from benchmarks.running.parallel import run_missing
from benchmarks.running.source_hash import source_hash
from benchmarks.spec import RunSpec


def run_marked(
    specs: list[RunSpec],
    results: Path,
    *,
    device: str | None,
    checkpoint_minutes: float,
    processes: int = 1,
    keep_weights: bool = False,
) -> list[Record]:
    """Run a bundle under its lock and write its marker.

    Records are no outputs of the job: Snakemake deletes the outputs of a job that failed, and a
    record that is finished must outlive its bundle. A failed seed is a result, not a failed job.

    Parameters
    ----------
    processes : runs at a time, each in a process of its own (`benchmarks.running.parallel`); replicas train
        all seeds in one process and leave this aside.
    """
    bundle = specs[0].bundle
    options = {
        "device": device,
        "checkpoint_minutes": checkpoint_minutes,
        "keep_weights": keep_weights,
    }
    with bundle_lock(results, bundle):
        if processes > 1 and not any(spec.settings.replicas for spec in specs):
            run_missing(specs, results, processes=processes, **options)
            options["report"] = lambda line: None  # each process told of its own run
        done = run_bundle(specs, results, **options)
        content = {
            "bundle": bundle,
            "source": source_hash(specs[0]),
            "runs": {record.key: record.status for record in done},
        }
        atomic_write(marker_path(results, bundle), json.dumps(content, indent=1) + "\n")
    return done
