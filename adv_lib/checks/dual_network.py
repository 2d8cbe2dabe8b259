"""Checks of chapter 5, the dual network."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from .. import bounds, losses
from ..threat import Ball
from . import Code, Exercise, Numbers, Words
from .comparing import as_tensor

# ---- one step of the backward pass ----


def _step(hat: Tensor, l: Tensor, u: Tensor, alpha: Tensor) -> Tensor:
    unstable = u / (u - l) * hat.clamp(min=0) - alpha * (-hat).clamp(min=0)
    return torch.where((l < 0) & (u > 0), unstable, torch.where(l >= 0, hat, 0.0))


def _slopes(positive: Callable, negative: Callable, off: float = 0.0, on: float = 1.0) -> Callable:
    """The step with other slopes: of (l, u, α) for the two signs of an unstable unit, of the others."""

    def wrong(hat: Tensor, l: Tensor, u: Tensor, alpha: Tensor) -> Tensor:
        unstable = torch.where(hat > 0, positive(l, u, alpha), negative(l, u, alpha))
        stable = torch.where(l >= 0, on, off)
        return torch.where((l < 0) & (u > 0), unstable, stable) * hat

    return wrong


def _chord(l: Tensor, u: Tensor, alpha: Tensor) -> Tensor:
    return u / (u - l)


def _alpha(l: Tensor, u: Tensor, alpha: Tensor) -> Tensor:
    return alpha


def _one(l: Tensor, u: Tensor, alpha: Tensor) -> Tensor:
    return torch.ones_like(l)


def _middle(l: Tensor, u: Tensor, alpha: Tensor) -> Tensor:
    return (l + u > 0).to(l)


def _everywhere(hat: Tensor, l: Tensor, u: Tensor, alpha: Tensor) -> Tensor:
    return torch.where(hat > 0, u / (u - l), alpha) * hat


_BOUNDS = (
    torch.tensor([-1.0, -1.0, -2.0, -3.0, -3.0, 0.5, 1.0, -1.0]),
    torch.tensor([3.0, 1.0, 1.0, -1.0, -0.5, 2.0, 4.0, 4.0]),
    torch.tensor([1.0, 0.25, 0.0, 0.5, 0.5, 0.5, 0.5, 0.75]),
)

step_back = Code(
    reference=_step,
    cases=[
        (torch.tensor([1.0, -2.0, -1.0, 2.0, -1.0, 3.0, -1.0, 2.0]), *_BOUNDS),
        (torch.tensor([-1.0, 2.0, 3.0, -2.0, 1.0, -3.0, 2.0, -4.0]), *_BOUNDS),
    ],
    mistakes={
        "A negative ν̂ stays negative: [ν̂]₋ is max(−ν̂, 0), so the step subtracts α[ν̂]₋.": _slopes(
            _chord, lambda l, u, alpha: -alpha
        ),
        "The two slopes are exchanged: u/(u − l) is for a positive ν̂, α for a negative one.": _slopes(
            _alpha, _chord
        ),
        "You treat all units as unstable. One that is on passes ν̂ on unchanged, one that is off "
        "passes nothing.": _everywhere,
        "A unit that is off passes nothing on: its ν is 0.": _slopes(_chord, _alpha, off=1.0),
        "A unit that is on is the identity: its ν is ν̂.": _slopes(_chord, _alpha, on=0.0),
        "On and off are exchanged: l ≥ 0 is on, u ≤ 0 is off.": _slopes(_chord, _alpha, off=1.0, on=0.0),
        "The slope u/(l − u) is negative. The chord from (l, 0) to (u, u) rises by u over u − l.": (
            _slopes(lambda l, u, alpha: u / (l - u), _alpha)
        ),
        "The slope of the chord is u/(u − l), with u above: at a = u it has risen by u.": (
            _slopes(lambda l, u, alpha: -l / (u - l), _alpha)
        ),
        "An unstable unit with a positive ν̂ goes through the upper line, whose slope is u/(u − l), "
        "not 1.": _slopes(_one, _alpha),
        "You took u/(u − l) for both signs. That is a valid choice, with α = u/(u − l); the exercise "
        "gives you α.": _slopes(_chord, _chord),
        "You took α for both signs. The upper line is fixed: for a positive ν̂ the slope is u/(u − l).": (
            _slopes(_alpha, _alpha)
        ),
        "That is what backpropagation does where a is positive: slope 1. For an unstable unit the sign "
        "of ν̂ decides: u/(u − l) or α.": _slopes(_one, _one),
        "An unstable unit passes ν̂ on whole or not at all in your step, by the sign of ν̂, as a ReLU "
        "would. Its slopes are u/(u − l) and α.": _slopes(_one, lambda l, u, alpha: 0 * l),
        "Slope 1 or 0, by where most of [l, u] lies, is what backpropagation does there. For an "
        "unstable unit the sign of ν̂ decides: u/(u − l) or α.": _slopes(_middle, _middle),
        "You gave a negative ν̂ of an unstable unit the slope 0. That is a valid choice, α = 0; the "
        "exercise gives you α.": _slopes(_chord, lambda l, u, alpha: 0 * l),
    },
    praise="the weights transposed and this function: that is the whole dual network.",
)

# ---- by hand ----

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

# ---- what is ordered ----

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

# ---- the chapter's exercises, in its order ----

EXERCISES = {
    "One step back": step_back,
    "When nothing is lost": stable,
    "Beat CROWN": beat_crown,
    "What is a theorem?": order,
    "Two properties of a loss": properties,
}
