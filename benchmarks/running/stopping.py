"""SIGTERM and Ctrl-C, held back until a loop asks: a notice becomes checkpoints and an exit."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

AGAIN = b"\nstopping: the state is saved first; Ctrl-C again ends at once\n"


@contextmanager
def stopping(then: Callable[[], None] = lambda: None) -> Iterator[Callable[[], bool]]:
    """Give the question whether this process was asked to stop while the block runs.

    A second Ctrl-C interrupts as ever. Where Ctrl-C was ignored before, as in a background job of a
    shell, it stays so.

    Parameters
    ----------
    then : called at each such signal, such as to hand it on.
    """
    asked = False

    def note(number: int, frame: object) -> None:
        nonlocal asked
        asked = True
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            os.write(sys.__stderr__.fileno(), AGAIN)  # a buffered write may be what was interrupted
        then()

    wanted = [n for n in (signal.SIGTERM, signal.SIGINT) if signal.getsignal(n) != signal.SIG_IGN]
    before = {number: signal.signal(number, note) for number in wanted}
    try:
        yield lambda: asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
