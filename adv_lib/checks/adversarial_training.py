"""Checks of chapter 6, adversarial training."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from functools import cache, partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .. import attacks, bounds, data, evaluation, models, training
from ..threat import Ball
from . import Code, Exercise, NamedCases, Numbers, Words, combined
from .comparing import as_tensor, copies

# ---- by hand ----

danskin = Numbers(
    expected=(2.25, 3.0, 2.0, 2.0, -2.0),
    labels=("φ(½)", "φ′(½)", "D₊φ(0)", "D₋φ(0)", "the derivative of g at θ = 0, δ = 1"),
    mistakes={
        "At θ = ½ the farthest δ of [−1, 1] is −1, not 1: φ(½) = 2.25.": (0.25, -1.0, 2.0, 2.0, -2.0),
        "For φ′(½) hold δ* = −1 still, and differentiate (θ − δ*)² in θ.": (2.25, -1.0, 2.0, 2.0, -2.0),
        "The inner derivative of (θ − δ)² is 2(θ − δ): the factor 2 is missing.": (
            2.25,
            1.5,
            1.0,
            1.0,
            -1.0,
        ),
        "D₋φ(0) is the slope on the way to the left, θ = −t with t growing. φ rises there too: +2.": (
            2.25,
            3.0,
            2.0,
            -2.0,
            -2.0,
        ),
        "0 is no minimum of a smooth function here: φ has a kink at 0, and rises on both sides.": (
            2.25,
            3.0,
            0.0,
            0.0,
            -2.0,
        ),
        "In the last, δ = 1 is to the right of θ = 0: 2(0 − 1) = −2.": (2.25, 3.0, 2.0, 2.0, 2.0),
    },
    praise="a step against the last derivative goes right, where φ rises: the subject of Chapter 7.",
)

published = Words(
    truth=("iterate", "converge", "another loss", "the whole defense"),
    why=(
        "(a) shows one step only. Nobody has tried to climb.",
        "(b) is iterative, and fell by 11 points between 10 and 50 steps. Who says that it stops there?",
        "(c) took many steps of one loss. Where it has saturated, more of its steps find nothing.",
        "(d) used a strong attack, on a function that is not the one deployed: what moves at test time "
        "was frozen.",
    ),
    among=("iterate", "converge", "another loss", "the whole defense"),
    labels=("report (a)", "report (b)", "report (c)", "report (d)"),
    praise="in (b), (c) and (d) the missing attack was run by others later, and found what you suspect.",
)

# ---- the inner–outer loop ----


def _ascend(model, x, y, eps, steps=5, sign=1, project=True, keep_graph=False, length=None):
    delta = torch.zeros_like(x)
    for _ in range(steps):
        delta.requires_grad_()
        loss = F.cross_entropy(model(x + delta), y)
        if keep_graph:  # .backward(), which leaves gradients in the parameters
            loss.backward()
            gradient = delta.grad
        else:
            (gradient,) = torch.autograd.grad(loss, delta)
        way = gradient.sign() if length is None else length * gradient
        delta = delta.detach() + sign * eps / 2 * way
        if project:
            delta = delta.clamp(-eps, eps)
    return delta


def _step(model, x, y, eps, lr, *, reduction="mean", down=1, clear=True, **inner):
    if clear == "first":
        model.zero_grad()
    delta = _ascend(model, x, y, eps, **inner)
    if clear is True:
        model.zero_grad()
    F.cross_entropy(model(x + delta), y, reduction=reduction).backward()
    with torch.no_grad():
        for p in model.parameters():
            p -= down * lr * p.grad


class _Step(Code):
    """The answer changes a network in place: what is compared are its parameters afterwards."""

    def arguments(self, case: tuple) -> tuple:
        model, *rest = copies(case)
        for p in model.parameters():
            p.grad = torch.ones_like(p)  # what an earlier step has left
        return model, *rest

    def outcome(self, returned: object, arguments: tuple) -> Tensor:
        return nn.utils.parameters_to_vector(arguments[0].parameters()).detach()

    def spoilt(self, name: str, case: tuple, arguments: tuple) -> str | None:
        if torch.allclose(self.outcome(None, arguments), self.outcome(None, case)):
            return "the parameters are as before: change them in place, inside torch.no_grad()."
        return None

    def complaint(self, name: str, got: Tensor, expected: Tensor, mistake: str | None) -> str:
        return mistake or (
            f"after your step a parameter is off by {(got - expected).abs().max().item():.2g}. Try one "
            "inner step first, and eps = 0, where it is standard training."
        )


def _cases() -> list[tuple]:
    cases = []
    for seed, eps in ((0, 0.1), (1, 0.3)):
        generator = torch.Generator().manual_seed(seed)
        x = torch.rand(6, 4, generator=generator)
        y = torch.randint(0, 3, (6,), generator=generator)
        cases.append((models.mlp([4, 8, 3], generator), x, y, eps, 0.5))
    return cases


step = _Step(
    reference=_step,
    cases=_cases(),
    mistakes={
        "Your step goes up. θ is the minimiser: subtract lr times the gradient.": partial(
            _step, down=-1
        ),
        "Your δ goes down. The inner loop maximises: add the sign of the gradient.": partial(
            _step, sign=-1
        ),
        "That is a step of standard training: take the outer gradient at x + δ, not at x.": partial(
            _step, steps=0
        ),
        "Your δ leaves the ball: clamp it to [−eps, eps] after every inner step.": partial(
            _step, project=False
        ),
        "The gradients of the inner loop are still in your parameters when the outer one is added. "
        "Clear them (model.zero_grad()), or take the inner gradient with torch.autograd.grad.": partial(
            _step, keep_graph=True, clear=False
        ),
        "You clear the gradients, but before the inner loop, whose .backward() fills them again. Clear "
        "them (model.zero_grad()) after it.": partial(_step, keep_graph=True, clear="first"),
        "Your inner step is along the gradient itself. It is eps/2 along its sign.": partial(
            _step, length=1
        ),
        "What an earlier step left in the parameters' .grad is added to your gradient: call "
        "model.zero_grad() before backward().": partial(_step, clear=False),
        "You minimise the sum over the batch. The formula has the mean.": partial(
            _step, reduction="sum"
        ),
        "You took one inner step; it is five of size eps/2.": partial(_step, steps=1),
    },
    praise="that is adversarial training. All other ways of this chapter change the inner loop only.",
)

# ---- break it: a random start ----


class _Fooled(Exercise):
    praise = "one step from a random place is still one step. Only the iterated attack has noticed."

    def examine(self, answer: nn.Module) -> str | None:
        """FGSM must be satisfied with the network and PGD not, on the test images at ε = 0.3."""
        if not isinstance(answer, nn.Module):
            return f"expected a network, got {type(answer).__name__}."
        digits, ball = data.load("digits"), Ball(math.inf, 0.3, (0, 1))
        x, y = digits.x_test, digits.y_test
        judge = {"no attack": [], "FGSM": [attacks.fgsm], "PGD": [partial(attacks.pgd, steps=20)]}
        rates = {
            n: 100 * evaluation.robust_accuracy(answer, x, y, ball, a).value for n, a in judge.items()
        }
        said = ", ".join(f"{name} {value:.0f} %" for name, value in rates.items())
        if rates["no attack"] < 70:
            return f"it is right on too few images ({said}): train longer, or with a smaller step."
        if rates["FGSM"] < 30:
            return f"FGSM is not fooled ({said}): did you train at ε = 0.3? Long enough?"
        if rates["PGD"] > 15:
            return f"it is more robust than it should be ({said}): was it trained with one step only?"
        return None


random_start = _Fooled()

# ---- break it: an evaluation ----


class _Slab(nn.Module):
    """Wrong in a thin slab of inputs only: an attack of long steps jumps over it, back and forth."""

    def __init__(self):
        super().__init__()
        self.centre = nn.Parameter(torch.tensor(0.5))

    def forward(self, x: Tensor) -> Tensor:
        away = (x.mean(1) - self.centre).abs()
        return 40 * torch.stack([away, torch.full_like(away, 0.01)], 1)


def _judged() -> dict[str, tuple[nn.Module, Tensor, Tensor, float, int]]:
    """Networks to evaluate, with their images, labels, ε and steps."""
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(60, 6, generator=generator)
    batch, slab = nn.Sequential(nn.BatchNorm1d(6, affine=False), nn.Linear(6, 2)), _Slab()
    with torch.no_grad():
        batch[0].running_mean[:], batch[0].running_var[:] = x.mean(0), x.var(0)
        batch[1].weight[:] = torch.tensor([1.0, -1.0])[:, None] / 6
        batch[1].bias[:] = torch.tensor([0.5, -0.5])  # most of the images are of class 0
        own = batch.eval()(x).argmax(1)
    labels = torch.zeros(60, dtype=torch.int64)
    return {
        "a linear network behind BatchNorm, left in training mode": (batch.train(), x, own, 0.2, 20),
        "a network that is wrong in a thin slab": (slab, x, labels, 0.1, 8),
        "the same network, more steps": (slab, x, labels, 0.1, 40),
        "the same network, one step": (slab, x, labels, 0.1, 1),
    }


def _survive(
    model, x, y, eps, steps, *, size=None, taken=None, judge="all", mode=True, box=True
) -> float:
    """The robust accuracy by steps of the gradient's sign; each option is a mistake."""
    was, statistics = model.training, copy.deepcopy(model.state_dict())
    model.train(was and not mode)
    delta, size, taken = torch.zeros_like(x), size or 2.5 * eps / steps, taken or steps
    right = torch.ones(len(x), dtype=torch.bool)
    for i in range(taken + 1):
        at = (x + delta).requires_grad_()
        z = model(at)
        if {"all": True, "last": i == taken, "moved": i > 0, "not the last": i < taken}[judge]:
            right &= z.argmax(1) == y
        (gradient,) = torch.autograd.grad(F.cross_entropy(z, y), at)
        delta = (delta + size * gradient.sign()).clamp(-eps, eps)
        if box:
            delta = (x + delta).clamp(0, 1) - x
    model.load_state_dict(statistics)
    model.train(was)
    return right.double().mean().item()


class _Honest(NamedCases):
    """The answer is a share of samples, from an evaluation that leaves the model as it was."""

    advice = "None of the usual mistakes leads there: follow one sample through all its points."

    def unfit(self, name: str, got: object, expected: float) -> str | None:
        number = as_tensor(got)
        if number is None or number.numel() != 1 or not 0 <= number.item() <= 1:
            return f"expected a robust accuracy between 0 and 1, got {got!r}."
        return None

    def spoilt(self, name: str, case: tuple, arguments: tuple) -> str | None:
        before, model = case[0], arguments[0]
        if any(not torch.equal(before.state_dict()[k], v) for k, v in model.state_dict().items()):
            return f"{name}: the evaluation has changed its statistics. Call model.eval() first."
        if model.training != before.training:
            return f"{name} is no longer in its mode: put model.train() back when you are done."
        return None

    def same(self, got: object, expected: object) -> bool:
        number = as_tensor(got)
        if number is None or number.numel() != 1:
            return False
        return abs(number.item() - as_tensor(expected).item()) <= 0.03

    def complaint(self, name: str, got: object, expected: float, mistake: str | None) -> str:
        said = f"you report {as_tensor(got).item():.0%}, and it is {expected:.0%}"
        return f"{name}: {said}. {mistake or self.advice}"


honest = _Honest(
    reference=_survive,
    cases=_judged,
    mistakes={
        **combined(
            _survive,
            {
                "In training mode BatchNorm subtracts the mean of the batch, and with it what all "
                "attacked images have in common. Call model.eval() first.": {"mode": False},
                "Only the last point of a run counts with you. A sample is broken if any point breaks "
                "it.": {"judge": "last"},
            },
        ),
        # with so few and so short steps the first two hardly matter
        "Five steps of 0.01 go no farther than 0.05. Take `steps` steps of 2.5 eps / steps.": partial(
            _survive, size=0.01, taken=5
        ),
        "The start is a point of the run as well: judge it.": partial(_survive, judge="moved"),
        "The point after the last step is not judged: a loop over the steps sees where each "
        "begins.": partial(_survive, judge="not the last"),
        "The step is 2.5 eps / steps. Steps of 0.01 may not get anywhere.": partial(_survive, size=0.01),
        "Take all the steps, not five of them.": partial(_survive, taken=5),
        "Your images leave [0, 1]: clamp x + delta as well.": partial(_survive, box=False),
    },
    praise="and a number that may be believed is still the number of one attack.",
)

# ---- ramp or collapse ----


class _RampOrCollapse(Exercise):
    praise = "the bound was given time to become useful before it became strict."

    def examine(self, answer: Sequence[float]) -> str | None:
        """Train 64-50-50-10 on interval bounds for 40 epochs with the reader's ramp; count proofs."""
        pair = as_tensor(answer)
        if pair is None or pair.shape != (2,) or not 0 <= pair[0] < pair[1] <= 1:
            return f"expected begin and end with 0 ≤ begin < end ≤ 1, got {answer!r}."
        if pair[1] - pair[0] > 0.3 + 1e-6:
            return f"the ramp may take 0.3 of the run, yours takes {pair[1] - pair[0]:.2g}."
        safe, right = _interval_trained(*pair.tolist())
        said = f"{safe:.1f} % proved safe, {right:.1f} % right"
        if safe >= 50:
            return None
        if right < 30:
            return f"{said}: it has collapsed to one answer for all images. Let ε grow later."
        if pair[0] < 0.1:
            return f"{said}, and half should be proved: ε grows before the network knows anything."
        return f"{said}, and half should be proved: the full ε comes too late to learn at it."


@cache
def _interval_trained(begin: float, end: float) -> tuple[float, float]:
    """Percent of the test digits proved by intervals, and right."""
    digits, ball = data.load("digits"), Ball(math.inf, 0.1, (0, 1))
    generator = torch.Generator().manual_seed(0)
    model = models.mlp([64, 50, 50, 10], generator)
    inner = training.Ramp(partial(training.certified, method="interval"), ball, begin, end)
    train = digits.x_train, digits.y_train
    settings = {"epochs": 40, "lr": lambda done: 0.2 * (1 - done), "batch_size": 64}
    for _ in training.fit(model, train, inner, generator=generator, **settings):
        pass
    x, y = digits.x_test, digits.y_test
    with torch.no_grad():
        safe = (bounds.margins(model, x, y, ball) > 0).all(1)
        right = model(x).argmax(1) == y
    return 100 * safe.double().mean().item(), 100 * right.double().mean().item()


ramp = _RampOrCollapse()

# ---- the chapter's exercises, in its order ----

EXERCISES = {
    "A maximum by hand": danskin,
    "The inner–outer loop": step,
    "A random start": random_start,
    "Three mistakes": honest,
    "Ramp or collapse": ramp,
    "The missing attack": published,
}
