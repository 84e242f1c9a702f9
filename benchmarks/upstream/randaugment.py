"""RandAugment (Cubuk et al. 2020) with torchvision's semantics per sample, batched (Tables 1, 4).

Samples are grouped by operation and sign. The magnitude is fixed, so a group shares one call of
torchvision's own function, which keeps the pixels torchvision's.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torchvision.transforms import functional as F
from torchvision.transforms.v2 import functional as F2

from benchmarks.data import Data
from benchmarks.errors import BenchmarkError
from benchmarks.registry import register
from benchmarks.upstream import Augmented, Upstream

# Magnitudes at the first and the last bin, and whether a fair coin negates them. Translations are
# in shares of the side, posterize in bits.
MAGNITUDES: dict[str, tuple[float, float, bool]] = {
    "Identity": (0.0, 0.0, False),
    "ShearX": (0.0, 0.3, True),
    "ShearY": (0.0, 0.3, True),
    "TranslateX": (0.0, 150 / 331, True),
    "TranslateY": (0.0, 150 / 331, True),
    "Rotate": (0.0, 30.0, True),
    "Brightness": (0.0, 0.9, True),
    "Color": (0.0, 0.9, True),
    "Contrast": (0.0, 0.9, True),
    "Sharpness": (0.0, 0.9, True),
    "Posterize": (8.0, 4.0, False),
    "Solarize": (255.0, 0.0, False),
    "AutoContrast": (0.0, 0.0, False),
    "Equalize": (0.0, 0.0, False),
}
OPERATIONS = tuple(MAGNITUDES)


NEEDS = {"dataset": "image"}
OFFERS = ()
LIMITS = {"num_ops": {"ge": 1}, "magnitude": {"ge": 0}, "bins": {"ge": 1}}


@register("randaugment")
class RandAugment(Upstream):
    """Apply `num_ops` operations to each image, drawn uniformly from 14, at one magnitude.

    Interpolation is nearest, what comes from outside is black, as torchvision's defaults.

    Parameters
    ----------
    num_ops : N, operations a sample. magnitude : M, a bin from 0. bins : number of magnitudes.
    """

    def __init__(self, data: Data, *, num_ops: int = 2, magnitude: int = 9, bins: int = 31):
        if data.kind != "image":
            raise BenchmarkError(f"randaugment transforms images; {data.name} is {data.kind}")
        if not 0 <= magnitude < bins:
            raise BenchmarkError(f"randaugment magnitude {magnitude} is not a bin of 0..{bins - 1}")
        self.num_ops, self.bin, self.bins, self.normalize = num_ops, magnitude, bins, data.normalize

    def __call__(self, x: Tensor, y: Tensor, generator: torch.Generator) -> Augmented:
        operations, signs = self.draw(len(x), generator)
        for operation, sign in zip(operations, signs, strict=True):
            x = self.layer(x, operation, sign)
        return Augmented(x=self.normalize(x), y=y)

    def draw(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draw operations and negations, both (N, count), on the CPU: they decide what is called."""
        shape, device = (self.num_ops, count), generator.device
        operations = torch.randint(len(OPERATIONS), shape, generator=generator, device=device)
        signs = torch.randint(2, shape, generator=generator, device=device)
        return operations.cpu(), signs.cpu()

    def layer(self, x: Tensor, operation: Tensor, sign: Tensor) -> Tensor:
        """Apply one operation to each image.

        Parameters
        ----------
        x : uint8 (B, 3, H, W). operation : (B,), index into `OPERATIONS`. sign : (B,), 1 negates.
        """
        signed = torch.tensor([MAGNITUDES[name][2] for name in OPERATIONS])
        group = 2 * operation + sign * signed[operation]
        out = x.clone()
        for key in group.unique().tolist():
            name, negated = OPERATIONS[key // 2], key % 2
            value = magnitude(name, self.bin, self.bins, size=x.shape[-2:])
            rows = (group == key).nonzero()[:, 0].to(x.device)
            out[rows] = apply(x[rows], name, -value if negated else value)
        return out


def magnitude(name: str, bin: int, bins: int, *, size: tuple[int, int]) -> float:
    """Give the unsigned magnitude of an operation in a bin 0..bins-1 for images (H, W)."""
    first, last, _ = MAGNITUDES[name]
    if name.startswith("Translate"):
        last *= size[0] if name == "TranslateY" else size[1]
    if name == "Posterize":
        return first - round(bin / ((bins - 1) / (first - last)))
    # In float32 like torchvision's, whose rounding decides single pixels.
    return torch.linspace(first, last, bins)[bin].item()


def apply(x: Tensor, name: str, value: float) -> Tensor:
    """Apply an operation with one magnitude to uint8 images (B, 3, H, W), each on its own."""
    match name:
        case "Identity":
            return x
        case "ShearX":
            return _sheared(x, [math.degrees(math.atan(value)), 0.0])
        case "ShearY":
            return _sheared(x, [0.0, math.degrees(math.atan(value))])
        case "TranslateX":
            return F.affine(x, angle=0.0, translate=[int(value), 0], scale=1.0, shear=[0.0, 0.0])
        case "TranslateY":
            return F.affine(x, angle=0.0, translate=[0, int(value)], scale=1.0, shear=[0.0, 0.0])
        case "Rotate":
            return F.rotate(x, value)
        case "Brightness":
            return F.adjust_brightness(x, 1.0 + value)
        case "Color":
            return F.adjust_saturation(x, 1.0 + value)
        case "Contrast":
            return F.adjust_contrast(x, 1.0 + value)
        case "Sharpness":
            return F.adjust_sharpness(x, 1.0 + value)
        case "Posterize":
            return F.posterize(x, int(value))
        case "Solarize":
            return F.solarize(x, value)
        case "AutoContrast":
            return F.autocontrast(x)
        case "Equalize":
            return F2.equalize(x)  # the older form equalizes one image and channel at a time
    raise ValueError(f"operation {name!r} is not one of {OPERATIONS}")


def _sheared(x: Tensor, shear: list[float]) -> Tensor:
    # Around the corner, as the published AutoAugment policies do.
    return F.affine(x, angle=0.0, translate=[0, 0], scale=1.0, shear=shear, center=[0, 0])
