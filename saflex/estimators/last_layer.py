"""The derivative restricted to the classifier's parameters, ``dz = V h + b``.

Only a forward pass of the features h is needed, for the validation batch too: the gradient of the
validation loss with respect to the classifier follows from its features alone.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.autograd.forward_ad as forward_ad
from torch import Tensor, nn

from saflex.errors import EstimatorError
from saflex.forward import ModelView, dual_numbers, logits_of, undisturbed
from saflex.gradient import Tangent
from saflex.losses import Loss, mean_cross_entropy

__all__ = ["classifier_gradient", "classifier_name", "derivative"]


def classifier_name(model: nn.Module, x: Any) -> str:
    """Name of the layer whose output is the logits: the last one called that owns parameters.

    Raises
    ------
    EstimatorError
        If something still happens to the logits after that layer.
    """
    called: list[tuple[str, Tensor]] = []

    def note(name: str) -> Callable[..., None]:
        return lambda _module, _inputs, out: called.append((name, out))

    view = ModelView(model)
    model = view.model
    owners = [(n, m) for n, m in model.named_modules() if any(True for _ in m.parameters(False))]
    handles = [module.register_forward_hook(note(name)) for name, module in owners]
    try:
        with undisturbed(view):
            logits = logits_of(model, x)
    finally:
        for handle in handles:
            handle.remove()
    # The model itself may own parameters (a logit scale): it is called last but is no layer.
    inner = [(name, out) for name, out in called if name]
    if not inner or not _same(inner[-1][1], logits):
        raise EstimatorError(
            f"the output of {type(model).__name__} is not that of its last layer with parameters "
            f"({inner[-1][0] if inner else 'none found'!r}). Name the classifier with "
            "classifier='...' if its output is the logits, or use another estimator."
        )
    return inner[-1][0]


def classifier_gradient(
    model: nn.Module, x: Any, y: Tensor, *, classifier: str, loss: Loss | None = None
) -> Tangent:
    """Gradient of the validation loss with respect to the classifier only.

    Same contract as `saflex.validation_gradient`, without a backward pass through the features.
    """
    view = ModelView(model)
    layer, params = _layer(view, classifier)
    with undisturbed(view):
        features, _ = _features(view.model, x, layer)
        leaves = [p.detach().requires_grad_() for p in params.values()]
        with torch.enable_grad(), view.substituted(list(params.values()), leaves):
            value = (loss or mean_cross_entropy)(layer(features), y)
            grads = torch.autograd.grad(value, leaves)
    return dict(zip(params, grads, strict=True))


def derivative(
    view: ModelView, x: Any, tangent: Mapping[str, Tensor], *, classifier: str
) -> tuple[Tensor, Tensor]:
    """Logits and their derivative along the classifier's part of `tangent`.

    Raises
    ------
    EstimatorError
        If the named layer is missing, frozen, not called, or its output is not the logits.
    """
    layer, params = _layer(view, classifier)
    features, logits = _features(view.model, x, layer)
    direction = {name: tangent[name] for name in params if name in tangent}
    if not direction:
        raise EstimatorError(
            f"the tangent has no entry for the classifier {classifier!r} (its parameters are "
            f"{list(params)}). Use the dict of validation_gradient, whole or restricted to it."
        )
    if isinstance(layer, nn.Linear):
        return logits, _linear_derivative(features, direction, f"{classifier}.")
    moving = [params[name] for name in direction]
    with dual_numbers():
        duals = [
            forward_ad.make_dual(p.detach(), v)
            for p, v in zip(moving, direction.values(), strict=True)
        ]
        with view.substituted(moving, duals):
            slope = forward_ad.unpack_dual(layer(features)).tangent
    return logits, torch.zeros_like(logits) if slope is None else slope


def _linear_derivative(features: Tensor, direction: Mapping[str, Tensor], prefix: str) -> Tensor:
    weight, bias = direction.get(f"{prefix}weight"), direction.get(f"{prefix}bias")
    if weight is None:
        return bias.expand(*features.shape[:-1], bias.shape[-1])
    return torch.nn.functional.linear(features.to(weight.dtype), weight, bias)


def _layer(view: ModelView, classifier: str) -> tuple[nn.Module, dict[str, nn.Parameter]]:
    try:
        layer = view.model.get_submodule(classifier)
    except AttributeError:
        known = [name for name, _ in view.model.named_modules() if name][-3:]
        raise EstimatorError(
            f"classifier={classifier!r} is not a submodule of {type(view.model).__name__}; its "
            f"last ones are {known}."
        ) from None
    prefix = f"{classifier}."
    params = {n: p for n, p in view.require_trainable().items() if n.startswith(prefix)}
    if not params:
        raise EstimatorError(
            f"the classifier {classifier!r} has no trainable parameter of its own (frozen, or tied "
            "to an earlier layer). Unfreeze it, or use another estimator."
        )
    return layer, params


def _features(model: nn.Module, x: Any, layer: nn.Module) -> tuple[Tensor, Tensor]:
    seen: list[tuple[Tensor, Tensor]] = []
    handle = layer.register_forward_hook(lambda _m, inputs, out: seen.append((inputs[0], out)))
    try:
        logits = logits_of(model, x)
    finally:
        handle.remove()
    if not seen or not _same(seen[-1][1], logits):
        raise EstimatorError(
            f"the classifier ({type(layer).__name__}) was called {len(seen)} times and its output "
            "is not the logits: something happens after it. Name another layer, or use another "
            "estimator."
        )
    return seen[-1][0], logits


def _same(out: Any, logits: Tensor) -> bool:
    # Identity, or a view of the same numbers; comparing values would wait for the device.
    return isinstance(out, Tensor) and (
        out is logits or (out.shape == logits.shape and out.data_ptr() == logits.data_ptr())
    )
