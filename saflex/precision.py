"""What a pass through a model uses: how exact it can be, and which leaves it makes itself."""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

__all__ = ["DIFFERENCE", "EXACT", "Noted", "Tolerance", "lowest_precision"]


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


class Noted(TorchFunctionMode):
    """Notes what the functions called inside return.

    Attributes
    ----------
    dtypes : set of torch.dtype
        The floating types of the parameters and of the results: a forward may switch autocast on
        itself, and nothing outside shows it.
    made : list of Tensor
        Leaves that were made inside (``x.detach().requires_grad_()``): nobody trains them.
    """

    def __init__(self, view: Any) -> None:
        super().__init__()
        self.dtypes = {_real(p.dtype) for p in view.trainable.values()}
        self.made: list[Tensor] = []

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        before = [(t, t.requires_grad) for t in args[:1] if isinstance(t, Tensor)]
        out = func(*args, **(kwargs or {}))
        if isinstance(out, Tensor):
            if out.is_floating_point() or out.is_complex():
                self.dtypes.add(_real(out.dtype))
            if out.requires_grad and out.is_leaf and all(out is not t for t in args):
                self.made.append(out)
        self.made += [t for t, was in before if t.requires_grad and not was and t.is_leaf]
        return out


def _real(dtype: torch.dtype) -> torch.dtype:
    return dtype.to_real() if dtype.is_complex else dtype


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
