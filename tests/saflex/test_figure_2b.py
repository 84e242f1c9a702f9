"""Figure 2b as statements: which copies lose weight, which change label, and when they do not."""

import importlib.util
from pathlib import Path

import pytest
import torch
from torch import nn

FIGURES = Path(__file__).parents[2] / "docs" / "figures"


@pytest.fixture(scope="module")
def figure():
    spec = importlib.util.spec_from_file_location("figure_2b", FIGURES / "figure_2b.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module", params=range(4))
def toy(figure, request):
    data = figure.toy(seed=request.param)
    assert min(data.lonely().sum(), data.astray().sum(), data.at_home().sum()) >= 5
    return data


def mean_weight(batch, which) -> float:
    """1 is an equal share."""
    return (batch.w[which].mean() * len(batch.w)).item()


def share_orange(batch, which) -> float:
    return batch.y[which].argmax(-1).float().mean().item()


def test_copies_inside_the_other_class_change_label_and_those_at_home_do_not(toy):
    for name in ("derived", "default", "soft"):
        assert share_orange(toy.refined[name], toy.astray()) > 0.9
        assert share_orange(toy.refined[name], toy.at_home()) < 0.05
    assert share_orange(toy.refined["upstream"], toy.astray()) == 0


def test_copies_where_no_validation_data_lives_lose_weight_with_soft_weights(toy):
    soft = toy.refined["soft"]
    assert mean_weight(soft, toy.lonely()) < 0.1
    assert mean_weight(soft, toy.at_home()) > 1
    assert mean_weight(soft, toy.astray()) > 0.3


def test_algorithm_1_does_not_take_their_weight(toy):
    # Fact 4: with the derived Pi and one-hot labels no sample is ever rejected, near data or far.
    derived = toy.refined["derived"]
    assert torch.allclose(derived.w, derived.w[:1])
    # Its sign test asks whether a label harms, which far from all data has no answer.
    assert mean_weight(toy.refined["default"], toy.lonely()) > 0.3


def test_a_relu_network_gives_lonely_copies_their_full_share(figure):
    # Its features grow with distance instead of dying out: the picture needs local features.
    shares = []
    for seed in range(4):
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(2, 64), nn.ReLU(), nn.Linear(64, 2))
        data = figure.toy(model, seed=seed)
        shares.append(mean_weight(data.refined["soft"], data.lonely()))
    assert sum(shares) / len(shares) > 0.7


def test_the_committed_picture_is_small_and_can_be_drawn_again(figure, tmp_path):
    pytest.importorskip("matplotlib")
    figure.draw(tmp_path / "again.png")
    assert (tmp_path / "again.png").stat().st_size > 20_000
    assert 20_000 < (FIGURES / "figure_2b.png").stat().st_size < 200_000
