"""Progress bars for whoever watches: on a terminal only, so that logs and pipes stay silent."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")


def shown(items: Iterable[T], what: str, *, total: int | None = None) -> Iterable[T]:
    """Iterate over items, with a bar on standard error while it lasts.

    Parameters
    ----------
    total : how many items there may be, where they have no length.
    """
    return _with_bar(items, what, total) if sys.stderr.isatty() else items


def _with_bar(items: Iterable[T], what: str, total: int | None) -> Iterator[T]:
    from rich.console import Console
    from rich.progress import track

    console = Console(stderr=True)
    yield from track(items, what, total=total, console=console, transient=True)
