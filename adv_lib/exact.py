"""The exact minimum of z_y − z_k over δ ∈ Δ(x), for networks of `affine.affine_pieces`.

Three ways to it: branch and bound over backward passes (`leaves`), for every p; branch and bound over
linear programs and an integer program (`programs`), for p = ∞.

All report lower ≤ minimum ≤ upper. `upper` is what an input reaches when it is sent through the network,
`lower` is proved, in float64 (by the integer program to the solver's own tolerance). The minimum counts
as known when they differ by at most TOLERANCE, in the units of the logits. A limit can leave them
further apart, but neither becomes wrong. Nodes are counted, so that what is found does not depend on how
fast or how busy a machine is; a limit in seconds is there for who has to give up at some time. All of it
is about the network in eval mode that has these weights in exact arithmetic; float32 rounds it, by about
1e-6 where logits are about 10.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from numbers import Real
from time import time
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from . import attacks, bounds, branching, leaves, losses
from ._arguments import check_batch, check_labels
from ._given import check_ball, check_tensors
from ._precision import in_its_own_type
from ._work import parallel_map, runs
from .affine import Affine, Bounds, affine_pieces
from .branching import TOLERANCE, Array, Found
from .models import evaluating
from .programs import mip, search
from .relaxation import Layer, relax
from .threat import Ball, Region

WORDS = ("robust", "broken", "unknown")
LADDER = ("interval", "attack", "crown", "slopes", "branches")  # stages of `certify`, for every p
PROGRAMS = ("interval", "attack", "lp", "search")  # for p = ∞


@dataclass(frozen=True, eq=False)
class Margins:
    """What is known of min z_y − z_k for every sample and class: margins ≤ minimum ≤ attained.

    margins:  (n, K) float64, proved; +∞ at k = y.
    attained: (n, K) float64, what an input in the ball reaches when it is sent through the network.
    delta:    (n, K, *shape), that input minus x, rounded to x's type; 0 at k = y.
    nodes:    (n, K), the cases that the search bounded, or the nodes that the solver counts.
    """

    margins: Tensor
    attained: Tensor
    delta: Tensor
    nodes: Tensor

    @property
    def closed(self) -> Tensor:
        """Whether the minimum is known, up to TOLERANCE: (n, K) bool."""
        return (self.attained <= self.margins + TOLERANCE) | (self.margins == math.inf)


@dataclass(frozen=True, eq=False)
class Certificates:
    """For every sample an answer and what proves it.

    status:  "robust": every margin is proved to be above TOLERANCE. "broken": the model itself, called
             on x + delta, does not put y first. "unknown": neither, because the nodes or the seconds ran
             out, the smallest margin is within TOLERANCE of 0, or the model's own rounding hides the
             counterexample.
    stage:   what settled it, or came last: a name in STAGES.
    margins: (n,) float64, a proved lower bound on the smallest margin.
    delta:   (n, *shape), like x: what breaks the sample, 0 for all that are not broken.
    nodes:   (n,), the cases that the search bounded.
    """

    status: tuple[str, ...]
    stage: tuple[str, ...]
    margins: Tensor
    delta: Tensor
    nodes: Tensor

    def are(self, status: str) -> Tensor:
        """Which samples have this status: (n,) bool."""
        return torch.tensor([s == status for s in self.status], device=self.delta.device)

    def table(self) -> list[tuple[str, int, int, int]]:
        """For every stage that settled a sample or came last: how many robust, broken and unknown."""
        counts = Counter(zip(self.stage, self.status, strict=True))
        names = [name for name in STAGES if name in self.stage]
        return [(name, *(counts[name, word] for word in WORDS)) for name in names]


@in_its_own_type
def margins(
    model: nn.Sequential,
    x: Tensor,
    y: Tensor,
    ball: Ball,
    *,
    method: str | None = None,
    node_limit: int | None = None,
    jobs: int = -1,
    progress: bool | None = None,
) -> Margins:
    """min over δ ∈ Δ(x) of z_y − z_k for every class k, with a δ that attains it.

    method:     "dual", for any p; "search" over linear programs or "mip", for p = ∞, see above. None
                means "search" for p = ∞ and "dual" for the others.
    node_limit: how many cases the search may bound, or nodes the solver may count, for each sample.
                Class by class, each gets an equal share of what is left, and at least one. None means as
                many as it takes. What bounds the hidden units does not count.
    jobs: how many samples at a time, as joblib's n_jobs: −1 means one for each core. They are threads,
          unless a `joblib.parallel_config` around the call names processes or a cluster.
    progress: whether to show a bar on stdout; None means only in a terminal.
    Raises ValueError for another method, a node limit below 1, p ≠ ∞ with a method for p = ∞, labels
    that do not fit, and what `affine.affine_pieces` and `Ball` raise.
    """
    if method not in (None, "dual", *SOLVERS):
        raise ValueError(f"expected one of the methods {('dual', *SOLVERS)}, got {method!r}")
    pieces, x = _given(model, x, y, ball, node_limit)
    if method == "dual" or (method is None and ball.p != math.inf):
        double = x.double()
        given = _layer_bounds(model, pieces, double, ball), double, ball.region(double)
        tasks = [(pieces, *_some(*given, part), y[part], node_limit) for part in _parts(len(x), jobs)]
        samples = [row for part in parallel_map(_dual_minima, tasks, jobs, progress) for row in part]
    else:
        problems = zip(bounds.problems(pieces, x, ball), y.tolist(), strict=True)
        tasks = [(*problem, label, method or "search", node_limit) for problem, label in problems]
        samples = parallel_map(_minima, tasks, jobs, progress)

    def table(name: str) -> Tensor:
        rows = [[getattr(found, name) for found in row] for row in samples]
        return torch.tensor(np.array(rows)).to(x.device)

    delta = table("point").to(x.dtype).reshape(len(x), -1, *x.shape[1:]) - x.unsqueeze(1)
    delta[torch.arange(len(x)), y] = 0
    delta = torch.stack([ball.project(towards, x) for towards in delta.unbind(1)], 1)
    return Margins(table("lower"), table("upper"), delta, table("nodes"))


@in_its_own_type
def certify(
    model: nn.Sequential,
    x: Tensor,
    y: Tensor,
    ball: Ball,
    *,
    stages: Sequence[str] = LADDER,
    node_limit: int | None = None,
    seconds: float | None = None,
    jobs: int = -1,
    progress: bool | None = None,
) -> Certificates:
    """Is every x + δ with δ ∈ Δ(x) classified as y? "robust", "broken" or "unknown" for each sample.

    Only the sign of the margins is asked for, and the cheap answers come first: each stage is asked
    about the samples and the classes that those before it have left open.

    stages: names in STAGES, in the order in which they run. LADDER for any p; PROGRAMS, for p = ∞, is
            that of a time before the dual. Neither is needed in full: ("attack", "crown") is allowed.
    node_limit: how many cases the search may bound for each sample, the one with the smallest bound
            first, until they are used up. None means as many as it takes. What comes before the search
            and what bounds the hidden units does not count.
    seconds: how long the search may take in all, on this machine. None means as long as it takes.
    jobs, progress: as in `margins`.
    Raises what `margins` raises, ValueError for another stage or none, for seconds ≤ 0, for stages of
    programs with p ≠ ∞, and for x of another type than the weights.
    Source: Tjeng, Xiao & Tedrake 2019 (the order); Wang et al. 2021 (branches).
    """
    listed = isinstance(stages, Sequence) and not isinstance(stages, str) and len(stages) > 0
    if not listed or any(name not in tuple(STAGES) for name in stages):
        raise ValueError(f"expected a list of stages among {tuple(STAGES)}, got {stages!r}")
    if seconds is not None and not (isinstance(seconds, Real) and seconds > 0):
        raise ValueError(f"expected seconds > 0 or None, got {seconds!r}")
    pieces, x = _given(model, x, y, ball, node_limit)
    own = {p.dtype for p in model.parameters()} | {x.dtype}
    if len(own) > 1:
        raise ValueError(f"expected x of the model's type, which the attacks call, got {own}")
    if ball.p != math.inf and {"lp", "search"} & set(stages):
        raise ValueError(f"linear programs are for p = math.inf, got p = {ball.p!r}")
    known = _Known(model, pieces, x, y, ball)
    limits = _Limits(node_limit, math.inf if seconds is None else time() + seconds, jobs, progress)
    with torch.no_grad():
        for name in stages:
            rows = known.open()
            if len(rows):
                STAGES[name](known, rows, limits)
                for row in rows.tolist():
                    known.stages[row] = name
    return known.certificates()


class _Known:
    """What is known of every sample while `certify` works: each stage adds to it.

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
            self.rows, self.layers = rows, _layer_bounds(self.model, self.pieces, x, ball)
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

    def certificates(self) -> Certificates:
        least = self.proved.amin(1)
        words = ["robust" if safe else "unknown" for safe in (least > TOLERANCE).tolist()]
        for row in self.wrong.nonzero().flatten().tolist():
            words[row] = "broken"
        return Certificates(tuple(words), tuple(self.stages), least, self.delta, self.nodes)


class _Limits(NamedTuple):
    """How far the searches may go: the cases of a sample, the time at which they end, and the cores."""

    nodes: int | None
    end: float
    jobs: int
    progress: bool | None


# ---- the stages of `certify`: each is asked about the samples that are open ----


def _interval(known: _Known, rows: Tensor, _: _Limits) -> None:
    """Interval bounds."""
    known.prove(rows, bounds.margins(known.model, *known.of(rows)))


def _attack(known: _Known, rows: Tensor, _: _Limits) -> None:
    """PGD, then Auto-PGD from many starts towards every class that is open."""
    x, y, ball = known.x[rows], known.y[rows], known.ball.subset(rows)
    known.breaks(rows, attacks.pgd(known.model, x, y, ball, keep="first"))
    rows = rows[~known.wrong[rows]]
    for part in runs(len(rows), STARTS * known.x[0].numel(), known.x.device):
        i = rows[part]
        towards = [torch.tensor(classes, device=known.x.device) for classes in known.classes(i)]
        x, y, ball = known.x[i], known.y[i], known.ball.subset(i)
        known.breaks(i, _of_many_starts(known.model, x, y, ball, towards))


def _crown(known: _Known, rows: Tensor, _: _Limits) -> None:
    """One backward pass with the slopes of CROWN."""
    known.prove(rows, bounds.margins(known.model, *known.of(rows), "crown"))


def _slopes(known: _Known, rows: Tensor, _: _Limits) -> None:
    """The best slopes, for every hidden unit that is unstable and for every class."""
    x, y, ball = known.of(rows)
    layers = known.tightened(rows)
    slopes = bounds.best_slopes(known.model, x, y, ball, layer_bounds=layers)
    given = {"layer_bounds": layers, "slopes": slopes}
    known.prove(rows, bounds.margins(known.model, x, y, ball, "crown", **given))


def _branches(known: _Known, rows: Tensor, limits: _Limits) -> None:
    """Branch and bound over backward passes, several samples at a time."""
    x, y, ball = known.of(rows)
    given = known.tightened(rows), x, ball.region(x)
    tasks = [
        (
            known.pieces,
            *_some(*given, part),
            y[part],
            known.classes(rows[part]),
            limits.nodes,
            limits.end,
        )
        for part in _parts(len(rows), limits.jobs)
    ]
    answers = parallel_map(_signs, tasks, limits.jobs, limits.progress)
    known.searched(rows, [found for part in answers for found in part])


def _lp(known: _Known, rows: Tensor, limits: _Limits) -> None:
    """Linear programs: on interval bounds, then on bounds that are linear programs too."""
    x, y, ball = known.of(rows)
    problems = zip(bounds.problems(known.pieces, x, ball), y.tolist(), known.classes(rows), strict=True)
    tasks = [(*problem, label, classes) for problem, label, classes in problems]
    answers = parallel_map(_lp_margins, tasks, limits.jobs, limits.progress)
    margins, used = zip(*answers, strict=True)
    known.programs = dict(zip(rows.tolist(), used, strict=True))
    known.prove(rows, torch.tensor(margins, dtype=torch.float64, device=x.device))


def _search(known: _Known, rows: Tensor, limits: _Limits) -> None:
    """Branch and bound over linear programs."""
    x, y, ball = known.of(rows)
    problems = zip(bounds.problems(known.pieces, x, ball), y.tolist(), rows.tolist(), strict=True)
    tasks = [
        (*problem, label, known.programs.get(row), known.proved[row].tolist(), limits.nodes, limits.end)
        for problem, label, row in problems
    ]
    known.searched(rows, parallel_map(_sign, tasks, limits.jobs, limits.progress))


STAGES: dict[str, Callable[[_Known, Tensor, _Limits], None]] = {
    "interval": _interval,
    "attack": _attack,
    "crown": _crown,
    "slopes": _slopes,
    "branches": _branches,
    "lp": _lp,
    "search": _search,
}
SOLVERS = {"search": search, "mip": mip}
ROUNDS = ((0, 1000), (30, 1000), (100, 4000), (300, math.inf))  # cases of a hidden unit, and of a sample
IMAGES = 16  # samples that share a batch
STARTS, STEPS = 64, 20  # of the attack by which `certify` tries to break what PGD does not


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


# ---- what is done for one sample, or for a few: tasks that may run elsewhere ----


def _signs(
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
        here = _some(layers, x, region, rows)
        if of_a_unit:
            tight, _ = leaves.refined(pieces, *here, of_a_unit, end - time())
            here = tight, *here[1:]
            for layer, new in zip(layers, tight, strict=True):
                layer.lower[rows], layer.upper[rows] = new
        own = [classes[row] for row in open_]
        sample = [at for at, ks in enumerate(own) for _ in ks]
        c = _rivals(pieces, y[rows[sample]], [k for ks in own for k in ks], x)
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


def _dual_minima(
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
    c = _rivals(pieces, y[rows], k.tolist(), x)
    starts = [(math.inf, known[row].point) for row in rows.tolist()]
    share = None if node_limit is None else max(1, node_limit // max(1, K - 1))
    evaluate = leaves.Leaves(pieces, layers, x, region, c, rows)
    answers = branching.search(evaluate, starts, width=leaves.TOGETHER // 8, node_limit=share)
    found = [[row] * K for row in known]
    for row, label, answer in zip(rows.tolist(), k.tolist(), answers, strict=True):
        found[row][label] = answer
    return found


def _lp_margins(
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


def _sign(
    layers: Sequence[Layer],
    lower: Array,
    upper: Array,
    y: int,
    bounds: Sequence[tuple[Array, Array]] | None,
    proved: Sequence[float],
    node_limit: int | None,
    end: float,
) -> Found:
    """Does every z_y − z_k stay positive, by linear programs? The smallest that was found.

    bounds: of the hidden layers, None for those by linear programs.  proved: bounds on the margins.
    """
    relaxation, _ = relax(layers, lower, upper, bounds)
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


def _minima(
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


def _rivals(pieces: Sequence[Affine], y: Tensor, k: Sequence[int], like: Tensor) -> Tensor:
    """e_y − e_k, a row for each pair."""
    one = torch.eye(math.prod(pieces[-1].shape_out), dtype=like.dtype, device=like.device)
    return one[y] - one[k]


def _layer_bounds(model: nn.Sequential, pieces: Sequence[Affine], x: Tensor, ball: Ball) -> list[Bounds]:
    """Pre-activation bounds with slopes of their own for every unit."""
    with torch.no_grad():
        layers = bounds.pre_activations(model, x, ball, "crown")
        return bounds.tightened(pieces, layers, x, ball.region(x))


def _parts(n: int, jobs: int) -> Sequence[Tensor]:
    """0, …, n − 1 in parts, one task each: a few samples together, but no job without work."""
    from joblib import effective_n_jobs

    return torch.arange(n).split(max(1, min(IMAGES, n // effective_n_jobs(jobs))))


def _some(
    layers: Sequence[Bounds], x: Tensor, region: Region, rows: Tensor
) -> tuple[list[Bounds], Tensor, Region]:
    return [Bounds(lower[rows], upper[rows]) for lower, upper in layers], x[rows], region[rows]


def _wrong(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    with evaluating(model), torch.no_grad():
        return ~losses.correct(model(x), y)


def _given(
    model: nn.Sequential, x: Tensor, y: Tensor, ball: Ball, node_limit: int | None
) -> tuple[list[Affine], Tensor]:
    """The pieces of the network in float64, and x without gradients, once all of it is checked."""
    check_tensors(x=x)
    check_ball(ball)
    if node_limit is not None and not (isinstance(node_limit, int) and node_limit >= 1):
        raise ValueError(f"expected a whole number of nodes ≥ 1, or None, got {node_limit!r}")
    x = x.detach()
    check_batch(x)
    pieces = [piece.detach() for piece in affine_pieces(model, x.shape[1:], torch.float64)]
    check_labels(pieces, x, y)
    ball.region(x.double())  # raises for an ε that does not fit
    return pieces, x
