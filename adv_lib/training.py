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
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from numbers import Real
from pathlib import Path
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from . import attacks, losses, models
from ._checkpoint import Checkpoint
from ._given import check_ball, check_moves, check_tensors, kind, within
from .data import Data
from .optimisers import SGD, Optimiser
from .stack import Stack, dealt, drawn, members_of
from .threat import Ball

Generator = torch.Generator | Sequence[torch.Generator]  # one, or one for each member of a `Stack`
Inner = Callable[[nn.Module, Tensor, Tensor], Tensor]  # (model, x (n, *shape), y (n,)) → (n,)
Attack = Callable[[nn.Module, Tensor, Tensor, Ball], Tensor]  # (model, x, y, ball) → δ like x
Loss = Callable[[Tensor, Tensor], Tensor]  # (logits z (n, K), y (n,)) → (n,)
PLAIN = SGD()


# ---- what stands for the inner maximum ----


def clean(model: nn.Module, x: Tensor, y: Tensor, loss: Loss = losses.cross_entropy) -> Tensor:
    """ℓ(f(x), y): standard training, which takes δ = 0.  Returns (n,).

    loss: ℓ, (z, y) → (n,), such as the cross-entropy or a `recipe.smoothing` of it.
    """
    return loss(models.logits(model, x), y)


def adversarial(
    attack: Attack, ball: Ball, *, loss: Loss = losses.cross_entropy, mode: str = "eval"
) -> Inner:
    """ℓ(f(x + δ), y) with the δ that the attack finds: a lower bound on the inner maximum.

    attack: (model, x, y, ball) → δ, such as `attacks.fgsm` or a `functools.partial` of `attacks.pgd`. It
            climbs a loss of its own.
    loss:   ℓ, what is minimised, as in `clean`, in the mode that the model is in.
    mode:   the mode in which the attack sees the model. With "eval" BatchNorm's statistics stay, and
            learn from x + δ alone. With "train" the attack sees the model as it is, in a run in train
            mode: BatchNorm takes the statistics of the batch, and learns from every pass of the attack,
            as in the published code of PGD training. The attack is then handed a plain function.
    Raises ValueError for another mode.
    Source: Goodfellow, Shlens & Szegedy 2015 (one step); Madry et al. 2018, eq. (2.1); Pang et al. 2021
    (mode).
    """
    _check_mode(mode)

    def inner(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        with _attacked(model, mode) as seen:
            delta = attack(seen, x, y, ball)
        check_moves(attack, delta, x)
        return clean(model, x + delta, y, loss)

    return inner


@contextmanager
def _attacked(model: nn.Module, mode: str) -> Iterator[Callable]:
    """The model as an attack sees it: in eval mode, or with "train" as a function, which has no mode."""
    if mode == "eval":
        with models.evaluating(model):
            yield model
    else:
        seen = partial(_asked, model)
        seen.__wrapped__ = model  # so that an attack that drops samples finds the stack
        yield seen


def _asked(model: Callable, x: Tensor) -> Tensor:
    return model(x)


def _check_mode(mode: str) -> None:
    if mode not in ("eval", "train"):
        raise ValueError(f'expected mode "eval" or "train", got {mode!r}')


def fast(ball: Ball, generator: Generator, *, loss: Loss = losses.cross_entropy) -> Inner:
    """`adversarial` with one step of 1.25 ε from a random point of Δ(x), projected: two passes a batch.

    ball: the same for all samples.  generator: draws the points; on the device of the data.
    loss: what is minimised, as in `clean`.
    Raises ValueError for an ε for each sample.  Source: Wong, Rice & Kolter 2020, algorithm 3.
    """
    check_ball(ball)
    if ball.per_sample or generator is None:
        raise ValueError(
            f"expected one eps for all samples and a generator, got {ball.eps!r} and {generator!r}"
        )

    def attack(model: nn.Module, x: Tensor, y: Tensor, ball: Ball) -> Tensor:
        start, size = drawn(ball.sample, x, generator), 1.25 * float(torch.as_tensor(ball.eps).max())
        if size == 0:  # at the foot of a ramp
            return start
        return attacks.pgd(model, x, y, ball, steps=1, step_size=size, start=start, keep="last")

    return adversarial(attack, ball, loss=loss)


def trades(
    ball: Ball,
    generator: Generator,
    beta: float | Sequence[float] = 6.0,
    *,
    loss: Loss = losses.cross_entropy,
    mode: str = "eval",
) -> Inner:
    """ℓ(f(x), y) + β max_δ KL(f(x) ‖ f(x + δ)): be right, and do not move.

    The maximum is by ten steps of `attacks.pgd`.
    The attack starts from noise of size 0.001, because at δ = 0 the divergence has no gradient.
    generator: draws the noise; on the device of the data.
    beta: β, or one for each member of a `Stack`.
    loss, mode: ℓ, and how the attack sees the model, as in `adversarial`.
    Raises ValueError for β < 0 and another mode.  Source: Zhang et al. 2019, eq. (5) and algorithm 1.
    """
    check_ball(ball)
    _check_mode(mode)
    if not within(beta, 0, sys.float_info.max) or generator is None:
        raise ValueError(f"expected a generator and beta ≥ 0, got {generator!r} and {beta!r}")

    def inner(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        def apart(z: Tensor, y: Tensor) -> Tensor:
            return losses.divergence(still, z)

        with _attacked(model, mode) as seen:
            with torch.no_grad():
                still = models.logits(seen, x)
            start = ball.project(0.001 * drawn(_normal, x, generator), x)
            delta = attacks.pgd(seen, x, y, ball, steps=10, start=start, loss=apart, keep="last")
        z, moved = models.logits(model, x), models.logits(model, x + delta)
        return loss(z, y) + dealt(beta, z) * losses.divergence(z, moved)

    return inner


def certified(ball: Ball, method: str = "dual") -> Inner:
    """`bounds.robust_loss`: an upper bound on the inner maximum, so what is small is proved small.

    It is about the network in eval mode: BatchNorm's statistics stay, unless it is `mixed` with `clean`.
    method: "interval", "dual" or "crown".
    Source: Wong & Kolter 2018 (dual); Gowal et al. 2018 (interval).
    """
    check_ball(ball)
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
    if not within(share, 0, 1):
        raise ValueError(f"expected a share from 0 to 1, got {share!r}")

    def both(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        attacked, still = inner(model, x, y), clean(model, x, y)
        part = dealt(share, still)
        return part * attacked + (1 - part) * still

    return both


def _normal(x: Tensor, generator: torch.Generator) -> Tensor:
    """Standard normal noise like x."""
    return torch.randn(x.shape, generator=generator, device=x.device, dtype=x.dtype)


class Varying(Protocol):
    """An inner maximum that changes over the run, such as `Ramp` or `recipe.Staged`."""

    def at(self, done: float) -> Inner:
        """What it is when a part `done` of the run, from 0 to 1, is over; or another that varies."""


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
        check_ball(self.ball)
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


class Settings(NamedTuple):
    """What decides a run besides the network, the data and what is drawn; a checkpoint keeps it."""

    epochs: int
    lr: float | tuple[float, ...] | str  # "varies" for a function
    batch_size: int
    samples: int
    optimiser: str
    best: str | None
    network: list  # the name and the shape of each of its tensors


Gradient = Callable[[], Tensor]  # puts the gradient of a batch's loss into .grad; returns the loss, (E,)
Update = Callable[[nn.Module, Gradient, Callable[[], None]], Tensor]


def one_step(model: nn.Module, gradient: Gradient, descend: Callable[[], None]) -> Tensor:
    """What `fit` does with a batch: the gradient, then one step of the optimiser.  Returns the loss."""
    loss = gradient()
    descend()
    return loss


def fit(
    model: nn.Module,
    data: tuple[Tensor, Tensor],
    inner: Inner | Varying,
    *,
    epochs: int,
    lr: float | Sequence[float] | Callable[[float], float | Sequence[float]],
    batch_size: int = 100,
    optimiser: Optimiser = PLAIN,
    update: Update = one_step,
    generator: Generator | None = None,
    watch: Mapping[str, Callable[[nn.Module], float | Sequence[float]]] | None = None,
    best: str | None = None,
    checkpoint: str | os.PathLike | None = None,
) -> Iterator[Epoch]:
    """Minimise the mean of inner(model, x, y) over the data by stochastic gradient descent, in place.

    For one batch B after the other the optimiser moves θ along ∇_θ (1/|B|) Σ_{(x,y)∈B} inner(θ, x, y).
    An epoch deals the n samples, shuffled, to k batches whose sizes differ by at most one, so that no
    sample weighs more than another because few were left over. k is n / batch_size, rounded, and at
    least 1; so a batch can be half as large again as batch_size. Of 1,201 samples in batches of 100, 11
    batches have 100 and one has 101.

    model: a network, or a `Stack` of E: then what is minimised is the sum of E means, the gradients are
           each member's own, and every member ends with the weights that it would have had alone.
    data:  inputs (n, *shape) and labels (n,), on the device of the model.
    inner: (model, x, y) → (n,), the inner maximum max_δ ℓ or an estimate of it; or what gives one
           for the part of the run that is done by a method `at`, such as a `Ramp`.
    lr:    the step size, or one for each member of a stack, or a function that returns these from the
           part of the run that is done, from 0 to 1.
    optimiser: the rule for a step, such as `optimisers.SGD`, which without a momentum is the default.
    update: (model, gradient, descend) → the loss of a batch: when the two are called, and how often.
    generator: shuffles the batches; None means a fresh one seeded 0. With a sequence of E generators
           each member of a stack has batches of its own; with one all have the same.
    watch: what to measure after each epoch: names, and functions of the model (in eval mode) that
           return a number, or for a stack one a member.
    best:  one of those names: the run ends with the weights of the epoch where it was largest, the
           first of several; each member of a stack with those of its own. None means the last epoch's.
    checkpoint: a file that is written after each epoch. A run that finds it goes on from there, and ends
           with the weights that it would have had if what inner draws comes from the same generator,
           and if inner keeps nothing from batch to batch. For one network only.
    Yields an `Epoch` after each; nothing runs before you iterate.
    Raises ValueError for arguments that cannot be trained on and for the checkpoint of another run,
    FloatingPointError if the loss or the step size is not finite, or what `best` names is NaN.
    """
    watch, E = watch or {}, members_of(model)
    _check_run(model, data, epochs, lr, batch_size, watch, best, checkpoint)
    x, y = data
    generators = _generators(generator, E)
    memory, record, over = optimiser.start(model), None, 0
    if checkpoint is not None:
        rate = "varies" if callable(lr) else tuple(lr) if isinstance(lr, Sequence) else float(lr)
        network = [[name, list(value.shape)] for name, value in model.state_dict().items()]
        settings = Settings(int(epochs), rate, int(batch_size), len(x), repr(optimiser), best, network)
        kept = Checkpoint(Path(checkpoint), settings, "fit", generators[0])
        if (state := kept.load()) is not None:
            over, record = state["epoch"], state["record"]
            model.load_state_dict(state["model"])
            for now, then in zip(memory, state["memory"], strict=True):
                now.copy_(then)
    for number in range(over + 1, epochs + 1):
        orders = [torch.randperm(len(x), generator=g, device=g.device) for g in generators]
        parts = max(1, math.ceil(len(x) / batch_size - 0.5))  # never of one sample that is left over
        batches = torch.stack(orders, 1).expand(-1, E).to(x.device).tensor_split(parts)
        total = torch.zeros(E, dtype=torch.float64, device=x.device)
        for i, batch in enumerate(batches):
            done, rows = (number - 1 + i / len(batches)) / epochs, batch.flatten()
            loss_of, alpha = _at(inner, done), lr(done) if callable(lr) else lr
            if not _sizes(alpha, zero=True):
                raise FloatingPointError(
                    f"expected a step size 0 ≤ lr < ∞, got {alpha} in epoch {number}"
                )
            gradient = partial(_gradient, model, loss_of, x[rows], y[rows], number)
            loss = update(model, gradient, partial(optimiser.step, model, memory, alpha))
            total += loss * len(batch)
        model.zero_grad()  # so that the caller's next backward() does not add to these
        with models.evaluating(model), torch.no_grad():
            watched = {name: _numbers(model, measure(model)) for name, measure in watch.items()}
        if best is not None:
            record = _better(model, record, watched[best], f"{best!r} became nan in epoch {number}")
        if record is not None and number == epochs:
            model.load_state_dict(record[1])
        if checkpoint is not None:
            kept.save(
                {
                    "epoch": number,
                    "record": record,
                    "model": model.state_dict(),
                    "memory": memory,
                }
            )
        yield Epoch(number, _numbers(model, total / len(x)), watched)


def _at(inner: Inner | Varying, done: float) -> Inner:
    """The inner maximum when a part `done` of the run is over."""
    while hasattr(inner, "at"):
        inner = inner.at(done)
    return inner


Record = tuple[float | tuple[float, ...], dict[str, Tensor]]  # the best so far, and the state then


def _better(
    model: nn.Module, record: Record | None, found: float | tuple[float, ...], words: str
) -> Record:
    """The record, or what the model is now if that is better; each member of a stack by itself.

    Raises FloatingPointError with these words if what was found is NaN.
    """
    each = found if isinstance(model, Stack) else [found]
    if any(map(math.isnan, each)):
        raise FloatingPointError(words)
    now = copy.deepcopy(model.state_dict())
    if record is None:
        return found, now
    if not isinstance(model, Stack):
        return (found, now) if found > record[0] else record
    for e, (new, old) in enumerate(zip(each, record[0], strict=True)):
        if not new > old:
            for name, value in now.items():
                value[e] = record[1][name][e]
    return tuple(map(max, each, record[0])), now


def _gradient(model: nn.Module, inner: Inner, x: Tensor, y: Tensor, number: int) -> Tensor:
    """The gradient of each network's mean loss in .grad, and these losses, (E,)."""
    values = inner(model, x.clone(), y)  # a model that changes its input would change the next update's
    check_tensors(inner=values)
    if values.shape != y.shape[:1]:
        raise ValueError(f"expected an inner {tuple(y.shape[:1])}, got {tuple(values.shape)}")
    loss = values.view(-1, members_of(model)).mean(0)
    if not loss.isfinite().all():
        raise FloatingPointError(
            f"expected a finite loss, got {loss.detach().tolist()} in epoch {number}"
        )
    if not loss.requires_grad:
        own = [p.requires_grad for p in model.parameters()]
        raise ValueError(
            "expected a loss that depends on the parameters, some of which require a gradient, "
            f"got one that does not, and {sum(own)} of {len(own)} require it"
        )
    model.zero_grad()
    loss.sum().backward()
    return loss.detach()


def _check_run(model, data, epochs, lr, batch_size, watch, best, checkpoint) -> None:
    """Raise ValueError for what cannot be trained, or trained on."""
    if not isinstance(model, nn.Module):
        raise ValueError(f"expected an nn.Module, whose parameters can move, got {kind(model)}")
    if not isinstance(data, tuple | list) or [isinstance(t, Tensor) for t in data] != [True, True]:
        got = [kind(part) for part in data] if isinstance(data, tuple | list) else kind(data)
        raise ValueError(f"expected data to be two tensors, inputs and labels, got {got}")
    x, y = data
    if x.shape[:1] != y.shape[:1] or x.shape[:1] in ((), (0,)):
        raise ValueError(
            "data must be as many inputs as labels, at least one, "
            f"got {tuple(x.shape)} and {tuple(y.shape)}"
        )
    whole = isinstance(epochs, int) and isinstance(batch_size, int)
    if not whole or epochs < 0 or batch_size < 1 or not (callable(lr) or _sizes(lr)):
        raise ValueError(
            "expected whole numbers epochs ≥ 0 and batch_size ≥ 1, and 0 < lr < ∞, "
            f"got epochs={epochs!r}, batch_size={batch_size!r}, lr={lr!r}"
        )
    if best is not None and best not in watch:
        raise ValueError(f"expected best to be one of what is watched, {list(watch)}, got {best!r}")
    if isinstance(model, Stack) and checkpoint is not None:
        raise ValueError(f"expected one network for a checkpoint, got {len(model)}")


def _generators(generator: Generator | None, E: int) -> Sequence[torch.Generator]:
    """One generator for all of E networks, or one for each."""
    generator = generator or torch.Generator().manual_seed(0)
    generators = [generator] if isinstance(generator, torch.Generator) else generator
    if len(generators) not in (1, E) or len(set(generators)) < len(generators):
        raise ValueError(f"expected one generator, or a different one for each of {E}, got {generators}")
    return generators


def _sizes(lr: float | Sequence[float], zero: bool = False) -> bool:
    """Whether these can be step sizes; 0 only where a schedule ends there."""
    rates = lr if isinstance(lr, Sequence) and not isinstance(lr, str) else [lr]
    return all(isinstance(v, Real) and ((zero and v == 0) or 0 < v < math.inf) for v in rates)


def _numbers(model: nn.Module, found: Tensor | float | Sequence[float]) -> float | tuple[float, ...]:
    """What was found about a network as a number, about a stack as one number a member."""
    if not isinstance(model, Stack):
        return float(found)
    numbers = tuple(float(value) for value in found)
    if len(numbers) != len(model):
        raise ValueError(f"expected one number for each of {len(model)} networks, got {len(numbers)}")
    return numbers


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
