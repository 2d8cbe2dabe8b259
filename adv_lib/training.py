"""The outer minimum: one loop for every way of training in the book.

min over θ of the mean of max over δ ∈ Δ(x) of ℓ(f_θ(x + δ), y). The loop is the same for all; what
stands for the inner maximum is not: the loss at δ = 0 (`clean`), at the end of an attack, which is at
most the maximum (`adversarial`, `trades`), or a bound, which is at least the maximum (`certified`).

Each takes a `stack.Stack` of E networks as well as one: x and y are then (n·E, …), the members' rows in
turns, and the generators may be E, one a member, so that each member draws what it would draw alone.
"""

from __future__ import annotations

import copy
import hashlib
import math
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from . import attacks, losses, models
from .data import Data
from .stack import Stack, drawn, members_of
from .threat import Ball

Generator = torch.Generator | Sequence[torch.Generator]  # one, or one for each member of a `Stack`
Inner = Callable[[nn.Module, Tensor, Tensor], Tensor]  # (model, x (n, *shape), y (n,)) → (n,)
Attack = Callable[[nn.Module, Tensor, Tensor, Ball], Tensor]  # (model, x, y, ball) → δ like x


# ---- what stands for the inner maximum ----


def clean(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """ℓ(f(x), y) with ℓ the cross-entropy: standard training, which takes δ = 0.  Returns (n,)."""
    return losses.cross_entropy(model(x), y)


def adversarial(attack: Attack, ball: Ball) -> Inner:
    """ℓ(f(x + δ), y) with the δ that the attack finds: a lower bound on the inner maximum.

    attack: (model, x, y, ball) → δ, such as `attacks.fgsm` or a `functools.partial` of `attacks.pgd`. It
            sees the model in eval mode; the loss that is minimised is that of the mode it was in.
    Source: Goodfellow, Shlens & Szegedy 2015 (one step); Madry et al. 2018, eq. (2.1).
    """

    def inner(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        with models.evaluating(model):
            delta = attack(model, x, y, ball)
        return clean(model, x + delta, y)

    return inner


def fast(ball: Ball, generator: Generator) -> Inner:
    """`adversarial` with one step of 1.25 ε from a random point of Δ(x), projected: two passes a batch.

    ball: with one ε for all.  generator: draws the points; on the device of the data.
    Raises ValueError for an ε for each sample.  Source: Wong, Rice & Kolter 2020, algorithm 3.
    """
    if isinstance(ball.eps, Tensor) or generator is None:
        raise ValueError(f"expected one number eps and a generator, got {ball.eps!r} and {generator!r}")

    def attack(model: nn.Module, x: Tensor, y: Tensor, ball: Ball) -> Tensor:
        start, size = drawn(ball.sample, x, generator), 1.25 * ball.eps
        if size == 0:  # at the foot of a ramp
            return start
        return attacks.pgd(model, x, y, ball, steps=1, step_size=size, start=start, keep="last")

    return adversarial(attack, ball)


def trades(
    ball: Ball, generator: Generator, beta: float | Sequence[float] = 6.0, *, steps: int = 10
) -> Inner:
    """ℓ(f(x), y) + β max_δ KL(f(x) ‖ f(x + δ)), the maximum by `attacks.pgd`: be right, and do not move.

    The attack starts from noise of size 0.001, because at δ = 0 the divergence has no gradient.
    generator: draws the noise; on the device of the data.
    beta: β, or one for each member of a `Stack`.
    Raises ValueError for β < 0 and steps < 0.  Source: Zhang et al. 2019, eq. (5) and algorithm 1.
    """
    if not _within(beta, 0, sys.float_info.max) or steps < 0 or generator is None:
        raise ValueError(
            f"expected a generator, beta ≥ 0 and steps ≥ 0, got {generator!r}, {beta!r} and {steps!r}"
        )

    def inner(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        with models.evaluating(model), torch.no_grad():
            still = model(x)
        noise = 0.001 * drawn(_normal, x, generator)

        def moved(z: Tensor, y: Tensor) -> Tensor:
            return losses.divergence(still, z)

        start = ball.project(noise, x)
        delta = attacks.pgd(model, x, y, ball, steps=steps, start=start, loss=moved, keep="last")
        z = model(x)
        return losses.cross_entropy(z, y) + _dealt(beta, z) * losses.divergence(z, model(x + delta))

    return inner


def certified(ball: Ball, method: str = "dual") -> Inner:
    """`bounds.robust_loss`: an upper bound on the inner maximum, so what is small is proved small.

    method: "interval", "dual" or "crown".
    Source: Wong & Kolter 2018 (dual); Gowal et al. 2018 (interval).
    """
    from . import bounds  # needs SciPy, which no other training does

    def inner(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        if not isinstance(model, Stack):
            return bounds.robust_loss(model, x, y, ball, method)
        E, rows = len(model), torch.arange(len(x), device=x.device)
        each = [
            bounds.robust_loss(model.member(e), x[e::E], y[e::E], ball.subset(rows[e::E]), method)
            for e in range(E)
        ]
        return torch.stack(each, 1).flatten()

    return inner


def mixed(inner: Inner, share: float | Sequence[float]) -> Inner:
    """share · inner + (1 − share) · clean: some of the loss on the images as they are.

    share: from 0 to 1, or one for each member of a `Stack`.
    To ramp it, mix inside: Ramp(lambda ball: mixed(certified(ball), share), ball).
    Raises ValueError unless 0 ≤ share ≤ 1.  Source: Goodfellow, Shlens & Szegedy 2015, with share ½.
    """
    if not _within(share, 0, 1):
        raise ValueError(f"expected a share from 0 to 1, got {share!r}")

    def both(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        attacked, still = inner(model, x, y), clean(model, x, y)
        part = _dealt(share, still)
        return part * attacked + (1 - part) * still

    return both


def _within(values: float | Sequence[float], low: float, high: float) -> bool:
    """Whether a number, or each of several, is in [low, high]."""
    return all(low <= v <= high for v in (values if isinstance(values, Sequence) else [values]))


def _dealt(values: float | Sequence[float], like: Tensor) -> float | Tensor:
    """A number as it is; one number a member as one a row of `like` (n·E, …)."""
    if not isinstance(values, Sequence):
        return values
    if len(like) % len(values):
        raise ValueError(f"expected one number for each network, got {len(values)} for {len(like)} rows")
    return torch.tensor(values, dtype=like.dtype, device=like.device).repeat(len(like) // len(values))


def _normal(x: Tensor, generator: torch.Generator) -> Tensor:
    """Standard normal noise like x."""
    return torch.randn(x.shape, generator=generator, device=x.device, dtype=x.dtype)


@dataclass(frozen=True)
class Schedule:
    """An inner maximum that changes along the run: `at(t)` is the one when a part t of it is done.

    at: a number from 0 to 1 → Inner; it is called for every batch.
    """

    at: Callable[[float], Inner]


@dataclass(frozen=True)
class Ramp:
    """An inner maximum over a ball that grows: 0 until `begin`, then in a straight line to ε at `end`.

    ε(t) = ε min(1, max(0, t − begin) / (end − begin)), when a part t of the run is done.
    inner_of: ball → Inner, such as `certified`; it is called for every batch.
    Raises ValueError unless 0 ≤ begin < end ≤ 1.
    """

    inner_of: Callable[[Ball], Inner]
    ball: Ball
    begin: float = 0.0
    end: float = 0.5

    def __post_init__(self):
        if not 0 <= self.begin < self.end <= 1:
            raise ValueError(f"expected 0 ≤ begin < end ≤ 1, got {self.begin!r} and {self.end!r}")

    def at(self, done: float) -> Inner:
        """The inner maximum when a part `done` of the run, from 0 to 1, is over."""
        grown = min(1.0, max(0.0, done - self.begin) / (self.end - self.begin))
        return self.inner_of(replace(self.ball, eps=self.ball.eps * grown))


# ---- the loop ----


class Epoch(NamedTuple):
    """What one pass over the training set did: its number from 1, its mean loss, what was watched.

    The loss and what is watched are numbers, or for a `Stack` tuples of one number a member.
    """

    number: int
    loss: float | tuple[float, ...]
    watched: Mapping[str, float | tuple[float, ...]] = {}


def fit(
    model: nn.Module,
    data: tuple[Tensor, Tensor],
    inner: Inner | Ramp | Schedule,
    *,
    epochs: int,
    lr: float | Sequence[float] | Callable[[float], float | Sequence[float]],
    batch_size: int = 100,
    momentum: float = 0.0,
    normalise: bool = False,
    generator: Generator | None = None,
    watch: Mapping[str, Callable[[nn.Module], float | Sequence[float]]] | None = None,
    best: str | None = None,
    checkpoint: str | os.PathLike | None = None,
) -> Iterator[Epoch]:
    """Minimise the mean of inner(model, x, y) over the data by stochastic gradient descent, in place.

    v ← momentum · v + ∇_θ (1/|B|) Σ_{(x,y)∈B} inner(θ, x, y) and θ ← θ − lr · v, one batch B after the
    other, from v = 0.

    model: a network, or a `Stack` of E: then what is minimised is the sum of E means, the gradients are
           each member's own, and every member ends with the weights that it would have had alone.
    data:  inputs (n, *shape) and labels (n,), on the device of the model.
    inner: (model, x, y) → (n,), the inner maximum max_δ ℓ or an estimate of it, or a `Ramp` or
           `Schedule` of them.
    lr:    the step size, or one for each member of a stack, or a function that returns these from the
           part of the run that is done, from 0 to 1.
    momentum: in [0, 1).
    normalise: divide each batch's gradient by its ℓ2 norm over all of a network's parameters, unless
           that is 0.
    generator: shuffles the batches; None means a fresh one seeded 0. With a sequence of E generators
           each member of a stack has batches of its own; with one all have the same.
    watch: what to measure after each epoch: names, and functions of the model (in eval mode) that
           return a number, or for a stack one a member.
    best:  one of those names: the run ends with the weights of the epoch where it was largest, the
           first of several. None means those of the last epoch.
    checkpoint: a file that is written after each epoch. A run that finds it goes on from there, and ends
           with the weights that it would have had if what inner draws comes from the same generator.
    best, checkpoint: for one network only.
    Yields an `Epoch` after each; nothing runs before you iterate.
    Raises ValueError for arguments that cannot be trained on and for the checkpoint of another run,
    FloatingPointError if the loss or the step size is not finite, or what `best` names is NaN.
    """
    x, y = data
    if len(x) != len(y) or len(x) == 0:
        raise ValueError(f"data must be as many inputs as labels, got {len(x)} and {len(y)}")
    if epochs < 0 or batch_size < 1 or not (callable(lr) or _sizes(lr)) or not 0 <= momentum < 1:
        raise ValueError(
            "expected epochs ≥ 0, batch_size ≥ 1, 0 < lr < ∞ and 0 ≤ momentum < 1, "
            f"got epochs={epochs!r}, batch_size={batch_size!r}, lr={lr!r}, momentum={momentum!r}"
        )
    watch, E = watch or {}, members_of(model)
    if best is not None and best not in watch:
        raise ValueError(f"expected best to be one of what is watched, {list(watch)}, got {best!r}")
    if isinstance(model, Stack) and (best is not None or checkpoint is not None):
        raise ValueError(f"best and checkpoint are for one network, got them for a stack of {E}")
    generator = generator or torch.Generator().manual_seed(0)
    generators = [generator] if isinstance(generator, torch.Generator) else generator
    if len(generators) not in (1, E) or len(set(generators)) < len(generators):
        raise ValueError(f"expected one generator, or a different one for each of {E}, got {generators}")
    velocity = [torch.zeros_like(p) for p in model.parameters()]
    kept = None if checkpoint is None else _Checkpoint(Path(checkpoint), model, velocity, generators[0])
    size = "varies" if callable(lr) else lr if isinstance(lr, Sequence) else float(lr)
    settings = [int(epochs), size, int(batch_size), len(x), best]
    settings += [float(momentum), bool(normalise)]
    over, record = kept.resume(settings) if kept else (0, None)
    for number in range(over + 1, epochs + 1):
        orders = [torch.randperm(len(x), generator=g, device=g.device) for g in generators]
        batches = torch.stack(orders, 1).expand(-1, E).to(x.device).split(batch_size)
        total = torch.zeros(E, dtype=torch.float64, device=x.device)
        for i, batch in enumerate(batches):
            done, rows = (number - 1 + i / len(batches)) / epochs, batch.flatten()
            loss_of = inner.at(done) if isinstance(inner, Ramp | Schedule) else inner
            values = loss_of(model, x[rows], y[rows])
            if values.shape != rows.shape:
                raise ValueError(f"expected an inner {tuple(rows.shape)}, got {tuple(values.shape)}")
            loss, alpha = values.view(-1, E).mean(0), lr(done) if callable(lr) else lr
            if not loss.isfinite().all() or not _sizes(alpha, zero=True):
                raise FloatingPointError(
                    "expected a finite loss and a step size 0 ≤ lr < ∞, "
                    f"got {loss.detach().tolist()} in epoch {number}, with a step size of {alpha}"
                )
            model.zero_grad()
            loss.sum().backward()
            if normalise:
                _normalise(model, E)
            _step(model, velocity, momentum, alpha)
            total += loss.detach() * len(batch)
        model.zero_grad()  # so that the caller's next backward() does not add to these
        with models.evaluating(model), torch.no_grad():
            watched = {name: _numbers(model, measure(model)) for name, measure in watch.items()}
        if best is not None and math.isnan(watched[best]):
            raise FloatingPointError(f"{best!r} became nan in epoch {number}")
        if best is not None and (record is None or watched[best] > record[0]):
            record = watched[best], copy.deepcopy(model.state_dict())
        if record is not None and number == epochs:
            model.load_state_dict(record[1])
        if kept:
            kept.save(settings, number, record)
        yield Epoch(number, _numbers(model, total / len(x)), watched)


def _sizes(lr: float | Sequence[float], zero: bool = False) -> bool:
    """Whether these can be step sizes; 0 only where a schedule ends there."""
    return all((zero and v == 0) or 0 < v < math.inf for v in (lr if isinstance(lr, Sequence) else [lr]))


def _numbers(model: nn.Module, found: Tensor | float | Sequence[float]) -> float | tuple[float, ...]:
    """What was found about a network as a number, about a stack as one number a member."""
    if not isinstance(model, Stack):
        return float(found)
    numbers = tuple(float(value) for value in found)
    if len(numbers) != len(model):
        raise ValueError(f"expected one number for each of {len(model)} networks, got {len(numbers)}")
    return numbers


@torch.no_grad()
def _step(
    model: nn.Module, velocity: list[Tensor], momentum: float, alpha: float | Sequence[float]
) -> None:
    """v ← momentum · v + ∇ and θ ← θ − α v, with one α, or with each member's own.

    By hand: the first optimiser of `torch.optim` imports a compiler, which takes longer than a training.
    """
    for p, v in zip(model.parameters(), velocity, strict=True):
        if p.grad is None:
            continue
        v.mul_(momentum).add_(p.grad)
        if isinstance(alpha, Sequence):
            p.sub_(p.new_tensor(alpha).view(-1, *[1] * (p.ndim - 1)) * v)
        else:
            p.add_(v, alpha=-alpha)


def _normalise(model: nn.Module, E: int) -> None:
    """Divide the gradient of all parameters of a network by its ℓ2 norm, in place, unless that is 0."""
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    rows = torch.cat([gradient.reshape(E, -1) for gradient in gradients], 1)
    size = torch.linalg.vector_norm(rows, dim=1)
    size[size == 0] = 1
    for gradient in gradients:
        gradient.view(E, -1).div_(size[:, None])


def progress(run: Iterator[Epoch], epochs: int) -> Iterator[Epoch]:
    """The same epochs, with a bar that shows the loss and what is watched and goes away at the end.

    epochs: how many there will be.  TQDM_DISABLE=1 in the environment hides the bar.
    """
    from tqdm.auto import tqdm

    hidden = os.environ.get("TQDM_DISABLE", "0") not in ("", "0")
    with tqdm(total=epochs, unit="epoch", leave=False, disable=hidden) as bar:
        for epoch in run:
            bar.update(epoch.number - bar.n)  # a run that goes on begins later
            shown = {"loss": epoch.loss} | epoch.watched
            bar.set_postfix({k: f"{torch.tensor(v).mean():.3f}" for k, v in shown.items()})
            yield epoch


@dataclass(frozen=True)
class _Checkpoint:
    """The file of a run: all that it needs to go on. A run killed while it writes leaves the old one."""

    path: Path
    model: nn.Module
    velocity: list[Tensor]
    generator: torch.Generator

    def __post_init__(self):
        if not self.path.parent.is_dir():
            raise ValueError(f"expected a checkpoint in a folder that exists, got {self.path}")

    def save(self, settings: list, number: int, record: tuple | None) -> None:
        half = self.path.with_name(self.path.name + ".part")
        state = {"settings": settings, "epoch": number, "record": record}
        state |= {"model": self.model.state_dict(), "velocity": self.velocity}
        torch.save(state | {"generator": self.generator.get_state()}, half)
        half.replace(self.path)

    def resume(self, settings: list) -> tuple[int, tuple | None]:
        """Put what takes part where the file says.  Returns the epochs done, the record."""
        if not self.path.exists():
            return 0, None
        try:
            state = torch.load(self.path, map_location="cpu", weights_only=True)
            shapes = [(name, value.shape) for name, value in state["model"].items()]
            of, number, record, steps, drawn = (
                state[k] for k in ("settings", "epoch", "record", "velocity", "generator")
            )
        except Exception as error:  # torch.load raises whatever it stumbles over
            raise ValueError(f"{self.path} is not a checkpoint of fit") from error
        if of != settings or shapes != [
            (name, value.shape) for name, value in self.model.state_dict().items()
        ]:
            raise ValueError(
                f"{self.path} is the checkpoint of another network, or of a run with epochs, lr, "
                f"batch_size, samples, best, momentum and normalise {of}, expected {settings}"
            )
        self.model.load_state_dict(state["model"])
        for now, then in zip(self.velocity, steps, strict=True):
            now.copy_(then)
        self.generator.set_state(drawn)
        return number, record


# ---- the networks that every chapter means ----

WEIGHTS = Path(__file__).parent / "weights"  # of the digits, made by `make weights`
SHIPPED = (("standard", 0), ("robust", 0), ("normalised", 0), ("normalised", 1), ("normalised", 2))


def reference(kind: str, data: Data, seed: int = 0) -> nn.Sequential:
    """A network that several chapters mean by one name, `models.mlp([d, 50, 50, K])`, in eval mode.

    "standard":   minimises the cross-entropy; about 1,200 steps of 0.1 on batches of 100.
    "robust":     goes on from there with the cross-entropy at the end of ten steps of `attacks.pgd` for
                  p = ∞, ε = 0.1 and the box: about 960 steps of 0.05, then 240 of 0.01.
    "normalised": with BatchNorm, against seven steps of `attacks.pgd` for ε = 0.15: about 760 steps of
                  0.1 on batches of 64.

    For the digits the networks of `SHIPPED` come with the package, so that every reader sees the same
    figures; others, and those for other data, are trained here.
    data: images and labels; only the training set is used.  seed: decides the initial weights and the
    batches.  Raises ValueError for another kind.
    """
    if (kind, seed) in SHIPPED:
        kept = torch.load(WEIGHTS / f"{kind}-{seed}.pt", weights_only=True)
        if kept["data"] == digest(data):
            model = _untrained(kind, data, torch.Generator())
            model.load_state_dict(kept["weights"])
            return model.eval().to(data.x_train.device)
    return trained(kind, data, seed)


def trained(kind: str, data: Data, seed: int) -> nn.Sequential:
    """The network of `reference`, trained now whether or not it ships with the package.

    In float64, then rounded to float32: attacks take signs of gradients, which in float32 differ between
    processors often enough that after a thousand steps the weights differ in the first digit.
    Raises ValueError as `reference`.
    """
    if kind not in ("standard", "robust", "normalised"):
        raise ValueError(f'expected kind "standard", "robust" or "normalised", got {kind!r}')
    x, y = data.x_train.double(), data.y_train
    generator = torch.Generator().manual_seed(seed)
    model = _untrained(kind, data, generator).double().to(x.device)

    def against(steps: int, eps: float) -> Inner:
        return adversarial(partial(attacks.pgd, steps=steps, keep="last"), Ball(math.inf, eps, (0, 1)))

    first = (clean, 1200, 0.1, 100)  # inner maximum, steps, their size, batch size
    stages = {
        "standard": [first],
        "robust": [first, (against(10, 0.1), 960, 0.05, 100), (against(10, 0.1), 240, 0.01, 100)],
        "normalised": [(against(7, 0.15), 760, 0.1, 64)],
    }
    for inner, steps, lr, size in stages[kind]:
        epochs = max(4, round(steps * size / len(x)))
        run = fit(model, (x, y), inner, epochs=epochs, lr=lr, batch_size=size, generator=generator)
        for _ in run:
            pass
    return model.float().eval()


def digest(data: Data) -> str:
    """A fingerprint of the training set, by which shipped weights know the data they are for."""
    whole = hashlib.sha256()
    for part in (data.x_train, data.y_train):
        whole.update(part.cpu().contiguous().numpy().tobytes())
    return whole.hexdigest()


def _untrained(kind: str, data: Data, generator: torch.Generator) -> nn.Sequential:
    classes = int(data.y_train.max()) + 1
    widths = [data.x_train[0].numel(), 50, 50, classes]
    return models.mlp(widths, generator, norm=kind == "normalised")
