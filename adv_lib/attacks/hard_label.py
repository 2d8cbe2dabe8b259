"""RayS: an attack that asks for nothing but the class."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from ..threat import Ball
from ._search import Model, search

HALVINGS = 10  # of a ray: what shortens it by less than a thousandth is not seen
FAR = 32  # radii: how far the first ray goes where no box ends it


def rays(
    model: Model,
    x: Tensor,
    y: Tensor,
    ball: Ball,
    *,
    queries: int = 1000,
    targets: Tensor | None = None,
) -> Tensor:
    """RayS: the shortest way to another class along rays x + r s, s ∈ {−1, 1}^d; for p = ∞.

    Of the model's answers it uses the class only. From s = (1, …, 1) on it turns the signs of a block
    of entries at a time: first of all of them, then of each half, each quarter, and so on. If x + r s is
    then misclassified at the shortest r so far, it keeps that s, and halves its way along the ray to a
    shorter r. In a box the ray goes on along the edge that it meets.

    queries: how often each sample may be asked about, at least 1. Who is misclassified at x, or for a
             finite ε anywhere within it, is asked about no more; for ε = ∞, which needs a box, all
             queries go into a shorter r.
    Returns δ like x: where the shortest ray ends if that is in Δ(x), and 0 elsewhere.
    Raises ValueError for p other than ∞, and for ε = ∞ without a box.
    Source: Chen & Gu 2020, algorithms 1 to 3.
    """
    if queries < 1:
        raise ValueError(f"expected queries ≥ 1, got {queries!r}")
    with search(model, x, y, ball, None, targets, keep="first") as run:
        if ball.p != math.inf:
            raise ValueError(f"expected a ball with p = inf, got p = {ball.p}")
        cap = run.region.eps.squeeze(1)
        lo, hi = ball.box or (-math.inf, math.inf)
        reach = FAR * cap if ball.box is None else torch.full_like(cap, hi - lo)
        goal = torch.where(ball.radii(run.x).isinf(), 0, cap)  # who is this near has arrived
        flat, unit = run.x.flatten(1), 1 if run.region.scale is None else run.region.scale
        low, high = (lo - flat).clamp(max=0), (hi - flat).clamp(min=0)

        def end(signs: Tensor, radius: Tensor) -> Tensor:
            return (radius[:, None] * unit * signs).clamp(low, high)

        def left(radius: Tensor) -> Tensor:
            """Who has not arrived, and has queries left: their numbers."""
            ask = (radius > goal) & (cap > 0) & (run.counts.forward < queries)
            return ask.nonzero().squeeze(1)

        signs, radius = torch.ones_like(flat), torch.full_like(cap, math.inf)
        everyone = torch.arange(len(x), device=x.device)
        radius[run.misled(run.nothing(), everyone)] = 0
        for block in _blocks(flat.shape[1]):
            rows = left(radius)
            if len(rows) == 0:
                break
            turned = signs.clone()
            turned[:, block] *= -1
            near, far = torch.zeros_like(cap), radius.minimum(reach)
            rows = found = rows[run.misled(end(turned, far)[rows], rows)]
            for _ in range(HALVINGS):
                rows = rows[torch.isin(rows, left(far))]
                if len(rows) == 0:
                    break
                middle = (near + far) / 2
                hit = run.misled(end(turned, middle)[rows], rows)
                far[rows[hit]], near[rows[~hit]] = middle[rows[hit]], middle[rows[~hit]]
            found = found[far[found] < radius[found]]
            radius[found], signs[found] = far[found], turned[found]
        return run.shaped(end(signs, torch.where(radius <= reach.minimum(cap), radius, 0)))


def _blocks(d: int) -> Iterator[slice]:
    """The whole of d entries, then its halves, quarters, …, and each entry again and again."""
    size = d
    while True:
        yield from (slice(begin, begin + size) for begin in range(0, d, size))
        size = -(-size // 2)
