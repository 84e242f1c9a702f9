"""Metrics of a split from its logits: the paper's, and test NLL and calibration error beside them."""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from sklearn import metrics as sk
from torch import Tensor

from benchmarks.errors import BenchmarkError, UnknownName

if TYPE_CHECKING:
    from benchmarks.data import Data

BINS = 15
SHUFFLE_SEED = 0  # for ever: it decides which rows a prediction is made with
NAMES = (
    "accuracy",
    "auroc",
    "average_precision",
    "balanced_accuracy",
    "ece",
    "macro_f1",
    "nll",
)
# Rankings of one class against the others: undefined on a split that lacks a class.
NEED_EVERY_CLASS = ("auroc", "average_precision")


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


def checked(data: Data, metric: str) -> Data:
    """Make sure, before training, that a run's primary metric exists where it is to be measured.

    Returns
    -------
    Data
        The same, with a note where the metric is undefined on the validation split: the best
        validation epoch is then no selection, and the last epoch stands alone.

    Raises
    ------
    UnknownName
        No metric has this name.
    BenchmarkError
        A held-out split has no rows, or the metric is undefined on a test split, where a class is
        absent.
    """
    if metric not in NAMES:
        raise UnknownName("metric", metric, NAMES)
    if metric == "average_precision" and data.num_classes != 2:
        raise BenchmarkError(
            f"{data.name}: average_precision is measured for two classes, not {data.num_classes}; "
            "take auroc or accuracy"
        )
    notes = []
    for name, split in data.evaluated.items():
        name = "validation" if name == "val" else name
        if len(split) == 0:
            raise BenchmarkError(
                f"{data.name}: the {name} split has no rows to measure {metric} on"
            )
        absent = absent_classes(split.y, data) if metric in NEED_EVERY_CLASS else ""
        what = f"{data.name}: the {name} split ({len(split):,} rows) has none of {absent}"
        if absent and name != "validation":
            raise BenchmarkError(
                f"{what}, and {metric} is undefined there; take more rows or another metric"
            )
        if absent:
            notes.append(f"{what}: {metric} is undefined there and no best validation epoch chosen")
    return replace(data, notes=(*data.notes, *notes)) if notes else data


def absent_classes(y: Tensor, data: Data) -> str:
    """Name the classes that none of the labels y (N,) is of; empty where there are none."""
    count = torch.bincount(y, minlength=data.num_classes)
    names = data.class_names or tuple(str(number) for number in range(data.num_classes))
    return _listed([names[number] for number in (count == 0).nonzero().flatten().tolist()])


def _listed(classes: list[str]) -> str:
    if not classes:
        return ""
    shown = ", ".join(repr(name) for name in classes[:3])
    more = f" and {len(classes) - 3} more" if len(classes) > 3 else ""
    return f"class{'es' if len(classes) > 1 else ''} {shown}{more}"
