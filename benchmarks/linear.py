"""MNIST 0 against 1, a linear model, ‖δ‖∞ ≤ 0.2: the figures of the published tutorial.

Source: Kolter & Madry 2018, adversarial-ml-tutorial.org, chapter 2. Its settings: batches of 100;
standard training 10 epochs at step size 1, robust training 20 epochs at step size 0.1; no box.
"""

from __future__ import annotations

import math

import torch

from adv_lib import data, linear, models, training
from adv_lib.threat import Ball

from . import tables
from .results import Figure, compare

EPS = 0.2
SEEDS = range(5)
WITHIN = 0.001  # how far outside our range a published error may lie and count as reproduced
PUBLISHED = {
    ("standard", "clean error"): 0.000946,
    ("standard", "robust error"): 0.8459,
    ("robust", "clean error"): 0.0038,
    ("robust", "robust error"): 0.0251,
}
SETTINGS = {"standard": (0.0, 10, 1.0), "robust": (EPS, 20, 0.1)}  # ε in training, epochs, step size
WHY = "the loss has no minimum, so the result depends on the start"
TEXT = """## MNIST, 0 against 1, linear model, ℓ∞

Published by [Kolter & Madry 2018](https://adversarial-ml-tutorial.org/linear_models/), chapter 2.
Settings as published: batches of 100; standard training 10 epochs with step size 1, robust training
20 epochs with step size 0.1, ε = 0.2 in pixels of [0, 1], no box. Ours: mean over {seeds} seeds with
the smallest and largest, {n:,} test images. Robust errors are exact, from the closed form of the
chapter on [linear models](../chapters/01_linear_models.ipynb).

{table}

*Reproduced* means that the published number lies within our smallest and largest, give or take 0.1
points. The training set can be separated for every ε below {reach:.4f}, so the standard model's loss
has no minimum: where its 10 epochs end, and with it its robust error, depends on the start.
"""


def errors(kind: str, pair: data.Data, seed: int) -> dict[str, float]:
    """Clean and exact robust test error of one linear model, trained with this seed."""
    train_eps, epochs, lr = SETTINGS[kind]
    generator = torch.Generator().manual_seed(seed)
    model = models.linear(784, 1, generator)

    def inner(model, x, y):
        return linear.logistic(
            linear.robust_margin(*linear.weights(model), x, y, Ball(math.inf, train_eps))
        )

    train = (pair.x_train, pair.y_train)
    for _ in training.fit(model, train, inner, epochs=epochs, lr=lr, generator=generator):
        pass
    w, b = (v.detach() for v in linear.weights(model))
    return {
        "clean error": linear.robust_error(w, b, pair.x_test, pair.y_test, Ball(math.inf, 0.0)),
        "robust error": linear.robust_error(w, b, pair.x_test, pair.y_test, Ball(math.inf, EPS)),
    }


def section(mnist: data.Data) -> tuple[str, list[Figure]]:
    """The table, how far apart the two classes are, and the figures."""
    pair = data.binary(mnist, 0, 1)
    found = {kind: [errors(kind, pair, seed) for seed in SEEDS] for kind in SETTINGS}
    figures = []
    for (kind, quantity), published in PUBLISHED.items():
        what = f"{kind} linear model, {quantity}" + (
            f", ε = {EPS}" if quantity == "robust error" else ""
        )
        ours = [run[quantity] for run in found[kind]]
        figures.append(compare("kolter2018tutorial", what, published, ours, WITHIN, WHY))
    text = TEXT.format(
        seeds=len(SEEDS),
        n=len(pair.y_test),
        table=tables.table(
            ("error", "published", "ours", "status"),
            ((figure.what, figure.published, figure.ours, figure.status) for figure in figures),
        ),
        reach=linear.largest_margin(pair.x_train, pair.y_train, math.inf),
    )
    return text, figures
