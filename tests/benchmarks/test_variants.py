"""One contrastive run fills two rows of Table 4: as fine-tuned, and ensembled with zero-shot weights."""

from __future__ import annotations

import math

import pytest

from benchmarks import record, suite, tracking
from benchmarks.record import Record
from benchmarks.tables import build, evaluate, selection
from benchmarks.tables.collect import collect

METRICS = {
    "val/macro_f1": 0.5,
    "id_test/macro_f1": 0.7,
    "ood_test/macro_f1": 0.4,
    "ensemble/val/macro_f1": 0.6,
    "ensemble/id_test/macro_f1": 0.75,
    "ensemble/ood_test/macro_f1": 0.45,
    "ensemble/alpha": 0.6,
}


@pytest.fixture(scope="module")
def cells():
    """Cells of Table 4 after one seed of each row of the cpu suite."""
    chosen = suite.load("cpu")
    plan = suite.plan(chosen, table="4")
    records = [
        Record(
            key=run.key,
            status="complete",
            spec=run,
            metrics={"last": METRICS, "best_validation": {**METRICS, "epoch": 4.0}},
            curves={"epoch": [1.0], "val/nll": [0.3]},
            seconds={"step": 3.0, "total": 4.0},
        )
        for run in plan
        if run.seed < 2
    ]
    table = next(table for table in collect(chosen, plan, records) if table.id == "4")
    return {
        (c.dataset, c.split, c.backbone, c.upstream, c.refiner): c
        for c in table.cells
        if c.metric == "macro_f1" and c.selection == "last"
    }


@pytest.mark.parametrize(
    ("split", "backbone", "mean"),
    [
        ("id_test", "clip-tiny", 70),
        ("ood_test", "clip-tiny", 40),
        ("id_test", "clip-tiny+ensemble", 75),
        ("ood_test", "clip-tiny+ensemble", 45),
    ],
)
def test_both_rows_hold_their_own_numbers(cells, split, backbone, mean):
    cell = cells["captioned-bloodmnist", split, backbone, "randaugment", "saflex"]
    assert cell.mean == pytest.approx(mean)
    assert (cell.n, cell.planned) == (2, 5)


def test_every_planned_row_has_an_ensemble_but_one_that_trains_on_what_chooses_its_coefficient(
    cells,
):
    rows = {key[3:] for key in cells if key[2] == "clip-tiny"}
    assert len(rows) == 11
    ensembles = {key[3:] for key in cells if key[2] == "clip-tiny+ensemble"}
    assert rows - ensembles == {("randaugment", "train+val")}
    notes = selection.notes(suite.plan(suite.load("cpu"), table="4"))
    assert any(
        note.startswith("train+val: no weight ensemble, as its coefficient") for note in notes
    )


@pytest.mark.parametrize("backbone", ["clip-vit-b16", "clip-vit-b16+ensemble"])
def test_the_papers_cells_stand_beside_with_the_reason(cells, backbone):
    key = ("iwildcam-wilds", "ood_test", backbone, "randaugment", "saflex")
    cell = cells[key]
    assert cell.paper_mean == {"clip-vit-b16": 36.9, "clip-vit-b16+ensemble": 37.8}[backbone]
    assert math.isnan(cell.mean)
    assert cell.status == "not run: CLIP weights, iWildCam images (12 GB) not at hand"


def test_columns_are_the_two_test_splits(cells):
    assert {key[:2] for key in cells} == {
        (name, split)
        for name in ("captioned-bloodmnist", "iwildcam-wilds")
        for split in ("id_test", "ood_test")
    }


def test_the_store_is_checked_by_the_run_that_holds_both_rows(tmp_path):
    """`track check` finds an ensembled row under its run's own backbone."""
    chosen = suite.load("cpu")
    runs = [run for run in suite.plan(chosen, table="4") if run.row == "flyp" and run.seed < 2]
    for run in runs:
        metrics = {"last": METRICS, "best_validation": METRICS}
        record.write(
            tmp_path, record.Record(key=run.key, status="complete", spec=run, metrics=metrics)
        )
    build(evaluate(chosen, tmp_path), tmp_path, figures=False)
    tracking.sync(tmp_path, say=lambda line: None)
    lines = []
    assert tracking.check(tmp_path, say=lines.append) == 0, lines
    path = tmp_path / "tables" / "table4.csv"
    path.write_text(path.read_text().replace(",75,", ",76,"))
    assert tracking.check(tmp_path, say=lines.append) == 1
    assert "clip-tiny+ensemble" in lines[1]
