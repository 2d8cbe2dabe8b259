"""Chapter 3, exact and relaxed: every labelled statement, attacked with random instances."""

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import (
    BOX,
    NETWORKS,
    Case,
    aimed,
    entries,
    layers_of,
    minimum_by_patterns,
    network,
    network_case,
    orders,
    problem,
    seeded,
    seeds,
    theorem,
)

from adv_lib import bounds, branching, exact, leaves, programs
from adv_lib.affine import affine_pieces
from adv_lib.bounds import Bounds
from adv_lib.exact import TOLERANCE
from adv_lib.relaxation import Relaxation, relax
from adv_lib.threat import Ball

EXACT = 1e-9  # float64, and sums of a few terms of size up to 10
SOLVED = 1e-6  # the same after a linear program
boxes = st.sampled_from([None, BOX])
few = settings(max_examples=25)
each_kind = pytest.mark.parametrize("kind", NETWORKS)
hidden = st.sampled_from([(5,), (3, 3), (2, 2, 2)])
cubes = st.sampled_from([0.02, 0.1, 0.3])
numbers = st.fractions(-3, 3, max_denominator=12)  # so that every comparison is exact
positive = st.fractions(Fraction(1, 12), 3, max_denominator=12)


def instance(seed, hidden=(3, 3), eps=0.3, shape=(3,), n=2, box=BOX):
    """A random network with its own labels of random inputs, and a cube."""
    model, x, _, ball = problem(seed, shape, n, eps=eps, box=box, hidden=hidden, scale=3)
    model.requires_grad_(False)
    return model, x, model(x).argmax(1), ball


def cube(x, ball):
    lo, hi = ball.box or (-math.inf, math.inf)
    return [end.numpy() for end in ((x - ball.eps).clamp(min=lo), (x + ball.eps).clamp(max=hi))]


def leads(z, y):
    """z_y − z_k for every class k, +∞ at k = y; y: one label for each row, or one for all."""
    y = y.expand(len(z))
    return (z.gather(1, y[:, None]) - z).scatter(1, y[:, None], math.inf)


# ---- what is to be decided ----


@theorem("thm-verification")
@settings(max_examples=15)
@given(seeds, boxes, cubes)
def test_all_minima_are_positive_exactly_where_no_allowed_perturbation_changes_the_prediction(
    seed, box, eps
):
    """In the plane, on a dense grid of the square: ReLU stretches nothing, so a grid misses little."""
    model, x, y, ball = instance(seed, (6,), eps, (2,), 4, box)
    found = exact.margins(model, x, y, ball, method="dual" if seed % 2 else "search", jobs=1)
    stages = exact.LADDER if seed % 2 else exact.PROGRAMS
    answer = exact.certify(model, x, y, ball, stages=stages, jobs=1)
    slope = 2 * math.prod(torch.linalg.matrix_norm(layer.weight, 2).item() for layer in model[1::2])
    lower, upper = map(torch.from_numpy, cube(x, ball))
    for i in range(len(x)):
        sides = [
            torch.linspace(float(a), float(b), 101) for a, b in zip(lower[i], upper[i], strict=True)
        ]
        grid = torch.cartesian_prod(*sides).double().clamp(lower[i], upper[i])
        on_grid = leads(model(grid), y[i : i + 1]).amin()
        gap = slope * math.hypot(*((s[1] - s[0]).item() for s in sides)) / 2
        if found.margins[i].amin() > 0:
            assert on_grid > 0
            assert answer.status[i] != "broken"
        if on_grid <= 0:
            assert found.margins[i].amin() <= 0
            assert answer.status[i] != "robust"
        if on_grid > gap + SOLVED:
            assert found.margins[i].amin() > 0
            assert answer.status[i] == "robust"
        k = int(found.attained[i].argmin())
        if found.attained[i, k] <= -EXACT:
            delta = found.delta[i : i + 1, k]
            assert ball.contains(delta, x[i : i + 1]).all()
            assert model(x[i] + delta).argmax() != y[i]
            assert answer.status[i] == "broken" or found.attained[i, k] > -2 * TOLERANCE


@theorem("thm-verification")
def test_a_tie_counts_as_broken():
    """z = (x, 0.5): the minimum of z₀ − z₁ over [0.5, 1] is 0, and x = 0.5 gives both the same."""
    model = torch.nn.Sequential(torch.nn.Linear(1, 2)).double().requires_grad_(False)
    model[0].weight.copy_(torch.tensor([[1.0], [0.0]]))
    model[0].bias.copy_(torch.tensor([0.0, 0.5]))
    x, y, ball = torch.tensor([[0.75]]).double(), torch.tensor([0]), Ball(math.inf, 0.25)
    for method in ("dual", "search"):
        assert exact.margins(model, x, y, ball, method=method).margins[0, 1] == 0
    for stages in (exact.LADDER, exact.PROGRAMS):
        assert exact.certify(model, x, y, ball, stages=stages).status == ("broken",)
        narrow = exact.certify(model, x, y, Ball(math.inf, 0.24), stages=stages)
        assert narrow.status == ("robust",)


# ---- one ReLU ----


def within(a, h, low, up, v):
    """The four inequalities of the integer program."""
    return h >= a and h >= 0 and h <= up * v and h <= a - low * (1 - v)


def heights(a, low, up, other):
    """Values of h to try at a: the ReLU's, on the edges of the triangle, just outside, any other."""
    edge = up * (a - low) / (up - low)
    tiny = Fraction(1, 10**9)
    return [
        max(a, 0),
        edge,
        edge + tiny,
        max(a, 0) - tiny,
        (max(a, 0) + edge) / 2,
        a,
        Fraction(0),
        other,
    ]


@theorem("thm-relu-integer")
@given(positive, positive, st.fractions(0, 1, max_denominator=12), numbers)
def test_with_v_off_or_on_the_four_inequalities_hold_for_the_relu_and_for_nothing_else(
    down, up, share, other
):
    low = -down
    for a in (low + share * (up - low), low, Fraction(0), up):
        for h in heights(a, low, up, other):
            exists = any(within(a, h, low, up, v) for v in (0, 1))
            assert exists == (h == max(a, 0))


@theorem("thm-triangle")
@given(positive, positive, st.fractions(0, 1, max_denominator=12), numbers)
def test_with_v_anywhere_between_they_hold_in_the_triangle_which_is_the_convex_hull_of_the_graph(
    down, up, share, other
):
    low = -down
    for a in (low + share * (up - low), low, Fraction(0), up):
        for h in heights(a, low, up, other):
            inside = h >= 0 and h >= a and (up - low) * h <= up * (a - low)
            least, most = (
                max(h / up, 0),
                min(1 - (h - a) / down, 1),
            )  # what h ≤ u v and the last one ask of v
            assert inside == (h >= max(a, 0) and least <= most)
            if inside:
                assert within(a, h, low, up, least)
                assert within(a, h, low, up, most)
            else:
                assert not any(within(a, h, low, up, Fraction(i, 24)) for i in range(25))
            # a and h as a mixture of the corners (l, 0), (0, 0) and (u, u)
            at_low, at_up = (a - h) / low, h / up
            mixture = at_low * low + at_up * up, at_up * up
            assert mixture == (a, h)
            assert inside == (min(at_low, at_up, 1 - at_low - at_up) >= 0)


@theorem("thm-triangle")
@given(seeds)
def test_a_linear_function_is_smallest_on_the_packages_triangle_at_one_of_the_three_corners(seed):
    """The second unit is always on and carries a, so that the objective can weigh both a and h."""
    draw = np.random.default_rng(seed)
    low, up = -draw.uniform(0.1, 2), draw.uniform(0.1, 2)
    relaxed = Relaxation(np.array([low]), np.array([up]))
    lower, upper = np.array([low, low + 5]), np.array([up, up + 5])
    relaxed.relu(np.ones((2, 1)), np.array([0.0, 5.0]), lower, upper)
    for _ in range(10):
        c = draw.normal(size=2)
        at_corners = [c @ (h, a) for a, h in ((low, 0), (0, 0), (up, up))]
        assert relaxed.minimise(c, -5 * c[1]).bound == pytest.approx(min(at_corners), abs=EXACT)


# ---- intervals ----


@theorem("thm-interval")
@each_kind
@settings(max_examples=20)
@given(seeds)
def test_an_interval_holds_every_value_on_the_box_and_each_of_its_ends_is_attained(kind, seed):
    model, shape = network(kind, seed), NETWORKS[kind][0]
    for piece in affine_pieces(model, shape):
        lower = entries((1, *piece.shape_in), seed, "plain")
        upper = lower + entries(lower.shape, seed + 1, "sparse").abs()
        low, high = bounds.interval(piece, Bounds(lower, upper))
        share = torch.rand(50, *piece.shape_in, generator=seeded(seed), dtype=torch.float64)
        values = piece(lower + share * (upper - lower))
        assert ((low - EXACT <= values) & (values <= high + EXACT)).all()
        W, _ = piece.matrix()
        for end, sign in ((low, -1), (high, 1)):
            corners = torch.where(sign * W > 0, upper.flatten(1), lower.flatten(1))
            torch.testing.assert_close(piece(corners).flatten(1).diagonal(), end.flatten())


@theorem("thm-elision")
@pytest.mark.parametrize("kind", [kind for kind in NETWORKS if kind != "linear"])
@settings(max_examples=8)
@given(seeds, orders, boxes, st.sampled_from([0.0, 0.03, 0.3, 2.0]))
def test_a_difference_of_logits_is_bounded_at_least_as_well_at_once_and_exactly_on_the_last_box(
    kind, seed, p, box, eps
):
    model, x, y, ball = network_case(kind, seed, p, box, eps, n=20)
    model.requires_grad_(False)
    last, piece = bounds.pre_activations(model, x, ball)[-1], affine_pieces(model, x.shape[1:])[-1]
    h = Bounds(last.lower.relu(), last.upper.relu())
    logits, found = bounds.interval(piece, h), bounds.margins(model, x, y, ball)
    apart = logits.lower.gather(1, y[:, None]) - logits.upper
    assert (found >= apart - EXACT).all()
    for i in range(2):  # 2ⁿ corners each
        ends = zip(h.lower[i].flatten().tolist(), h.upper[i].flatten().tolist(), strict=True)
        corners = torch.tensor(list(itertools.product(*ends)), dtype=torch.float64)
        z = piece(corners.reshape(-1, *piece.shape_in)).flatten(1)
        torch.testing.assert_close(found[i], leads(z, y[i : i + 1]).amin(0))


# ---- the ladder ----


@theorem("thm-ladder")
@each_kind
@settings(max_examples=4)
@given(seeds, boxes, st.sampled_from([0.0, 0.02, 0.1, 0.4]))
def test_intervals_the_linear_program_the_minimum_and_every_attack_stand_in_this_order(
    kind, seed, box, eps
):
    """Up to 1e-6, which two solved programs may differ by; what attacks reach is compared to 1e-9."""
    model, x, y, ball = network_case(kind, seed, box=box, eps=eps, each_eps=bool(seed % 2))
    model.requires_grad_(False)
    found = exact.margins(model, x, y, ball, jobs=1)
    plain = bounds.margins(model, x, y, ball)
    for method in bounds.METHODS:  # bounds by intervals, and tighter ones
        layers = bounds.pre_activations(model, x, ball, method, jobs=1)
        interval = bounds.margins(model, x, y, ball, layer_bounds=layers)
        program = bounds.margins(model, x, y, ball, "lp", layer_bounds=layers, jobs=1)
        assert (plain <= interval + EXACT).all()
        assert (interval <= program + SOLVED).all()
        assert (program <= found.margins + SOLVED).all()
        assert (program <= found.attained + EXACT).all()
        if method == "interval":
            first = program
        assert (first <= program + SOLVED).all()  # tighter bounds, a tighter program
    case = Case(ball, x, x if box else None)
    deltas = torch.cat([case.points(500), case.corners(500)]).reshape(-1, *x.shape)
    for delta in (*aimed(model, x, y, ball), *deltas):
        reached = leads(model(x + delta), y)
        assert (found.margins <= reached + EXACT).all()
        assert (found.attained <= reached + SOLVED).all()


# ---- the safe bound ----


@theorem("thm-safe-bound")
@few
@given(seeds, hidden, st.sampled_from([1e-3, 1.0, 1e3]))
def test_any_multipliers_at_all_give_a_value_below_the_objective_of_every_point(seed, hidden, size):
    """Points: what the network does with random inputs, and mixtures of it, for the set is convex."""
    model, x, _, ball = instance(seed, hidden)
    layers, draw = layers_of(model), np.random.default_rng(seed)
    lower, upper = (end[0] for end in cube(x, ball))
    relaxed, used = relax(layers, lower, upper)
    points = []
    for _ in range(30):
        h = lower + draw.random(len(lower)) * (upper - lower)
        columns = [h]
        for (W, b), (low, high) in zip(layers[:-1], used, strict=True):
            a = W @ h + b
            h = np.maximum(a, 0)
            columns += [a[high > 0], h[(low < 0) & (high > 0)]]
        points.append(np.concatenate(columns))
    points = np.array(points)
    points = np.concatenate([points, draw.dirichlet(np.ones(len(points)), 30) @ points])
    cost = np.zeros(points.shape[1])
    cost[relaxed.output] = draw.normal(size=len(relaxed.output))
    relaxed.minimise(np.zeros(len(layers[-1][0][0])))  # what the solver did before plays no part
    for _ in range(20):
        y = size * draw.normal(size=len(relaxed.row_lower)) * (draw.random(len(relaxed.row_lower)) < 0.7)
        value = relaxed._weak_duality(cost, y)
        assert value <= (points @ cost).min() + EXACT * (1 + np.abs(y).sum())


# ---- branch and bound ----


@theorem("thm-search")
@few
@given(seeds, hidden, boxes, cubes)
def test_the_search_holds_the_minimum_between_two_ends_whenever_it_stops_and_they_meet_in_the_end(
    seed, hidden, box, eps
):
    model, x, y, ball = instance(seed, hidden, eps, n=1, box=box)
    layers = layers_of(model)
    lower, upper = (end[0] for end in cube(x, ball))
    c = np.eye(3)[y.item()] - np.eye(3)[(y.item() + 1 + seed % 2) % 3]
    least = minimum_by_patterns(layers, lower, upper, c)
    relaxed, _ = relax(layers, lower, upper)
    whole = programs.search(relaxed, layers, c)
    assert whole.upper - whole.lower <= TOLERANCE
    assert 1 <= whole.nodes <= 2 ** (len(relaxed.pre) + 1) - 1
    before = None
    for limit in range(1, whole.nodes + 2):
        found = programs.search(relaxed, layers, c, limit)
        assert found.nodes <= limit
        assert found.lower <= least + EXACT
        assert least <= found.upper + EXACT
        point = torch.from_numpy(found.point)
        assert ((lower <= found.point) & (found.point <= upper)).all()
        assert (model(point[None])[0] @ torch.from_numpy(c)).item() == pytest.approx(found.upper)
        if before:
            assert found.lower >= before.lower - SOLVED
            assert found.upper <= before.upper + SOLVED
        before = found
    assert before.upper - before.lower <= TOLERANCE


@theorem("thm-search")
@few
@given(seeds, hidden, cubes)
def test_a_search_for_the_sign_ends_with_the_sign(seed, hidden, eps):
    model, x, y, ball = instance(seed, hidden, eps, n=1)
    layers = layers_of(model)
    lower, upper = (end[0] for end in cube(x, ball))
    c = np.eye(3)[y.item()] - np.eye(3)[(y.item() + 1) % 3]
    least = minimum_by_patterns(layers, lower, upper, c)
    found = programs.search(relax(layers, lower, upper)[0], layers, c, sign=True)
    assert found.lower <= least + EXACT
    assert least <= found.upper + EXACT
    if least > 2 * TOLERANCE:
        assert found.lower > TOLERANCE
    if least < -2 * TOLERANCE:
        assert found.upper < -TOLERANCE


@theorem("thm-search")
@settings(max_examples=10)
@given(seeds, hidden, boxes, cubes)
def test_so_does_a_search_that_bounds_its_cases_by_backward_passes(seed, hidden, box, eps):
    model, x, y, ball = instance(seed, hidden, eps, n=1, box=box)
    lower, upper = (end[0] for end in cube(x, ball))
    c = torch.eye(3)[y] - torch.eye(3)[(y + 1) % 3]
    least = minimum_by_patterns(layers_of(model), lower, upper, c[0].numpy())
    root = bounds.pre_activations(model, x, ball, "crown")
    given_ = affine_pieces(model, x.shape[1:]), root, x, ball.region(x), c.double(), torch.tensor([0])
    start = [(math.inf, x[0].numpy())]
    for limit in (1, 2, 3, 5, None):
        (found,) = branching.search(leaves.Leaves(*given_), start, node_limit=limit)
        assert found.nodes <= (limit or math.inf)
        assert found.lower <= least + EXACT
        assert least <= found.upper + EXACT
        point = torch.from_numpy(found.point)[None]
        assert ball.contains(point - x, x).all()
        assert (model(point) @ c[0].double()).item() == pytest.approx(found.upper)
    assert found.upper - found.lower <= TOLERANCE
