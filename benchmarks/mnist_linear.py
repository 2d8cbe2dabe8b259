"""MNIST 0 against 1, a linear model, ‖δ‖∞ ≤ 0.2: the figures of the published tutorial.

Source: Kolter & Madry 2018, adversarial-ml-tutorial.org, chapter 2. Its settings: batches of 100;
standard training 10 epochs at step size 1, robust training 20 epochs at step size 0.1; no box.
"""

from __future__ import annotations

import math
from statistics import mean

import torch

from adv_lib import data, linear, models, training
from adv_lib.threat import Ball

EPS = 0.2
SEEDS = range(5)
PUBLISHED = {
    ("standard", "clean error"): 0.000946,
    ("standard", "robust error"): 0.8459,
    ("robust", "clean error"): 0.0038,
    ("robust", "robust error"): 0.0251,
}
SETTINGS = {"standard": (0.0, 10, 1.0), "robust": (EPS, 20, 0.1)}  # ε in training, epochs, step size


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


def rows(pair: data.Data) -> list[dict]:
    """One row per published figure: what it is, published, ours as mean and range over the seeds."""
    found = {kind: [errors(kind, pair, seed) for seed in SEEDS] for kind in SETTINGS}
    return [
        {
            "model": f"{kind} linear model",
            "quantity": f"{quantity}, ε = {EPS}" if quantity == "robust error" else quantity,
            "published": published,
            "mean": mean(run[quantity] for run in found[kind]),
            "low": min(run[quantity] for run in found[kind]),
            "high": max(run[quantity] for run in found[kind]),
        }
        for (kind, quantity), published in PUBLISHED.items()
    ]
