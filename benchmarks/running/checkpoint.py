"""Checkpoints inside a run: written every few minutes and on SIGTERM, taken up bit for bit."""

from __future__ import annotations

import os
import time
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks.record import replacing
from benchmarks.running.source_hash import source_hash
from benchmarks.spec import RunSpec
from benchmarks.train import Interrupted, Training


def saved(content: dict, path: Path) -> None:
    """Write tensors by atomic rename: a file is there whole or not at all."""
    with replacing(path) as fresh:
        torch.save(content, fresh)


class Checkpoint:
    """The checkpoint file of one run, called by the training loop after each step.

    Parameters
    ----------
    minutes : wall-clock between checkpoints.
    stop : answers whether the process was asked to stop.
    """

    def __init__(
        self,
        results: Path,
        spec: RunSpec,
        *,
        minutes: float = 10.0,
        stop: Callable[[], bool] = lambda: False,
    ):
        self.path = results / "checkpoints" / f"{spec.key}.pt"
        self.source = source_hash(spec)
        self.minutes, self.stop = minutes, stop
        self.written = time.monotonic()

    def __call__(self, training: Training) -> None:
        if self.stop():
            self.save(training)
            raise Interrupted(f"stopped at step {training.steps}; {self.path.name} is written")
        if time.monotonic() - self.written > 60 * self.minutes:
            self.save(training)

    def save(self, training: Training) -> None:
        """Write the state by atomic rename."""
        made_from = {"source": self.source, "content": training.data.content}
        saved({**training.state_dict(), **made_from}, self.path)
        self.written = time.monotonic()

    def resume(self, training: Training) -> bool:
        """Take up the checkpoint if there is a readable one; a corrupted one is set aside and named."""
        if not self.path.exists():
            return False
        try:
            _verify(self.path)
            state = torch.load(self.path, map_location=training.device, weights_only=True)
        except Exception as error:
            aside = self.path.with_suffix(".corrupted")
            os.replace(self.path, aside)
            warnings.warn(
                f"checkpoint {self.path} is unreadable ({error.__class__.__name__}): set aside as "
                f"{aside.name}, the run starts over",
                stacklevel=2,
            )
            return False
        if (state.get("source"), state.get("content")) != (self.source, training.data.content):
            # Half a run by the source or on the data of yesterday and half by today's would be
            # nobody's result.
            self.path.unlink()
            return False
        training.load_state_dict(state)
        return True

    def remove(self) -> None:
        """Delete the checkpoint of a finished run."""
        self.path.unlink(missing_ok=True)


def _verify(path: Path) -> None:
    """Check the checksums in the file: `torch.load` takes flipped bits of a tensor without a word."""
    with zipfile.ZipFile(path) as archive:
        if (damaged := archive.testzip()) is not None:
            raise zipfile.BadZipFile(f"checksum of {damaged} differs")
