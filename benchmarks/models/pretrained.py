"""ImageNet weights of the backbones of Table 3: found in a local folder, verified, never unpickled."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from benchmarks import sources, weights
from benchmarks.errors import DataError
from benchmarks.sources import Source


def state_dict(source: Source) -> dict[str, Tensor]:
    """Read verified weights.

    Looked for below SAFLEX_DATA and the data folder, under ``weights/``.

    Raises
    ------
    DataError
        The file is not at hand (the line says what to download and where to put it), or is not the
        published one.
    """
    path = sources.find(source)
    if path is None:
        raise DataError(weights.absent(source))
    sources.verify(source, path)
    return torch.load(path, map_location="cpu", weights_only=True)


def load_except_head(model: nn.Module, source: Source, *, head: str) -> None:
    """Load everything but the classifier `head`, whose classes are ImageNet's."""
    state = {name: value for name, value in state_dict(source).items() if not name.startswith(head)}
    missing, unexpected = model.load_state_dict(state, strict=False)
    missing = [name for name in missing if not name.startswith(head)]
    if missing or unexpected:
        raise DataError(
            f"{source.path} is not of this network: it lacks {missing[:3]} and has {unexpected[:3]}"
        )
