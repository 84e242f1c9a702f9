"""Images that stay files: decoded by several threads when a batch asks for them (iWildCam, 203,029 JPEGs)."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.functional import center_crop, resize, resized_crop

from benchmarks.datasets.crops import crop_box
from benchmarks.datasets.image_files import decoded


class ImageFiles:
    """A list of image files that indexes like a uint8 tensor (N, 3, side, side).

    Indexing gives what CLIP evaluates on: shorter side resized to `side`, bicubic, then the centre.

    Parameters
    ----------
    paths : one file per row.
    side : pixels.
    device : where the rows are put.
    """

    def __init__(self, paths: Sequence[Path], *, side: int, device: torch.device | str = "cpu"):
        self.paths, self.side, self.device = tuple(paths), side, torch.device(device)

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        return len(self), 3, self.side, self.side

    def to(self, device: torch.device | str) -> ImageFiles:
        return ImageFiles(self.paths, side=self.side, device=device)

    def __getitem__(self, rows: Tensor | slice) -> Tensor:
        chosen = self._paths(rows)
        return self._read([(path, self._centre) for path in chosen])

    def cropped(self, index: Tensor, draws: Tensor) -> Tensor:
        """Rows `index` with the random resized crops that `draws` (B, 10, 4) decide."""
        tasks = [
            (path, lambda image, d=d: self._cropped(image, d))
            for path, d in zip(self._paths(index), draws.cpu(), strict=True)
        ]
        return self._read(tasks)

    @classmethod
    def __torch_function__(cls, function: Callable, types: Any, args=(), kwargs=None) -> Any:
        """Answer `torch.cat`, which joins training and validation rows; nothing else."""
        if function is not torch.cat:
            return NotImplemented
        parts = args[0]
        paths = [path for part in parts for path in part.paths]
        return cls(paths, side=parts[0].side, device=parts[0].device)

    def _paths(self, rows: Tensor | slice) -> list[Path]:
        if isinstance(rows, slice):
            return list(self.paths[rows])
        return [self.paths[i] for i in rows.tolist()]

    def _read(self, tasks: list[tuple[Path, Callable[[Image.Image], Image.Image]]]) -> Tensor:
        def one(task: tuple[Path, Callable[[Image.Image], Image.Image]]) -> np.ndarray:
            path, prepare = task
            return np.asarray(prepare(decoded(path)))

        if not tasks:
            return torch.empty((0, *self.shape[1:]), dtype=torch.uint8, device=self.device)
        rows = torch.from_numpy(np.stack(list(_threads().map(one, tasks))))
        return rows.permute(0, 3, 1, 2).contiguous().to(self.device)

    def _centre(self, image: Image.Image) -> Image.Image:
        return center_crop(resize(image, self.side, InterpolationMode.BICUBIC), self.side)

    def _cropped(self, image: Image.Image, draws: Tensor) -> Image.Image:
        box = crop_box(image.height, image.width, draws)
        return resized_crop(image, *box, [self.side, self.side], InterpolationMode.BICUBIC)


@cache
def _threads() -> ThreadPoolExecutor:
    # Decoding and resampling release the interpreter's lock.
    return ThreadPoolExecutor(max(1, len(os.sched_getaffinity(0))))
