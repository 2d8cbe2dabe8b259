"""Honest numbers: a rate never comes without its count and its interval."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Rate:
    """How often something happened: `count` times out of `n`, with a 95 % interval [low, high].

    The interval is Wilson's for a binomial proportion [Wilson 1927]: it says how far the rate could
    be off because the test set is finite, and nothing about other test sets.
    """

    count: int
    n: int
    low: float
    high: float

    @property
    def value(self) -> float:
        """The rate itself, between 0 and 1."""
        return self.count / self.n

    def __str__(self) -> str:
        return (
            f"{100 * self.value:.1f} % ({self.count} of {self.n}; "
            f"95 % interval {100 * self.low:.1f}–{100 * self.high:.1f} %)"
        )


def rate(happened: Tensor) -> Rate:
    """The share of True in a boolean tensor (n,), n ≥ 1, with its 95 % interval.

    Raises ValueError for anything else.
    """
    from scipy.stats import binomtest

    if happened.dtype != torch.bool or happened.ndim != 1 or len(happened) == 0:
        raise ValueError(
            f"expected a non-empty boolean tensor (n,), got {happened.dtype} {tuple(happened.shape)}"
        )
    count, n = int(happened.sum()), len(happened)
    interval = binomtest(count, n).proportion_ci(0.95, method="wilson")
    return Rate(count, n, interval.low, interval.high)
