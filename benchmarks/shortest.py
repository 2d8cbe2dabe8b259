"""The shortest vector of a hull: how long it takes, and how far from the goal several methods end."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import cvxpy as cp
import torch
from torch import Tensor

from adv_lib import danskin, data

from . import tables, timing

MOST = 0.2  # target 8: milliseconds of min_norm_point
CALLS, FEW = 200, 5  # how often each is called, and cvxpy
SIZES = ((2, 20), (10, 100), (10, 6000), (50, 10), (50, 100), (50, 500))  # gradients, parameters

TEXT = """## The shortest vector of a hull

`danskin.min_norm_point`, exact by nonnegative least squares, next to other ways to the same weights:
Frank–Wolfe with exact line search, projected gradient ascent with momentum as published for DDD (each
with 100 steps), and a new cvxpy problem. The median of {n} calls (cvxpy: {few}) in milliseconds of wall
clock and, in brackets, the gap ‖v‖² − min ⟨v, g⟩ as a part of the largest ‖g‖², which is 0 at the
shortest vector and bounds the squared distance to it. *Products* is `danskin.min_norm_weights`, where
the inner products are there already, as in training.

{table}

{targets}
"""


def accelerated(G: Tensor, steps: int = 100) -> Tensor:
    """Projected gradient with Nesterov's momentum on the simplex."""
    gram = G @ G.T
    size = 1 / torch.linalg.eigvalsh(gram)[-1]
    alpha = before = torch.full((len(G),), 1 / len(G), dtype=G.dtype)
    ranks = torch.arange(1, len(G) + 1)
    for t in range(steps):
        ahead = alpha + t / (t + 3) * (alpha - before)
        v = ahead - size * (gram @ ahead)
        falling = v.sort(descending=True).values
        level = (falling.cumsum(0) - 1) / ranks
        before, alpha = alpha, (v - level[(falling > level).sum() - 1]).clamp(min=0)
    return alpha


def frank_wolfe(G: Tensor) -> Tensor:
    """100 steps of the package's method for products, with one part."""
    return danskin.product_weights(G @ G.T, 1, tolerance=0.0, steps=100).flatten()


def convex_program(G: Tensor) -> Tensor:
    """The problem as a reader would write it."""
    alpha = cp.Variable(len(G))
    goal = cp.Minimize(cp.sum_squares(G.numpy().T @ alpha))
    cp.Problem(goal, [alpha >= 0, cp.sum(alpha) == 1]).solve()
    return torch.from_numpy(alpha.value)


WAYS: dict[str, Callable[[Tensor], Tensor]] = {
    "min_norm_point": danskin.min_norm_point,
    "Frank–Wolfe": frank_wolfe,
    "accelerated": accelerated,
    "cvxpy": convex_program,
}


def gap(G: Tensor, alpha: Tensor) -> float:
    """How far the mixture is from the shortest one, relative to the longest gradient's square."""
    v = alpha @ G
    return float((v @ v - (G @ v).min()) / (G * G).sum(1).max())


def section(pair: data.Data) -> str:
    """All ways on gradients drawn around a common one, as those of a batch are."""
    first, *others = WAYS
    rows, targets = [], []
    for m, d in SIZES:
        G = torch.randn(m, d, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 0.3
        gram = G @ G.T
        products = milliseconds(partial(danskin.min_norm_weights, gram), CALLS)
        took = {
            name: milliseconds(partial(way, G), FEW if name == "cvxpy" else CALLS)
            for name, way in WAYS.items()
        }
        cells = [f"{took[name]:.2f} ({max(0.0, gap(G, way(G))):.0e})" for name, way in WAYS.items()]
        rows.append(tables.printed(m, f"{d:,}", cells[0], f"{products:.2f}", *cells[1:]))
        where = f"{m} gradients, {d:,} parameters"
        targets.append(tables.at_most(f"{first} ≤ {MOST} ms", where, took[first], MOST, unit=" ms"))
    return TEXT.format(
        n=CALLS,
        few=FEW,
        table=tables.table(["gradients", "parameters", first, "products", *others], rows),
        targets=tables.targets(targets, "target 8"),
    )


def milliseconds(call: Callable[[], Tensor], rounds: int) -> float:
    """The median time of a call by the clock."""
    return 1e3 * timing.clock(call, rounds)
