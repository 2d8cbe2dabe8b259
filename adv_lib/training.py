"""The outer minimum: one loop for every way of training in the book."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn

from . import attacks, losses, models
from .data import Data
from .threat import Ball

Inner = Callable[[nn.Module, Tensor, Tensor], Tensor]


class Epoch(NamedTuple):
    """What one pass over the training set did."""

    number: int
    loss: float


def fit(
    model: nn.Module,
    data: tuple[Tensor, Tensor],
    inner: Inner,
    *,
    epochs: int,
    lr: float,
    batch_size: int = 100,
    generator: torch.Generator | None = None,
) -> Iterator[Epoch]:
    """Minimise the mean of inner(model, x, y) over the data by stochastic gradient descent, in place.

    θ ← θ − lr ∇_θ (1/|B|) Σ_{(x,y)∈B} inner(θ, x, y), one batch B after the other.

    data:  inputs (n, *shape) and labels (n,).
    inner: (model, x, y) → (n,), the inner maximum max_δ ℓ or an estimate of it: the loss itself for
           standard training, an attack's loss (a lower bound), a closed form, or an upper bound.
    generator: shuffles the batches; None means a fresh one seeded 0.
    Yields an Epoch, its number and its mean loss, after each epoch; nothing runs before you iterate.
    Raises ValueError for arguments that cannot be trained on, FloatingPointError if the loss is not
    finite.
    """
    x, y = data
    if len(x) != len(y) or len(x) == 0:
        raise ValueError(f"data must be as many inputs as labels, got {len(x)} and {len(y)}")
    if epochs < 0 or batch_size < 1 or not lr > 0:
        raise ValueError(
            "expected epochs ≥ 0, batch_size ≥ 1 and lr > 0, "
            f"got epochs={epochs!r}, batch_size={batch_size!r}, lr={lr!r}"
        )
    generator = generator or torch.Generator().manual_seed(0)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    for number in range(1, epochs + 1):
        total = 0.0
        for batch in torch.randperm(len(x), generator=generator).to(x.device).split(batch_size):
            loss = inner(model, x[batch], y[batch]).mean()
            if not loss.isfinite():
                raise FloatingPointError(f"the loss became {loss.item()} in epoch {number}")
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.item() * len(batch)
        yield Epoch(number, total / len(x))


def reference(kind: str, data: Data) -> nn.Sequential:
    """The network that every chapter means by "standard" or "robust", trained on `data` from seed 0.

    `models.mlp([d, 50, 50, K])`. "standard" minimises the cross-entropy: about 1,200 steps of 0.1 on
    batches of 100. "robust" goes on from there with the cross-entropy at the end of ten steps of
    `attacks.pgd` for p = ∞, ε = 0.1 and the box: about 960 steps of 0.05, then 240 of 0.01. No stage
    takes fewer than 4 epochs.  Raises ValueError for another kind.
    """
    if kind not in ("standard", "robust"):
        raise ValueError(f'expected kind "standard" or "robust", got {kind!r}')
    x, y = data.x_train, data.y_train
    ball, generator = Ball(math.inf, 0.1, (0, 1)), torch.Generator().manual_seed(0)
    model = models.mlp([x[0].numel(), 50, 50, int(y.max()) + 1], generator)

    def clean(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return losses.cross_entropy(model(x), y)

    def attacked(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return clean(model, x + attacks.pgd(model, x, y, ball, steps=10, keep="last"), y)

    stages = [(clean, 1200, 0.1), (attacked, 960, 0.05), (attacked, 240, 0.01)]
    for inner, steps, lr in stages[:1] if kind == "standard" else stages:
        epochs = max(4, round(100 * steps / len(x)))
        for _ in fit(model, (x, y), inner, epochs=epochs, lr=lr, generator=generator):
            pass
    return model
