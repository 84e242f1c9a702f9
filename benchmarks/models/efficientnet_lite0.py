"""EfficientNet-Lite0 pretrained on ImageNet: a small backbone for Table 3 on two cores."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from benchmarks.data import Data
from benchmarks.models.pretrained import load_except_head
from benchmarks.registry import register
from benchmarks.sources import Source

WEIGHTS = Source(
    name="ImageNet weights of EfficientNet-Lite0",
    path="weights/efficientnet-lite0-57934424.pth",
    checksum="sha256:579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    size=18_826_032,
)


NEEDS = {"dataset": "image"}
OFFERS = ()


@register("efficientnet-lite0")
def build(data: Data, *, pretrained: bool = True) -> nn.Module:
    """Build the network with a fresh linear head, every weight trainable.

    Its inputs are normalised to ``(x - 127) / 128``: the data set's ``normalization`` setting must be
    ``efficientnet-lite``. `pretrained` False is for tests only.
    """
    return _network(data.num_classes, pretrained=pretrained)


def frozen_trunk() -> Callable[[Tensor], Tensor]:
    """Map raw images, uint8 (B, 3, 224, 224), to pooled features (B, 1280) without gradient."""
    network = _network(1, pretrained=True).eval().requires_grad_(False)

    def encode(x: Tensor) -> Tensor:
        return network.extract_features((x.float() - 127) / 128).mean((2, 3))

    return encode


def _network(num_classes: int, *, pretrained: bool) -> nn.Module:
    from efficientnet_lite_pytorch import EfficientNet

    network = EfficientNet.from_name("efficientnet-lite0", num_classes=num_classes)
    if pretrained:
        load_except_head(network, WEIGHTS, head="_fc.")
    return network
