"""Chapter 4, duality: every labelled statement, attacked with random instances."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog
from strategies import (
    BOX,
    NETWORKS,
    Case,
    detached,
    entries,
    network_case,
    orders,
    reached,
    relaxed_minimum,
    seeds,
    theorem,
    towards,
    with_exact_bounds,
)

from adv_lib import bounds, conjugates, dual, exact
from adv_lib.affine import Bounds
from adv_lib.threat import Ball

EXACT = 1e-9  # float64, and sums of a few terms of size up to 10
SOLVED = 1e-6  # the same after a solver
kinds = st.sampled_from([kind for kind in NETWORKS if kind != "linear"])
boxes = st.sampled_from([None, BOX])
radii = st.sampled_from([0.03, 0.3, 2.0])
few = settings(max_examples=25)


# ---- conjugates ----


FUNCTIONS = {  # f, f* and the slopes of f at s, an interval
    "|s|": (
        torch.abs,
        conjugates.absolute,
        lambda s: (s.sign() - (s == 0).double(), s.sign() + (s == 0).double()),
    ),
    "s²/2": (lambda s: s**2 / 2, lambda y: y**2 / 2, lambda s: (s, s)),
    "max(s, 0)": (
        torch.relu,
        lambda y: torch.where((y >= 0) & (y <= 1), 0.0, math.inf).double(),
        lambda s: ((s > 0).double(), (s >= 0).double()),
    ),
    "0 between −1 and 1": (
        lambda s: torch.where(s.abs() <= 1, 0.0, math.inf).double(),
        torch.abs,
        lambda s: (
            torch.where(s > -1, 0.0, -math.inf).double(),
            torch.where(s < 1, 0.0, math.inf).double(),
        ),
    ),
}


@theorem("thm-fenchel-young")
@pytest.mark.parametrize("name", FUNCTIONS)
@given(seeds, st.sampled_from(["plain", "ties", "sparse"]))
def test_the_sum_of_f_and_its_conjugate_is_at_least_the_product_and_equal_just_at_slopes_of_f(
    name, seed, kind
):
    f, star, slopes = FUNCTIONS[name]
    s = entries((40, 1), seed, kind)
    s = s[f(s).squeeze(1) < math.inf]
    y = torch.cat(
        [entries((1, 40), seed + 1, kind), slopes(s)[0].T.clamp(-9, 9), slopes(s)[1].T.clamp(-9, 9)], 1
    )
    gap = f(s) + star(y) - y * s
    assert (gap >= -EXACT).all()
    low, high = slopes(s)
    is_slope = (low <= y) & (y <= high)
    assert (gap[is_slope].abs() <= EXACT).all()
    assert (gap[(y < low - 1e-3) | (y > high + 1e-3)] > 0).all()
    assert is_slope.any()


@theorem("thm-fenchel-young")
@given(seeds, orders)
def test_the_same_for_norms_and_balls_in_several_dimensions(seed, p):
    s, x = entries((30, 4), seed, "plain"), entries((30, 4), seed + 1, "plain")
    size, ball = torch.linalg.vector_norm(s, p, dim=1), Ball(p, 1.0)
    inside = x + ball.project(entries((30, 4), seed + 2, "plain"))
    for scale in (0.1, 1.0, 5.0):
        y = scale * entries((30, 4), seed + 3, "plain")
        assert (size + conjugates.norm(y, p) >= (y * s).sum(1) - EXACT).all()
        assert (conjugates.ball(y, x, ball) >= (y * inside).sum(1) - EXACT).all()
    slope = Ball(ball.dual_order, 1.0).argmax(s)
    torch.testing.assert_close(size + conjugates.norm(slope, p), (slope * s).sum(1))
    shorter = 0.9 * slope
    assert (size + conjugates.norm(shorter, p) > (shorter * s).sum(1)).all()
    touching = x + ball.argmax(s)
    torch.testing.assert_close(conjugates.ball(s, x, ball), (s * touching).sum(1))


@theorem("thm-norm-conjugate")
@given(seeds, orders, st.sampled_from(["plain", "ties", "sparse"]), st.sampled_from([0.0, 0.3, 7.0]))
def test_a_norm_has_the_dual_ball_for_its_conjugate_and_a_ball_the_dual_norm(seed, p, kind, eps):
    """Inside the dual ball nothing exceeds 0, outside a point does, and its multiples without end."""
    q = {1: math.inf, 2: 2, math.inf: 1}[p]
    y = entries((40, 4), seed, kind)
    size = torch.linalg.vector_norm(y, q, dim=1)
    y = torch.cat([y, y / size.clamp(min=1e-9)[:, None], 0.999 * y / size.clamp(min=1e-9)[:, None]])
    size = torch.linalg.vector_norm(y, q, dim=1)
    star = conjugates.norm(y, p)
    best = Ball(p, 1.0).argmax(y)  # of norm 1 where y is not 0
    gap = (y * best).sum(1) - torch.linalg.vector_norm(best, p, dim=1)  # grows with any factor of best
    assert torch.equal(star == math.inf, gap > EXACT)
    assert torch.equal(star == 0, size <= 1 + EXACT)
    s = entries((40, 1, 4), seed + 1, "plain")
    below = (y * s).sum(2) - torch.linalg.vector_norm(s, p, dim=2)
    assert (below[:, star == 0] <= EXACT).all()
    x, ball = entries(y.shape, seed + 2, "plain"), Ball(p, eps)
    torch.testing.assert_close(conjugates.ball(y, x, ball), (y * x).sum(1) + eps * size)
    for delta in Case(ball, y, None).points(10):
        assert ((y * (x + delta)).sum(1) <= conjugates.ball(y, x, ball) + EXACT).all()


@theorem("thm-relu-conjugate")
@given(seeds, st.sampled_from(["plain", "ties", "sparse"]))
def test_over_the_relaxed_relu_a_linear_function_is_largest_at_one_of_three_corners(seed, kind):
    n = 30
    lower = -entries((n,), seed, "plain").abs() - 0.01
    upper = entries((n,), seed + 1, "plain").abs() + 0.01
    p, q = entries((n,), seed + 2, kind), entries((n,), seed + 3, kind)
    found = conjugates.relu(p, q, lower, upper)
    corners = [(lower, 0 * lower), (0 * lower, 0 * lower), (upper, upper)]
    assert torch.equal(found, torch.stack([p * a + q * h for a, h in corners]).amax(0))
    nu, hat = -p, q
    three = torch.stack([0 * nu, -lower * nu, upper * (hat - nu)])
    torch.testing.assert_close(found, three.amax(0))
    a = lower + torch.linspace(0, 1, 41).double()[:, None] * (upper - lower)
    edge = upper / (upper - lower) * (a - lower)
    for share in torch.linspace(0, 1, 9).double():  # from the graph up to the chord
        h = a.relu() + share * (edge - a.relu())
        assert (p * a + q * h <= found + EXACT).all()


@theorem("thm-relu-conjugate")
@given(seeds)
def test_on_and_off_units_have_the_conjugates_of_segments(seed):
    lower, size = entries((30,), seed, "ties").abs(), entries((30,), seed + 1, "ties").abs()
    p, q = entries((30,), seed + 2, "plain"), entries((30,), seed + 3, "plain")
    upper = lower + size
    a = lower + torch.linspace(0, 1, 11).double()[:, None] * size
    torch.testing.assert_close(conjugates.relu(p, q, lower, upper), (p * a + q * a).amax(0))
    torch.testing.assert_close(conjugates.relu(p, q, -upper, -lower), (-p * a).amax(0))


# ---- weak and strong duality ----


@theorem("thm-weak-duality")
@settings(max_examples=50)
@given(kinds, seeds, orders, boxes, radii, st.sampled_from([0.1, 1.0, 30.0]))
def test_at_any_multipliers_at_all_j_is_below_what_every_point_of_the_ball_reaches(
    kind, seed, p, box, eps, size
):
    model, x, y, ball = network_case(kind, seed, p, box, eps, n=12, each_eps=True)
    pieces = detached(model, x)
    layers = [Bounds(*map(torch.detach, pair)) for pair in bounds.pre_activations(model, x, ball)]
    c = towards(y, model(x).shape[1])
    c = torch.cat([c, entries(c.shape, seed, "plain")], 1)
    values = torch.einsum("mnk,nrk->mnr", reached(model, x, ball), c)
    pass_back, _ = dual.multipliers(pieces, [dual.lines(pair, "dual") for pair in layers], c)
    for draw in range(6):
        near = draw % 2  # every other time close to the good ones, where J is not far below
        nu = [near * t + size * 0.1**near * entries(t.shape, seed + draw, "plain") for t in pass_back]
        J = dual.value(pieces, layers, x, ball, [*nu[:-1], -c])
        assert (values >= J - EXACT * (1 + size)).all()


@theorem("thm-weak-duality")
@few
@given(kinds, seeds, orders, boxes, st.sampled_from([0.1, 1.0]))
def test_at_any_multipliers_at_all_j_is_below_the_minimum_of_the_relaxation(kind, seed, p, box, size):
    model, x, y, ball = network_case(kind, seed, p, box, n=1)
    pieces, layers = detached(model, x), bounds.pre_activations(model, x, ball)
    layers = [Bounds(*map(torch.detach, pair)) for pair in layers]
    c = towards(y, model(x).shape[1])[:, [int(y == 0)]]
    least, _ = relaxed_minimum(pieces, layers, x, ball, c)
    pass_back, _ = dual.multipliers(pieces, [dual.lines(pair, "crown") for pair in layers], c)
    nu = [t + size * entries((1, 50, *t.shape[2:]), seed, "sparse") for t in pass_back]
    nu[-1] = -c.expand_as(nu[-1])
    assert (dual.value(pieces, layers, x, ball, nu) <= least + SOLVED).all()


@theorem("thm-strong-duality")
@settings(max_examples=40)
@given(kinds, seeds, orders, boxes, radii)
def test_at_the_solvers_multipliers_j_is_the_minimum_of_the_relaxation(kind, seed, p, box, eps):
    """The largest value: by weak duality none is larger, and here it is reached."""
    model, x, y, ball = network_case(kind, seed, p, box, eps, n=1)
    pieces = detached(model, x)
    layers = [Bounds(*map(torch.detach, pair)) for pair in bounds.pre_activations(model, x, ball)]
    c = towards(y, model(x).shape[1])[:, [int(y == 0)]]
    least, nu = relaxed_minimum(pieces, layers, x, ball, c)
    torch.testing.assert_close(nu[-1], -c, rtol=SOLVED, atol=SOLVED)
    nu[-1] = -c
    J = dual.value(pieces, layers, x, ball, nu).item()
    assert pytest.approx(least, abs=SOLVED, rel=SOLVED) == J


@theorem("thm-strong-duality")
@few
@given(seeds, st.sampled_from([(4,), (3, 3)]), boxes)
def test_also_with_bounds_that_no_relaxation_implies(seed, hidden, box):
    model, x, y, ball, layers = with_exact_bounds(seed, hidden, box)
    pieces, c = detached(model, x), towards(y, 3)[:, [int(y == 0)]]
    least, nu = relaxed_minimum(pieces, layers, x, ball, c)
    J = dual.value(pieces, layers, x, ball, [*nu[:-1], -c]).item()
    assert pytest.approx(least, abs=SOLVED, rel=SOLVED) == J
    found = exact.margins(model, x, y, ball, jobs=1).margins[0, int(y == 0)].item()
    assert found + SOLVED >= J


# ---- linear programs ----


@theorem("thm-lp-duality")
@given(seeds, st.sampled_from([(2, 2), (3, 5), (6, 4)]))
def test_what_adding_inequalities_proves_is_below_every_solution_and_the_best_is_the_minimum(
    seed, shape
):
    """A solution and multipliers that fit are drawn first, so both programs have an optimum."""
    draw = np.random.default_rng(seed)
    A = draw.normal(size=shape)
    A[draw.random(shape) < 0.3] = 0
    xi, lam = draw.exponential(size=shape[1]), draw.exponential(size=shape[0])
    b, c = A @ xi - draw.exponential(size=shape[0]), A.T @ lam + draw.exponential(size=shape[1])
    assert c @ xi >= b @ lam
    least, most = linprog(c, A_ub=-A, b_ub=-b), linprog(-b, A_ub=A.T, b_ub=c)
    assert least.success
    assert most.success
    assert least.fun == pytest.approx(-most.fun, abs=SOLVED, rel=SOLVED)
    assert b @ lam <= least.fun + SOLVED
    assert c @ xi >= least.fun - SOLVED


@theorem("thm-lp-duality")
@given(seeds)
def test_where_no_solution_exists_the_proofs_have_no_largest(seed):
    """ξ₁ ≥ 1 and −ξ₁ ≥ 0 contradict each other: multipliers that fit prove more than any number."""
    draw = np.random.default_rng(seed)
    A = np.array([[1.0, 0.0], [-1.0, 0.0]])
    most = linprog([-1.0, 0.0], A_ub=A.T, b_ub=draw.exponential(size=2))
    assert most.status == 3  # unbounded
