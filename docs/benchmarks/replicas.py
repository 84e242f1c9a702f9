"""Ten seeds together against one after the other: wall-clock and processor time as paired ratios.

    python docs/benchmarks/running/replicas.py [--rounds 5] [--threads 1] [--seeds 10] [--device cpu]

Both ways take the same steps in one process, in turn (A B A B ...), on data that ships with
scikit-learn; the ratio of each pair is printed as minimum, median, maximum. Above 1, together wins.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch

from benchmarks import registry
from benchmarks.running.replicas import Replicas
from benchmarks.spec import Component, Recipe, RunSpec, Settings
from benchmarks.train import Training

ROWS = {
    "none": ("uniform", "none", 0.0, {}),
    "clean+aug": ("uniform", "cutmix", 0.5, {}),
    "saflex": ("saflex", "cutmix", 0.5, {"beta": 1.0}),
}


def spec(*, row: str, seed: int, batch: int, width: int, dropout: float) -> RunSpec:
    refiner, upstream, share, settings = ROWS[row]
    return RunSpec(
        suite="bench", table="2", dataset="breast-cancer", backbone="mlp", upstream=upstream,
        refiner=row, seed=seed, metric="auroc",
        settings=Settings(
            dataset=Component(name="breast-cancer"),
            model=Component(name="mlp", settings={"hidden": (width, width), "dropout": dropout}),
            upstream=Component(name=upstream),
            refiner=Component(name=refiner, settings=settings),
            recipe=Recipe(batch_size=batch, epochs=10_000),
            clean_share=share,
        ),
    )  # fmt: skip


def steps(training: Training, number: int) -> None:
    """Take optimiser steps, beginning epochs as they come."""
    training.model.train()
    taken = 0
    while taken < number:
        order, size = training.order(), training.recipe.batch_size
        for start in range(min(number - taken, training.steps_per_epoch)):
            training.step(order[start * size : (start + 1) * size])
            taken += 1
        training.epoch += 1
    training.check_losses()
    if training.device.type == "cuda":
        torch.cuda.synchronize()


def timed(work: Callable[[], None]) -> tuple[float, float]:
    wall, processor = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - wall, time.process_time() - processor


def compare(number: int, seeds: int, rounds: int, device: str, **case) -> None:
    load = registry.load("datasets", "breast-cancer")

    def runs() -> list[Training]:
        data = [load("breast-cancer", seed=s).to(device) for s in range(seeds)]
        return [Training(spec(seed=s, **case), data[s]) for s in range(seeds)]

    alone, stack = runs(), Replicas(runs())

    def one_by_one() -> None:
        for run in alone:
            steps(run, number)

    def together() -> None:
        steps(stack, number)

    one_by_one(), together()  # warm up
    pairs = [(timed(one_by_one), timed(together)) for _ in range(rounds)]
    each = 1000 / (number * seeds)
    cells = []
    for clock in (0, 1):
        ratios = sorted(a[clock] / b[clock] for a, b in pairs)
        apart = statistics.median(a[clock] for a, _ in pairs) * each
        joint = statistics.median(b[clock] for _, b in pairs) * each
        cells.append(
            f"{apart:6.2f} {joint:6.2f}  {ratios[0]:.2f} {statistics.median(ratios):.2f} {ratios[-1]:.2f}"
        )
    name = f"{case['row']:10} batch {case['batch']:4} width {case['width']:4} dropout {case['dropout']}"
    print(f"{name} | {cells[0]} | {cells[1]}", flush=True)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--threads", type=int, default=1)
    options.add_argument("--seeds", type=int, default=10)
    options.add_argument("--steps", type=int, default=20)
    options.add_argument("--device", default="cpu")
    options.add_argument("--batches", type=int, nargs="+", default=[16, 64, 256])
    options.add_argument("--widths", type=int, nargs="+", default=[64, 256])
    options.add_argument("--dropout", type=float, default=0.1)
    chosen = options.parse_args()
    torch.set_num_threads(chosen.threads)
    print(
        f"{chosen.seeds} seeds, {chosen.threads} thread(s), {chosen.device}, torch {torch.__version__}"
    )
    print("milliseconds a step and seed: apart, together; ratio min median max | wall | processor")
    for row in ROWS:
        for batch in chosen.batches:
            for width in chosen.widths:
                case = {"row": row, "batch": batch, "width": width, "dropout": chosen.dropout}
                compare(chosen.steps, chosen.seeds, chosen.rounds, chosen.device, **case)


if __name__ == "__main__":
    main()
