"""CutMix for tabular data (Somepalli et al. 2022, SAINT): features taken over from another row."""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks.data import Data
from benchmarks.errors import BenchmarkError
from benchmarks.registry import register
from benchmarks.upstream import Augmented, Upstream

NEEDS = {"dataset": "tabular"}
OFFERS = ()
LIMITS = {"probability": {"ge": 0, "le": 1}}


@register("cutmix")
class TabularCutMix(Upstream):
    """Replace each feature, independently with a probability, by the value of a permuted row.

    The label is kept (protocol, Table 2). A missing value travels with its feature.

    Parameters
    ----------
    probability : chance in [0, 1] of each feature of each row to be replaced; SAINT uses 0.1.
    """

    def __init__(self, data: Data, *, probability: float = 0.1):
        if data.kind != "tabular":
            raise BenchmarkError(
                f"cutmix mixes the columns of tabular data; {data.name} has images"
            )
        if not 0 <= probability <= 1:
            raise BenchmarkError(f"cutmix probability {probability} is not in [0, 1]")
        self.probability = probability

    def __call__(self, x: Tensor, y: Tensor, generator: torch.Generator) -> Augmented:
        partner = torch.randperm(len(x), generator=generator, device=x.device)
        replace = torch.rand(x.shape, generator=generator, device=x.device) < self.probability
        return Augmented(x=torch.where(replace, x[partner], x), y=y)
