"""Attacks next to each other: how long they take, and how many samples they leave standing."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from adv_lib import losses

from . import peers, timing
from .peers import Attack

STEPS = 40


class Result(NamedTuple):
    """What one contestant did: time as a ratio to the first one's, robust accuracy; or why not."""

    ratio: float = math.nan
    accuracy: float = math.nan
    error: str = ""

    def __str__(self) -> str:
        return self.error or f"{self.ratio:.2f} ({self.accuracy:.3f})"


def race(
    adapters: dict[str, Callable[..., Attack]],
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    settings: tuple[float, float, float, int],
    n: int,
    rounds: int,
) -> tuple[dict[str, Result], float]:
    """All contestants on one model and the same data, and the first one's milliseconds.

    settings: p, ε, step size, steps. Time is that of n samples: one round runs every contestant once,
    each round begins with another one, and what counts is the median over all rounds of the CPU time's
    ratio to the first contestant's. Robust accuracy is that of all samples.
    """
    results, running = {}, {}
    for name, adapter in adapters.items():
        try:
            attack = adapter(model, *settings)
            results[name] = Result(accuracy=accuracy(model, attack, x, y, n))
            running[name] = forgotten(attack)
        except Exception as error:
            results[name] = Result(error=peers.clause(error))
            print(f"    {name}: {results[name].error}", flush=True)
    found = timing.race(running, [(x[:n], y[:n])] * rounds)
    first = next(iter(running))
    for name in running:
        results[name] = results[name]._replace(ratio=found.ratio(name, first))
        print(f"    {name:40s} {results[name]}", flush=True)
    return results, found.milliseconds(first)


def forgotten(attack: Attack) -> Callable[[Tensor, Tensor], None]:
    """The attack without its result: a race would keep it, and some hold on to a graph."""

    def run(x: Tensor, y: Tensor) -> None:
        attack(x, y)

    return run


def accuracy(model: nn.Module, attack: Attack, x: Tensor, y: Tensor, n: int) -> float:
    """The share of samples still right under an attack on n at a time, which must respect the box."""
    right = 0
    for a, b in zip(x.split(n), y.split(n), strict=True):
        moved = attack(a, b).detach()
        if moved.min() < -1e-6 or moved.max() > 1 + 1e-6:
            raise ValueError("left the box")
        with torch.no_grad():
            right += int(losses.correct(model(moved), b).sum())
    return right / len(x)


def norm(p: float) -> str:
    """A norm in words of the page."""
    return "ℓ∞" if p == math.inf else f"ℓ{p}"
