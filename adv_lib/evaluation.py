"""Honest numbers: a rate never comes without its count and its interval.

Robust accuracy from attacks is an upper bound: of a sample that no attack breaks we know nothing more.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from torch import Tensor

from . import losses
from .models import evaluating
from .threat import Ball

Attack = Callable[..., Tensor]  # (model, x, y, ball) → δ


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


def survivors(
    model: Callable[[Tensor], Tensor],
    x: Tensor,
    y: Tensor,
    ball: Ball,
    attacks: Sequence[Attack] = (),
    *,
    batch_size: int = 1000,
) -> Tensor:
    """Which samples are right as they are and under every δ that the attacks find.  Returns (n,) bool.

    attacks: functions (model, x, y, ball) → δ, such as those of `attacks` or a `functools.partial` of
             one. Each is given the samples that withstood the ones before; a tie counts as broken.
    Raises ValueError if an attack leaves Δ(x), and for n = 0.
    """
    if len(x) == 0 or len(x) != len(y) or batch_size < 1:
        raise ValueError(
            "expected as many inputs as labels, at least one, and batch_size ≥ 1, "
            f"got {len(x)}, {len(y)} and {batch_size!r}"
        )
    alive = _right(model, x, y, batch_size)
    for attack in attacks:
        for batch in alive.nonzero().squeeze(1).split(batch_size):
            if len(batch) == 0:  # none is left
                return alive
            part = ball.of(batch)
            delta = attack(model, x[batch], y[batch], part)
            if delta.shape != x[batch].shape or not part.contains(delta, x[batch]).all():
                raise ValueError(f"{attack} returned {tuple(delta.shape)} outside {part}")
            alive[batch] = _right(model, x[batch] + delta, y[batch], batch_size)
    return alive


def robust_accuracy(
    model: Callable[[Tensor], Tensor],
    x: Tensor,
    y: Tensor,
    ball: Ball,
    attacks: Sequence[Attack] = (),
    *,
    batch_size: int = 1000,
) -> Rate:
    """The share of `survivors`: an upper bound on the robust accuracy; without attacks the accuracy."""
    return rate(survivors(model, x, y, ball, attacks, batch_size=batch_size))


def robust_accuracy_curve(
    model: Callable[[Tensor], Tensor],
    x: Tensor,
    y: Tensor,
    ball: Ball,
    attacks: Sequence[Attack],
    radii: Sequence[float],
    *,
    batch_size: int = 1000,
) -> list[Rate]:
    """The robust accuracy for each ε in radii, which must not fall: one `Rate` for each.

    A δ in a small ball is in every larger one, so what broke at one ε stays broken at the next: the
    curve cannot rise. The ball's own eps is not used.
    """
    if any(b < a for a, b in pairwise(radii)) or len(x) != len(y):
        raise ValueError(
            "expected radii in increasing order and as many inputs as labels, "
            f"got {list(radii)}, {len(x)} and {len(y)}"
        )
    balls = [replace(ball, eps=eps) for eps in radii]  # a bad ε is named before the first attack
    alive, rates = torch.ones(len(x), dtype=torch.bool, device=x.device), []
    for at in balls:
        left = alive.nonzero().squeeze(1)
        if len(left):
            alive[left] = survivors(model, x[left], y[left], at, attacks, batch_size=batch_size)
        rates.append(rate(alive))
    return rates


def loss_along(
    model: Callable[[Tensor], Tensor],
    x: Tensor,
    y: Tensor,
    directions: Sequence[Tensor],
    *distances: Tensor,
    loss: Callable[[Tensor, Tensor], Tensor] = losses.cross_entropy,
) -> Tensor:
    """ℓ(x + t₁ u₁ + t₂ u₂ + …, y) of one sample, on the grid of all t₁, t₂, …: a line, a plane.

    x: (1, *shape), y: (1,), directions u: each (1, *shape); distances: one vector for each direction.
    Returns a tensor of shape (len(distances[0]), len(distances[1]), …).
    """
    if len(x) != 1 or y.shape != (1,) or not distances or len(directions) != len(distances):
        raise ValueError(
            "expected one sample, its label (1,), and as many distances as directions, at least one, "
            f"got {len(x)}, {tuple(y.shape)}, {len(distances)} and {len(directions)}"
        )
    if any(u.shape != x.shape or u.dtype != x.dtype for u in directions):
        found = [f"{u.dtype} {tuple(u.shape)}" for u in directions]
        raise ValueError(f"expected directions like x, {x.dtype} {tuple(x.shape)}, got {found}")
    if any(t.ndim != 1 for t in distances):
        raise ValueError(f"expected distances (t,), got {[tuple(t.shape) for t in distances]}")
    grid = torch.cartesian_prod(*distances).reshape(-1, len(distances)).to(x)
    moves = grid @ torch.cat([u.reshape(1, -1) for u in directions])
    with evaluating(model), torch.no_grad():
        values = loss(model(x + moves.reshape(-1, *x.shape[1:])), y.expand(len(grid)))
    if values.shape != (len(grid),):
        raise ValueError(f"expected a loss with one number a sample, got {tuple(values.shape)}")
    return values.reshape([len(t) for t in distances])


def _right(model: Callable[[Tensor], Tensor], x: Tensor, y: Tensor, batch_size: int) -> Tensor:
    """Whether class y leads all others, (n,) bool."""
    with evaluating(model), torch.no_grad():
        parts = zip(x.split(batch_size), y.split(batch_size), strict=True)
        return torch.cat([losses.margin(model(a), b) < 0 for a, b in parts])
