"""The triangle relaxation of a network around one input: a linear program that HiGHS solves.

a = W h + b is what enters a ReLU and h = max(a, 0) what leaves it. Where l ≤ a ≤ u with l < 0 < u, the
unit is unstable, and the program knows only that (a, h) lies in the smallest convex set that holds the
graph of the ReLU, the triangle

    h ≥ 0,   h ≥ a,   (u − l) h ≤ u (a − l).

All other units are linear there and need no relaxing. A minimum over the relaxation is at most the
minimum over the network. Everything here is NumPy in float64, one sample at a time.
Source: Wong & Kolter 2018, eq. (3).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Layer = tuple[Array, Array]  # W (out, in) and b (out,)


class Solution(NamedTuple):
    """What one linear program says.

    bound:  no point of the relaxation has a smaller value; inf where its phases leave it no point.
    point:  the values of all columns at the solver's minimum, the input first; None without one.
    prices: for every unstable unit, how fast the minimum would rise if its triangle's upper edge fell.
    """

    bound: float
    point: Array | None
    prices: Array


class Program(NamedTuple):
    """min costᵀξ over lower ≤ ξ ≤ upper and row_lower ≤ rows ξ ≤ row_upper, for other solvers to read.

    pre, post: of every unstable unit the columns of a and h.  limits: its l and u, (units, 2).
    """

    cost: Array
    lower: Array
    upper: Array
    rows: Array
    row_lower: Array
    row_upper: Array
    pre: NDArray[np.int_]
    post: NDArray[np.int_]
    limits: Array


class Relaxation:
    """The linear program of a network around one input, built one hidden layer at a time.

    lower, upper: (d,), the box in which the input lies.

    Its columns are the input, and for every hidden unit that can be positive a, and h if it is unstable.
    All have finite bounds. HiGHS keeps its last basis: each program starts where the one before ended.
    """

    def __init__(self, lower: Array, upper: Array):
        import highspy

        self.solver = highspy.Highs()
        # A hot start gains nothing from presolve, and the programs come well scaled.
        for option, value in (
            ("output_flag", False),
            ("presolve", "off"),
            ("simplex_scale_strategy", 0),
        ):
            self.solver.setOptionValue(option, value)
        self.lower, self.upper = np.empty(0), np.empty(0)  # of the columns
        self.row_lower, self.row_upper = np.empty(0), np.empty(0)
        self.rows = np.empty((0, 0))
        self.output = self._add_columns(lower, upper)  # the columns that hold the last layer's h
        self.alive = np.arange(len(lower))  # and the units they belong to: all others are 0
        none = np.empty(0, dtype=int)  # of every unstable unit: the columns of a and h, the rows of the
        self.pre, self.post, self.above, self.edge = none, none, none, none  # triangle's two upper sides
        self.limits = np.empty((0, 2))  # and l and u
        self.phases: dict[int, bool] = {}

    def relu(self, W: Array, b: Array, lower: Array, upper: Array) -> None:
        """Add a hidden layer h = max(W h + b, 0) whose pre-activations lie in [lower, upper].

        W: (out, in), in the units of the layer before.  b, lower, upper: (out,), finite.
        """
        units = np.flatnonzero(upper > 0)
        W, b, lower, upper = W[np.ix_(units, self.alive)], b[units], lower[units], upper[units]
        free = np.flatnonzero(lower < 0)
        pre, post = self._add_columns(lower, upper), self._add_columns(0 * free, upper[free])
        slope, one = upper[free] / (upper[free] - lower[free]), np.ones(len(free))
        self._add_rows({"a": (pre, np.eye(len(units))), "W h": (self.output, -W)}, b, b)
        above = {"h": (post, np.diag(one)), "a": (pre[free], np.diag(-one))}
        edge = {"h": (post, np.diag(one)), "a": (pre[free], np.diag(-slope))}
        self.above = np.append(self.above, self._add_rows(above, 0 * one, math.inf * one))
        self.edge = np.append(self.edge, self._add_rows(edge, -math.inf * one, -slope * lower[free]))
        self.pre, self.post = np.append(self.pre, pre[free]), np.append(self.post, post)
        self.limits = np.stack([self.lower[self.pre], self.upper[self.pre]], 1)
        self.output, self.alive = pre.copy(), units
        self.output[free] = post

    def minimise(self, c: Array, offset: float = 0.0) -> Solution:
        """min cᵀh + offset over the relaxation, h the activations of the last layer added.  c: like h.

        The bound is not the solver's word. It is computed from the multipliers that the solver returns
        and, by weak duality, holds for any multipliers, up to the rounding of a few sums in float64.
        Source: Neumaier & Shcherbina 2004.
        """
        from highspy import HighsModelStatus

        cost = self._cost(c)
        self.solver.changeColsCost(len(cost), np.arange(len(cost), dtype=np.int32), cost)
        self.solver.run()
        infeasible = self.solver.getModelStatus() == HighsModelStatus.kInfeasible
        if infeasible and self.phases:  # without any, only rounded bounds can contradict each other
            ray = np.array(self.solver.getDualRay()[2])
            if len(ray) and self._weak_duality(0 * cost, ray) > 0:  # a proof: no point, or 0 > 0
                return Solution(math.inf, None, np.zeros(len(self.edge)))
        found = self.solver.getSolution()
        usable = found.dual_valid and not infeasible
        multipliers = np.array(found.row_dual) if usable else np.zeros(len(self.row_lower))
        point = np.array(found.col_value) if found.value_valid else None
        bound = self._weak_duality(cost, multipliers) + offset
        return Solution(bound, point, np.abs(multipliers[self.edge]))

    def program(self, c: Array) -> Program:
        """The linear program of `minimise`, written out."""
        return Program(
            self._cost(c),
            self.lower,
            self.upper,
            self.rows,
            self.row_lower,
            self.row_upper,
            self.pre,
            self.post,
            self.limits,
        )

    def _cost(self, c: Array) -> Array:
        """What cᵀh, h the activations of the last layer added, asks of each column."""
        cost = np.zeros(len(self.lower))
        cost[self.output] = c[self.alive]
        return cost

    def _weak_duality(self, cost: Array, multipliers: Array) -> float:
        """costᵀξ ≥ λᵀ(rows at a bound) + (cost − Aᵀλ)ᵀ(columns at a bound), for any multipliers λ."""
        below = (multipliers > 0) & (self.row_lower > -math.inf)
        above = (multipliers < 0) & (self.row_upper < math.inf)
        multipliers = np.where(below | above, multipliers, 0)  # an infinite side can carry no multiplier
        at_row = np.where(below, self.row_lower, np.where(above, self.row_upper, 0))
        rest = cost - multipliers @ self.rows
        at_column = np.where(rest > 0, self.lower, self.upper)
        return float(multipliers @ at_row + rest @ at_column)

    def violation(self, point: Array) -> Array:
        """h − max(a, 0) for every unstable unit: all 0 where the network itself can do it."""
        return point[self.post] - np.maximum(point[self.pre], 0)

    def fix(self, phases: Mapping[int, bool]) -> None:
        """Let these unstable units be on (h = a ≥ 0) or off (a ≤ 0 = h), and all others free."""
        for unit in self.phases.keys() | phases.keys():
            on, (lower, upper) = phases.get(unit), self.limits[unit]
            if on is not self.phases.get(unit):
                self._bound_column(self.pre[unit], 0 if on else lower, 0 if on is False else upper)
                self._bound_column(self.post[unit], 0, 0 if on is False else upper)
                self._bound_row(self.above[unit], 0, 0 if on else math.inf)
        self.phases = dict(phases)

    def _add_columns(self, lower: Array, upper: Array) -> NDArray[np.int_]:
        n, none = len(lower), np.empty(0, dtype=np.int32)
        self.solver.addCols(n, np.zeros(n), lower, upper, 0, np.zeros(n, dtype=np.int32), none, none)
        self.lower, self.upper = np.append(self.lower, lower), np.append(self.upper, upper)
        self.rows = np.pad(self.rows, ((0, 0), (0, n)))
        return np.arange(len(self.lower) - n, len(self.lower))

    def _add_rows(
        self, blocks: Mapping[str, tuple[NDArray[np.int_], Array]], lower: Array, upper: Array
    ) -> NDArray[np.int_]:
        """Rows lower ≤ Σ block · columns ≤ upper."""
        from scipy import sparse

        wide = np.zeros((len(lower), len(self.lower)))
        for columns, block in blocks.values():
            wide[:, columns] = block
        new, old = sparse.csr_array(wide), len(self.row_lower)
        self.solver.addRows(len(lower), lower, upper, new.nnz, new.indptr[:-1], new.indices, new.data)
        self.rows = np.concatenate([self.rows, wide])
        self.row_lower, self.row_upper = (
            np.append(self.row_lower, lower),
            np.append(self.row_upper, upper),
        )
        return np.arange(old, len(self.row_lower))

    def _bound_column(self, column: int, lower: float, upper: float) -> None:
        self.solver.changeColBounds(int(column), lower, upper)
        self.lower[column], self.upper[column] = lower, upper

    def _bound_row(self, row: int, lower: float, upper: float) -> None:
        self.solver.changeRowBounds(int(row), lower, upper)
        self.row_lower[row], self.row_upper[row] = lower, upper


def relax(
    layers: Sequence[Layer],
    lower: Array,
    upper: Array,
    bounds: Sequence[tuple[Array, Array]] | None = None,
    tighten: bool = True,
) -> tuple[Relaxation, list[tuple[Array, Array]]]:
    """The relaxation of all hidden layers, and the pre-activation bounds (l, u) of each that it uses.

    layers: every affine piece (W, b), the last one too, which is not relaxed but asked about afterwards.
    lower, upper: (d,), the box in which the input lies.
    bounds: for each hidden layer; None finds them from the first layer to the last by intervals, as
            `bounds.interval` does, which are exact in the first.
    tighten: where intervals leave a unit unstable, whether to minimise and maximise its pre-activation
            over the layers before it: at most two programs a unit.
    """
    relaxation, used = Relaxation(lower, upper), []
    for depth, (W, b) in enumerate(layers[:-1]):
        if bounds is None:
            centre, radius = W @ ((upper + lower) / 2) + b, np.abs(W) @ ((upper - lower) / 2)
            low, high = centre - radius, centre + radius
        else:
            low, high = bounds[depth]
        open_ = (low < 0) & (high > 0) if bounds is None and tighten and depth > 0 else ()
        for j in np.flatnonzero(open_):
            low[j] = max(low[j], relaxation.minimise(W[j], b[j]).bound)
            if low[j] < 0:
                high[j] = min(high[j], -relaxation.minimise(-W[j], -b[j]).bound)
        relaxation.relu(W, b, low, high)
        used.append((low, high))
        lower, upper = np.maximum(low, 0), np.maximum(high, 0)
    return relaxation, used
