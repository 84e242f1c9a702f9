"""A class that a split lacks leaves metrics undefined; nothing is selected by them and it is said."""

from __future__ import annotations

from dataclasses import replace

from reports import report

from benchmarks import suite as suites
from benchmarks.data import Split
from benchmarks.running import execute
from benchmarks.running.bundle import run_marked
from benchmarks.tables import build, evaluate

SUITE = """
suite: absent
seeds: 2
tables:
  absent:
    metric: auroc
    datasets: [breast-cancer]
    backbones: [mlp]
    rows: [none]
    recipe: {epochs: 2}
"""


@report(
    "tez 27, cxr_covid 1",
    "a validation split in which a class is missing",
    "the run ends well; no epoch is selected by a metric that is not defined, and the table says so",
)
def test_a_class_that_validation_lacks(tmp_path, monkeypatch):
    original = execute.load_data

    def lacking(spec, device):
        data = original(spec, device)
        rows = data.validation.y == 0
        return replace(data, validation=Split(data.validation.x[rows], data.validation.y[rows]))

    monkeypatch.setattr(execute, "load_data", lacking)
    (tmp_path / "absent.yaml").write_text(SUITE)
    suite = suites.load(tmp_path / "absent.yaml")
    records = run_marked(
        suites.plan(suite), tmp_path / "results", device="cpu", checkpoint_minutes=10
    )
    for record in records:
        assert record.status == "complete"
        assert "val/auroc" not in record.metrics["last"]
        assert 0.5 < record.metrics["last"]["test/auroc"] <= 1
        assert not record.metrics.get("best_validation")
    build(evaluate(suite, tmp_path / "results"), tmp_path / "out", figures=False)
    said = (tmp_path / "out" / "tables" / "tableabsent.md").read_text()
    assert "no best validation epoch for 2 seeds: validation auroc is not defined" in said
