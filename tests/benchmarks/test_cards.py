"""Cards of data sets: counted against brute force, readable without the data, shown as lines."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from fabricate import tabular as fabricate
from small_runs import blobs, spec

from benchmarks import record as records
from benchmarks import registry
from benchmarks import suite as suites
from benchmarks.data import Data, Split
from benchmarks.errors import BenchmarkError
from benchmarks.record import PROTOCOL, Record
from benchmarks.spec import Component
from benchmarks.studies import cards as counting
from benchmarks.tables import cards, tables


@pytest.fixture
def click(monkeypatch, tmp_path) -> Data:
    (tmp_path / "data").mkdir()
    monkeypatch.setenv("SAFLEX_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("SAFLEX_HOME", str(tmp_path / "home"))
    fabricate.install(monkeypatch, tmp_path / "data", "click")
    return registry.load("datasets", "click")("click", seed=0)


def column(split: Split, place: int) -> list[int]:
    return split.x[:, place].int().tolist()


class TestCounts:
    def test_rows_and_classes(self, click):
        card = counting.describe(Component(name="click"))
        assert card["rows"] == {"train": 156, "validation": 36, "test": 48}
        assert card["classes"]["1"]["test"] == int(click.test.y.sum())
        assert sum(count["train"] for count in card["classes"].values()) == 156

    def test_levels_that_no_or_one_training_row_holds_row_by_row(self, click):
        card = counting.describe(Component(name="click"))
        places = [place for place, levels in enumerate(click.categories) if levels]
        train = {place: column(click.train, place) for place in places}
        for wanted, found in ((0, card["unseen"]), (1, card["seen_once"])):
            rows = [
                any(train[place].count(int(row[place])) == wanted for place in places)
                for row in click.test.x
            ]
            assert found["test"] == pytest.approx(np.mean(rows))
            assert 0 < found["test"] < 1

    def test_repeated_rows_one_by_one_with_gaps_and_signed_zeros(self):
        data = blobs()
        train, test = data.train.x, data.test.x
        test[:20] = train[40:60]
        test[0, 2], train[40, 2] = -0.0, 0.0
        assert test[:20].isnan().any()
        found = counting._repeats(data, {"test": data.test})
        rows = [
            any(torch.equal(row.nan_to_num(9), other.nan_to_num(9)) for other in train)
            for row in test
        ]
        assert found["test"] == np.mean(rows) == pytest.approx(20 / 60)

    def test_repeated_images(self):
        x = torch.arange(5 * 3 * 4, dtype=torch.uint8).view(5, 3, 2, 2)
        parts = {"train": Split(x[:3], torch.zeros(3)), "test": Split(x[2:], torch.zeros(3))}
        data = replace(blobs(), kind="image", categories=(), **parts)
        assert counting._repeats(data, {"test": data.test})["test"] == pytest.approx(1 / 3)

    def test_missing_values_are_those_of_the_published_rows(self, monkeypatch, click, tmp_path):
        fabricate.install(monkeypatch, tmp_path / "data", "appetency")
        card = counting.describe(Component(name="appetency"))
        assert card["missing"]["columns"] == 1
        assert card["missing"]["cells"] == pytest.approx(0.3 / 5, abs=0.02)
        assert counting.describe(Component(name="click"))["missing"] == {"cells": 0, "columns": 0}


class TestFiles:
    def test_a_card_holds_every_form_that_the_suite_loads(self, click, tmp_path):
        full, few = (spec(dataset="click"), spec(dataset="click"))
        settings = few.settings.model_copy(
            update={"dataset": Component(name="click", settings={"limit": 60})}
        )
        planned = counting.forms([full, full, few.model_copy(update={"settings": settings})])
        written = counting.make(planned, tmp_path)
        assert [path.name for path in written] == ["click.json", "cards.md"]
        card = cards.read(tmp_path, "click")
        assert [form["rows"]["train"] for form in card["forms"]] == [156, 60]
        first, second, last = cards.lines(card)
        assert first.startswith("156 train, 36 validation, 48 test rows; 2 classes, ")
        assert second.startswith("with limit 60: 60 train")
        assert last.endswith("licence: public (OpenML)")
        page = (tmp_path / "tables" / "cards.md").read_text()
        assert "## click" in page
        assert f"* {second}" in page
        assert "`tabular/click/Click_prediction_small" in page

    def test_a_second_call_writes_the_same(self, click, tmp_path):
        wanted = {"click": [Component(name="click")]}
        first = [path.read_bytes() for path in counting.make(wanted, tmp_path)]
        assert [path.read_bytes() for path in counting.make(wanted, tmp_path)] == first

    def test_only_what_is_missing_or_of_other_data_is_counted_where_that_is_asked_for(
        self, click, monkeypatch, tmp_path
    ):
        wanted = {"click": [Component(name="click")]}
        counted = []
        describe = counting.describe
        monkeypatch.setattr(
            counting, "describe", lambda form: counted.append(form) or describe(form)
        )
        few = {"click": [Component(name="click", settings={"limit": 60})]}
        for forms, expected in ((wanted, 1), (wanted, 1), (few, 2), (few, 2), (wanted, 3)):
            counting.make(forms, tmp_path, missing=True)
            assert len(counted) == expected
        other = json.loads(cards.path_of(tmp_path, "click").read_text())
        other["forms"][0]["content"] = "0123456789abcdef"
        cards.path_of(tmp_path, "click").write_text(json.dumps(other))
        counting.make(wanted, tmp_path, missing=True)
        assert len(counted) == 4

    @pytest.mark.parametrize(
        ("recorded", "shown"), [({"data": "here"}, True), ({"data": "other"}, False), ({}, True)]
    )
    def test_a_card_stands_under_results_of_its_own_data_alone(
        self, click, monkeypatch, tmp_path, recorded, shown
    ):
        """Records of old versions say nothing of their data."""
        counting.make({"click": [Component(name="click")]}, tmp_path)
        (form,) = cards.read(tmp_path, "click")["forms"]
        if recorded.get("data") == "here":
            recorded = {"data": form["content"]}
        suite = suites.load("cpu")
        run = next(s for s in suites.plan(suite, table="2") if s.dataset == "click" and s.seed == 0)
        record = Record(
            protocol=PROTOCOL if recorded else 1, key=run.key, status="complete", spec=run,
            metrics={"last": {"test/auroc": 0.5}}, data={"content": recorded, "notes": ["own note"]},
        )  # fmt: skip
        records.write(tmp_path, record)
        (table,) = (t for t in tables(suite, tmp_path) if t.id == "2")
        *told, last = table.dataset_notes["click"]
        assert last == "own note"
        assert (told == list(cards.lines(cards.read(tmp_path, "click")))) == shown
        assert any("the card of click is left out" in line for line in told) != shown

    def test_a_set_that_is_not_at_hand_is_named_after_the_others_were_counted(
        self, click, tmp_path
    ):
        wanted = {name: [Component(name=name)] for name in ("qsar", "click")}
        with pytest.raises(BenchmarkError, match=r"^qsar: QSAR biodegradation is not at hand"):
            counting.make(wanted, tmp_path)
        assert cards.read(tmp_path, "click")
        assert cards.read(tmp_path, "qsar") is None

    def test_a_damaged_card_is_named(self, tmp_path):
        cards.path_of(tmp_path, "click").parent.mkdir()
        cards.path_of(tmp_path, "click").write_text("{")
        with pytest.raises(BenchmarkError, match=r"click\.json is no card .* cards -d click"):
            cards.read(tmp_path, "click")


@pytest.mark.parametrize(
    ("share", "text"),
    [
        (0, "0 %"), (1, "100 %"), (0.7302, "73 %"), (0.0424, "4.2 %"), (0.00173, "0.17 %"),
        (1e-7, "0.01 %"), (0.99999, "99.99 %"),
    ],
)  # fmt: skip
def test_a_share_is_0_or_100_only_where_it_is_exact(share, text):
    assert cards._percent(share) == text


def test_cards_are_read_without_torch_or_pandas(tmp_path):
    import subprocess
    import sys

    script = (
        "import sys; from pathlib import Path; from benchmarks.tables import cards;"
        "cards.read(Path(sys.argv[1]), 'click'); print({'torch', 'pandas'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "set()"


def test_the_committed_cards_of_the_cpu_suite_say_what_the_issue_found():
    """73 % of KDD99's test rows repeat a training row; on Click 95 % hold an unseen level."""
    from pathlib import Path

    folder = Path(__file__).parents[2] / "results" / "cpu"
    kdd99, click = (cards.read(folder, name)["forms"][0] for name in ("kdd99", "click"))
    assert kdd99["repeats"]["test"] == pytest.approx(0.73, abs=0.005)
    assert click["unseen"]["test"] == pytest.approx(0.95, abs=0.005)
    assert json.loads((folder / "cards" / "shrutime.json").read_text())["licence"] == "not stated"
