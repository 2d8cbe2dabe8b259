"""Checks of chapter 3, the exact answer and its convex relaxation."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache

import numpy as np
import torch
from torch import Tensor, nn

from .. import exact, models, programs
from ..relaxation import Array, relax
from ..threat import Ball
from . import Code, Exercise, Numbers
from .comparing import as_tensor, copies

# ---- by hand ----

four_inequalities = Numbers(
    expected=(0.0, 1.5, 2.0, 1.0),
    labels=("h for a = −0.5", "h for a = 1.5", "the number of pairs without an h", "the largest h"),
    mistakes={
        "With a fractional v the unit may lie above the ReLU. Which v allows the most at a = 0.5? There "
        "h ≤ 2v and h ≤ 1.5 − v meet.": (0.0, 1.5, 2.0, 0.5),
        "For the last number you used h ≤ u v alone, with v = 1. The fourth inequality also counts: "
        "h ≤ a − l (1 − v) = 1.5 − v.": (0.0, 1.5, 2.0, 2.0),
        "For the last number you used the fourth inequality alone, with v = 0. The third also counts: "
        "h ≤ u v = 2v.": (0.0, 1.5, 2.0, 1.5),
        "h is never negative: for a = −0.5 the second inequality says h ≥ 0.": (-0.5, 1.5, 2.0, 1.0),
        "Some pairs (a, v) contradict themselves. Try a = 1.5 with v = 0: h ≥ 1.5 and h ≤ 0.": (
            0.0,
            1.5,
            0.0,
            1.0,
        ),
        "You found one pair without an h; there is another one for the other a.": (0.0, 1.5, 1.0, 1.0),
    },
    praise="v can only tell the truth about the sign of a, unless it may be a fraction.",
)

elision = Numbers(
    expected=(-1.5, 0.5),
    labels=("the smallest z_y minus the largest z_k", "the smallest z_y − z_k"),
    mistakes={
        "The second is not the first again: subtract the rows, then look for the worst corner once.": (
            -1.5,
            -1.5,
        ),
        "You left out the offset 0.5 of z_y.": (-2.0, 0.0),
        "The two numbers are exchanged: two separate intervals come first.": (0.5, -1.5),
        "The first is the pessimist's: the smallest z_y minus the largest z_k.": (3.5, 0.5),
        "w_y − w_k = (1, 0) is positive in h₁, so the worst h₁ is its lower end, 0.": (-1.5, 1.5),
    },
    praise="the separate intervals ask for h₁ = 0 and h₁ = 1 at the same time.",
)

one_step = Numbers(
    expected=(0.2, 3.2, 0.2, 0.2),
    labels=(
        "the network's margin at (1/3, 2/3)",
        "the bound with unit 3 on",
        "the bound with unit 3 off",
        "what is proved for both",
    ),
    mistakes={
        "The first is the program's claim. Send δ through the network: a₃ = −2, so h₃ = 0.": (
            -0.8,
            3.2,
            0.2,
            0.2,
        ),
        "An input may be in either case, so only the smaller of the two bounds is proved.": (
            0.2,
            3.2,
            0.2,
            3.2,
        ),
        "With both cases done the bound before the split counts no more. Take the smaller of the two.": (
            0.2,
            3.2,
            0.2,
            -0.8,
        ),
        "Where unit 3 is on, h₃ = −2s is paid for by unit 2: 3h₂ ≥ 3(1 − s). Add the two, with s ≤ 0.": (
            0.2,
            0.2,
            0.2,
            0.2,
        ),
        "The two cases are exchanged: the one with unit 3 on comes first.": (0.2, 0.2, 3.2, 0.2),
        "You kept the offset 1.5. Here it is 0.2.": (1.5, 4.5, 1.5, 1.5),
        "You kept the weight 2 of h₂. Here it is 3.": (0.2, 2.2, 0.2, 0.2),
    },
    praise="two cases, two sums of inequalities, and a proof that the relaxation alone did not have.",
)

# ---- intervals ----


def _interval(W: Tensor, b: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
    up, down = W.clamp(min=0), (-W).clamp(min=0)
    return torch.stack([up @ lower - down @ upper + b, up @ upper - down @ lower + b])


def _both_ends(W: Tensor, b: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
    return torch.stack([W @ lower + b, W @ upper + b])


_LAYER = (torch.tensor([[1.0, -2.0], [0.5, 3.0], [-1.0, -1.0]]), torch.tensor([0.5, -1.0, 2.0]))


class _Interval(Code):
    """The answer is one tensor; two tensors in a pair are a near miss that deserves its own sentence."""

    def examine(self, answer: Callable) -> str | None:
        got = answer(*copies(self.cases[0])) if callable(answer) else None
        if isinstance(got, tuple | list) and any(isinstance(part, Tensor) for part in got):
            return "you return two things. Stack them into one tensor (2, m): torch.stack([…, …])."
        return super().examine(answer)


interval = _Interval(
    reference=_interval,
    cases=[
        (*_LAYER, torch.tensor([-1.0, 0.0]), torch.tensor([1.0, 2.0])),
        (-_LAYER[0], _LAYER[1], torch.tensor([0.2, -3.0]), torch.tensor([0.4, 1.0])),
    ],
    mistakes={
        "You sent the two ends through the layer, or used W r where it should be |W| r. A negative "
        "weight turns an interval around: its upper end gives the smallest value.": _both_ends,
        "You sent the two ends through the layer and sorted what came out. With weights of both signs "
        "neither end of the box is the worst: every weight takes the end that suits its own sign.": (
            lambda *layer: _both_ends(*layer).sort(0).values
        ),
        "b is missing.": lambda W, b, lower, upper: _interval(W, 0 * b, lower, upper),
        "The lower bounds come first, then the upper ones.": (
            lambda W, b, lower, upper: _interval(W, b, lower, upper).flip(0)
        ),
        "Check the sign of the term with [W]₋: it is subtracted.": (
            lambda W, b, lower, upper: torch.stack(
                [
                    W.clamp(min=0) @ lower + (-W).clamp(min=0) @ upper + b,
                    W.clamp(min=0) @ upper + (-W).clamp(min=0) @ lower + b,
                ]
            )
        ),
        "Bound the pre-activation. The ReLU comes afterwards.": (
            lambda W, b, lower, upper: _interval(W, b, lower, upper).clamp(min=0)
        ),
        "The half width is |W| times half of (upper − lower).": (
            lambda W, b, lower, upper: torch.stack(
                [
                    W @ (lower + upper) / 2 + b - W.abs() @ (upper - lower),
                    W @ (lower + upper) / 2 + b + W.abs() @ (upper - lower),
                ]
            )
        ),
    },
    praise="every entry has its own worst corner of the box.",
)

# ---- who may say what ----


def _verdicts(proved: Tensor, attacked: Tensor) -> Tensor:
    robust, broken = (proved > 0).long(), (attacked <= 0).long()
    return robust - broken


verdicts = Code(
    reference=_verdicts,
    cases=[
        (torch.tensor([0.3, -0.2, -4.0, 0.0, -1.0]), torch.tensor([0.5, 0.7, -0.1, 0.2, 0.0])),
    ],
    mistakes={
        "A bound that is not positive breaks nothing: the attack has to show a δ. Say 0, unknown.": (
            lambda proved, attacked: 2 * (proved > 0).long() - 1
        ),
        "An attack that fails proves nothing: only a positive bound makes a sample robust.": (
            lambda proved, attacked: 1 - 2 * (attacked <= 0).long()
        ),
        "At a margin of exactly 0 two classes tie, which this book counts as broken.": (
            lambda proved, attacked: (proved > 0).long() - (attacked < 0).long()
        ),
        "A bound of exactly 0 does not rule out a tie: robust means above 0.": (
            lambda proved, attacked: (proved >= 0).long() - (attacked <= 0).long()
        ),
        "Both ties are wrong: a bound of exactly 0 is no proof, and a margin of exactly 0 is broken.": (
            lambda proved, attacked: (proved >= 0).long() - (attacked < 0).long()
        ),
        "You looked at the bound alone. Where it fails, the attack may have broken the sample, and "
        "where both fail the answer is unknown.": lambda proved, attacked: torch.sign(proved).long(),
        "Robust and broken are exchanged.": lambda proved, attacked: -_verdicts(proved, attacked),
    },
    praise="robust needs a proof, broken needs a δ, and between them there is an honest word.",
)

# ---- the triangle ----


class _Triangle(Exercise):
    praise = "three sides, and nothing of the ReLU is cut off."

    def examine(self, answer: Callable) -> str | None:
        """Try points that the triangle holds and points just outside each of its sides."""
        if not callable(answer):
            return f"expected a function triangle(a, h, l, u), got {answer!r}."
        for low, high in ((-1.0, 2.0), (-3.0, 0.5)):
            told, top = f"for l = {low:g}, u = {high:g} your constraints", -low * high / (high - low)
            for at in (low, low / 2, 0.0, high / 2, high):
                if not self._allows(answer, at, max(at, 0.0), low, high):
                    return (
                        f"{told} forbid a = {at:g}, h = {max(at, 0.0):g}. That is the ReLU itself: a "
                        "relaxation may add points, never lose one."
                    )
            if not self._allows(answer, 0.0, top - 1e-3, low, high):
                return (
                    f"{told} forbid a = 0, h = {top - 1e-3:.3g}, just below the chord from (l, 0) to "
                    "(u, u). The set must be convex, so it holds the chord."
                )
            outside = {
                (low / 2, -0.1): "A ReLU is never negative: h ≥ 0 is missing.",
                (high / 2, high / 2 - 0.1): "A ReLU is at least its input: h ≥ a is missing.",
                (0.0, top + 0.01): "The upper side is the chord from (l, 0) to (u, u).",
            }
            for (at, height), sentence in outside.items():
                if self._allows(answer, at, height, low, high):
                    return f"{told} allow a = {at:g}, h = {height:.3g}. {sentence}"
        return None

    @staticmethod
    def _allows(answer: Callable, at: float, height: float, low: float, high: float) -> bool:
        import cvxpy as cp

        a, h = cp.Variable(), cp.Variable()
        given = [cp.abs(a - at) <= 1e-6, cp.abs(h - height) <= 1e-6]
        constraints = answer(a, h, low, high)
        if not isinstance(constraints, list | tuple):
            raise TypeError(f"expected a list of constraints, got {type(constraints).__name__}")
        problem = cp.Problem(cp.Minimize(0), [*given, *constraints])
        if not problem.is_dcp():
            raise TypeError("the constraints are not linear in a and h")
        problem.solve(solver=cp.HIGHS)
        return problem.status == cp.OPTIMAL


triangle = _Triangle()

# ---- a whole program ----


def _network(seed: int, d: int, m: int) -> tuple[Array, ...]:
    draw = np.random.default_rng(seed)
    low = draw.uniform(-1, 0.5, d)
    W, w = draw.normal(size=(m, d)), draw.normal(size=m)
    return W, draw.normal(size=m), w, float(draw.normal()), low, low + draw.uniform(0.5, 1.5, d)


_PAPER = (
    np.array([[-2.0, 1.0], [-1.0, -1.0], [-2.0, -2.0]]),
    np.array([0.0, 1.0, 0.0]),
    np.array([2.0, 2.0, -1.0]),
    1.5,
    -np.ones(2),
    np.ones(2),
)


class _WholeProgram(Exercise):
    praise = "that is a complete verifier, for one hidden layer."

    def examine(self, answer: Callable) -> str | None:
        """Compare with the exact minimum on small networks, and with what slips would give."""
        if not callable(answer):
            return f"expected a function program(W, b, w, offset, low, high), got {answer!r}."
        networks = {"the paper network": _PAPER, "a network with 4 units": _network(3, 2, 4)}
        for name, case in (networks | {"one with 6 units": _network(2, 3, 6)}).items():
            W, b, w, offset, low, high = case
            got, truth = as_tensor(answer(*copies(case))), _minimum(*case)
            if got is None or got.numel() != 1:
                return "expected one number, the smallest margin."
            got = got.item()
            if abs(got - truth) <= NEAR * (1 + abs(truth)):
                continue
            centre, reach = W @ (high + low) / 2 + b, np.abs(W) @ (high - low) / 2
            slips = {
                "That is the relaxed minimum: the bits have become fractions.": _relaxed(*case),
                "That is the interval bound: every unit for itself, without a program.": offset
                + np.minimum(w * np.maximum(centre - reach, 0), w * np.maximum(centre + reach, 0)).sum(),
                "That is the largest margin. The adversary wants the smallest.": -_minimum(
                    W, b, -w, -offset, low, high
                ),
                "The offset of the margin is missing.": truth - offset,
                "You left b out of a = W x + b.": _minimum(W, 0 * b, w, offset, low, high),
            }
            told = f"on {name} your program says {got:.4g}, and the smallest margin is {truth:.4g}."
            for sentence, value in slips.items():
                if abs(got - value) <= NEAR * (1 + abs(value)):
                    return f"{told} {sentence}"
            if got < truth:
                return f"{told} It allows points that no input reaches: are all four inequalities there?"
            return (
                f"{told} It forbids the input that reaches it: are l and u valid for every input of the "
                "box, and is the box right?"
            )
        return None


NEAR = 1e-4  # of a solver


def _minimum(W: Array, b: Array, w: Array, offset: float, low: Array, high: Array) -> float:
    layers = [(W, b), (w[None], np.array([offset]))]
    return programs.search(relax(layers, low, high)[0], layers, np.ones(1)).upper


def _relaxed(W: Array, b: Array, w: Array, offset: float, low: Array, high: Array) -> float:
    return relax([(W, b), (w[None], np.array([offset]))], low, high)[0].minimise(w, offset).bound


whole_program = _WholeProgram()

# ---- break it: a bound with a mistake ----


class _Unsound(Exercise):
    praise = (
        "this unit does what the bound says it cannot. One such point is enough: no proof can use it."
    )

    def examine(self, answer: Sequence[float]) -> str | None:
        """One unit h = max(w x + b, 0), x in [−1, 1], that leaves the interval of the tempting bound."""
        numbers = as_tensor(answer)
        if numbers is None or numbers.shape != (3,) or not numbers.isfinite().all():
            return f"expected three finite numbers w, b, x, got {answer!r}."
        w, b, x = numbers.tolist()
        if abs(x) > 1:
            return f"x = {x:g} is outside [−1, 1], for which nothing was claimed."
        ends = max(b - abs(w), 0.0), max(b + abs(w), 0.0)
        half, centre, h = (ends[1] - ends[0]) / 2, max(b, 0.0), max(w * x + b, 0.0)
        said = f"the bound says {centre - half:.4g} ≤ h ≤ {centre + half:.4g}, and h = {h:.4g}"
        if not centre - half - 1e-6 <= h <= centre + half + 1e-6:
            return None
        if abs(b) >= abs(w):
            return f"{said}. This unit is stable: w x + b keeps its sign, and there the bound is right."
        return f"{said}, which is inside. The unit is unstable, so it is the right kind: try another x."


unsound = _Unsound()

# ---- which verifies faster ----


class _Faster(Exercise):
    praise = "what costs is the units that can be on or off, not the weights themselves."

    def examine(self, answer: Sequence[str]) -> str | None:
        """Count the linear programs that `exact.certify` needs for ten inputs of small networks."""
        if not isinstance(answer, (list, tuple)) or len(answer) != 3:
            return f'expected three of "A", "B" and "same", got {answer!r}.'
        for number, (said, pair) in enumerate(zip(answer, _pairs(), strict=True), 1):
            first, second = (_programs(*side) for side in pair)
            close = abs(first - second) <= 0.1 * max(first, second)
            truth = "same" if close else "A" if first < second else "B"
            if said not in ("A", "B", "same"):
                return f'pair {number}: expected "A", "B" or "same", got {said!r}.'
            if said != truth:
                return (
                    f"pair {number}: A took {first} linear programs, B took {second}, so the answer is "
                    f'"{truth}". {_WHY[number - 1]}'
                )
        return None


_WHY = (
    "A larger ball lets more units change their phase.",
    "Offsets that keep units on leave nothing to search: the network is affine on the ball.",
    "The sign of a margin does not change when all margins are doubled, nor does any unit's phase.",
)


@cache
def _pairs() -> list[tuple[tuple[nn.Module, float], tuple[nn.Module, float]]]:
    plain, shifted, doubled = (
        models.mlp([4, 12, 12, 3], torch.Generator().manual_seed(7)) for _ in range(3)
    )
    with torch.no_grad():
        for layer in (shifted[1], shifted[3]):
            layer.bias += 5
        doubled[5].weight *= 2
        doubled[5].bias *= 2
    hard = (plain, 0.4)
    return [((plain, 0.2), hard), (hard, (shifted, 0.4)), (hard, (doubled, 0.4))]


@cache
def _programs(model: nn.Module, eps: float) -> int:
    x = torch.rand(10, 4, generator=torch.Generator().manual_seed(0))
    y = model(x).argmax(1)
    ball = Ball(math.inf, eps)
    return int(exact.certify(model, x, y, ball, stages=exact.PROGRAMS, jobs=1).nodes.sum())


faster = _Faster()

# ---- the chapter's exercises, in its order ----

EXERCISES = {
    "Write interval propagation": interval,
    "Elision": elision,
    "Four inequalities": four_inequalities,
    "Find the unsound bound": unsound,
    "The triangle in cvxpy": triangle,
    "A whole program": whole_program,
    "One step of the search": one_step,
    "Who may say what": verdicts,
    "Which verifies faster?": faster,
}
