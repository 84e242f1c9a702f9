"""Soft-Augmentation: target confidence, soft labels and weights against the source's formulas."""

from __future__ import annotations

import pytest
import torch
from image_runs import image_spec, stripes
from torch.nn import functional as nnf

from benchmarks.errors import BenchmarkError
from benchmarks.refiners.soft_augmentation import softened, target_confidence
from benchmarks.train import Training
from benchmarks.upstream import Augmented
from saflex import soft_cross_entropy


def refiner(**settings):
    spec = image_spec(refiner="soft-augmentation", upstream="crop", settings=settings)
    return Training(spec, stripes()).refiner


def test_confidence_runs_from_chance_to_certainty():
    v = torch.tensor([0.0, 0.5, 1.0])
    assert torch.allclose(target_confidence(v, 8), torch.tensor([1 / 8, 1 - 7 / 32, 1.0]))
    assert torch.allclose(target_confidence(v, 8, power=4)[1], torch.tensor(1 - 7 / 8 / 16))


def test_what_is_left_is_uniform_over_the_other_classes():
    y = softened(torch.tensor([2, 0]), torch.tensor([0.7, 1.0]), 4)
    assert torch.allclose(y, torch.tensor([[0.1, 0.1, 0.7, 0.1], [1.0, 0, 0, 0]]))


def test_the_gradient_is_that_of_the_sources_loss():
    x = torch.zeros(6, 3, 16, 16)
    y = torch.tensor([0, 1, 2, 0, 1, 2])
    visible = torch.tensor([0.05, 0.2, 0.4, 0.6, 0.8, 1.0])
    batch = refiner()(Augmented(x=x, y=y, visibility=visible))
    logits = torch.randn(6, 3, generator=torch.Generator().manual_seed(0), requires_grad=True)
    (ours,) = torch.autograd.grad(soft_cross_entropy(logits, batch.y, batch.w), logits)

    confidence = 1 - (2 / 3) * (1 - visible) ** 2
    target = torch.zeros(6, 3)
    for i in range(6):
        target[i] = (1 - confidence[i]) / 2
        target[i, y[i]] = confidence[i]
    kl = nnf.kl_div(logits.log_softmax(1), target, reduction="none").sum(1)
    (source,) = torch.autograd.grad((confidence * kl).mean(), logits)
    assert torch.allclose(ours, source, atol=1e-7)
    assert torch.allclose(batch.w.sum(), confidence.mean())


def test_diagnostics_are_means_over_the_steps_since_the_last_look():
    r, x = refiner(), torch.zeros(2, 3, 16, 16)
    y = torch.tensor([0, 1])
    for v in ([0.0, 1.0], [1.0, 1.0]):
        r(Augmented(x=x, y=y, visibility=torch.tensor(v)))
    found = r.diagnostics()
    assert found["visibility"] == pytest.approx(0.75)
    assert found["confidence"] == pytest.approx((1 / 3 + 3) / 4)
    assert r.diagnostics() == {"visibility": 0.0, "confidence": 0.0}


def test_an_upstream_without_visibility_is_refused():
    with pytest.raises(BenchmarkError, match="crop and pad-crop"):
        refiner()(Augmented(x=torch.zeros(2, 3, 16, 16), y=torch.tensor([0, 1])))
    with pytest.raises(BenchmarkError, match="power 0 is not positive"):
        refiner(power=0)


def test_it_trains_in_the_common_loop():
    training = Training(
        image_spec(refiner="soft-augmentation", upstream="crop", epochs=25, lr=0.01), stripes()
    )
    training.run()
    assert training.last["test/accuracy"] > 0.9
    assert 0.3 < training.diagnostics()["visibility"] < 0.7


def test_a_run_ends_on_whole_images_with_hard_labels():
    spec = image_spec(refiner="soft-augmentation", upstream="crop", epochs=4)
    seen = []

    def note(training):
        augmented, batch = training.seen
        whole = (augmented.visibility == 1).all() and (batch.y.max(-1).values == 1).all()
        seen.append((training.epoch, bool(whole)))

    Training(spec, stripes()).run(after_step=note)
    assert {epoch for epoch, whole in seen if whole} == {3}
    assert all(whole for epoch, whole in seen if epoch == 3)
