"""The best validation epoch where validation data were used, or where there is none."""

from __future__ import annotations

import csv
import importlib.util
import io
import re
from pathlib import Path

import pytest

from benchmarks import record as records
from benchmarks import registry
from benchmarks.suite import load, plan
from benchmarks.tables import evaluate, tables
from benchmarks.tables.long import table_csv
from benchmarks.tables.selection import READ_VALIDATION, at_partners_epoch, notes, obstacle
from benchmarks.tracking import runs

GOLDEN = Path(__file__).parent / "golden"


def _golden():
    spec = importlib.util.spec_from_file_location("golden_records", GOLDEN / "golden_records.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


golden = _golden()


@pytest.fixture(scope="module")
def suite():
    return golden.suite()


def pair(row: str = "train+val", partner: str = "clean+aug"):
    """Records of a row that trains on validation rows and of its partner, the same seed."""
    found = {
        s.row: golden.make(s) for s in plan(golden.suite()) if s.dataset == "qsar" and s.seed == 0
    }
    return found[row], found[partner]


def chosen_at(record, epoch: float):
    best = {**record.metrics["best_validation"], "epoch": epoch}
    return record.model_copy(update={"metrics": {**record.metrics, "best_validation": best}})


@pytest.mark.parametrize("epoch", [1.0, 2.0, 3.0])
def test_a_row_that_trained_on_validation_is_shown_at_the_epoch_its_partner_chose(epoch):
    row, partner = pair()
    shown, same = at_partners_epoch([row, chosen_at(partner, epoch)])
    at = row.curves["epoch"].index(epoch)
    best = shown.metrics["best_validation"]
    assert best["epoch"] == epoch
    assert best["test/auroc"] == row.curves["test/auroc"][at]
    assert best["test/nll"] == row.curves["test/nll"][at]
    assert not any(name.startswith(("refiner/", "train/")) for name in best)
    assert shown.metrics["last"] == row.metrics["last"]
    assert same.metrics["best_validation"]["epoch"] == epoch


@pytest.mark.parametrize(
    "case", ["no partner", "another seed", "another protocol", "no such point"]
)
def test_without_its_partners_epoch_nothing_is_shown_and_a_note_says_why(case):
    row, partner = pair()
    match case:
        case "no partner":
            others = []
        case "another seed":
            seed = partner.spec.model_copy(update={"seed": 1})
            others = [partner.model_copy(update={"spec": seed})]
        case "another protocol":
            others = [partner.model_copy(update={"protocol": 1})]
        case "no such point":
            others = [chosen_at(partner, 2.5)]
    shown = at_partners_epoch([row, *others])[0]
    assert shown.metrics["best_validation"] == {}
    assert "clean+aug of the same seed has chosen no epoch" in obstacle(shown)
    assert "no best validation epoch: clean+aug" in runs.description(shown)


def test_the_partner_of_a_row_without_upstream_is_none():
    row, partner = pair(partner="none")
    row = row.model_copy(update={"spec": row.spec.model_copy(update={"upstream": "none"})})
    shown, _ = at_partners_epoch([row, chosen_at(partner, 3.0)])
    assert shown.metrics["best_validation"]["epoch"] == 3.0


@pytest.mark.parametrize(("share", "epoch"), [(0.5, 3.0), (0.0, None)])
def test_upstream_is_the_partner_only_where_it_has_the_same_mixture(share, epoch):
    row, upstream = pair(partner="upstream")
    settings = upstream.spec.settings.model_copy(update={"clean_share": share})
    spec = upstream.spec.model_copy(update={"settings": settings})
    shown, _ = at_partners_epoch([row, chosen_at(upstream, 3.0).model_copy(update={"spec": spec})])
    assert shown.metrics["best_validation"].get("epoch") == epoch


def test_rows_that_trained_on_their_own_training_rows_keep_their_choice():
    untouched = [golden.make(s) for s in plan(golden.suite()) if s.row != "train+val"]
    assert at_partners_epoch(untouched) == untouched


def test_tables_and_claims_use_the_partners_epoch_alike(suite):
    evaluated = evaluate(suite, GOLDEN / "results")
    table = next(t for t in evaluated.tables if t.id == "2")
    by_row = {
        c.refiner: c
        for c in table.cells
        if (c.dataset, c.backbone, c.metric, c.selection)
        == ("qsar", "mlp", "auroc", "best_validation")
    }
    kept = [r for r in records.load_all(GOLDEN / "results") if r.spec.row == "train+val"]
    second = [100 * r.curves["test/auroc"][1] for r in kept if r.spec.dataset == "qsar"]
    assert by_row["train+val"].mean == pytest.approx(sum(second) / 3)
    line = next(
        g
        for g in evaluated.claims["best_validation"]
        if (g.table, g.column.dataset, g.row.refiner, g.baseline.refiner)
        == ("2", "qsar", "saflex", "train+val")
    )
    assert line.result.difference == pytest.approx(by_row["saflex"].mean - by_row["train+val"].mean)


def test_a_cell_counts_only_the_seeds_that_have_an_epoch_and_says_so(suite):
    table = next(t for t in tables(suite, GOLDEN / "results") if t.id == "2")
    cell = next(
        c
        for c in csv.DictReader(io.StringIO(table_csv(table)))
        if (c["dataset"], c["refiner"], c["metric"], c["selection"])
        == ("kdd99", "train+val", "auroc", "best_validation")
    )
    assert (cell["n"], cell["planned"]) == ("2", "3")
    assert cell["note"].startswith("no best validation epoch for 1 seed: clean+aug")


def test_a_class_missing_from_validation_leaves_that_selection_empty_with_a_note(suite, tmp_path):
    for record in records.load_all(GOLDEN / "results"):
        if record.spec.table == "demo-digits" and record.status == "complete":
            metrics = {**record.metrics, "best_validation": {}}
            records.write(tmp_path, record.model_copy(update={"metrics": metrics}))
    evaluated = evaluate(suite, tmp_path)
    table = next(t for t in evaluated.tables if t.id == "demo-digits")
    mine = [c for c in table.cells if c.selection == "best_validation" and c.planned]
    assert {c.n for c in mine} == {0}
    assert all(
        "validation accuracy is not defined, a class may be missing" in c.status for c in mine
    )
    assert all(c.n for c in table.cells if c.selection == "last" and c.metric == "accuracy")
    verdicts = {g.verdict for g in evaluated.claims["best_validation"] if g.table == table.id}
    assert any("a class may be missing there" in verdict for verdict in verdicts)
    assert all(verdict.startswith("not run: ") for verdict in verdicts)


def test_notes_name_every_row_that_used_validation_data(suite):
    found = next(t for t in tables(suite, GOLDEN / "results") if t.id == "2").notes
    assert any(n.startswith("train+val: trained on validation rows") for n in found)
    assert any(n.startswith("saflex, saflex-printed: labels or weights follow") for n in found)
    assert not any("extra real images" in n for n in found)


def test_extra_real_images_are_said_to_be_cubs_validation_set():
    found = notes(plan(load("paper"), table="3"))
    assert any(
        ": trains on the extra real images. On CUB they are the validation" in n for n in found
    )


def test_every_refiner_that_reads_validation_data_is_known_to_the_notes():
    for name, module in registry.modules("refiners").items():
        source = Path(*module.split(".")).with_suffix(".py").read_text(encoding="utf-8")
        # The number of rows alone, for a table of memories, decides nothing.
        reads = re.search(
            r"(context\.validation\(|data\.validation\b)(?<!len\(data\.validation)", source
        )
        assert bool(reads) <= name.startswith(tuple(READ_VALIDATION)), name


def test_the_note_on_lp_ft_says_what_it_chose_on_validation():
    found = notes(plan(load("cpu"), table="4"))
    assert any(
        note.startswith("lp-ft: the strength of its probe follows the valid") for note in found
    )
