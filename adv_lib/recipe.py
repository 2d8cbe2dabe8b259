"""Further ingredients of adversarial training, for `training.fit`: what recipes add to an attack.

Labels that are smoothed, another attack in another part of the run (`Staged`), weights that are
perturbed as well (`awp`), and gradients that serve twice (`Free`). Each takes a `stack.Stack` of E
networks as well as one, and each member ends where it would end alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from . import losses, models
from ._given import check_ball, check_moves, check_tensors, kind, within
from .stack import Stack, aligned, dealt, matrices, members_of
from .threat import Ball
from .training import Attack, Gradient, Inner, Loss, Varying


def smoothing(share: float | Sequence[float]) -> Loss:
    """`losses.smoothed` with this share, as the loss that `training.adversarial` and others minimise.

    share: s from 0 to 1, or one for each member of a `stack.Stack`.
    Returns (z, y) → (n,).  Raises ValueError unless 0 ≤ s ≤ 1.
    """
    if not within(share, 0, 1):
        raise ValueError(f"expected a share from 0 to 1, got {share!r}")

    def loss(z: Tensor, y: Tensor) -> Tensor:
        check_tensors(z=z, y=y)
        return losses.smoothed(z, y, dealt(share, z))

    return loss


@dataclass(frozen=True)
class Staged:
    """One inner maximum after the other: each from its part of the run on, until the next begins.

    Such as Staged([(0, training.clean), (0.4, training.adversarial(attacks.fgsm, ball))]).
    stages: (begin, inner), where the first begins at 0 and each later than the one before, before 1. An
            inner may vary in turn, as `training.Ramp` does, with the part of the whole run.
    Raises ValueError for others.
    """

    stages: Sequence[tuple[float, Inner | Varying]]

    def __post_init__(self):
        object.__setattr__(self, "stages", tuple(self.stages))
        begins = [begin for begin, _ in self.stages]
        if begins[:1] != [0] or not all(a < b for a, b in pairwise([*begins, 1])):
            raise ValueError(f"expected stages that begin at 0, then later and before 1, got {begins}")

    def at(self, done: float) -> Inner | Varying:
        """The inner maximum when a part `done` of the run, from 0 to 1, is over."""
        return [inner for begin, inner in self.stages if begin <= done][-1]


def awp(attack: Attack, ball: Ball, gamma: float | Sequence[float]) -> Inner:
    """ℓ(f_{θ+v}(x + δ), y), with δ as the attack finds it at θ, and v a step up in the weights.

    v = γ ‖W‖ G/‖G‖ for every weight matrix W of every network, where G is the gradient of the batch's
    mean loss at δ and θ, and ℓ the cross-entropy; the norm is that of all entries. The gradient of what
    is returned is taken at θ + v, with v held still, and `training.fit` applies it to θ.

    The attack sees the model in eval mode. BatchNorm learns once from a batch, at θ + v; for G it takes
    the statistics of the batch if the model is in train mode, and forgets them.
    gamma: γ ≥ 0, or one for each member of a `stack.Stack`.
    Raises ValueError for γ < 0, and for a model that is no nn.Module.
    Source: Wu, Xia & Wang 2020, with one step in the weights.
    """
    check_ball(ball)
    if not within(gamma, 0, math.nextafter(math.inf, 0)):
        raise ValueError(f"expected a finite gamma ≥ 0, got {gamma!r}")

    def inner(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        if not isinstance(model, nn.Module):
            raise ValueError(f"expected an nn.Module, whose weights can move, got {kind(model)}")
        with models.evaluating(model):
            delta = attack(model, x, y, ball)
        check_moves(attack, delta, x)
        steps = _steps(model, x + delta, y, gamma)
        weights = {name: p + steps[name] for name, p in matrices(model).items()}
        return losses.cross_entropy(models.logits(_with(model, weights), x + delta), y)

    return inner


def _steps(model: nn.Module, x: Tensor, y: Tensor, gamma: float | Sequence[float]) -> dict[str, Tensor]:
    """v for every weight matrix, by name, by the mean cross-entropy of each network at x."""
    with torch.inference_mode(False), torch.enable_grad():
        x, y = x.detach().clone(), y.clone()
        copies = {name: p.detach().clone().requires_grad_() for name, p in matrices(model).items()}
        kept = {name: buffer.clone() for name, buffer in model.named_buffers()}
        z = models.logits(_with(model, copies | kept), x)
        total = members_of(model) * losses.cross_entropy(z, y).mean()  # of each member its mean
        slopes = torch.autograd.grad(total, list(copies.values()), allow_unused=True)
    found = zip(copies.items(), slopes, strict=True)
    return {name: _step(W.detach(), G, gamma, isinstance(model, Stack)) for (name, W), G in found}


def _step(W: Tensor, G: Tensor | None, gamma: float | Sequence[float], stacked: bool) -> Tensor:
    """γ ‖W‖ G/‖G‖, or 0 where G is; of a stack for each member by itself."""
    if G is None:
        return torch.zeros_like(W)
    axes = tuple(range(1 if stacked else 0, W.ndim))
    size, slope = (torch.linalg.vector_norm(v, dim=axes, keepdim=True) for v in (W, G))
    return aligned(gamma, W) * size * G / slope.masked_fill(slope == 0, 1)


def _with(model: nn.Module, tensors: dict[str, Tensor]) -> Callable[[Tensor], Tensor]:
    """The model with other tensors in place of its own of these names."""
    return lambda x: torch.func.functional_call(model, tensors, (x,))


class Free:
    """ℓ(f(x + δ), y) where δ and θ move by the same gradient: adversarial training without an attack.

    Every batch is used `replays` times: one backward pass for θ ← θ − α ∇_θ and δ ← P(δ + v), where v
    maximises ⟨∇_x ℓ, v⟩ over ‖v‖_p ≤ ε; for p = ∞ that is P(δ + ε sign ∇_x ℓ). The next batch begins
    with the δ of the one before, cut or filled up with 0, projected onto its own Δ(x).

    It needs its own update: `fit(…, free, update=free.update)`; without, δ stays 0. One epoch costs as
    much as `replays` epochs of clean training: divide their number by it. The loss of an epoch is the
    mean over all passes. BatchNorm learns from every pass.
    A run begins with δ = 0: make one `Free` for each. What it holds is in no checkpoint, so a run that
    was killed and goes on begins with δ = 0 again.

    ball: the same for all samples.  replays: m ≥ 1.  loss: ℓ, as in `training.clean`.
    Raises ValueError for an ε for each sample, replays < 1, and inputs of another shape than before.
    Source: Shafahi et al. 2019, algorithm 1; the box is ours.
    """

    def __init__(self, ball: Ball, replays: int, *, loss: Loss = losses.cross_entropy):
        check_ball(ball)
        if ball.per_sample or not isinstance(replays, int) or replays < 1:
            raise ValueError(
                f"expected one eps for all samples and replays ≥ 1, got {ball.eps!r} and {replays!r}"
            )
        self.ball, self.replays, self.loss = ball, replays, loss
        self.x: Tensor | None = None  # the batch that δ is for
        self.delta: Tensor | None = None

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """The loss at δ, (n,), whose backward pass leaves a gradient in δ as well."""
        check_tensors(x=x, y=y)
        self.x, self.delta = x, self.ball.project(self._kept(x), x).requires_grad_()
        return self.loss(models.logits(model, x + self.delta), y)

    def update(self, model: nn.Module, gradient: Gradient, descend: Callable[[], None]) -> Tensor:
        """What `training.fit` does with a batch: so many times one gradient, for δ and for θ."""
        total = 0
        for _ in range(self.replays):
            total = total + gradient()
            rows, slope = (v.flatten(1) for v in (self.delta.detach(), self.delta.grad))
            moved = self.ball.region(self.x).step(rows, slope, self.ball.region(self.x).eps)
            self.delta = moved.view_as(self.x)
            descend()
        return total / self.replays

    def _kept(self, x: Tensor) -> Tensor:
        """As many rows as x has: of the δ so far, then of 0."""
        rows = torch.zeros_like(x)
        if self.delta is not None:
            if self.delta.shape[1:] != x.shape[1:]:
                got = f"{tuple(self.delta.shape)} and {tuple(x.shape)}"
                raise ValueError(f"expected inputs like those before, and one Free a run, got {got}")
            n = min(len(x), len(self.delta))
            rows[:n] = self.delta.detach()[:n]
        return rows
