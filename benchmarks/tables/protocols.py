"""What is said at the head of a table that is made from records of the old protocol."""

from __future__ import annotations

from benchmarks.record import PROTOCOL

OLD_PROTOCOL = "old protocol"
MEANING = (
    "The rows of a cell did not all have the same number of steps, the same share of real images and "
    "the same trained inputs; the runs are to be made anew (docs/protocol.md)."
)


def warning(protocol: int) -> str:
    """What stands at the head of everything made from records of a protocol; empty for today's."""
    if protocol == PROTOCOL:
        return ""
    return f"{OLD_PROTOCOL[0].upper()}{OLD_PROTOCOL[1:]}. {MEANING}"
