"""Tuning: equal budgets, settings a name leaves free, trials that go on, rows that read what was chosen."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace

import pytest
import yaml

from benchmarks import suite as suites
from benchmarks.data import Split
from benchmarks.errors import BenchmarkError
from benchmarks.studies import tuning
from benchmarks.studies.tuning import SEED, Trial, draws, path_of, searched

ROWS = ["clean+aug", "upstream-tuned", "saflex-printed-tuned", "saflex-derived-tuned"]


@pytest.fixture
def suite(tmp_path):
    content = {
        "suite": "mine",
        "seeds": 2,
        "chosen": "chosen.yaml",
        "tables": {
            "small": {
                "metric": "auroc",
                "datasets": ["breast-cancer"],
                "backbones": ["mlp"],
                "upstreams": ["cutmix"],
                "rows": ROWS,
                "saflex": {"beta": 1.0},
                "recipe": {"epochs": 2, "lr": 0.01},
                "overrides": [{"match": {"row": ["clean+aug"]}, "recipe": {"lr": 0.02}}],
            }
        },
    }
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(content))
    return suites.load(tmp_path / "mine.yaml")


def run_of(suite, row: str):
    return next(run for run in searched(suite, table=None, datasets=[], rows=[row]))


def tuned(suite, tmp_path, *rows: str, trials: int = 3, **changes) -> list[str]:
    lines: list[str] = []
    runs = searched(suite, table=None, datasets=[], rows=list(rows))
    tuning.tune(
        suite, tmp_path / "results", runs=runs, trials=trials, report=lines.append, **changes
    )
    return lines


def test_a_tuned_row_is_not_planned_before_something_was_chosen(suite):
    assert {run.row for run in suites.plan(suite)} == {"clean+aug"}
    assert [run.row for run in searched(suite, table=None, datasets=[], rows=[])] == ROWS[1:]


def test_both_published_rows_draw_the_same_settings_in_their_own_sign(suite):
    printed, derived = (run_of(suite, f"saflex-{form}-tuned") for form in ("printed", "derived"))
    assert draws(printed, 30) == draws(derived, 30) == draws(printed, 30)
    assert len({str(drawn) for drawn in draws(printed, 30)}) == 30
    # The whole grid: every value of every setting, and no other; the sign is the name's.
    grid = draws(printed, 10_000)
    assert len(grid) == 4 * 3 * 3 * 3 * 2 * 3
    assert set(grid[0]) == {"beta", "tau", "validation_batch", "output", "clean_share", "lr_factor"}


def test_the_baseline_has_as_many_trials_as_the_published_form(suite):
    found = draws(run_of(suite, "upstream-tuned"), 30)
    assert len({str(drawn) for drawn in found}) == 30
    assert {drawn["lr_factor"] for drawn in found} == {0.3, 1.0, 3.0}
    run = run_of(suite, "upstream-tuned")
    trial = tuning.trial_run(suite, run, found[-1], epochs=1)
    assert trial.settings.recipe.weight_decay == found[-1]["weight_decay"]
    assert trial.settings.refiner.settings == {}


def test_a_trial_is_the_row_on_a_seed_of_its_own(suite):
    run = run_of(suite, "saflex-printed-tuned")
    drawn = dict.fromkeys(("beta", "tau"), 0.1) | {"clean_share": 0.0, "lr_factor": 3.0}
    trial = tuning.trial_run(suite, run, drawn, epochs=1)
    assert trial.seed == SEED > suite.seeds
    assert trial.settings.refiner.settings == {"beta": 0.1, "tau": 0.1}
    assert trial.settings.clean_share == 0.0
    assert trial.settings.recipe.lr == pytest.approx(0.03)
    assert trial.settings.recipe.epochs == 1
    assert trial.key != run.key


def test_what_was_chosen_is_planned_and_says_how_it_was_shortened(suite, tmp_path):
    tuned(suite, tmp_path, "saflex-derived-tuned", "upstream-tuned", trials=3, longest=1e-9)
    best = {}
    for row in ("saflex-derived-tuned", "upstream-tuned"):
        run = run_of(suite, row)
        files = [path_of(tmp_path / "results", run, n) for n in range(3)]
        trials = [Trial.model_validate_json(path.read_text()) for path in files]
        assert all(name.startswith("val/") for trial in trials for name in trial.metrics)
        best[row] = max(trials, key=lambda t: (t.metrics["val/auroc"], -t.metrics["val/nll"]))
    again = suites.load(tmp_path / "mine.yaml")
    for row, trial in best.items():
        planned = [run for run in suites.plan(again) if run.row == row]
        assert [run.seed for run in planned] == [0, 1]
        settings = planned[0].settings
        assert settings.recipe.lr == pytest.approx(0.01 * trial.drawn["lr_factor"])
        assert settings.recipe.epochs == 2
        assert settings.refiner.settings.items() >= {
            (name, value)
            for name, value in trial.drawn.items()
            if name in ("beta", "tau", "output")
        }
        assert planned[0].reduced == "tuned on runs of 1 of 2 epochs"


def test_a_search_goes_on_from_the_trials_that_are_there(suite, tmp_path, monkeypatch):
    from benchmarks.running import execute

    ran = []
    original = execute.execute
    monkeypatch.setattr(
        execute, "execute", lambda spec, **k: ran.append(spec.key) or original(spec, **k)
    )
    first = tuned(suite, tmp_path, "upstream-tuned")
    path = path_of(tmp_path / "results", run_of(suite, "upstream-tuned"), 1)
    path.write_text(path.read_text()[:20])  # as a killed machine may leave it
    assert tuned(suite, tmp_path, "upstream-tuned")[-1] == first[-1]
    assert len(ran) == 4
    assert ran[3] == ran[1]


def test_a_choice_survives_a_search_of_another_row(suite, tmp_path):
    tuned(suite, tmp_path, "upstream-tuned")
    tuned(suite, tmp_path, "saflex-printed-tuned", trials=2)
    found = suites.chosen(suite).tables["small"]
    assert [override.match["row"] for override in found] == [ROWS[2:3], ROWS[1:2]]


@pytest.mark.parametrize(
    "change", [{"protocol": 1}, {"source": "another"}, {"content": {"data": "0123456789abcdef"}}]
)
def test_a_trial_of_another_protocol_source_or_data_is_made_again(suite, tmp_path, change):
    tuned(suite, tmp_path, "upstream-tuned")
    path = path_of(tmp_path / "results", run_of(suite, "upstream-tuned"), 0)
    made = Trial.model_validate_json(path.read_text())
    wrong = {"metrics": {"val/auroc": 1.0, "val/nll": 0.0}, **change}
    path.write_text(made.model_copy(update=wrong).model_dump_json())
    tuned(suite, tmp_path, "upstream-tuned")
    again = Trial.model_validate_json(path.read_text())
    assert again.metrics == made.metrics
    assert again.content == made.content != {}


def test_a_trial_that_does_not_say_its_protocol_and_data_is_read_and_stands(suite, tmp_path):
    tuned(suite, tmp_path, "upstream-tuned")
    path = path_of(tmp_path / "results", run_of(suite, "upstream-tuned"), 0)
    old = Trial.model_validate_json(path.read_text()).model_dump(exclude={"protocol", "content"})
    path.write_text(json.dumps(old))
    tuned(suite, tmp_path, "upstream-tuned")
    assert json.loads(path.read_text()) == old


def test_a_choice_says_what_it_was_made_from(suite, tmp_path):
    tuned(suite, tmp_path, "upstream-tuned")
    (found,) = suites.chosen(suite).tables["small"]
    path = path_of(tmp_path / "results", run_of(suite, "upstream-tuned"), 0)
    made = Trial.model_validate_json(path.read_text())
    assert found.made_from == {"source": made.source, "protocol": "2", **made.content}


@pytest.mark.parametrize(("longest", "epochs"), [(2.0, 1), (10.0, 2), (1e6, 2)])
def test_a_length_is_reckoned_for_the_seconds_asked_for(suite, tmp_path, longest, epochs):
    run = run_of(suite, "upstream-tuned")
    path = (tmp_path / "tuning" / run.bundle).with_name("length.json")
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"epochs": 1, "of": 2, "seconds_per_epoch": 2.0, "row": "x"}))
    length = tuning._length(suite, run, tmp_path, longest=longest, device="cpu")
    assert (length.epochs, length.longest, length.device) == (epochs, longest, "cpu")
    assert tuning.Length.model_validate_json(path.read_text()) == length


def test_a_length_on_another_device_is_measured_there(suite, tmp_path, monkeypatch):
    run = run_of(suite, "upstream-tuned")
    monkeypatch.setattr(
        tuning, "_seconds_per_epoch", lambda spec, device: {"cpu": 5, "cuda": 1}[device]
    )
    found = [
        tuning._length(suite, run, tmp_path, longest=2, device=device).epochs
        for device in ("cpu", "cuda")
    ]
    assert found == [1, 2]


def test_where_validation_lacks_a_class_nothing_is_chosen_and_it_is_said(
    suite, tmp_path, monkeypatch
):
    from benchmarks.running import execute

    original = execute.load_data

    def lacking(spec, device):
        data = original(spec, device)
        rows = data.validation.y == 0
        return replace(data, validation=Split(data.validation.x[rows], data.validation.y[rows]))

    monkeypatch.setattr(execute, "load_data", lacking)
    lines = tuned(suite, tmp_path, "upstream-tuned")
    assert len(lines) == 4
    assert all(
        line.endswith("auroc is not defined, a class may be missing there") for line in lines
    )
    assert lines[-1].startswith("small/breast-cancer/mlp/cutmix/upstream-tuned: nothing chosen: ")
    assert suites.chosen(suite).tables == {}


def trial(number: int, value: float, nll: float = 0.5, status: str = "complete") -> Trial:
    metrics = {"val/auroc": value, "val/nll": nll}
    common = {"key": "k", "source": "s", "drawn": {}, "epochs": 1, "of": 1}
    return Trial(number=number, status=status, metrics=metrics, **common)


def test_the_best_validation_metric_wins_and_failed_trials_do_not():
    trials = [trial(0, 0.8), trial(1, 0.9, nll=0.6), trial(2, 0.9), trial(3, 0.99, status="failed")]
    assert tuning.chosen(trials, "auroc").number == 2
    assert tuning.chosen(trials[3:], "auroc") is None
    assert tuning.chosen(trials, "average_precision") is None


def test_a_choice_for_a_cell_that_is_gone_is_named(suite, tmp_path):
    content = {"tables": {"small": [{"match": {"dataset": ["qsar"]}, "lr_factor": 3.0}]}}
    (tmp_path / "chosen.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(
        BenchmarkError, match=r"chosen.small.0.match.dataset: 'qsar' matches nothing"
    ):
        suites.load(tmp_path / "mine.yaml")


def test_a_suite_without_a_place_for_choices_is_refused(suite, tmp_path):
    lacking = suite.model_copy(update={"chosen": None})
    with pytest.raises(BenchmarkError, match=r"chosen: tuned/mine\.yaml"):
        tuning.tune(lacking, tmp_path, runs=searched(lacking, table=None, datasets=[], rows=[]))


def test_listing_what_to_search_needs_no_torch():
    code = (
        "import sys; from benchmarks.studies import tuning; from benchmarks import suite as s;"
        "tuning.searched(s.load('controls'), table=None, datasets=[], rows=[]);"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
