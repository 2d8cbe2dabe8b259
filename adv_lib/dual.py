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

import math
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


def multipliers(
    pieces: Sequence[Affine],
    relus: Sequence[Lines],
    c: Tensor,
    betas: Sequence[Tensor] | None = None,
) -> tuple[list[Tensor], list[Tensor]]:
    """ν_1, …, ν_D by one backward pass: ν_D = −c, and ν_i = u/(u − l) [ν̂_{i+1}]₊ − α [ν̂_{i+1}]₋ + β_i.

    The weights transposed, and in place of each ReLU another piecewise linear function: a dual network.
    pieces: D affine pieces.  relus: the lines of the D − 1 layers of ReLUs.  c: (m, r, *shape_out).
    betas: of each layer of ReLUs, (m, r, *shape): ≥ 0 where a unit has been put on, ≤ 0 where it has
           been put off, 0 for all others (`branch`). None: no unit has.
    Returns ν_1, …, ν_D and ν̂_2, …, ν̂_D, each like the units to which it belongs.
    """
    nu, hats = [-c], []
    betas = [0.0] * len(relus) if betas is None else betas
    for piece, relu, beta in zip(reversed(pieces[1:]), reversed(relus), reversed(betas), strict=True):
        hats.insert(0, _transposed(piece, nu[0], relu.left))
        nu.insert(0, torch.where(hats[0] > 0, relu.upper, relu.lower) * hats[0] + beta)
    return nu, hats


def bound(
    pieces: Sequence[Affine],
    relus: Sequence[Lines],
    x: Tensor,
    region: Region,
    c: Tensor,
    betas: Sequence[Tensor] | None = None,
) -> Tensor:
    """J at the multipliers of the backward pass: a lower bound on cᵀa_D over δ ∈ Δ(x).

    −Σ_i ν_iᵀb_i − I*_{x+Δ}(ν̂_1) + Σ_{i, unstable} l[ν_i]₊.
    x: (m, *shape).  region: Δ(x), that is `ball.region(x)`.  c: (m, r, *shape_out), in any units.
    betas: as in `multipliers`; with them, over the δ of the branch only.
    Returns (m, r), in the units of cᵀa_D; differentiable in the weights, the lines, c and betas.
    Source: Wong & Kolter 2018, eq. (5) to (8); Wang et al. 2021, Theorem 3.1 (betas).
    """
    nu, _ = multipliers(pieces, relus, c, betas)
    hat = _transposed(pieces[0], nu[0], x.unsqueeze(1)).flatten(2)
    J = -(hat @ x.flatten(1).unsqueeze(2)).squeeze(2) - region.support(hat)
    for piece, each in zip(pieces, nu, strict=True):
        J = J - piece.offset(each.flatten(0, 1)).reshape_as(J)
    for relu, each in zip(relus, nu, strict=False):
        J = J + (relu.left * each.clamp(min=0)).flatten(2).sum(2)
    return J


def branch(layers: Sequence[Bounds], phases: Sequence[Tensor]) -> list[Bounds]:
    """The layer bounds of a branch: l ≥ 0 for units that are put on, u ≤ 0 for those put off.

    layers: (m, *shape) each.  phases: like them, 1 where a unit is put on, −1 off, 0 for all others.
    """
    return [
        Bounds(torch.where(s > 0, l.clamp(min=0), l), torch.where(s < 0, u.clamp(max=0), u))
        for (l, u), s in zip(layers, phases, strict=True)
    ]


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


class Ascent(NamedTuple):
    """Where an ascent has got to, for m samples with r problems each.

    value:  J, (m, r).
    slopes, betas: α and β of each layer of ReLUs, (m, r, *shape).
    hats:   ν̂, what the pass sends back to these units, (m, r, *shape).
    delta:  the δ ∈ Δ(x) at which the linear function that the pass ends in is smallest, (m, r, d).
    """

    value: Tensor
    slopes: list[Tensor]
    betas: list[Tensor]
    hats: list[Tensor]
    delta: Tensor


def ascend(
    pieces: Sequence[Affine],
    layers: Sequence[Bounds],
    x: Tensor,
    region: Region,
    c: Tensor,
    slopes: Sequence[Tensor],
    steps: int,
    phases: Sequence[Tensor] | None = None,
    betas: Sequence[Tensor] | None = None,
    enough: Tensor | float = math.inf,
) -> Ascent:
    """Slopes α and, where units are split, β that make J large, each problem for itself.

    J is cᵀa_D − Σ_i β_iᵀa_i at one point: at the δ where the linear function is smallest that the
    backward pass ends in, and on from there along the lines that it has chosen. So a forward pass finds
    the gradients, ∂J/∂α = a [ν̂]₋ and ∂J/∂β = −a. Adam with steps that shrink from 0.25 to 0, for β
    times the largest |ν̂| of the layer, cut to what is allowed; the best of the whole run, so never
    worse than the first. J has kinks, where the ascent may stop a little below the largest.

    layers: (m, *shape) each; those of the branch, as `branch` makes them.  slopes: (m, r, *shape).
    phases: as in `branch`, (m, r, *shape) each; None: no unit is split.
    betas: to begin with, like phases; None for 0.
    enough: a problem whose J is above this goes no further, a number or (m, r).
    Returns the best, detached.  Raises ValueError for steps < 0.
    Source: Xu et al. 2021 (α); Wang et al. 2021, §3.2 (β); here with the layer bounds held fixed.
    """
    if steps < 0:
        raise ValueError(f"expected steps ≥ 0, got {steps!r}")
    with torch.no_grad():
        relus = [lines(*pair) for pair in zip(layers, slopes, strict=True)]
        alphas = [relu.lower.expand_as(alpha).clone() for relu, alpha in zip(relus, slopes, strict=True)]
        phases = [torch.zeros_like(alpha) for alpha in alphas] if phases is None else phases
        betas = [torch.zeros_like(alpha) for alpha in alphas] if betas is None else betas
        best, a = _there_and_back(
            pieces, relus, x, region, c, [alpha.clone() for alpha in alphas], betas
        )
        if not relus:
            return best
        here, free = best, [(relu.left < 0).to(x) for relu in relus]
        units = [_largest(hat) for hat in best.hats]
        bs = [beta / unit for beta, unit in zip(betas, units, strict=True)]
        moments = [(torch.zeros_like(each), torch.zeros_like(each)) for each in [*alphas, *bs]]
        for step in range(steps):
            if bool((best.value > enough).all()):
                break
            uphill = [
                pre * (-hat).clamp(min=0) * may
                for pre, hat, may in zip(a, here.hats, free, strict=False)
            ]
            uphill += [-pre * unit for pre, unit in zip(a, units, strict=False)]
            rate = 0.25 * (1 - step / steps) ** 2
            for each, gradient, (mean, square) in zip([*alphas, *bs], uphill, moments, strict=True):
                _adam(each, gradient, mean, square, rate, step + 1)
            for alpha, b, phase in zip(alphas, bs, phases, strict=True):
                alpha.clamp_(0, 1)
                b.copy_(phase * (phase * b).clamp(min=0))
            betas = [b * unit for b, unit in zip(bs, units, strict=True)]
            now = [alpha.clone() for alpha in alphas]
            here, a = _there_and_back(pieces, relus, x, region, c, now, betas)
            more = (here.value > best.value) & ~(best.value > enough)  # each stops for itself
            best = _better(best, here, more)
    return best


def forward(
    pieces: Sequence[Affine], relus: Sequence[Lines], x: Tensor, delta: Tensor, hats: Sequence[Tensor]
) -> list[Tensor]:
    """a_1, …, a_D from x + δ along the lines that a backward pass has chosen by the signs of ν̂.

    h = s(a − l) where ν̂ > 0 and h = αa elsewhere.  delta: (m, r, d).  hats: (m, r, *shape) each.
    Returns (m, r, *shape) each. At the δ of the pass, cᵀa_D − Σ_i β_iᵀa_i is J.
    """
    h, found = x.flatten(1).unsqueeze(1) + delta, []
    for i, piece in enumerate(pieces):
        a = piece(h.flatten(0, 1)).unflatten(0, h.shape[:2])
        if i < len(relus):
            a = a.reshape_as(hats[i])
            h = torch.where(hats[i] > 0, relus[i].upper * (a - relus[i].left), relus[i].lower * a)
        found.append(a)
    return found


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


def _there_and_back(
    pieces: Sequence[Affine],
    relus: Sequence[Lines],
    x: Tensor,
    region: Region,
    c: Tensor,
    slopes: Sequence[Tensor],
    betas: Sequence[Tensor],
) -> tuple[Ascent, list[Tensor]]:
    """J by a backward pass and a forward one, which also returns the pre-activations."""
    relus = [relu._replace(lower=alpha) for relu, alpha in zip(relus, slopes, strict=True)]
    nu, hats = multipliers(pieces, relus, c, betas)
    hat = _transposed(pieces[0], nu[0], x.unsqueeze(1)).flatten(2)
    rows = torch.arange(len(x), device=x.device).repeat_interleave(hat.shape[1])
    delta = region[rows].argmax(hat.flatten(0, 1)).view_as(hat)
    a = forward(pieces, relus, x, delta, hats)
    J = (c * a[-1].view_as(c)).flatten(2).sum(2)
    for beta, pre in zip(betas, a, strict=False):
        J = J - (beta * pre).flatten(2).sum(2)
    return Ascent(J, list(slopes), list(betas), hats, delta), a


def _adam(at: Tensor, uphill: Tensor, mean: Tensor, square: Tensor, rate: float, step: int) -> None:
    """One step of Adam upwards, in place, with the decay rates 0.5 and 0.9. Source: Kingma & Ba 2015."""
    mean.mul_(0.5).add_(uphill, alpha=0.5)
    square.mul_(0.9).addcmul_(uphill, uphill, value=0.1)
    size = (square / (1 - 0.9**step)).sqrt_().add_(1e-8)
    at.addcdiv_(mean, size, value=rate / (1 - 0.5**step))


def _better(one: Ascent, other: Ascent, more: Tensor) -> Ascent:
    """Of every problem `other` where it is more, (m, r), and `one` elsewhere."""

    def pick(old: Tensor, new: Tensor) -> Tensor:
        return torch.where(more.reshape(*more.shape, *[1] * (old.ndim - 2)), new, old)

    lists = ([*map(pick, old, new)] for old, new in zip(one[1:4], other[1:4], strict=True))
    return Ascent(pick(one.value, other.value), *lists, pick(one.delta, other.delta))


def _largest(hat: Tensor) -> Tensor:
    """The largest |ν̂| of a layer, (m, r, 1, …); 1 where none is sent back, since β is divided by it."""
    size = hat.abs().flatten(2).amax(2)
    size = torch.where(size > torch.finfo(hat.dtype).tiny ** 0.5, size, 1.0)
    return size.reshape(*size.shape, *[1] * (hat.ndim - 2))


def _transposed(piece: Affine, nu: Tensor, like: Tensor) -> Tensor:
    """Wᵀν for every problem, in the shape of one sample of `like` (m, 1, *shape)."""
    return piece.transposed(nu.flatten(0, 1)).reshape(*nu.shape[:2], *like.shape[2:])
