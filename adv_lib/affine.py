"""A ReLU network as affine pieces: a = W h + b, with h = max(a, 0) between them.

Networks are `nn.Sequential`s of Linear, Conv2d, Flatten and ReLU. a is the pre-activation of a hidden
unit, h its activation. A bound needs to know no more of a network than this.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F


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
        """W h, or with another weight of the same shape, such as |W|, that times h.

        h: (n, *shape_in).  Returns (n, *shape_out).
        """
        h = h.reshape(len(h), *self.shape_in)
        return F.linear(h, weight) if self.conv is None else F.conv2d(h, weight, **self.conv)

    def detach(self) -> Affine:
        """The same piece, through which no gradient flows."""
        return replace(self, weight=self.weight.detach(), bias=self.bias.detach())

    def transposed(self, nu: Tensor) -> Tensor:
        """Wᵀν, which sends a vector of outputs back to the inputs.

        nu: (n, *shape_out) or flat.  Returns (n, *shape_in).
        """
        nu = nu.reshape(len(nu), *self.shape_out)
        if self.conv is None:
            return F.linear(nu, self.weight.T)
        whole = F.conv_transpose2d(nu, self.weight, **self.conv | {"padding": 0})
        (top, left), (_, height, width) = self._padding(), self.shape_in
        missing = top + height - whole.shape[2], left + width - whole.shape[3]  # what strides skip
        whole = F.pad(whole, (0, max(0, missing[1]), 0, max(0, missing[0])))
        return whole[:, :, top : top + height, left : left + width]

    def offset(self, nu: Tensor) -> Tensor:
        """νᵀb: what the offset adds to νᵀ(W h + b).  nu: (n, *shape_out).  Returns (n,)."""
        nu = nu.reshape(len(nu), *self.shape_out)
        return (nu if self.conv is None else nu.flatten(2).sum(2)) @ self.bias

    def _padding(self) -> Sequence[int]:
        """How many zeros a convolution puts above an image and to its left."""
        padding = self.conv["padding"]
        if padding == "valid":
            return 0, 0
        if padding != "same":
            return padding
        size = zip(self.conv["dilation"], self.weight.shape[2:], strict=True)
        return [dilation * (kernel - 1) // 2 for dilation, kernel in size]

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


def width(pieces: Sequence[Affine]) -> int:
    """How many numbers the widest layer of one sample has, the input counted."""
    return max(math.prod(shape) for piece in pieces for shape in (piece.shape_in, piece.shape_out))
