"""MNIST, the convnet of the published tutorial, trained against PGD and on interval bounds.

Source: Kolter & Madry 2018, adversarial-ml-tutorial.org, chapter 4: the part on the outer minimisation.
"""

from __future__ import annotations

import math
import time
from functools import partial
from statistics import median

import torch
from torch import nn

from adv_lib import attacks, bounds, data, evaluation, losses, models, training
from adv_lib.threat import Ball

from . import networks

BALL = Ball(math.inf, 0.1)  # as published: pixels may leave [0, 1]
PGD = partial(attacks.pgd, step_size=0.01, loss=losses.cross_entropy, keep="last")
interval = partial(training.certified, method="interval")
RUNS = {  # what stands for the inner maximum, and epochs
    "PGD": (lambda: training.adversarial(partial(PGD, steps=20), BALL), 3),
    "interval": (lambda: training.Ramp(interval, BALL, begin=0.2, end=0.6), 10),
}
COLUMNS = ("clean", "FGSM", "PGD-40", "worst attack", "not verified")
PUBLISHED = {
    "PGD": {"clean": 0.0085, "PGD-40": 0.0286, "FGSM": 0.0258},
    "interval": {"clean": 0.0515, "PGD-40": 0.0779, "not verified": 0.0967},
}

TEXT = """## MNIST, a convnet trained for the worst case

Published by Kolter & Madry 2018,
[chapter 4](https://adversarial-ml-tutorial.org/adversarial_examples/): the convnet of the book, trained
for ℓ∞ with ε = {eps:g} in pixels of [0, 1], no box, on all {train:,} images in batches of 100. Errors on
all {test:,} test images; one seed. *PGD-trained*: 20 steps of 0.01 an image. The published run takes 10
epochs, ours {pgd_epochs}, because a CPU needs {pgd_minutes:.0f} minutes for them in one thread: less, so
the numbers are not expected to meet. *Interval-trained*: {interval_epochs} epochs,
{interval_minutes:.0f} minutes; ε is 0 for the first two epochs and grows up to the end of the sixth. In
both our step size falls from 0.1 to 0 in a straight line; schedules are ours. Command:
`make bench PART=training`.

| training | error | published | ours |
|---|---|---|---|
{table}

FGSM and PGD-40 climb the cross-entropy and count the last point, as published. *Worst attack* is, image
by image, the worst of PGD-40 by the log-odds with every point counted and of `attacks.apgd` by the
margin, 20 steps. *Not verified* is an image that is wrong, or whose interval bounds do not prove that no
δ changes the class: at least the error under any attack, and for the PGD-trained network it proves
nothing at all.
"""


def trained(name: str, pair: data.Data) -> nn.Module:
    """The network trained one way, and how long that took, kept beside it."""
    inner, epochs = RUNS[name]
    generator = torch.Generator().manual_seed(0)
    path = networks.KEPT / f"training_{name}.run"

    def train(model: nn.Module) -> None:
        took, begin = [], time.process_time()
        train = (pair.x_train, pair.y_train)
        settings = {"epochs": epochs, "lr": lambda done: 0.1 * (1 - done), "generator": generator}
        for epoch in training.fit(model, train, inner(), **settings, checkpoint=path):
            took.append(time.process_time() - begin)
            print(f"    epoch {epoch.number}, loss {epoch.loss:.4f}, {took[-1]:.0f} s", flush=True)
            begin = time.process_time()
        model.register_buffer("seconds", torch.tensor(epochs * median(took)))
        path.unlink()

    model = models.convnet((1, 28, 28), 10, generator)
    if (networks.KEPT / f"training_{name}.pt").exists():
        model.register_buffer("seconds", torch.tensor(0.0))
    return networks.kept(f"training_{name}", model, train)


def errors(name: str, model: nn.Module, pair: data.Data) -> dict[str, float]:
    """The error of one network in every column."""
    x, y = pair.x_test, pair.y_test
    still, steps = partial(evaluation.survivors, model, x, y, BALL, batch_size=100), {"steps": 40}
    own = [partial(attacks.pgd, step_size=0.01, keep="first", **steps)]
    own.append(partial(attacks.apgd, steps=20, loss=losses.margin))
    cross = losses.cross_entropy
    with torch.no_grad():
        parts = zip(x.split(500), y.split(500), strict=True)
        proved = torch.cat([(bounds.margins(model, a, b, BALL) > 0).all(1) for a, b in parts])
    right = {
        "clean": still(),
        "FGSM": still([partial(attacks.fgsm, loss=cross)]),
        "PGD-40": still([partial(PGD, **steps)]),
    }
    right["worst attack"] = still(own) & right["PGD-40"] & right["FGSM"]
    right["not verified"] = proved
    assert bool((proved <= right["worst attack"]).all()), "an attack broke what the bounds had proved"
    return {column: 1 - evaluation.rate(right[column]).value for column in COLUMNS}


def section(pair: data.Data) -> str:
    """Both networks, every error."""
    lines, minutes = [], {}
    for name in RUNS:
        model = trained(name, pair)
        minutes[name] = model.seconds.item() / 60
        del model.seconds
        for column, error in errors(name, model, pair).items():
            known = PUBLISHED[name].get(column)
            published = "–" if known is None else f"{known:.2%}"
            lines.append(f"| {name} | {column} | {published} | {error:.2%} |")
            print(f"  {lines[-1]}", flush=True)
    return TEXT.format(
        eps=BALL.eps,
        test=len(pair.y_test),
        train=len(pair.y_train),
        pgd_epochs=RUNS["PGD"][1],
        pgd_minutes=minutes["PGD"],
        interval_epochs=RUNS["interval"][1],
        interval_minutes=minutes["interval"],
        table="\n".join(lines),
    )
