"""Honest numbers: a rate never comes without its count and its interval.

Robust accuracy from attacks is an upper bound: of a sample that no attack breaks we know nothing more.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from . import attacks as weapons
from . import losses
from .models import evaluating
from .threat import Ball

Model = Callable[[Tensor], Tensor]
Attack = Callable[..., Tensor]  # (model, x, y, ball) → δ
Proof = Callable[..., Tensor]  # (model, x, y, ball) → (n,) bool: proved right for every δ ∈ Δ(x)


@dataclass(frozen=True)
class Rate:
    """How often something happened: `count` times out of `n`, with a 95 % interval [low, high].

    The interval is Wilson's for a binomial proportion [Wilson 1927]: it says how far the rate could
    be off because the test set is finite, and nothing about other test sets.
    """

    count: int
    n: int
    low: float
    high: float

    @property
    def value(self) -> float:
        """The rate itself, between 0 and 1."""
        return self.count / self.n

    def __str__(self) -> str:
        return (
            f"{100 * self.value:.1f} % ({self.count} of {self.n}; "
            f"95 % interval {100 * self.low:.1f}–{100 * self.high:.1f} %)"
        )


def rate(happened: Tensor) -> Rate:
    """The share of True in a boolean tensor (n,), n ≥ 1, with its 95 % interval.

    Raises ValueError for anything else.
    """
    if happened.dtype != torch.bool or happened.ndim != 1 or len(happened) == 0:
        raise ValueError(
            f"expected a non-empty boolean tensor (n,), got {happened.dtype} {tuple(happened.shape)}"
        )
    count, n = int(happened.sum()), len(happened)
    z = statistics.NormalDist().inv_cdf(0.975)
    middle = (count + z**2 / 2) / (n + z**2)
    half = z / (n + z**2) * math.sqrt(count * (n - count) / n + z**2 / 4)
    low = middle - half if count > 0 else 0.0  # exactly, whatever the rounding
    high = middle + half if count < n else 1.0
    return Rate(count, n, low, high)


@dataclass(frozen=True)
class Spread:
    """A number that several training runs gave, which differ in their seed only.

    It says how far another seed may lead, and nothing about another test set: that is `Rate`.
    """

    values: tuple[float, ...]

    def __post_init__(self):
        object.__setattr__(self, "values", tuple(float(v) for v in self.values))
        if not self.values or not all(math.isfinite(v) for v in self.values):
            raise ValueError(f"expected finite numbers, one a run, at least one, got {self.values}")

    @property
    def mean(self) -> float:
        """The mean over the runs."""
        return statistics.fmean(self.values)

    @property
    def deviation(self) -> float:
        """The standard deviation between runs, with n − 1; NaN for a single run."""
        return statistics.stdev(self.values) if len(self.values) > 1 else math.nan

    @property
    def interval(self) -> tuple[float, float]:
        """A 95 % interval for the mean of all seeds, Student's t; infinite for a single run."""
        from scipy.special import stdtrit  # the quantile of Student's t

        n = len(self.values)
        if n == 1:
            return -math.inf, math.inf
        half = float(stdtrit(n - 1, 0.975)) * self.deviation / math.sqrt(n)
        return self.mean - half, self.mean + half

    def __str__(self) -> str:
        return f"{self:.3g}"

    def __format__(self, spec: str) -> str:
        mean = format(self.mean, spec)
        return mean if len(self.values) == 1 else f"{mean} ± {format(self.deviation, spec)}"


def survivors(
    model: Model,
    x: Tensor,
    y: Tensor,
    ball: Ball,
    attacks: Sequence[Attack] = (),
    *,
    batch_size: int = 1000,
) -> Tensor:
    """Which samples are right as they are and under every δ that the attacks find.  Returns (n,) bool.

    attacks: functions (model, x, y, ball) → δ, such as those of `attacks` or a `functools.partial` of
             one. Each is given the samples that withstood the ones before; a tie counts as broken.
    Raises ValueError if an attack leaves Δ(x), and for n = 0.
    """
    if len(x) == 0 or len(x) != len(y) or batch_size < 1:
        raise ValueError(
            "expected as many inputs as labels, at least one, and batch_size ≥ 1, "
            f"got {len(x)}, {len(y)} and {batch_size!r}"
        )
    alive = _right(model, x, y, batch_size)
    for attack in attacks:
        for batch in alive.nonzero().squeeze(1).split(batch_size):
            if len(batch) == 0:  # none is left
                return alive
            part = ball.subset(batch)
            delta = attack(model, x[batch], y[batch], part)
            check_allowed(attack, delta, x[batch], part)
            alive[batch] = _right(model, x[batch] + delta, y[batch], batch_size)
    return alive


def check_allowed(attack: object, delta: Tensor, x: Tensor, ball: Ball) -> None:
    """Raise ValueError unless what the attack returned is like x and in Δ(x).

    delta, x: (n, *shape).
    """
    if delta.shape != x.shape:
        raise ValueError(f"expected {attack} to return δ {tuple(x.shape)}, got {tuple(delta.shape)}")
    outside = (~ball.contains(delta, x)).nonzero().flatten().tolist()
    if outside:
        raise ValueError(
            f"expected δ in {ball} from {attack}, got {len(outside)} of {len(x)} samples outside, "
            f"number {outside[0]} first"
        )


def robust_accuracy(
    model: Model,
    x: Tensor,
    y: Tensor,
    ball: Ball,
    attacks: Sequence[Attack] = (),
    *,
    batch_size: int = 1000,
) -> Rate:
    """The share of `survivors`: an upper bound on the robust accuracy; without attacks the accuracy."""
    return rate(survivors(model, x, y, ball, attacks, batch_size=batch_size))


def robust_accuracy_curve(
    model: Model,
    x: Tensor,
    y: Tensor,
    ball: Ball,
    attacks: Sequence[Attack],
    radii: Sequence[float],
    *,
    batch_size: int = 1000,
) -> list[Rate]:
    """The robust accuracy for each ε in radii, which must not fall: one `Rate` for each.

    A δ in a small ball is in every larger one, so what broke at one ε stays broken at the next: the
    curve cannot rise. The ball's own eps is not used.
    """
    if any(b < a for a, b in pairwise(radii)) or len(x) != len(y):
        raise ValueError(
            "expected radii in increasing order and as many inputs as labels, "
            f"got {list(radii)}, {len(x)} and {len(y)}"
        )
    balls = [replace(ball, eps=eps) for eps in radii]  # a bad ε is named before the first attack
    alive, rates = torch.ones(len(x), dtype=torch.bool, device=x.device), []
    for at in balls:
        left = alive.nonzero().squeeze(1)
        if len(left):
            alive[left] = survivors(model, x[left], y[left], at, attacks, batch_size=batch_size)
        rates.append(rate(alive))
    return rates


@dataclass(frozen=True)
class Table:
    """Models in rows, ways to judge them in columns, and behind each cell which samples are right.

    right: model → column → (seeds, n) bool, as `table` fills it: "clean", the attacks, "worst", which
           is right under all of them, and the proofs. So in every row proofs ⊆ worst ⊆ each attack ⊆
           clean, sample by sample.
    """

    right: Mapping[str, Mapping[str, Tensor]]

    def percent(self, model: str, column: str) -> Spread:
        """The share of right samples in percent, over the seeds."""
        return Spread(tuple((100 * self.right[model][column].double().mean(1)).tolist()))

    def markdown(self, columns: Sequence[str] | None = None, **more: Mapping[str, Spread]) -> str:
        """A Markdown table, in percent, mean ± deviation over the seeds.

        columns: which, in this order; None means all.  more: further ones: a name, and model → Spread.
        """
        known = list(next(iter(self.right.values())))
        columns = known if columns is None else columns
        if isinstance(columns, str) or not set(columns) <= set(known):
            raise ValueError(f"expected a list of some of the columns {known}, got {columns!r}")
        lines = [["model", *columns, *more], ["---", *("---:" for _ in (*columns, *more))]]
        for model in self.right:
            cells = [self.percent(model, column) for column in columns]
            lines.append(
                [model, *(f"{cell:.1f}" for cell in (*cells, *(c[model] for c in more.values())))]
            )
        return "\n".join("| " + " | ".join(line) + " |" for line in lines)

    def _repr_markdown_(self) -> str:
        return self.markdown()


def table(
    models: Mapping[str, Sequence[Model]],
    x: Tensor,
    y: Tensor,
    ball: Ball,
    attacks: Mapping[str, Attack],
    proofs: Mapping[str, Proof] | None = None,
    *,
    batch_size: int = 1000,
) -> Table:
    """Judge every model by every attack alone, by the worst of all for each sample, and by proofs.

    models:  name → the networks of one way of training, one for each seed, as many for each name.
    attacks: name → (model, x, y, ball) → δ; an empty mapping means the clean accuracy only.
    proofs:  name → (model, x, y, ball) → (n,) bool, true where no δ ∈ Δ(x) makes the model wrong.
    Raises ValueError where a proof and an attack contradict each other: then one of them is wrong.
    """
    if any(isinstance(seeds, torch.nn.Module) for seeds in models.values()):
        raise ValueError("expected a list of networks for each name, one for each seed, got a network")
    proofs = proofs or {}
    columns = ["clean", *attacks, "worst", *proofs]
    if len(set(columns)) < len(columns) or len({len(seeds) for seeds in models.values()} | {0}) != 2:
        raise ValueError(
            "expected different names, none of them clean or worst, and as many networks, at least one, "
            f"for each model, got {columns} and { {k: len(v) for k, v in models.items()} }"
        )
    right: dict[str, dict[str, Tensor]] = {}
    for name, seeds in models.items():
        found = [_judge(name, model, x, y, ball, attacks, proofs, batch_size) for model in seeds]
        right[name] = {column: torch.stack([cells[column] for cells in found]) for column in columns}
    return Table(right)


def _judge(name, model, x, y, ball, attacks, proofs, batch_size) -> dict[str, Tensor]:
    """One row of the table for one seed: column → (n,) bool."""
    alone = partial(survivors, model, x, y, ball, batch_size=batch_size)
    cells = {"clean": alone()}
    for column, attack in attacks.items():
        cells[column] = alone([attack])
    cells["worst"] = torch.stack(list(cells.values())).all(0)
    for column, proof in proofs.items():
        cells[column] = proof(model, x, y, ball)
        if cells[column].shape != y.shape or cells[column].dtype != torch.bool:
            raise ValueError(
                f"expected {column} to return ({len(y)},) bool, "
                f"got {cells[column].dtype} {tuple(cells[column].shape)}"
            )
        if false := (cells[column] & ~cells["worst"]).nonzero().flatten().tolist():
            raise ValueError(
                f"{column} proves {name} right on the samples {false[:9]}, and an attack breaks them"
            )
    return cells


class Symptom(NamedTuple):
    """Something that a robust model with honest gradients does not show, and on how many samples."""

    name: str
    shown: Rate

    @property
    def suspicious(self) -> bool:
        """Whether more than 1 % show it, beyond what the size of the test set leaves open."""
        return self.shown.low > 0.01

    def __str__(self) -> str:
        return f"{'!' if self.suspicious else ' '} {self.name:42} {self.shown}"


def masking(
    model: Model,
    x: Tensor,
    y: Tensor,
    ball: Ball,
    attack: Attack = weapons.pgd,
    *,
    queries: int = 500,
    generator: torch.Generator | None = None,
) -> list[Symptom]:
    """Is `attack`, by which a model looks robust, blind?  What other looks at the same samples find.

    Every symptom but the first two counts samples that withstand `attack` and not another one that
    should be weaker, or that a sound attack has no reason to miss:

    1. the cross-entropy has a gradient of exactly 0 in x;
    2. a ball as large as the box, in which every class is an option, leaves the sample unbroken;
    3. one step (`attacks.fgsm`) breaks it;
    4. `attacks.pgd` with 200 steps breaks it;
    5. `attacks.apgd` on the margin breaks it;
    6. `queries` queries without gradients (`attacks.square`, for p = ∞) break it.

    generator: for the last; None means a fresh one seeded 0.  Needs a ball with a box, for 2.
    A model that shows none may still have masked gradients: only an attack made for it can tell.
    Source: Athalye, Carlini & Wagner 2018, section 3.1; Carlini et al. 2019, section 3.
    """
    if ball.box is None or len(x) == 0:
        raise ValueError(
            "expected a ball with a box, of which the second symptom is the size, and at least one "
            f"sample, got {ball} and {len(x)}"
        )
    low, high = ball.box
    reach = (high - low) * x[0].numel() ** (0 if ball.p == math.inf else 1 / ball.p)
    right = survivors(model, x, y, ball)
    left = survivors(model, x, y, ball, [attack])
    steep = torch.cat([_slope(model, a, b) for a, b in zip(x.split(1000), y.split(1000), strict=True)])
    others = {
        "one step breaks what it missed": weapons.fgsm,
        "200 steps break what it missed": partial(weapons.pgd, steps=200),
        "another loss breaks what it missed": partial(weapons.apgd, loss=losses.margin_loss),
    }
    if ball.p == math.inf:
        others["a search without gradients does too"] = partial(
            weapons.square, queries=queries, generator=generator
        )
    symptoms = [
        Symptom("right, and the gradient is exactly 0", rate(right & (steep == 0))),
        Symptom(
            "unbroken in a ball as large as the box",
            rate(survivors(model, x, y, replace(ball, eps=reach), [attack])),
        ),
    ]
    for name, other in others.items():
        symptoms.append(Symptom(name, rate(left & ~survivors(model, x, y, ball, [other]))))
    return symptoms


def _slope(model: Model, x: Tensor, y: Tensor) -> Tensor:
    """‖∇_x ℓ‖_∞ of the cross-entropy, (n,): 0 where the loss does not follow x at all."""
    with evaluating(model), torch.inference_mode(False), torch.enable_grad():
        at, labels = x.detach().clone().requires_grad_(), y.clone()
        loss = losses.cross_entropy(model(at), labels).sum()
        if not loss.requires_grad:
            return torch.zeros_like(x.flatten(1)[:, 0])
        (gradient,) = torch.autograd.grad(loss, at, allow_unused=True, materialize_grads=True)
    return gradient.flatten(1).abs().amax(1)


def landscape(
    model: Model,
    x: Tensor,
    y: Tensor,
    ball: Ball,
    distances: Tensor,
    *,
    loss: Callable[[Tensor, Tensor], Tensor] = losses.cross_entropy,
    generator: torch.Generator | None = None,
) -> Tensor:
    """ℓ(x + s u + t v, y) of one sample: u the steepest step of size ε, v a random one of the same size.

    u is `attacks.fgsm` on the same loss, v what `ball.argmax` makes of a normal vector, both without the
    box.
    x: (1, *shape), y: (1,), distances: the values of s and of t, in units of ε.
    generator: draws v; None means a fresh one seeded 0.
    Returns (len(distances), len(distances)), rows s, columns t.
    """
    free = replace(ball, box=None)
    generator = generator or torch.Generator(x.device).manual_seed(0)
    steepest = weapons.fgsm(model, x, y, free, loss=loss)
    random = torch.randn(x.shape, generator=generator, device=x.device, dtype=x.dtype)
    return loss_along(model, x, y, [steepest, free.argmax(random)], distances, distances, loss=loss)


def loss_along(
    model: Model,
    x: Tensor,
    y: Tensor,
    directions: Sequence[Tensor],
    *distances: Tensor,
    loss: Callable[[Tensor, Tensor], Tensor] = losses.cross_entropy,
) -> Tensor:
    """ℓ(x + t₁ u₁ + t₂ u₂ + …, y) of one sample, on the grid of all t₁, t₂, …: a line, a plane.

    x: (1, *shape), y: (1,), directions u: each (1, *shape); distances: one vector for each direction.
    Returns a tensor of shape (len(distances[0]), len(distances[1]), …).
    """
    if len(x) != 1 or y.shape != (1,) or not distances or len(directions) != len(distances):
        raise ValueError(
            "expected one sample, its label (1,), and as many distances as directions, at least one, "
            f"got {len(x)}, {tuple(y.shape)}, {len(distances)} and {len(directions)}"
        )
    if any(u.shape != x.shape or u.dtype != x.dtype for u in directions):
        found = [f"{u.dtype} {tuple(u.shape)}" for u in directions]
        raise ValueError(f"expected directions like x, {x.dtype} {tuple(x.shape)}, got {found}")
    if any(t.ndim != 1 for t in distances):
        raise ValueError(f"expected distances (t,), got {[tuple(t.shape) for t in distances]}")
    grid = torch.cartesian_prod(*distances).reshape(-1, len(distances)).to(x)
    moves = grid @ torch.cat([u.reshape(1, -1) for u in directions])
    with evaluating(model), torch.no_grad():
        values = loss(model(x + moves.reshape(-1, *x.shape[1:])), y.expand(len(grid)))
    if values.shape != (len(grid),):
        raise ValueError(f"expected a loss with one number a sample, got {tuple(values.shape)}")
    return values.reshape([len(t) for t in distances])


def _right(model: Model, x: Tensor, y: Tensor, batch_size: int) -> Tensor:
    """Whether class y leads all others, (n,) bool."""
    with evaluating(model), torch.no_grad():
        parts = zip(x.split(batch_size), y.split(batch_size), strict=True)
        return torch.cat([losses.correct(model(a), b) for a, b in parts])
