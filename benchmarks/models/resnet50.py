"""ResNet-50 pretrained on ImageNet, the backbone of Table 3."""

from __future__ import annotations

from torch import nn

from benchmarks.data import Data
from benchmarks.models.pretrained import load_except_head
from benchmarks.registry import register
from benchmarks.sources import Source

# torchvision's IMAGENET1K_V1, what `pretrained=True` meant in ALIA's code.
WEIGHTS = Source(
    name="ImageNet weights of ResNet-50 (torchvision IMAGENET1K_V1)",
    path="weights/resnet50-0676ba61.pth",
    urls=("https://download.pytorch.org/models/resnet50-0676ba61.pth",),
    checksum="sha256:0676ba61b6795bbe1773cffd859882e5e297624d384b6993f7c9e683e722fb8a",
    size=102_530_333,
)


NEEDS = {"dataset": "image"}
OFFERS = ("stages",)


@register("resnet50-imagenet")
def build(data: Data, *, pretrained: bool = True) -> nn.Module:
    """Build torchvision's ResNet-50 with a fresh linear head; `pretrained` False for tests only."""
    from torchvision.models import resnet50

    model = resnet50(weights=None)
    if pretrained:
        load_except_head(model, WEIGHTS, head="fc.")
    model.fc = nn.Linear(model.fc.in_features, data.num_classes)
    return model
