"""SAFLEX's training time over that of the same rows without it, on Table 2's data sets, beside +81 %.

    SAFLEX_DATA=DIR python docs/benchmarks/overhead.py [--backbone mlp] [--rounds 7] [--steps 20]

The rows take the same number of steps in turn (A B C A B C ...) in one process with one thread, so that
other work on the machine slows all alike; processor time, median of the rounds' ratios.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch

from benchmarks import registry
from benchmarks.suite import load, plan
from benchmarks.train import Training

BASELINES = ("upstream", "clean+aug")
ROWS = (*BASELINES, "saflex-printed", "saflex-derived", "saflex")
PAPER = 81


def take(training: Training, steps: int) -> float:
    """Processor seconds of `steps` steps, in a fresh order."""
    training.model.train()
    order, size = training._order(), training.recipe.batch_size
    start = time.process_time()
    for number in range(steps):
        at = size * (number % training.steps_per_epoch)
        training.step(order[at : at + size])
    training._check_losses()
    training.epoch += 1
    return time.process_time() - start


def ratios(dataset: str, backbone: str, *, rounds: int, steps: int) -> dict[tuple[str, str], float]:
    """Median ratio of each SAFLEX row to each baseline."""
    specs = {
        spec.refiner: spec
        for spec in plan(load("cpu"), table="2")
        if (spec.dataset, spec.backbone, spec.seed) == (dataset, backbone, 0)
        and spec.refiner in ROWS
        and spec.upstream == "cutmix"
    }
    component = next(iter(specs.values())).settings.dataset
    data = registry.load("datasets", component.name)(component.name, seed=0, **component.settings)
    runs = {name: Training(spec, data) for name, spec in specs.items()}
    for training in runs.values():
        take(training, 3)
    taken = [{name: take(run, steps) for name, run in runs.items()} for _ in range(rounds)]
    return {
        (row, base): statistics.median(one[row] / one[base] for one in taken)
        for row in specs
        for base in BASELINES
        if row not in BASELINES
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backbone", default="mlp", choices=("mlp", "saint"))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--datasets", nargs="*")
    options = parser.parse_args()
    torch.set_num_threads(1)
    planned = plan(load("cpu"), table="2")
    names = options.datasets or sorted({spec.dataset for spec in planned})
    found = {}
    for name in names:
        found[name] = ratios(name, options.backbone, rounds=options.rounds, steps=options.steps)
        print(name, *(f"{r}/{b} {v:.2f}" for (r, b), v in found[name].items()), flush=True)
    print(f"\n| {options.backbone} | over upstream | over clean+aug | paper |\n|---|---|---|---|")
    for row in ROWS[len(BASELINES) :]:
        over = [
            100 * (statistics.mean(found[name][row, base] for name in names) - 1)
            for base in BASELINES
        ]
        print(f"| {row} | {over[0]:+.0f} % | {over[1]:+.0f} % | +{PAPER} % |")


if __name__ == "__main__":
    main()
