"""Rows that one run fills besides its own: weight ensembling (Table 4), a second backbone in the paper.

A run whose model has the setting `ensemble` records its metrics a second time as ``ensemble/id_test/...``.
In a table they stand under the backbone's name with ``+ensemble``, as published.csv has it.
"""

from __future__ import annotations

from collections.abc import Iterable

from benchmarks.record import Record
from benchmarks.spec import RunSpec

SUFFIX = "+ensemble"
PREFIX = "ensemble/"


def base(backbone: str) -> str:
    """Backbone whose runs fill a row."""
    return backbone.removesuffix(SUFFIX)


def planned(plan: Iterable[RunSpec]) -> list[RunSpec]:
    """Every run, followed by the row it fills besides its own, if any."""
    return [row for run in plan for row in (run, *([_variant(run)] if _has_variant(run) else []))]


def recorded(records: Iterable[Record]) -> list[Record]:
    """Every record, followed by what it holds for the other row; times and curves are the run's alone."""
    found = []
    for record in records:
        found.append(record)
        if _has_variant(record.spec):
            metrics = {
                selection: {
                    name.removeprefix(PREFIX): value
                    for name, value in values.items()
                    if name.startswith(PREFIX)
                }
                for selection, values in record.metrics.items()
            }
            changed = {"spec": _variant(record.spec), "metrics": metrics}
            found.append(record.model_copy(update={**changed, "seconds": {}, "curves": {}}))
    return found


def _has_variant(run: RunSpec) -> bool:
    mixed = run.settings.model.settings.get("ensemble")
    # The coefficient is chosen on validation rows; `selection.notes` says so of a row that trains on them.
    return bool(mixed) and not run.trains_on_validation


def _variant(run: RunSpec) -> RunSpec:
    return run.model_copy(update={"backbone": run.backbone + SUFFIX})
