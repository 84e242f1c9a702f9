"""RandAugment: the same pixels as torchvision's own for all 14 operations, and its frequencies."""

from __future__ import annotations

import pytest
import torch
from image_runs import stripes
from scipy.stats import chisquare
from small_runs import blobs
from torchvision.transforms import InterpolationMode, autoaugment

from benchmarks.errors import BenchmarkError
from benchmarks.upstream import randaugment
from benchmarks.upstream.randaugment import OPERATIONS, RandAugment

BINS = 31
SIZE = (28, 28)
SPACE = autoaugment.RandAugment()._augmentation_space(BINS, SIZE)


def images() -> torch.Tensor:
    """Noise, smooth colour, grey as three channels, constants, low contrast, half saturated."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randint(0, 256, (3, 3, *SIZE), generator=generator)
    ramp = torch.linspace(0, 255, SIZE[1]).expand(3, *SIZE)
    smooth = torch.stack([ramp[0], ramp[0].mT, 255 - ramp[0]])[None]
    grey = noise[:1, :1].expand(1, 3, *SIZE)
    flat = torch.stack([torch.full((3, *SIZE), value) for value in (0, 128, 255)])
    pale = noise[1:2] // 4 + 100
    half = noise[2:3].clone()
    half[..., :14] = 255
    return torch.cat([noise, smooth, grey, flat, pale, half]).to(torch.uint8)


def reference(x: torch.Tensor, name: str, value: float) -> torch.Tensor:
    nearest = InterpolationMode.NEAREST
    return torch.stack([autoaugment._apply_op(i, name, value, nearest, None) for i in x])


def augmentation(**settings) -> RandAugment:
    return RandAugment(stripes(side=28), **settings)


def test_the_operations_and_their_signs_are_torchvisions():
    assert tuple(SPACE) == OPERATIONS
    assert [signed for _, signed in SPACE.values()] == [
        randaugment.MAGNITUDES[name][2] for name in OPERATIONS
    ]


@pytest.mark.parametrize("name", OPERATIONS)
def test_every_magnitude_and_sign_gives_torchvisions_pixels(name):
    x, (magnitudes, signed) = images(), SPACE[name]
    changed = 0
    for k in range(BINS):
        expected = float(magnitudes[k]) if magnitudes.ndim else 0.0
        value = randaugment.magnitude(name, k, BINS, size=SIZE)
        assert value == expected
        for sign in (1, -1) if signed else (1,):
            ours = randaugment.apply(x, name, sign * value)
            assert torch.equal(ours, reference(x, name, sign * expected))
            changed += int((ours != x).sum())
    assert (changed > 0) == (name != "Identity")


def test_translations_follow_the_side_they_move_along():
    assert randaugment.magnitude("TranslateX", 30, BINS, size=(20, 40)) == pytest.approx(
        40 * 150 / 331
    )
    assert randaugment.magnitude("TranslateY", 30, BINS, size=(20, 40)) == pytest.approx(
        20 * 150 / 331
    )


def test_a_batch_is_augmented_like_each_of_its_samples_by_torchvision():
    upstream = augmentation(magnitude=9)
    generator = torch.Generator().manual_seed(3)
    x = images()[torch.randint(0, 9, (64,), generator=generator)]
    out = upstream(x, torch.zeros(64, dtype=torch.long), torch.Generator().manual_seed(5))
    operations, signs = upstream.draw(64, torch.Generator().manual_seed(5))
    assert operations.shape == (2, 64)
    for i in range(64):
        expected = x[i : i + 1]
        for operation, sign in zip(operations[:, i], signs[:, i], strict=True):
            magnitudes, signed = SPACE[OPERATIONS[operation]]
            value = float(magnitudes[9]) if magnitudes.ndim else 0.0
            value = -value if signed and sign else value
            expected = reference(expected, OPERATIONS[operation], value)
        assert torch.equal(out.x[i : i + 1], upstream.normalize(expected))


def test_operations_positions_and_signs_are_drawn_uniformly_and_independently():
    operations, signs = augmentation().draw(40_000, torch.Generator().manual_seed(0))
    pairs = torch.bincount(operations[0] * 14 + operations[1], minlength=196)
    assert chisquare(pairs.numpy()).pvalue > 1e-3
    assert chisquare(torch.bincount((operations * 2 + signs).flatten()).numpy()).pvalue > 1e-3


def test_the_input_and_the_labels_stay_as_they_were():
    x, y = images(), torch.arange(9) % 3
    before = x.clone()
    out = augmentation()(x, y, torch.Generator().manual_seed(1))
    assert torch.equal(x, before)
    assert torch.equal(out.y, y)
    assert not torch.equal(out.x, augmentation().normalize(x))


def test_wrong_settings_are_named():
    with pytest.raises(BenchmarkError, match="magnitude 31 is not a bin"):
        augmentation(magnitude=31)
    with pytest.raises(BenchmarkError, match="tabular"):
        RandAugment(blobs())
