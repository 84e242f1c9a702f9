"""MedMNIST v2 (Yang et al. 2023): the eight sets of Tables 1, 7 and 8, official files and splits."""

from __future__ import annotations

import importlib.util
import zipfile
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from benchmarks import sources
from benchmarks.errors import BenchmarkError, DataError
from benchmarks.registry import register
from benchmarks.sources import Source

if TYPE_CHECKING:
    from benchmarks.data import Data, Split

LICENCE = "CC BY 4.0"
SIZES = (28, 64, 128, 224)
NAMES = (
    "pathmnist",
    "dermamnist",
    "tissuemnist",
    "bloodmnist",
    "octmnist",
    "organamnist",
    "organcmnist",
    "organsmnist",
)
# The `medmnist` package states no sizes; these two were measured on files with its MD5.
BYTES = {"bloodmnist": 35_461_855, "organamnist": 38_247_708}
SPLITS = {"train": "train", "validation": "val", "test": "test"}


def info(name: str) -> dict[str, Any]:
    """Give what the `medmnist` package says of a data set: URLs, MD5s, counts, class names."""
    return _info_module().INFO[name]


@cache
def _info_module() -> ModuleType:
    # By its file: importing the package would import torch, which planning and fetching go without.
    package = importlib.util.find_spec("medmnist")
    if package is None or package.origin is None:
        raise BenchmarkError(
            "the package medmnist is not installed: `make` installs what the benchmark needs"
        )
    path = Path(package.origin).with_name("info.py")
    spec = importlib.util.spec_from_file_location("_medmnist_info", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def source(name: str, size: int = 28) -> Source:
    """Describe the official file of a data set at one image size (28, 64, 128 or 224)."""
    if size not in SIZES:
        raise BenchmarkError(f"{name}: MedMNIST has images of {SIZES} pixels, not {size}")
    suffix = "" if size == 28 else f"_{size}"
    about = info(name)
    return Source(
        name=f"{about['python_class']} {size}x{size}",
        path=f"medmnist/{name}{suffix}.npz",
        urls=(about[f"url{suffix}"],),
        checksum=f"md5:{about[f'MD5{suffix}']}",
        size=BYTES.get(name, 0) if size == 28 else 0,
    )


def files_read(name: str, *, size: int = 28, **others: Any) -> list[tuple[Source, ...]]:
    """List the one file that a run of these settings reads."""
    return [(source(name, size),)]


def __getattr__(attribute: str) -> dict[str, tuple[Source, ...]]:
    """Make `SOURCES`, which `fetch` reads, on demand: loading a data set needs one of its lines."""
    if attribute == "SOURCES":
        return {name: (source(name),) for name in NAMES}
    raise AttributeError(f"module {__name__!r} has no attribute {attribute!r}")


OFFERS = ("image",)
LIMITS = {"size": (28, 64, 128, 224)}


@register(
    "pathmnist",
    "dermamnist",
    "tissuemnist",
    "bloodmnist",
    "octmnist",
    "organamnist",
    "organcmnist",
    "organsmnist",
)
def load(
    name: str,
    *,
    seed: int,
    size: int = 28,
    limit: int | None = None,
    validation_limit: int | None = None,
    label_noise: float = 0.0,
) -> Data:
    """Load a data set with its official splits.

    Parameters
    ----------
    size : side of the images in pixels: 28, 64, 128 or 224, each a file of its own.
    limit, validation_limit : training and validation images kept, drawn by class proportion, anew
        for each seed; the test set stays whole. None keeps all.
    label_noise : share in [0, 1] of the training labels replaced by another class, uniformly.

    Raises
    ------
    DataError
        The file is missing, or not the one the `medmnist` package describes.
    """
    from benchmarks.data import Data
    from benchmarks.datasets import small_images

    found = sources.locate_any((source(name, size),), name)
    splits = _read(found.path, name, size)
    classes = tuple(info(name)["label"][str(k)] for k in range(len(info(name)["label"])))
    official = {split: len(rows) for split, rows in splits.items()}
    for split, kept in (("train", limit), ("validation", validation_limit)):
        purpose = f"{split} limit"
        splits[split] = small_images.part(
            splits[split], name, seed=seed, limit=kept, purpose=purpose
        )
    splits["train"] = small_images.noisy(
        splits["train"], name, seed=seed, num_classes=len(classes), share=label_noise
    )
    return Data(
        name=name,
        **splits,
        num_classes=len(classes),
        kind="image",
        class_names=classes,
        normalize=small_images.normalize,
        # The organ sets tell a left kidney from a right one.
        mirrors=not any(label.endswith(("-left", "-right")) for label in classes),
        notes=_notes(name, official, splits, label_noise),
        provenance={found.source.path: found.checksum},
    )


def _read(path: Path, name: str, size: int) -> dict[str, Split]:
    """Read the three splits from a verified file and check them against the official counts."""
    import numpy as np
    import torch

    from benchmarks.data import Split
    from benchmarks.datasets import small_images

    about, splits = info(name), {}
    colour = (3,) if about["n_channels"] == 3 else ()
    try:
        with np.load(path, allow_pickle=False) as arrays:
            for split, key in SPLITS.items():
                x, y = arrays[f"{key}_images"], arrays[f"{key}_labels"]
                shape = (about["n_samples"][key], size, size, *colour)
                if x.shape != shape or x.dtype != np.uint8 or y.shape != (shape[0], 1):
                    raise DataError(
                        f"{path}: {key} images are {x.dtype} {x.shape} with labels {y.shape}; "
                        f"expected uint8 {shape} with labels {(shape[0], 1)}"
                    )
                labels = torch.from_numpy(y[:, 0].astype(np.int64))
                splits[split] = Split(small_images.to_tensor(x), labels)
    except (KeyError, ValueError, zipfile.BadZipFile, EOFError) as error:
        raise DataError(f"{path} is not a MedMNIST file: {error}; fetch it again") from error
    highest = max(int(split.y.max()) for split in splits.values())
    if highest >= len(about["label"]):
        raise DataError(
            f"{path} holds label {highest}, but {name} has {len(about['label'])} classes"
        )
    return splits


def _notes(
    name: str, official: dict[str, int], splits: dict[str, Split], label_noise: float
) -> tuple[str, ...]:
    notes = [
        f"{name}: {len(rows):,} of the {official[split]:,} {split} images, drawn by class "
        "proportion, anew for each seed"
        for split, rows in splits.items()
        if len(rows) < official[split]
    ]
    if label_noise:
        notes.append(f"{name}: {100 * label_noise:g} % of the training labels replaced at random")
    return tuple(notes)
