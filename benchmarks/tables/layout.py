"""How a table is laid out: blocks of rows and columns with footnotes, before any file format.

Methods are rows, grouped by network and upstream; data sets are columns, as in the paper. Renderers
(`markdown`, `latex`, `html`, `terminal`) only turn these strings into their syntax.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from benchmarks.tables import protocols
from benchmarks.tables.cells import SELECTIONS, Cell, Column, Row, Table, unit
from benchmarks.tables.efficiency import Overhead, measure

METRIC_NAMES = {
    "auroc": "AUROC",
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
    "macro_f1": "macro-F1",
    "average_precision": "average precision",
    "nll": "NLL",
    "ece": "calibration error",
}
SELECTION_NAMES = {
    "last": "last epoch (primary selection)",
    "best_validation": "best validation epoch",
}
DASH = "–"


@dataclass(frozen=True)
class Entry:
    """One laid-out cell.

    Attributes
    ----------
    ours : ``93.12 ± 0.51 (10)``, or why there is none. missing : `ours` is such a reason.
    paper : ``91.87 ± 0.02``, a dash where the paper has no cell, empty where there is nothing to compare.
    difference : ``+1.25`` or empty. marks : numbers of its footnotes.
    """

    ours: str
    paper: str = ""
    difference: str = ""
    marks: tuple[int, ...] = ()
    missing: bool = False


@dataclass(frozen=True)
class Line:
    """A row's name and its cells."""

    label: str
    entries: tuple[Entry, ...]


@dataclass(frozen=True)
class Group:
    """Rows of one network and upstream."""

    title: str
    lines: tuple[Line, ...]


@dataclass(frozen=True)
class Block:
    """One metric in one selection. `detail` blocks come after the ones everybody reads."""

    title: str
    headings: tuple[str, ...]
    heading_marks: tuple[tuple[int, ...], ...]
    groups: tuple[Group, ...]
    detail: bool = False


@dataclass(frozen=True)
class Sheet:
    """A whole table, laid out. `footnotes` are numbered from 1; `notes` hold for all of it.

    `warning` stands at its head, before everything else; empty where there is nothing to warn of.
    """

    id: str
    title: str
    blocks: tuple[Block, ...]
    footnotes: tuple[str, ...]
    notes: tuple[str, ...]
    warning: str = ""


class _Footnotes:
    """Footnotes in order of first use; the same text has one number."""

    def __init__(self) -> None:
        self.numbers: dict[str, int] = {}

    def mark(self, texts: list[str]) -> tuple[int, ...]:
        return tuple(sorted(self.numbers.setdefault(t, len(self.numbers) + 1) for t in texts if t))


def lay_out(table: Table) -> Sheet:
    """Lay out a table: the primary metric, NLL and calibration error in both selections, then the rest."""
    footnotes = _Footnotes()
    blocks = [_block(table, "primary", selection, footnotes) for selection in SELECTIONS]
    for metric in table.metrics():
        main = metric in {"nll", "ece"}
        for selection in SELECTIONS if main else SELECTIONS[:1]:
            block = _block(table, metric, selection, footnotes, detail=not main)
            blocks += [block] if block.groups else []
    blocks += _efficiency_blocks(table)
    return Sheet(
        id=table.id,
        title=f"Table {table.id}: {table.title}" if table.title else f"Table {table.id}",
        blocks=tuple(blocks),
        footnotes=tuple(footnotes.numbers),
        notes=(*_legend(table), *table.notes),
        warning=protocols.warning(table.protocol) if table.runs else "",
    )


def number(value: float, metric: str, *, signed: bool = False) -> str:
    """A number in the table's precision: two decimals for per cent, three for nats."""
    if math.isnan(value):
        return DASH
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    digits = 3 if unit(metric) == "nats" else 2
    text = f"{value:{'+' if signed else ''}.{digits}f}"
    if float(text) == 0:
        text = f"{0:{'+' if signed else ''}.{digits}f}"
    return text.replace("-", "−")


def with_std(mean: float, std: float, metric: str) -> str:
    """Mean ± deviation, the mean alone where there is no deviation."""
    if math.isnan(std):
        return number(mean, metric)
    return f"{number(mean, metric)} ± {number(std, metric)}"


def metric_name(metric: str) -> str:
    """A metric as readers write it."""
    return METRIC_NAMES.get(metric, metric.replace("_", " "))


def entry(cell: Cell, marks: tuple[int, ...] = (), *, compare: bool = True) -> Entry:
    """Lay out one cell; `compare` puts the paper's beside it."""
    paper = with_std(cell.paper_mean, cell.paper_std, cell.metric) if compare else ""
    if cell.blank:
        return Entry(DASH)
    if cell.n == 0:
        return Entry(cell.status, "" if paper == DASH else paper, marks=marks, missing=True)
    count = f"{cell.n}" if cell.n == cell.planned else f"{cell.n}/{cell.planned}"
    difference = cell.difference
    return Entry(
        f"{with_std(cell.mean, cell.std, cell.metric)} ({count})",
        paper,
        "" if math.isnan(difference) else number(difference, cell.metric, signed=True),
        marks,
    )


def group_title(row: Row) -> str:
    """Heading of the rows that share a network and an upstream."""
    return row.backbone if row.upstream == "none" else f"{row.backbone} · {row.upstream}"


def _block(
    table: Table, metric: str, selection: str, footnotes: _Footnotes, *, detail: bool = False
) -> Block:
    """One block; a column that has the metric nowhere is left out, primary columns never are."""
    primary = metric == "primary"
    cells = {
        (Row(c.backbone, c.upstream, c.refiner), Column(c.dataset, c.split)): c
        for c in table.cells
        if c.selection == selection
        and (c.metric == table.metric_of[c.dataset] if primary else c.metric == metric)
    }
    columns = [
        column for column in table.columns if primary or _adds(table, column, metric, cells.items())
    ]
    published = {c for (_, c), cell in cells.items() if not math.isnan(cell.paper_mean)}
    rows = [row for row in table.rows if primary or any(_planned(cells, row, c) for c in columns)]
    heading_marks = tuple(
        footnotes.mark(_dataset_footnotes(table, column)) if primary else () for column in columns
    )
    groups: dict[str, list[Line]] = {}
    for row in rows if columns else []:
        entries = []
        for column in columns:
            cell = cells[row, column]
            partial = cell.status if cell.n else ""
            marks = footnotes.mark([partial, cell.reduced])
            entries.append(entry(cell, marks, compare=primary and column in published))
        groups.setdefault(group_title(row), []).append(Line(row.refiner, tuple(entries)))
    name = "test results" if primary else f"test {metric_name(metric)}, {unit(metric)}"
    return Block(
        title=f"{name[0].upper()}{name[1:]}, {SELECTION_NAMES[selection]}",
        headings=tuple(_heading(table, column, primary) for column in columns),
        heading_marks=heading_marks,
        groups=tuple(Group(title, tuple(lines)) for title, lines in groups.items()),
        detail=detail,
    )


def _adds(table: Table, column: Column, metric: str, cells) -> bool:
    """Say whether a column has a metric at all, other than as its primary one."""
    has = any(cell.n for (_, place), cell in cells if place == column)
    return has and table.metric_of[column.dataset] != metric


def _planned(cells: dict, row: Row, column: Column) -> bool:
    cell = cells.get((row, column))
    return cell is not None and cell.planned > 0


def _heading(table: Table, column: Column, primary: bool) -> str:
    split = "" if column.split == "test" else f" {column.split.replace('_', ' ')}"
    if not primary:
        return f"{column.dataset}{split}"
    return f"{column.dataset}{split} ({metric_name(table.metric_of[column.dataset])})"


def _dataset_footnotes(table: Table, column: Column) -> list[str]:
    notes = [note.removesuffix(".") for note in table.dataset_notes.get(column.dataset, ())]
    return [f"{column.dataset}: {'. '.join(notes)}."] if notes else []


def _legend(table: Table) -> list[str]:
    in_paper = any(not math.isnan(cell.paper_mean) for cell in table.cells)
    legend = [
        "Each cell: mean ± sample standard deviation (ddof = 1) over n seeds, (n), or (n/N) where only n "
        "of N planned seeds have a result. Per cent, NLL in nats."
    ]
    if in_paper:
        legend.append(
            "Below it, where the paper has the column, its cell and ours minus the paper's. The paper has "
            "one SAFLEX row; it stands beside each of ours. Its selection rule is not stated; it stands "
            "beside both. A dash alone: neither published nor run here."
        )
    else:
        legend.append("This is not a table of the paper: there are no published cells.")
    return legend


def _efficiency_blocks(table: Table) -> list[Block]:
    """Overhead in training time: one block for each baseline."""
    lines = measure(table)
    blocks = []
    for baseline in dict.fromkeys(line.baseline.refiner for line in lines):
        mine = [line for line in lines if line.baseline.refiner == baseline]
        datasets = [d for d in table.metric_of if any(line.dataset == d for line in mine)]
        groups: dict[str, list[Line]] = {}
        for row in dict.fromkeys(line.row for line in mine):
            by_dataset = {line.dataset: line for line in mine if line.row == row}
            entries = tuple(_overhead_entry(by_dataset.get(d)) for d in [*datasets, "mean"])
            groups.setdefault(group_title(row), []).append(Line(row.refiner, entries))
        blocks.append(
            Block(
                title=f"Training time per epoch over that of {baseline}, evaluation left out",
                headings=(*datasets, "mean over data sets"),
                heading_marks=((),) * (len(datasets) + 1),
                groups=tuple(Group(title, tuple(lines)) for title, lines in groups.items()),
            )
        )
    return blocks


def _overhead_entry(line: Overhead | None) -> Entry:
    if line is None:
        return Entry("not run: no timed pair", missing=True)
    std = "" if math.isnan(line.std) else f" ± {line.std:.0f}"
    paper = "" if math.isnan(line.paper) else f"{line.paper:+.0f} %"
    text = f"{line.mean:+.0f}{std} % ({line.n})".replace("-", "−")
    return Entry(text, paper, "")
