"""Official downloads: one test a source, of its smallest file; listed in docs/downloads.md.

``python -m pytest -m network tests/benchmarks/test_downloads.py`` downloads 1.2 GB, with WILDS 13 GB.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from benchmarks import registry, sources
from benchmarks.datasets import (
    arrhythmia,
    cub,
    iwildcam_subset,
    iwildcam_wilds,
    kdd99,
    medmnist,
    qsar,
)
from benchmarks.fetch import download
from benchmarks.sources import Source

ROOT = Path(__file__).parents[2]
HOUR = 3600


@dataclass(frozen=True)
class Download:
    """The smallest file that a publisher has of ours, from its own server alone.

    Attributes
    ----------
    host : part of every address that may be asked; mirrors elsewhere are left out.
    dataset : loaded from the file afterwards; empty where the data set needs more than it.
    """

    source: Source
    host: str
    dataset: str = ""

    @property
    def only(self) -> Source:
        return replace(self.source, urls=tuple(u for u in self.source.urls if self.host in u))


DOWNLOADS = {
    "zenodo": Download(medmnist.source("organsmnist"), "zenodo.org", "organsmnist"),
    "openml-csv": Download(qsar.CSV, "openml.org", "qsar"),
    "openml-client": Download(qsar.ARFF, "openml:", "qsar"),
    "uci": Download(kdd99.GZIP, ".uci.edu", "kdd99"),
    "caltech": Download(cub.ARCHIVE, "caltech.edu", "cub"),
    "odds": Download(arrhythmia.MAT, "dropbox.com", "arrhythmia"),
    "github": Download(iwildcam_subset.LISTS["validation"], "githubusercontent.com"),
}


@pytest.fixture(autouse=True)
def nothing_at_hand(monkeypatch, tmp_path):
    monkeypatch.delenv("SAFLEX_DATA", raising=False)
    monkeypatch.setenv("SAFLEX_HOME", str(tmp_path / "home"))


@pytest.mark.network
@pytest.mark.timeout(HOUR)
@pytest.mark.parametrize("publisher", DOWNLOADS)
def test_the_publisher_still_delivers_the_file_unaltered(publisher):
    wanted = DOWNLOADS[publisher]
    path = download(wanted.only)
    assert sources.verify(wanted.source, path) in wanted.source.accepted
    if wanted.dataset:
        data = registry.load("datasets", wanted.dataset)(wanted.dataset, seed=0)
        assert len(data.train) > len(data.validation) > 0


@pytest.mark.network
@pytest.mark.slow
@pytest.mark.timeout(6 * HOUR)
def test_wilds_still_delivers_iwildcam():
    """Through the `wilds` package, as the loader's own message says: 11.96 GB, its only archive."""
    from wilds import get_dataset

    root = sources.raw_path(iwildcam_wilds.IMAGES).parents[1]
    get_dataset("iwildcam", root_dir=str(root), download=True)
    download(iwildcam_wilds.LABELS)
    data = registry.load("datasets", "iwildcam-wilds")("iwildcam-wilds", seed=0)
    assert (len(data.train), len(data.validation)) == (129_809, 7_314)


@pytest.mark.parametrize("publisher", DOWNLOADS)
def test_only_the_publisher_is_asked_and_the_file_can_be_verified(publisher):
    """Offline: an address of the publisher's own is there, and a checksum to hold the file to."""
    wanted = DOWNLOADS[publisher]
    assert wanted.only.urls
    assert wanted.source.accepted


def test_the_page_lists_each_of_them_and_whether_it_was_ever_run():
    page = (ROOT / "docs" / "downloads.md").read_text(encoding="utf-8")
    listed = dict(re.findall(r"^\| `([a-z-]+)` \|.*\| ([^|]+) \|$", page, flags=re.MULTILINE))
    assert listed.keys() == {*DOWNLOADS, "wilds"}
    assert all(re.fullmatch(r"never run|\d{4}-\d{2}-\d{2}", when) for when in listed.values())
