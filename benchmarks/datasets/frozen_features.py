"""Features of a frozen pretrained trunk, computed once an image: Table 3 on two cores.

A linear head on them is what a run trains, named "efficientnet-lite0-frozen" in its table. Only
augmentations that exist as images beforehand (generated ones, extra data) can be encoded this way.
"""

from __future__ import annotations

import hashlib
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock
from torch import Tensor

from benchmarks import sources
from benchmarks.data import Data, Split
from benchmarks.datasets.image_files import save_arrays
from benchmarks.errors import BenchmarkError
from benchmarks.models import efficientnet_lite0

TRUNKS = {"efficientnet-lite0": efficientnet_lite0.frozen_trunk}
FORMAT = 1
BATCH = 32


def encoded(data: Data, trunk: str) -> Data:
    """Replace every split of an image data set by its features, float32 (N, 1280), standardised.

    Each feature is standardised with mean and deviation of the training images; what
    `benchmarks.upstream.generated` adds later goes through the same map, in `normalize`.
    """
    known: dict[int, Split] = {}
    for split in (data.train, data.validation, data.test, data.extra):
        if split is not None and id(split) not in known:
            known[id(split)] = Split(features(split.x, trunk), split.y)
    train = known[id(data.train)].x
    mean, std = train.mean(0), train.std(0)
    # A feature that no training image moves trains no weight: 0 for every image, as in `tabular`.
    std[std < 1e-6] = torch.inf
    return replace(
        data,
        kind="tabular",
        train=known[id(data.train)],
        validation=known[id(data.validation)],
        test=known[id(data.test)],
        extra=None if data.extra is None else known[id(data.extra)],
        normalize=lambda x: (x - mean.to(x.device)) / std.to(x.device),
        notes=(*data.notes, f"Inputs are features of a frozen {trunk} pretrained on ImageNet."),
        provenance={**data.provenance, "trunk": trunk},
    )


def features(x: Tensor, trunk: str) -> Tensor:
    """Features (N, 1280) of raw images x, uint8 (N, 3, H, W), from the cache or computed."""
    if trunk not in TRUNKS:
        raise BenchmarkError(f"unknown trunk {trunk!r}; known are {', '.join(TRUNKS)}")
    content = hashlib.sha256(np.ascontiguousarray(x.numpy()).data).hexdigest()
    key = (
        f"{FORMAT}\x1f{trunk}\x1f{efficientnet_lite0.WEIGHTS.checksum}\x1f{tuple(x.shape)}{content}"
    )
    name = f"{trunk}-{hashlib.sha256(key.encode()).hexdigest()[:16]}.npz"
    target = sources.home() / "prepared" / "features" / name
    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{target}.lock"):
        found = _load(target)
        if found is None:
            found = _compute(x, trunk)
            save_arrays(target, features=found)
    return torch.from_numpy(found)


def _load(path: Path) -> np.ndarray | None:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return arrays["features"]
    except (FileNotFoundError, zipfile.BadZipFile, KeyError, ValueError, EOFError):
        return None


def _compute(x: Tensor, trunk: str) -> np.ndarray:
    encode = TRUNKS[trunk]()
    with torch.no_grad():
        return torch.cat([encode(part) for part in x.split(BATCH)]).numpy()
