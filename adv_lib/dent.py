"""A defense that moves: at test time the network changes until it is sure of what it sees.

dent answers every batch with f(g(x; Σ); θ + Δ). Δ changes the scales and shifts of the normalisation
layers, Σ smooths the input, and both take a few steps down the entropy of the prediction, each time from
θ and from no smoothing. Nothing is kept, so dent is one fixed function of its input.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from . import losses, stack
from ._given import check_tensors
from .models import check_logits, evaluating

NORMS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm, stack.BatchNorm)
WIDTH = "width²"  # the name of Σ among the tensors that move; parameters have no such names


# ---- Σ: a blur whose width is learned ----


def blur(x: Tensor, variance: Tensor) -> Tensor:
    """g(x; σ²): heat that spreads for a time σ²/2, the Gaussian blur of a grid.

    Along each side of the image the kernel is exp(σ²/2 · L), L the second difference with edges that
    reflect. Its variance is σ², in pixels², away from the edges; the mean of the image stays. At σ² = 0
    it is the identity, and its slope there is Lx/2, not 0, so that a width can be learned from nothing.
    x: (n, C, H, W).  variance: () or, one a sample, (n,); ≥ 0 and finite.  Returns like x.
    Raises ValueError for other shapes and variances.  Source: Lindeberg 1990.
    """
    check_tensors(x=x, variance=variance)
    if x.ndim != 4 or variance.shape not in ((), x.shape[:1]):
        raise ValueError(
            f"expected images (n, C, H, W) and a variance () or (n,), "
            f"got {tuple(x.shape)} and {tuple(variance.shape)}"
        )
    if not bool(((variance >= 0) & variance.isfinite()).all()):
        raise ValueError(f"expected finite variances ≥ 0, got {variance.tolist()}")
    across = _spread(x.shape[3], variance.to(x))
    down = _spread(x.shape[2], variance.to(x))
    return down @ x @ across


def _spread(size: int, variance: Tensor) -> Tensor:
    """exp(σ²/2 · L), (1, size, size) or (n, 1, size, size), by the cosines that are L's eigenvectors."""
    k = torch.arange(size, dtype=variance.dtype, device=variance.device)
    cosines = torch.cos(math.pi * k[:, None] * (k + 0.5) / size)  # row k: the k-th eigenvector
    cosines = cosines / torch.linalg.vector_norm(cosines, dim=1, keepdim=True)
    decay = torch.exp(variance[..., None] * (torch.cos(math.pi * k / size) - 1))
    return (cosines.T @ (decay[..., None] * cosines)).unsqueeze(-3)


# ---- the defense ----


@dataclass(frozen=True, eq=False)
class Adapted:
    """The classifier f(g(·; Σ); θ + Δ) with Σ and Δ held where a batch has put them.

    moved: names of parameters and `WIDTH` → their values: one for all or, if `each`, one a sample.
           "For all" of a `stack.Stack` means one for each member, in front, as in its parameters.
    """

    model: nn.Module
    moved: Mapping[str, Tensor]
    each: bool

    def __call__(self, x: Tensor) -> Tensor:
        """The logits (n, K) in eval mode. If `each`, x must be n samples in the order of the batch."""
        check_tensors(x=x)
        affine = dict(self.moved)
        variance = affine.pop(WIDTH, None)
        if self.each and any(len(value) != len(x) for value in self.moved.values()):
            sizes = [len(value) for value in self.moved.values()]
            raise ValueError(f"expected the {sizes[0]} samples that were adapted to, got {len(x)}")
        if variance is None:
            x = x.clone()  # the model may change its input in place
        else:
            many = variance.ndim and not self.each  # a width for each member of a stack
            x = blur(x, variance.repeat(len(x) // len(variance)) if many else variance)
        with evaluating(self.model):
            if not affine:
                z = self.model(x)
            elif not self.each:
                z = functional_call(self.model, affine, (x,))
            else:
                with _row_by_row(self.model, affine) as plain:
                    z = functional_call(self.model, plain, (x,))
        return check_logits(z, x, classes=1)


def _norms(model: nn.Module) -> Iterator[tuple[str, nn.Module, list[str]]]:
    """The normalisation layers that have scales or shifts: prefix of the names, layer, which it has."""
    for prefix, layer in model.named_modules():
        which = [name for name, _ in layer.named_parameters(recurse=False)]
        if isinstance(layer, NORMS) and which:
            yield prefix + "." if prefix else "", layer, which


@contextmanager
def _row_by_row(model: nn.Module, affine: Mapping[str, Tensor]) -> Iterator[dict[str, Tensor]]:
    """Let each normalisation layer answer γ_i x̂ + β_i for sample i.

    affine: names of all scales and shifts → (n, *shape), one a sample.
    Yields what to run the model with meanwhile: scales 1 and shifts 0, so that a layer itself gives x̂.
    """
    plain, hooks = {}, []
    for prefix, layer, which in _norms(model):
        own = {name: affine[prefix + name] for name in which}
        hooks.append(layer.register_forward_hook(partial(_rescaled, own)))
        for name in which:
            plain[prefix + name] = torch.full_like(getattr(layer, name), name == "weight")
    try:
        yield plain
    finally:
        for hook in hooks:
            hook.remove()


def _rescaled(own: Mapping[str, Tensor], layer: nn.Module, _, normalised: Tensor) -> Tensor:
    """γ_i x̂_i + β_i: the output of a layer with the scales and shifts of each sample."""
    for name, value in own.items():
        free = (1,) * (normalised.ndim - value.ndim)  # pixels or, for LayerNorm, what it leaves alone
        if isinstance(layer, stack.BatchNorm):  # (E, n, features), where rows come in turns
            value = value.view(-1, len(normalised), value.shape[-1]).transpose(0, 1)
        elif isinstance(layer, nn.LayerNorm):
            value = value.view(len(value), *free, *value.shape[1:])
        else:
            value = value.view(*value.shape, *free)
        normalised = normalised * value if name == "weight" else normalised + value
    return normalised


class Dent(nn.Module):
    """argmin over Σ, Δ of the entropy H(f(g(x; Σ); θ + Δ)), by a few steps, then the prediction there.

    model:     a classifier with normalisation layers that have scales and shifts; it stays as it is and
               runs in eval mode, with the statistics from its training. A `stack.Stack` adapts each of
               its members as if it were alone.
    steps, lr: how many steps, and their size, for a stack also one for each member; 0 steps is the
               network as it is.
    scope:     "batch" for one Σ and Δ a batch (dent), "sample" for one a sample (dent+).
    adapt:     what moves: Δ in the "model", Σ at the "input", or "both".
    objective: what is minimised: logits (n, K) → (n,), such as `losses.entropy` or `losses.information`.
    optimiser: "adamod" with the constants of the released code, or "sgd".
    unroll:    whether the gradient of the output in x goes through the steps. Without it, as published,
               the output depends on x as if Σ and Δ were constants.

    Works under `torch.no_grad`.  Raises ValueError for other arguments, for a model without such layers
    and for BatchNorm that keeps no statistics.
    Source: Wang et al. 2021, eq. (2); Σ is in the paper, not in its released code.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        steps: int = 6,
        lr: float | Sequence[float] = 6e-3,
        scope: str = "batch",
        adapt: str = "model",
        objective: Callable[[Tensor], Tensor] = losses.entropy,
        optimiser: str = "adamod",
        unroll: bool = False,
    ):
        super().__init__()
        rates = lr if isinstance(lr, Sequence) else [lr]
        if steps < 0 or not all(0 < rate < math.inf for rate in rates):
            raise ValueError(f"expected steps ≥ 0 and lr > 0, got {steps!r} and {lr!r}")
        if len(rates) not in (1, stack.members_of(model)):
            raise ValueError(f"expected one lr, or one for each member of a stack, got {lr!r}")
        if scope not in ("batch", "sample") or adapt not in ("model", "input", "both"):
            raise ValueError(
                'expected scope "batch" or "sample" and adapt "model", "input" or "both", '
                f"got {scope!r} and {adapt!r}"
            )
        if optimiser not in _STEPS:
            raise ValueError(f"expected an optimiser out of {list(_STEPS)}, got {optimiser!r}")
        self.model, self.steps, self.lr = model, steps, lr
        self.scope, self.adapts, self.unroll = scope, adapt, unroll
        self.objective, self.optimiser = objective, optimiser
        if adapt != "input" and not self._affine():
            raise ValueError("expected a model with normalisation layers that have weights, got none")
        batch_norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
        if any(layer.running_mean is None for layer in batch_norms):
            raise ValueError("expected BatchNorm with the statistics of its training, got one without")

    def forward(self, x: Tensor) -> Tensor:
        """The logits (n, K) of the network that the batch x (n, *shape) has adapted."""
        return self.adapt(x)(x)

    def adapt(self, x: Tensor) -> Adapted:
        """The network after the last step: what answers x, held fixed."""
        return self.path(x)[-1]

    def path(self, x: Tensor) -> list[Adapted]:
        """The network as it is, and after each of the steps on the batch x (n, *shape)."""
        check_tensors(x=x)
        through = self.unroll and torch.is_grad_enabled()
        with nullcontext() if through else torch.inference_mode(False), torch.enable_grad():
            at = x if through else x.detach().clone()
            moved, memory = self._start(at), {}
            rates = {name: self._rate(value) for name, value in moved.items()}
            path = [Adapted(self.model, dict(moved), self.scope == "sample")]
            for step in range(1, self.steps + 1):
                values = self._values(path[-1](at))
                if values.shape != x.shape[:1]:
                    raise ValueError(f"expected an objective ({len(x)},), got {tuple(values.shape)}")
                members = stack.members_of(self.model)  # the sum over them of each one's mean
                goal = members * values.mean() if self.scope == "batch" else values.sum()
                slopes = torch.autograd.grad(
                    goal, list(moved.values()), create_graph=through, materialize_grads=True
                )
                for (name, value), slope in zip(tuple(moved.items()), slopes, strict=True):
                    move, memory[name] = _STEPS[self.optimiser](slope, memory.get(name), step)
                    new = value - rates[name] * move
                    moved[name] = new.clamp(min=0) if name == WIDTH else new
                if not through:
                    moved = {name: value.detach().requires_grad_() for name, value in moved.items()}
                path.append(Adapted(self.model, dict(moved), self.scope == "sample"))
        return path

    def unrolled(self) -> Dent:
        """The same defense with `unroll`: what an attacker who knows it differentiates."""
        twin = copy.copy(self)
        twin.unroll = True
        return twin

    def _affine(self) -> dict[str, Tensor]:
        """The scales and shifts of the normalisation layers, by name."""
        return {
            prefix + name: getattr(layer, name)
            for prefix, layer, which in _norms(self.model)
            for name in which
        }

    def _start(self, x: Tensor) -> dict[str, Tensor]:
        """θ and no smoothing, as leaves of a new graph."""
        members, stacked = stack.members_of(self.model), isinstance(self.model, stack.Stack)
        start = {} if self.adapts == "input" else self._affine()
        if self.adapts != "model":
            start[WIDTH] = x.new_zeros((members,) if stacked else ())
        if self.scope == "sample":  # rows in turns, as the stack has them
            start = {
                name: (value if stacked else value[None])
                .expand(len(x) // members, *(value.shape if stacked else (1, *value.shape)))
                .flatten(0, 1)
                for name, value in start.items()
            }
        return {name: value.detach().clone().requires_grad_() for name, value in start.items()}

    def _rate(self, value: Tensor) -> float | Tensor:
        """The step size for a tensor that moves: a number or, of several, one for each row."""
        if not isinstance(self.lr, Sequence):
            return self.lr
        rates = value.new_tensor(self.lr)
        return rates.repeat(len(value) // len(rates)).view(-1, *[1] * (value.ndim - 1))

    def _values(self, z: Tensor) -> Tensor:
        """The objective (n,) of the logits, member by member: none is measured in another's company."""
        if not isinstance(self.model, stack.Stack):
            return self.objective(z)
        each = z.unflatten(0, (-1, len(self.model)))
        return vmap(self.objective, in_dims=1, out_dims=1)(each).flatten()


# ---- the steps of two optimisers: slope, memory, number from 1 → move, memory ----


def _sgd(slope: Tensor, memory: None, step: int) -> tuple[Tensor, None]:
    return slope, None


def _adamod(
    slope: Tensor, memory: tuple[Tensor, Tensor, Tensor] | None, step: int
) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
    """AdaMod [Ding et al. 2019]: Adam whose step sizes may not exceed their own running mean."""
    m, v = memory[:2] if memory else (torch.zeros_like(slope), torch.zeros_like(slope))
    m, v = m.lerp(slope, 0.01), v.lerp(slope**2, 0.001)
    # Adam's step size, with its small constant under the root, where it has a slope at 0
    size = (v / (1 - 0.999**step) + 1e-16).rsqrt() / (1 - 0.99**step)
    bound = memory[2].lerp(size, 0.4) if memory else 0.4 * size
    return torch.minimum(size, bound) * m, (m, v, bound)


_STEPS = {"adamod": _adamod, "sgd": _sgd}
