"""Hash of the data a run reads, as `source_hash` is of its code: found out once, then looked up.

A data set's content is that of the files its module declares (``SOURCES``, ``PARTS``, ``files_read``, or
``content_hash`` where they are many); with the code that reads them, which the source hash covers, they
decide every tensor. A module that declares none, a user's own say, is hashed by what it loads, and the
files it opened meanwhile tell later whether to load it again. Only that loading needs torch.
"""

from __future__ import annotations

import hashlib
import os
import sys
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields, replace
from inspect import unwrap
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks import registry, sources
from benchmarks.errors import BenchmarkError, DataError, fault
from benchmarks.generate import manifest as manifests
from benchmarks.running.source_hash import module_hash
from benchmarks.spec import Component, RunSpec

if TYPE_CHECKING:
    from benchmarks.data import Data, Split

DATA, IMAGES = "data", "images"

CHUNK = 1024  # rows hashed at a time; a lazy set is never in memory whole
NO_DATA = (".py", ".pyc", ".so", ".pth")
# What a damaged, foreign or missing file makes a reader raise.
FILE_FAULTS = (OSError, EOFError, UnicodeError, zipfile.BadZipFile, zlib.error)
SYSTEM = ("/proc/", "/sys/", "/dev/")
MADE_HERE = ("verified", "trusted", "loaded", "prepared")


def data_hash(spec: RunSpec) -> dict[str, str]:
    """Look up the content of what a run reads; a set that declares no files is loaded, once.

    Whoever asks is told the same: without that loading a set would be known to those alone who train.

    Returns
    -------
    dict
        16 hexadecimal digits for ``data``, the data set, and ``images``, the generated set its
        upstream serves. What is not at hand is left out.
    """
    found = {DATA: of_data_set(spec.settings.dataset), IMAGES: _generated(spec)}
    return {name: value for name, value in found.items() if value}


def load(spec: RunSpec, loader: Callable[..., Data]) -> Data:
    """Load the data of a run, `Data.content` saying which it is.

    Parameters
    ----------
    loader : what the data set's module registered.
    """
    component = spec.settings.dataset
    data = _read(component, loader, seed=spec.seed)
    return replace(data, content=data_hash(spec))


def declared(component: Component) -> bool:
    """Tell whether a data set's module says which files it reads."""
    module = registry.module("datasets", component.name)
    return hasattr(module, "content_hash") or bool(sources.files(component.name))


def of_data_set(component: Component) -> str | None:
    """Look up the content of a data set, 16 hexadecimal digits; None where it is not at hand."""
    module = registry.module("datasets", component.name)
    try:
        if not declared(component):
            return _loaded_hash(component)
        if hasattr(module, "content_hash"):
            return module.content_hash(component.name, **component.settings)
        return sources.content(sources.files(component.name, **component.settings))
    except DataError:
        return None  # damaged or incomplete: the loader says what, before anything is trained


def _generated(spec: RunSpec) -> str | None:
    upstream = spec.settings.upstream
    if upstream.name != "generated":
        return None
    place = manifests.location(spec.settings.dataset.name, upstream.settings["images"])
    if not place.manifest.is_file():
        return None
    listed = [(entry.sha256, entry.label) for entry in manifests.read(place).images]
    return hashlib.sha256(repr(listed).encode()).hexdigest()[:16]


def _loaded_hash(component: Component) -> str:
    """Recall an undeclared set's hash, or load it with seed 0, whatever the run's, and hash that.

    What was found counts until a file that was opened meanwhile changes.
    """
    known = sources.recall("loaded", _key(component))
    if known and all(_state(path) == state for path, state in known["files"].items()):
        return known["content"]
    loader = registry.load("datasets", component.name)
    with _opened_files() as opened:
        data = _read(component, loader, seed=0)
    content = _hash(data)
    states = {path: _state(path) for path in sorted(opened)}
    sources.remember("loaded", _key(component), {"files": states, "content": content})
    return content


def _read(component: Component, loader: Callable[..., Data], *, seed: int) -> Data:
    """Call a loader, a user's own as well; what is wrong with it or its files is one error with its name."""
    try:
        data = loader(component.name, seed=seed, **component.settings)
        _check(data)
        return data
    except DataError as error:
        if component.name in str(error):
            raise
        raise DataError(f"{component.name}: {error}") from error
    except (Exception, SystemExit) as error:
        from benchmarks.running.machine import out_of_memory

        if isinstance(error, BenchmarkError) or out_of_memory(error):
            raise  # said in a line by who builds the run
        # `pandas.errors` by name: importing pandas is for who reads tables.
        if isinstance(error, FILE_FAULTS) or type(error).__module__ == "pandas.errors":
            reason = " ".join(str(error).split())
            told = f"its files cannot be read: {type(error).__name__}: {reason}"
        else:
            file = getattr(getattr(unwrap(loader), "__code__", None), "co_filename", "")
            told = f"its loader fails: {fault(error, file=file)}"
        raise DataError(f"{component.name}: {told}") from error


def _check(data: Data) -> None:
    """Refuse data that no run could be right on, whoever made them (`benchmarks.data.Data`).

    Raises
    ------
    DataError
        The loader gave something else, splits of unequal length or width, labels that are no classes, or
        an infinite input, which makes every weight of a model NaN.
    """
    from benchmarks.data import Data, Split

    if not isinstance(data, Data):
        raise DataError(
            f"its loader gives a {type(data).__name__}: expected a benchmarks.data.Data"
        )
    if data.kind not in ("tabular", "image"):
        raise DataError(f"kind {data.kind!r}: expected 'tabular' or 'image'")
    if not isinstance(data.num_classes, Integral) or data.num_classes < 2:
        raise DataError(f"num_classes is {data.num_classes!r}: expected a whole number from 2")
    for part in ("train", "validation", "test", "extra"):
        split = getattr(data, part)
        if isinstance(split, Split):
            _check_split(data, part, split)
        elif part != "extra" or split is not None:
            raise DataError(f"{part} is a {type(split).__name__}: expected a benchmarks.data.Split")


def _check_split(data: Data, part: str, split: Split) -> None:
    from torch import Tensor, float32, int64

    x, y, classes = split.x, split.y, data.num_classes
    tabular = data.kind == "tabular"
    for name, rows in (("inputs", x), ("labels", y)):
        if not isinstance(rows, Tensor):
            raise DataError(f"{part} {name} are a {type(rows).__name__}: expected a tensor")
    if y.ndim != 1 or y.dtype != int64:
        raise DataError(
            f"{part} labels are {y.dtype} of shape {tuple(y.shape)}: expected int64 (N,)"
        )
    if x.ndim != (2 if tabular else 4) or len(x) != len(y) or (tabular and x.dtype != float32):
        raise DataError(
            f"{part} inputs are {x.dtype} of shape {tuple(x.shape)} for {len(y)} labels: expected "
            + ("float32 (N, F)" if tabular else "(N, 3, H, W)")
            + ", a row for each label"
        )
    if not len(y):
        raise DataError(f"{part} has no rows")
    if x.shape[1:] != data.train.x.shape[1:]:
        shapes = tuple(x.shape[1:]), tuple(data.train.x.shape[1:])
        raise DataError(
            f"{part} inputs have shape {shapes[0]} a row, those of training {shapes[1]}"
        )
    if len(wrong := ((y < 0) | (y >= classes)).nonzero()):
        row = wrong[0].item()
        raise DataError(
            f"{part} row {row + 1} has label {y[row].item()}: expected 0 to {classes - 1}, as num_classes "
            f"is {classes}"
        )
    if tabular and (infinite := x.isinf()).any():
        row, column = infinite.nonzero()[0].tolist()
        raise DataError(f"{part} rows hold an infinite input: row {row + 1}, column {column + 1}")
    if data.categories and len(data.categories) != x.shape[1]:
        raise DataError(
            f"{len(data.categories)} categories of {x.shape[1]} columns: expected one for each"
        )
    for column, levels in enumerate(data.categories):
        codes = x[:, column]
        if levels and not ((codes >= 0) & (codes < levels) & (codes == codes.floor())).all():
            raise DataError(
                f"{part} column {column + 1} holds more than whole codes 0 to {levels - 1} of its "
                f"{levels} categories"
            )


def _key(component: Component) -> list[Any]:
    module = registry.module_name("datasets", component.name)
    return [component.model_dump(mode="json"), module_hash(module)]


def _state(path: str) -> list[int] | None:
    try:
        state = os.stat(path)
    except OSError:
        return None
    return [state.st_size, state.st_mtime_ns, state.st_ino]


def _hash(data: Data) -> str:
    """Hash every split's rows and labels, the class names and what else describes the columns."""
    from benchmarks.data import Split

    digest = hashlib.sha256()
    for field in fields(data):
        value = getattr(data, field.name)
        if isinstance(value, Split):
            for rows in (value.x, value.y):
                digest.update(f"{field.name}\x1f{tuple(rows.shape)}".encode())
                for start in range(0, len(rows), CHUNK):
                    chunk = rows[start : start + CHUNK].cpu().contiguous().numpy()
                    digest.update(f"{chunk.dtype}".encode() + chunk.tobytes())
        elif isinstance(value, str | int | tuple) and field.name not in ("name", "notes"):
            digest.update(f"{field.name}\x1f{value!r}".encode())
    return digest.hexdigest()[:16]


_listening: list[set[str]] = []


@contextmanager
def _opened_files() -> Iterator[set[str]]:
    """Collect the data files that this process opens for reading while the block runs (PEP 578)."""
    if not hasattr(_opened_files, "hooked"):
        sys.addaudithook(_note)  # it cannot be taken away again, so it is there once
        _opened_files.hooked = True
    opened: set[str] = set()
    _listening.append(opened)
    try:
        yield opened
    finally:
        _listening.remove(opened)


def _note(event: str, arguments: tuple) -> None:
    if event != "open" or not _listening:
        return
    path, mode, flags = arguments
    writes = (
        flags & (os.O_WRONLY | os.O_RDWR) if isinstance(flags, int) else "r" not in (mode or "r")
    )
    if writes or not isinstance(path, str | os.PathLike):
        return
    full = os.path.abspath(path)
    made_here = any(full.startswith(str(sources.home() / folder)) for folder in MADE_HERE)
    if (
        not (made_here or full.startswith(SYSTEM) or full.endswith(NO_DATA))
        and Path(full).is_file()
    ):
        for opened in _listening:
            opened.add(full)
