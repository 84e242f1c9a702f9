"""The data structure of a table: cells over records, the plan and the published cells. No formatting here."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from benchmarks.record import PROTOCOL, Record
from benchmarks.tables.protocols import OLD_PROTOCOL

SELECTIONS = ("last", "best_validation")
CSV_COLUMNS = [
    "table",
    "dataset",
    "split",
    "backbone",
    "refiner",
    "upstream",
    "metric",
    "selection",
    "n",
    "planned",
    "mean",
    "std",
    "paper_mean",
    "paper_std",
    "difference",
    "note",
]


class Row(NamedTuple):
    """A row of a table."""

    backbone: str
    upstream: str
    refiner: str


class Column(NamedTuple):
    """A column of a table: a data set and the split it is evaluated on."""

    dataset: str
    split: str


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One number of a table: mean over n of the planned seeds, beside the paper's.

    Attributes
    ----------
    mean, std : per cent, nats for ``nll``; std is the sample standard deviation (ddof = 1), nan for n < 2.
    paper_mean, paper_std : per cent, nan where the paper has no such cell.
    reduced : what was reduced against the protocol, empty if nothing.
    status : empty where every planned seed is there; else what is missing and why.
    blank : the paper has no such cell, and the suite runs nothing of its row or column: a dash.
    protocol : of the records behind it (`benchmarks.record.PROTOCOL`).
    """

    table: str
    dataset: str
    split: str
    backbone: str
    refiner: str
    upstream: str
    metric: str
    selection: str
    n: int
    planned: int
    mean: float
    std: float
    paper_mean: float
    paper_std: float
    reduced: str = ""
    status: str = ""
    blank: bool = False
    protocol: int = PROTOCOL

    @property
    def difference(self) -> float:
        """Our mean less the paper's, in the unit of the metric; nan where either is missing."""
        return self.mean - self.paper_mean

    @property
    def note(self) -> str:
        """What a reader of this cell alone must know."""
        old = OLD_PROTOCOL if self.n and self.protocol != PROTOCOL else ""
        return "; ".join(part for part in (self.status, self.reduced, old) if part)


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table as data. Renderers turn it into files.

    Attributes
    ----------
    metric_of : primary metric of each data set.
    cells : one for each column, row, metric and selection, in that nesting.
    runs : the complete records behind the cells, by row and data set, by seed.
    dataset_notes : what a reader must know of a data set, from its card and its records.
    notes : what a reader must know of the whole table.
    protocol : of the records behind it; of today's where there is none.
    untimed : why the times of the runs are no measurement, empty if they are one.
    times : seconds of a training epoch by row and data set, by round, where they were measured apart
        from the runs (`benchmarks.tables.times`); they then stand for the runs' own.
    """

    id: str
    title: str
    metric_of: dict[str, str]
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    cells: tuple[Cell, ...]
    runs: dict[tuple[Row, str], dict[int, Record]] = field(default_factory=dict)
    missing: dict[tuple[Row, str], str] = field(default_factory=dict)
    dataset_notes: dict[str, tuple[str, ...]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    protocol: int = PROTOCOL
    untimed: str = ""
    times: dict[tuple[Row, str], dict[int, float]] = field(default_factory=dict)

    def metrics(self) -> list[str]:
        """Metrics other than the primary ones, NLL and calibration error first."""
        seen = {cell.metric for cell in self.cells}
        return [m for m in ("nll", "ece") if m in seen] + sorted(seen - {"nll", "ece"})


def unit(metric: str) -> str:
    """Unit a metric is shown in."""
    return "nats" if metric == "nll" else "%"


def scale(metric: str) -> float:
    """Factor from a record's value (fractions, nats) to the table's (per cent, nats)."""
    return 1.0 if unit(metric) == "nats" else 100.0
