"""Checks of chapter 4, duality."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from .. import bounds, losses
from ..threat import Ball
from . import Code, Exercise, Numbers, Words
from .comparing import as_tensor

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

stable = Numbers(
    expected=(-2.0, 0.0, 3.0, 0.25, 1.0),
    labels=(
        "ν of the first unit",
        "ν of the second unit",
        "J",
        "J with the offset 0.5",
        "the minimum with the offset 0.5",
    ),
    mistakes={
        "The backward pass begins with −1, minus the direction that is minimised, so ν of the "
        "first unit is −2.": (2.0, 0.0, 3.0, 0.25, 1.0),
        "The second unit is off on the whole ball: its ν is 0, whatever comes back to it.": (
            -2.0,
            5.0,
            3.0,
            0.25,
            1.0,
        ),
        "For J you left out the last offset: minus the margin's ν times 1 adds 1.": (
            -2.0,
            0.0,
            2.0,
            -0.75,
            1.0,
        ),
        "For J you left out the ball: ε‖ν̂₁‖₁ is to be subtracted.": (-2.0, 0.0, 5.0, 1.75, 1.0),
        "In the last J you took α = 1. The exercise asks for α = u/(u − l) = 3/4, so ν = −1.5.": (
            -2.0,
            0.0,
            3.0,
            -0.5,
            1.0,
        ),
        "In the last J you took α = 0. It is the best slope here; the exercise asks for 3/4.": (
            -2.0,
            0.0,
            3.0,
            1.0,
            1.0,
        ),
        "For J the ball lowers the bound: ε‖ν̂₁‖₁ is subtracted.": (-2.0, 0.0, 7.0, 3.25, 1.0),
        "With the offset 0.5 the unit is unstable, l = −0.5 and u = 1.5: ν = α ν̂ with α = 3/4.": (
            -2.0,
            0.0,
            3.0,
            0.0,
            1.0,
        ),
        "The minimum itself: 2 max(δ + 0.5, 0) + 1 is 1 for every δ ≤ −0.5.": (
            -2.0,
            0.0,
            3.0,
            0.25,
            0.0,
        ),
    },
    praise="without an unstable unit the bound is the minimum; with one, the slope decides.",
)

# ---- the two-layer dual ----


def _two_layer(
    W1: Tensor, b1: Tensor, w2: Tensor, b2: float, x: Tensor, eps: float, l: Tensor, u: Tensor
) -> Tensor:
    nu = -u / (u - l) * w2
    hat = W1.T @ nu
    return b2 - nu @ b1 - hat @ x - eps * hat.abs().sum() + (l * nu.clamp(min=0)).sum()


def _changed(**signs: float) -> Callable:
    """The dual with another factor before one of its terms."""

    def wrong(
        W1: Tensor, b1: Tensor, w2: Tensor, b2: float, x: Tensor, eps: float, l: Tensor, u: Tensor
    ) -> Tensor:
        nu = -u / (u - l) * w2
        hat = W1.T @ nu
        of = {"last": 1, "first": 1, "input": 1, "ball": 1, "units": 1} | signs
        terms = of["last"] * b2 - of["first"] * nu @ b1 - of["input"] * hat @ x
        return terms - of["ball"] * eps * hat.abs().sum() + of["units"] * (l * nu.clamp(min=0)).sum()

    return wrong


def _other_nu(nu_of: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Callable:
    """The dual at other multipliers: nu_of(w2, l, u)."""

    def wrong(
        W1: Tensor, b1: Tensor, w2: Tensor, b2: float, x: Tensor, eps: float, l: Tensor, u: Tensor
    ) -> Tensor:
        nu = nu_of(w2, l, u)
        hat = W1.T @ nu
        return b2 - nu @ b1 - hat @ x - eps * hat.abs().sum() + (l * nu.clamp(min=0)).sum()

    return wrong


def _no_clamp(
    W1: Tensor, b1: Tensor, w2: Tensor, b2: float, x: Tensor, eps: float, l: Tensor, u: Tensor
) -> Tensor:
    nu = -u / (u - l) * w2
    hat = W1.T @ nu
    return b2 - nu @ b1 - hat @ x - eps * hat.abs().sum() + (l * nu).sum()


def _two_norm(
    W1: Tensor, b1: Tensor, w2: Tensor, b2: float, x: Tensor, eps: float, l: Tensor, u: Tensor
) -> Tensor:
    nu = -u / (u - l) * w2
    hat = W1.T @ nu
    return b2 - nu @ b1 - hat @ x - eps * hat.norm() + (l * nu.clamp(min=0)).sum()


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
    reference=_two_layer,
    cases=[_instance(0), _instance(1)],
    mistakes={
        "The term of the units, Σ l[ν]₊, is missing. Each unstable unit with ν > 0 costs something.": (
            _changed(units=0)
        ),
        "The term of the units has the wrong sign. l is negative and [ν]₊ is not, so that l[ν]₊ lowers "
        "the bound, as it must.": _changed(units=-1),
        "The ball's term has the wrong sign: the adversary lowers the bound.": _changed(ball=-1),
        "The ball's term is missing: x is not the only input.": _changed(ball=0),
        "The offset b₂ has the wrong sign: −ν₂ᵀb₂ with ν₂ = −1.": _changed(last=-1),
        "The offset b₂ is missing: −ν₂ᵀb₂ with ν₂ = −1.": _changed(last=0),
        "The term of b₁ has the wrong sign: it is −νᵀb₁.": _changed(first=-1),
        "The term of b₁ is missing: it is −νᵀb₁.": _changed(first=0),
        "The term of x has the wrong sign: it is −xᵀν̂₁.": _changed(input=-1),
        "The sign of ν is wrong. The pass begins with ν₂ = −1, so that ν̂₂ = −w₂, and the slope "
        "u/(u − l) is positive; u/(l − u) is not.": _other_nu(lambda w2, l, u: u / (u - l) * w2),
        "In the term of the units take [ν]₊, not ν: a unit with a negative ν costs nothing.": _no_clamp,
        "The dual norm of ℓ∞ is ℓ1: sum the |ν̂₁|.": _two_norm,
        "You return −J. The bound is J itself.": lambda *a: -_two_layer(*a),
        "The exercise asks for the slope u/(u − l) on both sides. You took 1 where ν̂ is negative, which "
        "is a valid bound too, and another one.": _other_nu(
            lambda w2, l, u: torch.where(w2 < 0, -u / (u - l), -1.0) * w2
        ),
        "The exercise asks for the slope u/(u − l) on both sides. You took 0 where ν̂ is negative, which "
        "is a valid bound too, and another one.": _other_nu(
            lambda w2, l, u: torch.where(w2 < 0, -u / (u - l), 0.0) * w2
        ),
        "You sent −w₂ through unchanged. Every unit here is unstable, and its slope is u/(u − l).": (
            _other_nu(lambda w2, l, u: -w2)
        ),
        "The slope is u/(u − l), the rise of the chord from (l, 0) to (u, u).": (
            _other_nu(lambda w2, l, u: l / (u - l) * w2)
        ),
    },
    praise="two matrix products, and a statement about the whole ball.",
)

# ---- what is ordered ----


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

order = Words(
    truth=(True, False, False, True, False, True, True),
    why=(
        "Every choice of slopes is a choice of multipliers of the same linear program, and weak duality "
        "puts it below the program's minimum.",
        "The relaxations differ. A slope of 1 under a unit that can be off says less than the "
        "interval's h ≥ 0.",
        "Neither choice of slopes is the better one for every unit: it depends on what comes back.",
        "Tighter bounds give smaller triangles, so that the second program has fewer points.",
        "The first has the weaker solver and the better bounds. Either can win.",
        "An attack is at a point of the ball, and the minimum is over all of them.",
        "The ascent starts at CROWN's slopes and keeps the best that it meets.",
    ),
    among=(True, False),
    praise="with the same layer bounds nearly everything is ordered, without them little is.",
)

# ---- losses ----


class _Properties(Exercise):
    praise = "with both, and only with both, the worst margins may be put into the loss."

    def examine(self, answer: Callable) -> str | None:
        """Ask the reader's test about losses with both properties, with one, and with none."""
        if not callable(answer):
            return f"expected a function, got {answer!r}."
        generator = torch.Generator().manual_seed(0)
        z = 2 * torch.randn(400, 5, generator=generator)
        y = torch.randint(0, 5, (400,), generator=generator)
        for name, (loss, truth, why) in _LOSSES.items():
            got = answer(loss, z.clone(), y.clone())
            if isinstance(got, Tensor) and got.numel() == 1:
                got = got.item()
            if isinstance(got, Tensor):
                return f"expected True or False for {name}: one answer for all samples."
            if got not in (True, False):
                return f"expected True or False for {name}, got {got!r}."
            if bool(got) is not truth:
                return f"for {name} expected {truth}, got {bool(got)}. {why}"
        return None


def _own(z: Tensor, y: Tensor) -> Tensor:
    return z.gather(1, y[:, None]).squeeze(1)


def _squares(z: Tensor, y: Tensor) -> Tensor:
    return (z - nn.functional.one_hot(y, z.shape[1])).square().sum(1)


def _smoothed(z: Tensor, y: Tensor) -> Tensor:
    return nn.functional.cross_entropy(z, y, reduction="none", label_smoothing=0.4)


_LOSSES: Mapping[str, tuple[Callable, bool, str]] = {
    "cross-entropy": (
        losses.cross_entropy,
        True,
        "It has both. Compare up to rounding, and change logits only so that the model suffers: others "
        "up, z_y down.",
    ),
    "the margin loss": (losses.margin_loss, True, "It has both; raising a logit may leave it as it is."),
    "the log-odds": (losses.log_odds, True, "It has both properties."),
    "−z_y": (
        lambda z, y: -_own(z, y),
        False,
        "It is monotone, but moves when all logits move together. Test the shift as well.",
    ),
    "cross-entropy with label smoothing": (
        _smoothed,
        False,
        "It does not change under a shift, but it can fall when another logit rises, because it wants "
        "some of the mass there. Raise each logit by itself.",
    ),
    "the difference of logits ratio": (
        lambda z, y: losses.dlr(z, y),
        False,
        "It does not change under a shift, but its denominator does when the third largest logit rises.",
    ),
    "a loss that is the squared error for class 4 and cross-entropy for all others": (
        lambda z, y: torch.where(y == 4, _squares(z, y), losses.cross_entropy(z, y)),
        False,
        "It has the properties for most samples. One sample is enough to refute: look at all of them.",
    ),
    "the squared error": (_squares, False, "It has neither of the two properties."),
}

properties = _Properties()

# ---- break it: intervals above CROWN ----


class _BeatCrown(Exercise):
    praise = "a slope of 1 under the ReLU lets h be negative; the interval knows that it is not."

    def examine(self, answer: Sequence[float]) -> str | None:
        """One unit, margin c max(w δ + b, 0) + d over |δ| ≤ 1, by both methods of the package."""
        numbers = as_tensor(answer)
        if numbers is None or numbers.shape != (4,) or not numbers.isfinite().all():
            return f"expected four finite numbers w, b, c, d, got {answer!r}."
        w, b, c, d = numbers.tolist()
        model = nn.Sequential(nn.Linear(1, 1), nn.ReLU(), nn.Linear(1, 2)).double()
        with torch.no_grad():
            model[0].weight[:], model[0].bias[:] = w, b
            model[2].weight[:], model[2].bias[:] = torch.tensor([[c], [0.0]]), torch.tensor([d, 0.0])
            x, y = torch.zeros(1, 1, dtype=torch.float64), torch.zeros(1, dtype=torch.int64)
            by = {
                method: bounds.margins(model, x, y, Ball(math.inf, 1.0), method)[0, 1].item()
                for method in ("interval", "crown")
            }
        said = f"intervals say {by['interval']:.4g}, CROWN says {by['crown']:.4g}"
        if by["interval"] > 0 >= by["crown"]:
            return None
        if abs(b) >= abs(w):
            return f"{said}. The unit is stable, and there the two agree: let w δ + b change its sign."
        if c <= 0:
            return f"{said}. With c ≤ 0 both use the upper end. The lower line matters for c > 0."
        if b <= 0:
            return f"{said}. Here −l ≥ u, so that CROWN takes the slope 0, as intervals do: try b > 0."
        return f"{said}. The unit is right; choose d so that one is positive and the other is not."


beat_crown = _BeatCrown()

# ---- the chapter's exercises, in its order ----

EXERCISES = {
    "Conjugates by hand": conjugates,
    "Which sign is wrong?": signs,
    "The two-layer dual": two_layer,
    "When nothing is lost": stable,
    "Beat CROWN": beat_crown,
    "What is a theorem?": order,
    "Two properties of a loss": properties,
}
