"""Metrics of Table 4: macro-F1 over the classes present in a split, as WILDS defines it."""

from __future__ import annotations

import numpy as np
from sklearn.metrics import f1_score
from torch import Tensor

from benchmarks import metrics


def measure(logits: Tensor, y: Tensor) -> dict[str, float]:
    """Metrics of a split, with macro-F1 over the classes that occur in it.

    A class that is predicted but absent from the split lowers the precision of the true ones and has
    no F1 of its own; scikit-learn's default would average a 0 in for it.

    Parameters
    ----------
    logits : (N, K). y : (N,) class indices.
    """
    target, predicted = y.cpu().numpy(), logits.argmax(-1).cpu().numpy()
    score = f1_score(target, predicted, labels=np.unique(target), average="macro", zero_division=0)
    return {**metrics.evaluate(logits, y), "macro_f1": float(score)}
