"""Old records are shown where there are no newer ones, never beside them, and always under a mark."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import record as records
from benchmarks.record import PROTOCOL
from benchmarks.running.current import SETTINGS, choose
from benchmarks.suite import load
from benchmarks.tables import build, evaluate, summary
from benchmarks.tables.protocols import warning
from benchmarks.tables.verdicts import grade
from benchmarks.tracking import runs

GOLDEN = Path(__file__).parent / "golden"
SUITE = load(GOLDEN / "suite.yaml")
OLD = "Old protocol"


@pytest.fixture(scope="module")
def evaluated():
    return evaluate(SUITE, GOLDEN / "results")


@pytest.fixture(scope="module")
def built(evaluated, tmp_path_factory):
    out = tmp_path_factory.mktemp("built")
    build(evaluated, out, figures=False)
    return out / "tables"


def test_a_table_is_of_the_newest_protocol_it_has(evaluated):
    assert {table.id: table.protocol for table in evaluated.tables} == {
        "2": PROTOCOL,
        "1": PROTOCOL,
        "7": PROTOCOL,
        "demo-digits": 1,
    }
    for table in evaluated.tables:
        found = {record.protocol for of in table.runs.values() for record in of.values()}
        assert found == {table.protocol}


def test_an_old_record_in_a_new_table_is_left_out_and_counted(evaluated):
    table = next(t for t in evaluated.tables if t.id == "1")
    cell = next(
        c
        for c in table.cells
        if (c.dataset, c.refiner, c.metric) == ("bloodmnist", "saflex-aug-only", "accuracy")
    )
    assert (cell.n, cell.planned) == (2, 3)
    assert any(note.startswith("Left out: 1 record of the old protocol") for note in table.notes)


def test_a_record_that_no_run_plans_makes_no_table_new(evaluated):
    old = [r for r in records.load_all(GOLDEN / "results") if r.spec.table == "demo-digits"]
    foreign = old[0].model_copy(update={"protocol": PROTOCOL, "key": "0" * 16})
    chosen = choose([*old, foreign], [record.spec for record in old])
    assert chosen.records == old
    assert dict(chosen.left_out["demo-digits"]) == {SETTINGS: 1}


@pytest.mark.parametrize("suffix", ["md", "html", "tex"])
def test_every_format_of_an_old_table_says_so_at_its_head(built, suffix):
    old, new = (
        (built / f"table{t}.{suffix}").read_text(encoding="utf-8") for t in ("demo-digits", "2")
    )
    assert OLD in old[: old.index("Test results") + 400]
    assert "docs/protocol.md" in old
    assert OLD not in new


def test_claims_of_old_tables_say_so(built):
    text = (built / "claims.md").read_text(encoding="utf-8")
    assert f"table demo-digits: {OLD}" in text[:200]
    lines = [line.split(",") for line in (built / "claims.csv").read_text().splitlines()]
    assert {line[-1] for line in lines if line[0] == "demo-digits"} == {"1"}
    assert {line[-1] for line in lines if line[0] == "2"} == {str(PROTOCOL)}


def test_the_csv_of_an_old_table_says_so_in_every_cell_with_a_number(evaluated):
    table = next(t for t in evaluated.tables if t.id == "demo-digits")
    assert all(cell.note.endswith("old protocol") == (cell.n > 0) for cell in table.cells)


def test_the_terminal_and_mlflow_say_so(evaluated):
    from rich.console import Console

    console = Console(record=True, width=100, file=io.StringIO())
    summary(evaluated, console=console)
    text = console.export_text()
    assert text.count(OLD) == 1
    assert text.index("Table demo-digits") < text.index(OLD)
    old, new = (
        next(r for r in records.load_all(GOLDEN / "results") if r.spec.table == t)
        for t in ("demo-digits", "2")
    )
    assert warning(1) in runs.description(old)
    assert runs.tags(old)["protocol"] == "1"
    assert OLD not in runs.description(new)


def test_rows_of_two_protocols_are_not_compared(evaluated):
    def across(tables) -> set[str]:
        lines = grade(tables)
        place = ("saflex>soft-augmentation", "1", "7", "bloodmnist")
        return {
            line.verdict
            for line in lines
            if "not part of this suite" not in line.verdict
            and (line.claim.id, line.table, line.baseline_table, line.column.dataset) == place
        }

    assert any(not verdict.startswith("not run") for verdict in across(evaluated.tables))
    aged = [replace(t, protocol=1 if t.id == "7" else t.protocol) for t in evaluated.tables]
    assert across(aged) == {"not run: table 7 is of another protocol than table 1"}
