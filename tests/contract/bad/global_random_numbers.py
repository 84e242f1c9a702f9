"""An upstream that draws from torch's global stream: its samples depend on who drew before."""

import torch

from benchmarks.registry import register
from benchmarks.upstream import Augmented


@register("global-random-numbers")
class Noise:
    def __init__(self, data):
        self.normalize = data.normalize

    def begin_epoch(self, epoch, epochs):
        pass

    def __call__(self, x, y, generator):
        x = self.normalize(x)
        return Augmented(x=x + torch.randn_like(x), y=y)
