"""How long attacks take, as a ratio to a loop written by hand, and how much they leave standing."""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable
from statistics import median
from typing import NamedTuple

import torch
from torch import Tensor, nn

from adv_lib import data

from . import networks, peers
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
            running[name] = adapter(model, *settings)
            results[name] = Result(accuracy=accuracy(model, running[name], x, y, n))
        except Exception as error:
            running.pop(name, None)
            results[name] = Result(error=peers.clause(error))
            print(f"    {name}: {results[name].error}", flush=True)
    seconds = {name: [] for name in running}
    names = list(running)
    gc.disable()
    for turn in range(rounds):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            begin = time.process_time()
            running[name](x[:n], y[:n])
            seconds[name].append(time.process_time() - begin)
        gc.collect()
    gc.enable()
    for name, took in seconds.items():
        ratio = median(a / b for a, b in zip(took, seconds[names[0]], strict=True))
        results[name] = results[name]._replace(ratio=ratio)
        print(f"    {name:40s} {results[name]}", flush=True)
    return results, 1e3 * median(seconds[names[0]])


def accuracy(model: nn.Module, attack: Attack, x: Tensor, y: Tensor, n: int) -> float:
    """The share of samples still right under an attack on n at a time, which must respect the box."""
    right = 0
    for a, b in zip(x.split(n), y.split(n), strict=True):
        moved = attack(a, b).detach()
        if moved.min() < -1e-6 or moved.max() > 1 + 1e-6:
            raise ValueError("left the box")
        with torch.no_grad():
            right += int((model(moved).argmax(1) == b).sum())
    return right / len(x)


TEXT = """## PGD: time and robust accuracy

PGD with {steps} steps of ε/10 from δ = 0, in the box. A cell is the time as a ratio to the loop by hand
and, in brackets, the robust accuracy. The loop by hand uses `torch.autograd.grad`, the cross-entropy and
operations in place. It took {milliseconds} milliseconds. It takes part twice, which shows the noise
within the run. From one run to the next ratios move more, by 0.05 and sometimes 0.1 on a busy machine.

{table}

The networks: 784-200-100-100-10 trained against ε = 0.1 (p = ∞), timed on 100 images of MNIST, accuracy
on {mlp:,}; the convnet of the book, trained against ε = 0.2 for 200 batches, timed on 100 images,
accuracy on {conv}; 64-50-50-10, the book's robust network for digits, timed on 200 images, accuracy on
{digits}. {rounds} rounds. `keep="first"` drops every sample once it is broken, so it does less
work than the others.

{targets}

On digits one step of the loop by hand takes a third of a millisecond, and what a library does once a
call, or in Python, weighs most. No target is set there.
"""


def section(pair: data.Data) -> str:
    """Both norms on three networks."""
    trials = {
        "MLP": (networks.mnist_mlp(pair), 100, {math.inf: 0.1, 2: 1.5}, 30),
        "convnet": (networks.mnist_conv(pair), 100, {math.inf: 0.2, 2: 2.0}, 5),
        "digits": (networks.digits_mlp(), 200, {math.inf: 0.1, 2: 0.5}, 60),
    }
    twice = {"by hand": peers.by_hand, "by hand, again": peers.by_hand}
    contestants = twice | peers.OURS | peers.OTHERS
    columns, milliseconds = {}, []
    for network, ((model, x, y), n, radii, rounds) in trials.items():
        for p, eps in radii.items():
            print(f"  {network}, {norm(p)}", flush=True)
            settings = (p, eps, eps / 10, STEPS)
            found, took = race(contestants, model, x, y, settings, n, rounds)
            columns[network, p] = found
            milliseconds.append(f"{took:.0f}")
    radius = {
        (network, p): eps for network, (_, _, radii, _) in trials.items() for p, eps in radii.items()
    }
    lines = ["| | " + " | ".join(f"{k}, {norm(p)}, ε = {radius[k, p]}" for k, p in columns) + " |"]
    lines += ["|---" * (len(columns) + 1) + "|"]
    lines += [f"| {c} | " + " | ".join(str(v[c]) for v in columns.values()) + " |" for c in contestants]
    return TEXT.format(
        steps=STEPS,
        table="\n".join(lines),
        milliseconds=", ".join(milliseconds),
        targets=targets(columns),
        rounds=", ".join(f"{k} {v[-1]}" for k, v in trials.items()),
        **{k.lower().replace("convnet", "conv"): len(v[0][1]) for k, v in trials.items()},
    )


def targets(columns: dict[tuple[str, float], dict[str, Result]]) -> str:
    """Target 1, next to what was measured."""
    lines = ["| target 1 | network | measured | |", "|---|---|---|---|"]
    for (network, p), found in columns.items():
        if network == "digits":
            continue
        others = {name: found[name] for name in peers.OTHERS if not found[name].error}
        fastest = min(others, key=lambda name: others[name].ratio)
        best, last = (found[f'adv_lib, keep="{keep}"'] for keep in ("best", "last"))
        most = 1.25 if network == "MLP" else 1.10
        where = f"{network}, {norm(p)}"
        lowest = min(v.accuracy for v in others.values())
        lines += [
            target(f"best ≤ {most:.2f}", where, best.ratio, most),
            target("last ≤ 1.05", where, last.ratio, 1.05),
            target(f"last ≤ fastest other ({fastest})", where, last.ratio, others[fastest].ratio),
            target("robust accuracy of best ≤ lowest of the others", where, best.accuracy, lowest, 3),
        ]
    return "\n".join(lines)


def target(what: str, where: str, measured: float, most: float, digits: int = 2) -> str:
    """One line of a table of targets; judged at the digits shown."""
    met = round(measured, digits) <= round(most, digits)
    against = f"{measured:.{digits}f}, at most {most:.{digits}f}"
    return f"| {what} | {where} | {against} | {'met' if met else '**not met**'} |"


def norm(p: float) -> str:
    """A norm in words of the page."""
    return "ℓ∞" if p == math.inf else f"ℓ{p}"
