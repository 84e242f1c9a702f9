"""Soft-Augmentation (Liu et al. 2023), Table 7: targets as soft as the crop is deep, losses as light."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from benchmarks.errors import BenchmarkError
from benchmarks.refiners import Context, Refiner
from benchmarks.registry import register
from benchmarks.upstream import Augmented
from saflex import Batch


def target_confidence(visibility: Tensor, num_classes: int, *, power: float = 2.0) -> Tensor:
    """Confidence in the true class: ``1 - (1 - 1/K) (1 - v)^power``, from 1/K unseen to 1 whole.

    Parameters
    ----------
    visibility : (B,), share v in [0, 1] of the image that is still seen.
    """
    return 1 - (1 - 1 / num_classes) * (1 - visibility) ** power


def softened(y: Tensor, confidence: Tensor, num_classes: int) -> Tensor:
    """Soft labels (B, K): the confidence on class y (B,), the rest uniform over the other classes."""
    others = ((1 - confidence) / (num_classes - 1))[:, None].expand(-1, num_classes)
    return others.scatter(1, y[:, None], confidence[:, None])


NEEDS = {"upstream": "visibility"}
LIMITS = {"power": {"gt": 0}}


@register("soft-augmentation")
class SoftAugmentation(Refiner):
    """Soften and reweight each sample by what its crop shows.

    The source's loss is the plain mean of ``p_i KL(y_i || model)``. Its gradient is that of the
    cross-entropy with weights ``w_i = p_i / B``, which the common loss computes; the two differ by
    the entropy of the targets. So w sums to the mean confidence, not to 1: a batch of deep crops
    takes a smaller step.

    Parameters
    ----------
    power : exponent of the invisible share; 2 is the source's.
    """

    def __init__(self, context: Context, *, power: float = 2.0):
        super().__init__(context)
        if not power > 0:
            raise BenchmarkError(f"soft-augmentation power {power} is not positive")
        self.power = power
        self.sums, self.steps = torch.zeros(2, device=context.data.train.x.device), 0

    def __call__(self, augmented: Augmented) -> Batch:
        if augmented.visibility is None or augmented.y.is_floating_point():
            raise BenchmarkError(
                "soft-augmentation needs hard labels and the visible share of each sample, as the "
                "upstreams crop and pad-crop give them"
            )
        k = self.context.data.num_classes
        confidence = target_confidence(augmented.visibility, k, power=self.power)
        self.sums += torch.stack([augmented.visibility.mean(), confidence.mean()])
        self.steps += 1
        y = softened(augmented.y, confidence, k)
        return Batch(augmented.x, y, confidence / len(confidence))

    def diagnostics(self) -> dict[str, float]:
        means = (self.sums / max(self.steps, 1)).tolist()
        self.sums, self.steps = torch.zeros_like(self.sums), 0
        return dict(zip(("visibility", "confidence"), means, strict=True))

    def state_dict(self) -> dict[str, Any]:
        return {"sums": self.sums, "steps": self.steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.sums, self.steps = state["sums"], state["steps"]
