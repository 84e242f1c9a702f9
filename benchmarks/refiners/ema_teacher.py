"""EMA teacher (Tarvainen and Valpola 2017, arXiv 1703.01780, Sec. 2): soft labels from averaged weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel

from benchmarks.errors import BenchmarkError
from benchmarks.refiners import Context, Refiner
from benchmarks.registry import register
from benchmarks.upstream import Augmented
from saflex import Batch, soft_rows

REFUSES = {"model": "pairs"}
LIMITS = {"decay": {"ge": 0, "lt": 1}}


@register("ema-teacher")
class EmaTeacher(Refiner):
    """Labels (1 - eps) y + eps p, p predicted by an exponential average of the model's own weights.

    The source adds a consistency cost to the cross-entropy; as a label, the teacher enters SAFLEX's
    own loss and differs from `bootstrapped` in whose prediction p is. Buffers (batch statistics) are
    averaged with the weights, and the teacher predicts in evaluation mode.

    Parameters
    ----------
    decay : of the average, in [0, 1), once there are 1 / (1 - decay) steps; before that the plain
        average of all weights so far, as in the source's code. 0.99 is the source's first phase,
        and these runs are short.
    eps : share in [0, 1] of the teacher's prediction.
    """

    labels_only = True

    def __init__(self, context: Context, *, decay: float = 0.99, eps: float = 0.5):
        super().__init__(context)
        if not 0 <= decay < 1 or not 0 <= eps <= 1:
            raise BenchmarkError(
                f"ema-teacher decay={decay}, eps={eps}: expected a decay in [0, 1), a share in [0, 1]"
            )
        self.eps = eps

        def average(old: Tensor, new: Tensor, count: Tensor) -> Tensor:
            return old + torch.clamp(1 / (count + 1), min=1 - decay) * (new - old)

        self.teacher = AveragedModel(context.model, avg_fn=average, use_buffers=True).eval()
        self.teacher.requires_grad_(False)

    def __call__(self, augmented: Augmented) -> Batch:
        self.teacher.update_parameters(self.context.model)
        with torch.no_grad():
            p = torch.softmax(self.teacher(augmented.x).float(), -1)
        y = soft_rows(augmented.y, p.shape[-1], dtype=p.dtype)
        return Batch.uniform(augmented.x, (1 - self.eps) * y + self.eps * p, p.shape[-1])

    def state_dict(self) -> dict[str, Any]:
        return {"teacher": self.teacher.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.teacher.load_state_dict(state["teacher"])
