"""Passes through somebody's model: evaluation mode, and afterwards nothing has happened.

Algorithm 1 runs f(x; theta) several times a step beside a training loop that owns the model. All
of it happens inside `undisturbed`, on copies of what a forward may write to.
"""

import collections
import copy
import random
import sys
import threading
from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from saflex.errors import SettingError
from saflex.randomness import host_streams_kept

__all__ = ["as_found", "is_shared", "same_noise", "undisturbed", "without_autocast"]

# Device types whose random state torch.random.fork_rng can save by index.
_FORKABLE = ("cuda", "xpu")
# Random streams, dual levels and kernel switches belong to the process, not to a thread.
_ONE_AT_A_TIME = threading.RLock()
# A frozen parameter of more numbers is shared, not copied: a frozen backbone may fill the memory.
_LARGEST_FROZEN_COPY = 2**16
# What every module has; of these a pass gets parameters, buffers and backward hooks of its own.
_OF_ALL_MODULES = frozenset(nn.Module().__dict__)
_CONTAINERS = (dict, collections.OrderedDict, collections.defaultdict, list, collections.deque, set)
_CONSTANTS = frozenset((int, float, bool, str, type(None), tuple))


@contextmanager
def undisturbed(view: Any) -> Iterator[None]:
    """Evaluation mode for the passes of Algorithm 1 over a `saflex.forward.ModelView`.

    Evaluation mode makes Pi deterministic and each sample's row its own (no batch statistics, no
    dropout). Modes, parameters, buffers, attributes, the random streams and a caller's autocast
    cache come back as they were. Gradients are off, and compiled code runs as it was written;
    float16 autocast is switched off because nobody scales the validation loss here (bfloat16 stays
    for the validation gradient and the features of the last layer).

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
        if "torch._dynamo" in sys.modules:  # or else nothing was compiled
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        if any(isinstance(m, nn.RNNBase) for m in modules):
            stack.enter_context(_plain_recurrence())
        _enter_autocast(stack, {"cpu"} | kinds)
        stack.enter_context(torch.no_grad())
        stack.enter_context(as_found(modules))
        for home in (m.__dict__ for m in modules):
            if "_original_forward" in home and "forward" in home:
                # Accelerate wrapped it in autocast.
                home["forward"] = home["_original_forward"]
        try:
            _set_mode(training, False)
            yield
        finally:
            _set_mode(training, True)


@contextmanager
def same_noise(devices: Collection[torch.device]) -> Iterator[None]:
    """Put the random streams back afterwards: two such blocks in a row draw the same numbers."""
    with host_streams_kept(), ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(devices=[]))
        for kind in {d.type for d in devices if d.type in _FORKABLE}:
            indices = [d.index for d in devices if d.type == kind]
            stack.enter_context(torch.random.fork_rng(indices, device_type=kind))
        yield


@contextmanager
def as_found(modules: Sequence[nn.Module]) -> Iterator[None]:
    """Copies of all that a forward may write to, and no backward hooks; afterwards what was there.

    That is parameters, buffers, and the tensors, containers and generators that are attributes (a
    cache, a counter, a list of statistics). A container stays the same one, which a hook may know
    too, with what it had put back. What is kept elsewhere, in a closure or an object of another
    kind, is not found.
    """
    copies: dict[int, Any] = {}
    contents: list[tuple[Any, Any]] = []
    found = [(module.__dict__, dict(module.__dict__)) for module in modules]
    try:
        for home, was in found:
            if was["_parameters"]:
                home["_parameters"] = {n: _own(p, copies) for n, p in was["_parameters"].items()}
            if was["_buffers"]:
                home["_buffers"] = {
                    n: _copied(b, copies, contents) for n, b in was["_buffers"].items()
                }
            for name in ("_backward_hooks", "_backward_pre_hooks"):
                if was[name]:
                    home[name] = collections.OrderedDict()
            for name, value in was.items():
                if type(value) not in _CONSTANTS and name not in _OF_ALL_MODULES:
                    home[name] = _copied(value, copies, contents)
        yield
    finally:
        for container, was in contents:
            container.clear()
            (container.extend if hasattr(container, "extend") else container.update)(was)
        for home, was in found:
            home.update(was)
            for name in [n for n in home if n not in was] if len(home) > len(was) else ():
                del home[name]


def is_shared(p: nn.Parameter) -> bool:
    """Whether passes read the numbers of this frozen parameter themselves."""
    return not p.requires_grad and p.numel() > _LARGEST_FROZEN_COPY


def _own(p: nn.Parameter | None, copies: dict[int, Any]) -> nn.Parameter | None:
    """A parameter of the same numbers; a large frozen one shares them, but may be pointed elsewhere."""
    if p is None or not (p.requires_grad or type(p) is nn.Parameter):
        return p  # quantised, or without a shape yet: its class knows more than its numbers
    if id(p) not in copies:
        numbers = p.detach() if is_shared(p) else p.detach().clone()
        copies[id(p)] = nn.Parameter(numbers, requires_grad=False)
    return copies[id(p)]


def _copied(value: Any, copies: dict[int, Any], contents: list[tuple[Any, Any]]) -> Any:
    """A copy of a tensor or generator, the same one wherever it is kept; a container gets copies in it."""
    if id(value) in copies:
        return copies[id(value)]
    kind = type(value)
    if isinstance(value, Tensor):
        if value.requires_grad or isinstance(value, nn.Parameter):
            return value
        copies[id(value)] = value.detach().clone()
    elif kind in _CONTAINERS:
        copies[id(value)] = value
        contents.append((value, copy.copy(value)))
        items = value.values() if isinstance(value, dict) else value
        if kind is not set and not _CONSTANTS.issuperset(map(type, items)):
            for key in list(value) if isinstance(value, dict) else range(len(value)):
                value[key] = _copied(value[key], copies, contents)
    elif kind is torch.Generator:
        copies[id(value)] = value.clone_state()
    elif isinstance(value, random.Random) or kind.__module__.startswith("numpy.random"):
        copies[id(value)] = copy.deepcopy(value)
    return copies.get(id(value), value)


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
