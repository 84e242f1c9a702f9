"""No augmentation: the clean batch itself."""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks.data import Data
from benchmarks.registry import register
from benchmarks.upstream import Augmented, Upstream

OFFERS = ()


@register("none")
class NoAugmentation(Upstream):
    """Give back the clean batch, normalised."""

    def __init__(self, data: Data):
        self.normalize = data.normalize

    def __call__(self, x: Tensor, y: Tensor, generator: torch.Generator) -> Augmented:
        return Augmented(x=self.normalize(x), y=y)
