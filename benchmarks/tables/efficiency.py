"""What a row costs: training time relative to its upstream's own (Appendix C), by paired seeds."""

from __future__ import annotations

import math
from dataclasses import dataclass

from benchmarks.paper import claims, is_saflex
from benchmarks.record import Record
from benchmarks.tables.cells import Row, Table
from benchmarks.tables.statistics import mean_std

PHASES = ("upstream", "refine", "step")
BASELINES = ("upstream", "clean+aug")
CSV_COLUMNS = [
    "table",
    "dataset",
    "backbone",
    "upstream",
    "refiner",
    "baseline",
    "n",
    "overhead",
    "std",
    "paper",
]


@dataclass(frozen=True, kw_only=True)
class Overhead:
    """Extra training time of a row over a baseline's, in per cent of the baseline's.

    `dataset` is ``mean`` for the mean over data sets, the only form in which the paper gives it.
    """

    table: str
    dataset: str
    row: Row
    baseline: Row
    n: int
    mean: float
    std: float
    paper: float = math.nan


def training_seconds(record: Record) -> float:
    """Seconds one epoch of training took, evaluation left out; nan where the record has no times."""
    times = [record.seconds[phase] for phase in PHASES if phase in record.seconds]
    return math.fsum(times) / record.spec.settings.recipe.epochs if times else math.nan


def overheads(table: Table, row: Row, baseline: Row, dataset: str) -> dict[int, float]:
    """Overhead in per cent for each seed, or round, that both rows have timed."""
    ours, theirs = (_times(table, r, dataset) for r in (row, baseline))
    return {
        turn: 100 * (ours[turn] / theirs[turn] - 1)
        for turn in sorted(ours.keys() & theirs.keys())
        if math.isfinite(ours[turn]) and theirs[turn] > 0
    }


def _times(table: Table, row: Row, dataset: str) -> dict[int, float]:
    """Seconds of a training epoch: by round where they were measured apart, else by seed."""
    if table.times:
        return table.times.get((row, dataset), {})
    if table.untimed:
        return {}
    runs = table.runs.get((row, dataset), {})
    return {seed: training_seconds(record) for seed, record in runs.items()}


def measure(table: Table) -> list[Overhead]:
    """Overheads of every row over its upstream's own, and over clean+aug where that is fair.

    A row with the clean batch in its loss sees twice the samples of the upstream row, so its comparison
    at equal batches is the clean+aug control. A row without an upstream (LP-A3) is compared with none.
    """
    lines = []
    for row in table.rows:
        for name in ("none",) if row.upstream == "none" else BASELINES:
            baseline = row._replace(refiner=name)
            if baseline == row or baseline not in table.rows:
                continue
            if name == "clean+aug" and not _has_clean_batch(table, row):
                continue
            lines += _lines(table, row, baseline)
    return lines


def matched_baseline(table: Table, row: Row) -> Row:
    """The row that trains on as many samples as this one, without refining them."""
    clean = row._replace(refiner="clean+aug")
    return (
        clean
        if clean in table.rows and _has_clean_batch(table, row)
        else row._replace(refiner="upstream")
    )


def _lines(table: Table, row: Row, baseline: Row) -> list[Overhead]:
    lines, means = [], []
    for dataset in table.metric_of:
        values = list(overheads(table, row, baseline, dataset).values())
        if not values:
            continue
        mean, std = mean_std(values)
        means.append(mean)
        lines.append(_line(table, dataset, row, baseline, len(values), mean, std))
    if means:
        mean, _ = mean_std(means)
        paper = _paper(table.id, row, baseline)
        lines.append(_line(table, "mean", row, baseline, len(means), mean, math.nan, paper))
    return lines


def _line(table, dataset, row, baseline, n, mean, std, paper=math.nan) -> Overhead:
    return Overhead(
        table=table.id,
        dataset=dataset,
        row=row,
        baseline=baseline,
        n=n,
        mean=mean,
        std=std,
        paper=paper,
    )


def _has_clean_batch(table: Table, row: Row) -> bool:
    return any(
        record.spec.settings.clean_share > 0
        for (r, _), runs in table.runs.items()
        if r == row
        for record in runs.values()
    )


def _paper(table: str, row: Row, baseline: Row) -> float:
    """The overhead the paper states for a SAFLEX row over its upstream, nan where it states none."""
    if not is_saflex(row.refiner) or baseline.refiner not in BASELINES:
        return math.nan
    for claim in claims():
        if claim.kind == "time" and claim.table == table and row.upstream in claim.upstreams:
            return claim.expected if claim.expected is not None else math.nan
    return math.nan
