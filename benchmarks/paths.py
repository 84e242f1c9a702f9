"""Paths as people give them, in options, settings and environment variables: ``~`` is their home."""

from __future__ import annotations

import os
from pathlib import Path

from benchmarks.errors import BenchmarkError


def given(text: str | Path) -> Path:
    """Read a path: no shell expands the ``~`` of ``results=~/x`` or of a quoted option.

    Raises
    ------
    BenchmarkError
        ``~somebody`` whom this machine does not know, or a character that no path may have.
    """
    if "\0" in str(text):
        raise BenchmarkError(f"path {str(text)!r} holds a zero byte: no file has such a name")
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        raise BenchmarkError(f"path {str(text)!r}: this machine knows no such home") from error


def settle_variables() -> None:
    """Make the folders that environment variables name whole paths, for this process and its children."""
    for name in ("SAFLEX_DATA", "SAFLEX_HOME"):
        if text := os.environ.get(name):
            os.environ[name] = str(given(text).absolute())
