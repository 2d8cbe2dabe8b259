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
from copy import copy
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
ROUNDING = 1e-12  # of what comes into a unit: a range below that is none
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


class Relaxation:
    """The linear program of a network around one input, built one hidden layer at a time.

    lower, upper: (d,), the box in which the input lies.

    Its columns are the input, and for every hidden unit that can be positive a, and h if it is unstable.
    All have finite bounds. HiGHS keeps its last basis: each program starts where the one before ended.

    A solver's tolerances are absolute, but a layer may be multiplied by s and the next divided by s, and
    the network stays. So HiGHS is given variables that run from 0 to 1, rows in units of their unit's
    range and costs of at most 1; everything else here is in the network's own units.
    """

    def __init__(self, lower: Array, upper: Array):
        self.solver = _solver(presolve="off")  # from which a hot start gains nothing
        self.lower, self.upper = np.empty(0), np.empty(0)  # of the columns
        self.shift, self.size = np.empty(0), np.empty(0)  # column = shift + size · the solver's variable
        self.row_lower, self.row_upper = np.empty(0), np.empty(0)
        self.row_shift, self.row_size = np.empty(0), np.empty(0)
        self.rows = np.empty((0, 0))
        self.output = self.add_columns(lower, upper)  # those with the last layer's h
        self.alive = np.arange(len(lower))  # and the units they belong to: all others are 0
        none = np.empty(0, dtype=int)  # of every unstable unit: the columns of a and h, the rows of the
        self.pre, self.post, self.above, self.edge = none, none, none, none  # triangle's two upper sides
        self.limits = np.empty((0, 2))  # and l and u
        self.steepest = 0.0  # by how much the solver's tolerance can grow from one layer to the next
        self.phases: dict[int, bool] = {}

    def relu(self, W: Array, b: Array, lower: Array, upper: Array) -> None:
        """Add a hidden layer h = max(W h + b, 0) whose pre-activations lie in [lower, upper].

        W: (out, in), in the units of the layer before.  b, lower, upper: (out,), finite.
        """
        units = np.flatnonzero(upper > 0)
        W, b, lower, upper = W[np.ix_(units, self.alive)], b[units], lower[units], upper[units]
        free = np.flatnonzero(lower < 0)
        into = np.abs(W) @ self.size[self.output]  # what came in: a unit may cancel nearly all of it,
        size = np.maximum(upper - lower, ROUNDING * into)  # and what is left is rounding
        pre = self.add_columns(lower, upper, size)
        post = self.add_columns(0 * free, upper[free], size[free])
        self.steepest = max(self.steepest, (into / np.where(size > 0, size, 1)).max(initial=0))
        slope, one = upper[free] / (upper - lower)[free], np.ones(len(free))
        self.add_rows({"a": (pre, np.eye(len(units))), "W h": (self.output, -W)}, b, b, size)
        above = {"h": (post, np.diag(one)), "a": (pre[free], np.diag(-one))}
        edge = {"h": (post, np.diag(one)), "a": (pre[free], np.diag(-slope))}
        above = self.add_rows(above, 0 * one, math.inf * one, size[free])
        edge = self.add_rows(edge, -math.inf * one, -slope * lower[free], size[free])
        self.above, self.edge = np.append(self.above, above), np.append(self.edge, edge)
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

        cost = self.cost(c)
        unit = self.run(cost)
        infeasible = self.solver.getModelStatus() == HighsModelStatus.kInfeasible
        if infeasible and self.phases:  # without any, only rounded bounds can contradict each other
            ray = np.array(self.solver.getDualRay()[2])
            if len(ray) and self._weak_duality(0 * cost, ray / self.row_size) > 0:
                return Solution(math.inf, None, np.zeros(len(self.edge)))  # a proof: no point, or 0 > 0
        found = self.solver.getSolution()
        usable = found.dual_valid and not infeasible
        multipliers = np.array(found.row_dual) if usable else np.zeros(len(self.row_lower))
        multipliers = multipliers * unit / self.row_size
        point = self.point() if found.value_valid else None
        bound = self._weak_duality(cost, multipliers) + offset
        return Solution(bound, point, np.abs(multipliers[self.edge]))

    def run(self, cost: Array) -> float:
        """Let the solver minimise costᵀξ; returns the unit in which it is told the costs."""
        scaled = cost * self.size
        unit = np.abs(scaled).max(initial=0) or 1.0
        self.solver.changeColsCost(len(cost), np.arange(len(cost), dtype=np.int32), scaled / unit)
        self.solver.run()
        return unit

    def point(self) -> Array:
        """The values of all columns where the solver stands."""
        return self.shift + self.size * np.array(self.solver.getSolution().col_value)

    def cost(self, c: Array) -> Array:
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

    def copy(self) -> Relaxation:
        """The same program for a solver of integer programs, to which more can be added."""
        other = copy(self)
        other.solver = _solver(mip_rel_gap=0.0, mip_abs_gap=0.0, mip_feasibility_tolerance=1e-10)
        other.solver.passModel(self.solver.getLp())
        return other

    def add_columns(
        self, lower: Array, upper: Array, size: Array | None = None, integer: bool = False
    ) -> NDArray[np.int_]:
        """Columns lower ≤ ξ ≤ upper.  Returns their numbers.

        size: what the solver takes as 1, None for upper − lower.
        """
        from highspy import HighsVarType

        n, none, few = len(lower), np.empty(0), np.empty(0, dtype=np.int32)
        size = upper - lower if size is None else size
        top = (upper - lower) / np.where(size > 0, size, 1)
        _accepted(self.solver.addCols(n, np.zeros(n), np.zeros(n), top, 0, few, few, none))
        self.lower, self.upper = np.append(self.lower, lower), np.append(self.upper, upper)
        self.shift, self.size = np.append(self.shift, lower), np.append(self.size, size)
        self.rows = np.pad(self.rows, ((0, 0), (0, n)))
        new = np.arange(len(self.lower) - n, len(self.lower), dtype=np.int32)
        if integer:
            self.solver.changeColsIntegrality(n, new, np.full(n, HighsVarType.kInteger))
        return new

    def add_rows(
        self, blocks: Mapping[str, tuple[Array, Array]], lower: Array, upper: Array, size: Array
    ) -> NDArray[np.int_]:
        """Rows lower ≤ Σ block · columns ≤ upper.  Returns their numbers.

        blocks: by any name, which columns and what stands there.  size: what the solver takes as 1.
        """
        from scipy import sparse

        wide, old = np.zeros((len(lower), len(self.lower))), len(self.row_lower)
        for columns, block in blocks.values():
            wide[:, columns] = block
        shift, size = wide @ self.shift, np.where(size > 0, size, 1)
        low, high = (lower - shift) / size, (upper - shift) / size
        new = sparse.csr_array(wide * self.size / size[:, None])
        entries = new.nnz, new.indptr[:-1], new.indices, new.data
        _accepted(self.solver.addRows(len(lower), low, high, *entries))
        self.rows = np.concatenate([self.rows, wide])
        self.row_lower, self.row_upper = (
            np.append(self.row_lower, lower),
            np.append(self.row_upper, upper),
        )
        self.row_shift, self.row_size = np.append(self.row_shift, shift), np.append(self.row_size, size)
        return np.arange(old, len(self.row_lower))

    def _bound_column(self, column: int, lower: float, upper: float) -> None:
        low, high = (np.array([lower, upper]) - self.shift[column]) / self.size[column]
        _accepted(self.solver.changeColBounds(int(column), low, high))
        self.lower[column], self.upper[column] = lower, upper

    def _bound_row(self, row: int, lower: float, upper: float) -> None:
        low, high = (np.array([lower, upper]) - self.row_shift[row]) / self.row_size[row]
        _accepted(self.solver.changeRowBounds(int(row), low, high))
        self.row_lower[row], self.row_upper[row] = lower, upper


def _solver(**options):
    """A silent HiGHS. Its own scaling is off: the programs come well scaled."""
    import highspy

    solver = highspy.Highs()
    options |= {"output_flag": False, "simplex_scale_strategy": 0, "small_matrix_value": 1e-12}
    options |= dict.fromkeys(("primal_feasibility_tolerance", "dual_feasibility_tolerance"), 1e-10)
    for option, value in options.items():
        solver.setOptionValue(option, value)
    return solver


def _accepted(status) -> None:
    """Raise ValueError if the solver has refused what it was given."""
    from highspy import HighsStatus

    if status == HighsStatus.kError:
        raise ValueError(
            "expected weights that the solver can hold when every unit runs from 0 to 1, "
            "got coefficients that are not finite or above 1e15"
        )


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
