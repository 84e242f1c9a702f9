"""Prepared arrays on disk: a published file is parsed once and then read back in a moment.

What is kept is unsplit and unfitted (`tabular.Raw`), so one file serves every seed.
"""

from __future__ import annotations

import gzip
import hashlib
import inspect
import zipfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
from filelock import FileLock

from benchmarks import sources
from benchmarks.datasets import tabular
from benchmarks.datasets.tabular import Raw
from benchmarks.errors import DataError
from benchmarks.record import replacing

FORMAT = 1


def raw(name: str, alternatives: Sequence[sources.Source], read: Callable[[Path], Raw]) -> Raw:
    """Give a data set's rows, from the prepared file or by reading the first alternative at hand.

    The prepared file's name holds the checksum of the published file and the code of the reader, so
    a change of either prepares anew. A lock keeps processes that start together from parsing the
    same file at once, which would multiply its memory.
    """
    found = sources.locate_any(alternatives, name)
    target = _place(name, found, read)
    rows = _load(target)
    if rows is None:
        target.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{target}.lock"):
            rows = _load(target)
            if rows is None:
                rows = _read(found.path, read)
                _save(target, rows)
    return replace(rows, provenance=((found.source.path, found.checksum),))


def _read(path: Path, read: Callable[[Path], Raw]) -> Raw:
    """Read a published file; whatever is wrong with it is one error that names it."""
    try:
        return read(path)
    except DataError as error:
        named = str(path) in str(error)
        raise error if named else DataError(f"{path}: {error}") from error
    except (ValueError, LookupError, EOFError, zlib.error, gzip.BadGzipFile) as error:
        reason = " ".join(str(error).split())
        raise DataError(f"{path} is not the published file: {reason}; fetch it again") from error


def _place(name: str, found: sources.Located, read: Callable) -> Path:
    code = "".join(inspect.getsource(part) for part in (inspect.getmodule(read), tabular))
    key = "\x1f".join((str(FORMAT), name, found.source.path, found.checksum, code))
    return (
        sources.home() / "prepared" / f"{name}-{hashlib.sha256(key.encode()).hexdigest()[:16]}.npz"
    )


def _load(path: Path) -> Raw | None:
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as arrays:
            return Raw(
                values=arrays["values"],
                y=arrays["y"],
                levels=tuple(arrays["levels"].tolist()),
                **{
                    name: tuple(arrays[name].tolist())
                    for name in ("feature_names", "class_names", "notes")
                },
            )
    except (FileNotFoundError, zipfile.BadZipFile, KeyError, ValueError, EOFError):
        return None  # never prepared, or damaged since: prepare it from the verified source


def _save(path: Path, rows: Raw) -> None:
    arrays = {field.name: getattr(rows, field.name) for field in fields(Raw)}
    del arrays["provenance"]
    text = {"feature_names", "class_names", "notes"}
    with replacing(path) as fresh, fresh.open("wb") as stream:
        np.savez(
            stream,
            **{
                k: np.array(v, dtype=np.str_) if k in text else np.asarray(v)
                for k, v in arrays.items()
            },
        )
