"""What `exact` does for one sample, or for a few: tasks that may run in another process.

Each answers with what was `Found`: lower ≤ minimum ≤ upper, a point that reaches upper, and the cases.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from time import time

import numpy as np
import torch
from torch import Tensor, nn

from . import bounds, branching, leaves
from .affine import Affine, Bounds
from .branching import TOLERANCE, Array, Found
from .programs import mip, search
from .relaxation import Layer, relax
from .threat import Ball, Region

SOLVERS = {"search": search, "mip": mip}
ROUNDS = ((0, 1000), (30, 1000), (100, 4000), (300, math.inf))  # cases of a hidden unit, and of a sample
IMAGES = 16  # samples that share a batch


def signs(
    pieces: Sequence[Affine],
    layers: Sequence[Bounds],
    x: Tensor,
    region: Region,
    y: Tensor,
    classes: Sequence[Sequence[int]],
    node_limit: int | None,
    end: float,
) -> list[Found]:
    """Does every z_y − z_k, k in classes, stay positive? The smallest that was found, for each sample.

    First a short search. What it leaves open is worth tighter bounds on the hidden units, by short
    searches too, and then a longer one, and so on: ROUNDS.
    """
    found = [Found(-math.inf, math.inf, row, 0) for row in x.flatten(1).cpu().numpy()]
    left = math.inf if node_limit is None else node_limit
    open_ = list(range(len(x)))
    for of_a_unit, cases in ROUNDS:
        if not open_ or left == 0 or time() >= end:
            break
        cases = min(cases, left)
        rows = torch.tensor(open_, device=x.device)
        here = some(layers, x, region, rows)
        if of_a_unit:
            tight, _ = leaves.refined(pieces, *here, of_a_unit, end - time())
            here = tight, *here[1:]
            for layer, new in zip(layers, tight, strict=True):
                layer.lower[rows], layer.upper[rows] = new
        own = [classes[row] for row in open_]
        sample = [at for at, ks in enumerate(own) for _ in ks]
        c = rivals(pieces, y[rows[sample]], [k for ks in own for k in ks], x)
        evaluate = leaves.Leaves(pieces, *here, c, torch.tensor(sample, device=x.device))
        ends = np.cumsum([0, *(len(ks) for ks in own)])
        answers = branching.search(
            evaluate,
            [(found[row].upper, found[row].point) for row in open_],
            [range(*pair) for pair in pairwise(ends)],
            width=leaves.TOGETHER,
            node_limit=None if cases == math.inf else cases,
            seconds=end - time(),
            sign=True,
        )
        for row, new in zip(open_, answers, strict=True):
            old = found[row]
            found[row] = new._replace(lower=max(old.lower, new.lower), nodes=old.nodes + new.nodes)
        left -= cases
        open_ = [row for row, new in zip(open_, answers, strict=True) if new.nodes == cases]
    return found


def dual_minima(
    pieces: Sequence[Affine],
    layers: Sequence[Bounds],
    x: Tensor,
    region: Region,
    y: Tensor,
    node_limit: int | None,
) -> list[list[Found]]:
    """The minimum of z_y − z_k for every class k of every sample, with an equal share of the nodes."""
    K = math.prod(pieces[-1].shape_out)
    known = [Found(math.inf, math.inf, row, 0) for row in x.flatten(1).cpu().numpy()]
    rows, k = (torch.arange(K, device=x.device) != y[:, None]).nonzero(as_tuple=True)
    c = rivals(pieces, y[rows], k.tolist(), x)
    starts = [(math.inf, known[row].point) for row in rows.tolist()]
    share = None if node_limit is None else max(1, node_limit // max(1, K - 1))
    evaluate = leaves.Leaves(pieces, layers, x, region, c, rows)
    answers = branching.search(evaluate, starts, width=leaves.TOGETHER // 8, node_limit=share)
    found = [[row] * K for row in known]
    for row, label, answer in zip(rows.tolist(), k.tolist(), answers, strict=True):
        found[row][label] = answer
    return found


def lp_margins(
    layers: Sequence[Layer], lower: Array, upper: Array, y: int, classes: Sequence[int]
) -> tuple[list[float], list[tuple[Array, Array]]]:
    """Lower bounds on z_y − z_k, −∞ for k not in classes, and the layer bounds that they used."""
    W, b = layers[-1]
    least = dict.fromkeys(classes, -math.inf)
    for tighten in (False, True):
        relaxation, used = relax(layers, lower, upper, tighten=tighten)
        for k in [k for k in classes if least[k] <= TOLERANCE]:
            least[k] = max(least[k], relaxation.minimise(W[y] - W[k], b[y] - b[k]).bound)
        if min(least.values()) > TOLERANCE:
            break
    return [least.get(k, -math.inf) for k in range(len(b))], used


def sign(
    layers: Sequence[Layer],
    lower: Array,
    upper: Array,
    y: int,
    known: Sequence[tuple[Array, Array]] | None,
    proved: Sequence[float],
    node_limit: int | None,
    end: float,
) -> Found:
    """Does every z_y − z_k stay positive, by linear programs? The smallest that was found.

    known: bounds of the hidden layers, None for those by linear programs.
    proved: bounds on the margins.
    """
    relaxation, _ = relax(layers, lower, upper, known)
    one, left = np.eye(len(layers[-1][1])), node_limit
    found = {k: Found(least, math.inf, lower, 0) for k, least in enumerate(proved) if least <= TOLERANCE}
    for k in sorted(found, key=proved.__getitem__):
        answer = search(relaxation, layers, one[y] - one[k], left, sign=True, seconds=end - time())
        found[k] = answer._replace(lower=max(answer.lower, proved[k]))
        left = None if left is None else left - answer.nodes
        if answer.upper <= TOLERANCE or left == 0 or time() >= end:
            break
    worst = min(found.values(), key=lambda f: f.upper)
    nodes = sum(f.nodes for f in found.values())
    return worst._replace(lower=min(f.lower for f in found.values()), nodes=nodes)


def minima(
    layers: Sequence[Layer], lower: Array, upper: Array, y: int, method: str, node_limit: int | None
) -> list[Found]:
    """The minimum of z_y − z_k for every class k. The nodes left are shared among the classes left."""
    relaxation, _ = relax(layers, lower, upper)
    K = len(layers[-1][1])
    one, found = np.eye(K), [Found(math.inf, math.inf, lower, 0)] * K
    others = [k for k in range(K) if k != y]
    left = node_limit
    for done, k in enumerate(others):
        share = None if left is None else max(1, left // (len(others) - done))
        found[k] = SOLVERS[method](relaxation, layers, one[y] - one[k], share)
        left = None if left is None else left - found[k].nodes
    return found


def parts(n: int, jobs: int) -> Sequence[Tensor]:
    """0, …, n − 1 in parts, one task each: a few samples together, but no job without work."""
    from joblib import effective_n_jobs

    return torch.arange(n).split(max(1, min(IMAGES, n // effective_n_jobs(jobs))))


def some(
    layers: Sequence[Bounds], x: Tensor, region: Region, rows: Tensor
) -> tuple[list[Bounds], Tensor, Region]:
    """Layer bounds, inputs and Δ(x) of these samples."""
    return [Bounds(lower[rows], upper[rows]) for lower, upper in layers], x[rows], region[rows]


def rivals(pieces: Sequence[Affine], y: Tensor, k: Sequence[int], like: Tensor) -> Tensor:
    """e_y − e_k, a row for each pair."""
    one = torch.eye(math.prod(pieces[-1].shape_out), dtype=like.dtype, device=like.device)
    return one[y] - one[k]


def layer_bounds(model: nn.Sequential, pieces: Sequence[Affine], x: Tensor, ball: Ball) -> list[Bounds]:
    """Pre-activation bounds with slopes of their own for every unit."""
    with torch.no_grad():
        layers = bounds.pre_activations(model, x, ball, "crown")
        return bounds.tightened(pieces, layers, x, ball.region(x))
