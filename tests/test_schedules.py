"""Step sizes over a run: where they begin, turn and end."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adv_lib import schedules

ALL = {
    "step": schedules.step(0.3),
    "linear": schedules.linear(0.3),
    "cosine": schedules.cosine(0.3),
    "one cycle": schedules.one_cycle(0.3),
    "warm": schedules.warm_up(schedules.step(0.3), 0.1),
}
CORNERS = {  # part done: share of lr
    "step": {0: 1, 0.499: 1, 0.5: 0.1, 0.749: 0.1, 0.75: 0.01, 1: 0.01},
    "linear": {0: 1, 0.25: 0.75, 1: 0},
    "cosine": {0: 1, 1 / 3: 0.75, 0.5: 0.5, 1: 0},
    "one cycle": {0: 0, 0.2: 0.5, 0.4: 1, 0.7: 0.5, 1: 0},
    "warm": {0: 0, 0.05: 0.5, 0.1: 1, 0.5: 0.1},
}


@pytest.mark.parametrize("name", ALL)
def test_a_schedule_has_these_corners(name):
    for done, share in CORNERS[name].items():
        assert ALL[name](done) == pytest.approx(0.3 * share, abs=1e-12), done


@given(st.floats(0, 1), st.sampled_from(sorted(ALL)))
def test_no_schedule_is_negative_or_larger_than_lr(done, name):
    assert 0 <= ALL[name](done) <= 0.3 * (1 + 1e-12)


@given(st.floats(0, 1), st.floats(0, 1), st.sampled_from(["step", "linear", "cosine"]))
def test_without_a_warm_up_a_rate_never_grows(a, b, name):
    assert ALL[name](min(a, b)) >= ALL[name](max(a, b))


def test_parts_and_the_factor_of_the_steps_are_the_callers():
    rate = schedules.step(1.0, at=(0.2,), factor=0.5)
    assert (rate(0.1), rate(0.2), rate(0.9)) == (1.0, 0.5, 0.5)
    assert schedules.step(1.0, at=())(1.0) == 1.0


def test_each_gives_a_rate_to_every_member_and_scaled_grows_with_the_batch():
    both = schedules.each([schedules.linear(1.0), schedules.one_cycle(2.0)])
    assert both(0.4) == pytest.approx((0.6, 2.0))
    assert schedules.scaled(0.1, 512) == pytest.approx(0.4)
    assert schedules.scaled(0.1, 100, base=100) == 0.1
    assert math.isclose(schedules.scaled(0.1, 64), 0.05)
