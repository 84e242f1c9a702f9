"""Weights from the loss alone: Meta-Weight-Net (Shu et al. 2019, arXiv 1902.07379) without its gradient."""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks.errors import BenchmarkError
from benchmarks.refiners import Context, Refiner
from benchmarks.refiners.bootstrapped import evaluated
from benchmarks.registry import register
from benchmarks.upstream import Augmented
from saflex import Batch, soft_rows


def weights_by_loss(losses: Tensor, *, slope: float) -> Tensor:
    """Weights (B,) proportional to ``sigmoid(-slope * (loss - mean) / std)``; they sum to 1.

    Losses (B,) that are all equal give equal weights.
    """
    tiny = torch.finfo(losses.dtype).tiny
    z = (losses - losses.mean()) / losses.std(correction=0).clamp_min(tiny)
    return torch.softmax(torch.nn.functional.logsigmoid(-slope * z), 0)


REFUSES = {"model": "pairs"}


@register("loss-weights")
class LossWeights(Refiner):
    """Upstream labels; the larger a sample's loss in its batch, the smaller its weight.

    Meta-Weight-Net's weight is a small network of the sample's loss alone, ending in a sigmoid, and
    that network is trained by a validation gradient. Take the gradient away and a fixed function
    of the loss is left. Chosen is the simplest with its ending and with the shape it learns under
    label noise (its Sec. 1: falling), standardised in the batch, because the scale of losses moves
    during training and the network's would follow. Where SAFLEX or `weights-only` gain no more than this,
    the loss already told.

    Parameters
    ----------
    slope : steepness per standard deviation; negative prefers large losses (rare classes), 0 none.
    """

    labels_only = True

    def __init__(self, context: Context, *, slope: float = 1.0):
        super().__init__(context)
        if isinstance(slope, bool) or not isinstance(slope, int | float):
            raise BenchmarkError(f"loss-weights slope={slope!r}: expected a number")
        self.slope = slope

    def __call__(self, augmented: Augmented) -> Batch:
        log_p = torch.log_softmax(evaluated(self.context.model, augmented.x), -1)
        y = soft_rows(augmented.y, log_p.shape[-1], dtype=log_p.dtype)
        w = weights_by_loss(-(self.weighted(y) * log_p).sum(-1), slope=self.slope)
        return Batch(augmented.x, y, w)
