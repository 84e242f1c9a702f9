"""Where validation batches come from: D_val^batch of Algorithm 1, of any size and any mix.

A source has ``next() -> (x, y)`` and a state. Four kinds are made by `as_source` from what people
have: a pair of tensors, an iterable of batches (a DataLoader), a function, or a `Mixture`.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor

from saflex.errors import EmptyValidationError, SettingError, ShapeError
from saflex.randomness import PrivateStream, global_state

__all__ = ["Mixture", "ValidationSource", "as_source", "map_tensors"]

Pair = tuple[Any, Tensor]


class ValidationSource(Protocol):
    """The contract of a source."""

    def next(self) -> Pair: ...
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: dict[str, Any]) -> None: ...


def as_source(
    validation: Any, *, batch_size: int | None = None, seed: int = 0
) -> "ValidationSource":
    """Wrap what a user passes as ``validation=``.

    Parameters
    ----------
    validation
        ``(x, y)`` tensors, used whole or `batch_size` rows at a time; an iterable of ``(x, y)`` or
        of dicts with "labels", cycled; a function of no arguments returning one; a `Mixture`.
    batch_size : int, optional
        Rows per draw from a pair of tensors.
    seed : int
        Of the row draws, and of the private random stream that iterables and functions run in.

    Raises
    ------
    EmptyValidationError, SettingError
    """
    if isinstance(validation, Mixture):
        return validation.opened(batch_size=batch_size, seed=seed)
    if _is_pair(validation):
        return _Rows(*validation, batch_size=batch_size, seed=seed)
    if batch_size is not None:
        raise SettingError(
            f"validation_batch={batch_size} applies to a pair of tensors, and validation is a "
            f"{type(validation).__name__}. Set the batch size where the batches are made."
        )
    if isinstance(validation, Iterable):
        return _Cycle(validation, seed=seed)
    if callable(validation):
        return _Function(validation, seed=seed)
    raise SettingError(
        f"validation is a {type(validation).__name__}: expected a DataLoader or other iterable of "
        "(x, y), a pair of tensors (x, y), or a function returning one."
    )


class Mixture:
    """Several sources at once: each batch is one batch of every source, concatenated.

    ``Mixture((x_val, y_val), train_loader)`` makes the gradient of the mean loss over both; each
    source's share is its batch size's share.

    Parameters
    ----------
    *validations
        Anything `as_source` takes; x must be tensors (or containers of them) of one structure.
    """

    def __init__(self, *validations: Any) -> None:
        if not validations:
            raise EmptyValidationError("Mixture() has no source: pass at least one.")
        self._given = validations
        self._sources: list[ValidationSource] = []

    def opened(self, *, batch_size: int | None, seed: int) -> "Mixture":
        """A copy ready to draw; `batch_size` applies to its pairs of tensors."""
        ready = Mixture(*self._given)
        ready._sources = [
            as_source(v, batch_size=batch_size if _is_pair(v) else None, seed=seed + 7919 * i)
            for i, v in enumerate(self._given)
        ]
        return ready

    def next(self) -> Pair:
        drawn = [source.next() for source in self._sources]
        xs, ys = zip(*drawn, strict=True)
        lead = _leading(ys[0])
        if isinstance(xs[0], Tensor):
            return torch.cat(xs, lead), torch.cat(ys, lead)
        if isinstance(xs[0], Mapping):
            return {k: torch.cat([x[k] for x in xs], lead) for k in xs[0]}, torch.cat(ys, lead)
        joined = tuple(torch.cat(parts, lead) for parts in zip(*xs, strict=True))
        return joined, torch.cat(ys, lead)

    def state_dict(self) -> dict[str, Any]:
        return {"sources": [source.state_dict() for source in self._sources]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for source, inner in zip(self._sources, state["sources"], strict=True):
            source.load_state_dict(inner)


class _Rows:
    """A pair of tensors: all of it, or rows without replacement from a reshuffled order."""

    def __init__(self, x: Any, y: Tensor, *, batch_size: int | None, seed: int) -> None:
        self._x, self._y, self._dim = x, y, _leading(y)
        self._count = y.shape[self._dim] if y.ndim else 0
        if not self._count:
            raise EmptyValidationError(
                f"validation has no rows (y has shape {tuple(y.shape)}). Pass labelled samples; "
                "hold some training samples out if there is no validation set."
            )
        sizes = {t.shape[self._dim] for t in _tensors(x)}
        if sizes != {self._count}:
            raise ShapeError(
                f"validation inputs have {sorted(sizes)} rows and labels {self._count}, along "
                f"dimension {self._dim}. Both need one row per sample."
            )
        self._batch_size = batch_size if batch_size and batch_size < self._count else None
        self._generator = torch.Generator().manual_seed(seed)
        self._order, self._position = torch.empty(0, dtype=torch.long), 0

    def next(self) -> Pair:
        if self._batch_size is None:
            return self._x, self._y
        if self._position + self._batch_size > len(self._order):
            self._order = torch.randperm(self._count, generator=self._generator)
            self._position = 0
        rows = self._order[self._position : self._position + self._batch_size]
        self._position += self._batch_size
        return (
            map_tensors(self._x, lambda t: t.index_select(self._dim, rows.to(t.device))),
            self._y.index_select(self._dim, rows.to(self._y.device)),
        )

    def state_dict(self) -> dict[str, Any]:
        return {
            "generator": self._generator.get_state(),
            "order": self._order.clone(),
            "position": self._position,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._generator.set_state(state["generator"])
        self._order, self._position = state["order"].clone(), state["position"]


class _Cycle:
    """An iterable of batches, started again at its end.

    Its position is resumed by replaying the current pass from the random state it began with:
    exact when the iterable's randomness comes from the global streams in this process (a DataLoader
    with ``num_workers=0`` or a shuffling sampler), not when it owns a generator.
    """

    def __init__(self, batches: Iterable[Any], *, seed: int) -> None:
        self._batches = batches
        self._stream = PrivateStream(seed)
        self._pass_began = self._stream.state_dict()
        self._iterator: Any = None
        self._drawn = 0

    def next(self) -> Pair:
        with self._stream.swapped_in():
            if self._iterator is None:
                self._begin_pass()
            try:
                batch = next(self._iterator)
            except StopIteration:
                self._begin_pass()
                batch = self._first_of_pass()
        self._drawn += 1
        return _as_pair(batch)

    def _begin_pass(self) -> None:
        self._pass_began = global_state()
        self._iterator, self._drawn = iter(self._batches), 0

    def _first_of_pass(self) -> Any:
        try:
            return next(self._iterator)
        except StopIteration:
            raise EmptyValidationError(
                f"the validation source ({type(self._batches).__name__}) yields nothing. If it is "
                "a generator it can only be read once: pass a list or a DataLoader. If it is a "
                "DataLoader with drop_last, its batch size may exceed the data set."
            ) from None

    def state_dict(self) -> dict[str, Any]:
        return {
            "pass_began": self._pass_began,
            "stream": self._stream.state_dict(),
            "drawn": self._drawn,
            "started": self._iterator is not None,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._iterator, self._drawn = None, 0
        if not state["started"]:
            self._stream.load_state_dict(state["stream"])
            return
        self._stream.load_state_dict(state["pass_began"])
        for _ in range(state["drawn"]):
            self.next()
        self._stream.load_state_dict(state["stream"])


class _Function:
    """A function of no arguments, called for every batch inside a private random stream."""

    def __init__(self, draw: Callable[[], Any], *, seed: int) -> None:
        self._draw, self._stream = draw, PrivateStream(seed)

    def next(self) -> Pair:
        with self._stream.swapped_in():
            return _as_pair(self._draw())

    def state_dict(self) -> dict[str, Any]:
        return {"stream": self._stream.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._stream.load_state_dict(state["stream"])


def map_tensors(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """Apply `change` to a tensor, or to every tensor of a mapping or tuple."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, Mapping):
        return {key: map_tensors(item, change) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return tuple(map_tensors(item, change) for item in value)
    return value


def _tensors(value: Any) -> list[Tensor]:
    found: list[Tensor] = []
    map_tensors(value, lambda t: (found.append(t), t)[1])
    return found


def _is_pair(value: Any) -> bool:
    return isinstance(value, (tuple, list)) and len(value) == 2 and isinstance(value[1], Tensor)


def _as_pair(batch: Any) -> Pair:
    if isinstance(batch, Mapping) and "labels" in batch:
        return {key: item for key, item in batch.items() if key != "labels"}, batch["labels"]
    if isinstance(batch, (tuple, list)) and len(batch) == 2 and isinstance(batch[1], Tensor):
        return batch[0], batch[1]
    shape = f"{len(batch)} items" if isinstance(batch, (tuple, list)) else type(batch).__name__
    raise SettingError(
        f"a validation batch is {shape}: expected (x, y) with y a tensor, or a dict with 'labels'. "
        "Wrap the source in a generator class that yields that."
    )


def _leading(y: Tensor) -> int:
    """Number of leading dimensions: hard labels end in B, soft ones in (B, K)."""
    return max(y.ndim - (2 if y.is_floating_point() else 1), 0)
