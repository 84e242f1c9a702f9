"""Official downloads: one test a source, of its smallest file; listed in docs/downloads.md.

``python -m pytest -m network tests/benchmarks/test_downloads.py`` downloads 2.1 GB, with WILDS 14 GB.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from benchmarks import registry, sources
from benchmarks.datasets import (
    arrhythmia,
    credit,
    cub,
    iwildcam_subset,
    iwildcam_wilds,
    kdd99,
    medmnist,
    qsar,
    shrutime,
)
from benchmarks.fetch import download
from benchmarks.generate.diffusion_weights import (
    IGNORED,
    INSTRUCT_PIX2PIX,
    PATTERNS,
    STABLE_DIFFUSION,
)
from benchmarks.models import resnet50
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
    "kaggle": Download(shrutime.CSV, "kaggle.com", "shrutime"),
    "tensorflow": Download(credit.CSV, "storage.googleapis.com", "credit"),
    "pytorch": Download(resnet50.WEIGHTS, "download.pytorch.org"),
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


@pytest.fixture
def hub(monkeypatch):
    """The hub's client, which other tests keep from the network (tests/conftest.py)."""
    huggingface_hub = pytest.importorskip("huggingface_hub")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    return huggingface_hub


@pytest.mark.network
@pytest.mark.timeout(HOUR)
@pytest.mark.parametrize("weights", [STABLE_DIFFUSION, INSTRUCT_PIX2PIX], ids=lambda w: w.folder)
def test_hugging_face_diffusion_has_the_pinned_revision_in_the_size_that_is_said(weights, hub):
    """Its list of files alone: the files are 4.3 GB each."""
    info = hub.HfApi().model_info(
        weights.repository, revision=weights.revision, files_metadata=True
    )
    sizes = {sibling.rfilename: sibling.size for sibling in info.siblings}
    wanted = hub.utils.filter_repo_objects(
        sizes, allow_patterns=list(PATTERNS), ignore_patterns=list(IGNORED)
    )
    assert sum(sizes[name] for name in wanted) / 1e9 == pytest.approx(weights.gigabytes, abs=0.1)


@pytest.mark.network
@pytest.mark.timeout(HOUR)
def test_hugging_face_clip_still_delivers_the_weights_in_the_size_that_is_said(hub, tmp_path):
    from open_clip import pretrained

    from benchmarks import weights

    wanted = pretrained.get_pretrained_cfg("ViT-B-16", "openai")
    path = Path(pretrained.download_pretrained(wanted, cache_dir=str(tmp_path)))
    assert path.stat().st_size == pytest.approx(weights.of("clip-vit-b16").size, rel=0.01)


@pytest.mark.parametrize("publisher", DOWNLOADS)
def test_only_the_publisher_is_asked_and_the_file_can_be_verified(publisher):
    """Offline: an address of the publisher's own is there, and a checksum to hold the file to."""
    wanted = DOWNLOADS[publisher]
    assert wanted.only.urls
    assert wanted.source.accepted


def test_the_page_lists_each_of_them_and_whether_it_was_ever_run():
    page = (ROOT / "docs" / "downloads.md").read_text(encoding="utf-8")
    listed = dict(re.findall(r"^\| `([a-z-]+)` \|.*\| ([^|]+) \|$", page, flags=re.MULTILINE))
    assert listed.keys() == {*DOWNLOADS, "wilds", "hugging-face-clip", "hugging-face-diffusion"}
    assert all(re.fullmatch(r"never run|\d{4}-\d{2}-\d{2}", when) for when in listed.values())
