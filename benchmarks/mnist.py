"""MNIST, ten classes, three networks and the attacks of the published tutorial.

Source: Kolter & Madry 2018, adversarial-ml-tutorial.org, chapter 3: the part on the inner maximum. Its
settings: batches of 100, 10 epochs of SGD with step size 0.1; errors on all test images.
"""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import nn

from adv_lib import attacks, data, evaluation, losses, models, training
from adv_lib.threat import Ball

from . import networks, tables
from .results import Figure, compare, over
from .timing import Timer

NETWORKS = {
    "dnn_2": (lambda generator: models.mlp([784, 200, 10], generator), range(3)),
    "dnn_4": (lambda generator: models.mlp([784, 200, 100, 100, 10], generator), range(3)),
    "cnn": (lambda generator: models.convnet((1, 28, 28), 10, generator), range(3)),
}
PUBLISHED = {
    "clean": (0.0285, 0.0210, 0.0105),
    "FGSM, ℓ∞, ε = 0.1": (0.9259, 0.8827, 0.4173),
    "PGD, ℓ∞, ε = 0.1": (0.9637, 0.9838, 0.7432),
    "PGD, ℓ∞, ε = 0.1, 10 starts": (None, None, 0.7648),
    "PGD, ℓ2, ε = 2, box": (0.9232, 0.9435, 0.7854),
}
# The ball, the attack and its steps; the published ℓ∞ attacks let pixels leave [0, 1]. Instead of the
# package's default, keep="first" breaks what "best" breaks and spares the work after that.
STEP = {"steps": 40, "step_size": 0.01}
ATTACKS = {
    "FGSM, ℓ∞, ε = 0.1": (Ball(math.inf, 0.1), attacks.fgsm, {}),
    "PGD, ℓ∞, ε = 0.1": (Ball(math.inf, 0.1), attacks.pgd, STEP),
    "PGD, ℓ∞, ε = 0.1, 10 starts": (Ball(math.inf, 0.1), attacks.pgd, STEP | {"restarts": 10}),
    "PGD, ℓ2, ε = 2, box": (Ball(2, 2, (0, 1)), attacks.pgd, {"steps": 40, "step_size": 0.1}),
}
WHY = {"FGSM, ℓ∞, ε = 0.1": "FGSM by the cross-entropy depends on how sure the network is"}
BATCH = 1000 if networks.DEVICE == "cuda" else 100  # images attacked at once: only speed depends on it
# How far outside our range a published error, attacked or clean, may lie and count as reproduced.
WITHIN, CLEAN = 0.01, 0.002
HEAD = ("network, attack", "published", "ours, as published", "ours, defaults", "status")
SURE = (
    "first seed's network",
    "rounds to 1",
    "FGSM by cross-entropy",
    "the same in float64",
    "FGSM by log-odds",
)

TEXT = """## MNIST, three networks, attacks

Published by Kolter & Madry 2018,
[chapter 3](https://adversarial-ml-tutorial.org/adversarial_examples/). Settings as published: trained on
all {train:,} images in batches of 100, 10 epochs with step size 0.1; PGD takes 40 steps, of 0.01 for
ℓ∞, where pixels may leave [0, 1], and of 0.1 for ℓ2. Errors on all {test:,} test images. dnn_2 is
784-200-10, dnn_4 is 784-200-100-100-10, cnn is the convnet of the book. Ours: mean over 3 seeds with the
smallest and largest.

*As published* climbs the cross-entropy and keeps the last point of a run. *Defaults* climbs the log-odds
and counts a sample as broken when any point of the run breaks it. So does "10 starts", where our first
start is δ = 0 and the others are random; the published ones are all random.

{table}

*Reproduced* means that the published error lies within our smallest and largest, as published, give or
take {within:.0f} point, {clean:g} for clean errors.

FGSM by the cross-entropy depends on how sure the network is, as the next table shows for dnn_4 and cnn.
Where a network is so sure that its probability of the true class rounds to 1 in float32, the
cross-entropy's gradient loses the term of that class. The log-odds keep it, and so does float64:

{sure}
"""


def trained(name: str, seed: int, pair: data.Data) -> nn.Module:
    """A network trained as published, with this seed."""
    generator = torch.Generator().manual_seed(seed)

    def train(model: nn.Module) -> None:
        timer = Timer()
        settings = {"epochs": 10, "lr": 0.1, "generator": generator}
        for epoch in training.fit(model, (pair.x_train, pair.y_train), training.clean, **settings):
            took = f"{timer.clock():.0f} s"
            print(f"    epoch {epoch.number}, loss {epoch.loss:.4f}, {took}", flush=True)

    model = NETWORKS[name][0](generator).to(networks.DEVICE)
    return networks.kept(f"published_{name}_{seed}", model, train)


def errors(name: str, seed: int, pair: data.Data) -> dict[str, float]:
    """The error of one network, by attack and by variant, as in "clean|as published"."""
    model = trained(name, seed, pair)
    x, y = pair.x_test, pair.y_test

    def error(ball: Ball, attack: list) -> float:
        return 1 - evaluation.robust_accuracy(model, x, y, ball, attack, batch_size=BATCH).value

    found = {"clean|as published": error(Ball(math.inf, 0), [])}
    for label, (ball, attack, settings) in ATTACKS.items():
        if PUBLISHED[label][list(NETWORKS).index(name)] is None:
            continue
        variants = {"as published": {"loss": losses.cross_entropy}, "defaults": {}}
        if attack is attacks.pgd:
            variants["as published"]["keep"] = "last"
            variants["defaults"]["keep"] = "first"
        if "restarts" in settings:
            variants = {"as published": {"loss": losses.cross_entropy, "keep": "first"}}
        for variant, more in variants.items():
            timer = Timer()
            share = error(ball, [partial(attack, **settings, **more)])
            found[f"{label}|{variant}"] = share
            took = f"{timer.clock():.0f} s"
            print(f"  {name}, seed {seed}, {label}, {variant}: {share:.2%}, {took}", flush=True)
    return found


def section(pair: data.Data) -> tuple[str, list[Figure]]:
    """Every network, every seed, every attack."""
    pair = networks.on_device(pair)
    rows, sure, figures = [], [], []
    for column, (name, (_, seeds)) in enumerate(NETWORKS.items()):
        runs = [networks.once(f"errors_{name}_{s}", partial(errors, name, s, pair)) for s in seeds]
        certain = networks.once(f"certain_{name}", partial(certainty, name, seeds[0], pair))
        first = [runs[0][f"FGSM, ℓ∞, ε = 0.1|{variant}"] for variant in ("as published", "defaults")]
        cells = (certain["share"], first[0], certain["precise"], first[1])
        sure.append((name, *(f"{v:.2%}" for v in cells)))
        for label, published in PUBLISHED.items():
            if published[column] is not None:
                figures.append(figure(name, label, published[column], runs))
                rows.append(row(figures[-1], label, runs))
    text = TEXT.format(
        train=len(pair.y_train),
        test=len(pair.y_test),
        table=tables.table(HEAD, rows),
        within=100 * WITHIN,
        clean=100 * CLEAN,
        sure=tables.table(SURE, sure),
    )
    return text, figures


def certainty(name: str, seed: int, pair: data.Data) -> dict[str, float]:
    """How often the true class has probability 1 in float32, and what FGSM does in float64."""
    model, x, y = trained(name, seed, pair), pair.x_test, pair.y_test
    with torch.no_grad():
        z = torch.cat([model(part) for part in x.split(100)])
    share = (z.softmax(1).gather(1, y[:, None]) == 1).float().mean().item()
    attack = partial(attacks.fgsm, loss=losses.cross_entropy)
    ball, double = ATTACKS["FGSM, ℓ∞, ε = 0.1"][0], (model.double(), x.double(), y)
    precise = 1 - evaluation.robust_accuracy(*double, ball, [attack], batch_size=100).value
    return {"share": share, "precise": precise}


def figure(name: str, label: str, published: float, runs: list[dict]) -> Figure:
    """One published error next to ours, attacked as published."""
    ours = [run[f"{label}|as published"] for run in runs]
    within = CLEAN if label == "clean" else WITHIN
    return compare("kolter2018tutorial", f"{name}, {label}", published, ours, within, WHY.get(label, ""))


def row(figure: Figure, label: str, runs: list[dict]) -> tuple[str, ...]:
    """One line of the table."""
    default = f"{label}|defaults"
    own = over(run[default] for run in runs) if default in runs[0] else "–"
    return figure.what, figure.published, figure.ours, own, figure.status
