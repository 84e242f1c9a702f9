"""Refiners: the second arrow of Equation (1), (x_aug, y_aug) -> (w, x_aug, y).

A refiner is a registered class, built once a run as ``Refiner(context, **settings)`` and called once
a step with what the upstream made. No-aug, the controls, Soft-Augmentation, LP-A3 and every SAFLEX
variant differ in nothing else, whether a classifier is trained or an image-text model.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from benchmarks.data import Data
from benchmarks.errors import BenchmarkError
from benchmarks.tasks import Classification
from benchmarks.upstream import Augmented
from saflex import Batch, soft_cross_entropy


@dataclass(frozen=True, kw_only=True)
class Context:
    """What a run lends its refiner.

    Attributes
    ----------
    task : books batches and makes the backward pass, see `benchmarks.tasks`.
    validation : draws a fresh validation batch (x, y), normalised, without touching other streams.
    seed : of the refiner's own random stream.
    epochs, steps_per_epoch : length of the run, for warm-ups.
    class_weights : (K,) or None, see `Recipe.class_weights`.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    data: Data
    task: Classification
    validation: Callable[[int], tuple[Any, Tensor]]
    seed: int
    epochs: int
    steps_per_epoch: int
    clean_share: float = 0.0
    class_weights: Tensor | None = None


class Refiner:
    """Base of all refiners: a uniform batch, one loss, and nothing to remember.

    Attributes
    ----------
    labels_only : it works on labels (B, K) of a classifier, not on the rows (B, B) of image-text pairs.
    trains : False where nothing is trained (zero-shot).
    divided : its weights are divided by the class weights of the labels as given already.
    ties : what texts of one class are to each other in image-text training, see `ImageText.uniform`.
    """

    labels_only: ClassVar[bool] = False
    trains: ClassVar[bool] = True
    divided: ClassVar[bool] = False
    ties: str = "negatives"

    def __init__(self, context: Context):
        self.context = context
        if self.labels_only and hasattr(context.model, "pair_logits"):
            raise BenchmarkError(
                f"{type(self).__name__} works on the labels of a classifier, and this model pairs images "
                "with texts: leave the row out of this table"
            )

    def __call__(self, augmented: Augmented) -> Batch:
        """Give soft labels (B, K) and weights (B,) to the augmented batch."""
        return self.uniform(augmented.x, augmented.y)

    def uniform(self, x: Any, y: Tensor) -> Batch:
        """Book a batch that is not refined, such as the clean one."""
        return self.context.task.uniform(x, y, ties=self.ties)

    def weighted(self, y: Tensor) -> Tensor:
        """Labels (B, K) as the training loss counts them: times the class weights, where there are some."""
        weights = self.context.class_weights
        return y if weights is None else y * weights

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Loss of one step on the mixture of Eq. (3); a scalar, or (R,) for a stack of R models."""
        if batch.w.ndim == 1:
            return soft_cross_entropy(model(batch.x), batch.y, batch.w)
        return torch.func.vmap(soft_cross_entropy)(model(batch.x), batch.y, batch.w)

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
