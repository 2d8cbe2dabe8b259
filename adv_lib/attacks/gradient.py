"""FGSM, BIM, ILCM and PGD: follow the gradient by steepest steps in the ball's own norm."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from .. import losses
from ..threat import Ball
from ._search import Iterate, Loss, Model, check_start, fresh, search


def fgsm(
    model: Model,
    x: Tensor,
    y: Tensor,
    ball: Ball,
    *,
    loss: Loss | None = None,
    targets: Tensor | None = None,
) -> Tensor:
    """The fast gradient method: the exact maximiser of the linearised loss.

    δ = argmax ⟨∇_x ℓ(x, y), δ⟩ over δ ∈ Δ(x); for p = ∞ without a box that is ε sign(∇_x ℓ).
    Returns δ like x.  Source: Goodfellow, Shlens & Szegedy 2015, for p = ∞.
    """
    with search(model, x, y, ball, loss, targets) as run:
        _, gradient = run.climb(run.nothing())
        return run.shaped(run.region.argmax(gradient))


def bim(
    model: Model,
    x: Tensor,
    y: Tensor,
    ball: Ball,
    *,
    steps: int = 10,
    loss: Loss | None = None,
    targets: Tensor | None = None,
) -> Tensor:
    """The basic iterative method: from δ = 0, `steps` steps of length ε / steps, and where they end.

    δ ← P(δ + v), where v maximises ⟨∇_x ℓ(x + δ, y), v⟩ over ‖v‖_p ≤ ε / steps: only steps that all
    agree go as far as FGSM does.
    Returns δ like x.  Raises ValueError for steps < 1.
    Source: Kurakin, Goodfellow & Bengio 2017, section 2.2.
    """
    if steps < 1:
        raise ValueError(f"expected steps ≥ 1, got {steps!r}")
    with search(model, x, y, ball, loss, targets) as run:
        delta = run.nothing()
        for _ in range(steps):
            _, gradient = run.climb(delta)
            delta = run.region.step(delta, gradient, run.region.eps / steps)
        return run.shaped(delta)


def ilcm(
    model: Model,
    x: Tensor,
    y: Tensor,
    ball: Ball,
    *,
    steps: int = 10,
    targets: Tensor | None = None,
) -> Tensor:
    """The iterative least-likely class method: BIM towards the class that the model rules out most.

    δ ← P(δ + v), where v maximises ⟨∇_x log p_t(x + δ), v⟩ over ‖v‖_p ≤ ε / steps, t = argmin_k p_k(x)
    and p the softmax. Where t is the label, it is the second least likely class. What is climbed is
    minus `losses.log_odds` of z and t: the same direction, and it cannot saturate.

    targets: t (n,); None means the least likely classes.
    Returns δ like x.  Raises ValueError for steps < 1.
    Source: Kurakin, Goodfellow & Bengio 2017, section 2.3.
    """
    if steps < 1:
        raise ValueError(f"expected steps ≥ 1, got {steps!r}")
    with search(model, x, y, ball, _likelihood, targets) as run:
        delta = run.nothing()
        if targets is None:
            z = run.logits(delta)
            run.margin(z)  # looks at the labels
            run.labels += (z.scatter(1, run.labels[0][:, None], math.inf).argmin(1),)
        for _ in range(steps):
            _, gradient = run.climb(delta)
            delta = run.region.step(delta, gradient, run.region.eps / steps)
        return run.shaped(delta)


def pgd(
    model: Model,
    x: Tensor,
    y: Tensor,
    ball: Ball,
    *,
    steps: int = 40,
    step_size: float | None = None,
    restarts: int = 1,
    start: Tensor | None = None,
    loss: Loss | None = None,
    targets: Tensor | None = None,
    keep: str = "best",
    generator: torch.Generator | None = None,
    callback: Callable[[Iterate], None] | None = None,
) -> Tensor:
    """Projected gradient ascent by normalised steepest steps in the ball's own norm.

    δ ← P(δ + v), where v maximises ⟨∇_x ℓ(x + δ, y), v⟩ over ‖v‖_p ≤ α without leaving the box, and
    P projects onto Δ(x) (`threat.Region.step`).

    step_size: α > 0 in the units of ε; None means 2.5 ε / steps. If each entry has its own ε, α goes
               with the largest of the sample, and an entry that may move half as far steps half as far.
    restarts:  how many starts: the first at `start`, the others at random points of Δ(x).
    start:     a point of Δ(x), like x; None means δ = 0.
    keep:      what to return for each sample: its "best" iterate of the whole run, the one with the
               smallest margin; the "first" one that breaks it, where it stops; the "last" one of the
               last start, whatever other starts found, for training with one start.
    callback:  sees every iterate, the starts included; with "first" only the samples not yet broken.
    Returns δ like x.
    Source: Madry et al. 2018; the normalised step: Kolter & Madry 2018, chapter 3.
    """
    if steps < 0 or restarts < 1 or keep not in ("best", "first", "last"):
        raise ValueError(
            'expected steps ≥ 0, restarts ≥ 1 and keep "best", "first" or "last", '
            f"got {steps!r}, {restarts!r} and {keep!r}"
        )
    if step_size is not None and not 0 < step_size < math.inf:
        raise ValueError(f"expected step_size > 0, in the units of eps, got {step_size!r}")
    with search(model, x, y, ball, loss, targets, keep, callback) as run:
        check_start(start, x, ball)
        generator = fresh(generator, x)
        for restart in range(restarts):
            delta = run.start(ball, restart, generator, start)
            for step in range(steps):
                if run.over:
                    break
                z, gradient = run.climb(delta)
                run.record(restart, step, delta, z)
                alpha = 2.5 * run.region.eps / steps if step_size is None else step_size
                delta = run.region.step(delta, gradient, alpha)
            if not run.over and (callback or keep != "last"):
                run.record(restart, steps, delta, run.logits(delta))
        return run.shaped(delta if keep == "last" else run.best)


def friendly(
    model: Model,
    x: Tensor,
    y: Tensor,
    ball: Ball,
    *,
    steps: int = 10,
    step_size: float | None = None,
    tolerance: int = 0,
    loss: Loss | None = None,
    targets: Tensor | None = None,
) -> Tensor:
    """PGD from δ = 0 that takes at most `tolerance` steps from points where the sample is broken.

    δ ← P(δ + v) as in `pgd`, until the model is wrong at x + δ for the (tolerance + 1)-th time; then the
    sample stays there. With tolerance ≥ steps it is `pgd` that keeps the "last". For training on what is
    only just broken. It asks about all samples to the end, so that it takes a stack and saves no time.

    step_size: α > 0 in the units of ε; None means 2.5 ε / steps.
    Returns δ like x.  Raises ValueError for steps < 1, tolerance < 0 and another step_size.
    Source: Zhang et al. 2020 (friendly adversarial training), algorithm 1.
    """
    if steps < 1 or tolerance < 0:
        raise ValueError(f"expected steps ≥ 1 and tolerance ≥ 0, got {steps!r} and {tolerance!r}")
    if step_size is not None and not 0 < step_size < math.inf:
        raise ValueError(f"expected step_size > 0, in the units of eps, got {step_size!r}")
    with search(model, x, y, ball, loss, targets) as run:
        delta, wrong = run.nothing(), torch.zeros(len(x), dtype=torch.int64, device=x.device)
        alpha = 2.5 * run.region.eps / steps if step_size is None else step_size
        for _ in range(steps):
            z, gradient = run.climb(delta)
            wrong += run.margin(z) <= 0
            moved = run.region.step(delta, gradient, alpha)
            delta = torch.where((wrong <= tolerance)[:, None], moved, delta)
        return run.shaped(delta)


def _likelihood(z: Tensor, y: Tensor, targets: Tensor) -> Tensor:
    """The log-odds for the target, whatever the label."""
    return -losses.log_odds(z, targets)
