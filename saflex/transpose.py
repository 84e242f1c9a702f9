"""The dot-product test of a Jacobian: ``<u, J v> = <J' u, v>`` for any u, on the very rows of Pi.

`Saflex` uses the validation loss for u (`saflex.check`); a function that is given a tangent alone
draws one.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from saflex.errors import CheckError
from saflex.forward import logits_of
from saflex.gradient import gradient_of
from saflex.leaves import require_known_leaves
from saflex.passes import undisturbed
from saflex.precision import DIFFERENCE, EXACT, lowest_precision, noting_precision
from saflex.validation import map_tensors

__all__ = ["require_transpose"]

# A deviation may be nearly orthogonal to one combination, hardly to three.
_COMBINATIONS = 3


def require_transpose(
    view: Any, x: Any, tangent: Mapping[str, Tensor], dz: Tensor, *, estimator: str
) -> None:
    """Compare a directional derivative with three backward passes (waits for the device).

    Parameters
    ----------
    view : saflex.forward.ModelView
    x
        Inputs.
    tangent : mapping of str to Tensor
        The direction v that the estimator moved along.
    dz : Tensor, shape (..., B, K)
        ``J v`` by the estimator.

    Raises
    ------
    CheckError
    """
    params = {name: view.trainable[name] for name in tangent}
    with undisturbed(view), torch.enable_grad(), noting_precision(view) as seen:
        leaves = {n: view.detached(p).requires_grad_() for n, p in params.items()}
        with view.substituted(list(params.values()), list(leaves.values())):
            logits = logits_of(view.model, map_tensors(x, Tensor.detach))
        others = (p for name, p in view.trainable.items() if name not in params)
        require_known_leaves(view, logits, known=[*leaves.values(), *others])
        generator = torch.Generator().manual_seed(0)
        draws = []
        for _ in range(_COMBINATIONS):
            u = torch.randn(dz.shape, generator=generator).to(dz.device, logits.dtype)
            draws.append((u, gradient_of((logits * u).sum(), leaves, keep_graph=True)))
    relative, floor = (DIFFERENCE if estimator == "finite-difference" else EXACT)[
        lowest_precision(seen, view)
    ]
    for u, back in draws:
        found = (u.double() * dz.double()).sum()
        products = [back[n].double() * tangent[n].double() for n in tangent]
        wanted = sum(p.sum() for p in products)
        # Along a random combination a deviation shows by about its norm.
        allowed = relative * torch.linalg.vector_norm(dz.double())
        allowed = allowed + floor * sum(p.abs().sum() for p in products)
        if (found - wanted).abs() > 2 * allowed:
            raise CheckError(
                f"the derivative of {type(view.model).__name__}'s logits by estimator={estimator!r} "
                f"is not that of a backward pass ({found:.6g} for {wanted:.6g} along a random "
                "combination). Try another estimator; look for torch.no_grad() in the forward "
                "(write .detach()), operations without a tangent, or logits= of another mode or "
                "precision."
            )
