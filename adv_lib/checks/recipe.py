"""Checks of chapter 10, the recipe."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, one_hot

from .. import attacks, data, losses, models, optimisers, recipe, schedules, training
from ..stack import Stack
from ..threat import Ball
from . import Code, Exercise, Numbers, Words
from .comparing import as_tensor, show_shape

# ---- an interval for the mean difference ----


def _ends(mean: Tensor, half: Tensor) -> Tensor:
    return torch.stack([mean - half, mean + half])


def _interval(first: Tensor, second: Tensor, t: float) -> Tensor:
    d = first - second
    return _ends(d.mean(), t * d.std() / math.sqrt(len(d)))


def _unpaired(first: Tensor, second: Tensor, t: float) -> Tensor:
    error = (first.var() + second.var()).sqrt() / math.sqrt(len(first))
    return _ends((first - second).mean(), t * error)


def _by_n(first: Tensor, second: Tensor, t: float) -> Tensor:
    d = first - second
    return _ends(d.mean(), t * d.std(correction=0) / math.sqrt(len(d)))


def _half(first: Tensor, second: Tensor, t: float) -> Tensor:
    return t * (first - second).std() / math.sqrt(len(first))


interval = Code(
    reference=_interval,
    cases=[
        (torch.tensor([52.0, 49.0, 55.0]), torch.tensor([50.5, 48.0, 52.5]), 4.303),
        (torch.tensor([47.5, 51.0, 50.0, 53.0]), torch.tensor([48.0, 49.0, 50.5, 50.0]), 3.182),
    ],
    mistakes={
        "You treated the runs as independent. With a seed in common they are pairs: s is the deviation "
        "of the differences d, which is often smaller.": _unpaired,
        "You divided by n under the root of s. The mean is estimated from the same d, so it is n − 1, "
        "which is what torch.std does by itself.": _by_n,
        "The deviation is that of one difference. That of their mean is s/√n.": lambda a, b, t: _ends(
            (a - b).mean(), t * (a - b).std()
        ),
        "You divided s by n. The variance of a mean is s²/n, its deviation s/√n.": lambda a, b, t: _ends(
            (a - b).mean(), t * (a - b).std() / len(a)
        ),
        "You subtracted the first from the second. Turn it: d = first − second.": lambda a, b, t: (
            _interval(b, a, t)
        ),
        "You left out the middle: the interval lies around the mean of d, not around 0.": (
            lambda a, b, t: _ends(torch.tensor(0.0), _half(a, b, t))
        ),
        "Those are the middle and half the width. Return the two ends.": lambda a, b, t: torch.stack(
            [(a - b).mean(), _half(a, b, t)]
        ),
    },
    praise="what the seeds have in common is in neither end.",
)

# ---- what else differs ----

REASONS = ("stopping", "weight decay", "nothing", "the attack", "selection")
confounded = Words(
    truth=REASONS,
    labels=("comparison A", "comparison B", "comparison C", "comparison D", "comparison E"),
    among=REASONS,
    why=(
        "One is taken at its best epoch, the other at its last, and adversarial training overfits. The "
        "gap may be that of stopping: stop both alike, then compare the losses.",
        "The two also differ in weight decay, 5e-4 against 2e-4, and that alone moves robust accuracy "
        "as much as most losses do. Give both the same.",
        "Decay and epochs are the same, the choice was made on other images than the judgement, and the "
        "attack is a strong one. Only the losses differ: ask for seeds, and no more.",
        "Label smoothing makes the cross-entropy flat, and an attack that climbs nothing else goes "
        "astray. Perhaps it only looks better: attack the margin too.",
        "The best of twelve numbers is large even where all twelve settings are alike, and it was "
        "picked on the images that judge it. Choose on a validation set, and give both as many tries.",
    ),
    praise="only one of the five compares what it says it compares.",
)

# ---- what label smoothing asks for ----

gap = Numbers(
    expected=(91.0, 73 / 3, 3.0, 0.91, 0.73),
    labels=(
        "p_y/p_j for s = 0.1 and K = 10",
        "p_y/p_j for s = 0.3 and K = 10",
        "p_y/p_j for s = 0.5 and K = 2",
        "p_y for s = 0.1 and K = 10",
        "p_y for s = 0.3 and K = 10",
    ),
    mistakes={
        "You left out the part that goes back to y: every class gets s/K, and y is one of them.": (
            90.0,
            70 / 3,
            2.0,
            0.9,
            0.7,
        ),
        "You shared s among the K − 1 others. Here all K classes get a part, y too.": (
            81.0,
            21.0,
            1.0,
            0.9,
            0.7,
        ),
        "The ratio is upside down: class y is the likely one, so p_y/p_j is above 1.": (
            1 / 91,
            3 / 73,
            1 / 3,
            0.91,
            0.73,
        ),
        "Those are the gaps z_y − z_j, the logarithms. The ratio of the probabilities is e to that.": (
            math.log(91),
            math.log(73 / 3),
            math.log(3),
            0.91,
            0.73,
        ),
        "You divided by all other classes together. It is one of them, j, that z_j belongs to.": (
            91 / 9,
            73 / 27,
            3.0,
            0.91,
            0.73,
        ),
    },
    praise="the network is asked to be this sure, and no surer.",
)

# ---- label smoothing ----


def _smoothed(z: Tensor, y: Tensor, s: float) -> Tensor:
    return cross_entropy(z, y, label_smoothing=s, reduction="none")


def _plain(z: Tensor, y: Tensor) -> Tensor:
    return cross_entropy(z, y, reduction="none")


def _towards(z: Tensor, q: Tensor) -> Tensor:
    return -(q * z.log_softmax(1)).sum(1)


def _among_others(z: Tensor, y: Tensor, s: float) -> Tensor:
    at_y, K = one_hot(y, z.shape[1]), z.shape[1]
    return _towards(z, (1 - s) * at_y + s / (K - 1) * (1 - at_y))


def _probability(z: Tensor, y: Tensor, s: float) -> Tensor:
    p = z.softmax(1).gather(1, y[:, None])[:, 0]
    return -((1 - s) * p + s / z.shape[1]).log()


@dataclass(frozen=True)
class _OneEach(Code):
    """Code that returns a number a sample, for which PyTorch has a mean ready."""

    def unfit(self, name: str, got: Any, expected: Any) -> str | None:
        if as_tensor(got) is not None and as_tensor(got).ndim == 0:
            return (
                f"expected one number a sample, {show_shape(expected)}, got a single number. Take no "
                'mean over the batch; cross_entropy leaves it out with reduction="none".'
            )
        return super().unfit(name, got, expected)


smoothed = _OneEach(
    reference=_smoothed,
    cases=[
        (torch.tensor([[2.0, 0.0, -1.0], [0.0, 1.0, 3.0]]), torch.tensor([0, 1]), 0.1),
        (torch.tensor([[1.0, -2.0], [0.5, 0.0], [-3.0, 4.0]]), torch.tensor([0, 1, 1]), 0.3),
    ],
    mistakes={
        "You shared s among the K − 1 other classes. Every class gets s/K, y too: the target is "
        "(1 − s) e_y + s/K.": _among_others,
        "You smoothed the probability inside the logarithm. It is the label that is smoothed: a mean of "
        "the −log p_k, weighted by the target.": _probability,
        "The second term is missing: besides (1 − s) times the cross-entropy there is s times the mean "
        "of −log p_k over all classes.": lambda z, y, s: (1 - s) * _plain(z, y),
        "s and 1 − s are swapped: for s = 0 it has to be the cross-entropy.": lambda z, y, s: _smoothed(
            z, y, 1 - s
        ),
        "You summed −log p_k with the weight s. Each class has s/K: it is the mean over the classes.": (
            lambda z, y, s: (1 - s) * _plain(z, y) - s * z.log_softmax(1).sum(1)
        ),
        "You took K from the number of samples. It is the number of classes, z.shape[1].": (
            lambda z, y, s: (1 - s) * _plain(z, y) - s * z.log_softmax(1).sum(1) / len(z)
        ),
    },
    praise="two lines, and no logit has a reason to grow for ever.",
)

# ---- two gradients from one pass ----


@dataclass
class _Gradients:
    """(∇_θ, ∇_v) of a loss of ⟨θ, v⟩, and how often they were asked for.

    slope: the derivative of the loss in ⟨θ, v⟩.
    """

    formula: str
    slope: Callable[[Tensor], Tensor]
    asked: int = 0

    def __call__(self, theta: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        self.asked += 1
        slope = self.slope((theta * v).sum())
        return slope * v, slope * theta

    def __str__(self) -> str:
        return f"of {self.formula}"


def _free(
    gradients: Callable,
    x: Tensor,
    delta: Tensor,
    theta: Tensor,
    eps: float,
    rate: float,
    replays: int,
    *,
    passes: int = 1,
    fresh: bool = False,
    ball: bool = True,
    box: bool = True,
    sign: bool = True,
    down: int = 1,
    up: int = 1,
) -> Tensor:
    """θ and δ after the replays; the options are what can go wrong."""
    for _ in range(replays):
        delta = torch.zeros_like(delta) if fresh else delta
        g_theta, g_x = gradients(theta, x + delta)
        delta = delta + up * eps * (g_x.sign() if sign else g_x)
        delta = delta.clamp(-eps, eps) if ball else delta
        delta = (x + delta).clamp(0, 1) - x if box else delta
        if passes == 2:
            g_theta, _ = gradients(theta, x + delta)
        theta = theta - down * rate * g_theta
    return torch.cat([theta, delta])


@dataclass(frozen=True)
class _Free(Code):
    """Code that may ask for gradients once a replay."""

    def examine(self, answer: Callable) -> str | None:
        return super().examine(answer) or self._too_often(answer)

    def _too_often(self, answer: Callable) -> str | None:
        """What is wrong with an answer that is right, and pays too much for it."""
        for name, case in self.named_cases():
            (gradients, *_, replays), _ = self._called(answer, case)
            if gradients.asked > replays:
                return (
                    f"for {name} the numbers are right, and you asked for gradients {gradients.asked} "
                    f"times. One pass a replay gives both: {replays} times."
                )
        return None


_SQUARE = _Gradients("(⟨θ, v⟩ − 1)²/2", lambda u: u - 1)
_TANH = _Gradients("tanh⟨θ, v⟩", lambda u: 1 - u.tanh() ** 2)

free = _Free(
    reference=_free,
    cases=[
        (_SQUARE, *(torch.tensor(v) for v in ([0.5, 0.95], [0.1, 0.05], [1.0, -2.0])), 0.2, 0.5, 2),
        (_TANH, *(torch.tensor(v) for v in ([0.3, 0.1], [-0.1, 0.0], [0.5, -1.0])), 0.2, 0.4, 3),
    ],
    mistakes={
        "You asked for the gradient in θ again after δ had moved. That is a second pass: both gradients "
        "come from the one at the old δ.": partial(_free, passes=2),
        "You set δ to 0 in every replay. It goes on from where it was, so that the replays add up to an "
        "attack.": partial(_free, fresh=True),
        "δ leaves the ball: clip it to [−ε, ε] after every step.": partial(_free, ball=False),
        "x + δ leaves [0, 1]: clip it there after every step.": partial(_free, box=False),
        "δ moves by ε times the sign of the gradient, whatever its size.": partial(_free, sign=False),
        "θ climbs. The network goes down the loss, and only δ goes up.": partial(_free, down=-1),
        "δ goes down the loss, and so helps the network. It goes up: plus the sign.": partial(
            _free, up=-1
        ),
    },
    praise="an attack that costs nothing, and is always a step behind.",
)

# ---- the smallest experiment ----

plan = Numbers(
    expected=(4.0, 0.25, 4.0, 2.0),
    labels=(
        "seeds for half the effect",
        "seeds for half the deviation",
        "seeds without pairs, for ρ = 0.75",
        "runs one factor at a time, for 3 factors",
    ),
    mistakes={
        "You forgot the square: the error of a mean shrinks with √n, so seeds go with (s/effect)².": (
            2.0,
            0.5,
            4.0,
            2.0,
        ),
        "You forgot the square everywhere: variances count, (s/effect)², not their roots.": (
            2.0,
            0.5,
            2.0,
            2.0,
        ),
        "The first two are turned around: a smaller effect takes more seeds, a smaller deviation "
        "fewer.": (0.25, 4.0, 4.0, 2.0),
        "You divided by ρ. The variance of a difference of pairs is 2σ²(1 − ρ), of independent runs "
        "2σ².": (4.0, 0.25, 4 / 3, 2.0),
        "The third compares variances, 2σ² with 2σ²(1 − ρ). You took the root of their ratio.": (
            4.0,
            0.25,
            2.0,
            2.0,
        ),
        "The third is upside down: independent runs need more seeds than pairs do.": (
            4.0,
            0.25,
            0.25,
            2.0,
        ),
        "The last counts the settings of one factor at a time. An effect compares two of the four, N/4 "
        "runs with N/4; the full design compares N/2 with N/2.": (4.0, 0.25, 4.0, 4.0),
        "The last counts the factors. Ask how many of N runs stand on each side of an effect: N/4 one "
        "at a time, N/2 in the full design.": (4.0, 0.25, 4.0, 3.0),
        "The last counts settings, 4 and 8. What matters is how many of N runs stand on each side of an "
        "effect: N/4 one at a time, N/2 in the full design.": (4.0, 0.25, 4.0, 0.5),
    },
    praise="pairs and a full design are the cheapest GPUs that there are.",
)

# ---- sell a worse network ----

SEEDS = 8
BALL = Ball(math.inf, 0.1, (0, 1))


@cache
def _judged(share: float) -> tuple[float, float]:
    """The accuracy under PGD-10 and in the worst case, in percent, mean over the seeds, for this s."""
    digits = data.load("digits")
    generators = [torch.Generator().manual_seed(500 + i) for i in range(SEEDS)]
    seeds = [torch.Generator().manual_seed(i) for i in range(SEEDS)]
    stack = Stack([models.mlp([64, 50, 50, 10], seed, norm=True) for seed in seeds]).train()
    pgd = partial(attacks.pgd, steps=5, keep="last")
    inner = training.adversarial(pgd, BALL, loss=recipe.smoothing([share] * SEEDS), mode="train")
    run = training.fit(
        stack,
        (digits.x_train[:600], digits.y_train[:600]),
        inner,
        epochs=15,
        lr=schedules.step(0.05),
        batch_size=60,
        optimiser=optimisers.SGD(momentum=0.9, weight_decay=5e-4),
        generator=generators,
    )
    for _ in run:
        pass
    stack.eval()
    x, y = stack.rows(digits.x_test), stack.rows(digits.y_test)

    def right(*deltas: Tensor) -> float:
        with torch.no_grad():
            alive = torch.stack([losses.correct(stack(x + delta), y) for delta in deltas]).all(0)
        return 100 * alive.double().mean().item()

    climbed = (losses.log_odds, losses.margin_loss)
    worst = right(*(attacks.apgd(stack, x, y, BALL, steps=50, loss=loss) for loss in climbed))
    return right(attacks.pgd(stack, x, y, BALL, steps=10, loss=losses.cross_entropy)), worst


class _Sell(Exercise):
    praise = "the number in the brochure rose, and the network got worse. Now you know what to ask for."

    def examine(self, answer: Any) -> str | None:
        """Under PGD-10 the accuracy must rise, and in the worst case fall by at least a point.

        At 1/3 both do by three deviations of what other rounding changes, on all test digits.
        """
        share = as_tensor(answer)
        if share is None or share.ndim or not 0 < share.item() < 1:
            return f"expected one number between 0 and 1, the share s, got {answer!r}."
        (shown, worst), (shown_before, worst_before) = _judged(share.item()), _judged(0.0)
        rise, fall = shown - shown_before, worst_before - worst
        said = (
            f"with s = {share.item():g} the accuracy under PGD-10 changes by {rise:+.1f} points, and "
            f"that in the worst case by {-fall:+.1f}"
        )
        if fall < 1 and rise <= 0:
            return f"{said}. There is nothing to sell yet: smooth more."
        if fall < 1:
            return f"{said}. Not worse enough: the worst case has lost less than a point. Smooth more."
        if rise <= 0:
            return f"{said}. Nobody buys that: it is worse, and looks no better. Smooth less."
        return None


sell = _Sell()

# ---- the chapter's exercises, in its order ----

EXERCISES = {
    "A paired interval": interval,
    "The smallest experiment": plan,
    "The confounded comparison": confounded,
    "How far apart?": gap,
    "Label smoothing": smoothed,
    "Sell a worse network": sell,
    "Two gradients from one pass": free,
}
