"""Checks of chapter 11, geometry."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .. import attacks, data, losses, mahalanobis, models, optimisers, training
from ..threat import Ball
from . import Code, Exercise, Numbers, Words
from .comparing import as_tensor, close, finite, no_loss, shape_or_value, show

# ---- three centres by hand ----

_H = math.sqrt(3) / 2


class _Two(NamedTuple):
    """μ₂ and μ₃, right where nothing else is said."""

    x2: float = -0.5
    y2: float = _H
    x3: float = -0.5
    y3: float = -_H


three = Numbers(
    expected=_Two(),
    labels=("μ₂, entry 1", "μ₂, entry 2", "μ₃, entry 1", "μ₃, entry 2"),
    mistakes={
        "You asked for the inner product −1/L. L vectors of length 1 can do better: −1/(L − 1), here "
        "−1/2.": _Two(-1 / 3, math.sqrt(8) / 3, -1 / 3, -math.sqrt(2) / 3),
        "Those have the inner product −1/3 with μ₁. The smallest that all three pairs can have is "
        "−1/(L − 1), here −1/2.": _Two(-1 / 3, math.sqrt(8) / 3, -1 / 3, -math.sqrt(8) / 3),
        "You left out 1/(L − 1): the first two are at right angles, and the third is 0. They can be "
        "further apart.": _Two(0, 1, 0, 0),
        "Those are corners of a square, and μ₁ and μ₃ are its diagonal. All pairs should be alike, with "
        "the inner product −1/2.": _Two(0, 1, -1, 0),
        "Those are corners of a square, and μ₂ and μ₃ are its diagonal. All pairs should be alike, with "
        "the inner product −1/2.": _Two(0, 1, 0, -1),
        "μ₃ is the same as μ₂. Its last entry comes from the inner product with μ₂, not from a root: "
        "the sign is minus.": _Two(y3=_H),
        "You forgot the root in μ₂₂: 3/4 is the square of what is left.": _Two(y2=0.75, y3=-1),
        "You forgot the roots: 3/4 is the square of what is left.": _Two(y2=0.75, y3=-0.75),
        "Under the root stands 1 − ‖μ₂‖², with the square.": _Two(y2=0.5**0.5, y3=-0.75 / 0.5**0.5),
        "μ₁ and μ₂ are at 60°, as on a triangle of side 1. The first entries are the inner products "
        "with μ₁, and those are negative.": _Two(x2=0.5, x3=0.5),
        "You lost the minus of the recursion: its inner products are +1/2, and μ₃ comes out as μ₂, "
        "instead of far from it.": _Two(0.5, _H, 0.5, _H),
        "In μ₃₂ the inner product ⟨μ₃, μ₂⟩ is missing: so far it is 1/4.": _Two(y3=-0.5 / _H),
        "In μ₃₂ the inner product so far, μ₃₁ μ₂₁, is +1/4, not −1/4.": _Two(y3=-0.25 / _H),
        "In μ₃₂ you did not divide by μ₂₂.": _Two(y3=-0.75),
        "μ₂ and μ₃ are exchanged: the root in μ₂₂ is the positive one.": _Two(y2=-_H, y3=_H),
    },
    praise="a triangle around 0, and no three vectors of length 1 are further apart.",
)

# ---- the recursion ----


def _simplex(L: int, d: int) -> Tensor:
    return mahalanobis.centres(L, d)


def _root(row: Tensor) -> Tensor:
    return (1 - row.square().sum()).clamp(min=0).sqrt()


def _recursion(L, d, *, sign=-1, share=1, of=1, inner=1, power=1, rest=_root) -> Tensor:
    """The published recursion; each option is a mistake."""
    mu = torch.zeros(L, d, dtype=torch.float64)
    mu[0, 0] = 1
    for k in range(1, L):
        for j in range(k):
            mu[k, j] = sign * (share / (L - of) + inner * (mu[k] @ mu[j])) / mu[j, j] ** power
        if k < d:
            mu[k, k] = rest(mu[k])
    return mu


@dataclass(frozen=True)
class _Derived(Code):
    """Code whose outcome is worked out from what it returns, or is a sentence why it cannot be."""

    def unfit(self, name: str, got: Any, expected: Any) -> str | None:
        return got if isinstance(got, str) else super().unfit(name, got, expected)


@dataclass(frozen=True)
class _Centres(_Derived):
    """Code that returns L vectors, which are as good turned or mirrored: the inner products decide."""

    def outcome(self, returned: Any, arguments: tuple) -> Tensor | str | None:
        L, d = arguments
        mu = as_tensor(returned)
        if returned is None or (mu is not None and mu.shape == (L, d)):
            return None if returned is None else mu @ mu.T
        shape = None if mu is None else tuple(mu.shape)
        told = f"expected a tensor ({L}, {d}), got {shape or shape_or_value(returned)}."
        if shape == (L, L - 1):
            told += " The centres have as many entries as z, d; those beyond the first L − 1 are 0."
        return told + " One centre a row." if shape == (d, L) else told

    def _mistake(self, answer: Callable, cases: list[tuple]) -> str | None:
        """By d = L − 1 only: with more, answers differ in whether the last row gets a root, too."""
        return super()._mistake(answer, [(L, d) for L, d in cases if d == L - 1])

    def complaint(self, name: str, got: Any, expected: Any, mistake: str | None) -> str:
        if mistake not in self.mistakes and not finite(as_tensor(got)):
            mistake = (
                "NaN and ∞ have two usual reasons here: μ₁₁ was not set to 1, so that you divided by 0, "
                "or the last row's 1 − ‖μ_L‖², which is 0 up to rounding, was negative under the root."
            )
        said = f"the inner products should be {show(expected)}, and yours are {show(got)}"
        return f"for {name} {said}. {mistake or self.advice}"

    def examine(self, answer: Callable) -> str | None:
        try:
            return super().examine(answer)
        except (IndexError, ValueError) as error:
            return (
                f"your code raised {type(error).__name__}: {error}. If that was in the last row: it has "
                "length 1 before it gets an entry of its own, and for d = L − 1 no place for one."
            )


_SLIPS = {
    "You left out ⟨μ_k, μ_j⟩: the entries before j have added to the inner product.": {"inner": 0},
    "You took 1/L. The smallest inner product that all pairs can have is −1/(L − 1).": {"of": 0},
    "You did not divide by μ_jj: the entry μ_kj adds μ_kj μ_jj to the inner product.": {"power": 0},
    "The minus is missing: centres that are far apart have a negative inner product.": {"sign": 1},
    "The minus belongs to the whole sum, also to ⟨μ_k, μ_j⟩.": {"inner": -1},
    "At right angles vectors are not as far apart as can be. It takes the 1/(L − 1).": {"share": 0},
    "You forgot the root: μ_kk is √(1 − ‖μ_k‖²).": {"rest": lambda row: 1 - row.square().sum()},
    "Under the root the entries are squared before they are summed.": {
        "rest": lambda row: (1 - row.sum()).sqrt()
    },
    "Under the root the length is squared.": {"rest": lambda row: (1 - row.norm()).sqrt()},
}

recursion = _Centres(
    reference=_simplex,
    cases=[(3, 2), (4, 3), (5, 7)],
    mistakes={sentence: partial(_recursion, **options) for sentence, options in _SLIPS.items()},
    praise="all pairs alike, and as far apart as L vectors can be.",
)

# ---- half the way ----

_D = 2000 / 9


class _Radii(NamedTuple):
    """The five numbers, right where nothing else is said."""

    squared: float = _D
    ten: float = math.sqrt(_D) / 2
    two: float = 1.0
    many: float = math.sqrt(0.5)
    C: float = 3 * math.sqrt(1.8)


half_way = Numbers(
    expected=_Radii(),
    labels=(
        "the squared distance, L = 10 and C = 10",
        "RB for L = 10 and C = 10",
        "RB for L = 2 and C = 1",
        "RB for L → ∞ and C = 1",
        "C for RB = 3 and L = 10",
    ),
    mistakes={
        "That is the whole distance between two centres. Half of the way, and the other centre is as "
        "near.": _Radii(_D, math.sqrt(_D), 2, math.sqrt(2), 1.5 * math.sqrt(1.8)),
        "You took half of the squared distance. Half of the distance is the root of a quarter of its "
        "square.": _Radii(_D, _D / 2, 2, 1, math.sqrt(2.7)),
        "You forgot the root: RB² is C²L/(2(L − 1)).": _Radii(_D, _D / 4, 1, 0.5, math.sqrt(5.4)),
        "You forgot the root: RB is C √(L/(2(L − 1))).": _Radii(_D, 50 / 9, 1, 0.5, 5.4),
        "You took the centres at right angles. Their inner product is −C²/(L − 1), so they are further "
        "apart.": _Radii(200, math.sqrt(50), math.sqrt(0.5), math.sqrt(0.5), math.sqrt(18)),
        "You took the inner product −C²/L. Centres can be further apart than that: it is −C²/(L − 1) "
        "for each pair.": _Radii(220, math.sqrt(55), math.sqrt(0.75), C=3 / math.sqrt(0.55)),
        "The sign: in ‖μ_k − μ_j‖² there is minus twice the inner product, and that product is itself "
        "negative.": _Radii(1600 / 9, 20 / 3, 0, C=4.5),
        "You took C where C² belongs: the squared lengths have it, and so has the inner product, of two "
        "vectors of length C.": _Radii(_D / 10, math.sqrt(_D / 40), C=16.2),
        "The first asks for the distance squared. You took its root.": _Radii(squared=math.sqrt(_D)),
        "For L → ∞ the inner products go to 0, so what is left is a right angle.": _Radii(many=0),
        "For L → ∞ the fraction L/(2(L − 1)) goes to 1/2. RB is its root.": _Radii(many=0.5),
        "For L → ∞ the fraction L/(2(L − 1)) goes to 1/2, not to 1, and RB is its root.": _Radii(many=1),
        "The last is turned around: C is 3 divided by √(10/18).": _Radii(C=3 / math.sqrt(1.8)),
    },
    praise="C buys any radius in feature space, and says nothing about the image.",
)

# ---- softmax is a g-SCE ----


def _of(W: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    layer = mahalanobis.as_quadratic(W, b)
    return layer.centres, layer.biases


def _off(W, b, *, mu=0.5, add=0.25, power=2, bias=1) -> tuple[Tensor, Tensor]:
    """W/2 and b_k + ¼‖W_k‖²; each option is a mistake."""
    return mu * W, bias * b + add * W.norm(dim=1) ** power


def _points(d: int) -> Tensor:
    """0 and the unit vectors: softmaxes of affine functions that agree there agree everywhere."""
    return torch.cat([torch.zeros(1, d), torch.eye(d)]).double()


@dataclass(frozen=True)
class _Layer(_Derived):
    """Code that returns (mu, B), which are not unique: the softmax they lead to decides."""

    def outcome(self, returned: Any, arguments: tuple) -> Tensor | str | None:
        if returned is None:
            return None
        shape = tuple(arguments[0].shape)
        pair = list(returned) if isinstance(returned, list | tuple) else []
        mu, B = map(as_tensor, pair) if len(pair) == 2 else (None, None)
        if mu is None or B is None or mu.shape != shape or B.shape != shape[:1]:
            given = f"({', '.join(map(shape_or_value, pair))})" if pair else shape_or_value(returned)
            return f"expected mu {shape} and B {shape[:1]}, in this order, got {given}."
        away = _points(shape[1])[:, None] - mu
        return (B - away.square().sum(2)).softmax(1)

    def complaint(self, name: str, got: Any, expected: Any, mistake: str | None) -> str:
        at = int((got - expected).abs().nan_to_num(math.inf).amax(1).argmax())
        z = _points(len(expected) - 1)[at]
        said = f"at z = {show(z)} the softmax should be {show(expected[at])}, yours is {show(got[at])}"
        return f"for {name}: {said}. {mistake or self.advice}"


_SLIPS_OF = {
    "You forgot the ½: −‖z − μ_k‖² has 2⟨μ_k, z⟩ in it, so 2μ_k is W_k.": {"mu": 1},
    "μ_k is ½W_k: with W_k the square has 2⟨W_k, z⟩ in it, twice as much as Wz.": {"mu": 1, "add": 1},
    "That is right for −½‖z − μ_k‖². Here the ½ is missing: 2μ_k is W_k.": {"mu": 1, "add": 0.5},
    "You took W and b as they are. Multiply out, and compare what stands by z.": {"mu": 1, "add": 0},
    "B_k has to make up for −‖μ_k‖², which is another number for each class.": {"add": 0},
    "The sign: the square brings −‖μ_k‖² along, so B_k adds ¼‖W_k‖².": {"add": -0.25},
    "The length is squared: B_k = b_k + ¼‖W_k‖².": {"power": 1},
    "‖½W_k‖² is ¼‖W_k‖²: the length has to be squared, too.": {"add": 0.5, "power": 1},
    "‖½W_k‖² is ¼‖W_k‖²: the ½ is squared, too.": {"add": 0.5},
    "μ_k is ½W_k, so ‖μ_k‖² is ¼‖W_k‖². You added all of ‖W_k‖².": {"add": 1},
    "The bias is missing: B_k = b_k + ¼‖W_k‖².": {"bias": 0},
    "μ_k points the wrong way: −‖z − μ_k‖² has +2⟨μ_k, z⟩ in it.": {"mu": -0.5},
}

as_centres = _Layer(
    reference=_of,
    cases=[
        (torch.tensor([[2.0, 0.0], [0.0, 1.0], [-1.0, 1.0]]), torch.tensor([0.0, 0.5, -0.5])),
        (torch.tensor([[1.0, -1.0, 0.5], [0.0, 2.0, -1.0]]), torch.tensor([0.3, 0.0])),
    ],
    mistakes={sentence: partial(_off, **options) for sentence, options in _SLIPS_OF.items()},
    praise="every linear layer has centres; nobody has told it where to put them.",
)

# ---- what does the loss see? ----

sees = Words(
    truth=("both, alike", "only MMC", "both, one up and one down", "only MMLDA", "neither"),
    labels=("change (a)", "change (b)", "change (c)", "change (d)", "change (e)"),
    among=("only MMC", "only MMLDA", "both, alike", "both, one up and one down", "neither"),
    why=(
        "On the way from 0 to μ_y the distance to μ_y falls, and the others grow. So z gets nearer to "
        "its own centre, which MMC sees, and the rivals' shares shrink, which MMLDA sees.",
        "All three centres have the third entry 0, so this adds the same to all squared distances. The "
        "softmax does not see what all logits have in common. MMC does: z leaves its centre.",
        "Beyond μ_y the rivals' distances grow faster than the own one, so MMLDA goes on falling. MMC "
        "rises again, from 0 at μ_y to 8 at 5μ_y. (At length 1 nothing has saturated.)",
        "In MMC there is no rival. In MMLDA a rival that leaves has less of a share in the softmax.",
        "A rotation of everything keeps all distances, and both losses are made of those.",
    ),
    praise="MMLDA sees who is nearest, and MMC how near.",
)

# ---- where the theorem says nothing ----

_LOW, _TOP = math.log1p(math.exp(-2)), math.log1p(math.exp(2))


class _Case(NamedTuple):
    """The four numbers, right where nothing else is said."""

    low: float = _LOW
    top: float = _TOP
    R: float = math.sqrt(2)
    away: float = 1.0


domain = Numbers(
    expected=_Case(),
    labels=(
        "the smallest loss, σ_k = 2 and σ_j = 1",
        "the largest loss, σ_k = 1 and σ_j = 2",
        "R for C = log 2",
        "‖M − μ_k‖ for σ_k = 2 and σ_j = 1",
    ),
    mistakes={
        "R² has log(e^C − 1) in it. You took log e^C, that is C; no loss is below 0.": _Case(-2, 2),
        "The second sign: in case (ii) R² is 2 − log(e^C − 1).": _Case(top=_LOW),
        "The first sign: in case (i) R² is 2 + log(e^C − 1).": _Case(low=_TOP),
        "The two losses are exchanged: where the own class has the larger σ there is a smallest loss, "
        "and it is small.": _Case(_TOP, _LOW),
        "Those are e^C. The loss is the logarithm.": _Case(math.exp(_LOW), math.exp(_TOP)),
        "Those are e^C − 1. Add 1, and take the logarithm.": _Case(math.exp(-2), math.exp(2)),
        "You took every loss for possible, as with MMC. Here R² has to be positive, and that "
        "ends on one side.": _Case(0, math.inf),
        "In case (i) log(e^C − 1) falls without end as C goes to 0, and takes R² below 0 before that. "
        "No sample has a loss of nearly 0.": _Case(low=0),
        "In case (ii) R² falls as C grows, and somewhere it is 0: there the samples end.": _Case(
            top=math.inf
        ),
        "Right, but rounded: give five digits of the first.": _Case(low=0.1269),
        "Right, but rounded too much: give five digits of the first.": _Case(low=0.127),
        "The third is R². R is its root.": _Case(R=2),
        "In R you forgot σ_k σ_j = 2 before the squared distance.": _Case(R=1),
        "You forgot σ_k σ_j = 2 before the squared distance, in the losses and in R, which makes R² "
        "1 ± log(e^C − 1).": _Case(math.log1p(math.exp(-1)), math.log1p(math.e), 1),
        "For C = log 2 the logarithm of e^C − 1 is 0, not log 2.": _Case(R=math.sqrt(2 + math.log(2))),
        "M = 2μ_k − μ_j is 2 away from the rival, and from μ_k as far as μ_j is.": _Case(away=2),
        "M is a difference, not a mean: it lies beyond μ_k, away from μ_j.": _Case(away=1 / 3),
        "M is not μ_k. Put σ_k = 2 and σ_j = 1 into the formula.": _Case(away=0),
    },
    praise="in one case no sample is better, in the other none is worse.",
)

# ---- break the network that nothing can break ----

BALL = Ball(math.inf, 0.1, (0, 1))
SCALE = 100  # the length of the centres


@cache
def saturated() -> nn.Sequential:
    """A network with centres of length 100, whose logits differ by thousands.

    It was trained by MMC with centres of length 1. Then its features and the centres were multiplied
    by 100: it predicts the same, with logits 10,000 times as large.
    """
    digits, generator = data.load("digits"), torch.Generator().manual_seed(3)
    last = mahalanobis.NearestCentre(mahalanobis.centres(10, 64))
    model = nn.Sequential(*models.mlp([64, 100, 64], generator), last)
    run = training.fit(
        model,
        (digits.x_train[:1000], digits.y_train[:1000]),
        partial(training.clean, loss=mahalanobis.mmc),
        epochs=80,
        lr=lambda t: 0.1 * min(1, 10 * t + 0.1) * (1 if t < 0.7 else 0.1),
        batch_size=100,
        optimiser=optimisers.SGD(momentum=0.9),
        generator=generator,
    )
    for _ in run:
        pass
    with torch.no_grad():
        for grown in (*model[-2].parameters(), last.centres):
            grown *= SCALE
    return model.eval()


def _judged() -> tuple[Tensor, Tensor]:
    digits = data.load("digits")
    return digits.x_test[:100], digits.y_test[:100]


def _left(loss: Callable | None) -> float:
    """The percentage right after ten steps of PGD on a loss; None is no attack."""
    x, y = _judged()
    at = x if loss is None else x + attacks.pgd(saturated(), x, y, BALL, steps=10, loss=loss)
    with torch.no_grad():
        return 100 * losses.correct(saturated()(at), y).double().mean().item()


class _Break(Exercise):
    praise = "the gradient was there all the time, behind a softmax that had saturated."

    def examine(self, answer: Any) -> str | None:
        """PGD on the loss must leave at most two points more than PGD on the margin does."""
        if not callable(answer):
            return f"expected a function my_loss(h, y), got {answer!r}."
        x, y = _judged()
        x = x.clone().requires_grad_()
        h = saturated()(x)
        value = answer(h.clone(), y.clone())
        wrong = no_loss(value, len(y), "h")
        if wrong is not None:
            return wrong
        (gradient,) = torch.autograd.grad(value.sum(), x)
        if not finite(value) or not finite(gradient):
            return "your loss or its gradient is NaN or infinite: h is so large that e^h is 0 or ∞."
        left, known = _left(answer), _left(losses.margin_loss)
        if left <= known + 2:
            return None
        dead = 100 * (gradient.flatten(1) == 0).all(1).double().mean().item()
        said = f"PGD on your loss leaves {left:.0f} % right, of {_left(None):.0f} %"
        return f"{said}; {known:.0f} % is possible. {_why(answer, h.detach(), y, dead)}"


def _why(answer: Callable, h: Tensor, y: Tensor, dead: float) -> str:
    """What makes a loss a bad one to climb.

    dead: for how many images its gradient is 0, in percent. All else is seen at h scaled down, where
    nothing saturates, by the slopes in h_y and in the rivals' logits.
    """
    mild = (h / h.abs().max()).requires_grad_()
    guess = answer(mild.clone(), y.clone())
    (slope,) = torch.autograd.grad(guess.sum(), mild)
    own, rivals = slope.gather(1, y[:, None])[:, 0], slope.scatter(1, y[:, None], 0.0).abs()
    p = mild.softmax(1).gather(1, y[:, None])[:, 0]
    zero = f"For {dead:.0f} % of the images the gradient is exactly 0"
    if own.median() > 0:
        return "Your loss rises with h_y, and PGD climbs: it helps the network. Turn the sign around."
    if dead > 5 and own.median() == 0:
        return f"{zero}: as long as the prediction is right your loss is flat, so nothing starts."
    if dead > 5 and close(slope, torch.autograd.grad(-p.sum(), mild)[0]):
        return f"{zero}. Probabilities saturate even earlier than their logarithm: use the logits."
    if dead > 5 and guess.dtype == torch.float64:
        return f"{zero}. More digits do not help: e^−1000 is 0 in float64, too."
    if dead > 5:
        return (
            f"{zero}. The logits differ by thousands, so the softmax is 0 or 1 in float32, and the "
            "cross-entropy is flat. Who needs a softmax to see which centre is nearest?"
        )
    if not rivals.any():
        return (
            "You push z away from its own centre, and nothing saturates. But away is not towards "
            "somebody else: which rival should it meet?"
        )
    if not own.any():
        return "You pull z towards the rivals, and leave out its own centre, which it has to lose."
    if (rivals.amax(1) / rivals.sum(1)).median() < 0.5:
        return "You pull z towards all rivals nearly alike. One is enough: the nearest."
    return "Your gradient is alive, but does it point to the rival whose centre is nearest?"


break_it = _Break()

# ---- the chapter's exercises, in its order ----

EXERCISES = {
    "Three centres by hand": three,
    "The recursion": recursion,
    "Half the way": half_way,
    "Softmax is a g-SCE": as_centres,
    "What does the loss see?": sees,
    "Where the theorem says nothing": domain,
    "Break the network that nothing can break": break_it,
}
