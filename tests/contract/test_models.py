"""Every backbone: logits (B, K), decided by torch's seed when built and by the row alone in eval mode."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from worlds import World, component, for_models, spec

from benchmarks.errors import DataError
from benchmarks.train import Training


@pytest.fixture(scope="module")
def training(model) -> Training:
    """The model in the first world it works in; skipped where its weights are not at hand."""
    failures = []
    for world in for_models():
        try:
            made = build(model, world)
            made.logits(world.data.test)
        except DataError as absent:
            pytest.skip(str(absent))
        except Exception as failure:  # a tabular network on images fails in its own way
            failures.append(f"{type(failure).__name__}: {failure}")
        else:
            return made
    pytest.fail(f"{model} works on no kind of data: {failures}; give it one in worlds.py")


def build(model: str, world: World) -> Training:
    chosen = world.model if world.model.name == model else component(model)
    upstream = component("none")
    return Training(spec(world, model=chosen, upstream=upstream), world.data)


def test_logits_are_a_row_of_k_for_each_input(training):
    logits = training.logits(training.data.test)
    assert logits.shape == (len(training.data.test), training.data.num_classes)
    assert logits.isfinite().all()


def test_in_eval_mode_a_row_s_logits_depend_on_the_row_alone(training):
    if hasattr(training.model, "evaluation_batch"):
        pytest.skip(
            "it attends across the rows of a batch, and says how many by `evaluation_batch`"
        )
    split = training.data.test
    whole = training.logits(split)
    assert torch.equal(whole, training.logits(split))
    part = training.logits(type(split)(split.x[3:9], split.y[3:9]))
    assert torch.allclose(part, whole[3:9], atol=1e-4)


def test_initial_weights_follow_torch_s_seed_alone(training, model):
    (world,) = [w for w in for_models() if w.data.name == training.data.name]
    np.random.seed(1)
    random.seed(1)
    again = build(model, world).model.state_dict()
    for name, value in training.model.state_dict().items():
        assert torch.equal(value, again[name]), name


def test_its_weights_survive_a_checkpoint(training, model):
    training.model.load_state_dict(training.model.state_dict())
