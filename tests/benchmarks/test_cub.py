"""CUB: the split of Table 3, from the folder or the archive, with clear words on what is wrong."""

from __future__ import annotations

import tarfile
from dataclasses import replace

import numpy as np
import pytest
import torch
from fabricate import image_folders
from PIL import Image

from benchmarks.datasets import cub
from benchmarks.errors import DataError
from benchmarks.sources import checksum


@pytest.fixture
def folder(tmp_path, monkeypatch):
    data = tmp_path / "data"
    data.mkdir()
    monkeypatch.setenv("SAFLEX_DATA", str(data))
    monkeypatch.setenv("SAFLEX_HOME", str(tmp_path / "home"))
    return data


def test_last_five_training_images_of_each_class_in_list_order_are_held_out(folder):
    root = image_folders.cub(folder, training=8, test=3)
    lines = [line.split() for line in (root / "images.txt").read_text().splitlines()]
    training = {
        key
        for key, flag in map(str.split, (root / "train_test_split.txt").read_text().splitlines())
        if flag == "1"
    }
    index = cub.index()
    for label, name in enumerate(("001", "002", "003")):
        listed = [file for key, file in lines if file.startswith(name) and key in training]
        for split, expected in (("train", listed[:-5]), ("extra", listed[-5:])):
            own = index.splits[split]
            pairs = zip(own.files, own.labels, strict=True)
            files = [str(f.relative_to(root / "images")) for f, y in pairs if y == label]
            assert files == expected


def test_splits_share_no_file_and_cover_all(folder):
    root = image_folders.cub(folder)
    splits = cub.index().splits
    files = [f for name in ("train", "extra", "test") for f in splits[name].files]
    assert len(files) == len(set(files)) == len(list(root.glob("images/*/*.jpg")))
    assert splits["validation"] is splits["extra"]


def test_images_are_uint8_and_equal_to_pillow_s_resizing(folder):
    image_folders.cub(folder)
    data = cub.load("cub", seed=0)
    first = cub.index().splits["train"].files[0]
    expected = np.asarray(Image.open(first).convert("RGB").resize((224, 224), Image.BILINEAR))
    assert data.train.x.dtype == torch.uint8
    assert data.train.x.shape == (9, 3, 224, 224)
    assert torch.equal(data.train.x[0], torch.from_numpy(expected.copy()).permute(2, 0, 1))
    normal = data.normalize(data.train.x[:1])
    again = normal * torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1) + torch.tensor(
        [0.485, 0.456, 0.406]
    ).view(3, 1, 1)
    assert torch.allclose(again * 255, data.train.x[:1].float(), atol=1e-3)


def test_second_load_decodes_nothing(folder, monkeypatch):
    image_folders.cub(folder)
    first = cub.load("cub", seed=0)
    monkeypatch.setattr("benchmarks.datasets.image_files.decoded", None)
    second = cub.load("cub", seed=0)
    assert torch.equal(first.test.x, second.test.x)
    assert first.provenance == second.provenance


def test_a_replaced_image_is_decoded_anew(folder):
    image_folders.cub(folder)
    before = cub.load("cub", seed=0)
    image_folders.picture(cub.index().splits["train"].files[0], 999)
    after = cub.load("cub", seed=0)
    assert not torch.equal(before.train.x[0], after.train.x[0])
    assert torch.equal(before.train.x[1:], after.train.x[1:])
    assert before.provenance["cub/train"] != after.provenance["cub/train"]


def test_archive_is_unpacked_once_when_no_folder_is_there(folder, monkeypatch):
    root = image_folders.cub(folder)
    files = [str(f.relative_to(root)) for f in cub.index().splits["test"].files]
    archive = folder / "cub" / "CUB_200_2011.tgz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(root, "CUB_200_2011")
    root.rename(folder / "elsewhere")
    own = replace(cub.ARCHIVE, checksum=checksum(archive, "md5"))
    monkeypatch.setattr(cub, "ARCHIVE", own)
    found = cub.index()
    assert [str(f.relative_to(found.root)) for f in found.splits["test"].files] == files
    assert all(f.is_file() for f in found.splits["test"].files)
    assert cub.index().root == found.root


def test_archive_that_reaches_outside_is_refused(folder, tmp_path, monkeypatch):
    archive = folder / "cub" / "CUB_200_2011.tgz"
    archive.parent.mkdir()
    outside = tmp_path / "outside.txt"
    outside.write_text("x")
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(outside, "../escaped.txt")
    monkeypatch.setattr(cub, "ARCHIVE", replace(cub.ARCHIVE, checksum=checksum(archive, "md5")))
    with pytest.raises(DataError, match="cannot be unpacked"):
        cub.index()
    assert not list(tmp_path.rglob("escaped.txt"))


def test_altered_archive_is_named_with_both_checksums(folder):
    archive = folder / "cub" / "CUB_200_2011.tgz"
    archive.parent.mkdir()
    archive.write_bytes(b"half a download")
    with pytest.raises(DataError, match=r"expected md5:97eceeb.*found md5:"):
        cub.index()


def test_nothing_at_hand_says_what_to_fetch(folder):
    with pytest.raises(DataError, match=r"CUB-200-2011.*fetch --dataset cub"):
        cub.index()


def test_missing_truncated_and_cut_inputs_are_named(folder):
    root = image_folders.cub(folder)
    victim = cub.index().splits["test"].files[0]
    content = victim.read_bytes()
    victim.write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match=victim.name):
        cub.load("cub", seed=0)
    victim.unlink()
    with pytest.raises(DataError, match=r"is missing \(1 of 9 listed images are\)"):
        cub.load("cub", seed=0)
    (root / "train_test_split.txt").write_text("1 1\n")
    with pytest.raises(DataError, match="training images, expected more than 5"):
        cub.index()


@pytest.mark.data
def test_real_ten_classes_give_the_protocol_s_counts(tmp_path, monkeypatch):
    monkeypatch.setenv("SAFLEX_HOME", str(tmp_path))
    index = cub.index()
    assert {name: len(own) for name, own in index.splits.items()} == {
        "train": 250,
        "extra": 50,
        "validation": 50,
        "test": 243,
    }
    assert index.class_names[0] == "Black footed Albatross"
    assert all(f.is_file() for own in index.splits.values() for f in own.files)


@pytest.mark.data
def test_complete_index_files_give_4994_1000_5794(tmp_path, monkeypatch):
    """The rule on all 200 classes: the label and split files at hand are complete, only images.txt,
    whose numbers they go by, is cut to ten classes; the missing file names do not matter here."""
    import os
    from pathlib import Path

    own = Path(os.environ["SAFLEX_DATA"]) / "cub" / "CUB_200_2011"
    root = tmp_path / "data" / "cub" / "CUB_200_2011"
    root.mkdir(parents=True)
    for name in ("classes.txt", "image_class_labels.txt", "train_test_split.txt"):
        (root / name).write_text((own / name).read_text())
    names = dict(line.split() for line in (own / "classes.txt").read_text().splitlines())
    lines = [line.split() for line in (own / "image_class_labels.txt").read_text().splitlines()]
    (root / "images.txt").write_text("".join(f"{i} {names[c]}/{i}.jpg\n" for i, c in lines))
    monkeypatch.setenv("SAFLEX_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("SAFLEX_HOME", str(tmp_path / "home"))
    splits = cub.index().splits
    assert [len(splits[n]) for n in ("train", "extra", "test")] == [4994, 1000, 5794]
