"""A residual network for two CPU cores: stands in where ResNet-18 costs too much (not the paper's)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from benchmarks.data import Data
from benchmarks.models.resnet18_28 import SmallImageResNet
from benchmarks.registry import register

NEEDS = {"dataset": "image"}
OFFERS = ("stages",)


@register("resnet-small")
def build(
    data: Data, *, widths: Sequence[int] = (16, 32, 64, 64), stem_stride: int = 2
) -> nn.Module:
    """Build ResNet-18's layout with one block a stage, few channels and half the resolution.

    A training step costs a hundredth of ResNet-18's. Its numbers compare methods with each other,
    not with the paper's.
    """
    return SmallImageResNet(
        data.num_classes, widths=widths, blocks=(1, 1, 1, 1), stem_stride=stem_stride
    )
