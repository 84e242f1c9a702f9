"""QSAR biodegradation, OpenML 1494: does a molecule degrade, from 41 descriptors (Tables 2, 5)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.datasets import prepared, tabular
from benchmarks.datasets.tabular import Raw
from benchmarks.registry import register
from benchmarks.sources import Source

if TYPE_CHECKING:
    from benchmarks.data import Data

FILE = "https://www.openml.org/data/{}/1592286/phpGUrE90"
CSV = Source(
    name="QSAR biodegradation",
    path="tabular/qsar/qsar-biodeg_openml1494.csv",
    urls=(FILE.format("get_csv"),),
    checksum="md5:86acc194855199f686e37a8917cf7e4d",
    size=153339,
)
ARFF = Source(
    name="QSAR biodegradation (ARFF)",
    path="tabular/qsar/qsar-biodeg_openml1494.arff",
    urls=(FILE.format("download"), "openml:1494"),
    checksum="md5:a2c189cd65511103fa540d7186155c24",
    size=154166,
)
LICENCE = "public (UCI, OpenML)"
SOURCES = {"qsar": (CSV, ARFF)}


def read(path: Path) -> Raw:
    """Read either form; class 2 (ready biodegradable) is the positive one."""
    frame = tabular.read_arff(path)[0] if path.suffix == ".arff" else tabular.read_csv(path)
    return tabular.from_frame(frame, target="Class", classes=("1", "2"))


def raw(name: str) -> Raw:
    return prepared.raw(name, SOURCES[name], read)


OFFERS = ("tabular",)


@register("qsar")
def load(name: str, *, seed: int, label_noise: float = 0.0, limit: int | None = None) -> Data:
    return tabular.data(raw(name), name, seed=seed, label_noise=label_noise, limit=limit)
