"""How long attacks take, as a ratio to a loop written by hand, and how much they leave standing."""

from __future__ import annotations

import math
from typing import NamedTuple

from torch import Tensor, nn

from adv_lib import data

from . import networks, peers, tables
from .contest import STEPS, Result, norm, race

# Target 1: times as ratios to the loop by hand.
BEST = {"MLP": 1.25, "convnet": 1.10}
LAST = 1.05

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


class Trial(NamedTuple):
    """A network and its samples, how many of them are timed, ε for every p, and the rounds."""

    network: tuple[nn.Module, Tensor, Tensor]
    timed: int
    radii: dict[float, float]
    rounds: int


def section(pair: data.Data) -> str:
    """Both norms on three networks."""
    trials = {
        "MLP": Trial(networks.mnist_mlp(pair), 100, {math.inf: 0.1, 2: 1.5}, 30),
        "convnet": Trial(networks.mnist_conv(pair), 100, {math.inf: 0.2, 2: 2.0}, 5),
        "digits": Trial(networks.digits_mlp(), 200, {math.inf: 0.1, 2: 0.5}, 60),
    }
    twice = {"by hand": peers.by_hand, "by hand, again": peers.by_hand}
    contestants = twice | peers.OURS | peers.OTHERS
    head, columns, milliseconds = [""], {}, []
    for name, trial in trials.items():
        for p, eps in trial.radii.items():
            print(f"  {name}, {norm(p)}", flush=True)
            settings = (p, eps, eps / 10, STEPS)
            found, took = race(contestants, *trial.network, settings, trial.timed, trial.rounds)
            head.append(f"{name}, {norm(p)}, ε = {eps}")
            columns[name, p] = found
            milliseconds.append(f"{took:.0f}")
    rows = ((name, *(found[name] for found in columns.values())) for name in contestants)
    mlp, conv, digits = (len(trial.network[1]) for trial in trials.values())
    return TEXT.format(
        steps=STEPS,
        table=tables.table(head, rows),
        milliseconds=", ".join(milliseconds),
        targets=targets(columns),
        rounds=", ".join(f"{name} {trial.rounds}" for name, trial in trials.items()),
        mlp=mlp,
        conv=conv,
        digits=digits,
    )


def targets(columns: dict[tuple[str, float], dict[str, Result]]) -> str:
    """Target 1, next to what was measured."""
    lines = []
    for (network, p), found in columns.items():
        if network not in BEST:
            continue
        others = {name: found[name] for name in peers.OTHERS if not found[name].error}
        fastest = min(others, key=lambda name: others[name].ratio)
        best, last = (found[f'adv_lib, keep="{keep}"'] for keep in ("best", "last"))
        most, where = BEST[network], f"{network}, {norm(p)}"
        lowest = min(other.accuracy for other in others.values())
        accuracy = "robust accuracy of best ≤ lowest of the others"
        lines += [
            tables.at_most(f"best ≤ {most:.2f}", where, best.ratio, most),
            tables.at_most(f"last ≤ {LAST:.2f}", where, last.ratio, LAST),
            tables.at_most(
                f"last ≤ fastest other ({fastest})", where, last.ratio, others[fastest].ratio
            ),
            tables.at_most(accuracy, where, best.accuracy, lowest, 3),
        ]
    return tables.targets(lines, "target 1", "network")
