"""Tabular data: as published, and as tensors of one split fitted on its training rows (Table 2)."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks import registry, seeds
from benchmarks.errors import BenchmarkError, DataError

if TYPE_CHECKING:
    import pandas as pd

    from benchmarks.data import Data

TEST_SHARE, VALIDATION_SHARE = 0.20, 0.15  # protocol: 65/15/20
NO_LEVELS, COMMENT = re.compile(r"(?<=\s)\{\s*\}(?=\s*$)"), re.compile(r"\}\s*%[^'\"]*$")
LINE_OF_PARSER = re.compile(r",? (at|in) line *(%d|\d+)(:.*|\. Error.*|\.)?", re.DOTALL)
LARGEST = float(np.finfo(np.float32).max)


@dataclass(frozen=True, kw_only=True)
class Raw:
    """A whole data set before any split: nothing in it was fitted.

    A value that float32, what models take, cannot hold is refused: one alone would make the mean and the
    deviation of its column infinite, and every row of it missing.

    Attributes
    ----------
    values : float64 (N, F); a continuous value, or the index of a categorical's level; NaN missing.
    levels : per column the number of levels of a categorical, 0 for a continuous one.
    y : int64 (N,), class indices; class 1 is the positive one of two.
    notes : what a reader of any table must know.
    provenance : file names with checksums.
    """

    values: np.ndarray
    levels: tuple[int, ...]
    y: np.ndarray
    feature_names: tuple[str, ...]
    class_names: tuple[str, ...]
    notes: tuple[str, ...] = ()
    provenance: tuple[tuple[str, str], ...] = ()

    def __post_init__(self):
        beyond = np.abs(self.values) > LARGEST
        if beyond.any():
            row, column = np.argwhere(beyond)[0]
            raise DataError(
                f"column {self.feature_names[column]!r}, row {row + 1}: {self.values[row, column]} is no "
                f"finite number up to {LARGEST:.1e}; correct it, or leave the cell empty where it is missing"
            )


def from_frame(
    frame: pd.DataFrame,
    *,
    target: str,
    classes: Sequence[str],
    categorical: Sequence[str] = (),
    notes: tuple[str, ...] = (),
) -> Raw:
    """Turn a frame into a `Raw`: target to class index, categoricals to level indices.

    Raises
    ------
    DataError
        The frame lacks a column or has one twice, is empty, or holds a label that is missing or not among
        `classes`, or a value that is no number in a column that is not categorical. Rows count from 1.
    """
    import pandas as pd

    if twice := [str(name) for name in frame.columns[frame.columns.duplicated()]]:
        raise DataError(f"columns {twice} are there twice: give each a name of its own")
    if missing := [c for c in (target, *categorical) if c not in frame.columns]:
        raise DataError(
            f"columns {missing} are missing; the file has {list(frame.columns)[:8]} ..."
        )
    labels = _labels(frame[target])
    if unknown := sorted(set(labels) - set(classes)) or (["no rows"] if frame.empty else []):
        raise DataError(f"column {target!r} should hold {list(classes)}; found {unknown[:5]}")
    y = np.asarray(pd.Categorical(labels, categories=list(classes)).codes, dtype=np.int64)
    features = [c for c in frame.columns if c != target]
    values = np.empty((len(frame), len(features)), dtype=np.float64)
    levels = []
    for column, name in enumerate(features):
        if name in categorical:
            codes = pd.Categorical(frame[name])
            values[:, column] = np.where(codes.codes < 0, np.nan, codes.codes)
            levels.append(len(codes.categories))
        else:
            values[:, column] = _numbers(frame[name])
            notes += _rounded(frame[name], values[:, column])
            levels.append(0)
    return Raw(
        values=values,
        levels=tuple(levels),
        y=y,
        feature_names=tuple(str(name) for name in features),
        class_names=tuple(classes),
        notes=notes,
    )


def _labels(column: pd.Series) -> pd.Series:
    """Labels as text; a whole number that was read as 1.0 is the class 1."""
    import pandas as pd

    if (absent := column.isna()).any():
        raise DataError(
            f"column {column.name!r}, row {absent.argmax() + 1}: no label ({absent.sum()} of {len(column)} "
            "rows have none); give it, or drop these rows"
        )
    if pd.api.types.is_float_dtype(column) and (column % 1 == 0).all():
        column = column.astype(np.int64)
    return column.astype(object).astype(str)


def _numbers(column: pd.Series) -> np.ndarray:
    """Values as float64 (N,), NaN where missing; integers beyond int64 come as objects or text."""
    # A time would become nanoseconds, and a missing one a huge number.
    if column.dtype.kind not in "mM":
        try:
            return column.to_numpy(dtype=np.float64, na_value=np.nan)
        except (TypeError, ValueError, OverflowError):
            pass  # found out below, cell by cell
    row, value = next(((n, v) for n, v in enumerate(column, 1) if not _is_number(v)), (0, None))
    if not row:  # times that are all missing
        return np.full(len(column), np.nan)
    comma = isinstance(value, str) and _is_number(value.replace(".", "").replace(",", "."))
    remedy = "read it with a decimal comma" if comma else "name the column as categorical"
    raise DataError(
        f"column {column.name!r}, row {row}: {str(value)[:40]!r} is no number; correct it, or {remedy}"
    )


def _is_number(value: object) -> bool:
    """Tell whether a cell reads as a number or is missing."""
    import pandas as pd

    try:
        float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        return pd.api.types.is_scalar(value) and bool(pd.isna(value))
    return True


def _rounded(column: pd.Series, values: np.ndarray) -> tuple[str, ...]:
    """Note on integers that float64 cannot tell apart: above 2^53 neighbours become one number."""
    if column.dtype.kind == "f" or not (np.abs(values) > 2.0**53).any():
        return ()
    told, distinct = column.nunique(), len(np.unique(values[~np.isnan(values)]))
    lost = f"column {column.name}: integers beyond 2^53, {told} different ones became {distinct}"
    return (lost,) if distinct < told else ()


def read_csv(path: Path, **settings: Any) -> pd.DataFrame:
    """Read a CSV file; a column whose `dtype` is float is checked cell by cell where it is none.

    Parameters
    ----------
    settings : what `pandas.read_csv` takes.
    """
    import pandas as pd

    try:
        return pd.read_csv(path, **settings)
    except ValueError as error:
        types = settings.get("dtype", {})
        numbers = [name for name, kind in types.items() if kind is float]
        if "could not convert" in str(error) and numbers:
            text = pd.read_csv(path, **settings | {"dtype": str})
            for name in numbers:
                _numbers(text[name])
        raise


def drop_constant(frame: pd.DataFrame, *, keep: str) -> pd.DataFrame:
    """Drop the columns that hold one value in every row, except the target `keep`."""
    return frame[[c for c in frame.columns if c == keep or frame[c].nunique(dropna=False) > 1]]


def read_arff(path: Path) -> tuple[pd.DataFrame, list[str]]:
    """Read an ARFF file in OpenML's form; the list names its nominal and string columns.

    Raises
    ------
    DataError
        Naming the line, and the column where it is one value that does not fit.
    """
    from array import array

    import arff
    import pandas as pd

    lines, content = _Lines(path), {}
    try:
        content = arff.load(lines, encode_nominal=False, return_type=arff.DENSE_GEN)
        attributes = content["attributes"]
        numeric = [str(kind).upper() in {"NUMERIC", "REAL", "INTEGER"} for _, kind in attributes]
        columns = [array("d") if number else [] for number in numeric]
        shared: dict[str, str] = {}  # one string object a level, not one a cell
        for row in content["data"]:
            for column, number, value in zip(columns, numeric, row, strict=True):
                if number:
                    column.append(float("nan") if value is None else value)
                else:
                    column.append(value if value is None else shared.setdefault(value, value))
    except Exception as error:  # the parser raises whatever a line makes it stumble over
        reason = _misfit(content["attributes"], lines.last) if content else ""
        # Not its text: the parser formats a message that holds the line, whatever stands in it.
        said = LINE_OF_PARSER.sub("", str(getattr(error, "message", error)))
        reason = reason or f"{said} ({lines.last.strip()[:60]!r})"
        raise DataError(
            f"{path} is not an ARFF file as OpenML writes it, line {lines.number}: {reason}"
        ) from error
    names = [str(name).strip("'\"") for name, _ in attributes]
    frame = pd.DataFrame(
        {
            name: np.frombuffer(column, dtype=np.float64) if number else pd.Categorical(column)
            for name, number, column in zip(names, numeric, columns, strict=True)
        }
    )
    return frame, [name for name, number in zip(names, numeric, strict=True) if not number]


class _Lines:
    """The lines of a text file, of which the last one read and its number are known."""

    def __init__(self, path: Path):
        self.path, self.number, self.last = path, 0, ""

    def __iter__(self) -> Iterator[str]:
        with self.path.open("rb") as stream:
            for self.number, line in enumerate(stream, 1):
                self.last = repr(line)  # what an error shows where it is no text
                self.last = line.decode("utf-8-sig" if self.number == 1 else "utf-8")
                if self.last[:10].lower() != "@attribute":
                    yield self.last
                else:
                    # Neither form is ARFF as Weka defines it, both are in OpenML's files: a nominal without
                    # levels (missing in every row) and a comment behind the levels.
                    yield NO_LEVELS.sub("string", COMMENT.sub("}", self.last))


def _misfit(attributes: Sequence[tuple[str, Any]], line: str) -> str:
    """Say which value of a data line does not fit its column; empty where it is the line itself."""
    import arff

    header = "".join(f"@attribute c{number} string\n" for number in range(len(attributes)))
    try:
        (values,) = arff.loads(f"@relation line\n{header}@data\n{line}")["data"]
    except Exception:  # not even text by text
        return ""
    for (name, kind), value in zip(attributes, values, strict=True):
        if isinstance(kind, list):
            if value is not None and value not in (*kind, "0"):
                return f"column {name!r}: {value!r} is none of {kind[:8]}"
        elif kind != "STRING" and not (_is_number(value) and np.isfinite(float(value or 0))):
            return f"column {name!r}: {value!r} is no finite number"
    return ""


def split_indices(y: np.ndarray, name: str, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Split rows 65/15/20 into train, validation and test, stratified by class, by seed index."""
    from sklearn.model_selection import train_test_split

    state = seeds.derive(name, seed, "split") % 2**32
    try:
        rest, test = train_test_split(
            np.arange(len(y)), test_size=TEST_SHARE, stratify=y, random_state=state
        )
        share = VALIDATION_SHARE / (1 - TEST_SHARE)
        train, validation = train_test_split(
            rest, test_size=share, stratify=y[rest], random_state=state
        )
    except ValueError as error:
        counts = np.bincount(y)
        raise DataError(
            f"{name} cannot be split 65/15/20: rows per class {counts.tolist()[:10]}, the fewest are "
            f"{counts.min()}: {str(error).partition('. ')[0]}"
        ) from error
    return np.sort(train), np.sort(validation), np.sort(test)


def data(
    raw: Raw, name: str, *, seed: int, label_noise: float = 0.0, limit: int | None = None
) -> Data:
    """Split a data set and fit its preprocessing on the training rows.

    Parameters
    ----------
    label_noise : share in [0, 1] of the training labels replaced by another class, uniformly.
    limit : training rows kept, stratified; the preprocessing is fitted on these.
    """
    import torch

    from benchmarks.data import Data, Split

    train, validation, test = split_indices(raw.y, name, seed)
    train = _limited(train, raw.y, name=name, seed=seed, limit=limit)
    columns = [_fit(raw.values[:, j], train, levels) for j, levels in enumerate(raw.levels)]
    x = np.stack([column for column, _ in columns], axis=1)
    if np.isinf(x).any():
        row, column = np.argwhere(np.isinf(x))[0]
        raise DataError(
            f"{name}: column {raw.feature_names[column]!r}, row {row + 1}: {raw.values[row, column]} is too "
            "far from the training rows' values for float32; correct it, or leave the cell empty"
        )
    y = raw.y.copy()
    y[train] = _noisy(
        y[train],
        len(raw.class_names),
        share=label_noise,
        seed=seeds.derive(name, seed, "label noise"),
    )
    labels = torch.from_numpy(y)
    parts = {
        part: Split(torch.from_numpy(x[rows]), labels[rows])
        for part, rows in (("train", train), ("validation", validation), ("test", test))
    }
    return Data(
        name=name,
        **parts,
        num_classes=len(raw.class_names),
        kind="tabular",
        categories=tuple(cardinality for _, cardinality in columns),
        feature_names=raw.feature_names,
        class_names=raw.class_names,
        notes=raw.notes,
        provenance=dict(raw.provenance),
    )


def _fit(column: np.ndarray, train: np.ndarray, levels: int) -> tuple[np.ndarray, int]:
    """Fit one column on the training rows: float32 (N,) and its cardinality, 0 if continuous."""
    if levels:
        # Missing is a level like the others: known if the training rows have it, else unknown (0).
        codes = np.where(np.isnan(column), levels, column).astype(np.int64)
        seen = np.unique(codes[train])
        lookup = np.zeros(levels + 1, dtype=np.float32)
        lookup[seen] = np.arange(1, len(seen) + 1)
        return lookup[codes], len(seen) + 1
    known = column[train][~np.isnan(column[train])]
    if len(known) == 0:
        return np.full(len(column), np.nan, dtype=np.float32), 0
    # A constant's computed standard deviation may be rounding noise instead of 0, and that of values next
    # to 0 may be 0.
    if known.min() == known.max() or not known.std():
        return np.where(np.isnan(column), np.nan, 0.0).astype(np.float32), 0
    with np.errstate(over="ignore"):  # the caller names what overflows
        return ((column - known.mean()) / known.std()).astype(np.float32), 0


def _limited(
    train: np.ndarray, y: np.ndarray, *, name: str, seed: int, limit: int | None
) -> np.ndarray:
    if limit is None or limit >= len(train):
        return train
    from sklearn.model_selection import train_test_split

    state = seeds.derive(name, seed, "limit") % 2**32
    try:
        kept, _ = train_test_split(train, train_size=limit, stratify=y[train], random_state=state)
    except ValueError as error:
        raise BenchmarkError(
            f"{name}: limit {limit} of {len(train)} training rows: {error}"
        ) from error
    return np.sort(kept)


def _noisy(y: np.ndarray, classes: int, *, share: float, seed: int) -> np.ndarray:
    if not 0 <= share <= 1:
        raise BenchmarkError(
            f"label_noise is a share of the training labels in [0, 1], not {share}"
        )
    rng = np.random.default_rng(seed)
    rows = rng.choice(len(y), size=round(share * len(y)), replace=False)
    noisy = y.copy()
    noisy[rows] = (y[rows] + rng.integers(1, classes, size=len(rows))) % classes
    return noisy


def describe(name: str) -> dict[str, str | int | list[str] | None]:
    """Compute Table 5's numbers of a tabular data set from its loaded rows, before any split.

    Returns
    -------
    dict
        dataset, task (``binary`` or ``multiclass-K``), features, categorical, continuous, rows,
        positives and negatives (None unless binary), notes.
    """
    module = registry.module("datasets", name)
    if not hasattr(module, "raw"):
        raise BenchmarkError(f"{name} is no tabular data set: Table 5 does not describe it")
    raw = module.raw(name)
    binary = len(raw.class_names) == 2
    categorical = sum(levels > 0 for levels in raw.levels)
    positives = int((raw.y == 1).sum()) if binary else None
    return {
        "dataset": name,
        "task": "binary" if binary else f"multiclass-{len(raw.class_names)}",
        "features": len(raw.levels),
        "categorical": categorical,
        "continuous": len(raw.levels) - categorical,
        "rows": len(raw.y),
        "positives": positives,
        "negatives": len(raw.y) - positives if positives is not None else None,
        "notes": list(raw.notes),
    }
