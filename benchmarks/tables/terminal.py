"""A suite's tables on the terminal: our number, the paper's where there is one, difference, verdicts."""

from __future__ import annotations

import math

from benchmarks.tables import protocols
from benchmarks.tables.build import Evaluated
from benchmarks.tables.cells import Cell, Table
from benchmarks.tables.claims import kind
from benchmarks.tables.layout import DASH, SELECTION_NAMES, entry, metric_name
from benchmarks.tables.verdicts import Graded

MARKS = {
    "reproduced": ("✓", "green"),
    "contradicted": ("✗", "red"),
    "undecided": ("?", "yellow"),
}


def summary(evaluated: Evaluated, *, selection: str = "last", console=None) -> None:
    """Print each table of a suite, one line for each cell that has a result or failed.

    Parameters
    ----------
    selection : ``last`` or ``best_validation``.
    console : a `rich.console.Console`; default: the terminal.
    """
    from rich.console import Console
    from rich.text import Text

    console = console or Console()
    graded = evaluated.claims[selection]
    for table in evaluated.tables:
        mine = [g for g in graded if g.table == table.id and g.claim.kind == "metric"]
        title = f"Table {table.id}: {table.title}" if table.title else f"Table {table.id}"
        console.print(
            Text(f"\n{title}", style="bold")
        )  # never as markup: suites name what they like
        if warning := protocols.warning(table.protocol):
            console.print(Text(warning, style="yellow"))
        console.print(_grid(table, mine, selection))
        for count, what in _not_shown(table, selection):
            if count:
                console.print(f"[dim]{count} {what}.[/]")
    console.print(
        f"\nMean ± standard deviation (n), {SELECTION_NAMES[selection]}. Claims, by the paired difference "
        "to the row named: ✓ better, as claimed, ✗ contradicted, ? undecided (the 95 % interval crosses 0); "
        "'<' where the claim is that it is worse."
    )


def _grid(table: Table, graded: list[Graded], selection: str):
    from rich import box
    from rich.table import Table as Grid
    from rich.text import Text

    cells = [c for c in _primary(table, selection) if c.n or c.status.startswith("failed")]
    in_paper = any(not math.isnan(cell.paper_mean) for cell in cells)
    several = len({cell.upstream for cell in cells if cell.upstream != "none"}) > 1
    grid = Grid(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, header_style="bold")
    grid.add_column("data set, row", no_wrap=True)
    grid.add_column("ours", no_wrap=True, justify="right")
    if in_paper:
        grid.add_column("paper (Δ)", no_wrap=True, justify="right")
    grid.add_column("claims")
    before = ""
    for cell in cells:
        if (heading := _heading(cell)) != before:
            grid.add_section()
            grid.add_row(Text(heading, style="italic"))
            before = heading
        laid = entry(cell)
        ours = laid.ours.split(":")[0] if laid.missing else laid.ours
        shown = [Text(ours, style="dim" if laid.missing else "")]
        if in_paper:
            difference = f" ({laid.difference})" if laid.difference else ""
            shown.append(Text((laid.paper or DASH).split(" ")[0] + difference))
        name = f"{cell.refiner}, {cell.upstream}" if several else cell.refiner
        verdicts = _verdicts([g for g in graded if _is_about(g, cell)])
        grid.add_row(Text(f"  {name}"), *shown, Text.assemble(*verdicts))
    return grid


def _heading(cell: Cell) -> str:
    split = "" if cell.split == "test" else f" {cell.split}"
    return f"{cell.dataset}{split}, {cell.backbone}, {metric_name(cell.metric)}"


def _is_about(line: Graded, cell: Cell) -> bool:
    row = (cell.backbone, cell.upstream, cell.refiner)
    return tuple(line.row) == row and tuple(line.column) == (cell.dataset, cell.split)


def _verdicts(graded: list[Graded]) -> list[str | tuple[str, str]]:
    """Marks, with their colours, and the rows compared with, such as ``✓ upstream, none ✗ clean+aug``."""
    parts: list[str | tuple[str, str]] = []
    for verdict, mark in MARKS.items():
        names = [
            f"{'<' if g.claim.direction == '<' else ''}{g.baseline.refiner}"
            for g in graded
            if kind(g) == verdict
        ]
        if names:
            parts += [" " if parts else "", mark, f" {', '.join(names)}"]
    return parts


def _primary(table: Table, selection: str) -> list[Cell]:
    return [
        c
        for c in table.cells
        if c.selection == selection and c.metric == table.metric_of[c.dataset]
    ]


def _not_shown(table: Table, selection: str) -> list[tuple[int, str]]:
    """How many cells the terminal leaves out; the files have them all, with reasons."""
    cells = _primary(table, selection)
    waiting = [c for c in cells if c.planned and not c.n and not c.status.startswith("failed")]
    absent = [c for c in cells if not c.planned and not math.isnan(c.paper_mean)]
    return [
        (len(waiting), "planned cells have no record yet"),
        (len(absent), "published cells are not run by this suite, the table says why"),
    ]
