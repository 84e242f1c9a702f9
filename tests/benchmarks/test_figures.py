"""Figures: the same bytes each time, the numbers they are drawn from, nothing drawn from nothing."""

from __future__ import annotations

import importlib.util
import math
import struct
from pathlib import Path

import numpy as np
import pytest

from benchmarks.tables import build, evaluate, tables
from benchmarks.tables.figures import curves, forest
from benchmarks.tables.verdicts import grade

GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture(scope="module")
def suite():
    spec = importlib.util.spec_from_file_location("golden_records", GOLDEN / "golden_records.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.suite()


@pytest.fixture(scope="module")
def collected(suite):
    return tables(suite, GOLDEN / "results")


@pytest.fixture(scope="module")
def drawn(suite, tmp_path_factory):
    out = tmp_path_factory.mktemp("figures")
    build(evaluate(suite, GOLDEN / "results"), out)
    return out / "figures"


def _chunks(data: bytes) -> list[bytes]:
    position, found = 8, []
    while position < len(data):
        (length,) = struct.unpack(">I", data[position : position + 4])
        found.append(data[position + 4 : position + 8])
        position += length + 12
    return found


def test_each_table_has_its_claims_nll_and_diagnostics(drawn):
    names = {path.name for path in drawn.iterdir()}
    assert {
        "table2-claims-saflex-gt-upstream-mlp-cutmix.png",
        "table2-claims-saflex-ge-none-mlp-cutmix.png",
        "table2-nll-mlp-cutmix.png",
        "table2-diagnostics-mlp-cutmix.png",
        "table7-claims-soft-augmentation-gt-crop-resnet18-crop.png",
        "tabledemo-digits-nll-mlp-cutmix.png",
    } <= names
    assert "table7-diagnostics-resnet18-crop.png" not in names, "no row of it has diagnostics"


def test_figures_are_the_same_bytes_each_time_and_carry_no_date(suite, drawn, tmp_path):
    build(evaluate(suite, GOLDEN / "results"), tmp_path)
    for path in drawn.iterdir():
        data = path.read_bytes()
        assert (tmp_path / "figures" / path.name).read_bytes() == data, path.name
        assert not {b"tEXt", b"iTXt", b"zTXt", b"tIME"} & set(_chunks(data)), path.name


def test_stale_figures_go_and_other_peoples_stay(suite, tmp_path):
    folder = tmp_path / "figures"
    folder.mkdir()
    (folder / "table9-nll-mlp-cutmix.png").write_bytes(b"old")
    (folder / "toy.png").write_bytes(b"somebody else's")
    build(evaluate(suite, GOLDEN / "results"), tmp_path)
    assert not (folder / "table9-nll-mlp-cutmix.png").exists()
    assert (folder / "toy.png").exists()


def test_forest_draws_the_graded_differences(collected):
    lines = [g for g in grade(collected) if g.name == "saflex>=none/mlp/cutmix" and g.is_run]
    lines = [g for g in lines if g.table == "2"]
    axes = forest(lines, order=["qsar", "credit", "kdd99"]).axes[0]
    xs = [tuple(map(float, artist.get_xdata())) for artist in axes.lines]
    for line in lines:
        assert (line.result.difference,) in xs
        if math.isfinite(line.result.low):
            assert (line.result.low, line.result.high) in xs
        if math.isfinite(line.paper_difference):
            assert (line.paper_difference,) in xs
    assert [label.get_text() for label in axes.get_yticklabels()] == ["qsar", "credit", "kdd99"]


def test_curves_are_means_over_seeds_and_both_panels_share_their_scale(collected):
    table = next(t for t in collected if t.id == "2")
    rows = [row for row in table.rows if row.refiner == "saflex" and row.backbone == "mlp"]
    series = {"val/nll": "validation NLL", "test/nll": "test NLL"}
    figure = curves(table, rows, series, heading="")
    validation, test = figure.axes[:2]
    expected = np.mean([r.curves["val/nll"] for r in table.runs[rows[0], "qsar"].values()], axis=0)
    assert np.allclose(validation.lines[0].get_ydata(), expected)
    assert validation.get_ylim() == test.get_ylim()


def test_nothing_is_drawn_from_nothing(collected, suite, tmp_path):
    table = next(t for t in collected if t.id == "7")
    assert curves(table, table.rows, {"refiner/weight_mean": "w"}, heading="") is None
    written = build(evaluate(suite, tmp_path), tmp_path)
    assert not [path for path in written if path.suffix == ".png"]
