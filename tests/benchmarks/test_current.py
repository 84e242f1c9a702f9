"""What is current: settings, protocol, source and data, and which records a table may average."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from small_runs import spec

from benchmarks import sources
from benchmarks.datasets import image_files, medmnist
from benchmarks.datasets.image_files import ImageList, Index
from benchmarks.record import PROTOCOL, Record
from benchmarks.running import current, data_hash
from benchmarks.running.current import OLD_PROTOCOL, OTHER_DATA, SETTINGS, SOURCE, Present
from benchmarks.running.source_hash import source_hash
from benchmarks.sources import Source
from benchmarks.spec import Component

PLAN = [spec(dataset="breast-cancer", seed=seed) for seed in range(4)]
OTHER_ROW = [spec(dataset="breast-cancer", refiner="saflex", seed=seed) for seed in range(2)]


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("SAFLEX_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("SAFLEX_DATA", str(tmp_path / "data"))
    return tmp_path / "home"


def record(run, *, data="A", source=None, protocol=PROTOCOL, finished="2026-01-01") -> Record:
    return Record(
        protocol=protocol,
        key=run.key,
        status="complete",
        spec=run,
        data={"content": {"data": data}},
        source=source or source_hash(run),
        finished=finished,
    )


def on(data: str | None) -> Present:
    """The present source, and data of this content at hand; None: none."""
    return Present(lambda spec: {"data": data} if data else {})


# The test -------------------------------------------------------------------------------------------


def test_each_of_the_four_makes_a_record_outdated_and_nothing_else_does():
    run = PLAN[0]
    assert on("A").outdated(record(run), run) == ""
    assert on("A").outdated(record(run, finished="2020"), run) == ""
    assert on("A").outdated(record(PLAN[1]), run) == SETTINGS
    assert on("A").outdated(record(run, protocol=1), run) == OLD_PROTOCOL
    assert on("A").outdated(record(run, source="another"), run) == SOURCE
    assert on("B").outdated(record(run), run) == OTHER_DATA


def test_without_the_data_the_records_own_hash_stands():
    assert on(None).outdated(record(PLAN[0], data="whatever"), PLAN[0]) == ""


# Which records a table uses -------------------------------------------------------------------------


def used(chosen: current.Chosen) -> list[tuple[str, int]]:
    return sorted((r.spec.row, r.spec.seed) for r in chosen.records)


def test_of_two_sources_in_a_cell_the_present_one_is_used_however_old():
    found = [record(run) for run in PLAN[:1]]
    found += [record(run, source="another", finished="2030") for run in PLAN[1:]]
    chosen = current.choose(found, PLAN, on("A"))
    assert used(chosen) == [("uniform", 0)]
    assert chosen.left_out["test"] == {SOURCE: 3}
    assert not chosen.outdated["test"]


def test_where_no_source_is_present_the_newest_is_used_and_said():
    found = [record(run, source="old") for run in PLAN[:3]]
    found += [record(PLAN[3], source="older", finished="2025")]
    chosen = current.choose(found, PLAN, on("A"))
    assert used(chosen) == [("uniform", 0), ("uniform", 1), ("uniform", 2)]
    assert chosen.outdated["test"] == {SOURCE: 3}
    assert chosen.left_out["test"] == {SOURCE: 1}


@pytest.mark.parametrize(("present", "expected"), [("A", 4), ("B", 2), ("C", 2), (None, 2)])
def test_no_column_compares_rows_on_two_data(present, expected):
    """One row was redone on B, which is newer; the other row still stands on A."""
    found = [record(run, data="A", finished="2025") for run in PLAN]
    found += [record(run, data="B", finished="2026") for run in OTHER_ROW]
    chosen = current.choose(found, [*PLAN, *OTHER_ROW], on(present))
    assert len(chosen.records) == expected
    assert len({r.content["data"] for r in chosen.records}) == 1
    assert chosen.left_out["test"] == {OTHER_DATA: 6 - expected}
    assert chosen.outdated["test"] == ({OTHER_DATA: 2} if present == "C" else {})


# The content of data --------------------------------------------------------------------------------


def put(folder, text: bytes) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "x.csv").write_bytes(text)


def test_declared_files_count_by_their_bytes_wherever_they_lie(tmp_path, monkeypatch):
    needed = [(Source(name="x", path="x.csv"),)]
    assert sources.content(needed) is None
    put(tmp_path / "data", b"one")
    one = sources.content(needed)
    put(tmp_path / "data", b"two")
    assert sources.content(needed) != one, "of the same size, a moment later"
    put(tmp_path / "elsewhere", b"one")
    monkeypatch.setenv("SAFLEX_DATA", str(tmp_path / "elsewhere"))
    assert sources.content(needed) == one


def test_other_line_ends_of_a_known_file_are_the_same_data(tmp_path):
    put(tmp_path / "data", b"a\n")
    unix = sources.checksum(tmp_path / "data/x.csv", "md5")
    put(tmp_path / "data", b"a\r\n")
    windows = sources.checksum(tmp_path / "data/x.csv", "md5")
    needed = [(Source(name="x", path="x.csv", checksum=unix, also=(windows,)),)]
    found = sources.content(needed)
    put(tmp_path / "data", b"a\n")
    assert sources.content(needed) == found


def test_the_file_of_an_image_size_is_its_own():
    assert [s.path for (s,) in sources.files("bloodmnist", size=64)] == [
        "medmnist/bloodmnist_64.npz"
    ]
    assert sources.files("bloodmnist", limit=9) == sources.files("bloodmnist")
    assert medmnist.source("bloodmnist").path == "medmnist/bloodmnist.npz"


def test_of_folders_of_images_each_file_each_label_and_each_name_counts(tmp_path):
    put(tmp_path, b"pixels")

    def content(label=0, name="bird"):
        listed = ImageList((tmp_path / "x.csv",), (label,))
        index = Index(name="i", root=tmp_path, splits={"train": listed}, class_names=(name,))
        return image_files.content(index)

    first = content()
    assert content() == first
    assert len({first, content(label=1), content(name="cat")}) == 3
    put(tmp_path, b"other pixels")
    assert content() != first


OWN = """
import os
import numpy as np, torch
from benchmarks.data import Data, Split

def load(name, *, seed, classes=2):
    rows = np.loadtxt(os.environ["OWN_FILE"], delimiter=",")
    x, y = torch.tensor(rows[:, 1:]).float(), torch.tensor(rows[:, 0]).long()
    split = Split(x.roll(seed, 0), y.roll(seed, 0))
    return Data(name=name, train=split, validation=split, test=split, num_classes=2, kind="tabular")
"""


def test_a_users_set_that_declares_nothing_is_hashed_by_what_it_loads_and_watched(
    tmp_path, monkeypatch
):
    file, module = tmp_path / "own.csv", {}
    monkeypatch.setenv("OWN_FILE", str(file))
    exec(OWN, module)
    run = spec(dataset="breast-cancer").model_copy(update={"seed": 3})  # it declares nothing either

    def loaded() -> dict[str, str]:
        return data_hash.load(run, module["load"]).content

    file.write_text("0,1.5\n1,2.5\n")
    assert data_hash.data_hash(run) == {}, "never loaded here: nothing is known"
    first = loaded()
    assert data_hash.data_hash(run) == first
    file.write_text("0,1.5\n1,3.5\n")
    assert data_hash.data_hash(run) == {"data": data_hash.CHANGED}
    assert loaded() != first
    file.write_text("0,1.50\n1,2.5\n")
    assert loaded() == first, "other bytes, the same numbers"


def test_the_content_does_not_depend_on_the_seed(home):
    contents = [
        json.dumps(data_hash.ensure_known(spec(dataset="digits", seed=seed))) for seed in (0, 1)
    ]
    assert contents[0] == contents[1]
    assert list((home / "loaded").glob("*.json"))
    component = Component(name="digits", settings={"label_noise": 0.4})
    assert not data_hash.declared(component)


def test_asking_needs_no_torch():
    code = (
        "import sys; from benchmarks import suite; from benchmarks.running import markers, overview;"
        "from benchmarks.running.current import Present; here = Present();"
        "[here.content(x) for s in ('demo', 'cpu', 'paper') for x in suite.plan(suite.load(s))];"
        "print(sorted({'torch', 'pandas', 'sklearn', 'mlflow'} & set(sys.modules)))"
    )
    answer = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert answer.stdout.strip() == "[]"
