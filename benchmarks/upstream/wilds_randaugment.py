"""RandAugment as WILDS runs it (Sagawa et al. 2022): two operations, random magnitudes, then Cutout.

Operations, ranges and the order of steps are those of the examples that accompany `wilds` 2.0:
horizontal flip, two operations drawn with replacement from FixMatch's pool, one grey rectangle.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageEnhance, ImageOps
from torch import Tensor

from benchmarks.data import Data
from benchmarks.errors import BenchmarkError
from benchmarks.registry import register
from benchmarks.upstream import Augmented, Upstream

GREY = (125, 123, 114)
LARGEST_CUTOUT = 0.5  # of the width

Operation = Callable[[Image.Image, float], Image.Image]


def _affine(image: Image.Image, *coefficients: float) -> Image.Image:
    return image.transform(image.size, Image.Transform.AFFINE, coefficients)


# Operation and the range its magnitude is drawn from, uniformly.
POOL: dict[str, tuple[Operation, float, float]] = {
    "auto-contrast": (lambda image, v: ImageOps.autocontrast(image), 0, 1),
    "brightness": (lambda image, v: ImageEnhance.Brightness(image).enhance(v), 0.05, 0.95),
    "color": (lambda image, v: ImageEnhance.Color(image).enhance(v), 0.05, 0.95),
    "contrast": (lambda image, v: ImageEnhance.Contrast(image).enhance(v), 0.05, 0.95),
    "equalize": (lambda image, v: ImageOps.equalize(image), 0, 1),
    "identity": (lambda image, v: image, 0, 1),
    "posterize": (lambda image, v: ImageOps.posterize(image, max(1, int(v))), 4, 8),
    "rotate": (lambda image, v: image.rotate(v), -30, 30),
    "sharpness": (lambda image, v: ImageEnhance.Sharpness(image).enhance(v), 0.05, 0.95),
    "shear-x": (lambda image, v: _affine(image, 1, v, 0, 0, 1, 0), -0.3, 0.3),
    "shear-y": (lambda image, v: _affine(image, 1, 0, 0, v, 1, 0), -0.3, 0.3),
    "solarize": (lambda image, v: ImageOps.solarize(image, v), 0, 256),
    "translate-x": (lambda image, v: _affine(image, 1, 0, v * image.size[0], 0, 1, 0), -0.3, 0.3),
    "translate-y": (lambda image, v: _affine(image, 1, 0, 0, 0, 1, v * image.size[1]), -0.3, 0.3),
}
OPERATIONS = tuple(POOL)


NEEDS = {"dataset": "image"}
OFFERS = ()
LIMITS = {"operations": {"ge": 1}}


@register("wilds-randaugment")
class WildsRandAugment(Upstream):
    """Augment every image on its own; labels are kept.

    Parameters
    ----------
    operations : operations per image.
    flip : mirror every other image, as WILDS does before.
    """

    def __init__(self, data: Data, *, operations: int = 2, flip: bool = True):
        if data.kind != "image":
            raise BenchmarkError(f"wilds-randaugment changes images; {data.name} is {data.kind}")
        if operations < 1:
            raise BenchmarkError(f"wilds-randaugment: {operations} operations, expected at least 1")
        self.operations, self.flip, self.normalize = operations, flip, data.normalize

    def __call__(self, x: Tensor, y: Tensor, generator: torch.Generator) -> Augmented:
        draws = torch.rand(
            (len(x), 4 + 2 * self.operations), generator=generator, device=generator.device
        )
        pixels = x.permute(0, 2, 3, 1).cpu().numpy()
        # Pillow releases the interpreter's lock in most of these operations.
        changed = np.stack(list(_threads().map(self._augmented, pixels, draws.tolist())))
        images = torch.from_numpy(changed).permute(0, 3, 1, 2).contiguous().to(x.device)
        return Augmented(x=self.normalize(images), y=y)

    def _augmented(self, pixels: np.ndarray, draws: list[float]) -> np.ndarray:
        """Augment one image (H, W, 3) as its draws decide: flip, cutout, then pairs for operations."""
        flip, size, left, top, *rest = draws
        image = Image.fromarray(pixels)
        if self.flip and flip < 0.5:
            image = ImageOps.mirror(image)
        for which, magnitude in zip(rest[::2], rest[1::2], strict=True):
            operation, low, high = POOL[OPERATIONS[int(which * len(OPERATIONS))]]
            image = operation(image, low + magnitude * (high - low))
        image = cutout(image, size * LARGEST_CUTOUT, left=left, top=top)
        return np.asarray(image)


def cutout(image: Image.Image, share: float, *, left: float, top: float) -> Image.Image:
    """Paint a grey rectangle, of side up to 1.5 x `share` of the width as in WILDS' code.

    Parameters
    ----------
    share : in [0, 0.5].
    left, top : place in [0, 1).
    """
    width, height = image.size
    side = share * width
    x0, y0 = int(max(0, left * width - side / 2)), int(max(0, top * height - side / 2))
    x1, y1 = min(width, x0 + side), min(height, y0 + side)
    image = image.copy()
    ImageDraw.Draw(image).rectangle((x0, y0, x1, y1), GREY)
    return image


@cache
def _threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(max(1, len(os.sched_getaffinity(0))))
