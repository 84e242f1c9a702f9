"""Mixup: one share a batch, drawn from a Beta law, the same for pixels and labels."""

from __future__ import annotations

import pytest
import torch
from image_runs import stripes
from scipy.stats import beta, kstest
from small_runs import blobs

from benchmarks.errors import BenchmarkError
from benchmarks.upstream.mixup import Mixup


def test_images_and_labels_are_mixed_with_one_partner_and_one_share():
    data = stripes()
    x, y = data.train.x[:12], torch.tensor([0, 1, 2] * 4)
    out = Mixup(data)(x, y, torch.Generator().manual_seed(4))
    generator = torch.Generator().manual_seed(4)
    partner = torch.randperm(12, generator=generator)
    share = Mixup(data).draw_share(generator)
    assert 0.05 < share < 0.95  # else the test would show little
    clean = data.normalize(x)
    for i, j in enumerate(partner.tolist()):
        assert torch.allclose(out.x[i], share * clean[i] + (1 - share) * clean[j])
        expected = torch.zeros(3)
        expected[y[i]] += share
        expected[y[j]] += 1 - share
        assert torch.allclose(out.y[i], expected)
    assert torch.allclose(out.y.sum(1), torch.ones(12))


@pytest.mark.parametrize("alpha", [1.0, 0.2])
def test_the_share_follows_the_beta_law(alpha):
    upstream, generator = Mixup(stripes(), alpha=alpha), torch.Generator().manual_seed(0)
    shares = [upstream.draw_share(generator) for _ in range(3000)]
    assert kstest(shares, beta(alpha, alpha).cdf).pvalue > 1e-3


def test_mixing_commutes_with_the_normalisation():
    data = stripes()
    x, y = data.train.x[:6], data.train.y[:6]
    out = Mixup(data)(x, y, torch.Generator().manual_seed(2))
    generator = torch.Generator().manual_seed(2)
    partner = torch.randperm(6, generator=generator)
    share = Mixup(data).draw_share(generator)
    raw = share * x.float() + (1 - share) * x[partner].float()
    assert torch.allclose(out.x, data.normalize(raw), atol=1e-6)


def test_wrong_settings_are_named():
    with pytest.raises(BenchmarkError, match="alpha 0 is not positive"):
        Mixup(stripes(), alpha=0)
    with pytest.raises(BenchmarkError, match="tabular"):
        Mixup(blobs())
