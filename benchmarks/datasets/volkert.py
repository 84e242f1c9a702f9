"""Volkert (ChaLearn AutoML), OpenML 41166: 10 classes, 147 varying features (Tables 2, 5)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.datasets import prepared, tabular
from benchmarks.datasets.tabular import Raw
from benchmarks.registry import register
from benchmarks.sources import Source

if TYPE_CHECKING:
    from benchmarks.data import Data

ARFF = Source(
    name="Volkert",
    path="tabular/volkert/volkert_openml41166.arff",
    urls=(
        "openml:41166",
        "https://www.openml.org/data/download/19335689/file1c556e3db171.arff",
    ),
)
LICENCE = "public (OpenML)"
SOURCES = {"volkert": (ARFF,)}


def read(path: Path) -> Raw:
    """Drop the columns that hold one value in every row."""
    frame, _ = tabular.read_arff(path)
    frame = tabular.drop_constant(frame, keep="class")
    return tabular.from_frame(frame, target="class", classes=[str(label) for label in range(10)])


def raw(name: str) -> Raw:
    return prepared.raw(name, SOURCES[name], read)


OFFERS = ("tabular",)


@register("volkert")
def load(name: str, *, seed: int, label_noise: float = 0.0, limit: int | None = None) -> Data:
    return tabular.data(raw(name), name, seed=seed, label_noise=label_noise, limit=limit)
