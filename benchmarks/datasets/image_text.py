"""Image-text data for Table 4: images, captions made from class names, and a second, shifted test split."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from sklearn.metrics import f1_score
from torch import Tensor

from benchmarks import metrics
from benchmarks.data import Data, Split
from benchmarks.datasets.crops import DRAWS, crop_stored


def measure(logits: Tensor, y: Tensor) -> dict[str, float]:
    """Metrics of a split, with macro-F1 over the classes that occur in it, as WILDS defines it.

    A class that is predicted but absent from the split lowers the precision of the true ones and has
    no F1 of its own; scikit-learn's default would average a 0 in for it.

    Parameters
    ----------
    logits : (N, K). y : (N,) class indices.
    """
    target, predicted = y.cpu().numpy(), logits.argmax(-1).cpu().numpy()
    score = f1_score(target, predicted, labels=np.unique(target), average="macro", zero_division=0)
    return {**metrics.evaluate(logits, y), "macro_f1": float(score)}


@dataclass(frozen=True)
class Pretraining:
    """What a model that is trained here, not downloaded, is pre-trained on.

    Attributes
    ----------
    split : images and classes, none of them in another split.
    templates : captions with ``{}`` where the class name goes.
    """

    split: Split
    templates: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class ImageTextData(Data):
    """A prepared image-text data set; `test` is in distribution (ID), `ood_test` is shifted.

    `Split.x` is uint8 (N, 3, H, W), or anything that gives such rows when indexed (see
    `benchmarks.datasets.images_on_disk.ImageFiles`), so that a large set need not fit into memory.

    Attributes
    ----------
    ood_test : the shifted test split.
    templates : captions with ``{}`` where the class name goes; each image meets all in turn.
    crop : ``crop(images, index, draws)`` -> uint8 (B, 3, H, W): rows of the training split, each
        with its random resized crop decided by draws (B, 10, 4), uniform in [0, 1).
    evaluate : ``evaluate(logits, y)`` -> metrics of a split.
    pretraining : for models that are pre-trained here.
    """

    ood_test: Split
    templates: tuple[str, ...]
    crop: Callable[[Any, Tensor, Tensor], Tensor] = crop_stored
    evaluate: Callable[[Tensor, Tensor], dict[str, float]] = measure
    pretraining: Pretraining | None = None
    shift: str = field(default="", metadata={"about": "what distinguishes ood_test, in words"})

    @property
    def evaluated(self) -> dict[str, Split]:
        return {"val": self.validation, "id_test": self.test, "ood_test": self.ood_test}

    def captions(self) -> list[list[str]]:
        """Caption of each class (outer) by each template (inner)."""
        return [[t.format(name) for t in self.templates] for name in self.class_names]

    def training_images(self, images: Any, index: Tensor, generator: torch.Generator) -> Tensor:
        """Rows `index` (B,) of training images, randomly cropped; draws come from `generator`."""
        shape = (len(index), *DRAWS)
        draws = torch.rand(shape, generator=generator, device=generator.device)
        return self.crop(images, index, draws)

    def to(self, device: torch.device | str) -> ImageTextData:
        return replace(super().to(device), ood_test=self.ood_test.to(device))
