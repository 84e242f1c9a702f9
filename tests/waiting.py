"""Waiting for what another process does: for the event, whatever the machine is busy with."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable

# No measure of anything: it only ends a test whose event cannot come any more.
PATIENCE_SECONDS = 300


def wait_for(
    condition: Callable[[], object],
    what: str,
    process: subprocess.Popen | None = None,
    *,
    every: float = 0.1,
):
    """Give the condition's first true value; a process that ends before is an error at once."""
    end = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < end:
        ended = process is not None and process.poll() is not None
        if found := condition():
            return found
        assert not ended, f"{what}: the process ended first: {process.communicate()}"
        time.sleep(every)
    raise AssertionError(f"{what}: not within {PATIENCE_SECONDS} s")
