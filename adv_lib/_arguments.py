"""Do the arguments of the bounds and of the exact methods fit the network? ValueError if not."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ._given import check_tensors
from .affine import Affine, Bounds
from .dual import SLOPES


def check_batch(x: Tensor) -> None:
    """Raise ValueError unless x is (n, *shape), floating-point, with at least one sample."""
    check_tensors(x=x)
    if x.ndim < 2 or len(x) == 0 or not x.is_floating_point():
        raise ValueError(
            "expected a floating-point batch (n, *shape) of at least one sample, "
            f"got {x.dtype} {tuple(x.shape)}"
        )


def check_labels(pieces: Sequence[Affine], x: Tensor, y: Tensor) -> None:
    """Raise ValueError unless y is (n,) int64, one class of the network for each sample."""
    check_tensors(y=y)
    K = math.prod(pieces[-1].shape_out)
    if y.shape != x.shape[:1] or y.dtype != torch.int64 or not bool(((y >= 0) & (y < K)).all()):
        raise ValueError(
            f"expected {len(x)} int64 labels from 0 to {K - 1}, got {y.dtype} {tuple(y.shape)} "
            f"with values {y.unique().tolist()[:12]}"
        )


def check_bounds(pieces: Sequence[Affine], x: Tensor, bounds: Sequence[Bounds] | None) -> None:
    """Raise ValueError unless these are finite lower ≤ upper for each hidden unit of each sample."""
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


def check_slopes(
    pieces: Sequence[Affine], x: Tensor, method: str, slopes: Sequence[Tensor] | None
) -> None:
    """Raise ValueError unless the method has slopes and these fit its hidden units."""
    if slopes is None:
        return
    if method not in SLOPES:
        raise ValueError(f"slopes are for the methods {tuple(SLOPES)}, got {method!r}")
    K = math.prod(pieces[-1].shape_out)
    shapes = [tuple(alpha.shape) for alpha in slopes]
    each = [(len(x), *piece.shape_out) for piece in pieces[:-1]]
    if shapes not in (each, [(n, K, *shape) for n, *shape in each]):
        raise ValueError(
            f"expected slopes (n, *shape), that is {each}, or (n, K, *shape) with K = {K}, got {shapes}"
        )
