"""Fabricated tabular files, byte formats as published: OpenML ARFF and CSV, ODDS .mat, KDD .gz."""

from __future__ import annotations

import gzip
import hashlib
from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
from scipy.io import savemat

from benchmarks import registry

ROWS = 240
CLICK = (
    "click impression url_hash ad_id advertiser_id depth position query_id keyword_id title_id "
    "description_id user_id"
)
KDD_ATTACKS = ("smurf.", "neptune.", "back.")


def qsar(path: Path, rng: np.random.Generator) -> None:
    x = rng.normal(size=(ROWS, 41)).round(3)
    header = ",".join([f"V{j}" for j in range(1, 42)] + ["Class"])
    lines = _lines(x, _labels(rng, "12"))
    if path.suffix == ".arff":
        attributes = [f"@attribute V{j} numeric" for j in range(1, 42)] + ["@attribute Class {1,2}"]
        header = "\n".join(["@relation R_data_frame", "", *attributes, "", "@data"])
    path.write_text("\n".join([header, *lines, ""]), encoding="utf-8")


def arrhythmia(path: Path, rng: np.random.Generator) -> None:
    x = rng.normal(size=(ROWS, 274))
    x[:, 20] = 0.0
    x[:, 30] = rng.normal(scale=0.01, size=ROWS)
    savemat(path, {"X": x, "y": _labels(rng, "01").astype(np.float64).reshape(-1, 1)})


def shrutime(path: Path, rng: np.random.Generator) -> None:
    header = (
        "RowNumber,CustomerId,Surname,CreditScore,Geography,Gender,Age,Tenure,Balance,"
        "NumOfProducts,HasCrCard,IsActiveMember,EstimatedSalary,Exited"
    )
    # "Null" and "NA" are surnames here, not missing values.
    surnames = np.array(["Null", "NA", *(f"Name{k}" for k in range(40))])
    lines = [
        f"{row + 1},{15600000 + row},{rng.choice(surnames)},{rng.integers(350, 850)},"
        f"{rng.choice(['France', 'Spain', 'Germany'])},{rng.choice(['Female', 'Male'])},"
        f"{rng.integers(18, 90)},{rng.integers(0, 11)},{rng.uniform(0, 2e5):.2f},"
        f"{rng.integers(1, 5)},{rng.integers(0, 2)},{rng.integers(0, 2)},{rng.uniform(1, 2e5):.2f},{y}"
        for row, y in enumerate(_labels(rng, "01"))
    ]
    path.write_text("\n".join([header, *lines, ""]), encoding="utf-8")


def click(path: Path, rng: np.random.Generator) -> None:
    names = CLICK.split()
    quoted = {
        "click",
        "ad_id",
        "advertiser_id",
        "keyword_id",
        "title_id",
        "description_id",
        "user_id",
    }
    hashes = [10710025208886284288, 17363854844105064448, 434627]  # two of them exceed int64
    columns = {name: rng.integers(0, 60, size=ROWS).tolist() for name in names}
    columns["click"] = _labels(rng, "01").tolist()
    columns["url_hash"] = [hashes[k] for k in rng.integers(0, 3, size=ROWS)]
    arff = path.suffix == ".arff"
    header = ",".join(f'"{name}"' for name in names)
    if arff:
        kinds = {n: "{" + ",".join(sorted(set(map(str, columns[n])))) + "}" for n in quoted}
        attributes = [f"@ATTRIBUTE {name} {kinds.get(name, 'REAL')}" for name in names]
        header = "\n".join(["@RELATION Click_prediction_small", *attributes, "@DATA"])
    lines = [
        ",".join(
            f'"{columns[n][row]}"' if n in quoted and not arff else str(columns[n][row])
            for n in names
        )
        for row in range(ROWS)
    ]
    path.write_text("\n".join([header, *lines, ""]), encoding="utf-8")


def credit(path: Path, rng: np.random.Generator) -> None:
    names = ["Time", *(f"V{j}" for j in range(1, 29)), "Amount", "Class"]
    x = np.column_stack([np.arange(ROWS), rng.normal(size=(ROWS, 29)).round(6)])
    lines = [f'{line},"{y}"' for line, y in zip(_lines(x), _labels(rng, "01"), strict=True)]
    text = "\n".join([",".join(f'"{n}"' for n in names), *lines, ""])
    path.write_bytes(
        gzip.compress(text.encode(), mtime=0) if path.suffix == ".gz" else text.encode()
    )


def kdd99(path: Path, rng: np.random.Generator) -> None:
    x = rng.integers(0, 100, size=(ROWS, 41)).astype(object)
    x[:, 1] = rng.choice(["tcp", "udp", "icmp"], size=ROWS)
    x[:, 2] = rng.choice(["http", "smtp", "ecr_i"], size=ROWS)
    x[:, 3] = rng.choice(["SF", "S0"], size=ROWS)
    x[:, 19:21] = 0
    normal = _labels(rng, "01") == "1"
    labels = np.where(normal, "normal.", rng.choice(KDD_ATTACKS, size=ROWS))
    path.write_bytes(gzip.compress(("\n".join(_lines(x, labels)) + "\n").encode(), mtime=0))


def appetency(path: Path, rng: np.random.Generator) -> None:
    """Complete form (OpenML 1111: 230 features, 38 nominal, quoted levels, ? missing) or partial."""
    if path.suffix == ".arff":
        _appetency_complete(path, rng)
        return
    numeric, nominal = ["Var3", "Var24", "Var126"], ["Var193", "Var214"]
    x = np.column_stack([rng.normal(size=(ROWS, 3)).round(4), rng.integers(1, 9, size=(ROWS, 2))])
    x = x.astype(object)
    x[rng.random(ROWS) < 0.3, 0] = ""
    x[rng.random(ROWS) < 0.3, 4] = 3765.55442  # an imputed mean among level numbers
    header = ",".join([*numeric, *nominal, "appetency"])
    text = "\n".join([header, *_lines(x, _labels(rng, "01")), ""])
    path.write_bytes(gzip.compress(text.encode(), mtime=0))


def _appetency_complete(path: Path, rng: np.random.Generator) -> None:
    levels = ["'oslk fXVEsaq'", "xb3V", "'a,b'"]
    kinds = ["numeric"] * 192 + ["{" + ",".join(levels) + "}"] * 38
    attributes = [f"@attribute Var{j} {kind}" for j, kind in enumerate(kinds, start=1)]
    columns = [
        rng.normal(size=ROWS).round(4).astype(object)
        if kind == "numeric"
        else rng.choice(levels, size=ROWS).astype(object)
        for kind in kinds
    ]
    for column in columns:
        column[rng.random(ROWS) < 0.2] = "?"
    columns[7][:] = "?"  # a feature that nobody has
    labels = np.where(_labels(rng, "01") == "1", "1", "-1")
    header = ["@relation KDDCup09_appetency", *attributes, "@attribute APPETENCY {-1,1}", "@data"]
    lines = _lines(np.column_stack(columns), labels)
    path.write_text("\n".join([*header, *lines, ""]), encoding="utf-8")


def volkert(path: Path, rng: np.random.Generator) -> None:
    """OpenML 41166: the class first, 180 features, 33 of them constant."""
    x = rng.normal(size=(ROWS, 180)).round(5)
    x[:, 5:38] = 0.0
    labels = np.array([str(k % 10) for k in rng.permutation(ROWS)])
    attributes = ["@ATTRIBUTE class {" + ",".join(map(str, range(10))) + "}"]
    attributes += [f"@ATTRIBUTE V{j} NUMERIC" for j in range(1, 181)]
    lines = [f"{label},{line}" for label, line in zip(labels, _lines(x), strict=True)]
    text = "\n".join(["@RELATION volkert", "", *attributes, "", "@DATA", *lines, ""])
    path.write_text(text, encoding="utf-8")


WRITERS: dict[str, Callable[[Path, np.random.Generator], None]] = {
    "qsar": qsar,
    "arrhythmia": arrhythmia,
    "shrutime": shrutime,
    "click": click,
    "credit": credit,
    "kdd99": kdd99,
    "appetency": appetency,
    "volkert": volkert,
}


def install(
    patch: pytest.MonkeyPatch, data: Path, name: str, *, alternative: int = -1
) -> Path | None:
    """Write a data set's file into a SAFLEX_DATA layout and make its checksum the expected one.

    The loader then runs as it does on the published file, verification included. Nothing is
    written for a set that ships with scikit-learn.
    """
    module = import_module(registry.modules("datasets")[name])
    if not hasattr(module, "SOURCES"):
        return None
    alternatives = module.SOURCES[name]
    source = alternatives[alternative]
    path = data / source.path
    path.parent.mkdir(parents=True, exist_ok=True)
    WRITERS[name](path, np.random.default_rng(7))
    md5 = f"md5:{hashlib.md5(path.read_bytes()).hexdigest()}"
    fabricated = replace(source, checksum=md5, also=(), size=path.stat().st_size)
    changed = tuple(fabricated if s is source else s for s in alternatives)
    patch.setitem(module.SOURCES, name, changed)
    return path


def _labels(rng: np.random.Generator, classes: str) -> np.ndarray:
    """A quarter of the rows are positive."""
    return np.array(list(classes))[rng.permutation(np.arange(ROWS) % 4 == 0).astype(int)]


def _lines(x: np.ndarray, labels: np.ndarray | None = None) -> list[str]:
    rows = x if labels is None else np.column_stack([x.astype(object), labels.astype(object)])
    return [",".join(str(value) for value in row) for row in rows.tolist()]
