"""Bootstrapped labels (Reed et al. 2015, arXiv 1412.6596, Sec. 3, soft form): SAFLEX with Pi switched off."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from benchmarks.refiners import Context, Refiner
from benchmarks.registry import register
from benchmarks.upstream import Augmented
from saflex import Batch, SaflexSettings, soft_labels, soft_rows
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
    """Labels ``softmax(log q + beta y / tau)``, q = (1 - eps) y + eps p: `saflex` wherever Pi = 0.

    p is the model's own prediction for the same augmented sample; with beta = 0 the label is q, the
    source's. With the settings of `saflex`, which a table gives both rows, what `saflex` gains over this
    row is due to the validation gradient. The source differentiates through p, which adds an entropy
    penalty; a refiner's label is a constant, as in SAFLEX. The source keeps more of the given label
    (eps 0.05); the defaults here are those of `saflex`.

    Parameters
    ----------
    eps : share in [0, 1] of the model's prediction.
    beta, tau : weight of the given label and temperature, as in `saflex.SaflexSettings`.
    """

    labels_only = True

    def __init__(self, context: Context, *, eps: float = 0.5, beta: float = 0.0, tau: float = 1.0):
        super().__init__(context)
        SaflexSettings(eps=eps, beta=beta, tau=tau)  # checks them
        self.prior = {"eps": eps, "beta": beta, "tau": tau}

    def __call__(self, augmented: Augmented) -> Batch:
        p = torch.softmax(evaluated(self.context.model, augmented.x), -1)
        y = soft_rows(augmented.y, p.shape[-1], dtype=p.dtype)
        labels = soft_labels(
            torch.zeros_like(p), y, prior="entropic", probabilities=p, **self.prior
        )
        return Batch.uniform(augmented.x, labels, p.shape[-1])
