"""Checks of chapter 1, linear models."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.linalg import vector_norm
from torch.nn.functional import cross_entropy, softplus

from .. import linear
from ..threat import Ball
from . import Code, Exercise, Numbers
from .comparing import as_tensor, show

# ---- three balls by hand: max ⟨w, δ⟩ for w = (3, −4), ε = 0.1 and p = 1, 2, ∞ ----

three_balls = Numbers(
    expected=(0.4, 0.5, 0.7),
    labels=("p = 1", "p = 2", "p = ∞"),
    mistakes={
        "You used ‖w‖_p. The ball is measured in p, the answer in the dual order q: "
        "p = 1 goes with q = ∞ and p = ∞ with q = 1.": (0.7, 0.5, 0.4),
        "You left out ε: the norm is multiplied by the radius of the ball.": (4, 5, 7),
        "The sign is that of the minimum. The maximum over a ball is never negative, "
        "since δ = 0 is allowed.": (-0.4, -0.5, -0.7),
    },
    praise="all the budget on the largest entry; along w; a bit of everything.",
)

# ---- write the worst perturbation ----


def _worst_delta(w: Tensor, y: int, eps: float, p: float) -> Tensor:
    if p == math.inf:
        return -y * eps * w.sign()
    if p == 2:
        return -y * eps * w / vector_norm(w)
    largest = torch.nn.functional.one_hot(w.abs().argmax(), len(w))
    return -y * eps * w.sign() * largest


def _spread_evenly(w, y, eps, p):
    return -y * eps * w.sign() / len(w) if p == 1 else _worst_delta(w, y, eps, p)


def _unnormalised(w, y, eps, p):
    return -y * eps * w if p == 2 else _worst_delta(w, y, eps, p)


def _largest_signed(w, y, eps, p):
    largest = torch.nn.functional.one_hot(w.argmax(), len(w))
    return -y * eps * w.sign() * largest if p == 1 else _worst_delta(w, y, eps, p)


worst_delta = Code(
    reference=_worst_delta,
    cases=[
        (torch.tensor([3.0, -4.0]), 1, 0.1, math.inf),
        (torch.tensor([3.0, -4.0]), -1, 0.1, math.inf),
        (torch.tensor([3.0, -4.0]), 1, 0.1, 2),
        (torch.tensor([3.0, -4.0]), 1, 0.1, 1),
        (torch.tensor([0.5, 0.0, -2.0]), -1, 0.3, 1),
        (torch.tensor([0.5, 0.0, -2.0]), -1, 0.3, 2),
    ],
    mistakes={
        "Your δ raises the margin: the adversary wants y wᵀδ as small as possible, so turn the sign "
        "around.": lambda w, y, eps, p: -_worst_delta(w, y, eps, p),
        "You left out y: for a sample of the other class the worst δ points the other way.": (
            lambda w, y, eps, p: _worst_delta(w, 1, eps, p)
        ),
        "For p = 1 you spread ε over all coordinates. The same budget does more on the one "
        "coordinate with the largest |w_i|.": _spread_evenly,
        "For p = 2 you forgot to divide by ‖w‖₂, so ‖δ‖₂ is not ε.": _unnormalised,
        "For p = 1 you took the largest w_i. What counts is its size, |w_i|.": _largest_signed,
        "You gave the answer for p = ∞ whatever p is. For p = 1 and p = 2 the coordinates share the "
        "budget.": lambda w, y, eps, p: _worst_delta(w, y, eps, math.inf),
    },
    praise="right for every norm and both labels.",
)

# ---- write the robust loss ----


def _robust_loss(w: Tensor, b: Tensor, x: Tensor, y: Tensor, eps: float) -> Tensor:
    return softplus(-(y * (x @ w + b) - eps * w.abs().sum())).mean()


robust_loss = Code(
    reference=_robust_loss,
    cases=[
        (
            torch.tensor([3.0, -4.0]),
            torch.tensor(0.5),
            torch.tensor([[1.0, 0.0]]),
            torch.tensor([1.0]),
            0.1,
        ),
        (
            torch.tensor([1.0, -2.0, 0.5]),
            torch.tensor(-0.2),
            torch.tensor([[0.5, 0.2, 1.0], [0.1, 0.9, 0.3]]),
            torch.tensor([1.0, -1.0]),
            0.2,
        ),
    ],
    mistakes={
        "You added ε‖w‖₁ to the loss. It belongs inside L, subtracted from the margin: there it costs "
        "nothing on points with a large margin.": (
            lambda w, b, x, y, eps: softplus(-y * (x @ w + b)).mean() + eps * w.abs().sum()
        ),
        "You multiplied the penalty by y as well. The adversary lowers the margin of both classes: "
        "y (wᵀx + b) − ε‖w‖₁.": (
            lambda w, b, x, y, eps: softplus(-y * (x @ w + b - eps * w.abs().sum())).mean()
        ),
        "You used ‖w‖_∞. The dual of the ℓ∞ ball is the ℓ1 norm.": (
            lambda w, b, x, y, eps: softplus(-(y * (x @ w + b) - eps * w.abs().max())).mean()
        ),
        "You used ‖w‖₂, the norm against an ℓ2 ball. The dual of the ℓ∞ ball is the ℓ1 norm.": (
            lambda w, b, x, y, eps: softplus(-(y * (x @ w + b) - eps * vector_norm(w))).mean()
        ),
        "You raised the margin: that is the best case, not the worst.": (
            lambda w, b, x, y, eps: softplus(-(y * (x @ w + b) + eps * w.abs().sum())).mean()
        ),
    },
    praise="the exact worst-case loss, in one line.",
)

# ---- the radius that each sample can bear ----


def _radius(w: Tensor, b: Tensor, x: Tensor, y: Tensor) -> Tensor:
    return (y * (x @ w + b)).clamp(min=0) / vector_norm(w)


radius = Code(
    reference=_radius,
    cases=[
        (
            torch.tensor([3.0, -4.0]),
            torch.tensor(1.0),
            torch.tensor([[1.0, 0.0], [0.0, 1.0]]),
            torch.tensor([1.0, 1.0]),
        ),
        (
            torch.tensor([0.0, 2.0]),
            torch.tensor(-1.0),
            torch.tensor([[0.3, 0.9], [0.1, 0.2]]),
            torch.tensor([1.0, -1.0]),
        ),
    ],
    mistakes={
        "A sample that is already wrong bears nothing: its radius is 0, not negative.": (
            lambda w, b, x, y: y * (x @ w + b) / vector_norm(w)
        ),
        "That is the distance to the line whichever side the sample is on. On the wrong side the radius "
        "is 0.": lambda w, b, x, y: (x @ w + b).abs() / vector_norm(w),
        "You divided by ‖w‖₁, which gives the radius in ℓ∞. The dual of ℓ2 is ℓ2.": (
            lambda w, b, x, y: (y * (x @ w + b)).clamp(min=0) / w.abs().sum()
        ),
        "That is the margin. Divide it by how fast a step of length 1 can lower it.": (
            lambda w, b, x, y: (y * (x @ w + b)).clamp(min=0)
        ),
    },
    praise="this is the exact certified radius of a linear model.",
)

# ---- break it: a small ‖w‖₂ is not ℓ∞ robustness ----


class _SmallNorm(Exercise):
    praise = "‖w‖₂ ranks these two models one way, an ℓ∞ adversary the other."

    def examine(self, answer: tuple) -> str | None:
        x = torch.tensor([1.0, 0.5, 0.5, 0.5], dtype=torch.float64)
        vectors = [as_tensor(w) for w in answer] if isinstance(answer, (list, tuple)) else []
        if len(vectors) != 2 or any(v is None or v.shape != x.shape for v in vectors):
            return "expected two weight vectors of 4 numbers each, like x."
        if not all(v.isfinite().all() for v in vectors):
            return "the weights must be finite numbers."
        small, large = vectors
        clean = [w @ x for w in (small, large)]
        if any(abs(m - 0.5) > 1e-3 for m in clean):
            return f"both clean margins wᵀx must be 1/2, yours are {show(torch.stack(clean))}."
        euclid = [vector_norm(w) for w in (small, large)]
        if euclid[0] >= euclid[1] - 1e-6:
            return (
                f"the first vector must have the smaller ‖w‖₂, yours have {show(torch.stack(euclid))}."
            )
        robust = [m - 0.1 * w.abs().sum() for m, w in zip(clean, (small, large), strict=True)]
        if robust[0] >= robust[1] - 1e-6:
            return (
                "the first model must have the smaller robust margin wᵀx − 0.1‖w‖₁, yours have "
                f"{show(torch.stack(robust))}. Which norm of w does an ℓ∞ adversary collect?"
            )
        return None


small_norm = _SmallNorm()

# ---- certify a ten-class linear model ----


def _margins(W: Tensor, b: Tensor, x: Tensor, y: int, cost: Tensor) -> Tensor:
    """z_y − z_k − cost_k for every class k ≠ y."""
    return ((W[y] - W) @ x + b[y] - b - cost)[torch.arange(len(W)) != y]


def _certify(W: Tensor, b: Tensor, x: Tensor, y: int, eps: float) -> bool:
    return bool((_margins(W, b, x, y, eps * (W[y] - W).abs().sum(1)) > 0).all())


def _ties_allowed(W, b, x, y, eps):
    return bool((_margins(W, b, x, y, eps * (W[y] - W).abs().sum(1)) >= 0).all())


def _euclidean(W, b, x, y, eps):
    return bool((_margins(W, b, x, y, eps * vector_norm(W[y] - W, dim=1)) > 0).all())


def _norms_added(W, b, x, y, eps):
    size = W.abs().sum(1)
    return bool((_margins(W, b, x, y, eps * (size[y] + size)) > 0).all())


def _only_runner_up(W, b, x, y, eps):
    z = W @ x + b
    z[y] = -math.inf
    pair = torch.tensor([y, int(z.argmax())])
    return _certify(W[pair], b[pair], x, 0, eps)


certify = Code(
    reference=_certify,
    cases=[
        # the runner-up k = 1 is close and flat, k = 2 is far and steep: only k = 2 can be reached
        (
            torch.tensor([[1.0, 0.0], [0.9, 0.0], [-4.0, 6.0]]),
            torch.zeros(3),
            torch.tensor([1.0, 0.2]),
            0,
            0.4,
        ),
        # large weights in common: they cancel in w_y − w_k
        (torch.tensor([[5.0, 5.0], [5.0, 4.0]]), torch.zeros(2), torch.tensor([0.5, 0.5]), 0, 0.2),
        # ‖w_y − w_k‖₁ is out of reach, ‖w_y − w_k‖₂ is not
        (torch.tensor([[1.0, 1.0], [0.0, 0.0]]), torch.zeros(2), torch.tensor([0.5, 0.3]), 0, 0.45),
        # a tie, exact in floating point
        (torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.zeros(2), torch.tensor([0.75, 0.25]), 0, 0.25),
        # decided by the offsets
        (torch.eye(2), torch.tensor([0.5, -0.5]), torch.tensor([0.5, 0.5]), 0, 0.25),
        # wrong to begin with
        (torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.zeros(2), torch.tensor([0.2, 0.6]), 0, 0.1),
        (torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.zeros(2), torch.tensor([0.9, 0.1]), 0, 0.1),
        (torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.zeros(2), torch.tensor([0.6, 0.4]), 0, 0.2),
    ],
    mistakes={
        "You included k = y, whose margin is always 0, so that nothing is ever certified.": (
            lambda W, b, x, y, eps: False
        ),
        "You counted a tie as safe. With a margin of exactly 0 some δ reaches the other class: use > in "
        "place of ≥.": _ties_allowed,
        "You left out the offsets: the margin is (w_y − w_k)ᵀx + b_y − b_k minus what δ takes.": (
            lambda W, b, x, y, eps: _certify(W, torch.zeros_like(b), x, y, eps)
        ),
        "You used ‖w_y − w_k‖₂, the norm against an ℓ2 ball. The dual of the ℓ∞ ball is the ℓ1 norm.": (
            _euclidean
        ),
        "You checked the runner-up only. A class that is further away can still be the first one that "
        "δ reaches, because its margin may fall faster: check every k ≠ y.": _only_runner_up,
        "You moved both logits by their own worst δ. One δ serves both: the margin changes with "
        "w_y − w_k, whose norm can be much smaller than ‖w_y‖₁ + ‖w_k‖₁.": _norms_added,
        "That is the clean prediction: subtract ε‖w_y − w_k‖₁ from each margin.": (
            lambda W, b, x, y, eps: bool((W @ x + b).argmax() == y)
        ),
    },
    praise="exact for any number of classes.",
)

# ---- break it: make the cross-entropy bound loose ----


class _LooseBound(Exercise):
    praise = "two rivals that no single δ can serve at once."

    def examine(self, answer: Tensor) -> str | None:
        W = as_tensor(answer)
        if W is None or W.shape != (3, 1) or not W.isfinite().all():
            return f"expected 3 classes and 1 input, a tensor (3, 1) of finite numbers, got {answer!r}."
        b, x, y = W.new_zeros(3), W.new_zeros(1, 1), torch.tensor([0])
        bound = linear.robust_cross_entropy_bound(W, b, x, y, Ball(math.inf, 1.0)).item()
        ends = torch.tensor([[-1.0], [1.0]], dtype=torch.float64)  # the maximum of a convex function
        exact = cross_entropy(ends @ W.T, torch.tensor([0, 0]), reduction="none").max().item()
        if bound - exact < 0.6:
            return (
                f"the bound is {bound:.3f} and the exact maximum {exact:.3f}, a gap of "
                f"{bound - exact:.3f}; make it at least 0.6. The two rivals should want opposite δ, "
                "and want it badly."
            )
        return None


loose_bound = _LooseBound()

# ---- the chapter's exercises, in its order ----

EXERCISES = {
    "Three balls by hand": three_balls,
    "The worst perturbation": worst_delta,
    "The robust loss": robust_loss,
    "The certified radius": radius,
    "A small norm is not robustness": small_norm,
    "Certify a ten-class model": certify,
    "A loose bound": loose_bound,
}
