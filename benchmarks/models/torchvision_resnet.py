"""torchvision's own ResNet-18 and ResNet-50, randomly initialised, for images larger than 28 pixels."""

from __future__ import annotations

from torch import nn

from benchmarks.data import Data
from benchmarks.registry import register

NEEDS = {"dataset": "image"}
OFFERS = ("stages",)


@register("resnet18")
def build_resnet18(data: Data) -> nn.Module:
    """Build torchvision's ResNet-18 (7x7 stem of stride 2, max-pooling) with K outputs."""
    from torchvision.models import resnet18

    return resnet18(num_classes=data.num_classes)


@register("resnet50")
def build_resnet50(data: Data) -> nn.Module:
    """Build torchvision's ResNet-50 with K outputs."""
    from torchvision.models import resnet50

    return resnet50(num_classes=data.num_classes)
