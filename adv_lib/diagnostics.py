"""Looks behind a number: is the attack blind, and what does the loss look like where it climbed?

A robust accuracy can be high because the model is robust or because the attack fails. `masking` looks
for symptoms of the second; `landscape` and `loss_along` draw the loss around one sample, `cross_section`
what the model answers there.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from . import attacks, losses
from ._given import check_ball, check_tensors
from .evaluation import Attack, Model, Rate, rate, survivors
from .models import evaluating, logits
from .threat import Ball


class Symptom(NamedTuple):
    """Something that a robust model with honest gradients does not show, and on how many samples."""

    name: str
    shown: Rate

    @property
    def suspicious(self) -> bool:
        """Whether more than 1 % show it, beyond what the size of the test set leaves open."""
        return self.shown.low > 0.01

    def __str__(self) -> str:
        return f"{'!' if self.suspicious else ' '} {self.name:42} {self.shown}"


def masking(
    model: Model,
    x: Tensor,
    y: Tensor,
    ball: Ball,
    attack: Attack = attacks.pgd,
    *,
    queries: int = 500,
    generator: torch.Generator | None = None,
) -> list[Symptom]:
    """Is `attack`, by which a model looks robust, blind?  What other looks at the same samples find.

    Every symptom but the first two counts samples that withstand `attack` and not another one that
    should be weaker, or that a sound attack has no reason to miss:

    1. the cross-entropy has a gradient of exactly 0 in x;
    2. a ball as large as the box, in which every class is an option, leaves the sample unbroken;
    3. one step (`attacks.fgsm`) breaks it;
    4. `attacks.pgd` with 200 steps breaks it;
    5. `attacks.apgd` on the margin breaks it;
    6. `queries` queries without gradients (`attacks.square`, not for p = 1) break it.

    generator: for the last; None means a fresh one seeded 0.  Needs a ball with a box, for 2.
    A model that shows none may still have masked gradients: only an attack made for it can tell.
    Source: Athalye, Carlini & Wagner 2018, section 3.1; Carlini et al. 2019, section 3.
    """
    check_tensors(x=x, y=y)
    check_ball(ball)
    if ball.box is None or len(x) == 0:
        raise ValueError(
            "expected a ball with a box, of which the second symptom is the size, and at least one "
            f"sample, got {ball} and {len(x)}"
        )
    low, high = ball.box
    reach = (high - low) * x[0].numel() ** (0 if ball.p == math.inf else 1 / ball.p)
    right = survivors(model, x, y, ball)
    left = survivors(model, x, y, ball, [attack])
    steep = torch.cat([_slope(model, a, b) for a, b in zip(x.split(1000), y.split(1000), strict=True)])
    others = {
        "one step breaks what it missed": attacks.fgsm,
        "200 steps break what it missed": partial(attacks.pgd, steps=200),
        "another loss breaks what it missed": partial(attacks.apgd, loss=losses.margin_loss),
    }
    if ball.p != 1:
        others["a search without gradients does too"] = partial(
            attacks.square, queries=queries, generator=generator
        )
    symptoms = [
        Symptom("right, and the gradient is exactly 0", rate(right & (steep == 0))),
        Symptom(
            "unbroken in a ball as large as the box",
            rate(survivors(model, x, y, replace(ball, eps=reach), [attack])),
        ),
    ]
    for name, other in others.items():
        symptoms.append(Symptom(name, rate(left & ~survivors(model, x, y, ball, [other]))))
    return symptoms


def _slope(model: Model, x: Tensor, y: Tensor) -> Tensor:
    """‖∇_x ℓ‖_∞ of the cross-entropy, (n,): 0 where the loss does not follow x at all."""
    with evaluating(model), torch.inference_mode(False), torch.enable_grad():
        at, labels = x.detach().clone().requires_grad_(), y.clone()
        loss = losses.cross_entropy(logits(model, at), labels).sum()
        if not loss.requires_grad:
            return torch.zeros_like(x.flatten(1)[:, 0])
        (gradient,) = torch.autograd.grad(loss, at, allow_unused=True, materialize_grads=True)
    return gradient.flatten(1).abs().amax(1)


def landscape(
    model: Model,
    x: Tensor,
    y: Tensor,
    ball: Ball,
    distances: Tensor,
) -> Tensor:
    """ℓ(x + s u + t v, y) of one sample: u the steepest step of size ε, v a random one of the same size.

    ℓ is the cross-entropy, u `attacks.fgsm` on it, v what `ball.argmax` makes of a normal vector, always
    the same one; both without the box.
    x: (1, *shape), y: (1,), distances: the values of s and of t, in units of ε.
    Returns (len(distances), len(distances)), rows s, columns t.
    """
    check_tensors(x=x, y=y, distances=distances)
    check_ball(ball)
    free = replace(ball, box=None)
    generator = torch.Generator(x.device).manual_seed(0)
    steepest = attacks.fgsm(model, x, y, free, loss=losses.cross_entropy)
    random = torch.randn(x.shape, generator=generator, device=x.device, dtype=x.dtype)
    return loss_along(model, x, y, [steepest, free.argmax(random)], distances, distances)


def loss_along(
    model: Model,
    x: Tensor,
    y: Tensor,
    directions: Sequence[Tensor],
    *distances: Tensor,
    loss: Callable[[Tensor, Tensor], Tensor] = losses.cross_entropy,
) -> Tensor:
    """ℓ(x + t₁ u₁ + t₂ u₂ + …, y) of one sample, on the grid of all t₁, t₂, …: a line, a plane.

    x: (1, *shape), y: (1,), directions u: each (1, *shape); distances: one vector for each direction.
    Returns a tensor of shape (len(distances[0]), len(distances[1]), …).
    """
    check_tensors(x=x, y=y)
    if x.shape[:1] != (1,) or y.shape != (1,) or not distances or len(directions) != len(distances):
        raise ValueError(
            "expected one sample, its label (1,), and as many distances as directions, at least one, "
            f"got {tuple(x.shape)}, {tuple(y.shape)}, {len(distances)} and {len(directions)}"
        )
    for u, t in zip(directions, distances, strict=True):
        check_tensors(direction=u, distances=t)
    if any(u.shape != x.shape or u.dtype != x.dtype for u in directions):
        found = [f"{u.dtype} {tuple(u.shape)}" for u in directions]
        raise ValueError(f"expected directions like x, {x.dtype} {tuple(x.shape)}, got {found}")
    if any(t.ndim != 1 for t in distances):
        raise ValueError(f"expected distances (t,), got {[tuple(t.shape) for t in distances]}")
    grid = torch.cartesian_prod(*distances).reshape(-1, len(distances)).to(x)
    moves = grid @ torch.cat([u.reshape(1, -1) for u in directions])
    with evaluating(model), torch.no_grad():
        values = loss(logits(model, x + moves.reshape(-1, *x.shape[1:])), y.expand(len(grid)))
    if values.shape != (len(grid),):
        raise ValueError(f"expected a loss with one number a sample, got {tuple(values.shape)}")
    return values.reshape([len(t) for t in distances])


def cross_section(
    model: Model,
    x: Tensor,
    delta: Tensor,
    along: Tensor,
    across: Tensor,
    *,
    generator: torch.Generator | None = None,
) -> Tensor:
    """The logits at x + s δ + t r: a cut through the decision regions, of which the argmax shows which.

    δ is where an attack went, r a random direction, orthogonal to δ and of the same ‖·‖₂. The box is not
    looked at.
    x, delta: (1, *shape), delta not 0; along, across: the values of s and of t, (a,) and (b,).
    generator: for r; None means a fresh one seeded 0.
    Returns (a, b, K).
    Source: Moosavi-Dezfooli et al. 2019, figure 2; Pang et al. 2021, figure 3, takes δ from PGD-10.
    """
    check_tensors(x=x, delta=delta, along=along, across=across)
    if x.shape[:1] != (1,) or delta.shape != x.shape or along.ndim != 1 or across.ndim != 1:
        raise ValueError(
            "expected one sample, a δ like it, and two vectors of distances, "
            f"got {tuple(x.shape)}, {tuple(delta.shape)}, {tuple(along.shape)} and {tuple(across.shape)}"
        )
    length = torch.linalg.vector_norm(delta)
    if not bool(length > 0):
        raise ValueError("expected a δ other than 0, along which to cut")
    if generator is None:
        generator = torch.Generator(x.device).manual_seed(0)
    r = torch.randn(x.shape, generator=generator, device=x.device, dtype=x.dtype)
    r = r - delta * (r * delta).sum() / length.square()
    r = r * length / torch.linalg.vector_norm(r)
    grid = torch.cartesian_prod(along, across).to(x)
    moved = x + (grid @ torch.stack([delta.flatten(), r.flatten()])).view(-1, *x.shape[1:])
    with evaluating(model), torch.no_grad():
        return logits(model, moved).view(len(along), len(across), -1)
