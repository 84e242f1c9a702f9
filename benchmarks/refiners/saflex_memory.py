"""SAFLEX with a memory: Pi of each fixed image averaged over epochs before it decides (Table 3).

Generated images are a fixed set. One step's Pi is a noisy measurement, taken against one validation
batch; averaging the measurements of an image decides it on all of them (docs/method.md, "Memory").
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from benchmarks.errors import BenchmarkError
from benchmarks.refiners import Context, Refiner
from benchmarks.registry import register
from benchmarks.upstream import Augmented
from saflex import (
    Batch,
    Saflex,
    SaflexSettings,
    inner_products,
    logit_derivatives,
    sample_weights,
    soft_labels,
    soft_rows,
)
from saflex.labels import scaled_products


class Memory:
    """Running average of one row of K numbers per image.

    Parameters
    ----------
    decay : share in [0, 1) of the old average that is kept; None averages all measurements equally.
    """

    def __init__(self, decay: float | None = None):
        if decay is not None and not 0 <= decay < 1:
            raise BenchmarkError(f"memory decay={decay}: expected a share in [0, 1), or null")
        self.decay = decay
        self.total: Tensor | None = None  # (N, K), weighted sum of measurements
        self.weight: Tensor | None = None  # (N,), sum of the weights

    def __call__(self, index: Tensor, row: Tensor) -> Tensor:
        """Take in one measurement (B, K) of the images `index` (B,), each once; give the averages."""
        self._grow(int(index.max()) + 1, row)
        keep = 1.0 if self.decay is None else self.decay
        self.total[index] = keep * self.total[index] + row
        self.weight[index] = keep * self.weight[index] + 1
        return self.total[index] / self.weight[index, None]

    def state_dict(self) -> dict[str, Tensor]:
        """Copies: the memory goes on writing into its own."""
        if self.total is None:
            return {}
        return {"total": self.total.clone(), "weight": self.weight.clone()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take up what `state_dict` gave."""
        copies = {name: value.clone() for name, value in state.items()}
        self.total, self.weight = copies.get("total"), copies.get("weight")

    def _grow(self, size: int, row: Tensor) -> None:
        # The memory learns from the indices how many images there are.
        known = 0 if self.total is None else len(self.total)
        if size <= known:
            return
        total, weight = row.new_zeros(size, row.shape[-1]), row.new_zeros(size)
        if self.total is not None:
            total[:known], weight[:known] = self.total, self.weight
        self.total, self.weight = total, weight


@register("saflex-memory")
class SaflexMemory(Refiner):
    """The recommended form of SAFLEX, its Pi replaced by the image's average so far.

    Pi is scaled before it is averaged: its size moves by orders of magnitude during training, and an
    unscaled average would remember a few early steps only.

    Parameters
    ----------
    validation_batch : B', rows of validation data behind each gradient.
    decay : see `Memory`.
    settings : keyword arguments of `saflex.Saflex`; forms with noise have nothing to remember.
    """

    def __init__(
        self,
        context: Context,
        *,
        validation_batch: int = 128,
        decay: float | None = None,
        **settings: Any,
    ):
        super().__init__(context)
        self.settings = SaflexSettings().changed(**settings)
        if self.settings.gumbel or self.settings.sign == "printed":
            raise BenchmarkError("saflex-memory averages Pi: gumbel and sign=printed do not apply")
        # Its validation gradient, smoothed and preconditioned as the settings say, is the tangent.
        self.direction = Saflex(
            context.model,
            validation=lambda: context.validation(validation_batch),
            settings=self.settings,
            precondition=context.optimizer if self.settings.precondition else None,
            seed=context.seed,
        ).direction
        self.memory = Memory(decay)
        self.log: list[Tensor] = []

    def __call__(self, augmented: Augmented) -> Batch:
        s, x = self.settings, augmented.x
        z, dz = logit_derivatives(
            self.context.model,
            x,
            self.direction(),
            estimator=s.estimator,
            classifier=self.direction.classifier,
            fd_step=s.fd_step,
        )
        p = torch.softmax(z.float(), -1)
        now = scaled_products(
            inner_products(z, dz, output=s.output), scale=s.scale, probabilities=p
        )
        pi = self.memory(augmented.index, now)
        upstream = soft_rows(augmented.y, pi.shape[-1], dtype=pi.dtype)
        y = upstream
        if s.relabel:
            y = soft_labels(
                pi,
                upstream,
                beta=s.beta,
                tau=s.tau,
                prior=s.prior,
                eps=s.eps,
                probabilities=p,
            )
        w = sample_weights(pi, y, rule=s.rule)
        self._note(now, pi, upstream, y, w)
        return Batch(x, y, w)

    def diagnostics(self) -> dict[str, float]:
        self.direction.raise_if_non_finite()
        if not self.log:
            return {}
        names = ("memory_agreement", "label_unchanged", "accepted", "memory_depth")
        means = torch.stack(self.log).mean(0).tolist()
        self.log = []
        return dict(zip(names, means, strict=True))

    def state_dict(self) -> dict[str, Any]:
        return {
            "direction": self.direction.state_dict(),
            "memory": self.memory.state_dict(),
            "log": list(self.log),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.direction.load_state_dict(state["direction"])
        self.memory.load_state_dict(state["memory"])
        self.log = list(state["log"])

    def _note(self, now: Tensor, pi: Tensor, upstream: Tensor, y: Tensor, w: Tensor) -> None:
        """Share whose arg max the memory shares with this step, label kept, weight > 0, depth."""
        values = (
            (now.argmax(-1) == pi.argmax(-1)).float().mean(),
            (y.argmax(-1) == upstream.argmax(-1)).float().mean(),
            (w > 0).float().mean(),
            self.memory.weight[self.memory.weight > 0].mean(),
        )
        self.log.append(torch.stack(values))
