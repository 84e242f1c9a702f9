"""WILDS' RandAugment: two operations of FixMatch's pool, random magnitudes, then a grey rectangle."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from image_text_runs import squares
from PIL import Image, ImageEnhance, ImageOps
from small_runs import blobs

from benchmarks.errors import BenchmarkError
from benchmarks.upstream.wilds_randaugment import (
    GREY,
    OPERATIONS,
    POOL,
    WildsRandAugment,
    cutout,
)


@pytest.fixture
def upstream():
    return WildsRandAugment(squares())


def photo(side: int = 32) -> Image.Image:
    generator = np.random.default_rng(0)
    return Image.fromarray(generator.integers(0, 256, (side, side, 3), dtype=np.uint8))


def draws(*, flip=1.0, size=0.0, operations: list[tuple[str, float]]) -> list[float]:
    """Random numbers that make the upstream choose the given operations and magnitudes."""
    chosen = []
    for name, magnitude in operations:
        chosen += [(OPERATIONS.index(name) + 0.5) / len(OPERATIONS), magnitude]
    return [flip, size, 0.99, 0.99, *chosen]


def without_cutout(image: np.ndarray) -> np.ndarray:
    # A rectangle of size 0 still paints the one pixel it is placed at.
    return image[:-1, :-1]


def augmented(upstream, image, **chosen) -> np.ndarray:
    return without_cutout(upstream._augmented(np.asarray(image), draws(**chosen)))


def test_pool_is_that_of_fixmatch():
    assert len(OPERATIONS) == 14
    assert POOL["brightness"][1:] == (0.05, 0.95)
    assert POOL["posterize"][1:] == (4, 8)
    assert POOL["rotate"][1:] == (-30, 30)
    assert POOL["solarize"][1:] == (0, 256)
    assert POOL["translate-x"][1:] == (-0.3, 0.3)


def test_two_operations_follow_each_other(upstream):
    image = photo()
    found = augmented(upstream, image, operations=[("posterize", 0.0), ("brightness", 1.0)])
    expected = ImageEnhance.Brightness(ImageOps.posterize(image, 4)).enhance(0.95)
    assert np.array_equal(found, without_cutout(np.asarray(expected)))


@pytest.mark.parametrize("name", OPERATIONS)
def test_every_operation_keeps_the_size_and_changes_what_it_should(upstream, name):
    found = augmented(upstream, photo(), operations=[(name, 0.25), ("identity", 0.0)])
    assert found.shape == (31, 31, 3)
    assert found.dtype == np.uint8
    same = np.array_equal(found, without_cutout(np.asarray(photo())))
    assert same is (name in {"identity", "auto-contrast"})  # noise has full contrast already


@pytest.mark.parametrize(("name", "axis"), [("translate-x", 1), ("translate-y", 0)])
def test_translations_move_by_a_share_of_the_side(upstream, name, axis):
    image = np.asarray(photo())
    # magnitude 1/3 -> -0.1 of 32 pixels = -3.2: content moves to higher indices, black behind it
    found = augmented(upstream, image, operations=[(name, 1 / 3), ("identity", 0.0)])
    moved = np.moveaxis(found, axis, 0)
    assert (moved[:3] == 0).all()
    assert np.array_equal(moved[3:], np.moveaxis(without_cutout(image), axis, 0)[:-3])


def test_images_are_mirrored_before(upstream):
    found = augmented(upstream, photo(), flip=0.2, operations=[("identity", 0)] * 2)
    assert np.array_equal(found, without_cutout(np.asarray(ImageOps.mirror(photo()))))


def test_cutout_paints_a_grey_rectangle_up_to_half_the_width():
    painted = np.asarray(cutout(photo(), 0.5, left=0.5, top=0.5))
    grey = (painted == GREY).all(-1)
    rows, columns = np.flatnonzero(grey.any(1)), np.flatnonzero(grey.any(0))
    assert (rows[0], rows[-1]) == (columns[0], columns[-1]) == (8, 24)  # 16 +- 8, end included
    assert grey[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all()
    assert not (np.asarray(cutout(photo(), 0.1, left=0.0, top=0.0)) == GREY).all(-1)[6:].any()


def test_labels_are_kept_and_images_are_normalised(upstream):
    data = squares()
    x, y = data.train.x[:8], data.train.y[:8]
    found = upstream(x, y, torch.Generator().manual_seed(0))
    assert torch.equal(found.y, y)
    assert found.x.shape == x.shape
    assert found.x.dtype == torch.float32
    assert found.x.min() >= -1
    assert found.x.max() <= 1


def test_one_stream_decides_everything(upstream):
    data = squares()
    x, y = data.train.x[:16], data.train.y[:16]
    torch.manual_seed(1)
    first = upstream(x, y, torch.Generator().manual_seed(3)).x
    torch.manual_seed(2)
    assert torch.equal(first, upstream(x, y, torch.Generator().manual_seed(3)).x)
    assert not torch.equal(first, upstream(x, y, torch.Generator().manual_seed(4)).x)


def test_every_image_is_augmented_on_its_own(upstream):
    data = squares()
    x = data.train.x[:1].expand(32, -1, -1, -1)
    found = upstream(x, torch.zeros(32, dtype=torch.long), torch.Generator().manual_seed(0)).x
    assert len({image.numpy().tobytes() for image in found}) > 28


def test_mistakes_are_one_clear_line():
    with pytest.raises(BenchmarkError, match="blobs is tabular"):
        WildsRandAugment(blobs())
    with pytest.raises(BenchmarkError, match="at least 1"):
        WildsRandAugment(squares(), operations=0)
