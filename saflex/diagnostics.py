"""What to log on every step (docs/method.md, "Diagnostics"), summed on the device without waiting.

Each refinement adds one vector to a running sum, for a stack one per model; reading it is the only
synchronisation.
"""

from typing import Any

import torch
from torch import Tensor

from saflex.labels import deviation

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
# There only where a memory is.
_MEMORY_NAMES = ("memory_agreement", "memory_depth")


class StepLog:
    """Means over the refinements since the last reset.

    Attributes
    ----------
    last : Tensor, shape (..., n), or None before the first
        The numbers of the last refinement, see `named`.
    """

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget everything."""
        self._sum: Tensor | None = None
        self._cosines: Tensor | None = None
        self._steps = self._measured = 0
        self.last: Tensor | None = None

    def record(
        self,
        *,
        pi: Tensor,
        gain: Tensor,
        upstream: Tensor,
        y: Tensor,
        raw: Tensor,
        w: Tensor,
        even: Tensor,
        gradient_norm: Tensor,
        counted: Tensor | None = None,
        scaled: Tensor | None = None,
        averaged: Tensor | None = None,
        depth: Tensor | None = None,
    ) -> None:
        """Add one refinement.

        Parameters
        ----------
        pi, gain, upstream, y : Tensor, shape (..., B, K)
            Pi as measured, Pi of the log-probabilities, upstream and refined labels.
        raw, w : Tensor, shape (..., B)
            Weights before and after normalisation.
        even : Tensor, shape (..., B)
            Weights of the batch as received.
        counted : Tensor of bool, shape (..., B), optional
            Rows with a label; all if not given.
        gradient_norm : Tensor, shape (...) or scalar
        scaled, averaged : Tensor, shape (..., B, K), optional
            What the memory was given, and what it made of it.
        depth : Tensor, shape (...), optional
            Its mean number of visits.
        """
        n = counted.sum(-1) if counted is not None else w.shape[-1]

        def mean(values: Tensor) -> Tensor:
            values = values.to(pi.dtype)
            return values.mean(-1) if counted is None else (values * counted).sum(-1) / n

        accepted = (w > 0).to(pi.dtype)
        squares = w.square().sum(-1)
        share = torch.where(squares > 0, w.sum(-1).square() / (squares * n), 0.0)
        values = [
            mean(pi.abs().mean(-1)),
            deviation(pi, counted).squeeze((-2, -1)),
            mean(_agreement(y, upstream)),
            mean(-torch.special.xlogy(y, y).sum(-1)),
            mean(raw),
            mean(accepted),
            share,
            (accepted.amax(-1) == 0).to(pi.dtype),
            (w * (gain * y).sum(-1)).sum(-1),
            (even * (gain * upstream).sum(-1)).sum(-1),
            gradient_norm,
        ]
        if averaged is not None:
            values += [mean(_agreement(averaged, scaled)), depth]
        total = torch.stack([value.to(pi.dtype).expand(pi.shape[:-2]) for value in values], -1)
        self.last = total
        self._sum = total if self._sum is None else self._sum + total
        self._steps += 1

    def record_cosine(self, cosine: Tensor) -> None:
        """Add one measured cosine between the validation gradient and the batch's own."""
        self._cosines = cosine if self._cosines is None else self._cosines + cosine
        self._measured += 1

    def means(self) -> dict[str, float]:
        """Flat numbers, a stack's averaged; empty but for ``steps`` before the first refinement."""
        rows = self.each()
        found = {name: sum(row[name] for row in rows) / len(rows) for name in rows[0]}
        if self._cosines is not None:
            found["cosine"] = self._cosines.item() / self._measured
        return found

    def each(self) -> list[dict[str, float]]:
        """The means of each model of a stack, shape (R, B, K); of one model, a list of one."""
        steps = {"steps": float(self._steps)}
        if self._sum is None:
            return [steps]
        rows = (self._sum / self._steps).reshape(-1, self._sum.shape[-1])
        return [steps | named(row) for row in rows.tolist()]

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


def named(row: list[float]) -> dict[str, float]:
    """One vector of `StepLog.last` under its names."""
    return dict(zip(_NAMES + _MEMORY_NAMES, row, strict=False))


def _agreement(a: Tensor, b: Tensor) -> Tensor:
    """Whether the arg max is the same, shape (..., B)."""
    return a.argmax(-1) == b.argmax(-1)
