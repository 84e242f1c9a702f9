"""Real images with captions made of their class names, for a small stand-in of Table 4 on a CPU.

BloodMNIST with the class names that the `medmnist` package states. The shift is explicit: `ood_test`
are the same official test images as another stain would show them, by a fixed change of their
haematoxylin and eosin (Ruifrok and Johnston 2001).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchmarks.datasets import medmnist
from benchmarks.errors import BenchmarkError
from benchmarks.registry import register

if TYPE_CHECKING:
    import numpy as np

    from benchmarks.data import Split
    from benchmarks.datasets.image_text import ImageTextData
    from benchmarks.sources import Source

LICENCE = "CC BY 4.0"
TEMPLATES = ("a photo of {}.", "{} under the microscope.")
# With every word of `TEMPLATES`: else the rows that fine-tune train words that `zero-shot` reads untrained.
PRETRAINING_TEMPLATES = (
    "an image of {}.",
    "a blood smear with {}.",
    "a photo of {} under the microscope.",
)
STAIN = (0.6, 1.4)  # factors of haematoxylin and eosin in ood_test


def __getattr__(attribute: str) -> dict[str, tuple[Source, ...]]:
    """Make `SOURCES`, which `fetch` reads, on demand, as `medmnist` does."""
    if attribute == "SOURCES":
        return {"captioned-bloodmnist": (medmnist.source("bloodmnist"),)}
    raise AttributeError(f"module {__name__!r} has no attribute {attribute!r}")


OFFERS = ("image", "captions", "pretraining")


@register("captioned-bloodmnist")
def load(
    name: str,
    *,
    seed: int,
    pretraining: int = 6000,
    limit: int = 2000,
    validation: int | None = None,
    haematoxylin: float = STAIN[0],
    eosin: float = STAIN[1],
) -> ImageTextData:
    """Load BloodMNIST as image-text data.

    Parameters
    ----------
    pretraining : training images set apart for pre-training, the same for every seed.
    limit : of the others, training images to fine-tune on, the same for every seed.
    validation : images of the official validation set that are id_val; None: all.
    haematoxylin, eosin : factors > 0 of the two stains in `ood_test`; 1 and 1 is no shift.
    """
    import torch

    from benchmarks.data import Split
    from benchmarks.datasets.image_text import ImageTextData, Pretraining
    from benchmarks.seeds import derive

    source = medmnist.load("bloodmnist", seed=seed)
    if pretraining < 1 or limit < 1 or pretraining + limit > len(source.train):
        raise BenchmarkError(
            f"{name}: pretraining {pretraining} + limit {limit} images, but there are "
            f"{len(source.train)} training images"
        )
    generator = torch.Generator().manual_seed(derive(name, 0, "parts"))
    order = torch.randperm(len(source.train), generator=generator)
    before, tuning = order[:pretraining], order[pretraining : pretraining + limit]
    part = [Split(source.train.x[rows], source.train.y[rows]) for rows in (before, tuning)]
    kept = source.validation
    if validation is not None and validation < len(kept):
        rows = torch.randperm(len(kept), generator=generator)[:validation]
        kept = Split(kept.x[rows], kept.y[rows])
    shift = f"haematoxylin x {haematoxylin:g}, eosin x {eosin:g}"
    return ImageTextData(
        name=name,
        train=part[1],
        validation=kept,
        test=source.test,
        ood_test=restained(source.test, haematoxylin=haematoxylin, eosin=eosin),
        num_classes=source.num_classes,
        kind="image",
        class_names=source.class_names,
        normalize=source.normalize,
        templates=TEMPLATES,
        pretraining=Pretraining(part[0], PRETRAINING_TEMPLATES),
        shift=shift,
        notes=(
            f"fine-tuned on {limit:,} BloodMNIST training images, id_val {len(kept):,}; {pretraining:,} "
            "other training images pre-trained the model, with jittered colours",
            f"ood test: the official test images re-stained by computation ({shift})",
        ),
        provenance=source.provenance,
    )


def restained(split: Split, *, haematoxylin: float, eosin: float) -> Split:
    """Change the stains of uint8 images (N, 3, H, W) by fixed factors."""
    import torch

    from benchmarks.data import Split

    if haematoxylin == eosin == 1:
        return split
    pixels = split.x.permute(0, 2, 3, 1).cpu().numpy()
    changed = _restained(pixels, (haematoxylin, eosin, 1.0))
    return Split(torch.from_numpy(changed).permute(0, 3, 1, 2).contiguous(), split.y)


def _restained(pixels: np.ndarray, factors: tuple[float, float, float]) -> np.ndarray:
    """Scale the three stains of uint8 pixels (..., 3): haematoxylin, eosin, diaminobenzidine."""
    import numpy as np
    from skimage.color import hed2rgb, rgb2hed

    stains = rgb2hed(pixels) * np.asarray(factors)
    return (hed2rgb(stains) * 255).round().clip(0, 255).astype(np.uint8)
