"""Descent steps for `training.fit`: what a gradient does to the weights.

By hand: the first optimiser of `torch.optim` imports a compiler, which takes longer than a training. The
steps are those of torch, to rounding.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from ._given import within
from .stack import Stack, aligned, matrices, members_of


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
    """v ← momentum · v + g and θ ← θ − α v, from v = 0, where g = ∇ + λ θ.

    momentum: in [0, 1).
    normalise: divide each gradient by its ℓ2 norm over all of a network's parameters, unless that is 0.
    nesterov: θ ← θ − α (g + momentum · v) instead, as if the gradient came from the next point.
    weight_decay: λ ≥ 0, for all parameters, or one for each member of a `stack.Stack`.
    centralise: subtract from the gradient of every weight matrix, for each of its outputs, the mean over
                its inputs; before `normalise`.
    Raises ValueError for another momentum, Nesterov's without momentum, and another weight decay.
    Source: Sutskever et al. 2013 (nesterov); Yong et al. 2020 (centralise).
    """

    momentum: float = 0.0
    normalise: bool = False
    nesterov: bool = False
    weight_decay: float | Sequence[float] = 0.0
    centralise: bool = False

    def __post_init__(self):
        if not 0 <= self.momentum < 1:
            raise ValueError(f"expected 0 ≤ momentum < 1, got {self.momentum!r}")
        if self.nesterov and self.momentum == 0:
            raise ValueError("expected a momentum > 0 for nesterov, got 0")
        _settle_decay(self)

    def start(self, model: nn.Module) -> list[Tensor]:
        """v = 0."""
        _check_decay(self, model)
        return [torch.zeros_like(p) for p in model.parameters()]

    @torch.no_grad()
    def step(self, model: nn.Module, memory: list[Tensor], alpha: float | Sequence[float]) -> None:
        """One step; each member of a `stack.Stack` has a norm, and may have a step size, of its own."""
        if self.centralise:
            _centralise(model)
        if self.normalise:
            _normalise(model)
        for p, v in zip(model.parameters(), memory, strict=True):
            if p.grad is None:
                continue
            g = _decayed(p, self.weight_decay)
            v.mul_(self.momentum).add_(g)
            _descend(p, g + self.momentum * v if self.nesterov else v, alpha)


@dataclass(frozen=True)
class Adam:
    """m ← β₁m + (1 − β₁)g, s ← β₂s + (1 − β₂)g², θ ← θ − α m̂ / (√ŝ + epsilon), from m = s = 0.

    m̂ = m/(1 − β₁ᵗ) and ŝ = s/(1 − β₂ᵗ) at step t; g = ∇ + λ θ, entry by entry.

    betas: β₁ and β₂, in [0, 1).
    weight_decay: λ ≥ 0, for all parameters, or one for each member of a `stack.Stack`.
    decoupled: g = ∇ instead, and first θ ← θ − α λ θ: AdamW.
    Raises ValueError for other numbers.
    Source: Kingma & Ba 2015, algorithm 1; Loshchilov & Hutter 2019, algorithm 2 (decoupled).
    """

    betas: tuple[float, float] = (0.9, 0.999)
    epsilon: float = 1e-8
    weight_decay: float | Sequence[float] = 0.0
    decoupled: bool = False

    def __post_init__(self):
        object.__setattr__(self, "betas", tuple(self.betas))
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas) or not self.epsilon > 0:
            raise ValueError(
                f"expected two betas in [0, 1) and epsilon > 0, got {self.betas} and {self.epsilon!r}"
            )
        _settle_decay(self)

    def start(self, model: nn.Module) -> list[Tensor]:
        """t = 0, then every m and every s."""
        _check_decay(self, model)
        zeros = [torch.zeros_like(p) for _ in ("m", "s") for p in model.parameters()]
        return [torch.zeros((), dtype=torch.float64), *zeros]

    @torch.no_grad()
    def step(self, model: nn.Module, memory: list[Tensor], alpha: float | Sequence[float]) -> None:
        """One step; each member of a `stack.Stack` may have a step size of its own."""
        (first, second), (t, *rest) = self.betas, memory
        t.add_(1)
        parameters, half = list(model.parameters()), len(rest) // 2
        for p, m, s in zip(parameters, rest[:half], rest[half:], strict=True):
            if p.grad is None:
                continue
            g = p.grad if self.decoupled else _decayed(p, self.weight_decay)
            if self.decoupled:
                _descend(p, aligned(self.weight_decay, p) * p, alpha)
            m.lerp_(g, 1 - first)
            s.mul_(second).addcmul_(g, g, value=1 - second)
            root = (s / (1 - second ** float(t))).sqrt_().add_(self.epsilon)
            _descend(p, m / (1 - first ** float(t)) / root, alpha)


def _settle_decay(rule: SGD | Adam) -> None:
    """A weight decay that is no sequence that others can change; ValueError unless it is one."""
    decay = rule.weight_decay
    if isinstance(decay, Sequence) and not isinstance(decay, str):
        object.__setattr__(rule, "weight_decay", decay := tuple(decay))
    if decay == () or not within(decay, 0, sys.float_info.max):
        raise ValueError(f"expected a finite weight_decay ≥ 0, or one a network, got {decay!r}")


def _check_decay(rule: SGD | Adam, model: nn.Module) -> None:
    """Raise ValueError unless there is one weight decay, or one for each network."""
    decay, E = rule.weight_decay, members_of(model)
    if isinstance(decay, tuple) and len(decay) != E:
        raise ValueError(f"expected one weight_decay for each of {E} networks, got {len(decay)}")


def _decayed(p: nn.Parameter, decay: float | Sequence[float]) -> Tensor:
    """∇ + λ θ."""
    return p.grad if decay == 0 else p.grad + aligned(decay, p) * p


def _descend(p: nn.Parameter, direction: Tensor, alpha: float | Sequence[float]) -> None:
    """θ ← θ − α direction, in place."""
    if isinstance(alpha, Sequence):
        p.sub_(aligned(alpha, p) * direction)
    else:
        p.add_(direction, alpha=-alpha)


def _centralise(model: nn.Module) -> None:
    """Subtract the mean over the inputs from the gradients of all weight matrices, in place."""
    first = 2 if isinstance(model, Stack) else 1  # the axes before are members and outputs
    for p in matrices(model).values():
        if p.grad is not None:
            p.grad.sub_(p.grad.mean(tuple(range(first, p.ndim)), keepdim=True))


def _normalise(model: nn.Module) -> None:
    """Divide the gradient of all parameters of a network by its ℓ2 norm, in place, unless that is 0."""
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    rows = torch.cat([gradient.reshape(members_of(model), -1) for gradient in gradients], 1)
    size = torch.linalg.vector_norm(rows, dim=1)
    size[size == 0] = 1
    for gradient in gradients:
        gradient.view(len(rows), -1).div_(size[:, None])
