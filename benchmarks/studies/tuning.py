"""Tuning: a random search over what the published form leaves open, on the validation metric alone.

Searched are a suite's rows with ``tuned: true``. What a row's name says stays as it is: in
`saflex-printed` and `saflex-derived` the sign of Pi (printed, descent: both are tried, by two rows), the
Gumbel noise, the label ``softmax((Pi + beta e + G) / tau)`` without scale, and Algorithm 1's weights; in
`upstream` and `clean+aug` everything but the learning rate and the weight decay, whose values are so many
that each row has as many trials as the published form. Refined rows choose on the rows that drive g, where
the metric may saturate and ties go by the NLL of the same rows; whether that favours or hurts them is not
known. Where seeds redraw the split, seed 100's overlaps with the test rows of the table's seeds; B' of 256
and "all" are one setting where validation has fewer rows (docs/protocol.md, "Controls"). Imports no torch.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterable
from itertools import product
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import ValidationError

from benchmarks import suite as suites
from benchmarks.errors import BenchmarkError, UnknownName
from benchmarks.record import atomic_write
from benchmarks.running.current import Present
from benchmarks.seeds import derive
from benchmarks.spec import Frozen, RunSpec
from benchmarks.suite import Choice, Chosen, Suite

SEED = 100  # beyond every table's: no split that tables average over chooses as a whole
TIMED_EPOCHS = 4
ALL = 1_000_000  # B' above any validation set: the loop hands out all of it

LEARNING_RATE = {"lr_factor": (0.3, 1.0, 3.0)}
PUBLISHED = {
    "beta": (0.0, 0.1, 1.0, 10.0),
    "tau": (0.01, 0.1, 1.0),
    "validation_batch": (64, 256, ALL),
    "output": ("log-probabilities", "logits", "probabilities"),
    "clean_share": (0.0, 0.5),
    **LEARNING_RATE,
}
# Ten, so that the baselines' space holds thirty settings too: the same budget for every row.
WEIGHT_DECAY = {"weight_decay": (0.0, 1e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3)}
BASELINE = {**LEARNING_RATE, **WEIGHT_DECAY}
SPACES = {"saflex-printed": PUBLISHED, "saflex-derived": PUBLISHED, "uniform": BASELINE}
OF_THE_RUN = ("clean_share", "lr_factor")
OF_THE_RECIPE = ("weight_decay",)  # all others are settings of the refiner


class Trial(Frozen):
    """One run of a search: what was drawn, and what validation said at its last epoch.

    Attributes
    ----------
    key, source, protocol, content : of the run as it was, as in a `Record`; of no other is it current.
    epochs, of : trained, and of the row's own recipe.
    metrics : names ``val/...``; the test set is not read.
    """

    number: int
    key: str
    source: str
    protocol: int = 2  # of the files that do not say it
    content: dict[str, str] = {}
    drawn: dict[str, Any]
    epochs: int
    of: int
    status: Literal["complete", "failed"]
    error: str = ""
    metrics: dict[str, float] = {}
    seconds: float = 0.0


class Length(Frozen):
    """Length of a cell's trials: `epochs` of the recipe's `of` fit into `longest` seconds on `device`.

    The seconds of an epoch were measured once; another `longest` is reckoned from them.
    """

    epochs: int
    of: int
    seconds_per_epoch: float
    row: str
    longest: float | None = None
    device: str = "cpu"


def searched(
    suite: Suite, *, table: str | None, datasets: list[str], rows: list[str]
) -> list[RunSpec]:
    """List the cells of tuned rows, each as its first run with untuned settings.

    Raises
    ------
    BenchmarkError
        The suite has no tuned row, or one of the names is not among its.
    """
    names = [name for name, row in suite.all_rows.items() if row.tuned]
    every = Choice(match={"row": names})
    plain = Chosen(tables={identifier: [every] for identifier in suite.tables})
    found = [
        run
        for run in suites.plan(suite, table=table, tuned=plain)
        if run.row in names and run.seed == 0
    ]
    if not found:
        raise BenchmarkError(f"suite {suite.name} has no row with tuned: true to search for")
    for field, wanted in (("dataset", datasets), ("row", rows)):
        for name in wanted:
            if name not in (known := {getattr(run, field) for run in found}):
                raise UnknownName(field, name, known)
        found = [run for run in found if not wanted or getattr(run, field) in wanted]
    return found


def draws(run: RunSpec, trials: int) -> list[dict[str, Any]]:
    """Draw distinct settings of a row, the same ones every time; the whole space if it is no larger."""
    name = run.settings.refiner.name
    if name not in SPACES:
        raise UnknownName("refiner with a space to search", name, SPACES)
    space = SPACES[name]
    points = [dict(zip(space, values, strict=True)) for values in product(*space.values())]
    # Rows of one space draw the same settings: differences between them are not the draw's.
    chance = random.Random(derive(run.dataset, SEED, "tuning"))
    return points if len(points) <= trials else chance.sample(points, trials)


def as_override(run: RunSpec, drawn: dict[str, Any], *, reduced: str = "") -> Choice:
    """Write drawn settings as an override of the row's cell."""
    cell = {field: [getattr(run, field)] for field in ("dataset", "backbone", "upstream", "row")}
    own = {name: drawn[name] for name in OF_THE_RUN if name in drawn}
    recipe = {name: drawn[name] for name in OF_THE_RECIPE if name in drawn}
    refiner = {name: value for name, value in drawn.items() if name not in {**own, **recipe}}
    return Choice(match=cell, refiner=refiner, recipe=recipe, reduced=reduced, **own)


def trial_run(suite: Suite, run: RunSpec, drawn: dict[str, Any], *, epochs: int) -> RunSpec:
    """Plan a trial exactly as the row would be, with its own seed, length and one look at the end."""
    tuned = Chosen(tables={run.table: [as_override(run, drawn)]})
    planned = suites.plan(suite, table=run.table, tuned=tuned)
    (first,) = [spec for spec in planned if spec.bundle == run.bundle and spec.seed == 0]
    return _shortened(first, epochs)


def tune(
    suite: Suite,
    results: Path,
    *,
    runs: list[RunSpec],
    trials: int = 30,
    longest: float = 30.0,
    device: str = "cpu",
    report: Callable[[str], None] = print,
) -> Chosen:
    """Search every cell, going on from the trials that are there, and write what was chosen.

    Parameters
    ----------
    runs : as `searched` gives them.
    trials : of each row of a cell; fewer where its space has fewer settings.
    longest : processor seconds a trial may take; above, all rows of a cell get fewer epochs alike.

    Returns
    -------
    What the suite's file of chosen settings now holds.
    """
    if suite.chosen is None:
        raise BenchmarkError(
            f"suite {suite.name} does not say where chosen settings go: give it a line such as "
            "chosen: tuned/mine.yaml"
        )
    from benchmarks.running import machine

    device, present = machine.chosen_device(device), Present()
    for run in runs:
        length = _length(suite, run, results, longest=longest, device=device)
        done: list[Trial] = []
        points = draws(run, trials)
        for number, drawn in enumerate(points):
            spec = trial_run(suite, run, drawn, epochs=length.epochs)
            done.append(_trial(spec, number, drawn, results, present, of=length.of, device=device))
            report(f"{run.bundle} {number + 1}/{len(points)}: {_said(done, run.metric)}")
        if (best := chosen(done, run.metric)) is None:
            report(f"{run.bundle}: nothing chosen: {_without_value(done, run.metric)}")
            continue
        cut = f"tuned on runs of {length.epochs} of {length.of} epochs"
        reduced = cut if length.epochs < length.of else ""
        choice = as_override(run, best.drawn, reduced=reduced)
        made_from = {"source": best.source, "protocol": str(best.protocol), **best.content}
        _keep(suite, run, choice.model_copy(update={"made_from": made_from}))
        report(
            f"{run.bundle}: trial {best.number + 1} of {len(points)}, "
            f"{cut if reduced else 'trained in full'}: {best.drawn}"
        )
    return suites.chosen(suite)


def chosen(trials: Iterable[Trial], metric: str) -> Trial | None:
    """Pick the best validation metric at the last epoch; of equals the lower validation loss.

    None where no trial has that metric: all failed, or validation lacks a class.
    """
    return max(
        (trial for trial in trials if trial.status == "complete" and _measured(trial, metric)),
        key=lambda t: (t.metrics[f"val/{metric}"], -t.metrics["val/nll"], -t.number),
        default=None,
    )


def path_of(results: Path, run: RunSpec, number: int) -> Path:
    """Place of a trial: ``tuning/table2/qsar/mlp/cutmix/saflex-printed-tuned/trial07.json``."""
    return results / "tuning" / run.bundle / f"trial{number:02d}.json"


def _trial(
    spec: RunSpec,
    number: int,
    drawn: dict[str, Any],
    results: Path,
    present: Present,
    *,
    of: int,
    device: str,
) -> Trial:
    from benchmarks.running import execute

    path = path_of(results, spec, number)
    old = _read(path, Trial)
    if old and not present.outdated(old, spec):
        return old
    record = execute.execute(spec, device=device)
    last = record.metrics.get("last", {})
    trial = Trial(
        number=number,
        key=spec.key,
        source=record.source,
        protocol=record.protocol,
        content=record.content,
        drawn=drawn,
        epochs=spec.settings.recipe.epochs,
        of=of,
        status=record.status,
        error=record.error,
        metrics={name: value for name, value in last.items() if name.startswith("val/")},
        seconds=record.seconds["total"],
    )
    atomic_write(path, trial.model_dump_json(indent=1) + "\n")
    return trial


def _length(suite: Suite, run: RunSpec, results: Path, *, longest: float, device: str) -> Length:
    """Measure the cell's dearest row once; later calls, and its other rows, reckon from what was found."""
    of = run.settings.recipe.epochs
    path = (results / "tuning" / run.bundle).with_name("length.json")
    old = _read(path, Length)
    if old and (old.of, old.device) == (of, device):
        return _fitting(path, old.model_dump(), longest=longest)
    # Every choice that costs: the clean batch beside, all validation rows behind the gradient.
    dearest = {"clean_share": 0.5, "validation_batch": ALL}
    cell = (run.table, run.dataset, run.backbone, run.upstream)
    every = searched(suite, table=run.table, datasets=[run.dataset], rows=[])
    same = [r for r in every if (r.table, r.dataset, r.backbone, r.upstream) == cell]
    row = max(same, key=lambda r: len(SPACES.get(r.settings.refiner.name, ())))
    known = {n: v for n, v in dearest.items() if n in SPACES[row.settings.refiner.name]}
    seconds = _seconds_per_epoch(trial_run(suite, row, known, epochs=TIMED_EPOCHS), device)
    measured = {"of": of, "seconds_per_epoch": seconds, "row": row.row, "device": device}
    return _fitting(path, measured, longest=longest)


def _fitting(path: Path, measured: dict[str, Any], *, longest: float) -> Length:
    """Write down how many epochs fit into `longest` seconds."""
    epochs = max(1, min(measured["of"], int(longest / measured["seconds_per_epoch"])))
    length = Length.model_validate({**measured, "epochs": epochs, "longest": longest})
    atomic_write(path, length.model_dump_json(indent=1) + "\n")
    return length


def _seconds_per_epoch(spec: RunSpec, device: str) -> float:
    """Seconds of training; the processor's on a CPU, so that other work beside does not count."""
    from benchmarks.running import execute
    from benchmarks.train import Training

    clock = time.perf_counter if device.startswith("cuda") else time.process_time
    run = Training(spec, execute.load_data(spec, device))
    start = clock()
    run.run()
    return (clock() - start) / spec.settings.recipe.epochs


def _shortened(run: RunSpec, epochs: int) -> RunSpec:
    recipe = run.settings.recipe.model_copy(update={"epochs": epochs, "evaluate_every": epochs})
    settings = run.settings.model_copy(update={"recipe": recipe})
    # From a dump, so that the key is that of the new content.
    return RunSpec.model_validate(
        run.model_dump() | {"settings": settings.model_dump(), "seed": SEED}
    )


def _keep(suite: Suite, run: RunSpec, override: Choice) -> None:
    """Put a row's settings into the suite's file, in place of its former ones."""
    tables = {name: list(overrides) for name, overrides in suites.chosen(suite).tables.items()}
    others = [o for o in tables.get(run.table, []) if o.match != override.match]
    tables[run.table] = sorted([*others, override], key=lambda o: list(o.match.values()))
    content = Chosen(tables=tables).model_dump(mode="json", exclude_defaults=True)
    header = f"# Chosen on validation, seed {SEED}, by `python -m benchmarks tune --suite {suite.name}`.\n"
    atomic_write(suite.chosen, header + yaml.safe_dump(content, sort_keys=False))


def _read(path: Path, kind: type[Frozen]) -> Any:
    """Read a file of the search; a truncated one counts as none and is made again."""
    try:
        return kind.model_validate_json(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValidationError, UnicodeDecodeError):
        return None


def _measured(trial: Trial, metric: str) -> bool:
    return f"val/{metric}" in trial.metrics


def _without_value(trials: list[Trial], metric: str) -> str:
    """Say why none of the trials has a value."""
    if all(trial.status == "failed" for trial in trials):
        return f"every trial failed, the first with: {trials[0].error}"
    return f"validation {metric} is not defined, a class may be missing there"


def _said(trials: list[Trial], metric: str) -> str:
    last, best = trials[-1], chosen(trials, metric)
    drawn = ", ".join(f"{name} {value}" for name, value in last.drawn.items())
    if last.status == "failed":
        return f"{drawn}: failed: {last.error}"
    if not _measured(last, metric):
        return f"{drawn}: {_without_value([last], metric)}"
    value, top = (100 * trial.metrics[f"val/{metric}"] for trial in (last, best))
    return f"{drawn}: val {metric} {value:.2f} in {last.seconds:.1f} s (best {top:.2f})"
