"""Attacks made for the defense: what it computes at test time is known to the attacker, too.

Each function turns an attack on networks, (model, x, y, ball) → δ, into an attack on a defense,
(defense, x, y, ball) → δ. They differ in which network, or whose gradient, the inner attack sees; what
counts in the end is always what the defense itself answers to x + δ. Where that depends on the batch,
judge by `evaluation.table` with whole batches; an inner attack that drops samples from the batch, as
`attacks.square` does unless it keeps the "best", is then weaker than it looks.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from . import losses
from ._given import check_moves, check_tensors
from .evaluation import Attack, Model
from .models import evaluating, logits
from .threat import Ball


class Defense(Protocol):
    """What adapts to its input, such as `dent.Dent`."""

    model: Model  # the network that it starts from

    def __call__(self, x: Tensor) -> Tensor: ...

    def adapt(self, x: Tensor) -> Model:
        """The network that answers x, held fixed."""

    def unrolled(self) -> Model:
        """The same answers, with the gradient of the adaptation."""


def transfer(attack: Attack) -> Attack:
    """Attack the network that the defense starts from, as if nothing adapted.

    An attack that sees the defense should find at least what this one finds: where it finds less, its
    gradient is to blame.
    """
    return lambda defense, x, y, ball: attack(defense.model, x, y, ball)


def frozen(attack: Attack) -> Attack:
    """Adapt once, to x itself, and attack the network that comes out, which no longer moves."""

    def against(defense: Defense, x: Tensor, y: Tensor, ball: Ball) -> Tensor:
        check_tensors(x=x)
        return attack(defense.adapt(x.clone()), x, y, ball)

    return against


def unrolled(attack: Attack) -> Attack:
    """Attack with the gradient of the whole answer, through every step of the adaptation."""
    return lambda defense, x, y, ball: attack(defense.unrolled(), x, y, ball)


def bpda(attack: Attack, stand_in: Callable[[Defense], Model] | None = None) -> Attack:
    """The defense forwards, a stand-in for it backwards: z = D(x) with the slope of another network.

    stand_in: defense → a differentiable network with nearly the same answers; None means the one that it
              starts from, so that the adaptation counts as the identity.
    Source: Athalye, Carlini & Wagner 2018, section 4.1 (backward pass differentiable approximation).
    """

    def against(defense: Defense, x: Tensor, y: Tensor, ball: Ball) -> Tensor:
        other = stand_in(defense) if stand_in else defense.model

        def model(at: Tensor) -> Tensor:
            with torch.no_grad():
                z = logits(defense, at)
            slope = logits(other, at)
            return z + (slope - slope.detach())

        with evaluating(other), evaluating(defense):
            return attack(model, x, y, ball)

    return against


def eot(attack: Attack, draws: int) -> Attack:
    """Attack the mean answer of a defense that draws at random: log (1/m) Σ_j softmax(D_j(x)).

    draws: m ≥ 1, answers a query. Raises ValueError for less.
    Source: Athalye, Engstrom, Ilyas & Kwok 2018, eq. (1) (expectation over transformation).
    """
    if draws < 1:
        raise ValueError(f"expected draws ≥ 1, got {draws!r}")

    def against(defense: Model, x: Tensor, y: Tensor, ball: Ball) -> Tensor:
        def model(at: Tensor) -> Tensor:
            each = torch.stack([torch.log_softmax(logits(defense, at), 1) for _ in range(draws)])
            return torch.logsumexp(each, 0) - math.log(draws)

        with evaluating(defense):
            return attack(model, x, y, ball)

    return against


def gmsa(attack: Callable[..., Tensor], rounds: int = 5, worst: bool = False) -> Attack:
    """Greedy model space attack: attack all networks that the defense has been, then let it adapt again.

    The pool begins with the network that the defense starts from. In each round the defense adapts to
    x + δ, the network that comes out joins the pool, and the attack climbs the mean loss over the pool,
    or, with `worst`, the loss of the member that it fools least. Of all rounds each sample keeps the δ
    at which the defense was most wrong.
    attack: takes `loss` and `keep`, as `attacks.pgd` does.  rounds ≥ 1, else ValueError.
    Source: Chen et al. 2022, algorithm 1 with L_AVG and L_MIN.
    """
    if rounds < 1:
        raise ValueError(f"expected rounds ≥ 1, got {rounds!r}")

    def against(defense: Defense, x: Tensor, y: Tensor, ball: Ball) -> Tensor:
        check_tensors(x=x)
        pool, delta = [defense.model], torch.zeros_like(x)
        best, lowest = delta, torch.full(x.shape[:1], math.inf, dtype=x.dtype, device=x.device)

        def side_by_side(at: Tensor) -> Tensor:
            return torch.cat([logits(member, at) for member in pool], 1)

        def pooled(z: Tensor, y: Tensor) -> Tensor:
            each = torch.stack([losses.log_odds(part, y) for part in z.chunk(len(pool), 1)])
            return each.amin(0) if worst else each.mean(0)

        with evaluating(defense):
            for _ in range(rounds):
                pool.append(defense.adapt(x + delta))
                delta = attack(side_by_side, x, y, ball, loss=pooled, keep="last")
                check_moves(attack, delta, x)
                with torch.no_grad():
                    now = losses.margin(logits(defense, x + delta), y)
                better = now < lowest
                lowest = torch.where(better, now, lowest)
                best = torch.where(better.view(-1, *[1] * (x.ndim - 1)), delta, best)
        return best

    return against
