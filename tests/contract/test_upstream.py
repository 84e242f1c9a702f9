"""Every upstream: draws from the given generator alone, repeats, and leaves its input as it was."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from fabricate import image_folders
from worlds import NEEDED, World, component, global_streams_untouched, worlds

from benchmarks import registry
from benchmarks.datasets import cub
from benchmarks.errors import BenchmarkError
from benchmarks.generate.make import make
from benchmarks.generate.stand_in import StandIn
from benchmarks.upstream import Augmented

BATCH = 16


@pytest.fixture(scope="module")
def stand_in(tmp_path_factory) -> World:
    """Fabricated CUB images, and a stand-in set of them where generated sets lie."""
    place = tmp_path_factory.mktemp("stand-in")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SAFLEX_DATA", str(place / "data"))
        patch.setenv("SAFLEX_HOME", str(place / "home"))
        patch.setattr(
            cub, "prepare", lambda image: np.asarray(image.resize((8, 8))).transpose(2, 0, 1)
        )
        image_folders.cub(place / "data", training=14, test=2)
        make(cub.index(), "stand-in", StandIn())
        yield World(cub.load("cub", seed=0), component("resnet-small"), component("generated"))


@pytest.fixture
def takers(upstream, stand_in) -> dict[str, World]:
    """The worlds whose data the upstream takes."""
    found, refusals = {}, []
    for name, world in {**worlds(), "generated": stand_in}.items():
        try:
            build(upstream, world)
            found[name] = world
        except BenchmarkError as refusal:
            refusals.append(str(refusal))
    assert found, f"{upstream} refuses every kind of data: {refusals}; give it one in worlds.py"
    return found


def build(upstream: str, world: World):
    return registry.load("upstream", upstream)(world.data, **NEEDED.get(upstream, {}))


def batch(upstream: str, world: World, *, seed: int = 0) -> Augmented:
    """The first batch of the second epoch."""
    x, y = world.data.train.x[:BATCH], world.data.train.y[:BATCH]
    made = build(upstream, world)
    made.begin_epoch(1, 3)
    return made(x, y, torch.Generator().manual_seed(seed))


def same(one: Augmented, two: Augmented) -> bool:
    return torch.equal(one.x.nan_to_num(-9), two.x.nan_to_num(-9)) and torch.equal(one.y, two.y)


def test_it_draws_from_the_given_generator_alone(upstream, takers):
    for world in takers.values():
        made = build(upstream, world)
        x, y = world.data.train.x[:BATCH], world.data.train.y[:BATCH]
        with global_streams_untouched():
            made(x, y, torch.Generator().manual_seed(0))


def test_the_same_generator_gives_the_same_batch_whatever_the_global_streams(upstream, takers):
    for world in takers.values():
        results = []
        for seed in (1, 2):
            torch.manual_seed(seed)
            np.random.seed(seed)
            random.seed(seed)
            results.append(batch(upstream, world))
        assert same(*results)


def test_a_batch_does_not_depend_on_how_many_came_before(upstream, takers):
    """A resumed run builds it anew: what it remembers would be lost."""
    for world in takers.values():
        made = build(upstream, world)
        x, y = world.data.train.x[:BATCH], world.data.train.y[:BATCH]
        for epoch in (0, 1):
            made.begin_epoch(epoch, 3)
            made(x, y, torch.Generator().manual_seed(9 + epoch))
        assert same(made(x, y, torch.Generator().manual_seed(0)), batch(upstream, world))


def test_its_input_stays_as_it_was(upstream, takers):
    for world in takers.values():
        before = world.data.train.x.clone()
        batch(upstream, world)
        assert torch.equal(before.nan_to_num(-9), world.data.train.x.nan_to_num(-9))


def test_inputs_are_the_model_s_and_labels_are_classes_or_distributions(upstream, takers):
    for world in takers.values():
        made = batch(upstream, world)
        rows = len(made.x)
        clean = world.data.normalize(world.data.train.x[:rows])
        assert made.x.shape == clean.shape
        assert made.x.dtype == clean.dtype
        if made.y.is_floating_point():
            assert made.y.shape == (rows, world.data.num_classes)
            assert torch.allclose(made.y.sum(1), torch.ones(rows), atol=1e-5)
        else:
            assert made.y.shape == (rows,)
            assert made.y.max() < world.data.num_classes
        if made.visibility is not None:
            assert made.visibility.shape == (rows,)
            assert ((made.visibility >= 0) & (made.visibility <= 1)).all()
        if made.index is not None:
            assert made.index.shape == (rows,)
