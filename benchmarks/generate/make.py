"""Make a generated set: resumable image by image, never twice, the manifest last. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from filelock import FileLock
from PIL import Image

from benchmarks.datasets.image_files import Index
from benchmarks.generate import manifest as manifests
from benchmarks.generate.manifest import Location, Manifest
from benchmarks.generate.plan import Request
from benchmarks.record import replacing


class Generator(Protocol):
    """What makes images: a stand-in or a diffusion pipeline."""

    stand_in: bool
    batch_size: int

    def identity(self) -> dict[str, Any]:
        """Pipeline, weights and settings: with the request, all that decides an image."""

    def requests(self, index: Index) -> list[Request]:
        """List what to make, the same list for the same data."""

    def make(self, requests: list[Request], index: Index) -> list[Image.Image]:
        """Make one batch, each image from its own request's seed."""


def make(
    index: Index,
    name: str,
    generator: Generator,
    *,
    report: Callable[[str], None] = print,
) -> Manifest:
    """Make what is missing of a set, then its manifest.

    Batches are cut from the whole plan: a process that resumes computes a half-finished batch in the
    same company as one that was never stopped, so both write the same files and the same manifest.
    """
    place = manifests.location(index.name, name)
    place.folder.mkdir(parents=True, exist_ok=True)
    with FileLock(str(place.folder / "make.lock")):
        identity = generator.identity()
        requests = generator.requests(index)
        addresses = [request.address(identity) for request in requests]
        there = sum(place.image(address).is_file() for address in addresses)
        report(f"{index.name}/{name}: {there} of {len(requests)} images are there")
        for start in range(0, len(requests), generator.batch_size):
            batch = slice(start, start + generator.batch_size)
            _make_batch(requests[batch], addresses[batch], place, generator, index)
        made = Manifest(
            dataset=index.name,
            name=name,
            stand_in=generator.stand_in,
            class_names=index.class_names,
            generator=identity,
            images=tuple(
                manifests.entry(request, address, place.image(address))
                for request, address in zip(requests, addresses, strict=True)
            ),
        )
        manifests.write(place, made)
        report(f"{index.name}/{name}: {len(requests)} images, content {made.content}")
    return made


def _make_batch(
    requests: list[Request],
    addresses: list[str],
    place: Location,
    generator: Generator,
    index: Index,
) -> None:
    if all(place.image(address).is_file() for address in addresses):
        return
    for address, image in zip(addresses, generator.make(requests, index), strict=True):
        if not place.image(address).is_file():
            _save(image, place.image(address))


def _save(image: Image.Image, target: Path) -> None:
    """Write a PNG by atomic rename: a file that has its name is whole."""
    with replacing(target) as fresh:
        image.convert("RGB").save(fresh, format="PNG")
