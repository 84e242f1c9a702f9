"""Directional derivative from logits at shifted parameters: no graph, any operation.

Central, ``(z(theta + h v) - z(theta - h v)) / 2h``, two forwards, error O(h^2); or one-sided where
the caller has z(theta) already, one forward, error O(h).
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from saflex.forward import ModelView, logits_of, without_autocast
from saflex.gradient import gradient_norm

__all__ = ["derivative"]


def derivative(
    view: ModelView,
    x: Any,
    tangent: Mapping[str, Tensor],
    *,
    step: float = 1e-4,
    logits: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Logits and their derivative along `tangent`.

    Parameters
    ----------
    step : float
        Length of the shift relative to the norm of the shifted parameters. In float32, 1e-4 lies
        between rounding (smaller steps) and curvature or crossed ReLU kinks (larger ones). A stack
        of models shares one step.
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
        with without_autocast(theta[0].device.type), view.substituted(params, moved):
            return logits_of(view.model, x)

    above = shifted(+1)
    if logits is not None:
        return logits, (above - logits) / h.to(above.dtype)
    below = shifted(-1)
    # The mean of both ends is z(theta) up to O(h^2): no third pass.
    return (above + below) / 2, (above - below) / (2 * h.to(above.dtype))


def _step_length(theta: list[Tensor], direction: list[Tensor], step: float) -> Tensor:
    """``step * |theta| / |v|`` as a scalar tensor: the device is not waited for."""
    size = gradient_norm(dict(enumerate(theta)))
    length = gradient_norm(dict(enumerate(direction)))
    tiny = torch.finfo(size.dtype).tiny
    # Parameters all at zero still need a step; a zero direction must not divide by zero.
    return step * torch.where(size > 0, size, torch.ones_like(size)) / length.clamp_min(tiny**0.5)
