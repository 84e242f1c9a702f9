"""ImageNet weights of the backbones of Table 3: found in a local folder, verified, never unpickled."""

from __future__ import annotations

import importlib
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from benchmarks import registry, sources
from benchmarks.errors import DataError
from benchmarks.sources import Source
from benchmarks.spec import RunSpec


def state_dict(weights: Source) -> dict[str, Tensor]:
    """Read verified weights.

    Looked for below SAFLEX_DATA and the data folder, under ``weights/``.

    Raises
    ------
    DataError
        The file is not at hand (the line says what to download and where to put it), or is not the
        published one.
    """
    path = sources.find(weights)
    if path is None:
        raise DataError(_absent(weights))
    sources.verify(weights, path)
    return torch.load(path, map_location="cpu", weights_only=True)


def load_except_head(model: nn.Module, weights: Source, *, head: str) -> None:
    """Load everything but the classifier `head`, whose classes are ImageNet's."""
    state = {
        name: value for name, value in state_dict(weights).items() if not name.startswith(head)
    }
    missing, unexpected = model.load_state_dict(state, strict=False)
    missing = [name for name in missing if not name.startswith(head)]
    if missing or unexpected:
        raise DataError(
            f"{weights.path} is not of this network: it lacks {missing[:3]} and has {unexpected[:3]}"
        )


def missing(specs: Iterable[RunSpec]) -> list[str]:
    """One line per file of pretrained weights that runs need and this machine lacks, for `doctor`."""
    names = set()
    for spec in specs:
        if spec.settings.model.settings.get("pretrained", True):
            names.add(spec.settings.model.name)
        if spec.settings.dataset.name.endswith("-features"):
            names.add(spec.settings.dataset.settings.get("trunk", "efficientnet-lite0"))
    modules = (importlib.import_module(registry.modules("models")[name]) for name in sorted(names))
    found = [getattr(module, "WEIGHTS", None) for module in modules]
    needed = [weights for weights in found if isinstance(weights, Source)]
    return [_absent(weights) for weights in needed if sources.find(weights) is None]


def _absent(weights: Source) -> str:
    origin = f"download {weights.urls[0]} and put it" if weights.urls else "put it"
    return (
        f"{weights.name} are not at hand ({weights.size / 1e6:.0f} MB): {origin} at "
        f"{weights.path} below SAFLEX_DATA or {sources.home() / 'raw'}"
    )
