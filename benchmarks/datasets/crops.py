"""Random resized crops of scale 0.9 to 1, the only augmentation of FLYP and of open_clip's training.

The random numbers are handed in, so that they come from the run's own stream whatever thread crops.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample

SCALE = (0.9, 1.0)
RATIO = (3 / 4, 4 / 3)
ATTEMPTS = 10
DRAWS = (ATTEMPTS, 4)  # area, aspect ratio, top, left


def crop_box(height: int, width: int, draws: Tensor) -> tuple[int, int, int, int]:
    """Choose a crop as torchvision's `RandomResizedCrop` does: ten attempts, then the centre.

    Parameters
    ----------
    draws : (10, 4), uniform in [0, 1).

    Returns
    -------
    top, left, height, width, in pixels.
    """
    low, high = math.log(RATIO[0]), math.log(RATIO[1])
    for area, ratio, top, left in draws.tolist():
        pixels = height * width * (SCALE[0] + area * (SCALE[1] - SCALE[0]))
        aspect = math.exp(low + ratio * (high - low))
        w, h = round(math.sqrt(pixels * aspect)), round(math.sqrt(pixels / aspect))
        if 0 < w <= width and 0 < h <= height:
            return int(top * (height - h + 1)), int(left * (width - w + 1)), h, w
    w, h = width, height
    if width / height < RATIO[0]:
        h = round(width / RATIO[0])
    elif width / height > RATIO[1]:
        w = round(height * RATIO[1])
    return (height - h) // 2, (width - w) // 2, h, w


def crop_stored(images: Tensor, index: Tensor, draws: Tensor) -> Tensor:
    """Crop rows of stored images (N, 3, H, W) and resize them back to H x W, bilinearly."""
    x = images[index.to(images.device)]
    height, width = x.shape[-2:]
    boxes = torch.tensor([crop_box(height, width, d) for d in draws.cpu()], dtype=torch.float32)
    top, left, h, w = boxes.unbind(1)
    theta = torch.zeros(len(x), 2, 3)
    theta[:, 0, 0], theta[:, 1, 1] = w / width, h / height
    # Centre of the crop in grid_sample's coordinates, where the image spans [-1, 1].
    theta[:, 0, 2] = (2 * left + w) / width - 1
    theta[:, 1, 2] = (2 * top + h) / height - 1
    grid = affine_grid(theta.to(x.device), list(x.shape), align_corners=False)
    resized = grid_sample(x.float(), grid, padding_mode="border", align_corners=False)
    return resized.round().clamp(0, 255).to(torch.uint8)
