"""The six defenses of the arena under three attacks, with three seeds each."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from adv_lib import attacks, data, suite
from adv_lib.checks import arena
from adv_lib.evaluation import Spread
from adv_lib.threat import Ball

from . import tables

SEEDS = (0, 1, 2)

TEXT = """## The arena

What is left of each sealed defense of [chapter 9](../chapters/09_trial.ipynb), in percent of 100 digits:
mean ± deviation over {seeds} seeds of the attack. *PGD* starts anywhere in the ball; the *suite* is the
standard `suite.autoattack`; *best known* is the attack that each defense needs, by those who built it.

{table}
"""


def pgd(generator: torch.Generator, model: nn.Module, x: Tensor, y: Tensor, ball: Ball) -> Tensor:
    """PGD as it comes, but for the start."""
    return attacks.pgd(model, x, y, ball, start=ball.sample(x, generator))


def standard(generator: torch.Generator, model: nn.Module, x: Tensor, y: Tensor, ball: Ball) -> Tensor:
    """What the standard suite finds."""
    return suite.autoattack(model, x, y, ball, generator=generator).delta


def best(generator: torch.Generator, model: nn.Module, x: Tensor, y: Tensor, ball: Ball) -> Tensor:
    """The best attack known."""
    return arena.best_known(model, x, y, ball, generator=generator)


ATTACKS = {"PGD": pgd, "suite": standard, "best known": best}


def section(_: data.Data) -> str:
    """All attacks on all defenses."""
    nothing = arena.score(arena.nothing)
    rows = [("no attack", *(f"{nothing[name]:.1f}" for name in arena.KINDS), f"{mean(nothing):.1f}")]
    for name, attack in ATTACKS.items():
        found = [arena.score(partial(attack, torch.Generator().manual_seed(seed))) for seed in SEEDS]
        spreads = (Spread(tuple(each[kind] for each in found)) for kind in arena.KINDS)
        cells = (
            f"{s.mean:.1f} ± {s.deviation:.1f}" for s in (*spreads, Spread(tuple(map(mean, found))))
        )
        rows.append(tables.printed(name, *cells))
    head = ("attack", *arena.KINDS, "mean")
    right = range(1, len(head))
    return TEXT.format(seeds=len(SEEDS), table=tables.table(head, rows, right))


def mean(scores: dict[str, float]) -> float:
    """Over the defenses."""
    return sum(scores.values()) / len(scores)
