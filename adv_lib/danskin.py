"""The slope of a maximum, and the direction in which it falls fastest.

φ(θ) = max_{δ∈S} g(θ, δ) has kinks where several δ attain it. There its slope in a direction γ is the
largest of theirs (Danskin's theorem), D_γφ(θ) = max_{δ∈S*(θ)} ⟨γ, ∇_θ g(θ, δ)⟩, and −∇_θ g(θ, δ) for
one of them need not lead down. The direction that falls fastest does: it is opposite to the shortest
vector in the convex hull of all their gradients. `ddd` trains with it.

Source: Danskin 1966; Latorre et al. 2023.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from . import attacks, losses, models
from ._given import check_ball, check_tensors
from .stack import Stack, drawn, members_of
from .threat import Ball

GRID = 1001  # points of an interval at which g is tried before it is looked at more closely
RIDGE = (
    1e-13  # of the largest ‖g_i‖², added to all squares: equal gradients then do not confuse a solver
)
STATIONARY = 1e-6  # a shortest vector below this part of the longest gradient counts as 0


# ---- the slope of a maximum ----


def maximisers(
    g: Callable[[Tensor, Tensor], Tensor],
    theta: Tensor,
    S: Tensor | tuple[float, float],
    tolerance: float = 1e-9,
) -> Tensor:
    """S*(θ): the δ ∈ S at which g(θ, δ) is within `tolerance` · max(1, |φ(θ)|) of φ(θ) = max_δ g(θ, δ).

    g: (θ, δ (m, *shape)) → (m,), for a batch of δ.  theta: any shape.
    S: a finite set, (m, *shape), or the ends of an interval: there δ is (m,), and peaks narrower than a
       thousandth of the interval may be missed. Every δ that is returned is at least a local maximum.
    tolerance: never less than 4 units in the last place of g, so in float32 about 5e-7.
    Returns (k, *shape), k ≥ 1.  Raises ValueError for an empty S, ends that are no interval, and for g
    that is not (m,), NaN or infinite.
    """
    if isinstance(S, Tensor):
        delta, values = S, _values(g, theta, S)
    else:
        delta, values = _peaks(g, theta, *S)
    top, unit = values.max(), torch.finfo(values.dtype).eps
    return delta[values >= top - max(tolerance, 4 * unit) * top.abs().clamp(min=1)]


def directional_derivative(
    g: Callable[[Tensor, Tensor], Tensor],
    theta: Tensor,
    gamma: Tensor,
    S: Tensor | tuple[float, float],
    tolerance: float = 1e-9,
) -> Tensor:
    """D_γφ(θ) = max_{δ∈S*(θ)} ⟨γ, ∇_θ g(θ, δ)⟩, the one-sided slope of φ(θ) = max_{δ∈S} g(θ, δ).

    gamma: like theta; its length counts.
    Other arguments and errors as for `maximisers`; g(·, δ) must be differentiable. Pieces within
    `tolerance` of the largest count as tied; of others only the leading one counts, however near the
    kink is.
    Returns a number ().  Source: Danskin 1966, Theorem 1.
    """
    if gamma.shape != theta.shape or gamma.dtype != theta.dtype:
        raise ValueError(
            f"expected gamma like theta, {theta.dtype} {tuple(theta.shape)}, "
            f"got {gamma.dtype} {tuple(gamma.shape)}"
        )
    delta = maximisers(g, theta, S, tolerance)
    with torch.inference_mode(False), torch.enable_grad():
        at = theta.detach().clone().requires_grad_()
        values = g(at, delta.clone()) + 0 * at.sum()  # also where g does not depend on θ
        each = torch.eye(len(delta), dtype=values.dtype, device=values.device)
        (gradients,) = torch.autograd.grad(values, at, each, is_grads_batched=True)
    return torch.tensordot(gradients, gamma.detach(), gamma.ndim).max()


def _values(g: Callable[[Tensor, Tensor], Tensor], theta: Tensor, delta: Tensor) -> Tensor:
    """g(θ, δ) for a batch of δ, without a gradient."""
    if len(delta) == 0:
        raise ValueError("expected at least one δ, got an empty set")
    with torch.no_grad():
        values = g(theta, delta)
    bounded = bool((values < torch.inf).all())  # not with NaN either
    if values.shape != delta.shape[:1] or not bounded:
        raise ValueError(
            f"expected g to return ({len(delta)},) numbers, one a δ, got {tuple(values.shape)}"
            + ("" if bounded else " with NaN or infinity")
        )
    return values


def _peaks(
    g: Callable[[Tensor, Tensor], Tensor], theta: Tensor, low: float, high: float
) -> tuple[Tensor, Tensor]:
    """The local maxima of g(θ, ·) on [low, high], by a grid, then ever finer ones around them."""
    if not -np.inf < low <= high < np.inf:
        raise ValueError(f"expected an interval of finite ends low ≤ high, got {low!r} and {high!r}")
    delta = torch.linspace(low, high, GRID, dtype=theta.dtype, device=theta.device)
    values, step = _values(g, theta, delta), (high - low) / (GRID - 1)
    edge = values.new_tensor([-torch.inf])
    around = torch.stack([torch.cat([edge, values[:-1]]), torch.cat([values[1:], edge])])
    delta = delta[(values >= around).all(0)]
    offsets = torch.linspace(-1, 1, 9, dtype=theta.dtype, device=theta.device)
    offsets = offsets[offsets.abs().argsort(stable=True)]  # of equal values the middle one stays
    for _ in range(25):  # each round divides the step by 4
        near = (delta[:, None] + step * offsets).clamp(low, high)
        values, best = _values(g, theta, near.flatten()).view_as(near).max(1)
        delta, step = near.gather(1, best[:, None])[:, 0], step / 4
    return delta, values


# ---- the direction in which it falls fastest ----


def min_norm_point(gradients: Tensor) -> Tensor:
    """α ∈ argmin ‖Σ_i α_i g_i‖² over the simplex: which mixture of the gradients is shortest.

    gradients: (m, *shape), one g_i a row.  Returns weights α (m,), α ≥ 0, Σ α_i = 1.
    Exact: the square of the length is within 1e-13 of the largest ‖g_i‖² of the least.
    Raises ValueError unless there is at least one gradient, and all are finite.
    Source: Wolfe 1976 (the problem); Haskell & Hanson 1981 (its form as least squares).
    """
    return _shortest(gradients).to(gradients)


def min_norm_weights(gram: Tensor) -> Tensor:
    """`min_norm_point` of gradients of which only the inner products are known.

    gram: (m, m), ⟨g_i, g_j⟩; symmetric, with no negative eigenvalue but for rounding.
    Returns weights (m,).  Raises ValueError unless it is square, not empty and finite.
    """
    return torch.from_numpy(_weights(_square(gram, 1))).to(gram)


def _shortest(gradients: Tensor) -> Tensor:
    """The weights of `min_norm_point` in float64, on the CPU."""
    rows = _finite(gradients, "gradients (m, *shape)")
    rows = rows.reshape(len(rows), -1)
    return torch.from_numpy(_weights(rows @ rows.T))


def _weights(G: np.ndarray) -> np.ndarray:
    """argmin αᵀGα over the simplex, by nonnegative least squares: min ‖Rw‖² + (Σw − 1)² over w ≥ 0.

    RᵀR = G. With w = sα and Σα = 1 the best s leaves ‖Rα‖² / (1 + ‖Rα‖²), which grows with ‖Rα‖²: so
    the directions agree, without a penalty that would have to be large.
    """
    from scipy.optimize import nnls

    m = len(G)
    G = G / (G.diagonal().max() or 1.0) + RIDGE * np.eye(m)
    try:
        root = np.linalg.cholesky(G).T
    except np.linalg.LinAlgError:  # inner products that were rounded too much
        values, vectors = np.linalg.eigh(G)
        root = np.sqrt(values.clip(min=RIDGE))[:, None] * vectors.T
    w, _ = nnls(np.vstack([root, np.ones(m)]), np.append(np.zeros(m), 1.0), maxiter=100 * m)
    return w / w.sum()


def descent_direction(gradients: Tensor) -> Tensor:
    """γ* = −Σα_i g_i / ‖Σα_i g_i‖, the unit vector in which max_i ⟨γ, g_i⟩ is smallest, or 0.

    Its slope is max_i ⟨γ*, g_i⟩ = −‖Σα_i g_i‖ < 0. If the shortest mixture is shorter than 1e-6 of the
    longest gradient, it counts as 0: no direction leads down, and this returns 0.

    gradients: (m, *shape), those of all maximisers.  Returns (*shape).
    Raises ValueError as `min_norm_point`.  Source: Latorre et al. 2023, Theorem 2.
    """
    alpha, rows = _shortest(gradients), gradients.double()
    shortest = torch.tensordot(alpha.to(rows), rows, 1)
    size = torch.linalg.vector_norm(shortest)
    longest = torch.linalg.vector_norm(rows.reshape(len(rows), -1), dim=1).max()
    gamma = -shortest / size if size > STATIONARY * longest else torch.zeros_like(shortest)
    return gamma.to(gradients)


def product_weights(gram: Tensor, parts: int, *, tolerance: float = 1e-4, steps: int = 1000) -> Tensor:
    """argmin ‖(1/s) Σ_j Σ_i α_ij g_ij‖² with each column of α in a simplex: s parts that choose alone.

    The hull of all m^s averages (1/s) Σ_j g_{i_j j}, one gradient a part, without listing one of them.
    Frank–Wolfe: the best vertex of a product takes, in every part, the gradient with the smallest
    product with the present mixture; then an exact line search. It ends when moving on can lower the
    square by at most `tolerance` of the largest ‖g_ij‖²/s, or after so many steps.

    gram: (m·s, m·s), inner products of the g_ij; i changes slowest.  parts: s.
    Returns weights (m, s).  Raises ValueError as `min_norm_weights`, and if s does not divide.
    Source: Lacoste-Julien et al. 2013 (the product); Jaggi 2013 (the gap).
    """
    if parts < 1:
        raise ValueError(f"expected parts ≥ 1, got {parts!r}")
    G = _square(gram, parts) / parts**2
    m, enough = len(G) // parts, tolerance * G.diagonal().max() * parts
    alpha, columns = np.full((m, parts), 1 / m), np.arange(parts)
    for _ in range(steps):
        slope = (G @ alpha.ravel()).reshape(m, parts)
        towards = -alpha
        towards[slope.argmin(0), columns] += 1
        gap = -(slope * towards).sum()
        if 2 * gap <= enough:
            break
        bend = towards.ravel() @ G @ towards.ravel()
        if bend <= 0:  # the gap was rounding
            break
        alpha = alpha + min(1.0, gap / bend) * towards
    return torch.from_numpy(alpha).to(gram)


def _square(gram: Tensor, parts: int) -> np.ndarray:
    """Inner products, of so many gradients that `parts` divides their number."""
    if gram.ndim != 2 or gram.shape[0] != gram.shape[1] or len(gram) % parts:
        of = "m" if parts == 1 else f"m·{parts}"
        raise ValueError(f"expected inner products ({of}, {of}), got {tuple(gram.shape)}")
    return _finite(gram, "inner products")


def _finite(values: Tensor, what: str) -> np.ndarray:
    """In float64; not empty, and without NaN."""
    if values.ndim < 1 or values.numel() == 0 or not values.is_floating_point():
        raise ValueError(f"expected {what}, at least one, got {values.dtype} {tuple(values.shape)}")
    array = values.detach().cpu().double().numpy()
    if not np.isfinite(array).all():
        raise ValueError(f"expected finite {what}, got NaN or infinity")
    return array


# ---- training with it ----


def perturbations(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    ball: Ball,
    m: int,
    generator: torch.Generator | Sequence[torch.Generator],
    *,
    steps: int = 10,
) -> Tensor:
    """m near-maximisers of the loss for every sample: `attacks.pgd` from δ = 0 and from random points.

    All m · n attacks run as one batch. With m = 1 that is the attack of adversarial training.
    ball: the same for all samples.  steps: of each attack.
    generator: draws the points; on the device of x; or one for each member of a `stack.Stack`.
    Returns δ (m, n, *shape).  Raises ValueError as `ddd`, and what `attacks.pgd` raises.
    """
    check_tensors(x=x, y=y)
    _check_draws(ball, generator, m, steps)
    every = x.repeat(m, *[1] * (x.ndim - 1))
    start = torch.cat([torch.zeros_like(x), drawn(ball.sample, every[len(x) :], generator)])
    delta = attacks.pgd(model, every, y.repeat(m), ball, steps=steps, start=start, keep="last")
    return delta.view(m, *x.shape)


def gram(model: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """⟨∇_θ ℓ_i, ∇_θ ℓ_j⟩ for the mean losses ℓ_i of r batches, and the loss of every sample.

    x: (r, b, *shape).  y: (r, b).
    Each batch goes through the model by itself, as BatchNorm wants it; statistics that the model keeps
    become the mean of what the r batches would make of them. A layer's r gradients are dropped as soon
    as their products are added up, so never more than one layer's are held.
    Returns (r, r) in float64, and the cross-entropies (r, b), which can be differentiated once more. In
    the batches of a `stack.Stack` of E networks the members' rows take turns, and each member has
    products of its own: (E, r, r).
    Raises ValueError for shapes that do not fit, and for a model without parameters to differentiate.
    """
    check_tensors(x=x, y=y)
    own = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if x.ndim < 2 or y.shape != x.shape[:2] or y.numel() == 0 or not own:
        raise ValueError(
            "expected x (r, b, *shape), y (r, b) and a model with parameters that require a gradient, "
            f"got {tuple(x.shape)}, {tuple(y.shape)} and {len(own)} of them"
        )

    E = members_of(model)

    def add(gradients: Tensor) -> None:
        rows = gradients.reshape(len(gradients), E, -1).transpose(0, 1).double()
        products.baddbmm_(rows, rows.transpose(1, 2))

    def logits(copies: dict, kept: dict, x: Tensor) -> Tensor:
        return models.check_logits(torch.func.functional_call(model, (copies, kept), (x,)), x)

    with torch.inference_mode(False), torch.enable_grad():
        x, y, r = x.clone(), y.clone(), len(x)
        products = torch.zeros(E, r, r, dtype=torch.float64, device=x.device)
        copies = {name: p.expand(r, *p.shape) for name, p in own.items()}
        kept = {name: b.expand(r, *b.shape).clone() for name, b in model.named_buffers()}
        watched = [copy.register_hook(add) for copy in copies.values()]
        z = torch.func.vmap(logits, randomness="different")(copies, kept, x)
        values = losses.cross_entropy(z.flatten(0, 1), y.flatten()).view(y.shape)
        slope = E * values.mean(1).sum()  # the mean over the rows of each member
        torch.autograd.grad(slope, list(own.values()), retain_graph=True, allow_unused=True)
    for hook in watched:  # so that differentiating once more adds nothing
        hook.remove()
    with torch.no_grad():
        for name, buffer in model.named_buffers():
            if not torch.equal(kept[name], buffer.expand(r, *buffer.shape)):
                buffer.copy_(kept[name].double().mean(0))
    return (products if isinstance(model, Stack) else products[0]), values


def ddd(
    ball: Ball,
    generator: torch.Generator | Sequence[torch.Generator],
    m: int = 10,
    *,
    steps: int = 10,
    parts: int = 1,
) -> Callable[[nn.Module, Tensor, Tensor], Tensor]:
    """Danskin's descent direction, as the inner maximum of `training.fit`: Σ_i α_i ℓ(f(x + δ⁽ⁱ⁾), y).

    The weights α are those of the shortest mixture of the m gradients, and are held still: so the
    gradient of the mean over the batch is that mixture. For normalised steps `optimisers.SGD`.

    m:     perturbations a sample (`perturbations`); 1 is adversarial training.
    steps: those of the attack.
    parts: into how many equal parts the batch falls (at most; as many as divide it). Each part has
           weights of its own (`product_weights`): 1 is the published algorithm, n gives every sample
           its own. More parts mean more choice, m^parts batches out of m · parts gradients. BatchNorm
           sees each part alone.
    generator: draws the starts; or one for each member of a `stack.Stack`, whose weights α are its own.
    Returns (model, x (n, *shape), y (n,)) → (n,).
    Raises ValueError for an ε for each sample, m, steps or parts out of range.
    Source: Latorre et al. 2023, algorithm 1; the parts are our reading of its combinatorial batches.
    """
    _check_draws(ball, generator, m, steps)
    if parts < 1:
        raise ValueError(f"expected parts ≥ 1, got {parts!r}")

    def inner(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        moved = x + perturbations(model, x, y, ball, m, generator, steps=steps)
        if m == 1:
            return losses.cross_entropy(models.logits(model, moved[0]), y)
        E = members_of(model)
        n = len(x) // E
        s = max(k for k in range(1, min(parts, n) + 1) if n % k == 0)
        rows = moved.reshape(m * s, len(x) // s, *x.shape[1:])
        products, values = gram(model, rows, y.repeat(m).view(rows.shape[:2]))
        each = [
            min_norm_weights(G)[:, None] if s == 1 else product_weights(G, s)
            for G in products.view(E, m * s, m * s)
        ]
        alpha = torch.stack(each, -1).to(values)  # (m, s, E)
        return (alpha[:, :, None] * values.view(m, s, -1, E)).sum(0).flatten()

    return inner


def _check_draws(ball: Ball, generator: torch.Generator, m: int, steps: int) -> None:
    check_ball(ball)
    if ball.per_sample or generator is None or m < 1 or steps < 1:
        raise ValueError(
            "expected one eps for all samples, a generator, and m and steps of at least 1, "
            f"got {ball.eps!r}, {generator!r}, {m!r} and {steps!r}"
        )
