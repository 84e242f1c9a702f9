"""Memory: Pi of each training row averaged over its visits before it decides (docs/method.md, Section 4).

One step's Pi is a noisy measurement, taken against one validation batch. Where rows come back
(epochs over a fixed set), averaging a row's measurements decides it on all of them.
"""

from typing import Any

import torch
from torch import Tensor

from saflex.errors import SettingError, ShapeError

__all__ = ["Memory"]

# Rows of the largest training sets, and more: beyond it numbers are names (hashes), not positions.
_MOST_ROWS = 2**28


class Memory:
    """Running average of K numbers per training row.

    Parameters
    ----------
    decay : float in (0, 1]
        Share of a row's old sum that is kept at a visit. 1 averages all visits equally.

    Attributes
    ----------
    total : Tensor, shape (..., N, K), or None before the first visit
        Weighted sums of the measurements of rows 0..N-1.
    weight : Tensor, shape (..., N), or None
        Sums of the weights: with decay 1, the number of visits.
    """

    def __init__(self, decay: float) -> None:
        self.decay = decay
        self.total: Tensor | None = None
        self.weight: Tensor | None = None

    def __call__(self, index: Tensor, row: Tensor) -> Tensor:
        """Take in one measurement of each row of `index` and give the rows' averages.

        Parameters
        ----------
        index : Tensor of integers, shape (..., B)
            Which training row each sample is, from 0 and without large gaps: the memory grows to
            the largest one. A row that is there twice counts with both measurements. On an
            accelerator, an index kept on the CPU saves waiting for the device.
        row : Tensor, shape (..., B, K)
            Scaled Pi.

        Returns
        -------
        Tensor, shape (..., B, K)
        """
        self._require_index(index, row)
        self._grow(self._rows(index), row)
        index = index.to(row.device, torch.long, non_blocking=True)
        columns = index.unsqueeze(-1).expand_as(row)
        kept = self.decay * self.total.gather(-2, columns)
        # Scatter, then add: a row that occurs twice decays once and takes both.
        self.total.scatter_(-2, columns, kept).scatter_add_(-2, columns, row)
        self.weight.scatter_(-1, index, self.decay * self.weight.gather(-1, index))
        self.weight.scatter_add_(-1, index, torch.ones_like(row[..., 0]))
        return self.total.gather(-2, columns) / self.weight.gather(-1, index).unsqueeze(-1)

    def depth(self) -> Tensor:
        """Mean weight of the rows seen so far, shape (...)."""
        return self.weight.sum(-1) / (self.weight > 0).sum(-1).clamp_min(1)

    def state_dict(self) -> dict[str, Any]:
        """Copies: the memory goes on writing into its own."""
        if self.total is None:
            return {}
        return {"total": self.total.clone(), "weight": self.weight.clone()}

    def load_state_dict(self, state: dict[str, Any], device: torch.device) -> None:
        """Take up what `state_dict` gave."""
        copies = {name: value.clone().to(device) for name, value in state.items()}
        self.total, self.weight = copies.get("total"), copies.get("weight")

    def _rows(self, index: Tensor) -> int:
        rows = int(index.max()) + 1
        if rows > _MOST_ROWS:
            raise SettingError(
                f"index has {rows - 1}, and a memory has a place for every number up to the largest. "
                "Pass the position of each sample in the training set, 0 to N-1."
            )
        return rows

    def _grow(self, size: int, row: Tensor) -> None:
        # Nobody is asked how many rows there are: the indices say it.
        known = 0 if self.total is None else self.total.shape[-2]
        if size <= known:
            return
        total = row.new_zeros(*row.shape[:-2], size, row.shape[-1])
        weight = row.new_zeros(*row.shape[:-2], size)
        if self.total is not None:
            total[..., :known, :], weight[..., :known] = self.total, self.weight
        self.total, self.weight = total, weight

    def _require_index(self, index: Any, row: Tensor) -> None:
        if not isinstance(index, Tensor) or index.is_floating_point() or index.dtype == torch.bool:
            got = index.dtype if isinstance(index, Tensor) else type(index).__name__
            raise SettingError(
                f"index is {got}, expected a tensor of integers of shape "
                f"{tuple(row.shape[:-1])}: the training row of each sample (memory={self.decay})."
            )
        if index.shape != row.shape[:-1]:
            raise ShapeError(
                f"index has shape {tuple(index.shape)}, expected {tuple(row.shape[:-1])}: one "
                "training row per sample."
            )
        if index.device.type == "cpu" and index.numel() and int(index.min()) < 0:
            raise SettingError(f"index has {int(index.min())}: rows count from 0.")
