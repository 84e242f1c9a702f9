"""MedMNIST files in the official form, of fewer images than the official counts."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest

from benchmarks.datasets import medmnist


def install(patch: pytest.MonkeyPatch, data: Path, name: str, *, training: int = 60) -> None:
    """Write a set's file and have the `medmnist` package state its counts and its checksum."""
    about = medmnist.info(name)
    counts = {"train": training, "val": 24, "test": 36}
    colour = (3,) if about["n_channels"] == 3 else ()
    rng, content = np.random.default_rng(7), {}
    for key, count in counts.items():
        shape = (count, 28, 28, *colour)
        content[f"{key}_images"] = rng.integers(0, 256, shape, dtype=np.uint8)
        content[f"{key}_labels"] = (np.arange(count) % len(about["label"])).astype(np.uint8)[
            :, None
        ]
    path = data / medmnist.source(name).path
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, **content)
    digest = hashlib.md5(path.read_bytes()).hexdigest()
    stated = {**about, "n_samples": counts, "MD5": digest}
    official = medmnist.info
    patch.setattr(medmnist, "info", lambda asked: stated if asked == name else official(asked))
