"""Crops that carry how much of the image is still seen: Soft-Augmentation's and pad-crop (Table 7)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from benchmarks.data import Data
from benchmarks.errors import BenchmarkError
from benchmarks.registry import register
from benchmarks.upstream import Augmented, Upstream

TRIES = 100  # offsets drawn before 0 is taken, as in Soft-Augmentation's code


class _Crop(Upstream):
    """Normalise images and mirror every other one, where the data set's classes bear it."""

    def __init__(self, data: Data, name: str, flip: bool | None):
        if data.kind != "image":
            raise BenchmarkError(f"{name} crops images; {data.name} is {data.kind}")
        self.flip, self.normalize = data.mirrors if flip is None else flip, data.normalize

    def mirrored(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """Flip each image (B, C, H, W) left for right with probability one half."""
        if not self.flip:
            return x
        chosen = torch.rand(len(x), generator=generator, device=x.device) < 0.5
        return torch.where(chosen[:, None, None, None], x.flip(-1), x)


NEEDS = {"dataset": "image"}
OFFERS = ("visibility",)
LIMITS = {"sigma": {"ge": 0}, "whole": {"ge": 0, "le": 1}, "padding": {"ge": 0}}


@register("crop")
class Crop(_Crop):
    """Shift the frame by whole pixels drawn from a Gaussian (Soft-Augmentation, Liu et al. 2023).

    Per axis the offset is int(N(0, sigma x side)), redrawn while it lies beyond the side. What the
    frame shows outside the image is a constant of each channel, 0.01 N(0, 1) after normalising. As in
    the authors' code the last epochs go without crop, so that training ends on whole images.

    Parameters
    ----------
    sigma : standard deviation of the offset in image sides.
    background : scale of the constant outside the image, in normalised units.
    whole : share of the epochs, at the end, without crop, rounded up to an epoch; the source has 20
        of 500.
    flip : mirror every other image; None: where the data set's classes bear it (`Data.mirrors`).
    """

    def __init__(
        self,
        data: Data,
        *,
        sigma: float = 0.375,
        background: float = 0.01,
        whole: float = 0.04,
        flip: bool | None = None,
    ):
        super().__init__(data, "crop", flip)
        if sigma < 0:
            raise BenchmarkError(f"crop sigma {sigma} is negative")
        if not 0 <= whole <= 1:
            raise BenchmarkError(f"crop whole={whole}: expected a share of the epochs in [0, 1]")
        self.sigma, self.background, self.whole = sigma, background, whole
        self.cropping = True

    def begin_epoch(self, epoch: int, epochs: int) -> None:
        """Crop until the last epochs; as in the source the first twentieth is always cropped."""
        last = math.ceil(round(self.whole * epochs, 6))
        self.cropping = epoch < max(0.05 * epochs, epochs - last)

    def __call__(self, x: Tensor, y: Tensor, generator: torch.Generator) -> Augmented:
        images = self.mirrored(self.normalize(x), generator)
        b, channels, h, w = images.shape
        dy, dx = self.draw_offsets(b, h, generator), self.draw_offsets(b, w, generator)
        colour = torch.randn(b, channels, 1, 1, generator=generator, device=x.device)
        if not self.cropping:
            dy, dx = torch.zeros_like(dy), torch.zeros_like(dx)
        cropped = shifted(images, dy, dx, background=self.background * colour)
        return Augmented(x=cropped, y=y, visibility=visibility(dy, dx, h, w))

    def draw_offsets(self, count: int, side: int, generator: torch.Generator) -> Tensor:
        """Draw offsets (count,) in pixels: the first of `TRIES` draws within the side, else 0."""
        draws = torch.randn(TRIES, count, generator=generator, device=generator.device)
        draws = draws * (self.sigma * side)
        inside = draws.abs() <= side
        first = inside.int().argmax(0, keepdim=True)
        offset = draws.gather(0, first)[0]
        return torch.where(inside.any(0), offset, 0.0).trunc().long()


@register("pad-crop")
class PadCrop(_Crop):
    """Pad with black and crop back to size at a uniform offset (torchvision's ``RandomCrop``).

    Parameters
    ----------
    padding : pixels on each side; 4 is common for 32-pixel images.
    flip : as for `Crop`.
    """

    def __init__(self, data: Data, *, padding: int = 4, flip: bool | None = None):
        super().__init__(data, "pad-crop", flip)
        self.padding = padding

    def __call__(self, x: Tensor, y: Tensor, generator: torch.Generator) -> Augmented:
        x = self.mirrored(x, generator)
        b, _, h, w = x.shape
        dy, dx = torch.randint(
            -self.padding, self.padding + 1, (2, b), generator=generator, device=x.device
        )
        black = torch.zeros((), dtype=x.dtype, device=x.device)
        cropped = shifted(x, dy, dx, background=black)
        return Augmented(x=self.normalize(cropped), y=y, visibility=visibility(dy, dx, h, w))


def shifted(x: Tensor, dy: Tensor, dx: Tensor, *, background: Tensor) -> Tensor:
    """Move each frame: output (i, j) shows input (i + dy, j + dx), or the background outside.

    Parameters
    ----------
    x : (B, C, H, W). dy, dx : (B,), whole pixels. background : broadcasts with x, same dtype.
    """
    b, _, h, w = x.shape
    rows = torch.arange(h, device=x.device) + dy[:, None]
    columns = torch.arange(w, device=x.device) + dx[:, None]
    seen = ((rows >= 0) & (rows < h))[:, :, None] & ((columns >= 0) & (columns < w))[:, None, :]
    sample = torch.arange(b, device=x.device)[:, None, None]
    moved = x.permute(0, 2, 3, 1)[
        sample, rows.clamp(0, h - 1)[:, :, None], columns.clamp(0, w - 1)[:, None, :]
    ]
    return torch.where(seen[:, None], moved.permute(0, 3, 1, 2), background).contiguous()


def visibility(dy: Tensor, dx: Tensor, h: int, w: int) -> Tensor:
    """Share (B,) in [0, 1] of each image that its crop still shows."""
    return (h - dy.abs()) * (w - dx.abs()) / (h * w)
