"""What all attacks share: what is climbed, which samples are asked about, which iterate is kept."""

from __future__ import annotations

import inspect
import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import NamedTuple

import torch
from torch import Tensor

from .. import losses
from .._given import check_ball, check_tensors, kind
from ..models import check_logits, evaluating
from ..stack import Stack
from ..threat import Ball, Region

Model = Callable[[Tensor], Tensor]
Loss = Callable[..., Tensor]
ENOUGH = 4  # different rows that sum to 1, before a model is said to return probabilities


class Iterate(NamedTuple):
    """One step of an attack as a callback sees it: where it stands and how well it does.

    delta (n, *shape); loss (n,), what the attack climbs; margin (n,), what it must bring to 0 or below:
    `losses.margin`, or with targets by how much another class leads the target.
    """

    restart: int
    step: int
    delta: Tensor
    loss: Tensor
    margin: Tensor


class Counts(NamedTuple):
    """How often an attack asked the model about each sample, (n,) int64 each.

    forward: how often it answered.  backward: how many gradients were taken.  labels: of how many
    answers the attack saw nothing but the class; all of them for an attack that needs no logits.
    """

    forward: Tensor
    backward: Tensor
    labels: Tensor


_counted: ContextVar[list[Counts] | None] = ContextVar("counted", default=None)  # of each run so far


def count(
    attack: Callable[..., Tensor], model: Model, x: Tensor, y: Tensor, ball: Ball
) -> tuple[Tensor, Counts]:
    """What attack(model, x, y, ball) finds, and how often it asked the model about each sample.

    attack: one of `attacks`, or a function that calls some of them on all samples. A sample that it
            drops is not asked about, and not counted, from then on. What the model does for an answer,
            such as drawing several times, is its own affair.
    Returns δ like x and `Counts`. Their means as `evaluation.Spread` are further columns for
    `evaluation.Table.markdown`.
    Raises ValueError for an attack of another kind.
    """
    if not callable(attack):
        raise ValueError(f"expected an attack, which takes (model, x, y, ball), got {kind(attack)}")
    runs: list[Counts] = []
    before = _counted.set(runs)
    try:
        delta = attack(model, x, y, ball)
    finally:
        _counted.reset(before)
        if (outer := _counted.get()) is not None:
            outer.extend(runs)
    if not runs or any(len(run.forward) != len(x) for run in runs):
        raise ValueError(f"expected an attack of this package, on all samples at once, got {attack}")
    return delta, Counts(*(torch.stack(what).sum(0) for what in zip(*runs, strict=True)))


class Search:
    """One run of an attack on the samples x; every δ is a row of (n, d) here.

    labels: y, or y and the targets: what the loss takes besides the logits.  region: Δ(x).
    best (n, d) and lowest (n,): of the iterates recorded, the one with the smallest margin, and that.
    counts: what was asked so far.  asked: how often the last question was about each sample, (n,) or
    the same number for all.
    """

    def __init__(
        self,
        model: Model,
        loss: Loss,
        x: Tensor,
        labels: tuple[Tensor, ...],
        region: Region,
        keep: str = "best",
        callback: Callable[[Iterate], None] | None = None,
    ):
        self.loss, self.x, self.labels, self.region = loss, x, labels, region
        self.keep, self.callback = keep, callback
        self.best = self.nothing()
        self.lowest = x.new_full((len(x),), math.inf)
        self.counts = Counts(*torch.zeros(3, len(x), dtype=torch.int64, device=x.device))
        self.asked: Tensor | int = 0
        if (runs := _counted.get()) is not None:
            runs.append(self.counts)
        asks = self._of_the_unbroken(model) if keep == "first" else self._of_all(model)
        self.model = _looked_at(asks)
        self._of_some = _looked_at(model)

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
        """Rows as perturbations of x: a new tensor where they lie."""
        return delta.view_as(self.x)

    def logits(self, delta: Tensor) -> Tensor:
        """The logits (n, K) at x + δ, without a gradient."""
        with torch.no_grad():
            return self.model(self.x + self.shaped(delta))

    def loss_at(self, deltas: Tensor) -> Tensor:
        """The loss at m perturbations of each sample, without a gradient.

        deltas: (m, n, d).  Returns (m, n).
        """
        with torch.no_grad():
            z = self.model((self.x + deltas.view(-1, *self.x.shape)).flatten(0, 1))
            labels = (label.repeat(len(deltas)) for label in self.labels)
            return self.loss(z, *labels).view(deltas.shape[:2])

    def misled(self, delta: Tensor, rows: Tensor) -> Tensor:
        """Whether some of the samples are broken at x + δ, as far as the class alone tells.

        delta: (m, d).  rows: which samples these are about, their numbers (m,).  Returns (m,) bool.
        """
        with torch.no_grad():
            z = self._of_some(self.x[rows] + delta.view(-1, *self.x.shape[1:]))
        if z.isnan().any():
            raise ValueError("the logits became NaN")
        self.counts.forward[rows] += 1
        self.counts.labels[rows] += 1
        vote = torch.zeros_like(z).scatter_(1, z.argmax(1, keepdim=True), 1)
        y, *targets = (label[rows] for label in self.labels)
        return losses.correct(vote, *targets) if targets else ~losses.correct(vote, y)

    def climb(self, delta: Tensor) -> tuple[Tensor, Tensor]:
        """The logits (n, K) and the gradient of the loss (n, d) at x + δ."""
        with torch.enable_grad():  # the leaf is not what the model gets, which it may change in place
            leaf = self.shaped(delta).requires_grad_()
            z = self.model(self.x + leaf)
            if self.loss is losses.log_odds:  # its part of the chain rule is known
                top = (z * losses.log_odds_slope(z.detach(), *self.labels)).sum()
            else:
                top = self.value(z).sum()
            return z.detach(), self.gradient(top, leaf)

    def slopes(self, delta: Tensor, weights: Tensor) -> list[Tensor]:
        """The gradients (n, d) of Σ_k w_k z_k at x + δ, for each w (n, K) of weights (r, n, K)."""
        with torch.enable_grad():
            leaf = self.shaped(delta).requires_grad_()
            z = self.model(self.x + leaf)
            return [self.gradient((w * z).sum(), leaf, again=True) for w in weights]

    def gradient(self, top: Tensor, leaf: Tensor, again: bool = False) -> Tensor:
        """The gradient of one number, (n, d); again: whether others follow."""
        if not top.requires_grad:
            raise ValueError("the loss does not depend on x in a way that autograd can follow")
        (gradient,) = torch.autograd.grad(top, leaf, retain_graph=again, allow_unused=True)
        if gradient is None:
            raise ValueError("the loss does not depend on x in a way that autograd can follow")
        if not math.isfinite(gradient.sum()) and not gradient.isfinite().all():  # a sum can overflow
            raise ValueError("the gradient of the loss became NaN or infinite")
        self.counts.backward.add_(self.asked)
        return gradient.flatten(1)

    def value(self, z: Tensor) -> Tensor:
        """The loss (n,)."""
        value = self.loss(z, *self.labels)
        if value.shape != self.lowest.shape:
            raise ValueError(f"expected a loss ({len(z)},), one a sample, got {tuple(value.shape)}")
        return value

    def margin(self, z: Tensor) -> Tensor:
        """What the attack must bring to 0 or below, (n,)."""
        y, *targets = self.labels
        return losses.margin_loss(z, *targets) if targets else losses.margin(z, y)

    def record(self, restart: int, step: int, delta: Tensor, z: Tensor) -> None:
        """Show an iterate to the callback, and keep the rows that are better than the ones kept."""
        if self.callback:
            rows = self.lowest > 0 if self.keep == "first" else slice(None)
            seen = (self.shaped(delta), self.value(z), self.margin(z))
            self.callback(Iterate(restart, step, *(part[rows] for part in seen)))
        if self.keep == "last":
            return
        margin = self.margin(z).to(self.lowest)
        if margin.isnan().any():
            raise ValueError("the logits became NaN")
        better = margin < self.lowest
        self.lowest = torch.where(better, margin, self.lowest)
        self.best.lerp_(delta, better[:, None].to(delta))  # a weight of 0 or 1 takes one as it is

    @property
    def over(self) -> bool:
        """Whether nothing is left to do: all are broken, and the first iterate that does it is kept."""
        return self.keep == "first" and bool((self.lowest <= 0).all())

    def _of_all(self, model: Model) -> Model:
        """The model, asked about all samples once, or several times in one batch."""

        def logits(moved: Tensor) -> Tensor:
            self._count(len(moved) // max(1, len(self.x)))
            return model(moved)

        return logits

    def _of_the_unbroken(self, model: Model) -> Model:
        """The model, asked only about samples that are not broken; the others keep their last logits.

        These do not depend on x: their gradient is 0, and they stay where they are.
        """
        last: Tensor | None = None

        def logits(moved: Tensor) -> Tensor:
            nonlocal last
            left, times = self.lowest > 0, len(moved) // max(1, len(self.x))
            self._count(times * left if last is not None else times)
            if last is None or bool(left.all()):
                z = check_logits(model(moved), moved)
            else:
                rows = left.repeat(times)
                some = moved[rows]
                z = last.repeat(times, 1)
                z = z.index_copy(0, rows.nonzero().squeeze(1), check_logits(model(some), some))
            last = z[: len(self.x)].detach()
            return z

        return logits

    def _count(self, asked: Tensor | int) -> None:
        self.asked = asked
        self.counts.forward.add_(asked)


@contextmanager
def search(
    model: Model,
    x: Tensor,
    y: Tensor,
    ball: Ball,
    loss: Loss | None,
    targets: Tensor | None,
    keep: str = "best",
    callback: Callable[[Iterate], None] | None = None,
    *,
    endless: bool = False,
) -> Iterator[Search]:
    """Check the arguments, and keep the model in eval mode while the attack runs.

    endless: as in `Ball.region`.
    """
    check_tensors(x=x, y=y, **({} if targets is None else {"targets": targets}))
    check_ball(ball)
    labels = (y,) if targets is None else (y, targets)
    if any(label.shape != x.shape[:1] for label in labels):
        got = " and ".join(str(tuple(label.shape)) for label in labels)
        raise ValueError(f"expected {len(x)} labels, and as many targets, got {got}")
    if targets is not None and bool((targets == y).any()):
        raise ValueError("expected targets that differ from the labels, got a sample with both the same")
    if keep == "first":
        _refuse_a_stack(model)
    loss = loss or (losses.log_odds if targets is None else losses.targeted)
    with evaluating(model), torch.inference_mode(False), torch.no_grad():
        x, *labels = (v.detach().clone() for v in (x, *labels))
        yield Search(model, loss, x, tuple(labels), ball.region(x, endless=endless), keep, callback)


def fresh(generator: torch.Generator | None, x: Tensor) -> torch.Generator:
    """The caller's generator, or a new one seeded 0."""
    return torch.Generator(x.device).manual_seed(0) if generator is None else generator


def check_start(start: Tensor | None, x: Tensor, ball: Ball) -> None:
    """Raise ValueError unless a start, if there is one, is like x and in Δ(x)."""
    if start is None:
        return
    check_tensors(start=start)
    if start.shape != x.shape or start.dtype != x.dtype:
        raise ValueError(f"expected a start like x, {kind(x)}, got {kind(start)}")
    if not bool(ball.contains(start, x).all()):
        raise ValueError(f"expected a start in Δ(x), got one outside {ball}")


def _refuse_a_stack(model: Model) -> None:
    """An attack that drops samples would hand a stack's rows to other members, also behind a defense."""
    model = inspect.unwrap(model)
    modules = model.modules() if isinstance(model, torch.nn.Module) else ()
    if any(isinstance(module, Stack) for module in modules):
        raise ValueError("expected one network: this attack drops samples, which a stack tells by place")


def _looked_at(model: Model) -> Model:
    """The model, which says so if what it returns are no logits of x, or seem to be probabilities."""
    rows: set | None = set()  # of probabilities, as long as there was nothing else

    def logits(x: Tensor) -> Tensor:
        nonlocal rows
        z = check_logits(model(x), x)
        if rows is not None:
            rows = rows | _telling(z) if _sums_to_one(z) else None
            if rows is not None and len(rows) >= ENOUGH:
                rows = None
                warnings.warn("the model seems to return probabilities, not logits", stacklevel=4)
        return z

    return logits


def _sums_to_one(z: Tensor) -> bool:
    """Whether all rows are numbers ≥ 0 that sum to 1, up to the rounding of a softmax."""
    z = z.detach()
    if not bool((z >= 0).all()):
        return False
    rounding = 4 * torch.finfo(z.dtype).eps + z.shape[1] * torch.finfo(torch.float64).eps
    return bool(((z.double().sum(1) - 1).abs() <= rounding).all())


def _telling(z: Tensor) -> set[tuple[float, ...]]:
    """The different rows, but for those of zeros and a single 1, which a vote returns as well."""
    return {row for row in map(tuple, z.tolist()) if max(row) < 1 or sum(map(bool, row)) > 1}
