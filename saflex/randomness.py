"""Random streams of our own, so that the training loop's streams never move.

Iterating a DataLoader draws a base seed from the global stream, and data sets draw from Python's
and NumPy's. Such code runs inside a `PrivateStream`, which makes it repeatable as well.
"""

import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

__all__ = ["PrivateStream", "global_state", "host_streams_kept"]


class PrivateStream:
    """Global random state (torch on the CPU, Python, NumPy if loaded) swapped in for a block.

    Accelerators' streams are saved and restored around the block, but not kept private.

    Parameters
    ----------
    seed : int
        Start of all three streams.
    """

    def __init__(self, seed: int) -> None:
        self._torch = torch.Generator("cpu").manual_seed(seed).get_state()
        self._python = random.Random(seed).getstate()
        self._numpy: Any = None
        self._seed = seed

    @contextmanager
    def swapped_in(self) -> Iterator[None]:
        """Inside the block the global streams are this one; outside, nothing was drawn."""
        numpy = sys.modules.get("numpy")
        with host_streams_kept(), torch.random.fork_rng(devices=_current_accelerator()):
            torch.set_rng_state(self._torch)
            random.setstate(self._python)
            if numpy is not None:
                if self._numpy is None:
                    self._numpy = numpy.random.RandomState(self._seed % 2**32).get_state()
                numpy.random.set_state(self._numpy)
            try:
                yield
            finally:
                self._torch = torch.get_rng_state()
                self._python = random.getstate()
                if numpy is not None:
                    self._numpy = numpy.random.get_state()

    def state_dict(self) -> dict[str, Any]:
        """Plain values and tensors, loadable with ``torch.load(weights_only=True)``."""
        return _as_plain(self._torch.clone(), self._python, self._numpy)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue exactly where `state_dict` was taken."""
        self._torch = state["torch"].cpu().clone()  # map_location may have moved it
        version, numbers, gauss = state["python"]
        self._python = (version, tuple(numbers), gauss)
        self._numpy = None if state["numpy"] is None else tuple(state["numpy"])


@contextmanager
def host_streams_kept() -> Iterator[None]:
    """Put Python's and NumPy's global streams back afterwards, where something was drawn."""
    numpy = sys.modules.get("numpy")
    python = random.getstate()
    numbers = None if numpy is None else numpy.random.get_state()
    try:
        yield
    finally:
        if random.getstate() != python:
            random.setstate(python)
        if numpy is not None:
            now = numpy.random.get_state()
            # The place in the stream, its numbers, and half of a pair of normal ones.
            if now[2:] != numbers[2:] or (now[1] != numbers[1]).any():
                numpy.random.set_state(numbers)


def global_state() -> dict[str, Any]:
    """The global streams as they are now, in the form of `PrivateStream.state_dict`."""
    numpy = sys.modules.get("numpy")
    numbers = None if numpy is None else numpy.random.get_state()
    return _as_plain(torch.get_rng_state(), random.getstate(), numbers)


def _as_plain(torch_state: torch.Tensor, python: tuple, numpy: tuple | None) -> dict[str, Any]:
    plain = None if numpy is None else (numpy[0], numpy[1].tolist(), *numpy[2:])
    return {"torch": torch_state, "python": python, "numpy": plain}


def _current_accelerator() -> list[int]:
    return [torch.cuda.current_device()] if torch.cuda.is_initialized() else []
