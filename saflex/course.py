"""The course of a run: means of the same numbers over successive stretches, kept in bounded memory.

Nothing waits for the device until somebody reads, and a run of any length holds at most
`MOST_STRETCHES` sums: when they are full, neighbours are added and stretches become twice as long.
"""

from typing import Any

import torch
from torch import Tensor

from saflex.diagnostics import named

__all__ = ["MOST_STRETCHES", "Course"]

MOST_STRETCHES = 32


class Course:
    """Sums over stretches of `length` steps each, the last one unfinished."""

    def __init__(self) -> None:
        self.length, self.steps = 1, 0
        self._sums: list[Tensor] = []

    def add(self, values: Tensor, validation_loss: Tensor) -> None:
        """Take in one step: `StepLog.last`, a stack's averaged, and the loss behind its g."""
        mean = values.reshape(-1, values.shape[-1]).mean(0)
        values = torch.cat([validation_loss.to(mean).reshape(1), mean])
        if self.steps == self.length * MOST_STRETCHES:
            self._sums = [a + b for a, b in zip(self._sums[::2], self._sums[1::2], strict=True)]
            self.length *= 2
        if self.steps % self.length == 0:
            self._sums.append(values)
        else:
            self._sums[-1] = self._sums[-1] + values
        self.steps += 1

    def means(self) -> list[dict[str, float]]:
        """Each stretch's mean by name, in order (waits for the device once)."""
        if not self._sums:
            return []
        full, rest = divmod(self.steps, self.length)
        counts = torch.tensor([self.length] * full + [rest] * (rest > 0), device="cpu")
        return [_named(row) for row in (torch.stack(self._sums).cpu() / counts[:, None]).tolist()]

    def mean(self) -> dict[str, float]:
        """The mean over all steps, by name."""
        if not self._sums:
            return {}
        return _named((torch.stack(self._sums).sum(0) / self.steps).tolist())

    def state_dict(self) -> dict[str, Any]:
        return {
            "length": self.length,
            "steps": self.steps,
            "sums": torch.stack(self._sums) if self._sums else None,
        }

    def load_state_dict(self, state: dict[str, Any], device: torch.device) -> None:
        self.length, self.steps = state["length"], state["steps"]
        self._sums = [] if state["sums"] is None else list(state["sums"].to(device).unbind())


def _named(row: list[float]) -> dict[str, float]:
    return {"validation_loss": row[0]} | named(row[1:])
