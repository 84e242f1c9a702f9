"""Plans that cannot run are refused before anything is queued; `plan --check` takes a step of the rest."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from reports import BY_HAND, report

from benchmarks import registry
from benchmarks import suite as suites
from benchmarks.errors import BenchmarkError

BAD = Path(__file__).parents[1] / "contract" / "bad"
TINY = {
    "suite": "tiny",
    "seeds": 2,
    "tables": {
        "t1": {
            "metric": "auroc",
            "datasets": {"breast-cancer": {}},
            "backbones": ["mlp"],
            "upstreams": {"cutmix": {"settings": {"probability": 0.3}}},
            "rows": ["none", "saflex"],
            "recipe": {"batch_size": 128, "epochs": 2},
        }
    },
}


def written(tmp_path: Path, *, rows_of: dict | None = None, **changes: object) -> Path:
    content = yaml.safe_load(yaml.safe_dump(TINY))
    content["tables"]["t1"].update(changes)
    content["rows"] = rows_of or {}
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def refusal(tmp_path: Path, **changes: object) -> str:
    """The one line that a plan with these changes is answered with."""
    with pytest.raises(BenchmarkError) as caught:
        suites.plan(suites.load(written(tmp_path, **changes)))
    (line,) = str(caught.value).splitlines()
    return line


IMAGES = {"datasets": ["bloodmnist"], "backbones": ["resnet-small"], "upstreams": ["randaugment"]}
CAPTIONED = {
    "datasets": ["captioned-bloodmnist"],
    "backbones": ["clip-tiny"],
    "upstreams": ["none"],
    "metric": "macro_f1",
}


@report(
    BY_HAND,
    "settings of a refiner out of range or misspelt: `beta: -1`, `eps: 2`, `tua: 1`, `power: 0`",
    "`plan` names the cell, the setting and what is expected",
)
@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"saflex": {"beta": -1}}, "refiner 'saflex': beta=-1 is out of range"),
        (
            {"rows": ["a"], "own": ("saflex-memory", {"tua": 1})},
            "unknown setting 'tua'. Did you mean",
        ),
        ({"rows": ["a"], "own": ("saflex-printed", {"memory": 1})}, "memory"),
        ({"rows": ["a"], "own": ("saflex", {"layout": "tokens"})}, "layout"),
        ({"rows": ["a"], "own": ("saflex", {"validation_batch": 0})}, "validation_batch"),
        ({"rows": ["a"], "own": ("bootstrapped", {"eps": 2})}, "eps: input should be less than"),
        (
            {"rows": ["a"], "own": ("bootstrapped", {"esp": 0.1})},
            "no setting 'esp': did you mean 'eps'",
        ),
        ({"rows": ["a"], "own": ("uniform", {"eps": 0.1})}, "it takes no settings"),
        (
            {"overrides": [{"match": {"row": ["saflex"]}, "refiner": {"tau": "x"}}]},
            "tau='x': expected a finite number",
        ),
        (
            {
                **IMAGES,
                "upstreams": ["crop"],
                "rows": ["a"],
                "own": ("soft-augmentation", {"power": 0}),
            },
            "power: input should be greater than 0",
        ),
    ],
)
def test_settings_of_a_refiner_are_held_against_it(tmp_path, changes, expected):
    if own := changes.pop("own", None):
        changes["rows"], own_rows = ["a"], {"a": {"refiner": own[0], "settings": own[1]}}
        assert expected in refusal(tmp_path, rows_of=own_rows, **changes)
    else:
        assert expected in refusal(tmp_path, **changes)


@report(
    BY_HAND,
    "misspelt or impossible settings of a data set, a model or an upstream",
    "`plan` names the cell, the setting and the nearest or what is expected",
)
@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (
            {"datasets": {"breast-cancer": {"settings": {"limt": 9}}}},
            "no setting 'limt': did you mean 'limit'",
        ),
        (
            {"datasets": {"breast-cancer": {"settings": {"label_noise": 2}}}},
            "less than or equal to 1",
        ),
        (
            {"datasets": {"breast-cancer": {"settings": {"limit": "ten"}}}},
            'valid integer (given "ten")',
        ),
        ({**IMAGES, "datasets": {"bloodmnist": {"settings": {"size": 29}}}}, "28, 64, 128 or 224"),
        ({"backbones": {"mlp": {"settings": {"hiden": [8]}}}}, "did you mean 'hidden'"),
        ({"backbones": {"mlp": {"settings": {"hidden": 8}}}}, "hidden"),
        ({"upstreams": {"cutmix": {"settings": {"probability": 1.5}}}}, "probability"),
        ({"upstreams": {"cutmix": {"settings": {"probability": float("nan")}}}}, "probability"),
        ({**CAPTIONED, "backbones": {"clip-tiny": {"settings": {"ensmble": True}}}}, "'ensemble'"),
        ({**IMAGES, "datasets": ["cub"], "upstreams": ["generated"]}, "needs the setting 'images'"),
    ],
)
def test_settings_of_the_other_parts_too(tmp_path, changes, expected):
    changes.setdefault("rows", ["upstream"])
    assert expected in refusal(tmp_path, **changes)


@report(
    BY_HAND,
    "an image model on tabular data, an upstream or a refiner on the wrong kind",
    "`plan` names both parts and what the one needs of the other",
)
@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (
            {"backbones": ["resnet-small"]},
            "'resnet-small' needs image, and data set 'breast-cancer'",
        ),
        ({**IMAGES, "backbones": ["mlp"]}, "'mlp' needs tabular, and data set 'bloodmnist'"),
        ({**IMAGES, "upstreams": ["cutmix"]}, "'cutmix' needs tabular"),
        ({"upstreams": ["randaugment"]}, "'randaugment' needs image"),
        ({"datasets": ["cub-features"], "upstreams": ["mixup"]}, "'mixup' needs image"),
        ({"backbones": ["clip-tiny"]}, "'clip-tiny' needs pretraining"),
        ({**IMAGES, "rows": ["soft-augmentation"]}, "'soft-augmentation' needs visibility"),
        ({"rows": ["lp-a3"]}, "'lp-a3' needs stages"),
        ({"rows": ["flyp"]}, "'flyp' needs pairs"),
        ({**IMAGES, "rows": ["extra-real"]}, "'extra-real' needs extra, and data set 'bloodmnist'"),
        (
            {**CAPTIONED, "rows": ["label-smoothing"]},
            "cannot work with pairs",
        ),
        ({**CAPTIONED, "upstreams": ["mixup"]}, "cannot work with mixed labels"),
    ],
)
def test_parts_that_do_not_go_together_are_refused(tmp_path, changes, expected):
    changes.setdefault("rows", ["upstream"])
    assert expected in refusal(tmp_path, **changes)


@report(
    BY_HAND,
    "empty tables, rows, data sets, backbones or upstreams; every cell `not_run`",
    "an error that names the place instead of 0 runs and exit 0",
)
@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"rows": []}, "tables.t1.rows"),
        ({"datasets": {}}, "tables.t1.datasets"),
        ({"backbones": []}, "tables.t1.backbones"),
        ({"upstreams": []}, "tables.t1.upstreams"),
        ({"overrides": [{"match": {"row": []}}]}, "overrides.0.match.row"),
        ({"datasets": {"qsar": {"not_run": "no"}}}, "plans no run"),
        ({"overrides": [{"match": {}, "skip": "all"}]}, "plans no run"),
    ],
)
def test_nothing_to_run_is_an_error(tmp_path, changes, expected):
    with pytest.raises(BenchmarkError, match=expected):
        suites.to_run(suites.load(written(tmp_path, **changes)))


def test_no_tables_at_all_are_an_error(tmp_path):
    (tmp_path / "s.yaml").write_text("suite: s\ntables: {}\n")
    with pytest.raises(BenchmarkError, match="tables"):
        suites.load(tmp_path / "s.yaml")


@report(
    BY_HAND,
    "an override whose recipe no run can have: `epochs: 0`, `lr: fast`",
    "one line with the cell, the field and the value",
)
@pytest.mark.parametrize(
    "recipe", [{"epochs": 0}, {"lr": "fast"}, {"lr": float("inf")}, {"optimizer": "adamx"}]
)
def test_the_recipe_of_an_override_is_checked(tmp_path, recipe):
    (field,) = recipe
    line = refusal(tmp_path, overrides=[{"match": {"row": ["none"]}, "recipe": recipe}])
    assert f"recipe: {field}" in line


@report(
    BY_HAND,
    "a typo in the metric of one data set, a million seeds, tables `2` and `table2`",
    "an error that names the place",
)
def test_other_slips_are_named(tmp_path):
    assert "metric" in refusal(tmp_path, datasets={"digits": {"metric": "acuracy"}})
    assert "seeds" in refusal(tmp_path, seeds=1_000_000)
    two = TINY | {"tables": {"2": TINY["tables"]["t1"], "table2": TINY["tables"]["t1"]}}
    (tmp_path / "two.yaml").write_text(yaml.safe_dump(two))
    with pytest.raises(BenchmarkError, match="share one folder"):
        suites.load(tmp_path / "two.yaml")


def test_a_fault_of_many_cells_is_said_once(tmp_path):
    line = refusal(tmp_path, rows=["saflex", "saflex-aug-only"], saflex={"beta": -1})
    assert "t1/breast-cancer/mlp/cutmix/saflex and 1 more cells" in line


def test_all_that_is_shipped_passes_and_checking_it_imports_no_torch():
    code = (
        "import sys; from benchmarks import suite as s;"
        "[s.plan(s.load(name)) for name in s.names()];"
        "sys.exit(any(m in sys.modules for m in ('torch', 'pandas', 'mlflow')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.fixture
def global_draws():
    """An upstream that draws from the global stream, registered for a test."""
    (name,) = registry.add("upstream", BAD / "global_random_numbers.py")
    yield name
    registry.modules("upstream").pop(name)
    registry._registered.pop(("upstream", name))


def check(path: Path) -> list[str]:
    from benchmarks.running import trial

    said: list[str] = []
    bundles = suites.bundles(suites.plan(suites.load(path)))
    try:
        trial.check(bundles, device="cpu", report=said.append)
    except BenchmarkError as error:
        said.append(str(error))
    return said


@report(
    BY_HAND,
    "`plan --check` with an upstream that draws from the global random stream",
    "the cell is named with the stream; cells of the same settings are tried once",
)
def test_one_step_of_each_distinct_cell_catches_global_draws(tmp_path, global_draws):
    path = written(tmp_path, upstreams={global_draws: {}}, rows=["none", "upstream", "saflex"])
    none, upstream, saflex, last = check(path)
    assert none.endswith("one step done")
    for line in (upstream, saflex):
        assert f"upstream {global_draws!r} drew from the global random stream of" in line
    assert last == "2 of 3 distinct cells cannot run, see above"


def test_what_can_run_takes_its_step_once(tmp_path):
    twice = {"a": {"refiner": "uniform", "clean_share": 0.5}}
    path = written(tmp_path, rows_of=twice, rows=["clean+aug", "a"])
    (line,) = check(path)
    assert line == "t1/breast-cancer/mlp/cutmix/clean+aug: one step done"
