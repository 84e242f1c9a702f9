"""WILDS' iWildCam, read by the unpatched `wilds` package from a folder fabricated in its format."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from fabricate import image_folders
from image_text_runs import spec
from open_clip import image_transform
from PIL import Image

from benchmarks import metrics, registry
from benchmarks.data import Split
from benchmarks.datasets import iwildcam_wilds
from benchmarks.datasets.crops import crop_box
from benchmarks.datasets.image_text import Pretraining, measure
from benchmarks.datasets.images_on_disk import ImageFiles
from benchmarks.errors import DataError
from benchmarks.train import Training

CLASSES, NAMES = 5, image_folders.WILDS_NAMES
PER_SPLIT = image_folders.WILDS_SPLITS


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A data folder with iwildcam_v2.0 and the English names, as published but small."""
    root = tmp_path_factory.mktemp("saflex-data")
    image_folders.wilds(root)
    return root


@pytest.fixture
def load(folder, tmp_path, monkeypatch):
    image_folders.accept_names(monkeypatch, folder)
    monkeypatch.setenv("SAFLEX_DATA", str(folder))
    monkeypatch.setenv("SAFLEX_HOME", str(tmp_path))
    return lambda **settings: registry.load("datasets", "iwildcam-wilds")(
        "iwildcam-wilds", seed=0, **settings
    )


def test_splits_are_those_of_wilds(load, folder):
    from wilds import get_dataset

    data = load()
    theirs = get_dataset("iwildcam", root_dir=str(folder / "iwildcam"), download=False)
    assert data.num_classes == theirs.n_classes == CLASSES
    for ours, name in iwildcam_wilds.SPLITS.items():
        split, subset = getattr(data, ours), theirs.get_subset(name)
        assert len(split) == PER_SPLIT[name] == len(subset)
        assert torch.equal(split.y, subset.y_array)
        for row in (0, len(subset) - 1):
            image, _, _ = subset[row]
            assert np.array_equal(np.asarray(Image.open(split.x.paths[row])), np.asarray(image))


def test_class_names_are_english_and_in_wilds_order(load):
    data = load()
    assert data.class_names == tuple(name.lower() for name in NAMES)
    assert data.captions()[2] == ["a photo of lowland paca.", "lowland paca in the wild."]


def test_metrics_equal_those_of_wilds_eval(load, folder):
    from wilds import get_dataset

    data = load()
    theirs = get_dataset("iwildcam", root_dir=str(folder / "iwildcam"), download=False)
    subset = theirs.get_subset("test")
    # Class 3 is predicted but never true: here scikit-learn's own macro-F1 is another number.
    keep = subset.y_array != 3
    y = subset.y_array[keep]
    logits = torch.randn(len(y), CLASSES, generator=torch.Generator().manual_seed(0))
    expected, _ = theirs.eval(logits.argmax(-1), y, subset.metadata_array[keep])
    for found in (data.evaluate(logits, y), measure(logits, y)):
        assert found["macro_f1"] == pytest.approx(expected["F1-macro_all"], abs=1e-7)
        assert found["accuracy"] == pytest.approx(expected["acc_avg"], abs=1e-6)
        assert found["balanced_accuracy"] == pytest.approx(expected["recall-macro_all"], abs=1e-7)
    assert metrics.evaluate(logits, y)["macro_f1"] < expected["F1-macro_all"] - 0.01


def test_evaluation_images_are_preprocessed_as_by_open_clip(load):
    data = load(side=28)
    image = data.test.x[torch.tensor([3])]
    assert image.shape == (1, 3, 28, 28)
    assert image.dtype == torch.uint8
    theirs = image_transform(28, is_train=False)(Image.open(data.test.x.paths[3]))
    torch.testing.assert_close(data.normalize(image)[0], theirs)
    assert torch.equal(data.test.x[2:5][1], image[0])


def test_training_crops_come_from_the_given_stream(load):
    data = load(side=28)
    index = torch.tensor([0, 5, 7])
    first, again, other = (
        data.training_images(data.train.x, index, torch.Generator().manual_seed(s))
        for s in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_crops_keep_nine_tenths_of_the_area_and_stay_inside():
    generator = torch.Generator().manual_seed(0)
    for _ in range(300):
        top, left, h, w = crop_box(60, 80, torch.rand(10, 4, generator=generator))
        assert 0 <= top <= 60 - h
        assert 0 <= left <= 80 - w
        assert 0.88 <= h * w / (60 * 80) <= 1
        assert 0.74 <= w / h <= 1.36


def test_a_whole_run_on_the_fabricated_folder(load):
    data, run = load(side=14), spec(refiner="saflex", upstream="wilds-randaugment", epochs=1)
    before = Split(data.train.x[:4], data.train.y[:4])
    data = replace(data, pretraining=Pretraining(before, ("a {}.",)))
    training = Training(run, data)
    training.run()
    assert training.steps == 2
    assert {"id_test/macro_f1", "ood_test/macro_f1", "val/macro_f1"} <= training.last.keys()


def test_training_and_validation_files_are_joined(load):
    data = load()
    both = torch.cat([data.train.x, data.validation.x])
    assert isinstance(both, ImageFiles)
    assert both.paths == data.train.x.paths + data.validation.x.paths


def test_moving_to_a_device_keeps_the_files(load):
    data = load().to("cpu")
    assert isinstance(data.train.x, ImageFiles)
    assert len(data.ood_test) == PER_SPLIT["test"]


def test_a_missing_folder_is_one_line_that_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setenv("SAFLEX_DATA", str(tmp_path))
    monkeypatch.setenv("SAFLEX_HOME", str(tmp_path))
    with pytest.raises(DataError, match=r"not at hand \(11\.96 GB\).*download=True") as error:
        registry.load("datasets", "iwildcam-wilds")("iwildcam-wilds", seed=0)
    assert "\n" not in str(error.value)


def test_too_few_names_are_noticed(load, folder):
    with pytest.raises(
        DataError, match=r"names 5 classes and iWildCam has 7: no name for \[5, 6\]"
    ):
        iwildcam_wilds.class_names(7)


@pytest.mark.data
def test_the_published_names_cover_the_182_classes(monkeypatch, tmp_path):
    monkeypatch.setenv("SAFLEX_HOME", str(tmp_path))
    names, _ = iwildcam_wilds.class_names(182)
    assert names[:2] == ("empty", "white-lipped peccary")
    assert len(names) == 182
