"""Other ways to the bounds of `adv_lib.dual`: its parts, CROWN by hand, other libraries.

All for p = ∞ with the box [0, 1]. What a library prepares once for a network, its adapter prepares.
"""

from __future__ import annotations

import copy
import importlib
import math
import sys
import types
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from adv_lib import bounds, dual
from adv_lib.affine import Bounds, affine_pieces
from adv_lib.threat import Ball

STEPS = 20  # of the ascent to the best slopes
Margins = Callable[[Tensor, Tensor], Tensor]  # (x, y) → lower bounds on z_y − z_k, (n, K)


def towards(y: Tensor, like: Tensor, K: int = 10) -> Tensor:
    """e_y − e_k for every class k: (n, K, K)."""
    one = torch.eye(K, dtype=like.dtype)
    return one[y].unsqueeze(1) - one


# ---- by the parts of the package ----


def region(eps: float) -> Ball:
    """Every ball of these comparisons."""
    return Ball(math.inf, eps, (0, 1))


def alone(model: nn.Sequential, x: Tensor, ball: Ball, method: str) -> list[Bounds]:
    """The pre-activation bounds of all units by the dual network alone, without intervals."""
    pieces = affine_pieces(model, x.shape[1:], x.dtype)
    layers = bounds.pre_activations(model, x, ball)[:1]
    for depth, piece in enumerate(pieces[1:-1], 1):
        relus = [dual.lines(layer, method) for layer in layers]
        one = torch.eye(math.prod(piece.shape_out), dtype=x.dtype)
        sample = torch.arange(len(x)).repeat_interleave(len(one))

        def both(rows: Tensor, one: Tensor = one) -> Tensor:
            c = one[rows % len(one)].unsqueeze(1)
            return torch.cat([c, -c], 1)

        ends = dual.in_parts(pieces[: depth + 1], relus, x, ball.region(x), sample, both, 2)
        least, most = (end.reshape(len(x), *piece.shape_out) for end in ends.unbind(1))
        layers.append(Bounds(least, -most))
    return layers


def best(model: nn.Sequential, x: Tensor, y: Tensor, ball: Ball, layers: list[Bounds]) -> Tensor:
    """Margins with the best slopes on these layer bounds."""
    slopes = bounds.best_slopes(model, x, y, ball, layer_bounds=layers, steps=STEPS)
    return bounds.margins(model, x, y, ball, "crown", layer_bounds=layers, slopes=slopes)


# ---- CROWN by hand ----


class Slopes(NamedTuple):
    """The lines around the ReLUs of a layer, (n, 1, units) each: lower · a ≤ h ≤ upper · a + offset."""

    upper: Tensor
    offset: Tensor
    lower: Tensor


def slopes(low: Tensor, high: Tensor) -> Slopes:
    """Zhang et al. 2018, Tables 1 and 2, with the adaptive lower line."""
    low, high = low.unsqueeze(1), high.unsqueeze(1)
    upper = torch.where(high <= 0, 0.0, torch.where(low >= 0, 1.0, high / (high - low)))
    offset = torch.where((low < 0) & (high > 0), -upper * low, 0.0)
    lower = torch.where(high <= 0, 0.0, torch.where(low >= 0, 1.0, (high >= -low).to(low)))
    return Slopes(upper, offset, lower)


def concretise(
    linears: list[nn.Linear], relus: list[Slopes], C: Tensor, low: Tensor, high: Tensor
) -> tuple[Tensor, Tensor]:
    """Bounds on C a for the last layer's a: linear functions of x below and above it, at their extremes.

    Zhang et al. 2018, Theorem 3.2. Λ and Ω are the matrices of the functions above and below.
    C: (n or 1, r, units).  low, high: the box of x, (n, d).  Returns (n, r) twice.
    """
    Lambda = Omega = C
    above = below = torch.zeros((), dtype=low.dtype)
    for k in range(len(linears) - 1, -1, -1):
        above, below = above + Lambda @ linears[k].bias, below + Omega @ linears[k].bias
        Lambda, Omega = Lambda @ linears[k].weight, Omega @ linears[k].weight
        if k:
            relu = relus[k - 1]
            above = above + (Lambda.clamp(min=0) * relu.offset).sum(2)
            below = below + (Omega.clamp(max=0) * relu.offset).sum(2)
            Lambda = Lambda.clamp(min=0) * relu.upper + Lambda.clamp(max=0) * relu.lower
            Omega = Omega.clamp(min=0) * relu.lower + Omega.clamp(max=0) * relu.upper
    low, high = low.unsqueeze(2), high.unsqueeze(2)
    above = above + (Lambda.clamp(min=0) @ high + Lambda.clamp(max=0) @ low).squeeze(2)
    below = below + (Omega.clamp(min=0) @ low + Omega.clamp(max=0) @ high).squeeze(2)
    return below, above


def crown(model: nn.Sequential, eps: float) -> Margins:
    """CROWN on dense matrices: every unit of every layer, each layer intersected with its intervals."""
    linears = [copy.deepcopy(layer).double() for layer in model if isinstance(layer, nn.Linear)]

    def margins(x: Tensor, y: Tensor) -> Tensor:
        x = x.flatten(1)
        box = low, high = (x - eps).clamp(min=0), (x + eps).clamp(max=1)
        relus = []
        for k, linear in enumerate(linears[:-1]):
            W, one = linear.weight, torch.eye(len(linear.weight), dtype=x.dtype)[None]
            least = low @ W.clamp(min=0).T + high @ W.clamp(max=0).T + linear.bias
            most = high @ W.clamp(min=0).T + low @ W.clamp(max=0).T + linear.bias
            if k:
                below, above = concretise(linears[: k + 1], relus, one, *box)
                least, most = torch.maximum(least, below), torch.minimum(most, above)
            relus.append(slopes(least, most))
            low, high = least.clamp(min=0), most.clamp(min=0)
        return concretise(linears, relus, towards(y, x), *box)[0]

    return margins


# ---- libraries ----


def auto_lirpa(
    model: nn.Sequential,
    eps: float,
    dtype: torch.dtype = torch.float64,
    shape: Sequence[int] | None = None,
) -> Margins:
    """CROWN by auto_LiRPA, for images of a shape or flat.

    Version 0.3 uses three names that NumPy 2 and PyTorch have since removed.
    """
    if "numpy.lib.arraysetops" not in sys.modules:
        from torch.onnx._internal.torchscript_exporter._globals import GLOBALS

        sys.modules["numpy.lib.arraysetops"] = types.ModuleType("arraysetops")
        sys.modules["numpy.lib.arraysetops"].isin = np.isin
        helper = importlib.import_module("torch.onnx.symbolic_helper")
        helper._set_opset_version = partial(setattr, GLOBALS, "export_onnx_opset_version")
        torch._C.Node.__getitem__ = lambda node, key: getattr(node, node.kindOf(key))(key)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from auto_LiRPA import BoundedModule, BoundedTensor, PerturbationLpNorm

    shape = shape or next(iter(model.parameters())).shape[1:]
    torch.set_default_dtype(dtype)  # it makes tensors of its own
    network = BoundedModule(copy.deepcopy(model).to(dtype), torch.zeros(1, *shape))
    torch.set_default_dtype(torch.float32)

    def margins(x: Tensor, y: Tensor) -> Tensor:
        torch.set_default_dtype(dtype)
        x = x.reshape(len(x), *shape)
        ends = {"x_L": (x - eps).clamp(min=0), "x_U": (x + eps).clamp(max=1)}
        moved = BoundedTensor(x, PerturbationLpNorm(norm=np.inf, eps=eps, **ends))
        settings = {"C": towards(y, x), "method": "CROWN", "bound_upper": False}
        least = network.compute_bounds(x=(moved,), **settings)[0]
        torch.set_default_dtype(torch.float32)
        return least

    return margins


def convex_adversarial(model: nn.Sequential, eps: float, dtype: torch.dtype = torch.float64) -> Margins:
    """convex_adversarial, whose norm "l1" is the dual one: p = ∞, here with the box."""
    from convex_adversarial import RobustBounds

    network = RobustBounds(copy.deepcopy(model).to(dtype), eps, norm_type="l1", bounded_input=True)
    return lambda x, y: -network(x, y)


def convex_adversarial_layers(model: nn.Sequential, x: Tensor, eps: float) -> list[Bounds]:
    """Its pre-activation bounds, a `Bounds` for each ReLU."""
    from convex_adversarial import DualNetwork

    network = DualNetwork(copy.deepcopy(model).double(), x, eps, norm_type="l1", bounded_input=True)
    return [Bounds(layer.zl, layer.zu) for layer in network.dual_net if hasattr(layer, "zl")]
