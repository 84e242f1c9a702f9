"""An augmentation that grows with every call: a resumed run starts it anew."""

import torch

from benchmarks.registry import register
from benchmarks.upstream import Augmented, Upstream


@register("counts-its-calls")
class CountsItsCalls(Upstream):
    def __init__(self, data):
        self.normalize, self.calls = data.normalize, 0

    def __call__(self, x, y, generator):
        self.calls += 1
        clean = self.normalize(x)
        noise = torch.randn(clean.shape, generator=generator)
        return Augmented(x=clean + 0.01 * self.calls * noise, y=y)
