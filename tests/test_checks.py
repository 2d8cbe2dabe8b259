"""Checks that teach: right answers pass, tempting wrong ones are told their name, nothing raises."""

import importlib
import itertools
import math
import pkgutil
import re
from functools import partial
from types import ModuleType

import cvxpy as cp
import numpy as np
import pytest
import torch
from strategies import seeded
from torch import nn

from adv_lib import (
    adaptive,
    attacks,
    checks,
    data,
    detection,
    ensembles,
    losses,
    mahalanobis,
    models,
    training,
)
from adv_lib.checks import (
    FAILS,
    NOT_ATTEMPTED,
    PASSES,
    Code,
    Exercise,
    Numbers,
    Verdict,
    adversarial_training,
    arena,
    progress,
)
from adv_lib.checks import dent as dent_checks
from adv_lib.checks import detection as detection_checks
from adv_lib.checks import dual_network as dual_checks
from adv_lib.checks import ensembles as ensemble_checks
from adv_lib.checks import geometry as geometry_checks
from adv_lib.checks import recipe as recipe_checks
from adv_lib.checks import trial as trial_checks
from adv_lib.threat import Ball

EXERCISES = {
    f"{module.name}.{name}": exercise
    for module in pkgutil.iter_modules(checks.__path__)
    for name, exercise in vars(importlib.import_module(f"{checks.__name__}.{module.name}")).items()
    if isinstance(exercise, Exercise)
}

# Beyond what an exercise knows itself: what else passes, and what earns which complaint.
NAN, INF = float("nan"), float("inf")
OPEN = {
    "linear_models.small_norm": (
        [
            [[0.4, 0.1, 0.1, 0.0], [0.5, 0.0, 0.0, 0.0]],
            (torch.tensor([2, 1, 1, 1]) / 7, torch.tensor([0.5, 0, 0, 0])),
            [np.array([0.4, 0.1, 0.1, 0.0]), np.array([0.5, 0.0, 0.0, 0.0])],
        ],
        [
            ([[0.4, 0.1], [0.5, 0.0, 0.0, 0.0]], "4 numbers each"),
            ([[0.5, 0.0, 0.0, 0.0]], "two weight vectors"),
            ([[NAN] * 4, [NAN] * 4], "finite"),
            ([[INF, 0, 0, 0], [0.5, 0, 0, 0]], "finite"),
            ([[0.4, 0.1, 0.1, 0.1], [0.5, 0, 0, 0]], "must be 1/2"),
            ([[0.5, 0, 0, 0], [0.4, 0.1, 0.1, 0]], "the smaller ‖w‖₂"),
            ([[0.5, 0, 0, 0], [0.5, 0, 0, 0]], "the smaller ‖w‖₂"),
            ([[0.5, 0, 0, 0], [0, 1, 0, 0]], "does an ℓ∞ adversary collect"),
        ],
    ),
    "linear_models.loose_bound": (
        [torch.tensor([[0.0], [5.0], [-5.0]]), [[0], [9], [-9]], np.array([[0.0], [-4.0], [4.0]])],
        [
            (torch.zeros(3), "a tensor (3, 1)"),
            (torch.tensor([[0.0], [NAN], [1.0]]), "finite"),
            (torch.tensor([[0.0], [0.1], [-0.1]]), "at least 0.6"),
            (torch.tensor([[0.0], [5.0], [5.0]]), "opposite δ"),
        ],
    ),
}


def behind(defense, x, y, ball):
    """PGD on the network that a defense of the arena is built around."""
    return attacks.pgd(defense.model, x, y, ball)


MALFORMED = [
    (3, "expected a function"),
    (lambda defense, x, y, ball: x[0], "expected δ like x"),
    (lambda defense, x, y, ball: torch.ones_like(x), "keep ‖δ‖_∞ ≤ ε"),
]
OPEN["trial.missing"] = (
    [["another loss", "a stand-in gradient", "mean over draws", "targets", "nothing"]],
    [
        (["another loss"], "a list of 5 entries"),
        (["nothing", "nothing", "nothing", "nothing", "nothing"], "The loss is to blame"),
        (["another loss", "another loss", "nothing", "nothing", "nothing"], "no gradient: put one"),
        (["another loss", "a stand-in gradient", "luck", "targets", "nothing"], "expected one of"),
    ],
)
OPEN["trial.lacking"] = (
    [behind],
    [*MALFORMED, (attacks.pgd, "has the gradient 0"), (attacks.square, "Every answer is drawn anew")],
)
OPEN["trial.fight"] = (
    [arena.best_known],
    [*MALFORMED, (attacks.pgd, "no better than PGD"), (arena.every_target, "behind on Cedar, Elm")],
)


def own(z, y):
    return z.gather(1, y[:, None]).squeeze(1)


def rivals(z, y):
    return z.scatter(1, y[:, None], -INF)


OPEN["attacks.scaled"] = (
    [
        lambda z, y: rivals(z, y).logsumexp(1) - own(z, y),
        lambda z, y: rivals(z, y).amax(1) - own(z, y),
    ],
    [
        (3, "expected a function"),
        (torch.nn.functional.cross_entropy, "one number a sample"),
        (lambda z, y: torch.nn.functional.cross_entropy(z, y, reduction="none"), "has saturated"),
        (lambda z, y: -own(z.softmax(1), y), "Probabilities saturate"),
        (lambda z, y: 1 - own(z.softmax(1), y), "Probabilities saturate"),
        (lambda z, y: own(z, y) - rivals(z, y).amax(1), "turn the sign around"),
        (lambda z, y: (rivals(z, y).amax(1) - own(z, y)).clamp(min=0), "no gradient when z_y leads"),
        (lambda z, y: -own(z, y), "nearest to overtaking"),
        (lambda z, y: z.sum(1) - 2 * own(z, y), "nearest to overtaking"),
    ],
)

OPEN["exact_and_relaxed.triangle"] = (
    [
        lambda a, h, l, u: [h >= 0, h >= a, (u - l) * h <= u * (a - l)],
        lambda a, h, l, u: (h >= cp.pos(a), h <= u / (u - l) * (a - l)),
        lambda a, h, l, u: [h >= 0, h >= a, h <= u * (a - l) / (u - l), a >= l, a <= u],
    ],
    [
        (3, "expected a function"),
        (lambda a, h, l, u: None, "expected a list of constraints, got NoneType"),
        (lambda a, h, l, u: [h * a >= 0], "not linear"),
        (lambda a, h, l, u: [h >= a, (u - l) * h <= u * (a - l)], "h ≥ 0 is missing"),
        (lambda a, h, l, u: [h >= 0, (u - l) * h <= u * (a - l)], "h ≥ a is missing"),
        (lambda a, h, l, u: [h >= 0, h >= a, h <= u], "the chord from (l, 0) to (u, u)"),
        (lambda a, h, l, u: [h >= 0, h >= a, (u - l) * h <= u * a], "That is the ReLU itself"),
        (lambda a, h, l, u: [h >= 0, h >= a, h <= u / 2 + a / 2], "the chord from (l, 0)"),
        (
            lambda a, h, l, u: [h >= 0, h >= a, (u - l) * h <= u * (a - l), h + 0.1 <= u],
            "the ReLU itself",
        ),
    ],
)


def whole_program(W, b, w, offset, low, high, bits=True, ends=False, box=True, sign=1):
    middle, reach = W @ (high + low) / 2 + b, np.abs(W) @ (high - low) / 2
    l, u = (W @ low + b, W @ high + b) if ends else (middle - reach, middle + reach)
    x, h, v = cp.Variable(len(low)), cp.Variable(len(b)), cp.Variable(len(b), boolean=bits)
    a = W @ x + b
    rules = [h >= a, h >= 0, h <= cp.multiply(u, v), h <= a - cp.multiply(l, 1 - v), v >= 0, v <= 1]
    rules += [x >= low, x <= high] if box else [x >= 2 * low - 1, x <= 2 * high + 1]
    return sign * cp.Problem(cp.Minimize(sign * (w @ h + offset)), rules).solve(solver=cp.HIGHS)


OPEN["exact_and_relaxed.whole_program"] = (
    [whole_program, lambda *case: np.array([whole_program(*case)])],
    [
        (3, "expected a function"),
        (lambda *case: None, "expected one number"),
        (lambda *case: [0.0, 1.0], "expected one number"),
        (lambda *case: whole_program(*case, bits=False), "the bits have become fractions"),
        (lambda *case: whole_program(*case, ends=True), "are l and u valid"),
        (lambda *case: whole_program(*case, sign=-1), "The adversary wants the smallest"),
        (lambda W, b, w, offset, low, high: whole_program(W, b, w, 0, low, high), "The offset"),
        (lambda W, b, *rest: whole_program(W, 0 * b, *rest), "You left b out"),
        (lambda *case: whole_program(*case, box=False), "It allows points that no input reaches"),
        (lambda W, b, w, offset, *box: offset - 1000, "It allows points"),
        (lambda *case: math.inf, "It forbids the input"),
    ],
)
OPEN["exact_and_relaxed.unsound"] = (
    [[1.5, -0.5, 1.0], (-1.5, -0.5, -1), torch.tensor([2.0, 1.0, 1.0])],
    [
        ([1.5, -0.5], "three finite numbers"),
        ([1.5, NAN, 1.0], "three finite numbers"),
        ([1.5, -0.5, 2.0], "outside [−1, 1]"),
        ([1.5, -0.5, 0.0], "try another x"),
        ([0.5, 1.0, 1.0], "This unit is stable"),
        ([0.5, -1.0, 1.0], "This unit is stable"),
    ],
)
OPEN["exact_and_relaxed.faster"] = (
    [["A", "B", "same"], ("A", "B", "same")],
    [
        ("A", "expected three"),
        (["A", "B"], "expected three"),
        (["A", "B", "C"], 'pair 3: expected "A", "B" or "same"'),
        (["B", "B", "same"], "A larger ball"),
        (["same", "B", "same"], "A larger ball"),
        (["A", "A", "same"], "Offsets that keep units on"),
        (["A", "B", "A"], "doubled"),
        (["A", "B", "B"], "doubled"),
    ],
)

OPEN["duality.signs"] = (
    [[["O", "B"], [], ["O", "U"], ["B", "U"]], (("B", "O"), set(), {"U", "O"}, ["B", "U"])],
    [
        ("sound", "a list of 4"),
        ([["O"], [], []], "a list of 4"),
        ([["O", "B"], "sound", ["O", "U"], ["B", "U"]], "(ii): expected a list of terms"),
        ([["O", "B"], None, ["O", "U"], ["B", "U"]], "(ii): expected a list of terms"),
        ([["O", "C"], [], ["O", "U"], ["B", "U"]], "(i): expected a list of terms"),
        ([[], [], ["O", "U"], ["B", "U"]], "the sign of O is wrong there. Think of a last offset"),
        ([["O"], [], ["O", "U"], ["B", "U"]], "the sign of B is wrong there. B is not negative"),
        ([["O", "B"], ["U"], ["O", "U"], ["B", "U"]], "(ii): the sign of U is right there"),
        ([["O", "B"], [], ["O"], ["B", "U"]], "(iii): the sign of U is wrong there. U is not positive"),
        ([["O", "B", "X"], [], ["O", "U"], ["B", "U"]], "all four agree on X"),
    ],
)
OPEN["dual_network.order"] = (
    [[True, False, False, True, False, True, True], np.array([1, 0, 0, 1, 0, 1, 1]) == 1],
    [
        (True, "a list of 7"),
        ([True] * 6 + ["yes"], "entry 2: you said True"),
        ([False, False, False, True, False, True, True], "a choice of multipliers"),
        ([True, True, False, True, False, True, True], "says less than the"),
        ([True, False, True, True, False, True, True], "depends on what comes back"),
        ([True, False, False, False, False, True, True], "smaller triangles"),
        ([True, False, False, True, True, True, True], "Either can win"),
        ([True, False, False, True, False, False, True], "at a point of the ball"),
        ([True, False, False, True, False, True, False], "keeps the best"),
        ([True, False, False, True, False, True, None], "entry 7: expected one of True, False"),
    ],
)


def invariant(loss, z, y):
    return torch.allclose(loss(z + 3, y), loss(z, y), atol=1e-4)


def monotone(loss, z, y):
    worse = []
    for k in range(z.shape[1]):
        moved = z.clone()
        moved[:, k] += torch.where(y == k, -0.5, 0.5)
        worse.append((loss(moved, y) >= loss(z, y) - 1e-4).all())
    return all(worse)


OPEN["dual_network.properties"] = (
    [
        lambda loss, z, y: invariant(loss, z, y) and monotone(loss, z, y),
        lambda loss, z, y: torch.tensor(invariant(loss, z, y) and monotone(loss, z, y)),
    ],
    [
        (3, "expected a function"),
        (lambda loss, z, y: None, "expected True or False for cross-entropy, got None"),
        (lambda loss, z, y: bool((loss(z + 3, y) == loss(z, y)).all()), "rounding"),
        (
            lambda loss, z, y: invariant(loss, z[:1], y[:1]) and monotone(loss, z[:1], y[:1]),
            "One sample",
        ),
        (monotone, "Test the shift as well"),
        (invariant, "Raise each logit by itself"),
        (lambda loss, z, y: True, "Test the shift as well"),
        (lambda loss, z, y: loss(3 * z, y) > 0, "for cross-entropy: one answer for all samples"),
    ],
)
OPEN["dual_network.beat_crown"] = (
    [[1, 0.5, 1, 0.25], (-2.0, 1.0, 1.0, 1.0), torch.tensor([1.0, 0.5, 2.0, 0.1])],
    [
        ([1, 0.5, 1], "four finite numbers"),
        ([1, 0.5, 1, NAN], "four finite numbers"),
        ([0.5, 1, 1, 0.1], "The unit is stable"),
        ([1, 0.5, -1, 2], "The lower line matters"),
        ([1, -0.5, 1, 0.25], "try b > 0"),
        ([1, 0.5, 1, 0.75], "choose d"),
        ([1, 0.5, 1, -0.1], "choose d"),
    ],
)


def refutes(J, a, margin, phases=(-1.0, 0.0, 1.0), sizes=(0.0, 0.5, 1.0, 2.0), inside=True):
    """True unless a point of a branch has a margin below the bound J."""
    for signs in itertools.product(phases, repeat=3):
        phase = torch.tensor(signs, dtype=torch.float64)
        here = margin[(phase * a >= 0).all(1)] if inside else margin
        if any(J(phase, size * phase) > here.amin() + 1e-6 for size in sizes if len(here)):
            return False
    return True


def called(J, phase, beta=(0, 0, 0)):
    return J(torch.tensor(phase), torch.tensor(beta)) < 9


OPEN["dual_network.sign_of_beta"] = (
    [
        refutes,
        partial(refutes, sizes=(1,)),
        lambda J, a, m: torch.tensor(refutes(J, a, m)),
    ],
    [
        (3, "expected a function"),
        (lambda J, a, margin: True, "never calls J"),
        (
            lambda J, a, margin: J([0, 0, 0], [0, 0, 0]) and None,
            "for the right J expected True or False",
        ),
        (lambda J, a, margin: called(J, [1, 0, 0]) * margin, "for the right J expected True or False"),
        (lambda J, a, margin: J(1, 0.5), "takes phase and beta of shape (3,)"),
        (lambda J, a, margin: not called(J, [0, 0, 0]), "at points of the branch only"),
        (partial(refutes, inside=False), "at points of the branch only"),
        (partial(refutes, sizes=(-1,)), "a β of the wrong sign"),
        (lambda J, a, m: not called(J, [0, 0, 0], [1, 0, 0]), "or for a unit that is not split"),
        (partial(refutes, sizes=(0,)), "ν̂ − β for a unit that is on. Its sign shows where a unit is on"),
        (
            partial(refutes, phases=(0, 1)),
            "−β for a unit that is off. Its sign shows where a unit is off",
        ),
        (lambda J, a, m: called(J, [1, 0, 0]), "you do not catch a J with ν̂ − β"),
        (
            lambda J, a, m: refutes(J, a, m) and bool(J([-1, -1, -1], [0, 0, 0]) > 1),
            "the bound holds",
        ),
        (
            lambda J, a, m: (
                refutes(J, a, m) and bool(J([1, 0, 0], [1, 0, 0]) != J([1, 0, 0], [0, 0, 0]))
            ),
            "Nobody asks here how good it is",
        ),
        (partial(refutes, phases=(-1, 1)), "with units that are not split"),
    ],
)
OPEN["dual_network.split_a_leaf"] = ([], [(3, "expected a function")])
FIRST, WIDE = [[1.0, 1.0], [1.0, -1.0]], [0.0, 100.0]
OPEN["dual_network.score_that_fails"] = (
    [
        [[*FIRST, WIDE], [0.0, 0.0, 0.0], [-1.0, -1.0, -0.001], 2.5],
        ([*FIRST, [0, 10]], [0, 0, 0], [-1, -1, 0], 2.5),
        [torch.tensor([*FIRST, WIDE]), np.zeros(3), torch.tensor([-1, -1, 0.001]), torch.tensor(2.5)],
    ],
    [
        (3, "expected a list of W_1, b_1, w_2 and b_2"),
        ([FIRST, [0, 0], [-1, -1]], "expected a list of W_1, b_1, w_2 and b_2"),
        ([[[1, 1], [1]], [0, 0], [-1, -1], 2.5], "W_1: expected finite numbers"),
        ([FIRST, [0, 0], [-1, NAN], 2.5], "w_2: expected finite numbers"),
        ([FIRST, [0, 0], [-1, -1], [2.5]], "and a number b_2, with k ≤ 4, got W_1 (2, 2)"),
        ([5 * [[1, 1]], 5 * [0], 5 * [-1], 2.5], "with k ≤ 4, got W_1 (5, 2)"),
        ([[*FIRST, WIDE], [0, 0, 0], [-1, -1, -0.001], 1.5], "Raise b_2"),
        ([[*FIRST, WIDE], [0, 0, 0], [-1, -1, -0.001], 4.5], "1 case. Nothing has to be split"),
        ([FIRST, [0, 0], [-1, -1], 2.5], "Which unit could move more, and matter less?"),
        ([[*FIRST, [2.5, 0]], [0, 0, 0], [-1, -1, -0.3], 2.8], "fewer than 3 more"),
    ],
)
OPEN["dual_network.size_of_the_tree"] = (
    [["B", "same", "B", "A"], ("B", "same", "B", "A")],
    [
        ("B", "a list of 4"),
        (["B", "more", "B", "A"], "expected one of 'A', 'B', 'same'"),
        (["A", "same", "B", "A"], "every triangle wider"),
        (["B", "B", "B", "A"], "twice a bound has its sign"),
        (["B", "same", "A", "A"], "come up to the best point"),
        (["B", "same", "B", "B"], "to find one point is less work"),
    ],
)
LEFT = [True, False, True, True, False, True, False, True]
OPEN["dual_network.what_a_limit_leaves"] = (
    [LEFT],
    [
        (True, "a list of 8"),
        ([*LEFT[:-1], "robust"], "8. (d) robust: expected one of True, False"),
        ([False, *LEFT[1:]], "closed or waiting, has a bound below −0.3"),
        ([*LEFT[:1], True, *LEFT[2:]], "−0.3 is a bound, not a point"),
        ([*LEFT[:2], False, *LEFT[3:]], "That is what unknown means"),
        ([*LEFT[:3], False, *LEFT[4:]], "All cases are closed above 0"),
        ([*LEFT[:4], True, *LEFT[5:]], "not at its minimum"),
        ([*LEFT[:5], False, *LEFT[6:]], "breaks the network, whatever waits"),
        ([*LEFT[:6], True, *LEFT[7:]], "may hold worse ones"),
        ([*LEFT[:7], False], "What waits could only say how far"),
    ],
)

OPEN["adversarial_training.published"] = (
    [
        ["iterate", "converge", "another loss", "the whole defense"],
        ("iterate", "converge", "another loss", "the whole defense"),
    ],
    [
        ("iterate", "a list of 4"),
        (["iterate", "converge", "another loss", "more"], "report (d): expected one of"),
        (["converge", "converge", "another loss", "the whole defense"], "shows one step only"),
        (["iterate", "another loss", "another loss", "the whole defense"], "fell by 11 points"),
        (["iterate", "converge", "converge", "the whole defense"], "more of its steps find nothing"),
        (["iterate", "converge", "another loss", "another loss"], "was frozen"),
    ],
)
OPEN["adversarial_training.step"] = (
    [],
    [
        (3, "expected a function"),
        (lambda model, x, y, eps, lr: model, "the parameters are as before"),
        (partial(adversarial_training.step.reference, steps=3), "after your step a parameter is off by"),
    ],
)


survive = adversarial_training.honest.reference


def moves_statistics(model, x, y, eps, steps):
    for statistic in model.buffers():
        statistic += 1
    return survive(model, x, y, eps, steps)


def leaves_eval_mode(model, x, y, eps, steps):
    value = survive(model, x, y, eps, steps)
    model.eval()
    return value


OPEN["adversarial_training.honest"] = (
    [lambda *case: torch.tensor([survive(*case)])],
    [
        (0.5, "expected a function"),
        (lambda *case: None, "between 0 and 1, got None"),
        (lambda *case: 50.0, "between 0 and 1, got 50.0"),
        (moves_statistics, "has changed its statistics"),
        (leaves_eval_mode, "no longer in its mode"),
        (partial(survive, mode=False, size=0.01, taken=5), "Five steps of 0.01"),
        (partial(survive, judge="last", size=0.01, taken=5), "Five steps of 0.01"),
        (partial(survive, mode=False, judge="last", size=0.01, taken=5), "Five steps of 0.01"),
        (lambda *case: 1.0, "you report 100%, and it is 35%. None of the usual mistakes"),
    ],
)


class Patient(nn.Module):
    """A network with BatchNorm, trained on the digits at ε = 0.3 when it is first asked."""

    def __init__(self, inner, epochs=30):
        super().__init__()
        self.inner, self.epochs, self.model = inner, epochs, None

    def forward(self, x):
        if self.model is None:
            digits, draws = data.load("digits"), seeded(0)
            flat, first, relu, second, *rest = models.mlp([64, 100, 100, 10], draws)
            norms = nn.BatchNorm1d(100), nn.BatchNorm1d(100)
            model = nn.Sequential(flat, first, norms[0], relu, second, norms[1], *rest)
            settings = {"epochs": self.epochs, "lr": 0.2, "batch_size": 64, "generator": draws}
            ball = Ball(math.inf, 0.3, (0, 1))
            with torch.enable_grad():
                list(training.fit(model, digits[:2], self.inner(ball, draws), **settings))
            self.model = model.eval()
        return self.model(x)


PGD = partial(attacks.pgd, steps=5, keep="last")
OPEN["adversarial_training.random_start"] = (
    [Patient(training.fast)],
    [
        ("no network", "expected a network, got str"),
        (models.mlp([64, 10]), "right on too few images"),
        (Patient(lambda ball, draws: training.clean, epochs=2), "FGSM is not fooled"),
        (Patient(lambda ball, draws: training.adversarial(PGD, ball)), "more robust than it should be"),
    ],
)
OPEN["adversarial_training.ramp"] = (
    [[0.1, 0.4], (0.1, 0.4)],
    [
        ([0.6, 0.1], "0 ≤ begin < end ≤ 1"),
        ([0.1], "expected begin and end"),
        ([0.1, 0.6], "may take 0.3 of the run, yours takes 0.5"),
        ([0.0, 0.1], "collapsed"),
        ([0.0, 0.3], "before the network knows anything"),
        ([0.6, 0.9], "too late to learn at it"),
    ],
)

OPEN["danskin.by_hand"] = (
    [
        [[0.0, -1.0], [0.0, -1.0]],
        torch.tensor([[-0.1, -0.995], [0.0, -1.0]]),
        [torch.tensor([-0.1, -0.99]), torch.tensor([0.0, -1.0])],
        np.array([[-0.2, -0.98], [0.0, -1.0]]),
    ],
    [
        ([[0.0, -1.0]], "2 vectors of 2 finite numbers"),
        ([[0.0, -1.0], [NAN, 0.0]], "γ₂, entry 1: expected a finite number"),
        ([[0.0, -1.0], [0.0, "up"]], "γ₂, entry 2: expected a finite number, got “up”"),
        ([[0.0, -2.0], [0.0, -1.0]], "γ₁ has length 2"),
        ([[0.0, -1.0], [0.0, -0.5]], "γ₂ has length 0.5"),
        ([[-2 / 5**0.5, -1 / 5**0.5], [0.0, -1.0]], "γ₁ = −a/‖a‖ has a positive product with b"),
        ([[0.5**0.5, -(0.5**0.5)], [0.0, -1.0]], "γ₁ = −b/‖b‖ has a positive product with a"),
        (
            [[1.0, 0.0], [0.0, -1.0]],
            "the slope is 2. The products with a and b must both",
        ),
        ([[0.0, -1.0], [0.0, 1.0]], "Down is the other way"),
        ([[0.0, -1.0], [-1 / 5**0.5, -2 / 5**0.5]], "You weighed a and b equally"),
        ([[0.0, -1.0], [-0.6, -0.8]], "Which point of the segment"),
    ],
)
OPEN["danskin.ascends"] = (
    [[[3.0, 1.0], [-2.0, 1.0], [-2.5, 1.0]], torch.tensor([[-3.0, 0.5], [2.0, 0.5], [2.0, 0.5]])],
    [
        ([[1.0, 1.0]], "three vectors of two finite numbers"),
        ([[1.0, INF], [1.0, 0.0], [0.0, 1.0]], "three vectors of two finite numbers"),
        ([[0.0, 0.0]] * 3, "all three are 0"),
        ([[0.0, 2.0], [1.0, -1.0], [-1.0, -1.0]], "contains 0"),
        ([[0.0, -2.0], [1.0, 2.0], [-1.0, 2.0]], "contains 0"),
        ([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]], "minus c leads down"),
        ([[3.0, 1.0], [-2.0, 1.0], [0.0, 1.0]], "minus c leads down"),
        ([[3.0, 1.0], [-2.0, 1.0], [-1.0, 1.0]], "minus the average leads down"),
        ([[3.0, 0.1], [-2.0, 0.1], [-2.0, 0.1]], "nearly, but the longest gradient is 30 times"),
    ],
)

OPEN["dent.episodic"] = (
    [dent_checks._adapted],
    [
        (3, "expected a function"),
        (lambda *a: "no", "expected a tensor of shape (6, 3), got 'no'"),
        (lambda model, x, steps, lr: model(x)[0], "expected a tensor of shape (6, 3)"),
        (lambda model, x, steps, lr: in_place(model, x, lr), "your function changed the network"),
        (lambda model, x, steps, lr: model(x), "Compare with adv_lib.dent"),
        (lambda model, x, steps, lr: without_grad(model, x, steps, lr), "open torch.enable_grad()"),
    ],
)


def in_place(model, x, lr):
    with torch.no_grad():
        model[2].weight += lr
    return model(x)


def without_grad(model, x, steps, lr):
    if not torch.is_grad_enabled():
        raise RuntimeError("element 0 of tensors does not require grad")
    return dent_checks._adapted(model, x, steps, lr)


for exercise_name in ("by_transfer", "unrolled"):
    OPEN[f"dent.{exercise_name}"] = (
        [],
        [
            (3, "expected a function"),
            (lambda *a: "no", "expected a tensor"),
            (lambda model, x, *rest: torch.zeros(3), "expected a tensor of shape"),
        ],
    )


class Behind(nn.Module):
    """What is left of the planted defense without its rounding."""

    def __init__(self, defense):
        super().__init__()
        self.defense = defense

    def forward(self, x):
        return self.defense.model(self.defense.shuffle(x))


def times_20(defense):
    return nn.Sequential(Behind(defense), Scaled())


class Scaled(nn.Module):
    def forward(self, z):
        return 20 * z


PGD40 = partial(attacks.pgd, steps=40)
OPEN["dent.planted"] = (
    [
        lambda defense, x, y, ball: adaptive.eot(PGD40, 20)(Behind(defense), x, y, ball),
        lambda defense, x, y, ball: adaptive.bpda(PGD40, lambda _: averaged(defense))(
            averaged(defense, rounded=True), x, y, ball
        ),
    ],
    [
        (3, "expected a function"),
        (lambda defense, x, y, ball: None, "got None"),
        (lambda defense, x, y, ball: x[:2], "got (2, 1, 8, 8)"),
        (lambda defense, x, y, ball: torch.full_like(x, 0.3), "leave Δ(x)"),
        (PGD40, "Rounding has the gradient 0"),
        (adaptive.transfer(PGD40), "shuffle in the attack"),
        (partial(attacks.square, queries=300), "A search without gradients"),
        (lambda defense, x, y, ball: PGD40(Behind(defense), x, y, ball), "the next answer draws"),
        (adaptive.eot(PGD40, 20), "Rounding has the gradient 0"),
        (
            lambda defense, x, y, ball: adaptive.eot(PGD40, 20)(times_20(defense), x, y, ball),
            "behind the factor 20",
        ),
    ],
)


def averaged(defense, rounded=False):
    """The mean of the logits over the four orders."""

    class Mean(nn.Module):
        model = None

        def forward(self, x):
            flat = x.flatten(1)
            flat = (4 * flat).round() / 4 if rounded else flat
            return sum(defense.model(flat[:, order].view_as(x)) for order in defense.orders)

    return Mean()


PLACES = [(down, right) for down in (-1, 0, 1) for right in (-1, 0, 1)]


def moved(x, down, right):
    framed = nn.functional.pad(x, (1, 1, 1, 1))
    return framed[..., 1 - down : 9 - down, 1 - right : 9 - right]


def by_loss(model, x, y, move=moved, sign=1):
    places = torch.stack([move(x, *way) for way in PLACES])
    loss = torch.stack([nn.functional.cross_entropy(model(p), y, reduction="none") for p in places])
    return places[(sign * loss).argmax(0), range(len(x))]


def by_margin(model, x, y):
    worst, lead = x, torch.full(y.shape, -INF)
    for way in PLACES:
        z = model(moved(x, *way))
        now = rivals(z, y).amax(1) - own(z, y)
        worst = torch.where((now > lead)[:, None, None, None], moved(x, *way), worst)
        lead = lead.maximum(now)
    return worst


OPEN["introduction.outside"] = (
    [by_loss, by_margin],
    [
        (3, "expected a function"),
        (lambda model, x, y: None, "got None"),
        (lambda model, x, y: x[:2], "got (2, 1, 8, 8)"),
        (partial(by_loss, move=lambda x, *way: x.roll(way, (-2, -1))), "a frame of zeros"),
        (lambda model, x, y: moved(moved(x, 1, 0), 1, 0), "moved by at most one pixel"),
        (lambda model, x, y: attacks.pgd(model, x, y, Ball(INF, 0.1)) + x, "is not the image 0 moved"),
        (lambda model, x, y: x, "You moved no image"),
        (lambda model, x, y: moved(x, 1, -1), "all images the same way"),
        (partial(by_loss, sign=-1), "the network's favourite"),
        (lambda model, x, y: torch.cat([x[:9], by_loss(model, x, y)[9:]]), "Try all nine places"),
    ],
)

OPEN["recipe.confounded"] = (
    [["stopping", "weight decay", "nothing", "the attack", "selection"]],
    [
        ("nothing", "a list of 5 entries"),
        (["the seed"] * 5, "comparison A: expected one of"),
        (["nothing"] * 5, "stop both alike"),
        (["stopping"] * 5, "5e-4 against 2e-4"),
        (
            ["stopping", "weight decay", "the attack", "the attack", "selection"],
            "Only the losses differ",
        ),
        (["stopping", "weight decay", "nothing", "nothing", "selection"], "attack the margin too"),
        (["stopping", "weight decay", "nothing", "the attack", "nothing"], "Choose on a validation set"),
    ],
)
OPEN["recipe.smoothed"] = (
    [losses.smoothed],
    [
        (3, "expected a function"),
        (
            lambda z, y, s: torch.nn.functional.cross_entropy(z, y, label_smoothing=s),
            "one number a sample",
        ),
        (lambda z, y, s: None, "needs a return"),
        (lambda z, y, s: z, "expected a tensor of shape (2,), got a tensor of shape (2, 3)"),
    ],
)


def asked_twice(gradients, x, delta, theta, *rest):
    """What `free` asks for, with one pass for each of the two gradients."""
    apart = lambda theta, v: (gradients(theta, v)[0], gradients(theta, v)[1])  # noqa: E731
    return recipe_checks.free.reference(apart, x, delta, theta, *rest)


OPEN["recipe.free"] = (
    [],
    [
        (3, "expected a function"),
        (asked_twice, "you asked for gradients 4 times"),
        (lambda gradients, x, delta, theta, *rest: theta, "expected a tensor of shape (4,)"),
    ],
)
OPEN["recipe.sell"] = (
    [1 / 3, torch.tensor(0.3)],
    [
        ("0.3", "one number between 0 and 1"),
        ([0.3], "one number between 0 and 1"),
        (0, "one number between 0 and 1"),
        (1.0, "one number between 0 and 1"),
        (0.1, "Not worse enough"),
        (0.5, "Nobody buys that"),
    ],
)


def by_recursion(L, d):
    """The published recursion, in single precision."""
    mu = torch.zeros(L, d)
    mu[0, 0] = 1
    for k in range(1, L):
        for j in range(k):
            mu[k, j] = -(1 / (L - 1) + mu[k] @ mu[j]) / mu[j, j]
        if k < L - 1:
            mu[k, k] = (1 - mu[k].square().sum()).sqrt()
    return mu


def with_the_last_root(L, d):
    """The same, with a root in the last row, where up to rounding nothing of 1 is left, or less."""
    mu = by_recursion(L, d)
    mu[-1, L - 2] = math.sqrt(-1e-16)
    return mu


def with_an_entry_too_many(L, d):
    mu = by_recursion(L, d)
    mu[L - 1, L - 1] = 0
    return mu


OPEN["geometry.recursion"] = (
    [
        by_recursion,
        mahalanobis.centres,
        lambda L, d: -by_recursion(L, d).flip(1),
        lambda L, d: by_recursion(L, d).tolist(),
        lambda L, d: list(by_recursion(L, d)),
    ],
    [
        (3, "expected a function"),
        (lambda L, d: None, "needs a return"),
        (lambda L, d: "far", "expected a tensor (3, 2), got 'far'"),
        (lambda L, d: by_recursion(L, d).T, "got (2, 3). One centre a row"),
        (lambda L, d: by_recursion(L, L - 1), "those beyond the first L − 1 are 0"),
        (lambda L, d: by_recursion(L, d) / 0, "μ₁₁ was not set to 1"),
        (lambda L, d: torch.full((L, d), NAN), "negative under the root"),
        (with_an_entry_too_many, "IndexError: index 2 is out of bounds"),
        (with_the_last_root, "If that was in the last row"),
        (lambda L, d: 2 * by_recursion(L, d), "Try this case by hand"),
        (torch.eye, "It takes the 1/(L − 1)."),
        (torch.eye, "for L = 3, d = 2 the inner products should be ((1, -0.5, "),
    ],
)


def in_two(W, b):
    return W / 2, b + W.square().sum(1) / 4


def elsewhere(W, b):
    """Other centres, all moved by 1, and another constant in all biases: the same softmax."""
    mu = W / 2 + 1
    return mu, b + mu.square().sum(1) + 7


OPEN["geometry.as_centres"] = (
    [
        in_two,
        elsewhere,
        lambda W, b: [each.tolist() for each in in_two(W, b)],
        lambda W, b: [each.double() for each in in_two(W, b)],
    ],
    [
        (3, "expected a function"),
        (lambda W, b: None, "needs a return"),
        (lambda W, b: W / 2, "expected mu (3, 2) and B (3,), in this order, got (3, 2)"),
        (lambda W, b: in_two(W, b)[::-1], "in this order, got ((3,), (3, 2))"),
        (lambda W, b: (W / 2, b.sum()), "in this order, got ((3, 2), ())"),
        (lambda W, b: (W / 2, "b"), "in this order, got ((3, 2), 'b')"),
        (lambda W, b: (W / 2, b + W.square().sum() / 4), "another number for each class"),
        (lambda W, b: (W / 3, b), "Try this case by hand"),
        (lambda W, b: (W * NAN, b), "NaN comes from"),
        (lambda W, b: (W, b), "at z = (0, 0) the softmax should be (0.3072, "),
    ],
)
OPEN["geometry.sees"] = (
    [list(geometry_checks.sees.truth)],
    [
        ("neither", "a list of 5 entries"),
        (["both"] * 5, "change (a): expected one of"),
        (["only MMC"] * 5, "change (a): you said 'only MMC'. On the way"),
        (["both, alike"] * 5, "change (b): you said 'both, alike'. All three centres"),
        (["both, alike", "only MMC", "both, alike", "only MMLDA", "neither"], "from 0 at μ_y to 8"),
        ([*geometry_checks.sees.truth[:3], "both, alike", "neither"], "In MMC there is no rival"),
        ([*geometry_checks.sees.truth[:4], "both, alike"], "keeps all distances"),
    ],
)
OPEN["geometry.break_it"] = (
    [
        losses.margin_loss,
        losses.log_odds,
        lambda h, y: rivals(h, y).amax(1) - own(h, y),
        lambda h, y: (rivals(h, y).amax(1) - own(h, y)).double(),
    ],
    [
        (3, "expected a function"),
        (lambda h, y: None, "needs a return"),
        (lambda h, y: h, "a tensor (100,), got (100, 10)"),
        (torch.nn.functional.cross_entropy, "Take no mean over the batch"),
        (lambda h, y: (h.argmax(1) != y).float(), "cuts it off"),
        (lambda h, y: -own(h.softmax(1), y).log(), "NaN or infinite"),
        (lambda h, y: (-own(h, y)).exp(), "NaN or infinite"),
        (losses.cross_entropy, "the softmax is 0 or 1 in float32"),
        (lambda h, y: losses.cross_entropy(h / 100, y), "the softmax is 0 or 1 in float32"),
        (lambda h, y: losses.cross_entropy(h.double(), y), "More digits do not help"),
        (lambda h, y: 1 - own(h.softmax(1), y), "Probabilities saturate even earlier"),
        (lambda h, y: losses.margin_loss(h, y).clamp(min=0), "so nothing starts"),
        (lambda h, y: -losses.margin_loss(h, y), "Turn the sign around"),
        (lambda h, y: -losses.cross_entropy(h, y), "Turn the sign around"),
        (mahalanobis.mmc, "which rival should it meet"),
        (lambda h, y: h.sum(1) - own(h, y), "leave out its own centre"),
        (lambda h, y: losses.cross_entropy(h / 1e4, y), "One is enough: the nearest"),
        (lambda h, y: h.mean(1) - own(h, y), "One is enough: the nearest"),
        (lambda h, y: own(h, y) / rivals(h, y).amax(1), "the rival whose centre is nearest"),
    ],
)


def at_the_label(z, y):
    """Every member's own logit or probability of class y, (n, K)."""
    return z.gather(2, y[:, None, None].expand(-1, z.shape[1], 1)).squeeze(2)


def log_p(z):
    return torch.log_softmax(z, 2)


OPEN["ensembles.optimum"] = (
    [lambda alpha, K, L: (ensembles.optimum(alpha, K, L), (K + L - 1) / math.log(K))],
    [
        (3, "expected a function"),
        (ensembles.optimum, "expected a tensor of shape (2,), got a single number"),
        (lambda alpha, K, L: (0.4, 7.0), "Try this case by hand"),
    ],
)
OPEN["ensembles.stable_mean"] = (
    [
        lambda z: log_p(z).logsumexp(1).sub(math.log(z.shape[1])).double(),
        lambda z: torch.logsumexp(log_p(z.double()) - math.log(z.shape[1]), 1),
    ],
    [
        (3, "expected a function"),
        (lambda z: z, "expected a tensor of shape (1, 3), got a tensor of shape (1, 2, 3)"),
        (lambda z: z.double().softmax(2).mean(1).log(), "Stay in logarithms"),
        (lambda z: (z.softmax(2).mean(1) + 1e-12).log(), "is a floor"),
        (lambda z: z.softmax(2).mean(1).clamp(min=1e-30).log(), "is a floor"),
        (lambda z: 2 * log_p(z).logsumexp(1), "Try this case by hand"),
    ],
)
OPEN["ensembles.certificate"] = (
    [
        lambda m: torch.where(
            m >= 0, (1 - (-m).exp()) / (1 + (-m).exp().sum(1, keepdim=True)), torch.tanh(m / 2)
        ).mean(0),
        lambda m: ensemble_checks._bound(m.double()),
    ],
    [
        (3, "expected a function"),
        (lambda m: m, "expected a tensor of shape (2,), got a tensor of shape (2, 2)"),
        (
            lambda m: ensemble_checks._of(m.clamp(min=-80)).nan_to_num(0) + 1e-3 * (m.amin() < -9),
            "keep e^1000 out",
        ),
        (lambda m: -ensemble_checks._bound(m), "Try this case by hand"),
    ],
)
OPEN["ensembles.each_robust"] = (
    [
        ensembles.mean_margin,
        ensembles.mean_logits,
        lambda z, y: ensembles.mean_margin(z, y).double(),
        lambda z, y: ensembles.mean_probability(z / 100, y),
        lambda z, y: sum(losses.log_odds(z[:, k], y) for k in range(3)),
        lambda z, y: losses.log_odds(log_p(z).mean(1), y),
    ],
    [
        (3, "expected a function"),
        (lambda z, y: None, "needs a return"),
        (lambda z, y: z, "a tensor (100,), got (100, 3, 10)."),
        (lambda z, y: -at_the_label(z, y), "got (100, 3). Mean over the members, too."),
        (lambda z, y: ensembles.mean_margin(z, y).mean(), "Take no mean over the batch"),
        (lambda z, y: (z.mean(1).argmax(1) != y).float(), "cuts it off"),
        (lambda z, y: -at_the_label(z.softmax(2), y).log().sum(1), "NaN or infinite"),
        (lambda z, y: (-at_the_label(z, y)).exp().sum(1), "NaN or infinite"),
        (lambda z, y: losses.cross_entropy(ensembles.log_mean(z), y), "p̄_y is 1 in float32"),
        (lambda z, y: -at_the_label(z.softmax(2), y).mean(1), "p̄_y is 1 in float32"),
        (ensembles.mean_probability, "Then p̄_y is 2/3"),
        (lambda z, y: ensembles.mean_probability(z.double(), y), "Then p̄_y is 2/3"),
        (lambda z, y: -at_the_label(log_p(z), y).sum(1), "the softmax in your loss is 0 or 1"),
        (lambda z, y: 1 - at_the_label(z.softmax(2), y).prod(1), "the softmax in your loss is 0 or 1"),
        (lambda z, y: ensembles.mean_margin(z, y).clamp(min=0), "so nothing starts"),
        (lambda z, y: -ensembles.mean_margin(z, y), "Turn the sign around"),
        (lambda z, y: at_the_label(z, y).mean(1), "Turn the sign around"),
        (ensembles.of_member(0), "You attack one member only"),
        (ensembles.of_member(2), "You attack one member only"),
        (lambda z, y: ensembles._margins(z, y).amax(1), "the two others outvote it"),
        (ensembles.strongest, "the one that holds out best"),
        (lambda z, y: rivals(z.mean(1), y).amax(1), "every member to its own nearest mistake"),
    ],
)


def two_members(size=50.0, doubted=(1, 2), along=((1, 0), (1, 0)), at=0.0, other=-100.0):
    """Members 0 and 1: class 0 leads where ⟨along, x⟩ > at, and one class only is doubted."""

    def members():
        W, b = torch.zeros(2, 3, 2), torch.full((2, 3), other)
        W[:, 0], b[:, 0] = size * torch.tensor(along, dtype=torch.float), -size * at
        b[[0, 1], list(doubted)] = 0
        return W, b

    return members


W_EVERYWHERE, B_DIVERSE = torch.zeros(2, 3, 2), torch.tensor([[5.0, 0, -100], [5.0, -100, 0]])
OPEN["ensembles.diverse"] = (
    [
        two_members(),
        two_members(doubted=(2, 1), size=20),
        lambda: [each.tolist() for each in two_members()()],
        lambda: [each.double() for each in two_members()()],
        two_members(along=((1, 0.3), (1, 0.3)), at=-0.5),
    ],
    [
        (3, "expected a function"),
        (lambda: None, "needs a return"),
        (
            lambda: torch.zeros(2, 3, 2),
            "expected W (2, 3, 2) and b (2, 3), in this order, got (2, 3, 2).",
        ),
        (lambda: two_members()()[::-1], "in this order, got ((2, 3), (2, 3, 2))"),
        (lambda: (torch.zeros(2, 3, 2), "b"), "in this order, got ((2, 3, 2), 'b')"),
        (two_members(other=-INF), "all entries must be finite"),
        (two_members(at=1.5), "at x = (1, 0) member 0 has the logits (-25, 0, -100)"),
        (two_members(doubted=(1, 1)), "at x = (1, 0) ED is 0, and should be above 0.9. Both members"),
        (two_members(other=-0.5), "each member has to give one of them far less"),
        (lambda: (W_EVERYWHERE, B_DIVERSE), "member 0 says the same everywhere"),
        (two_members(along=((1, 0.5), (1, -0.5)), at=-1.0), "They break in different directions"),
        (two_members(size=3), "multiply W and b"),
    ],
)


def by_ranks(ordinary, attacked):
    _, at, times = torch.unique(torch.cat([ordinary, attacked]), return_inverse=True, return_counts=True)
    ranks = (times.cumsum(0) - (times - 1) / 2)[at][: len(ordinary)]
    n, m = len(ordinary), len(attacked)
    return (ranks.sum() - n * (n + 1) / 2) / (n * m)


def in_their_order(ordinary, attacked):
    """Ranks of which no two are alike: the clean scores come first where they tie."""
    ranks = torch.cat([ordinary, attacked]).argsort(stable=True).argsort() + 1
    n, m = len(ordinary), len(attacked)
    return (ranks[:n].sum() - n * (n + 1) / 2) / (n * m)


def exponents(h, kept, sigma):
    return -(h[:, None] - kept).square().sum(2) / sigma**2


def of_the_others(z, y):
    """Which classes are not y, (n, K)."""
    return torch.ones_like(z).scatter(1, y[:, None], 0)


OPEN["detection.auc_ranks"] = (
    [
        detection.auc,
        by_ranks,
        lambda a, b: by_ranks(a, b).item(),
        lambda a, b: (a[:, None] > b).double().mean() + (a[:, None] == b).double().mean() / 2,
    ],
    [
        (3, "expected a function"),
        (lambda a, b: a, "expected a single number, got a tensor of shape (3,)"),
        (in_their_order, "Ties count 0 with you"),
        (lambda a, b: 1 - detection.auc(a, b), "The wrong way round"),
        (lambda a, b: detection.auc(-a, -b), "The wrong way round"),
        (lambda a, b: 0.5, "Try this case by hand"),
    ],
)
OPEN["detection.kernel_density"] = (
    [
        lambda h, kept, sigma: exponents(h, kept, sigma).logsumexp(1) - math.log(len(kept)),
        lambda h, kept, sigma: (
            exponents(h.double(), kept.double(), sigma) - math.log(len(kept))
        ).logsumexp(1),
        lambda h, kept, sigma: detection.KernelDensity(kept, torch.zeros(len(kept)).long(), sigma)(
            torch.tensor([[1.0, 0.0]]).expand(len(h), -1), h
        ),
    ],
    [
        (3, "expected a function"),
        (exponents, "expected a tensor of shape (2,), got a tensor of shape (2, 3)"),
        (lambda h, kept, sigma: exponents(h, kept, sigma).exp().mean(1).log(), "Stay in logarithms"),
        (lambda h, kept, s: exponents(h.double(), kept, s).exp().mean(1).log(), "Stay in logarithms"),
        (lambda h, kept, s: (exponents(h, kept, s).exp().mean(1) + 1e-30).log(), "is a floor"),
        (lambda h, kept, s: exponents(h, kept, s).exp().sum(1).log(), "take off log m"),
        (lambda h, kept, s: exponents(h, kept, s**0.5).exp().mean(1).log(), "divided by σ. It is σ²"),
        (lambda h, kept, s: -detection_checks._density(h, kept, s), "Try this case by hand"),
    ],
)
OPEN["detection.rce"] = (
    [
        lambda z, y: (
            -(torch.log_softmax(z, 1) * of_the_others(z, y)).sum(1) / (z.shape[1] - 1)
        ).double(),
        lambda z, y: -torch.log_softmax(z, 1)[of_the_others(z, y) > 0].view(len(z), -1).mean(1),
    ],
    [
        (3, "expected a function"),
        (
            lambda z, y: losses.cross_entropy(z, y).mean(),
            "expected a tensor of shape (1,), got a single",
        ),
        (
            lambda z, y: -z.softmax(1).log()[of_the_others(z, y) > 0].view(len(z), -1).mean(1),
            "`torch.log_softmax` takes no probability",
        ),
        (
            lambda z, y: -(z.softmax(1) + 1e-30).log()[of_the_others(z, y) > 0].view(len(z), -1).mean(1),
            "is a floor",
        ),
        (lambda z, y: -torch.log_softmax(z, 1).sum(1), "Yours pulls p_y up, too. The factor"),
        (lambda z, y: 2 * detection.reverse_cross_entropy(z, y), "Try this case by hand"),
    ],
)


def where_right(first, then):
    """A loss of two: one where the answer is right, another where it is wrong."""
    return lambda z, g, y: torch.where(losses.correct(z, y), first(z, g, y), then(z, g, y))


def odds(z, g, y):
    return losses.log_odds(z, y)


def excess(z, g, y):
    return g


OPEN["detection.bypass"] = (
    [
        detection.constrained,
        lambda z, g, y: detection.constrained(z, g, y).double(),
        where_right(lambda z, g, y: losses.margin_loss(z, y), excess),
        where_right(lambda z, g, y: losses.cross_entropy(z, y), excess),
        where_right(odds, lambda z, g, y: odds(z, g, y) + g),
    ],
    [
        (3, "expected a function"),
        (lambda z, g, y: None, "needs a return"),
        (lambda z, g, y: z, "a tensor (400,), got (400, 10)."),
        (lambda z, g, y: g.mean(), "Take no mean over the batch"),
        (lambda z, g, y: (z.argmax(1) != y).float(), "no gradient in z or g"),
        (lambda z, g, y: (g > 0).float(), "no gradient in z or g"),
        (lambda z, g, y: 0 * g, "Your loss is flat"),
        (lambda z, g, y: g / 0, "NaN or infinite"),
        (lambda z, g, y: (1000 * g).exp(), "NaN or infinite"),
        (odds, "of 200 answers 1"),
        (odds, "your loss does not see g"),
        (lambda z, g, y: losses.margin_loss(z, y), "your loss does not see g"),
        (lambda z, g, y: losses.cross_entropy(z, y), "your loss does not see g"),
        (where_right(odds, lambda z, g, y: 0 * g), "your loss does not see g"),
        (excess, "Right and accepted fools nobody"),
        (lambda z, g, y: g.clamp(max=0) + 0.1 * g, "Right and accepted fools nobody"),
        (where_right(excess, odds), "The other way round"),
        (lambda z, g, y: odds(z, g, y) + g, "First wrong, then ordinary"),
        (lambda z, g, y: losses.margin_loss(z, y) + 10 * g, "First wrong, then ordinary"),
        (lambda z, g, y: -g, "Your loss falls with g"),
        (lambda z, g, y: odds(z, g, y) - g, "Your loss falls with g"),
        (where_right(odds, lambda z, g, y: -g), "Your loss falls with g"),
        (lambda z, g, y: g - odds(z, g, y), "Your loss rises with z_y"),
        (detection.penalised(0.01), "you still pull at the logits"),
        (where_right(lambda z, g, y: z[:, 0], excess), "Does it turn the answer"),
    ],
)


each = pytest.mark.parametrize("exercise", EXERCISES.values(), ids=EXERCISES)
code = {name: e for name, e in EXERCISES.items() if isinstance(e, Code)}
each_code = pytest.mark.parametrize("exercise", code.values(), ids=code)


def each_code_with(*hooks):
    """Every code exercise that leaves these methods of Code as they are."""
    plain = {
        n: e for n, e in code.items() if all(getattr(type(e), h) is getattr(Code, h) for h in hooks)
    }
    return pytest.mark.parametrize("exercise", plain.values(), ids=plain)


def right_answers(name, exercise):
    if isinstance(exercise, Code):
        yield exercise.reference
    if isinstance(exercise, Numbers):
        yield from (exercise.expected, list(exercise.expected), torch.tensor(exercise.expected))
    yield from OPEN.get(name, ([], []))[0]


def wrong_answers(name, exercise):
    """(answer, the sentence it must be told) for every mistake the exercise knows, and some more."""
    yield from ((wrong, sentence) for sentence, wrong in getattr(exercise, "mistakes", {}).items())
    yield from OPEN.get(name, ([], []))[1]


TRAIN = (  # a network for an answer, or six or more
    "adversarial_training.ramp",
    "adversarial_training.random_start",
    "trial.lacking",
    "trial.fight",
    "recipe.sell",
)


def answers(of):
    """A case for each exercise and each of its answers, under the exercise's name."""
    for name, exercise in EXERCISES.items():
        marks = [pytest.mark.slow] if name in TRAIN else []
        for answer in of(name, exercise):
            yield pytest.param(name, exercise, answer, id=name, marks=marks)


RIGHT, WRONG = list(answers(right_answers)), list(answers(wrong_answers))


def test_there_are_exercises():
    assert len(EXERCISES) >= 7


@pytest.mark.parametrize(("name", "exercise", "answer"), RIGHT)
def test_a_right_answer_passes_and_is_told_why_it_matters(name, exercise, answer):
    verdict = exercise(answer)
    assert verdict.status == PASSES
    assert verdict.message == exercise.praise
    assert str(verdict).startswith("✓ passes: ")


def test_code_that_stumbles_over_what_pytorch_has_not_implemented_was_attempted():
    of_labels = lambda z, y: torch.softmax(y, 0)  # noqa: E731 no softmax for integers
    verdict = EXERCISES["attacks.scaled"](of_labels)
    assert verdict.status == FAILS
    assert "softmax" in verdict.message


@pytest.mark.parametrize(("name", "exercise", "wrong"), WRONG)
def test_a_tempting_wrong_answer_fails_with_the_sentence_written_for_it(name, exercise, wrong):
    answer, sentence = wrong
    verdict = exercise(answer)
    assert verdict.status == FAILS
    assert sentence in verdict.message
    assert str(verdict).startswith("✗ fails: ")


@pytest.mark.parametrize("name", EXERCISES)
def test_every_exercise_knows_at_least_two_mistakes_and_their_sentences_differ(name, record_property):
    record_property("exercises checked", name)
    sentences = {sentence for _, sentence in wrong_answers(name, EXERCISES[name])}
    assert len(sentences) >= 2


@each_code_with("complaint")
def test_a_mistake_is_told_what_was_expected_and_what_came(exercise):
    for wrong in exercise.mistakes.values():
        message = exercise(wrong).message
        assert message.startswith("for ")
        assert " expected " in message
        assert ", got " in message


@each
def test_dots_are_not_attempted_yet(exercise):
    for stub in (..., [...], (..., ...), [0.5, ...]):
        assert exercise(stub) == Verdict(NOT_ATTEMPTED)
    assert str(exercise(...)) == "○ not attempted yet"


@each_code
def test_a_stub_is_not_attempted_yet(exercise):
    def stub(*args):
        raise NotImplementedError

    assert exercise(stub).status == NOT_ATTEMPTED


@each_code
def test_code_that_raises_is_reported_with_its_own_words(exercise):
    def broken(*args):
        raise ZeroDivisionError("by <zero>")

    verdict = exercise(broken)
    assert verdict.status == FAILS
    assert "your code raised ZeroDivisionError: by <zero>" in verdict.message
    assert "by &lt;zero&gt;" in verdict._repr_html_()


@each_code_with("outcome", "unfit")
def test_a_forgotten_return_is_named(exercise):
    assert "needs a return" in exercise(lambda *args: None).message


@each_code
def test_stopping_the_kernel_still_works(exercise):
    def interrupted(*args):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        exercise(interrupted)


THINGS = [
    None,
    3,
    2.5,
    True,
    "abc",
    "",
    [],
    {},
    {"a": 1},
    object(),
    [None],
    ["a", "b", "c"],
    [[1.0], [2.0, 3.0]],
    [1.0, 2.0, 1j],
    torch.zeros(0),
    torch.zeros(2, 3, 4),
    torch.full((3,), NAN),
    torch.tensor([1 + 2j]),
    np.array(["a"]),
    np.zeros((3, 3)),
    torch.tensor([True, False]),
    torch.nn.Linear(2, 1),
    print,
]


@pytest.mark.parametrize("thing", THINGS, ids=lambda thing: type(thing).__name__)
@each
def test_no_answer_of_any_kind_makes_a_check_raise_or_pass(exercise, thing, capsys):
    for answer in [thing, lambda *args: thing]:
        verdict = exercise(answer)
        right = isinstance(exercise, Code) and callable(answer) and thing is True
        assert verdict.status == FAILS or right
        assert verdict.message
        assert verdict._repr_html_()


@each_code
def test_a_function_with_other_arguments_fails(exercise):
    assert exercise(lambda: 0).status == FAILS


@each_code
def test_a_function_that_spoils_its_arguments_spoils_no_later_check(exercise):
    def spoils(*args):
        for argument in args:
            if torch.is_tensor(argument):
                argument.zero_()
        return torch.tensor(0.0)

    before = exercise(spoils).message
    assert exercise(spoils).message == before
    assert exercise(exercise.reference).status == PASSES


@each_code_with("outcome")
def test_the_type_of_number_does_not_matter(exercise):
    def doubled(*args):
        result = exercise.reference(*args)
        return result.double() if torch.is_tensor(result) else result

    def listed(*args):
        result = exercise.reference(*args)
        return result.tolist() if torch.is_tensor(result) else result

    assert exercise(doubled).status == exercise(listed).status == PASSES


@each_code_with("outcome", "same")
def test_a_small_slip_is_not_overlooked(exercise):
    def slipped(*args):
        result = exercise.reference(*args)
        return not result if isinstance(result, bool) else result + 0.01

    verdict = exercise(slipped)
    assert verdict.status == FAILS
    assert "expected" in verdict.message


def test_numbers_that_are_wrong_in_no_known_way_are_named():
    exercise = EXERCISES["linear_models.three_balls"]
    assert exercise([0.4, 0.5, 0.6]).message == "not yet right: p = ∞."
    assert exercise([9, 9, 0.7]).message == "not yet right: p = 1, p = 2."
    assert exercise([0.4, 0.5]).message.startswith("expected 3 numbers")
    assert exercise([0.4, "half", 0.7]).message == "p = 2: expected a number, got “half”."


def test_numbers_without_labels_are_counted():
    exercise = Numbers(expected=(1.0, 2.0), mistakes={})
    assert exercise([1.0, 5.0]).message == "not yet right: number 2."


def test_whoever_has_changed_nothing_has_nothing_to_sell(monkeypatch):
    monkeypatch.setattr(recipe_checks, "_judged", lambda share: (74.0, 73.0))
    verdict = EXERCISES["recipe.sell"](0.5)
    assert verdict.status == FAILS
    assert "nothing to sell yet" in verdict.message


def test_what_the_exercises_on_centres_call_right_is_what_the_library_says():
    near = partial(pytest.approx, rel=1e-9, abs=1e-9)
    assert mahalanobis.centres(3, 2)[1:].flatten().tolist() == near(list(geometry_checks.three.expected))
    mu = mahalanobis.centres(10, 9, 10.0)
    asked = geometry_checks.half_way.expected
    radius = mahalanobis.robust_radius
    assert float((mu[0] - mu[1]).square().sum()) == near(asked.squared)
    assert [radius(10, 10.0), radius(2), radius(10, asked.C)] == near([asked.ten, asked.two, 3.0])
    assert radius(10**9) == pytest.approx(asked.many, rel=1e-8)


def test_where_the_theorem_says_nothing_there_is_no_level_set():
    mu = torch.tensor([[0.0, 0.0], [1.0, 0.0]], dtype=torch.float64)
    low, top, R, away = geometry_checks.domain.expected

    def sphere(loss, precisions):
        return mahalanobis.level_set(torch.tensor(loss, dtype=torch.float64), mu, precisions, (0.0, 0.0))

    middle, _ = sphere(low + 1e-6, (2.0, 1.0))
    assert float((middle - mu[0]).norm()) == pytest.approx(away)
    sphere(top - 1e-6, (1.0, 2.0))
    for loss, precisions in ((low - 1e-6, (2.0, 1.0)), (top + 1e-6, (1.0, 2.0))):
        with pytest.raises(ValueError, match="bracket"):
            sphere(loss, precisions)
    for precisions in ((2.0, 1.0), (1.0, 2.0)):
        assert float(sphere(math.log(2), precisions)[1]) == pytest.approx(R)


def test_what_each_loss_sees_is_what_it_does_when_z_and_the_centres_move():
    mu, y = mahalanobis.centres(3, 3), torch.tensor([0])
    turn = torch.linalg.qr(torch.randn(3, 3, generator=seeded(0), dtype=torch.float64))[0]
    zero, far = torch.zeros(3).double(), mu.clone()
    far[1] *= 3
    z = torch.tensor([0.4, 0.1, 0.2], dtype=torch.float64)
    moves = {
        "change (a)": ((zero, mu), (mu[0], mu)),
        "change (b)": ((zero, mu), (torch.tensor([0.0, 0.0, 2.0]).double(), mu)),
        "change (c)": ((mu[0], mu), (5 * mu[0], mu)),
        "change (d)": ((z, mu), (z, far)),
        "change (e)": ((z, mu), (turn @ z, mu @ turn.T)),
    }
    said = {"only MMC": (0, 1), "only MMLDA": (-1, 0), "both, alike": (-1, -1), "neither": (0, 0)}
    said["both, one up and one down"] = (-1, 1)
    for label, truth in zip(geometry_checks.sees.labels, geometry_checks.sees.truth, strict=True):
        changes = []
        for loss in (losses.cross_entropy, mahalanobis.mmc):
            h = [-(at - centres).square().sum(1)[None] / 2 for at, centres in moves[label]]
            change = float(loss(h[1], y) - loss(h[0], y))
            changes.append(0 if abs(change) < 1e-9 else math.copysign(1, change))
        assert tuple(changes) == said[truth], label


def test_the_network_that_is_to_be_broken_withstands_pgd_on_the_cross_entropy_and_nothing_else():
    assert geometry_checks._left(losses.cross_entropy) >= 90
    known, label = geometry_checks._left(losses.margin_loss), geometry_checks._left(mahalanobis.mmc)
    assert 35 <= known <= 55
    assert label > known + 4


def test_centres_a_hundred_times_as_long_change_no_prediction():
    model, x = geometry_checks.saturated(), geometry_checks._judged()[0]
    mu = mahalanobis.centres(10, 64)
    small = nn.Sequential(model[:-1], mahalanobis.NearestCentre(100 * mu))
    assert torch.equal(small(x).argmax(1), model(x).argmax(1))
    near = mahalanobis.NearestCentre(mu)(model[:-1](x) / 100)
    assert torch.allclose(1e4 * near, model(x), rtol=1e-3)


def test_what_the_exercises_on_ensembles_call_right_is_what_the_library_says():
    near = partial(pytest.approx, rel=1e-9, abs=1e-9)
    c = ensemble_checks

    def ed(*members):
        z = torch.tensor(members, dtype=torch.float64)[None].log()
        return float(ensembles.diversity(z, torch.zeros(1, dtype=torch.long)))

    said = c.determinant.expected
    assert [ed(c.FIRST, c.SECOND), ed(c.SURER, c.SECOND), ed(c.FIRST, c.SECOND, c.THIRD)] == near(
        [said.two, said.surer, said.three]
    )
    computed = list(c._EXACT)
    assert computed == near(list(said))
    plane = [p[:3] for p in (c.FIRST, c.SECOND, c.SURER)]
    assert ed(*plane) == near(said.plane)
    for p in (c.FIRST, c.SECOND, c.SURER, c.THIRD):
        assert sum(p) == near(1)


@pytest.mark.parametrize(("K", "L"), [(2, 5), (3, 7), (4, 9)])
def test_beyond_the_alpha_of_the_exercise_every_member_is_wrong_and_the_ensemble_right(K, L):
    limit = float(ensemble_checks._optimum(1.0, K, L)[1])
    for alpha, right in ((limit - 1e-3, True), (limit + 1e-3, False)):
        p = ensembles.optimal_predictions(alpha, K, L)
        assert bool((p.argmax(1) == 0).all()) == bool((p.argmax(1) == 0).any()) == right
        assert p.mean(0).argmax() == 0


def test_the_committee_withstands_pgd_until_all_of_its_members_are_attacked():
    left = ensemble_checks._left
    alone = [left(ensembles.of_member(k)) for k in range(3)]
    assert min(alone) >= 95
    assert left(lambda z, y: losses.cross_entropy(ensembles.log_mean(z), y)) >= 90
    assert left(ensembles.mean_probability) >= 55
    assert left(ensembles.mean_margin) <= 18
    assert left(ensembles.mean_logits) <= 23


def test_each_member_of_the_committee_looks_robust_to_pgd_on_its_cross_entropy():
    x, y = ensemble_checks._judged()
    for member in ensemble_checks.committee().members():
        delta = attacks.pgd(member, x, y, ensemble_checks.BALL, steps=10, loss=losses.cross_entropy)
        with torch.no_grad():
            assert losses.correct(member(x + delta), y).double().mean() > 0.75


def test_members_of_the_committee_share_no_pixel():
    seen = torch.stack([m[1].weight.abs().sum(0) > 0 for m in ensemble_checks.committee().members()])
    assert int(seen.sum(0).max()) == 1


@pytest.mark.parametrize("seed", range(5))
def test_the_radii_of_the_exercise_on_diversity_are_exact(seed):
    W = torch.randn(2, 3, 2, generator=seeded(seed), dtype=torch.float64)
    b = torch.zeros(2, 3, dtype=torch.float64)
    b[:, 0] = 5
    turn = torch.linspace(0, 2 * math.pi, 2001, dtype=torch.float64)
    unit = torch.stack([turn.cos(), turn.sin()], 1)
    for n, point in enumerate(ensemble_checks.POINTS):
        for k, radius in enumerate(ensemble_checks._radii(W, b)[n].tolist()):
            if radius <= 0:
                continue
            lead = [
                (z[:, 0] - z[:, 1:].amax(1)).amin()
                for z in ((point + r * unit) @ W[k].T + b[k] for r in (0.999 * radius, 1.001 * radius))
            ]
            assert lead[0] > 0 > lead[1]


def test_a_proof_for_the_whole_is_one_where_a_member_has_none():
    m = ensemble_checks.certificate.cases[1][0]
    assert bool((m < 0).any())
    assert bool((ensemble_checks._bound(m) > 0).all())


def test_what_the_exercises_on_detection_call_right_is_what_the_library_says():
    near = partial(pytest.approx, rel=1e-6, abs=1e-9)
    c, generator = detection_checks, seeded(0)
    for size in (2, 5, 1000):
        scores = torch.randint(0, size, (60,), generator=generator).float()
        assert float(c._auc(scores[:40], scores[40:])) == near(detection.auc(scores[:40], scores[40:]))
    p = torch.tensor(c.OPINIONS, dtype=torch.float64)
    said = [*detection.non_maximal_entropy(p.clamp(min=1e-300).log()).tolist()]
    said += detection.non_maximal_entropy(torch.tensor([c.LOGITS])).tolist()
    assert said == near(list(c.nonme_hand.expected))
    assert p.sum(1).tolist() == near([1.0] * 4)


def test_the_exercise_on_alarms_counts_what_a_day_brings():
    found, false = 0.95 * 10, 0.05 * 9990
    said = detection_checks.base_rate.expected
    assert (found / (found + false), false) == pytest.approx((said.attacks, said.false))
    assert found == pytest.approx(said.half * 9990)


def test_the_table_of_the_exercise_has_curves_at_both_bounds_and_none_beyond():
    f, said = 0.05, detection_checks.detector_table.expected

    def area(*corners):
        at, height = torch.tensor(corners, dtype=torch.float64).T
        return float(torch.trapezoid(height, at))

    assert area((0, said.least), (f, said.least), (f, 1), (1, 1)) == pytest.approx(0.97)
    assert area((0, 0), (f, 0), (f, said.most), (1, said.most)) == pytest.approx(0.76)
    wrong, through = (800, 900, 1000, 1000), []
    for made, found in zip(wrong, (820 - 200, 765, 970, 20), strict=True):
        through.append((made - found) / 1000)
    assert said.found == pytest.approx((820 - 200) / 800)
    assert (through[1], 1 - max(through)) == pytest.approx((said.through, said.left))
    s = torch.rand(50, generator=seeded(1)), torch.rand(50, generator=seeded(2))
    assert detection.auc(*s) + detection.auc(-s[0], -s[1]) == pytest.approx(1.0)


def test_the_detector_notices_who_does_not_hide_and_nobody_else():
    c, state = detection_checks, torch.get_rng_state()
    assert len(c._judged()[1]) == c.JUDGED
    wrong, passed = c._fooled(odds)
    assert wrong >= 165
    assert passed <= 135
    assert c._fooled(detection.constrained)[1] >= 155
    assert c._fooled(lambda z, g, y: odds(z, g, y) + g)[1] <= 40
    assert torch.equal(state, torch.get_rng_state())


def test_a_verdict_is_one_accessible_line_of_html():
    verdict = Verdict(FAILS, "2 < 3 & “so”")
    source = verdict._repr_html_()
    assert source.startswith('<div class="adv-verdict adv-fails" role="status">')
    assert "✗ fails: 2 &lt; 3 &amp; “so”" in source
    assert "adv-not" in Verdict(NOT_ATTEMPTED)._repr_html_()
    assert repr(verdict) == str(verdict) == "✗ fails: 2 < 3 & “so”"


@each
def test_every_sentence_is_one(exercise):
    sentences = [exercise.praise, *getattr(exercise, "mistakes", {})]
    assert all(s.strip() == s and s.endswith(".") for s in sentences)


@pytest.fixture
def chapter():
    """A chapter's checks: three exercises that nobody has answered yet."""
    module = ModuleType("adv_lib.checks.small_sums")
    titles = ("One & one", "Two and two", "Three and three")
    module.EXERCISES = {title: Numbers((2.0 * n,), {}) for n, title in enumerate(titles, 1)}
    return module


def test_progress_shows_the_last_verdict_of_every_exercise_and_their_count(chapter):
    one, two, _ = chapter.EXERCISES.values()
    one([2.0]), two([4.0]), two([5.0])
    first, *lines = str(progress(chapter)).splitlines()
    assert re.fullmatch(r"Small sums: 1 of 3 exercises pass \(\d{4}-\d\d-\d\d\)", first)
    assert lines == [
        "✓ One & one: passes",
        "✗ Two and two: fails",
        "○ Three and three: not attempted yet",
    ]
    two([4.0])
    assert "2 of 3" in repr(progress(chapter))


def test_progress_says_the_same_in_html_as_in_plain_text(chapter):
    chapter.EXERCISES["One & one"]([2.0])
    shown = progress(chapter)
    page = shown._repr_html_()
    assert "<li>✓ One &amp; one: passes</li>" in page
    assert [line.replace("&", "&amp;") in page for line in str(shown).splitlines()] == [True] * 4


def test_progress_that_was_shown_does_not_change_with_the_next_answer(chapter):
    shown = progress(chapter)
    chapter.EXERCISES["One & one"]([2.0])
    assert "0 of 3" in str(shown)


@pytest.mark.parametrize("thing", [None, 3, "check", ModuleType("empty"), Numbers((1.0,), {})])
def test_progress_of_what_is_no_chapter_shows_no_exercise_and_raises_nothing(thing):
    assert "0 of 0 exercises" in str(progress(thing))


@pytest.mark.parametrize("module", sorted({name.partition(".")[0] for name in EXERCISES}))
def test_every_module_of_checks_lists_all_of_its_exercises(module):
    chapter = importlib.import_module(f"{checks.__name__}.{module}")
    own = [exercise for name, exercise in EXERCISES.items() if name.startswith(f"{module}.")]
    assert sorted(map(id, chapter.EXERCISES.values())) == sorted(map(id, own))


def test_an_answer_of_nan_is_told_where_nan_comes_from():
    def divides_by_the_row_of_y(W, b, x, y):
        lengths = (W - W[y]).norm(dim=1)
        k = (((W[y] - W) @ x + b[y] - b) / lengths).argmin()
        return ((W[y] - W) @ x + b[y] - b)[k] * (W[k] - W[y]) / lengths[k] ** 2

    told = str(trial_checks.shortest(divides_by_the_row_of_y))
    assert "0/0" in told
    assert "0/0" not in str(trial_checks.shortest(lambda W, b, x, y: 0 * x))


def test_the_trees_have_the_sizes_that_their_exercise_says():
    larger = [("same", "A", "B")[(a > b) - (a < b)] for a, b in dual_checks.tree_sizes().values()]
    assert larger == list(dual_checks.size_of_the_tree.truth)
    least = [dual_checks._searched(dual_checks.drawn(), eps, sign=False).lower for eps in (1.0, 2.0)]
    assert least[0] > 0.01
    assert least[1] < -0.01
    again = [dual_checks._searched(dual_checks.drawn(2), eps, sign=False).lower for eps in (1.0, 2.0)]
    assert np.allclose(again, 2 * np.array(least), atol=1e-5)
