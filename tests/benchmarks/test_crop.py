"""Crops: the source's offsets, frames and backgrounds, and the share of the image they leave visible."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from image_runs import stripes
from scipy.stats import chisquare, norm
from small_runs import blobs
from torchvision.transforms import functional as F

from benchmarks.errors import BenchmarkError
from benchmarks.upstream.crop import Crop, PadCrop, shifted, visibility


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_a_shifted_frame_is_a_window_of_the_image_on_a_larger_canvas():
    x = torch.randn(40, 3, 8, 6, generator=generator())
    dy = torch.randint(-8, 9, (40,), generator=generator(1))
    dx = torch.randint(-6, 7, (40,), generator=generator(2))
    background = torch.randn(40, 3, 1, 1, generator=generator(3))
    out = shifted(x, dy, dx, background=background)
    for i in range(40):
        canvas = background[i].expand(3, 24, 18).clone()
        canvas[:, 8:16, 6:12] = x[i]
        top, left = 8 + dy[i], 6 + dx[i]
        assert torch.equal(out[i], canvas[:, top : top + 8, left : left + 6])


def test_visibility_is_the_share_of_pixels_that_are_still_seen():
    dy, dx = torch.meshgrid(torch.arange(-8, 9), torch.arange(-6, 7), indexing="ij")
    dy, dx = dy.flatten(), dx.flatten()
    white = torch.ones(len(dy), 1, 8, 6)
    seen = shifted(white, dy, dx, background=torch.zeros(())).mean((1, 2, 3))
    assert torch.allclose(visibility(dy, dx, 8, 6), seen)


def test_offsets_are_a_truncated_gaussian_rounded_towards_zero():
    upstream = Crop(stripes(side=28))
    offsets = upstream.draw_offsets(60_000, 28, generator())
    assert offsets.abs().max() <= 28
    law = norm(0, 0.375 * 28)
    mass = law.cdf(28) - law.cdf(-28)
    edges = [1, 3, 6, 10, 15, 21]
    places = torch.bucketize(offsets.abs(), torch.tensor(edges), right=True)
    bounds = [0, *edges, 28]
    expected = [2 * (law.cdf(b) - law.cdf(a)) / mass for a, b in pairwise(bounds)]
    counts = torch.bincount(places, minlength=7).numpy()
    assert chisquare(counts, [60_000 * e for e in expected]).pvalue > 1e-3
    assert abs(offsets.float().mean()) < 0.2


def test_an_offset_that_never_fits_is_zero():
    upstream = Crop(stripes(), sigma=1e9)
    assert upstream.draw_offsets(5, 16, generator()).tolist() == [0] * 5


def test_the_crop_shows_the_normalised_image_on_a_constant_of_each_channel():
    data = stripes(side=16)
    x, y = data.train.x[:32], data.train.y[:32]
    out = Crop(data)(x, y, generator(7))
    again, again_g = Crop(data), generator(7)
    dy, dx = again.draw_offsets(32, 16, again_g), again.draw_offsets(32, 16, again_g)
    colour = 0.01 * torch.randn(32, 3, 1, 1, generator=again_g)
    assert torch.equal(out.x, shifted(data.normalize(x), dy, dx, background=colour))
    assert torch.equal(out.visibility, visibility(dy, dx, 16, 16))
    assert torch.equal(out.y, y)
    assert 0 < out.visibility.min() < out.visibility.max() <= 1


def test_pad_crop_is_torchvisions_padding_and_cropping():
    data = stripes(side=16)
    x, y = data.train.x[:48], data.train.y[:48]
    out = PadCrop(data)(x, y, generator(3))
    dy, dx = torch.randint(-4, 5, (2, 48), generator=generator(3))
    for i in range(48):
        padded = F.pad(x[i], [4, 4, 4, 4])
        expected = F.crop(padded, int(dy[i]) + 4, int(dx[i]) + 4, 16, 16)
        assert torch.equal(out.x[i], data.normalize(expected))


def test_pad_crop_offsets_are_uniform():
    data = stripes(side=16)
    x = torch.zeros(20_000, 1, 16, 16, dtype=torch.uint8)
    x[:, :, 8, 8] = 255
    out = PadCrop(data)(x, torch.zeros(20_000, dtype=torch.long), generator())
    bright = (out.x[:, 0] > 0).flatten(1).int().argmax(1)
    counts = torch.bincount(bright)
    assert (counts > 0).sum() == 81
    assert chisquare(counts[counts > 0].numpy()).pvalue > 1e-3


@pytest.mark.parametrize(
    ("epochs", "cropped"),
    # The source: 480 of 500. Ours rounds up to a whole epoch, and a run of one epoch is cropped.
    [(500, 480), (100, 96), (60, 57), (10, 9), (2, 1), (1, 1)],
)
def test_the_last_epochs_show_whole_images(epochs, cropped):
    data = stripes(side=16)
    x, y = data.train.x[:32], data.train.y[:32]
    upstream = Crop(data)
    for epoch in (0, cropped - 1, cropped, epochs - 1, 0):  # in any order: a resumed run too
        upstream.begin_epoch(epoch, epochs)
        out = upstream(x, y, generator(epoch))
        if epoch < cropped:
            assert out.visibility.min() < 0.9
        elif epoch < epochs:
            assert torch.equal(out.x, data.normalize(x))
            assert (out.visibility == 1).all()


def test_an_epoch_without_crop_draws_as_much_as_any_other():
    data = stripes(side=16)
    upstream, states = Crop(data), []
    for epoch in (0, 99):
        upstream.begin_epoch(epoch, 100)
        drawn = generator()
        upstream(data.train.x, data.train.y, drawn)
        states.append(drawn.get_state())
    assert torch.equal(*states)


@pytest.mark.parametrize("upstream", [Crop, PadCrop])
def test_half_of_the_images_are_mirrored_where_the_classes_bear_it(upstream):
    data = stripes(side=16)
    setting = {"sigma": 0.0} if upstream is Crop else {"padding": 0}
    x = data.train.x[:1].expand(2000, -1, -1, -1)
    plain, flipped = data.normalize(data.train.x[0]), data.normalize(data.train.x[0].flip(-1))
    y = torch.zeros(2000, dtype=torch.long)
    out = upstream(replace(data, mirrors=True), **setting)(x, y, generator()).x
    mirrored = torch.tensor([torch.equal(one, flipped) for one in out])
    kept = torch.tensor([torch.equal(one, plain) for one in out])
    assert (mirrored ^ kept).all()
    assert 900 < mirrored.sum() < 1100
    assert torch.equal(upstream(data, **setting)(x, y, generator()).x, data.normalize(x))


@pytest.mark.parametrize("upstream", [Crop, PadCrop])
def test_only_images_are_cropped(upstream):
    with pytest.raises(BenchmarkError, match="tabular"):
        upstream(blobs())
