"""What a run trains: a classifier, or (`image_text`) a model of images and texts.

A task turns rows of a split into what the model takes, books a batch that nobody refines, and makes
the backward pass and the predictions. `benchmarks.train` and the refiners are the same for all.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from benchmarks.data import Data, Split
from saflex import Batch

if TYPE_CHECKING:
    from benchmarks.refiners import Refiner

Streams = dict[str, torch.Generator]


class Classification:
    """One label a row: tables of columns and images.

    Parameters
    ----------
    autocast : context of the recipe's precision.

    Attributes
    ----------
    streams : names of the random streams it draws from, beside the loop's own.
    layout : of the model's logits, as `saflex.layouts` names them.
    """

    streams: ClassVar[tuple[str, ...]] = ("unknown",)
    layout: ClassVar[str] = "samples"

    def __init__(
        self,
        model: nn.Module,
        data: Data,
        autocast: Callable[[], AbstractContextManager] = nullcontext,
    ):
        self.model, self.data, self.autocast = model, data, autocast

    def rows(self, split: Split, index: Tensor, streams: Streams) -> Tensor:
        """Raw training inputs of the rows `index` (B,), before any upstream."""
        return self.data.in_training(split.x[index], streams["unknown"])

    def complete(self, x: Tensor, y: Tensor, *, index: Tensor, epoch: int, seed: int) -> Any:
        """Make of normalised inputs (B, ...) and their classes what the model takes."""
        return x

    def drawn(self, x: Tensor, y: Tensor, streams: Streams) -> Any:
        """Make of normalised validation inputs what the model takes."""
        return x

    def uniform(self, x: Any, y: Tensor, *, ties: str = "") -> Batch:
        """Book a batch that nobody refines: labels (B, K) as given, every weight 1/B."""
        return Batch.uniform(x, y, self.data.num_classes)

    def backward(self, refiner: Refiner, clean: Batch | None, y: Tensor, refined: Batch) -> Tensor:
        """Add the gradient of Eq. (3) to every parameter's; return the loss, detached.

        Parameters
        ----------
        y : upstream labels of the refined rows: they decide the weighted cross-entropy's divisor.

        Returns
        -------
        Tensor, scalar, or (R,) for a stack of R models.
        """
        context = refiner.context
        if (weights := context.class_weights) is not None:
            clean = None if clean is None else class_weighted(clean, clean.y, weights)
            if refiner.divided:
                refined = refined._replace(y=refined.y * weights)
            else:
                refined = class_weighted(refined, self.uniform(refined.x, y).y, weights)
        batch = refined
        if clean is not None:
            batch = Batch.joined(clean, refined, share=context.clean_share, dim=refined.w.ndim - 1)
        with self.autocast():
            loss = refiner.loss(self.model, batch)
        # Of a stack: the gradient of a sum gives each model that of its own loss.
        loss.sum().backward()
        return loss.detach()

    def predictor(self) -> Callable[[Tensor], Tensor]:
        """Give the function from raw inputs (B, ...) to logits (B, K), at the present weights."""

        def predict(x: Tensor) -> Tensor:
            with self.autocast():
                return self.model(self.data.normalize(x))

        return predict


def class_weighted(batch: Batch, given: Tensor, weights: Tensor) -> Batch:
    """Weigh each class's share of the labels by `weights`, (K,) or (R, 1, K).

    The divisor is the weight of the labels as `given` (..., B, K): a loss divided by what was learned
    would reward learning rare labels. With unrefined labels it is `nn.CrossEntropyLoss(weight=...)`.
    """
    divisor = (given * weights).sum(-1).mean(-1, keepdim=True)
    return Batch(batch.x, batch.y * weights, batch.w / divisor)
