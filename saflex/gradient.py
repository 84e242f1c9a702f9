"""Line 1 of Algorithm 1: the gradient of the validation loss, as a tangent on the parameters."""

from collections.abc import Collection, Mapping
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from saflex.errors import (
    EmptyValidationError,
    EstimatorError,
    NonFiniteGradientError,
    SettingError,
    ShapeError,
)
from saflex.failures import explained
from saflex.forward import ModelView, logits_of
from saflex.leaves import require_apart, require_known_leaves
from saflex.losses import Loss, mean_cross_entropy
from saflex.passes import undisturbed
from saflex.precision import Noted

__all__ = ["Tangent", "gradient_norm", "gradient_of", "validation_gradient"]

#: A direction in parameter space: one tensor per trainable parameter, by name.
Tangent = dict[str, Tensor]


def validation_gradient(
    model: nn.Module,
    x: Any,
    y: Tensor,
    *,
    loss: Loss | None = None,
    parameters: Collection[str] | None = None,
    check: bool = True,
) -> Tangent:
    """Gradient of the validation loss at the current parameters.

    Parameters
    ----------
    model : nn.Module
        Used in evaluation mode and left untouched: `.grad`, buffers, modes, random streams.
    x
        Validation inputs, B' of them, already normalised.
    y : Tensor, shape (..., B') or (..., B', K)
        Hard or soft validation labels.
    loss : callable, optional
        ``loss(logits, y) -> scalar``; the mean cross-entropy of (B, K) logits if not given. Other
        shapes are declared: ``CrossEntropy(layout="tokens")``.
    parameters : collection of str, optional
        Names to differentiate; all trainable ones if not given.
    check : bool
        Raise on a non-finite gradient (waits for the device), and where the logits depend on a
        trained tensor that is no parameter of the model.

    Returns
    -------
    dict of str to Tensor
        Shaped like the parameters; zero for those the loss does not reach.

    Raises
    ------
    EmptyValidationError, NoTrainableParametersError, NonFiniteGradientError, LabelError, ShapeError,
    CheckError

    References
    ----------
    Section 3, Algorithm 1, line 1.
    """
    if isinstance(y, Tensor) and y.numel() == 0:
        raise EmptyValidationError(
            f"the validation batch is empty (y has shape {tuple(y.shape)}). Pass at least one "
            "labelled sample; hold some training samples out if there is no validation set."
        )
    view = ModelView(model)
    params = _selected(view.require_trainable(), parameters)
    if check:
        require_apart(view.trainable)
    with undisturbed(view), explained(view, x):
        # Detached copies: hooks on the loop's own parameters must not fire.
        leaves = [view.detached(p).requires_grad_() for p in params.values()]
        noted = Noted(view) if check else None
        with torch.enable_grad(), view.substituted(list(params.values()), leaves):
            with noted or nullcontext():
                logits = logits_of(view.model, x)
            if noted:
                require_known_leaves(view, logits, known=[*leaves, *noted.made])
            value = (loss or mean_cross_entropy)(logits, y)
            tangent = gradient_of(value, dict(zip(params, leaves, strict=True)))
    if check and not torch.isfinite(gradient_norm(tangent)):
        raise NonFiniteGradientError(non_finite_message(tangent, value))
    return tangent


def gradient_of(
    value: Tensor, leaves: Mapping[str, Tensor], *, keep_graph: bool = False
) -> Tangent:
    """Gradient of a scalar by named leaves: zero where it does not reach one, dense where sparse."""
    if not isinstance(value, Tensor) or value.numel() != 1:
        got = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        raise ShapeError(
            f"the validation loss has {got}, expected one number: reduction='mean', or .mean()."
        )
    if not value.requires_grad:
        raise EstimatorError(
            "autograd finds no way from the validation loss to any parameter: the forward or the "
            "loss runs under torch.no_grad() or detaches what it returns."
        )
    grads = torch.autograd.grad(
        value, list(leaves.values()), allow_unused=True, retain_graph=keep_graph
    )
    return {
        name: torch.zeros_like(p) if g is None else g.to_dense() if g.is_sparse else g
        for (name, p), g in zip(leaves.items(), grads, strict=True)
    }


def gradient_norm(tangent: Tangent) -> Tensor:
    """Euclidean norm over all parameters, a scalar tensor (no waiting for the device)."""
    norms = torch._foreach_norm(list(tangent.values()))
    return torch.linalg.vector_norm(torch.stack([norm.to(norms[0]) for norm in norms]))


def non_finite_message(tangent: Tangent, value: Tensor | None = None) -> str:
    """Say which parameters are affected and what to do."""
    bad = [name for name, g in tangent.items() if not torch.isfinite(g).all()]
    at = "" if value is None else f" (validation loss {value.item():.4g})"
    return (
        f"the validation gradient is not finite in {len(bad)} of {len(tangent)} parameters, first "
        f"{bad[:3]}{at}. Look for NaN in the validation inputs, a diverged model (lower the "
        "learning rate), or overflow under float16 (use bfloat16 or float32)."
    )


def _selected(
    params: dict[str, nn.Parameter], names: Collection[str] | None
) -> dict[str, nn.Parameter]:
    if names is None:
        return params
    missing = sorted(set(names) - set(params))
    if missing or not names:
        raise SettingError(
            f"parameters={list(names)}: {missing or 'an empty selection'} not among the trainable "
            "parameters. Take names from model.named_parameters()."
        )
    return {name: params[name] for name in params if name in set(names)}
