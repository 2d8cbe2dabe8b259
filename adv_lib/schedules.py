"""Step sizes that change over a run, for `training.fit(lr=…)`: part of the run done ↦ rate.

The part goes from 0 to 1, in batches. lr is the largest rate, a number > 0. `each` puts schedules of one
number together for a `stack.Stack`. All raise ValueError for another lr.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from numbers import Real

from ._given import kind, within

Schedule = Callable[[float], float]


def step(lr: float, at: Sequence[float] = (0.5, 0.75), factor: float = 0.1) -> Schedule:
    """lr · factorᵏ, when k of the parts `at` are done: piecewise constant.

    at: increasing, between 0 and 1.  factor: > 0.  Raises ValueError for others.
    """
    _check(lr)
    at = tuple(at)
    if not within(at, 0, 1) or list(at) != sorted(set(at)) or not 0 < factor < math.inf:
        raise ValueError(f"expected at increasing from 0 to 1 and factor > 0, got {at} and {factor!r}")
    return lambda done: lr * factor ** sum(done >= part for part in at)


def linear(lr: float) -> Schedule:
    """lr (1 − t): straight down to 0."""
    _check(lr)
    return lambda done: lr * (1 - done)


def cosine(lr: float) -> Schedule:
    """lr (1 + cos πt) / 2: down to 0 along half a wave.

    Source: Loshchilov & Hutter 2017, eq. (5), without restarts.
    """
    _check(lr)
    return lambda done: lr * (1 + math.cos(math.pi * done)) / 2


def one_cycle(lr: float, peak: float = 0.4) -> Schedule:
    """Straight up from 0 to lr at the part `peak`, then straight down to 0.

    peak: 0 < peak < 1.  Raises ValueError for others.  Source: Smith 2017; Wong, Rice & Kolter 2020.
    """
    _check(lr)
    if not 0 < peak < 1:
        raise ValueError(f"expected 0 < peak < 1, got {peak!r}")
    return lambda done: lr * min(done / peak, (1 - done) / (1 - peak))


def warm_up(schedule: Schedule, over: float) -> Schedule:
    """min(1, t/over) · schedule(t): the first batch takes a step of 0.

    over: the part of the run after which the rate is the schedule's, 0 < over ≤ 1.
    Raises ValueError for others.  Source: Goyal et al. 2017, section 2.2.
    """
    _check_schedules(schedule)
    if not 0 < over <= 1:
        raise ValueError(f"expected 0 < over ≤ 1, got {over!r}")
    return lambda done: min(1.0, done / over) * schedule(done)


def each(schedules: Sequence[Schedule]) -> Callable[[float], tuple[float, ...]]:
    """The rates of several schedules, one for each member of a `stack.Stack`.

    Raises ValueError for none, and for what cannot be called.
    """
    schedules = tuple(schedules)
    _check_schedules(*schedules)
    return lambda done: tuple(schedule(done) for schedule in schedules)


def scaled(lr: float, batch_size: int, base: int = 128) -> float:
    """lr · batch_size / base: an lr that suits batches of `base`, for others.

    Raises ValueError unless both sizes are whole and at least 1.
    Source: Goyal et al. 2017, section 2.1.
    """
    _check(lr)
    if not all(isinstance(size, int) and size >= 1 for size in (batch_size, base)):
        raise ValueError(f"expected batch_size and base ≥ 1, whole, got {batch_size!r} and {base!r}")
    return lr * batch_size / base


def _check(lr: float) -> None:
    if not isinstance(lr, Real) or not 0 < lr < math.inf:
        raise ValueError(f"expected a number 0 < lr < ∞, got {lr!r}")


def _check_schedules(*schedules: Schedule) -> None:
    if not schedules or not all(map(callable, schedules)):
        got = ", ".join(map(kind, schedules)) or "none"
        raise ValueError(f"expected schedules, from the part done to a rate, got {got}")
