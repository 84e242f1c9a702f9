"""FLYP's loss is open_clip's own; its batches, captions and memory features change no number."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from image_text_runs import clip, pairs, spec, squares
from open_clip.loss import ClipLoss
from torch import nn

from benchmarks.errors import BenchmarkError
from benchmarks.refiners import Context
from benchmarks.refiners.flyp import Flyp
from benchmarks.tasks import gradient_cache
from benchmarks.tasks.image_text import ImageText
from benchmarks.train import Training
from benchmarks.upstream import Augmented
from saflex.contrastive import caption_rows


@pytest.fixture(scope="module")
def data():
    return squares()


def tuner(model, data, **settings) -> Flyp:
    return Flyp(
        Context(
            model=model,
            optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
            data=data,
            task=ImageText(model, data),
            validation=lambda size: None,
            seed=0,
            epochs=1,
            steps_per_epoch=1,
        ),
        **settings,
    )


def gradients(model: nn.Module) -> dict[str, torch.Tensor]:
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def assert_equal(a: dict, b: dict, *, tolerance: float) -> None:
    assert a.keys() == b.keys()
    assert any(g.abs().max() > 1e-3 for g in a.values())
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=tolerance, atol=tolerance, msg=name)


def test_loss_and_gradients_are_those_of_open_clip(data):
    model = clip(data)
    (images, captions), y = pairs(data, model)
    flyp = tuner(model, data)
    batch = flyp(Augmented(x=(images, captions), y=y))

    theirs = ClipLoss()(model.images(images), model.texts(captions), model.scale)
    theirs.backward()
    expected = gradients(model)
    model.zero_grad()
    ours = flyp.context.task.objective(model.images(images), model.texts(captions), batch)
    ours.backward()

    assert ours.item() == pytest.approx(theirs.item(), rel=1e-9)
    assert "towers.logit_scale" in expected
    assert_equal(gradients(model), expected, tolerance=1e-9)


def test_single_precision_agrees_with_open_clip_to_1e_6(data):
    model = clip(data).float()
    (images, captions), y = pairs(data, model)
    flyp = tuner(model, data)
    image, text = model.images(images.float()), model.texts(captions)
    theirs = ClipLoss()(image, text, model.scale)
    ours = flyp.context.task.objective(image, text, flyp.uniform((images, captions), y))
    assert ours.item() == pytest.approx(theirs.item(), abs=1e-6)
    for ours_part, their_part in zip(
        torch.autograd.grad(ours, [image, text], retain_graph=True),
        torch.autograd.grad(theirs, [image, text]),
        strict=True,
    ):
        torch.testing.assert_close(ours_part, their_part, rtol=0, atol=1e-6)


def test_texts_of_one_class_are_negatives_unless_ties_are_shared(data):
    model = clip(data)
    x, y = pairs(data, model)
    assert torch.equal(tuner(model, data).uniform(x, y).y, torch.eye(len(y)))
    shared = tuner(model, data, ties="share").uniform(x, y).y
    assert torch.equal(shared, caption_rows(y))
    assert shared[0, 4] == 0.5  # two of eight rows are of each class


def test_unknown_ties_are_named(data):
    with pytest.raises(BenchmarkError, match="negatives, share"):
        tuner(clip(data), data, ties="ignore")


def test_upstreams_that_mix_labels_are_refused(data):
    model = clip(data)
    with pytest.raises(BenchmarkError, match="mixes labels"):
        tuner(model, data).uniform(None, torch.full((4, 4), 0.25))


@pytest.mark.parametrize("micro_batch", [1, 3, 8, 100])
@pytest.mark.parametrize("clean_share", [0.0, 0.5])
def test_micro_batches_have_the_gradient_of_the_full_batch(data, micro_batch, clean_share):
    found = []
    for size in (None, micro_batch):
        model = clip(data, micro_batch=size)
        flyp = tuner(model, data)
        flyp.context = replace(flyp.context, clean_share=clean_share)
        task = flyp.context.task
        (images, captions), y = pairs(data, model)
        refined = flyp(Augmented(x=(images, captions), y=y))
        clean = flyp.uniform((images.flip(-1), captions), y) if clean_share else None
        # Towers in double precision; the task's cast to float32 would hide differences below 1e-7.
        task._encode = lambda tower: tower
        loss = task.backward(flyp, clean, y, refined)
        found.append((loss.item(), gradients(model)))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-12)
    assert_equal(found[0][1], found[1][1], tolerance=1e-10)


def test_plain_accumulation_would_have_another_gradient(data):
    """The full batch matters: averaging the losses of halves is not the loss of the whole."""
    model = clip(data)
    (images, captions), y = pairs(data, model)
    flyp = tuner(model, data)

    def loss(rows: slice) -> torch.Tensor:
        batch = flyp.uniform(None, y[rows])
        return flyp.context.task.objective(
            model.images(images[rows]), model.texts(captions[rows]), batch
        )

    whole = loss(slice(None)).item()
    halves = (loss(slice(0, 4)) + loss(slice(4, 8))).item() / 2
    assert abs(whole - halves) > 0.1


def test_dropout_draws_the_same_masks_in_both_passes():
    torch.manual_seed(0)
    tower = nn.Sequential(nn.Linear(6, 6), nn.Dropout(0.5))
    x = torch.randn(8, 6)
    torch.manual_seed(1)
    micro = gradient_cache.backward([(tower, x)], lambda f: f.square().sum(), micro_batch=4)
    state, accumulated = torch.get_rng_state(), gradients(tower)
    tower.zero_grad()
    torch.manual_seed(1)
    features = torch.cat([tower(x[:4]), tower(x[4:])])
    features.square().sum().backward()
    assert micro.item() == pytest.approx(features.square().sum().item())
    assert_equal(accumulated, gradients(tower), tolerance=1e-5)
    assert torch.equal(state, torch.get_rng_state())


def test_gradient_checkpointing_changes_no_gradient(data):
    found = []
    for checkpointing in (False, True):
        model = clip(data, gradient_checkpointing=checkpointing)
        assert model.towers.transformer.grad_checkpointing is checkpointing
        (images, captions), y = pairs(data, model)
        flyp = tuner(model, data)
        flyp.context.task.objective(
            model.images(images), model.texts(captions), flyp.uniform(None, y)
        ).backward()
        found.append(gradients(model))
    assert_equal(*found, tolerance=1e-12)


def test_equal_captions_are_encoded_once_without_changing_the_logits(data):
    model = clip(data)
    (images, captions), _ = pairs(data, model)
    assert len(captions.unique()) < len(captions)
    expected = model.pair_logits(model.images(images), model.texts(captions))
    torch.testing.assert_close(model((images, captions)), expected, rtol=1e-12, atol=1e-12)


def test_zero_shot_head_is_the_normalised_mean_of_the_templates(data):
    model = clip(data)
    texts = model.texts(torch.arange(8)).view(4, 2, -1)
    for k in range(4):
        mean = texts[k].mean(0)
        expected = model.scale * mean / mean.norm()
        torch.testing.assert_close(model.text_head()[k], expected)


def test_each_image_meets_every_template_in_turn(data):
    training = Training(spec(), data)
    rows, y = torch.arange(len(data.train)), data.train.y
    first, second = (
        training.task.complete(None, y, index=rows, epoch=epoch, seed=5)[1] - 2 * y
        for epoch in (0, 1)
    )
    assert set(first.tolist()) == {0, 1}
    assert torch.equal(first + second, torch.ones_like(first))


def test_rate_warms_up_linearly_and_then_follows_a_cosine_per_step(data):
    training = Training(spec(warmup_steps=2, epochs=2), data)  # 6 steps
    rates = []
    training.run(after_step=lambda t: rates.append(t.optimizer.param_groups[0]["lr"]))
    expected = [0.5, 1.0, 1.0, 0.5 + 0.5**1.5, 0.5, 0.5 - 0.5**1.5]
    assert [rate / 1e-3 for rate in rates] == pytest.approx(expected)
