"""Checks of chapter 9, the trial."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..evaluation import check_allowed
from . import Code, Exercise, Numbers, Words, arena
from .comparing import shape_or_value

# ---- by hand ----

missing = Words(
    truth=("another loss", "a stand-in gradient", "mean over draws", "targets", "nothing"),
    labels=("defense A", "defense B", "defense C", "defense D", "defense E"),
    among=("another loss", "a stand-in gradient", "mean over draws", "targets", "nothing"),
    why=(
        "On the cross-entropy neither one step nor a hundred move anything, and Square, which asks "
        "for the margin and has no gradient, breaks half. The loss is to blame, and no other was tried.",
        "Every attack with a gradient leaves what is right without an attack, on either loss; a search "
        "without gradients breaks nearly all. So there is no gradient: put one in its place.",
        "Asked again, images are answered otherwise. Each attack saw one draw, and is judged by "
        "another.",
        "On the margin PGD finds nothing, and on the cross-entropy, which looks at all rivals, it "
        "finds a third. So the strongest rival never wins: try the others.",
        "One step, a hundred, another loss and a search without gradients agree within three points. "
        "Nothing in this line says that an attack is missing, which is no proof that none is.",
    ),
    praise="each table says by itself what its authors have not tried.",
)

ratios = Numbers(
    expected=(-0.5, -0.5, 0.5, 0.0, 100.0),
    labels=("z = (5, 3, 1)", "z = (500, 300, 100)", "z = (3, 5, 1)", "z = (5, 5, 1)", "the factor"),
    mistakes={
        "The sign: the loss is the rival minus the true class, negative while the prediction is "
        "right.": (
            0.5,
            0.5,
            -0.5,
            0.0,
            100.0,
        ),
        "You divided by the gap between the first and the second logit. Divide by that to the third: "
        "otherwise it is −1 wherever the prediction is right.": (-1.0, -1.0, 1.0, 0.0, 100.0),
        "The numerator is the strongest rival minus the true class, whatever the third logit is.": (
            -0.5,
            -0.5,
            1.0,
            0.0,
            100.0,
        ),
        "You did not divide: that is the margin, with its sign turned.": (-2.0, -200.0, 2.0, 0.0, 100.0),
        "The factor is that of the margin, which grows with the logits. The ratio does not.": (
            -0.5,
            -0.5,
            0.5,
            0.0,
            1.0,
        ),
    },
    praise="the ratio does not see the scale.",
)

# ---- onto a hyperplane, in a box ----


def _onto(x: Tensor, w: Tensor, b: float, way: Tensor | None = None) -> Tensor:
    """The shortest δ, in the sense of ‖·‖_∞, with ⟨w, x + δ⟩ ≥ b in [0, 1]^d, where ⟨w, x⟩ < b."""
    way = w.sign() if way is None else way
    near, far = 0.0, 4.0
    for _ in range(60):
        t = (near + far) / 2
        near, far = (t, far) if (w * (x + t * way).clamp(0, 1)).sum() < b else (near, t)
    return (x + far * way).clamp(0, 1) - x


def _closed_form(x: Tensor, w: Tensor, b: float) -> Tensor:
    return (b - (w * x).sum()) / w.abs().sum() * w.sign()


onto = Code(
    reference=_onto,
    cases=[
        (torch.tensor([0.2, 0.5]), torch.tensor([1.0, -1.0]), 0.1),
        (torch.tensor([0.9, 0.2]), torch.tensor([1.0, 1.0]), 1.6),
        (torch.tensor([0.95, 0.5, 0.5]), torch.tensor([2.0, 1.0, -0.5]), 2.6),
    ],
    mistakes={
        "Without the box this is right. With it x + δ leaves [0, 1]: a pixel that is at the edge "
        "stops, and the others have to go further.": _closed_form,
        "You clipped the answer without a box, and it does not reach the hyperplane any more: what "
        "the box takes from one pixel the others must make up for.": (
            lambda x, w, b: (x + _closed_form(x, w, b)).clamp(0, 1) - x
        ),
        "That is the shortest δ for p = 2. For p = ∞ all pixels move equally far, each along the sign "
        "of w.": (lambda x, w, b: (b - (w * x).sum()) / (w * w).sum() * w),
        "That is the shortest way for p = 2: pixels move in proportion to |w_i|. For p = ∞ all move by "
        "the same t, until they meet the edge.": lambda x, w, b: _onto(x, w, b, w),
        "You returned x + δ. The answer is δ.": lambda x, w, b: x + _onto(x, w, b),
    },
    praise="all pixels move equally far, and those at the edge stop.",
)

# ---- DeepFool on a linear model ----


def _nearest(W: Tensor, b: Tensor, x: Tensor, y: int, far: Callable | None = None) -> Tensor:
    gaps = (W[y] - W) @ x + b[y] - b
    rows = W - W[y]
    lengths = rows.norm(dim=1)
    ranked = gaps / lengths if far is None else far(gaps, lengths)
    ranked[y] = math.inf
    k = int(ranked.argmin())
    return gaps[k] * rows[k] / lengths[k] ** 2


_W = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-3.0, 0.0]])
_B = torch.tensor([0.0, 0.0, 0.0])

shortest = Code(
    reference=_nearest,
    cases=[
        (_W, torch.tensor([0.0, 0.0, 2.6]), torch.tensor([1.0, 0.4]), 0),
        (_W, torch.tensor([0.0, 0.0, 2.8]), torch.tensor([1.0, -1.0]), 0),
        (_W, _B, torch.tensor([-1.0, 0.5]), 2),
    ],
    mistakes={
        "You went to the class with the smallest lead. What counts is how far its hyperplane is: the "
        "lead divided by ‖w_k − w_y‖₂.": lambda W, b, x, y: _nearest(
            W, b, x, y, lambda gaps, lengths: 1 * gaps
        ),
        "Your δ points the wrong way: towards the rival, w_k − w_y.": lambda W, b, x, y: (
            -_nearest(W, b, x, y)
        ),
        "The direction is right and the length is not: the lead is divided by ‖w_k − w_y‖₂², once for "
        "the distance and once to make the direction a unit vector.": (
            lambda W, b, x, y: _nearest(W, b, x, y) * _length(W, b, x, y)
        ),
    },
    praise="the nearest hyperplane, and straight to it.",
)


def _length(W: Tensor, b: Tensor, x: Tensor, y: int) -> Tensor:
    """‖w_k − w_y‖₂ of the class whose hyperplane is nearest."""
    delta = _nearest(W, b, x, y)
    gaps = (W[y] - W) @ x + b[y] - b
    lengths = (W - W[y]).norm(dim=1)
    return lengths[int(((gaps / lengths.clamp(min=1e-9)) - delta.norm()).abs().argmin())]


# ---- one run, all radii ----


def _curve(distances: Tensor, radii: Tensor) -> Tensor:
    return (distances[None, :] > radii[:, None]).double().mean(1)


curve = Code(
    reference=_curve,
    cases=[
        (torch.tensor([0.0, 0.1, 0.3, 0.3]), torch.tensor([0.0, 0.1, 0.2, 0.3])),
        (torch.tensor([0.05, math.inf, 0.2]), torch.tensor([0.05, 10.0])),
    ],
    mistakes={
        "You counted the broken ones. The accuracy is the share of the others.": (
            lambda distances, radii: 1 - _curve(distances, radii)
        ),
        "At ε equal to the distance the sample is broken: that δ is in the ball. It withstands where "
        "its distance is larger.": (
            lambda distances, radii: (distances[None, :] >= radii[:, None]).double().mean(1)
        ),
        "You divided by the samples that can be broken. Those with distance ∞ count as well, and so "
        "do those with distance 0.": (
            lambda distances, radii: (
                ((distances > radii[:, None]) & distances.isfinite()).double().sum(1)
                / distances.isfinite().sum()
            )
        ),
    },
    praise="one run has answered for every radius.",
)

# ---- break it ----


def _checked(answer: Callable, defense: arena.Defense) -> str | Tensor:
    """The δ of an attack on the arena's images, or what is wrong with it."""
    x, y = arena.judged()
    arena.seed(defense, 1)
    delta = answer(defense, x.clone(), y.clone(), arena.BALL)
    if not isinstance(delta, Tensor) or delta.shape != x.shape:
        return f"expected δ like x, {tuple(x.shape)}, got {shape_or_value(delta)}."
    try:
        check_allowed("your attack", delta.detach(), x, arena.BALL)
    except ValueError as error:
        return f"{error}: keep ‖δ‖_∞ ≤ ε and x + δ in [0, 1]."
    return delta.detach()


class _Lacking(Exercise):
    praise = "you left out what only hides the network, and attacked what is left on average."

    def examine(self, answer: Any) -> str | None:
        """The attack must come within five points of the best one known on Elm."""
        if not callable(answer):
            return f"expected a function, got {answer!r}."
        defense = arena.sealed()["Elm"]
        delta = _checked(answer, defense)
        if isinstance(delta, str):
            return delta
        x, y = arena.judged()
        left, clean = (arena.right(defense, at, y) for at in (x + delta, x))
        known = arena.baselines()["best known"]["Elm"]
        said = f"your attack leaves {left:.0f} % right, of {clean:.0f} %; {known:.0f} % is possible"
        if left > clean - 5:
            return f"{said}. Rounding has the gradient 0: what could stand in for it backwards?"
        if left > known + 20:
            return (
                f"{said}. Every answer is drawn anew, and a search sees one. What is the mean of many?"
            )
        if left > known + 5:
            return f"{said}. You are near: more steps, or more draws for each of them."
        return None


lacking = _Lacking()


class _Arena(Exercise):
    praise = "within three points of the best known attack, on the mean of the six."

    def examine(self, answer: Any) -> str | None:
        """The mean over the six defenses must be within three points of the best known attack's."""
        if not callable(answer):
            return f"expected a function, got {answer!r}."
        found = {}
        for name, defense in arena.sealed().items():
            delta = _checked(answer, defense)
            if isinstance(delta, str):
                return f"{name}: {delta}"
            x, y = arena.judged()
            found[name] = arena.right(defense, x + delta, y)
        known, pgd = arena.baselines()["best known"], arena.baselines()["PGD"]
        mean, best = (sum(each.values()) / len(each) for each in (found, known))
        said = f"a mean of {mean:.1f} % is left, and {best:.1f} % is possible"
        behind = [name for name in found if found[name] > known[name] + 5]
        if all(found[name] > pgd[name] - 2 for name in found):
            return f"{said}: no better than PGD as it comes. On which of the six does it find nothing?"
        if mean > best + 3:
            return f"{said}. You are behind on {', '.join(behind)}. What could each of them hide?"
        return None


fight = _Arena()

# ---- the chapter's exercises, in its order ----

EXERCISES = {
    "What is missing?": missing,
    "A ratio of three logits": ratios,
    "The nearest hyperplane": shortest,
    "Onto a hyperplane, in a box": onto,
    "One run, all radii": curve,
    "The attack that the suite lacks": lacking,
    "The arena": fight,
}
