"""An oracle for any model, loss and layout: one small SGD step lowers the validation loss as promised.

It needs no formula of Pi: it trains on what the refiner gave and looks what the validation loss does.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from saflex import Batch, Saflex

KEPT = "right: a small step lowers the validation loss by what was promised"


def keeps_promise(
    refine: Saflex,
    model: nn.Module,
    batch: Batch,
    validation_loss: Callable[[], Tensor],
    *,
    step: float = 1e-6,
    tolerance: float = 1e-3,
) -> str:
    """Compare the fall of `validation_loss` with ``gain``, for a float64 model; parameters come back."""
    promised = refine.diagnostics(reset=True)["gain"]
    model.eval()
    params = [p for p in model.parameters() if p.requires_grad]
    before = validation_loss().item()
    loss = refine.loss(model, batch)
    grads = torch.autograd.grad(loss, params, allow_unused=True)
    start = [p.detach().clone() for p in params]
    with torch.no_grad():
        for p, g in zip(params, grads, strict=True):
            if g is not None:
                p.sub_(g, alpha=step)
        fall = (before - validation_loss().item()) / step
        for p, value in zip(params, start, strict=True):
            p.copy_(value)
    assert promised > 0, f"nothing was promised: {promised}"
    assert abs(fall - promised) <= tolerance * promised, f"promised {promised}, fell by {fall}"
    return KEPT
