"""The markers that Snakemake knows of, and their times. Imports no torch."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable
from pathlib import Path

from benchmarks.record import PROTOCOL, Record, atomic_write
from benchmarks.running.current import Present
from benchmarks.running.data_hash import DATA
from benchmarks.spec import RunSpec


def marker_path(results: Path, bundle: str) -> Path:
    """Place of a bundle's marker, the only output that Snakemake knows of."""
    return results / "bundles" / f"{bundle}.json"


def write(results: Path, bundle: str, done: list[Record]) -> None:
    """Write the marker of a bundle that is done: its runs, and what they were made from."""
    agree = all(record.content == done[0].content for record in done)
    content = {
        "bundle": bundle,
        "protocol": PROTOCOL,
        "source": done[0].source,
        # Data that changed between two seeds: no hash is this one, so the bundle is not done.
        "content": done[0].content if agree else {DATA: "several"},
        "runs": {record.key: record.status for record in done},
    }
    atomic_write(marker_path(results, bundle), json.dumps(content, indent=1) + "\n")


def withdraw(results: Path, bundle: str) -> None:
    """Remove a marker: the bundle is not done, whatever becomes of the process that does it."""
    marker_path(results, bundle).unlink(missing_ok=True)


def withdraw_outdated(
    results: Path, firsts: Iterable[RunSpec], present: Present | None = None
) -> list[str]:
    """Remove the markers of bundles that were run by another protocol or on other data than the present.

    Snakemake sees neither a file that changed under the marker of `fetch` nor one in another folder;
    that an output is missing it sees. (Sources and settings are parameters of the rule.)

    Parameters
    ----------
    firsts : one run of each bundle.

    Returns
    -------
    list of str
        The bundles.
    """
    present, outdated = present or Present(), []
    for spec in firsts:
        try:
            made = json.loads(marker_path(results, spec.bundle).read_text(encoding="utf-8"))
        except FileNotFoundError:
            continue
        except ValueError:
            made = {}
        if made.get("protocol") != PROTOCOL or present.other_data(made.get("content", {}), spec):
            withdraw(results, spec.bundle)
            outdated.append(spec.bundle)
    return outdated


def settle(results: Path) -> list[Path]:
    """Set markers that are dated ahead of the clock to the present; returns them.

    Snakemake fails a job whose output is older than its input (9.27, `ancient` or not), so a clock
    that was set back would stop everything that is still to do.
    """
    now = time.time()
    ahead = [
        path
        for folder in ("bundles", "done")
        for path in sorted((Path(results) / folder).rglob("*"))
        if path.is_file() and path.stat().st_mtime > now
    ]
    for path in ahead:
        os.utime(path, (now, now))
    return ahead
