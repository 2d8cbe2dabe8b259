"""Branch and bound: split a minimum into cases until what is proved meets what is found.

It knows no network and no bound. A case says of some units that they are on or off; whoever can bound
the minimum in such a case can be searched with: linear programs (`exact.search`), or anything else.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from heapq import heappop, heappush
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Phases = Mapping[int, bool]  # unit → on or off, of the units that are decided; the others are free
TOLERANCE = 1e-6  # in the units of what is minimised


class Case(NamedTuple):
    """What is known of the minimum in one case.

    bound: nothing that is possible in the case has a smaller value; inf if nothing is possible.
    value: what `point` has, in the case or outside, so that the whole minimum is at most that.
    point: one input.
    found: whatever else the score needs.
    """

    bound: float
    value: float
    point: Array
    found: Any = None


class Found(NamedTuple):
    """lower ≤ minimum ≤ upper, the input that reaches `upper`, and how many cases it took."""

    lower: float
    upper: float
    point: Array
    nodes: int


def search(
    evaluate: Callable[[Phases], Case],
    score: Callable[[Case], Array],
    start: tuple[float, Array],
    node_limit: int | None = None,
    sign: bool = False,
) -> Found:
    """The minimum by branch and bound, the case with the smallest bound first.

    A case that cannot get TOLERANCE below the best point is closed. Any other is split in two at the
    free unit with the largest score; without a positive score its bound is its minimum.

    evaluate: phases → `Case`.
    score: a case → one number ≥ 0 a unit, how much a split there promises; 0 where it is pointless.
    start: the value of a point, and the point: the best that is known at first.
    node_limit: stop after so many cases, ≥ 1; None means when the minimum is known.
    sign: stop when the sign of the minimum is known: close cases above TOLERANCE, end below −TOLERANCE.
    Source: Land & Doig 1960.
    """
    (upper, best), solved = start, 0
    finished = math.inf  # the smallest bound of the cases that need no split
    nodes: list[tuple[float, int, dict[int, bool]]] = [(-math.inf, 0, {})]
    while nodes and solved != node_limit and not (sign and upper < -TOLERANCE):
        if nodes[0][0] > min(upper - TOLERANCE, TOLERANCE if sign else math.inf):
            break
        parent, _, phases = heappop(nodes)
        case = evaluate(phases)
        bound, solved = max(case.bound, parent), solved + 1
        if bound == math.inf:  # no input does this
            continue
        if case.value < upper:
            upper, best = case.value, case.point
        scores = score(case)
        scores[list(phases)] = 0
        if scores.size == 0 or scores.max() <= 0:
            finished = min(finished, bound)
            continue
        unit = int(scores.argmax())
        for on in (True, False):
            heappush(nodes, (bound, 2 * solved + on, {**phases, unit: on}))  # the number breaks ties
    return Found(min([finished, upper, *(bound for bound, _, _ in nodes)]), upper, best, solved)
