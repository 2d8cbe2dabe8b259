"""MNIST, convnets trained for the worst case: against PGD, on interval bounds, on the dual network.

Sources: Kolter & Madry 2018, adversarial-ml-tutorial.org, chapter 4, the part on the outer minimisation;
Wong & Kolter 2018, section 4.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from adv_lib import attacks, bounds, data, evaluation, losses, models, training
from adv_lib.threat import Ball

from . import networks, tables
from .results import Figure, compare, over
from .timing import Timer

BALL = Ball(math.inf, 0.1)  # as published: pixels may leave [0, 1]
PGD = partial(attacks.pgd, step_size=0.01, loss=losses.cross_entropy, keep="last")


class Run(NamedTuple):
    """One way to train: the network, what stands for the inner maximum, and how it is proved safe."""

    network: Callable[[torch.Generator], nn.Module]
    inner: Callable[[], training.Inner | training.Ramp]
    epochs: int
    batch_size: int
    seeds: range
    proof: str


def cnn(generator: torch.Generator) -> nn.Module:
    """The convnet of the book."""
    return models.convnet((1, 28, 28), 10, generator)


def small(generator: torch.Generator) -> nn.Module:
    """The small convnet of Wong & Kolter 2018."""
    return networks.strided(generator.initial_seed())


def ramp(method: str, begin: float, end: float) -> training.Ramp:
    """Certified training with an ε that grows from 0."""
    return training.Ramp(partial(training.certified, method=method), BALL, begin, end)


RUNS = {
    "PGD": Run(
        cnn, lambda: training.adversarial(partial(PGD, steps=20), BALL), 10, 100, range(3), "interval"
    ),
    "interval": Run(cnn, lambda: ramp("interval", 0.2, 0.6), 10, 100, range(2), "interval"),
    "dual": Run(small, lambda: ramp("dual", 0.0, 0.5), 2, 50, range(1), "dual"),
}
COLUMNS = ("clean", "FGSM", "PGD-40", "worst attack", "not verified")
TUTORIAL, CONVEX = "kolter2018tutorial", "wong2018provable"
PUBLISHED = {
    "PGD": (TUTORIAL, {"clean": 0.0085, "FGSM": 0.0258, "PGD-40": 0.0286}),
    "interval": (TUTORIAL, {"clean": 0.0515, "PGD-40": 0.0779, "not verified": 0.0967}),
    "dual": (CONVEX, {"clean": 0.018, "PGD-40": 0.041, "not verified": 0.058}),
}
WITHIN = 0.002  # how far outside our range a published error may lie and count as reproduced
WHY = {
    "interval": "ours is lower: another schedule for ε and for the step size",
    "dual": "2 epochs of SGD instead of 100 of Adam: the orders hold, the errors are larger",
}
TEXT = """## MNIST, convnets trained for the worst case

Published by [Kolter & Madry 2018](https://adversarial-ml-tutorial.org/adversarial_training/), chapter 4
(*PGD*, *interval*: the convnet of the book), and by Wong & Kolter 2018 (*dual*: a smaller convnet, two
convolutions of stride 2). Trained for ℓ∞ with ε = {eps:g} in pixels of [0, 1], no box, on all {train:,}
images; errors on all {test:,} test images. *PGD*: {pgd.epochs} epochs in batches of {pgd.batch_size},
20 steps of 0.01 an image. *Interval*: {interval.epochs} epochs; ε is 0 for the first two and grows up to
the end of the sixth. *Dual*: the published run has 100 epochs, ours {dual.epochs}, in batches of
{dual.batch_size}, with an ε that grows over the first half; an epoch took minutes. In all three our step
size falls from 0.1 to 0 in a straight line; schedules are ours. Ours: the mean over the seeds with the
smallest and largest.

{table}

FGSM and PGD-40 climb the cross-entropy and count the last point, as published. *Worst attack* is, image
by image, the worst of PGD-40 by the log-odds with every point counted and of `attacks.apgd` by the
margin, 20 steps. *Not verified* is an image that is wrong, or that the bounds (for *dual* those
of the dual network) do not prove safe: at least the error under any attack. For the PGD-trained network
they prove nothing at all. *Reproduced* means that the published error lies within our smallest and
largest, give or take {within:g} points.
"""


def trained(name: str, seed: int, pair: data.Data) -> nn.Module:
    """The network trained one way from one seed, kept in .bench."""
    run, generator = RUNS[name], torch.Generator().manual_seed(seed)
    path = networks.KEPT / f"training_{name}_{seed}.run"

    def train(model: nn.Module) -> None:
        timer, pairs = Timer(), (pair.x_train, pair.y_train)
        settings = {"epochs": run.epochs, "batch_size": run.batch_size, "generator": generator}
        falling = lambda done: 0.1 * (1 - done)  # noqa: E731
        for epoch in training.fit(model, pairs, run.inner(), lr=falling, **settings, checkpoint=path):
            took = f"{timer.clock():.0f} s"
            print(f"    {name} {seed}: {epoch.number}, {epoch.loss:.4f}, {took}", flush=True)
        path.unlink()

    model = run.network(generator).to(networks.DEVICE)
    return networks.kept(f"training_{name}_{seed}", model, train)


def section(pair: data.Data) -> tuple[str, list[Figure]]:
    """Every network, every error."""
    pair = networks.on_device(pair)
    rows, figures = [], []
    for name, run in RUNS.items():
        found = [
            networks.once(f"errors_training_{name}_{s}", partial(errors, name, s, pair))
            for s in run.seeds
        ]
        source, published = PUBLISHED[name]
        for column in COLUMNS:
            ours = [errors_[column] for errors_ in found]
            cells = ["–", over(ours), ""]
            if column in published:
                what = f"convnet trained by {name}, {column}"
                figure = compare(source, what, published[column], ours, WITHIN, WHY.get(name, ""))
                figures.append(figure)
                cells = [figure.published, figure.ours, figure.status]
            rows.append((name, column, *cells))
    text = TEXT.format(
        eps=BALL.eps,
        train=len(pair.y_train),
        test=len(pair.y_test),
        table=tables.table(("training", "error", "published", "ours", "status"), rows),
        within=100 * WITHIN,
        **{name.lower(): run for name, run in RUNS.items()},
    )
    return text, figures


def errors(name: str, seed: int, pair: data.Data) -> dict[str, float]:
    """The error of one network in every column."""
    model, x, y = trained(name, seed, pair), pair.x_test, pair.y_test
    still = partial(evaluation.survivors, model, x, y, BALL, batch_size=500)
    own = [partial(attacks.pgd, step_size=0.01, keep="first", steps=40)]
    own.append(partial(attacks.apgd, steps=20, loss=losses.margin_loss))
    proved = proof(model, x, y, RUNS[name].proof)
    right = {
        "clean": still(),
        "FGSM": still([partial(attacks.fgsm, loss=losses.cross_entropy)]),
        "PGD-40": still([partial(PGD, steps=40)]),
    }
    right["worst attack"] = still(own) & right["PGD-40"] & right["FGSM"]
    right["not verified"] = proved
    assert bool((proved <= right["worst attack"]).all()), "an attack broke what the bounds had proved"
    found = {column: 1 - evaluation.rate(right[column]).value for column in COLUMNS}
    print(f"  {name}, seed {seed}: " + ", ".join(f"{k} {v:.2%}" for k, v in found.items()), flush=True)
    return found


def proof(model: nn.Module, x: Tensor, y: Tensor, method: str) -> Tensor:
    """Which images the bounds prove right for every δ of the ball."""
    with torch.no_grad():
        parts = zip(x.split(500), y.split(500), strict=True)
        return torch.cat([(bounds.margins(model, a, b, BALL, method) > 0).all(1) for a, b in parts])
