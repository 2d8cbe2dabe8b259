"""Bounds: what no δ ∈ Δ(x) can do to a network.

An attack shows one δ and so bounds the inner maximum of the loss from below. A relaxation lets the
network do more than it can and bounds the maximum from above. Every method here answers one question,

    margins[i, k] ≤ min over δ ∈ Δ(x_i) of z_{y_i} − z_k,   +∞ at k = y_i,

and a sample is certified where all its margins are positive. Attacks end above the exact minimum
(`exact.margins`), these bounds below it. All are about the network in eval mode (`affine_pieces`),
in x's type or in float64, also under `torch.autocast`. On a GPU, PyTorch rounds what goes into a float32
convolution to 11 bits: ask for more, by `torch.backends.cudnn.allow_tf32 = False`, or use float64.

Three relaxations: intervals forget how units depend on each other; the triangle of each ReLU leaves a
linear program (`relaxation`); and any point of that program's dual is a bound as well, which one
backward pass finds (`dual`). All of them build on bounds l ≤ a ≤ u of the hidden units.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from . import dual, linear, losses
from ._arguments import check_batch, check_bounds, check_labels, check_slopes
from ._given import check_ball
from ._precision import in_its_own_type
from ._work import parallel_map, runs
from .affine import Affine, Bounds, Window, affine_pieces, sight, width
from .relaxation import Array, Layer, relax
from .threat import Ball, Region

METHODS = ("interval", "dual", "crown", "lp")
STEPS = 20  # of the ascents that tighten the bounds of a unit


def interval(piece: Affine, h: Bounds) -> Bounds:
    """What W h + b can be for h between bounds: the smallest and the largest value of every entry.

    l' = [W]₊ l − [W]₋ u + b and u' = [W]₊ u − [W]₋ l + b, here as W c + b ∓ |W| r from the centre c and
    the radius r of [l, u]: two products instead of four. Exact for each entry by itself.
    h: (n, *shape_in).  Returns (n, *shape_out); differentiable.  Source: Gowal et al. 2018, eq. (6).
    """
    middle = piece((h.upper + h.lower) / 2)
    spread = piece.times(piece.weight.abs(), (h.upper - h.lower) / 2)
    return Bounds(middle - spread, middle + spread)


def pre_activations(
    model: nn.Sequential,
    x: Tensor,
    ball: Ball,
    method: str = "interval",
    *,
    jobs: int = -1,
    progress: bool | None = None,
) -> list[Bounds]:
    """lower ≤ a ≤ upper for every hidden unit and all δ ∈ Δ(x): one `Bounds` for each ReLU.

    method: "interval", for any ball, exact in the first layer; of x's type.
            "dual" and "crown": each unit that intervals leave unstable is bounded by two backward passes
            through the layers before it, with the slopes of `dual.SLOPES`, and the better of both bounds
            kept; for any ball, of x's type.
            "lp", for p = ∞: each such unit is minimised and maximised over the triangle relaxation of
            the layers before it; in float64.
    jobs, progress: for "lp", as in `exact.margins`.
    All but "lp" are differentiable in the weights, not in x.
    Raises ValueError for another method, for p ≠ ∞ with "lp", and what `affine_pieces` and `Ball` raise.
    Source: Gowal et al. 2018 (intervals); Wong & Kolter 2018, Algorithm 1; Zhang et al. 2018 ("crown").
    """
    pieces = _pieces(model, x, method)
    if method != "lp":
        parts = _batches(pieces, x, ball)
        layers = zip(*(_layers(pieces, *part, method) for _, *part in parts), strict=True)
        return [Bounds(*map(torch.cat, zip(*layer, strict=True))) for layer in layers]
    samples = parallel_map(_tightened, problems(pieces, x, ball), jobs, progress)
    found = []
    for piece, layer in zip(pieces, zip(*samples, strict=True), strict=False):
        ends = torch.as_tensor(np.array(layer)).to(x.device)  # (n, 2, units)
        found.append(Bounds(*(end.reshape(len(x), *piece.shape_out) for end in ends.unbind(1))))
    return found


@in_its_own_type
def margins(
    model: nn.Sequential,
    x: Tensor,
    y: Tensor,
    ball: Ball,
    method: str = "interval",
    *,
    layer_bounds: Sequence[Bounds] | None = None,
    slopes: Sequence[Tensor] | None = None,
    jobs: int = -1,
    progress: bool | None = None,
) -> Tensor:
    """A lower bound on z_y − z_k over δ ∈ Δ(x), for every class k: (n, K), +∞ at k = y.

    method: "interval", for any ball, of x's type: intervals up to the last hidden layer, then
            (w_y − w_k)ᵀh + b_y − b_k is minimised over its box at once (elision of the last layer).
            "dual" and "crown": one backward pass from each z_y − z_k [`dual.bound`], with the slopes of
            `dual.SLOPES`; for any ball, of x's type.
            "lp", for p = ∞: the minimum over the triangle relaxation, a linear program; in float64.
    layer_bounds: the pre-activation bounds to build on; None means those of the same method.
    slopes: for "dual" and "crown", the lower slope α ∈ [0, 1] of every unstable unit in the pass from
            the margins: for each ReLU (n, *shape), or (n, K, *shape) with one for each class, as
            `best_slopes` returns them. None means those of the method.
    jobs, progress: for "lp", as in `exact.margins`.
    All but "lp" are differentiable in the weights, in layer_bounds and in slopes, not in x.
    Exact for a network without a ReLU. Raises ValueError for another method, labels, layer_bounds or
    slopes that do not fit, p ≠ ∞ with "lp", and what `affine_pieces` and `Ball` raise.
    Source: Gowal et al. 2018, §3 (elision); Wong & Kolter 2018, eq. (4) (the program) and Theorem 1 (its
    dual); Zhang et al. 2018 ("crown").
    """
    pieces = _pieces(model, x, method)
    check_labels(pieces, x, y)
    check_bounds(pieces, x, layer_bounds)
    check_slopes(pieces, x, method, slopes)
    if method == "lp":
        given = [None] * len(x) if layer_bounds is None else _rows(layer_bounds, len(x))
        samples = zip(problems(pieces, x, ball), y.tolist(), given, strict=True)
        tasks = [(*problem, label, bounds) for problem, label, bounds in samples]
        return torch.tensor(
            parallel_map(_lp_margins, tasks, jobs, progress), dtype=torch.float64, device=x.device
        )
    if len(pieces) == 1:
        return linear.margins(*pieces[0].matrix(), x, y, ball)
    found = []
    for rows, *part in _batches(pieces, x, ball):
        given = layer_bounds is not None
        layers = _some(layer_bounds, rows, x) if given else _layers(pieces, *part, method)
        if method == "interval":
            found.append(_elided(pieces[-1], y[rows], layers[-1]))
        else:
            given = slopes is not None
            alphas = [alpha[rows].to(x) for alpha in slopes] if given else [method] * len(layers)
            found.append(_dual_margins(pieces, *part, y[rows], layers, alphas))
    return torch.cat(found)


def best_slopes(
    model: nn.Sequential,
    x: Tensor,
    y: Tensor,
    ball: Ball,
    *,
    layer_bounds: Sequence[Bounds] | None = None,
    steps: int = 20,
) -> list[Tensor]:
    """The lower slopes α for `margins`, made better by gradient ascent: (n, K, *shape) for each ReLU.

    Every class of every sample has its own. The ascent begins at the slopes of "crown" and keeps the
    best that it meets, so margins with these slopes and the same layer_bounds are never smaller.
    layer_bounds: as in `margins`, None for those of "crown"; held fixed.  steps: of the ascent, ≥ 0.
    Raises ValueError for steps < 0, and what `margins` raises.
    Source: Xu et al. 2021, without the optimisation of the layer bounds.
    """
    with torch.inference_mode(False), torch.no_grad():  # what is made here can have gradients
        pieces = [piece.detach() for piece in _pieces(model, x, "crown")]
        check_labels(pieces, x, y)
        check_bounds(pieces, x, layer_bounds)
        K, x, parts = math.prod(pieces[-1].shape_out), x.detach().clone(), []
        layers = pre_activations(model, x, ball, "crown") if layer_bounds is None else layer_bounds
        for rows in runs(len(x), K * width(pieces), x.device):
            given = _some(layers, rows, x)
            start = [dual.lines(pair, "crown").lower.repeat_interleave(K, 1) for pair in given]
            region, c = ball.subset(rows).region(x[rows]), _towards(y[rows], K).to(x)
            parts.append(dual.ascend(pieces, given, x[rows], region, c, start, steps).slopes)
    return [torch.cat(layer) for layer in zip(*parts, strict=True)]


def tightened(
    pieces: Sequence[Affine], layers: Sequence[Bounds], x: Tensor, region: Region
) -> list[Bounds]:
    """Pre-activation bounds with slopes of their own for every unit that is still unstable.

    From the second layer of ReLUs on: two ascents a unit (`dual.ascend`), over the layers before, as
    they are by then.  layers, x, region: of n samples.
    Returns bounds like `layers`, none of them wider.
    Source: Xu et al. 2021 (intermediate bounds).
    """
    found = list(layers[:1])
    for depth in range(1, len(layers)):
        layer = interval(pieces[depth], found[-1].relu())
        lower = layer.lower.maximum(layers[depth].lower).flatten(1)
        upper = layer.upper.minimum(layers[depth].upper).flatten(1)
        sample, unit = ((lower < 0) & (upper > 0)).nonzero(as_tuple=True)
        smaller, windows, *place, row, channel = _by_places(pieces[: depth + 1], x, region, sample, unit)
        known = (
            [
                Bounds(*(window.of(end, outside=-1.0) for end in pair))
                for window, pair in zip(windows[1:], found, strict=True)
            ]
            if windows
            else found
        )
        for part in runs(len(unit), 2 * width(smaller), x.device):
            i, j, at = sample[part], unit[part], row[part]
            one = F.one_hot(channel[part], math.prod(smaller[-1].shape_out)).to(x)
            here = [Bounds(low[at], high[at]) for low, high in known]
            start = [
                dual.lines(pair, "crown").lower.expand(-1, 2, *pair.lower.shape[1:]) for pair in here
            ]
            problem = *(each[at] for each in place), torch.stack([one, -one], 1)
            least, most = dual.ascend(smaller, here, *problem, start, STEPS).value.unbind(1)
            lower[i, j] = least.maximum(lower[i, j])
            upper[i, j] = (-most).minimum(upper[i, j]).maximum(lower[i, j])
        found.append(Bounds(lower.reshape_as(layer.lower), upper.reshape_as(layer.upper)))
    return found


def robust_loss(
    model: nn.Sequential,
    x: Tensor,
    y: Tensor,
    ball: Ball,
    method: str = "dual",
    loss: Callable[[Tensor, Tensor], Tensor] = losses.cross_entropy,
) -> Tensor:
    """An upper bound on max over δ ∈ Δ(x) of loss(model(x + δ), y): the loss of `losses.worst_logits`.

    method: as in `margins`, but not "lp".  loss: (z (n, K), y (n,)) → (n,), any that does not change
            when all logits move together and does not fall when z_y falls or another logit rises.
    Returns (n,); differentiable in the weights, for training.  Raises ValueError as `margins` does.
    Source: Wong & Kolter 2018, Theorem 2.
    """
    _check_method(method, tuple(m for m in METHODS if m != "lp"))
    return loss(losses.worst_logits(margins(model, x, y, ball, method)), y)


def problems(pieces: Sequence[Affine], x: Tensor, ball: Ball) -> list[tuple[list[Layer], Array, Array]]:
    """Every sample as `relaxation` takes it: the layers written out, the box [x − ε, x + ε] ∩ [lo, hi].

    In float64 on the CPU. Raises ValueError for p ≠ ∞.
    """
    check_ball(ball)
    if ball.p != math.inf:
        raise ValueError(f"linear and integer programs are for p = math.inf, got p = {ball.p!r}")
    layers = [(_numpy(W), _numpy(b)) for W, b in (piece.matrix() for piece in pieces)]
    rows = x.detach().double()
    region = ball.region(rows)
    ends = rows.flatten(1) + region.low, rows.flatten(1) + region.high
    return [(layers, lower, upper) for lower, upper in zip(*map(_numpy, ends), strict=True)]


def _tightened(layers: Sequence[Layer], lower: Array, upper: Array) -> list[tuple[Array, Array]]:
    return relax(layers, lower, upper)[1]


def _lp_margins(
    layers: Sequence[Layer],
    lower: Array,
    upper: Array,
    y: int,
    bounds: Sequence[tuple[Array, Array]] | None,
) -> list[float]:
    relaxation, _ = relax(layers, lower, upper, bounds)
    W, b = layers[-1]
    others = (k for k in range(len(W)) if k != y)
    least = {k: relaxation.minimise(W[y] - W[k], b[y] - b[k]).bound for k in others}
    return [least.get(k, math.inf) for k in range(len(W))]


def _layers(pieces: Sequence[Affine], x: Tensor, ball: Ball, method: str) -> list[Bounds]:
    """The pre-activation bounds of all hidden layers, for a batch that fits into memory."""
    found, relus = [], []
    for depth, piece in enumerate(pieces[:-1]):
        layer = interval(piece, found[-1].relu()) if found else _first(piece, x, ball)
        if method in dual.SLOPES:
            layer = _tighten(pieces[: depth + 1], relus, x, ball, layer) if found else layer
            relus.append(dual.lines(layer, method))
        found.append(layer)
    return found


def _tighten(
    pieces: Sequence[Affine], relus: Sequence[dual.Lines], x: Tensor, ball: Ball, layer: Bounds
) -> Bounds:
    """The bounds of the last piece, and by its dual network better ones where a unit is unstable."""
    lower, upper = (end.flatten(1) for end in layer)
    sample, unit = ((lower < 0) & (upper > 0)).nonzero(as_tuple=True)

    pieces, windows, x, region, row, channel = _by_places(pieces, x, ball.region(x), sample, unit)
    if windows:
        relus = [
            dual.Lines(*(window.of(line.squeeze(1)).unsqueeze(1) for line in relu))
            for window, relu in zip(windows[1:], relus, strict=True)
        ]
    parallel, found = all(torch.equal(relu.lower, relu.upper) for relu in relus), [x.new_empty(0, 2)]
    for part in runs(len(row), (1 if parallel else 2) * width(pieces), x.device):
        i, c = row[part], F.one_hot(channel[part, None], math.prod(pieces[-1].shape_out)).to(x)
        problem = pieces, [dual.Lines(*(line[i] for line in relu)) for relu in relus], x[i], region[i]
        if parallel:
            found.append(_both_ends(*problem, c))
        else:
            found.append(dual.bound(*problem, torch.cat([c, -c], 1)))
    least, most = torch.cat(found).unbind(1)
    most = -most
    lower = lower.index_put((sample, unit), least.maximum(lower[sample, unit]))
    upper = upper.index_put((sample, unit), most.minimum(upper[sample, unit])).maximum(lower)
    return Bounds(lower.reshape_as(layer.lower), upper.reshape_as(layer.upper))


def _both_ends(
    pieces: Sequence[Affine], relus: Sequence[dual.Lines], x: Tensor, region: Region, c: Tensor
) -> Tensor:
    """`dual.bound` for c and for −c, (m, 2), by one backward pass, where all lines are parallel.

    The pass is linear then: ν for −c is minus that for c.  c: (m, 1, *shape_out).
    """
    nu = [each.squeeze(1) for each in dual.multipliers(pieces, relus, c)[0]]
    hat = pieces[0].transposed(nu[0]).flatten(1)
    here = (hat * x.flatten(1)).sum(1)
    for piece, each in zip(pieces, nu, strict=True):
        here = here + piece.offset(each)
    J = torch.stack([-here, here], 1) - region.support(torch.stack([hat, -hat], 1))
    for relu, each in zip(relus, nu, strict=False):
        left, each = relu.left.flatten(1), each.flatten(1)
        sides = (left * each.clamp(min=0)).sum(1), -(left * each.clamp(max=0)).sum(1)
        J = J + torch.stack(sides, 1)
    return J


def _by_places(
    pieces: Sequence[Affine], x: Tensor, region: Region, sample: Tensor, unit: Tensor
) -> tuple[Sequence[Affine], list[Window], Tensor, Region, Tensor, Tensor]:
    """The same units in what they see of the network: each place of an image is a sample of its own."""
    smaller, windows = sight(pieces)
    if not windows:
        return pieces, windows, x, region, sample, unit
    places = math.prod(windows[0].places)

    def look(rows: Tensor) -> Tensor:
        return windows[0].of(rows.reshape(x.shape))

    ends = [
        None if end is None else look(end).flatten(1) for end in (region.low, region.high, region.scale)
    ]
    inside = Region(region.p, region.eps.repeat_interleave(places, 0), *ends)
    return smaller, windows, look(x), inside, sample * places + unit % places, unit // places


def _dual_margins(
    pieces: Sequence[Affine],
    x: Tensor,
    ball: Ball,
    y: Tensor,
    layers: Sequence[Bounds],
    slopes: Sequence[Tensor | str],
) -> Tensor:
    K = math.prod(pieces[-1].shape_out)
    c = _towards(y, K).to(x)
    relus = [dual.lines(*pair) for pair in zip(layers, slopes, strict=True)]
    sample = torch.arange(len(x), device=x.device)
    least = dual.in_parts(pieces, relus, x, ball.region(x), sample, lambda rows: c[rows], K)
    return least.masked_fill(F.one_hot(y, K).bool(), math.inf)


def _elided(piece: Affine, y: Tensor, layer: Bounds) -> Tensor:
    W, b = piece.matrix()
    h = layer.relu()
    centre, radius = ((h.upper + h.lower) / 2).flatten(1), ((h.upper - h.lower) / 2).flatten(1)
    rows, offset = W[y].unsqueeze(1) - W, b[y].unsqueeze(1) - b  # (n, K, m) and (n, K): towards y from k
    least = torch.einsum("nkm,nm->nk", rows, centre) - torch.einsum("nkm,nm->nk", rows.abs(), radius)
    return (least + offset).masked_fill(F.one_hot(y, len(W)).bool(), math.inf)


def _towards(y: Tensor, K: int) -> Tensor:
    """e_y − e_k for every class k: (n, K, K)."""
    one = torch.eye(K, dtype=torch.int64, device=y.device)
    return one[y].unsqueeze(1) - one


def _batches(pieces: Sequence[Affine], x: Tensor, ball: Ball) -> Iterator[tuple[Tensor, Tensor, Ball]]:
    """Which samples, the samples and their balls, as many at a time as fit."""
    check_ball(ball)
    ball.radii(x)  # raises for an ε that no batch by itself would notice
    for rows in runs(len(x), width(pieces), x.device):
        yield rows, x[rows], ball.subset(rows)


def _some(layers: Sequence[Bounds], rows: Tensor, x: Tensor) -> list[Bounds]:
    """The bounds of some of the samples, in the type of x."""
    return [Bounds(lower[rows].to(x), upper[rows].to(x)) for lower, upper in layers]


def _first(piece: Affine, x: Tensor, ball: Ball) -> Bounds:
    """The exact pre-activation bounds of the first layer: w_jᵀx + b_j ∓ the support function of ±w_j."""
    region = ball.region(x)
    if ball.p == math.inf:
        rows = x.flatten(1)
        return interval(piece, Bounds(rows + region.low, rows + region.high))
    W = piece.matrix()[0].reshape(-1, *x.shape[1:])

    def reach(W: Tensor) -> Tensor:
        samples = torch.arange(len(x), device=x.device).split(1)
        rows = [ball.subset(i).support(W, x[i].expand_as(W)) for i in samples]
        return torch.stack(rows).reshape(len(x), *piece.shape_out)

    here = piece(x)
    return Bounds(here - reach(-W), here + reach(W))


def _check_method(method: str, methods: Sequence[str] = METHODS) -> None:
    if method not in methods:
        raise ValueError(f"expected one of the methods {methods}, got {method!r}")


def _pieces(model: nn.Sequential, x: Tensor, method: str) -> list[Affine]:
    _check_method(method)
    check_batch(x)
    return affine_pieces(model, x.shape[1:], x.dtype)


def _rows(bounds: Sequence[Bounds], n: int) -> list[list[tuple[Array, Array]]]:
    """The bounds of every sample by itself, as `relaxation` takes them."""
    flat = [tuple(_numpy(end.flatten(1)) for end in layer) for layer in bounds]
    return [[(lower[i], upper[i]) for lower, upper in flat] for i in range(n)]


def _numpy(tensor: Tensor) -> Array:
    return tensor.detach().double().cpu().numpy()
