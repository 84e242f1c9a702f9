"""The model as a function of its parameters, with the training loop left as it was found.

Algorithm 1 differentiates f(x; theta) at parameters that belong to somebody else's training loop.
Everything that touches the model goes through the two contexts here: `undisturbed` and
`ModelView.substituted`.
"""

import functools
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
import torch.autograd.forward_ad as forward_ad
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from saflex.calling import Calling
from saflex.errors import NoTrainableParametersError, SettingError, ShapeError

__all__ = ["ModelView", "logits_of", "undisturbed", "unwrapped"]

# Device types whose random state torch.random.fork_rng can save by index.
_FORKABLE = ("cuda", "xpu")


def unwrapped(model: nn.Module) -> nn.Module:
    """The module inside `torch.compile` and (Distributed)DataParallel wrappers.

    The reducer of a wrapper must not see our passes, and forward mode cannot be compiled.
    """
    while True:
        if hasattr(model, "_orig_mod"):
            model = model._orig_mod
        elif isinstance(model, (nn.parallel.DistributedDataParallel, nn.DataParallel)):
            model = model.module
        else:
            return model


class ModelView:
    """One walk over a model: its modules, its trainable parameters and where each is used.

    Walking is the main cost of a small model's refinement, so a call walks once.

    Attributes
    ----------
    model : nn.Module
        Without its wrappers.
    modules : list of nn.Module
    trainable : dict of str to Parameter
        Those that need a gradient; tied ones once, frozen ones not at all.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = unwrapped(model)
        self.modules: list[nn.Module] = []
        self.trainable: dict[str, nn.Parameter] = {}
        self.devices: set[torch.device] = set()
        self._slots: list[tuple[dict[str, Any], str, nn.Parameter]] = []
        seen: set[int] = set()
        for prefix, module in self.model.named_modules():
            self.modules.append(module)
            for name, p in module._parameters.items():
                if p is None:
                    continue
                self.devices.add(p.device)
                if p.requires_grad:
                    self._slots.append((module._parameters, name, p))
                    if id(p) not in seen:
                        seen.add(id(p))
                        self.trainable[f"{prefix}.{name}" if prefix else name] = p

    def require_trainable(self) -> dict[str, nn.Parameter]:
        """The trainable parameters.

        Raises
        ------
        NoTrainableParametersError
            If there is none.
        """
        if not self.trainable:
            raise NoTrainableParametersError(
                f"{type(self.model).__name__} has no parameter with requires_grad=True, so no "
                "training step can change its validation loss. Unfreeze a layer, or train on the "
                "upstream batch."
            )
        return self.trainable

    @contextmanager
    def substituted(self, params: Sequence[Tensor], values: Sequence[Tensor]) -> Iterator[None]:
        """Run the model with `values` in place of `params`, wherever each one is used.

        Direct writes to the parameter dictionaries: unlike `torch.func.functional_call` this costs
        microseconds on a small model, and unlike an in-place update it cannot change a single bit.
        """
        by_identity = {id(p): value for p, value in zip(params, values, strict=True)}
        slots = [slot for slot in self._slots if id(slot[2]) in by_identity]
        # LSTM and its kin read a second list of their parameters.
        recurrent = [m for m in self.modules if "_flat_weights_names" in m.__dict__]
        try:
            for home, name, p in slots:
                home[name] = by_identity[id(p)]
            _refresh_flat_weights(recurrent)
            yield
        finally:
            for home, name, p in slots:
                home[name] = p
            _refresh_flat_weights(recurrent)


def logits_of(model: nn.Module, x: Any) -> Tensor:
    """Call ``model(x)`` (``model(**x)`` for a mapping) and return its logits.

    Raises
    ------
    ShapeError
        If the model returns something without a class dimension.
    """
    return Calling()(model, x)


def _refresh_flat_weights(recurrent: Sequence[nn.Module]) -> None:
    for module in recurrent:
        module._flat_weights = [module._parameters.get(n) for n in module._flat_weights_names]


@contextmanager
def undisturbed(view: ModelView) -> Iterator[None]:
    """Evaluation mode for the passes of Algorithm 1, and afterwards nothing has happened.

    Evaluation mode makes Pi deterministic and each sample's row its own (no batch statistics, no
    dropout). Modes, buffers, the random streams and a caller's autocast cache come back as they
    were. Gradients are off; float16 autocast is switched off because nobody scales the validation
    loss here (bfloat16 stays for the validation gradient and the features of the last layer).
    """
    training = [m for m in view.modules if m.training]
    buffers = _BufferGuard(view.modules)
    accelerators = {d for d in view.devices if d.type != "cpu"}
    with ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(devices=[]))
        for kind in {d.type for d in accelerators if d.type in _FORKABLE}:
            indices = [d.index for d in accelerators if d.type == kind]
            stack.enter_context(torch.random.fork_rng(indices, device_type=kind))
        if any(_is_compiled(module) for module in view.modules):
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        _enter_autocast(stack, {"cpu"} | {d.type for d in accelerators})
        stack.enter_context(torch.no_grad())
        try:
            _set_mode(training, False)
            yield
        finally:
            _set_mode(training, True)
            buffers.restore()


def _set_mode(modules: Sequence[nn.Module], training: bool) -> None:
    for module in modules:
        if type(module).__setattr__ is nn.Module.__setattr__:
            # What nn.Module does with a flag in the end, without its ten checks.
            object.__setattr__(module, "training", training)
        else:
            module.training = training


def _is_compiled(module: nn.Module) -> bool:
    state = module.__dict__
    return state.get("_compiled_call_impl") is not None or "_orig_mod" in state.get("_modules", ())


def _enter_autocast(stack: ExitStack, device_types: set[str]) -> None:
    for kind in device_types:
        if torch.is_autocast_enabled(kind):
            dtype = torch.get_autocast_dtype(kind)
            # A cast cached under no_grad would be reused by the training forward and cut its graph.
            stack.enter_context(
                torch.autocast(
                    kind, dtype=dtype, enabled=dtype != torch.float16, cache_enabled=False
                )
            )


class _BufferGuard:
    """Remembers buffers (running statistics, counters) and puts back what a forward changed."""

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        self._slots = [
            (module._buffers, name, buffer)
            for module in modules
            for name, buffer in module._buffers.items()
            if buffer is not None
        ]
        self._versions = [buffer._version for _, _, buffer in self._slots]
        self._copies = [buffer.detach().clone() for _, _, buffer in self._slots]

    def restore(self) -> None:
        for (home, name, buffer), version, copy in zip(
            self._slots, self._versions, self._copies, strict=True
        ):
            if home.get(name) is not buffer:
                home[name] = buffer
            if buffer._version != version:
                with torch.no_grad():
                    buffer.copy_(copy)


@contextmanager
def dual_numbers() -> Iterator[None]:
    """A level of forward-mode differentiation."""
    with forward_ad.dual_level():
        _load_forward_formulas()
        yield


@functools.cache
def _load_forward_formulas() -> None:
    # The first dual number of a process makes torch 2.14 warn of its own use of torch.jit.script.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        forward_ad.make_dual(torch.zeros(1), torch.zeros(1))


@contextmanager
def forward_differentiable() -> Iterator[None]:
    """Kernels that have a forward-mode formula: plain attention, no fused encoder layers."""
    fast_path = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)


@contextmanager
def without_autocast(device_type: str) -> Iterator[None]:
    """The parameters' own precision, for derivatives of logits.

    A difference of two bfloat16 forwards has no digits left, and torch 2.14 does not cast the
    tangents of convolutions under autocast.
    """
    if not torch.is_autocast_enabled(device_type):
        yield
        return
    with torch.autocast(device_type, enabled=False):
        yield


def require_tangent(params: Mapping[str, Tensor], tangent: Mapping[str, Tensor]) -> None:
    """Check that a tangent belongs to the model: known names, equal shapes, at least one."""
    known = [name for name in tangent if name in params]
    if not known or len(known) != len(tangent):
        strange = sorted(set(tangent) - set(params))[:3]
        raise SettingError(
            f"the tangent names {len(tangent)} parameters, of which the model lacks {strange}. Use "
            "the dict that validation_gradient returned for this very model."
        )
    for name in known:
        if params[name].shape != tangent[name].shape:
            raise ShapeError(
                f"tangent of {name!r} has shape {tuple(tangent[name].shape)}, the parameter "
                f"{tuple(params[name].shape)}."
            )
