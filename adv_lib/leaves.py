"""The cases of a search, bounded many at a time by backward passes.

A branch has put some units on, h = a ≥ 0, and others off, h = 0 ≥ a. The conjugate of the first ray is 0
where ν ≥ ν̂ and of the second where ν ≤ 0, and +∞ elsewhere. So ν = ν̂ + β with β ≥ 0 for a unit that is
on, and ν = β ≤ 0 for one that is off, cost nothing: the dual network keeps its form, and J bounds the
network for every δ of the branch. One more multiplier for each unit that is split is all it takes. With
all units split, the best β reach the minimum over the branch.

`Leaves` bounds cases for `branching.search`. `refined` lets short searches bound the hidden units, too.
Source: Wang et al. 2021 (β-CROWN); Bunel et al. 2020 and De Palma et al. 2021 (which unit to split).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from time import time
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from . import branching, dual
from ._work import runs
from .affine import Affine, Bounds, width
from .bounds import interval
from .branching import TOLERANCE, Case, Leaf
from .threat import Region

STEPS, FIRST = 10, 50  # of the ascent: in a case that begins where its parent ended, and at a root
TOGETHER = 64  # cases of one question that are bounded at a time
RHO = 1e4  # the largest β of `program`, in units of its costs and of its rows


class View(NamedTuple):
    """What a score may look at: the last backward pass of B cases, layer by layer.

    bounds: of the branch, (B, *shape).  relus: the lines, hats: ν̂, and a: the pre-activations of the
    network itself at the δ where the pass ends, (B, 1, *shape).
    """

    bounds: Sequence[Bounds]
    relus: Sequence[dual.Lines]
    hats: Sequence[Tensor]
    a: Sequence[Tensor]


Score = Callable[[View], Sequence[Tensor]]


def price(view: View) -> list[Tensor]:
    """What the upper line of each unit costs: −l [ν]₊, its term of J, with ν = u/(u − l) [ν̂]₊."""
    return [
        -relu.left * relu.upper * hat.clamp(min=0)
        for relu, hat in zip(view.relus, view.hats, strict=True)
    ]


def share(view: View) -> list[Tensor]:
    """By how much each unit alone keeps J below the network: |ν̂| |max(a, 0) − its line at a|.

    At the δ where the pass ends, if it is in the branch, cᵀa_D is J plus all of these plus Σ_i β_iᵀa_i.
    Returns (B, 1, *shape) for each layer.
    """
    found = []
    for relu, hat, a in zip(view.relus, view.hats, view.a, strict=True):
        line = torch.where(hat > 0, relu.upper * (a - relu.left), relu.lower * a)
        found.append(hat.abs() * (a.clamp(min=0) - line).abs())
    return found


def spread(view: View) -> list[Tensor]:
    """How far each unit can move, u − l."""
    return [(upper - lower).unsqueeze(1) for lower, upper in view.bounds]


class Leaves:
    """Bounds cases by `dual.ascend`: what `branching.search` calls with the leaves of its trees.

    pieces: D affine pieces.  layers, x, region: the pre-activation bounds, inputs and Δ(x) of n samples.
    c:      (R, K), what each root minimises, cᵀa_D.  sample: (R,), over whose ball.
    score:  which unit to split: a `View` → (B, 1, *shape) for each layer, the largest first.
    A case begins with the slopes and β with which its parent ended. Where all units are decided and the
    ascent has not settled the case, `program` finds the best β.
    A case that waits keeps two numbers in float32 for every hidden unit, which its sibling shares.
    """

    def __init__(
        self,
        pieces: Sequence[Affine],
        layers: Sequence[Bounds],
        x: Tensor,
        region: Region,
        c: Tensor,
        sample: Tensor,
        *,
        score: Score = price,
    ):
        self.pieces = [piece.detach() for piece in pieces]
        self.layers, self.x, self.region, self.c, self.sample = layers, x, region, c, sample
        self.score = score
        self.shapes = [lower.shape[1:] for lower, _ in layers]
        self.start = _flat([dual.lines(pair, "crown").lower for pair in layers], len(x))
        self.passes = 0  # backward passes so far, each with its forward pass

    @torch.no_grad()
    def __call__(self, leaves: Sequence[Leaf]) -> list[Case]:
        found: dict[int, Case] = {}
        for steps, new in ((FIRST, True), (STEPS, False)):
            own = [at for at, leaf in enumerate(leaves) if (leaf.found is None) is new]
            for part in runs(len(own), width(self.pieces), self.x.device):
                rows = [own[at] for at in part.tolist()]
                found |= zip(rows, self._bounded([leaves[row] for row in rows], steps), strict=True)
        return [found[at] for at in range(len(leaves))]

    def _bounded(self, leaves: Sequence[Leaf], steps: int) -> list[Case]:
        root = torch.tensor([leaf.root for leaf in leaves], device=self.x.device)
        begin = [
            (self.start[self.sample[leaf.root]], torch.zeros_like(self.start[0]))
            if leaf.found is None
            else leaf.found
            for leaf in leaves
        ]
        slopes, betas = (torch.stack(each).to(self.x) for each in zip(*begin, strict=True))
        phases = self._phases(leaves)
        enough = self.x.new_tensor([leaf.enough for leaf in leaves])
        layers, best = self._ascent(root, phases, slopes, betas, steps, enough)
        slopes, betas = (_flat(each, len(leaves)) for each in (best.slopes, best.betas))
        bound, delta = best.value.squeeze(1), best.delta.squeeze(1)
        free = _flat([(lower < 0) & (upper > 0) for lower, upper in layers], len(leaves))
        points, value, a = self._network(root, delta)
        hidden = (value > bound + TOLERANCE) & ~free.any(1) & (bound <= enough)
        for row in hidden.nonzero().flatten().tolist():  # all is decided, so only better β can help
            J, delta = self._program(root[row], phases[row])
            bound[row] = J.maximum(bound[row])
            point, here, _ = self._network(root[row, None], delta)
            points[row], value[row] = point[0], here[0]
        relus = [dual.lines(*pair) for pair in zip(layers, best.slopes, strict=True)]
        a = [pre.reshape_as(hat) for pre, hat in zip(a, best.hats, strict=True)]
        view = View(layers, relus, best.hats, a)
        scores = _flat(self.score(view), len(leaves)) * free
        unseen = ~(scores > 0).any(1) & (value > bound + TOLERANCE)  # more steps would show a share
        scores = torch.where(unseen[:, None], _flat(spread(view), len(leaves)) * free, scores)
        warm = zip(slopes.float().clamp(0, 1), betas.float(), strict=True)
        columns = bound.tolist(), value.tolist(), points.cpu().numpy(), scores.cpu().numpy(), warm
        return [Case(*row) for row in zip(*columns, strict=True)]

    def _phases(self, leaves: Sequence[Leaf]) -> Tensor:
        """1 for every unit that is put on, −1 off, 0 for all others: (B, units)."""
        phases = self.x.new_zeros(len(leaves), self.start.shape[1])
        rows = [row for row, leaf in enumerate(leaves) for _ in leaf.phases]
        decided = [pair for leaf in leaves for pair in leaf.phases.items()]
        if decided:
            units, on = zip(*decided, strict=True)
            phases[rows, list(units)] = 2 * self.x.new_tensor(on) - 1
        return phases

    def _ascent(
        self,
        root: Tensor,
        phases: Tensor,
        slopes: Tensor,
        betas: Tensor,
        steps: int,
        enough: Tensor | float = math.inf,
    ) -> tuple[list[Bounds], dual.Ascent]:
        """The bounds of these branches, and the best J; phases, slopes and betas are (B, units)."""
        i = self.sample[root]
        here = [Bounds(lower[i], upper[i]) for lower, upper in self.layers]
        layers = dual.branch(here, self._layered(phases))
        phases, slopes, betas = (
            [each.unsqueeze(1) for each in self._layered(flat)] for flat in (phases, slopes, betas)
        )
        self.passes += len(root) * (steps + 1)
        enough = enough[:, None] if torch.is_tensor(enough) else enough
        problem = self.x[i], self.region[i], self.c[root].unsqueeze(1)
        return layers, dual.ascend(self.pieces, layers, *problem, slopes, steps, phases, betas, enough)

    def _network(self, root: Tensor, delta: Tensor) -> tuple[Tensor, Tensor, list[Tensor]]:
        """x + δ, cᵀa_D and a_1, …, a_{D−1} of the network itself, for rows δ of (B, d)."""
        points = self.x[self.sample[root]].flatten(1) + delta
        h, a = points, []
        for piece in self.pieces:
            a.append(piece(h))
            h = a[-1].relu()
        return points, (self.c[root] * a.pop().flatten(1)).sum(1), a

    def _layered(self, flat: Tensor) -> list[Tensor]:
        """(B, units) → (B, *shape) for each layer."""
        parts = flat.split([math.prod(shape) for shape in self.shapes], 1)
        return [part.reshape(-1, *shape) for part, shape in zip(parts, self.shapes, strict=True)]

    def _program(self, root: Tensor, phases: Tensor) -> tuple[Tensor, Tensor]:
        """J at the β that `program` finds, and the δ (1, d) at which it is reached."""
        i, signs = self.sample[root][None], self._layered(phases[None])
        layers = dual.branch([Bounds(lower[i], upper[i]) for lower, upper in self.layers], signs)
        problem = self.x[i], self.region[i], self.c[root]
        delta, betas = program(self.pieces, layers, *problem, signs)
        relus = [dual.lines(pair, "crown") for pair in layers]
        c, betas = self.c[root][None, None], [beta.unsqueeze(1) for beta in betas]
        return dual.bound(self.pieces, relus, self.x[i], self.region[i], c, betas)[0, 0], delta[None]


def program(
    pieces: Sequence[Affine],
    layers: Sequence[Bounds],
    x: Tensor,
    region: Region,
    c: Tensor,
    phases: Sequence[Tensor],
) -> tuple[Tensor, list[Tensor]]:
    """The best β of a branch in which every unit is decided, by a convex program in δ alone.

    There the network is affine: a_i = A_i δ + b_i. The program is min cᵀa_D + ρ 1ᵀt over δ ∈ Δ(x) and
    t ≥ 0 with ±(A_i δ + b_i) + t ≥ 0 for the units that were put on (+) or off (−), and β are the
    multipliers of these. ρ, many times the largest |ν̂|, keeps it feasible where the branch is empty.
    layers: of the branch.  x, region: of one sample.  c: (K,).  phases: (1, *shape) for each layer.
    Returns δ (d,) in Δ(x) and β like phases: ≥ 0 where a unit is on, ≤ 0 where it is off.
    """
    import cvxpy as cp

    A, b = torch.eye(x[0].numel(), dtype=x.dtype), x.new_zeros(x[0].numel()).cpu()
    b = b + x.flatten().cpu()
    rows, offsets = [], []
    for piece, (lower, _), sign in zip(pieces, layers, phases, strict=False):
        W, offset = (each.cpu() for each in piece.matrix())
        s, on = sign.flatten().cpu(), (lower.flatten() >= 0).to(A).cpu()
        A, b = W @ A, W @ b + offset
        rows.append(s[s != 0, None] * A[s != 0])
        offsets.append(s[s != 0] * b[s != 0])
        A, b = on[:, None] * A, on * b
    cost = c.cpu() @ pieces[-1].matrix()[0].cpu() @ A
    A, b = torch.cat(rows), torch.cat(offsets)
    size = A.abs().amax(1)
    size = torch.where(size > 0, size, 1.0)  # of a unit: the solver's tolerances know no units
    A, b = (A / size[:, None]).numpy(), (b / size).numpy()
    unit = float(cost.abs().max()) or 1.0
    u, slack = cp.Variable(len(cost)), cp.Variable(len(b), nonneg=True)
    delta = u if region.scale is None else cp.multiply(region.scale[0].cpu().numpy(), u)
    signs = A @ delta + b + slack >= 0
    inside = [delta >= region.low[0].cpu().numpy(), delta <= region.high[0].cpu().numpy()]
    if region.p != math.inf:
        inside.append(cp.norm(u, region.p) <= float(region.eps))
    problem = cp.Problem(
        cp.Minimize(cost.numpy() / unit @ delta + RHO * cp.sum(slack)), [signs, *inside]
    )
    problem.solve(solver=cp.CLARABEL)
    multipliers = (unit * torch.as_tensor(signs.dual_value).clamp(min=0) / size).to(x)
    found = region.project(torch.as_tensor(delta.value).to(x)[None])[0]
    betas, first = [], 0
    for sign in phases:
        beta = torch.zeros_like(sign)
        last = first + int((sign != 0).sum())
        beta[sign != 0] = sign[sign != 0] * multipliers[first:last]
        betas.append(beta)
        first = last
    return found, betas


def refined(
    pieces: Sequence[Affine],
    layers: Sequence[Bounds],
    x: Tensor,
    region: Region,
    node_limit: int,
    seconds: float = math.inf,
) -> tuple[list[Bounds], Tensor]:
    """Tighter pre-activation bounds: a search for the smallest and the largest a of every unstable unit.

    From the second layer of ReLUs on, each search over the layers before, as they are by then, and with
    at most node_limit cases. What is proved when the nodes or the seconds run out is a bound as well.
    layers, x, region: of n samples.  Returns the bounds, and how many cases each sample took, (n,).
    """
    found, nodes = list(layers[:1]), torch.zeros(len(x), dtype=torch.int64)
    end = time() + seconds
    for depth in range(1, len(layers)):
        layer = interval(pieces[depth], found[-1].relu())
        lower = layer.lower.maximum(layers[depth].lower).flatten(1)
        upper = layer.upper.minimum(layers[depth].upper).flatten(1)
        sample, unit = ((lower < 0) & (upper > 0)).nonzero(as_tuple=True)
        one = F.one_hot(unit, lower.shape[1]).to(x)
        searched = Leaves(
            pieces[: depth + 1], found, x, region, torch.cat([one, -one]), sample.repeat(2)
        )
        starts = [(math.inf, x[0].cpu().numpy())] * (2 * len(unit))
        answers = branching.search(
            searched, starts, width=8, node_limit=node_limit, seconds=end - time()
        )
        least, most = x.new_tensor([answer.lower for answer in answers]).view(2, -1)
        lower[sample, unit] = least.maximum(lower[sample, unit])
        upper[sample, unit] = (-most).minimum(upper[sample, unit]).maximum(lower[sample, unit])
        found.append(Bounds(lower.reshape_as(layer.lower), upper.reshape_as(layer.upper)))
        nodes += torch.bincount(
            sample.repeat(2).cpu(), torch.tensor([answer.nodes for answer in answers]), len(x)
        ).long()
    return found, nodes


def _flat(layers: Sequence[Tensor], rows: int) -> Tensor:
    """(B, units) of (B, *shape) or (B, 1, *shape) for each layer; no unit where there is no layer."""
    flat = [layer.reshape(rows, -1) for layer in layers]
    return torch.cat(flat, 1) if flat else torch.empty(rows, 0)
