"""`cost`: what a suite will take before it starts: runs, steps, hours, gigabytes, memory.

Numbers come from the suite's own records where it has some, else from `cost_rates.yaml`; every
estimate says which, and what it assumes. Imports no torch.
"""

from __future__ import annotations

import ast
import importlib
import json
import math
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from statistics import median
from types import ModuleType
from typing import Any, Literal

import yaml

from benchmarks import record, registry, sources, weights
from benchmarks.forecast import images as generation
from benchmarks.running import devices
from benchmarks.spec import RunSpec
from benchmarks.suite import Suite, bundles, plan, to_run

Device = Literal["cpu", "gpu"]
RATES = Path(__file__).with_name("cost_rates.yaml")

# Constant of a model's module: which of its names are counted in FLOPs, not by a rate, and by what module
# of this room.
ESTIMATORS = "ESTIMATORS"

# A scheduler kills a job that runs past its limit, so the limit is well above the estimate.
RUNTIME_MARGIN = 3
RUNTIME_MINIMUM_MINUTES = 10

# Of the class that `cost_rates.yaml` estimates for; a smaller one is noticed when the bundle starts.
GPU_MEMORY_MB = 80_000


@dataclass(frozen=True, kw_only=True)
class BundleCost:
    """Estimate of one bundle: all seeds of one cell, one process.

    Attributes
    ----------
    steps : optimiser steps of all its runs together.
    seconds : wall-clock of all its runs together on one device.
    basis : where the seconds come from, one entry for each thing that was assumed or measured.
    memory_mb : host memory of the process, MB.
    """

    bundle: str
    table: str
    dataset: str
    runs: int
    steps: int
    seconds: float
    basis: tuple[str, ...]
    memory_mb: int

    @property
    def runtime_minutes(self) -> int:
        """Time limit to ask a scheduler for."""
        return max(RUNTIME_MINIMUM_MINUTES, math.ceil(RUNTIME_MARGIN * self.seconds / 60))

    def at_once(self, processes: int) -> int:
        """Lower a number of processes to the runs there are and to what a large GPU holds."""
        return min(processes, self.runs, devices.slots(GPU_MEMORY_MB, self.memory_mb))


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """Estimate of a suite: one `BundleCost` a bundle, and what was assumed."""

    suite: str
    device: Device
    bundles: list[BundleCost]

    @property
    def device_hours(self) -> float:
        return sum(cost.seconds for cost in self.bundles) / 3600

    def per_table(self) -> list[dict[str, Any]]:
        """One row a table: bundles, runs, steps, device hours, the largest memory."""
        grouped: dict[str, list[BundleCost]] = defaultdict(list)
        for cost in self.bundles:
            grouped[cost.table].append(cost)
        return [
            {
                "table": table,
                "bundles": len(costs),
                "runs": sum(cost.runs for cost in costs),
                "steps": sum(cost.steps for cost in costs),
                "hours": sum(cost.seconds for cost in costs) / 3600,
                "memory_mb": max(cost.memory_mb for cost in costs),
            }
            for table, costs in grouped.items()
        ]

    def assumptions(self) -> list[str]:
        """Every basis the estimate stands on, with the number of bundles that use it."""
        counts: dict[str, int] = defaultdict(int)
        for cost in self.bundles:
            for basis in cost.basis:
                counts[basis] += 1
        return [f"{basis} ({count} bundles)" for basis, count in sorted(counts.items())]


def estimate(
    suite: Suite,
    *,
    table: str | None = None,
    results: Path | None = None,
    device: Device | None = None,
) -> Estimate:
    """Estimate a suite; with `results`, from the records that are already there.

    Parameters
    ----------
    device : ``cpu`` (one core) or ``gpu``; default: what `cost_rates.yaml` says for the suite.
    """
    device = device or _rates()["suites"].get(suite.name, "cpu")
    measured = _measured(results) if results else {}
    costs = [
        _bundle_cost(bundle, specs, device=device, measured=measured)
        for bundle, specs in bundles(plan(suite, table=table)).items()
    ]
    return Estimate(suite=suite.name, device=device, bundles=costs)


def show(suite: Suite, *, table: str | None = None) -> None:
    """Print the estimate of a suite or of one of its tables, from its records where it has some."""
    specs = to_run(suite, table=table)
    whole = estimate(suite, table=table, results=record.folder(suite.name))
    print(render(whole, _lacking(specs), by_bundle=table is not None), end="")
    for title, lines in _particulars(specs):
        print(f"\n{title}\n" + "\n".join(f"  {line}" for line in lines))


def per_bundle(suite: Suite) -> dict[str, BundleCost]:
    """Estimate each bundle from the rate table alone: what a scheduler is asked for."""
    return {cost.bundle: cost for cost in estimate(suite).bundles}


def render(whole: Estimate, to_download: dict[str, int | None], *, by_bundle: bool = False) -> str:
    """Lay out an estimate for a terminal: a line a table, then totals, then what it stands on."""
    device = _rates()["devices"][whole.device]
    lines = [f"suite {whole.suite}, estimated for {device['label']}"]
    if by_bundle:
        width = max(len(c.bundle) for c in whole.bundles)
        lines += [
            f"  {c.bundle:<{width}} {c.runs:>4} runs {c.steps:>12,} steps {_span(c.seconds):>8} "
            f"{c.memory_mb:>7,} MB"
            for c in whole.bundles
        ]
    lines += [
        f"  table {row['table']:<14} {row['bundles']:>4} bundles {row['runs']:>6,} runs "
        f"{row['steps']:>13,} steps {row['hours']:>9.2f} h   up to {row['memory_mb']:,} MB"
        for row in whole.per_table()
    ]
    at_once, seconds = device["concurrent"], 3600 * whole.device_hours
    hours = f"  together {whole.device_hours:.2f} hours of {device['label']}"
    lines.append(
        hours + (f", about {_span(seconds / at_once)} on {at_once}" if at_once > 1 else "")
    )
    known = {name: size / 1e9 for name, size in to_download.items() if size}
    unknown = [name for name, size in to_download.items() if size is None]
    also = f", and {', '.join(unknown)} (size not stated)" if unknown else ""
    lines.append(f"  to download {sum(known.values()):.3f} GB{also}")
    lines += [
        f"    {size:6.3f} GB  {name}"
        for name, size in sorted(known.items(), key=lambda item: -item[1])
    ]
    lines.append("  based on")
    lines += [f"    {line}" for line in whole.assumptions()]
    return "\n".join(lines) + "\n"


def training_steps(spec: RunSpec) -> int:
    """Number of optimiser steps of one run: epochs x ceil(training rows / batch size)."""
    size = _of("datasets", spec.settings.dataset.name)
    rows = size.get("train", round(size["rows"] * _rates()["train_share"]))
    rows = min(rows, spec.settings.dataset.settings.get("limit") or rows)
    recipe = spec.settings.recipe
    return recipe.epochs * math.ceil(rows / recipe.batch_size)


def _bundle_cost(
    bundle: str, specs: list[RunSpec], *, device: Device, measured: dict
) -> BundleCost:
    spec, steps = specs[0], training_steps(specs[0])
    seconds, basis = _seconds_per_step(spec, device=device)
    run_seconds = steps * seconds + _evaluation_seconds(spec, device=device)
    if device == "gpu" and (arithmetic := _arithmetic(spec)):
        row = arithmetic.row_cost(specs)
        steps, run_seconds = row.steps, 3600 * row.hours
        basis = (f"{spec.settings.model.name}: arithmetic of FLOPs, in full below",)
    if rate := measured.get(_method(spec)):
        run_seconds = steps * rate
        basis = ("measured: median of this suite's records of the same method",)
    if own := measured.get(bundle):
        run_seconds, basis = own, ("measured: this bundle's own records",)
    size = _of("datasets", spec.settings.dataset.name)
    memory = _of("backbones", spec.settings.model.name)["memory_mb"]
    return BundleCost(
        bundle=bundle,
        table=spec.table,
        dataset=spec.dataset,
        runs=len(specs),
        steps=steps * len(specs),
        seconds=run_seconds * len(specs) + _rates()["startup_seconds"][device],
        basis=basis,
        memory_mb=round(memory + size.get("bytes", 8) * size["rows"] * size["values"] / 1e6),
    )


def _seconds_per_step(spec: RunSpec, *, device: Device) -> tuple[float, tuple[str, ...]]:
    rate = _of("backbones", spec.settings.model.name)[device]
    refiner = _of("refiners", spec.settings.refiner.name)
    plain = rate["fixed"] + rate["per_row"] * spec.settings.recipe.batch_size
    clean = _rates()["clean_batch_factor"] if spec.settings.clean_share else 0.0
    basis = (
        f"{spec.settings.model.name}: {rate['basis']}",
        f"{spec.settings.refiner.name}: {refiner['factor']:g} plain steps, {refiner['basis']}",
    )
    return plain * (refiner["factor"] + clean), basis


def _evaluation_seconds(spec: RunSpec, *, device: Device) -> float:
    """Seconds that a run spends evaluating: forward passes and metrics, at most 100 times."""
    recipe = spec.settings.recipe
    size = _of("datasets", spec.settings.dataset.name)
    rows = size["rows"] - size.get("train", round(size["rows"] * _rates()["train_share"]))
    every = recipe.evaluate_every or math.ceil(recipe.epochs / 100)
    metrics = _rates()["evaluation"]
    per_row = metrics["per_row"] + _of("backbones", spec.settings.model.name)[device]["per_row"] / 3
    return math.ceil(recipe.epochs / every) * (metrics["fixed"] + rows * per_row)


def _measured(results: Path) -> dict[Any, float]:
    """Seconds a run of each bundle, and a step of each method, from the records of a suite."""
    runs: dict[str, list[float]] = defaultdict(list)
    steps: dict[tuple, list[float]] = defaultdict(list)
    for spec, seconds in _timed_records(Path(results)):
        runs[spec.bundle].append(seconds)
        steps[_method(spec)].append(seconds / training_steps(spec))
    return {name: median(values) for name, values in [*runs.items(), *steps.items()]}


def _timed_records(results: Path) -> Iterable[tuple[RunSpec, float]]:
    for path in sorted((results / "records").rglob("seed*.json")):
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            if content["status"] == "complete" and "total" in content["seconds"]:
                yield RunSpec.model_validate(content["spec"]), float(content["seconds"]["total"])
        except (ValueError, KeyError):
            continue  # `run` and `tables` name a damaged record; an estimate goes without it


def _method(spec: RunSpec) -> tuple[str, str, float]:
    return spec.settings.model.name, spec.settings.refiner.name, spec.settings.clean_share


def _lacking(specs: list[RunSpec]) -> dict[str, int | None]:
    """Bytes that runs have still to download: data sets, sharing a file or not, and weights."""
    sizes: dict[str, int] = {}
    wanted: dict[str, list[str]] = defaultdict(list)
    for name in sorted({spec.settings.dataset.name for spec in specs}):
        for source in sources.lacking(name):
            sizes[source.path] = source.size
            wanted[source.path].append(name)
    found: dict[str, int | None] = {}
    for path, names in wanted.items():  # the files of a set are one line
        name = ", ".join(names)
        found[name] = ((found.get(name) or 0) + sizes[path]) or None
    found |= {source.name: source.size for source in weights.missing(specs)}
    diffusion = generation.missing(specs)
    return found | {f"weights {w.repository}": round(1e9 * w.gigabytes) for w in diffusion}


def _particulars(specs: list[RunSpec]) -> Iterable[tuple[str, list[str]]]:
    """Estimates that have an arithmetic of their own: generated images, and Table 4 row by row."""
    if lines := generation.render(generation.estimate(specs)):
        yield "images to generate for table 3", lines
    counted: dict[ModuleType, list[RunSpec]] = defaultdict(list)
    for spec in specs:
        if arithmetic := _arithmetic(spec):
            counted[arithmetic].append(spec)
    for arithmetic, own in counted.items():
        title, *lines = arithmetic.render(arithmetic.estimate(own)).splitlines()
        yield title, [line.removeprefix("  ") for line in lines]


def _arithmetic(spec: RunSpec) -> ModuleType | None:
    """Give the module that a run's model names as its estimator, if it names one."""
    names = registry.declared("models", spec.settings.model.name, ESTIMATORS)
    module = names and ast.literal_eval(names).get(spec.settings.model.name)
    return importlib.import_module(f"{__package__}.{module}") if module else None


def _of(kind: str, name: str) -> dict[str, Any]:
    known = _rates()[kind]
    return known.get(name, known["default"])


def _span(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


@cache
def _rates() -> dict[str, Any]:
    return yaml.safe_load(RATES.read_text(encoding="utf-8"))
