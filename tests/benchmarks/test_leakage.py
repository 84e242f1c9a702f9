"""Nothing of the test rows reaches a run before they are evaluated; validation feeds SAFLEX alone."""

from __future__ import annotations

from dataclasses import replace
from importlib import import_module

import numpy as np
import pytest
import torch
from fabricate import tabular as fabricate
from small_runs import blobs, spec

from benchmarks import registry
from benchmarks.data import Data, Split
from benchmarks.datasets import tabular
from benchmarks.spec import Component
from benchmarks.train import Training

REFINERS = ("uniform", "saflex", "saflex-printed", "weights-only")
MODELS = {"mlp": {}, "saint": {"dim": 4, "heads": 2, "evaluation_batch": 32}}


def trained(data: Data, refiner: str, model: str) -> Training:
    run = spec(refiner=refiner, epochs=2)
    chosen = Component(name=model, settings=MODELS[model])
    run = run.model_copy(update={"settings": run.settings.model_copy(update={"model": chosen})})
    training = Training(run, data)
    training.run()
    return training


def weights(training: Training) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in training.model.parameters()])


def of_split(metrics: dict[str, float], split: str) -> dict[str, float]:
    return {name: value for name, value in metrics.items() if name.startswith(split)}


def shuffled(split: Split) -> Split:
    """Rows and labels in two different random orders, and a value that was never there."""
    generator = torch.Generator().manual_seed(5)
    rows, labels = (torch.randperm(len(split), generator=generator) for _ in range(2))
    x = split.x[rows].clone()
    x[0, 2] = 1e3
    return Split(x, split.y[labels])


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("refiner", REFINERS)
def test_other_test_rows_and_labels_change_the_test_metrics_only(refiner, model):
    data = blobs()
    other = replace(data, test=shuffled(data.test))
    one, two = trained(data, refiner, model), trained(other, refiner, model)
    assert torch.equal(weights(one), weights(two))
    assert of_split(one.last, "val") == of_split(two.last, "val")
    assert one.best["epoch"] == two.best["epoch"]
    assert of_split(one.last, "test") != of_split(two.last, "test")


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("refiner", ["uniform", "saflex", "weights-only"])
def test_validation_labels_reach_the_weights_through_saflex_alone(refiner, model):
    data = blobs()
    other = replace(data, validation=shuffled(data.validation))
    one, two = trained(data, refiner, model), trained(other, refiner, model)
    assert torch.equal(weights(one), weights(two)) == (refiner == "uniform")


@pytest.mark.parametrize("name", ["shrutime", "kdd99", "appetency", "credit"])
def test_from_the_file_on_held_out_rows_change_no_weight(name, monkeypatch, tmp_path):
    """Shuffled in the published file itself: loader, preprocessing and training together."""
    folder = tmp_path / "data"
    folder.mkdir()
    monkeypatch.setenv("SAFLEX_DATA", str(folder))
    monkeypatch.setenv("SAFLEX_HOME", str(tmp_path / "home"))
    fabricate.install(monkeypatch, folder, name)
    raw = import_module(registry.modules("datasets")[name]).raw(name)
    split = tabular.split_indices(raw.y, name, 0)
    monkeypatch.setattr(tabular, "split_indices", lambda *_: split)
    rows = np.random.default_rng(1).permutation(split[2])
    values, y = raw.values.copy(), raw.y.copy()
    values[split[2]], y[split[2]] = raw.values[rows], raw.y[rows[::-1]]
    first, second = (
        trained(tabular.data(changed, name, seed=0), "uniform", "mlp")
        for changed in (raw, replace(raw, values=values, y=y))
    )
    assert torch.equal(weights(first), weights(second))
    assert of_split(first.last, "val") == of_split(second.last, "val")
    assert first.last["test/nll"] != second.last["test/nll"]
