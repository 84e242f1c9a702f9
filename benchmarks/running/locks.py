"""Locks: two invocations never work on the same bundle at once; the second waits, then skips.

A lock is an advisory file lock, released by the kernel when its holder dies, however it dies. The
file also says who holds it, for the waiting invocation to print and for file systems whose locks
outlive a process: a holder that is gone from this machine is recognised and its lock replaced.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from benchmarks.errors import BenchmarkError, MachineError

POLL_SECONDS = 0.5


def lock_path(results: Path, bundle: str) -> Path:
    """Place of a bundle's lock below a suite's results."""
    return Path(results) / "locks" / f"{bundle}.lock"


@contextmanager
def bundle_lock(
    results: Path,
    bundle: str,
    *,
    timeout: float | None = None,
    say: Callable[[str], None] | None = None,
) -> Iterator[None]:
    """Hold a bundle for as long as the block runs; wait while somebody else holds it.

    Parameters
    ----------
    timeout : seconds to wait at most; None waits as long as it takes.
    say : called with one line when somebody else holds the bundle; default: standard error.

    Raises
    ------
    MachineError
        The lock cannot be written: nor could that of another bundle.
    BenchmarkError
        Somebody else still holds the bundle after `timeout` seconds.
    """
    path = lock_path(results, bundle)
    lock = FileLock(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _acquire(lock, path, bundle, timeout=timeout, say=say or _to_stderr)
        holder_path(path).write_text(json.dumps(_me()) + "\n", encoding="utf-8")
    except OSError as error:
        lock.release()
        raise MachineError(
            f"cannot take the lock {path} ({error.strerror or error}): the results folder must be "
            "writable and have space; free it or give another with --results"
        ) from error
    try:
        yield
    finally:
        holder_path(path).unlink(missing_ok=True)
        lock.release()


def holder_path(lock: Path) -> Path:
    """Place of the note that says who holds a lock, beside the lock file."""
    return lock.with_suffix(".holder")


def holder(lock: Path) -> dict | None:
    """Read who holds a lock: host, pid and the time it was taken; None if nothing legible says."""
    try:
        content = json.loads(holder_path(lock).read_text(encoding="utf-8"))
        return content if {"host", "pid", "since"} <= set(content) else None
    except (OSError, ValueError, TypeError):
        return None


def is_stale(note: dict) -> bool:
    """Tell whether a holder is surely gone: a process of this machine that no longer runs."""
    if note["host"] != socket.gethostname():
        return False
    try:
        os.kill(int(note["pid"]), 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return note.get("started") not in (None, _process_start(int(note["pid"])))


def _acquire(lock: FileLock, path: Path, bundle: str, *, timeout, say) -> None:
    deadline = None if timeout is None else time.monotonic() + timeout
    told = False
    while True:
        try:
            lock.acquire(timeout=0)
            return
        except Timeout:
            note = holder(path)
        if note and is_stale(note):
            # The kernel frees a dead holder's lock; one that is still held belongs to a file system
            # that forgot to. Unlinking gives this path a new inode and so a new lock.
            if _discard(path):
                say(f"{bundle}: its holder (process {note['pid']}) is gone, taking over")
            continue
        if not told:
            who = f"process {note['pid']} on {note['host']}" if note else "another process"
            say(f"{bundle}: {who} is working on it, waiting; its finished runs will be skipped")
            told = True
        if deadline is not None and time.monotonic() > deadline:
            raise BenchmarkError(f"{bundle} is still held after {timeout:g} s; lock file {path}")
        time.sleep(POLL_SECONDS)


def _discard(path: Path) -> bool:
    """Remove a stale lock; under a lock of its own, so that nobody removes a successor's."""
    with FileLock(path.with_suffix(".takeover")):
        note = holder(path)
        if not note or not is_stale(note):
            return False
        path.unlink(missing_ok=True)
        holder_path(path).unlink(missing_ok=True)
        return True


def _me() -> dict:
    return {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "started": _process_start(os.getpid()),
        "since": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }


def _process_start(pid: int) -> str | None:
    """Start time of a process in clock ticks since boot, so that a reused pid is told apart."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return None


def _to_stderr(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
