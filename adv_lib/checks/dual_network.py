"""Checks of chapter 5, the dual network."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .. import bounds, branching, leaves, losses
from ..affine import affine_pieces
from ..threat import Ball
from . import Code, Exercise, Numbers, Words
from .comparing import as_tensor, finite, show

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

# ---- β by hand ----


class _ByHand(NamedTuple):
    """The five numbers, right where nothing else is said."""

    whole: float = -1.0
    on: float = -1.0
    off: float = 1.0
    beta: float = 5.5
    best: float = 1.75


beta_by_hand = Numbers(
    expected=_ByHand(),
    labels=(
        "J without a split",
        "J where unit 1 is on, β = 0",
        "J where unit 1 is off, β = 0",
        "the best β",
        "J at the best β",
    ),
    mistakes={
        "You left out the ball in every J: ε‖ν̂₁‖₁ is to be subtracted.": (4.5, 4.5, 2.5, 0.0, 4.5),
        "You left out the ball in J without a split: ε‖ν̂₁‖₁ = 5.5 is to be subtracted.": _ByHand(
            whole=4.5
        ),
        "You left out the ball where unit 1 is on: ε‖ν̂₁‖₁ = 5.5 is to be subtracted.": _ByHand(on=4.5),
        "You left out the ball where unit 1 is off: ε‖ν̂₁‖₁ = 1.5 is to be subtracted.": _ByHand(off=2.5),
        "The ball lowers every bound: ε‖ν̂₁‖₁ is subtracted.": _ByHand(10.0, 10.0, 4.0),
        "You left out the l term in every J. Unit 2 is unstable in both branches, too, and has ν = 3/4: "
        "l[ν]₊ = −3/4.": (-0.25, -0.25, 1.75, 5.5, 2.5),
        "You left out the l term in J without a split: l[ν]₊ = −3/4, from unit 2.": _ByHand(whole=-0.25),
        "You left out the l term where unit 1 is on: unit 2 is still unstable, l[ν]₊ = −3/4.": _ByHand(
            on=-0.25
        ),
        "You left out the l term where unit 1 is off: unit 2 is still unstable, l[ν]₊ = −3/4.": _ByHand(
            off=1.75
        ),
        "You left out the l term in J at the best β: unit 2 is still unstable, l[ν]₊ = −3/4.": _ByHand(
            best=2.5
        ),
        "ν of unit 2 is u/(u − l) ν̂ = 3/4. You passed ν̂ = 1 on, as if it were on.": (
            -2.0,
            -2.0,
            0.0,
            6.0,
            1.0,
        ),
        "In J without a split you took α = 0. CROWN takes α = 1 for unit 1, because u > −l.": _ByHand(
            whole=1.0
        ),
        "The branches are exchanged. Where unit 1 is off, its ν is 0.": _ByHand(on=1.0, off=-1.0),
        "Where unit 1 is off, its ν is 0, whatever comes back to it.": _ByHand(off=-1.0),
        "The sign of β: where a unit is on, ν = ν̂ + β with β ≥ 0.": _ByHand(beta=-5.5),
        "You left β at 0. With ν = −4 + β, J rises with β: look at ε‖ν̂₁‖₁, which shrinks.": _ByHand(
            beta=0.0, best=-1.0
        ),
        "With β = 4, ν of unit 1 is 0, as if it were off. Go on: what the input gets back is "
        "ν̂₁ = −4 + β − 3/2.": _ByHand(beta=4.0, best=1.0),
        "1 is the smaller J of the two branches, which is not asked for. Or you took l[ν]₊ for unit 1: "
        "it is on now, no longer unstable, and has no such term.": _ByHand(best=1.0),
        "2 is the minimum over the branch. J stays below it: unit 2 still has its triangle.": _ByHand(
            best=2.0
        ),
    },
    praise="one branch closes by the split alone, in the other a split without β is worth nothing.",
)

# ---- the sign of β ----

W_1 = torch.tensor([[-2.0, -2.0], [-1.0, 2.0], [2.0, 0.0]], dtype=torch.float64)
B_1 = torch.tensor([0.25, -0.25, -0.25], dtype=torch.float64)
W_2, B_2 = torch.tensor([-2.0, 1.0, -2.0], dtype=torch.float64), 9.0


@cache
def _grid() -> tuple[Tensor, Tensor]:
    """a (n, 3) of the hidden units and the margin (n,) at n points with ‖δ‖_∞ ≤ 1."""
    line = torch.linspace(-1, 1, 41, dtype=torch.float64)
    a = torch.cartesian_prod(line, line) @ W_1.T + B_1
    return a, a.relu() @ W_2 + B_2


def _claimed(
    phase: Tensor,
    beta: Tensor,
    *,
    on: float = 1.0,
    off: float = 1.0,
    sides: float = 1.0,
    keeps: bool = False,
    l_term: bool = True,
) -> Tensor:
    """J over the branch of that network, or what colleagues have made of it.

    on, off: the sign of β there, 0 to ignore it.  sides: −1 exchanges the branches' layer bounds, 0
    leaves those of the whole ball.  keeps: a unit that is off passes ν̂ on.
    """
    reach = W_1.abs().sum(1)
    l, u, side = B_1 - reach, B_1 + reach, sides * phase
    l, u = torch.where(side > 0, l.clamp(min=0), l), torch.where(side < 0, u.clamp(max=0), u)
    line = _step(-W_2, l, u, (u > -l).double())
    line = torch.where(phase < 0, -W_2, line) if keeps else line
    nu = line + beta * torch.where(phase > 0, on, off)
    J = B_2 - nu @ B_1 - (nu @ W_1).abs().sum()
    return J + (l * line.clamp(min=0))[(l < 0) & (u > 0)].sum() if l_term else J


_COLLEAGUES: Mapping[str, tuple[Callable, bool, str]] = {
    "the right J": (
        _claimed,
        True,
        "Compare it with the margin at points of the branch only, with a ≥ 0 where phase is 1 and a ≤ 0 "
        "where it is −1, and up to rounding.",
    ),
    "a J with ν̂ − β for a unit that is on": (
        partial(_claimed, on=-1.0),
        False,
        "Its sign shows where a unit is on and β > 0 is not too small. Ask for several such β.",
    ),
    "a J with −β for a unit that is off": (
        partial(_claimed, off=-1.0),
        False,
        "Its sign shows where a unit is off and β < 0 is not too small. Ask for several such β.",
    ),
    "a J that keeps the layer bounds of the whole ball": (
        partial(_claimed, sides=0.0),
        True,
        "It forgot to clip them. That costs tightness, at the best slopes and β, but the bound holds.",
    ),
    "a J that ignores β": (
        partial(_claimed, on=0.0, off=0.0),
        True,
        "It gives away what a split could gain, but the bound holds. Nobody asks here how good it is.",
    ),
    "a J with the layer bounds of the other branch": (
        partial(_claimed, sides=-1.0),
        False,
        "It treats a unit that is on as off. Try every unit, on and off, β = 0 among others.",
    ),
    "a J in which a unit that is off passes ν̂ on": (
        partial(_claimed, keeps=True),
        False,
        "It is wrong only for units of which the margin has a negative weight. Try every unit.",
    ),
    "a J without Σ l[ν]₊": (
        partial(_claimed, l_term=False),
        False,
        "It is wrong where a unit is still unstable. Ask for branches with units that are not split.",
    ),
}


def _recorded(J: Callable, asked: list[tuple[Tensor, Tensor]], phase: Any, beta: Any) -> Tensor:
    """J there, and a note of what it was asked for."""
    phase, beta = (torch.as_tensor(each, dtype=torch.float64).detach() for each in (phase, beta))
    if phase.shape != W_2.shape or beta.shape != W_2.shape:
        raise ValueError(
            f"J takes phase and beta of shape (3,), got {tuple(phase.shape)} and {tuple(beta.shape)}"
        )
    asked.append((phase, beta))
    return J(phase, beta)


class _Sound(Exercise):
    praise = "one point of its branch refutes a bound, and a weak bound has none."

    def examine(self, answer: Any) -> str | None:
        """Ask the reader's test about bounds that are right, weak, and wrong."""
        if not callable(answer):
            return f"expected a function my_test(J, a, margin), got {answer!r}."
        for name, (J, truth, why) in _COLLEAGUES.items():
            asked: list[tuple[Tensor, Tensor]] = []
            a, margin = _grid()
            got = answer(partial(_recorded, J, asked), a.clone(), margin.clone())
            if isinstance(got, Tensor) and got.numel() == 1:
                got = got.item()
            if isinstance(got, Tensor) or got not in (True, False):
                return f"for {name} expected True or False, got {got!r}."
            if not asked:
                return "your function never calls J(phase, beta), the bound that it is to test."
            if got and not truth:
                return f"you do not catch {name}. {why}"
            if truth and not got:
                if any(((beta * phase <= 0) & (beta != 0)).any() for phase, beta in asked):
                    why = (
                        "You asked with a β of the wrong sign, or for a unit that is not split. There J "
                        "promises nothing."
                    )
                return f"you accuse {name}. {why}"
        return None


sign_of_beta = _Sound()

# ---- a step with splits ----


def _split(
    hat: Tensor, l: Tensor, u: Tensor, alpha: Tensor, phase: Tensor, beta: Tensor, on: float = 1.0
) -> Tensor:
    decided = torch.where(phase > 0, on * hat, 0.0)
    return torch.where(phase != 0, decided, _step(hat, l, u, alpha)) + beta


def _unsplit(hat, l, u, alpha, phase, beta):
    return _step(hat, l, u, alpha)


def _unclipped(hat, l, u, alpha, phase, beta):
    return _step(hat, l, u, alpha) + beta


def _without_beta(hat, l, u, alpha, phase, beta):
    return _split(hat, l, u, alpha, phase, 0 * beta)


def _minus(hat, l, u, alpha, phase, beta):
    return _split(hat, l, u, alpha, phase, -beta)


def _one_sign(hat, l, u, alpha, phase, beta):
    return _split(hat, l, u, alpha, phase, beta.abs())


def _off_keeps(hat, l, u, alpha, phase, beta):
    return torch.where(phase < 0, hat + beta, _split(hat, l, u, alpha, phase, beta))


def _off_is_zero(hat, l, u, alpha, phase, beta):
    return torch.where(phase < 0, 0.0, _split(hat, l, u, alpha, phase, beta))


def _exchanged(hat, l, u, alpha, phase, beta):
    return _split(hat, l, u, alpha, -phase, beta)


def _clipped(hat, l, u, alpha, phase, beta):
    nu = _split(hat, l, u, alpha, phase, beta)
    return torch.where(phase > 0, nu.clamp(min=0), nu)


def _all_decided(hat, l, u, alpha, phase, beta):
    return torch.where(phase >= 0, hat, 0.0) + beta


_SPLITS = (  # of the first six units of the cases above, and four more
    torch.tensor([-1.0, -1.0, -2.0, -3.0, 0.5, -1.0, -1.0, -2.0, -1.0, -0.5]),
    torch.tensor([3.0, 1.0, 1.0, -1.0, 2.0, 4.0, 3.0, 2.0, 1.0, 1.5]),
    torch.tensor([1.0, 0.25, 0.0, 0.5, 0.5, 0.75, 0.25, 0.5, 0.5, 1.0]),
    torch.tensor([0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0, -1.0, 1.0, -1.0]),
    torch.tensor([0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.5, -2.0, 3.0, -0.25]),
)

split_a_leaf = Code(
    reference=_split,
    cases=[
        (torch.tensor([1.0, -2.0, -1.0, 2.0, -1.0, 2.0, -3.0, 2.0, 1.0, -1.0]), *_SPLITS),
        (torch.tensor([-1.0, 2.0, 3.0, -2.0, 3.0, -4.0, 2.0, -1.0, -2.0, 4.0]), *_SPLITS),
    ],
    mistakes={
        "You do not look at phase and β: that is the step without splits.": _unsplit,
        "You added β to the lines of an unstable unit. One that is split has no lines any more: it is "
        "on or off.": _unclipped,
        "β is missing: ν = ν̂ + β where a unit is put on, ν = β where it is put off.": _without_beta,
        "The sign of β: it is added in both branches, and is itself negative where a unit is put off.": (
            _minus
        ),
        "You took |β|, or β times phase. Where a unit is put off β ≤ 0, and it is added as it is.": (
            _one_sign
        ),
        "A unit that is put off passes nothing on: its ν is β, without ν̂.": _off_keeps,
        "A unit that is put off still has its multiplier: its ν is β, not 0.": _off_is_zero,
        "On and off are exchanged: phase 1 is on, ν = ν̂ + β, and phase −1 is off, ν = β.": _exchanged,
        "β ≥ 0, but ν = ν̂ + β of a unit that is put on may be negative: cut off nothing.": _clipped,
        "Where phase is 0 a unit is not split: the three cases of the step before still hold.": (
            _all_decided
        ),
    },
    praise="one addition more than before: that is what a split costs.",
)

# ---- a search, counted ----


def _searched(
    model: nn.Sequential, eps: float, sign: bool, score: leaves.Score = leaves.price
) -> branching.Found:
    """Branch and bound for the smallest output of a network over ‖δ‖_∞ ≤ ε around 0."""
    x = torch.zeros(1, model[0].in_features, dtype=torch.float64)
    ball, one = Ball(math.inf, eps), torch.ones(1, 1, dtype=torch.float64)
    with torch.no_grad():
        layers = bounds.pre_activations(model, x, ball, "crown")
    problem = affine_pieces(model, x.shape[1:]), layers, x, ball.region(x), one, torch.tensor([0])
    bounded = leaves.Leaves(*problem, score=score)
    return branching.search(bounded, [(math.inf, x[0].numpy())], sign=sign)[0]


# ---- break it: a score that fails ----


class _FailingScore(Exercise):
    praise = "how far a unit can move says nothing about how much the output minds."

    def examine(self, answer: Any) -> str | None:
        """Search the reader's network with two scores, and compare how many cases they take."""
        if not isinstance(answer, list | tuple) or len(answer) != 4:
            return f"expected a list of W_1, b_1, w_2 and b_2, got {answer!r}."
        parts = [as_tensor(part) for part in answer]
        names = ("W_1", "b_1", "w_2", "b_2")
        for name, part in zip(names, parts, strict=True):
            if part is None or not finite(part):
                return f"{name}: expected finite numbers."
        W, b, w, offset = parts
        k = len(W) if W.ndim == 2 else 0
        if not 1 <= k <= 4 or W.shape != (k, 2) or b.shape != (k,) or w.shape != (k,) or offset.ndim:
            shapes = ", ".join(f"{n} {tuple(p.shape)}" for n, p in zip(names, parts, strict=True))
            return f"expected W_1 (k, 2), b_1 (k,), w_2 (k,) and a number b_2, with k ≤ 4, got {shapes}."
        model = nn.Sequential(nn.Linear(2, k), nn.ReLU(), nn.Linear(k, 1)).double()
        with torch.no_grad():
            for parameter, value in zip(model.parameters(), (W, b, w[None], offset[None]), strict=True):
                parameter.copy_(value)
        wide, good = (_searched(model, 1.0, True, score) for score in (leaves.spread, leaves.share))
        worst = min(wide, good, key=lambda found: found.upper)
        if worst.upper <= branching.TOLERANCE:
            return (
                f"at δ = {show(worst.point.tolist())} the margin is {worst.upper:.4g}, and a search for "
                "the sign may end as soon as it finds such a point. Raise b_2."
            )
        said = f"with spread {_cases(wide)}, with share {_cases(good)}"
        if good.nodes == 1:
            return (
                f"{said}. Nothing has to be split: lower b_2, or take two units whose triangles lose "
                "something."
            )
        if wide.nodes >= good.nodes + 3:
            return None
        widest = int(W.abs().sum(1).argmax())
        if wide.nodes <= good.nodes:
            return (
                f"{said}. Unit {widest + 1} moves most, and it is worth a split. Which unit could move "
                "more, and matter less?"
            )
        return f"{said}. That is fewer than 3 more. Let the wide unit be split in every branch."


def _cases(found: branching.Found) -> str:
    return "1 case" if found.nodes == 1 else f"{found.nodes} cases"


score_that_fails = _FailingScore()

# ---- the size of the tree ----


def drawn(scale: float = 1.0) -> nn.Sequential:
    """The network of the exercise on trees, the weights and the offset of its last layer times scale.

    Two inputs, two hidden layers of five units, one output, the margin.
    """
    generator = torch.Generator().manual_seed(43)
    layers = [nn.Linear(2, 5), nn.ReLU(), nn.Linear(5, 5), nn.ReLU(), nn.Linear(5, 1)]
    model = nn.Sequential(*layers).double()
    with torch.no_grad():
        for parameter in model.parameters():
            size = 0.5 if parameter.ndim == 2 else 0.3
            parameter.copy_(
                size * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            )
        model[4].bias.fill_(1.19)  # robust at ε = 1, by 0.05
        for parameter in model[4].parameters():
            parameter.mul_(scale)
    return model


_TREES = {  # pair → the factor of the last layer, ε, and whether only the sign is asked for, of A and B
    "ε and 2ε, the minimum": ((1, 1.0, False), (1, 2.0, False)),
    "the last layer and twice it, the sign": ((1, 1.0, True), (2, 1.0, True)),
    "the sign and the minimum": ((1, 1.0, True), (1, 1.0, False)),
    "ε and 2ε, the sign": ((1, 1.0, True), (1, 2.0, True)),
}


@cache
def tree_sizes() -> Mapping[str, tuple[int, int]]:
    """How many cases the searches A and B of every pair take."""
    count = cache(lambda scale, *asked: _searched(drawn(scale), *asked).nodes)
    return {pair: (count(*one), count(*other)) for pair, (one, other) in _TREES.items()}


class _Counted(Sequence):
    """Sentences with the numbers of cases in front, counted when they are first read."""

    def __init__(self, *sentences: str):
        self.sentences = sentences

    def __len__(self) -> int:
        return len(self.sentences)

    def __getitem__(self, i):
        one, other = list(tree_sizes().values())[i]
        return f"A takes {one} cases and B takes {other}. {self.sentences[i]}"


size_of_the_tree = Words(
    truth=("B", "same", "B", "A"),
    why=_Counted(
        "A larger ball makes more units unstable and every triangle wider: more has to be split.",
        "All bounds and all points are doubled. A case closes when its bound is above 0, and twice a "
        "bound has its sign.",
        "For the sign a case closes as soon as its bound is above 0. For the minimum it has to come up "
        "to the best point.",
        "At 2ε a point breaks the network. The first pass that meets it ends the search: to find one "
        "point is less work than to rule out all.",
    ),
    among=("A", "B", "same"),
    labels=tuple(f"{i}. {pair}" for i, pair in enumerate(_TREES, 1)),
    praise="what is asked decides how long a search takes, at least as much as the size of the ball.",
)

# ---- what a limit leaves ----

what_a_limit_leaves = Words(
    truth=(True, False, True, True, False, True, False, True),
    why=(
        "No case, closed or waiting, has a bound below −0.3, and together they are the whole ball.",
        "−0.3 is a bound, not a point. The best point has the margin 0.2.",
        "The minimum lies between −0.3 and 0.2. That is what unknown means.",
        "All cases are closed above 0, and together they are the whole ball.",
        "A search for the sign closes a case above 0, not at its minimum. All that it proves is that "
        "the minimum lies between 0.02 and 0.2.",
        "A point with a margin below 0 breaks the network, whatever waits.",
        "−0.1 is the best point so far. Cases with the bound −2 wait, and may hold worse ones.",
        "The smallest bound of all cases, closed and waiting, is 0.05, above 0. What waits could only "
        "say how far above.",
    ),
    among=(True, False),
    labels=tuple(
        f"{i}. {said}"
        for i, said in enumerate(
            (
                "(a) no margin below −0.3",
                "(a) broken",
                "(a) left open",
                "(b) robust",
                "(b) the smallest margin is 0.2",
                "(c) broken",
                "(c) no margin below −0.1",
                "(d) robust",
            ),
            1,
        )
    ),
    praise="cases give the lower end, points the upper one, and a limit takes neither away.",
)

# ---- the chapter's exercises, in its order ----

EXERCISES = {
    "One step back": step_back,
    "When nothing is lost": stable,
    "Beat CROWN": beat_crown,
    "What is a theorem?": order,
    "Two properties of a loss": properties,
    "β by hand": beta_by_hand,
    "Split a leaf": split_a_leaf,
    "The sign of β": sign_of_beta,
    "What a limit leaves": what_a_limit_leaves,
    "The size of the tree": size_of_the_tree,
    "A score that fails": score_that_fails,
}
