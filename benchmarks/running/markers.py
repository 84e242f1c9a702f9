"""The markers that Snakemake knows of, and their times. Imports no torch."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable
from pathlib import Path

from benchmarks.record import PROTOCOL, Record, atomic_write
from benchmarks.running.current import OLD_PROTOCOL, OTHER_DATA, SETTINGS, SOURCE, Present
from benchmarks.running.data_hash import DATA
from benchmarks.spec import RunSpec


def marker_path(results: Path, bundle: str) -> Path:
    """Place of a bundle's marker, the only output that Snakemake knows of."""
    return results / "bundles" / f"{bundle}.json"


def write(results: Path, bundle: str, done: list[Record]) -> None:
    """Write the marker of a bundle that is done: its runs, and what they were made from."""
    withdraw(results, bundle)
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
    path = marker_path(results, bundle)
    path.unlink(missing_ok=True)
    _aside(path).unlink(missing_ok=True)


def all_failed(results: Path, bundles: Iterable[str]) -> bool:
    """Tell whether the markers at hand tell of failed runs alone."""
    at_hand = [path for bundle in bundles if (path := marker_path(results, bundle)).is_file()]
    told = {
        status
        for path in at_hand
        for status in json.loads(path.read_text(encoding="utf-8"))["runs"].values()
    }
    return told == {"failed"}


def set_outdated_aside(
    results: Path, bundles: dict[str, list[RunSpec]], present: Present | None = None
) -> dict[str, str]:
    """Set the markers aside whose bundles are no longer current, and give back those that are again.

    The marker of the tables goes with them. Snakemake looks neither into `python -m` nor at a data file
    that changed under the marker of `fetch` or lies in another folder now; that an output is missing it
    sees. Nothing is lost: an edit that is taken back, a dry run in between, leaves everything as it was.

    Returns
    -------
    dict
        The bundles that are to be run again, and why.
    """
    present, outdated = present or Present(), {}
    for bundle, specs in bundles.items():
        path = marker_path(results, bundle)
        aside = _aside(path)
        if path.is_file():
            if reason := _outdated(path, specs, present):
                os.replace(path, aside)
                outdated[bundle] = reason
        elif aside.is_file():
            if reason := _outdated(aside, specs, present):
                outdated[bundle] = reason
            else:
                os.replace(aside, path)
    # Of what is missing Snakemake makes only what something else that is missing needs.
    tables = results / "done" / "tables"
    if outdated and tables.is_file():
        os.replace(tables, _aside(tables))
    elif not outdated and not tables.is_file() and _aside(tables).is_file():
        os.replace(_aside(tables), tables)
    return outdated


def _outdated(path: Path, specs: list[RunSpec], present: Present) -> str:
    """Ask of what a marker says what `Present.outdated` asks of a record."""
    try:
        made = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        made = {}
    if made.get("protocol") != PROTOCOL:
        return OLD_PROTOCOL
    if not {spec.key for spec in specs} <= set(made["runs"]):
        return SETTINGS
    if made["source"] != present.source(specs[0]):
        return SOURCE
    return OTHER_DATA if present.other_data(made["content"], specs[0]) else ""


def _aside(marker: Path) -> Path:
    return marker.with_suffix(".outdated")


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
