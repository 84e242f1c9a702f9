"""Directional derivative from logits at shifted parameters: no graph, and no formula for any operation.

Central, ``(z(theta + h v) - z(theta - h v)) / 2h``, two forwards, error O(h^2); or one-sided where
the caller has z(theta) already, one forward, error O(h). The right h depends on the model: rounding
asks for a long step, curvature and crossed ReLU kinks for a short one, and `settled_step` finds
where halving the step changes least.
"""

from collections.abc import Mapping
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

from saflex.errors import EstimatorError
from saflex.forward import ModelView, logits_of
from saflex.gradient import gradient_norm
from saflex.passes import as_found, same_noise, without_autocast

__all__ = ["SettledStep", "derivative", "settled_step"]

# Where the search begins: the relative change of the logits, as a power of the precision's unit.
_FIRST_CHANGE = 0.4
_STEPS = 7


def derivative(
    view: ModelView,
    x: Any,
    tangent: Mapping[str, Tensor],
    *,
    step: float,
    logits: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Logits and their derivative along `tangent`.

    Parameters
    ----------
    step : float
        Length of the shift relative to the norm of the shifted parameters, see `settled_step`. A
        stack of models shares one step.
    logits : Tensor, shape (..., B, K), optional
        z(theta) in evaluation mode, where already known: one forward pass instead of two.
    """
    params = [view.trainable[name] for name in tangent]
    theta = [p.detach() for p in params]
    direction = [v.to(p.dtype) for p, v in zip(params, tangent.values(), strict=True)]
    h = _step_length(theta, direction, step)
    shift = [v * h.to(v.dtype) for v in direction]

    def shifted(sign: int) -> Tensor:
        moved = torch._foreach_add(theta, shift, alpha=sign)
        # Both ends see the same noise where a model draws some in evaluation mode too, and nothing
        # that the other one left behind.
        with (
            same_noise(view.devices),
            as_found(view.modules),
            without_autocast(theta[0].device.type),
            view.substituted(params, moved),
        ):
            places = [(t.data_ptr(), t._version) for t in moved]
            z = logits_of(view.model, x)
        for name, t, place, v in zip(tangent, moved, places, shift, strict=True):
            _require_unwritten(view, name, t, place, view.trainable[name], v * sign)
        return z

    above = shifted(+1)
    if logits is not None:
        logits = logits.detach()
        return logits, (above - logits) / h.to(above.dtype)
    below = shifted(-1)
    # The mean of both ends is z(theta) up to O(h^2): no third pass.
    return (above + below) / 2, (above - below) / (2 * h.to(above.dtype))


def _require_unwritten(
    view: ModelView,
    name: str,
    moved: Tensor,
    place: tuple[int, int],
    theta: Tensor,
    shift: Tensor,
) -> None:
    """Refuse a forward that sets the parameter it reads: it takes back a part of the shift.

    A write through ``.data`` shows in the numbers alone, for which an accelerator would be waited.

    Raises
    ------
    EstimatorError
    """
    written = (moved.data_ptr(), moved._version) != place
    if not written and moved.device.type == "cpu":
        due = theta.detach() + shift
        written = not torch.equal(moved, due) and bool(((moved != due) & (due == due)).any())
    if written:
        raise EstimatorError(
            f"a forward of {type(view.model).__name__} writes to its parameter {name} (a constraint "
            "on its norm, such as max_norm), which undoes the shift of a finite difference. Use "
            "estimator='forward-mode' or 'last-layer', or constrain it after optimizer.step()."
        )


class SettledStep(NamedTuple):
    """A relative step, and by what part of itself the derivative changes when it is halved."""

    step: float
    change: float


def settled_step(
    view: ModelView, x: Any, tangent: Mapping[str, Tensor], *, step: float | None = None
) -> SettledStep:
    """The step at which halving changes the derivative least (waits for the device).

    Parameters
    ----------
    x
        Inputs to try it on: two forwards for each of up to seven steps, a factor of four apart.
    step : float, optional
        Try this one alone.
    """

    def slope(step: float) -> Tensor:
        dz = derivative(view, x, tangent, step=step)[1]
        return dz.to(torch.promote_types(dz.dtype, torch.float32))

    if step is not None:
        return SettledStep(step, _change(slope(step), slope(step / 2)))
    logits, dz = derivative(view, x, tangent, step=1e-4)
    params = [view.trainable[name] for name in tangent]
    unit = max(torch.finfo(p.dtype).eps for p in params)
    h = _step_length([p.detach() for p in params], list(tangent.values()), 1e-4)
    moved = float(h * torch.linalg.vector_norm(dz) / torch.linalg.vector_norm(logits))
    # A derivative of zero, or logits of zero, have no scale: stay where the search would begin.
    first = 1e-4 * unit**_FIRST_CHANGE / moved if 0 < moved < float("inf") else 1e-4
    steps = [min(first, 1e-1) * 4.0**-k for k in range(_STEPS)]
    best = SettledStep(steps[0], float("inf"))
    coarse = slope(steps[0])
    for step, finer in pairwise(steps):
        fine = slope(finer)
        change = _change(coarse, fine)
        if change >= best.change:
            break
        best, coarse = SettledStep(step / 2, change), fine
    return best


def _change(coarse: Tensor, fine: Tensor) -> float:
    size = torch.linalg.vector_norm(fine)
    gap = torch.linalg.vector_norm(coarse - fine)
    return float(torch.where(size > 0, gap / size, torch.sign(gap)))


def _step_length(theta: list[Tensor], direction: list[Tensor], step: float) -> Tensor:
    """``step * |theta| / |v|`` as a scalar tensor: the device is not waited for."""
    size = gradient_norm(dict(enumerate(theta)))
    length = gradient_norm(dict(enumerate(direction)))
    tiny = torch.finfo(size.dtype).tiny
    # Parameters all at zero still need a step; a zero direction must not divide by zero.
    return step * torch.where(size > 0, size, torch.ones_like(size)) / length.clamp_min(tiny**0.5)
