"""Several models of one shape as one module: stacked parameters, a vmapped forward (`torch.func`).

The stack's loss is the sum over its models, so each one's gradient is its own: a block-diagonal
model that optimisers and the functions of `saflex` treat like any other.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from benchmarks.tasks import Classification
from saflex import Saflex
from saflex.direction import ValidationDirection
from saflex.gradient import Tangent


class Stack(nn.Module):
    """R models, x (R, B, ...) -> logits (R, B, K).

    The given models stay usable: their parameters become views of the stacked ones. Embedding
    tables are padded with rows of zeros to the largest cardinality; nothing ever looks those up.

    Parameters
    ----------
    models : of one `signature`.
    """

    def __init__(self, models: list[nn.Module]):
        super().__init__()
        self.template = copy.deepcopy(models[0])
        for name, module in dict(self.template.named_modules()).items():
            if type(module) is nn.Dropout:
                owner, _, leaf = name.rpartition(".")
                setattr(self.template.get_submodule(owner), leaf, Dropout(module.p))
        own = [dict(model.named_parameters()) for model in models]
        for name in own[0]:
            stacked = nn.Parameter(_padded([parameters[name].detach() for parameters in own]))
            owner, _, leaf = name.rpartition(".")
            self.template.get_submodule(owner)._parameters[leaf] = stacked
            for parameters, view in zip(own, stacked.detach(), strict=True):
                same = view.shape == parameters[name].shape
                parameters[name].data = view if same else view[: len(parameters[name])]
        for name in dict(self.template.named_buffers()):
            owner, _, leaf = name.rpartition(".")
            stacked = torch.stack([model.get_buffer(name) for model in models])
            # One for all where they agree: an index shared by the stack is cheaper to use.
            if (stacked != stacked[:1]).any():
                self.template.get_submodule(owner)._buffers[leaf] = stacked
        self.template_buffers = {name: b.ndim for name, b in models[0].named_buffers()}

    def forward(self, x: Tensor) -> Tensor:
        parameters = dict(self.template.named_parameters())
        buffers = dict(self.template.named_buffers())
        axes = {
            name: 0 if buffer.ndim > self.template_buffers[name] else None
            for name, buffer in buffers.items()
        }
        run = vmap(self._one, in_dims=(0, axes, 0), randomness="different")
        return run(parameters, buffers, x)

    def _one(self, parameters: dict[str, Tensor], buffers: dict[str, Tensor], x: Tensor) -> Tensor:
        return functional_call(self.template, (parameters, buffers), (x,))


class StackedTask(Classification):
    """Classification by a stack: the refiner is told that its rows belong to R models."""

    layout = "stack"


class Dropout(nn.Module):
    """`nn.Dropout` with masks cut from 64-bit random words: four decisions a draw, half the time.

    The chance of dropping is `p` rounded to a multiple of 2^-16; the rest is scaled to match.
    """

    def __init__(self, p: float):
        super().__init__()
        self.dropped = min(round(p * 2**16), 2**16 - 1)

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or not self.dropped:
            return x
        words = torch.randint(-(2**63), 2**63 - 1, ((x.numel() + 3) // 4,), device=x.device)
        bits = words.view(torch.int16)[: x.numel()].view(x.shape)
        keep = (bits >= self.dropped - 2**15).to(x.dtype)
        return x * (keep * (2**16 / (2**16 - self.dropped)))


def signature(model: nn.Module) -> tuple:
    """What models must share to be stacked: every shape but the rows of embedding tables."""
    tables = {f"{n}.weight" for n, m in model.named_modules() if isinstance(m, nn.Embedding)}
    shapes = [(n, tuple(p.shape[n in tables :])) for n, p in model.named_parameters()]
    return (*shapes, *((n, tuple(b.shape)) for n, b in model.named_buffers()))


def _padded(tensors: list[Tensor]) -> Tensor:
    if len({tensor.shape for tensor in tensors}) == 1:
        return torch.stack(tensors)
    rows = max(len(tensor) for tensor in tensors)
    stacked = tensors[0].new_zeros(len(tensors), rows, *tensors[0].shape[1:])
    for target, tensor in zip(stacked, tensors, strict=True):
        target[: len(tensor)] = tensor
    return stacked


def stack_refinement(refine: Saflex, size: int) -> StackedLog:
    """Make the refinement of a stack keep its models apart; return the log of each.

    Algorithm 1 is the same code for a stack, diagnostics included. What is not is the gradient:
    one model's that is not finite must not end the others.
    """
    old = refine.direction
    refine.direction = StackedDirection(
        old.model, old.source, old.settings, optimizer=old.optimizer, loss=old.loss
    )
    return StackedLog(refine, refine.direction, size)


class StackedDirection(ValidationDirection):
    """A direction per model: where a model's gradient is not finite, its direction is 0.

    Attributes
    ----------
    broken : bool (R,), models whose gradient was not finite at some step; None before the first.
    """

    broken: Tensor | None = None

    def batch_gradient(self) -> Tangent:
        g = super().batch_gradient()
        finite = torch.stack([v.flatten(1).isfinite().all(1) for v in g.values()]).all(0)
        self.broken = ~finite if self.broken is None else self.broken | ~finite
        return {n: v.where(finite.view(-1, *[1] * (v.ndim - 1)), 0.0) for n, v in g.items()}

    def norm_of(self, g: Tangent) -> Tensor:
        squares = [v.flatten(1).square().sum(1) for v in g.values()]
        return torch.stack([s.to(squares[0]) for s in squares]).sum(0).sqrt()


@dataclass(frozen=True)
class StackedLog:
    """The diagnostics of each of the `size` models of a stack, and its direction."""

    refine: Saflex
    direction: StackedDirection
    size: int

    def each(self, *, reset: bool) -> list[dict[str, float]]:
        """Means per model over the refinements since the last reset."""
        found = self.refine.log.each()
        if reset:
            self.refine.log.reset()
        return found if len(found) == self.size else found * self.size  # not begun: all the same
