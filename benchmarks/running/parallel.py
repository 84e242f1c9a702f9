"""Several runs of a bundle at once, each in a process of its own, all on the bundle's device.

Small images and tables do not fill a large GPU. Results do not depend on how many run side by side.
"""

from __future__ import annotations

import multiprocessing
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

from benchmarks.errors import BenchmarkError
from benchmarks.running.current import up_to_date
from benchmarks.running.execute import Interrupted, run_bundle
from benchmarks.running.locks import bundle_lock
from benchmarks.running.stopping import stopping
from benchmarks.spec import RunSpec

TERMINATED = 143
# The second is of a process that was still starting and had nothing to save.
STOPPED = (TERMINATED, -signal.SIGTERM)
POLL_SECONDS = 0.5


def run_missing(
    specs: list[RunSpec],
    results: Path,
    *,
    processes: int,
    device: str | None = None,
    checkpoint_minutes: float = 10.0,
    keep_weights: bool = False,
) -> None:
    """Write the records that are missing, `processes` runs at a time.

    SIGTERM and Ctrl-C are handed on: every run saves its checkpoint. If this process is killed outright its
    children go on to their ends; each holds the lock of its run, so that a second call waits for them.

    Raises
    ------
    Interrupted
        After either, when all checkpoints are written.
    BenchmarkError
        A process died; the other runs were finished first.
    """
    options = {
        "device": device,
        "checkpoint_minutes": checkpoint_minutes,
        "keep_weights": keep_weights,
    }
    waiting = [spec for spec in specs if up_to_date(spec, results) is None]
    # CUDA does not survive a fork.
    context = multiprocessing.get_context("spawn")
    running: dict[str, multiprocessing.Process] = {}
    codes: dict[str, int] = {}

    def hand_on() -> None:
        for process in running.values():
            if process.is_alive():
                process.terminate()

    with stopping(then=hand_on) as stop:
        while running or (waiting and not stop()):
            while waiting and len(running) < processes and not stop():
                spec = waiting.pop(0)
                name = spec.name
                running[name] = context.Process(
                    target=_run, args=(spec, results, options), name=name
                )
                with _hearing_no_ctrl_c():
                    running[name].start()
                if stop():  # while it was being started
                    running[name].terminate()
            # A process that ended wakes the wait; a signal does not (PEP 475).
            ended = [p.sentinel for p in running.values()]
            wait(ended, timeout=POLL_SECONDS)
            for name in [name for name, process in running.items() if not process.is_alive()]:
                codes[name] = running.pop(name).exitcode
    failed = {name: code for name, code in codes.items() if code not in (0, *STOPPED)}
    if failed:
        told = ", ".join(f"{name} (exit status {code})" for name, code in failed.items())
        raise BenchmarkError(f"of {len(codes)} runs, these died: {told}; the others are recorded")
    left = len(waiting) + sum(code in STOPPED for code in codes.values())
    if left:
        raise Interrupted(f"{left} runs are left")


@contextmanager
def _hearing_no_ctrl_c() -> Iterator[None]:
    """Start a process that no Ctrl-C reaches, which a terminal sends to all: it is handed on as SIGTERM.

    One that came meanwhile is delivered to this process at the end.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _run(spec: RunSpec, results: Path, options: dict[str, Any]) -> None:
    """Body of one process."""
    try:
        with bundle_lock(results, spec.name):
            run_bundle([spec], results, **options)
    except Interrupted:
        sys.exit(TERMINATED)
