"""Small image-text runs for the tests: coloured squares with colours for captions, a tiny CLIP."""

from __future__ import annotations

from typing import Any

import torch

from benchmarks.data import Split
from benchmarks.datasets.image_text import ImageTextData, Pretraining
from benchmarks.models.clip import Clip, build_tiny
from benchmarks.spec import Component, Recipe, RunSpec, Settings

COLOURS = {
    "red": (200, 40, 40),
    "green": (40, 200, 40),
    "blue": (40, 40, 200),
    "white": (210, 210, 210),
}
SIDE = 14


def squares(*, rows: int = 48, classes: int = 4, seed: int = 0) -> ImageTextData:
    """Noisy images of one colour; the shifted test split is darker."""
    generator = torch.Generator().manual_seed(seed)
    colours = torch.tensor(list(COLOURS.values())[:classes], dtype=torch.float32)

    def split(n: int, factor: float = 1.0) -> Split:
        y = torch.arange(n) % classes
        x = factor * colours[y][:, :, None, None].expand(n, 3, SIDE, SIDE)
        x = x + 30 * torch.randn(x.shape, generator=generator)
        return Split(x.round().clamp(0, 255).to(torch.uint8), y)

    return ImageTextData(
        name="squares",
        train=split(rows),
        validation=split(24),
        test=split(32),
        ood_test=split(32, 0.5),
        num_classes=classes,
        kind="image",
        class_names=tuple(COLOURS)[:classes],
        normalize=lambda x: x.float() / 127.5 - 1,
        templates=("a photo of {}.", "{} under the microscope."),
        pretraining=Pretraining(split(16), ("an image of {}.",)),
    )


def clip(data: ImageTextData, *, seed: int = 0, **settings: Any) -> Clip:
    """A tiny CLIP with random weights, in double precision so that equalities are sharp."""
    torch.manual_seed(seed)
    model = build_tiny(data, width=32, layers=1, patch=7, pretraining_epochs=0, **settings).double()
    with torch.no_grad():  # the initial text features of all captions are nearly equal
        model.towers.token_embedding.weight.mul_(20)
        model.towers.logit_scale.fill_(1.5)
    return model


def pairs(data: ImageTextData, model: Clip, *, rows: int = 8) -> tuple[Any, torch.Tensor]:
    """The first pairs of the training split: ((images, captions), classes)."""
    y = data.train.y[:rows]
    images = data.normalize(data.train.x[:rows]).to(model.tokens.device).double()
    return (images, model.captions(y, torch.arange(rows) // 2 % 2)), y


def spec(
    *,
    refiner: str = "flyp",
    settings: dict[str, Any] | None = None,
    upstream: str = "none",
    clean_share: float = 0.0,
    seed: int = 0,
    model: dict[str, Any] | None = None,
    train_on: str = "train",
    **recipe: Any,
) -> RunSpec:
    """A specification of a short contrastive run."""
    tiny = {"width": 32, "layers": 1, "patch": 7, "pretraining_epochs": 0}
    recipe = {"epochs": 2, "batch_size": 16, "schedule": "cosine-steps", "lr": 1e-3, **recipe}
    return RunSpec(
        suite="test",
        table="test",
        dataset="squares",
        backbone="clip-tiny",
        upstream=upstream,
        row=refiner,
        seed=seed,
        metric="macro_f1",
        settings=Settings(
            dataset=Component(name="captioned-bloodmnist"),
            model=Component(name="clip-tiny", settings={**tiny, **(model or {})}),
            upstream=Component(name=upstream),
            refiner=Component(name=refiner, settings=settings or {}),
            recipe=Recipe(**recipe),
            clean_share=clean_share,
            train_on=train_on,
        ),
    )
