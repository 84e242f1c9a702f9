"""Means, paired differences by seed, Holm's correction and verdicts (protocol, "Claims")."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

CONFIDENCE = 0.95
Verdict = Literal["reproduced", "contradicted", "undecided"]


@dataclass(frozen=True)
class Paired:
    """Mean of n paired differences with its two-sided t-interval and p-value.

    `low`, `high` and `p` are nan where no interval exists: fewer than two pairs, or differences without
    spread. `reason` then says which.
    """

    n: int
    difference: float
    low: float = math.nan
    high: float = math.nan
    p: float = math.nan
    reason: str = ""


def mean_std(values: Sequence[float]) -> tuple[float, float]:
    """Mean and sample standard deviation (ddof = 1) of a list of numbers.

    An infinite value makes the mean infinite; the deviation is nan for fewer than two values or where
    the mean is infinite; both are nan for no value.
    """
    if not values:
        return math.nan, math.nan
    mean = math.fsum(values) / len(values) if all(map(math.isfinite, values)) else sum(values)
    if len(values) < 2 or not math.isfinite(mean):
        return mean, math.nan
    return mean, math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (len(values) - 1))


def paired(differences: Sequence[float]) -> Paired:
    """Two-sided paired t-test of zero mean difference, with the 95 % interval.

    Parameters
    ----------
    differences : finite differences, one for each seed that both rows have.

    Notes
    -----
    Differences without any spread, for example seeds that all gained the same two test samples, would give
    an interval of no width and p = 0 on however few seeds. No interval is computed from them.
    """
    n = len(differences)
    mean, std = mean_std(differences)
    if n < 2:
        return Paired(n, mean, reason=f"{n} paired seed{'' if n == 1 else 's'}, no interval")
    if std <= 1e-9 * max(1.0, abs(mean)):
        return Paired(n, mean, reason="the same difference in every seed, no interval")
    from scipy.special import stdtr, stdtrit  # a tenth of the import time of scipy.stats

    error = std / math.sqrt(n)
    half = float(stdtrit(n - 1, (1 + CONFIDENCE) / 2)) * error
    p = 2 * float(stdtr(n - 1, -abs(mean) / error))
    return Paired(n, mean, mean - half, mean + half, p)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjusted p-values, in the order given; nan stays nan and does not count."""
    order = sorted((p, i) for i, p in enumerate(p_values) if not math.isnan(p))
    adjusted, largest = [math.nan] * len(p_values), 0.0
    for rank, (p, i) in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - rank) * p))
        adjusted[i] = largest
    return adjusted


def verdict(result: Paired, direction: str) -> Verdict:
    """Grade a claim by the interval of the paired difference (row minus baseline).

    =========  ==============  ================
    direction  reproduced      contradicted
    =========  ==============  ================
    ``>``      low > 0         high < 0
    ``>=``     low >= 0        high < 0
    ``<``      high < 0        low > 0
    ``<=``     high <= 0       low > 0
    =========  ==============  ================

    Everything else is undecided: the interval crosses 0, or there is none. A claim of "not worse" (``>=``)
    is thus graded no more leniently than one of "better": an interval around 0 leaves it undecided.
    """
    if math.isnan(result.low):
        return "undecided"
    low, high = (result.low, result.high) if ">" in direction else (-result.high, -result.low)
    if low > 0 or (low == 0 and "=" in direction):
        return "reproduced"
    return "contradicted" if high < 0 else "undecided"
