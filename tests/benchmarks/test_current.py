"""What is current: settings, protocol, source and data, and which records a table may average."""

from __future__ import annotations

import subprocess
import sys

import pytest
from small_runs import spec

from benchmarks import record as records
from benchmarks import registry, sources
from benchmarks.datasets import image_files, medmnist
from benchmarks.datasets.image_files import ImageList, Index
from benchmarks.record import PROTOCOL, Record
from benchmarks.running import current, data_hash, markers
from benchmarks.running import source_hash as source_hash_module
from benchmarks.running.current import OLD_PROTOCOL, OTHER_DATA, SETTINGS, SOURCE, Present
from benchmarks.running.source_hash import source_hash
from benchmarks.sources import Source

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


@pytest.mark.parametrize(("present", "expected"), [("old", 4), ("new", 2), ("third", 2), (None, 2)])
def test_no_two_rows_of_an_upstream_are_compared_on_two_sets_of_images(present, expected):
    """One row was redone on the newer set; a row of another upstream has no part in it."""

    def made(run, images, finished):
        content = {"content": {"data": "A", **({"images": images} if images else {})}}
        return record(run, finished=finished).model_copy(update={"data": content})

    plain = [spec(dataset="breast-cancer", row="none", upstream="none")]
    found = [made(run, "old", "2025") for run in PLAN] + [made(plain[0], None, "2024")]
    found += [made(run, "new", "2026") for run in OTHER_ROW]
    here = {"data": "A", **({"images": present} if present else {})}
    at_hand = Present(lambda run: here if run.upstream != "none" else {"data": "A"})
    chosen = current.choose(found, [*PLAN, *OTHER_ROW, *plain], at_hand)
    assert len(chosen.records) == expected + 1
    assert len({r.content["images"] for r in chosen.records if "images" in r.content}) == 1
    assert chosen.left_out["test"] == {OTHER_DATA: 6 - expected}
    assert chosen.outdated["test"] == ({OTHER_DATA: 2} if present == "third" else {})


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
from benchmarks.registry import register

@register("own-set")
def load(name, *, seed, classes=2):
    rows = np.loadtxt(os.environ["OWN_FILE"], delimiter=",")
    x, y = torch.tensor(rows[:, 1:]).float(), torch.tensor(rows[:, 0]).long()
    split = Split(x.roll(seed, 0), y.roll(seed, 0))
    return Data(name=name, train=split, validation=split, test=split, num_classes=2, kind="tabular")
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A user's set that declares no files; its run, and the file that it reads."""
    (tmp_path / "own_set.py").write_text(OWN)
    (name,) = registry.add("datasets", tmp_path / "own_set.py")
    path_of = source_hash_module._path  # as if the file lay in benchmarks/datasets/
    monkeypatch.setattr(
        source_hash_module,
        "_path",
        lambda module: tmp_path / "own_set.py" if module.endswith(".own_set") else path_of(module),
    )
    file = tmp_path / "own.csv"
    file.write_text("0,1.5\n1,2.5\n")
    monkeypatch.setenv("OWN_FILE", str(file))
    yield spec(dataset=name, seed=3), file
    sys.modules.pop(registry.modules("datasets").pop(name))


def test_a_users_set_that_declares_nothing_is_hashed_by_what_it_loads_and_watched(own):
    run, file = own
    first = data_hash.data_hash(run)
    assert data_hash.load(run, registry.load("datasets", "own-set")).content == first
    file.write_text("0,1.5\n1,3.5\n")
    assert data_hash.data_hash(run) != first
    file.write_text("0,1.50\n1,2.5\n")
    assert data_hash.data_hash(run) == first, "other bytes, the same numbers"
    file.unlink()
    assert data_hash.data_hash(run) == {}, "not at hand"


def test_a_set_that_declares_nothing_is_loaded_once(own, monkeypatch):
    run, _ = own
    first = data_hash.data_hash(run)
    monkeypatch.setattr(registry, "load", lambda *names: pytest.fail("loaded again"))
    assert data_hash.data_hash(run) == first


@pytest.mark.parametrize("at_hand", [True, False])
@pytest.mark.parametrize("dataset", ["digits", "digits-images", "own-set"])
@pytest.mark.parametrize("same", [True, False])
def test_whoever_asks_is_told_the_same_of_sets_that_were_never_loaded_here(
    dataset, same, at_hand, own, tmp_path, monkeypatch
):
    run = spec(dataset=dataset)
    here = data_hash.data_hash(run)["data"]
    expected = "" if same else OTHER_DATA
    if not at_hand and dataset == "own-set":
        own[1].unlink()
        expected = ""  # the record's own hash stands
    made = record(run, data=here if same else "0123456789abcdef")

    records.write(tmp_path, made)
    markers.write(tmp_path, run.bundle, [made])
    askers = {
        "plan": lambda: Present().outdated(made, run),
        "run": lambda: "" if current.up_to_date(run, tmp_path) else OTHER_DATA,
        "tables": lambda: "".join(current.choose([made], [run]).outdated["test"]),
        "Snakemake": lambda: "".join(
            markers.set_outdated_aside(tmp_path, {run.bundle: [run]}).values()
        ),
    }
    for name, ask in askers.items():  # each with nothing known yet
        monkeypatch.setenv("SAFLEX_HOME", str(tmp_path / name))
        assert ask() == expected, name


def test_the_content_does_not_depend_on_the_seed(own, home):
    run, _ = own
    found = [data_hash.data_hash(run.model_copy(update={"seed": seed})) for seed in (0, 1)]
    assert found[0] == found[1]
    assert list((home / "loaded").glob("*.json"))
    assert not data_hash.declared(run.settings.dataset)


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
