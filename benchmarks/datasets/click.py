"""Click prediction, OpenML 42733 (KDD Cup 2012 track 2): 6 categorical, 5 numeric (Tables 2, 5)."""

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
    name="Click_prediction_small",
    path="tabular/click/Click_prediction_small.csv",
    checksum="md5:d98d2dfd62a63ad88ef4525d76e5f648",
    size=3389541,
)
ARFF = Source(
    name="Click_prediction_small (ARFF)",
    path="tabular/click/Click_prediction_small_openml42733.arff",
    urls=("openml:42733",),
)
LICENCE = "public (OpenML)"
SOURCES = {"click": (CSV, ARFF)}
CATEGORICAL = ("ad_id", "advertiser_id", "keyword_id", "title_id", "description_id", "user_id")


def read(path: Path) -> Raw:
    """Read either form with OpenML's types: `url_hash` and `query_id` are numeric there.

    `url_hash` exceeds int64, so the numeric columns are read as float64.
    """
    if path.suffix == ".arff":
        frame = tabular.read_arff(path)[0]
    else:
        numeric = ("impression", "url_hash", "depth", "position", "query_id")
        types = dict.fromkeys(("click", *CATEGORICAL), str) | dict.fromkeys(numeric, float)
        frame = tabular.read_csv(path, dtype=types)
    return tabular.from_frame(frame, target="click", classes=("0", "1"), categorical=CATEGORICAL)


def raw(name: str) -> Raw:
    return prepared.raw(name, SOURCES[name], read)


OFFERS = ("tabular",)


@register("click")
def load(name: str, *, seed: int, label_noise: float = 0.0, limit: int | None = None) -> Data:
    return tabular.data(raw(name), name, seed=seed, label_noise=label_noise, limit=limit)
