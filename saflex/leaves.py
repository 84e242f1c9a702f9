"""Which trained tensors the logits depend on, and whether the model knows them by name."""

from collections.abc import Iterable, Iterator, Mapping
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from saflex.errors import CheckError

__all__ = ["require_apart", "require_known_leaves"]


def require_apart(params: Mapping[str, Tensor]) -> None:
    """Refuse parameters that share memory: a step on one would move the other, and g counts both.

    Raises
    ------
    CheckError
    """
    places = [
        (str(p.device), p.data_ptr(), p.data_ptr() + p.numel() * p.element_size(), name)
        for name, p in params.items()
        # Elements of others may lie between those of a parameter with gaps.
        if p.device.type != "meta" and _is_dense(p)
    ]
    for (device, _, end, first), (other, start, _, second) in pairwise(sorted(places)):
        if device == other and start < end:
            raise CheckError(
                f"the parameters {first} and {second} share memory and not their names (tied through "
                ".data?): each would get half of the gradient. Tie them as one: b.weight = a.weight."
            )


def _is_dense(p: Tensor) -> bool:
    if p.layout != torch.strided or not p.numel():
        return False
    reach = sum((n - 1) * s for n, s in zip(p.shape, p.stride(), strict=True))
    return reach + 1 == p.numel()


def require_known_leaves(view: Any, logits: Tensor, *, known: Iterable[Tensor]) -> None:
    """Refuse logits that depend on a trained tensor other than the known ones.

    Parameters
    ----------
    view : saflex.forward.ModelView
    logits : Tensor
        With their graph.
    known : iterable of Tensor
        The parameters that were put into the model for this pass, and leaves made by it.

    Raises
    ------
    CheckError
    """
    names = {id(t) for t in known}
    strange = [t for t in _leaves(logits) if id(t) not in names]
    if strange:
        where = next((w for t in strange if (w := _home(view.model, t))), "kept nowhere by name")
        raise CheckError(
            f"the logits depend on {len(strange)} trained tensors that are reached by another way "
            f"than as parameters of {type(view.model).__name__}, such as one of shape "
            f"{tuple(strange[0].shape)} ({where}): g and Pi would leave them out. Use self.name in "
            "forward, nn.ParameterList or nn.ModuleList for several, refine outside a cache such as "
            "parametrize.cached, or detach what is not trained."
        )


def _leaves(logits: Tensor) -> Iterator[Tensor]:
    stack, seen = [logits.grad_fn], set()
    while stack:
        node = stack.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            yield node.variable
        stack.extend(parent for parent, _ in node.next_functions)


def _home(model: nn.Module, leaf: Tensor) -> str:
    """Where a tensor or a module that owns it is kept, as a reader would look for it."""
    for name, module in model.named_modules():
        for attribute, value in vars(module).items():
            if attribute.startswith("_"):
                continue
            for item in _items(value):
                own = item.parameters() if isinstance(item, nn.Module) else [item]
                if any(t is leaf for t in own):
                    return f"in {type(module).__name__}.{attribute}" + (
                        f" of {name!r}" * bool(name)
                    )
    return ""


def _items(value: Any) -> list[Any]:
    if isinstance(value, Mapping):
        return list(value.values())
    return list(value) if isinstance(value, (list, tuple)) else [value]
