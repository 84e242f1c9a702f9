"""Files without a known checksum are "not verified" everywhere; what is obviously no data is named."""

from __future__ import annotations

import gzip
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from reports import BY_HAND, report
from typer.testing import CliRunner

from benchmarks import sources
from benchmarks import suite as suites
from benchmarks.__main__ import app
from benchmarks.datasets import appetency, click, cub, iwildcam_wilds, medmnist, volkert
from benchmarks.errors import BenchmarkError, DataError
from benchmarks.fetch import fetch
from benchmarks.forecast import doctor
from benchmarks.generate import diffusion_weights
from benchmarks.running import data_hash
from benchmarks.sources import Source
from benchmarks.spec import Component

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
from fabricate import image_folders

ARFF = b"@relation v\n@attribute class {0,1}\n@attribute V1 real\n@data\n" + b"0,1\n1,2\n" * 20
PAGE = b"\n<!doctype html><html><title>Sign in</title></html>"
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n"


@pytest.fixture(autouse=True)
def data(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("SAFLEX_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("SAFLEX_DATA", str(tmp_path / "data"))
    return tmp_path / "data"


def put(data: Path, source: Source, content: bytes) -> Path:
    path = data / source.path
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def suite(tmp_path: Path, dataset: str) -> suites.Suite:
    path = tmp_path / "s.yaml"
    table = {"metric": "accuracy", "datasets": [dataset], "backbones": ["mlp"], "rows": ["none"]}
    table["recipe"] = {"epochs": 1}
    path.write_text(yaml.safe_dump({"suite": "s", "seeds": 1, "tables": {"t1": table}}))
    return suites.load(str(path))


@report(
    BY_HAND,
    "a file of which no checksum is known, put there by hand (Volkert, Click's ARFF, Appetency)",
    "`fetch` and `doctor` say at hand, not verified, and since when it is trusted",
)
def test_a_file_without_a_checksum_is_not_verified(data, tmp_path, capsys):
    path = put(data, volkert.ARFF, ARFF)
    assert fetch(["volkert"]) == [path]
    said = capsys.readouterr().out
    assert "is at hand, not verified, no checksum of the published file is known (md5:" in said
    assert "trusted since its first use, 20" in said
    (found,) = doctor.data(suite(tmp_path, "volkert"))
    assert found.level == "note"
    assert "not verified" in found.text
    for source in (click.ARFF, appetency.COMPLETE):
        put(data, source, ARFF)
        assert not sources.locate_any((source,)).verified


@report(
    BY_HAND,
    "such a file is replaced after its first use",
    "said with both checksums; its records are stale",
)
def test_a_change_after_the_first_use_is_said(data, capsys):
    path = put(data, volkert.ARFF, ARFF)
    first = sources.locate(volkert.ARFF) and sources.content([(volkert.ARFF,)])
    old = sources.checksum(path, "md5")
    path.write_bytes(ARFF + b"0,3\n")
    fetch(["volkert"])
    assert "CHANGED since its first use, 20" in (said := capsys.readouterr().out)
    assert old in said
    assert sources.content([(volkert.ARFF,)]) != first


@pytest.mark.parametrize("place", ["data", "home"])
@report(
    BY_HAND,
    "a file whose publisher's checksum is known from a download, or a copy of it elsewhere",
    "at hand and verified; refused when it is altered",
)
def test_a_checksum_once_known_verifies(data, tmp_path, capsys, place):
    path = put(data, volkert.ARFF, ARFF)
    beside = path if place == "data" else sources.raw_path(volkert.ARFF)
    beside.parent.mkdir(parents=True, exist_ok=True)
    Path(f"{beside}.checksum").write_text(sources.checksum(path, "md5") + "\n")
    fetch(["volkert"])
    assert "is at hand and verified (md5:" in capsys.readouterr().out
    path.write_bytes(ARFF + b"0,3\n")
    with pytest.raises(DataError, match="is truncated or altered: expected md5:"):
        fetch(["volkert"])


@report(
    BY_HAND,
    "a `.checksum` beside a file as md5sum and sha256sum write it",
    "read: the file is verified by it, or refused",
)
def test_a_checksum_as_md5sum_writes_it(data):
    path = put(data, volkert.ARFF, ARFF)
    beside = Path(f"{path}.checksum")
    for algorithm in ("md5", "sha1", "sha256", "sha512"):
        found = sources.checksum(path, algorithm)
        for written in (found, found.upper(), f"{found.partition(':')[2]}  {path.name}\n"):
            beside.write_text(written)
            assert sources.locate_any((volkert.ARFF,)).standing == f"verified ({found})"
    beside.write_text("0" * 32 + f" *{path.name}\n")
    with pytest.raises(DataError, match="is truncated or altered: expected md5:000"):
        sources.locate(volkert.ARFF)


@pytest.mark.parametrize(
    "content",
    [b"crc32:1a2b3c4d", b"md5:12", b"\xff\x00\xfe", b"", b"<html>", b"sha256:" + b"0" * 32],
)
@report(
    BY_HAND,
    "a `.checksum` beside a file that is none: `crc32:...`, cut short, binary, empty",
    "one line with its path from `fetch`, `doctor` and `run`",
)
def test_what_is_no_checksum(data, tmp_path, content):
    path = put(data, volkert.ARFF, ARFF)
    Path(f"{path}.checksum").write_bytes(content)
    with pytest.raises(DataError) as caught:
        fetch(["volkert"])
    assert str(caught.value).startswith(
        f"volkert: {path}.checksum holds no checksum: expected md5:"
    )
    assert len(str(caught.value).splitlines()) == 1
    (found,) = doctor.data(suite(tmp_path, "volkert"))
    assert (found.level, "holds no checksum" in found.text) == ("missing", True)
    assert data_hash.of_data_set(Component(name="volkert")) is None  # the loader says why


def test_a_source_of_an_unknown_algorithm_is_refused():
    with pytest.raises(DataError, match="'crc32:0' of A file: expected md5:"):
        Source(name="A file", path="x", checksum="crc32:0")


@report(
    BY_HAND,
    "SAFLEX_DATA names a folder that is not there, or a file",
    "one line with the variable; every set had been missing, and fetched anew",
)
def test_a_data_folder_that_is_not_there(data, monkeypatch):
    with pytest.raises(
        BenchmarkError, match=f"variable SAFLEX_DATA names {data}, which is no folder"
    ):
        sources.settle_variables()
    data.mkdir()
    sources.settle_variables()
    monkeypatch.setenv("SAFLEX_DATA", "")
    sources.settle_variables()


@pytest.mark.parametrize("source", [volkert.ARFF, click.ARFF, appetency.COMPLETE])
@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty"),
        (PAGE, "is a web page (a sign-in or an error)"),
        (b"\xef\xbb\xbf<?xml version='1.0'?><Error/>", "is a web page"),
        (POINTER, "is a Git-LFS pointer"),
        (b'{"error": "no such dataset"}', "is no .arff file (it begins with"),
    ],
)
@report(
    "openml-r 135",
    "a web page, an empty file, a Git-LFS pointer, an error in JSON in place of an ARFF file",
    "named as what it is by `fetch`, `doctor` and `run`; nothing is prepared",
)
def test_what_is_no_data_is_named(data, source, content, said):
    path = put(data, source, content)
    with pytest.raises(DataError) as caught:
        sources.locate(source)
    assert f"{path} {said}" in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
    assert not (sources.home() / "trusted").exists()


def test_the_verbs_say_it_in_one_line(data, tmp_path):
    put(data, volkert.ARFF, PAGE)
    result = CliRunner().invoke(app, ["fetch", "-d", "volkert"])
    assert isinstance(result.exception, DataError)  # printed as one line by `main`, status 2
    (found,) = doctor.data(suite(tmp_path, "volkert"))
    assert (found.level, "is a web page" in found.text) == ("missing", True)


@report(
    "MedMNIST 39",
    "an .npz file cut short, and a web page in its place",
    "refused before it is read: truncated or altered, a web page, with both checksums",
)
def test_a_medmnist_file_cut_short(data):
    source = medmnist.source("bloodmnist", 28)
    path = put(data, source, b"PK\x03\x04" + b"x" * 100)
    with pytest.raises(DataError, match=r"is truncated or altered .* expected md5:"):
        medmnist.load("bloodmnist", seed=0)
    path.write_bytes(PAGE)
    with pytest.raises(DataError, match=r"altered .*, it is a web page .* expected md5:"):
        medmnist.load("bloodmnist", seed=0)


@report(BY_HAND, "a gzip file that is none", "named by its first bytes")
def test_a_gzip_file_that_is_none(data):
    source = Source(name="A file", path="x.csv.gz")
    put(data, source, b"a,b\n1,2\n")
    with pytest.raises(DataError, match=r"is no \.gz file"):
        sources.locate(source)
    put(data, source, gzip.compress(b"a,b\n1,2\n"))
    assert not sources.locate_any((source,)).verified


@pytest.mark.parametrize("content", [b"", PAGE, POINTER])
@pytest.mark.parametrize("name", ["images.txt", "image_class_labels.txt", "classes.txt"])
@report(
    BY_HAND, "a web page, nothing or a Git-LFS pointer as one of CUB's index files", "named as such"
)
def test_index_files_of_cub(data, content, name):
    root = image_folders.cub(data)
    (root / name).write_bytes(content)
    with pytest.raises(DataError, match=rf"{name} is (empty|a web page|a Git-LFS pointer)"):
        cub.index()


@report(
    BY_HAND,
    "CUB's index files with a byte-order mark; a label that is no class; an image without a split",
    "read like without; refused with file and image",
)
def test_values_of_index_files(data):
    root = image_folders.cub(data)
    expected = cub.index()
    for path in root.glob("*.txt"):
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert cub.index() == expected
    labels = root / "image_class_labels.txt"
    kept = labels.read_text(encoding="utf-8-sig")
    labels.write_text(kept.replace("1 1\n", "1 x\n", 1))
    with pytest.raises(DataError, match=r"image_class_labels\.txt: image 1 has class 'x'"):
        cub.index()
    labels.write_text(kept)
    split = root / "train_test_split.txt"
    split.write_text("".join(split.read_text(encoding="utf-8-sig").splitlines(True)[:-1]))
    with pytest.raises(DataError, match=r"train_test_split\.txt: image 33 has no line"):
        cub.index()


@pytest.mark.parametrize("content", [b"", PAGE, POINTER])
@report(
    BY_HAND,
    "WILDS' release file or list of images is empty, a web page or a pointer",
    "named as such",
)
def test_files_of_wilds(data, content):
    path = put(data, iwildcam_wilds.IMAGES, content)
    with pytest.raises(DataError, match=r"RELEASE_v2\.0\.txt is (empty|a web page|a Git-LFS)"):
        iwildcam_wilds.find_root()
    path.write_text("2.0\n")
    assert iwildcam_wilds.find_root() == path.parents[1]
    with pytest.raises(DataError, match=r"metadata\.csv is missing"):
        sources.index_file(path.with_name("metadata.csv"))


@report(
    BY_HAND,
    "diffusion weights cloned without Git LFS",
    "the pointer is named before anything is generated",
)
def test_weights_that_are_pointers(tmp_path):
    weights = tmp_path / "unet" / "model.safetensors"
    weights.parent.mkdir()
    weights.write_bytes(POINTER)
    with pytest.raises(DataError, match=r"model\.safetensors is a Git-LFS pointer"):
        diffusion_weights.digest(tmp_path)


@report(
    BY_HAND,
    "the lists of images and class names of iWildCam with a byte-order mark",
    "read like without",
)
def test_lists_with_a_mark(data, monkeypatch):
    monkeypatch.setattr(
        iwildcam_wilds, "LABELS", replace(iwildcam_wilds.LABELS, checksum="", also=())
    )
    put(data, iwildcam_wilds.LABELS, b"\xef\xbb\xbfy,english\n0,Empty\n1,Cow\n")
    assert iwildcam_wilds.class_names(2)[0] == ("empty", "cow")
