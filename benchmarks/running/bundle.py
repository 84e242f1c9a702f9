"""Bundles as a job: on a leased device, locked against a second invocation, ending in their markers."""

from __future__ import annotations

import os
import traceback
from collections.abc import Iterable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from benchmarks.errors import MACHINE_ERRORS, AllFailed, BenchmarkError, MachineError, fault
from benchmarks.record import MORE_MEMORY, OUT_OF_MEMORY, Record
from benchmarks.running import devices, machine, markers
from benchmarks.running.current import up_to_date
from benchmarks.running.execute import run_bundle
from benchmarks.running.locks import bundle_lock
from benchmarks.running.parallel import run_missing
from benchmarks.spec import RunSpec
from benchmarks.train import Interrupted


def run_leased(
    bundles: Iterable[list[RunSpec]],
    results: Path,
    *,
    memory_mb: int,
    processes: int,
    device: str | None,
    **options: Any,
) -> None:
    """Run bundles one after the other on one leased GPU, if there are GPUs and none is named.

    Parameters
    ----------
    memory_mb : that one run of the largest bundle takes.
    processes : runs of a bundle at a time, lowered to what the device holds.
    options : of `run_marked`.

    Raises
    ------
    BenchmarkError
        A line for each bundle that crashed, after the others were run.
    AllFailed
        No run came to its end.
    Interrupted, MachineError, OSError
        At once: on a signal; where the machine refuses what the next bundle needs as well.
    """
    # Before any lock; with none named the lease decides what CUDA sees, which must not be asked before.
    if device is not None or os.environ.get("SAFLEX_DEVICE"):
        device = machine.chosen_device(device)
    at_once = devices.fitting(processes, memory_mb) if processes > 1 else 1
    done: list[Record] = []
    crashed: list[str] = []
    with nullcontext() if device else devices.lease(at_once * memory_mb):
        for specs in bundles:
            try:
                done += run_marked(specs, results, device=device, processes=at_once, **options)
            except (Interrupted, MachineError):
                raise
            except SystemExit as end:  # of somebody's file: it would end all bundles, as if done
                crashed.append(f"{specs[0].bundle}: {fault(end)}")
            except Exception as error:
                if isinstance(error, OSError) and error.errno in MACHINE_ERRORS:
                    raise
                if not isinstance(error, BenchmarkError):
                    traceback.print_exc()
                    error = f"{type(error).__name__}: {error}"
                crashed.append(f"{specs[0].bundle}: {error}")
    if crashed:
        raise BenchmarkError("\n".join(crashed))
    if done and all(record.status == "failed" for record in done):
        raise AllFailed(
            f"all {len(done)} runs failed, the first with: {done[0].error}; they are recorded, and run "
            "again when their settings, data or source change"
        )


def run_marked(
    specs: list[RunSpec],
    results: Path,
    *,
    device: str | None,
    checkpoint_minutes: float,
    processes: int = 1,
    keep_weights: bool = False,
) -> list[Record]:
    """Run a bundle under its lock and write its marker; while anything is left to do there is none.

    Records are no outputs of the job: Snakemake deletes the outputs of a job that failed, and a
    record that is finished must outlive its bundle. A failed seed is a result, not a failed job.

    Parameters
    ----------
    processes : runs at a time, each in a process of its own (`benchmarks.running.parallel`); replicas train
        all seeds in one process and leave this aside.
    """
    bundle = specs[0].bundle
    options = {
        "device": device,
        "checkpoint_minutes": checkpoint_minutes,
        "keep_weights": keep_weights,
    }
    with bundle_lock(results, bundle):
        if not all(up_to_date(spec, results) for spec in specs):
            markers.withdraw(results, bundle)
        if processes > 1 and not any(spec.settings.replicas for spec in specs):
            run_missing(specs, results, processes=processes, **options)
            options["report"] = lambda line: None  # each process told of its own run
        done = run_bundle(specs, results, **options)
        if short := [record for record in done if record.error.startswith(OUT_OF_MEMORY)]:
            raise BenchmarkError(
                f"{bundle}: {len(short)} of {len(done)} runs ran {OUT_OF_MEMORY} and are recorded as "
                f"failed: {MORE_MEMORY}; the same command runs them again"
            )
        markers.write(results, bundle, done)
    return done
