"""Upstream augmentations: the first arrow of Equation (1), (x, y) -> (x_aug, y_aug).

An upstream is a registered class, built once a run as ``Upstream(data, **settings)`` and called once
a step as ``upstream(x, y, generator)`` with raw inputs x (B, ...) and class indices y (B,). It draws
from the given generator only, so that every method sees the same augmented samples.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Augmented:
    """What an upstream gives a refiner.

    Attributes
    ----------
    x : normalised inputs (B, ...), what the model takes.
    y : class indices (B,), or soft labels (B, K) where the upstream mixes labels.
    visibility : share of the original that is still seen (B,), for crops (Soft-Augmentation).
    index : row of each sample in the training set (B,), for a memory over epochs.
    """

    x: Tensor
    y: Tensor
    visibility: Tensor | None = None
    index: Tensor | None = None


class Upstream:
    """Base of all upstreams."""

    def begin_epoch(self, epoch: int, epochs: int) -> None:
        """Hear that an epoch (0, 1, ...) of `epochs` begins, or goes on after a resume."""
