"""Learning to reweight (Ren et al. 2018, arXiv 1803.09050, Algorithm 1), by its own double backward.

Weights eps = 0 of the batch's losses; a gradient step on the weighted loss, kept as a function of eps;
the validation loss behind it; w = max(-d loss / d eps, 0), normalised. As eps = 0, the derivative is the
inner product <g_validation, g_i> of gradients at the present weights, which `weights-only` computes
in evaluation mode. Both passes here are in training mode, as in the authors' code (`is_training=True`):
where the network has dropout or batch normalisation, the two differ.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from benchmarks.errors import BenchmarkError
from benchmarks.refiners import Context, Refiner
from benchmarks.registry import register
from benchmarks.upstream import Augmented
from saflex import Batch, soft_cross_entropy, soft_rows


def reweighted(
    model: nn.Module, batch: tuple[Tensor, Tensor], validation: tuple[Tensor, Tensor]
) -> Tensor:
    """Weights (B,) of Algorithm 1, lines 4 to 11, in the model's present mode; summing to 1, or all 0.

    Parameters
    ----------
    batch, validation : inputs and soft labels, (B, ...) and (B, K), (B', ...) and (B', K); labels times
        class weights give the weighted losses, whose divisors normalising takes out.
    """
    leaves = {
        n: p.detach().requires_grad_() for n, p in model.named_parameters() if p.requires_grad
    }

    def logits(parameters: dict[str, Tensor], x: Tensor) -> Tensor:
        # Copies, so that the batch statistics of the training loop stay as they are.
        buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
        return functional_call(model, {**buffers, **parameters}, (x,)).float()

    with torch.enable_grad():
        eps = batch[1].new_zeros(len(batch[1]), requires_grad=True)
        loss = soft_cross_entropy(logits(leaves, batch[0]), batch[1], eps)
        step = torch.autograd.grad(
            loss, list(leaves.values()), create_graph=True, materialize_grads=True
        )
        # The step's length is 1, as in the authors' code: normalising takes any other out again.
        moved = {name: p - s for (name, p), s in zip(leaves.items(), step, strict=True)}
        after = soft_cross_entropy(logits(moved, validation[0]), validation[1])
        (slope,) = torch.autograd.grad(after, eps)
    w = (-slope).clamp_min(0)
    return w / torch.where(w.sum() > 0, w.sum(), 1.0)


REFUSES = {"model": "pairs"}


@register("l2rw")
class LearningToReweight(Refiner):
    """Upstream labels and the weights of Algorithm 1.

    Parameters
    ----------
    validation_batch : rows of validation data behind each decision (protocol: 128).
    """

    labels_only = True

    def __init__(self, context: Context, *, validation_batch: int = 128):
        super().__init__(context)
        if validation_batch < 1:
            raise BenchmarkError(f"l2rw validation_batch={validation_batch}: expected 1 or more")
        self.validation_batch, self.steps = validation_batch, 0

    def __call__(self, augmented: Augmented) -> Batch:
        k, x = self.context.data.num_classes, augmented.x
        x_val, y_val = self.context.validation(self.validation_batch)
        y = soft_rows(augmented.y, k, dtype=torch.float32)
        self.steps += 1
        # Dropout masks of its own: the run's stream is every row's alike.
        with torch.random.fork_rng(devices=[x.device] if x.device.type == "cuda" else []):
            torch.manual_seed(self.context.seed + self.steps)
            y_val = soft_rows(y_val, k, dtype=torch.float32)
            batch, validation = (x, self.weighted(y)), (x_val, self.weighted(y_val))
            w = reweighted(self.context.model, batch, validation)
        return Batch(x, y, w)

    def state_dict(self) -> dict[str, Any]:
        return {"steps": self.steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.steps = state["steps"]
