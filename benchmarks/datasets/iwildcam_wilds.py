"""iWildCam of WILDS 2.0 (Koh et al. 2021; Beery et al. 2020): Table 4, through the `wilds` package.

182 classes; train 129,809, id_val 7,314, id_test 8,154 and ood test 42,791 images of other cameras.
The files are WILDS' own, and so is the evaluation. English class names and the two captions are those
of WiSE-FT and FLYP.
"""

from __future__ import annotations

import csv
import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks import sources
from benchmarks.errors import DataError
from benchmarks.registry import register
from benchmarks.sources import Source

if TYPE_CHECKING:
    from benchmarks.datasets.image_text import ImageTextData

# WILDS publishes no checksum of its archive: the `wilds` package itself downloads and unpacks it.
IMAGES = Source(
    name="iWildCam2020-WILDS 2.0, unpacked by the wilds package (get_dataset('iwildcam', download=True, "
    "root_dir='SAFLEX_DATA/iwildcam'))",
    path="iwildcam/iwildcam_v2.0/RELEASE_v2.0.txt",
    size=11_957_420_032,  # of the archive, as the `wilds` package states
)
TEMPLATES = ("a photo of {}.", "{} in the wild.")
SPLITS = {"train": "train", "validation": "id_val", "test": "id_test", "ood_test": "test"}
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
# Rows of the names file that are no WILDS class.
NOT_A_CLASS = 99999

LABELS = Source(
    name="English class names of iWildCam",
    path="iwildcam/labels.csv",
    urls=(
        "https://raw.githubusercontent.com/locuslab/FLYP/main/src/datasets/iwildcam_metadata/labels.csv",
    ),
    checksum="sha256:3aa81be6bfded6764247edd7f491b04a25b85c34321b748ff170809e6b97d3e1",
    size=8402,
)
SOURCES = {"iwildcam-wilds": (IMAGES,)}
PARTS = {"iwildcam-wilds": (LABELS,)}


def content_hash(name: str, **settings: Any) -> str | None:
    """Hash of WILDS' list of images, labels and splits, and of the class names; None where not at hand.

    Not of the 203,029 images: to look at each one's time stamp takes minutes on a network disk.
    """
    release = sources.find(IMAGES)
    if not (release and sources.find(LABELS)):
        return None
    listed = sources.checksum(sources.index_file(release.with_name("metadata.csv")), "sha256")
    return hashlib.sha256(f"{listed} {sources.content([(LABELS,)])}".encode()).hexdigest()[:16]


OFFERS = ("image", "captions")


@register("iwildcam-wilds")
def load(name: str, *, seed: int, side: int = 224) -> ImageTextData:
    """Open the data set; images stay files and are decoded when a batch asks for them.

    Parameters
    ----------
    side : pixels, what the model takes.

    Raises
    ------
    DataError
        The folder or the names are not at hand; the line says how to get them.
    """
    from wilds import get_dataset

    from benchmarks.datasets.image_text import ImageTextData
    from benchmarks.datasets.images_on_disk import ImageFiles

    root = find_root()
    metadata = sources.index_file(root / "iwildcam_v2.0" / "metadata.csv")
    dataset = get_dataset("iwildcam", root_dir=str(root), download=False)
    names, found = class_names(dataset.n_classes)
    return ImageTextData(
        name=name,
        **{split: _split(dataset, theirs, side) for split, theirs in SPLITS.items()},
        num_classes=dataset.n_classes,
        kind="image",
        class_names=names,
        normalize=_normalize,
        templates=TEMPLATES,
        crop=ImageFiles.cropped,
        evaluate=WildsEvaluation(dataset),
        shift="camera traps at other locations",
        notes=("id test: cameras seen in training; ood test: other cameras (WILDS 2.0)",),
        provenance={
            "iwildcam_v2.0/metadata.csv": sources.checksum(metadata, "sha256"),
            LABELS.path: found,
        },
    )


class WildsEvaluation:
    """Metrics of a split by WILDS' own `eval`, and ours for what it does not measure."""

    def __init__(self, dataset: Any):
        self.dataset = dataset

    def __call__(self, logits: Any, y: Any) -> dict[str, float]:
        from benchmarks.datasets.image_text import measure

        theirs, _ = self.dataset.eval(logits.argmax(-1).cpu(), y.cpu(), None)
        return {
            **measure(logits, y),
            "accuracy": float(theirs["acc_avg"]),
            "macro_f1": float(theirs["F1-macro_all"]),
        }


def find_root() -> Path:
    """Find the folder that holds ``iwildcam_v2.0``: ``iwildcam`` of SAFLEX_DATA or of the data folder."""
    if sources.find(IMAGES):
        return sources.locate(IMAGES).parents[1]
    target = sources.raw_path(IMAGES).parents[1]
    raise DataError(
        f'iWildCam of WILDS is not at hand ({IMAGES.size / 1e9:.2f} GB): run python -c "from wilds '
        f"import get_dataset; get_dataset('iwildcam', root_dir='{target}', download=True)\" or put "
        f"the folder iwildcam_v2.0 into iwildcam of SAFLEX_DATA"
    )


def class_names(count: int) -> tuple[tuple[str, ...], str]:
    """English names of the WILDS classes 0 .. count - 1, lower case, and the file's checksum."""
    found = sources.locate_any((LABELS,), "iwildcam-wilds")
    with found.path.open(encoding="utf-8-sig", newline="") as stream:
        rows = {int(row["y"]): row["english"].strip().lower() for row in csv.DictReader(stream)}
    rows.pop(NOT_A_CLASS, None)
    missing = [y for y in range(count) if y not in rows]
    if missing:
        raise DataError(
            f"{found.path} names {len(rows)} classes and iWildCam has {count}: no name for "
            f"{missing[:5]}"
        )
    return tuple(rows[y] for y in range(count)), found.checksum


def _split(dataset: Any, name: str, side: int) -> Any:
    from benchmarks.data import Split
    from benchmarks.datasets.images_on_disk import ImageFiles

    subset = dataset.get_subset(name)
    folder = dataset.data_dir / "train"  # where WILDS keeps the images of all splits
    paths = [Path(folder) / dataset._input_array[i] for i in subset.indices]
    return Split(ImageFiles(paths, side=side), subset.y_array.long())


def _normalize(x: Any) -> Any:
    """Map uint8 (B, 3, H, W) to float32 with CLIP's mean and deviation."""
    import torch

    mean, std = (torch.tensor(v, device=x.device).view(3, 1, 1) for v in (CLIP_MEAN, CLIP_STD))
    return (x.float() / 255 - mean) / std
