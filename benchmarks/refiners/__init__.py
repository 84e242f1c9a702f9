"""Refiners: the second arrow of Equation (1), (x_aug, y_aug) -> (w, x_aug, y).

A refiner is a registered class, built once a run as ``Refiner(context, **settings)`` and called once
a step with what the upstream made. No-aug, the controls, Soft-Augmentation, LP-A3 and every SAFLEX
variant differ in nothing else.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.data import Data
from benchmarks.upstream import Augmented
from saflex import Batch, soft_cross_entropy


@dataclass(frozen=True, kw_only=True)
class Context:
    """What a run lends its refiner.

    Attributes
    ----------
    validation : draws a fresh validation batch (x, y), normalised, without touching other streams.
    seed : of the refiner's own random stream.
    epochs, steps_per_epoch : length of the run, for warm-ups.
    class_weights : (K,) or None, see `Recipe.class_weights`.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    data: Data
    validation: Callable[[int], tuple[Tensor, Tensor]]
    seed: int
    epochs: int
    steps_per_epoch: int
    clean_share: float = 0.0
    class_weights: Tensor | None = None


class Refiner:
    """Base of all refiners: a uniform batch, the mixture loss of Eq. (3), and nothing to remember."""

    def __init__(self, context: Context):
        self.context = context

    def __call__(self, augmented: Augmented) -> Batch:
        """Give soft labels (B, K) and weights (B,) to the augmented batch."""
        return Batch.uniform(augmented.x, augmented.y, self.context.data.num_classes)

    def loss(self, model: nn.Module, clean: Batch | None, refined: Batch) -> Tensor:
        """Loss of one step, Eq. (3): the clean batch with `clean_share`, the refined one with the rest."""
        batch = mixture(clean, refined, self.context.clean_share)
        targets = (
            batch.y if self.context.class_weights is None else batch.y * self.context.class_weights
        )
        return soft_cross_entropy(model(batch.x), targets, batch.w)

    def begin_epoch(self, epoch: int) -> None:
        """Hear that an epoch (0, 1, ...) begins."""

    def diagnostics(self) -> dict[str, float]:
        """Return scalars since the last call, for the curves ``refiner/...``."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """Return everything that a resumed run needs to go on bit for bit."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up a state that `state_dict` returned."""


def mixture(clean: Batch | None, refined: Batch, share: float) -> Batch:
    """Union of a clean and a refined batch (Eq. 3), the clean one's weights summing to `share`."""
    if clean is None or share == 0:
        return refined
    return Batch(
        torch.cat([clean.x, refined.x]),
        torch.cat([clean.y, refined.y]),
        torch.cat([share * clean.w, (1 - share) * refined.w]),
    )
