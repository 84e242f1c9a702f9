"""The best validation epoch of rows that used validation data, and what is said of such rows.

A row that trains on validation rows has no best epoch of its own: it is shown at the epoch that its
partner of the same seed chose, the row that differs from it in its training rows alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from benchmarks.record import Record
from benchmarks.spec import RunSpec

# What refiners decide on validation rows, by how their names begin.
LEARNED = "labels or weights follow"
READ_VALIDATION = {
    "saflex": LEARNED,
    "weights-only": LEARNED,
    "l2rw": LEARNED,
    "lp-ft": "the strength of its probe follows",
}

NO_PARTNER = "{partner} of the same seed has chosen no epoch at which this row was measured"
NOT_MEASURED = "validation {metric} is not defined, a class may be missing there"


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
        if record.status != "complete" or not record.spec.trains_on_validation:
            return record
        best = found.metrics.get("best_validation", {}) if (found := partner(record)) else {}
        metrics = {**record.metrics, "best_validation": _point(record, best.get("epoch"))}
        return record.model_copy(update={"metrics": metrics})

    return [shown(record) for record in records]


def obstacle(record: Record) -> str:
    """Say why a complete run has no best validation epoch; empty where it has one."""
    if record.metrics.get("best_validation"):
        return ""
    if record.spec.trains_on_validation:
        return NO_PARTNER.format(partner=partner_row(record.spec))
    return NOT_MEASURED.format(metric=record.spec.metric)


def notes(plan: Iterable[RunSpec]) -> list[str]:
    """What a reader must know of the best validation epoch of a table's rows."""
    plan = list(plan)

    def rows(holds: Callable[[RunSpec], bool]) -> str:
        return ", ".join(sorted({run.row for run in plan if holds(run)}))

    found = []
    if trained := rows(lambda run: run.trains_on_validation):
        there = {(run.upstream, run.row) for run in plan}
        named = {(run.upstream, partner_row(run)) for run in plan if run.trains_on_validation}
        partners = " or ".join(
            sorted({row if (at, row) in there else "upstream" for at, row in named})
        )
        found.append(
            f"{trained}: trained on validation rows, so that an own best epoch would mean nothing. Best "
            f"validation shows the epoch that {partners} of the same seed chose, read from the row's curve."
        )
    for what in dict.fromkeys(READ_VALIDATION.values()):
        if read := rows(lambda run, what=what: _read_validation(run) == what):
            found.append(
                f"{read}: {what} the validation data, which then choose the best validation epoch too: a "
                "selection on data that was used."
            )
    if unmixed := rows(
        lambda run: run.trains_on_validation and run.settings.model.settings.get("ensemble")
    ):
        found.append(
            f"{unmixed}: no weight ensemble, as its coefficient would be chosen on validation rows that were "
            "trained on."
        )
    if extra := rows(lambda run: run.settings.upstream.name == "extra-real"):
        found.append(
            f"{extra}: trains on the extra real images. On CUB they are the validation set, so that the "
            "best validation epoch is chosen on data that was trained on."
        )
    return found


def _read_validation(run: RunSpec) -> str:
    name = run.settings.refiner.name
    return next((what for start, what in READ_VALIDATION.items() if name.startswith(start)), "")


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
