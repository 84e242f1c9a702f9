"""Run a function in two processes of a gloo group and give what each returned."""

import socket
import tempfile
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing


def two_processes(work: Callable[[int], Any], *, group: bool = True) -> list[Any]:
    """Fork twice (two fresh interpreters would spend ten seconds importing torch).

    Parameters
    ----------
    work : called with the rank; returns tensors and plain values.
    group : False where `work` makes the process group itself, from the usual environment variables.
    """
    with tempfile.TemporaryDirectory() as folder, socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        probe.close()
        torch.multiprocessing.start_processes(
            _rank, args=(work, port, folder, group), nprocs=2, start_method="fork"
        )
        return [torch.load(f"{folder}/{rank}.pt", weights_only=True) for rank in range(2)]


def _rank(rank: int, work: Callable, port: int, folder: str, group: bool) -> None:
    import os

    torch.set_num_threads(1)
    os.environ |= {
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2",
        "RANK": str(rank), "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": "2",
    }  # fmt: skip
    if group:
        dist.init_process_group("gloo")
    torch.save(work(rank), f"{folder}/{rank}.pt")
    if dist.is_initialized():
        dist.destroy_process_group()
