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
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from . import attacks, losses
from ._given import check_tensors
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


class _Step(NamedTuple):
    name: str
    attack: Attack


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

    Every attack is given the samples that are still right. The two in the middle go through `targets`
    wrong classes, the one with the largest logit at x first.

    steps:      of each APGD and each FAB.
    targets:    how many wrong classes, or all if there are fewer. With less than four classes APGD
                climbs the difference of two logits instead of the ratio.
    queries:    of Square, which is left out for p = 1.
    generator:  None means a fresh one seeded 0.
    checkpoint: a file, which is written after every attack and target, and from which a run that was
                killed goes on; it is kept.
    Returns an `Outcome`.
    Raises ValueError for what an attack raises it, and for the file of another run.
    Source: Croce & Hein 2020, the standard version; their first attack climbs the cross-entropy, of
    which the log-odds are the part that cannot saturate.
    """
    if steps < 1 or targets < 1 or queries < 1:
        raise ValueError(
            f"expected steps, targets and queries ≥ 1, got {steps!r}, {targets!r} and {queries!r}"
        )
    right = survivors(model, x, y, ball, batch_size=batch_size)
    ball.radii(x)  # raises for an ε that no batch by itself would notice
    generator = torch.Generator(x.device).manual_seed(0) if generator is None else generator
    with evaluating(model), torch.no_grad():
        classes = logits(model, x[:1]).shape[1]
    suite = list(_standard(classes, ball, steps, targets, queries, generator))
    broken = {step.name: torch.zeros_like(right) for step in suite}
    state = {"done": 0, "left": right.clone(), "broken": broken, "delta": torch.zeros_like(x)}
    settings = [steps, targets, queries, str(ball.p), _digest(x), _digest(y), _digest(ball.radii(x))]
    if checkpoint is not None:
        state |= _resume(checkpoint, settings, generator)
    left, broken, delta = (state[name] for name in ("left", "broken", "delta"))
    for number, step in enumerate(suite):
        if number < state["done"]:
            continue
        for batch in left.nonzero().squeeze(1).split(batch_size):
            if not len(batch):
                break
            at, labels, part = x[batch], y[batch], ball.subset(batch)
            moved = step.attack(model, at, labels, part)
            check_allowed(step.name, moved, at, part)
            fell = ~survivors(model, at + moved, labels, part, batch_size=batch_size)
            delta[batch[fell]] = moved[fell]
            broken[step.name][batch[fell]], left[batch[fell]] = True, False
        if checkpoint is not None:
            _save(checkpoint, settings, generator, state | {"done": number + 1})
    return Outcome(right, broken, delta, doubts(model, x[:batch_size]))


def _standard(
    classes: int, ball: Ball, steps: int, targets: int, queries: int, generator: torch.Generator
) -> Iterator[_Step]:
    ratio = losses.targeted_dlr if classes > 3 else losses.targeted
    ranks = range(min(targets, classes - 1))
    climb = partial(attacks.apgd, steps=steps, keep="first", generator=generator)
    yield _Step("APGD on the log-odds", climb)
    for rank in ranks:
        yield _Step("APGD, targeted", partial(_towards, climb, rank, ratio))
    for rank in ranks:
        yield _Step("FAB, targeted", partial(_fab_towards, rank, steps))
    if ball.p != 1:
        yield _Step("Square", partial(attacks.square, queries=queries, generator=generator))


def runner_up(model: Model, x: Tensor, y: Tensor, rank: int = 0) -> Tensor:
    """The class (n,) with the largest logit at x but for y, or the rank + 1-st of them."""
    check_tensors(x=x, y=y)
    with evaluating(model), torch.no_grad():
        z = logits(model, x)
    losses.margin(z, y)  # raises for labels that do not fit
    return z.scatter(1, y[:, None], -math.inf).argsort(dim=1, descending=True, stable=True)[:, rank]


def _towards(climb, rank, loss, model, x, y, ball) -> Tensor:
    """APGD on a targeted loss; any other class that takes the lead will do as well."""
    wanted = runner_up(model, x, y, rank)
    return climb(model, x, y, ball, loss=lambda z, y: loss(z, y, wanted))


def _fab_towards(rank, steps, model, x, y, ball) -> Tensor:
    """FAB between the label and one other class: a two-class model, so a single hyperplane a step."""
    pair = torch.stack([y, runner_up(model, x, y, rank)], 1)
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


# ---- the file of a run ----


def _digest(tensor: Tensor) -> str:
    return hashlib.sha256(tensor.detach().cpu().contiguous().numpy().tobytes()).hexdigest()[:16]


def _save(file: Path, settings: list, generator: torch.Generator, state: dict) -> None:
    """A run killed while it writes leaves the file that was there."""
    half = file.with_name(file.name + ".part")
    torch.save(state | {"settings": settings, "generator": generator.get_state()}, half)
    half.replace(file)


def _resume(file: Path, settings: list, generator: torch.Generator) -> dict:
    """What the file says, if there is one; the generator goes on where it stood."""
    if not file.exists():
        return {}
    try:
        state = torch.load(file, map_location=generator.device, weights_only=True)
        known = state.pop("settings")
        drawn = state.pop("generator").cpu()
    except Exception as error:  # torch.load raises whatever it stumbles over
        raise ValueError(f"{file} is not the checkpoint of a suite") from error
    if known != settings:
        raise ValueError(
            f"{file} is the checkpoint of other samples, or with other settings: {known[:4]}"
        )
    generator.set_state(drawn)
    return state
