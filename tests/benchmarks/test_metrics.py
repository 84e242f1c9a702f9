"""Metrics against torchmetrics and closed forms."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torchmetrics.functional.classification import (
    multiclass_accuracy,
    multiclass_auroc,
    multiclass_calibration_error,
    multiclass_f1_score,
)

from benchmarks.metrics import calibration_error, evaluate


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
