"""Mixup (Zhang et al. 2018): convex combinations of images and of their labels (Table 1)."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import one_hot

from benchmarks.data import Data
from benchmarks.errors import BenchmarkError
from benchmarks.registry import register
from benchmarks.upstream import Augmented, Upstream

NEEDS = {"dataset": "image"}
OFFERS = ("mixed labels",)
LIMITS = {"alpha": {"gt": 0}}


@register("mixup")
class Mixup(Upstream):
    """Mix each image and its label with those of a permuted partner, by one share a batch.

    Parameters
    ----------
    alpha : lambda ~ Beta(alpha, alpha); 1 is uniform (protocol).
    """

    def __init__(self, data: Data, *, alpha: float = 1.0):
        if data.kind != "image":
            raise BenchmarkError(f"mixup mixes images; {data.name} is {data.kind}")
        if not alpha > 0:
            raise BenchmarkError(f"mixup alpha {alpha} is not positive")
        self.alpha, self.num_classes, self.normalize = alpha, data.num_classes, data.normalize

    def __call__(self, x: Tensor, y: Tensor, generator: torch.Generator) -> Augmented:
        partner = torch.randperm(len(x), generator=generator, device=x.device)
        share = self.draw_share(generator)
        images = self.normalize(x)
        labels = one_hot(y, self.num_classes).to(images.dtype)
        return Augmented(
            x=share * images + (1 - share) * images[partner],
            y=share * labels + (1 - share) * labels[partner],
        )

    def draw_share(self, generator: torch.Generator) -> float:
        """Draw lambda; the Beta law is NumPy's, torch's own takes no generator."""
        device = generator.device
        seed = torch.randint(2**62, (), generator=generator, device=device).item()
        return float(np.random.default_rng(seed).beta(self.alpha, self.alpha))
