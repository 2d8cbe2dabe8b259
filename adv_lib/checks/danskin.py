"""Checks of chapter 7, Danskin's theorem and the direction that falls fastest."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from .. import danskin
from . import Code, Direction, Directions, Exercise, Numbers
from .comparing import as_tensor

# ---- by hand ----

kinks = Numbers(
    expected=(1.0, 2.0, 2.0, -1.0, 2.0, 0.0),
    labels=("the first", "the second", "the third", "the fourth", "the fifth", "the sixth"),
    mistakes={
        "In the second you turned the sign of the first. At a kink the sides are independent: going "
        "left, −2θ leads, and it rises with slope 2.": (1.0, -1.0, 2.0, -1.0, 2.0, 0.0),
        "In the second, −2 is the derivative of −2θ to the right. D₋₁ is the slope on the way to the "
        "left: ⟨−1, −2⟩ = 2.": (1.0, -2.0, 2.0, -1.0, 2.0, 0.0),
        "In the third you followed one gradient, (1, 1). The other has the product 2 with γ, and the "
        "largest counts.": (1.0, 2.0, -2.0, -1.0, 2.0, 0.0),
        "In the fifth both ends are worst. To the left φ = (|θ| + 1)² rises as well.": (
            1.0,
            2.0,
            2.0,
            -1.0,
            -2.0,
            0.0,
        ),
        "In the fifth, φ is no smooth function with a minimum at 0: its slope there is 2, both ways.": (
            1.0,
            2.0,
            2.0,
            -1.0,
            0.0,
            0.0,
        ),
        "In the sixth the worst δ at θ = 0 is 0, not an end: −δ²/2 keeps it there.": (
            1.0,
            2.0,
            2.0,
            -1.0,
            2.0,
            1.0,
        ),
    },
    praise="and in the third, minus a gradient led up: that is the subject of the next section.",
)


# the maximum of ⟨a, θ⟩ and ⟨b, θ⟩ for a = (2, 1), b = (−1, 1) falls by at most 1
by_hand = Directions(
    gradients=((2.0, 1.0), (-1.0, 1.0)),
    asked=(
        Direction(
            name="γ₁",
            limit=0.0,
            mistakes={
                "γ₁ = −a/‖a‖ has a positive product with b, so φ rises along it.": (-2.0, -1.0),
                "γ₁ = −b/‖b‖ has a positive product with a, so φ rises along it.": (1.0, -1.0),
            },
            advice="The products with a and b must both be negative.",
        ),
        Direction(
            name="γ₂",
            limit=-0.999,
            mistakes={
                "γ₂ points at the shortest mixture itself. Down is the other way.": (0.0, 1.0),
                "You weighed a and b equally; the shortest mixture weighs the longer less.": (
                    -1.0,
                    -2.0,
                ),
            },
            advice="−1 is possible. Which point of the segment from a to b is nearest to 0?",
        ),
    ),
    praise="minus either gradient would have led up, and minus their average down less than half as "
    "fast.",
)

# ---- two gradients, and Frank–Wolfe ----


def _two(a: Tensor, b: Tensor, clip: bool = True, guard: bool = True) -> Tensor:
    across = b - a
    if guard and not across.any():
        return a
    t = -(a @ across) / (across @ across)
    return a + (t.clamp(0, 1) if clip else t) * across


def _swapped(a: Tensor, b: Tensor) -> Tensor:
    """The right weights, given to the wrong ones."""
    return a + b - _two(a, b)


def _vectors(*rows: list[float]) -> tuple[Tensor, ...]:
    return tuple(torch.tensor(row) for row in rows)


two = Code(
    reference=_two,
    cases=[
        _vectors([2.0, 1.0], [-1.0, 1.0]),
        _vectors([1.0, 1.0], [3.0, 2.0]),
        _vectors([3.0, 0.0, 1.0], [1.0, 0.0, 1.0]),
        _vectors([1.0, 2.0], [-2.0, -4.0]),
        _vectors([1.0, -2.0], [1.0, -2.0]),
    ],
    mistakes={
        "t must stay in [0, 1]: that point of the line is no mixture of a and b.": partial(
            _two, clip=False
        ),
        "For a = b your formula divides 0 by 0. Return a there.": partial(_two, guard=False),
        "That is the average. It weighs both equally, however long they are.": lambda a, b: (a + b) / 2,
        "That is the shorter of the two. Something between them may be shorter still.": lambda a, b: (
            a if a.norm() <= b.norm() else b
        ),
        "The weights are right, and given to the wrong vectors: v(0) = a and v(1) = b.": _swapped,
        "The sign of t: the derivative of ‖a + t(b − a)‖² is 2⟨a, b − a⟩ + 2t‖b − a‖².": lambda a, b: (
            a if not (b - a).any() else a + ((a @ (b - a)) / ((b - a) @ (b - a))).clamp(0, 1) * (b - a)
        ),
    },
    praise="and it is the line search of every method that walks towards one gradient at a time.",
)


def _frank_wolfe(
    G: Tensor, steps: int, pick: str = "smallest", size: str = "exact", start: str = "first"
) -> Tensor:
    v = G[0] if start == "first" else G.mean(0)
    for t in range(steps):
        which = {
            "smallest": (G @ v).argmin(),
            "largest": (G @ v).argmax(),
            "shortest": G.norm(dim=1).argmin(),
        }
        s = G[which[pick]]
        if size == "textbook":
            v = v + 2 / (t + 2) * (s - v)
        else:
            v = _two(v, s, clip=size != "free", guard=size != "unguarded")
    return v


def _gradients(m: int, d: int, seed: int) -> Tensor:
    noise = torch.randn(m, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (noise + 0.4).round(decimals=1)


frank_wolfe = Code(
    reference=_frank_wolfe,
    cases=[
        (_gradients(3, 2, 1), 0),
        (_gradients(3, 2, 1), 1),
        (torch.tensor([[3.0, 1.0], [2.0, 0.0], [2.0, 2.0]], dtype=torch.float64), 2),
        (_gradients(4, 3, 0), 3),
        (_gradients(5, 3, 2), 30),
    ],
    mistakes={
        "You walk to the gradient with the largest product, as an attack would. v is to be short: walk "
        "to the one with the smallest.": partial(_frank_wolfe, pick="largest"),
        "You walk to the shortest gradient every time. Take the one with the smallest product with "
        "v.": partial(_frank_wolfe, pick="shortest"),
        "2/(t + 2) is the step of the textbook. The exercise asks for the shortest point of the "
        "segment, which is never longer.": partial(_frank_wolfe, size="textbook"),
        "Your line search leaves the segment: its t must stay in [0, 1].": partial(
            _frank_wolfe, size="free"
        ),
        "When the gradient you walk to is v itself, your step is 0/0: stop there.": partial(
            _frank_wolfe, size="unguarded"
        ),
        "Start at G[0], not at the average.": partial(_frank_wolfe, start="mean"),
        "You took a step more than asked.": lambda G, steps: _frank_wolfe(G, steps + 1),
        "You took a step less than asked.": lambda G, steps: _frank_wolfe(G, max(0, steps - 1)),
    },
    praise="and ‖v‖² − min ⟨v, g⟩, which every step has at hand, says how far the goal is.",
)

# ---- a batch is a product ----

batch_slope = Code(
    reference=lambda gamma, G: (G @ gamma).amax(0).mean(),
    cases=[
        (
            torch.tensor([1.0, 0.0]),
            torch.tensor([[[1.0, 0.0], [-1.0, 2.0]], [[-3.0, 1.0], [2.0, 0.0]]]),
        ),
        (
            torch.tensor([1.0, -1.0]),
            torch.tensor([[[1.0, 0.0], [0.0, 1.0], [2.0, 2.0]], [[0.0, 3.0], [1.0, 0.0], [-1.0, 0.0]]]),
        ),
        (torch.tensor([0.0, 2.0]), torch.tensor([[[1.0, 1.0], [1.0, -2.0], [0.0, 3.0]]])),
    ],
    mistakes={
        "That is the largest slope of m joint batches: you took the mean over j before the maximum over "
        "i. Each sample chooses alone.": lambda gamma, G: (G @ gamma).mean(1).amax(),
        "That is the worst sample. The loss of a batch is a mean, so take the mean over j of the "
        "maxima.": lambda gamma, G: (G @ gamma).amax(),
        "That is the slope of the average over all maximisers; the maximum over i is "
        "missing.": lambda gamma, G: (G @ gamma).mean(),
        "That is k times as much: the loss of a batch is the mean over its samples, not the "
        "sum.": lambda gamma, G: (G @ gamma).amax(0).sum(),
        "Danskin's formula has the largest slope, not the smallest.": lambda gamma, G: (
            (G @ gamma).amin(0).mean()
        ),
        "You divided by ‖γ‖. D_γφ grows with γ: its length counts.": lambda gamma, G: (
            (G @ gamma).amax(0).mean() / gamma.norm()
        ),
        "That is one maximum for each perturbation, over the samples. Exchange the axes: G[i, j] is "
        "sample j.": lambda gamma, G: (G @ gamma).amax(1).mean(),
    },
    praise="m^k batches, and k small maxima were enough.",
)

# ---- break it ----


class _Ascends(Exercise):
    praise = "four attempts lead up or level, and the shortest mixture leads down all the same."

    def examine(self, answer: object) -> str | None:
        """Three gradients in the plane whose hull misses 0, and of which no shortcut leads down."""
        G = as_tensor(answer)
        if G is None or G.shape != (3, 2) or not bool(G.isfinite().all()):
            return f"expected three vectors of two finite numbers, got {answer!r}."
        longest = G.norm(dim=1).max()
        if longest == 0:
            return "all three are 0, and no direction leads down."
        shortest = danskin.min_norm_point(G) @ G
        if shortest.norm() <= 1e-6 * longest:
            return "the hull of a, b and c contains 0, so no direction at all leads down."
        for name, g in (*zip("abc", G, strict=True), ("the average", G.mean(0))):
            slope = (G @ -g).max().item()
            if slope < -1e-9 * longest**2:
                return (
                    f"minus {name} leads down, with slope {slope / g.norm():.2g}: "
                    "its product with all three is positive."
                )
        if shortest.norm() < longest / 20:
            times = longest / shortest.norm()
            return (
                f"nearly, but the longest gradient is {times:.0f} times the shortest mixture, and 20 is "
                "the limit."
            )
        return None


ascends = _Ascends()

# ---- the chapter's exercises, in its order ----

EXERCISES = {
    "Six slopes": kinks,
    "Down, and down fastest": by_hand,
    "Two gradients": two,
    "Frank–Wolfe": frank_wolfe,
    "The slope of a batch": batch_slope,
    "Nothing leads down, but something does": ascends,
}
