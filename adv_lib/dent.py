"""A defense that moves: at test time the network changes until it is sure of what it sees.

dent answers every batch with f(g(x; Σ); θ + Δ). Δ changes the scales and shifts of the normalisation
layers, Σ smooths the input, and both take a few steps down the entropy of the prediction, each time from
θ and from no smoothing. Nothing is kept, so dent is one fixed function of its input.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from .models import evaluating

NORMS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm)
WIDTH = "width²"  # the name of Σ among the tensors that move; parameters have no such names


# ---- how sure a prediction is ----


def entropy(z: Tensor) -> Tensor:
    """H(p) = −Σ_k p_k log p_k for p = softmax(z): 0 when one class is sure, log K when all are alike.

    z: logits (n, K).  Returns (n,), in nats.  Raises ValueError unless z is (n, K) with K ≥ 2.
    """
    return _entropy(_log_softmax(z))


def information(z: Tensor) -> Tensor:
    """H(p_i) − H(p̄), p̄ the mean of p over the batch: be sure, and do not say the same everywhere.

    Its mean over the batch is minus the mutual information of sample and class. The second term ties the
    samples of a batch together, also where each has parameters of its own.
    z: logits (n, K), n ≥ 1.  Returns (n,), in nats.  Raises ValueError as `entropy`.
    Source: Liang, Hu & Feng 2020, eq. (4); the default of the released code of dent.
    """
    log_p = _log_softmax(z)
    mean = torch.logsumexp(log_p, 0, keepdim=True) - math.log(max(1, len(z)))
    return _entropy(log_p) - _entropy(mean)


def _log_softmax(z: Tensor) -> Tensor:
    if z.ndim != 2 or z.shape[1] < 2 or not z.is_floating_point():
        raise ValueError(f"expected logits (n, K) with K ≥ 2, got {z.dtype} {tuple(z.shape)}")
    return torch.log_softmax(z, 1)


def _entropy(log_p: Tensor) -> Tensor:
    return -(log_p.exp() * log_p).sum(1)


# ---- Σ: a blur whose width is learned ----


def smooth(x: Tensor, variance: Tensor) -> Tensor:
    """g(x; σ²): heat that spreads for a time σ²/2, the Gaussian blur of a grid.

    Along each side of the image the kernel is exp(σ²/2 · L), L the second difference with edges that
    reflect. Its variance is σ², in pixels², away from the edges; the mean of the image stays. At σ² = 0
    it is the identity, and its slope there is Lx/2, not 0, so that a width can be learned from nothing.
    x: (n, C, H, W).  variance: () or, one a sample, (n,); ≥ 0 and finite.  Returns like x.
    Raises ValueError for other shapes and variances.  Source: Lindeberg 1990.
    """
    if x.ndim != 4 or variance.shape not in ((), x.shape[:1]):
        raise ValueError(
            f"expected images (n, C, H, W) and a variance () or (n,), "
            f"got {tuple(x.shape)} and {tuple(variance.shape)}"
        )
    if not bool(((variance >= 0) & variance.isfinite()).all()):
        raise ValueError(f"expected finite variances ≥ 0, got {variance.tolist()}")
    across = _blur(x.shape[3], variance.to(x))
    down = _blur(x.shape[2], variance.to(x))
    return down @ x @ across


def _blur(size: int, variance: Tensor) -> Tensor:
    """exp(σ²/2 · L), (size, size) or (n, 1, size, size), by the cosines that are L's eigenvectors."""
    k = torch.arange(size, dtype=variance.dtype, device=variance.device)
    cosines = torch.cos(math.pi * k[:, None] * (k + 0.5) / size)  # row k: the k-th eigenvector
    cosines = cosines / torch.linalg.vector_norm(cosines, dim=1, keepdim=True)
    decay = torch.exp(variance[..., None] * (torch.cos(math.pi * k / size) - 1))
    kernel = cosines.T @ (decay[..., None] * cosines)
    return kernel if variance.ndim == 0 else kernel[:, None]


# ---- the defense ----


@dataclass(frozen=True, eq=False)
class Adapted:
    """The classifier f(g(·; Σ); θ + Δ) with Σ and Δ held where a batch has put them.

    moved: names of parameters and `WIDTH` → their values: one for all or, if `each`, one a sample.
    """

    model: nn.Module
    moved: Mapping[str, Tensor]
    each: bool

    def __call__(self, x: Tensor) -> Tensor:
        """The logits (n, K) in eval mode. If `each`, x must be n samples in the order of the batch."""
        affine = dict(self.moved)
        variance = affine.pop(WIDTH, None)
        if self.each and any(len(value) != len(x) for value in self.moved.values()):
            sizes = [len(value) for value in self.moved.values()]
            raise ValueError(f"expected the {sizes[0]} samples that were adapted to, got {len(x)}")
        if variance is not None:
            x = smooth(x, variance)
        with evaluating(self.model):
            if not affine:
                return self.model(x)
            if not self.each:
                return functional_call(self.model, affine, (x,))
            return vmap(self._one)(affine, x)

    def _one(self, affine: dict[str, Tensor], x: Tensor) -> Tensor:
        """The logits (K,) of one sample under its own parameters."""
        return functional_call(self.model, affine, (x[None],))[0]


class Dent(nn.Module):
    """argmin over Σ, Δ of the entropy H(f(g(x; Σ); θ + Δ)), by a few steps, then the prediction there.

    model:     a classifier with normalisation layers that have scales and shifts; it stays as it is and
               runs in eval mode, with the statistics from its training.
    steps, lr: how many steps, and their size; 0 steps is the network as it is.
    scope:     "batch" for one Σ and Δ a batch (dent), "sample" for one a sample (dent+).
    adapt:     what moves: Δ in the "model", Σ at the "input", or "both".
    objective: what is minimised: logits (n, K) → (n,), such as `entropy` or `information`.
    optimiser: "adamod" with the constants of the released code, "adam" or "sgd".
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
        lr: float = 6e-3,
        scope: str = "batch",
        adapt: str = "model",
        objective: Callable[[Tensor], Tensor] = entropy,
        optimiser: str = "adamod",
        unroll: bool = False,
    ):
        super().__init__()
        if steps < 0 or not 0 < lr < math.inf:
            raise ValueError(f"expected steps ≥ 0 and lr > 0, got {steps!r} and {lr!r}")
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
        through = self.unroll and torch.is_grad_enabled()
        with nullcontext() if through else torch.inference_mode(False), torch.enable_grad():
            at = x if through else x.detach().clone()
            moved, memory = self._start(at), {}
            path = [Adapted(self.model, dict(moved), self.scope == "sample")]
            for step in range(1, self.steps + 1):
                values = self.objective(path[-1](at))
                if values.shape != x.shape[:1]:
                    raise ValueError(f"expected an objective ({len(x)},), got {tuple(values.shape)}")
                goal = values.mean() if self.scope == "batch" else values.sum()
                slopes = torch.autograd.grad(
                    goal, list(moved.values()), create_graph=through, materialize_grads=True
                )
                for (name, value), slope in zip(tuple(moved.items()), slopes, strict=True):
                    move, memory[name] = _STEPS[self.optimiser](slope, memory.get(name), step)
                    new = value - self.lr * move
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
            f"{prefix}.{name}" if prefix else name: parameter
            for prefix, module in self.model.named_modules()
            if isinstance(module, NORMS)
            for name, parameter in module.named_parameters(recurse=False)
        }

    def _start(self, x: Tensor) -> dict[str, Tensor]:
        """θ and no smoothing, as leaves of a new graph."""
        start = {} if self.adapts == "input" else self._affine()
        if self.adapts != "model":
            start[WIDTH] = x.new_zeros(())
        if self.scope == "sample":
            start = {name: value.expand(len(x), *value.shape) for name, value in start.items()}
        return {name: value.detach().clone().requires_grad_() for name, value in start.items()}


# ---- the steps of three optimisers: slope, memory, number from 1 → move, memory ----


def _sgd(slope: Tensor, memory: None, step: int) -> tuple[Tensor, None]:
    return slope, None


def _adam(
    slope: Tensor, memory: tuple[Tensor, Tensor] | None, step: int
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """Adam [Kingma & Ba 2015], with its small constant under the root, where it has a slope at 0."""
    size, m, v = _moments(slope, memory, step, (0.9, 0.999))
    return size * m, (m, v)


def _adamod(
    slope: Tensor, memory: tuple[Tensor, Tensor, Tensor] | None, step: int
) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
    """AdaMod [Ding et al. 2019]: Adam whose step sizes may not exceed their own running mean."""
    size, m, v = _moments(slope, memory, step, (0.99, 0.999))
    bound = 0.6 * memory[2] + 0.4 * size if memory else 0.4 * size
    return torch.minimum(size, bound) * m, (m, v, bound)


def _moments(slope, memory, step, betas) -> tuple[Tensor, Tensor, Tensor]:
    """Adam's step size for each entry and its two running means."""
    m, v = memory[:2] if memory else (torch.zeros_like(slope), torch.zeros_like(slope))
    m = betas[0] * m + (1 - betas[0]) * slope
    v = betas[1] * v + (1 - betas[1]) * slope**2
    size = 1 / (1 - betas[0] ** step) / (v / (1 - betas[1] ** step) + 1e-16).sqrt()
    return size, m, v


_STEPS = {"adamod": _adamod, "adam": _adam, "sgd": _sgd}
