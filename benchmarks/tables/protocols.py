"""A table is of one protocol: which records it may use, and what is said where it is the old one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable

from benchmarks.record import PROTOCOL, Record

OLD_PROTOCOL = "old protocol"
MEANING = (
    "The rows of a cell did not all have the same number of steps, the same share of real images and "
    "the same trained inputs; the runs are to be made anew (docs/protocol.md)."
)


def of_one(
    records: Iterable[Record], planned: Collection[str]
) -> tuple[list[Record], Counter[str]]:
    """Leave out old records of planned runs where their table has a newer one.

    Returns
    -------
    The records to use, and by table how many were left out.
    """
    records = list(records)
    newest: dict[str, int] = {}
    for record in records:
        if record.key in planned:
            table = record.spec.table
            newest[table] = max(newest.get(table, 1), record.protocol)
    used = [r for r in records if r.protocol == newest.get(r.spec.table, r.protocol)]
    left_out = [r for r in records if r.protocol != newest.get(r.spec.table, r.protocol)]
    return used, Counter(r.spec.table for r in left_out if r.key in planned)


def warning(protocol: int) -> str:
    """What stands at the head of everything made from records of a protocol; empty for today's."""
    if protocol == PROTOCOL:
        return ""
    return f"{OLD_PROTOCOL[0].upper()}{OLD_PROTOCOL[1:]}. {MEANING}"
