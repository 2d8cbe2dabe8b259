"""The stages of `exact.certify`: what each adds to what is known of the samples that are still open.

The cheap answers come first: an interval proves some, an attack breaks some, one backward pass proves
more, better slopes more again, and a search is asked about the rest. The order is data, and any part of
it is allowed. Source: Tjeng, Xiao & Tedrake 2019 (the order); Wang et al. 2021 (branches).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from . import _tasks, attacks, bounds, losses
from ._work import parallel_map, runs
from .affine import Affine, Bounds
from .branching import TOLERANCE, Array, Found
from .models import evaluating
from .threat import Ball

STARTS, STEPS = 64, 20  # of the attack that tries to break what PGD does not


class Known:
    """What is known of every sample while `exact.certify` works: each stage adds to it.

    proved: (n, K) float64, lower bounds on the margins.  delta, wrong: what breaks the model itself, and
    which samples it breaks.  layers, programs: pre-activation bounds by the best slopes, of the samples
    `rows`, and by linear programs, by sample.
    """

    def __init__(self, model: nn.Sequential, pieces: list[Affine], x: Tensor, y: Tensor, ball: Ball):
        self.model, self.pieces, self.x, self.y, self.ball = model, pieces, x, y, ball
        self.proved = x.new_full((len(x), math.prod(pieces[-1].shape_out)), -math.inf).double()
        self.proved[torch.arange(len(x)), y] = math.inf
        self.delta, self.wrong = torch.zeros_like(x), torch.zeros_like(y, dtype=torch.bool)
        self.nodes, self.stages = torch.zeros_like(y), [""] * len(x)
        self.rows, self.layers = y[:0], list[Bounds]()
        self.programs: dict[int, list[tuple[Array, Array]]] = {}

    def open(self) -> Tensor:
        """The numbers of the samples that are not settled."""
        return (~self.wrong & (self.proved.amin(1) <= TOLERANCE)).nonzero().flatten()

    def classes(self, rows: Tensor) -> list[list[int]]:
        """The classes of each of these samples that are not settled."""
        return [row.nonzero().flatten().tolist() for row in self.proved[rows] <= TOLERANCE]

    def of(self, rows: Tensor) -> tuple[Tensor, Tensor, Ball]:
        """x in float64, y and the ball of some samples."""
        return self.x[rows].double(), self.y[rows], self.ball.subset(rows)

    def tightened(self, rows: Tensor) -> list[Bounds]:
        """Pre-activation bounds of these samples with slopes of their own for every unit, found once."""
        if not len(self.rows):
            x, _, ball = self.of(rows)
            self.rows, self.layers = rows, _tasks.layer_bounds(self.model, self.pieces, x, ball)
        at = (self.rows == rows[:, None]).int().argmax(1)
        return [Bounds(lower[at], upper[at]) for lower, upper in self.layers]

    def prove(self, rows: Tensor, margins: Tensor) -> None:
        """Keep lower bounds on the margins, (len(rows), K)."""
        self.proved[rows] = self.proved[rows].maximum(margins)

    def breaks(self, rows: Tensor, delta: Tensor) -> None:
        """Keep those of δ, (len(rows), *shape), that break the model itself."""
        delta = self.ball.subset(rows).project(delta.to(self.x), self.x[rows])
        wrong = _wrong(self.model, self.x[rows] + delta, self.y[rows])
        self.delta[rows[wrong]], self.wrong[rows[wrong]] = delta[wrong], True

    def searched(self, rows: Tensor, answers: Sequence[Found]) -> None:
        """Keep what a search has found: a bound for all open classes of a sample, and a point."""
        for row, found in zip(rows.tolist(), answers, strict=True):
            open_ = self.proved[row] <= TOLERANCE
            self.proved[row, open_] = self.proved[row, open_].clamp(min=found.lower)
            self.nodes[row] += found.nodes
        reached = torch.tensor([found.upper <= TOLERANCE for found in answers])
        points = torch.as_tensor(np.array([found.point for found in answers]))[reached]
        rows = rows[reached.to(rows.device)]
        self.breaks(rows, points.to(self.x).reshape(self.x[rows].shape) - self.x[rows])


class Limits(NamedTuple):
    """How far the searches may go: the cases of a sample, the time at which they end, and the cores."""

    nodes: int | None
    end: float
    jobs: int
    progress: bool | None


def _interval(known: Known, rows: Tensor, _: Limits) -> None:
    """Interval bounds."""
    known.prove(rows, bounds.margins(known.model, *known.of(rows)))


def _attack(known: Known, rows: Tensor, _: Limits) -> None:
    """PGD, then Auto-PGD from many starts towards every class that is open."""
    x, y, ball = known.x[rows], known.y[rows], known.ball.subset(rows)
    known.breaks(rows, attacks.pgd(known.model, x, y, ball, keep="first"))
    rows = rows[~known.wrong[rows]]
    for part in runs(len(rows), STARTS * known.x[0].numel(), known.x.device):
        i = rows[part]
        towards = [torch.tensor(classes, device=known.x.device) for classes in known.classes(i)]
        x, y, ball = known.x[i], known.y[i], known.ball.subset(i)
        known.breaks(i, _of_many_starts(known.model, x, y, ball, towards))


def _crown(known: Known, rows: Tensor, _: Limits) -> None:
    """One backward pass with the slopes of CROWN."""
    known.prove(rows, bounds.margins(known.model, *known.of(rows), "crown"))


def _slopes(known: Known, rows: Tensor, _: Limits) -> None:
    """The best slopes, for every hidden unit that is unstable and for every class."""
    x, y, ball = known.of(rows)
    layers = known.tightened(rows)
    slopes = bounds.best_slopes(known.model, x, y, ball, layer_bounds=layers)
    given = {"layer_bounds": layers, "slopes": slopes}
    known.prove(rows, bounds.margins(known.model, x, y, ball, "crown", **given))


def _branches(known: Known, rows: Tensor, limits: Limits) -> None:
    """Branch and bound over backward passes, several samples at a time."""
    x, y, ball = known.of(rows)
    given = known.tightened(rows), x, ball.region(x)
    tasks = [
        (
            known.pieces,
            *_tasks.some(*given, part),
            y[part],
            known.classes(rows[part]),
            limits.nodes,
            limits.end,
        )
        for part in _tasks.parts(len(rows), limits.jobs)
    ]
    answers = parallel_map(_tasks.signs, tasks, limits.jobs, limits.progress)
    known.searched(rows, [found for part in answers for found in part])


def _lp(known: Known, rows: Tensor, limits: Limits) -> None:
    """Linear programs: on interval bounds, then on bounds that are linear programs too."""
    x, y, ball = known.of(rows)
    problems = zip(bounds.problems(known.pieces, x, ball), y.tolist(), known.classes(rows), strict=True)
    tasks = [(*problem, label, classes) for problem, label, classes in problems]
    answers = parallel_map(_tasks.lp_margins, tasks, limits.jobs, limits.progress)
    margins, used = zip(*answers, strict=True)
    known.programs = dict(zip(rows.tolist(), used, strict=True))
    known.prove(rows, torch.tensor(margins, dtype=torch.float64, device=x.device))


def _search(known: Known, rows: Tensor, limits: Limits) -> None:
    """Branch and bound over linear programs."""
    x, y, ball = known.of(rows)
    problems = zip(bounds.problems(known.pieces, x, ball), y.tolist(), rows.tolist(), strict=True)
    tasks = [
        (*problem, label, known.programs.get(row), known.proved[row].tolist(), limits.nodes, limits.end)
        for problem, label, row in problems
    ]
    known.searched(rows, parallel_map(_tasks.sign, tasks, limits.jobs, limits.progress))


def _of_many_starts(
    model: nn.Module, x: Tensor, y: Tensor, ball: Ball, classes: Sequence[Tensor]
) -> Tensor:
    """The best δ of Auto-PGD from STARTS points of Δ(x), towards the classes of each sample in turns.

    Where a network is flat, the gradient at one start leads nowhere: these lie all the way from x to the
    edge of the ball, in random directions, for every sample the same.  Returns δ like x.
    """
    turn = torch.arange(STARTS, device=x.device)
    share = torch.linspace(0, 1, STARTS).to(x).view(-1, *[1] * (x.ndim - 1))
    rows = torch.arange(len(x), device=x.device).repeat_interleave(STARTS)
    at, labels, balls = x[rows], y[rows], ball.subset(rows)
    starts = [
        share * balls.subset(own).sample(at[own])
        for own in torch.arange(len(rows), device=x.device).split(STARTS)
    ]
    targets = torch.cat([own[turn % len(own)] for own in classes])
    delta = attacks.apgd(
        *(model, at, labels, balls), steps=STEPS, start=torch.cat(starts), targets=targets
    )
    with evaluating(model), torch.no_grad():
        least = losses.margin(model(at + delta), labels).view(len(x), STARTS).argmin(1)
    return delta.view(len(x), STARTS, *x.shape[1:])[torch.arange(len(x), device=x.device), least]


def _wrong(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    with evaluating(model), torch.no_grad():
        return ~losses.correct(model(x), y)


STAGES: dict[str, Callable[[Known, Tensor, Limits], None]] = {
    "interval": _interval,
    "attack": _attack,
    "crown": _crown,
    "slopes": _slopes,
    "branches": _branches,
    "lp": _lp,
    "search": _search,
}
