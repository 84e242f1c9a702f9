"""Pretrained backbones of Table 3: verified weights, fresh heads, frozen features, a few steps."""

from __future__ import annotations

import importlib
from dataclasses import replace

import pytest
import torch

from benchmarks import registry, suite, weights
from benchmarks.data import Data, Split
from benchmarks.datasets import cub, frozen_features
from benchmarks.errors import BenchmarkError, DataError
from benchmarks.models import efficientnet_lite0, pretrained, resnet50


def pictures(classes: int = 4, size: int = 64) -> Data:
    generator = torch.Generator().manual_seed(0)

    def split(n: int) -> Split:
        x = torch.randint(0, 256, (n, 3, size, size), generator=generator, dtype=torch.uint8)
        return Split(x, torch.arange(n) % classes)

    return Data(
        name="pictures",
        train=split(8),
        validation=split(4),
        test=split(4),
        num_classes=classes,
        kind="image",
        normalize=lambda x: (x.float() - 127) / 128,
    )


@pytest.mark.parametrize("build", [efficientnet_lite0.build, resnet50.build])
def test_head_has_the_data_set_s_classes_and_everything_trains(build):
    data = pictures()
    model = build(data, pretrained=False)
    logits = model(data.normalize(data.train.x))
    assert logits.shape == (8, 4)
    logits.sum().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_weights_that_are_not_at_hand_are_named_with_address_size_and_place(tmp_path, monkeypatch):
    monkeypatch.setenv("SAFLEX_DATA", str(tmp_path))
    monkeypatch.setenv("SAFLEX_HOME", str(tmp_path / "home"))
    with pytest.raises(DataError, match=r"103 MB.*resnet50-0676ba61\.pth.*weights/resnet50"):
        resnet50.build(pictures())


def test_missing_weights_of_a_suite_are_listed_once(tmp_path, monkeypatch):
    monkeypatch.setenv("SAFLEX_DATA", str(tmp_path))
    monkeypatch.setenv("SAFLEX_HOME", str(tmp_path / "home"))
    (source,) = weights.missing(suite.plan(suite.load("paper"), table="3"))
    assert source == resnet50.WEIGHTS
    (source,) = weights.missing(suite.plan(suite.load("cpu"), table="3"))
    assert "EfficientNet-Lite0 are not at hand (19 MB)" in weights.absent(source)
    (source,) = weights.missing(suite.plan(suite.load("paper"), table="4"))
    assert source.path == "weights/vit-b-16-openai.safetensors"


@pytest.mark.parametrize("name", ["resnet50-imagenet", "efficientnet-lite0", "mlp"])
def test_weights_read_from_the_source_are_those_the_module_declares(name):
    module = importlib.import_module(registry.modules("models")[name])
    assert weights.of(name) == getattr(module, "WEIGHTS", None)


def test_altered_weights_are_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("SAFLEX_DATA", str(tmp_path))
    monkeypatch.setenv("SAFLEX_HOME", str(tmp_path / "home"))
    target = tmp_path / efficientnet_lite0.WEIGHTS.path
    target.parent.mkdir()
    torch.save({}, target)
    with pytest.raises(DataError, match="truncated or altered"):
        efficientnet_lite0.build(pictures())


def test_weights_load_except_the_head(tmp_path, monkeypatch):
    """A ResNet-50's own weights saved and verified: body as saved, head fresh, no pickle read."""
    from torchvision.models import resnet50 as network

    monkeypatch.setenv("SAFLEX_DATA", str(tmp_path))
    monkeypatch.setenv("SAFLEX_HOME", str(tmp_path / "home"))
    path = tmp_path / resnet50.WEIGHTS.path
    path.parent.mkdir()
    saved = network(weights=None)
    torch.save(saved.state_dict(), path)
    checksum = pretrained.sources.checksum(path, "sha256")
    monkeypatch.setattr(resnet50, "WEIGHTS", replace(resnet50.WEIGHTS, checksum=checksum))
    model = resnet50.build(pictures())
    body, loaded = saved.state_dict(), model.state_dict()
    assert all(torch.equal(loaded[k], v) for k, v in body.items() if not k.startswith("fc."))
    assert loaded["fc.weight"].shape == (4, 2048)
    wrong = efficientnet_lite0._network(4, pretrained=False)
    with pytest.raises(DataError, match="not of this network"):
        pretrained.load_except_head(wrong, resnet50.WEIGHTS, head="_fc.")


@pytest.fixture
def fake_trunk(tmp_path, monkeypatch):
    """A trunk of two features, counting the images it encodes."""
    monkeypatch.setenv("SAFLEX_HOME", str(tmp_path))
    seen = []

    def trunk():
        def encode(x):
            seen.append(len(x))
            return x.float().mean((2, 3))[:, :2]

        return encode

    monkeypatch.setattr(frozen_features, "TRUNKS", {"fake": trunk})
    return seen


def test_features_are_computed_once_and_standardised_on_training_images(fake_trunk):
    data = replace(pictures(), extra=pictures().validation)
    encoded = frozen_features.encoded(data, "fake")
    assert sum(fake_trunk) == 8 + 4 + 4  # extra equals validation and is not encoded again
    inputs = encoded.normalize(encoded.train.x)
    assert inputs.mean(0).abs().max() < 1e-4
    assert (inputs.std(0) - 1).abs().max() < 1e-4
    again = frozen_features.encoded(data, "fake")
    assert sum(fake_trunk) == 16
    assert torch.equal(again.test.x, encoded.test.x)
    assert torch.equal(encoded.test.y, data.test.y)


def test_changed_pixels_are_encoded_anew(fake_trunk):
    x = pictures().train.x
    before = frozen_features.features(x, "fake")
    x[0] = 0
    after = frozen_features.features(x, "fake")
    assert sum(fake_trunk) == 16
    assert not torch.equal(before[0], after[0])


def test_unknown_trunk_is_named(fake_trunk):
    with pytest.raises(BenchmarkError, match="unknown trunk 'other'; known are fake"):
        frozen_features.features(pictures().train.x, "other")


@pytest.mark.data
def test_real_weights_know_a_bird(tmp_path, monkeypatch):
    """The published classifier on a real albatross photo: ImageNet class 146 is "albatross"."""
    monkeypatch.setenv("SAFLEX_HOME", str(tmp_path))
    from efficientnet_lite_pytorch import EfficientNet

    from benchmarks.datasets.image_files import decoded

    network = EfficientNet.from_name("efficientnet-lite0").eval()
    network.load_state_dict(pretrained.state_dict(efficientnet_lite0.WEIGHTS))
    files = cub.index().splits["test"].files[:30]
    albatross = [f for f in files if "Albatross" in f.parent.name][:12]
    x = torch.stack([torch.from_numpy(cub.prepare(decoded(f)).copy()) for f in albatross])
    with torch.no_grad():
        predicted = network((x.float() - 127) / 128).argmax(-1)
    assert (predicted == 146).float().mean() > 0.5


@pytest.mark.slow
@pytest.mark.data
def test_pretrained_network_learns_in_a_few_steps_of_fine_tuning(tmp_path, monkeypatch):
    """Whole loop on real photos: SAFLEX's validation gradient reaches every layer, the loss falls."""
    monkeypatch.setenv("SAFLEX_HOME", str(tmp_path))
    from benchmarks.datasets.image_files import decoded
    from benchmarks.refiners import Context
    from benchmarks.refiners.saflex import Recommended
    from benchmarks.tasks import Classification
    from benchmarks.upstream import Augmented

    listed = cub.index().splits["train"]
    chosen = [0, 1, 2, 3, 240, 241, 242, 243]
    x = torch.stack(
        [torch.from_numpy(cub.prepare(decoded(listed.files[n])).copy()) for n in chosen]
    )
    y = torch.tensor([0, 0, 0, 0, 1, 1, 1, 1])
    split = Split(x, y)
    data = replace(pictures(2), train=split, validation=split, test=split)
    torch.manual_seed(0)
    model = efficientnet_lite0.build(data)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    refiner = Recommended(
        Context(
            model=model,
            optimizer=optimizer,
            data=data,
            task=Classification(model, data),
            validation=lambda size: (data.normalize(x), y),
            seed=0,
            epochs=1,
            steps_per_epoch=4,
        )
    )
    losses = []
    for _ in range(4):
        batch = refiner(Augmented(x=data.normalize(x), y=y))
        model.train()
        loss = refiner.loss(model, batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert all(g.abs().sum() > 0 for g in refiner.refine.direction.gradient.values())
