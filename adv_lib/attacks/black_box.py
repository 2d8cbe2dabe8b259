"""Attacks that ask for logits only: random search."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..threat import Ball
from ._search import Model, fresh, search

STAGES = (0.001, 0.005, 0.02, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8)  # shares of all queries


def square(
    model: Model,
    x: Tensor,
    y: Tensor,
    ball: Ball,
    *,
    queries: int = 1000,
    targets: Tensor | None = None,
    keep: str = "first",
    generator: torch.Generator | None = None,
) -> Tensor:
    """The Square attack: random search that asks for logits only, never for a gradient; for p = ∞.

    δ starts as vertical stripes of ±ε. A query sets a random square of the image to ±ε, one sign a
    channel, and keeps that if the margin (see `Iterate`) shrinks. A square covers 0.8 of the image at
    first and less with every stage of the search.

    The last two axes of x are height and width, the others channels; a vector is an image of height 1.
    keep: the "first" query that breaks a sample, which is then left alone; or the "best" of all, where
          every query is about the whole batch, for a model that answers a sample differently in other
          company. Of a model that does not, both break the same samples.
    Returns δ like x.  Raises ValueError for p other than ∞.
    Source: Andriushchenko et al. 2020, algorithms 1 and 2.
    """
    if queries < 1 or keep not in ("best", "first"):
        raise ValueError(
            f'expected queries ≥ 1 and keep "best" or "first", got {queries!r} and {keep!r}'
        )
    with search(model, x, y, ball, None, targets, keep) as run:
        if ball.p != math.inf:
            raise ValueError(f"expected a ball with p = inf, got p = {ball.p}")
        generator = fresh(generator, x)
        height, width = (1, *x.shape[1:])[-2:]
        channels = math.prod(x.shape[1:]) // max(1, height * width)
        image = x.reshape(len(x), channels, height, width)
        eps = run.region.eps[..., None, None]

        def signs(columns: int) -> Tensor:
            draw = torch.rand(*image.shape[:2], 1, columns, generator=generator, device=x.device)
            return torch.where(draw < 0.5, -eps, eps)

        def stretch(length: int, part: float) -> Tensor:
            """Where a random stretch of one side of the image lies, (n, length) bool."""
            cells = max(1, round(part * length))
            begin = torch.randint(length - cells + 1, (len(x), 1), generator=generator, device=x.device)
            place = torch.arange(length, device=x.device)
            return (begin <= place) & (place < begin + cells)

        delta = run.region.project(signs(width).expand_as(image).flatten(1))
        run.record(0, 0, delta, run.logits(delta))
        for query in range(1, queries):
            if run.over:
                break
            area = 0.8 / 2 ** sum(query / queries >= stage for stage in STAGES)
            down = stretch(height, math.sqrt(area))
            across = stretch(width, math.sqrt(area) if height > 1 else area)
            window = (down[:, :, None] & across[:, None, :])[:, None]
            tried = torch.where(window, signs(1), run.best.view_as(image)).flatten(1)
            delta = run.region.project(tried)
            run.record(0, query, delta, run.logits(delta))
        return run.shaped(run.best)
