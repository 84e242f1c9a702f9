"""Purification curves of a stand-in set, as data and as a figure (Table 3). Imports no torch."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.errors import BenchmarkError

MEASURES = ("precision", "recall", "recovered", "wronged")


@dataclass(frozen=True, kw_only=True)
class Purification:
    """Curves of one row over epochs, one list a seed, fractions in [0, 1].

    Attributes
    ----------
    precision : share of swapped images among the found; NaN is written as null where none was found.
    recall : share of the swapped images that were found.
    recovered : share of the swapped images whose learned label is the class they show.
    wronged : share of the unswapped images that were found.
    accuracy : test accuracy at the last epoch, one number a seed.
    """

    row: str
    content: str
    swapped: int
    images: int
    epochs: list[int]
    precision: list[list[float | None]]
    recall: list[list[float | None]]
    recovered: list[list[float | None]]
    wronged: list[list[float | None]]
    accuracy: list[float]


def figure(results: Path) -> Path:
    """Draw precision, recall and recovered share over epochs from the measured rows, mean of seeds."""
    from benchmarks.tables.figures import COLORS, blank, save

    rows = _measured(results)
    if not rows:
        raise BenchmarkError(f"{results} holds no purification curves: run `purify` first")
    titles = {
        "precision": "precision of what was found",
        "recall": "recall of swapped images",
        "recovered": "swapped images given their class",
        "wronged": "good images taken for swapped",
    }
    chart = blank(15, 3.9)
    axes = chart.subplots(1, 4, sharey=True)
    for axis, (name, title) in zip(axes, titles.items(), strict=True):
        for row in rows:
            values = np.array(getattr(row, name), dtype=float)
            axis.plot(
                row.epochs,
                100 * _mean(values),
                label=row.row,
                color=COLORS.get(row.row),
                linewidth=1.6,
            )
        axis.set(title=title, xlabel="epoch", ylim=(-2, 102))
        axis.grid(alpha=0.3)
    first = rows[0]
    axes[0].axhline(100 * first.swapped / first.images, color="black", linestyle=":", linewidth=1)
    axes[0].set_ylabel("%")
    chart.legend(*axes[-1].get_legend_handles_labels(), loc="outside right upper", fontsize=9)
    seeds = len(first.accuracy)
    chart.suptitle(
        f"STAND-IN for generated images: {first.swapped} of {first.images} show another class "
        f"(dotted: precision by chance); mean of {seeds} seeds",
        fontsize=10,
    )
    target = results / "figures" / "stand-in-purification.png"
    save(chart, target)
    return target


def summary(results: Path) -> list[str]:
    """One line a row: what it found in the last epoch, mean over seeds."""
    lines = []
    for row in _measured(results):
        last = {
            name: float(_mean(np.array(getattr(row, name), dtype=float)[:, -1:])[0])
            for name in MEASURES
        }
        shown = ", ".join(f"{name} {100 * value:.0f} %" for name, value in last.items())
        lines.append(f"{row.row}: {shown}; accuracy {100 * np.mean(row.accuracy):.1f} %")
    return lines


def _measured(results: Path) -> list[Purification]:
    """Read the rows measured so far, best precision at the end last."""
    rows = [
        Purification(**json.loads(path.read_text(encoding="utf-8")))
        for path in sorted((results / "purification").glob("*.json"))
    ]
    return sorted(rows, key=lambda row: float(_mean(np.array(row.precision, dtype=float))[-1]))


def _mean(values: np.ndarray) -> np.ndarray:
    """Mean over seeds (S, E) -> (E,), leaving out what is undefined; NaN where all are."""
    known = ~np.isnan(values)
    total = np.where(known, values, 0).sum(0)
    return np.divide(total, known.sum(0), out=np.full(values.shape[1], np.nan), where=known.any(0))
