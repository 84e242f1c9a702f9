"""Metrics against torchmetrics and closed forms."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from small_runs import blobs, spec
from torchmetrics.functional.classification import (
    multiclass_accuracy,
    multiclass_auroc,
    multiclass_calibration_error,
    multiclass_f1_score,
)

from benchmarks.data import Split
from benchmarks.errors import BenchmarkError, UnknownName
from benchmarks.metrics import NAMES, calibration_error, checked, evaluate
from benchmarks.train import Training


@pytest.mark.parametrize("classes", [2, 3, 10])
def test_agrees_with_torchmetrics(classes):
    generator = torch.Generator().manual_seed(classes)
    y = torch.randint(0, classes, (500,), generator=generator)
    logits = torch.randn(500, classes, generator=generator) + torch.eye(classes)[y]
    ours, p = evaluate(logits, y), logits.double().softmax(-1)
    common = {"num_classes": classes}
    expected = {
        "accuracy": multiclass_accuracy(p, y, average="micro", **common),
        "balanced_accuracy": multiclass_accuracy(p, y, average="macro", **common),
        "macro_f1": multiclass_f1_score(p, y, average="macro", **common),
        "auroc": multiclass_auroc(p, y, **common),
        "ece": multiclass_calibration_error(p, y, n_bins=15, **common),
        "nll": torch.nn.functional.cross_entropy(logits.double(), y),
    }
    for name, value in expected.items():
        assert ours[name] == pytest.approx(float(value), abs=1e-6), name


def test_a_class_that_is_absent_leaves_auroc_out_and_keeps_the_rest():
    result = evaluate(torch.randn(20, 2), torch.zeros(20, dtype=torch.long))
    assert "auroc" not in result
    assert "average_precision" not in result
    assert 0 <= result["accuracy"] <= 1


def test_calibration_error_of_a_confident_coin_is_its_overconfidence():
    probabilities = np.tile([0.9, 0.1], (10, 1))
    assert calibration_error(probabilities, np.array([0, 1] * 5)) == pytest.approx(0.4)


def test_extreme_logits_stay_finite():
    result = evaluate(torch.tensor([[1e4, -1e4], [-1e4, 1e4]]), torch.tensor([0, 1]))
    assert result["nll"] == 0
    assert result["accuracy"] == 1


class TestAbsentClass:
    """A class that a held-out split lacks, in `blobs` of two classes: said before training."""

    def data(self, **absent: bool):
        data = blobs(classes=2)
        parts = {
            name: Split(getattr(data, name).x, torch.zeros_like(getattr(data, name).y))
            for name in absent
        }
        return replace(data, **parts, class_names=("benign", "malign"))

    def test_in_the_test_split_the_run_is_refused_in_one_line(self):
        with pytest.raises(
            BenchmarkError, match=r"^blobs: the test split \(60 rows\) has none of"
        ) as e:
            Training(spec(metric="auroc"), self.data(test=True))
        assert "class 'malign', and auroc is undefined there" in str(e.value)
        assert "\n" not in str(e.value)

    def test_in_the_validation_split_no_epoch_is_selected_and_a_note_says_why(self):
        training = Training(spec(metric="auroc", epochs=3), self.data(validation=True))
        training.run()
        assert training.best == {}
        assert 0 <= training.last["test/auroc"] <= 1
        assert training.data.notes == (
            "blobs: the validation split (60 rows) has none of class 'malign': auroc is undefined "
            "there and no best validation epoch chosen",
        )

    def test_metrics_that_need_no_class_go_on(self):
        training = Training(spec(metric="macro_f1"), self.data(test=True, validation=True))
        training.run()
        assert training.best["test/macro_f1"] <= 1

    def test_whole_data_come_back_as_they_are(self):
        data = blobs()
        assert checked(data, "auroc") is data

    def test_a_metric_of_another_name_or_for_two_classes_is_named(self):
        with pytest.raises(UnknownName, match="did you mean 'auroc'"):
            checked(blobs(), "auroq")
        with pytest.raises(
            BenchmarkError, match="average_precision is measured for two classes, not 3"
        ):
            checked(blobs(), "average_precision")

    def test_every_metric_that_is_measured_has_its_name_listed(self):
        assert set(evaluate(torch.randn(20, 2), torch.arange(20) % 2)) == set(NAMES)
