"""`execute`: run one `RunSpec` to its `Record`; `run_bundle`: all seeds of a cell in one process."""

from __future__ import annotations

import datetime as dt
import importlib
import os
import platform
import resource
import signal
import subprocess
from collections.abc import Callable
from dataclasses import fields
from importlib.metadata import version
from pathlib import Path

import torch

from benchmarks import record as records
from benchmarks import registry
from benchmarks.checkpoint import Checkpoint
from benchmarks.data import Data, Split
from benchmarks.record import Record
from benchmarks.source_hash import source_hash
from benchmarks.spec import RunSpec
from benchmarks.train import Interrupted, NonFiniteLoss, Training
from saflex.errors import NonFiniteGradientError


def run_bundle(
    specs: list[RunSpec],
    results: Path,
    *,
    device: str | None = None,
    checkpoint_minutes: float = 10.0,
    report: Callable[[str], None] = print,
) -> list[Record]:
    """Run the seeds of a bundle that have no complete record from the present source yet.

    Raises
    ------
    Interrupted
        On SIGTERM, after the running seed's checkpoint is written; the same call goes on from it.
    """
    device = device or os.environ.get("SAFLEX_DEVICE") or default_device()
    done = []
    with _stop_on_sigterm() as stop:
        for spec in specs:
            name = f"{spec.bundle}/seed{spec.seed}"
            if (old := up_to_date(spec, results)) is not None:
                report(f"{name}: record {old.key} is there, skipped")
                done.append(old)
                continue
            checkpoint = Checkpoint(results, spec, minutes=checkpoint_minutes, stop=stop)
            record = execute(spec, device=device, checkpoint=checkpoint)
            records.write(results, record)
            checkpoint.remove()
            done.append(record)
            report(f"{name}: {_outcome(record)}")
    return done


def execute(spec: RunSpec, *, device: str = "cpu", checkpoint: Checkpoint | None = None) -> Record:
    """Run one specification; a loss that is not finite gives a record with status failed."""
    started = _now()
    component = spec.settings.dataset
    data: Data = registry.load("datasets", component.name)(
        component.name, seed=spec.seed, **component.settings
    ).to(device)
    training = training_class(spec)(spec, data)
    if checkpoint is not None:
        checkpoint.resume(training)
    status, error = "complete", ""
    try:
        training.run(after_step=checkpoint or (lambda training: None))
    except (NonFiniteLoss, NonFiniteGradientError) as failure:
        status, error = "failed", f"{failure} (after step {training.steps}, epoch {training.epoch + 1})"
    seconds = {**training.seconds, "total": training.total_seconds}
    return Record(
        key=spec.key,
        status=status,
        error=error,
        spec=spec,
        metrics={"last": training.last, "best_validation": training.best} if not error else {},
        curves=training.curves,
        diagnostics={"optimizer_steps": float(training.steps), **training.diagnostics()},
        seconds=seconds,
        peak_memory_mib=_peak_memory(device),
        started=started,
        finished=_now(),
        device=_device_name(device),
        data=_describe(data),
        versions={name: version(name) for name in ("torch", "numpy", "scikit-learn")},
        commit=_commit(),
        source=source_hash(spec),
    )


def training_class(spec: RunSpec) -> type[Training]:
    """Give the loop that a model is trained by: its module's ``TRAINING``, or the common one."""
    name = spec.settings.model.name
    registry.check("models", name)
    module = importlib.import_module(registry.modules("models")[name])
    return getattr(module, "TRAINING", Training)


def up_to_date(spec: RunSpec, results: Path) -> Record | None:
    """Return the record of a run if it is readable, of the same key and from the present source."""
    path = records.path_of(results, spec)
    if not path.exists():
        return None
    try:
        record = records.read(path)
    except records.BenchmarkError:
        return None  # truncated: redone, and the new file takes its place
    return record if record.key == spec.key and record.source == source_hash(spec) else None


def default_device() -> str:
    """Use a CUDA device where there is one."""
    return "cuda" if torch.cuda.is_available() else "cpu"


class _stop_on_sigterm:
    """Hold SIGTERM back until the loop asks: a scheduler's notice becomes a checkpoint and an exit."""

    def __enter__(self) -> Callable[[], bool]:
        self.asked = False
        self.before = signal.signal(signal.SIGTERM, self._note)
        return lambda: self.asked

    def __exit__(self, *exception: object) -> None:
        signal.signal(signal.SIGTERM, self.before)

    def _note(self, number: int, frame: object) -> None:
        self.asked = True


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


def _now() -> str:
    return dt.datetime.now(dt.UTC).isoformat(timespec="milliseconds")


def _peak_memory(device: str) -> float:
    if device.startswith("cuda"):
        return torch.cuda.max_memory_allocated(device) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _device_name(device: str) -> str:
    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    return f"{platform.processor() or platform.machine()} CPU, {torch.get_num_threads()} thread(s)"


def _commit() -> str:
    answer = subprocess.run(
        ["git", "rev-parse", "--short=12", "HEAD"],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=False,
    )
    return answer.stdout.strip() if answer.returncode == 0 else ""


__all__ = ["Interrupted", "default_device", "execute", "run_bundle", "up_to_date"]
