"""Values of tables: what float32 cannot hold, text among numbers, missing labels, odd ARFF and CSV files."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from reports import BY_HAND, report

from benchmarks.data import Data, Split
from benchmarks.datasets import click, credit, prepared, tabular, volkert
from benchmarks.datasets.tabular import Raw, from_frame, read_arff
from benchmarks.errors import DataError
from benchmarks.running import data_hash
from benchmarks.spec import Component

ROWS = 60


def frame(**columns) -> pd.DataFrame:
    signal = np.random.default_rng(0).normal(size=ROWS)
    return pd.DataFrame({"signal": signal, **columns, "label": np.arange(ROWS) % 2})


def raw(table: pd.DataFrame, **settings) -> Raw:
    return from_frame(table, target="label", classes=("0", "1"), **settings)


def line(error: pytest.ExceptionInfo[DataError]) -> str:
    assert len(str(error.value).splitlines()) == 1
    return str(error.value)


def arff(tmp_path, attributes: str, data: str, *, start: str = ""):
    path = tmp_path / "x.arff"
    text = f"{start}@relation r\n{attributes}\n@data\n{data}\n"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("value", [np.inf, -np.inf, 1e200])
@report(
    "dataxid-python 198",
    "inf, -inf or 1e200 in one cell of a column",
    "refused with column, row and value; it had made the whole column missing",
)
def test_a_value_that_float32_cannot_hold(value):
    table = frame()
    table.loc[3, "signal"] = value
    with pytest.raises(DataError) as caught:
        raw(table)
    assert f"column 'signal', row 4: {value}" in line(caught)


@report(
    BY_HAND,
    "a test value 1e38 in a column whose training values differ by 1e-9",
    "refused with column, row and value instead of an infinite input",
)
def test_a_value_too_far_from_the_training_rows():
    table = frame()
    table["signal"] *= 1e-9
    row = tabular.split_indices(raw(table).y, "mine", 0)[2][0]
    table.loc[row, "signal"] = 1e38
    with pytest.raises(DataError) as caught:
        tabular.data(raw(table), "mine", seed=0)
    assert f"column 'signal', row {row + 1}: 1e+38" in line(caught)


@report(
    BY_HAND,
    "a column of values next to 0 whose standard deviation is 0",
    "a constant: 0 in every row, none missing",
)
def test_a_deviation_that_vanishes():
    table = frame()
    table["signal"] = np.where(np.arange(ROWS) % 3, 5e-324, 1e-320)
    assert (tabular.data(raw(table), "mine", seed=0).train.x == 0).all()


@pytest.mark.parametrize(
    ("column", "said"),
    [
        (["a"] * ROWS, "row 1: 'a' is no number"),
        (["1.5"] * 7 + ["n/k"] + ["2"] * (ROWS - 8), "row 8: 'n/k' is no number"),
        (
            ["1.414,5"] * ROWS,
            "row 1: '1.414,5' is no number; correct it, or read it with a decimal",
        ),
        ([1] * 5 + [10**400] * (ROWS - 5), "row 6: '1000"),
        (
            pd.date_range("2020", periods=ROWS),
            "row 1: '2020-01-01 00:00:00' is no number",
        ),
    ],
)
@report(
    BY_HAND,
    "text, a decimal comma or a date in a column that is not categorical",
    "refused with column, row and value, and what to do",
)
def test_text_among_numbers(column, said):
    with pytest.raises(DataError) as caught:
        raw(frame(other=column))
    assert f"column 'other', {said}" in line(caught)


@pytest.mark.parametrize("labels", [[1.0, np.nan], ["1", None], ["1", "unknown", None]])
@report(
    "autogluon 2443",
    "a missing label, alone or beside an unknown one",
    "refused with column, row and number of such rows",
)
def test_a_missing_label(labels):
    table = frame()
    table["label"] = pd.Categorical((labels * ROWS)[:ROWS]) if len(labels) > 2 else (labels * 30)
    with pytest.raises(DataError) as caught:
        raw(table)
    assert f"column 'label', row {len(labels)}: no label" in line(caught)


@pytest.mark.parametrize("value", [np.inf, 2.5])
@report(
    BY_HAND,
    "whole labels read as 1.0, and labels inf or 2.5",
    "1.0 is class 1; the others are refused by value",
)
def test_labels_read_as_floats(value):
    table = frame()
    table["label"] = table["label"].astype(float)
    assert raw(table).y.tolist() == [0, 1] * (ROWS // 2)
    table.loc[0, "label"] = value
    with pytest.raises(DataError, match=f"found .*{value}"):
        raw(table)


@report(BY_HAND, "two columns of one name", "refused with the name")
def test_a_column_twice():
    table = frame(other=1.0)
    with pytest.raises(DataError, match=r"\['signal'\] are there twice"):
        raw(table.rename(columns={"other": "signal"}))


@report(
    BY_HAND,
    "integers beyond int64 and uint64, as CSV",
    "read as numbers; where float64 cannot tell them apart a note under the table says so",
)
def test_integers_beyond_int64(tmp_path):
    path = tmp_path / "x.csv"
    frame(id=[2**64 + n for n in range(ROWS)], far=[2**70 * (n + 1) for n in range(ROWS)]).to_csv(
        path, index=False
    )
    found = raw(pd.read_csv(path))
    assert found.values[:, 1].tolist() == [float(2**64)] * ROWS
    assert found.values[:, 2].tolist() == [2.0**70 * (n + 1) for n in range(ROWS)]
    assert found.notes == ("column id: integers beyond 2^53, 60 different ones became 1",)


@report(BY_HAND, "a byte-order mark before a CSV file, the label first", "read like without")
def test_a_mark_before_csv(tmp_path):
    table = frame()[["label", "signal"]]
    for encoding in ("utf-8", "utf-8-sig"):
        path = tmp_path / f"{encoding}.csv"
        table.to_csv(path, index=False, encoding=encoding)
        assert raw(tabular.read_csv(path)).feature_names == ("signal",)


@pytest.mark.parametrize(
    ("module", "head", "cells", "said"),
    [
        (
            credit,
            ",".join([f"V{n}" for n in range(1, 29)]) + ",Amount,Class",
            ["0"] * 28,
            "'Amount'",
        ),
        (
            click,
            "click,impression,url_hash,ad_id,advertiser_id,depth,position,query_id,keyword_id,"
            "title_id,description_id,user_id",
            ["0", "1", "x7", *["1"] * 9],
            "'url_hash'",
        ),
    ],
)
@report(
    BY_HAND,
    "text in a column that a reader types as float",
    "file, column and row in one line, through the prepared files as well",
)
def test_text_in_a_typed_column(tmp_path, module, head, cells, said):
    cells = [*cells, "12,5x", "0"] if module is credit else cells
    quoted = ",".join(f'"{cell}"' for cell in cells)
    good = ",".join("0" for _ in head.split(","))
    path = tmp_path / "x.csv"
    path.write_text(f"{head}\n{good}\n{quoted}\n", encoding="utf-8")
    with pytest.raises(DataError) as caught:
        prepared._read(path, module.read)
    assert f"{path}: column {said}, row 2" in line(caught)


@pytest.mark.parametrize(
    ("attributes", "data", "values"),
    [
        ("@attribute a {'x,1',y}\n@attribute b real", "'x,1',1\ny,2", ["x,1", "y"]),
        ("@attribute a {-1,1} %{<=50K, >50K}\n@attribute b real", "-1,1\n1,2", ["-1", "1"]),
        (
            "@attribute a string\n@attribute b real",
            '"Barber, Miss. Ellen \\"Nellie\\"",1\n\'O\\\'Neil\',2',
            ['Barber, Miss. Ellen "Nellie"', "O'Neil"],
        ),
        ("@attribute a {x,y}\n@attribute b real", "{0 y, 1 1}\n{1 2}", ["y", "x"]),
        ("@attribute a {x,y}\n@attribute b real", "{0 ?, 1 1}\n{0 y, 1 2}", [None, "y"]),
    ],
)
@report(
    "openml-python 404, 287, 1180 with liac-arff 52",
    "ARFF with commas and quotes in values, a comment behind a nominal, sparse and missing nominals",
    "read as written",
)
def test_arff_of_openml(tmp_path, attributes, data, values):
    found, nominal = read_arff(arff(tmp_path, attributes, data))
    assert nominal == ["a"]
    assert [None if pd.isna(v) else v for v in found["a"]] == values
    assert found["b"].tolist() == [1.0, 2.0]


@report(
    BY_HAND,
    "ARFF with a byte-order mark, CR LF ends, a nominal `{}` missing in every row, huge integers",
    "read; the nominal is missing everywhere",
)
def test_arff_beside_the_norm(tmp_path):
    attributes = "@attribute a {}\r\n@attribute b integer"
    data = "?,10686478247739164000\r\n?,12345678901234567890123"
    found, _ = read_arff(arff(tmp_path, attributes, data, start="\ufeff"))
    assert found["a"].isna().all()
    assert found["b"].tolist() == [10686478247739164000.0, 12345678901234567890123.0]


@pytest.mark.parametrize(
    ("attributes", "data", "said"),
    [
        (
            "@attribute a real\n@attribute b real",
            "1,2\n3,4;5",
            "line 6: column 'b': '4;5' is no finite",
        ),
        (
            "@attribute a real\n@attribute b integer",
            "1,inf",
            "line 5: column 'b': 'inf' is no finite",
        ),
        (
            "@attribute a real\n@attribute c {u,v}",
            "1,w",
            "line 5: column 'c': 'w' is none of ['u', 'v']",
        ),
        ("@attribute a real\n@attribute b real", "{0 1, 7 2}", "line 5: Bad @DATA instance format"),
        ("@attribute a real\n@attribute b real", "{0 x}", "line 5: column 'a': 'x' is no finite"),
        ("@attribute a real\n@attribute b real", "1,,2", "line 5: Bad @DATA instance format"),
        ("@attribute a real\n@attribute b real", "1,%s,2", "line 5: Bad @DATA instance format"),
        (
            "@attribute a real\n@attribute \"'a'\" real",
            "1,2",
            "name a, this name is already in use (",
        ),
        ("@attribute a date 'yyyy'\n@attribute b real", "2020,1", "line 2: Bad @ATTRIBUTE type"),
    ],
)
@report(
    BY_HAND,
    "ARFF with a text, inf, an unknown level, a sparse index too high, a field too many, a date",
    "one line with file, line and, where it is one value, column",
)
def test_arff_that_does_not_fit(tmp_path, attributes, data, said):
    path = arff(tmp_path, attributes, data)
    with pytest.raises(DataError) as caught:
        read_arff(path)
    assert str(path) in line(caught)
    assert said in str(caught.value)


@report(BY_HAND, "ARFF in Latin-1", "one line with file and line")
def test_arff_in_another_encoding(tmp_path):
    path = tmp_path / "x.arff"
    path.write_bytes("@relation r\n@attribute c {São,v}\n@data\nv\n".encode("latin-1"))
    with pytest.raises(DataError, match=r"x\.arff .* line 2: 'utf-8' codec"):
        read_arff(path)


@report(
    BY_HAND,
    "Volkert's ARFF with numeric classes, a missing class, text in a feature",
    "read; refused with file, column and row in one line",
)
def test_volkert_in_other_types(tmp_path):
    rows = "\n".join(f"{n % 10},{n}.5" for n in range(20))
    path = arff(tmp_path, "@attribute class real\n@attribute V1 real", rows)
    assert prepared._read(path, volkert.read).y.tolist() == list(range(10)) * 2
    types = "@attribute class {0,1,2,3,4,5,6,7,8,9,unknown}\n@attribute V1 real"
    with pytest.raises(DataError, match=r"x\.arff: column 'class', row 3: no label"):
        prepared._read(arff(tmp_path, types, "0,1\nunknown,2\n?,3"), volkert.read)
    types = "@attribute class {0,1}\n@attribute V1 string"
    with pytest.raises(DataError, match=r"x\.arff: column 'V1', row 1: 'a' is no number"):
        prepared._read(arff(tmp_path, types, "0,a\n1,b"), volkert.read)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b'a,b\n1,2,3\n"x', "ParserError: "),
        (b"", "EmptyDataError: No columns"),
        (b"a\n\xff\xfe\n", "UnicodeDecodeError: "),
        (None, "FileNotFoundError: "),
        (b"signal,label\ninf,1\n", "column 'signal', row 1: inf"),
    ],
)
@report(
    BY_HAND,
    "a user's own loader on a CSV that is cut, empty, in UTF-16, missing or holds inf",
    "one line with the data set and the reason",
)
def test_a_loader_of_somebody(tmp_path, content, said):
    path = tmp_path / "x.csv"
    if content is not None:
        path.write_bytes(content)

    def loader(name, *, seed):
        return tabular.data(raw(pd.read_csv(path)), "x", seed=seed)

    with pytest.raises(DataError) as caught:
        data_hash._read(Component(name="mine"), loader, seed=0)
    assert line(caught).startswith("mine: ")
    assert said in str(caught.value)


def refused(loader) -> str:
    with pytest.raises(DataError) as caught:
        data_hash._read(Component(name="mine"), loader, seed=0)
    return line(caught)


@pytest.mark.parametrize(
    ("raised", "said"),
    [
        (KeyError("label"), "KeyError: 'label'"),
        (StopIteration(), "StopIteration"),
        (ValueError(), "ValueError"),
        (ValueError("a\nb"), "ValueError: a b"),
        (SystemExit(0), "it ends the program itself (sys.exit(0)): raise an error instead"),
    ],
)
@report(
    BY_HAND,
    "a fault in the code of a user's own loader, one without words, `raise SystemExit(0)`",
    "one line with the data set, file, line and reason; the status is not 0",
)
def test_a_loader_with_a_fault(raised, said):
    def loader(name, *, seed):
        raise raised

    number = loader.__code__.co_firstlineno + 1
    assert refused(loader) == f"mine: its loader fails: {__file__}, line {number}: {said}"


@report(
    BY_HAND,
    "a loader whose fault shows in another's code: a column that is not there",
    "the loader's own line is named",
)
def test_the_place_is_the_loader_s():
    def loader(name, *, seed):
        return frame()["nowhere"]

    said = refused(loader)
    assert f"{__file__}, line {loader.__code__.co_firstlineno + 1}: KeyError: 'nowhere'" in said


def test_too_little_memory_is_left_to_who_builds_the_run():
    def loader(name, *, seed):
        raise MemoryError

    with pytest.raises(MemoryError):
        data_hash._read(Component(name="mine"), loader, seed=0)


def made(**changes) -> Data:
    """What a loader gives that makes its tensors itself."""
    split = Split(torch.rand(10, 2), torch.arange(10) % 2)
    parts = {"train": split, "validation": split, "test": split} | changes
    return Data(**{"name": "mine", "num_classes": 2, "kind": "tabular"} | parts)


X, Y = torch.zeros(10, 2), torch.zeros(10, dtype=torch.long)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (None, "its loader gives a NoneType: expected a benchmarks.data.Data"),
        ((X, Y), "its loader gives a tuple: expected"),
        (made(test=(X, Y)), "test is a tuple: expected a benchmarks.data.Split"),
        (made(test=Split(X, Y[:9])), "test inputs are torch.float32 of shape (10, 2) for 9 labels"),
        (made(test=Split(X[:0], Y[:0])), "test has no rows"),
        (
            made(test=Split(X[:, :1], Y)),
            "test inputs have shape (1,) a row, those of training (2,)",
        ),
        (made(test=Split(X.double(), Y)), "test inputs are torch.float64 of shape (10, 2)"),
        (made(test=Split(X.numpy(), Y)), "test inputs are a ndarray: expected a tensor"),
        (made(validation=Split(X, Y + 9)), "validation row 1 has label 9: expected 0 to 1"),
        (made(extra=Split(X, Y - 1)), "extra row 1 has label -1: expected 0 to 1"),
        (made(train=Split(X, Y.float())), "train labels are torch.float32 of shape (10,)"),
        (made(train=Split(X, Y[:, None])), "train labels are torch.int64 of shape (10, 1)"),
        (made(num_classes=1), "num_classes is 1: expected a whole number from 2"),
        (made(num_classes=2.0), "num_classes is 2.0: expected a whole number"),
        (made(kind="text"), "kind 'text': expected 'tabular' or 'image'"),
        (made(kind="image"), "train inputs are torch.float32 of shape (10, 2) for 10 labels"),
        (made(categories=(0,)), "1 categories of 2 columns"),
        (
            made(categories=(0, 2), test=Split(X + 2, Y)),
            "train column 2 holds more than whole codes",
        ),
    ],
)
@report(
    BY_HAND,
    "a loader gives 40 inputs and 39 labels, labels 9 and -1 of two classes, one class, nothing",
    "refused with data set, split and what was expected; it had been measured, or a traceback",
)
def test_data_that_are_not_sound(data, said):
    assert refused(lambda name, *, seed: data).startswith(f"mine: {said}")


def test_data_that_are_sound():
    data = made(categories=(0, 2), **{p: Split(X, Y) for p in ("train", "validation", "test")})
    assert data_hash._read(Component(name="mine"), lambda name, *, seed: data, seed=0) is data


@report(
    BY_HAND,
    "a loader that makes its tensors itself and leaves inf in one",
    "refused with split, row and column before anything is trained",
)
def test_tensors_of_somebody():
    data = tabular.data(raw(frame()), "x", seed=0)
    data.test.x[2, 0] = torch.inf
    with pytest.raises(DataError, match="mine: test rows hold an infinite input: row 3, column 1"):
        data_hash._read(Component(name="mine"), lambda name, *, seed: data, seed=0)


@report(BY_HAND, "thirty classes of one row each", "one short line: what there is, what is needed")
def test_classes_of_one_row():
    with pytest.raises(DataError) as caught:
        tabular.split_indices(np.arange(30), "mine", 0)
    assert "the fewest are 1: " in line(caught)
    assert len(str(caught.value)) < 200


def test_missing_values_stay_missing():
    table = frame(when=pd.Series([pd.NaT] * ROWS), given=pd.array([1, pd.NA] * 30, dtype="Int64"))
    assert np.isnan(raw(table).values).sum(0).tolist() == [0, ROWS, ROWS // 2]
    table = frame()
    table.loc[0, "signal"] = np.nan
    found = tabular.data(raw(table), "mine", seed=0)
    parts = torch.cat([found.train.x, found.validation.x, found.test.x])
    assert parts.isnan().sum() == 1
