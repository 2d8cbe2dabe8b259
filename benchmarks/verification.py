"""How long bounds and exact verification take next to other ways of solving the same programs."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from functools import partial
from importlib import metadata
from statistics import median
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from adv_lib import attacks, data, exact, losses, programs
from adv_lib.relaxation import relax
from adv_lib.threat import Ball

from . import certified, networks, tables
from .timing import Timer, race
from .verification_peers import Pair, Sample, by_cvxpy, by_linprog, cold, hot, samples

NINE = 0.35  # target 6: the most of the time of nine cold programs that nine margins may take
FASTER = 3  # target 7: how many times faster than all margins `certify` is, at least

PROGRAMS, SLOW = 50, 10  # samples of the first table, and those of its slow contestants
# Samples of a table, and the programs of the search (or nodes of the solver) that each may take.
EXACT, LIMIT = 12, 4000
MINIMA, MINIMA_LIMIT = 8, 20000
BIG_M, BIG_M_LIMIT = 12, 1000
ANSWERS = ("robust", "broken", "unknown")

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

{table_programs}

**Robust or broken**, {exact} samples one by one: seconds in all and, in brackets, how many samples are
finished, by `exact.certify`, which asks for the sign, and by `exact.margins`, which finds every minimum.
Each sample has at most {limit:,} linear programs in the search; where minima are unfinished they would
take longer. Then
`exact.certify` on all {right} images, robust / broken / unknown, and how many of them PGD with 100 steps
and 20 starts breaks: of all, of those called robust, and how many called broken it does not.

{table_verdicts}

{missed}

**With and without linear programs**, all {right} images at once on {cores} cores: seconds by the clock
of `exact.certify` by its defaults and with `stages=exact.PROGRAMS`, at most {limit:,} cases or programs
an image, and robust / broken / unknown. Do the two contradict each other on any image?
{ladder_contradict}.

{table_ladder}

**Every minimum**, {minima} samples: seconds in all of `exact.margins` by our branch and bound and by
HiGHS's mixed-integer solver (of {scipy}), both on LP bounds and with at most {minima_limit:,} nodes a
sample. The ratio is the median over the samples. A margin is known when its two bounds are 1e-6 apart
or less. The last column is the largest difference between the two where both know it. No target was set.

{table_minima}

**Tighter bounds on the hidden layers**, {big_m} samples: only the sign of every margin, by
`programs.search` and without intervals or attacks before it. *One big M* lets every hidden unit be in
[−M, M], where M is the largest interval bound of the network. Seconds include the making of the bounds;
a node is a linear program of the search. A class is left after {big_m_limit:,} nodes and its sample is
*unknown*, so those seconds and nodes would be more. No target was set. Do two bounds contradict each
other on any sample? {contradict}.

{table_tightening}

{targets}
"""


# ---- nine margins of the relaxation ----


def relaxed(model: nn.Sequential, x: Tensor, y: Tensor) -> tuple[str, list[tables.Target]]:
    """The table of linear programs, and target 6."""
    ours, new = "one relaxation", "a new one for each class"
    ways = {ours: hot, new: cold}
    others = {"`linprog`": by_linprog, "cvxpy": by_cvxpy}
    rows, targets = [], []
    for eps in (0.02, 0.05, 0.1):
        tasks = [(sample,) for sample in samples(model, x[:PROGRAMS], y[:PROGRAMS], eps)]
        found, few = race(ways, tasks), race(ways | others, tasks[:SLOW])
        ratio = found.ratio(ours, new)
        ratios = (f"{v:.2f}" for v in (ratio, 1, *(few.ratio(name, new) for name in others)))
        apart = max(
            float(np.abs(np.subtract(margins, few.results[ours])).max())
            for margins in few.results.values()
        )
        rows.append(tables.printed(eps, f"{found.milliseconds(ours):.1f}", *ratios, f"{apart:.0e}"))
        what = f"6: nine margins ≤ {tables.short(NINE)} × cold"
        targets.append(tables.at_most(what, f"ε = {eps}", ratio, NINE))
    return tables.table(("ε", "milliseconds", *ways, *others, "margins apart"), rows), targets


# ---- exact verification ----


def verdicts(model: nn.Sequential, x: Tensor, y: Tensor) -> tuple[str, list[tables.Target], str]:
    """`exact.certify` against every margin to the end, target 7, and what PGD does not find."""
    rows, targets, missed = [], [], []
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
        counts = " / ".join(str(every.status.count(word)) for word in ANSWERS)
        seconds = f"{short:.2f} ({answered})", f"{long:.1f} ({finished})"
        rows.append(tables.printed(eps, *seconds, counts, int(wrong.sum()), contradicted, len(unseen)))
        times = f"{'' if finished == EXACT else 'at least '}{long / short:.1f} times"
        faster = f"7: certify ≥ {FASTER} times faster than all margins"
        none, met = "7: none robust, but broken by PGD", answered == EXACT and long / short >= FASTER
        targets += [
            tables.Target(faster, f"ε = {eps}", times, met),
            tables.Target(none, f"ε = {eps}", str(contradicted), contradicted == 0),
        ]
    heading = (
        f"Broken, but not by PGD, and the z_y − max z_k that it reaches (image i of {len(x)}, from 0):"
    )
    head = ("ε", "certify", "all margins", "all images", "PGD breaks", "of the robust")
    table = tables.table((*head, "of the broken not"), rows)
    return table, targets, "\n".join([heading, "", *(missed or ["none."])])


def ladder(model: nn.Sequential, x: Tensor, y: Tensor) -> tuple[str, str]:
    """`exact.certify` by backward passes and by linear programs, and whether the two contradict."""
    rows, contradictions = [], 0
    for eps in (0.05, 0.1):
        both = {}
        for name, stages in (("LADDER", exact.LADDER), ("PROGRAMS", exact.PROGRAMS)):
            settings = {"stages": stages, "node_limit": LIMIT, "progress": False}
            timer = Timer()
            both[name] = exact.certify(model, x, y, Ball(math.inf, eps, (0, 1)), **settings)
            counts = " / ".join(str(both[name].status.count(word)) for word in ANSWERS)
            rows.append(tables.printed(eps, name, f"{timer.clock():.1f}", counts))
        pairs = zip(*(found.status for found in both.values()), strict=True)
        contradictions += sum(set(pair) == {"robust", "broken"} for pair in pairs)
    said = f"Yes, on {contradictions}" if contradictions else "No"
    return tables.table(("ε", "stages", "seconds", "all images"), rows), said


def minima(model: nn.Sequential, x: Tensor, y: Tensor) -> str:
    """Our branch and bound against HiGHS's own, all margins to the end."""
    rows = []
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
        ratio = f"{found.ratio('mip', 'search'):.1f}"
        known = [f"{int(v.known.sum())} of {v.known.numel()}" for v in (ours, other)]
        rows.append(tables.printed(eps, *seconds, ratio, *known, f"{apart:.0e}"))
    head = ("ε", "search", "mip", "mip / search", "known by search", "known by mip", "minima apart")
    return tables.table(head, rows)


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
        found = programs.search(relaxation, sample.layers, c, BIG_M_LIMIT, sign=True)
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
    rows, contradictions = [], 0
    for eps in (0.05, 0.1):
        found = race(ways, [(sample,) for sample in samples(model, x[:BIG_M], y[:BIG_M], eps)])
        for name, decisions in found.results.items():
            answers, nodes = zip(*decisions, strict=True)
            counts = [answers.count(word) for word in ANSWERS]
            seconds, middle = f"{sum(found.seconds[name]):.2f}", f"{median(nodes):.0f}"
            rows.append(tables.printed(eps, name, *counts, seconds, f"{sum(nodes):,}", middle))
        together = zip(*found.results.values(), strict=True)
        contradictions += sum({"robust", "broken"} <= {d.answer for d in ds} for ds in together)
    head = ("ε", "bounds", *ANSWERS, "seconds", "nodes", "nodes, median sample")
    return tables.table(head, rows), f"Yes, on {contradictions}" if contradictions else "No"


def section(_: data.Data) -> str:
    """Five tables and the targets. MNIST is not needed."""
    model, x, y = networks.digits_mlp()
    with torch.no_grad():
        right = losses.correct(model(x), y)
    x, y = x[right], y[right]
    for method in exact.SOLVERS:  # what they import is not their time
        exact.margins(model, x[:1], y[:1], Ball(math.inf, 0.01, (0, 1)), method=method, jobs=1)
    table_programs, targets_programs = relaxed(model, x, y)
    table_verdicts, targets_verdicts, missed = verdicts(model, x, y)
    table_ladder, ladder_contradict = ladder(model, x, y)
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
        table_ladder=table_ladder,
        ladder_contradict=ladder_contradict,
        cores=os.cpu_count(),
        missed=missed,
        table_minima=minima(model, x, y),
        table_tightening=table_tightening,
        contradict=contradict,
        targets=tables.targets(targets_programs + targets_verdicts),
        **{name: metadata.version(name) for name in ("cvxpy", "highspy")},
        scipy=f"SciPy {metadata.version('scipy')}",
    )
