"""Descent steps for `training.fit`: what a gradient does to the weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from .stack import members_of


class Optimiser(Protocol):
    """A rule for steps. What it remembers is a list of tensors that `fit` holds, so one rule serves all.

    alpha: the step size, or one for each member of a `stack.Stack`.
    """

    def start(self, model: nn.Module) -> list[Tensor]:
        """What it remembers before the first step."""

    def step(self, model: nn.Module, memory: list[Tensor], alpha: float | Sequence[float]) -> None:
        """Move the parameters along their .grad, in place, and remember."""


@dataclass(frozen=True)
class SGD:
    """v ← momentum · v + ∇ and θ ← θ − α v, from v = 0.

    momentum: in [0, 1).
    normalise: divide each gradient by its ℓ2 norm over all of a network's parameters, unless that is 0.
    By hand: the first optimiser of `torch.optim` imports a compiler, which takes longer than a training.
    Raises ValueError for another momentum.
    """

    momentum: float = 0.0
    normalise: bool = False

    def __post_init__(self):
        if not 0 <= self.momentum < 1:
            raise ValueError(f"expected 0 ≤ momentum < 1, got {self.momentum!r}")

    def start(self, model: nn.Module) -> list[Tensor]:
        """v = 0."""
        return [torch.zeros_like(p) for p in model.parameters()]

    @torch.no_grad()
    def step(self, model: nn.Module, memory: list[Tensor], alpha: float | Sequence[float]) -> None:
        """One step; each member of a `stack.Stack` has a norm, and may have a step size, of its own."""
        if self.normalise:
            _normalise(model)
        for p, v in zip(model.parameters(), memory, strict=True):
            if p.grad is None:
                continue
            v.mul_(self.momentum).add_(p.grad)
            if isinstance(alpha, Sequence):
                p.sub_(p.new_tensor(alpha).view(-1, *[1] * (p.ndim - 1)) * v)
            else:
                p.add_(v, alpha=-alpha)


def _normalise(model: nn.Module) -> None:
    """Divide the gradient of all parameters of a network by its ℓ2 norm, in place, unless that is 0."""
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    rows = torch.cat([gradient.reshape(members_of(model), -1) for gradient in gradients], 1)
    size = torch.linalg.vector_norm(rows, dim=1)
    size[size == 0] = 1
    for gradient in gradients:
        gradient.view(len(rows), -1).div_(size[:, None])
