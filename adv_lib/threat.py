"""The threat model: the set Δ(x) of perturbations δ that the adversary may add to an input x.

One object, `Ball`, carries the whole book. It answers four questions about
Δ(x) = {δ : ‖δ‖_p ≤ ε and x + δ ∈ [lo, hi]}: how far can a linear function rise on it, where does it
rise that far, which point of it is nearest, and what does a random point of it look like.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.linalg import vector_norm

DUAL_ORDER = {1: math.inf, 2: 2, math.inf: 1}  # 1/p + 1/q = 1
TOLERANCE_ULP = 8
HUGE = 1e30


@dataclass(frozen=True, eq=False)
class Ball:
    """Δ(x) = {δ : ‖δ‖_p ≤ ε, lo ≤ x + δ ≤ hi}.

    p:    1, 2 or math.inf.
    eps:  the radius ε ≥ 0, in the units of the input: a number, or a tensor (n,) with one per sample.
    box:  (lo, hi), the range of valid inputs, or None. It takes part whenever a method is given x.

    Every method takes a batch: the first axis counts samples, the other axes are one vector.

    Raises ValueError for any other p, a negative or non-finite ε, or a box without lo < hi.
    """

    p: float
    eps: float | Tensor
    box: tuple[float, float] | None = None

    def __post_init__(self):
        if self.p not in DUAL_ORDER:
            raise ValueError(f"p must be 1, 2 or math.inf, got {self.p!r}")
        eps = torch.as_tensor(self.eps)
        if eps.ndim > 1 or not bool((eps.isfinite() & (eps >= 0)).all()):
            raise ValueError(f"eps must be a finite number ≥ 0, or one per sample, got {self.eps!r}")
        if self.box is not None:
            lo, hi = self.box
            if not (math.isfinite(lo) and math.isfinite(hi) and lo < hi):
                raise ValueError(f"box must be (lo, hi) with lo < hi, got {self.box!r}")

    @property
    def dual_order(self) -> float:
        """The order q of the dual norm: 1/p + 1/q = 1."""
        return DUAL_ORDER[self.p]

    def of(self, rows: Tensor) -> Ball:
        """The ball of some of the samples, given by a mask or by their numbers, (m,)."""
        eps = torch.as_tensor(self.eps)
        return self if eps.numel() == 1 else replace(self, eps=eps[rows.to(eps.device)])

    def support(self, w: Tensor, x: Tensor | None = None) -> Tensor:
        """max ⟨w, δ⟩ over δ ∈ Δ(x); without a box it is ε‖w‖_q with 1/p + 1/q = 1.

        w: (n, *shape), one vector a row.  x: like w, for the box.
        Returns (n,), in the units of w times those of ε; differentiable in w (the
        gradient is a maximiser) and, without a box, in ε.
        It is also the Fenchel conjugate of Δ's indicator [Rockafellar 1970, §13].
        """
        eps = self._checked_eps(w, x)
        if x is None or self.box is None:
            return (eps * _norm(w.flatten(1), self.dual_order)).squeeze(1)
        return (w * self.argmax(w.detach(), x)).flatten(1).sum(1)

    def argmax(self, w: Tensor, x: Tensor | None = None) -> Tensor:
        """A maximiser of ⟨w, δ⟩ over δ ∈ Δ(x): the direction of steepest ascent in this ball's norm.

        Without a box: ε sign(w) for p = ∞, ε w/‖w‖₂ for p = 2, and for p = 1 all of ε on a largest
        entry of |w|. With one, no coordinate moves further than the box lets it.

        w: (n, *shape).  x: like w.  Returns δ like w; it is 0 wherever w is 0.
        """
        eps = self._checked_eps(w, x)
        rows = w.flatten(1)
        room = self._room(rows, x)
        if self.p == math.inf:
            size = torch.minimum(eps, room)
        elif self.p == 2:
            size = _fill_sphere(rows.abs(), room, eps)
        else:
            size = _fill_largest_first(rows.abs(), room, eps)
        return (rows.sign() * size).reshape(w.shape)

    def at(self, x: Tensor) -> Region:
        """Δ(x) at one batch x, checked once, for loops that step and project many times.

        x: (n, *shape).  Returns a `Region` of n samples.
        """
        eps, rows = self._checked_eps(x, x).detach(), x.detach().flatten(1)
        lo, hi = self.box or (-math.inf, math.inf)
        low, high = (lo - rows).clamp(max=0), (hi - rows).clamp(min=0)
        if self.p == math.inf:
            low, high = low.maximum(-eps), high.minimum(eps)
        return Region(self.p, eps.expand(len(rows), 1), low, high)

    def project(self, delta: Tensor, x: Tensor | None = None) -> Tensor:
        """The point of Δ(x) nearest to δ: argmin ‖δ' − δ‖₂ over δ' ∈ Δ(x).

        delta: (n, *shape).  x: like delta.  Returns δ' like delta.
        p = ∞ clips, p = 2 rescales, p = 1 subtracts one threshold from every |δ_i| [Duchi et al.
        2008]; with a box, p = 1 and 2 also stop each coordinate at the box's edge.
        """
        eps = self._checked_eps(delta, x)
        rows = delta.flatten(1)
        size = _shrink(rows.abs(), self._room(rows, x), eps, self.p)
        return (rows.sign() * size).reshape(delta.shape)

    def sample(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """A random point of Δ(x) for every sample of x.

        x: (n, *shape).  generator: None means a fresh one seeded 0.  Returns δ like x.
        Uniform on the ball; with a box, uniform on Δ(x) for p = ∞, and for p = 1 and 2 a uniform
        point of the ball projected onto Δ(x) (a uniform one would need rejection, hopeless in
        high dimension).
        """
        eps = self._checked_eps(x, x)
        if generator is None:
            generator = torch.Generator(x.device).manual_seed(0)
        rows = x.detach().flatten(1)
        if self.p == math.inf:
            u = torch.empty_like(rows).uniform_(generator=generator)
            down = torch.minimum(eps, self._room(-torch.ones_like(rows), x))
            up = torch.minimum(eps, self._room(torch.ones_like(rows), x))
            return (u * (down + up) - down).reshape(x.shape)
        if self.p == 2:
            direction = torch.empty_like(rows).normal_(generator=generator)
            radius = torch.empty_like(rows[:, :1]).uniform_(generator=generator)
            rows = radius ** (1 / max(1, rows.shape[1])) * direction
            rows = eps * rows / vector_norm(direction, dim=1, keepdim=True)
        else:  # d + 1 exponentials over their sum: uniform on the simplex, then random signs
            e = torch.empty_like(rows).exponential_(generator=generator)
            rest = torch.empty_like(rows[:, :1]).exponential_(generator=generator)
            signs = torch.empty_like(rows).uniform_(-1, 1, generator=generator).sign()
            rows = eps * signs * e / (e.sum(1, keepdim=True) + rest)
        return self.project(rows.reshape(x.shape), x if self.box else None)

    def contains(self, delta: Tensor, x: Tensor | None = None) -> Tensor:
        """Whether δ ∈ Δ(x), up to 8 units in the last place of ε and of the box's edges.

        delta: (n, *shape).  x: like delta.  Returns (n,) bool.
        """
        eps = self._checked_eps(delta, x)
        slack = TOLERANCE_ULP * torch.finfo(delta.dtype).eps
        inside = (_norm(delta.flatten(1), self.p) <= (1 + slack) * eps).squeeze(1)
        if x is not None and self.box is not None:
            lo, hi = self.box
            moved, edge = (x + delta).flatten(1), slack * max(abs(lo), abs(hi))
            inside &= ((moved >= lo - edge) & (moved <= hi + edge)).all(1)
        return inside

    def _room(self, rows: Tensor, x: Tensor | None) -> Tensor:
        """How far each coordinate can move in the direction of its entry before it leaves the box."""
        if x is None or self.box is None:
            return rows.new_tensor(math.inf)
        lo, hi = self.box
        x = x.detach().flatten(1)
        return torch.where(rows >= 0, hi - x, x - lo).clamp(min=0)

    def each(self, x: Tensor) -> Tensor:
        """ε of every sample of x (n, *shape): (n,).  Raises ValueError unless there are 1 or n."""
        return self._checked_eps(x, None).squeeze(1).expand(len(x))

    def _checked_eps(self, rows: Tensor, x: Tensor | None) -> Tensor:
        """Check the arguments of a method; return ε as (n, 1) or (1, 1), of the same type as rows."""
        if not rows.is_floating_point() or rows.ndim < 2:
            raise ValueError(
                f"expected a floating-point batch (n, *shape), got {rows.dtype} {tuple(rows.shape)}"
            )
        if rows.numel() and not all(end.isfinite() for end in rows.aminmax()):  # NaN passes through
            raise ValueError("expected finite entries, got NaN or infinity")
        eps = torch.as_tensor(self.eps, dtype=rows.dtype, device=rows.device).reshape(-1, 1)
        if len(eps) not in (1, len(rows)):
            raise ValueError(f"eps has {len(eps)} entries for a batch of {len(rows)} samples")
        if x is None or self.box is None:
            return eps
        if x.shape != rows.shape or x.dtype != rows.dtype:
            raise ValueError(
                f"x must match the batch {rows.dtype} {tuple(rows.shape)}, "
                f"got {x.dtype} {tuple(x.shape)}"
            )
        lo, hi = self.box
        edge = TOLERANCE_ULP * torch.finfo(x.dtype).eps * max(abs(lo), abs(hi))
        if x.numel():
            least, most = (end.item() for end in x.aminmax())
            if not (lo - edge <= least and most <= hi + edge):
                raise ValueError(
                    f"x must lie in the box [{lo}, {hi}], got values from {least:.4g} to {most:.4g}"
                )
        return eps


@dataclass(frozen=True, eq=False)
class Region:
    """Δ(x) at one batch x, made by `Ball.at`: one step of projected ascent, without further checks.

    eps (n, 1) is the radius, low ≤ 0 ≤ high (n, d) how far each coordinate can move. δ and gradients are
    finite rows (n, d), as in x.flatten(1).
    """

    p: float
    eps: Tensor
    low: Tensor
    high: Tensor

    def __getitem__(self, rows: Tensor) -> Region:
        """The region of some of the samples, given by a mask or by their numbers."""
        return Region(self.p, self.eps[rows], self.low[rows], self.high[rows])

    def support(self, w: Tensor) -> Tensor:
        """max ⟨w, δ⟩ over δ ∈ Δ(x), for r vectors w a sample; see `Ball.support`.

        w: (n, r, d).  Returns (n, r); differentiable in w (the gradient is a maximiser).
        """
        if self.p == math.inf:  # each coordinate for itself: the middle of its range, and half of it
            middle, half = (self.high + self.low) / 2, (self.high - self.low) / 2
            return ((w @ middle.unsqueeze(2)) + (w.abs() @ half.unsqueeze(2))).squeeze(2)
        rows = w.detach().flatten(0, 1)
        eps, low, high = (
            end.repeat_interleave(w.shape[1], 0) for end in (self.eps, self.low, self.high)
        )
        room = torch.where(rows >= 0, high, -low)
        fill = _fill_sphere if self.p == 2 else _fill_largest_first
        delta = rows.sign() * fill(rows.abs(), room, eps)
        return (w * delta.reshape(w.shape)).sum(2)

    def step(self, rows: Tensor, gradient: Tensor, alpha: Tensor) -> Tensor:
        """P(δ + v): v maximises ⟨gradient, v⟩ over ‖v‖_p ≤ α and does not leave the box.

        For p = 1 and ∞ that is exact. For p = 2 it is so up to the box: v maximises over the coordinates
        that are not at the edge already and is cut where it meets the edge.
        alpha: a number or (n, 1).  Returns rows (n, d) in Δ(x).
        """
        if self.p == math.inf:  # each coordinate for itself, so one clipping does for both
            return gradient.sign().mul_(alpha).add_(rows).clamp_(self.low, self.high)
        if self.p == 2:  # clamped to 0 where the box blocks it, to ±HUGE where it does not
            v = gradient.clamp((self.low - rows).mul_(HUGE), (self.high - rows).mul_(HUGE))
            return self._into_ball(_to_length(v, alpha).add_(rows).clamp_(self.low, self.high))
        room = torch.where(gradient >= 0, self.high - rows, rows - self.low)
        v = gradient.sign() * _fill_largest_first(gradient.abs(), room, alpha)
        return self._into_ball(v.add_(rows).clamp_(self.low, self.high))

    def _into_ball(self, rows: Tensor) -> Tensor:
        """P of rows that are in the box: to shrink them towards 0 keeps them there."""
        if self.p == 2:
            norm = (rows * rows).sum(1, keepdim=True).sqrt_()
            return rows.mul_((self.eps / norm.clamp_(min=torch.finfo(rows.dtype).tiny)).clamp_(max=1))
        return rows.sign() * _soften(rows.abs(), self.eps)

    def project(self, rows: Tensor) -> Tensor:
        """The nearest point of Δ(x) to every row of (n, d)."""
        room = torch.where(rows >= 0, self.high, -self.low)
        return rows.sign() * _shrink(rows.abs(), room, self.eps, self.p)


# By symmetry each problem is one about sizes: give coordinate i a size s_i with 0 ≤ s_i ≤ room_i, and
# put the sign back afterwards. All arguments are (n, d) or broadcast to it, a ≥ 0.


def _norm(v: Tensor, order: float) -> Tensor:
    """‖v‖ of every row, (n, 1), precise to a few ulp in any dimension and at any scale.

    Squares are in units of the largest entry, so that none overflows. Sums are torch.sum's, which adds
    in pairs: vector_norm adds one by one and is off by hundreds of ulp for a thousand equal entries.
    """
    if order == math.inf:
        return vector_norm(v, ord=order, dim=1, keepdim=True)
    if order == 1:
        return v.abs().sum(1, keepdim=True)
    tiny = torch.finfo(v.dtype).tiny
    unit = v.detach().abs().amax(1, keepdim=True).clamp(min=tiny)
    v = v / unit
    return unit * (v * v).sum(1, keepdim=True).clamp(min=tiny).sqrt()


def _shrink(a: Tensor, room: Tensor, eps: Tensor, p: float) -> Tensor:
    """The sizes nearest to a, in the sense of ‖·‖₂, with s ≤ room and ‖s‖_p ≤ ε."""
    size = torch.minimum(a, room)
    if p == math.inf:
        return torch.minimum(size, eps)
    outside = _norm(size, p) > eps
    if not outside.any():
        return size
    return torch.where(outside, (_fill_sphere if p == 2 else _soft_threshold)(a, room, eps), size)


def _to_length(v: Tensor, length: Tensor) -> Tensor:
    """Every row of v scaled, in place, to this ‖·‖₂; a row of 0 stays."""
    tiny = torch.finfo(v.dtype).tiny
    norm = vector_norm(v, dim=1, keepdim=True)
    if not ((1e4 * tiny**0.5 < norm) & (norm < math.inf)).all():  # squares under- or overflow
        v = v / v.abs().amax(1, keepdim=True).clamp(min=tiny)
        norm = vector_norm(v, dim=1, keepdim=True).clamp(min=1)
    return v.mul_(length / norm)


def _fill_sphere(a: Tensor, room: Tensor, eps: Tensor) -> Tensor:
    """Sizes s = min(t a, room) with the t > 0 for which ‖s‖₂ = ε; all at room if ε is out of reach.

    Newton's method on Σ min(t² a_i², room_i²) = ε², concave and piecewise linear in t²: scale to the
    sphere, stop what stuck out at its room, scale the rest again. Each round stops a coordinate or ends.
    """
    tiny = torch.finfo(a.dtype).tiny
    unit_room = room / eps.clamp(min=tiny)  # lengths in units of ε and of the largest a: no square
    a = a / a.amax(1, keepdim=True).clamp(min=tiny)  # underflows
    t = 1 / _norm(a, 2).clamp(min=tiny)
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


def _fill_largest_first(a: Tensor, room: Tensor, eps: Tensor) -> Tensor:
    """Sizes that spend the budget Σ s_i = ε on the largest a_i first (the fractional knapsack)."""
    most = room.clamp(max=eps).expand_as(a)
    for few in (16, 128, a.shape[1]):  # the largest few nearly always do, and sorting all is slow
        top, order = (a * (most > 0)).topk(min(few, a.shape[1]), dim=1)
        size = most.gather(1, order)
        before = size.cumsum(1) - size
        if ((before[:, -1:] >= eps) | (top[:, -1:] == 0)).all() or few == a.shape[1]:
            break
    return torch.zeros_like(a).scatter_(1, order, torch.minimum(size, (eps - before).clamp_(min=0)))


def _soft_threshold(a: Tensor, room: Tensor, eps: Tensor) -> Tensor:
    """Sizes s = clip(a − λ, 0, room) with the λ for which Σ s_i = ε (assumed within reach).

    Variable fixing [Kiwiel 2008]: subtract one λ from all free coordinates so that the sum is right.
    Some then stick out above room, some below 0: the side that sticks out further in total is where
    those coordinates belong, so freeze it there and go on with the rest.
    """
    tiny = torch.finfo(a.dtype).tiny
    free, size = torch.ones_like(a, dtype=torch.bool), torch.zeros_like(a)
    while True:
        budget = eps - torch.where(free, 0, size).sum(1, keepdim=True)
        count = free.sum(1, keepdim=True).clamp(min=1)
        below_top = torch.where(free, a - torch.where(free, a, 0).amax(1, keepdim=True), 0)
        moved = below_top + (budget - below_top.sum(1, keepdim=True)) / count
        size = torch.where(free, moved.clamp(min=0).minimum(room), size)
        too_little = size.sum(1, keepdim=True) <= eps
        stuck_out = free & torch.where(too_little, moved > room, moved < 0)
        if not stuck_out.any():
            return size * (eps / size.sum(1, keepdim=True).clamp(min=tiny)).clamp(max=1)
        free = free & ~stuck_out


def _soften(a: Tensor, eps: Tensor) -> Tensor:
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
