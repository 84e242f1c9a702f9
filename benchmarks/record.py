"""`Record`: one JSON per run, written by atomic rename. Records are the only source of truth.

Tables, figures and MLflow are all derived from records and can be rebuilt at any time.
Imports no torch.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from pydantic import ConfigDict, Field, ValidationError

from benchmarks.errors import MACHINE_ERRORS, BenchmarkError
from benchmarks.spec import Frozen, RunSpec

SCHEMA = 1
ROOT = Path(__file__).resolve().parents[1]

# What runs of a table have in common beyond their settings (docs/protocol.md). A record without the
# field is of protocol 1; records of two protocols are never averaged or compared.
PROTOCOL = 2

# How the error of a run begins that the machine was too small for: no result, so it is run again.
OUT_OF_MEMORY = "out of memory"
MORE_MEMORY = (
    "give a run more of the device with a smaller `--processes`, or need less of it by the recipe's "
    "`batch_size` or, in SAFLEX rows, `estimator: last-layer` or `finite-difference`"
)


class Record(Frozen):
    """What one run was and what came of it.

    Attributes
    ----------
    metrics : ``{"last": {...}, "best_validation": {...}}``, names such as ``test/auroc``.
    curves : named series of at most 100 points; ``epoch`` is the shared abscissa.
    diagnostics : the refiner's own scalars over the whole run, such as ``mean_weight``.
    seconds : wall-clock per phase (``upstream``, ``refine``, ``step``, ``evaluate``, ``total``).
    source : hash of the source code the result depends on; a change makes the record stale.
    protocol : of the loop that made it, `PROTOCOL` today.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")

    schema_version: Literal[1] = SCHEMA
    protocol: int = Field(1, ge=1)
    key: str
    status: Literal["complete", "failed"]
    error: str = ""
    spec: RunSpec
    metrics: dict[str, dict[str, float]] = {}
    curves: dict[str, list[float]] = {}
    diagnostics: dict[str, float] = {}
    seconds: dict[str, float] = {}
    peak_memory_mib: float = 0.0
    started: str = ""
    finished: str = ""
    device: str = ""
    data: dict[str, Any] = {}
    versions: dict[str, str] = {}
    commit: str = ""
    source: str = ""

    @property
    def content(self) -> dict[str, str]:
        """Hashes of the data it was made from (`benchmarks.running.data_hash`); empty in old records."""
        return self.data.get("content", {})


def folder(suite: str) -> Path:
    """Place of a suite's results unless a command says otherwise: in the checkout, wherever one stands."""
    place = ROOT / "results" / suite
    here = Path.cwd()
    return place.relative_to(here) if place.is_relative_to(here) else place


def path_of(results: Path, spec: RunSpec) -> Path:
    """Place of a run's record: ``records/table2/qsar/mlp/cutmix/saflex/seed0.json``."""
    return results / "records" / f"{spec.name}.json"


def weights_path(results: Path, key: str) -> Path:
    """Place of a run's trained weights, where they were kept: ``weights/<key>.pt``."""
    return results / "weights" / f"{key}.pt"


def write(results: Path, record: Record) -> Path:
    """Write a record so that a reader sees the old file, the new one, never half of one."""
    target = path_of(results, record.spec)
    atomic_write(target, record.model_dump_json(indent=1, exclude_defaults=False) + "\n")
    return target


def atomic_write(target: Path, text: str) -> None:
    """Write a text so that a reader sees the old file, the new one, never half of one."""
    with replacing(target) as fresh:
        fresh.write_text(text, encoding="utf-8")


@contextmanager
def replacing(target: Path) -> Iterator[Path]:
    """Give an empty file beside `target` to write to; at the end it is flushed to disk and renamed.

    Where the block raises, `target` stays as it was and nothing is left behind.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.", suffix=".tmp")
    os.close(handle)
    fresh = Path(name)
    try:
        yield fresh
        with fresh.open("rb") as stream:
            os.fsync(stream.fileno())
        fresh.chmod(0o644)
        os.replace(fresh, target)
    except OSError as error:
        if error.filename is None and error.errno in MACHINE_ERRORS:  # a full disk names no file
            error.filename = str(target)
        raise
    finally:
        fresh.unlink(missing_ok=True)


def read(path: Path) -> Record:
    """Read one record; a truncated or foreign file is a `BenchmarkError` naming it."""
    try:
        record = Record.model_validate_json(path.read_text(encoding="utf-8"))
    except (ValidationError, UnicodeDecodeError) as error:
        reason = str(error).splitlines()[0]
        raise BenchmarkError(
            f"{path} is not a record ({reason}): delete it and run the same command again"
        ) from error
    if record.key != record.spec.key:
        raise BenchmarkError(
            f"{path}: key {record.key} is not the hash of its spec ({record.spec.key}): the file "
            "was edited or written by another version; delete it and run the same command again"
        )
    return record


def folder_with_records(results: Path) -> Path:
    """Give a results folder back, or refuse one that holds no records, such as a misspelt one."""
    if not (place := results / "records").is_dir():
        raise BenchmarkError(f"{place} is not there: run the suite first, or name its --results")
    return results


def load_all(results: Path) -> Iterator[Record]:
    """Yield every record of a suite's results folder in path order."""
    for path in sorted((results / "records").rglob("seed*.json")):
        yield read(path)


def canonical(record: Record, *, times: bool = False) -> str:
    """Canonical text of a record, without what legitimately differs between two equal runs."""
    volatile = {"seconds", "started", "finished", "peak_memory_mib", "commit", "versions", "device"}
    data = record.model_dump(mode="json", exclude=None if times else volatile)
    return json.dumps(data, sort_keys=True)
