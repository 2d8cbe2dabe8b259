"""Attacks made for the defense: what it computes at test time is known to the attacker, too.

Each function but `judge` turns an attack on networks, (model, x, y, ball) → δ, into an attack on a
defense, (defense, x, y, ball) → δ. They differ in which network, or whose gradient, the inner attack
sees; what counts in the end is always what the defense itself answers to x + δ. Where that depends on
the batch, an inner attack that drops samples from it, as `attacks.square` does unless it keeps the
"best", is weaker than it looks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor

from . import losses, stack
from .evaluation import Attack, Model, Table, check_allowed
from .models import evaluating
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
    return lambda defense, x, y, ball: attack(defense.adapt(x), x, y, ball)


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
                z = defense(at)
            slope = other(at)
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
            each = torch.stack([torch.log_softmax(defense(at), 1) for _ in range(draws)])
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
        pool, delta = [defense.model], torch.zeros_like(x)
        best, lowest = delta, torch.full(x.shape[:1], math.inf, dtype=x.dtype, device=x.device)

        def side_by_side(at: Tensor) -> Tensor:
            return torch.cat([member(at) for member in pool], 1)

        def pooled(z: Tensor, y: Tensor) -> Tensor:
            each = torch.stack([losses.log_odds(part, y) for part in z.chunk(len(pool), 1)])
            return each.amin(0) if worst else each.mean(0)

        with evaluating(defense):
            for _ in range(rounds):
                pool.append(defense.adapt(x + delta))
                delta = attack(side_by_side, x, y, ball, loss=pooled, keep="last")
                with torch.no_grad():
                    now = losses.margin(defense(x + delta), y)
                better = now < lowest
                lowest = torch.where(better, now, lowest)
                best = torch.where(better.view(-1, *[1] * (x.ndim - 1)), delta, best)
        return best

    return against


def judge(
    defenses: Mapping[str, Sequence[Defense]],
    x: Tensor,
    y: Tensor,
    ball: Ball,
    attacks: Mapping[str, Attack],
    *,
    batch_size: int = 128,
) -> Table:
    """Every defense under every attack, and under the union of all: what is left is an upper bound.

    Unlike `evaluation.table` this attacks and answers whole batches, with the samples that are broken
    already, because a defense may answer a sample differently in other company. A sample is right in a
    column if it is right without an attack and in the batch that this attack made; in the last column,
    "union", if it is in all of them.

    defenses: name → the same defense of several networks, one a seed, as many for each name. One around
              a `stack.Stack` stands for as many networks as the stack has members: they are attacked and
              answer side by side, and no inner attack may then drop samples.
    attacks:  name → (defense, x, y, ball) → δ, such as `transfer(attacks.pgd)`.
    Returns a `Table` with the columns clean, one an attack, union.
    Raises ValueError for no samples, names that are taken, and an attack that leaves Δ(x).
    """
    if any(isinstance(seeds, torch.nn.Module) for seeds in defenses.values()):
        raise ValueError("expected a list of defenses for each name, one for each seed, got a defense")
    columns = ["clean", *attacks, "union"]
    networks = {name: sum(map(_members, seeds)) for name, seeds in defenses.items()}
    if len(set(columns)) < len(columns) or len({*networks.values()} | {0}) != 2:
        raise ValueError(
            "expected attacks of other names than clean and union, and as many networks, at least one, "
            f"for each defense, got {columns} and {networks}"
        )
    if len(x) == 0 or len(x) != len(y) or batch_size < 1:
        raise ValueError(
            "expected as many inputs as labels, at least one, and batch_size ≥ 1, "
            f"got {len(x)}, {len(y)} and {batch_size!r}"
        )
    right: dict[str, dict[str, Tensor]] = {}
    for name, seeds in defenses.items():
        rows = [_columns(defense, x, y, ball, attacks, batch_size) for defense in seeds]
        right[name] = {column: torch.cat([row[column] for row in rows]) for column in columns}
    return Table(right)


def _columns(defense, x, y, ball, attacks, batch_size) -> dict[str, Tensor]:
    """One row of `judge` for each network of a defense: column → (E, n) bool."""
    E = _members(defense)
    columns = {name: y.new_zeros(len(x), E, dtype=torch.bool) for name in ("clean", *attacks)}
    with evaluating(defense):
        for batch in torch.arange(len(x), device=x.device).split(batch_size):
            rows = batch.repeat_interleave(E)  # each sample once for every network
            at, labels, part = x[rows], y[rows], ball.subset(rows)
            clean = _right(defense, at, labels)
            columns["clean"][batch] = clean.view(-1, E)
            for name, attack in attacks.items():
                delta = attack(defense, at, labels, part)
                check_allowed(name, delta, at, part)
                columns[name][batch] = (_right(defense, at + delta, labels) & clean).view(-1, E)
    columns["union"] = torch.stack(list(columns.values())).all(0)
    return {name: right.T for name, right in columns.items()}


def _members(defense: Defense) -> int:
    """How many networks a defense stands for."""
    return stack.members_of(getattr(defense, "model", None))


def _right(defense: Defense, x: Tensor, y: Tensor) -> Tensor:
    """Which samples of a batch the defense gets right; a tie is wrong."""
    with torch.no_grad():
        return losses.correct(defense(x), y)
