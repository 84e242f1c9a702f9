"""Appetency (KDD Cup 2009), OpenML 1111: does a customer buy a service; Table 2's column."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.datasets import prepared, tabular
from benchmarks.datasets.tabular import Raw
from benchmarks.registry import register
from benchmarks.sources import Source

if TYPE_CHECKING:
    from benchmarks.data import Data

COMPLETE = Source(
    name="KDD Cup 2009 appetency (complete)",
    path="tabular/appetency/KDDCup09_appetency_openml1111.arff",
    urls=("openml:1111", "https://www.openml.org/data/download/53994/KDDCup09_appetency.arff"),
)
PARTIAL = Source(
    name="KDD Cup 2009 appetency (44 of 230 features)",
    path="tabular/appetency/appetency_50000x44.csv.gz",
    checksum="sha256:8aef1cb88d3c9341f90762281bc85f86000cb4bb1b6c676af2813f80fc5c1b56",
    size=1430570,
    partial=True,
)
LICENCE = "public (KDD Cup 2009, OpenML)"
SOURCES = {"appetency": (COMPLETE, PARTIAL)}
FIRST_CATEGORICAL = 191  # Var191 to Var230 are categorical in the competition's description
PARTIAL_NOTE = (
    "PARTIAL DATA: 44 of 230 features, columns chosen by somebody's feature selection over all "
    "rows, 11 pre-imputed; `fetch --dataset appetency --complete` gets the complete file"
)


def read(path: Path) -> Raw:
    """Read the complete file, or the partial one under a note."""
    return _read_complete(path) if path.suffix == ".arff" else _read_partial(path)


def _read_complete(path: Path) -> Raw:
    frame, nominal = tabular.read_arff(path)
    target = next((name for name in frame.columns if name.lower() == "appetency"), "APPETENCY")
    categorical = [name for name in nominal if name != target]
    return tabular.from_frame(frame, target=target, classes=("-1", "1"), categorical=categorical)


def _read_partial(path: Path) -> Raw:
    """Somebody numbered the categoricals' levels; a fractional number is an imputed mean.

    Read as categorical, that mean is a level of its own: what a missing value should be.
    """
    frame = tabular.read_csv(path)
    numbers = {name: int(name.removeprefix("Var")) for name in frame.columns if name != "appetency"}
    categorical = [name for name, number in numbers.items() if number >= FIRST_CATEGORICAL]
    return tabular.from_frame(
        frame,
        target="appetency",
        classes=("0", "1"),
        categorical=categorical,
        notes=(PARTIAL_NOTE,),
    )


def raw(name: str) -> Raw:
    return prepared.raw(name, SOURCES[name], read)


OFFERS = ("tabular",)


@register("appetency")
def load(name: str, *, seed: int, label_noise: float = 0.0, limit: int | None = None) -> Data:
    return tabular.data(raw(name), name, seed=seed, label_noise=label_noise, limit=limit)
