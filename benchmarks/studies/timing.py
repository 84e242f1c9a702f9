"""Training time of a table's rows, measured apart from its runs (Appendix C, the paper's overheads).

Rows of one data set, network and upstream share one process and one thread and take the same number of
steps in turn, round after round (A B C A B C ...): whatever else slows the machine slows all of them.
The tables then compare them round by round. Planning and reading need no torch.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.errors import BenchmarkError
from benchmarks.record import atomic_write
from benchmarks.spec import RunSpec
from benchmarks.tables.times import Times, path_of, read

if TYPE_CHECKING:
    from benchmarks.train import Training

UNENDING = 1_000_000  # epochs: turns end by their steps, and no evaluation comes between


def groups(specs: list[RunSpec]) -> list[list[RunSpec]]:
    """Group the first seed's runs by data set, network and upstream: what is measured in turn."""
    found: dict[tuple, list[RunSpec]] = defaultdict(list)
    for spec in specs:
        if spec.seed == 0:
            found[spec.table, spec.dataset, spec.backbone, spec.upstream].append(spec)
    return [group for group in found.values() if len(group) > 1]


def measure(
    group: list[RunSpec],
    results: Path,
    *,
    rounds: int,
    steps: int,
    device: str = "cpu",
    report: Callable[[str], None] = print,
) -> Times:
    """Measure a group and write its file, unless a file of the same recipes is there.

    Parameters
    ----------
    group : one run a row, as `groups` gives them.
    rounds, steps : rounds to take, and steps of each row in each of them.

    Raises
    ------
    BenchmarkError
        A row has one step an epoch, so that no step follows another without a look at the data.
    """
    path, keys = path_of(results, group[0]), {spec.row: spec.key for spec in group}
    name = group[0].bundle.rpartition("/")[0]
    if path.exists() and (old := read(path)).keys == keys:
        report(f"{name}: measured {old.finished[:10]}, skipped; delete {path} to measure again")
        return old
    from benchmarks.running import machine

    device = machine.chosen_device(device)
    runs = {spec.row: _started(spec, device) for spec in group}
    for run in runs.values():
        _turn(run, 2)
    seconds: dict[str, list[float]] = defaultdict(list)
    for _ in range(rounds):
        for row, run in runs.items():
            seconds[row].append(_turn(run, steps) * run.steps_per_epoch)
    runs.clear()
    del run
    machine.free_memory()
    first = group[0]
    times = Times(
        table=first.table,
        dataset=first.dataset,
        backbone=first.backbone,
        upstream=first.upstream,
        keys=keys,
        seconds=seconds,
        clock="wall" if device.startswith("cuda") else "processor",
        steps=steps,
        device=machine.device_name(device),
        finished=machine.now(),
        commit=machine.commit(),
    )
    atomic_write(path, times.model_dump_json(indent=1) + "\n")
    shown = ", ".join(f"{row} {min(values):.3f}" for row, values in times.seconds.items())
    report(f"{name}: seconds an epoch: {shown}")
    return times


def _started(spec: RunSpec, device: str) -> Training:
    """Build a run that goes on for ever, past any warm-up of its refiner's and without evaluations."""
    from benchmarks.running import execute
    from benchmarks.train import Training

    recipe = spec.settings.recipe.model_copy(
        update={"epochs": 2 * UNENDING, "evaluate_every": 2 * UNENDING}
    )
    settings = spec.settings.model_copy(update={"recipe": recipe})
    run = Training(spec.model_copy(update={"settings": settings}), execute.load_data(spec, device))
    run.epoch = UNENDING
    return run


def _turn(run: Training, steps: int) -> float:
    """Take steps; seconds of one of them."""
    if run.steps_per_epoch < 2:
        raise BenchmarkError(
            f"{run.spec.bundle} has {run.steps_per_epoch} step an epoch: times need 2 or more"
        )
    watch = _Watch(steps)
    try:
        run.run(after_step=watch)
    except _Enough:
        return watch.seconds / steps
    raise AssertionError("a run without end ended")


class _Enough(Exception):
    """The turn is over."""


class _Watch:
    """Time between the ends of two steps of the same epoch, until there are enough of them."""

    def __init__(self, steps: int):
        self.left, self.seconds = steps, 0.0
        self.before: float | None = None

    def __call__(self, run: Training) -> None:
        now = _clock(run)
        # The first step of an epoch, or of a turn, has its shuffle before it.
        if self.before is not None and run.step_in_epoch > 1:
            self.seconds += now - self.before
            self.left -= 1
        if self.left == 0:
            raise _Enough
        self.before = now


def _clock(run: Training) -> float:
    if run.device.type != "cuda":
        return time.process_time()
    import torch

    torch.cuda.synchronize(run.device)
    return time.perf_counter()
