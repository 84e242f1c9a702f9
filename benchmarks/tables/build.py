"""`evaluate` a suite's records once; `build` writes tables, claims and figures, the same bytes each time."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from benchmarks.record import atomic_write, load_all
from benchmarks.suite import Suite, load, plan
from benchmarks.tables import cards, claims, html, latex, long, markdown, times
from benchmarks.tables.cells import SELECTIONS, Table
from benchmarks.tables.collect import collect
from benchmarks.tables.efficiency import measure
from benchmarks.tables.layout import lay_out
from benchmarks.tables.progress import shown
from benchmarks.tables.verdicts import Graded, grade

RENDERERS = {"md": markdown.render, "tex": latex.render, "html": html.render}
# Files of these names in the output folders are this module's: those not written again are stale.
# Table 5 is recomputed from the data, not from records, and belongs to `table5`.
OWNED = {
    "tables": ("table*.csv", "table*.md", "table*.tex", "table*.html", "claims*", "efficiency.csv"),
    "figures": ("table*-claims-*.png", "table*-nll-*.png", "table*-diagnostics-*.png"),
}


def tables(suite: Suite | str, results: Path) -> list[Table]:
    """Collect the tables of a suite as data, for renderers of all kinds.

    Parameters
    ----------
    suite : a suite, its name or the path of its file.
    results : the suite's results folder, which holds ``records/`` and may hold ``times/`` and ``cards/``.
    """
    suite = suite if isinstance(suite, Suite) else load(suite)
    results, runs = Path(results), plan(suite)
    found = shown(load_all(results), "reading records", total=len(runs))
    told = {run.dataset: cards.read(results, run.dataset) for run in runs}
    return collect(suite, runs, found, times.load_all(results), told)


@dataclass(frozen=True)
class Evaluated:
    """A suite's tables, and its claims graded in each selection, the primary one first."""

    tables: list[Table]
    claims: dict[str, list[Graded]]


def evaluate(suite: Suite | str, results: Path) -> Evaluated:
    """Collect a suite's tables and grade the claims about them.

    Raises
    ------
    BenchmarkError
        A record is truncated or was edited.
    """
    collected = tables(suite, results)
    selections = shown(SELECTIONS, "grading claims")
    return Evaluated(collected, {s: grade(collected, selection=s) for s in selections})


def build(evaluated: Evaluated, out: Path, *, figures: bool = True) -> list[Path]:
    """Write ``tables/`` and ``figures/`` below `out` and remove what earlier calls left there.

    Returns
    -------
    Paths of all files written, tables first.
    """
    out, graded = Path(out), evaluated.claims
    written = []
    for name, text in _texts(evaluated.tables, graded).items():
        written.append(out / "tables" / name)
        atomic_write(written[-1], text)
    if figures:
        from benchmarks.tables.figures import draw  # matplotlib takes a second to import

        written += draw(evaluated.tables, graded[SELECTIONS[0]], out / "figures")
    _remove_stale(out, written, folders=("tables", "figures") if figures else ("tables",))
    return written


def _texts(collected: list[Table], graded: dict[str, list[Graded]]) -> dict[str, str]:
    """Text of every file under ``tables/``, by name."""
    texts = {}
    for table in collected:
        sheet = lay_out(table)
        texts[f"table{table.id}.csv"] = long.table_csv(table)
        for suffix, render in RENDERERS.items():
            texts[f"table{table.id}.{suffix}"] = render(sheet)
    texts["claims.csv"] = long.claims_csv(graded["last"])
    texts["claims-best-validation.csv"] = long.claims_csv(graded["best_validation"])
    texts["claims.md"] = claims.render(graded, collected)
    texts["efficiency.csv"] = long.efficiency_csv([x for t in collected for x in measure(t)])
    return texts


def _remove_stale(out: Path, written: list[Path], *, folders: tuple[str, ...]) -> None:
    for folder in folders:
        for pattern in OWNED[folder]:
            for path in (out / folder).glob(pattern):
                if path not in written and path.stem != "table5":
                    path.unlink()
