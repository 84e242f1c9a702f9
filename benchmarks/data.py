"""What a data set is to a run: three splits of tensors, and what a reader must know about them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor


@dataclass(frozen=True)
class Split:
    """Inputs x (N, ...) and class indices y (N,), int64, held as tensors on one device."""

    x: Tensor
    y: Tensor

    def to(self, device: torch.device | str) -> Split:
        return Split(self.x.to(device), self.y.to(device))

    def __len__(self) -> int:
        return len(self.y)


@dataclass(frozen=True, kw_only=True)
class Data:
    """A prepared data set.

    Tabular: x is float32 (N, F); column j holds integer codes in [0, categories[j]) when
    categories[j] > 0, else a standardised continuous value, with NaN where it is missing (the model
    imputes the mean, 0, and embeds the mask). Images: x is uint8 (N, 3, H, W).

    Attributes
    ----------
    normalize : maps raw x of a batch to what the model takes (images: float, mean/std; tabular: itself).
    notes : one line each, shown under every table that uses the data set.
    provenance : file names with checksums, for the record and MLflow.
    content : hashes that tell these data from others (`benchmarks.running.data_hash`), for the record.
    """

    name: str
    train: Split
    validation: Split
    test: Split
    num_classes: int
    kind: Literal["tabular", "image"]
    categories: tuple[int, ...] = ()
    feature_names: tuple[str, ...] = ()
    class_names: tuple[str, ...] = ()
    normalize: Callable[[Tensor], Tensor] = lambda x: x
    notes: tuple[str, ...] = ()
    provenance: dict[str, str] = field(default_factory=dict)
    content: dict[str, str] = field(default_factory=dict)
    extra: Split | None = None

    def to(self, device: torch.device | str) -> Data:
        splits = {name: getattr(self, name).to(device) for name in ("train", "validation", "test")}
        extra = self.extra.to(device) if self.extra is not None else None
        return replace(self, **splits, extra=extra)
