"""Linear models: the case in which the inner maximum has a closed form.

Two classes: labels y ∈ {−1, +1}, weights w (d,), offset b, prediction sign(wᵀx + b).
K classes: labels y ∈ {0, …, K−1}, weights W (K, d), offsets b (K,), prediction argmax_k w_kᵀx + b_k.
Inputs x are (n, *shape) with d entries a sample; margins and losses are (n,).
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from . import losses
from ._given import check_ball, check_tensors
from ._precision import in_its_own_type
from .threat import Ball

SOLVER_ZERO = 1e-6


def weights(model: nn.Sequential) -> tuple[Tensor, Tensor]:
    """The (w, b) of a two-class linear model, or the (W, b) of one with K > 1 outputs.

    model: `models.linear(d, K)`.  Returns views, through which gradients flow: w (d,) and b () for
    one output, W (K, d) and b (K,) otherwise.
    Raises ValueError for anything that is not Flatten followed by one Linear with a bias.
    """
    layers = list(model.children())
    if [type(layer) for layer in layers] != [nn.Flatten, nn.Linear] or layers[1].bias is None:
        raise ValueError(f"expected Flatten and one Linear, as in models.linear, got {model}")
    W, b = layers[1].weight, layers[1].bias
    return (W[0], b[0]) if len(W) == 1 else (W, b)


# ---- two classes ----


@in_its_own_type
def margin(w: Tensor, b: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """y (wᵀx + b): positive where the prediction is right.  Returns (n,)."""
    _check_binary(w, b, x, y)
    return y * (x.flatten(1) @ w + b)


def worst_case(w: Tensor, x: Tensor, y: Tensor, ball: Ball) -> Tensor:
    """A δ ∈ Δ(x) that minimises the margin: ball.argmax(−y w, x).  Returns δ like x."""
    check_tensors(w=w)
    check_ball(ball)
    _check_binary(w, w.new_zeros(()), x, y)
    return ball.argmax(_against_label(w, x, y), x)


def robust_margin(w: Tensor, b: Tensor, x: Tensor, y: Tensor, ball: Ball) -> Tensor:
    """min over δ ∈ Δ(x) of y (wᵀ(x + δ) + b), which is y (wᵀx + b) − ε‖w‖_q without a box.

    Exact for every ball, with and without the box; differentiable in w and b.  Returns (n,).
    """
    check_ball(ball)
    return margin(w, b, x, y) - ball.support(_against_label(w, x, y), x)


def logistic(margin: Tensor) -> Tensor:
    """L(m) = log(1 + e^{−m}): convex, decreasing, with slope between −1 and 0.

    margin: any shape.  Returns the same shape.
    """
    return softplus(-margin)


def robust_error(w: Tensor, b: Tensor, x: Tensor, y: Tensor, ball: Ball) -> float:
    """The share of samples for which some δ ∈ Δ(x) makes the prediction wrong, exactly.

    A margin of 0 counts as wrong. ε = 0 gives the ordinary error.  Raises ValueError without a sample.
    """
    check_tensors(x=x)
    if len(x) == 0:
        raise ValueError("expected at least one sample, got none")
    return (robust_margin(w, b, x, y, ball) <= 0).double().mean().item()


def robust_logistic_regression(x: Tensor, y: Tensor, ball: Ball) -> tuple[Tensor, Tensor]:
    """The global minimum of (1/n) Σ L(y (wᵀx + b) − ε‖w‖_q) over w and b, as a convex program.

    x: (n, *shape).  y: (n,) of ±1.  ball: no box.  Returns w (d,) and b (), like x; weights that
    move no margin by 1e-6, which an interior-point solver leaves where the optimum has 0, are 0.
    Raises ValueError with a box, and when no minimum exists: if some (w, b) has a positive robust
    margin on every sample, scaling it up pushes the loss towards 0 for ever (`largest_margin`).
    Source: Kolter & Madry 2018, chapter 2.
    """
    import cvxpy as cp

    check_tensors(x=x, y=y)
    check_ball(ball)
    if ball.box is not None or torch.as_tensor(ball.eps).ndim > 0 or ball.eps == math.inf:
        raise ValueError("the convex program takes a ball with one finite eps and no box")
    reach = largest_margin(x, y, ball.p)
    if reach > float(ball.eps):
        raise ValueError(
            f"no minimum: the data can be separated for every ε below {reach:.4g}, "
            f"and ε is {float(ball.eps):.4g}"
        )
    X, signs = x.flatten(1).double().cpu().numpy(), y.double().cpu().numpy()
    w, b = cp.Variable(X.shape[1]), cp.Variable()
    margins = cp.multiply(signs, X @ w + b) - float(ball.eps) * cp.norm(w, ball.dual_order)
    problem = cp.Problem(cp.Minimize(cp.sum(cp.logistic(-margins)) / len(X)))
    problem.solve(solver=cp.CLARABEL)
    matters = abs(w.value) * abs(X).max() > SOLVER_ZERO
    return torch.as_tensor(w.value * matters).to(x), torch.as_tensor(b.value).to(x)


def largest_margin(x: Tensor, y: Tensor, p: float) -> float:
    """The supremum of the ε for which one (w, b) classifies every sample right under ‖δ‖_p ≤ ε.

    max over ‖w‖_q ≤ 1 and b of min_i y_i (wᵀx_i + b): the hard-margin support vector machine in the
    norm p. It is 0 if the data cannot be separated at all.

    x: (n, *shape).  y: (n,) of ±1.  p: 1, 2 or math.inf.  Returns a number, in the units of x.
    Raises ValueError unless both classes occur.
    """
    import cvxpy as cp

    check_tensors(x=x, y=y)
    if len(x) == 0 or len(y.unique()) < 2:
        raise ValueError(f"expected samples of both classes, got labels {_describe(y)}")
    _check_binary(x.new_zeros(math.prod(x.shape[1:])), x.new_zeros(()), x, y)
    X, signs = x.flatten(1).double().cpu().numpy(), y.double().cpu().numpy()
    w, b, reach = cp.Variable(X.shape[1]), cp.Variable(), cp.Variable()
    separated = [cp.multiply(signs, X @ w + b) >= reach, cp.norm(w, Ball(p, 0.0).dual_order) <= 1]
    return max(0.0, float(cp.Problem(cp.Maximize(reach), separated).solve(solver=cp.CLARABEL)))


# ---- K classes ----


@in_its_own_type
def margins(W: Tensor, b: Tensor, x: Tensor, y: Tensor, ball: Ball) -> Tensor:
    """min over δ ∈ Δ(x) of z_y − z_k for every class k, where z = W(x + δ) + b, exactly.

    (w_y − w_k)ᵀx + b_y − b_k − ε‖w_y − w_k‖_q without a box. Each class k may have its own worst δ.
    Returns (n, K), with +inf at k = y; differentiable in W and b.
    """
    _check_classes(W, b, x, y)
    check_ball(ball)
    K = len(W)
    z = x.flatten(1) @ W.T + b
    clean = z.gather(1, y[:, None]) - z
    eps = torch.as_tensor(ball.eps)
    if ball.box is None and eps.ndim < 2 and eps.isfinite().all():  # one row for a pair of classes
        towards = W - W.unsqueeze(1)  # (K, K, d): from class j towards class k
        each = replace(ball, eps=1.0).support(towards.flatten(0, 1)).reshape(K, K)
        gain = ball.radii(x).unsqueeze(1) * each[y]
    else:  # one row for a pair of sample and class
        gain = ball.region(x).support(W - W[y].unsqueeze(1))  # of (n, K, d)
    return (clean - gain).masked_fill(torch.nn.functional.one_hot(y, K).bool(), math.inf)


def certified(W: Tensor, b: Tensor, x: Tensor, y: Tensor, ball: Ball) -> Tensor:
    """Whether no δ ∈ Δ(x) changes the prediction from y: every margin is positive.  Returns (n,) bool.

    Exact: a sample that is not certified can be broken by the worst δ of a class with margin ≤ 0.
    """
    return (margins(W, b, x, y, ball) > 0).all(1)


def robust_cross_entropy_bound(W: Tensor, b: Tensor, x: Tensor, y: Tensor, ball: Ball) -> Tensor:
    """An upper bound on max over δ ∈ Δ(x) of the cross-entropy: log(1 + Σ_{k≠y} exp(−margin_k)).

    Every class is given its own worst δ, so it is exact for K = 2 and an upper bound beyond.
    Returns (n,); differentiable in W and b.  Source: Wong & Kolter 2018, Theorem 2, for a linear model.
    """
    return losses.cross_entropy(losses.worst_logits(margins(W, b, x, y, ball)), y)


def _against_label(w: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """−y w for every sample, in the shape of x: the direction in which the margin falls."""
    return (-y[:, None].to(w.dtype) * w).reshape(x.shape)


def _check_binary(w: Tensor, b: Tensor, x: Tensor, y: Tensor) -> None:
    check_tensors(w=w, b=b, x=x, y=y)
    if w.ndim != 1 or x.ndim < 2 or x.flatten(1).shape[1] != len(w) or b.numel() != 1:
        raise ValueError(
            f"expected w (d,), b () and x (n, *d), got {tuple(w.shape)}, {tuple(b.shape)} "
            f"and {tuple(x.shape)}"
        )
    if y.shape != x.shape[:1] or not bool(((y == 1) | (y == -1)).all()):
        raise ValueError(f"expected {len(x)} labels −1 or +1, got {_describe(y)}")
    _check_finite(w, b, x)


def _check_classes(W: Tensor, b: Tensor, x: Tensor, y: Tensor) -> None:
    check_tensors(W=W, b=b, x=x, y=y)
    if W.ndim != 2 or x.ndim < 2 or x.flatten(1).shape[1] != W.shape[1] or b.shape != W.shape[:1]:
        raise ValueError(
            f"expected W (K, d), b (K,) and x (n, *d), got {tuple(W.shape)}, {tuple(b.shape)} "
            f"and {tuple(x.shape)}"
        )
    if y.shape != x.shape[:1] or y.dtype != torch.int64 or not bool(((y >= 0) & (y < len(W))).all()):
        raise ValueError(f"expected {len(x)} int64 labels from 0 to {len(W) - 1}, got {_describe(y)}")
    _check_finite(W, b, x)


def _check_finite(*tensors: Tensor) -> None:
    if not all(bool(tensor.isfinite().all()) for tensor in tensors):
        raise ValueError("expected finite weights, offsets and inputs, got NaN or infinity")


def _describe(y: Tensor) -> str:
    return f"{y.dtype} {tuple(y.shape)} with values {y.unique().tolist()[:12]}"
