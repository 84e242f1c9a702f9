"""Image-text training: the proxy classification of Section 3, ties, both directions, open_clip."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from reference_models import TwoTowers, brute_force_products, inputs
from torch import nn

from saflex import (
    ContrastiveSaflex,
    ImageTextLogits,
    contrastive_cross_entropy,
    soft_labels,
    validation_gradient,
)
from saflex import errors as e
from saflex.contrastive import caption_rows, tied_labels


def pair(batch, captions=None):
    captions = torch.arange(batch) % 9 if captions is None else captions
    return (torch.randn(batch, 6, dtype=torch.float64), captions), captions


def test_without_ties_the_loss_is_clips_own_equation_13():
    logits = torch.randn(5, 5, dtype=torch.float64)
    rows = caption_rows(torch.arange(5), torch.float64)
    own = torch.arange(5)
    wanted = nn.functional.cross_entropy(logits, own) + nn.functional.cross_entropy(logits.T, own)
    torch.testing.assert_close(contrastive_cross_entropy(logits, rows), wanted)


def test_equation_14_with_weights_and_the_transposed_rows():
    logits = torch.randn(4, 4, dtype=torch.float64)
    y = torch.rand(4, 4, dtype=torch.float64).softmax(-1)
    w = torch.tensor([0.5, 0.5, 0.0, 0.0], dtype=torch.float64)
    first = -(w[:, None] * y * logits.log_softmax(-1)).sum()
    turned = y.T / y.T.sum(-1, keepdim=True)
    second = -(w[:, None] * turned * logits.T.log_softmax(-1)).sum()
    torch.testing.assert_close(contrastive_cross_entropy(logits, y, w), first + second)


def test_a_text_that_no_image_wants_contributes_nothing_and_no_nan():
    logits = torch.randn(3, 3, requires_grad=True)
    y = torch.eye(3)[[0, 0, 1]]
    loss = contrastive_cross_entropy(logits, y)
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(logits.grad).all()


@given(st.lists(st.integers(0, 2), min_size=2, max_size=7), st.sampled_from(["label", "entropic"]))
def test_equal_captions_are_one_class_sharing_its_label_evenly(ids, prior):
    captions = torch.tensor(ids)
    batch = len(ids)
    # Equal captions have equal columns, as a deterministic text tower makes them.
    distinct, position = torch.unique(captions, return_inverse=True)
    pi = torch.randn(batch, len(distinct), dtype=torch.float64)[:, position]
    p = torch.randn(batch, len(distinct), dtype=torch.float64)[:, position].softmax(-1)
    y = tied_labels(pi, captions, probabilities=p, prior=prior, tau=0.4, beta=0.3)
    torch.testing.assert_close(y.sum(-1), torch.ones(batch, dtype=torch.float64))
    first = [ids.index(int(c)) for c in distinct]
    size = torch.bincount(position).double()
    collapsed = soft_labels(
        pi[:, first],
        nn.functional.one_hot(position, len(distinct)).double(),
        probabilities=p[:, first] * size,
        prior=prior,
        tau=0.4,
        beta=0.3,
    )
    torch.testing.assert_close(y, (collapsed / size)[:, position])


def test_the_refined_pairs_lower_the_validation_loss_to_first_order():
    model = TwoTowers().double().eval()
    x, captions = pair(7, torch.tensor([0, 1, 2, 1, 3, 4, 0]))
    validation = pair(6)
    refine = ContrastiveSaflex(model, validation=validation, tau=0.1, cosine_every=1)
    batch = refine(x, captions)
    assert batch.y.shape == (7, 7)
    assert torch.equal(batch.y[:, 1], batch.y[:, 3])
    assert torch.equal(batch.y[:, 0], batch.y[:, 6])
    val_rows = caption_rows(validation[1], torch.float64)
    g = validation_gradient(
        model, *validation, loss=lambda z, _: contrastive_cross_entropy(z, val_rows)
    )
    pi = brute_force_products(model, x, g, "log-probabilities")
    expected = tied_labels(
        pi, captions, probabilities=model(x).softmax(-1).detach(), prior="entropic", tau=0.1,
        scale="batch-std",
    )  # fmt: skip
    torch.testing.assert_close(batch.y, expected)
    gain = (batch.w * (pi * batch.y).sum(-1)).sum().item()
    found = refine.diagnostics()
    assert found["gain"] == pytest.approx(gain)
    assert gain > found["gain_upstream"]
    assert -1 <= found["cosine"] <= 1


def test_a_step_on_refined_pairs_keeps_its_promise():
    model = TwoTowers().double().eval()
    (x, captions), validation = pair(6), pair(5)
    refine = ContrastiveSaflex(model, validation=validation)
    batch = refine(x, captions)
    params = dict(model.named_parameters())
    # Eq. 14 is the image-to-text term; the promise is about that one.
    loss = -(batch.w[:, None] * batch.y * model(x).log_softmax(-1)).sum()
    grads = torch.autograd.grad(loss, list(params.values()))
    rows = caption_rows(validation[1], torch.float64)

    def validation_loss(values):
        return contrastive_cross_entropy(
            torch.func.functional_call(model, values, (validation[0],)), rows
        ).item()

    alpha = 1e-6
    moved = {n: p - alpha * d for (n, p), d in zip(params.items(), grads, strict=True)}
    fall = validation_loss(params) - validation_loss(moved)
    assert fall == pytest.approx(alpha * refine.diagnostics()["gain"], rel=1e-3)


def test_bad_captions_and_towers():
    model = TwoTowers().double()
    x, captions = pair(4)
    refine = ContrastiveSaflex(model, validation=pair(4))
    with pytest.raises(e.LabelError, match="4 integers"):
        refine(x, captions[:3])
    with pytest.raises(e.LabelError, match="integers"):
        refine(x, captions.double())
    flat = nn.Linear(5, 3).double()
    with pytest.raises(e.ShapeError, match="square"):
        ContrastiveSaflex(flat, validation=(torch.eye(5)[:3].double(), captions[:3]))(
            inputs("mlp", 4), captions
        )


def test_open_clip_models_train_both_towers():
    open_clip = pytest.importorskip("open_clip")
    torch.manual_seed(0)
    clip = open_clip.CLIP(
        embed_dim=8,
        vision_cfg={"image_size": 16, "layers": 1, "width": 16, "head_width": 8, "patch_size": 8},
        text_cfg={"context_length": 6, "vocab_size": 20, "width": 16, "heads": 2, "layers": 1},
    )
    model = ImageTextLogits(clip)
    captions = torch.tensor([0, 1, 1, 2])
    texts = torch.randint(1, 20, (3, 6))[captions]
    data = ((torch.randn(4, 3, 16, 16), texts), captions)
    exact = ContrastiveSaflex(model, validation=data, tau=0.1)(*data)
    close = ContrastiveSaflex(model, validation=data, tau=0.1, estimator="finite-difference")(*data)
    assert (exact.y - close.y).abs().max() < 0.05
    contrastive_cross_entropy(model(exact.x), exact.y, exact.w).backward()
    for tower in (clip.visual, clip.transformer):
        assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in tower.parameters())
    clip.output_dict = True
    torch.testing.assert_close(ContrastiveSaflex(model, validation=data, tau=0.1)(*data).y, exact.y)
