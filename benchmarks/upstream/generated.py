"""Fixed sets of images as an upstream (Table 3): generated ones, and extra real ones as upper bound."""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks import registry
from benchmarks.data import Data
from benchmarks.datasets import image_files
from benchmarks.errors import BenchmarkError
from benchmarks.generate import manifest as manifests
from benchmarks.registry import register
from benchmarks.upstream import Augmented, Upstream


class FixedSet(Upstream):
    """Serve a fixed set of N images, each step a draw without replacement.

    The augmented batch is as large as the clean one, or N where there are fewer. `Augmented.index`
    is the image's place in the set, which a memory over epochs goes by.

    Attributes
    ----------
    x, y : raw inputs (N, ...) and upstream labels (N,).
    rows : what a pass over the set goes through, indices below N; an image may be there several times.
    """

    def __init__(self, data: Data, x: Tensor, y: Tensor):
        if x.shape[1:] != data.train.x.shape[1:]:
            raise BenchmarkError(
                f"the set's inputs have shape {tuple(x.shape[1:])}, those of {data.name} "
                f"{tuple(data.train.x.shape[1:])}: with features as data set, name their `trunk`"
            )
        device = data.train.x.device
        self.normalize, self.x, self.y = data.normalize, x.to(device), y.to(device)
        self.rows = torch.arange(len(y), device=device)

    def __call__(self, x: Tensor, y: Tensor, generator: torch.Generator) -> Augmented:
        order = torch.randperm(len(self.rows), generator=generator, device=self.x.device)
        chosen = self.rows[order[: len(y)]]
        return Augmented(x=self.normalize(self.x[chosen]), y=self.y[chosen], index=chosen)


NEEDS = {"generated": {}, "extra-real": {"dataset": "extra"}}
OFFERS = ()


@register("generated")
class Generated(FixedSet):
    """Serve a generated set, verified against its manifest.

    Parameters
    ----------
    images : name of the set, such as ``img2img`` or ``stand-in``.
    trunk : encode the images by this frozen trunk, where the data set is features.
    content : the manifest's hash, 16 digits, to pin the very set in the run's key; else unchecked.
    """

    def __init__(
        self, data: Data, *, images: str, trunk: str | None = None, content: str | None = None
    ):
        place = manifests.location(data.name, images)
        self.manifest = manifests.read(place)
        if content not in (None, self.manifest.content):
            raise BenchmarkError(
                f"{place.folder} holds the set {self.manifest.content}, the suite wants {content}: "
                "the data or the generator's settings differ; make the set again"
            )
        if self.manifest.class_names != data.class_names:
            raise BenchmarkError(
                f"{place.folder} was made for {len(self.manifest.class_names)} classes, "
                f"{data.name} has {data.num_classes}: make the set again from the present data"
            )
        files = manifests.verified_files(place, self.manifest)
        module = registry.module("datasets", self.manifest.dataset)
        found = image_files.pixels(files, module.prepare, name=f"{images}", root=place.folder)
        x = torch.from_numpy(found.x)
        if trunk is not None:
            from benchmarks.datasets import frozen_features

            x = frozen_features.features(x, trunk)
        super().__init__(data, x, torch.tensor([entry.label for entry in self.manifest.images]))
        if data.extra is not None:
            wanted = torch.bincount(data.extra.y, minlength=data.num_classes)
            self.rows = repeated(self.y, wanted.to(self.y.device))


def repeated(labels: Tensor, wanted: Tensor) -> Tensor:
    """Indices of all images, those of a class with fewer than `wanted` (K,) of them again and again.

    ALIA adds as many images as the extra set has of each class, and has 50 a class by Text2Img: where
    that is too few it draws with replacement. Here each is repeated as often as any other, plus one.
    """
    rows = []
    for label in range(len(wanted)):
        own = (labels == label).nonzero()[:, 0]
        count = max(len(own), int(wanted[label])) if len(own) else 0
        rows.append(own.repeat(-(-count // max(len(own), 1)))[:count])
    return torch.cat(rows).sort().values


@register("extra-real")
class ExtraReal(FixedSet):
    """Serve the data set's extra real images: what generated ones could at best be worth (ALIA)."""

    def __init__(self, data: Data):
        if data.extra is None:
            raise BenchmarkError(f"{data.name} has no extra real images")
        super().__init__(data, data.extra.x, data.extra.y)
