"""The dual of the verification problem: a backward pass whose value bounds what any δ can reach.

The relaxed problem is min cᵀa_D over x + δ = h_1, a_i = W_i h_i + b_i, and (a_i, h_{i+1}) in the relaxed
ReLU. Give each equation for a_i a multiplier ν_i. The Lagrangian falls apart into one term for the last
layer, which forces ν_D = −c, one for the input and one for each unit, and the minimum of each is minus
a conjugate. So for any ν_1, …, ν_{D−1}, with ν̂_i = W_iᵀν_i,

    J(ν) = −Σ_i ν_iᵀb_i − I*_{x+Δ}(ν̂_1) − Σ_i I*_S(−ν_i, ν̂_{i+1}) ≤ min cᵀa_D.

`value` is this formula. `multipliers` chooses ν by a backward pass through the network: two lines around
each ReLU, αa ≤ h ≤ s(a − l), turn ν̂_{i+1} into ν_i, and I*_S becomes −l[ν_i]₊. `bound` is J there.
Every function takes m samples with r problems each: c and ν_i are (m, r, *shape of a_i), J is (m, r).
Source: Wong & Kolter 2018, Theorem 1, where our a, h, ν_i are ẑ, z, ν_{i+1}.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from . import conjugates
from ._work import runs
from .affine import Affine, Bounds, width
from .threat import Ball, Region


class Lines(NamedTuple):
    """Two lines around every ReLU of a layer: lower · a ≤ h ≤ upper · (a − left).

    Unstable, l < 0 < u: lower is α ∈ [0, 1], upper is u/(u − l), left is l. A unit that is off or on has
    0 or 1 for both slopes, and left = 0.  Each is (m, 1, *shape), or (m, r, *shape): one a problem.
    """

    lower: Tensor
    upper: Tensor
    left: Tensor


SLOPES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "dual": lambda l, u: u / (u - l),  # both lines parallel [Wong & Kolter 2018]
    "crown": lambda l, u: (u > -l).to(u),  # the smaller triangle [Zhang et al. 2018]
}


def lines(bounds: Bounds, slopes: Tensor | str) -> Lines:
    """The lines around the ReLUs of a layer with these pre-activation bounds, (m, *shape).

    slopes: α ∈ [0, 1] where a unit is unstable, (m, *shape) or (m, r, *shape); or a name in SLOPES.
    Raises ValueError for bounds with NaN or lower > upper, for another name, for α outside [0, 1] or of
    another shape.
    """
    l, u = (end.unsqueeze(1) for end in bounds)
    if not bool((l <= u).all()):
        raise ValueError("expected lower ≤ upper for every unit, got NaN or lower > upper")
    unstable, on = (l < 0) & (u > 0), (l >= 0).to(l)
    low, high = torch.where(unstable, l, -1.0), torch.where(unstable, u, 1.0)  # no 0/0 in the gradient
    if isinstance(slopes, str):
        if slopes not in SLOPES:
            raise ValueError(f"expected slopes, or one of the names {tuple(SLOPES)}, got {slopes!r}")
        slopes = SLOPES[slopes](low, high)
    alpha = slopes.unsqueeze(1) if slopes.ndim < l.ndim else slopes
    if alpha.shape[:1] + alpha.shape[2:] != l.shape[:1] + l.shape[2:]:
        raise ValueError(
            f"expected slopes for bounds {tuple(bounds.lower.shape)}, got {tuple(slopes.shape)}"
        )
    if not bool(((alpha >= 0) & (alpha <= 1)).all()):
        raise ValueError(f"expected slopes in [0, 1], got {alpha.min():.4g} to {alpha.max():.4g}")
    chord = torch.where(unstable, high / (high - low), on)
    return Lines(torch.where(unstable, alpha, on), chord, torch.where(unstable, l, 0.0))


def multipliers(pieces: Sequence[Affine], relus: Sequence[Lines], c: Tensor) -> list[Tensor]:
    """ν_1, …, ν_D by one backward pass: ν_D = −c, and ν_i = u/(u − l) [ν̂_{i+1}]₊ − α [ν̂_{i+1}]₋.

    The weights transposed, and in place of each ReLU another piecewise linear function: a dual network.
    pieces: D affine pieces.  relus: the lines of the D − 1 layers of ReLUs.  c: (m, r, *shape_out).
    """
    nu = [-c]
    for piece, relu in zip(reversed(pieces[1:]), reversed(relus), strict=True):
        hat = _transposed(piece, nu[0], relu.left)
        nu.insert(0, torch.where(hat > 0, relu.upper, relu.lower) * hat)
    return nu


def bound(
    pieces: Sequence[Affine], relus: Sequence[Lines], x: Tensor, region: Region, c: Tensor
) -> Tensor:
    """J at the multipliers of the backward pass: a lower bound on cᵀa_D over δ ∈ Δ(x).

    −Σ_i ν_iᵀb_i − I*_{x+Δ}(ν̂_1) + Σ_{i, unstable} l[ν_i]₊.
    x: (m, *shape).  region: Δ(x), that is `ball.region(x)`.  c: (m, r, *shape_out), in any units.
    Returns (m, r), in those of cᵀa_D; differentiable in the weights, the lines and c.
    Source: Wong & Kolter 2018, eq. (5) to (8).
    """
    nu = multipliers(pieces, relus, c)
    hat = _transposed(pieces[0], nu[0], x.unsqueeze(1)).flatten(2)
    J = -(hat @ x.flatten(1).unsqueeze(2)).squeeze(2) - region.support(hat)
    for piece, each in zip(pieces, nu, strict=True):
        J = J - piece.offset(each.flatten(0, 1)).reshape_as(J)
    for relu, each in zip(relus, nu, strict=False):
        J = J + (relu.left * each.clamp(min=0)).flatten(2).sum(2)
    return J


def value(
    pieces: Sequence[Affine], layers: Sequence[Bounds], x: Tensor, ball: Ball, nu: Sequence[Tensor]
) -> Tensor:
    """J(ν) for any multipliers: −Σ_i ν_iᵀb_i − I*_{x+Δ}(ν̂_1) − Σ_i I*_S(−ν_i, ν̂_{i+1}).

    layers: the pre-activation bounds, (m, *shape) each.  nu: ν_1, …, ν_D, (m, r, *shape) each.
    Returns (m, r): a lower bound on −ν_Dᵀa_D over δ ∈ Δ(x), whatever ν is; concave and differentiable
    in it. Its largest value over ν_1, …, ν_{D−1} is the minimum of the linear program in which every a
    keeps its bounds (`relaxation` drops them for units that are off).
    Raises ValueError unless there are bounds for each layer of ReLUs and ν for each layer, and for what
    `conjugates.relu` and `Ball.support` refuse.
    """
    if len(nu) != len(pieces) or len(layers) != len(pieces) - 1:
        raise ValueError(
            f"expected {len(pieces)} multipliers and {len(pieces) - 1} bounds, "
            f"got {len(nu)} and {len(layers)}"
        )
    r = nu[0].shape[1]
    hat = _transposed(pieces[0], nu[0], x.unsqueeze(1)).flatten(0, 1)
    rows = torch.arange(len(x), device=x.device).repeat_interleave(r)
    J = -conjugates.ball(hat, x[rows], ball.subset(rows)).reshape(len(x), r)
    for piece, each in zip(pieces, nu, strict=True):
        J = J - piece.offset(each.flatten(0, 1)).reshape_as(J)
    for piece, layer, each, after in zip(pieces[1:], layers, nu, nu[1:], strict=False):
        lower, upper = (end.unsqueeze(1) for end in layer)
        hat = _transposed(piece, after, lower)
        p, q, lower, upper = torch.broadcast_tensors(-each.reshape_as(hat), hat, lower, upper)
        J = J - conjugates.relu(p, q, lower, upper).flatten(2).sum(2)
    return J


def ascend(
    pieces: Sequence[Affine],
    layers: Sequence[Bounds],
    x: Tensor,
    region: Region,
    c: Tensor,
    slopes: Sequence[Tensor],
    steps: int,
) -> list[Tensor]:
    """Slopes α that make `bound` large, by gradient ascent from `slopes`, each problem for itself.

    Adam with steps that shrink from 0.25 to 0, cut to [0, 1]; the best α of the whole run, so never
    worse than the first. J has kinks, where the ascent may stop a little below the largest.
    layers: (m, *shape) each.  slopes: α of each layer, (m, r, *shape).
    Returns the same shapes, detached.  Raises ValueError for steps < 0.
    Source: Xu et al. 2021 (α-CROWN), here with the layer bounds held fixed.
    """
    if steps < 0:
        raise ValueError(f"expected steps ≥ 0, got {steps!r}")
    if not slopes:
        return []
    with torch.enable_grad():
        best = [alpha.detach().clone() for alpha in slopes]
        alphas = [alpha.clone().requires_grad_() for alpha in best]
        optimiser = torch.optim.Adam(alphas, lr=0.25, betas=(0.5, 0.9))
        schedule = torch.optim.lr_scheduler.PolynomialLR(optimiser, max(1, steps), power=2)
        most = x.new_full(c.shape[:2], -torch.inf)
        for step in range(steps + 1):
            relus = [lines(*pair) for pair in zip(layers, alphas, strict=True)]
            J = bound(pieces, relus, x, region, c)
            better = J.detach() > most
            most = torch.where(better, J.detach(), most)
            for kept, alpha in zip(best, alphas, strict=True):
                kept[better] = alpha.detach()[better]
            if step < steps:
                for alpha, gradient in zip(alphas, torch.autograd.grad(-J.sum(), alphas), strict=True):
                    alpha.grad = gradient
                optimiser.step()
                schedule.step()
                for alpha in alphas:
                    alpha.data.clamp_(0, 1)
    return best


def in_parts(
    pieces: Sequence[Affine],
    relus: Sequence[Lines],
    x: Tensor,
    region: Region,
    sample: Tensor,
    c: Callable[[Tensor], Tensor],
    r: int,
) -> Tensor:
    """`bound` for m problems on n samples, as many at a time as fit.

    relus, x, region: of the n samples.  sample: (m,), which of them each row is about.
    c: takes the numbers of some rows, (k,), and returns their r objectives each, (k, r, *shape_out).
    Returns (m, r).
    """
    found = [x.new_empty(0, r)]
    for rows in runs(len(sample), r * width(pieces), x.device):
        i = sample[rows]
        here = [Lines(*(ends[i] for ends in relu)) for relu in relus]
        found.append(bound(pieces, here, x[i], region[i], c(rows)))
    return torch.cat(found)


def _transposed(piece: Affine, nu: Tensor, like: Tensor) -> Tensor:
    """Wᵀν for every problem, in the shape of one sample of `like` (m, 1, *shape)."""
    return piece.transposed(nu.flatten(0, 1)).reshape(*nu.shape[:2], *like.shape[2:])
