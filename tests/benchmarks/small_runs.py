"""Small runs for the tests: a two-blob tabular set and specifications over it."""

from __future__ import annotations

from typing import Any

import torch

from benchmarks.data import Data, Split
from benchmarks.spec import Component, Recipe, RunSpec, Settings


def blobs(*, classes: int = 3, features: int = 5, rows: int = 120, seed: int = 0) -> Data:
    """Gaussian blobs with one categorical column and some missing values."""
    generator = torch.Generator().manual_seed(seed)
    centres = 3 * torch.randn(classes, features, generator=generator)

    def split(n: int) -> Split:
        y = torch.arange(n) % classes
        x = centres[y] + torch.randn(n, features, generator=generator)
        x[:, 0] = torch.randint(0, 4, (n,), generator=generator).float()
        x[::7, 1] = torch.nan
        return Split(x, y)

    return Data(
        name="blobs",
        train=split(rows),
        validation=split(60),
        test=split(60),
        num_classes=classes,
        kind="tabular",
        categories=(4,) + (0,) * (features - 1),
    )


def spec(
    *,
    refiner: str = "uniform",
    settings: dict[str, Any] | None = None,
    upstream: str = "cutmix",
    row: str | None = None,
    seed: int = 0,
    clean_share: float = 0.5,
    metric: str = "accuracy",
    dataset: str = "blobs",
    train_on: str = "train",
    **recipe: Any,
) -> RunSpec:
    """A specification of a short run."""
    recipe = {"epochs": 3, "batch_size": 32, **recipe}
    return RunSpec(
        suite="test",
        table="test",
        dataset=dataset,
        backbone="mlp",
        upstream=upstream,
        row=row or refiner,
        seed=seed,
        metric=metric,
        settings=Settings(
            dataset=Component(name=dataset),
            model=Component(name="mlp"),
            upstream=Component(name=upstream),
            refiner=Component(name=refiner, settings=settings or {}),
            recipe=Recipe(**recipe),
            clean_share=clean_share,
            train_on=train_on,
        ),
    )
