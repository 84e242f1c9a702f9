"""`execute`: run one `RunSpec` to its `Record`; `run_bundle`: all seeds of a cell in one process."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import fields
from importlib.metadata import version
from pathlib import Path

from benchmarks import record as records
from benchmarks import registry
from benchmarks.data import Data, Split
from benchmarks.errors import BenchmarkError
from benchmarks.record import OUT_OF_MEMORY, Record
from benchmarks.running import data_hash, machine
from benchmarks.running.checkpoint import Checkpoint, saved
from benchmarks.running.current import up_to_date
from benchmarks.running.source_hash import source_hash
from benchmarks.running.stopping import stopping
from benchmarks.spec import RunSpec
from benchmarks.train import Interrupted, NonFiniteLoss, Training
from saflex.errors import NonFiniteGradientError


def run_bundle(
    specs: list[RunSpec],
    results: Path,
    *,
    device: str | None = None,
    checkpoint_minutes: float = 10.0,
    keep_weights: bool = False,
    report: Callable[[str], None] = print,
) -> list[Record]:
    """Run the seeds of a bundle that have no current record yet (`benchmarks.running.current`).

    Parameters
    ----------
    keep_weights : write each trained model's state dict to `weights_path`, for `track sync` to
        attach. Replicas, which train stacked, keep none.

    Raises
    ------
    Interrupted
        On SIGTERM or Ctrl-C, after the running seed's checkpoint is written; the same call goes on from it.
    """
    device = machine.chosen_device(device)
    machine.return_large_blocks()
    done: list[Record] = []

    def waiting() -> Iterator[RunSpec]:
        for spec in specs:
            if (old := up_to_date(spec, results)) is not None:
                report(f"{spec.name}: record {old.key} is there, skipped")
                done.append(old)
            else:
                yield spec

    with stopping() as stop:

        def checkpoint(spec: RunSpec) -> Checkpoint:
            return Checkpoint(results, spec, minutes=checkpoint_minutes, stop=stop)

        if any(spec.settings.replicas for spec in specs):
            batches = execute_replicas(
                waiting(), device=device, checkpoint=checkpoint, report=report
            )
        else:
            weights = results if keep_weights else None
            batches = _one_by_one(
                waiting(), device=device, checkpoint=checkpoint, keep_weights_in=weights
            )
        for finished, file in batches:
            for record in finished:
                records.write(results, record)
                done.append(record)
                report(f"{record.spec.name}: {_outcome(record)}")
            file.remove()
    return done


def _one_by_one(
    specs: Iterable[RunSpec],
    *,
    device: str,
    checkpoint: Callable[[RunSpec], Checkpoint],
    keep_weights_in: Path | None,
) -> Iterator[tuple[list[Record], Checkpoint]]:
    for spec in specs:
        file = checkpoint(spec)
        record = execute(spec, device=device, checkpoint=file, keep_weights_in=keep_weights_in)
        machine.free_memory()
        yield [record], file


def execute(
    spec: RunSpec,
    *,
    device: str = "cpu",
    checkpoint: Checkpoint | None = None,
    keep_weights_in: Path | None = None,
) -> Record:
    """Run one specification; a loss that is not finite gives a record with status failed.

    Parameters
    ----------
    keep_weights_in : results folder below which the trained weights go; None keeps none.
    """
    started = machine.now()
    training = _built(spec, device)
    error = _train(training, checkpoint)
    if keep_weights_in and not error:
        path = records.weights_path(keep_weights_in, spec.key)
        saved(training.model.state_dict(), path)
    return _record(training, device=device, started=started, error=error)


def execute_replicas(
    specs: Iterable[RunSpec],
    *,
    device: str = "cpu",
    checkpoint: Callable[[RunSpec], Checkpoint] | None = None,
    report: Callable[[str], None] = print,
) -> Iterator[tuple[list[Record], Checkpoint | None]]:
    """Run the seeds of a bundle together, as many at once as one stack holds (`benchmarks.running.replicas`).

    Yields
    ------
    The records of one stack, and its checkpoint, to be removed when they are written.
    """
    from benchmarks.running import replicas

    started = machine.now()
    for group in replicas.stacks(_built(s, device) for s in specs):
        training = replicas.together(group)
        file = checkpoint(group[0].spec) if checkpoint else None
        if file is not None and len(group) > 1:
            file.path = file.path.with_name(f"{replicas.joint_key(group)}.pt")
        if reason := replicas.obstacle(group[0]) if training is group[0] else "":
            report(f"{group[0].spec.name}: trained alone: {reason}")
        error = _train(training, file)
        yield (
            [
                _record(run, device=device, started=started, error=own or error, seconds=seconds)
                for run, own, seconds in replicas.results(training)
            ],
            file,
        )
        started = machine.now()


def load_data(spec: RunSpec, device: str) -> Data:
    """Load the data set of a run onto a device; its content is hashed for the record."""
    return data_hash.load(spec, registry.load("datasets", spec.settings.dataset.name)).to(device)


def _built(spec: RunSpec, device: str) -> Training:
    """Load the data of a run and build all it needs; too little memory for that is one line."""
    try:
        return Training(spec, load_data(spec, device))
    except (MemoryError, RuntimeError) as failure:
        if not machine.out_of_memory(failure):
            raise
        raise BenchmarkError(
            f"{spec.name}: {OUT_OF_MEMORY} before the first step: {records.MORE_MEMORY}"
        ) from failure


def _train(training: Training, checkpoint: Checkpoint | None) -> str:
    """Train from the checkpoint, if any, to the end; say what stopped it early."""
    place = "after step {0.steps}, epoch {1}"
    try:
        if checkpoint is not None:
            checkpoint.resume(training)
        training.run(after_step=checkpoint or (lambda training: None))
    except (NonFiniteLoss, NonFiniteGradientError) as failure:
        return f"{failure} ({place.format(training, training.epoch + 1)})"
    except (MemoryError, RuntimeError) as failure:
        if not machine.out_of_memory(failure):
            raise
        return (
            f"{OUT_OF_MEMORY} ({place.format(training, training.epoch + 1)}: {str(failure)[:200]})"
        )
    return ""


def _record(
    training: Training,
    *,
    device: str,
    started: str,
    error: str,
    seconds: dict[str, float] | None = None,
) -> Record:
    spec = training.spec
    return Record(
        protocol=records.PROTOCOL,
        key=spec.key,
        status="failed" if error else "complete",
        error=error,
        spec=spec,
        metrics={"last": training.last, "best_validation": training.best} if not error else {},
        curves=training.curves,
        diagnostics={"optimizer_steps": float(training.steps), **training.diagnostics()},
        seconds=seconds or {**training.seconds, "total": training.total_seconds},
        peak_memory_mib=machine.peak_memory(device),
        started=started,
        finished=machine.now(),
        device=machine.device_name(device),
        data=_describe(training.data),
        versions={name: version(name) for name in ("torch", "numpy", "scikit-learn")},
        commit=machine.commit(),
        source=source_hash(spec),
    )


def _describe(data: Data) -> dict:
    return {
        "rows": {
            field.name: len(getattr(data, field.name))
            for field in fields(data)
            if field.name != "extra" and isinstance(getattr(data, field.name), Split)
        },
        "classes": data.num_classes,
        "notes": list(data.notes),
        "provenance": data.provenance,
        "content": data.content,
    }


def _outcome(record: Record) -> str:
    if record.status == "failed":
        return f"failed: {record.error}"
    metric = record.spec.metric
    shown = [
        f"{name.removesuffix('/' + metric)} {metric} {100 * value:.2f}"
        for name, value in record.metrics["last"].items()
        if name.endswith(f"test/{metric}") and name.count("/") == 1
    ]
    return f"{', '.join(shown)} in {record.seconds['total']:.1f} s"


__all__ = [
    "Interrupted",
    "execute",
    "execute_replicas",
    "run_bundle",
]
