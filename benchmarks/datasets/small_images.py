"""Small images held as tensors: normalisation, a seeded part of the training set, noisy labels."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from benchmarks import seeds
from benchmarks.data import Split
from benchmarks.errors import BenchmarkError


def normalize(x: Tensor) -> Tensor:
    """Map raw images to what MedMNIST's networks take: uint8 to float32 in [-1, 1]."""
    return ((x.float() / 255) - 0.5) / 0.5


def to_tensor(images: np.ndarray) -> Tensor:
    """Turn uint8 images (N, H, W) or (N, H, W, 3) into (N, 3, H, W); grey is repeated."""
    if images.ndim == 3:
        return torch.from_numpy(images)[:, None].repeat(1, 3, 1, 1)
    return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()


def part(split: Split, name: str, *, seed: int, limit: int | None, purpose: str) -> Split:
    """Keep `limit` images of a split, drawn by class proportion; None keeps all.

    The draw depends on the data set, the seed index and the purpose alone, so every method of a
    seed sees the same images.
    """
    if limit is None or limit >= len(split):
        return split
    from sklearn.model_selection import train_test_split

    state = seeds.derive(name, seed, purpose) % 2**32
    try:
        kept, _ = train_test_split(
            np.arange(len(split)), train_size=limit, stratify=split.y.numpy(), random_state=state
        )
    except ValueError as error:
        raise BenchmarkError(
            f"{name}: {purpose} {limit} of {len(split)} images: {error}"
        ) from error
    rows = torch.from_numpy(np.sort(kept))
    return Split(split.x[rows], split.y[rows])


def noisy(split: Split, name: str, *, seed: int, num_classes: int, share: float) -> Split:
    """Replace a share in [0, 1] of the labels by another class, uniformly."""
    if not 0 <= share <= 1:
        raise BenchmarkError(
            f"label_noise is a share of the training labels in [0, 1], not {share}"
        )
    rng = np.random.default_rng(seeds.derive(name, seed, "label noise"))
    rows = rng.choice(len(split), size=round(share * len(split)), replace=False)
    y = split.y.clone()
    shift = torch.from_numpy(rng.integers(1, num_classes, size=len(rows)))
    y[rows] = (y[rows] + shift) % num_classes
    return Split(split.x, y)
