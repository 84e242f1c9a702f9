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
from saflex import Batch, Saflex

if TYPE_CHECKING:
    from benchmarks.refiners import Refiner

Streams = dict[str, torch.Generator]


class Classification:
    """One label a row: tables of columns and images.

    Parameters
    ----------
    autocast : context of the recipe's precision.
    layout : "samples", or "stack" where `model` is R models side by side.

    Attributes
    ----------
    streams : names of the random streams it draws from, beside the loop's own.
    saflex : the form of the library's `Saflex` that fits.
    """

    streams: ClassVar[tuple[str, ...]] = ("unknown",)
    saflex: ClassVar[type[Saflex]] = Saflex

    def __init__(
        self,
        model: nn.Module,
        data: Data,
        autocast: Callable[[], AbstractContextManager] = nullcontext,
        *,
        layout: str = "samples",
    ):
        self.model, self.data, self.autocast, self.layout = model, data, autocast, layout

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
        batch = mixture(clean, refined, share=context.clean_share)
        if context.class_weights is not None:
            given = mixture(clean, self.uniform(refined.x, y), share=context.clean_share)
            batch = class_weighted(batch, given, context.class_weights)
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


def mixture(clean: Batch | None, refined: Batch, *, share: float) -> Batch:
    """Union of a clean and a refined batch (Eq. 3), the clean one's weights summing to `share`.

    Shape
    -----
    x (..., B, ...), y (..., B, K), w (..., B), with the same leading dimensions in both.
    """
    if clean is None or share == 0:
        return refined
    rows = clean.w.ndim - 1
    return Batch(
        torch.cat([clean.x, refined.x], rows),
        torch.cat([clean.y, refined.y], rows),
        torch.cat([share * clean.w, (1 - share) * refined.w], rows),
    )


def class_weighted(batch: Batch, given: Batch, weights: Tensor) -> Batch:
    """Weigh each class's share of the labels by `weights`, (K,) or (R, 1, K).

    The divisor is the weight of the labels as given: a loss divided by what was learned would reward
    learning rare labels. With unrefined labels this is `nn.CrossEntropyLoss(weight=...)`.
    """
    divisor = (given.w * (given.y * weights).sum(-1)).sum(-1, keepdim=True)
    return Batch(batch.x, batch.y * weights, batch.w / divisor)
