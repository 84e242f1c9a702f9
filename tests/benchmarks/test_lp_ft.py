"""LP-FT: the probe is scikit-learn's, the head starts from it, only images are used."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from image_text_runs import spec, squares
from sklearn.linear_model import LogisticRegression

from benchmarks.data import Split
from benchmarks.models.ensembling import weights_of
from benchmarks.refiners.lp_ft import ABSENT_MARGIN
from benchmarks.train import Training


def training_on(data, **settings) -> Training:
    return Training(spec(refiner="lp-ft", **settings), data)


@pytest.mark.parametrize("classes", [2, 4])
def test_head_predicts_what_the_probe_predicts(classes):
    data = squares(classes=classes)
    training = training_on(data, settings={"strengths": [0.1]})
    training.refiner.begin_epoch(0)
    scale = training.model.scale.item()
    x = training.model.features(data.train.x, data.normalize).numpy()
    probe = LogisticRegression(C=0.1, max_iter=300).fit(scale * x, data.train.y)
    test = training.model.features(data.test.x, data.normalize).numpy()
    logits = training.logits(data.test).detach()
    expected = torch.from_numpy(probe.predict_proba(scale * test))
    torch.testing.assert_close(logits.softmax(-1), expected.float(), rtol=1e-3, atol=1e-4)


def test_probe_strength_is_chosen_on_validation_accuracy():
    data = squares()
    training = training_on(data, settings={"strengths": [1e-6, 1.0]})
    training.refiner.begin_epoch(0)
    best = training.refiner.diagnostics()
    accuracy = training.measure("val")["val/accuracy"]
    assert best["probe_val_accuracy"] == pytest.approx(accuracy)
    weak = training_on(data, settings={"strengths": [1e-6]})
    weak.refiner.begin_epoch(0)
    assert weak.refiner.diagnostics()["probe_val_accuracy"] <= accuracy


def test_a_class_without_training_rows_is_not_predicted():
    data = squares()
    keep = data.train.y != 2
    data = replace(data, train=Split(data.train.x[keep], data.train.y[keep]))
    training = training_on(data)
    training.refiner.begin_epoch(0)
    bias = training.model.head.bias.detach()
    assert bias[2].item() == pytest.approx(bias[[0, 1, 3]].min().item() - ABSENT_MARGIN)
    assert not (training.logits(data.test).argmax(-1) == 2).any()


def test_head_starts_as_the_zero_shot_head():
    """It is the zero-shot end of weight ensembling."""
    data = squares()
    training = training_on(data, model={"ensemble": True})
    zero_shot = Training(spec(refiner="zero-shot"), data)
    torch.testing.assert_close(training.logits(data.test), zero_shot.logits(data.test))
    start = training.ensemble.zero_shot["head.weight"]
    torch.testing.assert_close(start, training.model.text_head())


def test_image_tower_and_head_train_and_the_text_tower_does_not():
    data = squares()
    training = training_on(data, weight_decay=0.2)
    before = weights_of(training.model)
    training.run()
    now = training.model.state_dict()
    moved = {name for name in now if not torch.equal(now[name], before[name])}
    assert {"head.weight", "head.bias"} <= moved
    assert any(name.startswith("towers.visual") for name in moved)
    text = [n for n in now if n.startswith("towers.") and not n.startswith("towers.visual")]
    assert not moved & set(text)


def test_probe_alone_beats_the_zero_shot_head_and_tuning_keeps_it():
    data = squares()
    training = training_on(data, epochs=5)
    before = training.measure("id_test")["id_test/accuracy"]
    training.run()
    assert training.last["id_test/accuracy"] > max(0.9, before)
