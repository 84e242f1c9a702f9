"""iWildCam subset: counts of the real split lists, crop and resize rules, seven classes."""

from __future__ import annotations

import csv
import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from fabricate import image_folders
from PIL import Image

from benchmarks import metrics
from benchmarks.datasets import iwildcam_subset
from benchmarks.errors import DataError

COUNTS = {"train": 6052, "validation": 2826, "test": 8483, "extra": 2224}


@pytest.fixture
def small(tmp_path, monkeypatch):
    """Four short lists and their images; the lists' checksums are those of the fabricated files."""
    data = tmp_path / "data"
    monkeypatch.setenv("SAFLEX_DATA", str(data))
    monkeypatch.setenv("SAFLEX_HOME", str(tmp_path / "home"))
    image_folders.install_subset(monkeypatch, data)
    return data


def test_images_and_labels_of_the_four_lists(small):
    data = iwildcam_subset.load("iwildcam-subset", seed=0)
    for split in (data.train, data.validation, data.test, data.extra):
        assert split.x.shape == (9, 3, 224, 224)
        assert split.x.dtype == torch.uint8
        assert split.y.tolist() == [n % 7 for n in range(9)]
    assert data.class_names[:3] == ("empty", "cattle", "elephants")


def test_inputs_are_in_0_1_without_imagenet_statistics(small):
    data = iwildcam_subset.load("iwildcam-subset", seed=0)
    assert torch.allclose(data.normalize(data.train.x), data.train.x.float() / 255)


def test_banner_rows_never_reach_the_network():
    """Rows 0-9 and 410-447 of the 448 carry the camera's banner; painted white, nothing turns white."""
    array = np.zeros((448, 600, 3), np.uint8)
    array[:8] = array[412:] = 255  # two rows of slack for the filter's support
    made = iwildcam_subset.prepare(Image.fromarray(array))
    assert made.shape == (3, 224, 224)
    assert made.max() <= 2


def test_aspect_is_not_kept_and_rows_10_to_410_fill_the_height():
    ramp = np.linspace(0, 255, 448)[:, None, None] * np.ones((1, 100, 3))
    made = iwildcam_subset.prepare(Image.fromarray(ramp.astype(np.uint8)))[0, :, 112]
    rows = 10 + (np.arange(224) + 0.5) * 400 / 224 - 0.5
    assert np.abs(made - rows * 255 / 447).max() < 2.5


def test_unknown_class_and_missing_images_are_named(small):
    victim = next((small / "iwildcam" / "iwildcam_v2.0" / "train").glob("test*.jpg"))
    victim.unlink()
    with pytest.raises(DataError, match=victim.name):
        iwildcam_subset.load("iwildcam-subset", seed=0)
    listed = small / "other.csv"
    image_folders.alia_list(listed, [("a.jpg", 99)])
    with pytest.raises(DataError, match="classes 99 are none of the seven"):
        iwildcam_subset._read(listed, small)


def test_altered_list_is_refused(small):
    path = small / iwildcam_subset.LISTS["train"].path
    path.write_text(path.read_text() + "train,1,0,x.jpg\n")
    with pytest.raises(DataError, match="truncated or altered"):
        iwildcam_subset.index()


def test_nothing_at_hand_says_how_big_it_is_and_where_it_goes(tmp_path, monkeypatch):
    monkeypatch.setenv("SAFLEX_DATA", str(tmp_path))
    with pytest.raises(DataError, match=r"wilds package.*11,957.4 MB"):
        iwildcam_subset.index()


@pytest.fixture
def real_lists(tmp_path, monkeypatch) -> Path:
    """The real split lists over fabricated images in WILDS' layout."""
    real = Path(os.environ["SAFLEX_DATA"])
    data = tmp_path / "data"
    names = []
    for source in iwildcam_subset.LISTS.values():
        target = data / source.path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes((real / source.path).read_bytes())
        with target.open(newline="") as stream:
            names += [row["filename"] for row in csv.DictReader(stream)]
    image_folders.iwildcam(data, names)
    monkeypatch.setenv("SAFLEX_DATA", str(data))
    monkeypatch.setenv("SAFLEX_HOME", str(tmp_path / "home"))
    return data


@pytest.mark.data
def test_real_lists_have_the_published_counts_and_no_image_twice(real_lists):
    index = iwildcam_subset.index()
    assert {name: len(own) for name, own in index.splits.items()} == COUNTS
    files = [f for own in index.splits.values() for f in own.files]
    assert len(set(files)) == sum(COUNTS.values())
    assert all(f.is_file() for f in files)
    # Camera-trap data: every class is everywhere, in very different numbers.
    assert Counter(index.splits["test"].labels)[3] == 4533
    assert all(len(set(own.labels)) == 7 for own in index.splits.values())


def test_metrics_of_the_subset_are_wilds_own():
    """Accuracy, macro recall and macro F1 as WILDS computes them for ALIA's subset."""
    from wilds.common.metrics.all_metrics import F1, Accuracy, Recall

    generator = torch.Generator().manual_seed(0)
    y = torch.randint(0, 7, (300,), generator=generator)
    logits = torch.randn(300, 7, generator=generator) + 2 * torch.nn.functional.one_hot(y, 7)
    own, predicted = metrics.evaluate(logits, y), logits.argmax(-1)
    for name, metric in (
        ("accuracy", Accuracy(prediction_fn=None)),
        ("balanced_accuracy", Recall(prediction_fn=None, average="macro")),
        ("macro_f1", F1(prediction_fn=None, average="macro")),
    ):
        theirs = metric.compute(predicted, y)[metric.agg_metric_field]
        assert own[name] == pytest.approx(theirs, abs=1e-6)
