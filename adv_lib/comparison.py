"""Do two settings differ? Pairs of runs that share a seed, and how many of them it takes to say so.

A seed decides the initial weights and the batches, so that two settings with the same seed have much in
common: their difference varies less than either. What is asked is whether its mean over all seeds is 0,
by Student's t, which takes the differences for normal. Nothing is said about another test set.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

from ._given import within

MOST = 10**6  # seeds that anyone would ask for


class Paired(NamedTuple):
    """The mean of the differences, an interval for it, and the p-value of the mean being 0."""

    mean: float
    low: float
    high: float
    p_value: float


def paired(
    first: Sequence[float], second: Sequence[float], *, level: float = 0.95, comparisons: int = 1
) -> Paired:
    """d̄ ± t s/√n for the differences d = first − second, seed by seed.

    t is the quantile at 1 − (1 − level)/2c of Student's t with n − 1 degrees of freedom, s the standard
    deviation of d. With c comparisons, all c intervals hold together with probability `level` or more
    (Bonferroni); the p-value is multiplied by c, to at most 1. The interval leaves out 0 exactly where
    the p-value is below 1 − level. If all d are the same, the interval is that point.

    first, second: one number a seed, in the same order.
    level: between 0 and 1.  comparisons: c ≥ 1, how many such pairs of settings are looked at.
    Raises ValueError for fewer than two seeds, different lengths, and numbers that are not finite.
    Source: Student 1908; Dunn 1961 (the c comparisons).
    """
    from scipy.special import stdtr, stdtrit  # Student's t and its quantiles

    first, second = [float(v) for v in first], [float(v) for v in second]
    _check_level(level)
    n = len(first)
    if n != len(second) or n < 2 or not all(map(math.isfinite, first + second)):
        raise ValueError(
            "expected two lists of as many finite numbers, one a seed, at least two, "
            f"got {n} and {len(second)}: {first} and {second}"
        )
    if not isinstance(comparisons, int) or comparisons < 1:
        raise ValueError(f"expected comparisons ≥ 1, got {comparisons!r}")
    differences = [a - b for a, b in zip(first, second, strict=True)]
    mean, error = statistics.fmean(differences), statistics.stdev(differences) / math.sqrt(n)
    half = float(stdtrit(n - 1, 1 - (1 - level) / (2 * comparisons))) * error
    ratio = abs(mean) / error if error else math.inf
    p_value = 2 * float(stdtr(n - 1, -ratio)) if mean else 1.0
    return Paired(mean, mean - half, mean + half, min(1.0, comparisons * p_value))


def holm(p_values: Sequence[float]) -> tuple[float, ...]:
    """p-values for all of m tests at once: max_{j≤i} min(1, (m − j + 1) p_(j)) for the i-th smallest.

    Reject where the result is below α: the probability of any false rejection is at most α, whatever is
    true and however the tests depend on each other. It rejects wherever m · p does, and more.
    Returns one number a p-value, in the order given.
    Raises ValueError for none, and for numbers outside [0, 1].  Source: Holm 1979.
    """
    p_values = tuple(p_values)
    if not p_values or not within(p_values, 0, 1):
        raise ValueError(f"expected p-values from 0 to 1, at least one, got {p_values}")
    m, largest, adjusted = len(p_values), 0.0, [0.0] * len(p_values)
    for place, i in enumerate(sorted(range(m), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (m - place) * float(p_values[i])))
        adjusted[i] = largest
    return tuple(adjusted)


def power(effect: float, deviation: float, seeds: int, level: float = 0.95) -> float:
    """The probability that the interval of `paired` leaves out 0, if the differences are N(effect, s²).

    P(|T| > t) for T noncentral t with n − 1 degrees of freedom and noncentrality √n · effect/s.
    effect, deviation: the mean and the standard deviation s > 0 of the differences, in the same unit.
    seeds: n ≥ 2.  level: that of one interval; for c comparisons 1 − (1 − level)/c.
    Raises ValueError for others.
    """
    return _power(effect, deviation, seeds, level)


def _power(effect: float, deviation: float, seeds: int, level: float) -> float:
    """`power`, whose name `seeds_needed` has for a number."""
    from scipy.special import stdtrit
    from scipy.stats import nct  # slow to import

    _check_level(level)
    if not math.isfinite(effect) or not 0 < deviation < math.inf:
        raise ValueError(f"expected a finite effect and a deviation > 0, got {effect!r}, {deviation!r}")
    if not isinstance(seeds, int) or seeds < 2:
        raise ValueError(f"expected seeds ≥ 2, got {seeds!r}")
    shift, t = math.sqrt(seeds) * abs(effect) / deviation, stdtrit(seeds - 1, (1 + level) / 2)
    above, below = float(nct.sf(t, seeds - 1, shift)), float(nct.cdf(-t, seeds - 1, shift))
    return min(1.0, above + (0.0 if math.isnan(below) else below))  # which SciPy says where it is tiny


def seeds_needed(effect: float, deviation: float, power: float = 0.8, level: float = 0.95) -> int:
    """The smallest number of seeds, at least 2, with which `power` is at least this.

    effect, deviation, level: as in `power`; the effect is not 0.  power: above 0 and below 1.
    Raises ValueError for others, and where it would take more than a million.
    """
    if not 0 < power < 1 or effect == 0:
        raise ValueError(f"expected 0 < power < 1 and an effect other than 0, got {power!r}, {effect!r}")
    low, high = 1, 2
    reached = partial(_power, effect, deviation, level=level)
    while reached(high) < power:
        low, high = high, 2 * high
        if low > MOST:
            raise ValueError(
                f"expected an effect that a million seeds can show, got {effect!r} for a deviation "
                f"of {deviation!r}"
            )
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if reached(middle) >= power else (middle, high)
    return high


def _check_level(level: float) -> None:
    if not 0 < level < 1:
        raise ValueError(f"expected 0 < level < 1, got {level!r}")
