"""Small worlds to try a registered thing in: data of each kind with a network and an augmentation."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import image_runs
import image_text_runs
import small_runs

from benchmarks.data import Data, Split
from benchmarks.running import trial
from benchmarks.spec import Component, Recipe, RunSpec, Settings

# Settings that something registered cannot do without, or that fit its warm-up into a short run.
NEEDED: dict[str, dict[str, Any]] = {"lp-a3": {"warm_up": 1}, "generated": {"images": "stand-in"}}


KINDS = ("tabular", "images", "pairs")


@dataclass(frozen=True)
class World:
    """Data of a kind, and what runs on them unless the test is about another."""

    data: Data
    model: Component
    upstream: Component


@cache
def worlds() -> dict[str, World]:
    """Data of every kind (`KINDS`); what fits none of them needs a world of its own here."""
    images = replace(image_runs.stripes(rows=48, side=16), mirrors=True)
    images = replace(images, extra=Split(images.validation.x, images.validation.y))
    narrow = Component(name="resnet-small", settings={"widths": (8, 8, 16, 16)})
    tiny = {"width": 32, "layers": 1, "patch": 7, "pretraining_epochs": 0}
    pairs = Component(name="clip-tiny", settings=tiny)
    made = (
        World(small_runs.blobs(rows=48), Component(name="mlp"), Component(name="cutmix")),
        World(images, narrow, Component(name="crop")),
        World(image_text_runs.squares(), pairs, Component(name="wilds-randaugment")),
    )
    return dict(zip(KINDS, made, strict=True))


@cache
def for_models() -> list[World]:
    """The same, and images large enough for networks that were pre-trained on photographs."""
    large = replace(image_runs.stripes(rows=12, side=64), name="large-stripes")
    return [*worlds().values(), World(large, component("resnet18"), component("none"))]


def spec(world: World, **changed: Component) -> RunSpec:
    """A run of three epochs of three steps, with the given model, upstream or refiner."""
    parts = {"model": world.model, "upstream": world.upstream, "refiner": Component(name="uniform")}
    parts |= changed
    return RunSpec(
        suite="contract",
        table="contract",
        dataset=world.data.name,
        backbone=parts["model"].name,
        upstream=parts["upstream"].name,
        row=parts["refiner"].name,
        seed=0,
        metric="accuracy",
        settings=Settings(
            dataset=Component(name=world.data.name),
            recipe=Recipe(epochs=3, batch_size=16),
            clean_share=0.5,
            **parts,
        ),
    )


def component(name: str) -> Component:
    """What is registered under a name, with the settings it needs."""
    return Component(name=name, settings=NEEDED.get(name, {}))


def global_streams_untouched() -> AbstractContextManager[None]:
    """The global random streams of torch, numpy and Python are where they were."""
    return trial.untouched("it")
