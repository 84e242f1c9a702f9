"""`build`: every table, claim and figure of a suite from its records, byte for byte the same each time."""

from __future__ import annotations

from pathlib import Path

from benchmarks.record import atomic_write, load_all
from benchmarks.studies import timing
from benchmarks.suite import Suite, load, plan
from benchmarks.tables import claims, html, latex, long, markdown
from benchmarks.tables.cells import SELECTIONS, Table
from benchmarks.tables.collect import collect
from benchmarks.tables.efficiency import measure
from benchmarks.tables.layout import lay_out
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
    results : the suite's results folder, which holds ``records/`` and may hold ``times/``.
    """
    suite = suite if isinstance(suite, Suite) else load(suite)
    return collect(suite, plan(suite), load_all(results), timing.load_all(results))


def claims_by_selection(collected: list[Table]) -> dict[str, list[Graded]]:
    """Grade the claims in each selection, the primary one first."""
    return {selection: grade(collected, selection=selection) for selection in SELECTIONS}


def build(
    suite: Suite | str, results: Path, out: Path | None = None, *, figures: bool = True
) -> list[Path]:
    """Write ``tables/`` and ``figures/`` of a suite and remove what earlier calls left there.

    Parameters
    ----------
    suite : a suite, its name or the path of its file.
    results : the suite's results folder, which holds ``records/``.
    out : where ``tables/`` and ``figures/`` go; default: the results folder itself.

    Returns
    -------
    Paths of all files written, tables first.

    Raises
    ------
    BenchmarkError
        A record is truncated or was edited. Nothing is written then.
    """
    out = Path(out or results)
    collected = tables(suite, Path(results))
    graded = claims_by_selection(collected)
    written = []
    for name, text in _texts(collected, graded).items():
        written.append(out / "tables" / name)
        atomic_write(written[-1], text)
    if figures:
        from benchmarks.tables.figures import draw  # matplotlib takes a second to import

        written += draw(collected, graded[SELECTIONS[0]], out / "figures")
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
