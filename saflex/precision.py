"""How exact a pass through a model can be: the lowest precision in it, and what may be missed by it."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

__all__ = ["DIFFERENCE", "EXACT", "Tolerance", "lowest_precision", "noting_precision"]


class Tolerance(NamedTuple):
    """What two ways to one number may differ by.

    Attributes
    ----------
    relative : float
        In parts of the number.
    floor : float
        Rounding that stays where terms cancel, in parts of the terms' norms.
    """

    relative: float
    floor: float


#: Of an exact derivative.
EXACT = {
    "float64": Tolerance(1e-6, 1e-12),
    "float32": Tolerance(2e-3, 2e-5),
    "tf32": Tolerance(2e-2, 5e-3),
    "float16": Tolerance(3e-2, 5e-3),
    "bfloat16": Tolerance(8e-2, 2e-2),
}
#: Of a finite difference, which is as good as its step.
DIFFERENCE = EXACT | {"float64": Tolerance(1e-3, 1e-5), "float32": Tolerance(5e-2, 5e-3)}


@contextmanager
def noting_precision(view: Any) -> Iterator[set[torch.dtype]]:
    """The floating types of the parameters, and of what a pass inside keeps for its backward.

    A forward may switch autocast on itself, and nothing outside shows it.
    """
    seen = {p.dtype for p in view.trainable.values()}

    def note(t: Tensor) -> Tensor:
        if t.is_floating_point():
            seen.add(t.dtype)
        return t

    with torch.autograd.graph.saved_tensors_hooks(note, lambda t: t):
        yield seen


def lowest_precision(seen: set[torch.dtype], view: Any) -> str:
    """The key of `EXACT` and `DIFFERENCE` for a pass that has seen these types."""
    for dtype in (torch.bfloat16, torch.float16):
        if dtype in seen:
            return str(dtype).removeprefix("torch.")
    if torch.float32 in seen:
        cuda = any(d.type == "cuda" for d in view.devices)
        loose = torch.backends.cudnn.allow_tf32 or torch.backends.cuda.matmul.allow_tf32
        return "tf32" if cuda and loose else "float32"
    return "float64"
