"""The triangle's linear program: its bounds are optima, proved by weak duality and not by the solver."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog
from strategies import layers_of, network, seeds

from adv_lib.relaxation import Relaxation, relax

NEAR = 1e-7  # what the solver leaves of an optimum of size 1
few = settings(max_examples=50)


def instance(seed, kind="deep mlp", radius=0.3, scale=2.0):
    """The layers of a random network, a box around a random point, a random objective on the logits."""
    layers, draw = layers_of(network(kind, seed, scale)), np.random.default_rng(seed)
    centre = draw.random(layers[0][0].shape[1])
    return layers, centre - radius, centre + radius, draw.normal(size=len(layers[-1][1])), draw


def program(layers, bounds, lower, upper, c, phases=(), dropped=0.0, edge=0):
    """min cᵀz over the triangles, written down from the definition: a and h for every hidden unit.

    Units that can be on keep their l ≤ a ≤ u; of one that is always off only h = 0 is known.
    phases: of unstable units by number.  dropped: by how much the upper edge of unit `edge` is lowered.
    """
    sizes = [len(lower), *(width for W, _ in layers[:-1] for width in (len(W), len(W)))]
    starts = np.cumsum([0, *sizes])
    n, equal, right, below, sides, box = starts[-1], [], [], [], [], list(zip(lower, upper, strict=True))
    unit, before = 0, range(starts[0], starts[1])

    def row(**entries):
        line = np.zeros(n)
        for column, value in entries.values():
            line[column] = value
        return line

    for depth, ((W, b), (low, high)) in enumerate(zip(layers[:-1], bounds, strict=True)):
        a, h = starts[1 + 2 * depth], starts[2 + 2 * depth]
        box += [ends if ends[1] > 0 else (None, None) for ends in zip(low, high, strict=True)]
        box += [(0, max(0, u)) for u in high]
        for j in range(len(b)):
            equal.append(row(a=(a + j, 1), Wh=(before, -W[j])))
            right.append(b[j])
            unstable, on = low[j] < 0 < high[j], low[j] >= 0
            if unstable:
                slope = high[j] / (high[j] - low[j])
                below += [row(a=(a + j, 1), h=(h + j, -1)), row(a=(a + j, -slope), h=(h + j, 1))]
                sides += [0, -slope * low[j] - (dropped if unit == edge else 0)]
            if unstable and unit in dict(phases):
                on = dict(phases)[unit]
                ends = (0, high[j]) if on else (low[j], 0)
                box[a + j], unstable = ends, False
            if not unstable:
                equal.append(row(h=(h + j, 1), a=(a + j, -float(on))))
                right.append(0)
            unit += low[j] < 0 < high[j]
        before = range(h, h + len(b))
    W, b = layers[-1]
    cost = row(z=(before, c @ W))
    limits = {"A_ub": np.array(below), "b_ub": sides} if below else {}
    limits |= {"A_eq": np.array(equal), "b_eq": right} if equal else {}
    result = linprog(cost, **limits, bounds=box)
    return result.fun + c @ b if result.status == 0 else math.inf


def minimum(relaxed, layers, c):
    W, b = layers[-1]
    return relaxed.minimise(c @ W, c @ b)


def activations(relaxed, layers, bounds, x):
    """What the network does with x, as a point of the relaxation's columns."""
    columns, h = [x], x
    for (W, b), (low, high) in zip(layers[:-1], bounds, strict=True):
        a, unstable = W @ h + b, (low < 0) & (high > 0)
        h = np.maximum(a, 0)
        columns += [a[high > 0], h[unstable]]
    point = np.concatenate(columns)
    assert len(point) == len(relaxed.lower)
    return point


def obeyed(relaxed, point, slack=1e-9):
    """Whether a point keeps all rows and columns of the program."""
    rows = relaxed.rows @ point
    inside = (relaxed.lower - slack <= point) & (point <= relaxed.upper + slack)
    return (
        inside.all()
        and ((relaxed.row_lower - slack <= rows) & (rows <= relaxed.row_upper + slack)).all()
    )


# ---- the bound is the optimum of the triangle's program ----


@few
@given(seeds, st.sampled_from(["mlp", "deep mlp"]), st.sampled_from([0.0, 0.01, 0.3, 2.0]))
def test_the_bound_is_the_optimum_of_the_program_written_out_from_the_definition(seed, kind, radius):
    layers, lower, upper, c, _ = instance(seed, kind, radius)
    relaxed, bounds = relax(layers, lower, upper)
    best = program(layers, bounds, lower, upper, c)
    found = minimum(relaxed, layers, c)
    assert found.bound == pytest.approx(best, abs=NEAR, rel=NEAR)
    assert obeyed(relaxed, found.point, slack=NEAR)
    W, b = layers[-1]
    h = np.zeros(W.shape[1])
    h[relaxed.alive] = found.point[relaxed.output]
    assert c @ (W @ h + b) == pytest.approx(best, abs=NEAR, rel=NEAR)


@few
@given(seeds)
def test_bounds_of_the_callers_own_are_used_as_they_are(seed):
    layers, lower, upper, c, draw = instance(seed)
    _, bounds = relax(layers, lower, upper)
    wide = [(low - draw.random(len(low)), high + draw.random(len(high))) for low, high in bounds]
    relaxed, used = relax(layers, lower, upper, wide)
    assert all(np.array_equal(a, b) for a, b in zip(wide, used, strict=True))
    assert minimum(relaxed, layers, c).bound == pytest.approx(
        program(layers, wide, lower, upper, c), abs=NEAR
    )


@few
@given(seeds, st.sampled_from([0.01, 1.0, 100.0]))
def test_no_multipliers_at_all_give_a_bound_above_the_optimum(seed, size):
    layers, lower, upper, c, draw = instance(seed)
    relaxed, bounds = relax(layers, lower, upper)
    W, b = layers[-1]
    cost = np.zeros(len(relaxed.lower))
    cost[relaxed.output] = (c @ W)[relaxed.alive]
    best = program(layers, bounds, lower, upper, c)
    for _ in range(20):
        y = size * draw.normal(size=len(relaxed.row_lower)) * (draw.random(len(relaxed.row_lower)) < 0.5)
        assert relaxed._weak_duality(cost, y) + c @ b <= best + 1e-9 * (1 + np.abs(y).sum())


@few
@given(seeds)
def test_nor_do_the_best_multipliers_of_programs_that_know_more(seed):
    """Units that are on pull at h − a ≥ 0 from its infinite side, which must not count here."""
    layers, lower, upper, c, draw = instance(seed, radius=0.5)
    relaxed, _ = relax(layers, lower, upper)
    W, b = layers[-1]
    cost = np.zeros(len(relaxed.lower))
    cost[relaxed.output] = (c @ W)[relaxed.alive]
    free = minimum(relaxed, layers, c).bound
    for _ in range(10):
        relaxed.fix({unit: bool(draw.random() < 0.7) for unit in range(len(relaxed.pre))})
        minimum(relaxed, layers, c)
        y = np.array(relaxed.solver.getSolution().row_dual)
        relaxed.fix({})
        assert relaxed._weak_duality(cost, y) + c @ b <= free + NEAR * (1 + np.abs(y).sum())


@few
@given(seeds)
def test_what_the_network_does_is_a_point_of_the_relaxation_and_violates_nothing(seed):
    layers, lower, upper, c, draw = instance(seed)
    relaxed, bounds = relax(layers, lower, upper)
    bound = minimum(relaxed, layers, c).bound
    for _ in range(20):
        x = lower + draw.random(len(lower)) * (upper - lower)
        point = activations(relaxed, layers, bounds, x)
        assert obeyed(relaxed, point)
        assert np.abs(relaxed.violation(point)).max(initial=0) <= 1e-12
        h = x
        for W, b in layers[:-1]:
            h = np.maximum(W @ h + b, 0)
        assert c @ (layers[-1][0] @ h + layers[-1][1]) >= bound - 1e-9


def test_the_violation_is_how_far_h_lies_above_the_relu():
    relaxed = Relaxation(np.array([-1.0]), np.array([1.0]))
    relaxed.relu(np.array([[1.0]]), np.zeros(1), np.array([-1.0]), np.array([1.0]))
    top = relaxed.minimise(np.array([-1.0]))  # at a = h = 1 the ReLU does the same
    assert relaxed.violation(top.point) == pytest.approx([0.0], abs=NEAR)
    assert relaxed.violation(np.array([0.0, 0.0, 0.5])) == pytest.approx([0.5])


@few
@given(seeds)
def test_a_price_is_a_slope_below_the_minimum_as_the_upper_edge_falls(seed):
    """The optimum is convex in the right side of a row, so the multiplier's line never lies above it."""
    layers, lower, upper, c, _ = instance(seed, "mlp")
    relaxed, bounds = relax(layers, lower, upper)
    found = minimum(relaxed, layers, c)
    assert (found.prices >= 0).all()
    assert len(found.prices) == len(relaxed.pre)
    for unit, price in enumerate(found.prices):
        for dropped in (-0.05, -1e-3, 1e-3, 0.05):
            after = program(layers, bounds, lower, upper, c, dropped=dropped, edge=unit)
            assert after >= found.bound + price * dropped - NEAR


def test_a_price_that_is_not_0_tells_that_the_edge_binds():
    layers, lower, upper, c, _ = instance(3, "mlp")
    relaxed, bounds = relax(layers, lower, upper)
    found = minimum(relaxed, layers, c)
    assert found.prices.max() > 0.01
    unit = int(found.prices.argmax())
    after = program(layers, bounds, lower, upper, c, dropped=0.01, edge=unit)
    assert after > found.bound + 1e-5


@few
@given(seeds, st.sampled_from([1e2, 1e4, 1e6]))
def test_the_bound_holds_where_the_weights_are_too_large_for_the_solvers_tolerance(seed, scale):
    layers, lower, upper, c, draw = instance(seed, scale=scale)
    relaxed, _ = relax(layers, lower, upper)
    bound = minimum(relaxed, layers, c).bound
    for _ in range(50):
        h = lower + draw.random(len(lower)) * (upper - lower)
        for W, b in layers[:-1]:
            h = np.maximum(W @ h + b, 0)
        size = np.abs(c) @ (np.abs(layers[-1][0]) @ h)
        assert c @ (layers[-1][0] @ h + layers[-1][1]) >= bound - 1e-9 * size


# ---- phases ----


@few
@given(seeds, st.integers(0, 8))
def test_phases_give_the_program_in_which_these_units_are_on_or_off(seed, count):
    layers, lower, upper, c, draw = instance(seed)
    relaxed, bounds = relax(layers, lower, upper)
    free = minimum(relaxed, layers, c).bound
    units = draw.permutation(len(relaxed.pre))[:count]
    phases = {int(unit): bool(draw.random() < 0.5) for unit in units}
    relaxed.fix(phases)
    found = minimum(relaxed, layers, c)
    best = program(layers, bounds, lower, upper, c, phases)
    if best == math.inf:
        assert found.bound == math.inf
        assert found.point is None
    else:
        assert found.bound == pytest.approx(best, abs=NEAR)
        assert found.bound >= free - NEAR


@few
@given(seeds)
def test_the_program_is_as_before_when_all_units_are_free_again(seed):
    layers, lower, upper, c, draw = instance(seed)
    relaxed, _ = relax(layers, lower, upper)
    state = ("lower", "upper", "row_lower", "row_upper")
    before = [getattr(relaxed, name).copy() for name in state]
    free = minimum(relaxed, layers, c).bound
    for _ in range(5):
        relaxed.fix({unit: bool(draw.random() < 0.5) for unit in range(len(relaxed.pre))})
        minimum(relaxed, layers, draw.normal(size=len(c)))
    relaxed.fix({})
    assert all(np.array_equal(a, getattr(relaxed, name)) for a, name in zip(before, state, strict=True))
    assert minimum(relaxed, layers, c).bound == pytest.approx(free, abs=NEAR)


@few
@given(seeds)
def test_a_hot_start_gives_what_a_fresh_program_gives(seed):
    layers, lower, upper, _, draw = instance(seed)
    used, bounds = relax(layers, lower, upper)
    for _ in range(8):
        c = draw.normal(size=len(layers[-1][1]))
        phases = {
            unit: bool(draw.random() < 0.5) for unit in range(len(used.pre)) if draw.random() < 0.2
        }
        fresh, _ = relax(layers, lower, upper, bounds)
        for relaxed in (used, fresh):
            relaxed.fix(phases)
        assert minimum(used, layers, c).bound == pytest.approx(minimum(fresh, layers, c).bound, abs=NEAR)


def test_every_input_obeys_one_choice_of_phases_and_so_the_choices_cover_the_minimum():
    layers, lower, upper, c, draw = instance(5, "mlp", radius=0.5)
    relaxed, _ = relax(layers, lower, upper)
    assert len(relaxed.pre) >= 3
    least = math.inf
    for choice in itertools.product((True, False), repeat=len(relaxed.pre)):
        relaxed.fix(dict(enumerate(choice)))
        least = min(least, minimum(relaxed, layers, c).bound)
    W, b = layers[0]
    x = lower + draw.random((20_000, len(lower))) * (upper - lower)
    z = np.maximum(x @ W.T + b, 0) @ layers[1][0].T + layers[1][1]
    assert (z @ c).min() >= least - NEAR


# ---- bounds on the pre-activations ----


def interval(W, b, lower, upper):
    """The ends of W h + b over a box, by its corners."""
    corners = np.array(list(itertools.product(*zip(lower, upper, strict=True)))) @ W.T + b
    return corners.min(0), corners.max(0)


@given(seeds)
def test_without_tightening_the_bounds_are_the_extremes_over_the_corners_layer_by_layer(seed):
    layers, lower, upper, _, _ = instance(seed)
    _, found = relax(layers, lower, upper, tighten=False)
    for (W, b), ends in zip(layers[:-1], found, strict=True):
        np.testing.assert_allclose(ends, interval(W, b, lower, upper), atol=1e-12)
        lower, upper = np.maximum(ends, 0)


@few
@given(seeds)
def test_tightened_bounds_are_optima_over_the_layers_before_where_intervals_leave_the_sign_open(seed):
    layers, lower, upper, _, _ = instance(seed)
    _, bounds = relax(layers, lower, upper)
    box = lower, upper
    for depth, (W, b) in enumerate(layers[:-1]):
        low, high = interval(W, b, *box)
        for j in range(len(b)):
            before = [*layers[:depth], (W[j : j + 1], b[j : j + 1])]
            ends = [program(before, bounds[:depth], lower, upper, np.array([s])) for s in (1.0, -1.0)]
            if depth > 0 and low[j] < 0 < high[j]:
                low[j] = max(low[j], ends[0])
                high[j] = min(high[j], -ends[1]) if low[j] < 0 else high[j]
        np.testing.assert_allclose(bounds[depth][0], low, atol=NEAR)
        np.testing.assert_allclose(bounds[depth][1], high, atol=NEAR)
        box = np.maximum(bounds[depth][0], 0), np.maximum(bounds[depth][1], 0)


def test_intervals_go_from_layer_to_layer_and_programs_tighten_them():
    layers, lower, upper, c, _ = instance(1, "deep mlp", radius=0.5)
    loose, bounds = relax(layers, lower, upper, tighten=False)
    full, tighter = relax(layers, lower, upper)
    again, kept = relax(layers, lower, upper, bounds)
    assert minimum(again, layers, c).bound == minimum(loose, layers, c).bound
    for ends, same in zip(kept, bounds, strict=True):
        np.testing.assert_array_equal(ends, same)
    assert np.diff(tighter[-1], axis=0).sum() < np.diff(bounds[-1], axis=0).sum()
    assert minimum(loose, layers, c).bound <= minimum(full, layers, c).bound + NEAR


def test_tightening_costs_at_most_two_programs_a_unit(monkeypatch):
    layers, lower, upper, _, _ = instance(1, "deep mlp", radius=0.5)
    solved, minimise = [], Relaxation.minimise
    monkeypatch.setattr(Relaxation, "minimise", lambda *args: solved.append(1) or minimise(*args))
    relax(layers, lower, upper)
    deeper = sum(len(b) for _, b in layers[1:-1])  # the first layer's intervals are exact
    assert 0 < len(solved) <= 2 * deeper


# ---- the ends of what can happen ----


def test_without_a_hidden_layer_the_bound_is_that_of_the_box():
    W, b = np.array([[1.0, -2.0]]), np.array([0.5])
    relaxed, bounds = relax([(W, b)], np.array([0.0, 0.0]), np.array([1.0, 3.0]))
    assert bounds == []
    found = relaxed.minimise(W[0], b[0])
    assert found.bound == -5.5
    assert found.point == pytest.approx([0, 3])
    assert len(found.prices) == 0


@pytest.mark.parametrize(("shift", "value"), [(-10.0, 1.0), (10.0, 1.0 + 8.5)])
def test_units_that_are_always_off_or_always_on_are_exact(shift, value):
    """h = 0, or h = x + 10 with x between −1.5 and 0.5, and the layer after it adds 1."""
    layers = [(np.eye(2), np.full(2, shift)), (np.array([[1.0, 0.0]]), np.array([1.0]))]
    relaxed, _ = relax(layers, np.full(2, -1.5), np.full(2, 0.5))
    assert len(relaxed.pre) == 0
    assert minimum(relaxed, layers, np.ones(1)).bound == pytest.approx(value)


def test_a_layer_after_one_that_is_always_off_sees_its_bias_only():
    dead = (np.eye(3), np.full(3, -9.0))
    layers = [dead, (np.ones((2, 3)), np.array([0.25, -1.0])), (np.ones((1, 2)), np.zeros(1))]
    relaxed, bounds = relax(layers, np.zeros(3), np.ones(3))
    np.testing.assert_allclose(bounds[1], [[0.25, -1.0]] * 2)
    assert minimum(relaxed, layers, np.ones(1)).bound == pytest.approx(0.25)


def test_bounds_that_rounding_makes_contradict_each_other_prove_nothing_beyond_themselves():
    """A bound in float32 can miss the only point of Δ(x) at ε = 0, which proves nothing."""
    W, b, x = np.array([[3.0, 5.0]]), np.array([0.1]), np.array([0.3, 0.7])
    a = W @ x + b
    for miss in (1e-6, 1e-3):
        for end in (a + miss, a - miss):
            relaxed = Relaxation(x, x)
            relaxed.relu(W, b, end, end)
            for c in (np.ones(1), -np.ones(1)):
                assert relaxed.minimise(c).bound == pytest.approx((c @ end).item())


def test_weights_that_the_solver_refuses_are_named():
    relaxed = Relaxation(np.array([-1.0]), np.array([1.0]))
    with pytest.raises(ValueError, match=r"expected weights .* got coefficients .* not finite"):
        relaxed.relu(np.array([[math.nan]]), np.zeros(1), np.array([-1.0]), np.array([1.0]))


def test_weights_of_any_finite_size_are_held():
    """A weight of 1e20 between an input of range 2 and a unit of which only a range of 2 is known."""
    relaxed = Relaxation(np.array([-1.0]), np.array([1.0]))
    relaxed.relu(np.array([[1e20]]), np.zeros(1), np.array([-1.0]), np.array([1.0]))
    assert relaxed.minimise(np.array([-1.0])).bound == pytest.approx(-1)
