"""`cost` counts what the plan holds, prefers measured times, and needs no torch."""

from __future__ import annotations

import math
import subprocess
import sys

import pytest

from benchmarks import record
from benchmarks import suite as suites
from benchmarks.forecast import cost
from benchmarks.sources import Source
from benchmarks.suite import bundles, plan


@pytest.mark.parametrize("name", suites.names())
def test_estimate_covers_the_plan(name):
    suite = suites.load(name)
    estimate = cost.estimate(suite)
    specs = plan(suite)
    assert [c.bundle for c in estimate.bundles] == list(bundles(specs))
    assert sum(c.runs for c in estimate.bundles) == len(specs)
    assert sum(row["runs"] for row in estimate.per_table()) == len(specs)
    assert all(c.seconds > 0 and c.memory_mb > 0 for c in estimate.bundles)


def test_steps_are_those_of_the_training_loop():
    spec = plan(suites.load("demo"))[0]
    recipe = spec.settings.recipe
    assert spec.dataset == "breast-cancer"
    assert cost.training_steps(spec) == recipe.epochs * math.ceil(
        round(569 * 0.65) / recipe.batch_size
    )


def test_own_records_win_over_the_rate_table(tmp_path):
    suite = suites.load("demo")
    specs = list(bundles(plan(suite)).values())
    timed = specs[0]
    untimed = next(s for s in specs[1:] if cost._method(s[0]) == cost._method(timed[0]))
    for spec in timed[:2]:
        record.write(
            tmp_path,
            record.Record(key=spec.key, status="complete", spec=spec, seconds={"total": 1000.0}),
        )
    by_bundle = {c.bundle: c for c in cost.estimate(suite, results=tmp_path).bundles}
    startup = cost._rates()["startup_seconds"]["cpu"]
    assert by_bundle[timed[0].bundle].seconds == len(timed) * 1000 + startup
    assert by_bundle[timed[0].bundle].basis == ("measured: this bundle's own records",)
    expected = 1000 * cost.training_steps(untimed[0]) / cost.training_steps(timed[0])
    assert by_bundle[untimed[0].bundle].seconds == pytest.approx(len(untimed) * expected + startup)


def test_text_states_totals_and_assumptions():
    suite = suites.load("cpu")
    estimate = cost.estimate(suite)
    text = cost.render(estimate, {"qsar": 153339, "volkert": None})
    assert f"{estimate.device_hours:.2f} hours" in text
    assert "volkert (size not stated)" in text
    for line in estimate.assumptions():
        assert line in text


def test_a_damaged_record_does_not_stop_an_estimate(tmp_path):
    (tmp_path / "records").mkdir()
    (tmp_path / "records" / "seed0.json").write_text("{")
    assert cost.estimate(suites.load("demo"), results=tmp_path).device_hours > 0


def test_limit_for_the_scheduler_is_above_the_estimate():
    for c in cost.per_bundle(suites.load("cpu")).values():
        assert c.runtime_minutes * 60 >= 3 * c.seconds or c.runtime_minutes == 10


def test_no_torch():
    script = (
        "import sys; from benchmarks import suite; from benchmarks.forecast import cost;"
        "cost.show(suite.load('cpu'));"
        "sys.exit(bool({'torch', 'pandas', 'mlflow'} & set(sys.modules)))"
    )
    subprocess.run([sys.executable, "-c", script], check=True, stdout=subprocess.DEVNULL)


def test_unknown_table_is_named_with_the_nearest():
    with pytest.raises(suites.BenchmarkError, match="did you mean"):
        cost.estimate(suites.load("demo"), table="demo-tabullar")


def test_no_bundle_of_the_paper_asks_for_more_memory_than_a_node_has():
    largest = max(cost.estimate(suites.load("paper")).bundles, key=lambda c: c.memory_mb)
    assert largest.memory_mb < 64_000, largest


def test_the_files_of_a_set_add_up_and_one_of_unknown_size_hides_none(monkeypatch):
    parts = [Source(name="images", path="images", size=7), Source(name="names", path="names")]
    monkeypatch.setattr(cost.sources, "lacking", lambda name: parts)
    specs = plan(suites.load("demo"))[:1]
    assert cost._lacking(specs) == {"breast-cancer": 7}
    parts[0] = Source(name="images", path="images")
    assert cost._lacking(specs) == {"breast-cancer": None}
