"""MedMNIST files: official counts, checksums before use, a seeded part of the training set."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import registry, sources
from benchmarks.datasets import medmnist
from benchmarks.errors import BenchmarkError, DataError

# The protocol's list: training, validation and test images, classes, channels.
OFFICIAL = {
    "pathmnist": (89_996, 10_004, 7_180, 9, 3),
    "dermamnist": (7_007, 1_003, 2_005, 7, 3),
    "tissuemnist": (165_466, 23_640, 47_280, 8, 1),
    "bloodmnist": (11_959, 1_712, 3_421, 8, 3),
    "octmnist": (97_477, 10_832, 1_000, 4, 1),
    "organamnist": (34_561, 6_491, 17_778, 11, 1),
    "organcmnist": (12_975, 2_392, 8_216, 11, 1),
    "organsmnist": (13_932, 2_452, 8_827, 11, 1),
}
NOT_AT_HAND = sorted(OFFICIAL.keys() - {"bloodmnist", "organamnist"})


def arrays(name: str, *, rng: np.random.Generator | None = None) -> dict[str, np.ndarray]:
    """A file's content in the official form; without `rng` the pixels are black."""
    *counts, classes, channels = OFFICIAL[name]
    content = {}
    for key, count in zip(("train", "val", "test"), counts, strict=True):
        shape = (count, 28, 28, *((3,) if channels == 3 else ()))
        content[f"{key}_images"] = np.zeros(shape, np.uint8)
        if rng is not None:
            content[f"{key}_images"][:] = rng.integers(0, 256, shape, dtype=np.uint8)
        content[f"{key}_labels"] = (np.arange(count) % classes).astype(np.uint8)[:, None]
    return content


@pytest.fixture
def place(tmp_path, monkeypatch):
    """Write a file where SAFLEX_DATA looks, and accept its checksum unless told otherwise."""
    monkeypatch.setenv("SAFLEX_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("SAFLEX_HOME", str(tmp_path / "home"))
    official = medmnist.source

    def write(name: str, content: dict[str, np.ndarray], *, accept: bool = True) -> Path:
        path = tmp_path / "data" / official(name).path
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez_compressed(path, **content)
        if accept:
            md5 = f"md5:{hashlib.md5(path.read_bytes()).hexdigest()}"
            monkeypatch.setattr(
                medmnist, "source", lambda *given: replace(official(*given), checksum=md5)
            )
        return path

    return write


def load(name: str, **settings):
    return registry.load("datasets", name)(name, seed=settings.pop("seed", 0), **settings)


def test_the_eight_sets_are_registered_with_official_counts():
    assert set(medmnist.NAMES) == OFFICIAL.keys()
    for name, (train, validation, test, classes, channels) in OFFICIAL.items():
        registry.check("datasets", name)
        about = medmnist.info(name)
        assert about["n_samples"] == {"train": train, "val": validation, "test": test}
        assert (len(about["label"]), about["n_channels"]) == (classes, channels)


@pytest.mark.parametrize("name", NOT_AT_HAND)
def test_a_file_of_the_official_form_becomes_three_splits(name, place):
    content = arrays(name)
    content["test_images"][0, 3, 5] = (10, 20, 30) if OFFICIAL[name][4] == 3 else 77
    place(name, content)
    data = load(name)
    *counts, classes, channels = OFFICIAL[name]
    assert [len(data.train), len(data.validation), len(data.test)] == counts
    assert data.train.x.shape[1:] == (3, 28, 28)
    assert data.train.x.dtype == torch.uint8
    assert data.train.y.dtype == torch.int64
    assert (data.num_classes, len(data.class_names)) == (classes, classes)
    assert data.mirrors == (not name.startswith("organ"))  # kidney-left is no kidney-right
    assert data.test.x[0, :, 3, 5].tolist() == ([10, 20, 30] if channels == 3 else [77] * 3)
    assert torch.equal(data.test.y, torch.arange(counts[2]) % classes)


def test_normalisation_is_the_source_recipes():
    x = torch.arange(256, dtype=torch.uint8)
    expected = (x.double() / 255 - 0.5) / 0.5
    normal = load_digits().normalize(x)
    assert normal.dtype == torch.float32
    assert torch.allclose(normal.double(), expected, atol=1e-6)


def test_an_altered_file_is_refused_before_it_is_read(place):
    place("dermamnist", arrays("dermamnist"), accept=False)
    with pytest.raises(DataError, match="truncated or altered"):
        load("dermamnist")


def test_a_file_with_other_counts_is_refused(place):
    content = arrays("dermamnist")
    content["val_images"] = content["val_images"][:-1]
    place("dermamnist", content)
    with pytest.raises(DataError, match=r"val images are uint8 \(1002, 28, 28, 3\)"):
        load("dermamnist")


def test_a_file_without_a_split_is_refused(place):
    content = arrays("dermamnist")
    del content["test_labels"]
    place("dermamnist", content)
    with pytest.raises(DataError, match="test_labels"):
        load("dermamnist")


def test_a_label_beyond_the_classes_is_refused(place):
    content = arrays("dermamnist")
    content["train_labels"][5] = 7
    place("dermamnist", content)
    with pytest.raises(DataError, match="label 7, but dermamnist has 7 classes"):
        load("dermamnist")


def test_pickled_content_is_never_executed(place):
    class Trap:
        def __reduce__(self):
            return pytest.fail, ("unpickled",)

    content = arrays("dermamnist")
    content["train_labels"] = np.array([Trap()], dtype=object)
    place("dermamnist", content)
    with pytest.raises(DataError, match="not a MedMNIST file"):
        load("dermamnist")


def test_a_missing_file_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setenv("SAFLEX_DATA", str(tmp_path))
    monkeypatch.setenv("SAFLEX_HOME", str(tmp_path / "home"))
    with pytest.raises(DataError, match=r"fetch --dataset octmnist.*zenodo.org"):
        load("octmnist")


@pytest.mark.parametrize("size", [64, 128, 224])
def test_larger_images_are_files_of_their_own(size):
    source = medmnist.source("pathmnist", size)
    assert source.path == f"medmnist/pathmnist_{size}.npz"
    assert source.checksum == "md5:" + medmnist.info("pathmnist")[f"MD5_{size}"]
    assert f"_{size}.npz" in source.urls[0]


def test_an_image_size_that_medmnist_lacks_is_refused():
    with pytest.raises(BenchmarkError, match="not 32"):
        load("pathmnist", size=32)


def test_sources_are_listed_without_torch():
    code = (
        "import sys; from benchmarks import sources; found = sources.of('pathmnist')[0];"
        "assert found.checksum.startswith('md5:'), found; assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    assert len(sources.of("organsmnist")) == 1


def test_a_part_of_the_training_set_is_drawn_by_seed_and_class_proportion(place):
    place("dermamnist", arrays("dermamnist", rng=np.random.default_rng(0)))
    one, again, other = (
        load("dermamnist", seed=seed, limit=700, validation_limit=70) for seed in (0, 0, 1)
    )
    assert torch.equal(one.train.x, again.train.x)
    assert not torch.equal(one.train.x, other.train.x)
    assert torch.bincount(one.train.y).tolist() == [100] * 7
    assert torch.bincount(one.validation.y).tolist() == [10] * 7
    assert len(one.test) == 2_005
    assert "700 of the 7,007 train images" in one.notes[0]


def test_label_noise_spoils_the_stated_share_of_training_labels_alone(place):
    place("dermamnist", arrays("dermamnist"))
    clean, noisy = load("dermamnist"), load("dermamnist", label_noise=0.4)
    assert (clean.train.y != noisy.train.y).sum() == round(0.4 * 7_007)
    assert noisy.train.y.max() < 7
    assert torch.equal(clean.validation.y, noisy.validation.y)
    assert torch.equal(clean.test.y, noisy.test.y)
    with pytest.raises(BenchmarkError, match=r"\[0, 1\], not 40"):
        load("dermamnist", label_noise=40)


@pytest.mark.data
@pytest.mark.parametrize("name", ["bloodmnist", "organamnist"])
def test_the_real_files_are_the_official_ones(name):
    data = load(name)
    *counts, classes, channels = OFFICIAL[name]
    assert [len(data.train), len(data.validation), len(data.test)] == counts
    assert set(data.train.y.tolist()) == set(range(classes))
    grey = torch.equal(data.test.x[:, 0], data.test.x[:, 1])
    assert grey == (channels == 1)
    assert data.test.x.float().std() > 20


def load_digits(**settings):
    return load("digits-images", **settings)


def test_digits_images_are_the_digits_enlarged():
    data = load_digits(limit=600)
    assert len(data.train) == 600
    assert data.train.x.shape[1:] == (3, 28, 28)
    assert data.train.x.max() == 255
    small = torch.nn.functional.interpolate(data.test.x[:, :1].float(), size=8, mode="area")
    from sklearn.datasets import load_digits as published

    rows = torch.from_numpy(published().images).flatten(1) / 16
    nearest = torch.cdist(small.flatten(1).double() / 255, rows).argmin(1)
    found = torch.from_numpy(published().target)[nearest]
    assert (found == data.test.y).float().mean() > 0.99
