"""Stand-in generators: image edits in place of a diffusion model, with label noise that is known.

No diffusion weights are at hand on this machine. A stand-in set exercises everything behind the
generator (manifest, upstream, refiner, memory) and, because the truth is written down, measures
purification: which images are swapped is known. It is no substitute for a row of the paper's Table 3
and carries "stand-in" in its name wherever it appears. Imports no torch, but for RandAugment views.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

from benchmarks.datasets.image_files import Index, decoded
from benchmarks.errors import BenchmarkError
from benchmarks.generate.plan import Request, source
from benchmarks.seeds import derive

SIZE = 256


@dataclass(frozen=True, kw_only=True)
class StandIn:
    """Strong photometric and geometric edits; a share of the images shows another class.

    Attributes
    ----------
    swapped : share in [0, 1] of images that show a training image of another class while the upstream
        label stays: what a diffusion model does when its edit loses the subject.
    """

    swapped: float = 0.3
    batch_size: int = 32
    stand_in: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not 0 <= self.swapped <= 1:
            raise BenchmarkError(f"swapped={self.swapped} is not a share in [0, 1]")

    def identity(self) -> dict[str, Any]:
        return {"pipeline": "stand-in", "version": 1, "swapped": self.swapped, "size": SIZE}

    def requests(self, index: Index) -> list[Request]:
        """One edit of every training image; exactly ``round(swapped N)`` of them are swapped."""
        listed = index.splits["train"]
        labels = np.asarray(listed.labels)
        generator = np.random.default_rng(derive(index.name, 0, "generate/stand-in") >> 32)
        swapped = generator.permutation(len(labels))[: round(self.swapped * len(labels))]
        shown = np.arange(len(labels))
        for row in sorted(swapped.tolist()):
            shown[row] = generator.choice(np.flatnonzero(labels != labels[row]))
        return [
            Request(
                **source(index, listed, int(shown[row])),
                label=int(labels[row]),
                content=int(labels[shown[row]]),
                prompt="",
                seed=derive(index.name, row, "generate/stand-in/edit") >> 32,
            )
            for row in range(len(labels))
        ]

    def make(self, requests: list[Request], index: Index) -> list[Image.Image]:
        return [
            edited(decoded(index.root / r.source), np.random.default_rng(r.seed)) for r in requests
        ]


def edited(image: Image.Image, generator: np.random.Generator) -> Image.Image:
    """Edit one image: crop, mirror, rotate, recolour, blur; 256 x 256."""
    width, height = image.size
    share = generator.uniform(0.6, 0.95, 2)
    box_w, box_h = share[0] * width, share[1] * height
    left, top = generator.uniform(0, width - box_w), generator.uniform(0, height - box_h)
    image = image.resize(
        (SIZE, SIZE), Image.Resampling.BICUBIC, box=(left, top, left + box_w, top + box_h)
    )
    if generator.random() < 0.5:
        image = ImageOps.mirror(image)
    image = image.rotate(generator.uniform(-25, 25), Image.Resampling.BILINEAR)
    for enhance in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
        image = enhance(image).enhance(generator.uniform(0.5, 1.5))
    hue = np.array(image.convert("HSV"))
    hue[..., 0] += np.uint8(generator.integers(-12, 13) % 256)  # of 256 steps around the circle
    image = Image.fromarray(hue, "HSV").convert("RGB")
    return image.filter(ImageFilter.GaussianBlur(generator.uniform(0, 1.5)))


@dataclass(frozen=True, kw_only=True)
class RandAugmentViews:
    """A few fixed RandAugment views of every training image (torchvision, N = 2, M = 9).

    For frozen-trunk features only, where an augmentation must exist before the run; everywhere else
    the upstream ``randaugment`` draws afresh at each step.
    """

    views: int = 2
    batch_size: int = 32
    stand_in: ClassVar[bool] = False
    operations: int = field(default=2)
    magnitude: int = field(default=9)

    def identity(self) -> dict[str, Any]:
        settings = {"operations": self.operations, "magnitude": self.magnitude, "size": SIZE}
        return {"pipeline": "randaugment-views", "version": 1, **settings}

    def requests(self, index: Index) -> list[Request]:
        listed = index.splits["train"]
        return [
            Request(
                **source(index, listed, row),
                label=label,
                content=label,
                prompt="",
                seed=derive(index.name, row, f"generate/randaugment/{view}") >> 32,
            )
            for view in range(self.views)
            for row, label in enumerate(listed.labels)
        ]

    def make(self, requests: list[Request], index: Index) -> list[Image.Image]:
        import torch
        from torchvision.transforms import RandAugment

        augment = RandAugment(self.operations, self.magnitude)
        made = []
        with torch.random.fork_rng(devices=[]):
            for request in requests:
                torch.manual_seed(request.seed)
                image = decoded(index.root / request.source)
                made.append(augment(image.resize((SIZE, SIZE), Image.Resampling.BILINEAR)))
        return made
