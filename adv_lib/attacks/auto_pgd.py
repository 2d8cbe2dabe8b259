"""Auto-PGD: ascent that finds its own step size, sample by sample."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from ..threat import Ball
from ._search import Iterate, Loss, Model, check_start, fresh, search


def apgd(
    model: Model,
    x: Tensor,
    y: Tensor,
    ball: Ball,
    *,
    steps: int = 100,
    restarts: int = 1,
    start: Tensor | None = None,
    loss: Loss | None = None,
    targets: Tensor | None = None,
    keep: str = "best",
    generator: torch.Generator | None = None,
    callback: Callable[[Iterate], None] | None = None,
) -> Tensor:
    """Auto-PGD: ascent with momentum in which every sample finds its own step size.

    The step size starts at 2ε. At checkpoints, ever closer together, a sample halves it and goes back
    to its record if its loss rose in less than 3/4 of the steps since the last checkpoint, or if neither
    its record nor its step size has changed since.
    keep: the "best" iterate of each sample, or the "first" one that breaks it, where it stops; the other
          arguments as for `pgd`.
    Returns δ like x.
    Source: Croce & Hein 2020, algorithm 1, with the steps of `pgd`.
    """
    if steps < 1 or restarts < 1 or keep not in ("best", "first"):
        raise ValueError(
            'expected steps ≥ 1, restarts ≥ 1 and keep "best" or "first", '
            f"got {steps!r}, {restarts!r} and {keep!r}"
        )
    checkpoints = _checkpoints(steps)
    with search(model, x, y, ball, loss, targets, keep, callback) as run:
        check_start(start, x, ball)
        generator = fresh(generator, x)
        for restart in range(restarts):
            delta = before = run.start(ball, restart, generator, start)
            size = size_then = 2 * run.region.eps  # “then”: at the last checkpoint
            record_then = torch.full_like(size, -math.inf)
            record, value_before = (record_then, delta, delta), -record_then
            rises, since = torch.zeros_like(size), 0
            for step in range(steps + 1):
                if run.over:
                    break
                z, gradient = run.climb(delta)
                run.record(restart, step, delta, z)
                if step == steps:
                    break
                now = (run.value(z)[:, None], delta, gradient)
                rises += now[0] > value_before
                record = _pick(now[0] > record[0], now, record)
                if step in checkpoints:
                    halve = rises < 0.75 * (step - since)
                    halve |= (size == size_then) & (record[0] == record_then)
                    size_then, record_then = size, record[0]
                    size, now = torch.where(halve, size / 2, size), _pick(halve, record, now)
                    rises, since = torch.zeros_like(size), step
                value_before, delta, gradient = now
                ahead = run.region.step(delta, gradient, size)
                if step > 0:
                    ahead = delta + 0.75 * (ahead - delta) + 0.25 * (delta - before)
                    ahead = run.region.project(ahead)
                before, delta = delta, ahead
        return run.shaped(run.best)


def _checkpoints(steps: int) -> set[int]:
    """The steps at which `apgd` looks back: after 22 % of them, then at ever shorter distances."""
    percent, gap, found = 22, 22, set()
    while percent <= 100:
        found.add(-(-percent * steps // 100))  # rounded up
        gap = max(gap - 3, 6)
        percent += gap
    return found


def _pick(mask: Tensor, new: tuple[Tensor, ...], old: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Row by row the new values where the mask (n, 1) says so, the old ones elsewhere."""
    return tuple(torch.where(mask, a, b) for a, b in zip(new, old, strict=True))
