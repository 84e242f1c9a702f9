"""The machine a run is on: its clock, memory, devices and commit, as records state them."""

from __future__ import annotations

import ctypes
import datetime as dt
import gc
import platform
import resource
import subprocess
from pathlib import Path

import torch

M_MMAP_THRESHOLD = -3  # of glibc's malloc.h


def return_large_blocks() -> None:
    """Have glibc give every freed block of 4 MiB and more back at once (docs/benchmarks/memory.md).

    By itself it raises that limit to 32 MiB with each such block that is freed, and from then on keeps them
    on a heap that small blocks pin: SAINT on KDD99 took twice the memory it used.
    """
    if mallopt := getattr(ctypes.CDLL(None), "mallopt", None):
        mallopt(M_MMAP_THRESHOLD, 4 * 2**20)


def free_memory() -> None:
    """Give back what a finished run held: else five seeds of SAINT are in memory together.

    Model, optimiser and refiner refer to each other, and Python counts objects, not bytes, before it looks
    for such circles; and glibc keeps freed blocks below a block that is still in use.
    """
    gc.collect()
    if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):
        trim(0)


def default_device() -> str:
    """Use a CUDA device where there is one."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def now() -> str:
    """Say what time it is, in ISO 8601, UTC."""
    return dt.datetime.now(dt.UTC).isoformat(timespec="milliseconds")


def peak_memory(device: str) -> float:
    """Give the largest memory so far, MiB: of the GPU's allocator, or of this process."""
    if device.startswith("cuda"):
        return torch.cuda.max_memory_allocated(device) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def device_name(device: str) -> str:
    """Name a device as records do: the GPU, or the processor and its threads."""
    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    return f"{platform.processor() or platform.machine()} CPU, {torch.get_num_threads()} thread(s)"


def commit() -> str:
    """Give the commit of the source, empty outside a git checkout."""
    answer = subprocess.run(
        ["git", "rev-parse", "--short=12", "HEAD"],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=False,
    )
    return answer.stdout.strip() if answer.returncode == 0 else ""
