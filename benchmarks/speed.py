"""How long PGD takes, as a ratio to a loop written by hand, and how much it breaks."""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable
from statistics import median
from typing import NamedTuple

import torch
from torch import Tensor, nn

from . import peers
from .peers import Attack


class Result(NamedTuple):
    """What one contestant did: time as a ratio to the first one's, robust accuracy; or why not."""

    ratio: float = math.nan
    accuracy: float = math.nan
    error: str = ""


def prepare(adapters: dict[str, Callable[..., Attack]], *settings, x: Tensor, y: Tensor) -> dict:
    """The attacks that run, by name, and for the others the reason in one clause."""
    found: dict[str, Attack | str] = {}
    for name, adapter in adapters.items():
        try:
            attack = adapter(*settings)
            attack(x, y)
            found[name] = attack
        except Exception as error:
            found[name] = peers.clause(error)
    return found


def interleaved(attacks: dict[str, Attack], x: Tensor, y: Tensor, rounds: int) -> dict[str, float]:
    """The median over all rounds of each attack's CPU time, as a ratio to the first one's.

    One round runs every attack once, from a different one on each time.
    """
    names, seconds = list(attacks), {name: [] for name in attacks}
    gc.disable()
    for turn in range(rounds):
        start = turn % len(names)
        for name in names[start:] + names[:start]:
            begin = time.process_time()
            attacks[name](x, y)
            seconds[name].append(time.process_time() - begin)
        gc.collect()
    gc.enable()
    print(f"    by hand {1e3 * median(seconds[names[0]]):.1f} ms, {rounds} rounds", flush=True)
    return {
        name: median(a / b for a, b in zip(seconds[name], seconds[names[0]], strict=True))
        for name in names
    }


def accuracy(model: nn.Module, attack: Attack, x: Tensor, y: Tensor) -> float:
    """The share of samples still right under an attack, batch by batch."""
    right = 0
    for a, b in zip(x.split(200), y.split(200), strict=True):
        moved = attack(a, b).detach()
        with torch.no_grad():
            right += int((model(moved).argmax(1) == b).sum())
    return right / len(x)
