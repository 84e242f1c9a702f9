"""ResNet-18 for 28-pixel images (Tables 1, 7, 8): MedMNIST's own experiments, Yang et al. 2021.

Against torchvision's ResNet-18: a 3x3 stem of stride 1 without max-pooling, and PyTorch's default
initialisation, since MedMNIST's code has none of its own.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock

from benchmarks.data import Data
from benchmarks.registry import register


class SmallImageResNet(nn.Module):
    """Residual network of basic blocks for small images; modules are named as in torchvision.

    Parameters
    ----------
    widths : channels of the four stages; the stem has as many as the first.
    blocks : basic blocks of each stage. Stages 2 to 4 begin with stride 2.
    stem_stride : of the 3x3 stem.
    """

    def __init__(
        self,
        num_classes: int,
        *,
        widths: Sequence[int],
        blocks: Sequence[int],
        stem_stride: int = 1,
    ):
        super().__init__()
        if len(widths) != 4 or len(blocks) != 4:
            raise ValueError(f"widths {widths} and blocks {blocks}: expected four stages each")
        self.conv1 = nn.Conv2d(3, widths[0], 3, stride=stem_stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.relu = nn.ReLU(inplace=True)
        before = (widths[0], *widths[:3])
        self.layer1, self.layer2, self.layer3, self.layer4 = (
            _stage(before[i], widths[i], blocks=blocks[i], stride=1 if i == 0 else 2)
            for i in range(4)
        )
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(widths[3], num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map images (B, 3, H, W) to logits (B, K)."""
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(self.avgpool(x).flatten(1))


def _stage(before: int, width: int, *, blocks: int, stride: int) -> nn.Sequential:
    shortcut = None
    if stride != 1 or before != width:
        shortcut = nn.Sequential(
            nn.Conv2d(before, width, kernel_size=1, stride=stride, bias=False),
            nn.BatchNorm2d(width),
        )
    first = BasicBlock(before, width, stride=stride, downsample=shortcut)
    return nn.Sequential(first, *(BasicBlock(width, width) for _ in range(blocks - 1)))


NEEDS = {"dataset": "image"}
OFFERS = ("stages",)


@register("resnet18-28")
def build(
    data: Data,
    *,
    widths: Sequence[int] = (64, 128, 256, 512),
    blocks: Sequence[int] = (2, 2, 2, 2),
) -> nn.Module:
    """Build the ResNet-18 of MedMNIST's experiments: 11.17 million parameters."""
    return SmallImageResNet(data.num_classes, widths=widths, blocks=blocks)
