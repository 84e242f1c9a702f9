"""Weight ensembling: its two ends, the choice on id_val alone, and what a run records of it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from image_text_runs import spec, squares

from benchmarks.data import Split
from benchmarks.models import ensembling
from benchmarks.train import Training


@pytest.fixture(scope="module")
def data():
    return squares()


@pytest.fixture(scope="module")
def run(data):
    training = Training(spec(model={"ensemble": True}, epochs=4), data)
    training.run()
    return training


def test_ends_are_the_zero_shot_and_the_fine_tuned_weights(run):
    tuned = ensembling.weights_of(run.model)
    assert any(not torch.equal(tuned[name], run.ensemble.zero_shot[name]) for name in tuned)
    for alpha, end in ((0.0, run.ensemble.zero_shot), (1.0, tuned)):
        mixed = ensembling.interpolate(run.ensemble.zero_shot, tuned, alpha)
        assert all(torch.equal(mixed[name], end[name]) for name in end)


def test_mixture_is_linear_in_every_weight():
    a, b = {"w": torch.tensor([0.0, 2.0])}, {"w": torch.tensor([1.0, 4.0])}
    assert ensembling.interpolate(a, b, 0.25)["w"].tolist() == [0.25, 2.5]


def test_counters_are_not_mixed():
    a, b = {"n": torch.tensor(3)}, {"n": torch.tensor(5)}
    assert ensembling.interpolate(a, b, 0.5)["n"].item() == 5


def test_the_coefficient_with_the_best_score_is_chosen():
    a, b = {"w": torch.tensor(0.0)}, {"w": torch.tensor(1.0)}
    assert ensembling.choose(a, b, lambda state: -((state["w"].item() - 0.3) ** 2)) == 0.3
    assert ensembling.choose(a, b, lambda state: 0.0) == 1.0  # no reason to leave fine-tuning


def test_a_run_keeps_its_fine_tuned_weights(data, run):
    plain = Training(spec(epochs=4), data)
    plain.run()
    for name, value in plain.model.state_dict().items():
        assert torch.equal(value, run.model.state_dict()[name])
    assert plain.last == {n: v for n, v in run.last.items() if not n.startswith("ensemble/")}


def test_recorded_ensemble_is_that_of_the_recorded_coefficient(data, run):
    again = Training(spec(model={"ensemble": True}, epochs=4), data)
    tuned = ensembling.weights_of(run.model)
    mixed = ensembling.interpolate(run.ensemble.zero_shot, tuned, run.last["ensemble/alpha"])
    again.model.load_state_dict(mixed)
    for name, value in again.measure().items():
        assert run.last[f"ensemble/{name}"] == pytest.approx(value, abs=1e-6)


def test_only_validation_decides(data, run):
    """The chosen coefficient has the best id_val score of all eleven."""
    tuned = ensembling.weights_of(run.model)
    probe = Training(spec(), data)

    def validation(alpha: float) -> float:
        probe.model.load_state_dict(ensembling.interpolate(run.ensemble.zero_shot, tuned, alpha))
        return probe.measure("val")["val/macro_f1"]

    scores = {alpha: validation(alpha) for alpha in ensembling.ALPHAS}
    assert scores[run.last["ensemble/alpha"]] == max(scores.values())


def test_best_epoch_has_an_ensemble_of_its_own(run):
    assert {n.removeprefix("ensemble/") for n in run.best if n.startswith("ensemble/")} >= {
        "id_test/macro_f1",
        "ood_test/macro_f1",
        "alpha",
    }


def test_nothing_is_mixed_where_validation_defines_no_metric(data):
    one = data.validation.y == 0
    validation = Split(data.validation.x[one], data.validation.y[one])
    run = spec(model={"ensemble": True}, epochs=1).model_copy(update={"metric": "auroc"})
    training = Training(run, replace(data, validation=validation))
    training.run()
    assert training.best == {}
    assert not any(name.startswith("ensemble/") for name in training.last)


@pytest.mark.parametrize("train_on", ["validation", "train+validation"])
def test_nothing_is_mixed_where_validation_rows_were_trained_on(data, train_on):
    training = Training(spec(model={"ensemble": True}, epochs=1, train_on=train_on), data)
    training.run()
    assert training.best
    assert not any(name.startswith("ensemble/") for name in {**training.last, **training.best})


def test_zero_shot_is_its_own_ensemble(data):
    training = Training(spec(refiner="zero-shot", model={"ensemble": True}), data)
    training.run()
    assert training.steps == 0
    for name in ("id_test/macro_f1", "ood_test/macro_f1"):
        assert training.last[f"ensemble/{name}"] == training.last[name]
        assert training.best[name] == training.last[name]
