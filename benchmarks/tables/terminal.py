"""A suite's tables on the terminal: our number, the paper's where there is one, difference, verdicts."""

from __future__ import annotations

import math
from pathlib import Path

from benchmarks.suite import Suite
from benchmarks.tables.build import claims_by_selection, tables
from benchmarks.tables.cells import Cell, Table
from benchmarks.tables.claims import kind
from benchmarks.tables.layout import DASH, SELECTION_NAMES, entry, metric_name
from benchmarks.tables.verdicts import Graded

MARKS = {
    "reproduced": "[green]✓[/]",
    "contradicted": "[red]✗[/]",
    "undecided": "[yellow]?[/]",
    "not run": f"[dim]{DASH}[/]",
}


def summary(suite: Suite | str, results: Path, *, selection: str = "last", console=None) -> None:
    """Print each table of a suite, one line for each planned cell.

    Parameters
    ----------
    suite : a suite, its name or the path of its file. results : its folder, which holds ``records/``.
    selection : ``last`` or ``best_validation``.
    console : a `rich.console.Console`; default: the terminal.
    """
    from rich.console import Console

    console = console or Console()
    collected = tables(suite, Path(results))
    graded = claims_by_selection(collected)[selection]
    for table in collected:
        mine = [g for g in graded if g.table == table.id and g.claim.kind == "metric"]
        title = f"Table {table.id}: {table.title}" if table.title else f"Table {table.id}"
        console.print(f"\n[bold]{title}[/]")
        console.print(_grid(table, mine, selection))
        if absent := _only_in_paper(table, selection):
            console.print(f"[dim]{absent} published cells are not part of this suite.[/]")
    console.print(
        f"\nMean ± standard deviation (n), {SELECTION_NAMES[selection]}. Paired difference to the row "
        "named: ✓ claim reproduced, ✗ contradicted, ? undecided (the 95 % interval crosses 0), "
        f"{DASH} not run."
    )


def _grid(table: Table, graded: list[Graded], selection: str):
    from rich import box
    from rich.table import Table as Grid

    cells = [
        cell
        for cell in table.cells
        if cell.selection == selection
        and cell.metric == table.metric_of[cell.dataset]
        and cell.planned
    ]
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
            grid.add_row(f"[italic]{heading}[/]")
            before = heading
        laid = entry(cell)
        shown = [f"[dim]{laid.ours.split(':')[0]}[/]" if laid.missing else laid.ours]
        if in_paper:
            difference = f" ({laid.difference})" if laid.difference else ""
            shown.append((laid.paper or DASH).split(" ")[0] + difference)
        name = f"{cell.refiner}, {cell.upstream}" if several else cell.refiner
        verdicts = " ".join(_verdict(g) for g in graded if _is_about(g, cell))
        grid.add_row(f"  {name}", *shown, verdicts)
    return grid


def _heading(cell: Cell) -> str:
    split = "" if cell.split == "test" else f" {cell.split}"
    return f"{cell.dataset}{split}, {cell.backbone}, {metric_name(cell.metric)}"


def _is_about(line: Graded, cell: Cell) -> bool:
    row = (cell.backbone, cell.upstream, cell.refiner)
    return tuple(line.row) == row and tuple(line.column) == (cell.dataset, cell.split)


def _verdict(line: Graded) -> str:
    """A mark and what the row is compared with, such as ``✓>upstream``."""
    return f"{MARKS[kind(line)]}{line.claim.direction}{line.baseline.refiner}"


def _only_in_paper(table: Table, selection: str) -> int:
    return sum(
        cell.planned == 0 and not math.isnan(cell.paper_mean) and cell.selection == selection
        for cell in table.cells
    )
