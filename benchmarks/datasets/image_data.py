"""An index of image files as the `Data` of a run: decoded splits and the input normalisation."""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks.data import Data, Split
from benchmarks.datasets import image_files
from benchmarks.datasets.image_files import ImageList, Index, Prepare
from benchmarks.errors import BenchmarkError, suggestion

# Mean and standard deviation per channel of x / 255.
NORMALIZATIONS: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    # (x - 127) / 128, what EfficientNet-Lite was trained with.
    "efficientnet-lite": ((127 / 255,) * 3, (128 / 255,) * 3),
    "none": ((0.0,) * 3, (1.0,) * 3),
}


class Normalize:
    """Map uint8 x (B, 3, H, W) to float32, channel by channel."""

    def __init__(self, name: str):
        if name not in NORMALIZATIONS:
            raise BenchmarkError(
                f"unknown normalization {name!r}: {suggestion(name, NORMALIZATIONS)}"
            )
        self.mean, self.std = NORMALIZATIONS[name]

    def __call__(self, x: Tensor) -> Tensor:
        mean, std = (torch.tensor(v, device=x.device).view(3, 1, 1) for v in (self.mean, self.std))
        return (x.float() / 255 - mean) / std


def load(name: str, index: Index, prepare: Prepare, *, normalization: str) -> Data:
    """Decode every split of an index, each one once, and hold it as uint8 tensors."""
    normalize = Normalize(normalization)
    decoded: dict[int, tuple[Split, str]] = {}
    for split, listed in index.splits.items():
        if id(listed) not in decoded:  # CUB: validation is the extra set
            decoded[id(listed)] = _split(listed, index, prepare, f"{index.name}-{split}")
    splits = {split: decoded[id(listed)][0] for split, listed in index.splits.items()}
    provenance = {
        f"{index.name}/{split}": f"sha256:{decoded[id(listed)][1]}"
        for split, listed in index.splits.items()
    }
    return Data(
        name=name,
        train=splits["train"],
        validation=splits["validation"],
        test=splits["test"],
        extra=splits["extra"],
        num_classes=len(index.class_names),
        kind="image",
        class_names=index.class_names,
        normalize=normalize,
        notes=index.notes,
        provenance=provenance,
    )


def _split(listed: ImageList, index: Index, prepare: Prepare, name: str) -> tuple[Split, str]:
    found = image_files.pixels(listed.files, prepare, name=name, root=index.root)
    labels = torch.tensor(listed.labels, dtype=torch.int64)
    return Split(torch.from_numpy(found.x), labels), found.digest
