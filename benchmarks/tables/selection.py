"""The best validation epoch of rows that used validation data, and what is said of such rows.

A row that trains on validation rows has no best epoch of its own: it is shown at the epoch that its
partner of the same seed chose, the row that differs from it in its training rows alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from benchmarks.record import Record
from benchmarks.spec import RunSpec

# Refiners whose labels and weights are decided on validation rows; names that begin with one of these.
READ_VALIDATION = ("saflex", "weights-only", "l2rw")

NO_PARTNER = "{partner} of the same seed has chosen no epoch at which this row was measured"
NOT_MEASURED = "validation {metric} is not defined, a class may be missing there"


def trains_on_validation(spec: RunSpec) -> bool:
    """Say whether validation rows are among a run's training rows."""
    return spec.settings.train_on != "train"


def partner_row(spec: RunSpec) -> str:
    """Name of the row whose choice of epoch a row that trains on validation rows is shown at."""
    return "none" if spec.upstream == "none" else "clean+aug"


def at_partners_epoch(records: Iterable[Record]) -> list[Record]:
    """Give ``best_validation`` of rows that train on validation rows its partner's epoch.

    The values are read from the row's own curves. Where there is no partner, or no such point, nothing is
    left in ``best_validation``. Records of other rows are given back as they are. In a table of fixed
    sets (Table 3) `upstream` has the clean batch too and is the partner.
    """
    records = list(records)
    done = [record for record in records if record.status == "complete"]
    by_row = {(*_place(record), record.spec.row): record for record in done}

    def partner(record: Record) -> Record | None:
        if found := by_row.get((*_place(record), partner_row(record.spec))):
            return found
        other = by_row.get((*_place(record), "upstream"))
        return other if other and _equal_mixture(record, other) else None

    def shown(record: Record) -> Record:
        if record.status != "complete" or not trains_on_validation(record.spec):
            return record
        best = found.metrics.get("best_validation", {}) if (found := partner(record)) else {}
        metrics = {**record.metrics, "best_validation": _point(record, best.get("epoch"))}
        return record.model_copy(update={"metrics": metrics})

    return [shown(record) for record in records]


def obstacle(record: Record) -> str:
    """Say why a complete run has no best validation epoch; empty where it has one."""
    if record.metrics.get("best_validation"):
        return ""
    if trains_on_validation(record.spec):
        return NO_PARTNER.format(partner=partner_row(record.spec))
    return NOT_MEASURED.format(metric=record.spec.metric)


def notes(plan: Iterable[RunSpec]) -> list[str]:
    """What a reader must know of the best validation epoch of a table's rows."""
    plan = list(plan)

    def rows(holds: Callable[[RunSpec], bool]) -> str:
        return ", ".join(sorted({run.row for run in plan if holds(run)}))

    found = []
    if trained := rows(trains_on_validation):
        there = {(run.upstream, run.row) for run in plan}
        named = {(run.upstream, partner_row(run)) for run in plan if trains_on_validation(run)}
        partners = " or ".join(
            sorted({row if (at, row) in there else "upstream" for at, row in named})
        )
        found.append(
            f"{trained}: trained on validation rows, so that an own best epoch would mean nothing. Best "
            f"validation shows the epoch that {partners} of the same seed chose, read from the row's curve."
        )
    if read := rows(_reads_validation):
        found.append(
            f"{read}: labels or weights follow the validation data, which then choose the best validation "
            "epoch too: a selection on data that was used."
        )
    if extra := rows(lambda run: run.settings.upstream.name == "extra-real"):
        found.append(
            f"{extra}: trains on the extra real images. On CUB they are the validation set, so that the "
            "best validation epoch is chosen on data that was trained on."
        )
    return found


def _reads_validation(run: RunSpec) -> bool:
    return run.settings.refiner.name.startswith(READ_VALIDATION)


def _place(record: Record) -> tuple:
    spec = record.spec
    return spec.table, spec.dataset, spec.backbone, spec.upstream, spec.seed, record.protocol


def _equal_mixture(one: Record, other: Record) -> bool:
    ours, theirs = one.spec.settings, other.spec.settings
    return (ours.refiner, ours.clean_share) == (theirs.refiner, theirs.clean_share)


def _point(record: Record, epoch: float | None) -> dict[str, float]:
    """A run's values at an epoch, empty where its curves have no such point."""
    epochs = record.curves.get("epoch", [])
    if epoch not in epochs:
        return {}
    at = epochs.index(epoch)
    # The refiner's and the training loss's series are no metrics of an epoch's end.
    return {
        name: values[at]
        for name, values in record.curves.items()
        if len(values) == len(epochs) and not name.startswith(("refiner/", "train/"))
    }
