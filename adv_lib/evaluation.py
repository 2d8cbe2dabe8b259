"""Honest numbers: a rate never comes without its count and its interval.

Robust accuracy from attacks is an upper bound: of a sample that no attack breaks we know nothing more.
"""

from __future__ import annotations

import math
import statistics
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from torch import Tensor

from . import losses, stack
from ._given import check_ball, check_moves, check_tensors, kind
from .models import evaluating, logits
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
    Of a model that draws at random this is one draw: see `table`.
    Raises ValueError if an attack leaves Δ(x), and for n = 0.
    """
    _check_samples(x, y, ball, batch_size)
    if not isinstance(attacks, Sequence) or not all(map(callable, attacks)):
        raise ValueError(f"expected a list of attacks, got {kind(attacks)} {attacks}")
    if attacks:
        ball.radii(x)  # raises for an ε that no batch by itself would notice
    alive = _margins(model, x, y, batch_size) > 0
    return _withstand(alive, model, x, y, ball, attacks, batch_size)


def _withstand(alive, model, x, y, ball, attacks, batch_size) -> Tensor:
    """Which of the samples that are alive stay so, (n,) bool; alive itself stays as it is."""
    alive = alive.clone()
    for attack in attacks:
        for batch in alive.nonzero().squeeze(1).split(batch_size):
            if len(batch) == 0:  # none is left
                return alive
            part = ball.subset(batch)
            delta = attack(model, x[batch], y[batch], part)
            check_allowed(attack, delta, x[batch], part)
            alive[batch] = _margins(model, x[batch] + delta, y[batch], batch_size) > 0
    return alive


def _check_samples(x: Tensor, y: Tensor, ball: Ball, batch_size: int) -> None:
    """Raise ValueError for what cannot be judged."""
    check_tensors(x=x, y=y)
    check_ball(ball)
    if y.ndim != 1 or x.shape[:1] != y.shape or len(y) == 0 or batch_size < 1:
        raise ValueError(
            "expected as many inputs as labels (n,), at least one, and batch_size ≥ 1, "
            f"got {tuple(x.shape)}, {tuple(y.shape)} and {batch_size!r}"
        )


def check_allowed(attack: object, delta: Tensor, x: Tensor, ball: Ball) -> None:
    """Raise ValueError unless what the attack returned is like x and in Δ(x).

    delta, x: (n, *shape).
    """
    check_tensors(x=x)
    check_ball(ball)
    check_moves(attack, delta, x)
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
    curve cannot rise. The ball's own eps is not used, unless each entry has its own: then these keep
    their ratios, and ε is the largest of a sample.
    """
    _check_samples(x, y, ball, batch_size)
    if not hasattr(radii, "__iter__") or any(b < a for a, b in pairwise(radii)):
        raise ValueError(f"expected radii in increasing order, got {radii}")
    share = torch.as_tensor(ball.eps)
    if share.ndim > 1:
        ball.radii(x)
        most = share.flatten(1).amax(1).view(-1, *[1] * (share.ndim - 1))
        share = torch.where(most > 0, share / most, 0)
        radii = [eps * share for eps in radii]
    balls = [replace(ball, eps=eps) for eps in radii]  # a bad ε is named before the first attack
    alive, rates = torch.ones(len(x), dtype=torch.bool, device=x.device), []
    for at in balls:
        left = alive.nonzero().squeeze(1)
        if len(left):
            part = at.subset(left) if share.ndim > 1 else at
            alive[left] = survivors(model, x[left], y[left], part, attacks, batch_size=batch_size)
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
    whole_batches: bool = False,
    batch_size: int = 1000,
) -> Table:
    """Judge every model by every attack alone, by the worst of all for each sample, and by proofs.

    models:  name → the networks of one way of training, one for each seed, as many for each name.
    attacks: name → (model, x, y, ball) → δ; an empty mapping means the clean accuracy only.
    proofs:  name → (model, x, y, ball) → (n,) bool, true where no δ ∈ Δ(x) makes the model wrong.
    whole_batches: attack and answer whole batches, with the samples that are broken already, because a
             defense may answer a sample differently in other company. A model around a `stack.Stack`
             then stands for as many networks as the stack has members: they are attacked and answer side
             by side, and no attack may drop samples.
    Returns a `Table`.

    A model may draw at random. Then each cell is one draw: the attack saw other draws than the one that
    judged it, the clean answers are drawn once for the whole row, and another call counts otherwise.
    So a right cell says that this draw was right, not that δ fails; `adaptive.eot` attacks the mean over
    draws, and a proof must be about all of them. Where the clean answers, asked for once more, are not
    the same, `table` warns.
    Raises ValueError for no samples, names that are taken, a stack without whole batches, an attack that
    leaves Δ(x), and where a proof and an attack contradict each other: then one of them is wrong.
    """
    proofs = {} if proofs is None else proofs
    for what, given in (("models", models), ("attacks", attacks), ("proofs", proofs)):
        if not isinstance(given, Mapping):
            raise ValueError(f"expected {what} by name, as {{'PGD': attacks.pgd}}, got {kind(given)}")
    for name, function in {**attacks, **proofs}.items():
        if not callable(function):
            raise ValueError(f"expected {name} to be a function, got {kind(function)}")
    if any(callable(seeds) for seeds in models.values()):
        raise ValueError("expected a list of networks for each name, one for each seed, got a network")
    _check_samples(x, y, ball, batch_size)
    ball.radii(x)
    columns = ["clean", *attacks, "worst", *proofs]
    networks = {name: sum(map(_members, seeds)) for name, seeds in models.items()}
    if len(set(columns)) < len(columns) or len({*networks.values()} | {0}) != 2:
        raise ValueError(
            "expected different names, none of them clean or worst, and as many networks, at least one, "
            f"for each model, got {columns} and {networks}"
        )
    if not whole_batches and sum(networks.values()) > sum(map(len, models.values())):
        raise ValueError("expected whole_batches for a stack: one that is broken must keep its place")
    withstand = _in_whole_batches if whole_batches else _one_by_one
    right: dict[str, dict[str, Tensor]] = {}
    for name, seeds in models.items():
        rows = []
        for model in seeds:
            row = withstand(name, model, x, y, ball, attacks, batch_size)
            row["worst"] = torch.stack(list(row.values())).all(0)
            row |= {column: proof(model, x.clone(), y, ball) for column, proof in proofs.items()}
            _check_proofs(name, row, proofs)
            rows.append({column: cells.view(-1, len(x)) for column, cells in row.items()})
        right[name] = {column: torch.cat([row[column] for row in rows]) for column in columns}
    return Table(right)


def _one_by_one(name, model, x, y, ball, attacks, batch_size) -> dict[str, Tensor]:
    """What a network gets right without and under each attack: column → (n,) bool."""
    margins = _margins(model, x, y, batch_size)
    row = {"clean": margins > 0}
    for column, attack in attacks.items():
        row[column] = _withstand(row["clean"], model, x, y, ball, [attack], batch_size)
    _warn_of_draws(name, margins, _margins(model, x, y, batch_size))
    return row


def _in_whole_batches(name, model, x, y, ball, attacks, batch_size) -> dict[str, Tensor]:
    """The same with every sample in every batch, for each network of a stack: column → (E, n) bool."""
    E = _members(model)
    columns = {column: y.new_zeros(len(x), E, dtype=torch.bool) for column in ("clean", *attacks)}
    first, again = [], []
    with evaluating(model):
        for batch in torch.arange(len(x), device=x.device).split(batch_size):
            rows = batch.repeat_interleave(E)  # each sample once for every network
            at, labels, part = x[rows], y[rows], ball.subset(rows)
            first.append(_margins(model, at, labels, len(rows)))
            clean = first[-1] > 0
            columns["clean"][batch] = clean.view(-1, E)
            for column, attack in attacks.items():
                delta = attack(model, at.clone(), labels, part)
                check_allowed(column, delta, at, part)
                left = (_margins(model, at + delta, labels, len(rows)) > 0) & clean
                columns[column][batch] = left.view(-1, E)
            again.append(_margins(model, at, labels, len(rows)))
    _warn_of_draws(name, torch.cat(first), torch.cat(again))
    return {column: right.T.contiguous() for column, right in columns.items()}


def _warn_of_draws(name: str, first: Tensor, again: Tensor) -> None:
    """Warn if the margins of the same samples differ by more than rounding, beside the largest one."""
    largest = first.abs().nan_to_num(0, 0).amax()
    rounding = math.sqrt(torch.finfo(first.dtype).eps) * largest
    differ = int(((first - again).abs() > rounding).sum())
    if differ:
        warnings.warn(
            f"{name} gives {differ} of {len(first)} samples other logits when asked again: if it draws "
            "at random, each cell of its row is one draw",
            stacklevel=4,
        )


def _members(model: Model) -> int:
    """How many networks a model, or a defense around one, stands for."""
    return stack.members_of(getattr(model, "model", model))


def _check_proofs(name: str, row: Mapping[str, Tensor], proofs: Mapping[str, Proof]) -> None:
    """Raise ValueError for a proof that is not one bool a sample, or that an attack contradicts."""
    for column in proofs:
        check_tensors(**{column: row[column]})
        if row[column].shape != row["worst"].shape or row[column].dtype != torch.bool:
            raise ValueError(
                f"expected {column} to return {tuple(row['worst'].shape)} bool, "
                f"got {row[column].dtype} {tuple(row[column].shape)}"
            )
        if false := (row[column] & ~row["worst"]).nonzero()[:, -1].tolist():
            raise ValueError(
                f"{column} proves {name} right on the samples {false[:9]}, and an attack breaks them"
            )


def _margins(model: Model, x: Tensor, y: Tensor, batch_size: int) -> Tensor:
    """By how much class y leads all others, (n,)."""
    with evaluating(model), torch.no_grad():
        parts = zip(x.split(batch_size), y.split(batch_size), strict=True)
        return torch.cat([losses.margin(logits(model, a), b) for a, b in parts])
