"""Attacks: lower bounds on the inner maximum of ℓ(x + δ, y) over δ ∈ Δ(x).

Every attack takes a model (images to logits), x (n, *shape), labels y (n,) and a `Ball`, and returns a
δ like x in Δ(x). Whatever loss it reaches, the maximum is at least that; none proves that there is
nothing worse.

With `targets` (n,) an attack wants x + δ classified as the target, without them as anything but y.
`loss` is (z, y) → (n,), with targets (z, y, targets) → (n,); None means `losses.log_odds` or
`losses.targeted`, which cannot saturate. `generator` None means a fresh one seeded 0.

A model that is an `nn.Module` runs in eval mode and keeps its modes, its statistics and its gradients; a
plain function runs as it is, so put the network that it calls in eval mode first. Attacks work under
`torch.no_grad`. All raise ValueError for x outside the box or not finite, for labels that do not fit the
logits and for a loss that does not give one number a sample, and warn of a model that seems to return
probabilities, on which every loss here is wrong.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from . import losses
from .models import evaluating
from .stack import Stack
from .threat import Ball, Region

Model = Callable[[Tensor], Tensor]
Loss = Callable[..., Tensor]
SQUARE_STAGES = (0.001, 0.005, 0.02, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8)  # shares of all queries


class Iterate(NamedTuple):
    """One step of an attack as a callback sees it: where it stands and how well it does.

    delta (n, *shape); loss (n,), what the attack climbs; lead (n,), positive where it has arrived:
    `losses.margin`, or with targets by how much the target leads all other classes.
    """

    restart: int
    step: int
    delta: Tensor
    loss: Tensor
    lead: Tensor


def fgsm(
    model: Model,
    x: Tensor,
    y: Tensor,
    ball: Ball,
    *,
    loss: Loss | None = None,
    targets: Tensor | None = None,
) -> Tensor:
    """The fast gradient method: the exact maximiser of the linearised loss.

    δ = argmax ⟨∇_x ℓ(x, y), δ⟩ over δ ∈ Δ(x); for p = ∞ without a box that is ε sign(∇_x ℓ).
    Returns δ like x.  Source: Goodfellow, Shlens & Szegedy 2015, for p = ∞.
    """
    with _goal(model, x, y, ball, loss, targets) as goal:
        _, gradient = goal.climb(goal.nothing())
        return ball.argmax(goal.shaped(gradient), goal.x)


def pgd(
    model: Model,
    x: Tensor,
    y: Tensor,
    ball: Ball,
    *,
    steps: int = 40,
    step_size: float | None = None,
    restarts: int = 1,
    start: Tensor | None = None,
    loss: Loss | None = None,
    targets: Tensor | None = None,
    keep: str = "best",
    generator: torch.Generator | None = None,
    callback: Callable[[Iterate], None] | None = None,
) -> Tensor:
    """Projected gradient ascent by normalised steepest steps in the ball's own norm.

    δ ← P(δ + v), where v maximises ⟨∇_x ℓ(x + δ, y), v⟩ over ‖v‖_p ≤ α without leaving the box, and
    P projects onto Δ(x) (`threat.Region.step`).

    step_size: α > 0 in the units of ε; None means 2.5 ε / steps.
    restarts:  how many starts: the first at `start`, the others at random points of Δ(x).
    start:     a point of Δ(x), like x; None means δ = 0.
    keep:      what to return for each sample: its "best" iterate of the whole run, the one with the
               largest lead; the "first" one that breaks it, where it stops; the "last" one of the last
               start, whatever other starts found, for training with one start.
    callback:  sees every iterate, the starts included; with "first" only the samples not yet broken.
    Returns δ like x.
    Source: Madry et al. 2018; the normalised step: Kolter & Madry 2018, chapter 3.
    """
    if steps < 0 or restarts < 1 or keep not in ("best", "first", "last"):
        raise ValueError(
            'expected steps ≥ 0, restarts ≥ 1 and keep "best", "first" or "last", '
            f"got {steps!r}, {restarts!r} and {keep!r}"
        )
    if step_size is not None and not 0 < step_size < math.inf:
        raise ValueError(f"expected step_size > 0, in the units of eps, got {step_size!r}")
    if start is not None:
        if start.shape != x.shape or start.dtype != x.dtype:
            raise ValueError(
                f"expected a start like x, {x.dtype} {tuple(x.shape)}, "
                f"got {start.dtype} {tuple(start.shape)}"
            )
        if not bool(ball.contains(start, x).all()):
            raise ValueError(f"expected a start in Δ(x), got one outside {ball}")
    if keep == "first":
        _refuse_a_stack(model)
    with _goal(model, x, y, ball, loss, targets) as goal:
        best, generator = _Best(goal), _fresh(generator, x)
        for restart in range(restarts):
            here = goal.start(ball, restart, generator, start)
            part = goal[best.lead < 0] if keep == "first" else goal
            delta = here[part.index] if keep == "first" else here
            for step in range(steps if len(delta) else 0):
                z, gradient = part.climb(delta)
                _report(callback, part, restart, step, delta, z)
                if keep != "last":
                    best.offer(part, delta, z)
                if keep == "first" and (broken := best.lead[part.index] >= 0).any():
                    part, delta, gradient = part[~broken], delta[~broken], gradient[~broken]
                    if len(delta) == 0:
                        break
                alpha = 2.5 * part.region.eps / steps if step_size is None else step_size
                delta = part.region.step(delta, gradient, alpha)
            if len(delta) and (callback or keep != "last"):
                z = part.logits(delta)
                _report(callback, part, restart, steps, delta, z)
                best.offer(part, delta, z)
        return goal.shaped(delta if keep == "last" else best.delta)


def apgd(
    model: Model,
    x: Tensor,
    y: Tensor,
    ball: Ball,
    *,
    steps: int = 100,
    restarts: int = 1,
    loss: Loss | None = None,
    targets: Tensor | None = None,
    generator: torch.Generator | None = None,
    callback: Callable[[Iterate], None] | None = None,
) -> Tensor:
    """Auto-PGD: ascent with momentum in which every sample finds its own step size.

    The step size starts at 2ε. At checkpoints, ever closer together, a sample halves it and goes back
    to its record if its loss rose in less than 3/4 of the steps since the last checkpoint, or if neither
    its record nor its step size has changed since.
    Arguments as for `pgd`, of which the best iterate is kept.  Returns δ like x.
    Source: Croce & Hein 2020, algorithm 1, with the steps of `pgd`.
    """
    if steps < 1 or restarts < 1:
        raise ValueError(f"expected steps ≥ 1 and restarts ≥ 1, got {steps!r} and {restarts!r}")
    checkpoints = _checkpoints(steps)
    with _goal(model, x, y, ball, loss, targets) as goal:
        best, generator = _Best(goal), _fresh(generator, x)
        for restart in range(restarts):
            delta = before = goal.start(ball, restart, generator)
            size = size_then = 2 * goal.region.eps  # “then”: at the last checkpoint
            record_then = torch.full_like(size, -math.inf)
            record, value_before = (record_then, delta, delta), -record_then
            rises, since = torch.zeros_like(size), 0
            for step in range(steps + 1):
                z, gradient = goal.climb(delta)
                best.offer(goal, delta, z)
                _report(callback, goal, restart, step, delta, z)
                if step == steps:
                    break
                now = (goal.value(z)[:, None], delta, gradient)
                rises += now[0] > value_before
                record = _pick(now[0] > record[0], now, record)
                if step in checkpoints:
                    halve = rises < 0.75 * (step - since)
                    halve |= (size == size_then) & (record[0] == record_then)
                    size_then, record_then = size, record[0]
                    size, now = torch.where(halve, size / 2, size), _pick(halve, record, now)
                    rises, since = torch.zeros_like(size), step
                value_before, delta, gradient = now
                ahead = goal.region.step(delta, gradient, size)
                if step > 0:
                    ahead = delta + 0.75 * (ahead - delta) + 0.25 * (delta - before)
                    ahead = goal.region.project(ahead)
                before, delta = delta, ahead
        return goal.shaped(best.delta)


def square(
    model: Model,
    x: Tensor,
    y: Tensor,
    ball: Ball,
    *,
    queries: int = 1000,
    share: float = 0.8,
    targets: Tensor | None = None,
    keep: str = "first",
    generator: torch.Generator | None = None,
) -> Tensor:
    """The Square attack: random search that asks for logits only, never for a gradient; for p = ∞.

    δ starts as vertical stripes of ±ε. A query sets a random square of the image to ±ε, one sign a
    channel, and keeps that if the lead (see `Iterate`) grows. A square covers `share` of the image at
    first and less with every stage of the search.

    The last two axes of x are height and width, the others channels; a vector is an image of height 1.
    keep: the "first" query that breaks a sample, which is then left alone; or the "best" of all, where
          every query is about the whole batch, for a model that answers a sample differently in other
          company. Of a model that does not, both break the same samples.
    Returns δ like x.  Raises ValueError for p other than ∞.
    Source: Andriushchenko et al. 2020, algorithms 1 and 2.
    """
    if ball.p != math.inf or queries < 1 or not 0 < share <= 1 or keep not in ("best", "first"):
        raise ValueError(
            'expected a ball with p = inf, queries ≥ 1, 0 < share ≤ 1 and keep "best" or "first", '
            f"got p = {ball.p}, {queries!r}, {share!r} and {keep!r}"
        )
    if keep == "first":
        _refuse_a_stack(model)
    with _goal(model, x, y, ball, None, targets) as goal:
        best, generator = _Best(goal), _fresh(generator, x)
        height, width = (1, *x.shape[1:])[-2:]
        channels = math.prod(x.shape[1:]) // max(1, height * width)
        image = x.reshape(len(x), channels, height, width)
        eps = goal.region.eps[..., None, None]

        def signs(columns: int) -> Tensor:
            draw = torch.rand(*image.shape[:2], 1, columns, generator=generator, device=x.device)
            return torch.where(draw < 0.5, -eps, eps)

        def stretch(length: int, part: float) -> Tensor:
            """Where a random stretch of one side of the image lies, (n, length) bool."""
            cells = max(1, round(part * length))
            begin = torch.randint(length - cells + 1, (len(x), 1), generator=generator, device=x.device)
            place = torch.arange(length, device=x.device)
            return (begin <= place) & (place < begin + cells)

        delta = goal.region.project(signs(width).expand_as(image).flatten(1))
        best.offer(goal, delta, goal.logits(delta))
        for query in range(1, queries):
            part = goal[best.lead < 0] if keep == "first" else goal
            if len(part.index) == 0:
                break
            area = share / 2 ** sum(query / queries >= stage for stage in SQUARE_STAGES)
            down = stretch(height, math.sqrt(area))
            across = stretch(width, math.sqrt(area) if height > 1 else area)
            window = (down[:, :, None] & across[:, None, :])[:, None]
            tried = torch.where(window, signs(1), best.delta.view_as(image)).flatten(1)
            delta = part.region.project(tried[part.index])
            best.offer(part, delta, part.logits(delta))
        return goal.shaped(best.delta)


# ---- what the attacks share ----


@dataclass(frozen=True, eq=False)
class _Goal:
    """What an attack climbs for the samples `index` of a batch; δ are rows (n, d) here."""

    model: Model
    loss: Callable[..., Tensor]
    x: Tensor
    labels: tuple[Tensor, ...]  # y, or y and the targets: what the loss takes besides the logits
    region: Region
    index: Tensor

    def __getitem__(self, some: Tensor) -> _Goal:
        """The goal of the samples in a mask."""
        labels = tuple(label[some] for label in self.labels)
        x, region, index = self.x[some], self.region[some], self.index[some]
        return replace(self, x=x, labels=labels, region=region, index=index)

    def nothing(self) -> Tensor:
        """δ = 0."""
        return torch.zeros_like(self.x).flatten(1)

    def start(
        self, ball: Ball, restart: int, generator: torch.Generator, given: Tensor | None = None
    ) -> Tensor:
        """Where a run begins: the first where it is told to, or at 0, the others anywhere in Δ(x)."""
        if restart:
            return ball.sample(self.x, generator).flatten(1)
        return self.nothing() if given is None else given.detach().flatten(1).clone()

    def shaped(self, delta: Tensor) -> Tensor:
        """Rows as perturbations of x."""
        return delta.view_as(self.x)

    def logits(self, delta: Tensor) -> Tensor:
        """The logits (n, K) at x + δ, without a gradient."""
        with torch.no_grad():
            return self.model(self.x + self.shaped(delta))

    def climb(self, delta: Tensor) -> tuple[Tensor, Tensor]:
        """The logits (n, K) and the gradient of the loss (n, d) at x + δ."""
        with torch.enable_grad():
            moved = (self.x + self.shaped(delta)).requires_grad_()
            z = self.model(moved)
            if self.loss is losses.log_odds:  # its part of the chain rule is known
                top = (z * losses.log_odds_slope(z.detach(), *self.labels)).sum()
            else:
                top = self.value(z).sum()
            if not top.requires_grad:
                raise ValueError("the loss does not depend on x in a way that autograd can follow")
            (gradient,) = torch.autograd.grad(top, moved, allow_unused=True)
        if gradient is None:
            raise ValueError("the loss does not depend on x in a way that autograd can follow")
        if not math.isfinite(gradient.sum()) and not gradient.isfinite().all():  # a sum can overflow
            raise ValueError("the gradient of the loss became NaN or infinite")
        return z.detach(), gradient.flatten(1)

    def value(self, z: Tensor) -> Tensor:
        """The loss (n,)."""
        value = self.loss(z, *self.labels)
        if value.shape != self.index.shape:
            raise ValueError(f"expected a loss ({len(z)},), one a sample, got {tuple(value.shape)}")
        return value

    def lead(self, z: Tensor) -> Tensor:
        """By how much the prediction is wrong, or the target ahead of all others: 0 at a tie."""
        y, *targets = self.labels
        return -losses.margin(z, *targets) if targets else losses.margin(z, y)


class _Best:
    """The iterate with the largest lead so far, for every sample of a batch."""

    def __init__(self, goal: _Goal):
        self.delta = goal.nothing()
        self.lead = self.delta.new_full((len(goal.x),), -math.inf)

    def offer(self, part: _Goal, delta: Tensor, z: Tensor) -> None:
        """Take over the rows of δ that lead by more than the ones kept."""
        lead, old = part.lead(z).to(self.lead), self.lead[part.index]
        if lead.isnan().any():
            raise ValueError("the logits became NaN")
        better = lead > old
        self.lead[part.index] = torch.where(better, lead, old)
        if len(part.index) == len(self.lead):  # all samples; a weight of 0 or 1 takes one as it is
            self.delta.lerp_(delta, better[:, None].to(delta))
        else:
            self.delta[part.index[better]] = delta[better]


@contextmanager
def _goal(
    model: Model, x: Tensor, y: Tensor, ball: Ball, loss: Loss | None, targets: Tensor | None
) -> Iterator[_Goal]:
    """Check the arguments, and keep the model in eval mode meanwhile; its first logits are looked at."""
    labels = (y,) if targets is None else (y, targets)
    if any(label.shape != x.shape[:1] for label in labels):
        got = " and ".join(str(tuple(label.shape)) for label in labels)
        raise ValueError(f"expected {len(x)} labels, and as many targets, got {got}")
    if targets is not None and bool((targets == y).any()):
        raise ValueError("expected targets that differ from the labels, got a sample with both the same")
    loss = loss or (losses.log_odds if targets is None else losses.targeted)
    unseen = True

    def logits(moved: Tensor) -> Tensor:
        nonlocal unseen
        z = model(moved)
        if unseen:
            _look(z, moved)
            unseen = False
        return z

    with evaluating(model), torch.inference_mode(False), torch.no_grad():
        x, *labels = (v.detach().clone() for v in (x, *labels))
        index = torch.arange(len(x), device=x.device)
        yield _Goal(logits, loss, x, tuple(labels), ball.at(x), index)


def _refuse_a_stack(model: Model) -> None:
    """An attack that drops samples would hand a stack's rows to other members, also behind a defense."""
    modules = model.modules() if isinstance(model, torch.nn.Module) else ()
    if any(isinstance(module, Stack) for module in modules):
        raise ValueError("expected one network: this attack drops samples, which a stack tells by place")


def _look(z: Tensor, x: Tensor) -> None:
    """Whether what the model returned can be logits of x."""
    if z.ndim != 2 or len(z) != len(x) or z.shape[1] < 2:
        raise ValueError(f"expected logits ({len(x)}, K) with K ≥ 2, got {tuple(z.shape)}")
    if len(z) and bool((z >= 0).all()) and bool(((z.sum(1) - 1).abs() < 1e-3).all()):
        warnings.warn("the model seems to return probabilities, not logits", stacklevel=5)


def _report(
    callback: Callable[[Iterate], None] | None,
    part: _Goal,
    restart: int,
    step: int,
    delta: Tensor,
    z: Tensor,
) -> None:
    if callback:
        callback(Iterate(restart, step, part.shaped(delta), part.value(z), part.lead(z)))


def _fresh(generator: torch.Generator | None, x: Tensor) -> torch.Generator:
    """The caller's generator, or a new one seeded 0."""
    return torch.Generator(x.device).manual_seed(0) if generator is None else generator


def _checkpoints(steps: int) -> set[int]:
    """The steps at which `apgd` looks back: after 22 % of them, then at ever shorter distances."""
    percent, gap, found = 22, 22, set()
    while percent <= 100:
        found.add(-(-percent * steps // 100))  # rounded up
        gap = max(gap - 3, 6)
        percent += gap
    return found


def _pick(mask: Tensor, new: tuple[Tensor, ...], old: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Row by row the new values where the mask (n, 1) says so, the old ones elsewhere."""
    return tuple(torch.where(mask, a, b) for a, b in zip(new, old, strict=True))
