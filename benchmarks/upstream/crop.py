"""Crops that carry how much of the image is still seen: Soft-Augmentation's and pad-crop (Table 7)."""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks.data import Data
from benchmarks.errors import BenchmarkError
from benchmarks.registry import register
from benchmarks.upstream import Augmented, Upstream

TRIES = 100  # offsets drawn before 0 is taken, as in Soft-Augmentation's code


@register("crop")
class Crop(Upstream):
    """Shift the frame by whole pixels drawn from a Gaussian (Soft-Augmentation, Liu et al. 2023).

    Per axis the offset is int(N(0, sigma x side)), redrawn while it lies beyond the side. What the
    frame shows outside the image is a constant of each channel, 0.01 N(0, 1) after normalising.

    Parameters
    ----------
    sigma : standard deviation of the offset in image sides.
    background : scale of the constant outside the image, in normalised units.
    """

    def __init__(self, data: Data, *, sigma: float = 0.375, background: float = 0.01):
        _require_images(data, "crop")
        if sigma < 0:
            raise BenchmarkError(f"crop sigma {sigma} is negative")
        self.sigma, self.background, self.normalize = sigma, background, data.normalize

    def __call__(self, x: Tensor, y: Tensor, generator: torch.Generator) -> Augmented:
        images = self.normalize(x)
        b, channels, h, w = images.shape
        dy, dx = self.draw_offsets(b, h, generator), self.draw_offsets(b, w, generator)
        colour = torch.randn(b, channels, 1, 1, generator=generator, device=x.device)
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
class PadCrop(Upstream):
    """Pad with black and crop back to size at a uniform offset (torchvision's ``RandomCrop``).

    Parameters
    ----------
    padding : pixels on each side; 4 is common for 32-pixel images.
    """

    def __init__(self, data: Data, *, padding: int = 4):
        _require_images(data, "pad-crop")
        self.padding, self.normalize = padding, data.normalize

    def __call__(self, x: Tensor, y: Tensor, generator: torch.Generator) -> Augmented:
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


def _require_images(data: Data, name: str) -> None:
    if data.kind != "image":
        raise BenchmarkError(f"{name} crops images; {data.name} is {data.kind}")
