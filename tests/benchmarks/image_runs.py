"""Small image runs for the tests: images whose brightest channel is the class, and specifications."""

from __future__ import annotations

from typing import Any

import torch

from benchmarks.data import Data, Split
from benchmarks.datasets.small_images import normalize
from benchmarks.spec import Component, Recipe, RunSpec, Settings


def stripes(*, classes: int = 3, rows: int = 64, side: int = 16, seed: int = 0) -> Data:
    """Noisy images whose class decides which channel is bright."""
    generator = torch.Generator().manual_seed(seed)

    def split(n: int) -> Split:
        y = torch.arange(n) % classes
        x = torch.randint(0, 120, (n, 3, side, side), generator=generator)
        x[torch.arange(n), y % 3] += 60
        return Split(x.to(torch.uint8), y)

    return Data(
        name="stripes",
        train=split(rows),
        validation=split(24),
        test=split(24),
        num_classes=classes,
        kind="image",
        normalize=normalize,
    )


def image_spec(
    *,
    refiner: str = "uniform",
    upstream: str = "none",
    settings: dict[str, Any] | None = None,
    dataset: Component | None = None,
    clean_share: float = 0.0,
    seed: int = 0,
    **recipe: Any,
) -> RunSpec:
    """A specification of a short run of a narrow network."""
    recipe = {"optimizer": "adam", "weight_decay": 0.0, "epochs": 3, "batch_size": 16, **recipe}
    dataset = dataset or Component(name="digits-images")
    return RunSpec(
        suite="test",
        table="test",
        dataset=dataset.name,
        backbone="resnet-small",
        upstream=upstream,
        row=refiner,
        seed=seed,
        metric="accuracy",
        settings=Settings(
            dataset=dataset,
            # At least 8: below, oneDNN's AVX2 kernel of a strided 1x1 convolution writes past its workspace
            # (uxlfoundation/oneDNN issue 6035), and a processor without AVX-512 crashes.
            model=Component(name="resnet-small", settings={"widths": (8, 8, 16, 16)}),
            upstream=Component(name=upstream),
            refiner=Component(name=refiner, settings=settings or {}),
            recipe=Recipe(**recipe),
            clean_share=clean_share,
        ),
    )
