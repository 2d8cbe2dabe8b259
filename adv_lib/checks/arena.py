"""The arena: six sealed defenses for the digits, and one score for whoever attacks them.

Every defense is a function of images, and answers with logits. Some hide, some are honest. An attack
is a function (defense, x, y, ball) → δ in Δ(x), the same for all six; its score on a defense is the
share of samples that are still right, so low is good for the attacker. For a class: `ranking`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, partial

import torch
from torch import Tensor, nn

from .. import attacks, data, losses, models, suite, training
from ..evaluation import Attack, check_allowed
from ..models import evaluating
from ..threat import Ball

BALL = Ball(math.inf, 0.15, (0, 1))
LEVELS = 4  # steps between black and white of those who round
IMAGES, DRAWS = 100, 10  # how many images an attack is judged by, and answers to each


class Defense(nn.Module):
    """A network, and what its owner does around it."""

    claim = "A network, as it is."

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)


class Trained(Defense):
    """Honest: adversarial training against ten steps of PGD."""

    claim = "Trained on attacked images, with ten steps of PGD."


class Cautious(Defense):
    """Honest: adversarial training against a ball a third larger, by one step from a random start."""

    claim = "Trained on attacked images, with one step from a random point of a larger ball."


class Sure(Defense):
    """Hides from the cross-entropy: logits 200 times as large, so that its gradient is 0."""

    claim = "So sure of its answers that attackers find no direction."

    def forward(self, x: Tensor) -> Tensor:
        return 200 * self.model(x)


class Rounding(Defense):
    """Hides from every gradient: pixels in five levels."""

    claim = "Noise in the pixels is rounded away before the network sees them."

    def forward(self, x: Tensor) -> Tensor:
        return self.model((LEVELS * x).round() / LEVELS)


class Decoy(Defense):
    """Hides from whoever climbs towards the strongest rival: that is always a class which never wins."""

    claim = "Attackers run after one class, and never reach it."

    def forward(self, x: Tensor) -> Tensor:
        z = 20 * self.model(x)
        first, winner = z.max(1, keepdim=True)
        return z.scatter(1, (winner + 1) % z.shape[1], first - 0.4)


class Dithering(Defense):
    """Hides from gradients and from searches: noise on every pixel, then five levels.

    On average over the draws a pixel is as gray as it was.
    """

    claim = "No two answers are computed alike."

    def __init__(self, model: nn.Module):
        super().__init__(model)
        self.generator = torch.Generator().manual_seed(0)

    def forward(self, x: Tensor) -> Tensor:
        noise = torch.rand(x.shape, generator=self.generator, dtype=x.dtype) - 0.5
        return self.model((LEVELS * x + noise).round() / LEVELS)


KINDS = {
    "Ash": Sure,
    "Birch": Trained,
    "Cedar": Rounding,
    "Elm": Dithering,
    "Fir": Cautious,
    "Gorse": Decoy,
}


@cache
def sealed() -> Mapping[str, Defense]:
    """The six, by the names that they go by, in eval mode; trained when they are first asked for."""
    digits = data.load("digits")
    train = digits.x_train, digits.y_train
    found = {}
    for number, (name, kind) in enumerate(KINDS.items()):
        generator = torch.Generator().manual_seed(100 + number)
        network = models.mlp([64, 60, 10], generator)
        inner = _clean
        if kind is Trained:
            inner = training.adversarial(partial(attacks.pgd, steps=10, keep="last"), BALL)
        if kind is Cautious:
            inner = training.adversarial(_one_step, Ball(math.inf, 0.2, (0, 1)))
        for _ in training.fit(
            network, train, inner, epochs=15, lr=0.2, batch_size=64, generator=generator
        ):
            pass
        found[name] = kind(network).eval()
    return found


def _clean(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return losses.cross_entropy(model(x), y)


def _one_step(model: nn.Module, x: Tensor, y: Tensor, ball: Ball) -> Tensor:
    start = ball.sample(x)
    return attacks.pgd(model, x, y, ball, steps=1, step_size=float(ball.eps), start=start, keep="last")


# ---- the score ----


def judged() -> tuple[Tensor, Tensor]:
    """The images and labels that attacks are judged by."""
    digits = data.load("digits")
    return digits.x_test[:IMAGES], digits.y_test[:IMAGES]


def nothing(defense: Defense, x: Tensor, y: Tensor, ball: Ball) -> Tensor:
    """No attack: δ = 0."""
    return torch.zeros_like(x)


def score(attack: Attack) -> dict[str, float]:
    """The share of images, in percent, that each defense still gets right, the mean over 10 answers.

    Raises ValueError if the attack does not return a δ in Δ(x) for every image.
    """
    x, y = judged()
    found = {}
    for name, defense in sealed().items():
        seed(defense, 1)
        delta = attack(defense, x.clone(), y.clone(), BALL)
        check_allowed(f"the attack on {name}", delta, x, BALL)
        found[name] = right(defense, x + delta.detach(), y)
    return found


def seed(defense: Defense, number: int) -> None:
    """Let a defense that draws at random draw the same again."""
    if hasattr(defense, "generator"):
        defense.generator.manual_seed(number)


def right(defense: Defense, x: Tensor, y: Tensor) -> float:
    """In percent, over draws that no attack has seen."""
    seed(defense, 2)
    with evaluating(defense), torch.no_grad():
        answers = torch.stack([losses.correct(defense(x), y) for _ in range(DRAWS)])
    return 100 * answers.double().mean().item()


def best_known(
    defense: Defense, x: Tensor, y: Tensor, ball: Ball, generator: torch.Generator | None = None
) -> Tensor:
    """The attack that each defense needs, by those who built it.

    generator: draws where the ascents start; None means at δ = 0.
    """
    start = None if generator is None else ball.sample(x, generator)
    if not isinstance(defense, Rounding | Dithering):
        return every_target(defense, x, y, ball, generator)
    loss = losses.margin_loss  # on average these two do nothing, so climb what is behind them
    delta = attacks.apgd(defense.model, x, y, ball, start=start, loss=loss)
    with torch.no_grad():
        left = losses.correct(defense(x + delta), y)
    if isinstance(defense, Rounding) and left.any():
        rest = x[left], y[left], ball.subset(left)
        delta[left] = attacks.square(defense, *rest, queries=1000, generator=generator)
    return delta


def every_target(
    defense: Defense, x: Tensor, y: Tensor, ball: Ball, generator: torch.Generator | None = None
) -> Tensor:
    """Auto-PGD towards every other class.  generator: as for `best_known`."""

    def climb(model: nn.Module, x: Tensor, y: Tensor, ball: Ball, goal: Tensor) -> Tensor:
        start = None if generator is None else ball.sample(x, generator)
        towards = partial(losses.targeted, targets=goal)
        return attacks.apgd(model, x, y, ball, steps=30, start=start, loss=towards)

    return suite.every_target(climb)(defense, x, y, ball)


BASELINES = {"no attack": nothing, "PGD": attacks.pgd, "best known": best_known}


@cache
def baselines() -> dict[str, dict[str, float]]:
    """What no attack, PGD as it comes and the best attack known leave of each defense, in percent."""
    return {name: score(attack) for name, attack in BASELINES.items()}


@dataclass(frozen=True)
class Ranking:
    """Who took how much, the best first.

    scores: attack → defense → percent still right.  failed: attack → why it has no score.
    """

    scores: Mapping[str, Mapping[str, float]]
    failed: Mapping[str, str]

    def _repr_markdown_(self) -> str:
        from ..plots import Table

        mean = {name: sum(each.values()) / len(each) for name, each in self.scores.items()}
        rows = [
            (name, *(f"{self.scores[name][defense]:.0f}" for defense in KINDS), f"{mean[name]:.1f}")
            for name in sorted(mean, key=mean.get)
        ]
        table = Table(["still right, %", *KINDS, "mean"], rows)._repr_markdown_()
        return "\n".join([table, *(f"\n{name}: {why}" for name, why in self.failed.items())])


def ranking(entries: Mapping[str, Callable]) -> Ranking:
    """The table of a competition: attacks in rows, the best first, the six defenses in columns.

    entries: who handed it in → (defense, x, y, ball) → δ. One that raises or leaves Δ(x) has no line,
    and the table says why.
    """
    scores, failed = dict(baselines()), {}
    for name, attack in entries.items():
        try:
            scores[name] = score(attack)
        except Exception as error:  # somebody else's code may raise anything
            failed[name] = f"{type(error).__name__}: {error}"
    return Ranking(scores, failed)
