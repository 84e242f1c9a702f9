"""Passes through somebody's model: evaluation mode, and afterwards nothing has happened.

Algorithm 1 runs f(x; theta) several times a step beside a training loop that owns the model. All
of it happens inside `undisturbed`, on copies of what a forward may write to.
"""

import threading
from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

from saflex.errors import SettingError

__all__ = ["same_noise", "undisturbed", "without_autocast"]

# Device types whose random state torch.random.fork_rng can save by index.
_FORKABLE = ("cuda", "xpu")
# Random streams, dual levels and kernel switches belong to the process, not to a thread.
_ONE_AT_A_TIME = threading.RLock()


@contextmanager
def undisturbed(view: Any) -> Iterator[None]:
    """Evaluation mode for the passes of Algorithm 1 over a `saflex.forward.ModelView`.

    Evaluation mode makes Pi deterministic and each sample's row its own (no batch statistics, no
    dropout). Modes, buffers, the random streams and a caller's autocast cache come back as they
    were. Gradients are off; float16 autocast is switched off because nobody scales the validation
    loss here (bfloat16 stays for the validation gradient and the features of the last layer).

    Raises
    ------
    SettingError
        Inside `torch.inference_mode` or while a CUDA graph is captured.
    """
    _require_autograd()
    modules = view.modules
    training = [m for m in modules if m.training]
    kinds = {d.type for d in view.devices}
    with _ONE_AT_A_TIME, ExitStack() as stack:
        stack.enter_context(same_noise(view.devices))
        if any(_is_compiled(module) for module in modules):
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        if any(isinstance(m, nn.RNNBase) for m in modules):
            stack.enter_context(_plain_recurrence())
        _enter_autocast(stack, {"cpu"} | kinds)
        stack.enter_context(torch.no_grad())
        stack.enter_context(_copied_buffers(modules))
        stack.enter_context(_copied_tables(modules))
        stack.enter_context(_forwards_without_precision(modules))
        try:
            _set_mode(training, False)
            yield
        finally:
            _set_mode(training, True)


@contextmanager
def same_noise(devices: Collection[torch.device]) -> Iterator[None]:
    """Put the random streams back afterwards: two such blocks in a row draw the same numbers."""
    with ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(devices=[]))
        for kind in {d.type for d in devices if d.type in _FORKABLE}:
            indices = [d.index for d in devices if d.type == kind]
            stack.enter_context(torch.random.fork_rng(indices, device_type=kind))
        yield


@contextmanager
def without_autocast(device_type: str) -> Iterator[None]:
    """The parameters' own precision, for derivatives of logits.

    A difference of two bfloat16 forwards has no digits left, and torch 2.14 does not cast the
    tangents of convolutions under autocast.
    """
    if device_type == "meta" or not torch.is_autocast_enabled(device_type):
        yield
        return
    with torch.autocast(device_type, enabled=False):
        yield


def _require_autograd() -> None:
    if torch.is_inference_mode_enabled():
        raise SettingError(
            "refine was called inside torch.inference_mode(), where nothing can be differentiated. "
            "Call it outside, or use torch.no_grad() there."
        )
    if torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing():
        raise SettingError(
            "refine was called while a CUDA graph is captured, and it must save random streams. "
            "Refine before the captured step and pass it the batch."
        )


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
    for kind in device_types - {"meta"}:
        if torch.is_autocast_enabled(kind):
            dtype = torch.get_autocast_dtype(kind)
            # A cast cached under no_grad would be reused by the training forward and cut its graph.
            stack.enter_context(
                torch.autocast(
                    kind, dtype=dtype, enabled=dtype != torch.float16, cache_enabled=False
                )
            )


@contextmanager
def _plain_recurrence() -> Iterator[None]:
    # oneDNN's fused layer has no forward-mode formula, cuDNN's no backward in evaluation mode.
    switches = (torch.backends.mkldnn, torch.backends.cudnn)
    enabled = [switch.enabled for switch in switches]
    try:
        for switch in switches:
            switch.enabled = False
        yield
    finally:
        for switch, was in zip(switches, enabled, strict=True):
            switch.enabled = was


@contextmanager
def _copied_buffers(modules: Sequence[nn.Module]) -> Iterator[None]:
    """Copies of all buffers for the pass: whatever a forward writes, and however, is dropped."""
    found = [(module._buffers, dict(module._buffers)) for module in modules]
    copies: dict[int, torch.Tensor] = {}
    for home, originals in found:
        for name, buffer in originals.items():
            if buffer is not None:
                if id(buffer) not in copies:
                    copies[id(buffer)] = buffer.detach().clone()
                home[name] = copies[id(buffer)]
    try:
        yield
    finally:
        for home, originals in found:
            home.clear()
            home.update(originals)


@contextmanager
def _copied_tables(modules: Sequence[nn.Module]) -> Iterator[None]:
    """Copies of the tables that a look-up renormalises in place (``max_norm``)."""
    found = [(m._parameters, m._parameters["weight"]) for m in modules if renormalises(m)]
    try:
        for home, weight in found:
            home["weight"] = weight.detach().clone()
        yield
    finally:
        for home, weight in found:
            home["weight"] = weight


def renormalises(module: nn.Module) -> bool:
    """Whether a forward of this layer writes to its weight."""
    return (
        isinstance(module, (nn.Embedding, nn.EmbeddingBag))
        and module.max_norm is not None
        and "weight" in module._parameters
    )


@contextmanager
def _forwards_without_precision(modules: Sequence[nn.Module]) -> Iterator[None]:
    """The forward that Accelerate wrapped in autocast, as it was before."""
    wrapped = [
        (m.__dict__, m.__dict__["forward"], m.__dict__["_original_forward"])
        for m in modules
        if "_original_forward" in m.__dict__ and "forward" in m.__dict__
    ]
    try:
        for home, _, original in wrapped:
            home["forward"] = original
        yield
    finally:
        for home, forward, _ in wrapped:
            home["forward"] = forward
