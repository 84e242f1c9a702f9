"""One bundle as a job: locked against a second invocation, ending in the marker Snakemake waits for."""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks.execute import run_bundle
from benchmarks.locks import bundle_lock
from benchmarks.record import Record, atomic_write
from benchmarks.source_hash import source_hash
from benchmarks.spec import RunSpec


def marker_path(results: Path, bundle: str) -> Path:
    """Place of a bundle's marker, the only output that Snakemake knows of."""
    return results / "bundles" / f"{bundle}.json"


def run_marked(
    specs: list[RunSpec], results: Path, *, device: str | None, checkpoint_minutes: float
) -> list[Record]:
    """Run a bundle under its lock and write its marker.

    Records are no outputs of the job: Snakemake deletes the outputs of a job that failed, and a
    record that is finished must outlive its bundle. A failed seed is a result, not a failed job.
    """
    bundle = specs[0].bundle
    with bundle_lock(results, bundle):
        done = run_bundle(specs, results, device=device, checkpoint_minutes=checkpoint_minutes)
        content = {
            "bundle": bundle,
            "source": source_hash(specs[0]),
            "runs": {record.key: record.status for record in done},
        }
        atomic_write(marker_path(results, bundle), json.dumps(content, indent=1) + "\n")
    return done
