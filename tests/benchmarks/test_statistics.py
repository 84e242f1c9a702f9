"""Means, paired tests, Holm's correction and verdicts, against scipy, numpy and brute force."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy import stats

from benchmarks.tables.statistics import Paired, holm, mean_std, paired, verdict

numbers = st.floats(-50, 50, allow_nan=False).map(lambda v: round(v, 3))


@given(st.lists(numbers, min_size=2, max_size=12))
def test_mean_and_deviation_are_numpys_with_ddof_1(values):
    mean, std = mean_std(values)
    assert mean == pytest.approx(np.mean(values), abs=1e-9)
    assert std == pytest.approx(np.std(values, ddof=1), abs=1e-9)


def test_mean_of_one_has_no_deviation_and_of_none_no_value():
    assert mean_std([3.5])[0] == 3.5
    assert math.isnan(mean_std([3.5])[1])
    assert all(map(math.isnan, mean_std([])))


@pytest.mark.parametrize(
    ("values", "mean"),
    [([1.0, math.inf], math.inf), ([-math.inf], -math.inf), ([math.inf, -math.inf], math.nan)],
)
def test_infinite_values_are_not_hidden(values, mean):
    got, std = mean_std(values)
    assert got == mean or (math.isnan(got) and math.isnan(mean))
    assert math.isnan(std)


@given(st.lists(st.tuples(numbers, numbers), min_size=2, max_size=12))
def test_paired_equals_scipys_paired_t_test(pairs):
    a, b = np.array(pairs).T
    assume(np.std(a - b, ddof=1) > 1e-3)
    result = paired(list(a - b))
    reference = stats.ttest_rel(a, b)
    low, high = reference.confidence_interval(0.95)
    assert result.n == len(pairs)
    assert result.p == pytest.approx(reference.pvalue, rel=1e-6, abs=1e-12)
    assert (result.low, result.high) == pytest.approx((low, high), rel=1e-6, abs=1e-9)


def test_one_pair_and_none_have_no_interval():
    for differences in ([], [1.2]):
        result = paired(differences)
        assert result.n == len(differences)
        assert math.isnan(result.low)
        assert math.isnan(result.high)
        assert math.isnan(result.p)
        assert "no interval" in result.reason
        assert verdict(result, ">") == "undecided"


@pytest.mark.parametrize("difference", [0.0, 0.28, -3.0])
def test_differences_without_spread_decide_nothing(difference):
    """Three seeds that each gained the same two test samples would otherwise give p = 0."""
    result = paired([difference] * 3)
    assert result.difference == pytest.approx(difference)
    assert math.isnan(result.p)
    assert verdict(result, ">=") == "undecided"


def test_rounding_noise_is_no_spread():
    differences = [0.1 + 0.2, 0.3, 0.30000000000000004]
    assert len(set(differences)) > 1
    assert "same difference" in paired(differences).reason


@given(st.lists(st.floats(0, 1), max_size=6))
def test_holm_equals_its_definition(p_values):
    """Adjusted p_(k) = max over j <= k of min(1, (m - j + 1) p_(j)), by trying every order of ties."""
    m = len(p_values)
    order = sorted(range(m), key=lambda i: p_values[i])
    expected = {}
    for k, i in enumerate(order):
        expected[i] = max(min(1.0, (m - j) * p_values[order[j]]) for j in range(k + 1))
    assert holm(p_values) == pytest.approx([expected[i] for i in range(m)])


@given(st.lists(st.floats(0, 0.2), min_size=1, max_size=6))
def test_holm_rejects_what_the_step_down_procedure_rejects(p_values):
    m, rejected = len(p_values), set()
    for step, i in enumerate(sorted(range(m), key=lambda i: p_values[i])):
        if p_values[i] > 0.05 / (m - step):
            break
        rejected.add(i)
    adjusted = holm(p_values)
    for i, p in enumerate(p_values):
        if not any(math.isclose(p, 0.05 / k, rel_tol=1e-9) for k in range(1, m + 1)):
            assert (adjusted[i] <= 0.05) == (i in rejected)


def test_holm_leaves_out_what_has_no_p():
    adjusted = holm([0.01, math.nan, 0.04])
    assert adjusted[0] == pytest.approx(0.02)
    assert math.isnan(adjusted[1])
    assert adjusted[2] == pytest.approx(0.04)


@pytest.mark.parametrize(
    ("low", "high", "by_direction"),
    [
        (
            0.1,
            0.9,
            {">": "reproduced", ">=": "reproduced", "<": "contradicted", "<=": "contradicted"},
        ),
        (
            -0.9,
            -0.1,
            {">": "contradicted", ">=": "contradicted", "<": "reproduced", "<=": "reproduced"},
        ),
        (-0.1, 0.9, dict.fromkeys([">", ">=", "<", "<="], "undecided")),
        (0.0, 0.9, {">": "undecided", ">=": "reproduced", "<": "undecided", "<=": "undecided"}),
        (-0.9, 0.0, {">": "undecided", ">=": "undecided", "<": "undecided", "<=": "reproduced"}),
    ],
)
def test_verdict_follows_the_interval(low, high, by_direction):
    result = Paired(5, (low + high) / 2, low, high, 0.5)
    assert {d: verdict(result, d) for d in by_direction} == by_direction


def test_turning_a_claim_round_turns_nothing_else():
    for low, high in itertools.product([-1.0, -0.5], [-0.2, 0.0, 0.3]):
        ours = Paired(5, (low + high) / 2, low, high, 0.5)
        theirs = Paired(5, -(low + high) / 2, -high, -low, 0.5)
        assert verdict(ours, ">") == verdict(theirs, "<")
        assert verdict(ours, ">=") == verdict(theirs, "<=")
