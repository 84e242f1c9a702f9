"""Errors a user can act on: what was given, what was expected, what to do."""

from __future__ import annotations

import errno
import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches

# What a user mends outside the program; any other OSError is a defect and shows where it came from.
MACHINE_ERRORS = frozenset(
    {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO}
    | {errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG, errno.ELOOP}
)


class BenchmarkError(Exception):
    """Printed as one clear line by the command line, which then exits with `status`."""

    status = 2


class UnknownName(BenchmarkError):
    """A name that nothing is registered under; the message suggests the nearest known one."""

    def __init__(self, kind: str, name: str, known: Iterable[str]):
        self.kind, self.name = kind, name
        super().__init__(f"unknown {kind} {name!r}: {suggestion(name, known)}")


class DataError(BenchmarkError):
    """A data file that is missing, truncated or altered."""


class MachineError(BenchmarkError):
    """The machine refuses what the next step needs as well: nothing is tried after it."""


class AllFailed(BenchmarkError):
    """Every run of a command failed. They are recorded, so the DAG goes on to tables that say so."""

    status = 3


@contextmanager
def machine_refusals() -> Iterator[None]:
    """Turn what the machine refuses while the block runs into one line with its place."""
    try:
        yield
    except OSError as error:
        if error.errno not in MACHINE_ERRORS:
            raise
        place = f": {error.filename}" if error.filename else ""
        raise BenchmarkError(
            f"{error.strerror}{place}; what was finished is kept and nothing is half-written: "
            "the same command goes on once this is mended"
        ) from error


def fault(error: BaseException, *, file: str = "") -> str:
    """Say in a line where somebody's code stumbled, over what, and with which words.

    Parameters
    ----------
    file : of the code's author; the deepest line of it is named, else the deepest of all.
    """
    # `exit()` is a frozen module's, which nobody looks for.
    frames = [f for f in traceback.extract_tb(error.__traceback__) if "<frozen" not in f.filename]
    at = ([frame for frame in frames if frame.filename == file] or frames)[-1]
    words = " ".join(str(error).split())[:500]
    if isinstance(error, SystemExit):  # it would end the whole command without a word
        kind = f"it ends the program itself (sys.exit({words})): raise an error instead"
    else:
        kind = f"{type(error).__name__}: {words}" if words else type(error).__name__
    return f"{at.filename}, line {at.lineno}: {kind}"


def suggestion(name: str, known: Iterable[str]) -> str:
    """Name the nearest known name, or list known ones when none is near."""
    known = sorted(known)
    near = get_close_matches(name, known, n=1, cutoff=0.5)
    if near:
        return f"did you mean {near[0]!r}?"
    more = f" and {len(known) - 12} more" if len(known) > 12 else ""
    return f"known are {', '.join(known[:12])}{more}"
