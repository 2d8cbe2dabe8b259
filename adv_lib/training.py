"""The outer minimum: one loop for every way of training in the book."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn

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
