"""Two settings over the same seeds: intervals that hold as often as they say, and power."""

import itertools
import math
import statistics

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from adv_lib.comparison import holm, paired, power, seeds_needed

numbers = st.lists(st.tuples(st.floats(-5, 5), st.floats(-5, 5)), min_size=2, max_size=9)
draws = np.random.default_rng(0)


@given(numbers, st.sampled_from([0.8, 0.95]), st.sampled_from([1, 7]))
def test_the_interval_and_the_p_value_are_those_of_scipy(pairs, level, c):
    first, second = zip(*pairs, strict=True)
    differences = [a - b for a, b in pairs]
    if statistics.stdev(differences) < 1e-6:
        return
    got, expected = paired(first, second, level=level, comparisons=c), stats.ttest_rel(first, second)
    low, high = expected.confidence_interval(1 - (1 - level) / c)
    assert got.mean == pytest.approx(statistics.fmean(differences))
    assert (got.low, got.high) == pytest.approx((low, high), rel=1e-6, abs=1e-9)
    assert got.p_value == pytest.approx(min(1, c * expected.pvalue), rel=1e-6, abs=1e-12)


@given(numbers, st.sampled_from([0.8, 0.95]), st.sampled_from([1, 7]))
def test_the_interval_leaves_out_0_exactly_where_the_p_value_is_small(pairs, level, c):
    got = paired(*zip(*pairs, strict=True), level=level, comparisons=c)
    if abs(got.p_value - (1 - level)) > 1e-9:
        assert (got.low > 0 or got.high < 0) == (got.p_value < 1 - level)


def test_differences_that_are_all_the_same_are_a_point():
    assert paired([3, 4], [1, 2]) == (2, 2, 2, 0)
    assert paired([1, 2], [1, 2]) == (0, 0, 0, 1)


@pytest.mark.parametrize("c", [1, 5])
def test_the_intervals_hold_as_often_as_they_say(c):
    """Of 4,000 draws 95 % give or take 4 standard errors, 1.4 points; of c at once at least that."""
    held = 0
    for _ in range(4000 // c):
        first = draws.normal(0.3, 1, (c, 6))
        intervals = [paired(row, 0 * row, comparisons=c) for row in first]
        held += all(i.low <= 0.3 <= i.high for i in intervals)
    error = 4 * math.sqrt(0.95 * 0.05 / (4000 // c))
    assert 0.95 - error < held * c / 4000 < 0.951 + error


@pytest.mark.parametrize(("effect", "n", "level"), [(0.0, 5, 0.95), (1.0, 5, 0.95), (-1.5, 8, 0.99)])
def test_the_power_is_how_often_the_interval_leaves_out_0(effect, n, level):
    d = draws.normal(effect, 1, (4000, n))
    found = np.mean([paired(row, 0 * row, level=level).p_value < 1 - level for row in d])
    expected = power(effect, 1.0, n, level)
    assert abs(found - expected) < 4 * math.sqrt(expected * (1 - expected) / 4000)


def test_the_power_knows_no_unit_and_no_sign_and_grows_with_seeds_and_effect():
    assert power(0, 2.0, 5) == pytest.approx(0.05)
    assert power(1, 2, 6) == pytest.approx(power(-10, 20, 6))
    by_seeds = [power(1, 1, n) for n in range(2, 30)]
    by_effect = [power(0.1 * k, 1, 4) for k in range(200)]
    for values in (by_seeds, by_effect):
        assert all(b >= a - 1e-9 for a, b in itertools.pairwise(values))
        assert 0 < values[0] < values[-1] <= 1
    assert power(1000, 1, 3) == 1


@given(st.floats(0.05, 5), st.floats(0.05, 0.99), st.sampled_from([0.8, 0.95, 0.99]))
def test_so_many_seeds_are_needed_and_no_fewer(effect, wanted, level):
    n = seeds_needed(effect, 1.0, wanted, level)
    assert power(effect, 1.0, n, level) >= wanted
    assert n == 2 or power(effect, 1.0, n - 1, level) < wanted


def test_the_numbers_of_seeds_are_those_of_the_tables():
    """Cohen 1988: 34 pairs for half a deviation, 90 % take 44."""
    assert seeds_needed(0.5, 1.0) == 34
    assert seeds_needed(0.5, 1.0, 0.9) == 44


def test_holm_is_worked_out_by_hand():
    assert holm([0.04, 0.01, 0.03]) == pytest.approx((0.06, 0.03, 0.06))
    assert holm([0.9, 0.8]) == (1.0, 1.0)
    assert holm([0.2]) == (0.2,)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_keeps_the_order_and_is_between_p_and_bonferroni(p):
    adjusted = holm(p)
    assert all(a <= b <= min(1, len(p) * a) + 1e-12 for a, b in zip(p, adjusted, strict=True))
    ranked = [b for _, b in sorted(zip(p, adjusted, strict=True))]
    assert ranked == sorted(ranked)


def test_holm_rejects_a_true_null_as_rarely_as_it_says():
    """8 of 10 nulls are true; any false rejection in at most 5 % of 3,000 draws, and 4 errors."""
    wrong = 0
    for _ in range(3000):
        p = [*draws.uniform(size=8), *draws.uniform(size=2) * 1e-3]
        wrong += min(holm(p)[:8]) < 0.05
    assert wrong / 3000 < 0.05 + 4 * math.sqrt(0.05 * 0.95 / 3000)
