"""Checks of chapter 4, duality."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from . import Code, Exercise, Numbers

# ---- by hand ----

conjugates = Numbers(
    expected=(0.0, math.inf, 4.5, 3.0, 0.7),
    labels=("|s| at y = 1", "|s| at y = 2", "s²/2 at y = 3", "the interval at y = −3", "the ball"),
    mistakes={
        "At |y| = 1 the line y s still stays below |s|, it touches it on a whole side. The largest "
        "y s − |s| is 0, not ∞.": (math.inf, math.inf, 4.5, 3.0, 0.7),
        "For |y| > 1 the difference y s − |s| grows without end as s moves away: f*(2) is ∞.": (
            0.0,
            0.0,
            4.5,
            3.0,
            0.7,
        ),
        "For s²/2: y s − s²/2 is largest at s = y, and its value there is y²/2.": (
            0.0,
            math.inf,
            9.0,
            3.0,
            0.7,
        ),
        "For the interval: y = −3 is negative, so the best s in [−1, 2] is the lower end, −1.": (
            0.0,
            math.inf,
            4.5,
            -6.0,
            0.7,
        ),
        "For the interval you have the smallest y s, or a sign too many: (−3)·(−1) = 3.": (
            0.0,
            math.inf,
            4.5,
            -3.0,
            0.7,
        ),
        "For the interval: y = −3 likes negative s, and the lower end is −1, not −2.": (
            0.0,
            math.inf,
            4.5,
            6.0,
            0.7,
        ),
        "For the ball: every entry of δ takes the sign of its y_i, so the |y_i| are added.": (
            0.0,
            math.inf,
            4.5,
            3.0,
            -0.1,
        ),
        "For the ball: the dual norm of ℓ∞ is ℓ1, the sum of the |y_i|, and you used ‖y‖₂.": (
            0.0,
            math.inf,
            4.5,
            3.0,
            0.5,
        ),
        "For the ball: the dual norm of ℓ∞ is ℓ1, the sum of the |y_i|, and you used ‖y‖_∞.": (
            0.0,
            math.inf,
            4.5,
            3.0,
            0.4,
        ),
    },
    praise="the last two are the support functions of two sets, and the ball's is the one of Chapter 1.",
)

# ---- the conjugate of a ReLU ----


def _relu(p: Tensor, q: Tensor, l: Tensor, u: Tensor) -> Tensor:
    ends = torch.maximum(p * l + q * l.clamp(min=0), p * u + q * u.clamp(min=0))
    return torch.where((l < 0) & (u > 0), ends.clamp(min=0), ends)


def _corners(unstable: Callable, off: Callable, on: Callable) -> Callable:
    """The conjugate with other formulas for the three kinds of units; each is of (p, q, l, u)."""

    def wrong(p: Tensor, q: Tensor, l: Tensor, u: Tensor) -> Tensor:
        stable = torch.where(l >= 0, on(p, q, l, u), off(p, q, l, u))
        return torch.where((l < 0) & (u > 0), unstable(p, q, l, u), stable)

    return wrong


def _largest(*terms: Tensor) -> Tensor:
    return torch.stack(terms).amax(0)


def _unstable(p: Tensor, q: Tensor, l: Tensor, u: Tensor) -> Tensor:
    return _largest(0 * p, l * p, u * (p + q))


_LOWER = torch.tensor([-1.0, -2.0, -1.0, -3.0, -3.0, 0.5, 1.0, -2.0])
_UPPER = torch.tensor([2.0, 1.0, 3.0, -1.0, -0.5, 2.0, 4.0, 2.0])

relu_conjugate = Code(
    reference=_relu,
    cases=[
        (
            torch.tensor([1.0, -1.0, 0.5, -1.0, 2.0, 1.0, -2.0, 0.5]),
            torch.tensor([0.5, 0.5, -2.0, 0.5, 1.0, -2.0, 1.0, -1.0]),
            _LOWER,
            _UPPER,
        ),
        (
            torch.tensor([-1.0, 1.0, -2.0, 1.0, 0.5, 1.0, 0.5, -0.5]),
            torch.tensor([2.0, -3.0, 0.5, 2.0, -1.0, 1.0, -2.0, 0.25]),
            _LOWER,
            _UPPER,
        ),
    ],
    mistakes={
        "You used the formula of the unstable units for all. A unit that is on has its two corners at "
        "(l, l) and (u, u), one that is off at (l, 0) and (u, 0): the others are not in S.": _unstable,
        "The units that are on are right; for one that is off, h is 0, so q does not matter and the "
        "corners are (l, 0) and (u, 0).": _corners(
            _unstable, _unstable, lambda p, q, l, u: _largest(l * (p + q), u * (p + q))
        ),
        "The units that are off are right; for one that is on, h is a, and the corners are (l, l) and "
        "(u, u).": _corners(_unstable, lambda p, q, l, u: _largest(l * p, u * p), _unstable),
        "The corner (u, u) of an unstable unit is missing: it adds u(p + q).": _corners(
            lambda p, q, l, u: _largest(0 * p, l * p),
            lambda p, q, l, u: _largest(l * p, u * p),
            lambda p, q, l, u: _largest(l * (p + q), u * (p + q)),
        ),
        "The corner (l, 0) of an unstable unit is missing: it adds l p.": _corners(
            lambda p, q, l, u: _largest(0 * p, u * (p + q)),
            lambda p, q, l, u: _largest(l * p, u * p),
            lambda p, q, l, u: _largest(l * (p + q), u * (p + q)),
        ),
        "Stable units are segments, not points: take the larger of the two ends.": _corners(
            _unstable, lambda p, q, l, u: 0 * p, lambda p, q, l, u: 0 * p
        ),
        "The corner (0, 0) of an unstable unit is missing: it adds 0, also where the two others are "
        "negative.": lambda p, q, l, u: torch.maximum(
            p * l + q * l.clamp(min=0), p * u + q * u.clamp(min=0)
        ),
        "At the left corner of an unstable unit h is 0, not l: its value is l p.": _corners(
            lambda p, q, l, u: _largest(0 * p, l * (p + q), u * (p + q)),
            lambda p, q, l, u: _largest(l * p, u * p),
            lambda p, q, l, u: _largest(l * (p + q), u * (p + q)),
        ),
        "At the right corner of an unstable unit a is u as well as h: its value is u(p + q).": _corners(
            lambda p, q, l, u: _largest(0 * p, l * p, u * q),
            lambda p, q, l, u: _largest(l * p, u * p),
            lambda p, q, l, u: _largest(l * (p + q), u * (p + q)),
        ),
        "You have the smallest value of p a + q h on S; the conjugate is the largest.": (
            lambda p, q, l, u: -_relu(-p, -q, l, u)
        ),
    },
    praise="a linear function on a polygon: look at its corners, and nowhere else.",
)

# ---- break it: wrong signs ----


class _Signs(Exercise):
    praise = "weak duality is a test: one input below the value refutes a formula."
    truth = ({"O", "B"}, set(), {"O", "U"}, {"B", "U"})

    def examine(self, answer: Sequence) -> str | None:
        """Each entry is a list of terms, in any order."""
        if not isinstance(answer, list | tuple) or len(answer) != 4:
            return f"expected a list of 4 entries, got {answer!r}."
        for name, said, truth in zip(("i", "ii", "iii", "iv"), answer, self.truth, strict=True):
            if isinstance(said, str) or not hasattr(said, "__iter__") or not set(said) <= set("OXBU"):
                return f'({name}): expected a list of terms, such as ["O", "B"] or [], got {said!r}.'
            for term in "OXBU":
                if (term in said) == (term in truth):
                    continue
                if term == "X":
                    return f"({name}): all four agree on X, and weak duality asks for −I*, so it is −X."
                wrong = "is wrong" if term in truth else "is right"
                return f"({name}): the sign of {term} {wrong} there. {_TERMS[term]}"
        return None


_TERMS = {
    "O": "Think of a last offset that rises by 10: all margins rise by 10, and ν₂ᵀb₂ = −cᵀb₂ falls.",
    "B": "B is not negative, and a larger ball can only lower a bound from below.",
    "U": "U is not positive, since l < 0, and a relaxed unit can only lower a bound from below.",
}

signs = _Signs()

# ---- the two-layer dual ----


def _dual(
    nu_of: Callable[[Tensor, Tensor, Tensor], Tensor] = lambda w2, l, u: -u / (u - l) * w2,
    positive: Callable[[Tensor], Tensor] = lambda nu: nu.clamp(min=0),
    size: Callable[[Tensor], Tensor] = lambda hat: hat.abs().sum(),
    **factors: float,
) -> Callable:
    """The dual of a two-layer network: the right one, or one with a mistake in it.

    nu_of: ν from w2, l and u.  positive: [ν]₊.  size: the dual norm.
    factors: what stands before one of the terms last (b₂), first (b₁), input (x), ball and units.
    """
    of = {"last": 1, "first": 1, "input": 1, "ball": 1, "units": 1} | factors

    def two_layer(
        W1: Tensor, b1: Tensor, w2: Tensor, b2: float, x: Tensor, eps: float, l: Tensor, u: Tensor
    ) -> Tensor:
        nu = nu_of(w2, l, u)
        hat = W1.T @ nu
        J = of["last"] * b2 - of["first"] * nu @ b1 - of["input"] * hat @ x
        return J - of["ball"] * eps * size(hat) + of["units"] * (l * positive(nu)).sum()

    return two_layer


def _instance(seed: int) -> tuple:
    """Three units, all unstable over the ball."""
    generator = torch.Generator().manual_seed(seed)
    W1 = torch.randint(-2, 3, (3, 2), generator=generator).float()
    W1[:, 0] += (W1 == 0).all(1)  # no unit without an input
    b1, x = torch.tensor([0.2, -0.1, 0.1]), torch.tensor([0.5, -0.25])
    b1 = b1 - W1 @ x
    reach = 0.5 * W1.abs().sum(1)
    a = W1 @ x + b1
    w2 = torch.tensor([1.0, -2.0, 0.5]) if seed == 0 else torch.tensor([-1.0, 1.0, -3.0])
    return W1, b1, w2, 0.5, x, 0.5, a - reach, a + reach


two_layer = Code(
    reference=_dual(),
    cases=[_instance(0), _instance(1)],
    mistakes={
        "The term of the units, Σ l[ν]₊, is missing. Each unstable unit with ν > 0 costs something.": (
            _dual(units=0)
        ),
        "The term of the units has the wrong sign. l is negative and [ν]₊ is not, so that l[ν]₊ lowers "
        "the bound, as it must.": _dual(units=-1),
        "The ball's term has the wrong sign: the adversary lowers the bound.": _dual(ball=-1),
        "The ball's term is missing: x is not the only input.": _dual(ball=0),
        "The offset b₂ has the wrong sign: −ν₂ᵀb₂ with ν₂ = −1.": _dual(last=-1),
        "The offset b₂ is missing: −ν₂ᵀb₂ with ν₂ = −1.": _dual(last=0),
        "The term of b₁ has the wrong sign: it is −νᵀb₁.": _dual(first=-1),
        "The term of b₁ is missing: it is −νᵀb₁.": _dual(first=0),
        "The term of x has the wrong sign: it is −xᵀν̂₁.": _dual(input=-1),
        "The sign of ν is wrong. The pass begins with ν₂ = −1, so that ν̂₂ = −w₂, and the slope "
        "u/(u − l) is positive; u/(l − u) is not.": _dual(lambda w2, l, u: u / (u - l) * w2),
        "In the term of the units take [ν]₊, not ν: a unit with a negative ν costs nothing.": _dual(
            positive=lambda nu: nu
        ),
        "The dual norm of ℓ∞ is ℓ1: sum the |ν̂₁|.": _dual(size=torch.linalg.norm),
        "You return −J. The bound is J itself.": lambda *a: -_dual()(*a),
        "The exercise asks for u/(u − l) whatever the sign of ν̂. You took 1 where ν̂ is negative, which "
        "is a valid bound too, and another one.": _dual(
            lambda w2, l, u: torch.where(w2 < 0, -u / (u - l), -1.0) * w2
        ),
        "The exercise asks for u/(u − l) whatever the sign of ν̂. You took 0 where ν̂ is negative, which "
        "is a valid bound too, and another one.": _dual(
            lambda w2, l, u: torch.where(w2 < 0, -u / (u - l), 0.0) * w2
        ),
        "You sent −w₂ through unchanged. Every unit here is unstable, and its slope is u/(u − l).": (
            _dual(lambda w2, l, u: -w2)
        ),
        "The slope is u/(u − l), the rise of the chord from (l, 0) to (u, u).": (
            _dual(lambda w2, l, u: l / (u - l) * w2)
        ),
    },
    praise="two matrix products, and a statement about the whole ball.",
)

# ---- the chapter's exercises, in its order ----

EXERCISES = {
    "Conjugates by hand": conjugates,
    "The conjugate of a ReLU": relu_conjugate,
    "Which sign is wrong?": signs,
    "The two-layer dual": two_layer,
}
