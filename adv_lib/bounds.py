"""Bounds: what no δ ∈ Δ(x) can do to a network.

An attack shows one δ and so bounds the inner maximum of the loss from below. A relaxation lets the
network do more than it can and bounds the maximum from above. Every method here answers one question,

    margins[i, k] ≤ min over δ ∈ Δ(x_i) of z_{y_i} − z_k,   +∞ at k = y_i,

and a sample is certified where all its margins are positive. Attacks end above the exact minimum
(`exact.margins`), these bounds below it.

Networks are `nn.Sequential`s of Linear, Conv2d, Flatten and ReLU: affine pieces a = W h + b with
h = max(a, 0) between them. a is the pre-activation of a hidden unit, h its activation.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from . import linear
from .relaxation import Array, Layer, relax
from .threat import Ball

METHODS = ("interval", "lp")


class Bounds(NamedTuple):
    """lower ≤ a ≤ upper for every unit of a layer: (n, *shape) each, in the layer's own shape.

    (Flat, where affine layers were multiplied into one piece.)
    """

    lower: Tensor
    upper: Tensor


@dataclass(frozen=True, eq=False)
class Affine:
    """One affine piece of a network: a = W h + b, for a Linear or a Conv2d.

    weight, bias: the layer's own, so gradients flow to them.  shape_in, shape_out: of one sample.
    conv: stride, padding, dilation and groups of a Conv2d; None for a Linear.
    """

    weight: Tensor
    bias: Tensor
    shape_in: tuple[int, ...]
    shape_out: tuple[int, ...]
    conv: dict | None = None

    def __call__(self, h: Tensor) -> Tensor:
        """W h + b.  h: (n, *shape_in) or flat.  Returns (n, *shape_out)."""
        return self.times(self.weight, h) + (
            self.bias if self.conv is None else self.bias[:, None, None]
        )

    def times(self, weight: Tensor, h: Tensor) -> Tensor:
        """W h, or with another weight of the same shape, such as |W|, that times h."""
        h = h.reshape(len(h), *self.shape_in)
        return F.linear(h, weight) if self.conv is None else F.conv2d(h, weight, **self.conv)

    def matrix(self) -> tuple[Tensor, Tensor]:
        """W and b written out: (out, in) and (out,). A Conv2d is a matrix too, mostly of zeros."""
        zero = self.weight.new_zeros(1, math.prod(self.shape_in))
        one = torch.eye(zero.shape[1], dtype=zero.dtype, device=zero.device)
        return self.times(self.weight, one).flatten(1).T, self(zero).flatten()


def affine_pieces(
    model: nn.Sequential, shape: Sequence[int], dtype: torch.dtype | None = None
) -> list[Affine]:
    """The network as affine pieces, with a ReLU after each but the last.

    shape: of one sample, such as (1, 28, 28).  dtype: to convert the weights to; None keeps theirs.
    Sequentials may be nested. Affine layers without a ReLU between them are multiplied into one piece;
    where a ReLU has none before it, or the last has none after it, that piece is the identity.
    Raises ValueError that names the layer for any other kind, for one that does not fit what comes to
    it, and for weights that are not finite.
    """
    shape = tuple(shape)
    groups: list[tuple[tuple[int, ...], list[Affine]]] = [(shape, [])]  # between one ReLU and the next
    for name, layer in _leaves(model):
        forward = type(layer).forward  # a subclass may do something else
        if forward is nn.Flatten.forward and layer.start_dim == 1 and layer.end_dim in (-1, len(shape)):
            shape = (math.prod(shape),)
        elif forward is nn.ReLU.forward:
            groups.append((shape, []))
        elif forward in (nn.Linear.forward, nn.Conv2d.forward):
            piece = _affine(name, layer, shape, dtype)
            groups[-1][1].append(piece)
            shape = piece.shape_out
        else:
            raise ValueError(
                "expected a Sequential of Linear, Conv2d, Flatten (of all axes but the first) and ReLU, "
                f"got layer {name!r}: {layer}"
            )
    like = next((p.detach() for p in model.parameters()), torch.empty(0)).to(dtype)
    return [reduce(_product, pieces or [_identity(width, like)]) for width, pieces in groups]


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

    method: "interval", for any ball, exact in the first layer; like x and differentiable. "lp", for
            p = ∞: from the second layer on, each unit that intervals leave unstable is minimised and
            maximised over the triangle relaxation of the layers before it; in float64.
    jobs, progress: for "lp", as in `each`.
    Raises ValueError for another method, for p ≠ ∞ with "lp", and what `affine_pieces` and `Ball` raise.
    """
    pieces = _pieces(model, x, method)
    found: list[Bounds] = []
    if method == "lp":
        samples = each(_tightened, problems(pieces, x, ball), jobs, progress)
        for piece, layer in zip(pieces, zip(*samples, strict=True), strict=False):
            ends = torch.as_tensor(np.array(layer)).to(x.device)  # (n, 2, units)
            found.append(Bounds(*(end.reshape(len(x), *piece.shape_out) for end in ends.unbind(1))))
        return found
    for piece in pieces[:-1]:
        found.append(interval(piece, _relu(found[-1])) if found else _first(piece, x, ball))
    return found


def margins(
    model: nn.Sequential,
    x: Tensor,
    y: Tensor,
    ball: Ball,
    method: str = "interval",
    *,
    layer_bounds: Sequence[Bounds] | None = None,
    jobs: int = -1,
    progress: bool | None = None,
) -> Tensor:
    """A lower bound on z_y − z_k over δ ∈ Δ(x), for every class k: (n, K), +∞ at k = y.

    method: "interval", for any ball; like x and differentiable: intervals up to the last hidden layer,
            then (w_y − w_k)ᵀh + b_y − b_k is minimised over its box at once (elision of the last layer).
            "lp", for p = ∞: the minimum over the triangle relaxation, a linear program; in float64.
    layer_bounds: the pre-activation bounds to build on; None means those of the same method.
    jobs, progress: for "lp", as in `each`.
    Exact for a network without a ReLU. Raises ValueError for another method, labels or layer_bounds that
    do not fit, p ≠ ∞ with "lp", and what `affine_pieces` and `Ball` raise.
    Source: Gowal et al. 2018, §3 (elision); Wong & Kolter 2018, eq. (4) (the program).
    """
    pieces = _pieces(model, x, method)
    check_labels(pieces, x, y)
    _check_bounds(pieces, x, layer_bounds)
    if method == "lp":
        given = [None] * len(x) if layer_bounds is None else _rows(layer_bounds, len(x))
        samples = zip(problems(pieces, x, ball), y.tolist(), given, strict=True)
        tasks = [(*problem, label, bounds) for problem, label, bounds in samples]
        return torch.tensor(
            each(_lp_margins, tasks, jobs, progress), dtype=torch.float64, device=x.device
        )
    W, b = pieces[-1].matrix()
    if len(pieces) == 1:
        return linear.margins(W, b, x, y, ball)
    h = _relu((layer_bounds or pre_activations(model, x, ball))[-1])
    h = Bounds(h.lower.to(W), h.upper.to(W))
    centre, radius = ((h.upper + h.lower) / 2).flatten(1), ((h.upper - h.lower) / 2).flatten(1)
    rows, offset = W[y].unsqueeze(1) - W, b[y].unsqueeze(1) - b  # (n, K, m) and (n, K): towards y from k
    least = torch.einsum("nkm,nm->nk", rows, centre) - torch.einsum("nkm,nm->nk", rows.abs(), radius)
    return (least + offset).masked_fill(F.one_hot(y, len(W)).bool(), math.inf)


def problems(pieces: Sequence[Affine], x: Tensor, ball: Ball) -> list[tuple[list[Layer], Array, Array]]:
    """Every sample as `relaxation` takes it: the layers written out, the box [x − ε, x + ε] ∩ [lo, hi].

    In float64 on the CPU. Raises ValueError for p ≠ ∞.
    """
    if ball.p != math.inf:
        raise ValueError(f"linear and integer programs are for p = math.inf, got p = {ball.p!r}")
    layers = [(_numpy(W), _numpy(b)) for W, b in (piece.matrix() for piece in pieces)]
    rows = x.detach().double()
    region = ball.at(rows)
    ends = rows.flatten(1) + region.low, rows.flatten(1) + region.high
    return [(layers, lower, upper) for lower, upper in zip(*map(_numpy, ends), strict=True)]


def each(
    function: Callable, tasks: Sequence[tuple], jobs: int = -1, progress: bool | None = None
) -> list:
    """[function(*task) for task in tasks], several at a time.

    jobs: how many, as joblib's n_jobs: −1 means one for each core. They are threads, unless a
          `joblib.parallel_config` around the call names processes or a cluster.
    progress: whether to show a bar on stdout; None means only in a terminal.
    """
    from joblib import Parallel, delayed
    from tqdm import tqdm

    parallel = Parallel(n_jobs=jobs, prefer="threads", return_as="generator")
    results = parallel(delayed(function)(*task) for task in tasks)
    hidden = None if progress is None else not progress
    return list(tqdm(results, total=len(tasks), disable=hidden, file=sys.stdout, leave=False))


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


def _first(piece: Affine, x: Tensor, ball: Ball) -> Bounds:
    """The exact pre-activation bounds of the first layer: w_jᵀx + b_j ∓ the support function of ±w_j."""
    region = ball.at(x)
    if ball.p == math.inf:
        rows = x.flatten(1)
        return interval(piece, Bounds(rows + region.low, rows + region.high))
    W, _ = piece.matrix()
    eps = torch.as_tensor(ball.eps, dtype=x.dtype, device=x.device).expand(len(x))

    def reach(W: Tensor) -> Tensor:
        samples = zip(eps, x.flatten(1), strict=True)
        rows = [replace(ball, eps=radius).support(W, row.expand_as(W)) for radius, row in samples]
        return torch.stack(rows).reshape(len(x), *piece.shape_out)

    here = piece(x)
    return Bounds(here - reach(-W), here + reach(W))


def _relu(bounds: Bounds) -> Bounds:
    return Bounds(bounds.lower.clamp(min=0), bounds.upper.clamp(min=0))


def _leaves(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The layers in the order in which they run, by name."""
    if not isinstance(model, nn.Module):
        raise ValueError(f"expected an nn.Sequential, got {type(model).__name__}")
    for name, layer in model.named_modules(remove_duplicate=False):
        if type(layer).forward is not nn.Sequential.forward:
            yield name, layer


def _affine(name: str, layer: nn.Module, shape: tuple[int, ...], dtype: torch.dtype | None) -> Affine:
    weight, bias, conv = layer.weight.to(dtype), layer.bias, None
    bias = weight.new_zeros(len(weight)) if bias is None else bias.to(dtype)
    if isinstance(layer, nn.Conv2d):
        conv = {key: getattr(layer, key) for key in ("stride", "padding", "dilation", "groups")}
        fits = len(shape) == 3 and shape[0] == layer.in_channels and layer.padding_mode == "zeros"
    else:
        fits = shape == (layer.in_features,)
    misfit = f"expected layer {name!r} to fit a sample of shape {shape}, got {layer}"
    if not fits:
        raise ValueError(misfit)
    if not (weight.isfinite().all() and bias.isfinite().all()):
        raise ValueError(f"expected finite weights, got NaN or infinity in layer {name!r}: {layer}")
    piece = Affine(weight, bias, shape, (), conv)
    try:
        return replace(piece, shape_out=tuple(piece(weight.new_zeros(1, *shape)).shape[1:]))
    except RuntimeError as error:  # a kernel that is larger than the image
        raise ValueError(misfit) from error


def _identity(shape: tuple[int, ...], like: Tensor) -> Affine:
    size = math.prod(shape)
    one = torch.eye(size, dtype=like.dtype, device=like.device)
    return Affine(one, one.new_zeros(size), (size,), (size,))


def _product(first: Affine, second: Affine) -> Affine:
    (V, a), (W, b) = first.matrix(), second.matrix()
    return Affine(W @ V, W @ a + b, (V.shape[1],), (len(W),))


def _pieces(model: nn.Sequential, x: Tensor, method: str) -> list[Affine]:
    if method not in METHODS:
        raise ValueError(f"expected one of the methods {METHODS}, got {method!r}")
    check_batch(x)
    return affine_pieces(model, x.shape[1:], x.dtype)


def check_batch(x: Tensor) -> None:
    """Raise ValueError unless x is (n, *shape), floating-point, with at least one sample."""
    if x.ndim < 2 or len(x) == 0 or not x.is_floating_point():
        raise ValueError(
            "expected a floating-point batch (n, *shape) of at least one sample, "
            f"got {x.dtype} {tuple(x.shape)}"
        )


def check_labels(pieces: Sequence[Affine], x: Tensor, y: Tensor) -> None:
    """Raise ValueError unless y is (n,) int64, one class of the network for each sample."""
    K = math.prod(pieces[-1].shape_out)
    if y.shape != x.shape[:1] or y.dtype != torch.int64 or not bool(((y >= 0) & (y < K)).all()):
        raise ValueError(
            f"expected {len(x)} int64 labels from 0 to {K - 1}, got {y.dtype} {tuple(y.shape)} "
            f"with values {y.unique().tolist()[:12]}"
        )


def _check_bounds(pieces: Sequence[Affine], x: Tensor, bounds: Sequence[Bounds] | None) -> None:
    if bounds is None:
        return
    wanted = [(len(x), *piece.shape_out) for piece in pieces[:-1]]
    shapes = [tuple(end.shape) for layer in bounds for end in layer]
    if shapes != [shape for shape in wanted for _ in Bounds._fields]:
        raise ValueError(f"expected one (lower, upper) for each ReLU, of shapes {wanted}, got {shapes}")
    for lower, upper in bounds:
        if not (lower.isfinite().all() and upper.isfinite().all() and (lower <= upper).all()):
            raise ValueError(
                "expected finite lower ≤ upper in every layer, got NaN, infinity or lower > upper"
            )


def _rows(bounds: Sequence[Bounds], n: int) -> list[list[tuple[Array, Array]]]:
    """The bounds of every sample by itself, as `relaxation` takes them."""
    flat = [tuple(_numpy(end.flatten(1)) for end in layer) for layer in bounds]
    return [[(lower[i], upper[i]) for lower, upper in flat] for i in range(n)]


def _numpy(tensor: Tensor) -> Array:
    return tensor.detach().double().cpu().numpy()
