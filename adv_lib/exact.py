"""The exact minimum of z_y − z_k over δ ∈ Δ(x), for p = ∞ and networks of `affine.affine_pieces`.

A ReLU is on or off. If we knew which, the network would be affine and one linear program would find the
minimum; n unstable units leave up to 2ⁿ cases. Two programs search them: `mip` gives each unit a binary
variable and leaves the search to a solver [Tjeng, Xiao & Tedrake 2019, eq. (6)]; `search` is our own
branch and bound over linear programs (`branching`).

Both report lower ≤ minimum ≤ upper. `upper` is what an input reaches when it is sent through the
network, `lower` is proved, in float64 (by `mip` to the solver's own tolerance). The minimum counts as
known when they differ by at most TOLERANCE, in the units of the logits. A limit on the nodes can leave
them further apart, but neither becomes wrong. Nodes are counted, not seconds: what is found does not
depend on how fast or how busy a machine is. All of it is about the network in eval mode that has
these weights in exact arithmetic; float32 rounds it, by about 1e-6 where logits are about 10.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from . import attacks, bounds, branching, losses
from ._arguments import check_batch, check_labels
from ._given import check_tensors
from ._precision import in_its_own_type
from ._work import parallel_map, runs
from .affine import affine_pieces
from .branching import TOLERANCE, Case, Found, Phases
from .models import evaluating
from .relaxation import Array, Layer, Relaxation, relax
from .threat import Ball


@dataclass(frozen=True, eq=False)
class Margins:
    """What is known of min z_y − z_k for every sample and class: margins ≤ minimum ≤ attained.

    margins:  (n, K) float64, proved; +∞ at k = y.
    attained: (n, K) float64, what an input in the ball reaches when it is sent through the network.
    delta:    (n, K, *shape), that input minus x, rounded to x's type; 0 at k = y.
    nodes:    (n, K), the linear programs that the search solved, or the nodes that the solver counts.
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
             on x + delta, does not put y first. "unknown": neither, because the nodes ran out, the
             smallest margin is within TOLERANCE of 0, or the model's own rounding hides the
             counterexample.
    stage:   how far it went: "interval", "attack", "lp" or "search".
    margins: (n,) float64, a proved lower bound on the smallest margin.
    delta:   (n, *shape), like x: what breaks the sample, 0 for all that are not broken.
    nodes:   (n,), the linear programs that the search solved.
    """

    status: tuple[str, ...]
    stage: tuple[str, ...]
    margins: Tensor
    delta: Tensor
    nodes: Tensor

    def are(self, status: str) -> Tensor:
        """Which samples have this status: (n,) bool."""
        return torch.tensor([s == status for s in self.status], device=self.delta.device)


@in_its_own_type
def margins(
    model: nn.Sequential,
    x: Tensor,
    y: Tensor,
    ball: Ball,
    *,
    method: str = "search",
    node_limit: int | None = None,
    jobs: int = -1,
    progress: bool | None = None,
) -> Margins:
    """min over δ ∈ Δ(x) of z_y − z_k for every class k, with a δ that attains it.

    method:     "search" or "mip", see above.
    node_limit: how many linear programs the search may solve, or nodes the solver may count, for each
                sample. Class by class, each gets an equal share of what is left, and at least one.
                None means as many as it takes. The programs that bound the hidden units do not count.
    jobs: how many samples at a time, as joblib's n_jobs: −1 means one for each core. They are threads,
          unless a `joblib.parallel_config` around the call names processes or a cluster.
    progress: whether to show a bar on stdout; None means only in a terminal.
    Raises ValueError for another method, a node limit below 1, p ≠ ∞, labels that do not fit, and what
    `affine.affine_pieces` and `Ball` raise.
    """
    if method not in SOLVERS:
        raise ValueError(f"expected one of the methods {tuple(SOLVERS)}, got {method!r}")
    check_tensors(x=x)
    x = x.detach()
    problems = _problems(model, x, y, ball, node_limit)
    tasks = [(*p, label, method, node_limit) for p, label in zip(problems, y.tolist(), strict=True)]
    samples = parallel_map(_minima, tasks, jobs, progress)

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
    node_limit: int | None = None,
    jobs: int = -1,
    progress: bool | None = None,
) -> Certificates:
    """Is every x + δ with δ ∈ Δ(x) classified as y? "robust", "broken" or "unknown" for each sample.

    Only the sign of the margins is asked for, and the cheap answers come first: interval bounds; PGD,
    then Auto-PGD from many starts towards every class that is left; linear programs for each of these
    classes, first on interval bounds and then on bounds that are linear programs too; the search for
    each class that these leave.
    node_limit: how many linear programs the search may solve for each sample, class by class, the one
                with the smallest bound first, until they are used up. None means as many as it takes.
                The programs that come before the search do not count.
    jobs, progress: as in `margins`.
    Raises what `margins` raises, and ValueError for x of another type than the weights.
    Source: Tjeng, Xiao & Tedrake 2019 (the order).
    """
    check_tensors(x=x)
    x = x.detach()
    problems = _problems(model, x, y, ball, node_limit)
    own = {p.dtype for p in model.parameters()} | {x.dtype}
    if len(own) > 1:
        raise ValueError(f"expected x of the model's type, which the attacks call, got {own}")
    with torch.no_grad():
        cheap = bounds.margins(model, x.double(), y, ball)
        delta = attacks.pgd(model, x, y, ball, keep="first")
    proved, nodes = cheap.amin(1), torch.zeros(len(x), dtype=torch.int64)
    open_ = [(row <= TOLERANCE).nonzero().flatten() for row in cheap]  # classes
    stands = (~_wrong(model, x + delta, y) & (proved <= TOLERANCE)).nonzero().squeeze(1)
    for part in runs(len(stands), STARTS * x[0].numel(), x.device):
        rows = stands[part]
        towards = [open_[i] for i in rows]
        delta[rows] = _of_many_starts(model, x[rows], y[rows], ball.subset(rows), towards)
    broken = _wrong(model, x + delta, y)
    stage = ["attack" if wrong else "interval" for wrong in broken.tolist()]
    left = (~broken & (proved <= TOLERANCE)).nonzero().flatten().tolist()
    tasks = [(*problems[i], int(y[i]), open_[i].tolist(), node_limit) for i in left]
    for i, (stage[i], found) in zip(left, parallel_map(_sign, tasks, jobs, progress), strict=True):
        rest = cheap[i][cheap[i] > TOLERANCE].amin()  # of the classes that were not asked about again
        proved[i], nodes[i] = max(proved[i], min(rest, found.lower)), found.nodes
        if found.upper <= TOLERANCE:  # a counterexample, if the model says so too
            delta[i] = torch.from_numpy(found.point).to(x).reshape(x[i].shape) - x[i]
    delta = ball.project(delta, x)
    broken = _wrong(model, x + delta, y)
    robust = ~broken & (proved > TOLERANCE)
    words = [
        "broken" if b else "robust" if r else "unknown" for b, r in zip(broken, robust, strict=True)
    ]
    delta[~broken] = 0
    return Certificates(tuple(words), tuple(stage), proved, delta, nodes.to(x.device))


def search(
    relaxation: Relaxation,
    layers: Sequence[Layer],
    c: Array,
    node_limit: int | None = None,
    sign: bool = False,
) -> Found:
    """min cᵀ(logits) by `branching.search`, each case bounded by a linear program.

    The minimum of the program bounds the network from below; the input at that minimum, sent through the
    network, bounds it from above. Split is the unit whose triangle is violated most, weighed by the
    price of its upper edge: where no triangle is violated, the network itself does it, unless the
    solver's tolerance hides that.

    relaxation: of the hidden layers.  layers: all of them.  c: (K,).
    node_limit, sign: as in `branching.search`; a case is one linear program.
    """
    W, b = layers[-1]
    centre = (relaxation.lower + relaxation.upper) / 2

    def reached(columns: Array) -> tuple[float, Array]:
        point = _input(relaxation, layers, columns)
        return float(c @ _forward(layers, point)), point

    def evaluate(phases: Phases) -> Case:
        relaxation.fix(phases)
        found = relaxation.minimise(c @ W, c @ b)
        return Case(found.bound, *reached(centre if found.point is None else found.point), found)

    def score(case: Case) -> Array:
        _, columns, prices = case.found  # without columns the solver has stopped without a point
        size = relaxation.size[relaxation.pre]
        violation = size if columns is None else relaxation.violation(columns)
        if case.value > case.bound + TOLERANCE and not (violation > 0).any():
            violation = size  # the solver's tolerance hides them
        return violation * (prices + TOLERANCE / size)

    found = branching.search(evaluate, score, reached(centre), node_limit, sign)
    relaxation.fix({})
    return found


def mip(
    relaxation: Relaxation, layers: Sequence[Layer], c: Array, node_limit: int | None = None
) -> Found:
    """min cᵀ(logits) as a mixed-integer linear program, left to HiGHS.

    The relaxation, and for each unstable unit a v ∈ {0, 1} with h ≤ u v and h ≤ a − l (1 − v).
    relaxation, layers, c: as in `search`.
    What the solver calls a bound holds up to its tolerances, and a unit that cancels most of what comes
    into it magnifies them: by more than STEEPEST, and only the linear program's bound is taken.
    node_limit: of the solver's own nodes, which it looks at between two of them: it may take a few more.
    Source: Tjeng, Xiao & Tedrake 2019, eq. (6).
    """
    from highspy import HighsModelStatus

    W, b = layers[-1]
    linear, cost = relaxation.minimise(c @ W, c @ b), relaxation.cost(c @ W)
    whole, (low, high) = relaxation.copy(), relaxation.limits.T
    size, one = high - low, np.ones(len(low))
    v = whole.add_columns(0 * one, one, integer=True)
    h, a = (whole.post, np.diag(one)), (whole.pre, np.diag(-one))
    whole.add_rows({"h": h, "v": (v, np.diag(-high))}, -math.inf * one, 0 * one, size)
    whole.add_rows({"h": h, "a": a, "v": (v, np.diag(-low))}, -math.inf * one, -low, size)
    if node_limit is not None:
        whole.solver.setOptionValue("mip_max_nodes", node_limit)
    unit = whole.run(np.append(cost, 0 * v))
    said, solution = whole.solver.getInfo(), whole.solver.getSolution()
    lower, columns = linear.bound, whole.point() if solution.value_valid else linear.point
    trusted = whole.solver.getModelStatus() != HighsModelStatus.kInfeasible
    if len(v) and trusted and relaxation.steepest < STEEPEST:
        lower = max(lower, unit * said.mip_dual_bound + float(cost @ relaxation.shift + c @ b))
    if columns is None:
        columns = (relaxation.lower + relaxation.upper) / 2
    point = _input(relaxation, layers, columns)
    upper = float(c @ _forward(layers, point))
    return Found(min(lower, upper), upper, point, max(0, said.mip_node_count))


STARTS, STEPS = 64, 20  # of the attack by which `certify` tries to break what PGD does not
STEEPEST = 1e5  # tolerances of 1e-10 are then at most 1e-5 of a unit's range, layer by layer
SOLVERS = {"search": search, "mip": mip}


def _of_many_starts(
    model: nn.Module, x: Tensor, y: Tensor, ball: Ball, classes: Sequence[Tensor]
) -> Tensor:
    """The best δ of Auto-PGD from STARTS points of Δ(x), towards the classes of each sample in turns.

    Where a network is flat, the gradient at one start leads nowhere: these lie all the way from x to the
    edge of the ball, in random directions, for every sample the same.  Returns δ like x.
    """
    turn = torch.arange(STARTS, device=x.device)
    share = torch.linspace(0, 1, STARTS).to(x).view(-1, *[1] * (x.ndim - 1))
    rows = torch.arange(len(x), device=x.device).repeat_interleave(STARTS)
    at, labels, balls = x[rows], y[rows], ball.subset(rows)
    starts = [
        share * balls.subset(own).sample(at[own])
        for own in torch.arange(len(rows), device=x.device).split(STARTS)
    ]
    targets = torch.cat([own[turn % len(own)] for own in classes])
    delta = attacks.apgd(
        *(model, at, labels, balls), steps=STEPS, start=torch.cat(starts), targets=targets
    )
    with evaluating(model), torch.no_grad():
        least = losses.margin(model(at + delta), labels).view(len(x), STARTS).argmin(1)
    return delta.view(len(x), STARTS, *x.shape[1:])[torch.arange(len(x), device=x.device), least]


def _minima(
    layers: Sequence[Layer], lower: Array, upper: Array, y: int, method: str, node_limit: int | None
) -> list[Found]:
    """The minimum of z_y − z_k for every class k. The nodes left are shared among the classes left."""
    relaxation, _ = relax(layers, lower, upper)
    K = len(layers[-1][1])
    one, found = np.eye(K), [Found(math.inf, math.inf, lower, 0)] * K
    others = [k for k in range(K) if k != y]
    left = node_limit
    for done, k in enumerate(others):
        share = None if left is None else max(1, left // (len(others) - done))
        found[k] = SOLVERS[method](relaxation, layers, one[y] - one[k], share)
        left = None if left is None else left - found[k].nodes
    return found


def _sign(
    layers: Sequence[Layer],
    lower: Array,
    upper: Array,
    y: int,
    classes: Sequence[int],
    node_limit: int | None,
) -> tuple[str, Found]:
    """Does every z_y − z_k, k in classes, stay positive? How far it went and the smallest one found."""
    (W, b), one = layers[-1], np.eye(len(layers[-1][1]))
    least = dict.fromkeys(classes, -math.inf)
    for tighten in (False, True):
        relaxation, _ = relax(layers, lower, upper, tighten=tighten)
        for k in [k for k in classes if least[k] <= TOLERANCE]:
            least[k] = max(least[k], relaxation.minimise(W[y] - W[k], b[y] - b[k]).bound)
        if min(least.values()) > TOLERANCE:
            break
    found = {k: Found(least[k], math.inf, lower, 0) for k in classes}
    hard = sorted((k for k in classes if least[k] <= TOLERANCE), key=least.get)
    left = node_limit
    for k in hard:
        one_class = search(relaxation, layers, one[y] - one[k], left, sign=True)
        found[k] = one_class._replace(lower=max(one_class.lower, least[k]))
        left = None if left is None else left - one_class.nodes
        if one_class.upper <= TOLERANCE or left == 0:
            break
    worst = min(found.values(), key=lambda f: f.upper)
    proved, nodes = min(f.lower for f in found.values()), sum(f.nodes for f in found.values())
    return "search" if hard else "lp", worst._replace(lower=proved, nodes=nodes)


def _input(relaxation: Relaxation, layers: Sequence[Layer], columns: Array) -> Array:
    """The input among the columns, put back into its box if the solver left it by its tolerance."""
    d = layers[0][0].shape[1]
    return np.clip(columns[:d], relaxation.lower[:d], relaxation.upper[:d])


def _forward(layers: Sequence[Layer], h: Array) -> Array:
    """The logits of one input."""
    for W, b in layers[:-1]:
        h = np.maximum(W @ h + b, 0)
    W, b = layers[-1]
    return W @ h + b


def _wrong(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    with evaluating(model), torch.no_grad():
        return ~losses.correct(model(x), y)


def _problems(
    model: nn.Sequential, x: Tensor, y: Tensor, ball: Ball, node_limit: int | None
) -> list[tuple[list[Layer], Array, Array]]:
    if node_limit is not None and not (isinstance(node_limit, int) and node_limit >= 1):
        raise ValueError(f"expected a whole number of nodes ≥ 1, or None, got {node_limit!r}")
    check_batch(x)
    pieces = affine_pieces(model, x.shape[1:], torch.float64)
    check_labels(pieces, x, y)
    return bounds.problems(pieces, x, ball)
