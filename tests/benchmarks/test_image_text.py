"""The image-text task: SAFLEX's Pi against brute force, controls by name, records, resuming."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import small_runs
import torch
from image_text_runs import clip, pairs, spec, squares

from benchmarks import suite
from benchmarks.data import Data
from benchmarks.datasets.image_text import measure
from benchmarks.errors import BenchmarkError
from benchmarks.running import execute
from benchmarks.tasks import Classification
from benchmarks.tasks.image_text import ImageText
from benchmarks.train import Training
from saflex import ContrastiveSaflex, gradient_products, validation_gradient
from saflex.contrastive import caption_rows, contrastive_cross_entropy


@pytest.fixture(scope="module")
def data():
    return squares()


def trained(data, **settings) -> Training:
    training = Training(spec(**settings), data)
    training.run()
    return training


def contrastive_loss(logits, captions):
    return contrastive_cross_entropy(logits, caption_rows(captions, logits.dtype))


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize(
    ("estimator", "tolerance"), [("forward-mode", 1e-9), ("finite-difference", 1e-3)]
)
def test_pi_is_the_inner_product_of_each_pairs_gradient(data, estimator, tolerance, checkpointing):
    model = clip(data, gradient_checkpointing=checkpointing)
    x, _ = pairs(data, model, rows=5)
    validation, y = pairs(data, model, rows=8)
    v = validation_gradient(model, validation, y, loss=contrastive_loss)
    pi = gradient_products(model, x, v, estimator=estimator)

    log_p = torch.log_softmax(model(x), -1)
    names, parameters = zip(*model.named_parameters(), strict=True)
    expected = torch.empty(5, 5, dtype=torch.float64)
    for i in range(5):
        for k in range(5):
            loss = -log_p[i, k]
            own = torch.autograd.grad(loss, parameters, retain_graph=True)
            expected[i, k] = sum((v[n] * g).sum() for n, g in zip(names, own, strict=True))
    torch.testing.assert_close(
        pi, expected, rtol=tolerance, atol=tolerance * expected.abs().max().item()
    )
    assert expected.std() > 0.01


def test_following_pi_lowers_the_validation_loss(data):
    """A step on the label with the largest Pi lowers it more than one with the smallest."""
    model = clip(data)
    (images, captions), _ = pairs(data, model, rows=4)
    validation, y = pairs(data, model, rows=8)
    v = validation_gradient(model, validation, y, loss=contrastive_loss)
    pi = gradient_products(model, (images, captions), v)
    after = {}
    for name, labels in (("largest", pi.argmax(1)), ("smallest", pi.argmin(1))):
        stepped = copy.deepcopy(model)
        torch.nn.functional.cross_entropy(stepped((images, captions)), labels).backward()
        with torch.no_grad():
            for p in stepped.parameters():
                if p.grad is not None:
                    p -= 1e-4 * p.grad
        after[name] = contrastive_loss(stepped(validation), y).item()
    assert after["largest"] < contrastive_loss(model(validation), y).item() < after["smallest"]


def test_tied_captions_are_one_proxy_class(data):
    """Texts of one class get one label between them, the same for each."""
    model = clip(data).float()
    (images, captions), y = pairs(data, model)
    refine = ContrastiveSaflex(
        model, validation=lambda: ((images.float(), captions), y), tau=0.1, beta=0.0
    )
    batch = refine((images.float(), captions), y)
    for k in range(4):
        columns = batch.y[:, y == k]
        assert torch.equal(columns, columns[:, :1].expand_as(columns))
    torch.testing.assert_close(batch.y.sum(1), torch.ones(8))


@pytest.mark.parametrize("upstream", ["none", "wilds-randaugment"])
@pytest.mark.parametrize(
    "refiner", ["uniform", "weights-only", "saflex-printed", "saflex-derived", "saflex"]
)
def test_rows_of_the_other_tables_train_image_text_models_too(data, refiner, upstream):
    training = Training(spec(refiner=refiner, upstream=upstream, clean_share=0.5, epochs=1), data)
    before = copy.deepcopy(training.model.state_dict())
    training.run()
    assert isinstance(training.task, ImageText)
    if refiner != "uniform":
        assert isinstance(training.refiner.refine, ContrastiveSaflex)
    assert training.steps == 3
    assert all(np.isfinite(v) for v in training.last.values())
    changed = [n for n, v in training.model.state_dict().items() if not torch.equal(v, before[n])]
    assert any(n.startswith("towers.visual") for n in changed)
    assert any(n.startswith("towers.transformer") for n in changed)  # both encoders train
    assert "towers.logit_scale" in changed


def test_settings_of_a_saflex_row_reach_the_library(data):
    training = Training(
        spec(refiner="saflex-derived", settings={"tau": 0.1, "refresh_every": 3}), data
    )
    settings = training.refiner.refine.settings
    assert (settings.tau, settings.refresh_every, settings.output) == (0.1, 3, "log-probabilities")


def test_weights_only_keeps_the_labels_of_the_pairs(data):
    training = Training(spec(refiner="weights-only", epochs=1), data)
    training.run(after_step=lambda t: setattr(t, "kept", t.seen))
    augmented, refined = training.kept
    assert torch.equal(refined.y, caption_rows(augmented.y))


def test_controls_without_saflex_equal_flyp(data):
    """`uniform` on the clean images alone is FLYP, step by step."""
    assert trained(data, refiner="uniform").last == trained(data, refiner="flyp").last


def test_clean_share_mixes_the_two_losses(data):
    """Clean + augmented with equal images is FLYP, whatever the share."""
    plain = trained(data, refiner="flyp")
    mixed = trained(data, refiner="flyp", clean_share=0.5)
    assert mixed.last == pytest.approx(plain.last, abs=1e-4)


def test_training_on_validation_too_uses_its_rows(data):
    training = Training(spec(train_on="train+validation"), data)
    assert len(training.train) == len(data.train) + len(data.validation)
    assert training.steps_per_epoch == 3  # as many as without them


def test_learning_happens(data):
    before = Training(spec(), data).measure()
    after = trained(data, epochs=20).last
    assert after["id_test/accuracy"] > 0.9 > before["id_test/accuracy"]


def test_bfloat16_trains(data):
    training = trained(data, refiner="saflex", clean_share=0.5, precision="bfloat16", epochs=20)
    assert training.last["id_test/accuracy"] > 0.9
    assert next(training.model.parameters()).dtype == torch.float32
    exact = trained(data, refiner="saflex", clean_share=0.5, epochs=20)
    assert exact.curves["train/loss"] != training.curves["train/loss"]


@pytest.mark.parametrize("refiner", ["flyp", "saflex", "lp-ft"])
@pytest.mark.parametrize("stop_after", [1, 3, 4])
def test_a_resumed_run_is_bit_identical(data, tmp_path, refiner, stop_after):
    run = {"refiner": refiner, "upstream": "wilds-randaugment", "model": {"ensemble": True}}
    whole = trained(data, **run)

    class Stop(Exception):
        pass

    def stop(training):
        if training.steps == stop_after:
            torch.save(training.state_dict(), tmp_path / "state.pt")
            raise Stop

    with pytest.raises(Stop):
        Training(spec(**run), data).run(after_step=stop)
    resumed = Training(spec(**run), data)
    resumed.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    resumed.run()
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[name]), name
    assert (resumed.last, resumed.best) == (whole.last, whole.best)
    assert dict(resumed.curves) == dict(whole.curves)


def test_methods_see_the_same_augmented_images(data):
    """Pairing: the refiner changes neither crops, captions, augmentation nor order."""
    seen = []
    for refiner in ("flyp", "saflex"):
        first = []
        training = Training(spec(refiner=refiner, upstream="wilds-randaugment", epochs=1), data)
        training.run(after_step=lambda t, first=first: first.append(t.seen[0]))
        seen.append(first)
    for a, b in zip(*seen, strict=True):
        assert torch.equal(a.x[0], b.x[0])
        assert torch.equal(a.x[1], b.x[1])


def test_macro_f1_is_over_the_classes_present():
    logits = torch.eye(4)[[0, 0, 1, 3]]
    y = torch.tensor([0, 0, 1, 1])  # class 3 is predicted once and never true
    assert measure(logits, y)["macro_f1"] == pytest.approx((1 + 2 / 3) / 2)


def test_data_without_captions_are_refused(data):
    plain = Data(
        name="plain",
        train=data.train,
        validation=data.validation,
        test=data.test,
        num_classes=4,
        kind="image",
    )
    with pytest.raises(BenchmarkError, match="has none: use iwildcam-wilds"):
        Training(spec(), plain)


def test_the_model_decides_the_task(data):
    assert type(Training(spec(), data).task) is ImageText
    assert type(Training(small_runs.spec(), small_runs.blobs()).task) is Classification


@pytest.mark.data
@pytest.mark.slow
def test_a_real_run_becomes_a_record_with_both_splits(tmp_path, monkeypatch):
    monkeypatch.setenv("SAFLEX_HOME", str(tmp_path))
    plan = suite.plan(suite.load("cpu"), table="4")
    chosen = next(run for run in plan if run.row == "saflex")
    content = chosen.model_dump()
    content["settings"]["recipe"] |= {"epochs": 1, "evaluate_every": 1}
    content["settings"]["dataset"]["settings"] |= {"pretraining": 256, "limit": 256}
    content["settings"]["model"]["settings"] |= {"pretraining_epochs": 1}
    record = execute.execute(type(chosen).model_validate(content))
    assert record.status == "complete", record.error
    for name in ("id_test/macro_f1", "ood_test/macro_f1", "ensemble/ood_test/macro_f1"):
        assert 0 <= record.metrics["last"][name] <= 1
        assert name in record.metrics["best_validation"]
    assert record.data["rows"] == {"train": 256, "validation": 856, "test": 3421, "ood_test": 3421}
    assert len(list((tmp_path / "weights").glob("clip-tiny-*.safetensors"))) == 1
