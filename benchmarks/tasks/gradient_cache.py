"""Backward passes in micro-batches that keep the full contrastive batch (Gao et al. 2021, GradCache).

The contrastive loss couples all pairs of a batch, so plain gradient accumulation computes another
loss. Here every micro-batch is encoded once without a graph, the loss of the whole batch is
differentiated with respect to the features, and each micro-batch is encoded again to carry its
features' gradient into the parameters. Gradients equal those of the full batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

Encoder = Callable[[Tensor], Tensor]


def backward(
    inputs: Sequence[tuple[Encoder, Tensor]],
    objective: Callable[..., Tensor],
    *,
    micro_batch: int | None = None,
) -> Tensor:
    """Add the gradient of ``objective(*features)`` to every parameter's `.grad`.

    Parameters
    ----------
    inputs : an encoder and its input (B, ...), one pair for each feature tensor of the objective.
    objective : scalar loss of all features; parameters that it uses itself get their gradient too.
    micro_batch : rows encoded at a time; None encodes each input whole, in one pass.

    Returns
    -------
    Tensor, scalar
        The loss, detached.
    """
    if micro_batch is None:
        loss = objective(*(encode(x) for encode, x in inputs))
        loss.backward()
        return loss.detach()
    states: list[tuple[Tensor, Tensor | None]] = []
    features = []
    with torch.no_grad():
        for encode, x in inputs:
            parts = []
            for chunk in x.split(micro_batch):
                states.append(_random_state(x.device))
                parts.append(encode(chunk))
            features.append(torch.cat(parts).requires_grad_())
    after = _random_state(inputs[0][1].device)
    loss = objective(*features)
    loss.backward()
    recorded = iter(states)
    for (encode, x), whole in zip(inputs, features, strict=True):
        for chunk, gradient in _chunks(x, whole.grad, micro_batch):
            _set_random_state(next(recorded), x.device)  # dropout draws the same masks again
            if gradient is not None:
                encode(chunk).backward(gradient)
    _set_random_state(after, inputs[0][1].device)
    return loss.detach()


def _chunks(
    x: Tensor, gradient: Tensor | None, size: int
) -> Iterator[tuple[Tensor, Tensor | None]]:
    chunks = x.split(size)
    yield from zip(
        chunks, gradient.split(size) if gradient is not None else [None] * len(chunks), strict=True
    )


def _random_state(device: torch.device) -> tuple[Tensor, Tensor | None]:
    cuda = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
    return torch.get_rng_state(), cuda


def _set_random_state(state: tuple[Tensor, Tensor | None], device: torch.device) -> None:
    torch.set_rng_state(state[0])
    if state[1] is not None:
        torch.cuda.set_rng_state(state[1], device)
