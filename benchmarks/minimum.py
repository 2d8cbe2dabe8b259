"""The shortest perturbations that attacks of minimum norm find, and how often they ask the network."""

from __future__ import annotations

import functools
import importlib
import math
import sys
import sysconfig
import types
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from adv_lib import attacks, data, linear, losses, models, training
from adv_lib.threat import Ball

from . import networks, tables, timing
from .contest import norm

LONGER = 1.01  # how much longer the median may be than the best of the same name, or than the truth
OURS = "adv_lib"
Find = Callable[[nn.Module, Tensor, Tensor], Tensor]  # → x + δ

TEXT = """## Minimum norm

Attacks that look for the shortest δ, without a cap, on all {n} test images of the digits, box [0, 1],
of two networks 64-50-50-10: one trained without attacks, and the robust one of the book. A cell is the
median ‖δ‖, the mean over the broken samples and their share, found by asking again. *Passes* counts how
often the robust network was asked forwards and backwards, the whole batch or what was left of it. Time
is milliseconds of CPU time, the median of {rounds} turns, one for C&W. The peers run with their own
settings, but for the number of steps: 100 for DDN, {few} for FAB and 9 searches of 1,000 steps for C&W.
Ours are DDN with 97 steps and FAB with {fewer}, both with three queries at the end, and C&W with 5
searches of 300 steps. C&W of foolbox, which is slow, ended at the same lengths as adv-lib's.

{table}

On the linear model of the digits the shortest δ without a box is known. Of each attack the median of the
ratio to it, and the largest; DDN with the margin for its loss, because with small logits the published
one heads for all other classes at once (1.17 by ours):

{linear}

{targets}
"""


class Counted(nn.Module):
    """A network that counts its passes."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network, self.forwards, self.backwards = network, 0, 0

    def forward(self, x: Tensor) -> Tensor:
        self.forwards += 1
        z = self.network(x)
        if z.requires_grad:
            z.register_hook(self.back)
        return z

    def back(self, _: Tensor) -> None:
        self.backwards += 1


class Found(NamedTuple):
    """What one attack found on one network."""

    median: float
    mean: float
    broken: float
    forwards: int
    backwards: int
    milliseconds: float

    def __str__(self) -> str:
        return f"{self.median:.4f}, {self.mean:.4f}, {100 * self.broken:.1f} %"

    @property
    def passes(self) -> int:
        """Forwards and backwards."""
        return self.forwards + self.backwards


@functools.cache
def library(module: str) -> types.ModuleType:
    """A module of the attacks of the library adv-lib.

    The two packages share a name, and ours is imported: so look for this one in the other's folder too.
    """
    folder = Path(sysconfig.get_path("purelib")) / "adv_lib"
    sys.modules.setdefault("adv_lib.utils.visdom_logger", types.SimpleNamespace(VisdomLogger=None))
    paths = (sys.modules["adv_lib"].__path__, str(folder)), (attacks.__path__, str(folder / "attacks"))
    ours = dict(vars(attacks))
    for path, more in paths:
        path.append(more)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what it imports is deprecated
            return importlib.import_module(f"adv_lib.attacks.{module}")
    finally:
        vars(attacks).update(ours)  # a module of theirs has the name of a function of ours
        for path, more in paths:
            path.remove(more)


def ours(attack: Callable, p: float) -> Find:
    """An attack of the package, without a cap."""
    return lambda model, x, y: x + attack(model, x, y, Ball(p, math.inf, (0, 1)))


def foolbox(name: str, **settings) -> Find:
    """An attack of foolbox."""

    def find(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        import foolbox

        wrapped = foolbox.PyTorchModel(model.eval(), bounds=(0, 1))
        return getattr(foolbox.attacks, name)(**settings).run(wrapped, x, y)

    return find


def other(module: str, name: str, **settings) -> Find:
    """An attack of adv-lib."""
    return lambda model, x, y: getattr(library(module), name)(model, x.clone(), y, **settings)


FEW = 20
CW = "carlini_wagner.l2", "carlini_wagner_l2"
CONTESTS: dict[tuple[str, float], dict[str, Find]] = {
    ("DDN", 2): {
        OURS: ours(partial(attacks.ddn, steps=97), 2),
        "adv-lib": other("decoupled_direction_norm", "ddn", steps=100, levels=None),
        "foolbox": foolbox("DDNAttack", steps=100),
    },
    ("C&W", 2): {
        OURS: ours(partial(attacks.cw, searches=5, steps=300), 2),
        "adv-lib": other(*CW, binary_search_steps=9, max_iterations=1000),
    },
    **{
        ("DeepFool", p): {
            OURS: ours(partial(attacks.deepfool, steps=50), p),
            **({"adv-lib": other("deepfool", "df", norm=p)} if p != 1 else {}),
            **({"foolbox": foolbox(f"{'L2' if p == 2 else 'Linf'}DeepFoolAttack")} if p != 1 else {}),
        }
        for p in (2, math.inf, 1)
    },
    **{
        ("FAB", p): {
            OURS: ours(partial(attacks.fab, steps=FEW - 1), p),
            f"{OURS}, 3 starts": ours(partial(attacks.fab, steps=FEW - 1, restarts=3), p),
            "adv-lib": other("fast_adaptive_boundary", "fab", norm=p, n_iter=FEW),
        }
        for p in (2, math.inf, 1)
    },
}


def judged(find: Find, model: nn.Module, x: Tensor, y: Tensor, p: float) -> Found:
    """What an attack finds, asked again."""
    counted, timer = Counted(model), timing.Timer()
    moved = find(counted, x, y).detach()
    took = 1e3 * timer.cpu()
    if moved.min() < -1e-6 or moved.max() > 1 + 1e-6:
        raise ValueError("left the box")
    with torch.no_grad():
        broken = ~losses.correct(model(moved), y)
    length = torch.linalg.vector_norm((moved - x).flatten(1), ord=p, dim=1)
    median = torch.where(broken, length, math.inf).median()
    return Found(
        *(float(median), float(length[broken].mean()), float(broken.double().mean())),
        *(counted.forwards, counted.backwards, took),
    )


def section(_: data.Data) -> str:
    """All attacks on two networks, and ours on a linear model."""
    pair, (robust, x, y) = data.load("digits"), networks.digits_mlp()
    plain = networks.kept(
        "digits_plain",
        models.mlp([64, 50, 50, 10]),
        lambda m: m.load_state_dict(training.reference("standard", pair).state_dict()) and None,
    )
    rows, targets, rounds = [], [], 3
    for (name, p), contestants in CONTESTS.items():
        found = {
            who: [judged(find, model, x, y, p) for model in (plain, robust)]
            for who, find in contestants.items()
        }
        took = {who: results[1].milliseconds for who, results in found.items()}
        if name != "C&W":  # which takes minutes
            running = {who: partial(find, robust) for who, find in contestants.items()}
            race = timing.race(running, [(x, y)] * rounds)
            took = {who: race.milliseconds(who) for who in took}
        for who, (on_plain, on_robust) in found.items():
            passes = f"{on_robust.forwards} + {on_robust.backwards}"
            cells = name, norm(p), who, on_plain, on_robust, passes, f"{took[who]:.0f}"
            rows.append(tables.printed(*cells))
        for i, network in enumerate(("plain", "robust")):
            rivals = [results[i] for who, results in found.items() if not who.startswith(OURS)]
            if rivals:
                best, mine = min(rivals), found[OURS][i]
                where = f"{name}, {norm(p)}, {network}"
                ratio = mine.median / best.median
                targets.append(
                    tables.at_most("median ≤ 1.01 × the best peer's", where, ratio, LONGER, 3)
                )
                targets.append(
                    tables.at_most("passes ≤ its passes", where, mine.passes, best.passes, digits=0)
                )
    known = of_linear(pair)
    for name, p, middle, _ in known:
        where = f"{name}, {norm(p)}, linear"
        targets.append(tables.at_most("median ≤ 1.01 × the shortest", where, middle, LONGER, 3))
    return TEXT.format(
        n=len(x),
        rounds=rounds,
        few=FEW,
        fewer=FEW - 1,
        table=tables.table(("attack", "p", "library", "plain", "robust", "passes", "time"), rows),
        linear=tables.table(
            ("attack", "p", "median ratio", "largest"),
            ((name, norm(p), f"{middle:.4f}", f"{most:.3f}") for name, p, middle, most in known),
        ),
        targets=tables.targets(targets, where="attack, norm, network"),
    )


def of_linear(pair: data.Data) -> list[tuple[str, float, float, float]]:
    """(attack, p, median and largest ratio to the distance in closed form), of those right at first."""
    model = models.linear(64, 10)
    generator = torch.Generator().manual_seed(0)
    fit = training.fit(
        model, (pair.x_train, pair.y_train), training.clean, epochs=20, lr=0.1, generator=generator
    )
    for _ in fit:
        pass
    W, b = (v.detach() for v in linear.weights(model))
    x, y = pair.x_test, pair.y_test
    found, by_margin = [], partial(attacks.ddn, loss=losses.margin_loss)
    for (name, p), _ in CONTESTS.items():
        attack = {"DDN": by_margin, "DeepFool": attacks.deepfool, "FAB": attacks.fab}.get(name)
        if attack is None:  # C&W needs a box
            continue
        at0, at1 = (linear.margins(W, b, x, y, Ball(p, eps)) for eps in (0.0, 1.0))
        shortest = (at0 / (at0 - at1)).nan_to_num(nan=math.inf).amin(1)  # margins fall linearly in ε
        delta = attack(model, x, y, Ball(p, math.inf))
        length = torch.linalg.vector_norm(delta.flatten(1), ord=p, dim=1)
        ratio = (length / shortest)[shortest > 0]
        found.append((name, p, float(ratio.median()), float(ratio.max())))
        tables.printed(*found[-1])
    return found
