"""The dot-product test of a Jacobian: ``<u, J v> = <J' u, v>`` for any u, on the very rows of Pi.

`Saflex` uses the gradient of the validation loss for u, and random ones once (`saflex.check`); a
function that is given a tangent alone draws its own.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from saflex.errors import CheckError
from saflex.forward import logits_of
from saflex.gradient import Tangent, gradient_of
from saflex.leaves import require_known_leaves
from saflex.passes import undisturbed
from saflex.precision import DIFFERENCE, EXACT, Noted, Tolerance, lowest_precision

__all__ = ["Combination", "Gap", "exact", "random_combinations", "require_transpose"]

# A deviation may be nearly orthogonal to one combination, hardly to three.
_COMBINATIONS = 3


def require_transpose(
    view: Any,
    x: Any,
    tangent: Mapping[str, Tensor],
    dz: Tensor,
    *,
    estimator: str,
    count: int = _COMBINATIONS,
) -> None:
    """Compare a directional derivative with backward passes (waits for the device).

    Parameters
    ----------
    view : saflex.forward.ModelView
    x
        Inputs.
    tangent : mapping of str to Tensor
        The direction v that the estimator moved along.
    dz : Tensor, shape (..., B, K)
        ``J v`` by the estimator.
    count : int
        How many backward passes.

    Raises
    ------
    CheckError
    """
    params = {name: view.trainable[name] for name in tangent}
    with undisturbed(view), torch.enable_grad():
        leaves = {n: view.detached(p).requires_grad_() for n, p in params.items()}
        # Backward passes too: checkpointing runs the forward again.
        with view.substituted(list(params.values()), list(leaves.values())):
            with Noted(view) as noted:
                logits = logits_of(view.model, x)
            require_known_leaves(view, logits, known=[*leaves.values(), *noted.made])
            draws = random_combinations(logits, leaves, count=count)
    tolerance = (DIFFERENCE if estimator == "finite-difference" else EXACT)[
        lowest_precision(noted.dtypes, view)
    ]
    for draw in draws:
        gap = draw.gap(dz, tangent, tolerance)
        if not gap.small:
            raise CheckError(
                f"the derivative of {type(view.model).__name__}'s logits by estimator={estimator!r} "
                f"is not that of a backward pass ({gap.derivative:.6g} for {gap.gradient:.6g} along "
                "a random combination). Try another estimator; look for torch.no_grad() in the "
                "forward (write .detach()), operations without a tangent, or logits= of another "
                "mode or precision."
            )


class Gap(NamedTuple):
    """Both sides of the identity for one function of the logits, and what they may differ by."""

    of: str
    derivative: float
    gradient: float
    tolerance: float

    @property
    def small(self) -> bool:
        """Whether they agree; numbers that are not finite are somebody else's to report."""
        return not abs(self.derivative - self.gradient) > self.tolerance


class Combination(NamedTuple):
    """A random combination of the logits, ``<u, z>``, and its gradient."""

    u: Tensor
    gradient: Tangent

    def gap(self, dz: Tensor, tangent: Mapping[str, Tensor], tolerance: Tolerance) -> Gap:
        """``<u, J v>`` against ``<J' u, v>``: a deviation of J v shows by about its norm."""
        dz = exact(dz)
        products = [exact(self.gradient[n]) * exact(v) for n, v in tangent.items()]
        terms = sum(p.abs().sum().item() for p in products)
        allowed = tolerance.relative * torch.linalg.vector_norm(dz).item()
        return Gap(
            of="a random combination of the logits",
            derivative=(exact(self.u) * dz).sum().item(),
            gradient=sum(p.sum().item() for p in products),
            tolerance=2 * (allowed + tolerance.floor * terms),
        )


def random_combinations(
    logits: Tensor, leaves: Mapping[str, Tensor], *, count: int
) -> list[Combination]:
    """The same few every time, one backward pass each; the graph of the logits is kept."""
    generator = torch.Generator("cpu").manual_seed(0)
    found = []
    for _ in range(count):
        u = torch.randn(logits.shape, generator=generator, device="cpu")
        u = u.to(logits.device, logits.dtype)
        found.append(Combination(u, gradient_of((logits * u).sum(), leaves, keep_graph=True)))
    return found


def exact(t: Tensor) -> Tensor:
    """In float64, where the device has it; a complex number as its two parts."""
    t = torch.view_as_real(t.resolve_conj()) if t.is_complex() else t
    return t.float() if t.device.type == "mps" else t.double()
