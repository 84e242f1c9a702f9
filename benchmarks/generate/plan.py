"""Which images a generated set asks for: sources, prompts and seeds, drawn once and for ever.

Protocol, Table 3: as many as the extra set with its class histogram, at most one edit a source
image. Imports no torch.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from benchmarks.datasets.image_files import ImageList, Index
from benchmarks.errors import BenchmarkError
from benchmarks.generate import prompts
from benchmarks.seeds import derive

TEXT_PER_CLASS = 50


@dataclass(frozen=True, kw_only=True)
class Request:
    """One image to be made.

    Attributes
    ----------
    source : edited image, below the data set's root; empty for Text2Img.
    source_sha256 : of the edited file.
    label : class index that the image is made for: the upstream label.
    content : class index whose picture it really shows, where that is known (stand-in), else None.
    seed : of this image alone, whatever batch it is made in.
    """

    source: str
    source_sha256: str
    label: int
    prompt: str
    seed: int
    content: int | None = None

    def address(self, generator: Mapping[str, Any]) -> str:
        """Hash of everything that makes the image: 20 hexadecimal digits."""
        made_by = {"request": asdict(self), "generator": dict(generator)}
        canonical = json.dumps(made_by, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()[:20]


def text_requests(index: Index) -> list[Request]:
    """Text2Img: per class as many as the extra set has, at most 50."""
    words = prompts.of(index.name)
    wanted = Counter(index.splits["extra"].labels)
    requests = []
    for label, name in enumerate(index.class_names):
        for number in range(min(wanted[label], TEXT_PER_CLASS)):
            prompt = words.text.format(words.name(name))
            seed = _seed(index.name, f"text/{label}/{number}")
            requests.append(
                Request(source="", source_sha256="", label=label, prompt=prompt, seed=seed)
            )
    return requests


def edit_requests(index: Index, *, instructions: bool) -> list[Request]:
    """Img2Img and InstructPix2Pix: distinct training images, one prompt each, drawn by seed."""
    words = prompts.of(index.name)
    choices = words.instructions if instructions else words.edits
    wanted = Counter(index.splits["extra"].labels)
    # The same sources for every pipeline, so that the rows of the table differ in the edit alone.
    chosen = chosen_sources(index, wanted)
    generator = np.random.default_rng(_seed(index.name, "prompts"))
    requests = []
    for row in chosen:
        label = index.splits["train"].labels[row]
        prompt = choices[generator.integers(len(choices))]
        requests.append(
            Request(
                **source(index, index.splits["train"], row),
                label=label,
                prompt=prompt.format(words.name(index.class_names[label])),
                seed=_seed(index.name, f"edit/{row}"),
            )
        )
    return requests


def chosen_sources(index: Index, wanted: Mapping[int, int]) -> list[int]:
    """Rows of the training list with `wanted[label]` of each class, no row twice."""
    labels = np.asarray(index.splits["train"].labels)
    generator = np.random.default_rng(_seed(index.name, "sources"))
    chosen: list[int] = []
    for label in sorted(wanted):
        rows = np.flatnonzero(labels == label)
        if len(rows) < wanted[label]:
            raise BenchmarkError(
                f"{index.name}: {wanted[label]} edits of class {index.class_names[label]} are "
                f"wanted, but it has {len(rows)} training images and each is edited at most once"
            )
        chosen += sorted(generator.permutation(rows)[: wanted[label]].tolist())
    return chosen


def source(index: Index, listed: ImageList, row: int) -> dict[str, str]:
    """Name and checksum of a source image."""
    path = listed.files[row]
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return {"source": str(path.relative_to(index.root)), "source_sha256": digest}


def _seed(dataset: str, purpose: str) -> int:
    # 31 bits: what every random generator takes.
    return derive(dataset, 0, f"generate/{purpose}") >> 32
