"""The linear programs of a sample, and the ways to solve nine of them that are next to each other."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from adv_lib import bounds
from adv_lib.affine import affine_pieces
from adv_lib.relaxation import Array, Layer, Relaxation, relax
from adv_lib.threat import Ball

Pair = tuple[Array, Array]


class Sample(NamedTuple):
    """One sample as `relaxation` takes it: the layers, its box, its label and its interval bounds."""

    layers: Sequence[Layer]
    lower: Array
    upper: Array
    y: int
    bounds: Sequence[Pair]

    def costs(self) -> list[tuple[Array, float]]:
        """z_y − z_k for every class k ≠ y, as (c, offset) on the last hidden layer."""
        W, b = self.layers[-1]
        return [(W[self.y] - W[k], b[self.y] - b[k]) for k in range(len(W)) if k != self.y]


def samples(model: nn.Sequential, x: Tensor, y: Tensor, eps: float) -> list[Sample]:
    """Every sample by itself, for p = ∞ and the box, in float64."""
    ball, precise = Ball(math.inf, eps, (0, 1)), x.double()
    problems = bounds.problems(affine_pieces(model, x.shape[1:], torch.float64), precise, ball)
    layers = bounds.pre_activations(model, precise, ball)
    ends = [(layer.lower.detach().numpy(), layer.upper.detach().numpy()) for layer in layers]
    rows = ([(low[i], high[i]) for low, high in ends] for i in range(len(x)))
    return [Sample(*p, label, row) for p, label, row in zip(problems, y.tolist(), rows, strict=True)]


def hot(sample: Sample) -> list[float]:
    """One relaxation, and one cost after the other."""
    relaxation = relaxed(sample)
    return [relaxation.minimise(*cost).bound for cost in sample.costs()]


def cold(sample: Sample) -> list[float]:
    """A new relaxation for every cost."""
    return [relaxed(sample).minimise(*cost).bound for cost in sample.costs()]


def by_linprog(sample: Sample) -> list[float]:
    """SciPy's interface to HiGHS, on the matrices of one relaxation."""
    from scipy.optimize import linprog

    program, least = relaxed(sample), []
    equal, below = program.row_lower == program.row_upper, program.row_upper < math.inf
    less, more = program.rows[below & ~equal], program.rows[~below]
    A = np.vstack([less, -more])
    b = np.append(program.row_upper[below & ~equal], -program.row_lower[~below])
    for c, offset in sample.costs():
        cost = np.zeros(len(program.lower))
        cost[program.output] = c[program.alive]
        ends = np.stack([program.lower, program.upper], 1)
        equations = {"A_eq": program.rows[equal], "b_eq": program.row_lower[equal]}
        least.append(linprog(cost, A, b, **equations, bounds=ends, method="highs").fun + offset)
    return least


def by_cvxpy(sample: Sample) -> list[float]:
    """The program as one would write it, a new problem for every cost, solved by HiGHS."""
    import cvxpy as cp

    z = cp.Variable(len(sample.lower))
    constraints = [z >= sample.lower, z <= sample.upper]
    for (W, b), (lower, upper) in zip(sample.layers[:-1], sample.bounds, strict=True):
        pre, post = cp.Variable(len(b)), cp.Variable(len(b))
        low, high = np.minimum(lower, 0), np.maximum(upper, 0)  # a stable unit's triangle is a line
        constraints += [pre == W @ z + b, post >= 0, post >= pre]
        constraints += [cp.multiply(high - low, post) <= cp.multiply(high, pre - low)]
        z = post
    problems = [cp.Problem(cp.Minimize(c @ z + offset), constraints) for c, offset in sample.costs()]
    return [problem.solve(solver=cp.HIGHS) for problem in problems]


def relaxed(sample: Sample) -> Relaxation:
    """The relaxation on interval bounds."""
    return relax(sample.layers, sample.lower, sample.upper, sample.bounds)[0]
