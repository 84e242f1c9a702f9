"""Image folders in the official layouts of CUB-200-2011 and WILDS' iWildCam, with fabricated pictures."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image


def picture(path: Path, seed: int, *, size: tuple[int, int] = (48, 40)) -> None:
    """Write a small JPEG whose content depends on the seed alone."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (5, 6, 3), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC).save(path, quality=90)


def cub(
    folder: Path, *, training: int = 8, test: int = 3, classes: Iterable[int] = (1, 2, 3)
) -> Path:
    """Write ``cub/CUB_200_2011`` below a folder: classes interleaved, so that order matters."""
    root = folder / "cub" / "CUB_200_2011"
    classes = list(classes)
    names = {c: f"{c:03d}.Fabricated_Bird_{c}" for c in classes}
    images, labels, split = [], [], []
    number = 0
    for position in range(training + test):
        for c in classes:
            number += 1
            file = f"{names[c]}/Fabricated_{number:04d}.jpg"
            picture(root / "images" / file, number)
            images.append(f"{number} {file}")
            labels.append(f"{number} {c}")
            split.append(f"{number} {int(position % (training + test) < training)}")
    for name, lines in (
        ("images.txt", images),
        ("image_class_labels.txt", labels),
        ("train_test_split.txt", split),
        ("classes.txt", [f"{c} {names[c]}" for c in classes]),
    ):
        (root / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
    return root


def iwildcam(folder: Path, filenames: Iterable[str]) -> Path:
    """Write ``iwildcam/iwildcam_v2.0`` with an image file of every name.

    One picture is written and linked: what is counted are files, not their content.
    """
    root = folder / "iwildcam" / "iwildcam_v2.0"
    first = root / "fabricated.jpg"
    picture(first, 0, size=(64, 48))
    (root / "train").mkdir(parents=True, exist_ok=True)
    for name in filenames:
        os.link(first, root / "train" / name)
    (root / "RELEASE_v2.0.txt").write_text("fabricated\n", encoding="utf-8")
    return root


def alia_list(path: Path, rows: Iterable[tuple[str, int]]) -> None:
    """Write a split list with the columns of ALIA's."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, ["split", "location_remapped", "y", "filename"])
        writer.writeheader()
        for file, y in rows:
            writer.writerow({"split": "train", "location_remapped": 1, "y": y, "filename": file})
