"""`plan`: the bundles of a suite, how many of their records are current, and what tables would use."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks import record as records
from benchmarks.errors import BenchmarkError
from benchmarks.record import Record
from benchmarks.running.current import Present, choose
from benchmarks.spec import RunSpec
from benchmarks.suite import Suite, bundles, to_run

DAMAGED = "damaged"


def show(
    suite: Suite, results: Path, *, table: str | None = None, console: Console | None = None
) -> None:
    """Print a line a bundle and the totals."""
    # What a suite says is text: [x] and :x: in it are no markup.
    console, present = console or Console(markup=False, emoji=False), Present()
    specs = to_run(suite, table=table)
    shown = Table("bundle", "runs", "current", "stale", "reduced", title=suite.title)
    found: list[Record] = []
    current, stale = 0, Counter()
    for bundle, runs in bundles(specs).items():
        there = [(spec, _read(spec, results)) for spec in runs]
        reasons = [
            present.outdated(record, spec) if record else DAMAGED
            for spec, record in there
            if record is not None or records.path_of(results, spec).exists()
        ]
        outdated = Counter(filter(None, reasons))
        found += [record for _, record in there if record]
        current, stale = current + reasons.count(""), stale + outdated
        shown.add_row(
            bundle, str(len(runs)), str(reasons.count("")), _listed(outdated), runs[0].reduced
        )
    chosen = choose(found, specs, present)
    console.print(shown)
    console.print(
        f"{len(specs)} runs in {len(bundles(specs))} bundles; {current} current, "
        f"{_listed(stale) or 'none'} stale, {len(specs) - current - stale.total()} not run yet"
    )
    shown_outdated = sum((outdated for outdated in chosen.outdated.values()), Counter())
    not_current = f", of them not current: {_listed(shown_outdated)}" if shown_outdated else ""
    console.print(f"tables use {len(chosen.records)} records{not_current}")


def _read(spec: RunSpec, results: Path) -> Record | None:
    try:
        return records.read(records.path_of(results, spec))
    except (FileNotFoundError, BenchmarkError):
        return None


def _listed(counted: Counter[str]) -> str:
    return ", ".join(f"{count} {reason}" for reason, count in sorted(counted.items()))
