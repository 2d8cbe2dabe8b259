"""Attacks that ask for logits only: random search, and slopes from differences."""

from __future__ import annotations

import math
from functools import cache

import torch
from torch import Tensor

from .. import _work, projections
from ..threat import Ball
from ._search import Model, Search, fresh, search

STAGES = (0.001, 0.005, 0.02, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8)  # shares of all queries
TILES = 5  # the start for p = 2 has this many on a side
SMALLEST = 3  # side of a window for p = 2
MOMENTUM = 0.9


def square(
    model: Model,
    x: Tensor,
    y: Tensor,
    ball: Ball,
    *,
    queries: int = 1000,
    targets: Tensor | None = None,
    keep: str = "first",
    generator: torch.Generator | None = None,
) -> Tensor:
    """The Square attack: random search that asks for logits only, never for a gradient; p = 2 and ∞.

    For p = ∞, δ starts as vertical stripes of ±ε. A query sets a random square of the image to ±ε, one
    sign a channel. For p = 2, δ starts as 5 × 5 tiles, each a hill beside a valley. A query empties a
    random square, and what length that frees goes into another: the direction δ had in it, plus a hill
    and a valley of random signs; then ‖δ‖₂ = ε again, up to what the box cuts off. In both, the query is
    kept if the margin (see `Iterate`) shrinks. A square covers 0.8 of the image at first and less with
    every stage of the search.

    The last two axes of x are height and width, the others channels; a vector is an image of height 1.
    keep: the "first" query that breaks a sample, which is then left alone; or the "best" of all, where
          every query is about the whole batch, for a model that answers a sample differently in other
          company. Of a model that does not, both break the same samples.
    Returns δ like x.  Raises ValueError for p = 1.
    Source: Andriushchenko et al. 2020, algorithms 1 to 3.
    """
    if queries < 1 or keep not in ("best", "first"):
        raise ValueError(
            f'expected queries ≥ 1 and keep "best" or "first", got {queries!r} and {keep!r}'
        )
    with search(model, x, y, ball, None, targets, keep) as run:
        if ball.p == 1:
            raise ValueError(f"expected a ball with p = 2 or inf, got p = {ball.p}")
        low, high = run.region.low, run.region.high
        canvas = (_Signs if ball.p == math.inf else _Hills)(run, fresh(generator, x))
        delta = run.region.project(canvas.start())
        run.record(0, 0, delta, run.logits(delta))
        for query in range(1, queries):
            if run.over:
                break
            area = 0.8 / 2 ** sum(query / queries >= stage for stage in STAGES)
            delta = canvas.change(run.best, area).clamp(low, high)  # no longer than ε as it is
            run.record(0, query, delta, run.logits(delta))
        return run.shaped(run.best)


class _Canvas:
    """What `square` draws on: images (n, channels, height, width), and random windows in them."""

    def __init__(self, run: Search, generator: torch.Generator):
        shape = run.x.shape[1:]
        self.height, self.width = (1, *shape)[-2:]
        channels = math.prod(shape) // max(1, self.height * self.width)
        self.shape = (len(run.x), channels, self.height, self.width)
        self.run, self.generator, self.device = run, generator, run.x.device
        self.eps = run.region.eps[..., None, None]

    def draw(self, *sides: int) -> Tensor:
        """−1 or 1 for every sample, channel and place, (n, channels, *sides)."""
        draw = torch.rand(*self.shape[:2], *sides, generator=self.generator, device=self.device)
        return torch.where(draw < 0.5, -1.0, 1.0).to(self.run.x)

    def stretch(self, length: int, cells: int) -> Tensor:
        """Where a random stretch of one side of the image begins, (n, 1)."""
        most = length - cells + 1
        return torch.randint(most, (self.shape[0], 1), generator=self.generator, device=self.device)

    def within(self, begin: Tensor, length: int, cells: int) -> Tensor:
        """Which places of a side are in that stretch, (n, length) bool."""
        place = torch.arange(length, device=self.device)
        return (begin <= place) & (place < begin + cells)

    def window(self, down: int, across: int) -> tuple[Tensor, Tensor, Tensor]:
        """A random window of so many cells: where it begins, twice (n, 1), and its mask (n, 1, H, W)."""
        top, left = self.stretch(self.height, down), self.stretch(self.width, across)
        rows, columns = self.within(top, self.height, down), self.within(left, self.width, across)
        return top, left, (rows[:, :, None] & columns[:, None, :])[:, None]

    def sides(self, area: float) -> tuple[int, int]:
        """How many cells of the height and of the width a window of that share of the image has."""
        part = math.sqrt(area) if self.height > 1 else area
        down = max(1, round(math.sqrt(area) * self.height))
        return down, max(1, round(part * self.width))


class _Signs(_Canvas):
    """For p = ∞: every entry is −ε or ε."""

    def start(self) -> Tensor:
        return (self.eps * self.draw(1, self.width)).expand(self.shape).flatten(1)

    def change(self, best: Tensor, area: float) -> Tensor:
        *_, window = self.window(*self.sides(area))
        return torch.where(window, self.eps * self.draw(1, 1), best.view(self.shape)).flatten(1)


class _Hills(_Canvas):
    """For p = 2: hills and valleys, of length ε together. If each entry has its own ε, all that of u."""

    def start(self) -> Tensor:
        down, across = (max(1, side // TILES) for side in (self.height, self.width))
        tile = _hill_and_valley(down, across).to(self.run.x)
        rows, columns = self.height // down, self.width // across
        signs = self.draw(rows, columns).repeat_interleave(down, 2).repeat_interleave(across, 3)
        tiles = signs * tile.repeat(rows, columns)
        over = self.height - tiles.shape[2], self.width - tiles.shape[3]
        edges = (over[1] // 2, -(-over[1] // 2), over[0] // 2, -(-over[0] // 2))
        return self._of_length(torch.nn.functional.pad(tiles, edges))

    def change(self, best: Tensor, area: float) -> Tensor:
        u = self._u(best)
        down, across = (
            min(side, max(SMALLEST, cells) // 2 * 2 + 1)  # odd
            for side, cells in zip((self.height, self.width), self.sides(area), strict=True)
        )
        top, left, into = self.window(down, across)
        *_, out_of = self.window(down, across)
        kept = torch.where(into | out_of, 0, u)
        free = (self.eps**2 - _length(u, 3) ** 2).clamp(min=0) / self.shape[1]
        free = (free + _length(u - kept, 2) ** 2).sqrt()  # what each channel may put into the window
        hill = self._hill(top, left, down, across) * into * self.draw(1, 1)
        new = hill + _scaled(torch.where(into, u, 0), 1)
        return self._of_length(kept + _scaled(new, free))

    def _hill(self, top: Tensor, left: Tensor, down: int, across: int) -> Tensor:
        """A hill beside a valley, or above it, where each window lies, (n, 1, H, W)."""
        beside = _hill_and_valley(down, across).to(self.run.x)
        above = _hill_and_valley(across, down).T.to(self.run.x) if self.height > 1 else beside
        row = (torch.arange(self.height, device=self.device) - top).clamp(0, down - 1)
        column = (torch.arange(self.width, device=self.device) - left).clamp(0, across - 1)
        turn = torch.rand(self.shape[0], 1, 1, generator=self.generator, device=self.device) < 0.5
        at = row[:, :, None], column[:, None, :]
        return torch.where(turn, above[at], beside[at])[:, None]

    def _u(self, delta: Tensor) -> Tensor:
        """δ as an image; if each entry has its own ε, the u of δ = scale ⊙ u."""
        scale = self.run.region.scale
        tiny = torch.finfo(delta.dtype).tiny
        return (delta if scale is None else delta / scale.clamp(min=tiny)).view(self.shape)

    def _of_length(self, u: Tensor) -> Tensor:
        """The rows δ of images u, made of length ε."""
        scale = self.run.region.scale
        if scale is None:
            return projections.to_length(u.flatten(1), self.run.region.eps)
        return scale * projections.to_length(u.flatten(1) * (scale > 0), self.run.region.eps)


@cache
def _hill_and_valley(height: int, width: int) -> Tensor:
    """The left half a hill, the right half a valley, of length 1: (height, width), float64."""
    half = width // 2
    return torch.cat([_hill(height, half), -_hill(height, width - half)], 1) / math.sqrt(1 + (half > 0))


def _hill(height: int, width: int) -> Tensor:
    """Rings around the middle: the k-th from it is Σ_{m≥k} 1 / (m + 1)² high, and all have length 1."""
    middle = height // 2, width // 2
    rise = 1 / torch.arange(1, max(middle) + 2, dtype=torch.float64) ** 2
    heights = rise.flip(0).cumsum(0).flip(0)
    away = [(torch.arange(side) - m).abs() for side, m in zip((height, width), middle, strict=True)]
    hill = heights[torch.maximum(away[0][:, None], away[1])]
    return hill / hill.norm() if hill.numel() else hill


def _length(u: Tensor, axes: int) -> Tensor:
    """‖·‖₂ over the last axes, which stay, of length 1."""
    return torch.linalg.vector_norm(u, dim=tuple(range(-axes, 0)), keepdim=True)


def _scaled(u: Tensor, length: Tensor) -> Tensor:
    """Images whose every channel has this length, (n, channels, 1, 1) or as a number; one of 0 stays."""
    length = torch.as_tensor(length).to(u).expand(*u.shape[:2], 1, 1).reshape(-1, 1)
    return projections.to_length(u.flatten(2).flatten(0, 1), length).view_as(u)


def spsa(
    model: Model,
    x: Tensor,
    y: Tensor,
    ball: Ball,
    *,
    steps: int = 20,
    samples: int = 64,
    radius: float = 0.01,
    step_size: float | None = None,
    targets: Tensor | None = None,
    keep: str = "first",
    generator: torch.Generator | None = None,
) -> Tensor:
    """SPSA: PGD along slopes that it estimates from differences of the loss, without a gradient.

    g = (1 / m) Σ_j (ℓ(x + δ + r u_j) − ℓ(x + δ − r u_j)) / (2 r) · u_j for random u_j ∈ {−1, 1}^d has
    the mean ∇ℓ up to terms of third order in r. A running mean, g ← 0.9 g + the new one, takes a step as
    in `pgd`. In a box the points x + δ ± r u_j are inside, around the nearest point that allows that.

    samples:   m ≥ 1. A step asks 2 m + 1 times about a sample.
    radius:    r > 0, in the units of x; in a box at most half its width.
    step_size: as in `pgd`; None means 2.5 ε / steps.
    keep:      as in `square`: the "first" iterate that breaks a sample, or the "best" of all.
    Returns δ like x.
    Source: Uesato et al. 2018, section 4 and appendix; there Adam takes the steps, and the loss is the
    margin, here the log-odds.
    """
    if steps < 1 or samples < 1 or keep not in ("best", "first"):
        raise ValueError(
            'expected steps ≥ 1, samples ≥ 1 and keep "best" or "first", '
            f"got {steps!r}, {samples!r} and {keep!r}"
        )
    if not all(0 < size < math.inf for size in (radius, 1 if step_size is None else step_size)):
        raise ValueError(
            f"expected radius > 0 and step_size > 0, in the units of x, got {radius!r} and {step_size!r}"
        )
    with search(model, x, y, ball, None, targets, keep) as run:
        lo, hi = ball.box or (-math.inf, math.inf)
        if 2 * radius > hi - lo:
            raise ValueError(f"expected a radius of at most half the width of the box, got {radius!r}")
        generator = fresh(generator, x)
        delta, flat = run.nothing(), run.x.flatten(1)
        free, g = run.region.low < run.region.high, torch.zeros_like(delta)
        for step in range(steps):
            run.record(0, step, delta, run.logits(delta))
            if run.over:
                break
            middle = (flat + delta).clamp(lo + radius, hi - radius) - flat
            g *= MOMENTUM
            for part in _work.runs(samples, max(1, 2 * x.numel()), x.device):
                u = torch.rand(len(part), *delta.shape, generator=generator, device=x.device) < 0.5
                u = torch.where(u, -1.0, 1.0).to(delta) * free
                up, down = run.loss_at(torch.cat([middle + radius * u, middle - radius * u])).chunk(2)
                g += ((up - down)[:, :, None] * u).sum(0) / (2 * radius * samples)
            alpha = 2.5 * run.region.eps / steps if step_size is None else step_size
            delta = run.region.step(delta, g, alpha)
        if not run.over:
            run.record(0, steps, delta, run.logits(delta))
        return run.shaped(run.best)
