"""Credit card fraud (ULB): 29 continuous features, 492 frauds in 284,807 (Tables 2, 5)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.datasets import prepared, tabular
from benchmarks.datasets.tabular import Raw
from benchmarks.registry import register
from benchmarks.sources import Source

if TYPE_CHECKING:
    from benchmarks.data import Data

CSV = Source(
    name="Credit card fraud",
    path="tabular/credit/creditcard.csv",
    urls=("https://storage.googleapis.com/download.tensorflow.org/data/creditcard.csv",),
    checksum="md5:e90efcb83d69faf99fcab8b0255024de",
    size=150828752,
)
GZIP = Source(
    name="Credit card fraud (gzip of the same file)",
    path="tabular/credit/creditcard.csv.gz",
    checksum="sha256:fccb6343b69ea351e91039f4050221f018ec8856d91a8022c833ef44ada2e4e2",
    size=68750291,
)
LICENCE = "DbCL 1.0"
SOURCES = {"credit": (CSV, GZIP)}


def read(path: Path) -> Raw:
    """Drop `Time`; `Class` 1 is fraud."""
    names = [f"V{number}" for number in range(1, 29)] + ["Amount"]
    types = {"Class": str} | dict.fromkeys(names, float)
    frame = tabular.read_csv(path, usecols=[*names, "Class"], dtype=types)
    return tabular.from_frame(frame, target="Class", classes=("0", "1"))


def raw(name: str) -> Raw:
    return prepared.raw(name, SOURCES[name], read)


OFFERS = ("tabular",)


@register("credit")
def load(name: str, *, seed: int, label_noise: float = 0.0, limit: int | None = None) -> Data:
    return tabular.data(raw(name), name, seed=seed, label_noise=label_noise, limit=limit)
