"""The model as a function of its parameters, with the training loop left as it was found.

Algorithm 1 differentiates f(x; theta) at parameters that belong to somebody else's training loop.
Everything that touches the model goes through two contexts: `saflex.passes.undisturbed` and
`ModelView.substituted`.
"""

import functools
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.autograd.forward_ad as forward_ad
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.parameter import is_lazy

from saflex.calling import Adapted, Calling
from saflex.errors import NoTrainableParametersError, SettingError, ShapeError
from saflex.structures import map_tensors

__all__ = ["ModelView", "logits_of", "unwrapped"]

# Wrappers whose module is the model itself, by name: none of them is ours to import.
_WRAPPERS = ("DistributedDataParallel", "DataParallel", "_FabricModule")


def unwrapped(model: nn.Module) -> nn.Module:
    """The module inside `torch.compile`, (Distributed)DataParallel and Fabric wrappers.

    The reducer of a wrapper must not see our passes, and forward mode cannot be compiled.
    """
    while True:
        if hasattr(model, "_orig_mod"):
            model = model._orig_mod
        elif any(kind.__name__ in _WRAPPERS for kind in type(model).__mro__):
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
        Those that need a gradient; tied ones once.
    frozen : dict of str to Parameter
        The others.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = unwrapped(model)
        self.modules: list[nn.Module] = []
        self.trainable: dict[str, nn.Parameter] = {}
        self.frozen: dict[str, nn.Parameter] = {}
        self.devices: set[torch.device] = set()
        self._slots: list[tuple[nn.Module, str, nn.Parameter]] = []
        self._homes: dict[int, tuple[nn.Module, str]] = {}
        for prefix, module in self.model.named_modules():
            self.modules.append(module)
            if isinstance(module, torch.jit.ScriptModule):
                raise SettingError(
                    f"{type(self.model).__name__} has a TorchScript module ({prefix or 'itself'!r}), "
                    "whose parameters nothing can take the place of. Refine with the module that was "
                    "scripted or traced, or use torch.compile."
                )
            for name, p in module._parameters.items():
                if p is None:
                    continue
                self.devices.add(p.device)
                if p.requires_grad:
                    self._slots.append((module, name, p))
                    if id(p) not in self._homes:
                        self._homes[id(p)] = module, name
                        self.trainable[f"{prefix}.{name}" if prefix else name] = p
                else:
                    self.frozen[f"{prefix}.{name}" if prefix else name] = p

    def require_trainable(self) -> dict[str, nn.Parameter]:
        """The trainable parameters.

        Raises
        ------
        NoTrainableParametersError
            If there is none.
        SettingError
            If the parameters are shards, or have no shape yet.
        """
        self._require_whole()
        if not self.trainable:
            raise NoTrainableParametersError(
                f"{type(self.model).__name__} has no parameter with requires_grad=True, so no "
                "training step can change its validation loss. Unfreeze a layer, or train on the "
                "upstream batch."
            )
        return self.trainable

    def detached(self, p: nn.Parameter) -> Tensor:
        """The numbers of a parameter apart from its graph: inside `undisturbed`, those of its copy."""
        module, name = self._homes[id(p)]
        return module._parameters[name].detach()

    def _require_whole(self) -> None:
        sharded = [n for n, p in self.trainable.items() if hasattr(p, "device_mesh")]
        if lazy := [n for n, p in self.trainable.items() if is_lazy(p)]:
            raise SettingError(
                f"{type(self.model).__name__} has parameters without a shape ({lazy[0]}): call it once "
                "on a batch before making the refiner, which its optimiser needs too."
            )
        flat = [type(m).__name__ for m in self.modules if hasattr(m, "_fsdp_wrapped_module")]
        if sharded or flat:
            raise SettingError(
                f"{type(self.model).__name__} is sharded ({(sharded or flat)[0]}): with FSDP and "
                "tensor parallelism no rank holds whole parameters to differentiate at. Use "
                "DistributedDataParallel, or refine with a whole copy of the model."
            )

    @contextmanager
    def substituted(self, params: Sequence[Tensor], values: Sequence[Tensor]) -> Iterator[None]:
        """Run the model with `values` in place of `params`, wherever each one is used.

        Direct writes to the parameter dictionaries: unlike `torch.func.functional_call` this costs
        microseconds on a small model, and unlike an in-place update it cannot change a single bit.
        """
        by_identity = {id(p): value for p, value in zip(params, values, strict=True)}
        slots = [slot for slot in self._slots if id(slot[2]) in by_identity]
        before = [module._parameters[name] for module, name, _ in slots]
        # LSTM and its kin read a second list of their parameters.
        recurrent = [m for m in self.modules if "_flat_weights_names" in m.__dict__]
        try:
            for module, name, p in slots:
                module._parameters[name] = by_identity[id(p)]
            _refresh_flat_weights(recurrent)
            yield
        finally:
            for (module, name, _), value in zip(slots, before, strict=True):
                module._parameters[name] = value
            _refresh_flat_weights(recurrent)


def logits_of(model: nn.Module, x: Any) -> Tensor:
    """Call the model on a copy of x (by its `Calling`; ``model(**x)`` for a mapping), return its logits.

    Raises
    ------
    ShapeError
        If the model returns something without a class dimension.
    """
    # A forward may write to its inputs, and a caller's must not change.
    x = map_tensors(x, lambda t: t.detach().clone())
    return model(x) if isinstance(model, Adapted) else Calling()(model, x)


def _refresh_flat_weights(recurrent: Sequence[nn.Module]) -> None:
    for module in recurrent:
        module._flat_weights = [module._parameters.get(n) for n in module._flat_weights_names]


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
