"""The published cells and the paper's claims as data, and how claims are graded."""

from __future__ import annotations

import csv
import math
import os
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from pydantic import ValidationError

from benchmarks.paper import FOLDER, Claim, claims, is_saflex, names, paper_row, published
from benchmarks.record import Record
from benchmarks.spec import Component, Recipe, RunSpec, Settings
from benchmarks.tables.cells import Column, Row, Table
from benchmarks.tables.verdicts import applies, grade

A_CLAIM = {
    "id": "saflex>upstream",
    "table": "2",
    "refiner": "saflex",
    "baseline": {"refiner": "upstream"},
    "direction": ">",
    "section": "5",
    "quote": "it is better",
}


def test_there_are_144_published_cells_each_named_once():
    cells = published()
    assert len(cells) == 144
    assert Counter(c.table for c in cells) == {"1": 40, "2": 42, "3": 18, "4": 20, "7": 16, "8": 8}
    places = {(c.table, c.dataset, c.split, c.backbone, c.refiner, c.upstream) for c in cells}
    assert len(places) == 144


@pytest.mark.data
def test_published_file_is_the_transcribed_one():
    source = Path(os.environ["SAFLEX_DATA"]).parent / "paper" / "published.csv"
    ours = (FOLDER / "published.csv").read_text(encoding="utf-8")
    assert ours.splitlines() == source.read_text(encoding="utf-8").splitlines()


def test_kdd99_has_no_published_cell_and_table_2_says_why():
    assert not [c for c in published() if c.dataset == "kdd99"]
    assert any("kdd99" in note for note in names().notes["2"])
    for table in ("2", "4"):
        assert any(
            "metric of this table" in note and "inferred" in note for note in names().notes[table]
        )


def test_names_say_nothing_that_the_published_file_does_not_have():
    with (FOLDER / "published.csv").open(encoding="utf-8", newline="") as stream:
        in_file = {line["dataset"] for line in csv.DictReader(stream)}
    assert set(names().datasets) == in_file
    assert set(names().splits) <= in_file
    assert set(names().titles) == set(names().notes) == {c.table for c in published()}


def test_every_published_saflex_cell_is_claimed_to_beat_its_upstream():
    claimed = [c for c in claims() if c.id == "saflex>upstream" and c.source == "paper"]
    for cell in published():
        if cell.refiner == "saflex":
            assert any(c.table == cell.table and cell.upstream in c.upstreams for c in claimed), (
                cell
            )


def test_every_graded_claim_is_about_rows_that_the_paper_publishes():
    rows = {(c.table, c.upstream, c.refiner) for c in published()}
    for claim in claims():
        if claim.source == "paper" and not claim.ungraded:
            for upstream in claim.upstreams:
                baseline = claim.baseline
                other = (
                    baseline.table or claim.table,
                    baseline.upstream or upstream,
                    baseline.refiner,
                )
                assert (claim.table, upstream, claim.refiner) in rows, claim.id
                assert other in rows, claim.id


def test_papers_own_cells_carry_its_claims_but_for_the_known_exceptions():
    """Where the paper's own two cells have the other sign, the graded line shows it."""
    against = set()
    for claim, cell, other in _own_pairs():
        difference = cell.mean - other.mean
        holds = difference > 0 if ">" in claim.direction else difference < 0
        if not holds and difference != 0:
            against.add((claim.table, claim.id, cell.dataset, cell.backbone, cell.upstream))
    assert against == {
        ("1", "saflex>=none", "tissuemnist", "resnet18", "randaugment"),
        ("1", "saflex>=none", "pathmnist", "resnet18", "mixup"),
        ("1", "saflex>soft-augmentation", "dermamnist", "resnet18", "randaugment"),
        ("1", "saflex>soft-augmentation", "tissuemnist", "resnet18", "randaugment"),
        ("1", "saflex>soft-augmentation", "dermamnist", "resnet18", "mixup"),
        ("1", "saflex>=lp-a3", "tissuemnist", "resnet18", "randaugment"),
        ("1", "saflex>=lp-a3", "bloodmnist", "resnet18", "randaugment"),
        ("1", "saflex>=lp-a3", "octmnist", "resnet18", "randaugment"),
        ("1", "saflex>=lp-a3", "organcmnist", "resnet18", "randaugment"),
        ("1", "saflex>=lp-a3", "pathmnist", "resnet18", "mixup"),
        ("1", "saflex>=lp-a3", "tissuemnist", "resnet18", "mixup"),
        ("1", "saflex>=lp-a3", "octmnist", "resnet18", "mixup"),
        ("1", "saflex>=lp-a3", "organsmnist", "resnet18", "mixup"),
        ("2", "saflex>upstream", "arrhythmia", "saint", "cutmix"),
        ("2", "saflex>upstream", "qsar", "saint", "cutmix"),
        ("7", "crop<none", "dermamnist", "resnet18", "crop"),
        ("7", "crop<none", "organamnist", "resnet18", "crop"),
    }


def _own_pairs():
    cells = {
        (c.table, c.dataset, c.split, c.backbone, c.upstream, c.refiner): c for c in published()
    }
    for claim in claims():
        if claim.source == "control" or claim.ungraded or claim.kind == "time":
            continue
        for cell in published():
            if (cell.table, cell.refiner) != (claim.table, claim.refiner):
                continue
            if cell.upstream not in claim.upstreams:
                continue
            if claim.datasets != "all" and cell.dataset not in claim.datasets:
                continue
            base = claim.baseline
            place = (base.table or claim.table, cell.dataset, cell.split, cell.backbone)
            other = cells.get((*place, base.upstream or cell.upstream, base.refiner))
            assert other is not None, (claim.id, cell)
            yield claim, cell, other


def test_the_papers_four_time_overheads_are_there():
    times = {(c.table, c.expected) for c in claims() if c.kind == "time" and c.expected}
    assert times == {("1", 54), ("1", 31), ("1", 42), ("2", 81)}


@pytest.mark.parametrize(
    "change",
    [
        {"direction": "better"},
        {"direction": "<="},
        {"kind": "time", "direction": "<="},
        {"baseline": {"refiner": "none", "dataset": "qsar"}},
        {"quote": None},
        {"datasets": "qsar"},
        {"surprise": 1},
    ],
)
def test_a_claim_that_makes_no_sense_is_refused(change):
    Claim.model_validate(A_CLAIM)
    with pytest.raises(ValidationError):
        Claim.model_validate({**A_CLAIM, **change})


def test_every_saflex_row_answers_to_the_papers_one():
    assert {r for r in ("saflex", "saflex-printed", "saflex-aug-only") if is_saflex(r)} == {
        "saflex",
        "saflex-printed",
        "saflex-aug-only",
    }
    assert paper_row("saflex-derived-aug-only") == "saflex"
    assert not is_saflex("soft-augmentation")
    assert paper_row("none") == "none"


# Grading -------------------------------------------------------------------------------------------


def _record(refiner, seed, value, *, table="2", upstream="cutmix", epochs=10, dataset="qsar"):
    settings = Settings(
        dataset=Component(name=dataset),
        model=Component(name="mlp"),
        upstream=Component(name=upstream),
        refiner=Component(name="uniform"),
        recipe=Recipe(epochs=epochs),
    )
    spec = RunSpec(
        suite="s",
        table=table,
        dataset=dataset,
        backbone="mlp",
        upstream=upstream,
        row=refiner,
        seed=seed,
        settings=settings,
        metric="auroc",
    )
    metrics = {"last": {"test/auroc": value}, "best_validation": {"test/auroc": 1 - value}}
    return Record(key=spec.key, status="complete", spec=spec, metrics=metrics)


def _table(values, *, identifier="2", upstream="cutmix", epochs=10):
    """A table from {refiner: {seed: AUROC as a fraction}}."""
    runs = {}
    for refiner, by_seed in values.items():
        row = Row("mlp", "none" if refiner == "none" else upstream, refiner)
        runs[row, "qsar"] = {
            seed: _record(refiner, seed, v, table=identifier, upstream=row.upstream, epochs=epochs)
            for seed, v in by_seed.items()
        }
    return Table(
        id=identifier,
        title="",
        metric_of={"qsar": "auroc"},
        columns=(Column("qsar", "test"),),
        rows=tuple(row for row, _ in runs),
        cells=(),
        runs=runs,
    )


def _line(lines, identifier, refiner="saflex"):
    return next(g for g in lines if g.claim.id == identifier and g.row.refiner == refiner)


def test_differences_are_paired_by_seed_index():
    """Seeds that only one of the rows has are left out, whatever their order."""
    table = _table({"upstream": {2: 0.90, 0: 0.80, 7: 0.1}, "saflex": {0: 0.82, 2: 0.93, 5: 0.9}})
    line = _line(grade([table]), "saflex>upstream")
    assert line.result.n == 2
    assert line.result.difference == pytest.approx((2 + 3) / 2)


def test_selection_decides_which_epoch_is_graded():
    table = _table({"upstream": {0: 0.80, 1: 0.81}, "saflex": {0: 0.85, 1: 0.88}})
    last, best = (
        _line(grade([table], selection=s), "saflex>upstream") for s in ("last", "best_validation")
    )
    assert last.result.difference == pytest.approx(6)
    assert best.result.difference == pytest.approx(-6)


def test_each_saflex_row_is_graded_for_itself_beside_the_papers_difference():
    base = {s: 0.80 + 0.01 * s for s in range(4)}
    table = _table(
        {
            "upstream": base,
            "saflex-printed": {s: v - 0.3 - 0.001 * (s % 2) for s, v in base.items()},
            "saflex": {s: v + 0.02 + 0.001 * (s % 2) for s, v in base.items()},
        }
    )
    lines = grade([table])
    assert _line(lines, "saflex>upstream").verdict == "reproduced"
    assert _line(lines, "saflex>upstream", "saflex-printed").verdict == "contradicted"
    papers = {g.paper_difference for g in lines if g.claim.id == "saflex>upstream"}
    assert [pytest.approx(92.69 - 91.87)] == list(papers)


def test_missing_baseline_is_not_run_with_its_reason():
    table = _table({"saflex": {0: 0.9, 1: 0.91}})
    line = _line(grade([table]), "saflex>upstream")
    assert line.verdict.startswith("not run: upstream: ")
    assert line.result.n == 0


def test_holm_counts_the_papers_claims_and_the_controls_apart():
    base = {s: 0.80 + 0.01 * s for s in range(4)}
    wobble = [0.001, -0.002, 0.0015, 0.0]
    better = {s: v + 0.01 + wobble[s] for s, v in base.items()}
    names = ("none", "upstream", "clean+aug", "weights-only")
    lines = grade([_table({**dict.fromkeys(names, base), "saflex": better})])
    papers = [g for g in lines if g.claim.source == "paper" and not math.isnan(g.result.p)]
    controls = [g for g in lines if g.claim.source == "control" and not math.isnan(g.result.p)]
    assert {g.claim.id for g in papers} == {"saflex>upstream", "saflex>=none"}
    assert {g.claim.id for g in controls} == {"saflex>clean+aug", "saflex>weights-only"}
    for family in (papers, controls):
        assert all(g.p_holm == pytest.approx(2 * g.result.p) for g in family)


def test_augmented_only_rows_are_not_held_against_controls_with_a_clean_batch():
    base = {0: 0.8, 1: 0.82}
    lines = grade([_table({"upstream": base, "clean+aug": base, "saflex-aug-only": base})])
    assert {g.claim.id for g in lines if g.claim.kind == "metric"} == {
        "saflex>upstream",
        "saflex>=none",
    }


def _medical(epochs):
    saflex, soft = {0: 0.9, 1: 0.93, 2: 0.91}, {0: 0.88, 1: 0.9, 2: 0.87}
    one = _table({"upstream": soft, "saflex": saflex}, identifier="1", upstream="randaugment")
    seven = _table({"soft-augmentation": soft}, identifier="7", upstream="crop", epochs=epochs)
    return grade([one, seven])


def test_a_baseline_of_another_table_is_found_and_paired():
    line = _line(_medical(epochs=10), "saflex>soft-augmentation")
    assert line.baseline_table == "7"
    assert line.result.difference == pytest.approx(3.0)


def test_rows_trained_by_different_recipes_are_not_paired_across_tables():
    line = _line(_medical(epochs=5), "saflex>soft-augmentation")
    assert line.verdict == (
        "not run: saflex (table 1) and soft-augmentation (table 7) train qsar by different recipes"
    )


def test_tables_that_the_paper_does_not_have_are_asked_the_same_questions():
    base = {0: 0.8, 1: 0.82}
    table = _table({"none": base, "upstream": base, "saflex": base}, identifier="demo-x")
    assert {g.claim.id for g in grade([table])} == {"saflex>upstream", "saflex>=none"}
    assert not any(applies(c, table) for c in claims() if c.source == "paper")


def test_rows_trained_for_different_times_are_not_paired_within_a_table():
    longer = _table({"saflex": {0: 0.9, 1: 0.93}}, epochs=20)
    table = _table({"upstream": {0: 0.8, 1: 0.82}})
    both = replace(table, rows=(*table.rows, *longer.rows), runs={**table.runs, **longer.runs})
    assert "different recipes" in _line(grade([both]), "saflex>upstream").verdict


def test_time_is_graded_against_the_papers_overhead():
    """Twice the upstream's time is +100 %, 19 points above the paper's +81 %, in each of three seeds."""
    table = _table({"upstream": {0: 0.8, 1: 0.81, 2: 0.8}, "saflex": {0: 0.9, 1: 0.9, 2: 0.9}})
    wobble = {0: -0.02, 1: 0.0, 2: 0.02}
    runs = {
        (row, dataset): {
            seed: record.model_copy(
                update={
                    "seconds": {
                        "step": 10.0 if row.refiner == "upstream" else 20.0 + wobble[seed],
                        "evaluate": 99.0,
                    }
                }
            )
            for seed, record in by_seed.items()
        }
        for (row, dataset), by_seed in table.runs.items()
    }
    line = _line(grade([replace(table, runs=runs)]), "saflex-time")
    assert line.result.difference == pytest.approx(100 - 81)
    assert line.verdict == "contradicted"


def test_time_of_a_row_with_a_clean_batch_is_compared_at_equal_batches():
    base = {0: 0.8, 1: 0.81}
    table = _table({"upstream": base, "clean+aug": base, "saflex": base})
    assert _line(grade([table]), "saflex-time").baseline.refiner == "upstream"
    settings = next(iter(table.runs[table.rows[2], "qsar"].values())).spec.settings
    mixed = settings.model_copy(update={"clean_share": 0.5})
    runs = {
        seed: r.model_copy(update={"spec": r.spec.model_copy(update={"settings": mixed})})
        for seed, r in table.runs[table.rows[2], "qsar"].items()
    }
    with_clean = replace(table, runs={**table.runs, (table.rows[2], "qsar"): runs})
    assert _line(grade([with_clean]), "saflex-time").baseline.refiner == "clean+aug"
