"""What to log on every step (docs/method.md, "Diagnostics"), summed on the device without waiting.

Each refinement adds one vector to a running sum; reading it is the only synchronisation.
"""

from typing import Any

import torch
from torch import Tensor

__all__ = ["StepLog"]

_NAMES = (
    "pi_mean_abs",
    "pi_std",
    "label_unchanged",
    "label_entropy",
    "weight_mean",
    "accepted",
    "effective_share",
    "all_rejected",
    "gain",
    "gain_upstream",
    "gradient_norm",
)


class StepLog:
    """Means over the refinements since the last reset."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget everything."""
        self._sum: Tensor | None = None
        self._cosines: Tensor | None = None
        self._steps = self._measured = 0

    def record(
        self,
        *,
        pi: Tensor,
        gain: Tensor,
        upstream: Tensor,
        y: Tensor,
        raw: Tensor,
        w: Tensor,
        gradient_norm: Tensor,
    ) -> None:
        """Add one refinement.

        Parameters
        ----------
        pi, gain, upstream, y : Tensor, shape (..., B, K)
            Pi as used, Pi of the log-probabilities, upstream and refined labels.
        raw, w : Tensor, shape (..., B)
            Weights before and after normalisation.
        gradient_norm : Tensor, scalar
        """
        accepted = (w > 0).to(pi.dtype)
        squares = w.square().sum(-1)
        share = torch.where(squares > 0, 1 / (squares * w.shape[-1]), 0.0)
        values = (
            pi.abs().mean(),
            pi.std((-2, -1), correction=0).mean(),
            (y.argmax(-1) == upstream.argmax(-1)).to(pi.dtype).mean(),
            -torch.special.xlogy(y, y).sum(-1).mean(),
            raw.mean(),
            accepted.mean(),
            share.mean(),
            (accepted.amax(-1) == 0).to(pi.dtype).mean(),
            (w * (gain * y).sum(-1)).sum(-1).mean(),
            (gain * upstream).sum(-1).mean(),
            gradient_norm.to(pi.dtype),
        )
        total = torch.stack(values)
        self._sum = total if self._sum is None else self._sum + total
        self._steps += 1

    def record_cosine(self, cosine: Tensor) -> None:
        """Add one measured cosine between the validation gradient and the batch's own."""
        self._cosines = cosine if self._cosines is None else self._cosines + cosine
        self._measured += 1

    def means(self) -> dict[str, float]:
        """Flat numbers; empty but for ``steps`` before the first refinement."""
        found: dict[str, float] = {"steps": float(self._steps)}
        if self._sum is not None:
            found |= dict(zip(_NAMES, (self._sum / self._steps).tolist(), strict=True))
        if self._cosines is not None:
            found["cosine"] = self._cosines.item() / self._measured
        return found

    def state_dict(self) -> dict[str, Any]:
        return {
            "sum": None if self._sum is None else self._sum.clone(),
            "cosines": None if self._cosines is None else self._cosines.clone(),
            "steps": self._steps,
            "measured": self._measured,
        }

    def load_state_dict(self, state: dict[str, Any], device: torch.device) -> None:
        self._sum = None if state["sum"] is None else state["sum"].to(device)
        self._cosines = None if state["cosines"] is None else state["cosines"].to(device)
        self._steps, self._measured = state["steps"], state["measured"]
