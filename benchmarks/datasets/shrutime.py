"""Shrutime, bank customers who leave: 3 categorical and 8 continuous features (Tables 2, 5)."""

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
    name="Churn_Modelling (Shrutime)",
    path="tabular/shrutime/Churn_Modelling.csv",
    urls=(
        "https://www.kaggle.com/api/v1/datasets/download/shrutimechlearn/churn-modelling/Churn_Modelling.csv",
        "https://raw.githubusercontent.com/selva86/datasets/master/Churn_Modelling.csv",
        "https://raw.githubusercontent.com/erkansirin78/datasets/master/Churn_Modelling.csv",
    ),
    checksum="md5:7321aa9a1e24a9e139f42124f736b415",
    also=("md5:496aee8fbfdfa1dfb6daa9dbca5d1a01",),  # the same lines with CR LF ends
    size=674857,
)
SOURCES = {"shrutime": (CSV,)}


def read(path: Path) -> Raw:
    """Drop the row number and the customer's number; `Exited` is the target."""
    frame = tabular.read_csv(path, keep_default_na=False).drop(columns=["RowNumber", "CustomerId"])
    categorical = ("Surname", "Geography", "Gender")
    return tabular.from_frame(frame, target="Exited", classes=("0", "1"), categorical=categorical)


def raw(name: str) -> Raw:
    return prepared.raw(name, SOURCES[name], read)


OFFERS = ("tabular",)


@register("shrutime")
def load(name: str, *, seed: int, label_noise: float = 0.0, limit: int | None = None) -> Data:
    return tabular.data(raw(name), name, seed=seed, label_noise=label_noise, limit=limit)
