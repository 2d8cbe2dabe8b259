"""Branch and bound: split a minimum into cases until what is proved meets what is found.

It knows no network and no bound. A case says of some units that they are on or off; whoever can bound
the minimum in such a case can be searched with: linear programs (`programs.search`), backward passes
(`leaves`), or anything else. Several questions can be searched at a time, and each may be the smallest
of several minima, one a root: then their cases go to the bound together, as one batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush
from itertools import count
from time import monotonic
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Phases = Mapping[int, bool]  # unit → on or off, of the units that are decided; the others are free
TOLERANCE = 1e-6  # in the units of what is minimised
ROOM = 20_000  # open cases of a question; with more than that, those that are nearly closed come first


class Leaf(NamedTuple):
    """A case that nobody has bounded yet.

    root:   which of the minima it is about.  phases: what is decided.
    bound:  what is known of the case that it was cut from.  enough: a bound above this closes it.
    found:  what that case has found, None at a root.
    """

    root: int
    phases: Phases
    bound: float
    enough: float
    found: Any = None


class Case(NamedTuple):
    """What is known of the minimum in one case.

    bound:  nothing that is possible in the case has a smaller value; inf if nothing is possible.
    value:  what `point` has, in the case or outside, so that the whole minimum is at most that.
    point:  one input.
    scores: (units,) ≥ 0, how much a split at each promises; 0 where it is pointless.
    found:  whatever helps to bound the cases that this one is split into.
    """

    bound: float
    value: float
    point: Array
    scores: Array
    found: Any = None


class Found(NamedTuple):
    """lower ≤ minimum ≤ upper, the input that reaches `upper`, and how many cases it took."""

    lower: float
    upper: float
    point: Array
    nodes: int


def search(
    evaluate: Callable[[Sequence[Leaf]], Sequence[Case]],
    starts: Sequence[tuple[float, Array]],
    roots: Sequence[Sequence[int]] | None = None,
    *,
    width: int = 1,
    node_limit: int | None = None,
    seconds: float | None = None,
    sign: bool = False,
) -> list[Found]:
    """The minimum of each question by branch and bound, the cases with the smallest bounds first.

    A case that cannot get TOLERANCE below the best point is closed. Any other is split in two at the
    free unit with the largest score; without a positive score its bound is its minimum.

    evaluate: leaves → a `Case` for each.
    starts:   of every question the best that is known at first: the value of a point, and the point.
    roots:    of every question the minima of which it is the smallest; None means one each.
    width:    how many cases of a question are bounded at a time.
    node_limit: stop a question after so many cases, ≥ 1; None means when its minimum is known.
    seconds:  stop all of them after so long, on this machine; what is proved by then stands.
    sign: stop when the sign of the minimum is known: close cases above TOLERANCE, end below −TOLERANCE.
    Of each question at most about ROOM cases wait: when there are more, those with the largest bounds,
    which are the nearest to closed, are taken first until there are fewer.
    Returns what is known of each question.  Raises ValueError for a width or a node limit below 1, and
    unless there are roots for each question.  Source: Land & Doig 1960.
    """
    roots = [(i,) for i in range(len(starts))] if roots is None else roots
    if width < 1 or (node_limit is not None and node_limit < 1):
        raise ValueError(f"expected width ≥ 1 and node_limit ≥ 1, got {width!r} and {node_limit!r}")
    if len(roots) != len(starts):
        raise ValueError(f"expected roots of {len(starts)} questions, got {len(roots)}")
    trees = [_Tree(*start, node_limit, sign) for start in starts]
    for tree, own in zip(trees, roots, strict=True):
        for root in own:
            tree.add(-math.inf, root, {})
    end = math.inf if seconds is None else monotonic() + seconds
    while monotonic() < end and any(taken := [tree.take(width) for tree in trees]):
        owners = [tree for tree, leaves in zip(trees, taken, strict=True) for _ in leaves]
        leaves = [leaf for own in taken for leaf in own]
        for tree, leaf, case in zip(owners, leaves, evaluate(leaves), strict=True):
            tree.grow(leaf, case)
    return [tree.known() for tree in trees]


@dataclass
class _Tree:
    """One question: the best point, the cases that wait, and the smallest bound of all that do not."""

    upper: float
    point: Array
    node_limit: int | None
    sign: bool
    nodes: int = 0
    closed: float = math.inf
    waiting: list[tuple[float, int, Leaf]] = field(default_factory=list)  # a heap
    number: Iterator[int] = field(default_factory=count)  # breaks ties

    @property
    def enough(self) -> float:
        """What a bound must exceed to close a case."""
        return min(self.upper - TOLERANCE, TOLERANCE if self.sign else math.inf)

    def add(self, bound: float, root: int, phases: Phases, found: Any = None) -> None:
        heappush(self.waiting, (bound, next(self.number), Leaf(root, phases, bound, math.inf, found)))

    def take(self, width: int) -> list[Leaf]:
        """The cases to bound next; none where the question is answered or its nodes are used up."""
        if self.sign and self.upper < -TOLERANCE:
            return []
        if self.node_limit is not None:
            width = min(width, self.node_limit - self.nodes)
        crowded = len(self.waiting) > ROOM
        if crowded:
            self.waiting.sort()  # which is a heap, too
        taken: list[Leaf] = []
        while self.waiting and len(taken) < width:
            bound, _, leaf = self.waiting.pop() if crowded else heappop(self.waiting)
            if bound > self.enough:
                self.closed = min(self.closed, bound)
            else:
                taken.append(leaf._replace(enough=self.enough))
        self.nodes += len(taken)
        return taken

    def grow(self, leaf: Leaf, case: Case) -> None:
        """Split a case that has been bounded, or close it."""
        bound = max(case.bound, leaf.bound)
        if bound == math.inf:  # no input does this
            return
        if case.value < self.upper:
            self.upper, self.point = case.value, case.point
        case.scores[list(leaf.phases)] = 0
        if bound > self.enough or case.scores.max(initial=0) <= 0:
            self.closed = min(self.closed, bound)
            return
        unit = int(case.scores.argmax())
        for on in (False, True):
            self.add(bound, leaf.root, {**leaf.phases, unit: on}, case.found)

    def known(self) -> Found:
        open_ = (bound for bound, *_ in self.waiting)
        return Found(min([self.closed, self.upper, *open_]), self.upper, self.point, self.nodes)
