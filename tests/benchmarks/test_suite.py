"""Suites: what is planned, how rows and overrides merge, and errors with their path."""

from __future__ import annotations

import subprocess
import sys

import pytest
import yaml

from benchmarks import suite as suites
from benchmarks.errors import BenchmarkError
from benchmarks.record import path_of

MINIMAL = {
    "suite": "mine",
    "seeds": 2,
    "tables": {
        "2": {
            "metric": "auroc",
            "datasets": {"qsar": {}, "volkert": {"not_run": "not at hand", "metric": "accuracy"}},
            "backbones": ["mlp"],
            "upstreams": {"cutmix": {"settings": {"probability": 0.3}}},
            "rows": ["none", "upstream", "saflex-printed"],
            "saflex": {"beta": 1.0},
            "recipe": {"epochs": 4},
        }
    },
}


def written(tmp_path, **table_changes):
    content = yaml.safe_load(yaml.safe_dump(MINIMAL))
    content["tables"]["2"].update(table_changes)
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def test_plan_is_datasets_by_backbones_by_upstreams_by_rows_by_seeds(tmp_path):
    specs = suites.plan(suites.load(written(tmp_path)))
    assert [(s.bundle, s.seed) for s in specs] == [
        (f"table2/qsar/mlp/{pair}", seed)
        for pair in ("none/none", "cutmix/upstream", "cutmix/saflex-printed")
        for seed in (0, 1)
    ]
    assert specs[-1].settings.refiner.settings == {"beta": 1.0}
    assert specs[0].settings.refiner.settings == {}
    assert specs[-1].settings.upstream.settings == {"probability": 0.3}


def test_rows_without_an_upstream_are_planned_once_however_many_upstreams(tmp_path):
    path = written(
        tmp_path,
        upstreams={
            "cutmix": {},
            "cutmix-0.3": {"name": "cutmix", "settings": {"probability": 0.3}},
        },
    )
    bundles = suites.bundles(suites.plan(suites.load(path)))
    assert sum(bundle.endswith("none/none") for bundle in bundles) == 1
    assert "table2/qsar/mlp/cutmix-0.3/upstream" in bundles


def test_overrides_apply_to_matching_cells_alone_and_say_what_they_reduce(tmp_path):
    change = {"match": {"row": ["upstream"]}, "recipe": {"epochs": 1}, "reduced": "1 of 4 epochs"}
    specs = suites.plan(suites.load(written(tmp_path, overrides=[change])))
    assert {(s.row, s.settings.recipe.epochs, s.reduced) for s in specs} == {
        ("none", 4, ""),
        ("upstream", 1, "1 of 4 epochs"),
        ("saflex-printed", 4, ""),
    }


def test_keys_are_distinct_stable_and_ignore_defaults(tmp_path):
    specs = suites.plan(suites.load(written(tmp_path)))
    assert len({s.key for s in specs}) == len(specs)
    again = type(specs[0]).model_validate_json(specs[0].model_dump_json())
    assert again.key == specs[0].key
    moved = type(again).model_validate(again.model_dump() | {"suite": "other", "reduced": "note"})
    assert moved.key == again.key
    spelled_out = written(tmp_path, recipe={"epochs": 4, "lr": 1e-3})
    assert suites.plan(suites.load(spelled_out))[0].key == specs[0].key


def test_every_run_has_a_record_of_its_own(tmp_path):
    for name in suites.names():
        specs = suites.plan(suites.load(name))
        assert len({path_of(tmp_path, s) for s in specs}) == len(specs), name


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (
            {"datasets": ["qsra"]},
            "tables.2.datasets.qsra: unknown data set 'qsra': did you mean 'qsar'",
        ),
        ({"rows": ["saflx"]}, "tables.2.rows: unknown row 'saflx': did you mean 'saflex'"),
        ({"upstreams": ["cutmax"]}, "unknown upstream 'cutmax': did you mean 'cutmix'"),
        ({"recipe": {"epoch": 3}}, "tables.2.recipe.epoch: unknown key: did you mean 'epochs'"),
        ({"recipe": {"epochs": 0}}, "tables.2.recipe.epochs"),
        ({"metrc": "auroc"}, "tables.2.metrc: unknown key: did you mean 'metric'"),
        ({"saflex": {"bta": 1}}, "tables.2.saflex: unknown setting 'bta': did you mean 'beta'"),
        ({"overrides": [{"match": {"dataset": ["qsr"]}}]}, "did you mean 'qsar'"),
        ({"overrides": [{"match": {}, "recipe": {"lrr": 1}}]}, "unknown key"),
    ],
)
def test_errors_carry_their_path_and_the_nearest_name(tmp_path, change, expected):
    with pytest.raises(BenchmarkError) as caught:
        suites.load(written(tmp_path, **change))
    assert expected in str(caught.value)


def test_all_errors_are_reported_at_once(tmp_path):
    with pytest.raises(BenchmarkError) as caught:
        suites.load(written(tmp_path, datasets=["qsra"], rows=["nonne"], upstreams=["cutmax"]))
    assert len(str(caught.value).splitlines()) == 3


def test_an_unknown_suite_and_a_missing_file_are_one_line():
    with pytest.raises(BenchmarkError, match="did you mean 'demo'"):
        suites.load("dem")
    with pytest.raises(BenchmarkError, match="does not exist"):
        suites.load("nowhere/mine.yaml")


def test_planning_imports_no_torch():
    code = (
        "import sys; from benchmarks import suite; suite.plan(suite.load('cpu'));"
        "sys.exit(any(m in sys.modules for m in ('torch', 'pandas', 'mlflow')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_key_that_is_there_twice_is_an_error(tmp_path):
    path = tmp_path / "twice.yaml"
    path.write_text("suite: twice\nseeds: 3\nseeds: 5\ntables: {}\n")
    with pytest.raises(BenchmarkError, match="'seeds' is there twice"):
        suites.load(path)
