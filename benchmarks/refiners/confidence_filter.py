"""ALIA's confidence filter (Dunlap et al. 2023), the baseline that SAFLEX replaces in Table 3.

A classifier trained on the clean training set judges each generated image. One that it assigns to
some class with more than that class's mean confidence is dropped: to the image's own class, the edit
changed too little; to another, it lost its label. The rest is kept with its upstream label.
(ALIA's semantic filter, which needs CLIP, is not part of this.)
"""

from __future__ import annotations

import copy
import inspect
import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from benchmarks.errors import BenchmarkError
from benchmarks.refiners import Context, Refiner
from benchmarks.registry import register
from benchmarks.upstream import Augmented
from saflex import Batch, soft_rows

BATCH = 256


REFUSES = {"model": "pairs"}
LIMITS = {"drop": ("both", "mislabelled", "unchanged"), "epochs": {"ge": 1}}


@register("confidence-filter")
class ConfidenceFilter(Refiner):
    """Weight 0 for what the filter drops, equal weights for the rest.

    Parameters
    ----------
    epochs : of the filter's own training on the clean set, from the run's initial weights with its
        optimiser and half a cosine; default: as many as the run has.
    drop : ``both`` as in ALIA, or only ``mislabelled`` or ``unchanged`` images.
    """

    labels_only = True

    def __init__(self, context: Context, *, epochs: int | None = None, drop: str = "both"):
        super().__init__(context)
        if drop not in ("both", "mislabelled", "unchanged"):
            raise BenchmarkError(f"drop={drop!r}: expected both, mislabelled or unchanged")
        self.epochs, self.drop = epochs or context.epochs, drop
        # Before the run's first step: both classifiers start from the same weights.
        self.judge = copy.deepcopy(context.model)
        self.thresholds: Tensor | None = None
        self.dropped: list[Tensor] = []

    def begin_epoch(self, epoch: int) -> None:
        if self.thresholds is None:
            self._train()
            self.thresholds = self._mean_confidence()

    def __call__(self, augmented: Augmented) -> Batch:
        p = self._probabilities(augmented.x)
        confidence, predicted = p.max(-1)
        rows = soft_rows(augmented.y, self.context.data.num_classes, dtype=p.dtype)
        drop = confidence > self.thresholds[predicted]
        same = predicted == rows.argmax(-1)
        if self.drop != "both":
            drop &= same if self.drop == "unchanged" else ~same
        kept = (~drop).to(p.dtype)
        self.dropped.append(drop.float().mean())
        return Batch(augmented.x, rows, kept / kept.sum().clamp(min=1))

    def diagnostics(self) -> dict[str, float]:
        if not self.dropped:
            return {}
        share, self.dropped = torch.stack(self.dropped).mean().item(), []
        return {"dropped": share}

    def state_dict(self) -> dict[str, Any]:
        return {
            "judge": self.judge.state_dict(),
            "thresholds": self.thresholds,
            "dropped": self.dropped,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.judge.load_state_dict(state["judge"])
        self.thresholds, self.dropped = state["thresholds"], list(state["dropped"])

    def _train(self) -> None:
        data, device = self.context.data, self.context.data.train.x.device
        like = self.context.optimizer
        taken = inspect.signature(type(like)).parameters  # AdamW's defaults hold more than it takes
        settings = {
            k: v
            for k, v in like.defaults.items()
            if k in taken and k not in ("foreach", "capturable")
        }
        optimizer = type(like)(self.judge.parameters(), **settings)
        size = math.ceil(len(data.train) / self.context.steps_per_epoch)
        generator = torch.Generator().manual_seed(self.context.seed)
        weights = self.context.class_weights
        # Dropout of the judge must not move the run's own random stream.
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(self.context.seed)
            self.judge.train()
            for epoch in range(self.epochs):
                rate = 0.5 * settings["lr"] * (1 + math.cos(math.pi * epoch / self.epochs))
                for group in optimizer.param_groups:
                    group["lr"] = rate
                order = torch.randperm(len(data.train), generator=generator).to(device)
                for rows in order.split(size):
                    x, y = data.normalize(data.train.x[rows]), data.train.y[rows]
                    loss = cross_entropy(self.judge(x), y, weight=weights)
                    optimizer.zero_grad()
                    loss.backward()
                    optimizer.step()

    def _mean_confidence(self) -> Tensor:
        """Mean over the training images of each class of the judge's probability for it (K,)."""
        split, normalize = self.context.data.train, self.context.data.normalize
        p = torch.cat([self._probabilities(normalize(x)) for x in split.x.split(BATCH)])
        own = p.gather(1, split.y[:, None]).squeeze(1)
        count = torch.bincount(split.y, minlength=p.shape[1])
        total = torch.zeros(p.shape[1], dtype=p.dtype, device=p.device)
        # A class that no training image has is never predicted with confidence above 1.
        return torch.where(count > 0, total.index_add(0, split.y, own) / count.clamp(min=1), 1.0)

    def _probabilities(self, x: Tensor) -> Tensor:
        model: nn.Module = self.judge.eval()
        with torch.no_grad():
            return torch.softmax(model(x).float(), -1)
