"""The standard suite next to the AutoAttack of other libraries: what is left, and how long it takes."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from adv_lib import data, losses, suite, training
from adv_lib.threat import Ball

from . import networks, peers, tables, timing
from .contest import norm

HIGHER = 0.2  # points that ours may leave above the lowest of the others
SLOWER = 0.8  # of the fastest one's time
OURS = "adv_lib"
TEN = "torchattacks"  # as it comes
TOO_SLOW = {("convnet, robust", "ART")}

TEXT = """## AutoAttack

The standard suite: 100 steps of Auto-PGD, then nine targets of Auto-PGD and of FAB with 100 steps each,
and 5,000 queries of Square, in the box [0, 1]. A cell is the robust accuracy in percent, found by asking
again, and the seconds of CPU time on one core; all take turns. As it comes, the suite of torchattacks
takes 10 steps where the standard has 100; it runs both ways. The suite of ART as it comes has DeepFool
in FAB's place, no targets for Auto-PGD, and five starts
of each attack; on the convnet its 25,000 queries an image would take the better part of an hour.

{table}

{targets}
"""


class Trial(NamedTuple):
    """A network, its samples, and the ball."""

    model: nn.Module
    x: Tensor
    y: Tensor
    p: float
    eps: float


def ours(trial: Trial) -> Tensor:
    ball = Ball(trial.p, trial.eps, (0, 1))
    return trial.x + suite.autoattack(trial.model, trial.x, trial.y, ball).delta


def torchattacks(trial: Trial, steps: int | None = None) -> Tensor:
    """AutoAttack of torchattacks, its standard version: with its own 10 steps, or with others."""
    import torchattacks

    torch.manual_seed(0)  # it draws from the global generator
    name = {2: "L2", math.inf: "Linf"}[trial.p]
    attack = torchattacks.AutoAttack(trial.model, norm=name, eps=trial.eps, seed=0)
    for part in attack._autoattack.attacks if steps else ():
        if hasattr(part, "steps"):
            part.steps = steps
    return attack(trial.x, trial.y)


def art(trial: Trial) -> Tensor:
    """AutoAttack of ART, as it comes."""
    from art.attacks.evasion import AutoAttack

    np.random.seed(0)  # noqa: NPY002 - it draws from NumPy's global generator
    wrapped = peers.art_classifier(trial.model, trial.x.shape[1:])
    settings = {"norm": trial.p, "eps": trial.eps, "eps_step": 2 * trial.eps, "batch_size": len(trial.x)}
    found = AutoAttack(wrapped, **settings).generate(trial.x.numpy(), trial.y.numpy())
    return torch.from_numpy(found)


CONTESTANTS: dict[str, Callable[[Trial], Tensor]] = {
    OURS: ours,
    TEN: torchattacks,
    "torchattacks, 100 steps": partial(torchattacks, steps=100),
    "ART": art,
}


def left(trial: Trial, moved: Tensor) -> float:
    """The robust accuracy in percent; what left the ball counts as right."""
    ball = Ball(trial.p, trial.eps + 1e-6)
    with torch.no_grad():
        right = losses.correct(trial.model(moved), trial.y)
    return 100 * float((right | ~ball.contains(moved - trial.x)).double().mean())


def trials(pair: data.Data) -> dict[str, Trial]:
    """Two networks for digits, and for MNIST a network of four layers and a convnet."""
    digits, (robust, x, y) = data.load("digits"), networks.digits_mlp()
    plain = training.reference("standard", digits)
    dnn_4, u, v = networks.mnist_mlp(pair)
    conv, s, t = networks.mnist_conv(pair)
    return {
        "digits, plain": Trial(plain, x[:200], y[:200], math.inf, 0.1),
        "digits, robust": Trial(robust, x[:200], y[:200], math.inf, 0.1),
        "digits, robust, 2": Trial(robust, x[:200], y[:200], 2, 0.5),
        "dnn_4, robust": Trial(dnn_4, u[:100], v[:100], math.inf, 0.1),
        "convnet, robust": Trial(conv, s[:20], t[:20], math.inf, 0.2),
    }


class Found(NamedTuple):
    """What every contestant left of a network, in percent, and its seconds of CPU time."""

    share: dict[str, float]
    took: dict[str, float]


def measured(name: str, trial: Trial) -> Found:
    """All contestants, but for ART on the convnet."""
    trial.model.requires_grad_(False).eval()
    contestants = {who: run for who, run in CONTESTANTS.items() if (name, who) not in TOO_SLOW}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        race = timing.race(contestants, [(trial,)])
    share = {who: left(trial, race.results[who][0]) for who in contestants}
    return Found(share, {who: race.seconds[who][0] for who in contestants})


def section(pair: data.Data) -> str:
    """All contestants on all networks."""
    rows, targets = [], []
    for name, trial in trials(pair).items():
        share, took = measured(name, trial)
        where = f"{name.removesuffix(', 2')}, {norm(trial.p)}, ε = {trial.eps:g}"
        cells = (f"{share[who]:.1f}, {took[who]:.1f} s" if who in share else "–" for who in CONTESTANTS)
        rows.append(tables.printed(where, len(trial.x), *cells))
        others = [who for who in share if who != OURS]
        more = share[OURS] - min(share[who] for who in others)
        targets.append(tables.at_most("left ≤ the lowest of the others + .2", where, more, HIGHER, 1))
        fastest = took[OURS] / min(took[who] for who in others if who != TEN)
        targets.append(tables.at_most("time ≤ .8 × the fastest of 100 steps", where, fastest, SLOWER))
        short = took[OURS] / took[TEN]
        targets.append(tables.at_most("time ≤ .8 × that of 10 steps", where, short, SLOWER))
    return TEXT.format(
        table=tables.table(("network", "images", *CONTESTANTS), rows),
        targets=tables.targets(targets, where="network"),
    )
