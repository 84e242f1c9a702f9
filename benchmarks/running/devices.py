"""Leases on GPUs: bundles on one machine share its devices without a scheduler.

A device has slots, as many as runs of this size fit its memory; a slot is a file lock, which the kernel
frees when its holder dies. Small images do not fill an H100: several bundles on one device do.
Imports no torch.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from benchmarks.errors import BenchmarkError

# The rest is the driver's, other people's, and the error of the estimate.
USABLE_SHARE = 0.9
POLL_SECONDS = 1.0


@contextmanager
def lease(
    memory_mb: int,
    *,
    folder: Path | None = None,
    say: Callable[[str], None] | None = None,
) -> Iterator[str | None]:
    """Hold a slot of a GPU while the block runs, `CUDA_VISIBLE_DEVICES` naming the device.

    Yields the device, or None where there is nothing to share: no GPU, or a Slurm job, whose devices
    are its own.

    Parameters
    ----------
    memory_mb : GPU memory that a run takes, MB; decides how many share a device. The variable
        `SAFLEX_SLOTS_PER_GPU` overrides it.
    folder : where the locks lie; default: one of this user on this machine.
    """
    found = {} if "SLURM_JOB_ID" in os.environ else gpus()
    if not found:
        yield None
        return
    folder = folder or Path(tempfile.gettempdir()) / f"saflex-gpus-{os.getuid()}"
    folder.mkdir(parents=True, exist_ok=True)
    device, lock = _take(found, memory_mb, folder, say or _to_stderr)
    # CUDA reads the variable when it is first used, so importing torch before is no harm.
    before = os.environ.get("CUDA_VISIBLE_DEVICES")
    os.environ["CUDA_VISIBLE_DEVICES"] = device
    try:
        yield device
    finally:
        lock.release()
        if before is None:
            os.environ.pop("CUDA_VISIBLE_DEVICES", None)
        else:
            os.environ["CUDA_VISIBLE_DEVICES"] = before


def gpus() -> dict[str, int]:
    """Map the GPUs that this process may use to their memory in MB, by the driver's word."""
    command = ["nvidia-smi", "--query-gpu=index,uuid,memory.total", "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30)
    except (OSError, subprocess.SubprocessError):
        return {}
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    allowed = None if visible is None else visible.split(",")
    found = {}
    for line in answer.stdout.splitlines():
        index, uuid, memory = (part.strip() for part in line.split(","))
        for name in (index, uuid):
            if (allowed is None and name == index) or (allowed and name in allowed):
                found[name] = int(memory)
    return found


def slots(total_mb: int, memory_mb: int) -> int:
    """Number of runs that share a device, at least one."""
    if given := os.environ.get("SAFLEX_SLOTS_PER_GPU"):
        if not given.isdigit() or int(given) < 1:
            raise BenchmarkError(f"SAFLEX_SLOTS_PER_GPU is {given!r}: give a number from 1")
        return int(given)
    return max(1, int(USABLE_SHARE * total_mb / max(memory_mb, 1)))


def fitting(processes: int, memory_mb: int) -> int:
    """Lower a number of processes to what the smallest GPU at hand holds; on a CPU leave it be."""
    return min([processes, *(slots(total, memory_mb) for total in gpus().values())])


def _take(found: dict[str, int], memory_mb: int, folder: Path, say) -> tuple[str, FileLock]:
    told = False
    while True:
        # The first slot of every device before the second of any.
        places = [
            (slot, device)
            for device, total in found.items()
            for slot in range(slots(total, memory_mb))
        ]
        for slot, device in sorted(places, key=lambda place: place[0]):
            lock = FileLock(folder / f"gpu-{device}.slot-{slot}.lock")
            try:
                lock.acquire(timeout=0)
                return device, lock
            except Timeout:
                continue
        if not told:
            say(f"all {len(places)} slots of {len(found)} GPUs are taken, waiting for one")
            told = True
        time.sleep(POLL_SECONDS)


def _to_stderr(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
