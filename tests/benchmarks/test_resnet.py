"""The ResNet-18 of MedMNIST's experiments and its small sibling, against torchvision's."""

from __future__ import annotations

import pytest
import torch
from image_runs import stripes
from torch import nn
from torchvision.models import resnet18

from benchmarks import registry


def build(name: str, *, classes: int = 8, **settings) -> nn.Module:
    return registry.load("models", name)(stripes(classes=classes), **settings)


def test_it_is_torchvisions_with_another_stem():
    ours, theirs = build("resnet18-28"), resnet18(num_classes=8)
    theirs.conv1 = nn.Conv2d(3, 64, 3, stride=1, padding=1, bias=False)
    theirs.maxpool = nn.Identity()
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(4, 3, 28, 28)
    assert torch.allclose(ours(x), theirs(x), atol=1e-5)


def test_size_and_resolution_are_the_sources():
    model, sizes = build("resnet18-28"), []
    assert sum(p.numel() for p in model.parameters()) == 11_172_936
    for stage in (model.layer1, model.layer2, model.layer3, model.layer4):
        stage.register_forward_hook(lambda m, i, o: sizes.append(tuple(o.shape[1:])))
    with torch.no_grad():
        assert model(torch.zeros(2, 3, 28, 28)).shape == (2, 8)
    assert sizes == [(64, 28, 28), (128, 14, 14), (256, 7, 7), (512, 4, 4)]


def test_initial_weights_are_pytorchs_default_not_torchvisions():
    weight = build("resnet18-28").layer4[1].conv2.weight.detach()
    bound = (3 * (1 / 3) / (512 * 9)) ** 0.5  # kaiming_uniform_(a=sqrt(5))
    assert weight.abs().max() <= bound
    assert weight.std() == pytest.approx(bound / 3**0.5, rel=0.01)


def test_the_small_network_has_the_same_stages():
    small = build("resnet-small", widths=(4, 8, 8, 16))
    assert small(torch.zeros(2, 3, 28, 28)).shape == (2, 8)
    assert sum(p.numel() for p in build("resnet-small").parameters()) < 200_000
    assert small.layer4[0].conv1.weight.shape == (16, 8, 3, 3)


@pytest.mark.parametrize(("name", "features"), [("resnet18", 512), ("resnet50", 2048)])
def test_torchvisions_own_are_there_by_name(name, features):
    model = build(name, classes=5)
    assert (model.fc.in_features, model.fc.out_features) == (features, 5)
    assert model.conv1.weight.shape == (64, 3, 7, 7)


def test_four_stages_are_expected():
    with pytest.raises(ValueError, match="four stages"):
        build("resnet-small", widths=(4, 8))
