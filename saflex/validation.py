"""Where validation batches come from: D_val^batch of Algorithm 1, of any size and any mix.

A source has ``next() -> (x, y)`` and a state. Five kinds are made by `as_source` from what people
have: a pair of tensors, a data set, an iterable of batches (a DataLoader), a function, a `Mixture`.
"""

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset, TensorDataset, default_collate

from saflex.errors import EmptyValidationError, SettingError, ShapeError
from saflex.randomness import PrivateStream, global_state
from saflex.structures import joined_inputs, map_tensors, tensors_of

__all__ = ["Mixture", "Remembered", "ValidationSource", "as_source"]

Pair = tuple[Any, Tensor]
# Items drawn from a data set at a time: B' of the benchmark's protocol.
_ITEMS = 128


class ValidationSource(Protocol):
    """The contract of a source."""

    def next(self) -> Pair: ...
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: dict[str, Any]) -> None: ...


def as_source(
    validation: Any, *, batch_size: int | None = None, seed: int = 0, dim: int = 0
) -> "ValidationSource":
    """Wrap what a user passes as ``validation=``.

    Parameters
    ----------
    validation
        ``(x, y)`` tensors, used whole or `batch_size` rows at a time; a `torch.utils.data.Dataset`,
        `batch_size` items at a time; an iterable of ``(x, y)`` or of dicts with "labels", cycled; a
        function of no arguments returning one; a `Mixture`.
    batch_size : int, optional
        Rows per draw from a pair of tensors (all if None) or a data set (128 if None).
    seed : int
        Of the row draws, and of the private random stream that the other kinds run in.
    dim : int
        Dimension of the rows in a pair's tensors: 1 for a stack of models, else 0.

    Raises
    ------
    EmptyValidationError, SettingError
    """
    if isinstance(validation, Mixture):
        return validation.opened(batch_size=batch_size, seed=seed, dim=dim)
    if isinstance(validation, TensorDataset) and len(validation.tensors) == 2:
        validation = validation.tensors
    if _is_pair(validation):
        return _Rows(*validation, batch_size=batch_size, seed=seed, dim=dim)
    if isinstance(validation, Dataset) and not isinstance(validation, IterableDataset):
        return _Items(validation, batch_size=batch_size or _ITEMS, seed=seed)
    if batch_size is not None:
        raise SettingError(
            f"validation_batch={batch_size} applies to a pair of tensors or a data set, and validation is a "
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
        self._dim = 0

    def opened(self, *, batch_size: int | None, seed: int, dim: int = 0) -> "Mixture":
        """A copy ready to draw; `batch_size` applies to its pairs of tensors and data sets."""
        sources = [
            as_source(
                v,
                batch_size=batch_size if _is_pair(v) or isinstance(v, Dataset) else None,
                seed=seed + 7919 * i,
                dim=dim,
            )
            for i, v in enumerate(self._given)
        ]
        ready = Mixture(*sources)  # without what was given: a loader at work cannot be copied
        ready._sources, ready._dim = sources, dim
        return ready

    def __repr__(self) -> str:
        return f"Mixture of {len(self._given)}"

    def next(self) -> Pair:
        xs, ys = zip(*(source.next() for source in self._sources), strict=True)
        if len({y.is_floating_point() for y in ys}) > 1 or len({y.ndim for y in ys}) > 1:
            kinds = ", ".join(f"{y.dtype} {tuple(y.shape)}" for y in ys)
            raise ShapeError(
                f"the sources of a Mixture give labels of several kinds ({kinds}): make all of them "
                "class numbers, or all rows of probabilities (one_hot(y, K).float())."
            )
        return joined_inputs(xs, dim=self._dim), torch.cat(ys, self._dim)

    def state_dict(self) -> dict[str, Any]:
        return {"sources": [source.state_dict() for source in self._sources]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if len(state["sources"]) != len(self._sources):
            raise SettingError(
                f"the state is of a Mixture of {len(state['sources'])} sources and this one has "
                f"{len(self._sources)}: resume with the sources it was saved with."
            )
        for source, inner in zip(self._sources, state["sources"], strict=True):
            _resume(source, inner)


class Remembered:
    """A source that still has its last batch, for whoever asks about it later.

    Attributes
    ----------
    last : (x, y) or None
    """

    def __init__(self, source: ValidationSource) -> None:
        self._source = source
        self.last: Pair | None = None

    def __repr__(self) -> str:
        return repr(self._source)

    def next(self) -> Pair:
        self.last = self._source.next()
        return self.last

    def state_dict(self) -> dict[str, Any]:
        return self._source.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        _resume(self._source, state)


def _resume(source: ValidationSource, state: dict[str, Any]) -> None:
    """Load a state into a source of the kind it was saved from.

    Raises
    ------
    SettingError
    """
    if state.keys() != source.state_dict().keys():
        raise SettingError(
            f"the state is of another kind of validation source than {source!r}: resume with the "
            "kind it was saved with (a pair of tensors, a data set, a loader, a function, a Mixture)."
        )
    source.load_state_dict(state)


class _Rows:
    """A pair of tensors: all of it, or rows without replacement from a reshuffled order."""

    def __init__(self, x: Any, y: Tensor, *, batch_size: int | None, seed: int, dim: int) -> None:
        self._x, self._y, self._dim = x, y, dim
        self._count = y.shape[self._dim] if y.ndim > dim else 0
        if not self._count:
            raise EmptyValidationError(
                f"validation has no rows (y has shape {tuple(y.shape)}). Pass labelled samples; "
                "hold some training samples out if there is no validation set."
            )
        sizes = {t.shape[self._dim] if t.ndim > self._dim else 0 for t in tensors_of(x)}
        if sizes != {self._count}:
            raise ShapeError(
                f"validation inputs have {sorted(sizes)} rows and labels {self._count}, along "
                f"dimension {self._dim}. Both need one row per sample."
            )
        self._batch_size = batch_size if batch_size and batch_size < self._count else None
        self._draws = _Draws(self._count, seed=seed)

    def __repr__(self) -> str:
        return f"{self._count} rows"

    def next(self) -> Pair:
        if self._batch_size is None:
            return self._x, self._y
        rows = self._draws.next(self._batch_size)
        return (
            map_tensors(self._x, lambda t: t.index_select(self._dim, rows.to(t.device))),
            self._y.index_select(self._dim, rows.to(self._y.device)),
        )

    def state_dict(self) -> dict[str, Any]:
        return self._draws.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._draws.load_state_dict(state)


class _Items:
    """Items of a data set without replacement, collated as a DataLoader does."""

    def __init__(self, items: Any, *, batch_size: int, seed: int) -> None:
        if not len(items):
            raise EmptyValidationError(
                f"the validation data set ({type(items).__name__}) is empty. Pass labelled samples; "
                "hold some training samples out if there is no validation set."
            )
        self._items, self._batch_size = items, min(batch_size, len(items))
        self._draws, self._stream = _Draws(len(items), seed=seed), PrivateStream(seed)

    def __repr__(self) -> str:
        return f"{type(self._items).__name__} of {len(self._items)}"

    def next(self) -> Pair:
        rows = self._draws.next(self._batch_size).tolist()
        with self._stream.swapped_in():
            return _as_pair(default_collate([self._items[row] for row in rows]))

    def state_dict(self) -> dict[str, Any]:
        return {"draws": self._draws.state_dict(), "stream": self._stream.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._draws.load_state_dict(state["draws"])
        self._stream.load_state_dict(state["stream"])


class _Draws:
    """Row numbers without replacement, from an order shuffled anew when it runs out."""

    def __init__(self, count: int, *, seed: int) -> None:
        self._count = count
        # On the CPU whatever torch.set_default_device says, here and below.
        self._generator = torch.Generator("cpu").manual_seed(seed)
        self._order, self._position = torch.empty(0, dtype=torch.long, device="cpu"), 0

    def next(self, size: int) -> Tensor:
        if self._position + size > len(self._order):
            self._order = torch.randperm(self._count, generator=self._generator, device="cpu")
            self._position = 0
        rows = self._order[self._position : self._position + size]
        self._position += size
        return rows

    def state_dict(self) -> dict[str, Any]:
        return {
            "generator": self._generator.get_state(),
            "order": self._order.clone(),
            "position": self._position,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if len(state["order"]) not in (0, self._count):
            raise SettingError(
                f"the state is of {len(state['order'])} validation rows and there are {self._count} "
                "now: resume with the rows it was saved with, or begin with a new refiner."
            )
        self._generator.set_state(state["generator"].cpu())  # map_location may have moved it
        self._order, self._position = state["order"].cpu().clone(), state["position"]


class _Cycle:
    """An iterable of batches, started again at its end.

    Its position is resumed by replaying the current pass from the random state it began with:
    exact when the iterable's randomness comes from the global streams in this process (a DataLoader
    with ``num_workers=0`` or a shuffling sampler), not when it owns a generator.
    """

    def __init__(self, batches: Iterable[Any], *, seed: int) -> None:
        self._batches = _with_own_iterator(batches)
        self._stream = PrivateStream(seed)
        self._pass_began = self._stream.state_dict()
        self._iterator: Any = None
        self._drawn = 0

    def __repr__(self) -> str:
        return type(self._batches).__name__

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

    def __deepcopy__(self, memo: dict[int, Any]) -> "_Cycle":
        # An iterator cannot be copied, but its position can be reached again; data are shared.
        if isinstance(self._batches, Iterator):
            raise SettingError(
                f"the validation source is a {type(self._batches).__name__}, which can be read once "
                "and not be copied. Pass a list or a DataLoader, or copy the model without its "
                "refiner."
            )
        copied = _Cycle(self._batches, seed=0)
        copied.load_state_dict(self.state_dict())
        return copied

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


def _with_own_iterator(batches: Iterable[Any]) -> Iterable[Any]:
    """A loader with persistent workers has one iterator for all, which each ``iter`` starts anew.

    The training loop may be in the middle of a pass over this very loader (`Mixture`): a shallow
    copy has workers and a position of its own.
    """
    if not getattr(batches, "persistent_workers", False):
        return batches
    own = copy.copy(getattr(batches, "base_dataloader", batches))  # Accelerate's has it inside
    own._iterator = None
    return own


class _Function:
    """A function of no arguments, called for every batch inside a private random stream."""

    def __init__(self, draw: Callable[[], Any], *, seed: int) -> None:
        self._draw, self._stream = draw, PrivateStream(seed)

    def __repr__(self) -> str:
        return getattr(self._draw, "__name__", type(self._draw).__name__)

    def next(self) -> Pair:
        with self._stream.swapped_in():
            return _as_pair(self._draw())

    def state_dict(self) -> dict[str, Any]:
        return {"stream": self._stream.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._stream.load_state_dict(state["stream"])


def _is_pair(value: Any) -> bool:
    return isinstance(value, (tuple, list)) and len(value) == 2 and isinstance(value[1], Tensor)


def _as_pair(batch: Any) -> Pair:
    if isinstance(batch, Mapping) and "labels" in batch:
        rest = copy.copy(batch) if isinstance(batch, MutableMapping) else dict(batch)
        return rest, rest.pop("labels")
    if isinstance(batch, (tuple, list)) and len(batch) == 2 and isinstance(batch[1], Tensor):
        return batch[0], batch[1]
    shape = f"{len(batch)} items" if isinstance(batch, (tuple, list)) else type(batch).__name__
    raise SettingError(
        f"a validation batch is {shape}: expected (x, y) with y a tensor, or a dict with 'labels'. "
        "Wrap the source in a generator class that yields that."
    )
