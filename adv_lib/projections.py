"""Nearest and furthest points of ‖δ‖_p ≤ ε inside a box: the solvers behind `threat.Ball`.

By symmetry each problem is one about sizes: give coordinate i a size s_i with 0 ≤ s_i ≤ room_i, and put
the sign back afterwards. Here a ≥ 0 are the sizes that one would like, room ≥ 0 those that the box
leaves, (n, d) or broadcast to it, and ε is (n, 1) or (1, 1), all in the units of the input and of one
floating type. Nothing is checked: `Ball` has done so. Each function returns sizes (n, d).

If each entry has its own radius, that of entry i is ε c_i, with c (n, d) from 0 to 1. Put s = c ⊙ u, and
the u form an ordinary ball; only the distance Σ (c_i u_i − a_i)² is no longer an ordinary one.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.linalg import vector_norm

CACHED = 2**16  # numbers that a core keeps at hand: more at once take twice as long


def norm(v: Tensor, p: float) -> Tensor:
    """‖v‖_p of every row of v (n, d), precise to a few ulp in any dimension and at any scale.

    Squares are in units of the largest entry, so that none overflows. Sums are torch.sum's, which adds
    in pairs: vector_norm adds one by one and is off by hundreds of ulp for a thousand equal entries.
    p: 1, 2 or math.inf.  Returns (n, 1); differentiable.
    """
    if p == math.inf:
        return vector_norm(v, ord=p, dim=1, keepdim=True)
    if p == 1:
        return v.abs().sum(1, keepdim=True)
    tiny = torch.finfo(v.dtype).tiny
    unit = v.detach().abs().amax(1, keepdim=True).clamp(min=tiny)
    v = v / unit
    return unit * (v * v).sum(1, keepdim=True).clamp(min=tiny).sqrt()


def to_length(v: Tensor, length: Tensor | float) -> Tensor:
    """Every row of v (n, d) scaled, in place, to this ‖·‖₂; a row of 0 stays.

    length: a number or (n, 1).
    """
    tiny = torch.finfo(v.dtype).tiny
    long = vector_norm(v, dim=1, keepdim=True)
    if not ((1e4 * tiny**0.5 < long) & (long < math.inf)).all():  # squares under- or overflow
        v = v / v.abs().amax(1, keepdim=True).clamp(min=tiny)
        long = vector_norm(v, dim=1, keepdim=True).clamp(min=1)
    return v.mul_(length / long)


def nearest(a: Tensor, room: Tensor, eps: Tensor, p: float, c: Tensor | None = None) -> Tensor:
    """The sizes nearest to a, in the sense of ‖·‖₂, with s ≤ room and ‖s‖_p ≤ ε: the projection.

    c: (n, d), if each entry has its own radius: ‖s / c‖_p ≤ ε. There is no room where c = 0.
    """
    size = torch.minimum(a, room)
    if p == math.inf:
        return torch.minimum(size, eps)
    u = size if c is None else size / c.clamp(min=torch.finfo(a.dtype).tiny)
    outside = norm(u, p) > eps
    if not outside.any():
        return size
    if c is None:
        found = (fill_sphere if p == 2 else soft_threshold)(a, room, eps)
    else:  # in float64, because of the squares of c
        a, eps, c = a.double() * (c > 0), eps.double(), c.double().masked_fill(c == 0, 1)
        if p == 2:
            u = fill_ellipsoid(a / c, room / c, eps, c * c)
        else:
            u = soft_threshold(a / c, room / c, eps, c * c)
        found = (c * u).to(size).minimum(room)
    return torch.where(outside, found, size)


def furthest(a: Tensor, room: Tensor, eps: Tensor, p: float) -> Tensor:
    """The sizes with the largest ⟨a, s⟩ among s ≤ room, ‖s‖_p ≤ ε: what the support function needs."""
    if p == math.inf:
        return torch.minimum(eps, room).expand_as(a)
    return (fill_sphere if p == 2 else fill_largest_first)(a, room, eps)


def onto_hyperplane(x: Tensor, w: Tensor, b: Tensor, low: Tensor, high: Tensor, p: float) -> Tensor:
    """The point nearest to x, in the sense of ‖·‖_p, of the hyperplane ⟨w, v⟩ = b inside a box.

    Where the hyperplane misses the box: the point of the box nearest to it, a corner in all coordinates
    with w_i ≠ 0. The others stay as they are.
    x with low ≤ x ≤ high, and w: (n, d); low and high may be infinite.  b: (n, 1).  p: 1, 2, math.inf.
    Returns v (n, d).
    Source: Croce & Hein 2020 (FAB), §3.1, where the breakpoints are sorted; here see `shortest`.
    """
    rows = max(1, CACHED // max(1, x.shape[1]))
    if len(x) > rows and x.device.type == "cpu":
        parts = zip(*(v.split(rows) for v in (x, w, b, low, high)), strict=True)
        return torch.cat([onto_hyperplane(*part, p) for part in parts])
    gap = b - (w * x).sum(1, keepdim=True)
    towards = w.sign() * torch.where(gap < 0, -1, 1)
    room = torch.where(towards > 0, high - x, x - low)
    return (x + towards * shortest(w.abs(), room, gap.abs(), p)).clamp(low, high)


def shortest(a: Tensor, room: Tensor, b: Tensor, p: float) -> Tensor:
    """The sizes with the smallest ‖s‖_p among s ≤ room with ⟨a, s⟩ = b ≥ 0; all at room if none will do.

    p = 1 uses the largest a_i first (a fractional knapsack). Else s = min(λ u, room), u = a for p = 2, 1
    for p = ∞, and ⟨a, s⟩ is concave and piecewise linear in λ: Newton's method from the left stops what
    sticks out at its room and goes on with the rest. Each round stops a coordinate or ends. Where a is
    0 so is s.
    """
    tiny = torch.finfo(a.dtype).tiny
    unit = a.amax(1, keepdim=True).clamp(min=tiny)  # so that no square underflows
    a, b = a / unit, (b / unit).clamp(max=torch.finfo(a.dtype).max)
    if p == 1:
        return _knapsack(a, room, b)
    largest, room = torch.finfo(a.dtype).max, torch.where(a == 0, 0, room)
    free, limit, spent = a.clone(), torch.where(a == 0, math.inf, room), torch.zeros_like(b)
    lam, u = torch.zeros_like(b), a if p == 2 else torch.ones_like(b)
    while True:
        slope = (free * free if p == 2 else free).sum(1, keepdim=True).clamp(min=tiny)
        lam = lam.maximum(((b - spent) / slope).clamp(max=largest))
        size = lam * u
        sticks_out = size > limit
        if not sticks_out.any():
            return torch.minimum(size, room)
        spent = spent + torch.where(sticks_out, a * room, 0).sum(1, keepdim=True)
        free.masked_fill_(sticks_out, 0)
        limit.masked_fill_(sticks_out, math.inf)


def _knapsack(a: Tensor, room: Tensor, b: Tensor) -> Tensor:
    """Sizes s ≤ room with ⟨a, s⟩ = b, on the largest a_i first; all at room where that is too little."""
    most = torch.where(a > 0, a * room, 0).minimum(b)  # what each can bring
    for few in (16, 128, a.shape[1]):
        top, order = (a * (most > 0)).topk(min(few, a.shape[1]), dim=1)
        gain = most.gather(1, order)
        before = gain.cumsum(1) - gain
        if ((before[:, -1:] >= b) | (top[:, -1:] == 0)).all() or few == a.shape[1]:
            break
    size = torch.minimum(gain, (b - before).clamp(min=0)) / top.clamp(min=torch.finfo(a.dtype).tiny)
    return torch.zeros_like(a).scatter_(1, order, size).minimum(room)


def fill_sphere(a: Tensor, room: Tensor, eps: Tensor) -> Tensor:
    """Sizes s = min(t a, room) with the t > 0 for which ‖s‖₂ = ε; all at room if ε is out of reach.

    Newton's method on Σ min(t² a_i², room_i²) = ε², concave and piecewise linear in t²: scale to the
    sphere, stop what stuck out at its room, scale the rest again. Each round stops a coordinate or ends.
    """
    tiny = torch.finfo(a.dtype).tiny
    unit_room = room / eps.clamp(min=tiny)  # lengths in units of ε and of the largest a: no square
    a = a / a.amax(1, keepdim=True).clamp(min=tiny)  # underflows
    t = 1 / norm(a, 2).clamp(min=tiny)
    stopped = torch.zeros_like(a, dtype=torch.bool)
    while True:
        size = torch.minimum(t * a, unit_room)
        sticks_out = t * a > unit_room
        if not (sticks_out & ~stopped).any():
            return torch.minimum(eps * size, room)
        stopped |= sticks_out
        left = 1 - torch.where(stopped, unit_room, 0).square().sum(1, keepdim=True)
        free = torch.where(stopped, 0, a).square().sum(1, keepdim=True)
        t = (left.clamp(min=0) / free.clamp(min=tiny)).sqrt()


def fill_largest_first(a: Tensor, room: Tensor, eps: Tensor) -> Tensor:
    """Sizes that spend the budget Σ s_i = ε on the largest a_i first (the fractional knapsack)."""
    most = room.clamp(max=eps).expand_as(a)
    for few in (16, 128, a.shape[1]):  # the largest few nearly always do, and sorting all is slow
        top, order = (a * (most > 0)).topk(min(few, a.shape[1]), dim=1)
        size = most.gather(1, order)
        before = size.cumsum(1) - size
        if ((before[:, -1:] >= eps) | (top[:, -1:] == 0)).all() or few == a.shape[1]:
            break
    return torch.zeros_like(a).scatter_(1, order, torch.minimum(size, (eps - before).clamp_(min=0)))


def fill_ellipsoid(a: Tensor, room: Tensor, eps: Tensor, weight: Tensor) -> Tensor:
    """Sizes s = min(a / (1 + λ / weight), room) with the λ > 0 for which ‖s‖₂ = ε (within reach).

    They are nearest in the sense of Σ weight_i (s_i − a_i)². Without room, 1 / ‖s‖₂ − 1 / ε is concave
    in λ and rises: Newton's method from the left raises λ until rounding stops it. Room can only lower
    λ, so what sticks out then ends at its room: stop it there and go on with the rest.
    """
    tiny = torch.finfo(a.dtype).tiny
    stopped = torch.zeros_like(a, dtype=torch.bool)
    while True:
        left = eps.square() - torch.where(stopped, room, 0).square().sum(1, keepdim=True)
        left, free = left.clamp(min=tiny).sqrt(), torch.where(stopped, 0, a)
        lam = (weight * (free / left - 1)).amax(1, keepdim=True).clamp(min=0)  # no s_i above `left`
        while True:
            size = free / (1 + lam / weight)
            norm = size.square().sum(1, keepdim=True).sqrt()
            slope = (size.square() / (weight + lam)).sum(1, keepdim=True).clamp(min=tiny)
            higher = lam + norm.square() * (norm / left - 1).clamp(min=0) / slope
            if not (higher > lam).any():
                break
            lam = higher
        sticks_out = size > room
        if not sticks_out.any():
            size = torch.where(stopped, room, size)
            return size * (eps / size.square().sum(1, keepdim=True).sqrt().clamp(min=tiny)).clamp(max=1)
        stopped |= sticks_out


def soft_threshold(a: Tensor, room: Tensor, eps: Tensor, weight: Tensor | None = None) -> Tensor:
    """Sizes s = clip(a − λ, 0, room) with the λ for which Σ s_i = ε (assumed within reach).

    With weights (n, d) it is λ / weight_i, and they are nearest in the sense of Σ weight_i (s_i − a_i)².

    Variable fixing [Kiwiel 2008]: subtract one λ from all free coordinates so that the sum is right.
    Some then stick out above room, some below 0: the side that sticks out further in total is where
    those coordinates belong, so freeze it there and go on with the rest.
    """
    tiny = torch.finfo(a.dtype).tiny
    free, size = torch.ones_like(a, dtype=torch.bool), torch.zeros_like(a)
    key, slope = (a, torch.ones_like(eps)) if weight is None else (weight * a, 1 / weight)
    while True:
        budget = eps - torch.where(free, 0, size).sum(1, keepdim=True)
        slopes = torch.where(free, slope, 0).sum(1, keepdim=True).clamp(min=1)
        if weight is None:
            near = torch.where(free, key, 0).amax(1, keepdim=True)
        else:  # λ may be far below the largest key
            near = (torch.where(free, a, 0).sum(1, keepdim=True) - budget) / slopes
        moved = (key - near) * slope
        for _ in range(1 if weight is None else 2):  # the second takes back what rounding left
            short = budget - torch.where(free, moved, 0).sum(1, keepdim=True)
            moved = moved + slope * (short / slopes)
        size = torch.where(free, moved.clamp(min=0).minimum(room), size)
        too_little = size.sum(1, keepdim=True) <= eps
        stuck_out = free & torch.where(too_little, moved > room, moved < 0)
        if not stuck_out.any():
            return size * (eps / size.sum(1, keepdim=True).clamp(min=tiny)).clamp(max=1)
        free = free & ~stuck_out


def soften(a: Tensor, eps: Tensor) -> Tensor:
    """Sizes s = max(a − λ, 0) with Σ s_i ≤ ε: λ = 0 where that will do, else equality.

    Newton's method on the convex, decreasing, piecewise linear Σ max(a_i − λ, 0), from the left: λ rises
    until rounding stops it, and one scaling takes back what rounding left.
    """
    size, lam = a, torch.zeros_like(a[:, :1])
    while True:
        total = size.sum(1, keepdim=True)
        higher = lam + (total - eps).clamp(min=0) / size.sign().sum(1, keepdim=True).clamp(min=1)
        if not (higher > lam).any():
            return size * (eps / total.clamp(min=torch.finfo(a.dtype).tiny)).clamp(max=1)
        lam, size = higher, (a - higher).clamp(min=0)
