"""The exact minimum over the ℓ∞ ball by programs: branch and bound over linear ones, or an integer one.

A ReLU is on or off. If we knew which, the network would be affine and one linear program would find the
minimum; n unstable units leave up to 2ⁿ cases. `mip` gives each unit a binary variable and leaves the
search to a solver [Tjeng, Xiao & Tedrake 2019, eq. (6)]; `search` is our own branch and bound
(`branching`). One sample at a time, in NumPy, in float64.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from . import branching
from .branching import TOLERANCE, Case, Found, Leaf
from .relaxation import Array, Layer, Relaxation

STEEPEST = 1e5  # tolerances of 1e-10 are then at most 1e-5 of a unit's range, layer by layer


def search(
    relaxation: Relaxation,
    layers: Sequence[Layer],
    c: Array,
    node_limit: int | None = None,
    sign: bool = False,
    seconds: float | None = None,
) -> Found:
    """min cᵀ(logits) by `branching.search`, each case bounded by a linear program.

    The minimum of the program bounds the network from below; the input at that minimum, sent through the
    network, bounds it from above. Split is the unit whose triangle is violated most, weighed by the
    price of its upper edge: where no triangle is violated, the network itself does it, unless the
    solver's tolerance hides that.

    relaxation: of the hidden layers.  layers: all of them.  c: (K,).
    node_limit, sign, seconds: as in `branching.search`; a case is one linear program.
    """
    W, b = layers[-1]
    centre = (relaxation.lower + relaxation.upper) / 2

    def reached(columns: Array) -> tuple[float, Array]:
        point = _input(relaxation, layers, columns)
        return float(c @ _forward(layers, point)), point

    def evaluate(leaves: Sequence[Leaf]) -> list[Case]:
        return [bounded(leaf) for leaf in leaves]

    def bounded(leaf: Leaf) -> Case:
        relaxation.fix(leaf.phases)
        bound, columns, prices = relaxation.minimise(c @ W, c @ b)
        value, point = reached(centre if columns is None else columns)
        size = relaxation.size[relaxation.pre]  # without columns the solver has stopped without a point
        violation = size if columns is None else relaxation.violation(columns)
        if value > bound + TOLERANCE and not (violation > 0).any():
            violation = size  # the solver's tolerance hides them
        return Case(bound, value, point, violation * (prices + TOLERANCE / size))

    (found,) = branching.search(
        evaluate, [reached(centre)], node_limit=node_limit, seconds=seconds, sign=sign
    )
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
