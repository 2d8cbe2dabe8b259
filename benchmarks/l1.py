"""The ℓ1 ball in a box, where the textbook's projected gradient method gets stuck."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from adv_lib import attacks, data
from adv_lib.threat import Ball

from . import contest, networks, peers, tables
from .peers import Attack

# Target 2, against both libraries' Auto-PGD.
HIGHER = 0.01  # how much higher our robust accuracy may be
TIME = 0.5  # the most of their time that ours may be

EPS = (5.0, 10.0)
N, ROUNDS = 100, 15


def textbook(model: nn.Module, p: float, eps: float, alpha: float, steps: int) -> Attack:
    """All of the step on one coordinate, projection onto the ball, then clipping to the box."""
    ball, step = Ball(1, eps), Ball(1, alpha)

    def attack(x: Tensor, y: Tensor) -> Tensor:
        delta = torch.zeros_like(x)
        for _ in range(steps):
            moved = (x + delta).requires_grad_()
            loss = nn.functional.cross_entropy(model(moved), y, reduction="sum")
            (gradient,) = torch.autograd.grad(loss, moved)
            delta = (x + ball.project(delta + step.argmax(gradient))).clamp(0, 1) - x
        return x + delta

    return attack


def apgd(model: nn.Module, p: float, eps: float, alpha: float, steps: int) -> Attack:
    """The package's Auto-PGD."""
    return lambda x, y: x + attacks.apgd(model, x, y, Ball(p, eps, (0, 1)), steps=steps)


def few(model: nn.Module, p: float, eps: float, alpha: float, steps: int) -> Attack:
    """The package's PGD with a quarter of the steps, larger ones."""
    return peers.ours("best")(model, p, eps, eps / 4, 10)


LIBRARY, ART = "Auto-PGD of adv-lib", "Auto-PGD of ART"
CONTESTANTS = {
    LIBRARY: peers.library_apgd,
    ART: peers.art_apgd,
    "adv_lib, `pgd`": peers.ours("best"),
    "adv_lib, `pgd`, 10 steps": few,
    "adv_lib, `apgd`": apgd,
    "the textbook's PGD": textbook,
    "PGD of ART": peers.art,
    "PGD of foolbox": peers.foolbox,
    "PGD of cleverhans": peers.cleverhans,
    "PGD of torchattacks": peers.torchattacks,
}

TEXT = """## ℓ1

The MLP of the first table, p = 1, {steps} steps. A cell is the time as a ratio to the first line's
and, in brackets, the robust accuracy on {n:,} images; timed on {batch} images, {rounds} rounds. The
first line is Auto-PGD for p = 1 by Croce & Hein (2021) as the library adv-lib has it, which is not this
book's package. Auto-PGD chooses its step sizes itself. The others take steps of ε/10, or of ε/4 where
there are only 10.

{table}

The textbook's method moves one pixel a step and then clips. Once the pixel with the largest gradient is
at the edge of the box, it goes on pushing that pixel and stands still.

{targets}
"""


def section(pair: data.Data) -> str:
    """All that offer p = 1."""
    (model, x, y), columns = networks.mnist_mlp(pair), {}
    for eps in EPS:
        print(f"  ε = {eps}", flush=True)
        settings = (1, eps, eps / 10, contest.STEPS)
        columns[eps], _ = contest.race(CONTESTANTS, model, x, y, settings, N, ROUNDS)
    rows = ((name, *(found[name] for found in columns.values())) for name in CONTESTANTS)
    return TEXT.format(
        steps=contest.STEPS,
        n=len(x),
        batch=N,
        rounds=ROUNDS,
        table=tables.table(["", *(f"ε = {eps:g}" for eps in EPS)], rows),
        targets=targets(columns),
    )


def targets(columns: dict[float, dict[str, contest.Result]]) -> str:
    """Target 2 against both libraries' Auto-PGD."""
    lines = []
    higher, time = tables.short(HIGHER), tables.short(TIME)
    for eps, found in columns.items():
        for other in (LIBRARY, ART):
            ours, theirs = found["adv_lib, `pgd`"], found[other]
            where = f"{eps:g}, {other}"
            if theirs.error:
                lines.append(tables.Target("", where, f"not measured: {theirs.error}", None))
                continue
            most, ratio = theirs.accuracy + HIGHER, ours.ratio / theirs.ratio
            lines += [
                tables.at_most(f"robust accuracy ≤ theirs + {higher}", where, ours.accuracy, most, 3),
                tables.at_most(f"time ≤ {time} × theirs", where, ratio, TIME),
            ]
    return tables.targets(lines, "target 2", "ε, against")
