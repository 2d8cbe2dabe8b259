"""How many images of MNIST each bound certifies, next to what attacks leave standing.

The settings are those of Kolter & Madry 2018, chapter 3: 784-50-20-10, batches of 100, 10 epochs of SGD
with step size 0.1. They publish no such counts; ours stand next to those of an earlier network.
"""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from adv_lib import attacks, bounds, data, exact, losses
from adv_lib.affine import affine_pieces
from adv_lib.threat import Ball

from . import networks, tables
from .timing import Timer

MOST = 60  # target: seconds by the clock of the exact column, on 2 cores
N = 200
LIMIT = 20000  # cases, or linear programs, of the search for an image
TIMED = 0.05
STEPS = 20  # of the ascent to the best slopes
METHODS = (
    "interval, not elided",
    "interval",
    "dual on interval bounds",
    "LP on interval bounds",
    "dual",
    "CROWN",
    "best slopes",
    "LP on LP bounds",
    "exact",
    "not broken by PGD",
)
CHAINS = (  # each image of one is in the next, by theorem
    ("interval, not elided", "interval", "LP on interval bounds", *METHODS[-3:]),
    ("dual on interval bounds", "LP on interval bounds"),
    ("dual", "LP on LP bounds"),
    ("CROWN", "best slopes", "LP on LP bounds"),
)
NO_THEOREM = (
    ("interval", "dual on interval bounds"),
    ("LP on interval bounds", "dual"),
    ("dual", "CROWN"),
)
ANOTHER_RUN = {  # the methods in their order, no best slopes
    0.01: (12, 41, 190, 190, 193, 193, None, 193, 193, 193),
    0.02: (0, 1, 148, 157, 181, 181, None, 183, 185, 185),
    0.03: (0, 0, 46, 66, 141, 145, None, 147, 172, 172),
    0.05: (0, 0, 4, 4, 32, 39, None, 42, 122, 122),
}
ANOTHER_RIGHT = 195

TEXT = """## MNIST, certified images

Setting: 784-50-20-10, trained from one seed by the published settings of Kolter & Madry 2018,
[chapter 3](https://adversarial-ml-tutorial.org/adversarial_examples/): all {train:,} images in batches
of 100, 10 epochs with step size 0.1. They publish no such counts, so there is nothing to reproduce. In
brackets: another run, with an earlier network of the same settings. How many of the first {n} test
images keep their class for every δ with ‖δ‖∞ ≤ ε in the box [0, 1]? The network gets {right} of them
right ({another_right}). Command: `make reproduce PART=certified`.

{table}

Each column but the last counts images with a proof, the last those without a counterexample. *Not
elided* subtracts the intervals of two logits; *interval* bounds their difference at once. *Dual* and
*CROWN* are one backward pass on layer bounds of their own, *best slopes* that pass after {steps} steps
of ascent, on CROWN's layer bounds. *Exact* is `exact.certify` with at most {limit:,} cases an image:
robust / broken / unknown. At ε = {timed} it answers by {stages}. With `stages=exact.PROGRAMS`, by linear
programs alone, it takes {programs:.1f} s there instead of {exact:.1f}, and the two contradict each other
on {contradictions} images. PGD is `attacks.pgd` by its
defaults with 10 starts. Ours and the other run are at most {apart} images apart ({where}).

By theorem attack ≥ exact ≥ LP ≥ dual, where the layer bounds are the same or grow tighter. So these
columns are subsets:
{chains}.
Is it so at every ε? {nested}. No theorem orders the others; here: {loose}.

{times}

The {n} images once, on {cores} cores: with `jobs=-1` where there are programs to solve, and with one
thread of PyTorch elsewhere; times include the layer bounds, ratios are of CPU seconds. What else the
machine does slows the clock; its load was {load:.1f} when this began. Target: the exact column in under
{most} s by the clock on 2 cores: {exact:.1f} s, {met}.

{difference}
"""


class Column(NamedTuple):
    """Which images a method counts; seconds by the clock and of the CPU; certificates, if any."""

    counted: Tensor
    seconds: tuple[float, float] = (math.nan, math.nan)
    certificates: exact.Certificates | None = None


def not_elided(model: nn.Sequential, x: Tensor, y: Tensor, ball: Ball) -> Tensor:
    """l_y − u_k from the interval of each logit by itself, +∞ at k = y."""
    last = affine_pieces(model, x.shape[1:], x.dtype)[-1]
    hidden = bounds.pre_activations(model, x, ball)[-1]
    z = bounds.interval(last, bounds.Bounds(hidden.lower.clamp(min=0), hidden.upper.clamp(min=0)))
    margins = z.lower.gather(1, y[:, None]) - z.upper
    return margins.masked_fill(F.one_hot(y, margins.shape[1]).bool(), math.inf)


def survives(model: nn.Module, x: Tensor, y: Tensor, delta: Tensor) -> Tensor:
    """Whether the network puts y first on x + δ: (n,) bool."""
    with torch.no_grad():
        return losses.correct(model(x + delta), y)


def columns(model: nn.Sequential, x: Tensor, y: Tensor, eps: float) -> dict[str, Column]:
    """Every method at one ε. The bounds run in float64, the attack and the certificates on the model."""
    ball, precise = Ball(math.inf, eps, (0, 1)), x.double()

    def intervals() -> list[bounds.Bounds]:
        return bounds.pre_activations(model, precise, ball)

    def lp(**more: list[bounds.Bounds]) -> Tensor:
        return bounds.margins(model, precise, y, ball, "lp", progress=False, **more)

    def dual(method: str, **more: list) -> Tensor:
        return bounds.margins(model, precise, y, ball, method, **more)

    def best() -> Tensor:
        layers = bounds.pre_activations(model, precise, ball, "crown")
        slopes = bounds.best_slopes(model, precise, y, ball, layer_bounds=layers, steps=STEPS)
        return dual("crown", layer_bounds=layers, slopes=slopes)

    def certify() -> exact.Certificates:
        return exact.certify(model, x, y, ball, node_limit=LIMIT, progress=False)

    runs: dict[str, Callable] = {
        "interval, not elided": lambda: not_elided(model, precise, y, ball),
        "interval": lambda: bounds.margins(model, precise, y, ball),
        "dual on interval bounds": lambda: dual("dual", layer_bounds=intervals()),
        "LP on interval bounds": lambda: lp(layer_bounds=intervals()),
        "dual": lambda: dual("dual"),
        "CROWN": lambda: dual("crown"),
        "best slopes": best,
        "LP on LP bounds": lp,
        "exact": certify,
        "not broken by PGD": lambda: survives(model, x, y, attacks.pgd(model, x, y, ball, restarts=10)),
    }
    found = {}
    for name, run in runs.items():
        timer = Timer()
        with torch.no_grad():
            result = run()
        seconds = timer.clock(), timer.cpu()
        if name == "exact":
            found[name] = Column(result.are("robust"), seconds, result)
        else:
            found[name] = Column(result if result.dtype == torch.bool else result.amin(1) > 0, seconds)
        print(f"  ε = {eps}, {name}: {int(found[name].counted.sum())}, {seconds[0]:.2f} s", flush=True)
    return found


def section(pair: data.Data) -> str:
    """Every method at every ε, and a closer look where a search and an attack disagree."""
    model, x, y = networks.mnist_small(pair), pair.x_test[:N], pair.y_test[:N]
    load = os.getloadavg()[0]
    found = {eps: columns(model, x, y, eps) for eps in ANOTHER_RUN}
    breaks = [extra for chain in CHAINS for pair in pairwise(chain) if (extra := not_in(found, *pair))]
    loose = [not_in(found, *pair) or f"all of {pair[0]} in {pair[1]}" for pair in NO_THEOREM]
    apart = {
        (eps, name): abs(int(found[eps][name].counted.sum()) - count)
        for eps, counts in ANOTHER_RUN.items()
        for name, count in zip(METHODS, counts, strict=True)
        if count is not None
    }
    most = max(apart, key=apart.get)
    last = found[TIMED]["exact"]
    stages = Counter(last.certificates.stage)
    timer = Timer()
    other = exact.certify(
        *(model, x, y, Ball(math.inf, TIMED, (0, 1))),
        stages=exact.PROGRAMS,
        node_limit=LIMIT,
        progress=False,
    )
    programs, answers = timer.clock(), zip(last.certificates.status, other.status, strict=True)
    return TEXT.format(
        train=len(pair.y_train),
        n=N,
        right=int(survives(model, x, y, torch.zeros_like(x)).sum()),
        another_right=ANOTHER_RIGHT,
        table=tables.table(("ε", *METHODS), (row(eps, found[eps]) for eps in found)),
        limit=LIMIT,
        chains=";\n".join(" ⊂ ".join(chain) for chain in CHAINS),
        nested="**No**: " + "; ".join(breaks) if breaks else "Yes",
        loose="; ".join(loose),
        steps=STEPS,
        apart=apart[most],
        where=f"{most[1]}, ε = {most[0]}",
        timed=TIMED,
        stages=", ".join(f"{name} {count}" for name, count in stages.most_common()),
        programs=programs,
        contradictions=sum(set(pair) == {"robust", "broken"} for pair in answers) or "no",
        times=times(found[TIMED]),
        cores=os.cpu_count(),
        load=load,
        most=MOST,
        exact=last.seconds[0],
        met=tables.verdict(last.seconds[0] < MOST),
        difference=difference(model, x, y, found),
    )


def not_in(found: dict[float, dict[str, Column]], a: str, b: str) -> str:
    """How many images of one column are not in another, where there are any."""
    extra = {eps: int((run[a].counted & ~run[b].counted).sum()) for eps, run in found.items()}
    counts = ", ".join(f"{count} at ε = {eps}" for eps, count in extra.items() if count)
    return counts and f"not all of {a} in {b} ({counts})"


def times(found: dict[str, Column]) -> str:
    """The second table."""
    rows, programs = [], ("LP on interval bounds", "LP on LP bounds")
    for name in METHODS:
        clock, cpu = found[name].seconds
        ratios = [cpu / found[lp].seconds[1] for lp in programs]
        rows.append((name, *(f"{v:.2g}" for v in (clock, cpu, *ratios))))
    head = (f"at ε = {TIMED}", "seconds by the clock", "CPU seconds", *(f"/ {lp}" for lp in programs))
    return tables.table(head, rows)


def row(eps: float, found: dict[str, Column]) -> list[object]:
    """One line of the first table."""
    cells: list[object] = [eps]
    for name, count in zip(METHODS, ANOTHER_RUN[eps], strict=True):
        ours = str(int(found[name].counted.sum()))
        if found[name].certificates:
            words = ("robust", "broken", "unknown")
            ours = " / ".join(str(found[name].certificates.status.count(word)) for word in words)
        cells.append(ours if count is None else f"{ours} ({count})")
    return cells


DIFFERENCE = """Images that PGD leaves standing and `exact.certify` does not call robust. The margin is
the smallest z_y − z_k, from `exact.margins`:

{table}

Longer PGD takes 100 steps from 50 starts; with targets, 100 steps from 10 starts towards every other
class. Of these {n} images the longer one breaks {more}, the one with targets {aimed}."""


def difference(model: nn.Sequential, x: Tensor, y: Tensor, found: dict) -> str:
    """Image by image: what PGD did not break and the search did not prove."""
    rows, more, aimed = [], 0, 0
    for eps, result in found.items():
        left = result["not broken by PGD"].counted & ~result["exact"].counted
        for i in left.nonzero().flatten().tolist():
            one = model, x[i : i + 1], y[i : i + 1], Ball(math.inf, eps, (0, 1))
            stronger = survives(*one[:3], attacks.pgd(*one, steps=100, restarts=50))
            targeted = aim(*one)
            more, aimed = more + (not stronger), aimed + (not targeted)
            minimum = exact.margins(*one, node_limit=2 * LIMIT, progress=False)
            k = int(minimum.attained.argmin())
            proof = "" if minimum.closed[0, k] else f", proved {minimum.margins.min():.6f}"
            given = result["exact"].certificates
            answer, least = (
                f"{given.status[i]}, {given.stage[i]}",
                f"{minimum.attained[0, k]:.6f}{proof}",
            )
            ends = ("stands" if stands else "broken" for stands in (stronger, targeted))
            rows.append(tables.printed(eps, i, int(y[i]), answer, least, k, *ends))
    if not rows:
        return "`exact.certify` proves every image that PGD leaves standing, at every ε."
    head = ("ε", "image", "class", "answer, from", "smallest margin", "of class")
    table = tables.table((*head, "longer PGD", "PGD with targets"), rows)
    return DIFFERENCE.format(table=table, n=len(rows), more=more, aimed=aimed)


def aim(model: nn.Module, x: Tensor, y: Tensor, ball: Ball) -> bool:
    """Whether one image survives PGD towards each of the other classes."""
    for k in set(range(10)) - set(y.tolist()):
        targets = torch.full_like(y, k)
        delta = attacks.pgd(model, x, y, ball, steps=100, restarts=10, targets=targets)
        if not survives(model, x, y, delta).all():
            return False
    return True
