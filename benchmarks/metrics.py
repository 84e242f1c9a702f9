"""Metrics of a split from its logits: the paper's, and test NLL and calibration error beside them."""

from __future__ import annotations

import warnings

import numpy as np
import torch
from sklearn import metrics as sk
from torch import Tensor

BINS = 15
SHUFFLE_SEED = 0  # for ever: it decides which rows a prediction is made with


def evaluate(logits: Tensor, y: Tensor) -> dict[str, float]:
    """Compute every metric of a split.

    Parameters
    ----------
    logits : (N, K). y : (N,) class indices.

    Returns
    -------
    accuracy, balanced_accuracy, macro_f1, auroc (binary: of class 1; else macro one-vs-rest), ece:
    fractions in [0, 1]; nll: nats; average_precision for two classes. A metric that the split does
    not define (AUROC with a class absent) is left out.
    """
    log_p = torch.log_softmax(logits.double(), -1).cpu()
    y = y.cpu()
    probabilities, predicted, target = log_p.exp().numpy(), log_p.argmax(-1).numpy(), y.numpy()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # sklearn's, on classes never predicted
        result = {
            "accuracy": sk.accuracy_score(target, predicted),
            "balanced_accuracy": sk.balanced_accuracy_score(target, predicted),
            "macro_f1": sk.f1_score(target, predicted, average="macro", zero_division=0),
            "nll": -log_p.gather(1, y[:, None]).mean().item(),
            "ece": calibration_error(probabilities, target),
        }
    classes = np.unique(target)
    if len(classes) == probabilities.shape[1] == 2:
        result["auroc"] = sk.roc_auc_score(target, probabilities[:, 1])
        result["average_precision"] = sk.average_precision_score(target, probabilities[:, 1])
    elif len(classes) == probabilities.shape[1]:
        result["auroc"] = sk.roc_auc_score(target, probabilities, multi_class="ovr")
    return {name: float(value) for name, value in result.items()}


def shuffled_order(count: int) -> Tensor:
    """Order (N,) in which a split of `count` rows meets a model whose predictions depend on batch mates.

    A function of the number alone: every run, method and device evaluates the same batches. The logits
    go back to the split's own order: ``logits[order] = model(x[order])``, batch by batch.
    """
    return torch.randperm(count, generator=torch.Generator().manual_seed(SHUFFLE_SEED))


def calibration_error(probabilities: np.ndarray, target: np.ndarray, bins: int = BINS) -> float:
    """Expected calibration error of the top class, equal-width bins (Guo et al. 2017).

    Parameters
    ----------
    probabilities : (N, K), rows sum to 1. target : (N,).
    """
    confidence = probabilities.max(1)
    correct = probabilities.argmax(1) == target
    place = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    count = np.bincount(place, minlength=bins)
    gap = np.bincount(place, correct, bins) - np.bincount(place, confidence, bins)
    return float(np.abs(gap)[count > 0].sum() / len(target))
