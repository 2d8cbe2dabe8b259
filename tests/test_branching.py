"""Branch and bound on made-up minima: it ends with the minimum, keeps its limits, and claims no more."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import seeds

from adv_lib import branching
from adv_lib.branching import TOLERANCE, Case

units = st.integers(1, 6)
widths = st.sampled_from([1, 3, 64])
limits = st.sampled_from([1, 2, 5, 20])


class Table:
    """Minima over the 2ⁿ rows of a table of numbers, bounded in each case by a number of its own.

    A case with all its units decided is a row; its value is there. Any other case is bounded by its own
    minimum less a random gap, which may be 0, and its point is one of its rows. A row may be impossible.
    """

    def __init__(self, seed, n, roots=1, loose=1.0, impossible=0.2, room=3.0):
        draw = np.random.default_rng(seed)
        self.rows = [*itertools.product((False, True), repeat=n)]
        self.values = room * draw.normal(size=(roots, len(self.rows)))
        self.values[draw.random(self.values.shape) < impossible] = math.inf
        self.values[:, 0] = room * draw.normal(size=roots)  # one row of each is possible
        self.n, self.seed, self.loose, self.asked = n, seed, loose, 0
        self.least = self.values.min(1)

    def start(self, root=0):
        return self.values[root, 0], np.array([root, 0.0])

    def __call__(self, leaves):
        self.asked += len(leaves)
        return [self.case(leaf) for leaf in leaves]

    def case(self, leaf):
        code = [leaf.root, *(leaf.phases.get(unit, 2) for unit in range(self.n))]
        draw = np.random.default_rng([self.seed % 2**32, *code])  # the same whenever it is asked
        inside = [
            row
            for row, on in enumerate(self.rows)
            if all(on[unit] == side for unit, side in leaf.phases.items())
        ]
        values = self.values[leaf.root, inside]
        gap = 0 if len(inside) == 1 else self.loose * draw.random() * (draw.random() < 0.8)
        row = inside[draw.integers(len(inside))]
        at = self.values[leaf.root, row]
        scores = draw.random(self.n) + 0.1
        if len(inside) == 1:
            scores[:] = 0
        return Case(values.min() - gap, at, np.array([leaf.root, row]), scores, found=code)


def assert_holds(found, table, roots=(0,)):
    """lower ≤ minimum ≤ upper, and the point has the value."""
    assert found.lower <= min(table.least[root] for root in roots)
    assert found.upper >= min(table.least[root] for root in roots)
    root, row = found.point.astype(int)
    assert table.values[root, row] == found.upper


# ---- the minimum ----


@given(seeds, units, widths)
def test_a_search_without_a_limit_ends_with_the_minimum(seed, n, width):
    table = Table(seed, n)
    (found,) = branching.search(table, [table.start()], width=width)
    assert_holds(found, table)
    assert found.upper - found.lower <= TOLERANCE
    assert found.nodes == table.asked <= 2 ** (n + 1) - 1


@given(seeds, units, widths, limits)
def test_any_limit_of_nodes_is_kept_and_leaves_the_minimum_between_both_ends(seed, n, width, limit):
    table = Table(seed, n)
    (found,) = branching.search(table, [table.start()], width=width, node_limit=limit)
    assert found.nodes == table.asked <= limit
    assert_holds(found, table)


@settings(max_examples=30)
@given(seeds)
def test_the_ends_close_in_as_the_limit_grows(seed):
    lowers, uppers = [], []
    for limit in (1, 2, 3, 5, 10, 30, None):
        table = Table(seed, 5)
        (found,) = branching.search(table, [table.start()], node_limit=limit)
        lowers.append(found.lower)
        uppers.append(found.upper)
    assert lowers == sorted(lowers)
    assert uppers == sorted(uppers, reverse=True)
    assert uppers[-1] - lowers[-1] <= TOLERANCE


@pytest.mark.parametrize("ticks", [0, 1, 3, 10])
def test_a_limit_in_seconds_leaves_the_minimum_between_both_ends(monkeypatch, ticks):
    """The clock ticks once a look; seconds are looks."""
    monkeypatch.setattr(branching, "monotonic", itertools.count().__next__)
    for seed in range(20):
        table = Table(seed, 5)
        (found,) = branching.search(table, [table.start()], seconds=ticks)
        assert found.nodes == table.asked <= max(0, ticks - 1)
        assert_holds(found, table)
        if ticks <= 1:
            assert found.lower == -math.inf


@given(seeds, units)
def test_a_case_that_looks_better_than_what_it_was_cut_from_is_no_better(seed, n):
    """Bounds that are far too low in the children: what was known of the parent still holds of them."""
    table = Table(seed, n, impossible=0)

    def forgetful(leaves):
        return [
            case._replace(bound=case.bound - 100 * bool(leaf.phases and case.scores.any()))
            for leaf, case in zip(leaves, table(leaves), strict=True)
        ]

    (first,) = branching.search(table, [table.start()], node_limit=1)
    for limit in (2, 3, 7):
        (found,) = branching.search(forgetful, [table.start()], node_limit=limit)
        assert found.lower >= first.lower
        assert_holds(found, table)


def test_where_nothing_is_possible_the_start_is_all_there_is():
    table = Table(0, 3)
    table.values[:] = math.inf
    (found,) = branching.search(table, [(5.0, np.array([0, 0.0]))])
    assert (found.lower, found.upper, found.nodes) == (5.0, 5.0, 1)


def test_without_a_positive_score_a_bound_stays_where_it_is():
    """Nothing to split: what is proved is the bound, and nobody claims that it is the minimum."""
    flat = lambda leaves: [Case(1.0, 2.0, np.zeros(2), np.zeros(3)) for _ in leaves]  # noqa: E731
    (found,) = branching.search(flat, [(3.0, np.ones(2))])
    assert (found.lower, found.upper, found.nodes) == (1.0, 2.0, 1)


@given(seeds, units)
def test_no_unit_is_split_twice_and_each_case_gets_what_its_parent_found(seed, n):
    """Even where the scores ask for it: a unit that is decided has 0."""
    table, seen = Table(seed, n), []

    def evaluate(leaves):
        for leaf in leaves:
            assert leaf.phases not in seen
            seen.append(leaf.phases)
            if leaf.phases:
                *before, _ = leaf.phases
                assert leaf.found == [0, *(leaf.phases[u] if u in before else 2 for u in range(n))]
            else:
                assert leaf.found is None
        return [
            case._replace(scores=case.scores + 9 * np.isin(range(n), [*leaf.phases]))
            for leaf, case in zip(leaves, table(leaves), strict=True)
        ]

    (found,) = branching.search(evaluate, [table.start()])
    assert found.upper - found.lower <= TOLERANCE


# ---- several at a time ----


@settings(max_examples=50)
@given(seeds, units, widths, st.sampled_from([1, 5, None]))
def test_several_questions_at_a_time_get_the_answers_that_each_would_get_alone(seed, n, width, limit):
    table = Table(seed, n, roots=6)
    roots = [(0, 3), (1,), (5, 2, 4)]
    starts = [table.start(own[0]) for own in roots]
    options = {"width": width, "node_limit": limit}
    together = branching.search(table, starts, roots, **options)
    for own, start, found in zip(roots, starts, together, strict=True):
        (alone,) = branching.search(table, [start], [own], **options)
        assert found[:2] == alone[:2]
        assert (found.point == alone.point).all()
        assert found.nodes == alone.nodes <= (limit or math.inf)
        assert_holds(found, table, own)
        if limit is None:
            assert found.upper - found.lower <= TOLERANCE


@settings(max_examples=50)
@given(seeds, units)
def test_the_smallest_of_several_minima_is_the_smallest_of_what_each_alone_gives(seed, n):
    table = Table(seed, n, roots=3)
    (whole,) = branching.search(table, [table.start(1)], [range(3)])
    each = branching.search(table, [table.start(root) for root in range(3)])
    assert abs(whole.upper - min(one.upper for one in each)) <= TOLERANCE
    assert whole.nodes <= sum(one.nodes for one in each)  # what is above the best is never opened


def test_no_question_no_answer():
    assert branching.search(Table(0, 2), []) == []


def test_a_question_without_roots_is_answered_by_its_start():
    (found,) = branching.search(Table(0, 2), [(5.0, np.zeros(2))], [()])
    assert (found.lower, found.upper, found.nodes) == (5.0, 5.0, 0)


# ---- the sign ----


@given(seeds, units, widths)
def test_a_search_for_the_sign_ends_with_the_sign_and_takes_no_more_cases(seed, n, width):
    table = Table(seed, n, room=1.0)
    (full,) = branching.search(table, [table.start()], width=width)
    (found,) = branching.search(table, [table.start()], width=width, sign=True)
    assert found.nodes <= full.nodes
    assert_holds(found, table)
    least = table.least[0]
    if least > 2 * TOLERANCE:
        assert found.lower > TOLERANCE
    if least < -2 * TOLERANCE:
        assert found.upper < -TOLERANCE


# ---- room ----


@pytest.mark.parametrize("width", [1, 3])
def test_few_cases_wait_where_there_is_little_room_and_the_answer_is_the_same(monkeypatch, width):
    n, room, longest = 9, 8, []
    take = branching._Tree.take

    def watched(tree, width):
        longest[-1] = max(longest[-1], len(tree.waiting))
        return take(tree, width)

    monkeypatch.setattr(branching._Tree, "take", watched)
    for seed in range(3):
        table, found = Table(seed, n, loose=60.0, impossible=0), []
        for space in (branching.ROOM, room):
            monkeypatch.setattr(branching, "ROOM", space)
            longest.append(0)
            (answer,) = branching.search(table, [table.start()], width=width)
            assert_holds(answer, table)
            found.append(answer)
        monkeypatch.setattr(branching, "ROOM", 20_000)
        assert all(one.upper - one.lower <= TOLERANCE for one in found)
        assert found[0].upper == pytest.approx(found[1].upper, abs=TOLERANCE)
        assert longest[-1] <= room + width * (n + 1)
    assert max(longest[::2]) > room + width * (n + 1)  # else there was room enough


def test_a_limit_leaves_true_ends_where_there_is_little_room(monkeypatch):
    monkeypatch.setattr(branching, "ROOM", 5)
    for seed in range(10):
        for limit in (10, 50, 200):
            table = Table(seed, 8, loose=8.0, impossible=0.1)
            (found,) = branching.search(table, [table.start()], width=2, node_limit=limit)
            assert_holds(found, table)
            assert found.nodes <= limit
