"""The seven-class iWildCam subset of Table 3: ALIA's four split lists over the images of WILDS v2.0."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from benchmarks import sources
from benchmarks.datasets import image_files
from benchmarks.datasets.image_files import ImageList, Index
from benchmarks.datasets.iwildcam_wilds import IMAGES
from benchmarks.errors import DataError
from benchmarks.registry import register
from benchmarks.sources import Source

if TYPE_CHECKING:
    from benchmarks.data import Data

# WILDS' class numbers and the names ALIA gives them.
CLASSES = {
    0: "empty",
    24: "cattle",
    32: "elephants",
    36: "impalas",
    48: "zebras",
    49: "giraffes",
    52: "dik-diks",
}
SOURCES = {"iwildcam-subset": (IMAGES,)}
_LISTS_AT = "https://raw.githubusercontent.com/lisadunlap/ALIA/main/data/iwildcam_v2.0"


def _list(file: str, checksum: str) -> Source:
    return Source(
        name=f"ALIA's split list {file}",
        path=f"iwildcam/alia/{file}",
        urls=(f"{_LISTS_AT}/{file}",),
        checksum=f"sha256:{checksum}",
    )


LISTS = {
    "train": _list(
        "train_subset.csv", "375dd4fd51131fa1c0caad5e2f96818acc1fe1692c7774b4e5b1c0d004eac6dd"
    ),
    "validation": _list(
        "val_subset.csv", "1b1c91a361d19c7305dc881b16655e1ba260ae8bd9a18a0929581c15ab507423"
    ),
    "test": _list(
        "test_subset.csv", "372409e0788d7ba9bd59eaf162692d09a256e03581bd2aa0b37095a6e058b079"
    ),
    "extra": _list(
        "train_extra_subset.csv", "47b73bbfd6484589ce25ee90901b66bbf0f952c4b0ba2447a83ccc1c0920257e"
    ),
}
PARTS = {"iwildcam-subset": tuple(LISTS.values())}


def prepare(image: Image.Image) -> np.ndarray:
    """Resize to 448 x 448, drop 10 rows above and 38 below (the camera's banners), resize to 224.

    ALIA resizes the float tensor; so does this, and rounds once at the end. uint8 (3, 224, 224).
    """
    import torch
    from torchvision.transforms.functional import resize

    x = torch.from_numpy(np.array(image)).permute(2, 0, 1).float()
    x = resize(resize(x, [448, 448], antialias=True)[:, 10:410], [224, 224], antialias=True)
    return x.round().clamp(0, 255).to(torch.uint8).numpy()


def index() -> Index:
    """List the files of every split: 6,052 train, 2,826 validation, 8,483 test, 2,224 extra."""
    root = sources.locate(IMAGES).parent
    return Index(
        name="iwildcam-subset",
        root=root,
        splits={split: _read(sources.locate(listed), root) for split, listed in LISTS.items()},
        class_names=tuple(CLASSES.values()),
        notes=("The test cameras (two locations) are none of the training cameras.",),
    )


def content_hash(name: str, **settings: Any) -> str | None:
    """Hash of lists and images at hand; None where one of them is missing."""
    at_hand = all(map(sources.find, (IMAGES, *LISTS.values())))
    return image_files.content(index()) if at_hand else None


OFFERS = ("image", "extra")
LIMITS = {"normalization": ("imagenet", "efficientnet-lite", "none")}


@register("iwildcam-subset")
def load(name: str, *, seed: int, normalization: str = "none") -> Data:
    """Load images, uint8 (N, 3, 224, 224). The split is published: `seed` changes nothing.

    Parameters
    ----------
    normalization : ``none`` as in the source: values in [0, 1], no ImageNet statistics.
    """
    from benchmarks.datasets import image_data

    return image_data.load(name, index(), prepare, normalization=normalization)


def _read(path: Path, root: Path) -> ImageList:
    number = {original: position for position, original in enumerate(CLASSES)}
    with path.open(encoding="utf-8-sig", newline="") as stream:
        rows = list(csv.DictReader(stream))
    if foreign := sorted({row["y"] for row in rows} - {str(y) for y in CLASSES}):
        raise DataError(f"{path}: classes {', '.join(foreign)} are none of the seven")
    files = tuple(root / "train" / row["filename"] for row in rows)
    return ImageList(files, tuple(number[int(row["y"])] for row in rows))
