"""The paper's claims graded against the records: one line for each claim, column and SAFLEX row.

The primary metric is compared, seed by seed, in the cell's selection; Holm's correction runs over the
paper's claims of one table, and separately over the controls of one table (protocol, "Claims").
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cache

from benchmarks.paper import Claim, claims, is_saflex, paper_row, published
from benchmarks.record import PROTOCOL, Record
from benchmarks.tables.cells import Column, Row, Table, scale
from benchmarks.tables.efficiency import matched_baseline, overheads
from benchmarks.tables.selection import obstacle
from benchmarks.tables.statistics import Paired, holm, paired, verdict

CSV_COLUMNS = [
    "table",
    "claim",
    "dataset",
    "refiner",
    "baseline",
    "n",
    "difference",
    "low",
    "high",
    "p",
    "p_holm",
    "verdict",
    "protocol",
]


@dataclass(frozen=True, kw_only=True)
class Graded:
    """One graded line.

    Attributes
    ----------
    claim : the claim it grades. row, baseline : what was compared; baseline_table: where it was found.
    column : data set and split; data set ``mean`` for a claim over the mean of data sets.
    result : paired differences, row minus baseline, in percentage points; for time, the overhead less
        the paper's, in per cent of the baseline's time.
    paper_difference : the same difference between the paper's own two cells, nan where it has none.
    verdict : reproduced, contradicted, undecided or ``not run: reason``.
    protocol : of the records of its table.
    """

    table: str
    claim: Claim
    row: Row
    baseline: Row
    baseline_table: str
    column: Column
    result: Paired
    verdict: str
    p_holm: float = math.nan
    paper_difference: float = math.nan
    selection: str = "last"
    protocol: int = PROTOCOL

    @property
    def name(self) -> str:
        """Claim, network and upstream, as the CSV names it; a second test split is named too."""
        parts = [self.claim.id, self.row.backbone, self.row.upstream]
        return "/".join([*parts, self.column.split] if self.column.split != "test" else parts)

    @property
    def is_run(self) -> bool:
        return not self.verdict.startswith("not run")


def grade(tables: list[Table], *, selection: str = "last") -> list[Graded]:
    """Grade every claim about the given tables, in the order of tables, claims, rows and columns."""
    lines: list[Graded] = []
    for table in tables:
        of_table = [line for claim in claims() for line in _grade(claim, table, tables, selection)]
        lines += _corrected(of_table)
    return lines


def applies(claim: Claim, table: Table) -> bool:
    """Say whether a claim is about a table; ``other`` stands for tables the paper does not have."""
    in_paper = any(cell.table == table.id for cell in published())
    if claim.table == "other":
        return not in_paper
    return claim.table == "every" or claim.table == table.id


def _corrected(lines: list[Graded]) -> list[Graded]:
    """Holm's correction, the paper's claims and this benchmark's controls each a family."""
    result = list(lines)
    for source in ("paper", "control"):
        family = [i for i, line in enumerate(lines) if line.claim.source == source]
        for i, p in zip(family, holm([lines[i].result.p for i in family]), strict=True):
            result[i] = replace(lines[i], p_holm=p)
    return result


def _grade(claim: Claim, table: Table, tables: list[Table], selection: str) -> Iterator[Graded]:
    if not applies(claim, table) or claim.ungraded:
        return
    for row in table.rows:
        if not _is_subject(claim, row):
            continue
        baseline = Row(
            row.backbone, claim.baseline.upstream or row.upstream, claim.baseline.refiner
        )
        if claim.table == "every" and baseline not in table.rows:
            continue
        other = _find(baseline, claim.baseline.table or table.id, tables) or table
        if claim.kind == "time":
            yield _time(claim, table, row, matched_baseline(table, row))
            continue
        for column in table.columns:
            if claim.datasets == "all" or column.dataset in claim.datasets:
                yield _compare(claim, (table, row), (other, baseline), column, selection)


def _is_subject(claim: Claim, row: Row) -> bool:
    saflex = claim.refiner == "saflex"
    if not (is_saflex(row.refiner) if saflex else row.refiner == claim.refiner):
        return False
    if saflex and not claim.augmented_only and row.refiner.endswith("-aug-only"):
        return False
    return _in(row.backbone, claim.backbones) and _in(row.upstream, claim.upstreams)


def _in(name: str, allowed: str | Iterable[str]) -> bool:
    return allowed == "all" or name in allowed


def _find(row: Row, preferred: str, tables: list[Table]) -> Table | None:
    """Find the table that has a row with runs, the preferred one first."""
    ordered = sorted(tables, key=lambda table: table.id != preferred)
    return next((t for t in ordered if any(r == row for r, _ in t.runs)), None)


def _compare(
    claim: Claim,
    subject: tuple[Table, Row],
    reference: tuple[Table, Row],
    column: Column,
    selection: str,
) -> Graded:
    (table, row), (other, baseline) = subject, reference
    metric = table.metric_of[column.dataset]
    ours, theirs = (t.runs.get((r, column.dataset), {}) for t, r in (subject, reference))
    name = f"{column.split}/{metric}"
    differences = [
        scale(metric) * (_value(ours[s], name, selection) - _value(theirs[s], name, selection))
        for s in sorted(ours.keys() & theirs.keys())
    ]
    result = paired([d for d in differences if math.isfinite(d)])
    return Graded(
        table=table.id,
        claim=claim,
        row=row,
        baseline=baseline,
        baseline_table=other.id,
        column=column,
        result=result,
        verdict=_obstacle(subject, reference, column)
        or ("" if result.n else _unpaired(subject, reference, column, selection))
        or _verdict(result, claim.direction),
        paper_difference=_paper(table.id, column, row)
        - _paper_of(claim, table.id, column, baseline),
        selection=selection,
        protocol=table.protocol,
    )


def _verdict(result: Paired, direction: str) -> str:
    """Verdict, with the reason where it is undecided for want of an interval."""
    grade = verdict(result, direction)
    return f"{grade} ({result.reason})" if result.reason else grade


def _obstacle(subject: tuple[Table, Row], reference: tuple[Table, Row], column: Column) -> str:
    """Say why two rows were not compared; empty if they were."""
    conditions, elsewhere = set(), subject[0].id != reference[0].id
    for table, row in (subject, reference):
        runs = table.runs.get((row, column.dataset))
        if not runs:
            missing = table.missing.get((row, column.dataset), "not part of this suite")
            return f"not run: {row.refiner}: {missing.removeprefix('not run: ')}"
        conditions |= {_conditions(record, elsewhere=elsewhere) for record in runs.values()}
    if subject[0].protocol != reference[0].protocol:
        return f"not run: table {reference[0].id} is of another protocol than table {subject[0].id}"
    if len(conditions) > 1:
        rows = " and ".join(f"{r.refiner} (table {t.id})" for t, r in (subject, reference))
        return f"not run: {rows} train {column.dataset} by different recipes"
    return ""


def _unpaired(
    subject: tuple[Table, Row], reference: tuple[Table, Row], column: Column, selection: str
) -> str:
    """Say why no seed has a value of both rows."""
    for table, row in (subject, reference) if selection == "best_validation" else ():
        for record in table.runs[row, column.dataset].values():
            if reason := obstacle(record):
                return f"not run: {row.refiner}: {reason}"
    return "not run: no seed that both rows have"


def _conditions(record: Record, *, elsewhere: bool) -> str:
    """What must be equal for two runs to be paired: data and epochs, across tables the whole recipe.

    Within a table a row may have a learning rate of its own, by its method's recipe, but not more epochs.
    """
    settings = record.spec.settings
    if elsewhere:
        return settings.model_dump_json(include={"dataset", "model", "recipe"})
    return settings.model_dump_json(include={"dataset": True, "recipe": {"epochs"}})


def _time(claim: Claim, table: Table, row: Row, baseline: Row) -> Graded:
    """Grade a claim about the cost in time: mean overhead over the data sets, seed by seed."""
    by_dataset = {dataset: overheads(table, row, baseline, dataset) for dataset in table.metric_of}
    by_dataset = {dataset: values for dataset, values in by_dataset.items() if values}
    shared = set.intersection(*(set(v) for v in by_dataset.values())) if by_dataset else set()
    means = [math.fsum(v[s] for v in by_dataset.values()) / len(by_dataset) for s in sorted(shared)]
    result = paired([mean - claim.expected for mean in means])
    return Graded(
        table=table.id,
        claim=claim,
        row=row,
        baseline=baseline,
        baseline_table=table.id,
        column=Column("mean", "test"),
        result=result,
        protocol=table.protocol,
        verdict=_verdict(result, claim.direction)
        if means
        else f"not run: {table.untimed or f'no timed pair of {row.refiner} and {baseline.refiner}'}",
    )


def _value(record: Record, name: str, selection: str) -> float:
    return record.metrics.get(selection, {}).get(name, math.nan)


def _paper_of(claim: Claim, table: str, column: Column, baseline: Row) -> float:
    """The paper's own value of the baseline, in the table the claim takes it from."""
    return _paper(claim.baseline.table or table, column, baseline)


def _paper(table: str, column: Column, row: Row) -> float:
    wanted = (table, *column, row.backbone, row.upstream, paper_row(row.refiner))
    return _published_means().get(wanted, math.nan)


@cache
def _published_means() -> dict[tuple[str, ...], float]:
    return {
        (c.table, c.dataset, c.split, c.backbone, c.upstream, c.refiner): c.mean
        for c in published()
    }
