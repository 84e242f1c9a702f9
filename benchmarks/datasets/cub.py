"""CUB-200-2011 (Wah et al. 2011) with the split of Table 3, as images and as frozen-trunk features."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from benchmarks import sources
from benchmarks.datasets import image_files
from benchmarks.datasets.image_files import ImageList, Index
from benchmarks.errors import DataError
from benchmarks.registry import register
from benchmarks.sources import Source

if TYPE_CHECKING:
    from benchmarks.data import Data

SIZE = 224
CLASSES = 200
EXTRA_PER_CLASS = 5
FOLDER = Source(name="CUB-200-2011, unpacked", path="cub/CUB_200_2011/images.txt", partial=True)
ARCHIVE = Source(
    name="CUB-200-2011",
    path="cub/CUB_200_2011.tgz",
    urls=("https://data.caltech.edu/records/65de6-vp158/files/CUB_200_2011.tgz",),
    checksum="md5:97eceeb196236b17998738112f37df78",
    size=1_150_585_339,
)
LICENCE = "non-commercial research"
SOURCES = {"cub": (ARCHIVE, FOLDER), "cub-features": (ARCHIVE, FOLDER)}


def prepare(image: Image.Image) -> np.ndarray:
    """Resize to 224 x 224 without keeping the aspect, as ALIA does; uint8 (3, 224, 224)."""
    resized = image.resize((224, 224), Image.Resampling.BILINEAR)
    return np.asarray(resized, dtype=np.uint8).transpose(2, 0, 1)


def index() -> Index:
    """List the files of every split: per class the last 5 training images are held out (protocol).

    With all 200 classes that is 4,994 / 1,000 / 5,794. The held-out images are ALIA's "extra" set
    and, here, the validation set too; ALIA validated on the test set.
    """
    root = _root()
    files = _table(root / "images.txt")
    names = _table(root / "classes.txt")
    label = _classes(root, names)
    split = _table(root / "train_test_split.txt")
    training = {key for key, value in split.items() if value == "1"}
    _complete(files, label, root / "image_class_labels.txt")
    present = sorted({label[key] for key in files})
    rows: dict[str, list[tuple[str, int]]] = {"train": [], "extra": [], "test": []}
    for number, own in enumerate(present):
        members = [key for key in files if label[key] == own]
        chosen = [key for key in members if key in training]
        if len(chosen) <= EXTRA_PER_CLASS:
            raise DataError(
                f"{root}: class {names[str(own)]} has {len(chosen)} training images, expected more "
                f"than {EXTRA_PER_CLASS}: the index files were cut"
            )
        rows["train"] += [(files[key], number) for key in chosen[:-EXTRA_PER_CLASS]]
        rows["extra"] += [(files[key], number) for key in chosen[-EXTRA_PER_CLASS:]]
        rows["test"] += [(files[key], number) for key in members if key not in training]
    _complete(files, split, root / "train_test_split.txt")
    splits = {
        name: ImageList(tuple(root / "images" / f for f, _ in rows), tuple(y for _, y in rows))
        for name, rows in rows.items()
    }
    splits["validation"] = splits["extra"]
    notes = ["The validation images are ALIA's extra set; ALIA selected on the test set."]
    if len(present) < CLASSES:
        notes.append(f"{len(present)} of {CLASSES} classes: the data at hand.")
    return Index(
        name="cub",
        root=root,
        splits=splits,
        class_names=tuple(names[str(own)].split(".", 1)[-1].replace("_", " ") for own in present),
        notes=tuple(notes),
    )


def content_hash(name: str, **settings: Any) -> str | None:
    """Hash of lists and images at hand; None while there are none, or the archive is still packed."""
    archive = sources.find(ARCHIVE)
    there = sources.find(FOLDER) or (archive and image_files.unpacking_place(archive).is_dir())
    return image_files.content(index()) if there else None


OFFERS = {"cub": ("image", "extra"), "cub-features": ("tabular", "extra")}
LIMITS = {
    "normalization": ("imagenet", "efficientnet-lite", "none"),
    "trunk": ("efficientnet-lite0",),
}


@register("cub")
def load(name: str, *, seed: int, normalization: str = "imagenet") -> Data:
    """Load images, uint8 (N, 3, 224, 224). The split is official: `seed` changes nothing.

    Parameters
    ----------
    normalization : see `image_data.NORMALIZATIONS`.
    """
    from benchmarks.datasets import image_data

    return image_data.load(name, index(), prepare, normalization=normalization)


@register("cub-features")
def load_features(name: str, *, seed: int, trunk: str = "efficientnet-lite0") -> Data:
    """Load what a frozen pretrained trunk makes of each image, float32 (N, 1280), computed once."""
    from benchmarks.datasets import frozen_features

    return frozen_features.encoded(load(name, seed=seed), trunk)


def _root() -> Path:
    """Folder of the published layout: as it lies there, or unpacked from the archive."""
    if sources.find(FOLDER):
        return sources.locate(FOLDER).parent
    found = sources.locate_any((ARCHIVE,), "cub")
    return image_files.unpacked(found.path, "CUB_200_2011")


def _table(path: Path) -> dict[str, str]:
    """Read an index file: one '<id> <value>' a line, of which the first is the key."""
    text = sources.index_file(path).read_text(encoding="utf-8-sig", errors="replace")
    rows = [line.split(" ", 1) for line in text.splitlines() if line.strip()]
    if bad := [row for row in rows if len(row) != 2 or not row[0].isdigit()]:
        raise DataError(f"{path}: a line reads {' '.join(bad[0])!r}, expected '<id> <value>'")
    return {key: value.strip() for key, value in rows}


def _complete(files: Iterable[str], listed: Collection[str], path: Path) -> None:
    """Refuse an index file that lacks an image: it would be taken for a test image, say."""
    if unlisted := [key for key in files if key not in listed]:
        raise DataError(f"{path}: image {unlisted[0]} has no line")


def _classes(root: Path, names: dict[str, str]) -> dict[str, int]:
    """Class number of every image id; each has a name."""
    path = root / "image_class_labels.txt"
    label = _table(path)
    if unnamed := [key for key, own in label.items() if own not in names]:
        raise DataError(
            f"{path}: image {unnamed[0]} has class {label[unnamed[0]]!r}, which is not in classes.txt"
        )
    return {key: int(own) for key, own in label.items()}
