"""Bootstrapped labels (Reed et al. 2015, arXiv 1412.6596, Sec. 3, soft form): SAFLEX with Pi switched off."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from benchmarks.errors import BenchmarkError
from benchmarks.refiners import Context, Refiner
from benchmarks.registry import register
from benchmarks.upstream import Augmented
from saflex import Batch, soft_rows
from saflex.forward import ModelView, logits_of
from saflex.passes import undisturbed


def evaluated(model: nn.Module, x: Tensor) -> Tensor:
    """Logits (B, K), in evaluation mode and without a graph; the model is left as it was found."""
    view = ModelView(model)
    with undisturbed(view), torch.no_grad():
        return logits_of(view.model, x).float()


REFUSES = {"model": "pairs"}


@register("bootstrapped")
class Bootstrapped(Refiner):
    """Labels (1 - eps) y + eps p, p the model's own prediction for the same augmented sample.

    It is the entropic prior's q, which `saflex` returns wherever Pi = 0: with the same eps, what
    `saflex` gains over this row is due to the validation gradient. The source differentiates
    through p, which adds an entropy penalty; a refiner's label is a constant, as in SAFLEX. The
    source keeps more of the given label (eps 0.05); the default here is that of `saflex`.

    Parameters
    ----------
    eps : share in [0, 1] of the model's prediction.
    """

    labels_only = True

    def __init__(self, context: Context, *, eps: float = 0.5):
        super().__init__(context)
        if not 0 <= eps <= 1:
            raise BenchmarkError(f"bootstrapped eps={eps}: expected a share in [0, 1]")
        self.eps = eps

    def __call__(self, augmented: Augmented) -> Batch:
        p = torch.softmax(evaluated(self.context.model, augmented.x), -1)
        y = soft_rows(augmented.y, p.shape[-1], dtype=p.dtype)
        return Batch.uniform(augmented.x, (1 - self.eps) * y + self.eps * p, p.shape[-1])
