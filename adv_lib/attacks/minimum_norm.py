"""DeepFool, C&W, DDN and FAB: the shortest δ that breaks a sample, rather than the worst of one length.

    min ‖δ‖_p  over all δ with x + δ in the box and classified wrongly, or with targets as the target.

The ball is a cap, and moves no iterate: whatever ε, the same δ is found. It is returned where ‖δ‖_p ≤ ε;
where it is longer, or none was found, δ = 0. So with ε = ∞ one run has the whole curve: a sample that is
right at x + δ withstands the attack at every radius, any other at all those below ‖δ‖_p.

Every attack ends with three queries, without a gradient, on the way from what it found towards x.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor

from .._given import check_ball
from ..projections import nearest, norm, onto_hyperplane, to_length
from ..threat import Ball
from ._search import Loss, Model, Search, fresh, search

QUERIES = 3  # at the end
OVERSHOOT = 0.02  # of DeepFool
GAMMA = 0.05  # by which part DDN makes its sphere larger or smaller
BETA, ETA, ALPHA = 0.9, 1.05, (0.01, 0.1)  # of FAB: back, over the edge, weight of the step from x
RATE, MEMORY = 0.1, (0.9, 0.999)  # of Adam, in C&W


class Shortest:
    """The shortest δ found for every sample; it breaks it by at least `confidence`.

    delta (n, d); length (n, 1), its ‖·‖_p, ∞ where there is none.
    """

    def __init__(self, run: Search, p: float, cap: Tensor, confidence: float):
        self.run, self.p, self.cap, self.confidence = run, p, cap, confidence
        self.delta = run.nothing()
        self.length = torch.full_like(self.delta[:, :1], math.inf)
        self.clean: Tensor | None = None  # the lead at the first δ, which is 0
        self.lead = self.length  # that at delta

    def leads(self, z: Tensor) -> Tensor:
        """By how much a sample is not yet broken, (n, 1), in the units of z."""
        lead = self.run.margin(z).to(self.delta)[:, None] + self.confidence
        if lead.isnan().any():
            raise ValueError("the logits became NaN")
        return lead

    def look(self, delta: Tensor, z: Tensor) -> Tensor:
        """Keep the rows of δ, which gives z, that are shorter; return which are broken, (n, 1)."""
        lead, length = self.leads(z), norm(delta, self.p)
        self.clean = lead if self.clean is None else self.clean
        broken = lead <= 0
        better = broken & (length < self.length)
        self.length, self.lead = (
            torch.where(better, new, old) for new, old in ((length, self.length), (lead, self.lead))
        )
        self.delta = torch.where(better, delta, self.delta)
        return broken

    def shrunk(self, share: Tensor) -> Tensor:
        """The δ found, projected onto a ball that is shorter by this share: where p = 2, scaled."""
        if self.p == 2:
            return share * self.delta
        size = self.delta.abs()
        return self.delta.sign() * nearest(size, size, share * norm(self.delta, self.p), self.p)

    def result(self) -> Tensor:
        """What was found, `shrunk` as far as a few queries see it break the sample, and capped.

        Each query is where the straight line through the leads at both ends is 0, and 1 % further.
        """
        if ((self.length > 0) & (self.length < math.inf)).any():
            near, far = torch.zeros_like(self.length), torch.ones_like(self.length)
            near_lead, far_lead = self.clean, self.lead.clamp(max=0)
            for _ in range(QUERIES):
                tiny = torch.finfo(far.dtype).tiny
                share = (near_lead / (near_lead - far_lead).clamp(min=tiny)).clamp(0, 1)
                at = near + (far - near) * (share + 0.01 * (1 - share))
                lead = self.leads(self.run.logits(self.shrunk(at)))
                broken = lead <= 0
                near, near_lead = torch.where(broken, near, at), torch.where(broken, near_lead, lead)
                far, far_lead = torch.where(broken, at, far), torch.where(broken, lead, far_lead)
            self.delta = self.shrunk(far)
        allowed = (self.length < math.inf) & (norm(self.delta, self.p) <= self.cap)
        return self.run.shaped(torch.where(allowed, self.delta, 0))


@contextmanager
def _shortest(
    model: Model,
    x: Tensor,
    y: Tensor,
    ball: Ball,
    targets: Tensor | None,
    loss: Loss | None = None,
    keep: str = "best",
    confidence: float = 0.0,
) -> Iterator[tuple[Search, Shortest]]:
    """A search in all of the box, and what it has found."""
    check_ball(ball)
    if torch.as_tensor(ball.eps).ndim > 1:
        raise ValueError(f"expected one eps a sample, because it caps a length, got {ball.eps!r}")
    whole = replace(ball, eps=math.inf)
    with search(model, x, y, whole, loss, targets, keep, endless=True) as run:
        cap = ball.radii(run.x)[:, None].detach()
        yield run, Shortest(run, ball.p, cap, confidence)


def _expect(ball: Ball, p: float) -> None:
    check_ball(ball)
    if ball.p != p:
        raise ValueError(f"expected a ball with p = {p}, got p = {ball.p}")


def deepfool(
    model: Model,
    x: Tensor,
    y: Tensor,
    ball: Ball,
    *,
    steps: int = 50,
    targets: Tensor | None = None,
) -> Tensor:
    """DeepFool: go where the logits' tangents see the nearest other class, until there is one.

    r ← r + v with the shortest v that takes x + δ + v onto the nearest of the hyperplanes
    z_k(x + δ) + ⟨∇z_k, v⟩ = z_y(x + δ) + ⟨∇z_y, v⟩ and leaves x + δ + v in the box; δ = 1.02 r, cut to
    the box. On a linear model the first v is the answer, with a box if there are two classes. A broken
    sample is left alone.

    steps: at most, ≥ 1; each costs a forward pass and one backward pass for each other class.
    targets: then the hyperplane is that of the target and the strongest other class.
    Returns δ like x.  Raises ValueError for steps < 1.
    Source: Moosavi-Dezfooli, Fawzi & Frossard 2016, algorithm 2, and §3.3 for other p; without a box.
    """
    if steps < 1:
        raise ValueError(f"expected steps ≥ 1, got {steps!r}")
    with _shortest(model, x, y, ball, targets, keep="first") as (run, found):
        low, high = run.region.low, run.region.high
        reached = delta = run.nothing()
        for step in range(steps):
            z, w, b = _nearest_hyperplane(run, delta, ball)
            run.record(0, step, delta, z)
            broken = found.look(delta, z)
            if run.over:
                break
            reached = reached + onto_hyperplane(delta, w, b, low, high, ball.p) - delta
            delta = torch.where(broken, delta, ((1 + OVERSHOOT) * reached).clamp(low, high))
        else:
            found.look(delta, run.logits(delta))
        run.lowest.fill_(math.inf)  # ask about all of them again
        return found.result()


def ddn(
    model: Model,
    x: Tensor,
    y: Tensor,
    ball: Ball,
    *,
    steps: int = 100,
    loss: Loss | None = None,
    targets: Tensor | None = None,
) -> Tensor:
    """Decoupled direction and norm, for p = 2: ascent on a sphere that shrinks where a sample is broken.

    δ ← δ + α ∇ℓ/‖∇ℓ‖₂, with α from 1 to 0.01 along half a cosine, then δ ← ε_k δ/‖δ‖₂, cut to the box.
    ε_0 = 1, and ε_k is 5 % smaller than the one before if x + δ was broken, and 5 % larger if not. The
    unit of α and ε is the width of the box; without one it is lead/‖∇ℓ‖₂ at x, for each sample.

    steps: ≥ 1, each costs a forward and a backward pass.
    loss: as for all attacks. Where the logits are small, as published, ℓ heads for all other classes at
          once; `losses.margin_loss` heads for one, and finds shorter δ there, but longer ones elsewhere.
    Returns δ like x.  Raises ValueError for p other than 2 and steps < 1.
    Source: Rony et al. 2019, algorithm 1, without the rounding to 8 bits.
    """
    if steps < 1:
        raise ValueError(f"expected steps ≥ 1, got {steps!r}")
    _expect(ball, 2)
    with _shortest(model, x, y, ball, targets, loss) as (run, found):
        low, high, tiny = run.region.low, run.region.high, torch.finfo(run.x.dtype).tiny
        delta = run.nothing()
        for step in range(steps):
            z, slope = run.climb(delta)
            broken = found.look(delta, z)
            if step == 0:
                unit = found.clean.clamp(min=0) / norm(slope, 2).clamp(min=tiny**0.5)
                eps = unit = (
                    unit if ball.box is None else torch.full_like(unit, ball.box[1] - ball.box[0])
                )
            eps = eps * torch.where(broken, 1 - GAMMA, 1 + GAMMA)
            alpha = 0.01 + 0.99 * (1 + math.cos(math.pi * step / steps)) / 2
            delta = to_length(delta + to_length(slope, alpha * unit), eps).clamp(low, high)
        return found.result()


def cw(
    model: Model,
    x: Tensor,
    y: Tensor,
    ball: Ball,
    *,
    confidence: float = 0.0,
    steps: int = 100,
    searches: int = 5,
    targets: Tensor | None = None,
) -> Tensor:
    """The attack of Carlini & Wagner, for p = 2 and a box: ‖δ‖₂² + c max(lead + κ, 0) by Adam.

    x + δ is the middle of the box plus half its width times tanh(w), so that no w leaves it. The lead is
    that of the label over all other classes, or with targets that of the others over the target. Each
    sample searches for its c between the last with success and the last without, or tries 10 c; the
    first is the one that would be right if the lead were linear, 2 lead / ‖∇ lead‖₂².

    confidence: κ ≥ 0, in the units of the logits: by how much the wrong class must lead.
    steps, searches: of Adam for each c, and how many c; one more pass is the first.
    Returns δ like x.  Raises ValueError for p other than 2, no box, κ < 0, and steps or searches < 1.
    Source: Carlini & Wagner 2017, §V-A and VI.
    """
    if steps < 1 or searches < 1 or not 0 <= confidence < math.inf:
        raise ValueError(
            "expected confidence ≥ 0, steps ≥ 1 and searches ≥ 1, "
            f"got {confidence!r}, {steps!r} and {searches!r}"
        )
    _expect(ball, 2)
    if ball.box is None:
        raise ValueError(f"expected a ball with a box, which tanh has for its range, got {ball}")

    def hinge(z: Tensor, *_: Tensor) -> Tensor:
        return (run.margin(z) + confidence).clamp(min=0)

    with _shortest(model, x, y, ball, targets, hinge, confidence=confidence) as (run, found):
        rows, low, high = run.x.flatten(1), run.region.low, run.region.high
        middle, half = sum(ball.box) / 2, (ball.box[1] - ball.box[0]) / 2
        start = torch.atanh((1 - 1e-6) * (rows - middle) / half)
        z, slope = run.climb(run.nothing())
        found.look(run.nothing(), z)
        c = 2 * found.clean.clamp(min=0) / norm(slope, 2).square().clamp(min=1e-10)
        least, most = torch.zeros_like(c), torch.full_like(c, math.inf)
        for _ in range(searches):
            w, mean, square = start, torch.zeros_like(start), torch.zeros_like(start)
            success = torch.zeros_like(c, dtype=torch.bool)
            for step in range(1, steps + 1):
                t = torch.tanh(w)
                delta = (middle + half * t - rows).clamp(low, high)
                z, slope = run.climb(delta)
                success |= found.look(delta, z)
                down = (2 * delta + c * slope) * half * (1 - t * t)
                mean = MEMORY[0] * mean + (1 - MEMORY[0]) * down
                square = MEMORY[1] * square + (1 - MEMORY[1]) * down * down
                size = (square / (1 - MEMORY[1] ** step)).sqrt() + 1e-8
                w = w - RATE * mean / (1 - MEMORY[0] ** step) / size
            most, least = torch.where(success, c, most), torch.where(success, least, c)
            c = torch.where(most < math.inf, (least + most) / 2, 10 * c)
        return found.result()


def fab(
    model: Model,
    x: Tensor,
    y: Tensor,
    ball: Ball,
    *,
    steps: int = 20,
    restarts: int = 1,
    targets: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Fast adaptive boundary: project onto the nearest linearised decision hyperplane, and stay near x.

    At x + δ the hyperplane is that of `deepfool`. With d and d₀ the shortest ways onto it, in the box,
    from x + δ and from x, and a = ‖d‖ / (‖d‖ + ‖d₀‖), cut to [0.01, 0.1],

        δ ← (1 − a) (δ + 1.05 d) + a 1.05 d₀,  cut to the box,  and δ ← 0.9 δ if that breaks the sample.

    As published but for 0.01 in place of 0: where rounding leaves x + δ just short of the hyperplane, it
    takes it over. On some samples the iterates go round in circles short of the edge; restarts help.

    steps: ≥ 1, each costs two forward passes, and a backward pass for each other class.
    restarts: how many starts: the first at δ = 0, the others in random directions, half as long as the
              shortest δ so far, or where there is none, as where the last start ended.
    targets: then the only hyperplane is that of the target and the strongest other class.
    Returns δ like x.  Raises ValueError for steps or restarts < 1.
    Source: Croce & Hein 2020 (FAB), algorithm 1.
    """
    if steps < 1 or restarts < 1:
        raise ValueError(f"expected steps ≥ 1 and restarts ≥ 1, got {steps!r} and {restarts!r}")
    with _shortest(model, x, y, ball, targets) as (run, found):
        generator, delta = fresh(generator, x), run.nothing()
        low, high = run.region.low, run.region.high
        for restart in range(restarts):
            if restart:
                way = torch.empty_like(delta).normal_(generator=generator)
                size = torch.where(found.length < math.inf, found.length, norm(delta, ball.p)) / 2
                delta = (size * way / norm(way, ball.p)).clamp(low, high)
            for _ in range(steps):
                z, w, b = _nearest_hyperplane(run, delta, ball)
                found.look(delta, z)
                both = torch.cat([delta, torch.zeros_like(delta)])
                ends = onto_hyperplane(both, *(v.repeat(2, 1) for v in (w, b, low, high)), ball.p)
                d, d0 = (ends - both).chunk(2)
                far, far0 = norm(d, ball.p), norm(d0, ball.p)
                a = (far / (far + far0).clamp(min=torch.finfo(far.dtype).tiny)).clamp(*ALPHA)
                delta = ((1 - a) * (delta + ETA * d) + a * ETA * d0).clamp(low, high)
                broken = found.look(delta, run.logits(delta))
                delta = torch.where(broken, BETA * delta, delta)
        return found.result()


def _nearest_hyperplane(run: Search, delta: Tensor, ball: Ball) -> tuple[Tensor, Tensor, Tensor]:
    """z at x + δ, and of the hyperplanes where by its tangents there another class is level the nearest.

    It has all δ' with ⟨w, δ'⟩ = b; distances from δ are in ‖·‖_p, without the box. A class whose lead
    does not move is nowhere near; if all are such, w is 0.
    Returns z (n, K), w (n, d), b (n, 1).
    """
    with torch.enable_grad():
        leaf = run.shaped(delta).requires_grad_()
        z = run.model(run.x + leaf)
        run.margin(z.detach())  # raises for labels that do not fit
        label, *targets = run.labels
        if targets:
            up = targets[0][:, None]
            down = z.detach().scatter(1, up, -math.inf).argmax(1, keepdim=True)
        else:
            down = label[:, None]
            up = (down + torch.arange(1, z.shape[1], device=z.device)) % z.shape[1]
        leads = z.gather(1, down) - z.gather(1, up)
        nearest, w = torch.full_like(delta[:, :1], math.inf), torch.zeros_like(delta)
        f = torch.zeros_like(nearest)
        for i, lead in enumerate(leads.split(1, 1), 1):
            slope = run.gradient(-lead.sum(), leaf, again=i < leads.shape[1])
            lead, long = lead.detach().to(delta), norm(slope, ball.dual_order)
            far = torch.where(long > 0, lead.abs() / long, math.inf)
            nearer = far < nearest
            nearest = torch.where(nearer, far, nearest)
            f, w = torch.where(nearer, lead, f), torch.where(nearer, slope, w)
    return z.detach(), w, f + (w * delta).sum(1, keepdim=True)
