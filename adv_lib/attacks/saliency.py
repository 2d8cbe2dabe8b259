"""JSMA: change few pixels, two at a time, those that speak most for another class."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .. import _work
from ..threat import Ball
from ._search import Model, search


def jsma(
    model: Model,
    x: Tensor,
    y: Tensor,
    ball: Ball,
    *,
    theta: float = 1.0,
    share: float = 0.2,
    targets: Tensor | None = None,
) -> Tensor:
    """The Jacobian-based saliency map attack: two entries at a time go up, or down, by θ.

    With α = ∇_x z_t and β = ∇_x Σ_{j≠t} z_j at x + δ, a pair of entries speaks for class t as much as
    S = −(α_i + α_k)(β_i + β_k), if both factors say so. The pair with the largest S moves by θ, in the
    direction that raises z_t, and then δ ← P(δ), the nearest point of Δ(x): for p = ∞ no entry changes
    by more than ε, for p = 1 and 2 that is the budget of all. An entry that is as far as Δ(x) lets it go
    in a direction is in no pair of that direction. A sample is done when it is broken, when no pair
    speaks for t, and after share · d / 2 pairs, at least one.

    theta:   θ > 0, in the units of x.
    share:   which part of the d entries may change, above 0 and at most 1.
    targets: t (n,), and then a sample is broken where it is taken for t; None means the strongest rival
             of the label at x, and a sample is broken where it is taken for any other class.
    Returns δ like x: of the points visited the one with the smallest margin (see `Iterate`).
    Raises ValueError for θ or share out of range.
    Source: Papernot et al. 2016, algorithms 2 and 3, with logits for probabilities; there entries go in
    one direction only, and the ball is the box.
    """
    if not 0 < theta < math.inf or not 0 < share <= 1:
        raise ValueError(f"expected theta > 0 and 0 < share ≤ 1, got {theta!r} and {share!r}")
    with search(model, x, y, ball, None, targets, keep="first") as run:
        delta = run.nothing()
        z = run.logits(delta)
        run.record(0, 0, delta, z)
        aim = z.scatter(1, run.labels[0][:, None], -math.inf).argmax(1) if targets is None else targets
        toward = torch.zeros_like(z).scatter_(1, aim[:, None], 1)
        for step in range(1, 1 + max(1, int(share * delta.shape[1] / 2))):
            if run.over:
                break
            alpha, beta = run.slopes(delta, torch.stack([toward, 1 - toward]))
            down, up = delta > run.region.low, delta < run.region.high
            move = _most_salient(alpha, beta, down, up)
            if not move.any():
                break
            delta = run.region.project(delta + theta * move)
            run.record(0, step, delta, run.logits(delta))
        return run.shaped(run.best)


def _most_salient(alpha: Tensor, beta: Tensor, down: Tensor, up: Tensor) -> Tensor:
    """Which two entries go which way, ±1 there and 0 elsewhere: (n, d).

    alpha, beta: (n, d).  down, up: which entries can go there, (n, d) bool.  A row without a pair that
    speaks for the target is 0.
    """
    n, d = alpha.shape
    move = torch.zeros_like(alpha)
    for rows in _work.runs(n, 2 * d * d, alpha.device):
        pairs = []
        for sign, can in ((1, up[rows]), (-1, down[rows])):
            more, less = sign * _sums(alpha[rows]), -sign * _sums(beta[rows])
            speaks = (more > 0) & (less > 0) & can[:, :, None] & can[:, None, :]
            pairs.append(torch.where(speaks, more * less, 0).triu(diagonal=1))
        best, at = torch.stack(pairs, 1).flatten(1).max(1)
        which = torch.stack([at // d % d, at % d], 1)  # (rows, 2)
        signs = torch.where(at < d * d, 1.0, -1.0) * (best > 0)
        move[rows] = move[rows].scatter(1, which, signs.to(move)[:, None].expand(-1, 2))
    return move


def _sums(v: Tensor) -> Tensor:
    """v_i + v_k for all pairs: (n, d, d)."""
    return v[:, :, None] + v[:, None, :]
