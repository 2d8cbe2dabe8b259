"""Conjugates: planes under functions, closed forms against brute force and against solvers."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog
from strategies import BOX, ORDERS, cases, entries, inputs, orders, seeded, seeds, tolerance

from adv_lib import conjugates
from adv_lib.conjugates import legendre
from adv_lib.threat import Ball

EXACT = 1e-9  # float64, and sums of a few terms of size up to 10
POWERS = {1: math.inf, 2: 2, math.inf: 1}
kinds = st.sampled_from(("plain", "ties", "sparse", "uneven"))


def line(end=6.0, step=0.01):
    """A grid of the real line that holds 0, and ±1, ±2, … bit for bit."""
    count = round(end / step)
    return torch.arange(-count, count + 1, dtype=torch.float64) / round(1 / step)


def plane(end=1.0, count=41):
    side = torch.linspace(-end, end, count, dtype=torch.float64)
    return torch.cartesian_prod(side, side)


def ends(seed, shape, kind="plain"):
    """lower ≤ upper, some of them equal, some 0."""
    lower, upper = entries(shape, seed, kind), entries(shape, seed + 1, "ties")
    low, high = torch.minimum(lower, upper), torch.maximum(lower, upper)
    same = torch.rand(shape, generator=seeded(seed)) < 0.2
    return low, torch.where(same, low, high)


def between(lower, upper, seed, count=50):
    """(count, *shape): random points of the box, and its corners in some coordinates."""
    share = 1.5 * torch.rand(count, *lower.shape, generator=seeded(seed), dtype=torch.float64) - 0.25
    return lower + share.clamp(0, 1) * (upper - lower)


def relu_points(lower, upper, seed, count=50):
    """(a, h) in the relaxed ReLU: mixtures of the ends of its graph and, where 0 is between, (0, 0)."""
    weights = torch.rand(3, count, *lower.shape, generator=seeded(seed), dtype=torch.float64) ** 3
    weights[2] *= (lower < 0) & (upper > 0)
    weights /= weights.sum(0)
    a = weights[0] * lower + weights[1] * upper
    return a, weights[0] * lower.clamp(min=0) + weights[1] * upper.clamp(min=0)


# ---- no point lies under the plane ----


@given(cases(dtypes=(torch.float64,)))
def test_no_slope_rises_faster_over_the_ball_than_its_conjugate_and_one_point_reaches_it(case):
    x = entries(case.v.shape, 5, "plain") if case.x is None else case.x
    star = conjugates.ball(case.v, x, case.ball)
    v, rows = case.v.flatten(1), x.flatten(1)
    reached = ((rows + case.points()) * v).sum(2)
    slack = tolerance(v) * (v.abs() * (rows.abs() + 1 + case.eps()[:, None])).sum(1)
    assert (reached <= star + slack).all()
    best = x + case.ball.argmax(case.v, case.x)
    assert ((star - (v * best.flatten(1)).sum(1)).abs() <= slack).all()


@given(seeds, kinds)
def test_no_slope_rises_faster_over_a_box_than_its_conjugate_and_a_corner_reaches_it(seed, kind):
    lower, upper = ends(seed, (4, 2, 3), kind)
    y = entries(lower.shape, seed + 2, kind)
    star = conjugates.box(y, lower, upper)
    reached = (y * between(lower, upper, seed)).flatten(2).sum(2)
    slack = EXACT * (1 + (y.abs() * (lower.abs() + upper.abs())).flatten(1).sum(1))
    assert (reached <= star + slack).all()
    corners = torch.stack([torch.where(y > 0, upper, lower), torch.where(y >= 0, upper, lower)])
    assert ((star - (y * corners).flatten(2).sum(2)).abs() <= slack).all()


@given(seeds, kinds)
def test_no_slope_rises_faster_over_the_relaxed_relu_than_its_conjugate_and_a_corner_reaches_it(
    seed, kind
):
    lower, upper = ends(seed, (5, 4), kind)
    p, q = entries(lower.shape, seed + 2, kind), entries(lower.shape, seed + 3, "ties")
    star = conjugates.relu(p, q, lower, upper)
    a, h = relu_points(lower, upper, seed)
    slack = EXACT * (1 + (p.abs() + q.abs()) * (lower.abs() + upper.abs()))
    assert (p * a + q * h <= star + slack).all()
    corners = [(lower, lower.relu()), (upper, upper.relu())]
    values = torch.stack([p * a + q * h for a, h in corners])
    zero = torch.where((lower < 0) & (upper > 0), 0.0, -math.inf).double()
    assert torch.equal(values.amax(0).maximum(zero), star)


@given(seeds, kinds)
def test_the_plane_of_every_slope_stays_below_the_absolute_value_and_touches_it(seed, kind):
    y, s = entries((20, 1), seed, kind), entries((1, 50), seed + 1, "plain")
    star = conjugates.absolute(y)
    assert (s.abs() >= y * s - star).all()
    assert torch.equal(star, torch.where(y.abs() <= 1, 0.0, math.inf).double())
    touching = s.sign()  # a slope of |s| at s
    assert torch.equal(touching * s - conjugates.absolute(touching), s.abs())


@given(seeds, orders, kinds)
def test_the_plane_of_every_slope_stays_below_the_norm_and_touches_it(seed, p, kind):
    s = entries((30, 4), seed, kind)
    size = torch.linalg.vector_norm(s, p, dim=1)
    for scale in (0.3, 1.0, 3.0):
        y = scale * entries((30, 4), seed + 1, kind)
        star = conjugates.norm(y, p)
        assert (size >= (y * s).sum(1) - star - tolerance(s) * size * scale).all()
        inside = torch.linalg.vector_norm(y, POWERS[p], dim=1)
        assert (star[inside < 1 - EXACT] == 0).all()
        assert (star[inside > 1 + EXACT] == math.inf).all()
    touching = Ball(POWERS[p], 1.0).argmax(s)  # ‖s‖_p = max ⟨y, s⟩ over ‖y‖_q ≤ 1
    assert (conjugates.norm(touching, p) == 0).all()
    torch.testing.assert_close((touching * s).sum(1), size)


# ---- exactly at the edge ----


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_slope_of_exactly_one_still_stays_below_the_absolute_value(dtype):
    one = torch.ones(3, dtype=dtype)
    above = torch.nextafter(one, 2 * one)
    y = torch.stack([one, -one, above, -above, 0 * one])
    expected = [0.0, 0.0, math.inf, math.inf, 0.0]
    found = conjugates.absolute(y)
    assert found.dtype == dtype
    assert found.tolist() == [[value] * 3 for value in expected]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("d", [1, 7, 784])
@pytest.mark.parametrize("p", ORDERS)
def test_a_slope_on_the_dual_sphere_still_stays_below_the_norm(p, d, dtype):
    y = entries((20, d), d, "plain").to(dtype)
    y = y / torch.linalg.vector_norm(y, POWERS[p], dim=1, keepdim=True)
    assert (conjugates.norm(y, p) == 0).all()
    assert (conjugates.norm((1 + 1e-4) * y, p) == math.inf).all()
    assert conjugates.norm(y, p).dtype == dtype


# ---- against brute force ----


def test_on_a_grid_the_absolute_value_has_its_conjugate_up_to_where_the_grid_ends():
    s, y = line(), torch.linspace(-2, 2, 41).double()
    found, star = legendre(s, s.abs(), y), conjugates.absolute(y)
    assert (found[star == 0] == 0).all()
    torch.testing.assert_close(found[star > 0], 6 * (y.abs() - 1)[star > 0])  # at the grid's end


def test_on_a_grid_known_functions_have_the_conjugates_of_the_textbook():
    s, y = line(8.0, 1 / 1000), torch.linspace(-2.5, 2.5, 51).double()
    near = {"rtol": 0, "atol": 1e-6}  # the maximiser is off the grid by 0.0005, and flat there
    torch.testing.assert_close(legendre(s, s**2 / 2, y), y**2 / 2, **near)
    torch.testing.assert_close(legendre(s, (s - 1) ** 2 / 2, y), y**2 / 2 + y, **near)
    u = y[y > 0]
    torch.testing.assert_close(legendre(s, s.exp(), u), u * u.log() - u, **near)
    w = torch.linspace(0.01, 0.99, 9).double()
    entropy = w * w.log() + (1 - w) * (1 - w).log()
    torch.testing.assert_close(legendre(s, torch.nn.functional.softplus(s), w), entropy, **near)
    hinge = legendre(s, (1 - s).clamp(min=0), y)
    inside = (y > -1.02) & (y < 0.02)
    torch.testing.assert_close(hinge[inside], y[inside], **near)
    assert (hinge > y + 0.1)[~inside].all()  # there the grid's end is best


@settings(max_examples=30)
@given(seeds, orders)
def test_on_a_grid_a_norm_of_the_plane_has_its_conjugate_and_the_ball_its_support_function(seed, p):
    s, y = plane(), 1.5 * entries((20, 2), seed, "plain")
    size = torch.linalg.vector_norm(s, p, dim=1)
    found, star = legendre(s, size, y), conjugates.norm(y, p)
    assert (found[star == 0].abs() <= EXACT).all()
    assert (found >= -EXACT).all()
    outside = torch.linalg.vector_norm(y, POWERS[p], dim=1) > 1.1
    assert (found[outside] > 0).all()
    ball, x = Ball(p, 0.8), torch.zeros_like(y)
    found = legendre(s, torch.where(size <= 0.8 + EXACT, 0.0, math.inf).double(), y)
    star = conjugates.ball(y, x, ball)
    assert (found <= star + EXACT).all()
    assert (found >= star - 0.05 * math.sqrt(2) * torch.linalg.vector_norm(y, dim=1) - EXACT).all()


@settings(max_examples=30)
@given(seeds, st.integers(1, 3))
def test_brute_force_is_the_maximum_over_the_grid_wherever_f_is_finite(seed, d):
    s, y = entries((15, d), seed, "ties"), entries((4, d), seed + 1, "plain")
    f = entries((15,), seed + 2, "plain")
    f[torch.rand(15, generator=seeded(seed)) < 0.5] = math.inf
    f[0] = 0.0
    expected = [
        max(y_i @ s_i - f_i for s_i, f_i in zip(s, f, strict=True) if f_i < math.inf) for y_i in y
    ]
    torch.testing.assert_close(legendre(s, f, y), torch.stack(expected))
    if d == 1:
        assert torch.equal(legendre(s[:, 0], f, y[:, 0]), legendre(s, f, y))


# ---- twice ----


CONVEX = {
    "|s|": torch.abs,
    "s²": torch.square,
    "e^s": torch.exp,
    "max(s, 0)": torch.relu,
    "|s − 1| + |s + 2|": lambda s: (s - 1).abs() + (s + 2).abs(),
    "0 between −1 and 2": lambda s: torch.where((s >= -1) & (s <= 2), 0.0, math.inf).double(),
}


@pytest.mark.parametrize("name", CONVEX)
def test_the_conjugate_of_the_conjugate_of_a_convex_function_is_the_function(name):
    s, y = line(3.0), line(25.0)
    f = CONVEX[name](s)
    twice = legendre(y, legendre(s, f, y), s)
    assert (twice <= f + EXACT).all()  # also where the slopes of the grid are too few to reach f
    inside = s.abs() <= 2.9 if name != "0 between −1 and 2" else (s >= -1) & (s <= 2)
    assert ((f - twice)[inside] <= 2e-3).all()


def test_the_conjugate_of_the_conjugate_fills_the_hollows_of_a_function_that_is_not_convex():
    """The relaxed ReLU is what this makes of a network's unit: a convex hull."""
    s, y = line(3.0), line(25.0)
    wells = torch.minimum((s - 1).abs(), (s + 1).abs())
    hull = (s.abs() - 1).clamp(min=0)
    torch.testing.assert_close(legendre(y, legendre(s, wells, y), s), hull, rtol=0, atol=EXACT)


# ---- against a solver ----


@settings(max_examples=30)
@given(seeds)
def test_a_box_and_a_cube_agree_with_a_linear_program(seed):
    lower, upper = ends(seed, (3, 4))
    y = entries((3, 4), seed + 2, "plain")
    x, ball = inputs((3, 4), seed), Ball(math.inf, 0.3, BOX)
    boxes = [(lower, upper, conjugates.box(y, lower, upper))]
    boxes += [(x - 0.3, x + 0.3, conjugates.ball(y, x, Ball(math.inf, 0.3)))]
    boxes += [((x - 0.3).clamp(min=0), (x + 0.3).clamp(max=1), conjugates.ball(y, x, ball))]
    for low, high, star in boxes:
        for i in range(3):
            solved = linprog(-y[i].numpy(), bounds=torch.stack([low[i], high[i]], 1).numpy())
            assert star[i].item() == pytest.approx(-solved.fun, abs=EXACT)


@pytest.mark.parametrize("box", [None, BOX])
@pytest.mark.parametrize("p", ORDERS)
def test_a_ball_with_and_without_a_box_agrees_with_a_convex_solver(p, box):
    cp = pytest.importorskip("cvxpy")
    s, slope, centre, eps = cp.Variable(5), cp.Parameter(5), cp.Parameter(5), cp.Parameter(nonneg=True)
    inside = [cp.norm(s - centre, p) <= eps] + ([s >= BOX[0], s <= BOX[1]] if box else [])
    program = cp.Problem(cp.Maximize(slope @ s), inside)
    for seed in range(8):
        y = entries((1, 5), seed, ("plain", "ties", "sparse")[seed % 3])
        x = inputs((1, 5), seed) if box else entries((1, 5), seed + 1, "plain")
        slope.value, centre.value, eps.value = y[0].numpy(), x[0].numpy(), (0.05, 0.4, 2.0)[seed % 3]
        solved = program.solve(solver=cp.CLARABEL)
        star = conjugates.ball(y, x, Ball(p, eps.value, box)).item()
        assert star == pytest.approx(solved, abs=1e-6)


# ---- closed forms and edges ----


def test_of_a_single_point_it_is_the_value_there():
    a = torch.tensor([-2.0, 0.0, 3.0]).double()
    p, q = entries((3,), 0, "plain"), entries((3,), 1, "plain")
    torch.testing.assert_close(conjugates.relu(p, q, a, a), p * a + q * a.relu())
    y = entries((4, 3), 2, "plain")
    point = entries((4, 3), 3, "plain")
    torch.testing.assert_close(conjugates.box(y, point, point), (y * point).sum(1))
    torch.testing.assert_close(conjugates.ball(y, point, Ball(2, 0.0)), (y * point).sum(1))


def test_a_bound_of_exactly_0_leaves_a_unit_on_or_off():
    zero, one = torch.zeros(1).double(), torch.ones(1).double()
    for p, q in itertools.product((-1.5, 0.0, 2.0), repeat=2):
        a, h = torch.tensor([p]).double(), torch.tensor([q]).double()
        assert conjugates.relu(a, h, zero, one).item() == max(0, p + q)
        assert conjugates.relu(a, h, -one, zero).item() == max(0, -p)


@given(seeds, st.sampled_from([-40, -10, 10, 40]))
def test_in_smaller_units_of_the_set_every_conjugate_is_as_much_smaller(seed, power):
    unit = 2.0**power
    lower, upper = ends(seed, (5, 4))
    p, q = entries((5, 4), seed + 2, "plain"), entries((5, 4), seed + 3, "plain")
    small = unit * lower, unit * upper
    assert torch.equal(conjugates.relu(p, q, *small), unit * conjugates.relu(p, q, lower, upper))
    assert torch.equal(conjugates.box(p, *small), unit * conjugates.box(p, lower, upper))
    for k in ORDERS:
        found = conjugates.ball(p, unit * lower, Ball(k, 0.3 * unit))
        torch.testing.assert_close(
            found, unit * conjugates.ball(p, lower, Ball(k, 0.3)), atol=0, rtol=1e-9
        )


@given(seeds)
def test_a_conjugate_is_convex(seed):
    """On a segment between two slopes it stays below the chord."""
    lower, upper = ends(seed, (3, 4))
    x = entries((3, 4), seed, "plain")
    (p, q), share = (entries((2, 2, 3, 4), seed + 5, "plain")), 0.3
    kept = {
        "box": lambda p, q: conjugates.box(p, lower, upper),
        "relu": lambda p, q: conjugates.relu(p, q, lower, upper),
        **{f"ball {k}": lambda p, q, k=k: conjugates.ball(p, x, Ball(k, 0.4)) for k in ORDERS},
    }
    for star in kept.values():
        inside = star(*(share * a + (1 - share) * b for a, b in (p, q)))
        chord = share * star(p[0], q[0]) + (1 - share) * star(p[1], q[1])
        assert (inside <= chord + EXACT).all()


# ---- gradients ----


@settings(max_examples=15)
@given(seeds, orders, st.sampled_from([None, BOX]))
def test_the_gradients_are_those_that_differences_show(seed, p, box):
    lower = entries((2, 3), seed + 1, "plain").requires_grad_()
    upper = (lower.detach() + 0.01 + entries((2, 3), seed + 2, "plain").abs()).requires_grad_()
    y, q, x = entries((2, 3), seed, "plain"), entries((2, 3), seed + 7, "plain"), inputs((2, 3), seed)
    y, q = y.requires_grad_(), q.requires_grad_()
    assert torch.autograd.gradcheck(conjugates.box, (y, lower, upper))
    given = lower.detach(), upper.detach()
    assert torch.autograd.gradcheck(lambda p, q: conjugates.relu(p, q, *given), (y, q))
    assert torch.autograd.gradcheck(lambda y: conjugates.ball(y, x, Ball(p, 0.2, box)), (y,))


@given(seeds, orders, st.sampled_from([None, BOX]))
def test_the_gradient_is_a_maximiser_also_where_several_points_are(seed, p, box):
    """A kink has many slopes, and each of them is a point of the set: zeros and ties in y."""
    lower, upper = ends(seed, (3, 4), "ties")
    x, ball = inputs((3, 4), seed), Ball(p, 0.2, box)
    y, q = (entries((3, 4), seed + i, "ties").requires_grad_() for i in (2, 3))
    (s,) = torch.autograd.grad(conjugates.box(y, lower, upper).sum(), y)
    assert ((s >= lower) & (s <= upper)).all()
    torch.testing.assert_close((y * s).sum(1), conjugates.box(y, lower, upper))
    a, h = torch.autograd.grad(conjugates.relu(y, q, lower, upper).sum(), (y, q))
    torch.testing.assert_close(y * a + q * h, conjugates.relu(y, q, lower, upper))
    assert ((a >= lower) & (a <= upper) & (h >= a.relu() - EXACT)).all()
    assert ((upper - lower) * h <= upper.relu() * (a - lower) + EXACT)[(lower < 0) & (upper > 0)].all()
    (s,) = torch.autograd.grad(conjugates.ball(y, x, ball).sum(), y)
    assert ball.contains(s - x, x).all()


def test_every_sample_is_its_own_problem():
    lower, upper = ends(3, (4, 2, 3))
    y, x, eps = entries((4, 2, 3), 5, "plain"), inputs((4, 2, 3), 6), torch.rand(4, dtype=torch.float64)
    for p, i in itertools.product(ORDERS, range(4)):
        one = slice(i, i + 1)
        together = conjugates.ball(y, x, Ball(p, eps, BOX))[one]
        torch.testing.assert_close(
            conjugates.ball(y[one], x[one], Ball(p, eps[i].item(), BOX)), together
        )
        assert conjugates.norm(y, p)[one] == conjugates.norm(y[one], p)
        alone = conjugates.box(y[one], lower[one], upper[one])
        torch.testing.assert_close(alone, conjugates.box(y, lower, upper)[one])


def test_no_slopes_have_no_conjugates():
    none = torch.empty(0, 3)
    assert conjugates.box(none, none, none).shape == (0,)
    assert conjugates.ball(none, none, Ball(2, 0.1)).shape == (0,)
    assert conjugates.norm(none, 2).shape == (0,)
    assert conjugates.relu(none, none, none, none).shape == (0, 3)
    assert legendre(line(), line().abs(), torch.empty(0).double()).shape == (0,)
