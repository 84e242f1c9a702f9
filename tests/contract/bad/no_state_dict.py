"""A refiner with a stream of its own that it does not save: a resumed run draws other weights."""

import torch

from benchmarks.refiners import Refiner
from benchmarks.registry import register
from saflex import Batch


@register("no-state-dict")
class RandomWeights(Refiner):
    def __init__(self, context):
        super().__init__(context)
        self.generator = torch.Generator().manual_seed(context.seed)

    def __call__(self, augmented):
        batch = super().__call__(augmented)
        w = torch.empty_like(batch.w).exponential_(generator=self.generator)
        return Batch(batch.x, batch.y, w / w.sum())
