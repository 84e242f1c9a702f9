"""Diffusion weights: a local folder, or the hub at a pinned revision; safetensors only. No torch."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

from benchmarks import sources
from benchmarks.errors import DataError

# Weights and configurations of a pipeline's parts; no pickles, no single-file copies, no half copies.
PATTERNS = ("model_index.json", "*/*.json", "*/*.txt", "*/*.safetensors")
IGNORED = ("*.fp16.safetensors", "*.non_ema.safetensors", "safety_checker/*")


@dataclass(frozen=True, kw_only=True)
class Weights:
    """A model on the hub.

    Attributes
    ----------
    revision : commit of the repository; a branch could change under a finished experiment.
    gigabytes : of the files that are needed, float32, to within a tenth.
    """

    repository: str
    revision: str
    gigabytes: float

    @property
    def folder(self) -> str:
        """Name of a local copy below ``weights/``."""
        return self.repository.split("/")[-1]


STABLE_DIFFUSION = Weights(
    repository="stable-diffusion-v1-5/stable-diffusion-v1-5",
    revision="451f4fe16113bff5a5d2269ed5ad43b0592e9a14",
    gigabytes=4.3,
)
INSTRUCT_PIX2PIX = Weights(
    repository="timbrooks/instruct-pix2pix",
    revision="31519b5cb02a7fd89b906d88731cd4d6a7bbf88d",
    gigabytes=4.3,
)


def local(weights: Weights) -> Path | None:
    """Find a copy at ``weights/<name>`` below SAFLEX_DATA or the data folder; None if there is none."""
    given = os.environ.get("SAFLEX_DATA")
    places = [Path(given).absolute()] if given else []
    for place in (*places, sources.home() / "raw"):
        folder = place / "weights" / weights.folder
        if (folder / "model_index.json").is_file():
            return folder
    return None


def folder(weights: Weights, given: Path | None = None) -> Path:
    """Folder of a pipeline's weights: the one given, a local copy, or a download from the hub.

    Raises
    ------
    DataError
        There is neither a copy nor a network; the line says what to put where and how big it is.
    """
    if given is not None:
        if not (given / "model_index.json").is_file():
            raise DataError(
                f"{given} holds no diffusers pipeline (model_index.json is missing): give the folder "
                "that `pipeline.save_pretrained` or a snapshot of the hub made"
            )
        return given
    return local(weights) or _downloaded(weights)


def digest(path: Path) -> str:
    """SHA-256 over names and contents of the files that a pipeline loads, so that the same weights
    have the same address wherever they came from."""
    whole = hashlib.sha256()
    for file in sorted({f for pattern in PATTERNS for f in path.glob(pattern)}):
        name = file.relative_to(path)
        if any(name.match(pattern) for pattern in IGNORED):
            continue
        if kind := sources.foreign(file):
            raise DataError(f"{file} is {kind}: fetch the pipeline's weights again")
        whole.update(f"{name}\x1f{sources.checksum(file, 'sha256')}\x1e".encode())
    return f"sha256:{whole.hexdigest()}"


def _downloaded(weights: Weights) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(
            snapshot_download(
                weights.repository,
                revision=weights.revision,
                allow_patterns=list(PATTERNS),
                ignore_patterns=list(IGNORED),
            )
        )
    except Exception as error:  # the client raises whatever its network made of it
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise DataError(
            f"{weights.repository} ({weights.gigabytes} GB) is not at hand and the hub did not give "
            f"it ({reason}): put a snapshot of revision {weights.revision} at "
            f"weights/{weights.folder} below SAFLEX_DATA"
        ) from error
