"""How long bounds and exact verification take next to other ways of solving the same programs."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from functools import partial
from importlib import metadata
from statistics import median
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from adv_lib import attacks, bounds, data, exact, losses
from adv_lib.affine import affine_pieces
from adv_lib.relaxation import Array, Layer, Relaxation, relax
from adv_lib.threat import Ball

from . import certified, networks, speed

PROGRAMS, SLOW = 50, 10  # samples of the first table, and those of its slow contestants
# Samples of a table, and the programs of the search (or nodes of the solver) that each may take.
EXACT, LIMIT = 12, 4000
MINIMA, MINIMA_LIMIT = 8, 20000
BIG_M, BIG_M_LIMIT = 12, 1000

Pair = tuple[Array, Array]

TEXT = """## Linear programs and exact verification

The network is 64-50-50-10, the book's robust network for digits, with p = ∞ and the box. The samples are
the first of the {right} test images that it gets right. The contestants take turns sample by sample, in
one thread.

**Nine margins of a sample by linear programs** on interval bounds of the hidden layers, {programs}
samples: milliseconds of one relaxation that solves nine programs, each from the basis of the one before
it, and times as a ratio to those of a new relaxation for each class, median over the samples. `linprog`
({scipy}) gets the matrices of one relaxation; cvxpy ({cvxpy}, with HiGHS {highspy}) gets the program in
vectors, as a new problem for each class. Those two and the last column, the largest difference between
any two of the margins, are of {slow} samples.

| ε | milliseconds | one relaxation | a new one for each class | `linprog` | cvxpy | margins apart |
|---|---|---|---|---|---|---|
{table_programs}

**Robust or broken**, {exact} samples one by one: seconds in all and, in brackets, how many samples are
finished, by `exact.certify`, which asks for the sign, and by `exact.margins`, which finds every minimum.
Each sample has at most {limit:,} linear programs in the search; where minima are unfinished they would
take longer. Then
`exact.certify` on all {right} images, robust / broken / unknown, and how many of them PGD with 100 steps
and 20 starts breaks: of all, of those called robust, and how many called broken it does not.

| ε | certify | all margins | all images | PGD breaks | of the robust | of the broken not |
|---|---|---|---|---|---|---|
{table_verdicts}

{missed}

**Every minimum**, {minima} samples: seconds in all of `exact.margins` by our branch and bound and by
HiGHS's mixed-integer solver (of {scipy}), both on LP bounds and with at most {minima_limit:,} nodes a
sample. The ratio is the median over the samples. A margin is known when its two bounds are 1e-6 apart
or less. The last column is the largest difference between the two where both know it. No target was set.

| ε | search | mip | mip / search | known by search | known by mip | minima apart |
|---|---|---|---|---|---|---|
{table_minima}

**Tighter bounds on the hidden layers**, {big_m} samples: only the sign of every margin, by
`exact.search` and without intervals or attacks before it. *One big M* lets every hidden unit be in
[−M, M], where M is the largest interval bound of the network. Seconds include the making of the bounds;
a node is a linear program of the search. A class is left after {big_m_limit:,} nodes and its sample is
*unknown*, so those seconds and nodes would be more. No target was set. Do two bounds contradict each
other on any sample? {contradict}.

| ε | bounds | robust | broken | unknown | seconds | nodes | nodes, median sample |
|---|---|---|---|---|---|---|---|
{table_tightening}

| target | | measured | |
|---|---|---|---|
{targets}
"""


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


class Race(NamedTuple):
    """CPU seconds and results of every contestant, one for each task."""

    seconds: dict[str, list[float]]
    results: dict[str, list[Any]]

    def ratio(self, name: str, to: str) -> float:
        """The median over all tasks of the time's ratio to that of another contestant."""
        return median(a / b for a, b in zip(self.seconds[name], self.seconds[to], strict=True))


def race(contestants: dict[str, Callable], tasks: Sequence[tuple]) -> Race:
    """All contestants on one task after the other; each task begins with another contestant."""
    found = Race({name: [] for name in contestants}, {name: [] for name in contestants})
    names = list(contestants)
    for turn, task in enumerate(tasks):
        first = turn % len(names)
        order = names[first:] + names[:first]
        for name in order:
            begin = time.process_time()
            result = contestants[name](*task)
            found.seconds[name].append(time.process_time() - begin)
            found.results[name].append(result)
    return found


# ---- nine margins of the relaxation ----


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
    return relax(sample.layers, sample.lower, sample.upper, sample.bounds)[0]


def programs(model: nn.Sequential, x: Tensor, y: Tensor) -> tuple[str, list[str]]:
    """The table of linear programs, and the lines of target 6."""
    ways = {"one relaxation": hot, "a new one for each class": cold}
    others = {"`linprog`": by_linprog, "cvxpy": by_cvxpy}
    lines, targets = [], []
    for eps in (0.02, 0.05, 0.1):
        tasks = [(sample,) for sample in samples(model, x[:PROGRAMS], y[:PROGRAMS], eps)]
        found, few = race(ways, tasks), race(ways | others, tasks[:SLOW])
        ratio = found.ratio("one relaxation", "a new one for each class")
        against = [few.ratio(name, "a new one for each class") for name in others]
        apart = max(
            float(np.abs(np.subtract(few.results[name], few.results["one relaxation"])).max())
            for name in few.results
        )
        milliseconds = 1e3 * median(found.seconds["one relaxation"])
        ratios = (f"{v:.2f}" for v in (ratio, 1, *against))
        lines.append(row(eps, f"{milliseconds:.1f}", *ratios, f"{apart:.0e}"))
        targets.append(speed.target("6: nine margins ≤ .35 × cold", f"ε = {eps}", ratio, 0.35))
    return "\n".join(lines), targets


# ---- exact verification ----


def verdicts(model: nn.Sequential, x: Tensor, y: Tensor) -> tuple[str, list[str], str]:
    """`exact.certify` against every margin to the end, the lines of target 7, what PGD does not find."""
    lines, targets, missed = [], [], []
    for eps in (0.05, 0.1):
        ball = Ball(math.inf, eps, (0, 1))
        settings = {"ball": ball, "node_limit": LIMIT, "progress": False}
        ways = {
            "certify": partial(exact.certify, model, **settings, jobs=1),
            "margins": partial(exact.margins, model, **settings, jobs=1),
        }
        found = race(ways, [(x[i : i + 1], y[i : i + 1]) for i in range(EXACT)])
        answered = sum(c.status[0] != "unknown" for c in found.results["certify"])
        finished = sum(bool(m.closed.all()) for m in found.results["margins"])
        short, long = (sum(seconds) for seconds in found.seconds.values())
        every = exact.certify(model, x, y, **settings)
        moved = x + attacks.pgd(model, x, y, ball, steps=100, restarts=20)
        with torch.no_grad():
            wrong = ~losses.correct(model(moved), y)
            reached = losses.margin(model(x + every.delta), y)
        contradicted = int((wrong & every.are("robust")).sum())
        unseen = (~wrong & every.are("broken")).nonzero().flatten().tolist()
        for i in unseen:
            aimed = certified.aim(model, x[i : i + 1], y[i : i + 1], ball)
            missed.append(
                f"- ε = {eps}, image {i}, class {y[i]}: by {every.stage[i]}, which reaches "
                f"{reached[i]:.2g}. PGD with targets {'does not break it' if aimed else 'breaks it'}."
            )
        counts = " / ".join(str(every.status.count(w)) for w in ("robust", "broken", "unknown"))
        cells = [f"{short:.2f} ({answered})", f"{long:.1f} ({finished})", counts]
        lines.append(row(eps, *cells, int(wrong.sum()), contradicted, len(unseen)))
        met = answered == EXACT and long / short >= 3
        faster = f"{'' if finished == EXACT else 'at least '}{long / short:.1f} times"
        targets += [
            line("7: certify ≥ 3 times faster than all margins", eps, faster, met),
            line("7: none robust, but broken by PGD", eps, str(contradicted), contradicted == 0),
        ]
    heading = (
        f"Broken, but not by PGD, and the z_y − max z_k that it reaches (image i of {len(x)}, from 0):"
    )
    return "\n".join(lines), targets, "\n".join([heading, "", *(missed or ["none."])])


def minima(model: nn.Sequential, x: Tensor, y: Tensor) -> str:
    """Our branch and bound against HiGHS's own, all margins to the end."""
    lines = []
    for eps in (0.03, 0.05):
        settings = {"ball": Ball(math.inf, eps, (0, 1)), "node_limit": MINIMA_LIMIT, "progress": False}
        ways = {
            method: partial(exact.margins, model, **settings, method=method, jobs=1)
            for method in ("search", "mip")
        }
        found = race(ways, [(x[i : i + 1], y[i : i + 1]) for i in range(MINIMA)])
        ours, other = (Known.of(results) for results in found.results.values())
        both = ours.known & other.known
        apart = float((ours.attained - other.attained)[both].abs().max()) if both.any() else math.nan
        seconds = [f"{sum(v):.1f}" for v in found.seconds.values()]
        known = [f"{int(v.known.sum())} of {v.known.numel()}" for v in (ours, other)]
        lines.append(row(eps, *seconds, f"{found.ratio('mip', 'search'):.1f}", *known, f"{apart:.0e}"))
    return "\n".join(lines)


class Known(NamedTuple):
    """Which margins are known, those of y with itself left out, and what they attain: one row each."""

    known: Tensor
    attained: Tensor

    @classmethod
    def of(cls, results: list[exact.Margins]) -> Known:
        other = [found.margins != math.inf for found in results]
        known, attained = (
            torch.cat([getattr(found, name)[k] for found, k in zip(results, other, strict=True)])
            for name in ("closed", "attained")
        )
        return cls(known, attained)


# ---- what tight bounds on the hidden layers buy ----


class Decision(NamedTuple):
    """Whether the network is robust at a sample, and the linear programs that the search solved."""

    answer: str
    nodes: int


def decide(sample: Sample, given: Sequence[Pair] | None) -> Decision:
    """Only the sign of every margin, by search alone, on these bounds or, without, on those by LP."""
    relaxation, _ = relax(sample.layers, sample.lower, sample.upper, given)
    one, nodes, proved = np.eye(len(sample.layers[-1][1])), 0, True
    for k in set(range(len(one))) - {sample.y}:
        c = one[sample.y] - one[k]
        found = exact.search(relaxation, sample.layers, c, BIG_M_LIMIT, sign=True)
        nodes += found.nodes
        if found.upper < -exact.TOLERANCE:
            return Decision("broken", nodes)
        proved &= found.lower > exact.TOLERANCE
    return Decision("robust" if proved else "unknown", nodes)


def one_big_m(sample: Sample) -> list[Pair]:
    """The largest interval bound of the whole network, for every hidden unit."""
    M = max(float(np.abs(end).max()) for pair in sample.bounds for end in pair)
    return [(np.full_like(low, -M), np.full_like(high, M)) for low, high in sample.bounds]


def tightening(model: nn.Sequential, x: Tensor, y: Tensor) -> tuple[str, str]:
    """The same decisions on ever tighter bounds, and on how many samples they contradict each other."""
    ways = {
        "one big M": lambda sample: decide(sample, one_big_m(sample)),
        "interval bounds": lambda sample: decide(sample, sample.bounds),
        "LP bounds": lambda sample: decide(sample, None),
    }
    lines, contradictions = [], 0
    for eps in (0.05, 0.1):
        found = race(ways, [(sample,) for sample in samples(model, x[:BIG_M], y[:BIG_M], eps)])
        for name, decisions in found.results.items():
            answers, nodes = zip(*decisions, strict=True)
            counts = [answers.count(word) for word in ("robust", "broken", "unknown")]
            seconds = f"{sum(found.seconds[name]):.2f}"
            lines.append(row(eps, name, *counts, seconds, f"{sum(nodes):,}", f"{median(nodes):.0f}"))
        together = zip(*found.results.values(), strict=True)
        contradictions += sum({"robust", "broken"} <= {d.answer for d in ds} for ds in together)
    return "\n".join(lines), f"Yes, on {contradictions}" if contradictions else "No"


def section(_: data.Data) -> str:
    """Four tables and the targets. MNIST is not needed."""
    model, x, y = networks.digits_mlp()
    with torch.no_grad():
        right = losses.correct(model(x), y)
    x, y = x[right], y[right]
    for method in exact.SOLVERS:  # what they import is not their time
        exact.margins(model, x[:1], y[:1], Ball(math.inf, 0.01, (0, 1)), method=method, jobs=1)
    table_programs, targets_programs = programs(model, x, y)
    table_verdicts, targets_verdicts, missed = verdicts(model, x, y)
    table_tightening, contradict = tightening(model, x, y)
    return TEXT.format(
        right=len(x),
        programs=PROGRAMS,
        slow=SLOW,
        exact=EXACT,
        limit=LIMIT,
        minima=MINIMA,
        minima_limit=MINIMA_LIMIT,
        big_m=BIG_M,
        big_m_limit=BIG_M_LIMIT,
        table_programs=table_programs,
        table_verdicts=table_verdicts,
        missed=missed,
        table_minima=minima(model, x, y),
        table_tightening=table_tightening,
        contradict=contradict,
        targets="\n".join(targets_programs + targets_verdicts),
        **{name: metadata.version(name) for name in ("cvxpy", "highspy")},
        scipy=f"SciPy {metadata.version('scipy')}",
    )


def row(eps: float, *cells: object) -> str:
    """One line of a table."""
    text = f"| {eps} | {' | '.join(map(str, cells))} |"
    print(f"  {text}", flush=True)
    return text


def line(what: str, eps: float, measured: str, met: bool) -> str:
    """One line of the table of targets."""
    return f"| {what} | ε = {eps} | {measured} | {'met' if met else '**not met**'} |"
