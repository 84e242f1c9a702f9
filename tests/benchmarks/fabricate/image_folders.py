"""Image folders in the official layouts of CUB-200-2011 and WILDS' iWildCam, with fabricated pictures."""

from __future__ import annotations

import csv
import hashlib
import os
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks.datasets import iwildcam_subset, iwildcam_wilds


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


def install_subset(patch: pytest.MonkeyPatch, data: Path) -> None:
    """Write ALIA's four lists, short, and their images; the lists' checksums are the expected ones."""
    original = list(iwildcam_subset.CLASSES)
    names, lists = [], {}
    for split, source in iwildcam_subset.LISTS.items():
        rows = [(f"{split}{n}.jpg", original[n % 7]) for n in range(9)]
        names += [file for file, _ in rows]
        path = data / source.path
        alia_list(path, rows)
        lists[split] = replace(source, checksum=_sha256(path), urls=())
    patch.setattr(iwildcam_subset, "LISTS", lists)
    iwildcam(data, names)


WILDS_SPLITS = {"train": 20, "val": 5, "test": 15, "id_val": 10, "id_test": 10}
WILDS_NAMES = ["empty", "White-lipped peccary", "Lowland paca", "ocelot", "bush dog"]


def wilds(root: Path) -> None:
    """Write ``iwildcam/iwildcam_v2.0`` with five classes in WILDS' splits, and the English names."""
    images = root / "iwildcam" / "iwildcam_v2.0" / "train"
    images.mkdir(parents=True)
    generator = np.random.default_rng(0)
    lines, number = [], 0
    for split, count in WILDS_SPLITS.items():
        for i in range(count):
            y, name = i % len(WILDS_NAMES), f"{number:08x}-21bc-11ea-a13a-137349068a90.jpg"
            pixels = generator.integers(0, 90, (60, 80, 3)) + 30 * y
            Image.fromarray(pixels.astype(np.uint8)).save(images / name, quality=95)
            location = number % 3 + (3 if split in {"val", "test"} else 0)  # OOD: other cameras
            date = f"2013-05-{1 + number % 28:02d} 10:15:42.000"
            lines.append(f"{split},{location},{number},{y},{date},{name}")
            number += 1
    header = "split,location_remapped,sequence_remapped,y,datetime,filename"
    place = images.parent
    (place / "metadata.csv").write_text("\n".join([header, *lines]) + "\n")
    (place / "categories.csv").write_text("y,category_id,name\n")
    (place / "RELEASE_v2.0.txt").write_text("2.0\n")
    labels = root / "iwildcam" / "labels.csv"
    rows = [f"{y},{y},latin {y},{name}" for y, name in enumerate(WILDS_NAMES)]
    labels.write_text("\n".join(["y,category_id,name,english", *rows, "99999,243,x,opossum"]))


def accept_names(patch: pytest.MonkeyPatch, data: Path) -> None:
    """Make the checksum of the fabricated English names the expected one."""
    found = _sha256(data / iwildcam_wilds.LABELS.path)
    patch.setattr(iwildcam_wilds, "LABELS", replace(iwildcam_wilds.LABELS, checksum=found))


def _sha256(path: Path) -> str:
    return f"sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}"
