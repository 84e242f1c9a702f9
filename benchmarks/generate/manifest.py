"""The manifest of a generated set: what each image was made from, and that it is still that image.

Imports no torch.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from benchmarks import sources
from benchmarks.errors import DataError
from benchmarks.generate.plan import Request
from benchmarks.record import atomic_write
from benchmarks.spec import Frozen


class Entry(Frozen):
    """One image: its request, its address, and the checksum of its file."""

    address: str
    sha256: str
    source: str
    source_sha256: str
    label: int
    prompt: str
    seed: int
    content: int | None = None


class Manifest(Frozen):
    """A whole generated set.

    Attributes
    ----------
    generator : pipeline, weights and settings, part of every address.
    stand_in : made by image edits in place of a diffusion model: no row of the paper's.
    """

    schema_version: Literal[1] = 1
    dataset: str
    name: str
    stand_in: bool
    class_names: tuple[str, ...]
    generator: dict[str, Any]
    images: tuple[Entry, ...]

    @property
    def content(self) -> str:
        """Hash over all addresses, 16 hexadecimal digits: names the set for ever."""
        joined = "\x1f".join(entry.address for entry in self.images)
        return hashlib.sha256(joined.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Location:
    """Where a generated set lies: ``<SAFLEX_HOME>/generated/<dataset>/<name>``."""

    folder: Path

    @property
    def manifest(self) -> Path:
        return self.folder / "manifest.json"

    def image(self, address: str) -> Path:
        return self.folder / "images" / f"{address}.png"


def location(dataset: str, name: str) -> Location:
    """Give the place of a set; a data set's feature form shares the images of the data set."""
    return Location(sources.home() / "generated" / dataset.removesuffix("-features") / name)


def entry(request: Request, address: str, path: Path) -> Entry:
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return Entry(address=address, sha256=digest, **asdict(request))


def write(place: Location, manifest: Manifest) -> None:
    """Write the manifest by atomic rename, last of all: it says that the set is complete."""
    atomic_write(place.manifest, manifest.model_dump_json(indent=1) + "\n")


def read(place: Location) -> Manifest:
    """Read a complete set's manifest.

    Raises
    ------
    DataError
        There is none (the line says how to make it), or it is no manifest.
    """
    dataset, name = place.folder.parts[-2:]
    command = f"python -m benchmarks generate make --dataset {dataset} --images {name}"
    if not place.manifest.is_file():
        raise DataError(
            f"generated images {dataset}/{name} are not at hand ({place.manifest} is missing): "
            f"make them with `{command}`, or put a finished set there"
        )
    try:
        return Manifest.model_validate_json(place.manifest.read_text(encoding="utf-8"))
    except (ValidationError, UnicodeDecodeError, json.JSONDecodeError) as error:
        reason = str(error).splitlines()[0]
        raise DataError(
            f"{place.manifest} is no manifest ({reason}): delete it and run `{command}`; finished "
            "images are kept"
        ) from error


def verified_files(place: Location, manifest: Manifest) -> Sequence[Path]:
    """Files of a set in the manifest's order, each checked against its checksum."""
    files = [place.image(entry.address) for entry in manifest.images]
    for path, made in zip(files, manifest.images, strict=True):
        if not path.is_file():
            raise DataError(f"{path} is in the manifest but missing: make the set again")
        if hashlib.sha256(path.read_bytes()).hexdigest() != made.sha256:
            raise DataError(f"{path} is not the image in the manifest: delete it, make it again")
    return files
