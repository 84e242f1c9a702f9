"""Lines 5-6 of Algorithm 1: sample weights from Pi and the chosen labels, summing to 1."""

import torch
from torch import Tensor

from saflex.errors import ShapeError
from saflex.settings import CHOICES, require_choice

__all__ = ["normalised_weights", "sample_weights", "unnormalised_weights"]


def sample_weights(pi: Tensor, y: Tensor, *, rule: str = "algorithm-1") -> Tensor:
    """Weight of each sample, normalised over the batch.

    Parameters
    ----------
    pi : Tensor, shape (..., B, K)
    y : Tensor, shape (..., B, K)
        The labels that will be trained on.
    rule : str
        "algorithm-1": 1 where ``Pi_i . y_i >= 0``, else 0 (line 5; the optimum of the linear
        programme over the box). "theorem-1": 1 where ``sum_k Pi_ik >= 0`` (Equation 11; sums that
        vanish identically are decided by rounding). "soft": proportional to
        ``max(Pi_i . y_i, 0)``, the rule of Ren et al. (2018). "uniform": 1 each.

    Returns
    -------
    Tensor, shape (..., B)
        Sums to 1 over B; **all zero where every sample was rejected**, which the paper's 0/0 leaves
        open. Such a batch contributes a loss of exactly 0: the step is skipped.

    Raises
    ------
    SettingError, ShapeError

    References
    ----------
    Algorithm 1, lines 5-6; Theorem 1; Ren et al. (2018), Learning to Reweight Examples.
    """
    return normalised_weights(unnormalised_weights(pi, y, rule=rule))


def unnormalised_weights(pi: Tensor, y: Tensor, *, rule: str) -> Tensor:
    """Weights before line 6, in [0, 1] except under "soft". Shape (..., B)."""
    require_choice("rule", rule, CHOICES["rule"])
    if pi.shape != y.shape:
        raise ShapeError(
            f"pi has shape {tuple(pi.shape)} and y {tuple(y.shape)}: both must be (..., B, K)."
        )
    if rule == "uniform":
        return torch.ones_like(pi[..., 0])
    if rule == "theorem-1":
        return (pi.sum(-1) >= 0).to(pi.dtype)
    gain = (pi * y).sum(-1)
    return gain.clamp_min(0) if rule == "soft" else (gain >= 0).to(pi.dtype)


def normalised_weights(weights: Tensor) -> Tensor:
    """Line 6: divide by the sum over B, leaving rows of zeros as they are."""
    total = weights.sum(-1, keepdim=True)
    return weights / torch.where(total > 0, total, torch.ones_like(total))
