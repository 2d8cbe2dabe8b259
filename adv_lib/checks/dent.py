"""Checks of chapter 8, dent and how to judge a defense that adapts."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from functools import cache, partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .. import attacks, data, losses, models, training
from ..dent import Dent
from ..threat import Ball
from . import Code, Exercise, NamedCases, Numbers
from .comparing import copies, shape_or_value

# ---- the entropy ----

slopes = Numbers(
    expected=(1.5, -0.25, 0.125, 0.0, 0.75),
    labels=("H", "the slope in z₁", "the slope in z₂", "the slope at four equal logits", "the change"),
    mistakes={
        "Those are nats. Measured in units of log 2, log ½ is −1.": (
            1.5 * math.log(2),
            -0.25 * math.log(2),
            0.125 * math.log(2),
            0.0,
            0.75 * math.log(2),
        ),
        "The slope is −p_k(log p_k + H): you left out H, which is there because the probabilities must "
        "add up to 1.": (1.5, 0.5, 0.5, 0.5, 0.0),
        "The sign of the slopes: the entropy falls when the largest logit grows.": (
            1.5,
            0.25,
            -0.125,
            0.0,
            -0.75,
        ),
        "The last is a step down: z − 2∇H. Yours went up.": (1.5, -0.25, 0.125, 0.0, -0.75),
        "In the last, z₂ moves as well, the other way: the lead changes by both.": (
            1.5,
            -0.25,
            0.125,
            0.0,
            0.5,
        ),
        "That is the change for a step of size 1, and it was 2.": (1.5, -0.25, 0.125, 0.0, 0.375),
    },
    praise="the leader's lead grew. That is no accident, and a theorem below.",
)


def _entropy(z: Tensor) -> Tensor:
    log_p = torch.log_softmax(z, 1)
    return -(log_p.exp() * log_p).sum(1)


def _of_logits(z: Tensor) -> Tensor:
    return -(z * z.clamp(min=1e-12).log()).sum(1)


entropy = Code(
    reference=_entropy,
    cases=[
        (torch.tensor([[1.0, 0.0, 2.0], [0.0, 0.0, 0.0]]),),
        (torch.tensor([[0.5, -1.0], [0.0, 3.0], [2.0, 2.0]]),),
        (torch.tensor([[300.0, 0.0, -5.0], [0.0, 1.0, 0.0]]),),
    ],
    mistakes={
        "0 · log 0 is NaN for the computer. Take log_softmax, and its exponential for p.": lambda z: (
            -(z.softmax(1) * z.softmax(1).log()).sum(1)
        ),
        "Without the minus sign it is negative.": lambda z: -_entropy(z),
        "z are logits, not probabilities: softmax first.": _of_logits,
        "That is in bits; the book uses the natural logarithm.": lambda z: _entropy(z) / math.log(2),
        "That is −Σ log p_k: each term must be weighed by its p_k.": lambda z: (
            -torch.log_softmax(z, 1).sum(1)
        ),
        "That is −log of the largest p, the loss of the prediction. It is at most H.": lambda z: (
            -torch.log_softmax(z, 1).amax(1)
        ),
        "The softmax runs over the classes, axis 1, and yours over the batch.": lambda z: (
            -(torch.softmax(z, 0) * torch.log_softmax(z, 0)).sum(1)
        ),
    },
    praise="0 for a sure prediction, log K for none.",
)

# ---- functions of a network ----


class _Unchanged(NamedCases):
    """The answer takes a network, or a defense, which must be the same afterwards."""

    advice = "not what was expected. Compare with adv_lib.dent on a small batch, step by step."

    def spoilt(self, name: str, case: tuple, arguments: tuple) -> str | None:
        before, after = case[0].state_dict(), arguments[0].state_dict()
        if all(torch.equal(before[name], value) for name, value in after.items()):
            return None
        return (
            f"{name}: your function changed the network. The next batch would begin where this one "
            "ended: work on a copy."
        )


def _network(seed: int) -> tuple[nn.Module, Tensor, Tensor]:
    """A small network with BatchNorm in eval mode, inputs (6, 4), labels of its own with one wrong."""
    generator = torch.Generator().manual_seed(seed)
    model = models.mlp([4, 8, 3], generator, norm=True).double().eval()
    x = torch.rand(6, 4, generator=generator, dtype=torch.float64)
    with torch.no_grad():
        for p in model.parameters():
            p += 0.5 * torch.randn(p.shape, generator=generator, dtype=torch.float64)
        y = model(x).argmax(1)
    return model, x, (y + (torch.arange(6) == 5)) % 3


def _adapted(
    model, x, steps, lr, *, all_of_it=False, scales_only=False, sign=1, total=False, train=False
) -> Tensor:
    """The logits after steps of SGD on the entropy; each option is a mistake."""
    model = copy.deepcopy(model).train(train)
    moving = [
        p
        for module in model.modules()
        if all_of_it or isinstance(module, nn.BatchNorm1d)
        for name, p in module.named_parameters(recurse=False)
        if not (scales_only and name == "bias")
    ]
    with torch.enable_grad():
        for _ in range(steps):
            values = _entropy(model(x))
            gradients = torch.autograd.grad(values.sum() if total else values.mean(), moving)
            with torch.no_grad():
                for p, gradient in zip(moving, gradients, strict=True):
                    p -= sign * lr * gradient
    with torch.no_grad():
        return model(x)


class _Episodic(_Unchanged):
    def examine(self, answer: Callable) -> str | None:
        complaint = super().examine(answer)
        if complaint is None:
            case = self.cases()["five steps"]
            try:
                with torch.no_grad():
                    answer(*copies(case))
            except RuntimeError:
                return (
                    "under torch.no_grad, where every evaluation runs, your function finds no gradient: "
                    "open torch.enable_grad() inside."
                )
        return complaint


episodic = _Episodic(
    reference=lambda model, x, steps, lr: Dent(model, steps=steps, lr=lr, optimiser="sgd")(x).detach(),
    cases=lambda: {
        "no step": (*_network(0)[:2], 0, 0.5),
        "one step": (*_network(1)[:2], 1, 0.5),
        "five steps": (*_network(2)[:2], 5, 0.5),
    },
    mistakes={
        "only the scales and shifts of the normalisation layers move; yours moved everything.": partial(
            _adapted, all_of_it=True
        ),
        "your entropy rises: a step down is p − lr · gradient.": partial(_adapted, sign=-1),
        "you minimised the sum over the batch. The mean makes the step independent of n.": partial(
            _adapted, total=True
        ),
        "the network must stay in eval mode: dent keeps the statistics of the training.": partial(
            _adapted, train=True
        ),
        "the shifts move, too, not only the scales.": partial(_adapted, scales_only=True),
        "the answer must come from after the last step: one more forward pass.": (
            lambda model, x, steps, lr: _adapted(model, x, max(0, steps - 1), lr)
        ),
    },
    praise="the network is as it was, so the next batch meets the same defense.",
)


# ---- attacks ----


def _attacked(defense, x, y, ball, *, seen="static", judged="defense", broken=False) -> Tensor:
    """Which samples survive PGD; each option is a mistake."""
    network = {"static": lambda: defense.model, "defense": lambda: defense}
    network["adapted"] = lambda: defense.adapt(x)
    delta = attacks.pgd(network[seen](), x, y, ball, steps=10)
    with torch.no_grad():
        z = (defense if judged == "defense" else defense.model)(x + delta)
    right = z.argmax(1) == y
    return ~right if broken else right


@cache
def _digits() -> tuple[nn.Module, Tensor, Tensor]:
    """A network trained for a few epochs, and 300 test images."""
    digits, generator = data.load("digits"), torch.Generator().manual_seed(0)
    model = models.mlp([64, 50, 10], generator, norm=True)
    for _ in training.fit(
        model,
        (digits.x_train, digits.y_train),
        training.clean,
        epochs=5,
        lr=0.2,
        batch_size=64,
        generator=generator,
    ):
        pass
    return model.eval(), digits.x_test[:300], digits.y_test[:300]


def _defended() -> Mapping[str, tuple]:
    model, x, y = _digits()
    return {
        f"ε = {eps}": (Dent(model, lr=0.3, scope="sample"), x, y, Ball(math.inf, eps, (0, 1)))
        for eps in (0.07, 0.12)
    }


by_transfer = _Unchanged(
    reference=_attacked,
    cases=_defended,
    mistakes={
        "you attacked the defense itself. In a transfer attack the gradient is that of "
        "defense.model.": partial(_attacked, seen="defense"),
        "you attacked defense.adapt(x), the frozen defense. A transfer attack starts from "
        "defense.model.": partial(_attacked, seen="adapted"),
        "you asked defense.model for the answer. The attack may use it, but the defense is what is "
        "judged.": partial(_attacked, judged="static"),
        "those are the samples that broke. Return which are still right.": partial(
            _attacked, broken=True
        ),
        "you judged the images as they are: add δ.": lambda defense, x, y, ball: (
            defense(x).argmax(1) == y
        ),
    },
    praise="it used nothing of the defense, and every honest table has this column.",
)


def _through(model, x, y, lr, *, part="unrolled", reduction="sum") -> Tensor:
    """The gradient of the loss after one step; each option is a mistake."""
    defense = Dent(model, steps=1, lr=lr, optimiser="sgd", unroll=part == "unrolled")
    at = x.clone().requires_grad_()
    z = (model if part == "static" else defense)(at)
    return torch.autograd.grad(F.cross_entropy(z, y, reduction=reduction), at)[0]


unrolled = _Unchanged(
    reference=_through,
    cases=lambda: {
        f"a step of {lr}": (*_network(seed), lr) for seed, lr in ((3, 0.3), (4, 0.5), (5, 2.0))
    },
    mistakes={
        "that is the gradient with Δ held fixed, as published. Keep the graph of the step: "
        "create_graph=True, and x with a gradient from the beginning.": partial(_through, part="frozen"),
        "that is the gradient of the network without its step.": partial(_through, part="static"),
        "the loss is the sum over the batch, and yours the mean.": partial(_through, reduction="mean"),
        "the step goes down the mean entropy of the batch, and yours down the sum.": (
            lambda model, x, y, lr: _through(model, x, y, lr * len(x))
        ),
    },
    praise="that is the exact slope. The chapter's table shows what it is worth.",
)

# ---- break it: a planted defense ----


class Shuffled(nn.Module):
    """A defense that draws and rounds: the pixels of each image are put into one of four orders, drawn
    at random, and rounded to five gray levels; the logits are multiplied by 20.
    """

    def __init__(self, model: nn.Module, pixels: int = 64):
        super().__init__()
        self.model = model
        self.generator = torch.Generator().manual_seed(0)
        self.orders = torch.stack([torch.randperm(pixels, generator=self.generator) for _ in range(4)])

    def shuffle(self, x: Tensor) -> Tensor:
        """x (n, 1, H, W) with the pixels of each image in one of the four orders."""
        drawn = torch.randint(4, (len(x),), generator=self.generator)
        return x.flatten(1).gather(1, self.orders[drawn]).view_as(x)

    def forward(self, x: Tensor) -> Tensor:
        return 20 * self.model((4 * self.shuffle(x)).round() / 4)

    def adapt(self, x: Tensor) -> Shuffled:
        """Nothing is learned from x: the defense itself."""
        return self

    def unrolled(self) -> Shuffled:
        """There are no steps to go through: the defense itself."""
        return self


@cache
def shuffled() -> Shuffled:
    """The planted defense, around a network that was trained behind it."""
    digits, generator = data.load("digits"), torch.Generator().manual_seed(0)
    defense = Shuffled(models.mlp([64, 100, 10], generator))

    def inner(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return losses.cross_entropy(defense(x) / 20, y)

    train = digits.x_train, digits.y_train
    for _ in training.fit(
        defense.model, train, inner, epochs=20, lr=0.2, batch_size=64, generator=generator
    ):
        pass
    return defense.eval()


def _still_right(defense: Shuffled, x: Tensor, y: Tensor, delta: Tensor) -> float:
    """The percentage right, over 50 answers."""
    with torch.no_grad():
        return (
            100
            * torch.stack([(defense(x + delta).argmax(1) == y).double() for _ in range(50)])
            .mean()
            .item()
        )


class _Planted(Exercise):
    praise = "you differentiated what the defense does on average, and left out what only hides it."

    def examine(self, answer: Callable) -> str | None:
        """The attack must leave nearly as few right as the reference does, on 100 images at ε = 0.15."""
        if not callable(answer):
            return f"expected a function, got {answer!r}."
        digits, ball, defense = data.load("digits"), Ball(math.inf, 0.15, (0, 1)), shuffled()
        x, y = digits.x_test[:100], digits.y_test[:100]
        defense.generator.manual_seed(1)
        delta = answer(defense, x.clone(), y.clone(), ball)
        if not isinstance(delta, Tensor) or delta.shape != x.shape:
            return f"expected δ like x, {tuple(x.shape)}, got {shape_or_value(delta)}."
        if not bool(ball.contains(delta.detach(), x).all()):
            return "some of your δ leave Δ(x): keep ‖δ‖_∞ ≤ ε and x + δ in [0, 1]."
        left, clean = (_still_right(defense, x, y, d) for d in (delta.detach(), torch.zeros_like(x)))
        said = f"your attack leaves {left:.0f} % right, of {clean:.0f} %; below {LIMIT} % is possible"
        if left > clean - 5:
            return f"{said}. Rounding has the gradient 0: your attack has not moved. What can stand in?"
        if left > 65:
            return (
                f"{said}. Its network never sees the pixels in their order: shuffle in the attack, too."
            )
        if left > 30:
            return f"{said}. A search without gradients is not enough: which part of it has gradients?"
        if left >= LIMIT:
            return (
                f"{said}. Do you fool one order, where the next answer draws another? Climb the mean "
                "of many. If you do: behind the factor 20 an answer is nearly 0 or 1, and the mean "
                "has no slope."
            )
        return None


LIMIT = 7  # percent


planted = _Planted()

# ---- the chapter's exercises, in its order ----

EXERCISES = {
    "By how much, and which way": slopes,
    "The entropy": entropy,
    "An episode": episodic,
    "Attack it by transfer": by_transfer,
    "Through the step": unrolled,
    "The shuffled defense": planted,
}
