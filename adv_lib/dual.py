"""The dual of the verification problem: a backward pass whose value bounds what any δ can reach.

The relaxed problem is min cᵀa_D over x + δ = h_1, a_i = W_i h_i + b_i, and (a_i, h_{i+1}) in the relaxed
ReLU. Give each equation for a_i a multiplier ν_i. The Lagrangian falls apart into one term for the last
layer, which forces ν_D = −c, one for the input and one for each unit, and the minimum of each is minus
a conjugate. So for any ν_1, …, ν_{D−1}, with ν̂_i = W_iᵀν_i,

    J(ν) = −Σ_i ν_iᵀb_i − I*_{x+Δ}(ν̂_1) − Σ_i I*_S(−ν_i, ν̂_{i+1}) ≤ min cᵀa_D.

`value` is this formula. `multipliers` chooses ν by a backward pass through the network: two lines around
each ReLU, αa ≤ h ≤ s(a − l), turn ν̂_{i+1} into ν_i, and I*_S becomes −l[ν_i]₊. `bound` is J there.
Every function takes a batch of m problems, a row each, with its own x, c and bounds.
Source: Wong & Kolter 2018, Theorem 1, where our a, h, ν_i are ẑ, z, ν_{i+1}.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from . import conjugates
from .affine import Affine, Bounds
from .threat import Ball

BUDGET = 2**21  # numbers in the largest tensor of a backward pass: 8 MB in float32


class Lines(NamedTuple):
    """Two lines around every ReLU of a layer, (m, *shape) each: lower · a ≤ h ≤ upper · (a − left).

    Unstable, l < 0 < u: lower is α ∈ [0, 1], upper is s = u/(u − l), left is l. A unit that is off or on
    has 0 or 1 for both slopes, and left = 0.
    """

    lower: Tensor
    upper: Tensor
    left: Tensor


SLOPES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "dual": lambda l, u: u / (u - l),  # both lines parallel [Wong & Kolter 2018]
    "crown": lambda l, u: (u > -l).to(u),  # the smaller triangle [Zhang et al. 2018]
}


def lines(bounds: Bounds, slopes: Tensor | str) -> Lines:
    """The lines around the ReLUs of a layer with these pre-activation bounds.

    slopes: α for every unit, like the bounds, used where a unit is unstable; or a name in SLOPES.
    Raises ValueError for α outside [0, 1] or of another shape.
    """
    l, u = bounds
    unstable = (l < 0) & (u > 0)
    l, u = torch.where(unstable, l, -1.0), torch.where(unstable, u, 1.0)  # no 0/0 in the gradient
    alpha = SLOPES[slopes](l, u) if isinstance(slopes, str) else slopes
    if alpha.shape != l.shape or not bool(((alpha >= 0) & (alpha <= 1)).all()):
        raise ValueError(
            f"expected slopes of shape {tuple(l.shape)} between 0 and 1, got {tuple(alpha.shape)} "
            f"from {alpha.min():.4g} to {alpha.max():.4g}"
        )
    on = (bounds.lower >= 0).to(l)
    return Lines(
        torch.where(unstable, alpha, on),
        torch.where(unstable, u / (u - l), on),
        torch.where(unstable, l, 0.0),
    )


def multipliers(pieces: Sequence[Affine], relus: Sequence[Lines], c: Tensor) -> list[Tensor]:
    """ν_1, …, ν_D by one backward pass: ν_D = −c, and ν_i = s[ν̂_{i+1}]₊ − α[ν̂_{i+1}]₋.

    The weights transposed, and in place of each ReLU another piecewise linear function: a dual network.
    pieces: D affine pieces.  relus: the lines of the D − 1 layers of ReLUs.  c: (m, *shape_out).
    """
    nu = [-c]
    for piece, relu in zip(reversed(pieces[1:]), reversed(relus), strict=True):
        hat = piece.transposed(nu[0]).reshape_as(relu.upper)
        nu.insert(0, torch.where(hat > 0, relu.upper, relu.lower) * hat)
    return nu


def bound(pieces: Sequence[Affine], relus: Sequence[Lines], x: Tensor, ball: Ball, c: Tensor) -> Tensor:
    """J at the multipliers of the backward pass: a lower bound on cᵀa_D over δ ∈ Δ(x).

    −Σ_i ν_iᵀb_i − I*_{x+Δ}(ν̂_1) + Σ_{i, unstable} l[ν_i]₊.
    x: (m, *shape).  ball: with or without a box.  c: (m, *shape_out), in any units.
    Returns (m,), in those of cᵀa_D; differentiable in the weights, the lines and c.
    Raises ValueError for what `Ball.support` refuses.  Source: Wong & Kolter 2018, eq. (5) to (8).
    """
    nu = multipliers(pieces, relus, c)
    J = -_input_term(pieces, nu, x, ball)
    for piece, each in zip(pieces, nu, strict=True):
        J = J - piece.offset(each)
    for relu, each in zip(relus, nu, strict=False):
        J = J + (relu.left * each.clamp(min=0)).flatten(1).sum(1)
    return J


def value(
    pieces: Sequence[Affine], layers: Sequence[Bounds], x: Tensor, ball: Ball, nu: Sequence[Tensor]
) -> Tensor:
    """J(ν) for any multipliers: −Σ_i ν_iᵀb_i − I*_{x+Δ}(ν̂_1) − Σ_i I*_S(−ν_i, ν̂_{i+1}).

    layers: the pre-activation bounds, (m, *shape) each.  nu: ν_1, …, ν_D, of the shapes of a_1, …, a_D.
    Returns (m,): a lower bound on −ν_Dᵀa_D over δ ∈ Δ(x), whatever ν is; concave and differentiable in
    it. Its largest value is the minimum of the linear program with the same bounds.
    Raises ValueError for what `conjugates.relu` and `Ball.support` refuse.
    """
    J = -_input_term(pieces, nu, x, ball)
    for piece, each in zip(pieces, nu, strict=True):
        J = J - piece.offset(each)
    for piece, (lower, upper), each, after in zip(pieces[1:], layers, nu, nu[1:], strict=False):
        hat = piece.transposed(after).reshape_as(lower)
        J = J - conjugates.relu(-each.reshape_as(lower), hat, lower, upper).flatten(1).sum(1)
    return J


def ascend(
    pieces: Sequence[Affine],
    layers: Sequence[Bounds],
    x: Tensor,
    ball: Ball,
    c: Tensor,
    slopes: Sequence[Tensor],
    steps: int,
) -> list[Tensor]:
    """Slopes α that make `bound` large, by gradient ascent from `slopes`, each row for itself.

    Adam with steps that shrink from 0.25 to 0, cut to [0, 1]; the best α of the whole run, so never
    worse than the first.  slopes: α of each layer, (m, *shape).  Returns the same shapes, detached.
    Source: Xu et al. 2021 (α-CROWN), here with the layer bounds held fixed.
    """
    with torch.enable_grad():
        best = [alpha.detach().clone() for alpha in slopes]
        alphas = [alpha.clone().requires_grad_() for alpha in best]
        optimiser = torch.optim.Adam(alphas, lr=0.25)
        schedule = torch.optim.lr_scheduler.LinearLR(optimiser, 1.0, 0.0, max(1, steps))
        most = x.new_full((len(x),), -torch.inf)
        for step in range(steps + 1):
            relus = [lines(*pair) for pair in zip(layers, alphas, strict=True)]
            J = bound(pieces, relus, x, ball, c)
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
    ball: Ball,
    sample: Tensor,
    c: Callable[[Tensor], Tensor],
) -> Tensor:
    """`bound` for many problems on few samples, as many at a time as fit into BUDGET.

    relus, x, ball: of the n samples.  sample: (m,), the sample of each problem.
    c: takes the numbers of some of the problems, (r,), and returns their objectives (r, *shape_out).
    Returns (m,).
    """
    found = [x.new_empty(0)]
    for rows in runs(len(sample), width(pieces), x.device):
        i = sample[rows]
        here = [Lines(*(ends[i] for ends in relu)) for relu in relus]
        found.append(bound(pieces, here, x[i], ball[i], c(rows)))
    return torch.cat(found)


def width(pieces: Sequence[Affine]) -> int:
    """How many numbers the widest layer of one sample has, the input counted."""
    return max(math.prod(shape) for piece in pieces for shape in (piece.shape_in, piece.shape_out))


def runs(n: int, numbers: int, device: torch.device | None = None) -> Sequence[Tensor]:
    """0, …, n − 1 in runs of as many as fit into BUDGET when each takes this many numbers."""
    return torch.arange(n, device=device).split(max(1, BUDGET // numbers)) if n else ()


def _input_term(pieces: Sequence[Affine], nu: Sequence[Tensor], x: Tensor, ball: Ball) -> Tensor:
    return conjugates.ball(pieces[0].transposed(nu[0]).reshape_as(x), x, ball)
