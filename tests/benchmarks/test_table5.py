"""Table 5 recomputed beside the printed one: every number, with the known reasons for a difference."""

from __future__ import annotations

import csv
import os
from pathlib import Path

import pytest
from fabricate import tabular as fabricate

from benchmarks.errors import DataError
from benchmarks.tables import table5

REAL = os.environ.get("SAFLEX_DATA", "")


@pytest.fixture(autouse=True)
def local(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("SAFLEX_DATA", str(tmp_path / "local"))
    monkeypatch.setenv("SAFLEX_HOME", str(tmp_path / "home"))
    return tmp_path / "local"


def by_cell(rows: list[dict]) -> dict[tuple[str, str], dict]:
    return {(row["loaded"], row["field"]): row for row in rows}


def test_without_data_every_number_says_so():
    rows = table5.rows()
    assert len(rows) == 54  # 7 fields for 7 binary sets, 5 for Volkert
    assert {row["note"] for row in rows} == {"not run: data not at hand"}
    assert {row["agrees"] for row in rows} == {None}


def test_numbers_are_computed_from_the_file_at_hand(monkeypatch, local):
    fabricate.install(monkeypatch, local, "qsar")
    cells = by_cell(table5.rows())
    assert cells["qsar", "features"]["agrees"] is True
    assert cells["qsar", "rows"]["recomputed"] == fabricate.ROWS
    assert cells["qsar", "rows"]["agrees"] is False
    assert cells["qsar", "rows"]["note"] == "unexplained"
    assert cells["credit", "rows"]["recomputed"] is None


def test_an_explanation_holds_only_for_the_numbers_it_explains(monkeypatch, local):
    fabricate.install(monkeypatch, local, "click")
    paper = {name: dict(row) for name, row in table5.printed().items()}
    assert by_cell(table5.rows())["click", "features"]["note"] == table5.TARGET_COUNTED
    paper["Click"]["features"] = "15"
    monkeypatch.setattr(table5, "printed", lambda: paper)
    assert by_cell(table5.rows())["click", "features"]["note"] == "unexplained"


def test_an_altered_file_is_an_error_and_not_a_missing_one(monkeypatch, local):
    path = fabricate.install(monkeypatch, local, "qsar")
    path.write_bytes(b"altered")
    with pytest.raises(DataError, match="truncated or altered"):
        table5.rows()


def test_recorded_numbers_rebuild_the_table_byte_for_byte_without_the_data(
    monkeypatch, local, tmp_path
):
    for name in ("qsar", "click", "volkert", "kdd99"):
        fabricate.install(monkeypatch, local, name)
    fabricate.install(monkeypatch, local, "appetency", alternative=1)
    results = tmp_path / "results"
    recorded = table5.record_descriptions(results)
    assert sorted(path.stem for path in recorded) == [
        "appetency",
        "click",
        "kdd99",
        "qsar",
        "volkert",
    ]
    live = [path.read_bytes() for path in table5.write(tmp_path / "live")]
    monkeypatch.setenv("SAFLEX_DATA", "")
    rebuilt = [path.read_bytes() for path in table5.write(tmp_path / "rebuilt", results)]
    assert live == rebuilt


def test_files_hold_ticks_crosses_and_notes(monkeypatch, local, tmp_path):
    fabricate.install(monkeypatch, local, "click")
    fabricate.install(monkeypatch, local, "appetency", alternative=1)
    long, shown = table5.write(tmp_path / "tables")
    with long.open(encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    assert tuple(rows[0]) == table5.COLUMNS
    assert {row["agrees"] for row in rows} == {"yes", "no", ""}
    text = shown.read_text(encoding="utf-8")
    assert "| 11 (12 ✗) | 6 (7 ✗) | 5 ✓ |" in text
    assert "not run (147)" in text
    assert "KDD Cup 1999" in text
    assert "44 of 230 features" in text
    assert table5.TARGET_COUNTED in text


def test_every_printed_row_is_compared():
    assert set(table5.printed()) == set(table5.LOADED)


@pytest.mark.data
@pytest.mark.skipif(not Path(REAL or "/nowhere").is_dir(), reason="SAFLEX_DATA is not set")
def test_the_real_data_reproduce_table_5(monkeypatch):
    monkeypatch.setenv("SAFLEX_DATA", str(Path(REAL).absolute()))
    cells = by_cell(table5.rows())
    for name in ("kdd99", "arrhythmia", "credit", "qsar", "shrutime"):
        for field in table5.FIELDS:
            assert cells[name, field]["agrees"] is True, (name, field)
    differing = {field for field in table5.FIELDS if cells["click", field]["agrees"] is False}
    assert differing == {"features", "categorical"}
    assert {cells["click", field]["note"] for field in differing} == {table5.TARGET_COUNTED}
    assert (
        cells["appetency", "rows"]["recomputed"],
        cells["appetency", "positives"]["recomputed"],
    ) == (
        50_000,
        890,
    )
    assert not [row for row in cells.values() if "unexplained" in row["note"]]
