"""Several runs of a bundle at once, each in a process of its own, all on the bundle's device.

Small images and tables do not fill a large GPU. Results do not depend on how many run side by side.
"""

from __future__ import annotations

import multiprocessing
import signal
import sys
from contextlib import contextmanager
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

from benchmarks.errors import BenchmarkError
from benchmarks.running.current import up_to_date
from benchmarks.running.execute import Interrupted, run_bundle
from benchmarks.running.locks import bundle_lock
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

    SIGTERM is handed on: every run saves its checkpoint. If this process is killed outright its
    children go on to their ends; each holds the lock of its run, so that a second call waits for them.

    Raises
    ------
    Interrupted
        After SIGTERM, when all checkpoints are written.
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
    with _handing_on(running) as stop:
        while running or (waiting and not stop.asked):
            while waiting and len(running) < processes and not stop.asked:
                spec = waiting.pop(0)
                name = spec.name
                running[name] = context.Process(
                    target=_run, args=(spec, results, options), name=name
                )
                running[name].start()
                if stop.asked:  # while it was being started
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


class _Stop:
    asked = False


@contextmanager
def _handing_on(running: dict[str, multiprocessing.Process]):
    stop = _Stop()

    def hand_on(number: int, frame: object) -> None:
        stop.asked = True
        for process in running.values():
            if process.is_alive():
                process.terminate()

    before = signal.signal(signal.SIGTERM, hand_on)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGTERM, before)


def _run(spec: RunSpec, results: Path, options: dict[str, Any]) -> None:
    """Body of one process."""
    try:
        with bundle_lock(results, spec.name):
            run_bundle([spec], results, **options)
    except Interrupted:
        sys.exit(TERMINATED)
