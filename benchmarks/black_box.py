"""Attacks without gradients, at equal queries: this package's, the libraries', and RayS as published."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from functools import partial
from statistics import median

import numpy as np
import torch
from torch import Tensor, nn

from adv_lib import attacks, data, evaluation, losses, models, training
from adv_lib.threat import Ball

from . import peers, tables, timing

SEEDS, N = 3, 200
EPS = {math.inf: 0.1, 2: 0.6}
STEPS, SAMPLES, RADIUS, RATE = 20, 25, 0.01, 0.01  # of SPSA: 1,000 queries
QUERIES = 1000
HIGHER = 0.02  # how much higher than theirs our robust accuracy may be

TEXT = """## Attacks without gradients

{seeds} networks 64-32-10, which differ in the seed of their weights only, trained on the digits of
scikit-learn; {n} test images. Robust accuracy is mean ± deviation over the seeds. Queries are the most
that a sample is asked about, and the mean over all, as `attacks.count` finds them; the others may ask as
often. Times are ratios to ours, medians over the seeds. For RayS no library is here: next to ours stands
the published algorithm, written sample by sample in NumPy, with its own tolerance.

{table}

The two libraries draw where a square begins from 0 to one less than it could, so that no square smaller
than the image reaches its last row and its last column; on images as small as these that is a quarter of
the pixels.

{targets}
"""


def network(pair: data.Data, seed: int) -> nn.Sequential:
    """A small network that knows the digits and nothing of adversaries."""
    model = models.mlp([64, 32, 10], torch.Generator().manual_seed(seed))
    inner = lambda m, x, y: losses.cross_entropy(m(x), y)  # noqa: E731
    train = pair.x_train, pair.y_train
    list(training.fit(model, train, inner, epochs=12, lr=0.2, batch_size=50))
    return model.requires_grad_(False).eval()


# ---- the others: (model, x, y, p) → δ ----


def torchattacks_spsa(model: nn.Module, x: Tensor, y: Tensor, p: float) -> Tensor:
    import torchattacks

    torch.manual_seed(0)  # it draws from the global generator
    settings = {"eps": EPS[p], "delta": RADIUS, "lr": RATE, "nb_iter": STEPS, "nb_sample": SAMPLES}
    return torchattacks.SPSA(model, **settings)(x, y) - x


def cleverhans_spsa(model: nn.Module, x: Tensor, y: Tensor, p: float) -> Tensor:
    from cleverhans.torch.attacks.spsa import spsa

    torch.manual_seed(0)
    settings = {"learning_rate": RATE, "delta": RADIUS, "spsa_samples": SAMPLES}
    return spsa(model, x, EPS[p], STEPS, p, 0, 1, y, sanity_checks=False, **settings) - x


def torchattacks_square(model: nn.Module, x: Tensor, y: Tensor, p: float) -> Tensor:
    import torchattacks

    kind = {2: "L2", math.inf: "Linf"}[p]
    return torchattacks.Square(model, kind, EPS[p], QUERIES, seed=0)(x, y) - x


def art_square(model: nn.Module, x: Tensor, y: Tensor, p: float) -> Tensor:
    from art.attacks.evasion import SquareAttack

    np.random.seed(0)  # noqa: NPY002 - it draws from NumPy's global generator
    run = SquareAttack(
        peers.art_classifier(model, x.shape[1:]),
        norm=p,
        eps=EPS[p],
        max_iter=QUERIES,
        batch_size=len(x),
        verbose=False,
    )
    return torch.from_numpy(run.generate(x.numpy(), y.numpy())) - x


def published_rays(model: nn.Module, x: Tensor, y: Tensor, p: float) -> Tensor:
    """Chen & Gu 2020, algorithms 1 to 3, sample by sample, with lengths in ℓ2 as in their code."""
    weights = [(f.weight.double().numpy(), f.bias.double().numpy()) for f in model if hasattr(f, "bias")]

    def label(v: np.ndarray) -> int:
        *hidden, (W, b) = weights
        for V, c in hidden:
            v = np.maximum(V @ v + c, 0)
        return int((W @ v + b).argmax())

    rows = zip(x.flatten(1).double().numpy(), y.tolist(), strict=True)
    found = np.stack([_rays_of_one(label, v, k) for v, k in rows])
    return torch.from_numpy(found).to(x).view_as(x)


def _rays_of_one(label: Callable, x: np.ndarray, y: int, tolerance: float = 1e-3) -> np.ndarray:
    d, asked = len(x), 0

    def there(signs: np.ndarray, length: float) -> np.ndarray:
        return np.clip(x + min(length, math.sqrt(d)) * signs / math.sqrt(d), 0, 1)

    def succeeds(signs: np.ndarray, length: float) -> bool:
        nonlocal asked
        asked += 1
        return label(there(signs, length)) != y

    signs, best, level, block = np.ones(d), math.inf, 0, 0
    while asked < QUERIES and best / math.sqrt(d) > EPS[math.inf]:
        size = math.ceil(d / 2**level)
        end = min(d, (block + 1) * size)
        tried = signs.copy()
        tried[block * size : end] *= -1
        if succeeds(tried, best):
            low, high = 0.0, min(best, math.sqrt(d))
            while high - low > tolerance and asked < QUERIES:
                middle = (low + high) / 2
                low, high = (low, middle) if succeeds(tried, middle) else (middle, high)
            if high < best:
                signs, best = tried, high
        block += 1
        if block == 2**level or end == d:
            level, block = level + 1, 0
    return there(signs, best) - x if best / math.sqrt(d) <= EPS[math.inf] else np.zeros(d)


SPSA = {"steps": STEPS, "samples": SAMPLES, "radius": RADIUS, "step_size": RATE}
TRIALS = [  # what, p, ours, the others
    (
        "SPSA",
        math.inf,
        partial(attacks.spsa, keep="best", **SPSA),
        {"torchattacks": torchattacks_spsa, "cleverhans": cleverhans_spsa},
    ),
    ("SPSA, first", math.inf, partial(attacks.spsa, keep="first", **SPSA), {}),
    *(
        (
            "Square",
            p,
            partial(attacks.square, queries=QUERIES),
            {"torchattacks": torchattacks_square, "ART": art_square},
        )
        for p in EPS
    ),
    ("RayS", math.inf, partial(attacks.rays, queries=QUERIES), {"as published": published_rays}),
]


def section(_pair=None) -> str:
    """All of them on the digits, each network for itself."""
    pair = data.load("digits")
    x, y = pair.x_test[:N].view(-1, 1, 8, 8), pair.y_test[:N]
    networks = [network(pair, seed) for seed in range(SEEDS)]
    rows, targets = [], []
    for what, p, ours, others in TRIALS:
        ball, name = Ball(p, EPS[p], (0, 1)), f"{what}, p = {'∞' if p == math.inf else p}"
        found = [measured(ours, model, x, y, ball) for model in networks]
        counts = [attacks.count(ours, model, x, y, ball)[1].forward for model in networks]
        most, mean = max(int(c.max()) for c in counts), torch.stack(counts).double().mean()
        mine = evaluation.Spread([share for share, _ in found])
        rows.append(tables.printed(name, "adv_lib", f"{mine:.3f}", f"{most:,}, {mean:.0f}", "1.0"))
        for other, attack in others.items():
            run = lambda m, x, y, b, attack=attack, p=p: attack(m, x, y, p)  # noqa: E731
            theirs = [measured(run, model, x, y, ball) for model in networks]
            share = evaluation.Spread([share for share, _ in theirs])
            ratio = median(t / s for (_, t), (_, s) in zip(theirs, found, strict=True))
            rows.append(tables.printed(name, other, f"{share:.3f}", "", f"{ratio:.1f}"))
            limit = share.mean + HIGHER
            said = f"robust accuracy ≤ theirs + {tables.short(HIGHER)}"
            targets.append(tables.at_most(said, f"{name}, {other}", mine.mean, limit, 3))
    head = ("attack", "by", "robust accuracy", "queries", "time")
    return TEXT.format(
        seeds=SEEDS,
        n=N,
        table=tables.table(head, rows, right=(2, 3, 4)),
        targets=tables.targets(targets, "target", "attack, against"),
    )


def measured(
    attack: Callable, model: nn.Module, x: Tensor, y: Tensor, ball: Ball
) -> tuple[float, float]:
    """The robust accuracy of what an attack finds, and its CPU seconds; δ is cut to Δ(x)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        timer = timing.Timer()
        delta = attack(model, x, y, ball)
        took = timer.cpu()
    z = model(x + ball.project(delta.detach(), x))
    right = losses.correct(model(x), y) & losses.correct(z, y)
    return right.double().mean().item(), took
