"""The shortest vector of a hull: how long it takes, and how far from the goal several methods end."""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median

import cvxpy as cp
import torch
from torch import Tensor

from adv_lib import danskin, data

ROUNDS = 200
SIZES = ((2, 20), (10, 100), (10, 6000), (50, 10), (50, 100), (50, 500))  # gradients, parameters

TEXT = """## The shortest vector of a hull

`danskin.min_norm_point`, exact by nonnegative least squares, next to other ways to the same weights:
Frank–Wolfe with exact line search, projected gradient ascent with momentum as published for DDD (each
with 100 steps), and a new cvxpy problem. The median of {rounds} calls (cvxpy: 5) in milliseconds of wall
clock and, in brackets, the gap ‖v‖² − min ⟨v, g⟩ as a part of the largest ‖g‖², which is 0 at the
shortest vector and bounds the squared distance to it. *Products* is `danskin.min_norm_weights`, where
the inner products are there already, as in training.

| gradients | parameters | {names} |
|---|---|{bars}|
{table}

| target 8 | | measured | |
|---|---|---|---|
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


def timed(call: Callable[[], object], rounds: int) -> float:
    """Median milliseconds."""
    took = []
    for _ in range(rounds):
        begin = time.perf_counter()
        call()
        took.append(1e3 * (time.perf_counter() - begin))
    return median(took)


def section(pair: data.Data) -> str:
    """All ways on gradients drawn around a common one, as those of a batch are."""
    lines, rows = [], []
    for m, d in SIZES:
        G = torch.randn(m, d, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 0.3
        gram, took = G @ G.T, {}
        products = timed(lambda gram=gram: danskin.min_norm_weights(gram), ROUNDS)
        for name, way in WAYS.items():
            rounds = 5 if name == "cvxpy" else ROUNDS
            took[name] = timed(lambda way=way, G=G: way(G), rounds)
        cells = [f"{took[name]:.2f} ({max(0.0, gap(G, way(G))):.0e})" for name, way in WAYS.items()]
        lines.append(f"| {m} | {d:,} | " + " | ".join([cells[0], f"{products:.2f}", *cells[1:]]) + " |")
        print(f"  {lines[-1]}", flush=True)
        where, found = f"{m} gradients, {d:,} parameters", round(took["min_norm_point"], 2)
        word = "met" if found <= 0.2 else "**not met**"
        rows.append(f"| min_norm_point ≤ 0.2 ms | {where} | {found:.2f} ms, at most 0.20 | {word} |")
    first, *others = WAYS
    names = " | ".join([first, "products", *others])
    return TEXT.format(
        rounds=ROUNDS,
        names=names,
        bars="---|" * len(WAYS) + "---",
        table="\n".join(lines),
        targets="\n".join(rows),
    )
