"""Checks of chapter 2, attacks."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.linalg import vector_norm
from torch.nn.functional import cross_entropy

from .. import attacks, data, linear, models
from ..threat import Ball
from . import Code, Exercise, Numbers, combined
from .comparing import copies, shape_or_value

# ---- by hand ----

worst_over_attacks = Numbers(
    expected=(0.6, 0.6, 0.4, 0.4),
    labels=("A alone", "the strongest single attack", "all together", "the largest possible truth"),
    mistakes={
        "All together means per image: one counts as robust only if none of the three breaks it. "
        "Attacks B and C break images that A does not.": (0.6, 0.6, 0.6, 0.6),
        "Two slips: all together means per image, 0.4; and the truth cannot be larger than that, since "
        "each broken image is a fact.": (0.6, 0.6, 0.6, 1.0),
        "The true robust accuracy cannot be larger than what is left after all attacks: each broken "
        "image is a fact.": (0.6, 0.6, 0.4, 1.0),
        "You gave the shares of broken images. Robust accuracy is the share of the others.": (
            0.4,
            0.4,
            0.6,
            0.6,
        ),
        "You averaged the attacks. An image that one attack breaks is broken, whatever the others do.": (
            0.6,
            0.6,
            0.7,
            0.7,
        ),
    },
    praise="the worst over attacks, image by image, and it is only an upper bound.",
)

steepest = Numbers(
    expected=(0.0, -0.6, 0.0, 1.8, 3.6),
    labels=("δ₁", "δ₂", "δ₃", "gain for p = 1", "gain for p = ∞"),
    mistakes={
        "Your δ has the wrong sign: the attacker goes up, so δ₂ has the sign of g₂.": (
            0.0,
            0.6,
            0.0,
            1.8,
            3.6,
        ),
        "You shared the budget out in proportion to |g|. A unit spent on entry i always earns |g_i|, so "
        "all of it belongs on the largest.": (0.1, -0.3, 0.2, 1.4, 3.6),
        "You shared the budget out equally. A unit spent on entry i earns |g_i|: put all of it on the "
        "largest.": (0.2, -0.2, 0.2, 1.2, 3.6),
        "You took the largest g_i. What counts is its size: |−3| is larger than 2.": (
            0.0,
            0.0,
            0.6,
            1.2,
            3.6,
        ),
        "You left out ε: the whole budget is 0.6, not 1.": (0.0, -1.0, 0.0, 3.0, 6.0),
        "The two gains are exchanged: p = 1 goes with ‖g‖_∞, p = ∞ with ‖g‖₁.": (
            0.0,
            -0.6,
            0.0,
            3.6,
            1.8,
        ),
    },
    praise="everything on one entry, and each gain is a dual norm.",
)

# ---- small networks to attack ----


class _Small(nn.Sequential):
    """A network that prints as three words."""

    def __repr__(self) -> str:
        return "a small network"


def _small(seed: int) -> _Small:
    layers = models.mlp([3, 8, 8, 4], torch.Generator().manual_seed(seed))
    for layer in layers[1::2]:  # steep enough for gradients that differ from step to step
        layer.weight.data *= 3
    return _Small(*layers)


def _with_batchnorm(seed: int) -> _Small:
    """In training mode, with statistics unlike those of any small batch."""
    flat, first, relu, *rest = _small(seed)
    norm = nn.BatchNorm1d(8)
    norm.running_mean += torch.linspace(-1, 1, 8)
    norm.running_var *= torch.linspace(0.5, 2, 8)
    return _Small(flat, first, norm, relu, *rest).train()


def _gradient(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    x = x.clone().requires_grad_()
    return torch.autograd.grad(cross_entropy(model(x), y, reduction="sum"), x)[0]


def _rows(v: Tensor) -> Tensor:
    return vector_norm(v, dim=1, keepdim=True)


def _inside(delta: Tensor, eps: float) -> Tensor:
    return eps * delta / _rows(delta).clamp(min=eps)


class _Attack(Code):
    """A function whose first argument is a model, which must come out as it went in."""

    advice = f"{Code.advice} (The model is cases[0][0] of this check.)"

    def examine(self, answer: Callable) -> str | None:
        complaint = super().examine(answer)
        if complaint is not None:
            return complaint
        for case in self.cases:
            model, *others = copies(case)
            answer(model, *others)
            if any(p.grad is not None for p in model.parameters()):
                return (
                    "the δ are right, but the model's weights hold a gradient now. Use "
                    "torch.autograd.grad(loss, x) in place of loss.backward()."
                )
            if [m.training for m in model.modules()] != [m.training for m in case[0].modules()]:
                return (
                    "the δ are right, but the model came in training mode and left in eval mode: give "
                    "it its mode back."
                )
        return None


_X = torch.tensor([[0.05, 0.5, 0.9], [0.98, 0.3, 0.02], [0.4, 0.6, 0.5]])
_Y = torch.tensor([0, 1, 2])

# ---- FGSM ----


def _signs(model: nn.Module, x: Tensor, y: Tensor, eps: float) -> Tensor:
    return eps * _gradient(model, x, y).sign()


def _fgsm(model: nn.Module, x: Tensor, y: Tensor, eps: float) -> Tensor:
    return (x + _signs(model, x, y, eps)).clamp(0, 1) - x


fgsm = _Attack(
    reference=_fgsm,
    cases=[(_small(0), _X, _Y, 0.1), (_small(1), _X, _Y, 0.3)],
    mistakes={
        "You went downhill: that makes the model more certain. Add the gradient's sign.": (
            lambda model, x, y, eps: (x - _signs(model, x, y, eps)).clamp(0, 1) - x
        ),
        "x + δ leaves [0, 1]: clip it, then subtract x.": _signs,
        "You went downhill, and x + δ leaves [0, 1]: add the sign, clip x + δ, subtract x.": (
            lambda model, x, y, eps: -_signs(model, x, y, eps)
        ),
        "You clipped δ to [0, 1]. The image x + δ must stay in [0, 1]; δ may be negative.": (
            lambda model, x, y, eps: _signs(model, x, y, eps).clamp(0, 1)
        ),
        "You returned the image x + δ. The attacks of this book return δ.": (
            lambda model, x, y, eps: x + _fgsm(model, x, y, eps)
        ),
        "You multiplied ε by the gradient itself. The best step in the ℓ∞ ball is ε times its sign.": (
            lambda model, x, y, eps: (x + eps * _gradient(model, x, y)).clamp(0, 1) - x
        ),
    },
    praise="one gradient, one step, an image again.",
)

# ---- the projection ----


def _edge(delta: Tensor, eps: float) -> Tensor:
    return eps * delta / _rows(delta).clamp(min=1e-12)


project = Code(
    reference=_inside,
    cases=[
        (torch.tensor([[3.0, 4.0], [0.3, 0.4], [0.0, 0.0]]), 1.0),
        (torch.tensor([[1.0, -2.0, 2.0], [0.0, 0.1, 0.0]]), 0.5),
    ],
    mistakes={
        "Rows inside the ball must stay as they are. You pushed them out to the edge.": _edge,
        "The row of zeros became NaN: 0 divided by 0. Divide by max(‖δ‖₂, ε), which is never 0.": (
            lambda delta, eps: eps * delta / _rows(delta)
        ),
        "You measured the whole batch with one norm. Every row has its own: dim=1, keepdim=True.": (
            lambda delta, eps: eps * delta / vector_norm(delta).clamp(min=eps)
        ),
        "You clipped every entry, which is the projection onto the ℓ∞ ball.": (
            lambda delta, eps: delta.clamp(-eps, eps)
        ),
        "You scaled by ε even inside: the factor is min(1, ε / ‖δ‖₂).": (
            lambda delta, eps: eps * delta / _rows(delta).clamp(min=1)
        ),
    },
    praise="the nearest point, row by row.",
)

# ---- PGD ----


def _ascend(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    eps: float,
    alpha: float,
    steps: int,
    *,
    sign: int = 1,
    at_x: bool = False,
    length: Callable = _rows,
    way: Callable | None = None,
    back: Callable = _inside,
) -> Tensor:
    """Projected ascent in the ℓ2 ball; each option is a mistake."""
    delta = torch.zeros_like(x)
    for _ in range(steps):
        gradient = _gradient(model, x if at_x else x + delta, y)
        unit = way(gradient) if way else gradient / length(gradient).clamp(min=1e-12)
        delta = back(delta + sign * alpha * unit, eps)
    return delta


pgd = _Attack(
    reference=_ascend,
    cases=[(_small(2), _X, _Y, 0.3, 0.1, 6), (_small(3), _X, _Y, 1.0, 0.2, 4)],
    mistakes={
        "You took every gradient at x. After the first step it belongs to x + δ, the point where you "
        "are.": partial(_ascend, at_x=True),
        "You went downhill: add the step.": partial(_ascend, sign=-1),
        "You did not divide by the length of the gradient, so the step is not of length α.": partial(
            _ascend, way=lambda gradient: gradient
        ),
        "You divided by one length for the whole batch. Every row has its own.": partial(
            _ascend, length=vector_norm
        ),
        "You did not project: after enough steps δ is outside the ball.": partial(
            _ascend, back=lambda delta, eps: delta
        ),
        "Your projection moves rows that are inside out to the edge.": partial(_ascend, back=_edge),
        "You returned x + δ. The attacks of this book return δ.": (
            lambda model, x, *rest: x + _ascend(model, x, *rest)
        ),
        "You took the sign of the gradient, which is the step for the ℓ∞ ball.": partial(
            _ascend, way=torch.sign
        ),
    },
    praise="linearise, step, project, and again.",
)

# ---- three bugs ----

_BUGS = {
    "It goes up the loss of the target: subtract the step, so that this loss falls.": {"sign": 1},
    "It divides by the norm of the whole batch: take each row's own, dim=1, keepdim=True.": {
        "length": vector_norm
    },
    "It runs the model in training mode, where BatchNorm mixes images: use eval mode.": {
        "evaluating": contextlib.nullcontext
    },
}


def _targeted(
    model: nn.Module,
    x: Tensor,
    targets: Tensor,
    eps: float,
    alpha: float,
    steps: int,
    *,
    evaluating: Callable = models.evaluating,
    sign: int = -1,
    length: Callable = _rows,
) -> Tensor:
    """The attack towards targets; each option is one of the three bugs."""
    with evaluating(model):
        return _ascend(model, x, targets, eps, alpha, steps, sign=sign, length=length)


three_bugs = _Attack(
    reference=_targeted,
    cases=[(_with_batchnorm(4), _X, _Y, 0.4, 0.1, 6), (_with_batchnorm(5), _X, _Y, 0.5, 0.2, 3)],
    mistakes=combined(_targeted, _BUGS),
    praise="all three are gone.",
)

# ---- break it: a model that only looks robust ----


class _Sharp(Exercise):
    praise = "the attack now finds what a closed form says is there: the model was never robust."

    def examine(self, answer: Callable) -> str | None:
        """Attack a linear model, whose robust accuracy is known exactly, with logits scaled far up."""
        if not callable(answer):
            return f"expected a function sharp(z, y), got {answer!r}."
        digits = data.load("digits")
        x, y = digits.x_test[:200], digits.y_test[:200]
        mean = torch.stack([digits.x_train[digits.y_train == k].mean(0).flatten() for k in range(10)])
        model = models.linear(64, 10)  # the nearest mean image decides, and is very sure of it
        model[1].weight.data, model[1].bias.data = 400 * mean, -200 * mean.square().sum(1)
        ball = Ball(math.inf, 0.1, box=(0, 1))
        truth = linear.certified(*linear.weights(model), x, y, ball).double().mean().item()
        z = model(x[:3]).detach()
        value = answer(z.clone(), y[:3])
        if not isinstance(value, Tensor) or value.shape != (3,):
            return f"expected one number a sample, a tensor of shape (3,), got {shape_or_value(value)}."
        delta = attacks.pgd(model, x, y, ball, steps=20, loss=answer)
        left = (model(x + delta).argmax(1) == y).double().mean().item()
        if left <= truth + 0.03:
            return None
        told = f"PGD with your loss leaves {left:.1%}; the truth, by a closed form, is {truth:.1%}."
        mild = z / z.abs().max()  # where nothing saturates, functions can be told apart
        guess, likely = answer(mild.clone(), y[:3]), mild.softmax(1).gather(1, y[:3, None]).squeeze(1)
        if torch.allclose(guess, cross_entropy(mild, y[:3], reduction="none"), atol=1e-5):
            return f"{told} That is the cross-entropy, which has saturated: its gradients are 0 here."
        if any(torch.allclose(guess, known - likely, atol=1e-5) for known in (0, 1)):
            return f"{told} Probabilities saturate even earlier than their logarithm: use the logits."
        moved = z.clone().requires_grad_()
        (slope,) = torch.autograd.grad(answer(moved, y[:3]).sum(), moved)
        own = slope.gather(1, y[:3, None]).squeeze(1)
        if (own > 0).any():
            return f"{told} Your loss grows when z_y grows: turn the sign around."
        if (slope == 0).all():
            return f"{told} Your loss has no gradient when z_y leads by a hundred, as it does here."
        return (
            f"{told} Your gradient is alive, but does it point towards the rival that is nearest to "
            "overtaking?"
        )


scaled = _Sharp()

# ---- the chapter's exercises, in its order ----

EXERCISES = {
    "Worst over attacks": worst_over_attacks,
    "The steepest step": steepest,
    "FGSM": fgsm,
    "Onto the ball": project,
    "PGD": pgd,
    "A model that only looks robust": scaled,
    "Three bugs": three_bugs,
}
