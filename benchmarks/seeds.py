"""Seeds by hash: seed index s fixes split, weights, order and augmentation alike for every method.

Differences between methods are then paired (protocol, "Pairing"): the refiner is not part of the hash.
"""

from __future__ import annotations

import hashlib


def derive(dataset: str, seed: int, purpose: str) -> int:
    """Derive a 63-bit seed from the data set, the seed index and what it is for."""
    digest = hashlib.sha256(f"{dataset}\x1f{seed}\x1f{purpose}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
