"""A record as MLflow shows it: name, tags to group by, parameters, metrics, the paper's number."""

from __future__ import annotations

import datetime as dt
import hashlib
import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from benchmarks import paper
from benchmarks.record import Record
from benchmarks.spec import RunSpec
from benchmarks.tables import protocols, selection

if TYPE_CHECKING:
    from mlflow.entities import DatasetInput, Metric

# Tags that identify a run. The digest is set last, when everything else is there: a run without it
# was cut short.
KEY, DIGEST, BUNDLE = "saflex.key", "saflex.record", "saflex.bundle"
WEIGHTS = "saflex.weights"

# Curves name their series alone (`val/auroc`); the two selections come before it.
SELECTIONS = ("last", "best_validation")
PARAMETER_LENGTH = 6000


def filed(record: Record, suite: str | None) -> Record:
    """Give a record as one of `suite`'s; its key stays, since a suite's name decides no result."""
    if suite in (None, record.spec.suite):
        return record
    return record.model_copy(update={"spec": record.spec.model_copy(update={"suite": suite})})


def experiment_name(spec: RunSpec) -> str:
    """One experiment a table: ``saflex/cpu/table2``."""
    return f"saflex/{spec.suite}/{spec.bundle.split('/')[0]}"


def run_name(spec: RunSpec) -> str:
    """Name that tells a run of its experiment: ``qsar/mlp/cutmix/saflex/seed0``."""
    return spec.name.split("/", 1)[1]


def digest(record: Record) -> str:
    """Hash of a whole record: when it differs from the store's, the run is replaced."""
    content = json.dumps(record.model_dump(mode="json"), sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()[:32]


def tags(record: Record) -> dict[str, str]:
    """Everything people group and filter by, and the description with the paper's number."""
    spec = record.spec
    return {
        KEY: record.key,
        BUNDLE: spec.name,
        "suite": spec.suite,
        "table": spec.table,
        "dataset": spec.dataset,
        "backbone": spec.backbone,
        "upstream": spec.upstream,
        "refiner": spec.row,
        "seed": str(spec.seed),
        "status": record.status,
        "reduced": spec.reduced or "no",
        "protocol": str(record.protocol),
        "device": record.device,
        "source": record.source,
        "mlflow.source.name": f"python -m benchmarks run --bundle {spec.bundle}",
        "mlflow.source.git.commit": record.commit,
        "mlflow.note.content": description(record),
    }


def description(record: Record) -> str:
    """Say what came out beside what the paper has in its place; MLflow shows the first lines at once."""
    spec = record.spec
    lines = [f"failed: {record.error}"] if record.status == "failed" else []
    lines += [warning] if (warning := protocols.warning(record.protocol)) else []
    published = {cell.split: f"paper {cell.mean:g} ± {cell.std:g}" for cell in _published(spec)}
    measured = _primary(record)
    lines += [
        f"test {spec.metric}{'' if split == 'test' else f' ({split})'}: "
        f"{measured.get(split, 'none')}; {published.get(split, 'the paper has no such cell')}"
        for split in dict.fromkeys([*measured, *published]) or ["test"]
    ]
    lines.append(f"{run_name(spec)} of table {spec.table}, suite {spec.suite}")
    if spec.reduced:
        lines.append(f"reduced: {spec.reduced}")
    if record.status == "complete" and (reason := selection.obstacle(record)):
        lines.append(f"no best validation epoch: {reason}")
    lines += selection.notes([spec])
    lines += list(record.data.get("notes", []))
    return "\n\n".join(lines)


def _primary(record: Record) -> dict[str, str]:
    """The primary metric on each test split, in per cent, in both selections."""
    found: dict[str, list[str]] = {}
    for chosen in SELECTIONS:
        for name, value in record.metrics.get(chosen, {}).items():
            split, _, metric = name.rpartition("/")
            if split.endswith("test") and metric == record.spec.metric:
                shown = f"{100 * value:.2f} ({chosen.replace('_', ' ')} epoch)"
                found.setdefault(split, []).append(shown)
    return {split: ", ".join(parts) for split, parts in found.items()}


def parameters(record: Record) -> dict[str, str]:
    """Every setting that decides the result, flattened to dotted names."""
    flat = dict(_flatten(record.spec.settings.model_dump(mode="json")))
    flat["metric"] = record.spec.metric
    flat |= {f"version.{name}": version for name, version in record.versions.items()}
    return {name: str(value)[:PARAMETER_LENGTH] for name, value in flat.items()}


def metrics(record: Record) -> list[Metric]:
    """Curves with the epoch as step, and the final numbers of both selections."""
    from mlflow.entities import Metric

    end = milliseconds(record.finished)
    final = {
        f"{chosen}/{name}": value
        for chosen in SELECTIONS
        for name, value in record.metrics.get(chosen, {}).items()
        if not name.startswith("val/")  # the curves have them
    }
    final |= {f"mean/{name}": value for name, value in record.diagnostics.items()}
    final |= {f"seconds/{name}": value for name, value in record.seconds.items()}
    final["peak_memory_mib"] = record.peak_memory_mib
    points = [Metric(name, value, end, 0) for name, value in final.items()]
    epochs = record.curves.get("epoch", [])
    for name, values in record.curves.items():
        if name != "epoch":
            points += [
                Metric(name, value, _instant(record, epoch / epochs[-1]), round(epoch))
                for epoch, value in zip(epochs, values, strict=False)
            ]
    return points


def dataset_inputs(record: Record) -> list[DatasetInput]:
    """Data provenance: which files, with which checksums, how many rows."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    provenance = record.data.get("provenance", {})
    content = json.dumps(provenance, sort_keys=True)
    component = record.spec.settings.dataset
    data = Dataset(
        name=record.spec.dataset,
        digest=hashlib.sha256(content.encode()).hexdigest()[:16],
        source_type="code",
        source=json.dumps({"dataset": component.name, "files": provenance}, sort_keys=True),
        schema=json.dumps({"settings": component.settings, "classes": record.data.get("classes")}),
        profile=json.dumps(record.data.get("rows", {})),
    )
    return [DatasetInput(data, [InputTag("mlflow.data.context", "train, validation, test")])]


def milliseconds(instant: str) -> int:
    """Milliseconds since 1970 of a record's ISO time stamp; 0 when it has none."""
    return round(1000 * dt.datetime.fromisoformat(instant).timestamp()) if instant else 0


def _instant(record: Record, share: float) -> int:
    start, end = milliseconds(record.started), milliseconds(record.finished)
    # A clock that was set back during the run must not put a point before the run's start.
    return start + round(min(max(share, 0.0), 1.0) * max(end - start, 0))


def _published(spec: RunSpec) -> Iterator[paper.Published]:
    wanted = (spec.table, spec.dataset, spec.backbone, spec.upstream, paper.paper_row(spec.row))
    for cell in paper.published():
        if (cell.table, cell.dataset, cell.backbone, cell.upstream, cell.refiner) == wanted:
            yield cell


def _flatten(tree: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from _flatten(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
