"""The machine a run is on: its clock, memory, devices and commit, as records state them."""

from __future__ import annotations

import ctypes
import datetime as dt
import gc
import os
import platform
import re
import resource
import subprocess
import sys
from pathlib import Path

import torch

from benchmarks.errors import BenchmarkError

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
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
    if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):
        trim(0)


def chosen_device(named: str | None = None) -> str:
    """Give the device to run on: the one named, else `SAFLEX_DEVICE`, else a GPU where there is one.

    Raises
    ------
    BenchmarkError
        It is none, or none of this machine; the line says what there is.
    """
    here = ["cpu"]
    if torch.cuda.is_available():
        here += ["cuda", *(f"cuda:{number}" for number in range(torch.cuda.device_count()))]
    given = named is not None
    asked = named if given else os.environ.get("SAFLEX_DEVICE") or here[:2][-1]
    if asked in here:
        return asked
    by = "" if given else "SAFLEX_DEVICE: "
    if re.fullmatch(r"cuda(:\d+)?", asked):
        why = "torch sees no NVIDIA GPU with a driver" if len(here) == 1 else "there is no such GPU"
    else:
        why = "expected cpu, cuda or a GPU's number such as cuda:1"
    raise BenchmarkError(f"{by}device {asked!r}: {why}; this machine has {', '.join(here)}")


def out_of_memory(error: BaseException) -> bool:
    """Tell whether the machine's or the GPU's memory was too small."""
    words = ("out of memory", "can't allocate memory", "ALLOC_FAILED")
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and any(word in str(error) for word in words)
    )


def now() -> str:
    """Say what time it is, in ISO 8601, UTC."""
    return dt.datetime.now(dt.UTC).isoformat(timespec="milliseconds")


def peak_memory(device: str) -> float:
    """Give the largest memory so far, MiB: of the GPU's allocator, or of this process."""
    if device.startswith("cuda"):
        return torch.cuda.max_memory_allocated(device) / 2**20
    unit = 2**20 if sys.platform == "darwin" else 2**10  # ru_maxrss: bytes there, KiB on Linux
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


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
