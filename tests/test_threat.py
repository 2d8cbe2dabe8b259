"""Δ(x) and its four questions: how far, where, what is nearest, what is typical."""

import math

import cvxpy as cp
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import (
    BOX,
    DTYPES,
    ORDERS,
    Case,
    cases,
    entries,
    inputs,
    orders,
    seeded,
    seeds,
    tolerance,
)
from torch.autograd import gradcheck
from torch.linalg import vector_norm

from adv_lib.threat import Ball


def inner(a, b):
    """⟨a, b⟩ of every row, in float64; broadcasts over leading axes."""
    return (a.double().flatten(-1) * b.double().flatten(-1)).sum(-1)


def rows(v):
    return v.detach().double().flatten(1)


def assert_same(got, expected):
    """Equal up to rounding in units of each row's largest entry."""
    size = expected.abs().reshape(len(expected), -1).amax(1).reshape(-1, *[1] * (expected.ndim - 1))
    assert got.dtype == expected.dtype
    assert got.shape == expected.shape
    assert ((got - expected).abs() <= tolerance(expected) * size).all()


def assert_inside(case, delta):
    """δ ∈ Δ(x): in the ball up to rounding, and x + δ in the box with no tolerance at all."""
    assert delta.shape == case.v.shape
    assert delta.dtype == case.v.dtype
    size = vector_norm(rows(delta), ord=case.ball.p, dim=1)
    assert (size <= (1 + tolerance(delta)) * case.eps()).all()
    if case.x is not None:
        assert (case.x + delta >= 0).all()
        assert (case.x + delta <= 1).all()
    assert case.ball.contains(delta, case.x).all()


# ---- the maximum of a linear function ----


@given(cases())
def test_the_maximiser_is_allowed(case):
    assert_inside(case, case.ball.argmax(case.v, case.x))


@given(cases())
def test_the_support_function_is_reached_at_the_maximiser(case):
    w, delta = rows(case.v), rows(case.ball.argmax(case.v, case.x))
    support = case.ball.support(case.v, case.x)
    assert support.shape == (len(w),)
    assert support.dtype == case.v.dtype
    terms = (w * delta).abs().sum(1)
    assert ((support.double() - (w * delta).sum(1)).abs() <= tolerance(case.v) * terms).all()


@given(cases())
def test_no_allowed_perturbation_beats_the_support_function(case):
    best = case.ball.support(case.v, case.x).double()
    assert ((rows(case.v) * case.points()).sum(2) <= best * (1 + tolerance(case.v))).all()


@given(cases())
def test_the_maximiser_leaves_coordinates_of_weight_0_alone(case):
    assert (case.ball.argmax(case.v, case.x)[case.v == 0] == 0).all()


@given(cases(boxes=(None,)))
def test_without_a_box_the_support_function_is_the_dual_norm(case):
    q = {1: math.inf, 2: 2, math.inf: 1}[case.ball.p]
    assert case.ball.dual_order == q
    expected = case.eps() * vector_norm(rows(case.v), ord=q, dim=1)
    torch.testing.assert_close(
        case.ball.support(case.v).double(), expected, rtol=tolerance(case.v), atol=0
    )


def test_ties_go_to_the_first_of_the_largest_entries():
    w = torch.tensor([[1.0, -2.0, 2.0]])
    assert Ball(1, 0.5).argmax(w).tolist() == [[0.0, -0.5, 0.0]]


# ---- the nearest point ----


@given(cases())
def test_the_projection_is_allowed(case):
    assert_inside(case, case.ball.project(case.v, case.x))


@given(cases())
def test_the_projection_is_nearest_because_the_rest_of_the_set_lies_behind_it(case):
    """The variational inequality ⟨δ − Pδ, z − Pδ⟩ ≤ 0 for all z ∈ Δ, which only the projection has."""
    nearest = case.ball.project(case.v, case.x)
    nearest, residual = rows(nearest), rows(case.v) - rows(nearest)
    farthest = case.ball.argmax(residual.to(case.v.dtype).reshape(case.v.shape), case.x)
    z = torch.cat([case.points(), rows(farthest)[None]])
    ahead = (residual * (z - nearest)).sum(2)
    size = nearest.norm(dim=1)
    rounding = size * (residual.norm(dim=1) + z.norm(dim=2) + size)
    assert (ahead <= tolerance(case.v) * rounding).all()


@given(cases())
def test_projecting_twice_is_projecting_once(case):
    once = case.ball.project(case.v, case.x)
    twice = case.ball.project(once, case.x)
    assert_same(twice, once)


@given(cases())
def test_an_allowed_point_is_its_own_projection(case):
    inside = (0.999 * case.points()[-1]).to(case.v.dtype).reshape(case.v.shape)
    assert torch.equal(case.ball.project(inside, case.x), inside)


@pytest.mark.parametrize("box", [None, BOX])
@pytest.mark.parametrize("d", [64, 784, 3072])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("p", ORDERS)
def test_in_high_dimension_what_ends_on_the_sphere_still_counts_as_inside(p, dtype, d, box):
    """Equal entries are the hard case: their sums round the same way a thousand times over."""
    level = torch.rand((100, 1), generator=seeded(0), dtype=torch.float64)
    v = (level + 0.01 * entries((100, d), 1, "ties")).to(dtype)
    v[:50] = v[:50, :1]
    x, eps = inputs((100, d), 2).to(dtype), torch.rand(100, generator=seeded(3)).to(dtype)
    ball = Ball(p, eps * d**0.5 / 10, box)
    for delta in (ball.argmax(v, x), ball.project(v, x), ball.sample(x)):
        assert ball.contains(delta, x).all()


# ---- every scale, every row ----

# 2^66 is 1e20, where squares in float32 overflow. Multiplying by 2^k does not round.
POWERS = (-66, -30, -3, 3, 30, 66)


@given(cases(kinds=("plain", "ties", "sparse"), boxes=(None,)), st.sampled_from(POWERS))
def test_the_unit_of_w_does_not_matter(case, power):
    s = 2.0**power
    assert_same(case.ball.argmax(s * case.v), case.ball.argmax(case.v))
    assert_same(case.ball.support(s * case.v), s * case.ball.support(case.v))


@given(cases(kinds=("plain", "ties", "sparse"), boxes=(None,)), st.sampled_from(POWERS))
def test_the_unit_of_the_inputs_does_not_matter(case, power):
    s, ball = 2.0**power, case.ball
    other = Ball(ball.p, s * ball.eps)
    assert_same(other.argmax(case.v), s * ball.argmax(case.v))
    assert_same(other.project(s * case.v), s * ball.project(case.v))
    assert_same(other.sample(case.v), s * ball.sample(case.v))
    delta = ball.project(case.v)
    assert other.contains(s * delta).all()
    assert torch.equal(other.contains(s * 1.01 * delta), ball.contains(1.01 * delta))


@pytest.mark.parametrize("box", [None, BOX])
@pytest.mark.parametrize("scale", [1e3, 1e6, 1e10, 1e20])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("p", ORDERS)
def test_a_point_far_outside_is_projected_as_exactly_as_a_near_one(p, dtype, scale, box):
    x = inputs((200, 6), 1).to(dtype) if box else None
    case = Case(Ball(p, 0.1, box), (scale * entries((200, 6), 0, "plain")).to(dtype), x)
    nearest = case.ball.project(case.v, x)
    assert_inside(case, nearest)
    residual = rows(case.v) - rows(nearest)
    best = Ball(p, 0.1, box).support(residual, None if x is None else x.double())
    behind = best - (residual * rows(nearest)).sum(1)
    assert (behind <= tolerance(case.v) * residual.norm(dim=1) * 0.1).all()


@given(cases())
def test_a_batch_is_its_samples_one_by_one(case):
    for name in ("support", "argmax", "project"):
        together = getattr(case.ball, name)(case.v, case.x)
        for i in range(len(case.v)):
            one = case.row(i)
            alone = getattr(one.ball, name)(one.v, one.x)
            assert_same(together[i : i + 1], alone)


@given(cases())
def test_the_shape_of_a_sample_does_not_matter(case):
    flat = case.v.flatten(1), None if case.x is None else case.x.flatten(1)
    for name in ("argmax", "project"):
        method = getattr(case.ball, name)
        assert torch.equal(method(case.v, case.x).flatten(1), method(*flat))


@given(cases(boxes=(BOX,)))
def test_x_without_a_box_and_a_box_without_x_change_nothing(case):
    plain = Ball(case.ball.p, case.ball.eps)
    for name in ("support", "argmax", "project", "contains"):
        expected = getattr(plain, name)(case.v)
        assert torch.equal(getattr(plain, name)(case.v, case.x), expected)
        assert torch.equal(getattr(case.ball, name)(case.v), expected)


@pytest.mark.parametrize("p", ORDERS)
@pytest.mark.parametrize("box", [None, BOX])
def test_an_empty_batch_gives_an_empty_answer(p, box):
    v, ball = torch.zeros(0, 3), Ball(p, 0.1, box)
    assert ball.support(v, v).shape == ball.contains(v, v).shape == (0,)
    assert ball.argmax(v, v).shape == ball.project(v, v).shape == ball.sample(v).shape == (0, 3)


# ---- against a solver that knows nothing of closed forms ----

PER_SETTING, D = 40, 5


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("box", [None, BOX], ids=["free", "box"])
@pytest.mark.parametrize("p", ORDERS)
def test_support_and_projection_agree_with_a_convex_solver(p, box, dtype):
    """480 programs; objectives are compared, since solvers find values more exactly than points."""
    kinds = ("plain", "ties", "sparse")
    v = torch.cat([entries((1, D), i, kinds[i % 3]) for i in range(PER_SETTING)]).to(dtype)
    v[0] = 0
    x = inputs((PER_SETTING, D), 7).to(dtype)
    eps = (2 * torch.rand(PER_SETTING, generator=seeded(3))).to(dtype)
    eps[1] = 0
    ball, x_used = Ball(p, eps, box), x if box else None
    support, nearest = ball.support(v, x_used), ball.project(v, x_used)

    delta, w, radius = cp.Variable(D), cp.Parameter(D), cp.Parameter(nonneg=True)
    lo, hi = cp.Parameter(D), cp.Parameter(D)
    allowed = [cp.norm(delta, p) <= radius, delta >= lo, delta <= hi]
    height = cp.Problem(cp.Maximize(w @ delta), allowed)
    distance = cp.Problem(cp.Minimize(cp.sum_squares(delta - w)), allowed)
    for i in range(PER_SETTING):
        w.value, radius.value = v[i].double().numpy(), float(eps[i])
        lo.value = -x[i].double().numpy() if box else -100 * torch.ones(D).numpy()
        hi.value = 1 - x[i].double().numpy() if box else 100 * torch.ones(D).numpy()
        # 1e-6: Clarabel stops at a gap of 1e-8 in units of a problem of size about 10
        assert support[i].item() == pytest.approx(height.solve(solver=cp.CLARABEL), rel=1e-6, abs=1e-6)
        reached = (nearest[i] - v[i]).double().square().sum().item()
        assert reached == pytest.approx(distance.solve(solver=cp.CLARABEL), rel=1e-6, abs=1e-6)


# ---- gradients ----


@given(cases(kinds=("plain",), dtypes=(torch.float64,)))
def test_the_gradient_of_the_support_function_is_the_maximiser(case):
    w = case.v.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(case.ball.support(w, case.x).sum(), w)
    expected = case.ball.argmax(case.v, case.x)
    assert_same(gradient, expected)


@settings(max_examples=30)  # each is dozens of finite differences
@given(orders, seeds, st.sampled_from([None, BOX]))
def test_the_support_function_passes_gradcheck_where_it_is_smooth(p, seed, box):
    w = entries((2, 4), seed, "plain").requires_grad_()
    ball, x = Ball(p, 0.3, box), inputs((2, 4), seed) if box else None
    gaps = w.detach().abs().sort(dim=1).values.diff(dim=1).min()
    if w.detach().abs().min() > 1e-3 and gaps > 1e-3:  # away from the kinks at w_i = 0 and at ties
        assert gradcheck(lambda w: ball.support(w, x), w)


@given(orders, seeds)
def test_without_a_box_the_support_function_is_differentiable_in_eps(p, seed):
    w = entries((3, 4), seed, "plain")
    eps = torch.tensor([0.1, 0.2, 0.3], dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(Ball(p, eps).support(w).sum(), eps)
    torch.testing.assert_close(gradient, Ball(p, 1.0).support(w))


@pytest.mark.parametrize("p", ORDERS)
def test_the_gradient_at_w_0_is_a_maximiser_too(p):
    w = torch.zeros(1, 3, requires_grad=True)
    (gradient,) = torch.autograd.grad(Ball(p, 0.5).support(w).sum(), w)
    assert Ball(p, 0.5).contains(gradient).all()


# ---- random points ----


@given(cases(), seeds)
def test_a_sample_is_allowed(case, seed):
    x = case.v if case.x is None else case.x
    assert_inside(case, case.ball.sample(x, seeded(seed)))


@pytest.mark.parametrize("box", [None, BOX])
@pytest.mark.parametrize("p", ORDERS)
def test_the_generator_decides_the_sample(p, box):
    x, ball = torch.full((3, 4), 0.5), Ball(p, 0.3, box)
    generator = seeded(5)
    first, second = ball.sample(x, generator), ball.sample(x, generator)
    assert torch.equal(first, ball.sample(x, seeded(5)))
    assert not torch.equal(first, second)
    assert torch.equal(ball.sample(x), ball.sample(x, seeded(0)))


SAMPLES = 20_000
# Largest distance between an empirical and the true distribution that 999 of 1000 seeds stay under
# (Kolmogorov). The seed is fixed, so this either holds for ever or never.
SURPRISE = 1.95 / math.sqrt(SAMPLES)


def distance_from_uniform(u):
    """The Kolmogorov–Smirnov distance of the numbers u (n,) from the uniform law on [0, 1]."""
    steps = torch.arange(len(u) + 1, dtype=torch.float64) / len(u)
    u = u.double().sort().values
    return max((steps[1:] - u).max(), (u - steps[:-1]).max())


@pytest.mark.parametrize("d", [1, 2, 5])
@pytest.mark.parametrize("p", ORDERS)
def test_samples_are_uniform_on_the_ball(p, d):
    delta = Ball(p, 0.3).sample(torch.zeros(SAMPLES, d, dtype=torch.float64))
    radius = vector_norm(delta, ord=p, dim=1) / 0.3
    assert distance_from_uniform(radius**d) < SURPRISE  # the ball of radius r has r^d of the volume
    assert delta.mean(0).abs().max() < 5 * 0.3 / math.sqrt(SAMPLES)
    square = {1: 2 / ((d + 1) * (d + 2)), 2: 1 / (d + 2), math.inf: 1 / 3}[p]  # E δ_i² at ε = 1
    # δ_i²/ε² lies in [0, 1], so its mean over the samples has a standard error below 0.5/√n
    assert (delta.square().mean(0) / 0.09 - square).abs().max() < 2.5 / math.sqrt(SAMPLES)


def test_samples_of_a_cube_cut_by_the_box_are_uniform_on_what_is_left():
    x = torch.tensor([0.05, 0.5, 1.0], dtype=torch.float64).expand(SAMPLES, 3)
    delta = Ball(math.inf, 0.2, BOX).sample(x)
    low, high = torch.tensor([-0.05, -0.2, -0.2]), torch.tensor([0.2, 0.2, 0.0])
    for u in ((delta - low) / (high - low)).T:
        assert distance_from_uniform(u) < SURPRISE


# ---- membership ----


@given(cases(), st.sampled_from((1.001, 1.5, 10.0)))
def test_a_point_outside_the_ball_is_not_contained(case, factor):
    on_the_edge = Ball(case.ball.p, case.ball.eps).argmax(case.v)
    outside = (case.eps() > 0) & (case.v.flatten(1) != 0).any(1)
    assert not case.ball.contains(factor * on_the_edge)[outside].any()


@given(cases(boxes=(BOX,)))
def test_a_point_that_leaves_the_box_is_not_contained(case):
    beyond = 1.001 - case.x
    wide = Ball(case.ball.p, 1e6, BOX)
    assert not wide.contains(beyond, case.x).any()
    assert wide.contains(beyond).all()


@given(cases())
def test_containing_is_being_ones_own_projection(case):
    near = case.ball.project(case.v, case.x)
    for delta in (case.v, near):
        same = (case.ball.project(delta, case.x) - delta).abs().flatten(1).amax(1)
        moved = same > 1e-3 * delta.abs().flatten(1).amax(1)
        assert not (moved & case.ball.contains(delta, case.x)).any()


# ---- on a GPU ----


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("box", [None, BOX])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("p", ORDERS)
def test_a_gpu_gives_what_the_cpu_gives(p, dtype, box):
    eps = torch.rand(50, generator=seeded(0))
    v, x = entries((50, 4, 6), 1, "plain").to(dtype), inputs((50, 4, 6), 2).to(dtype)
    ball = Ball(p, eps, box)
    for name in ("support", "argmax", "project", "contains"):
        there = getattr(ball, name)(v.cuda(), x.cuda())
        assert there.device.type == "cuda"
        expected = getattr(ball, name)(v, x)
        torch.testing.assert_close(there.cpu(), expected, rtol=tolerance(v), atol=tolerance(v))
    drawn = ball.sample(x.cuda())
    assert ball.contains(drawn, x.cuda()).all()
    assert torch.equal(drawn, ball.sample(x.cuda(), torch.Generator("cuda").manual_seed(0)))
