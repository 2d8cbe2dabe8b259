"""Fenchel conjugates: f*(y) = sup_s ⟨y, s⟩ − f(s), the lowest offset of a plane of slope y under f.

f(s) ≥ ⟨y, s⟩ − f*(y) for all s and y (Fenchel–Young): every slope y gives a plane that stays below f,
and −f*(y) is how high it can be put. The conjugate of the indicator of a set S, 0 on S and +∞ outside,
is the support function of S, the largest ⟨y, s⟩ over s ∈ S. These are the terms of which the dual of a
network's verification problem is made (`dual`).

Vectors are rows: y is (n, *shape), a conjugate (n,). Source: Rockafellar 1970, §12 and §13.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ._given import check_ball, check_tensors
from ._precision import in_its_own_type
from .threat import Ball


def absolute(y: Tensor) -> Tensor:
    """The conjugate of |s|, entry by entry: 0 where |y| ≤ 1, +∞ elsewhere.

    y: any shape.  Returns the same shape.
    """
    return torch.where(_finite(y).abs() <= 1, 0.0, math.inf).to(y)


def norm(y: Tensor, p: float) -> Tensor:
    """The conjugate of ‖s‖_p: 0 where ‖y‖_q ≤ 1 with 1/p + 1/q = 1, +∞ elsewhere.

    y: (n, *shape).  p: 1, 2 or math.inf.  Returns (n,).
    The boundary counts as inside, up to 8 units in the last place, as in `Ball.contains`.
    Raises ValueError for another p, and for y that is not a finite batch.
    """
    return torch.where(Ball(Ball(p, 0.0).dual_order, 1.0).contains(y), 0.0, math.inf).to(y)


def ball(y: Tensor, x: Tensor, ball: Ball) -> Tensor:
    """The conjugate of the indicator of x + Δ(x): ⟨y, x⟩ + max ⟨y, δ⟩ over δ ∈ Δ(x).

    Without a box that is ⟨y, x⟩ + ε‖y‖_q; with one, Δ(x) is the ball ∩ box, still exact.
    y, x: (n, *shape).  Returns (n,); differentiable in y.
    Raises ValueError unless x is like y, and for what `Ball.support` refuses.
    """
    check_tensors(y=y, x=x)
    check_ball(ball)
    if x.shape != y.shape or x.dtype != y.dtype:
        raise ValueError(
            f"expected x like y, {y.dtype} {tuple(y.shape)}, got {x.dtype} {tuple(x.shape)}"
        )
    _finite(x)
    return ball.support(y, x) + (y * x).flatten(1).sum(1)


def box(y: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
    """The conjugate of the indicator of the box [lower, upper]: ⟨[y]₊, upper⟩ − ⟨[y]₋, lower⟩.

    y, lower, upper: (n, *shape).  Returns (n,); differentiable in all three.
    Raises ValueError unless lower ≤ upper, of one shape with y.
    """
    _check_ends(y, lower, upper)
    if y.ndim < 2:
        raise ValueError(f"expected a batch (n, *shape), got {tuple(y.shape)}")
    return (y * torch.where(y > 0, upper, lower)).flatten(1).sum(1)


def relu(p: Tensor, q: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
    """The conjugate of the indicator of the relaxed ReLU, max p a + q h over (a, h) ∈ S, unit by unit.

    S is the convex hull of the graph h = max(a, 0) over lower ≤ a ≤ upper: a segment on h = 0 (S⁻, off),
    one on h = a (S⁺, on), or the triangle (unstable). A linear function is largest at a corner, and the
    corners are (lower, [lower]₊), (upper, [upper]₊) and, between unstable bounds, (0, 0).

    p, q, lower, upper: any shape, the same for all.  Returns that shape; differentiable in p and q.
    Raises ValueError unless lower ≤ upper, of one shape with p and q.
    """
    _check_ends(p, lower, upper)
    _check_ends(q, lower, upper)
    ends = [p * a + q * a.clamp(min=0) for a in (lower, upper)]
    corner = torch.where((lower < 0) & (upper > 0), 0.0, -math.inf).to(p)
    return torch.maximum(torch.maximum(*ends), corner)


@in_its_own_type
def legendre(s: Tensor, f: Tensor, y: Tensor) -> Tensor:
    """f* by brute force: max_i ⟨y, s_i⟩ − f(s_i) over a grid of points.

    s: (m,) or (m, d), the grid.  f: (m,), values on it; +∞ is allowed.  y: (n,) or (n, d), slopes.
    Returns (n,): never above the true conjugate, and equal to it if the grid holds a maximiser.
    Raises ValueError for other shapes or types, an empty grid, NaN, and f that is +∞ everywhere.
    """
    if not s.dtype == f.dtype == y.dtype:
        raise ValueError(f"expected one floating-point type, got {s.dtype}, {f.dtype} and {y.dtype}")
    fits = (
        f.shape == s.shape[:1] and s.shape[1:] == y.shape[1:] and s.ndim == y.ndim and s.ndim in (1, 2)
    )
    if not fits or len(s) == 0:
        raise ValueError(
            "expected points (m, d), values (m,) and slopes (n, d), or (m,), (m,) and (n,), "
            f"got {tuple(s.shape)}, {tuple(f.shape)} and {tuple(y.shape)}"
        )
    if bool(f.isnan().any() or (f == -math.inf).any()) or not f.isfinite().any():
        raise ValueError("expected values that are numbers or +∞, and not all +∞")
    _finite(s), _finite(y)
    s, y = (v.unsqueeze(1) if v.ndim == 1 else v for v in (s, y))
    return (y @ s.T - f).amax(1)


def _finite(y: Tensor) -> Tensor:
    if not y.is_floating_point():
        raise ValueError(f"expected floating-point entries, got {y.dtype}")
    if not bool(y.isfinite().all()):
        raise ValueError("expected finite entries, got NaN or infinity")
    return y


def _check_ends(y: Tensor, lower: Tensor, upper: Tensor) -> None:
    if not y.shape == lower.shape == upper.shape:
        raise ValueError(
            "expected slopes and both ends of one shape, "
            f"got {tuple(y.shape)}, {tuple(lower.shape)} and {tuple(upper.shape)}"
        )
    for entries in (y, lower, upper):
        _finite(entries)
    if not bool((lower <= upper).all()):
        raise ValueError("expected lower ≤ upper everywhere")
