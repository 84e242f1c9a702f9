"""Demo data inside scikit-learn: breast cancer (binary), digits (10 classes); in no table."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks import sources
from benchmarks.datasets import tabular
from benchmarks.datasets.tabular import Raw
from benchmarks.registry import register

if TYPE_CHECKING:
    from benchmarks.data import Data


FILES = {
    "breast-cancer": "breast_cancer.csv",
    "digits": "digits.csv.gz",
    "digits-images": "digits.csv.gz",
}


def content_hash(name: str, **settings: Any) -> str | None:
    """Hash the file that scikit-learn ships, without importing it; None where it ships none."""
    path = Path(find_spec("sklearn").origin).parent / "datasets" / "data" / FILES[name]
    return sources.checksum(path, "sha256")[7:23] if path.is_file() else None


def raw(name: str) -> Raw:
    from sklearn import __version__, datasets

    bunch = {"breast-cancer": datasets.load_breast_cancer, "digits": datasets.load_digits}[name]()
    return Raw(
        values=np.asarray(bunch.data, dtype=np.float64),
        levels=(0,) * bunch.data.shape[1],
        y=np.asarray(bunch.target, dtype=np.int64),
        feature_names=tuple(str(feature) for feature in bunch.feature_names),
        class_names=tuple(str(label) for label in bunch.target_names),
        provenance=(("scikit-learn", __version__),),
    )


OFFERS = ("tabular",)


@register("breast-cancer", "digits")
def load(name: str, *, seed: int, label_noise: float = 0.0, limit: int | None = None) -> Data:
    return tabular.data(raw(name), name, seed=seed, label_noise=label_noise, limit=limit)
