"""Inputs of any structure: the tensors in them changed or joined, their containers kept.

A model may tell a list from a tuple, read attributes, or write into the list it was given; it gets
containers of the types that its user passes. They are mappings, tuples, lists, named tuples and
dataclasses, nested at will.
"""

import copy
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pack_sequence, unpack_sequence

from saflex.errors import ShapeError

__all__ = ["joined_inputs", "map_tensors", "tensors_of"]


def map_tensors(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """Apply `change` to every tensor, in new containers of the same types."""

    def changed(places: Sequence[Any]) -> Any:
        (leaf,) = places
        if isinstance(leaf, PackedSequence):
            # Lengths stay on the CPU, where recurrent nets want them.
            kept = (None if order is None else change(order) for order in leaf[2:])
            return PackedSequence(change(leaf.data), leaf.batch_sizes, *kept)
        return change(leaf) if isinstance(leaf, Tensor) else leaf

    return _zipped([value], changed)


def tensors_of(value: Any) -> list[Tensor]:
    """Every tensor in `value`, in order."""
    found: list[Tensor] = []
    map_tensors(value, lambda t: (found.append(t), t)[1])
    return found


def joined_inputs(parts: Sequence[Any], *, dim: int = 0) -> Any:
    """Concatenate inputs of one structure along their rows.

    Tensors without dimensions and whatever is no tensor must be equal, and go with every batch.

    Raises
    ------
    ShapeError
        Structures or shapes that differ in more than the number of rows.
    """
    return _zipped(parts, lambda leaves: _joined(leaves, dim))


def _joined(leaves: Sequence[Any], dim: int) -> Any:
    first = leaves[0]
    if all(isinstance(leaf, PackedSequence) for leaf in leaves):
        rows = [row for leaf in leaves for row in unpack_sequence(leaf)]
        return pack_sequence(rows, enforce_sorted=False)
    if all(isinstance(leaf, Tensor) for leaf in leaves):
        try:
            if all(t.ndim == 0 and (t is first or torch.equal(t, first)) for t in leaves):
                return first
            return torch.cat(list(leaves), dim)
        except RuntimeError as error:
            shapes = ", ".join(str(tuple(t.shape)) for t in leaves)
            raise ShapeError(
                f"inputs of shapes {shapes} cannot be joined along dimension {dim}. Pad or crop "
                "them to one shape, or compute the two losses apart and add them."
            ) from error
    if all(leaf is first or (leaf == first) is True for leaf in leaves):
        return first
    raise _different(leaves)


def _zipped(values: Sequence[Any], change: Callable[[Sequence[Any]], Any]) -> Any:
    """`change` of what stands in one place of all values, in containers like those of the first."""
    parts = [_parts(value) for value in values]
    first = parts[0]
    if all(part is None for part in parts):
        return change(values)
    if any(part is None or part.keys() != first.keys() for part in parts):
        raise _different(values)
    items = {place: _zipped([part[place] for part in parts], change) for place in first}
    return _like(values[0], items)


def _parts(value: Any) -> dict[Any, Any] | None:
    """The items of a container by their places; None of anything else."""
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, (tuple, list)) and not isinstance(value, PackedSequence):
        return dict(enumerate(value))
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in fields(value)}
    return None


def _like(value: Any, items: dict[Any, Any]) -> Any:
    kind = type(value)
    if isinstance(value, (tuple, list)):
        return getattr(kind, "_make", kind)(list(items.values()))
    if isinstance(value, Mapping) and not isinstance(value, MutableMapping):
        return kind(items)
    made = copy.copy(value)
    for place, item in items.items():
        if isinstance(value, Mapping):
            made[place] = item
        else:
            object.__setattr__(made, place, item)  # frozen ones too
    return made


def _different(parts: Sequence[Any]) -> ShapeError:
    return ShapeError(
        f"inputs of types {', '.join(type(part).__name__ for part in parts)} cannot be joined: "
        "expected tensors, or mappings or tuples of them with the same structure."
    )
