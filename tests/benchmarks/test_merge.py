"""Records of several machines come together once each, or not at all."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from benchmarks import record as records
from benchmarks.errors import BenchmarkError
from benchmarks.merge import Merged, merge

GOLDEN = Path(__file__).parent / "golden" / "results"


@pytest.fixture
def machines(tmp_path):
    """Two machines that ran overlapping halves of the golden records at different times."""
    all_records = list(records.load_all(GOLDEN))
    for name, part in (("a", all_records[:40]), ("b", all_records[20:])):
        for record in part:
            records.write(
                tmp_path / name, record.model_copy(update={"device": name, "finished": name})
            )
    return tmp_path / "a", tmp_path / "b"


def test_halves_come_together(machines, tmp_path):
    total = len(list(records.load_all(GOLDEN)))
    assert merge(machines, tmp_path / "both") == Merged(new=total, known=0)
    merged = [records.canonical(r) for r in records.load_all(tmp_path / "both")]
    assert merged == [records.canonical(r) for r in records.load_all(GOLDEN)]
    assert merge(machines, tmp_path / "both") == Merged(new=0, known=total)


def test_into_one_of_them(machines):
    a, b = machines
    assert merge([b], a) == Merged(new=len(list(records.load_all(GOLDEN))) - 40, known=40)


def test_records_that_differ_are_both_named_and_nothing_is_merged(machines, tmp_path):
    a, b = machines
    common = next(p for p in a.rglob("seed*.json") if (b / p.relative_to(a)).exists())
    other = b / common.relative_to(a)
    content = json.loads(other.read_text())
    content["metrics"]["last"] = {"test/auroc": 0.123}
    other.write_text(json.dumps(content))
    with pytest.raises(BenchmarkError) as error:
        merge(machines, tmp_path / "both")
    assert str(common) in str(error.value)
    assert str(other) in str(error.value)
    assert "metrics" in str(error.value)
    assert not (tmp_path / "both").exists()


def test_folder_without_records_and_damaged_record_are_named(machines, tmp_path):
    a, _ = machines
    damaged = next(a.rglob("seed*.json"))
    damaged.write_text(damaged.read_text()[:-50])
    (tmp_path / "empty").mkdir()
    with pytest.raises(BenchmarkError) as error:
        merge([*machines, tmp_path / "empty"], tmp_path / "both")
    assert str(damaged) in str(error.value)
    assert f"{tmp_path / 'empty'} holds no records" in str(error.value)
    shutil.rmtree(tmp_path / "empty")


@pytest.mark.parametrize(
    ("change", "field"),
    [({"source": "of another day"}, "source"), ({"data": {"content": {"data": "others"}}}, "data")],
)
def test_one_run_from_another_source_or_on_other_data_is_not_merged(
    machines, tmp_path, change, field
):
    a, b = machines
    common = next(p for p in b.rglob("seed*.json") if (a / p.relative_to(b)).exists())
    records.write(b, records.read(common).model_copy(update=change))
    with pytest.raises(BenchmarkError, match=f"differ in {field}: keep one of them"):
        merge(machines, tmp_path / "both")


def test_a_cell_that_two_sources_come_together_in_is_said(machines, tmp_path, capsys):
    def mixed(target: Path) -> int:
        merge(machines, target)
        _, _, said = capsys.readouterr().out.partition("already\n")
        return int(said.split()[0]) if "cells hold records of several" in said else 0

    before = mixed(tmp_path / "same")
    a, b = machines
    alone = next(
        p
        for p in b.rglob("qsar/mlp/cutmix/saflex-printed/seed1.json")
        if not (a / p.relative_to(b)).exists()
    )
    records.write(b, records.read(alone).model_copy(update={"source": "of another day"}))
    assert mixed(tmp_path / "both") == before + 1
