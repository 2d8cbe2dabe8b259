"""Checks of the introduction."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from .. import data, losses, training
from . import Code, Exercise, Numbers
from .comparing import shape_or_value

# ---- by hand ----

sizes = Numbers(
    expected=(17, 0.8, 6.4, 8 / 255 * math.sqrt(224 * 224 * 3)),
    labels=("the grey levels", "‖δ‖₂ of the digit", "‖δ‖₁ of the digit", "‖δ‖₂ of the photograph"),
    mistakes={
        "A pixel may go 8 levels up, 8 levels down, or stay: count all of them.": (
            16,
            0.8,
            6.4,
            8 / 255 * math.sqrt(224 * 224 * 3),
        ),
        "8 is how far a pixel may go in one direction. It may also go in the other, or stay.": (
            8,
            0.8,
            6.4,
            8 / 255 * math.sqrt(224 * 224 * 3),
        ),
        "A colour photograph has three numbers a pixel: d is 3 · 224².": (17, 0.8, 6.4, 8 / 255 * 224),
        "Your two ℓ2 norms are ℓ1 norms. Square the entries, add them, take the root: ε√d.": (
            17,
            6.4,
            6.4,
            8 / 255 * 224 * 224 * 3,
        ),
        "You left out the root: ‖δ‖₂ is the root of the sum of squares, ε√d.": (
            17,
            0.64,
            6.4,
            (8 / 255) ** 2 * 224 * 224 * 3,
        ),
        "A digit has 8 · 8 = 64 pixels: d is 64, not 8.": (
            17,
            0.1 * math.sqrt(8),
            0.8,
            8 / 255 * math.sqrt(224 * 224 * 3),
        ),
    },
    praise="the same ε is another length in every norm, and a longer one in every larger image.",
)

# ---- one step towards a target ----


def _step(
    x: Tensor,
    delta: Tensor,
    gradient: Tensor,
    alpha: float,
    eps: float,
    *,
    sign: int = -1,
    raw: bool = False,
    ball: bool = True,
    box: bool = True,
    image: bool = False,
) -> Tensor:
    """A step down the loss of the target; each option is a mistake."""
    delta = delta + sign * alpha * (gradient if raw else gradient.sign())
    if ball:
        delta = delta.clamp(-eps, eps)
    if box:
        delta = (x + delta).clamp(0, 1) - x
    return x + delta if image else delta


step = Code(
    reference=_step,
    cases=[
        (
            torch.tensor([[0.5, 0.02, 0.98, 0.4]]),
            torch.tensor([[0.04, 0.0, 0.0, -0.09]]),
            torch.tensor([[2.0, 3.0, -0.5, 1.0]]),
            0.05,
            0.1,
        ),
        (
            torch.tensor([[0.9, 0.1], [0.5, 0.5]]),
            torch.tensor([[0.1, -0.1], [0.0, 0.2]]),
            torch.tensor([[-1.0, 0.2], [0.0, -4.0]]),
            0.1,
            0.2,
        ),
    ],
    mistakes={
        "You went up. The loss is that of the *target*, so this attacker wants it small: subtract.": (
            partial(_step, sign=1)
        ),
        "You multiplied α by the gradient itself. Take its sign, so that every pixel moves by α.": (
            partial(_step, raw=True)
        ),
        "A pixel has changed by more than ε: clip δ to [−ε, ε] after the step.": partial(
            _step, ball=False
        ),
        "x + δ has left [0, 1]: clip the image, then subtract x.": partial(_step, box=False),
        "A pixel has changed by more than ε, and x + δ has left [0, 1]: clip twice after the step.": (
            partial(_step, ball=False, box=False)
        ),
        "You returned the image x + δ. Return δ.": partial(_step, image=True),
        "You clipped δ to [0, 1]. The image x + δ must stay in [0, 1]; δ may be negative.": (
            lambda x, delta, gradient, alpha, eps: (
                (delta - alpha * gradient.sign()).clamp(-eps, eps).clamp(0, 1)
            )
        ),
    },
    praise="downhill towards the target, and back into the set.",
)

# ---- two risks ----


def _risks(table: Tensor) -> Tensor:
    """Of losses (n, m), column 0 without a perturbation: the mean of it, and of the largest a row."""
    return torch.stack([table[:, 0].mean(), table.amax(1).mean()])


two_risks = Code(
    reference=_risks,
    cases=[
        (torch.tensor([[0.1, 2.0, 0.3, 0.2], [0.4, 0.1, 0.5, 3.0], [0.1, 0.6, 0.2, 0.4]]),),
        (torch.tensor([[1.0, 0.5], [0.0, 4.0]]),),
    ],
    mistakes={
        "You chose one perturbation for all images: the maximum of the column means. The adversary sees "
        "the image first, so take the maximum of each row, then the mean.": (
            lambda table: torch.stack([table[:, 0].mean(), table.mean(0).amax()])
        ),
        "You took the mean over perturbations too, as if they were drawn at random. The adversary "
        "chooses: the second number needs the maximum of each row.": (
            lambda table: torch.stack([table[:, 0].mean(), table.mean()])
        ),
        "You took the largest entry of the whole table. Each image has its own worst perturbation: take "
        "the maximum of each row, then the mean.": (
            lambda table: torch.stack([table[:, 0].mean(), table.amax()])
        ),
        "The first number is the risk without an adversary, from column 0 alone. You averaged over all "
        "columns.": lambda table: torch.stack([table.mean(), table.amax(1).mean()]),
        "The right numbers in the wrong order: first the risk, then the adversarial risk.": (
            lambda table: _risks(table).flip(0)
        ),
    },
    praise="the maximum is inside the mean: the adversary moves after seeing the image.",
)

# ---- break it: outside the ball ----


def _shifted(x: Tensor, down: int, right: int) -> Tensor:
    """The images moved by up to a pixel; what comes in is 0, what goes out is gone."""
    height, width = x.shape[-2:]
    return pad(x, (1, 1, 1, 1))[..., 1 - down :, 1 - right :][..., :height, :width]


def _all_shifts(x: Tensor) -> Tensor:
    """Every image in its nine places, (9, n, C, H, W); the place 4 is where it was."""
    return torch.stack([_shifted(x, *way) for way in itertools.product((-1, 0, 1), repeat=2)])


@cache
def _victim() -> tuple[nn.Module, Tensor, Tensor]:
    """The robust network of the book and 200 test images."""
    digits = data.load("digits")
    return training.reference("robust", digits), digits.x_test[:200], digits.y_test[:200]


@dataclass(frozen=True)
class _Outside(Exercise):
    praise: str = (
        "of the images that withstood the attack in the ball, one pixel takes nearly all. Robust means "
        "robust against a set."
    )

    def examine(self, answer: Callable) -> str | None:
        """Whether every image is moved by at most a pixel, and to where the network does worst."""
        if not callable(answer):
            return f"expected a function worst_shift(model, x, y), got {answer!r}."
        model, x, y = _victim()
        moved = answer(model, x.clone(), y.clone())
        if not isinstance(moved, Tensor) or moved.shape != x.shape:
            shape = tuple(x.shape)
            return f"expected the moved images, a tensor of shape {shape}, got {shape_or_value(moved)}."
        places = _all_shifts(x)
        reached = (places == moved).flatten(2).all(2)  # (9, n)
        if not reached.any(0).all():
            wrong = int((~reached.any(0)).nonzero()[0])
            for way in itertools.product((-1, 0, 1), repeat=2):
                if torch.equal(moved[wrong], x[wrong].roll(way, (-2, -1))):
                    return (
                        "what leaves your images on one side comes in again on the other, as roll does "
                        "it. Move into a frame of zeros instead."
                    )
            return (
                f"your image {wrong} is not the image {wrong} moved by at most one pixel in each "
                "direction, with 0 where nothing was."
            )
        with torch.no_grad():
            right = torch.stack([model(place).argmax(1) == y for place in places])
            left = (model(moved).argmax(1) == y).double().mean().item()
            loss = torch.stack([losses.cross_entropy(model(place), y) for place in places])
        truth = right.all(0).double().mean().item()
        if left <= truth + 0.02:
            return None
        told = (
            f"the network is still right on {left:.1%}; the worst of the nine places leaves {truth:.1%}."
        )
        if reached[4].all():
            return f"{told} You moved no image."
        if reached.all(1).any():
            return f"{told} You moved all images the same way. The adversary chooses for each image."
        if reached.gather(0, loss.argmin(0)[None]).all():
            return f"{told} You took the place with the smallest loss, the network's favourite."
        return f"{told} Try all nine places, and keep for each image the one with the largest loss."


outside = _Outside()

# ---- the chapter's exercises, in its order ----

EXERCISES = {
    "One step towards a target": step,
    "How long is a perturbation?": sizes,
    "Two risks from one table": two_risks,
    "Outside the ball": outside,
}
