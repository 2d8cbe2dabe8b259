"""A rate with its count and its interval."""

import dataclasses
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from adv_lib.evaluation import Rate, rate


def tensor(count, n):
    return torch.arange(n) < count


counts = st.integers(1, 2000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n)))


@given(counts)
def test_the_interval_is_wilsons(pair):
    count, n = pair
    got, p, z = rate(tensor(count, n)), count / n, 1.959963984540054
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    assert (got.count, got.n, got.value) == (count, n, p)
    assert got.low == pytest.approx(centre - half, abs=1e-12)
    assert got.high == pytest.approx(centre + half, abs=1e-12)


@given(counts)
def test_the_rate_lies_in_its_interval_and_the_interval_in_0_to_1(pair):
    got = rate(tensor(*pair))
    assert 0 <= got.low <= got.value <= got.high <= 1
    assert got.low < got.high


@given(counts)
def test_counting_the_opposite_mirrors_the_interval(pair):
    happened = tensor(*pair)
    got, opposite = rate(happened), rate(~happened)
    assert got.low == pytest.approx(1 - opposite.high, abs=1e-12)
    assert got.high == pytest.approx(1 - opposite.low, abs=1e-12)


def test_ten_times_the_samples_narrow_the_interval():
    few, many = rate(tensor(3, 10)), rate(tensor(30, 100))
    assert few.low < many.low < many.high < few.high


def test_a_rate_reads_with_its_count_and_its_interval():
    assert str(rate(tensor(3, 40))) == "7.5 % (3 of 40; 95 % interval 2.6–19.9 %)"


def test_a_rate_does_not_change():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Rate(1, 2, 0.0, 1.0).count = 2
