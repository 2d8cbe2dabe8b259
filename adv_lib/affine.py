"""A ReLU network as affine pieces: a = W h + b, with h = max(a, 0) between them.

Networks are `nn.Sequential`s of Linear, Conv2d, Flatten and ReLU, and of what is affine once the network
is in eval mode: BatchNorm, average pooling, `models.Normalise`, Dropout, Identity. a is the
pre-activation of a hidden unit, h its activation. A bound needs to know no more of a network than this.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from itertools import chain
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules import module

from ._precision import in_its_own_type
from .models import Normalise, evaluating

ACCEPTED = (
    "a Sequential of Linear, Conv2d, BatchNorm1d and 2d, AvgPool2d, AdaptiveAvgPool2d, "
    "models.Normalise, Flatten (of all axes but the first), ReLU, Dropout and Identity"
)
DROPOUTS = (
    nn.Dropout,
    nn.Dropout1d,
    nn.Dropout2d,
    nn.Dropout3d,
    nn.AlphaDropout,
    nn.FeatureAlphaDropout,
)
NOTHING = {layer.forward for layer in (nn.Identity, *DROPOUTS)}  # what they do in eval mode
FEW = 4  # channels for which PyTorch's transposed convolution is slow on a CPU
FOR_ALL_LAYERS = (module._global_forward_hooks, module._global_forward_pre_hooks)


class Bounds(NamedTuple):
    """lower ≤ a ≤ upper for every unit of a layer: (n, *shape) each, in the layer's own shape.

    (Flat, where affine layers were multiplied into one matrix.)
    """

    lower: Tensor
    upper: Tensor

    def relu(self) -> Bounds:
        """The bounds of h = max(a, 0)."""
        return Bounds(self.lower.clamp(min=0), self.upper.clamp(min=0))


@dataclass(frozen=True, eq=False)
class Affine:
    """One affine piece of a network: a = W h + b.

    weight: (out, in) of a Linear, (C, in/groups, height, width) of a Conv2d. In any other shape, (d,),
            (C, 1, 1) or (), it multiplies entry by entry, as BatchNorm does.
    bias: (out,) of a Linear, (C,) or shape_out otherwise.
    Both are the layer's own or made of them, so gradients flow.
    shape_in, shape_out: of one sample.
    conv: stride, padding, dilation and groups of a Conv2d; None for any other.
    """

    weight: Tensor
    bias: Tensor
    shape_in: tuple[int, ...]
    shape_out: tuple[int, ...]
    conv: dict | None = None

    def __call__(self, h: Tensor) -> Tensor:
        """W h + b.  h: (n, *shape_in) or flat.  Returns (n, *shape_out)."""
        return self.times(self.weight, h) + self._image()

    @in_its_own_type
    def times(self, weight: Tensor, h: Tensor) -> Tensor:
        """W h, or with another weight of the same shape, such as |W|, that times h.

        h: (n, *shape_in).  Returns (n, *shape_out).
        """
        h = h.reshape(len(h), *self.shape_in)
        if self.conv is not None:
            return F.conv2d(h, weight, **self.conv)
        return F.linear(h, weight) if weight.ndim == 2 else h * weight

    def detach(self) -> Affine:
        """The same piece, through which no gradient flows."""
        return replace(self, weight=self.weight.detach(), bias=self.bias.detach())

    @in_its_own_type
    def transposed(self, nu: Tensor) -> Tensor:
        """Wᵀν, which sends a vector of outputs back to the inputs.

        nu: (n, *shape_out) or flat.  Returns (n, *shape_in).
        """
        nu = nu.reshape(len(nu), *self.shape_out)
        if self.conv is None:
            return F.linear(nu, self.weight.T) if self.weight.ndim == 2 else nu * self.weight
        whole = self._spread(nu)
        (top, left), (_, height, width) = self._padding(), self.shape_in
        missing = top + height - whole.shape[2], left + width - whole.shape[3]  # what strides skip
        whole = F.pad(whole, (0, max(0, missing[1]), 0, max(0, missing[0])))
        return whole[:, :, top : top + height, left : left + width]

    def _spread(self, nu: Tensor) -> Tensor:
        """Wᵀν of a convolution on the image with all that its kernel reaches around it."""
        conv, kernel, reach = self.conv | {"padding": 0}, self.weight.shape[1:], self._reach()
        stride = _pair(conv["stride"])
        size = tuple(stride[i] * (nu.shape[2 + i] - 1) + reach[i] + 1 for i in (0, 1))
        single = size == tuple(kernel[1:])  # place
        if conv["groups"] > 1 or (kernel[0] > FEW and not single):
            return F.conv_transpose2d(nu, self.weight, **conv)
        patches = self.weight.flatten(1).T @ nu.flatten(2)  # the kernels by what ν is at each place
        if single:
            return patches.reshape(len(nu), *kernel)
        return F.fold(patches, size, kernel[1:], dilation=conv["dilation"], stride=stride)

    @in_its_own_type
    def offset(self, nu: Tensor) -> Tensor:
        """νᵀb: what the offset adds to νᵀ(W h + b).  nu: (n, *shape_out).  Returns (n,)."""
        nu = nu.reshape(len(nu), *self.shape_out)
        if self.bias.ndim == 1 < nu.ndim - 1:
            return nu.flatten(2).sum(2) @ self.bias
        return nu.flatten(1) @ self.bias.flatten()

    def _image(self) -> Tensor:
        """b in a shape that can be added to (n, *shape_out)."""
        return self.bias[:, None, None] if self.bias.ndim == 1 < len(self.shape_out) else self.bias

    def _alike(self) -> Affine | None:
        """The piece with one offset a channel, (C,), if it does the same at every place of an image."""
        if self.conv is None or self.bias.ndim == 1:
            return self if self.conv is not None else None
        one = self.bias[:, :1, :1]
        return replace(self, bias=one.flatten()) if bool((self.bias == one).all()) else None

    def _padding(self) -> Sequence[int]:
        """How many zeros a convolution puts above an image and to its left."""
        padding = self.conv["padding"]
        if padding == "valid":
            return 0, 0
        if padding != "same":
            return padding
        return [reach // 2 for reach in self._reach()]

    def _reach(self) -> Sequence[int]:
        """How far apart the first and the last entry are that a convolution sees at once."""
        size = zip(self.conv["dilation"], self.weight.shape[2:], strict=True)
        return [dilation * (kernel - 1) for dilation, kernel in size]

    def matrix(self) -> tuple[Tensor, Tensor]:
        """W and b written out: (out, in) and (out,). A Conv2d is a matrix too, mostly of zeros."""
        zero = self.weight.new_zeros(1, math.prod(self.shape_in))
        one = torch.eye(zero.shape[1], dtype=zero.dtype, device=zero.device)
        return self.times(self.weight, one).flatten(1).T, self(zero).flatten()


@in_its_own_type
def affine_pieces(
    model: nn.Sequential, shape: Sequence[int], dtype: torch.dtype | None = None
) -> list[Affine]:
    """The network in eval mode as affine pieces, with a ReLU after each but the last.

    BatchNorm is what its running statistics make of it, Dropout nothing, average pooling a convolution.
    shape: of one sample, such as (1, 28, 28).  dtype: to convert the weights to; None keeps theirs.
    Sequentials may be nested. Affine layers without a ReLU between them are multiplied into one piece;
    where a ReLU has none before it, or the last has none after it, that piece is the identity.
    Raises ValueError that names the layer for any other kind, for one that does not fit what comes to
    it, for weights that are not finite, for BatchNorm without running statistics, and for what lets a
    call differ from the weights: a forward hook (`torch.nn.utils.weight_norm` is one, its successor in
    `parametrizations` is not), a forward of its own, another __call__. In the end, the pieces and the
    model must agree at two points.
    """
    if not isinstance(model, nn.Module):
        raise ValueError(f"expected an nn.Sequential, got {type(model).__name__}")
    own, first = _example(model), tuple(shape)
    like, shape = own.to(dtype), first
    groups: list[tuple[tuple[int, ...], list[Affine]]] = [(shape, [])]  # between one ReLU and the next
    with evaluating(model):
        for name, layer in _leaves(model):
            forward = type(layer).forward  # a subclass may do something else
            if (
                forward is nn.Flatten.forward
                and layer.start_dim == 1
                and layer.end_dim in (-1, len(shape))
            ):
                shape = (math.prod(shape),)
            elif forward is nn.ReLU.forward:
                groups.append((shape, []))
            elif forward in PIECES:
                piece = _affine(name, layer, shape, like)
                groups[-1][1].append(piece)
                shape = piece.shape_out
            elif forward not in NOTHING:
                raise ValueError(f"expected {ACCEPTED}, got layer {name!r}: {layer}")
        pieces = [
            reduce(_product, reversed(group)) if group else _identity(size, like)
            for size, group in groups
        ]
        if not all(piece.weight.isfinite().all() and piece.bias.isfinite().all() for piece in pieces):
            raise ValueError(f"expected layers whose products are finite in {like.dtype}, got {model}")
        layers = [piece for _, group in groups for piece in group]
        _check_agreement(model, pieces, layers, own.new_empty(2, *first))
    return pieces


def _leaves(layer: nn.Module, name: str = "") -> Iterator[tuple[str, nn.Module]]:
    """The layers in the order in which they run, by name."""
    for what, found in (
        ("forward hook", layer._forward_hooks or layer._forward_pre_hooks or any(FOR_ALL_LAYERS)),
        ("forward of its own", "forward" in vars(layer)),
        ("__call__ of its own", type(layer).__call__ is not nn.Module.__call__),
    ):
        if found:
            raise ValueError(
                "expected layers that do what their weights say, "
                f"got a {what} on layer {name!r}: {layer}"
            )
    if type(layer).forward is nn.Sequential.forward:
        for key, child in layer._modules.items():
            yield from _leaves(child, f"{name}.{key}" if name else key)
    else:
        yield name, layer


def _example(model: nn.Module) -> Tensor:
    """A tensor of the model's type and on its device."""
    weights = (getattr(layer, "weight", None) for layer in model.modules())  # of a `Stack`'s members
    tensors = filter(torch.is_tensor, chain(model.parameters(), weights, model.buffers()))
    return next((t.detach() for t in tensors if t.is_floating_point()), torch.empty(0))


def _check_agreement(
    model: nn.Module, pieces: Sequence[Affine], layers: Sequence[Affine], like: Tensor
) -> None:
    """Raise ValueError unless pieces and model agree, up to rounding, at two points like these.

    layers: of what the pieces are products.
    """
    points = torch.arange(like.numel(), dtype=like.dtype, device=like.device).cos().view_as(like)
    mine = pieces[0].weight
    eps = max(torch.finfo(like.dtype).eps, torch.finfo(mine.dtype).eps)
    with torch.no_grad():
        z, h = model(points).to(mine).flatten(1), points.to(mine)
        for piece in pieces[:-1]:
            h = piece(h).relu()
        h = pieces[-1](h).flatten(1)
        apart = (h - z).abs() if h.shape == z.shape else h + math.inf
        if bool((apart <= math.sqrt(eps) * h.abs().max()).all()):
            return
        size = points.to(mine).abs()  # of the terms that may have cancelled
        for piece in layers:
            size = piece.times(piece.weight.abs(), size) + piece._image().abs()
        if bool((~(apart <= 16 * eps * size.flatten(1)) & h.isfinite()).any()):
            raise ValueError(
                "expected a model that does what its layers say, got one whose logits are "
                f"{apart.max():.3g} away from that: {model}"
            )


# ---- layer by layer: a piece of the type of `like`, or None if the layer does not fit the shape ----


def _affine(name: str, layer: nn.Module, shape: tuple[int, ...], like: Tensor) -> Affine:
    try:
        piece = PIECES[type(layer).forward](layer, shape, like)
    except ValueError as error:
        raise ValueError(f"expected {error}, got layer {name!r}: {layer}") from error
    if piece is None:
        raise ValueError(f"expected layer {name!r} to fit a sample of shape {shape}, got {layer}")
    if not (piece.weight.isfinite().all() and piece.bias.isfinite().all()):
        raise ValueError(f"expected finite weights, got NaN or infinity in layer {name!r}: {layer}")
    return piece


def _linear(layer: nn.Linear, shape: tuple[int, ...], like: Tensor) -> Affine | None:
    weight, bias = _weights(layer, like)
    return Affine(weight, bias, shape, (len(weight),)) if shape == (layer.in_features,) else None


def _convolution(layer: nn.Conv2d, shape: tuple[int, ...], like: Tensor) -> Affine | None:
    conv = {key: getattr(layer, key) for key in ("stride", "padding", "dilation", "groups")}
    fits = len(shape) == 3 and shape[0] == layer.in_channels and layer.padding_mode == "zeros"
    return _sized(*_weights(layer, like), shape, conv) if fits else None


def _average(layer: nn.AvgPool2d, shape: tuple[int, ...], like: Tensor) -> Affine | None:
    """A convolution of every channel by itself."""
    if len(shape) != 3:
        return None
    kernel, stride, padding = map(_pair, (layer.kernel_size, layer.stride, layer.padding))
    if layer.ceil_mode or (any(padding) and not layer.count_include_pad):
        raise ValueError("average pooling without ceil_mode that counts what it pads")
    weight = like.new_full((shape[0], 1, *kernel), 1 / (layer.divisor_override or math.prod(kernel)))
    conv = {"stride": stride, "padding": padding, "dilation": (1, 1), "groups": shape[0]}
    return _sized(weight, like.new_zeros(shape[0]), shape, conv)


def _adaptive(layer: nn.AdaptiveAvgPool2d, shape: tuple[int, ...], like: Tensor) -> Affine | None:
    if len(shape) != 3:
        return None
    size = [out or whole for out, whole in zip(_pair(layer.output_size), shape[1:], strict=True)]
    if any(whole % out for out, whole in zip(size, shape[1:], strict=True)):
        raise ValueError(f"an output size that divides {shape[1:]}")
    kernel = tuple(whole // out for out, whole in zip(size, shape[1:], strict=True))
    return _average(nn.AvgPool2d(kernel), shape, like)


def _batch_norm(layer: nn.BatchNorm1d, shape: tuple[int, ...], like: Tensor) -> Affine | None:
    if layer.running_mean is None or layer.running_var is None:
        raise ValueError("running statistics, without which a batch decides about each of its samples")
    if len(shape) != (1 if isinstance(layer, nn.BatchNorm1d) else 3) or shape[0] != layer.num_features:
        return None
    deviation = (layer.running_var.to(like) + layer.eps).sqrt()
    return _entrywise(layer.running_mean, deviation, layer.weight, layer.bias, shape)


def _normalise(layer: Normalise, shape: tuple[int, ...], like: Tensor) -> Affine | None:
    mean, std = (v.to(like).flatten() for v in (layer.mean, layer.std))
    fits = len(shape) == 3 and {len(mean), len(std)} <= {1, shape[0]}
    return _entrywise(mean.expand(shape[0]), std.expand(shape[0]), None, None, shape) if fits else None


PIECES = {
    nn.Linear.forward: _linear,
    nn.Conv2d.forward: _convolution,
    nn.AvgPool2d.forward: _average,
    nn.AdaptiveAvgPool2d.forward: _adaptive,
    nn.BatchNorm2d.forward: _batch_norm,  # BatchNorm1d has the same one
    Normalise.forward: _normalise,
}


def _weights(layer: nn.Linear | nn.Conv2d, like: Tensor) -> tuple[Tensor, Tensor]:
    weight, bias = layer.weight.to(like.dtype), layer.bias
    return weight, weight.new_zeros(len(weight)) if bias is None else bias.to(like.dtype)


def _pair(value: int | Sequence[int]) -> tuple[int, ...]:
    return tuple(value) if isinstance(value, Sequence) else (value, value)


def _sized(weight: Tensor, bias: Tensor, shape: tuple[int, ...], conv: dict) -> Affine | None:
    """A convolution, the shape of whose output PyTorch finds."""
    piece = Affine(weight, bias, shape, (), conv)
    try:
        out = piece.times(weight.detach(), weight.new_zeros(1, *shape))
    except RuntimeError:  # a kernel that is larger than the image
        return None
    return replace(piece, shape_out=tuple(out.shape[1:]))


def _entrywise(
    mean: Tensor, deviation: Tensor, w: Tensor | None, b: Tensor | None, shape: tuple[int, ...]
) -> Affine:
    """w (h − mean) / deviation + b, each of them (C,)."""
    weight = 1 / deviation if w is None else w.to(deviation) / deviation
    bias = -weight * mean.to(weight) if b is None else b.to(weight) - weight * mean.to(weight)
    return Affine(weight.reshape(-1, *[1] * (len(shape) - 1)), bias, shape, shape)


def _identity(shape: tuple[int, ...], like: Tensor) -> Affine:
    return Affine(like.new_ones(()), like.new_zeros(shape), shape, shape)


# ---- products ----


def _product(last: Affine, first: Affine) -> Affine:
    """W (V h + a) + b as one piece, which stays a convolution if it can."""
    V, W, shape = first.weight, last.weight, first.shape_in
    bias = last(first._image().expand(1, *first.shape_out)).squeeze(0)
    if W.ndim == 2:
        return Affine(first.transposed(W).flatten(1), bias, (math.prod(shape),), last.shape_out)
    if last.conv is None and first.shape_out == last.shape_in:  # W scales what V gives
        rows = W if first.conv is None and V.ndim != 2 else W.reshape(-1, *[1] * (V.ndim - 1))
        return replace(first, weight=rows * V, bias=bias)
    if last.conv is not None and first.conv is None:  # V scales what W takes
        groups = last.conv["groups"]
        scaled = W.unflatten(0, (groups, -1)) * V.reshape(groups, 1, -1, 1, 1)
        return replace(last, weight=scaled.flatten(0, 1), bias=bias)
    joined = _convolved(last, first) if last.conv is not None else None
    if joined is not None:
        return Affine(joined[0], bias, shape, last.shape_out, joined[1])
    columns, _ = first.matrix()
    columns = last.times(W, columns.T).flatten(1)
    return Affine(columns.T, bias.flatten(), (len(columns),), (columns.shape[1],))


def _convolved(last: Affine, first: Affine) -> tuple[Tensor, dict] | None:
    """Kernel and settings of two convolutions in a row as one; None where they are not one.

    That is where the last pads: it sees 0 beyond the edge, and one convolution would see what the first
    makes of a window that stands half over the edge.
    """
    s, p, reach = first.conv["stride"], first._padding(), first._reach()
    t, q = last.conv["stride"], last._padding()
    for i in (0, 1):
        half = reach[i] >= s[i] + p[i] or s[i] * first.shape_out[1 + i] - p[i] < first.shape_in[1 + i]
        uneven = [f.conv["padding"] == "same" and f._reach()[i] % 2 for f in (first, last)]
        if any(uneven) or (q[i] and half):
            return None
    groups, W = last.conv["groups"], last.weight.unflatten(0, (last.conv["groups"], -1))
    whole = torch.einsum("goikl,gh->gohikl", W, torch.eye(groups).to(W)).flatten(2, 3).flatten(0, 1)
    kernel = F.conv_transpose2d(
        whole,
        first.weight,
        stride=[s[i] * last.conv["dilation"][i] for i in (0, 1)],
        dilation=first.conv["dilation"],
        groups=first.conv["groups"],
    )
    return kernel, {
        "stride": tuple(s[i] * t[i] for i in (0, 1)),
        "padding": tuple(s[i] * q[i] + p[i] for i in (0, 1)),
        "dilation": (1, 1),
        "groups": 1,
    }


# ---- what one unit sees ----


class Window(NamedTuple):
    """Which part of an image the places of a later layer see: height and width, each a pair.

    places: how many there are.  size: of what one of them sees.  step: from one place to the next.
    before: how much of what the first one sees lies outside of the image.
    """

    places: tuple[int, int]
    size: tuple[int, int] = (1, 1)
    step: tuple[int, int] = (1, 1)
    before: tuple[int, int] = (0, 0)

    def through(self, piece: Affine) -> Window:
        """What these places see at the inputs of a convolution, if this at its outputs."""
        s, p, reach = _pair(piece.conv["stride"]), piece._padding(), piece._reach()
        size = tuple(s[i] * (self.size[i] - 1) + reach[i] + 1 for i in (0, 1))
        step = tuple(s[i] * self.step[i] for i in (0, 1))
        return Window(self.places, size, step, tuple(s[i] * self.before[i] + p[i] for i in (0, 1)))

    def of(self, images: Tensor, outside: float = 0.0) -> Tensor:
        """What each place sees in each image: (n, C, height, width) → (n · places, C, *size)."""
        margins = [
            (before, step * (places - 1) + size - before - whole)
            for places, size, step, before, whole in zip(*self, images.shape[2:], strict=True)
        ]
        seen = F.pad(images, (*margins[1], *margins[0]), value=outside)
        for axis in (0, 1):
            seen = seen.unfold(2 + axis, self.size[axis], self.step[axis])
        return seen.permute(0, 2, 3, 1, 4, 5).flatten(0, 2)


def sight(pieces: Sequence[Affine]) -> tuple[list[Affine], list[Window]]:
    """The network that one place of the last piece sees, and the window of the inputs of each piece.

    Convolutions do the same everywhere: these are the same weights on smaller images, without padding,
    because what a window shows of the outside is 0. The pieces as they are and no windows if one of them
    is no convolution, has an offset that is not the same everywhere, or if nothing would be smaller.
    """
    same = [piece._alike() for piece in pieces]
    if None in same:
        return list(pieces), []
    window, shape = Window(pieces[-1].shape_out[1:]), (pieces[-1].shape_out[0], 1, 1)
    found: list[Affine] = []
    windows: list[Window] = []
    for piece in reversed(same):
        window, after = window.through(piece), shape
        shape = piece.shape_in[0], *window.size
        conv = piece.conv | {"padding": (0, 0)}
        found.insert(0, replace(piece, shape_in=shape, shape_out=after, conv=conv))
        windows.insert(0, window)
    return (found, windows) if width(found) < width(pieces) else (list(pieces), [])


def width(pieces: Sequence[Affine]) -> int:
    """How many numbers the widest layer of one sample has, the input counted."""
    return max(math.prod(shape) for piece in pieces for shape in (piece.shape_in, piece.shape_out))
