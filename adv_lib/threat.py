"""The threat model: the set Δ(x) of perturbations δ that the adversary may add to an input x.

One object, `Ball`, carries the whole book. It answers four questions about
Δ(x) = {δ : ‖δ‖_p ≤ ε and x + δ ∈ [lo, hi]}: how far can a linear function rise on it, where does it
rise that far, which point of it is nearest, and what does a random point of it look like.
"""

from __future__ import annotations

import math
from collections.abc import Hashable
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.linalg import vector_norm
from torch.nn.functional import threshold

from . import projections
from ._precision import in_its_own_type

DUAL_ORDER = {1: math.inf, 2: 2, math.inf: 1}  # 1/p + 1/q = 1
TOLERANCE_ULP = 8
HUGE = 1e30


@dataclass(frozen=True, eq=False)
class Ball:
    """Δ(x) = {δ : ‖δ‖_p ≤ ε, lo ≤ x + δ ≤ hi}, or {ε ⊙ u : ‖u‖_p ≤ 1, …} if each entry has its own ε.

    p:    1, 2 or math.inf.
    eps:  the radius ε ≥ 0, in the units of the input: a number, or a tensor (n,) with one per sample.
          A tensor with as many axes as x, each as long as that of x or 1, has one per entry: (1, *shape)
          is a mask for all samples, (1, channels, 1, 1) an ε per channel. Where ε is 0 (or below 1e-100
          of the largest of its sample) δ is.
          ∞, as a number or for some samples, leaves all of the box: with it and x, ε is the box's
          diameter (hi − lo) d^{1/p}. Without, only what has a finite answer can be asked: `project`,
          `contains` and `radii`.
    box:  (lo, hi), the range of valid inputs, or None. It takes part whenever a method is given x.

    Every method takes a batch: the first axis counts samples, the other axes are one vector.

    Raises ValueError for any other p, an ε that is negative, NaN or, where each entry has its own,
    infinite, or a box without lo < hi; its methods for an ε that does not fit the batch or has no end.
    """

    p: float
    eps: float | Tensor
    box: tuple[float, float] | None = None

    def __post_init__(self):
        if not isinstance(self.p, Hashable) or self.p not in DUAL_ORDER:
            raise ValueError(f"p must be 1, 2 or math.inf, got {self.p!r}")
        try:
            eps = torch.as_tensor(self.eps)
        except (TypeError, ValueError, RuntimeError) as error:  # what it says to None, words, objects
            raise ValueError(f"eps must be a finite number ≥ 0, got {self.eps!r}") from error
        if eps.is_complex() or not bool((eps >= 0).all()) or (eps.ndim > 1 and eps.isinf().any()):
            raise ValueError(
                "eps must be a finite number ≥ 0 or math.inf, or one per sample, or a finite one per "
                f"entry, got {self.eps!r}"
            )
        if self.box is not None:
            try:
                lo, hi = (float(end + 0.0) for end in self.box)
            except (TypeError, ValueError, RuntimeError) as error:
                raise ValueError(
                    f"box must be two numbers (lo, hi), the same for all entries of x, got {self.box!r}"
                ) from error
            if not (math.isfinite(lo) and math.isfinite(hi) and lo < hi):
                raise ValueError(f"box must be (lo, hi) with lo < hi, got {self.box!r}")

    @property
    def dual_order(self) -> float:
        """The order q of the dual norm: 1/p + 1/q = 1."""
        return DUAL_ORDER[self.p]

    def subset(self, rows: Tensor) -> Ball:
        """The ball of some of the samples, given by a mask or by their numbers, (m,)."""
        eps = torch.as_tensor(self.eps)
        return replace(self, eps=eps[rows.to(eps.device)]) if self.per_sample else self

    @property
    def per_sample(self) -> bool:
        """Whether each sample has an ε, or a tensor of them, of its own."""
        eps = torch.as_tensor(self.eps)
        return eps.ndim > 0 and len(eps) != 1

    def support(self, w: Tensor, x: Tensor | None = None) -> Tensor:
        """max ⟨w, δ⟩ over δ ∈ Δ(x); without a box it is ε‖w‖_q with 1/p + 1/q = 1.

        w: (n, *shape), one vector a row.  x: like w, for the box.
        Returns (n,), in the units of w times those of ε; differentiable in w (the
        gradient is a maximiser) and, without a box, in ε.
        It is also the Fenchel conjugate of Δ's indicator [Rockafellar 1970, §13].
        """
        eps = self._with_an_end(w, x)
        if x is None or self.box is None:
            if eps.shape[1] > 1:  # each entry has its own: ‖ε ⊙ w‖_q
                return projections.norm(eps * w.flatten(1), self.dual_order).squeeze(1)
            return (eps * projections.norm(w.flatten(1), self.dual_order)).squeeze(1)
        return self._region(w, x, eps).support(w.flatten(1).unsqueeze(1)).squeeze(1)

    def argmax(self, w: Tensor, x: Tensor | None = None) -> Tensor:
        """A maximiser of ⟨w, δ⟩ over δ ∈ Δ(x): the direction of steepest ascent in this ball's norm.

        Without a box: ε sign(w) for p = ∞, ε w/‖w‖₂ for p = 2, and for p = 1 all of ε on a largest
        entry of |w|. With one, no coordinate moves further than the box lets it. If each entry has its
        own ε, all that holds of u and ε ⊙ w.

        w: (n, *shape).  x: like w.  Returns δ like w; it is 0 wherever w is 0.
        """
        region = self._region(w, x, self._with_an_end(w, x))
        return region.argmax(w.flatten(1)).reshape(w.shape)

    def region(self, x: Tensor, *, endless: bool = False) -> Region:
        """Δ(x) at one batch x, checked once, for loops that step and project many times.

        x: (n, *shape).  endless: whether ε may be infinite without a box, for who only projects.
        Returns a `Region` of n samples.
        """
        return self._region(x, x, self._checked_eps(x, x) if endless else self._with_an_end(x, x))

    def project(self, delta: Tensor, x: Tensor | None = None) -> Tensor:
        """The point of Δ(x) nearest to δ: argmin ‖δ' − δ‖₂ over δ' ∈ Δ(x).

        delta: (n, *shape).  x: like delta.  Returns δ' like delta.
        p = ∞ clips, p = 2 rescales, p = 1 subtracts one threshold from every |δ_i| [Duchi et al.
        2008]; with a box, p = 1 and 2 also stop each coordinate at the box's edge. If each entry has its
        own ε, p = 2 divides by 1 + λ/ε_i² and p = 1 subtracts λ/ε_i.
        """
        region = self._region(delta, x, self._checked_eps(delta, x))
        return region.project(delta.flatten(1)).reshape(delta.shape)

    def sample(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """A random point of Δ(x) for every sample of x.

        x: (n, *shape).  generator: None means a fresh one seeded 0.  Returns δ like x.
        Uniform on the ball; with a box, uniform on Δ(x) for p = ∞, and for p = 1 and 2 a uniform
        point of the ball projected onto Δ(x) (a uniform one would need rejection, hopeless in
        high dimension).
        """
        eps = self._with_an_end(x, x)
        if generator is None:
            generator = torch.Generator(x.device).manual_seed(0)
        rows = x.detach().flatten(1)
        if self.p == math.inf:
            u = torch.empty_like(rows).uniform_(generator=generator)
            region = self._region(x, x, eps)
            return (u * (region.high - region.low) + region.low).reshape(x.shape)
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
        rows = delta.flatten(1)
        if eps.shape[1] > 1:
            each = (rows.abs() <= (1 + slack) * eps).all(1)  # 0 where ε is
            rows, eps = rows / eps.clamp(min=torch.finfo(rows.dtype).tiny), each.to(rows)[:, None]
        inside = (projections.norm(rows, self.p) <= (1 + slack) * eps).squeeze(1)
        if x is not None and self.box is not None:
            lo, hi = self.box
            moved, edge = (x + delta).flatten(1), slack * max(abs(lo), abs(hi))
            inside &= ((moved >= lo - edge) & (moved <= hi + edge)).all(1)
        return inside

    def radii(self, x: Tensor) -> Tensor:
        """ε of every sample of x (n, *shape), the largest of its entries: (n,).

        Raises ValueError for an ε that does not fit x.
        """
        return self._checked_eps(x, None).amax(1).expand(len(x))

    def _region(self, like: Tensor, x: Tensor | None, eps: Tensor) -> Region:
        """Δ(x), or without x the ball alone, for rows like these."""
        eps, rows, scale = eps.detach(), like.detach().flatten(1), None
        high = rows.new_tensor(math.inf).expand_as(rows)
        low = -high
        if x is not None and self.box is not None:
            (lo, hi), at = self.box, x.detach().flatten(1)
            low, high = (lo - at).clamp(max=0), (hi - at).clamp(min=0)
        if self.p == math.inf:
            low, high = low.maximum(-eps), high.minimum(eps)
        if eps.shape[1] > 1:
            each, eps = eps, eps.amax(1, keepdim=True)
            scale = threshold(each / eps.clamp(min=torch.finfo(eps.dtype).tiny), 1e-100, 0)
            scale = scale.expand_as(rows)
            low, high = low.masked_fill(scale == 0, 0), high.masked_fill(scale == 0, 0)
        return Region(self.p, eps.expand(len(like), 1), low, high, scale)

    def _with_an_end(self, rows: Tensor, x: Tensor | None) -> Tensor:
        """`_checked_eps`, where the answer is infinite unless ε or the box is an end."""
        eps = self._checked_eps(rows, x)
        if bool(eps.isinf().any()):
            missing = "a box" if self.box is None else "x, for the box"
            raise ValueError(f"expected a finite eps, or {missing}: {self} without it has no end")
        return eps

    def _checked_eps(self, rows: Tensor, x: Tensor | None) -> Tensor:
        """Check the arguments of a method; return ε as (n, 1) or (1, 1), of the same type as rows.

        If each entry has its own: (n, d) or (1, d).
        """
        for value in (rows, *([] if x is None else [x])):
            if not isinstance(value, Tensor):
                raise ValueError(f"expected tensors (n, *shape), got {type(value).__name__}")
        if not rows.is_floating_point() or rows.ndim < 2:
            raise ValueError(
                f"expected a floating-point batch (n, *shape), got {rows.dtype} {tuple(rows.shape)}"
            )
        if rows.numel() and not all(end.isfinite() for end in rows.aminmax()):  # NaN passes through
            raise ValueError("expected finite entries, got NaN or infinity")
        eps = torch.as_tensor(self.eps, dtype=rows.dtype, device=rows.device)
        if eps.ndim > 1:
            if eps.ndim != rows.ndim or any(
                size not in (1, whole) for size, whole in zip(eps.shape, rows.shape, strict=True)
            ):
                raise ValueError(
                    "expected eps with as many axes as the batch, each as long or 1, "
                    f"got {tuple(eps.shape)} for a batch {tuple(rows.shape)}"
                )
            eps = eps.expand(len(eps), *rows.shape[1:]).flatten(1)
        else:
            eps = eps.reshape(-1, 1)
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
        return eps.masked_fill(eps == math.inf, (hi - lo) * rows[0:1].numel() ** (1 / self.p))


@dataclass(frozen=True, eq=False)
class Region:
    """Δ(x) at one batch x, made by `Ball.region`: one step of projected ascent, without further checks.

    eps (n, 1) is the radius, low ≤ 0 ≤ high (n, d) how far each coordinate can move. δ and gradients are
    finite rows (n, d), as in x.flatten(1).
    scale (n, d): if each entry has its own ε, which share of the largest it is; eps is that. Then
    δ = scale ⊙ u with u in an ordinary ball, in which we look for maximisers and take steps.
    """

    p: float
    eps: Tensor
    low: Tensor
    high: Tensor
    scale: Tensor | None = None

    def __getitem__(self, rows: Tensor) -> Region:
        """The region of some of the samples, given by a mask or by their numbers."""
        scale = None if self.scale is None else self.scale[rows]
        return Region(self.p, self.eps[rows], self.low[rows], self.high[rows], scale)

    @in_its_own_type
    def support(self, w: Tensor) -> Tensor:
        """max ⟨w, δ⟩ over δ ∈ Δ(x), for r vectors w a sample; see `Ball.support`.

        w: (n, r, d).  Returns (n, r); differentiable in w (the gradient is a maximiser).
        """
        if self.p == math.inf:  # each coordinate for itself: the middle of its range, and half of it
            middle, half = (self.high + self.low) / 2, (self.high - self.low) / 2
            return ((w @ middle.unsqueeze(2)) + (w.abs() @ half.unsqueeze(2))).squeeze(2)
        rows = torch.arange(len(w), device=w.device).repeat_interleave(w.shape[1])
        delta = self[rows].argmax(w.detach().flatten(0, 1))
        return (w * delta.view_as(w)).sum(2)

    def argmax(self, rows: Tensor) -> Tensor:
        """A maximiser of ⟨w, δ⟩ over δ ∈ Δ(x) for every row w of (n, d); see `Ball.argmax`."""
        if self.scale is not None and self.p != math.inf:
            u = self._of_u().argmax(self.scale * rows)
            return (self.scale * u).clamp_(self.low, self.high)
        room = torch.where(rows >= 0, self.high, -self.low)
        return rows.sign() * projections.furthest(rows.abs(), room, self.eps, self.p)

    def step(self, rows: Tensor, gradient: Tensor, alpha: Tensor) -> Tensor:
        """P(δ + v): v maximises ⟨gradient, v⟩ over ‖v‖_p ≤ α and does not leave the box.

        For p = 1 and ∞ that is exact. For p = 2 it is so up to the box: v maximises over the coordinates
        that are not at the edge already and is cut where it meets the edge.
        If each entry has its own ε all of this is about u: ‖v / scale‖_p ≤ α, so that α goes with the
        largest ε, and P is the projection in u. (That in δ would move a maximiser away from itself.)
        alpha: a number or (n, 1).  Returns rows (n, d) in Δ(x).
        """
        if self.scale is not None:
            if self.p != math.inf:
                u = rows / self.scale.clamp(min=torch.finfo(rows.dtype).tiny)
                u = self._of_u().step(u, self.scale * gradient, alpha)
                return u.mul_(self.scale).clamp_(self.low, self.high)
            alpha = alpha * self.scale
        if self.p == math.inf:  # each coordinate for itself, so one clipping does for both
            return gradient.sign().mul_(alpha).add_(rows).clamp_(self.low, self.high)
        if self.p == 2:  # clamped to 0 where the box blocks it, to ±HUGE where it does not
            v = gradient.clamp((self.low - rows).mul_(HUGE), (self.high - rows).mul_(HUGE))
            return self._into_ball(
                projections.to_length(v, alpha).add_(rows).clamp_(self.low, self.high)
            )
        room = torch.where(gradient >= 0, self.high - rows, rows - self.low)
        v = gradient.sign() * projections.fill_largest_first(gradient.abs(), room, alpha)
        return self._into_ball(v.add_(rows).clamp_(self.low, self.high))

    def _of_u(self) -> Region:
        """All u with scale ⊙ u ∈ Δ(x), for p = 1 and 2: a ball with one ε, in a box."""
        scale = self.scale.clamp(min=torch.finfo(self.scale.dtype).tiny)
        return Region(self.p, self.eps, self.low / scale, self.high / scale)

    def _into_ball(self, rows: Tensor) -> Tensor:
        """P of rows that are in the box: to shrink them towards 0 keeps them there."""
        if self.p == 2:
            norm = (rows * rows).sum(1, keepdim=True).sqrt_()
            return rows.mul_((self.eps / norm.clamp_(min=torch.finfo(rows.dtype).tiny)).clamp_(max=1))
        return rows.sign() * projections.soften(rows.abs(), self.eps)

    def project(self, rows: Tensor) -> Tensor:
        """The nearest point of Δ(x) to every row of (n, d)."""
        if self.p == math.inf:
            return rows.clamp(self.low, self.high)
        room = torch.where(rows >= 0, self.high, -self.low)
        return rows.sign() * projections.nearest(rows.abs(), room, self.eps, self.p, self.scale)
