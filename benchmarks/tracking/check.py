"""`track check`: does the store say what the tables say? Means recomputed from its runs, cell by cell."""

from __future__ import annotations

import csv
import math
import sys
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks import record as records
from benchmarks.errors import BenchmarkError
from benchmarks.tables import variants
from benchmarks.tables.cells import scale
from benchmarks.tracking import runs, store
from benchmarks.tracking.sync import all_runs

if TYPE_CHECKING:
    from mlflow.entities import Run

RELATIVE = 1e-9
CELL = ("table", "dataset", "backbone", "upstream", "refiner")


def check(
    results: Path,
    uri: str | None = None,
    *,
    suite: str | None = None,
    used: set[str] | None = None,
    say: Callable[[str], None] = print,
) -> int:
    """Compare the store's means and counts with every table's CSV; 0 if all agree, else 1.

    Parameters
    ----------
    suite : as it was synced under; default: what each record says.
    used : keys of the records that the tables are made of (`benchmarks.running.current.choose`);
        others are in the store and in no table. Default: every run counts.

    Raises
    ------
    BenchmarkError
        There are no tables to compare, or the store is not there or does not answer.
    """
    results, uri = Path(results), store.resolve(results, uri)
    cells = list(_cells(results))
    if not cells:
        raise BenchmarkError(f"no table in {results / 'tables'}: run `tables` first")
    suites = {suite or record.spec.suite for record in records.load_all(results)}
    found = _runs_by_cell(uri, suites, used)
    differing = [line for cell in cells if (line := _compare(cell, found))]
    for line in differing:
        say(f"differ: {line}")
    verdict = f"{len(differing)} of {len(cells)} cells differ" if differing else "all cells agree"
    say(f"{store.without_password(uri)}: {verdict} with the tables' CSV ({len(cells)} compared)")
    return 1 if differing else 0


def _cells(results: Path):
    for path in sorted((results / "tables").glob("*.csv")):
        with path.open(encoding="utf-8", newline="") as stream:
            rows = csv.DictReader(stream)
            if {"selection", "planned", "mean"} <= set(rows.fieldnames or ()):
                yield from rows


def _runs_by_cell(
    uri: str, suites: set[str], used: set[str] | None
) -> dict[tuple[str, ...], list[Run]]:
    found: dict[tuple[str, ...], list[Run]] = defaultdict(list)
    with store.opened(uri, write=False) as client:
        for experiment in client.search_experiments():
            for run in all_runs(client, experiment.experiment_id):
                tags = run.data.tags
                of_these = runs.DIGEST in tags and runs.BUNDLE in tags and tags["suite"] in suites
                if of_these and (used is None or tags[runs.KEY] in used):
                    found[tuple(tags[name] for name in CELL)].append(run)
    return found


def _compare(cell: dict[str, str], found: dict[tuple[str, ...], list[Run]]) -> str:
    """Say how a cell differs; empty where it agrees."""
    run = {part: cell[part] for part in CELL} | {"backbone": variants.base(cell["backbone"])}
    prefix = "" if run["backbone"] == cell["backbone"] else variants.PREFIX
    name = f"{cell['selection']}/{prefix}{cell['split']}/{cell['metric']}"
    values = [
        _number(own.data.metrics[name]) * scale(cell["metric"])
        for own in found.get(tuple(run.values()), [])
        if own.data.tags["status"] == "complete"
        and not math.isnan(own.data.metrics.get(name, math.nan))
    ]
    where = " ".join([*(cell[part] for part in CELL), name])
    if len(values) != int(cell["n"]):
        return f"{where}: {len(values)} runs in the store, n = {cell['n']} in the table"
    if values:
        ours, printed = math.fsum(values) / len(values), float(cell["mean"])
        if not math.isclose(ours, printed, rel_tol=RELATIVE, abs_tol=_rounding(cell["mean"])):
            return f"{where}: {ours!r} in the store, {cell['mean']} in the table"
    return ""


def _number(value: float) -> float:
    """Undo MLflow's storing of infinity as the largest number there is."""
    return math.copysign(math.inf, value) if abs(value) == sys.float_info.max else value


def _rounding(text: str) -> float:
    """Half a unit of the last decimal that a table prints."""
    decimals = len(text.partition(".")[2]) if "e" not in text else 0
    return 0.51 * 10.0**-decimals if decimals else RELATIVE
