"""The exact minimum of z_y − z_k over δ ∈ Δ(x), for networks of `affine.affine_pieces`.

Three ways to it: branch and bound over backward passes (`leaves`), for every p; branch and bound over
linear programs and an integer program (`programs`), for p = ∞. `certify` asks for the sign alone, and
asks cheap bounds and attacks first (`ladder`).

All report lower ≤ minimum ≤ upper. `upper` is what an input reaches when it is sent through the network,
`lower` is proved, in float64 (by the integer program to the solver's own tolerance). The minimum counts
as known when they differ by at most TOLERANCE, in the units of the logits. A limit can leave them
further apart, but neither becomes wrong. Nodes are counted, so that what is found does not depend on how
fast or how busy a machine is; a limit in seconds is there for who has to give up at some time. All of it
is about the network in eval mode that has these weights in exact arithmetic; float32 rounds it, by about
1e-6 where logits are about 10.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real
from time import time

import numpy as np
import torch
from torch import Tensor, nn

from . import _tasks, bounds
from ._arguments import check_batch, check_labels
from ._given import check_ball, check_tensors
from ._precision import in_its_own_type
from ._tasks import SOLVERS
from ._work import parallel_map
from .affine import Affine, affine_pieces
from .branching import TOLERANCE
from .ladder import STAGES, Known, Limits
from .threat import Ball

LADDER = ("interval", "attack", "crown", "slopes", "branches")  # stages of `certify`, for every p
PROGRAMS = ("interval", "attack", "lp", "search")  # for p = ∞
WORDS = ("robust", "broken", "unknown")


@dataclass(frozen=True, eq=False)
class Margins:
    """What is known of min z_y − z_k for every sample and class: margins ≤ minimum ≤ attained.

    margins:  (n, K) float64, proved; +∞ at k = y.
    attained: (n, K) float64, what an input in the ball reaches when it is sent through the network.
    delta:    (n, K, *shape), that input minus x, rounded to x's type; 0 at k = y.
    nodes:    (n, K), the cases that the search bounded, or the nodes that the solver counts.
    """

    margins: Tensor
    attained: Tensor
    delta: Tensor
    nodes: Tensor

    @property
    def closed(self) -> Tensor:
        """Whether the minimum is known, up to TOLERANCE: (n, K) bool."""
        return (self.attained <= self.margins + TOLERANCE) | (self.margins == math.inf)


@dataclass(frozen=True, eq=False)
class Certificates:
    """For every sample an answer and what proves it.

    status:  "robust": every margin is proved to be above TOLERANCE. "broken": the model itself, called
             on x + delta, does not put y first. "unknown": neither, because the nodes or the seconds ran
             out, the smallest margin is within TOLERANCE of 0, or the model's own rounding hides the
             counterexample.
    stage:   what settled it, or came last: a name in STAGES.
    margins: (n,) float64, a proved lower bound on the smallest margin.
    delta:   (n, *shape), like x: what breaks the sample, 0 for all that are not broken.
    nodes:   (n,), the cases that the search bounded.
    """

    status: tuple[str, ...]
    stage: tuple[str, ...]
    margins: Tensor
    delta: Tensor
    nodes: Tensor

    def are(self, status: str) -> Tensor:
        """Which samples have this status: (n,) bool."""
        return torch.tensor([s == status for s in self.status], device=self.delta.device)

    def table(self) -> list[tuple[str, int, int, int]]:
        """For every stage that settled a sample or came last: how many robust, broken and unknown."""
        counts = Counter(zip(self.stage, self.status, strict=True))
        names = [name for name in STAGES if name in self.stage]
        return [(name, *(counts[name, word] for word in WORDS)) for name in names]


@in_its_own_type
def margins(
    model: nn.Sequential,
    x: Tensor,
    y: Tensor,
    ball: Ball,
    *,
    method: str | None = None,
    node_limit: int | None = None,
    jobs: int = -1,
    progress: bool | None = None,
) -> Margins:
    """min over δ ∈ Δ(x) of z_y − z_k for every class k, with a δ that attains it.

    method:     "dual", for any p; "search" over linear programs or "mip", for p = ∞, see above. None
                means "search" for p = ∞ and "dual" for the others.
    node_limit: how many cases the search may bound, or nodes the solver may count, for each sample.
                Class by class, each gets an equal share of what is left, and at least one. None means as
                many as it takes. What bounds the hidden units does not count.
    jobs: how many samples at a time, as joblib's n_jobs: −1 means one for each core. They are threads,
          unless a `joblib.parallel_config` around the call names processes or a cluster.
    progress: whether to show a bar on stdout; None means only in a terminal.
    Raises ValueError for another method, a node limit below 1, p ≠ ∞ with a method for p = ∞, labels
    that do not fit, and what `affine.affine_pieces` and `Ball` raise.
    """
    if method not in (None, "dual", *SOLVERS):
        raise ValueError(f"expected one of the methods {('dual', *SOLVERS)}, got {method!r}")
    pieces, x = _given(model, x, y, ball, node_limit)
    if method == "dual" or (method is None and ball.p != math.inf):
        double = x.double()
        given = _tasks.layer_bounds(model, pieces, double, ball), double, ball.region(double)
        tasks = [
            (pieces, *_tasks.some(*given, part), y[part], node_limit)
            for part in _tasks.parts(len(x), jobs)
        ]
        answers = parallel_map(_tasks.dual_minima, tasks, jobs, progress)
        samples = [row for part in answers for row in part]
    else:
        problems = zip(bounds.problems(pieces, x, ball), y.tolist(), strict=True)
        tasks = [(*problem, label, method or "search", node_limit) for problem, label in problems]
        samples = parallel_map(_tasks.minima, tasks, jobs, progress)

    def table(name: str) -> Tensor:
        rows = [[getattr(found, name) for found in row] for row in samples]
        return torch.tensor(np.array(rows)).to(x.device)

    delta = table("point").to(x.dtype).reshape(len(x), -1, *x.shape[1:]) - x.unsqueeze(1)
    delta[torch.arange(len(x)), y] = 0
    delta = torch.stack([ball.project(towards, x) for towards in delta.unbind(1)], 1)
    return Margins(table("lower"), table("upper"), delta, table("nodes"))


@in_its_own_type
def certify(
    model: nn.Sequential,
    x: Tensor,
    y: Tensor,
    ball: Ball,
    *,
    stages: Sequence[str] = LADDER,
    node_limit: int | None = None,
    seconds: float | None = None,
    jobs: int = -1,
    progress: bool | None = None,
) -> Certificates:
    """Is every x + δ with δ ∈ Δ(x) classified as y? "robust", "broken" or "unknown" for each sample.

    Only the sign of the margins is asked for, and the cheap answers come first: each stage is asked
    about the samples and the classes that those before it have left open.

    stages: names in STAGES, in the order in which they run. LADDER for any p; PROGRAMS, for p = ∞, is
            that of a time before the dual. Neither is needed in full: ("attack", "crown") is allowed.
    node_limit: how many cases the search may bound for each sample, the one with the smallest bound
            first, until they are used up. None means as many as it takes. What comes before the search
            and what bounds the hidden units does not count.
    seconds: how long the search may take in all, on this machine. None means as long as it takes.
    jobs, progress: as in `margins`.
    Raises what `margins` raises, ValueError for another stage or none, for seconds ≤ 0, for stages of
    programs with p ≠ ∞, and for x of another type than the weights.
    Source: Tjeng, Xiao & Tedrake 2019 (the order); Wang et al. 2021 (branches).
    """
    listed = isinstance(stages, Sequence) and not isinstance(stages, str) and len(stages) > 0
    if not listed or any(name not in tuple(STAGES) for name in stages):
        raise ValueError(f"expected a list of stages among {tuple(STAGES)}, got {stages!r}")
    if seconds is not None and not (isinstance(seconds, Real) and seconds > 0):
        raise ValueError(f"expected seconds > 0 or None, got {seconds!r}")
    pieces, x = _given(model, x, y, ball, node_limit)
    own = {p.dtype for p in model.parameters()} | {x.dtype}
    if len(own) > 1:
        raise ValueError(f"expected x of the model's type, which the attacks call, got {own}")
    if ball.p != math.inf and {"lp", "search"} & set(stages):
        raise ValueError(f"linear programs are for p = math.inf, got p = {ball.p!r}")
    known = Known(model, pieces, x, y, ball)
    limits = Limits(node_limit, math.inf if seconds is None else time() + seconds, jobs, progress)
    with torch.no_grad():
        for name in stages:
            rows = known.open()
            if len(rows):
                STAGES[name](known, rows, limits)
                for row in rows.tolist():
                    known.stages[row] = name
    least = known.proved.amin(1)
    words = ["robust" if safe else "unknown" for safe in (least > TOLERANCE).tolist()]
    for row in known.wrong.nonzero().flatten().tolist():
        words[row] = "broken"
    return Certificates(tuple(words), tuple(known.stages), least, known.delta, known.nodes)


def _given(
    model: nn.Sequential, x: Tensor, y: Tensor, ball: Ball, node_limit: int | None
) -> tuple[list[Affine], Tensor]:
    """The pieces of the network in float64, and x without gradients, once all of it is checked."""
    check_tensors(x=x)
    check_ball(ball)
    if node_limit is not None and not (isinstance(node_limit, int) and node_limit >= 1):
        raise ValueError(f"expected a whole number of nodes ≥ 1, or None, got {node_limit!r}")
    x = x.detach()
    check_batch(x)
    pieces = [piece.detach() for piece in affine_pieces(model, x.shape[1:], torch.float64)]
    check_labels(pieces, x, y)
    ball.region(x.double())  # raises for an ε that does not fit
    return pieces, x
