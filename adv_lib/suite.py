"""AutoAttack: four attacks that are blind to different things, each on what the ones before have left.

A single attack's number says how robust a model looks to that attack. The four of this suite differ in
what they climb (log-odds, a ratio of logits), in what they look for (any other class, every other
class in turn, the nearest boundary) and in what they ask for (gradients, scores), and none has a step
size to tune. What they leave is still an upper bound on the robust accuracy, and a bad one for models
that `doubts` names.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from . import attacks, losses
from ._checkpoint import Checkpoint
from ._given import check_ball, check_tensors
from .evaluation import Attack, Model, Rate, check_allowed, rate, survivors
from .models import evaluating, logits
from .threat import Ball


@dataclass(frozen=True)
class Outcome:
    """What a suite has found, sample by sample and attack by attack.

    right:  (n,) bool, the samples that are right as they are.
    broken: attack → (n,) bool, which ones it broke, of those that the attacks before it had left.
    delta:  like x, what broke them; 0 for all others.
    doubts: what of the model makes the number worth less than it seems; see `doubts`.
    """

    right: Tensor
    broken: Mapping[str, Tensor]
    delta: Tensor
    doubts: tuple[str, ...]

    @property
    def survivors(self) -> Tensor:
        """Which samples are right and withstood everything, (n,) bool."""
        return self.right & ~torch.stack([torch.zeros_like(self.right), *self.broken.values()]).any(0)

    @property
    def robust_accuracy(self) -> Rate:
        """The share of the survivors: an upper bound."""
        return rate(self.survivors)

    def _repr_markdown_(self) -> str:
        left, lines = self.right, ["| attack | broke | left, % |", "|---|---:|---:|"]
        lines.append(f"| none | | {100 * rate(left).value:.1f} |")
        for name, fell in self.broken.items():
            left = left & ~fell
            lines.append(f"| {name} | {int(fell.sum())} | {100 * rate(left).value:.1f} |")
        return "\n".join([*lines, *(f"\n**Not to be believed:** {doubt}" for doubt in self.doubts)])


Towards = Callable[[Model, Tensor, Tensor, Ball, Tensor], Tensor]  # the last: the class to reach, (n,)


def autoattack(
    model: Model,
    x: Tensor,
    y: Tensor,
    ball: Ball,
    *,
    steps: int = 100,
    targets: int = 9,
    queries: int = 5000,
    generator: torch.Generator | None = None,
    checkpoint: Path | None = None,
    batch_size: int = 1000,
) -> Outcome:
    """APGD on the log-odds, APGD on the targeted DLR, targeted FAB and Square, each on what is left.

    Every attack is given the samples that are still right; the two in the middle go by `every_target`.

    steps:      of each APGD and each FAB.
    targets:    how many wrong classes, or all if there are fewer. With less than four classes APGD
                climbs the difference of two logits instead of the ratio.
    queries:    of Square, which is left out for p = 1.
    generator:  None means a fresh one seeded 0.
    checkpoint: a file, which is written after every batch of every attack, and from which a run that
                was killed goes on; it is kept.
    batch_size: of how many samples a model is asked at once; a sample counts once for each target.
    Returns an `Outcome`.
    Raises ValueError for what an attack raises it, and for the file of another run.
    Source: Croce & Hein 2020, the standard version; their first attack climbs the cross-entropy, of
    which the log-odds are the part that cannot saturate.
    """
    if min(steps, targets, queries, batch_size) < 1:
        got = f"{steps!r}, {targets!r}, {queries!r} and {batch_size!r}"
        raise ValueError(f"expected steps, targets, queries and batch_size ≥ 1, got {got}")
    right = survivors(model, x, y, ball, batch_size=batch_size)
    ball.radii(x)  # raises for an ε that no batch by itself would notice
    generator = torch.Generator(x.device).manual_seed(0) if generator is None else generator
    classes = _ranked(model, x[:1], y[:1]).shape[1]
    targets = min(targets, classes - 1)
    suite = _standard(classes, ball, steps, targets, queries, generator)
    state = {
        "asked": {name: torch.zeros_like(right) for name in suite},
        "broken": {name: torch.zeros_like(right) for name in suite},
        "delta": torch.zeros_like(x),
    }
    kept = None
    if checkpoint is not None:
        settings = (steps, targets, queries, str(ball.p), *map(_digest, (x, y, ball.radii(x))))
        kept = Checkpoint(Path(checkpoint), settings, "autoattack", generator)
        state |= kept.load(x.device) or {}
    asked, broken, delta = state.values()
    for name, attack in suite.items():
        left = right & ~torch.stack(list(broken.values())).any(0) & ~asked[name]
        size = max(1, batch_size // targets) if "targeted" in name else batch_size
        for batch in left.nonzero().squeeze(1).split(size):
            if not len(batch):
                break
            at, labels, part = x[batch], y[batch], ball.subset(batch)
            moved = attack(model, at, labels, part)
            check_allowed(name, moved, at, part)
            fell = batch[~survivors(model, at + moved, labels, part, batch_size=batch_size)]
            delta[fell], broken[name][fell] = moved[torch.isin(batch, fell)], True
            asked[name][batch] = True
            if kept is not None:
                kept.save(state)
    return Outcome(right, broken, delta, doubts(model, x[:batch_size]))


def _standard(
    classes: int, ball: Ball, steps: int, targets: int, queries: int, generator: torch.Generator
) -> dict[str, Attack]:
    ratio = losses.targeted_dlr if classes > 3 else losses.targeted
    climb = partial(attacks.apgd, steps=steps, keep="first", generator=generator)
    suite = {
        "APGD on the log-odds": climb,
        "APGD, targeted": every_target(partial(_climb_towards, climb, ratio), targets),
        "FAB, targeted": every_target(partial(_fab_towards, steps), targets),
    }
    if ball.p != 1:
        suite["Square"] = partial(attacks.square, queries=queries, generator=generator)
    return suite


def _ranked(model: Model, x: Tensor, y: Tensor) -> Tensor:
    """All classes (n, K), by their logits at x, the largest first and y last."""
    check_tensors(x=x, y=y)
    with evaluating(model), torch.no_grad():
        z = logits(model, x)
    losses.margin(z, y)  # raises for labels that do not fit
    return z.scatter(1, y[:, None], -math.inf).argsort(dim=1, descending=True, stable=True)


def every_target(towards: Towards, targets: int = 9) -> Attack:
    """An attack that tries several wrong classes, and keeps the first of them that breaks a sample.

    The classes are those with the largest logits at x; all are tried in one batch, n · targets rows.
    towards: (model, x, y, ball, goal) → δ like x, with the class to reach, goal (n,).
    targets: how many classes, or all wrong ones if there are fewer.
    Returns (model, x, y, ball) → δ like x.  Raises ValueError for targets < 1.
    """
    if targets < 1:
        raise ValueError(f"expected targets ≥ 1, got {targets!r}")

    def attack(model: Model, x: Tensor, y: Tensor, ball: Ball) -> Tensor:
        check_ball(ball)
        goals = _ranked(model, x, y)[:, :-1][:, :targets]
        rows = torch.arange(len(x), device=x.device).repeat_interleave(goals.shape[1])
        at, labels, part = x[rows], y[rows], ball.subset(rows)
        moved = towards(model, at, labels, part, goals.flatten())
        check_allowed("towards", moved, at, part)
        broke = ~survivors(model, at + moved, labels, Ball(math.inf, 0.0), batch_size=max(1, len(at)))
        first = broke.view_as(goals).int().argmax(1, keepdim=True)
        each = moved.view(*goals.shape, *x.shape[1:])
        return each.take_along_dim(first.view(-1, *[1] * x.ndim), 1).squeeze(1)

    return attack


def _climb_towards(climb, loss, model, x, y, ball, goal) -> Tensor:
    """APGD on a targeted loss; any other class that takes the lead will do as well."""
    return climb(model, x, y, ball, loss=lambda z, y: loss(z, y, goal))


def _fab_towards(steps, model, x, y, ball, goal) -> Tensor:
    """FAB between the label and one other class: a two-class model, so a single hyperplane a step."""
    pair = torch.stack([y, goal], 1)
    with evaluating(model):
        return attacks.fab(lambda v: logits(model, v).gather(1, pair), x, 0 * y, ball, steps=steps)


def doubts(model: Model, x: Tensor) -> tuple[str, ...]:
    """Why a suite of attacks would be wrong about this model: what it does that no attack here expects.

    A model that draws at random answers each query of an attack differently: attack the mean over draws
    (`adaptive.eot`). One whose answers depend on the other samples of the batch was asked in other
    company than the one it will be judged in. One that takes gradients while it answers adapts to its
    input, and what an attack differentiates is not what answers (`adaptive.gmsa`). A model with none
    of these may still hide its gradient.
    x: (n, *shape).  Returns sentences, none if there is no doubt.
    """
    check_tensors(x=x)
    found, graphs = [], []

    def noticed(value):
        graphs.append(1)
        return value

    with evaluating(model), torch.no_grad():
        with torch.autograd.graph.saved_tensors_hooks(noticed, lambda value: value):
            z = logits(model, x.clone())
        if _differ(z, logits(model, x.clone())):
            found.append("the same images, asked again, have other logits: it draws at random")
        else:
            half = max(1, len(x) // 2)
            parts = [logits(model, part.clone()) for part in (x[:1], x[half:]) if len(part)]
            whole = [z[:1], z[half:]][: len(parts)]
            if any(_differ(a, b) for a, b in zip(whole, parts, strict=True)):
                found.append("an image has other logits in other company: it depends on the batch")
    if graphs:
        found.append("it takes gradients while it answers: it adapts to its input")
    return tuple(found)


def _differ(first: Tensor, again: Tensor) -> bool:
    """By more than rounding, beside the largest logit."""
    largest = first.abs().nan_to_num(0, 0).amax()
    return bool(((first - again).abs() > math.sqrt(torch.finfo(first.dtype).eps) * largest).any())


def _digest(tensor: Tensor) -> str:
    return hashlib.sha256(tensor.detach().cpu().contiguous().numpy().tobytes()).hexdigest()[:16]
