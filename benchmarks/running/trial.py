"""`plan --check`: every distinct cell built once and trained for one step, before anything is queued."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from benchmarks.errors import BenchmarkError, DataError, stumbled
from benchmarks.running import machine
from benchmarks.running.execute import load_data
from benchmarks.spec import RunSpec
from benchmarks.train import Training
from saflex.errors import SaflexError


class GlobalStream(BenchmarkError):
    """Something drew from a global random stream: its results would depend on what ran before."""


def check(
    bundles: dict[str, list[RunSpec]],
    *,
    device: str | None = None,
    report: Callable[[str], None] = print,
) -> None:
    """Try the first seed of every bundle whose settings no bundle before it had.

    Raises
    ------
    BenchmarkError
        Cells that cannot run, each with its reason; data that are not at hand count as well.
    """
    device = machine.chosen_device(device)
    tried: dict[str, str] = {}
    for bundle, specs in bundles.items():
        key = specs[0].settings.model_dump_json()
        if key not in tried:
            tried[key] = _problem(specs[0], device)
            report(f"{bundle}: {tried[key] or 'one step done'}")
    if failed := [problem for problem in tried.values() if problem]:
        raise BenchmarkError(f"{len(failed)} of {len(tried)} distinct cells cannot run, see above")


def _problem(spec: RunSpec, device: str) -> str:
    """Say why a run cannot take its first step; empty if it can."""
    try:
        one_step(spec, device)
    except DataError as absent:
        return f"not tried: {absent}"
    except (BenchmarkError, SaflexError) as refusal:
        return str(refusal)
    except SystemExit as end:
        return stumbled(end)
    except Exception as error:  # whatever somebody's file does when it is used
        return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
    finally:
        machine.free_memory()
    return ""


def one_step(spec: RunSpec, device: str) -> None:
    """Build a run and take one step; where nothing is trained, measure it.

    Raises
    ------
    GlobalStream
        The data set, the upstream or the refiner drew from a global random stream.
    """
    with untouched("the data set"):
        data = load_data(spec, device)
    training = Training(spec, data)
    try:
        training.run(after_step=_stop)
    except _Stopped:
        training.check_losses()
    index = training.order()[: spec.settings.recipe.batch_size]
    with untouched(f"upstream {spec.settings.upstream.name!r}"):
        _, augmented = training.inputs(index)
    if training.refiner.trains:
        with untouched(f"refiner {spec.settings.refiner.name!r}"), training._autocast():
            training.refiner(augmented)


class _Stopped(Exception):
    """The step that was asked for is done."""


def _stop(training: Training) -> None:
    raise _Stopped


@contextmanager
def untouched(what: str) -> Iterator[None]:
    """See that the global random streams of torch, numpy and Python are where they were.

    Raises
    ------
    GlobalStream
        They are not; the line says which.
    """
    before = _global_streams()
    yield
    if moved := [name for name, state in _global_streams().items() if state != before[name]]:
        raise GlobalStream(
            f"{what} drew from the global random stream of {', '.join(moved)}: draw from the generator "
            "that it is given"
        )


def _global_streams() -> dict[str, Any]:
    legacy = np.random.get_state()
    return {
        "torch": torch.get_rng_state().tolist(),
        "numpy": (legacy[1].tolist(), *legacy[2:]),
        "random": random.getstate(),
    }
