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
from saflex.estimators.forward_mode import named_obstacles
from saflex.failures import explained
from saflex.forward import ModelView, dual_numbers, forward_differentiable, logits_of
from saflex.gradient import Tangent, gradient_of
from saflex.losses import Loss, mean_cross_entropy
from saflex.passes import undisturbed

__all__ = ["classifier_gradient", "classifier_name", "derivative"]


def classifier_name(model: nn.Module, x: Any) -> str:
    """Name of the layer whose output is the logits: the deepest one called that owns parameters.

    Raises
    ------
    EstimatorError
        If something still happens to the logits after that layer, or it is the whole network.
    """
    called: list[tuple[str, _Call]] = []

    def note(name: str) -> Callable[..., None]:
        return lambda _m, args, kwargs, out: called.append((name, _Call(args, kwargs, out)))

    view = ModelView(model)
    model = view.model
    owners = [(n, m) for n, m in model.named_modules() if any(True for _ in m.parameters(False))]
    handles = [
        module.register_forward_hook(note(name), with_kwargs=True)
        # The model itself may own parameters (a logit scale): it is called last but is no layer.
        for name, module in owners
        if name
    ]
    try:
        with undisturbed(view), explained(view, x):
            logits = logits_of(model, x)
    finally:
        for handle in handles:
            handle.remove()
    # A module inside another returns before it.
    layers = [(name, call) for name, call in called if not _is_whole(model, name)]
    deepest = next((name for name, call in layers if call.is_output(logits)), None)
    if deepest is None:
        raise EstimatorError(
            f"the output of {type(model).__name__} is not that of its last layer with parameters "
            f"({layers[-1][0] if layers else 'none found'!r}). Name the classifier with "
            "classifier='...' if its output is the logits, or use another estimator."
        )
    return deepest


def _is_whole(model: nn.Module, name: str) -> bool:
    """Whether a module with layers inside holds every parameter: a network, no classifier."""
    layer = model.get_submodule(name)
    inside = any(True for m in list(layer.modules())[1:] for _ in m.parameters(False))
    return inside and all(n.startswith(f"{name}.") for n, _ in model.named_parameters())


def classifier_gradient(
    model: nn.Module, x: Any, y: Tensor, *, classifier: str, loss: Loss | None = None
) -> Tangent:
    """Gradient of the validation loss with respect to the classifier only.

    Same contract as `saflex.validation_gradient`, without a backward pass through the features.
    """
    view = ModelView(model)
    layer, params = _layer(view, classifier)
    with undisturbed(view), explained(view, x):
        call, _ = _last_call(view.model, x, layer)
        leaves = [view.detached(p).requires_grad_() for p in params.values()]
        with torch.enable_grad(), view.substituted(list(params.values()), leaves):
            value = (loss or mean_cross_entropy)(call.repeated(layer), y)
            return gradient_of(value, dict(zip(params, leaves, strict=True)))


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
    call, logits = _last_call(view.model, x, layer)
    direction = {name: tangent[name] for name in params if name in tangent}
    if not direction:
        raise EstimatorError(
            f"the tangent has no entry for the classifier {classifier!r} (its parameters are "
            f"{list(params)}). Use the dict of validation_gradient, whole or restricted to it."
        )
    if _is_plain_linear(layer) and call.features is not None:
        return logits, _linear_derivative(call.features, direction, f"{classifier}.")
    moving = [params[name] for name in direction]
    with dual_numbers(), forward_differentiable():
        duals = [
            forward_ad.make_dual(view.detached(p), v.to(p.dtype))
            for p, v in zip(moving, direction.values(), strict=True)
        ]
        with named_obstacles(view), view.substituted(moving, duals):
            slope = forward_ad.unpack_dual(call.repeated(layer)).tangent
    return logits, torch.zeros_like(logits) if slope is None else slope


def _is_plain_linear(layer: nn.Module) -> bool:
    """Whether the output is ``W h + b`` and nothing else: a subclass, a parametrisation or a hook may add."""
    added = (layer._forward_hooks, layer._forward_pre_hooks, "forward" in layer.__dict__)
    return type(layer) is nn.Linear and not any(added)


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
    own = {id(p) for p in params.values()}
    if any(p.requires_grad and id(p) not in own for p in layer.parameters()):
        raise EstimatorError(
            f"the classifier {classifier!r} shares a parameter with an earlier layer, whose output "
            "moves with it. Use another estimator."
        )
    return layer, params


class _Call:
    """One call of a layer: with what, and whether what came out is still that."""

    def __init__(self, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
        self.args, self.kwargs, self.out = args, kwargs, out
        self.version = out._version if isinstance(out, Tensor) else None

    @property
    def features(self) -> Tensor | None:
        """The one input of a plain layer."""
        values = [*self.args, *self.kwargs.values()]
        return values[0] if len(values) == 1 and isinstance(values[0], Tensor) else None

    def repeated(self, layer: nn.Module) -> Any:
        return layer(*self.args, **self.kwargs)

    def is_output(self, logits: Tensor) -> bool:
        """Identity, or a view of the same numbers, which nobody has written to since.

        Comparing values would wait for the device.
        """
        out = self.out
        if not isinstance(out, Tensor) or out._version != self.version:
            return False
        return out is logits or (
            out.shape == logits.shape
            and out.stride() == logits.stride()
            and out.dtype == logits.dtype
            and out.data_ptr() == logits.data_ptr()
        )


def _last_call(model: nn.Module, x: Any, layer: nn.Module) -> tuple[_Call, Tensor]:
    seen: list[_Call] = []
    handle = layer.register_forward_hook(
        lambda _m, args, kwargs, out: seen.append(_Call(args, kwargs, out)), with_kwargs=True
    )
    try:
        logits = logits_of(model, x)
    finally:
        handle.remove()
    if len(seen) != 1 or not seen[0].is_output(logits):
        raise EstimatorError(
            f"the classifier ({type(layer).__name__}) was called {len(seen)} times, or its output "
            "is not the logits: something happens after it. Name another layer, or use another "
            "estimator."
        )
    return seen[0], logits
