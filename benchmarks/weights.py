"""Pretrained weights that runs start from: how big they are and which are missing. Imports no torch."""

from __future__ import annotations

import ast
from collections.abc import Iterable

from benchmarks import registry, sources
from benchmarks.sources import Source
from benchmarks.spec import RunSpec

# open_clip downloads them itself, unless it is given this file (`models/clip.py`).
BY_OPEN_CLIP = {
    "clip-vit-b16": Source(
        name="CLIP weights of ViT-B/16 (OpenAI, by open_clip)",
        path="weights/vit-b-16-openai.safetensors",
        size=598_500_000,
    )
}


def of(model: str) -> Source | None:
    """Give the file that a registered model's module declares as ``WEIGHTS``; None if it has none.

    The declaration is read without importing the module, which would import torch.
    """
    if model in BY_OPEN_CLIP:
        return BY_OPEN_CLIP[model]
    call = registry.declared("models", model, "WEIGHTS")
    return call and Source(**{k.arg: ast.literal_eval(k.value) for k in call.keywords})


def missing(specs: Iterable[RunSpec]) -> list[Source]:
    """Files of pretrained weights that runs need and this machine lacks, each once."""
    names = set()
    for spec in specs:
        if spec.settings.model.settings.get("pretrained", True):
            names.add(spec.settings.model.name)
        if spec.settings.dataset.name.endswith("-features"):
            names.add(spec.settings.dataset.settings.get("trunk", "efficientnet-lite0"))
    found = [of(name) for name in sorted(names)]
    return [source for source in found if source and sources.find(source) is None]


def absent(source: Source) -> str:
    """Say what to download, how big it is, and where to put it."""
    origin = f"download {source.urls[0]} and put it" if source.urls else "put it"
    if source in BY_OPEN_CLIP.values():
        origin = "open_clip downloads them when first needed, or put its file"
    return (
        f"{source.name} are not at hand ({source.size / 1e6:.0f} MB): {origin} at "
        f"{source.path} below SAFLEX_DATA or {sources.home() / 'raw'}"
    )
