"""Chapter 1, linear models: every labelled statement, attacked with random instances."""

import math

import cvxpy as cp
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from strategies import BOX, Case, entries, inputs, orders, seeded, seeds, theorem
from torch.linalg import vector_norm
from torch.nn.functional import cross_entropy

from adv_lib import linear
from adv_lib.threat import Ball

EXACT = 1e-12  # float64, and sums of a few terms of size 1
radii = st.floats(0.001, 3)
real_orders = st.one_of(st.just(1.0), st.just(math.inf), st.floats(1.05, 20))

LOSSES = {
    "logistic": linear.logistic,
    "0-1": lambda m: (m <= 0).double(),
    "hinge": lambda m: (1 - m).clamp(min=0),
    "ramp": lambda m: (1 - m).clamp(0, 1),
    "exponential": lambda m: torch.exp(-m),
    "steps": lambda m: -torch.floor(3 * m),
    "constant": torch.zeros_like,
}
losses = st.sampled_from(list(LOSSES.values()))


def dual(p):
    """q with 1/p + 1/q = 1."""
    return {1: math.inf, math.inf: 1}.get(p) or p / (p - 1)


def on_the_sphere(seed, count, d, p, eps):
    """Points with ‖δ‖_p = ε in all directions, among them sparse ones and those with equal entries."""
    kinds = ("plain", "ties", "sparse", "uneven")
    z = torch.cat([entries((count, d), seed + i, kind) for i, kind in enumerate(kinds)])
    return eps * z / vector_norm(z, ord=p, dim=1, keepdim=True).clamp(min=1e-300)


def samples(seed, n=8, d=4):
    """w, b, x in the box, labels ±1."""
    w, b = entries((d,), seed, "plain"), entries((), seed + 1, "plain")
    y = torch.randint(0, 2, (n,), generator=seeded(seed)) * 2 - 1
    return w, b, inputs((n, d), seed), y


# ---- the inner maximum ----


@theorem("thm-monotone")
@given(seeds, losses)
def test_a_non_increasing_loss_is_largest_where_the_margin_is_smallest(seed, loss):
    margin = entries((50,), seed, ("plain", "ties", "uneven")[seed % 3])  # m(δ) on any 50 perturbations
    torch.testing.assert_close(loss(margin).max(), loss(margin.min()), rtol=EXACT, atol=EXACT)


@theorem("thm-dual-norm")
@given(real_orders, radii, seeds, st.sampled_from(["plain", "ties", "sparse"]))
def test_nothing_in_the_ball_beats_the_dual_norm_and_the_formula_attains_it(p, eps, seed, kind):
    w, q = entries((6,), seed, kind), dual(p)
    assume(w.any())
    height = eps * vector_norm(w, ord=q)
    tries = on_the_sphere(seed, 50, 6, p, eps)
    assert (tries @ w).max() <= height * (1 + EXACT)
    if p == 1:
        star = eps * w.sign() * torch.nn.functional.one_hot(w.abs().argmax(), 6)
    elif p == math.inf:
        star = eps * w.sign()
    else:
        size = w.abs() / vector_norm(w, ord=q)  # first divided, then raised: no overflow for q near 20
        star = eps * w.sign() * size ** (q - 1)
    assert vector_norm(star, ord=p).item() == pytest.approx(eps, rel=1e-10)
    assert (star @ w).item() == pytest.approx(height.item(), rel=1e-10)


@theorem("thm-dual-norm")
@given(orders, radii, seeds, st.sampled_from(["plain", "ties", "sparse"]))
def test_the_package_computes_that_maximum_and_that_maximiser(p, eps, seed, kind):
    w = entries((1, 6), seed, kind)
    ball, q = Ball(p, eps), dual(p)
    torch.testing.assert_close(ball.support(w)[0], eps * vector_norm(w, ord=q))
    torch.testing.assert_close((w * ball.argmax(w)).sum(), eps * vector_norm(w, ord=q))


def boxed_sizes(a, room, p, eps):
    """The sizes s_i of the theorem in plain loops, and t for p = 2, the last |w_i| for p = 1."""
    if p == math.inf:
        return room.clamp(max=eps), None
    if p == 2:
        wanted = torch.where(a > 0, room, 0)
        if wanted.norm() <= eps:
            return wanted, math.inf
        low, high = 0.0, 1e6
        for _ in range(200):
            t = (low + high) / 2
            low, high = (t, high) if torch.minimum(t * a, room).norm() < eps else (low, t)
        return torch.minimum(low * a, room), low
    s, left = torch.zeros_like(a), eps
    for i in a.argsort(descending=True):
        s[i] = min(left, room[i])
        left -= s[i]
        if left <= 0:
            return s, a[i]
    return torch.where(a > 0, s, 0), 0.0


@theorem("thm-box")
@given(orders, radii, seeds, st.sampled_from(["plain", "ties", "sparse"]))
def test_inside_the_box_no_allowed_perturbation_beats_the_stated_sizes(p, eps, seed, kind):
    """Weak duality proves it for the instance: ⟨w, δ⟩ ≤ ε‖w − u‖_q + Σ |u_i| r_i for every u along w."""
    w, x = entries((5,), seed, kind), inputs((5,), seed)
    room, a = torch.where(w >= 0, 1 - x, x), w.abs()
    sizes, level = boxed_sizes(a, room, p, eps)
    delta = w.sign() * sizes
    case = Case(Ball(p, eps, BOX), w[None], x[None])
    assert case.ball.contains(delta[None], x[None]).all()

    best = w @ delta
    assert (case.points(40) @ w).max() <= best + EXACT
    u = {  # the share of each weight that the box, not the ball, holds back
        math.inf: lambda: torch.where(room < eps, a, 0),
        2: lambda: (a - room / level).clamp(min=0),
        1: lambda: (a - level).clamp(min=0),
    }[p]()
    proof = eps * vector_norm(a - u, ord=dual(p)) + u @ room
    assert proof.item() == pytest.approx(
        best.item(), abs=1e-9
    )  # 200 halvings of [0, 1e6] leave t uncertain
    assert case.ball.support(w[None], x[None]).item() == pytest.approx(best.item(), abs=1e-9)
    for y in (-1, 1):  # with weights −y w the margin falls by what ⟨w, δ⟩ can gain
        b, label = entries((), seed + 1, "plain"), torch.tensor([y])
        margin = linear.robust_margin(-y * w, b, x[None], label, case.ball).item()
        assert margin == pytest.approx((y * b - w @ x - best).item(), abs=1e-9)


# ---- two classes ----


@theorem("thm-robust-margin")
@given(orders, radii, seeds, losses)
def test_the_worst_margin_is_the_margin_less_eps_times_the_dual_norm(p, eps, seed, loss):
    w, b, x, y = samples(seed)
    worst = y * (x @ w + b) - eps * vector_norm(w, ord=dual(p))
    tries = torch.cat([on_the_sphere(seed, 20, 4, p, eps), torch.zeros(1, 4, dtype=torch.float64)])
    margins = y * ((x + tries[:, None]) @ w + b)  # (tries, samples)
    assert (margins >= worst - EXACT).all()
    ball = Ball(p, eps)
    reached = y * ((x + linear.worst_case(w, x, y, ball)) @ w + b)
    torch.testing.assert_close(reached, worst)
    torch.testing.assert_close(linear.robust_margin(w, b, x, y, ball), worst)
    assert (loss(margins) <= loss(worst - EXACT)).all()
    clear = worst.abs() > 1e-9  # rounding decides the rest
    assert torch.equal((reached <= 0)[clear], (worst <= 0)[clear])


@theorem("thm-radius")
@given(orders, seeds)
def test_below_the_radius_nothing_changes_the_label_and_above_it_something_does(p, seed):
    w, b, x, y = samples(seed)
    correct = y * (x @ w + b) > 1e-6
    assume(correct.any())
    x, y = x[correct], y[correct]
    radius = y * (x @ w + b) / vector_norm(w, ord=dual(p))
    below, above = Ball(p, radius * (1 - 1e-9)), Ball(p, radius * (1 + 1e-9))
    for i in range(len(x)):
        tries = on_the_sphere(seed, 20, 4, p, below.eps[i])
        assert (torch.sign((x[i] + tries) @ w + b) == y[i]).all()
    assert (linear.margin(w, b, x + linear.worst_case(w, x, y, below), y) > 0).all()
    assert (linear.margin(w, b, x + linear.worst_case(w, x, y, above), y) < 0).all()


@theorem("thm-inside")
@given(st.floats(-50, 50), st.floats(0, 20), st.floats(0, 5))
def test_the_penalty_inside_the_loss_costs_at_most_itself_and_less_on_large_margins(m, a, more):
    def extra(m):
        m = torch.tensor(m, dtype=torch.float64)
        return (linear.logistic(m - a) - linear.logistic(m)).item()

    assert -EXACT <= extra(m) <= a + EXACT
    assert extra(m + more) <= extra(m) + EXACT
    assert extra(100.0) == pytest.approx(0, abs=1e-12)
    assert extra(-100.0) == pytest.approx(a, abs=1e-12)


# ---- the outer minimum ----


def robust_loss(w, b, x, y, ball):
    return linear.logistic(linear.robust_margin(w, b, x, y, ball)).mean()


@theorem("thm-convex")
@given(
    orders, radii, seeds, st.sampled_from([None, BOX]), st.floats(0, 1), st.sampled_from([0.1, 1, 30])
)
def test_between_two_models_the_robust_loss_is_never_above_the_chord(p, eps, seed, box, t, size):
    w, b, x, y = samples(seed)
    v, c, ball = (
        size * entries((4,), seed + 7, "uneven"),
        entries((), seed + 8, "plain"),
        Ball(p, eps, box),
    )
    between = robust_loss(t * w + (1 - t) * v, t * b + (1 - t) * c, x, y, ball)
    chord = t * robust_loss(w, b, x, y, ball) + (1 - t) * robust_loss(v, c, x, y, ball)
    assert between <= chord + 1e-9 * (1 + chord)


@theorem("thm-convex")
@given(seeds, st.floats(0, 1))
def test_the_same_holds_for_any_finite_sets_of_perturbations(seed, t):
    w, b, x, y = samples(seed)
    v, c = entries((4,), seed + 7, "plain"), entries((), seed + 8, "plain")
    deltas = entries((10, len(x), 4), seed + 9, "uneven")

    def worst(w, b):
        return linear.logistic(y * ((x + deltas) @ w + b)).amax(0).mean()

    chord = t * worst(w, b) + (1 - t) * worst(v, c)
    assert worst(t * w + (1 - t) * v, t * b + (1 - t) * c) <= chord + 1e-9 * (1 + chord)


def two_clouds(seed):
    """Six points of the plane, both classes present; separable about half of the time."""
    y = torch.tensor([1, 1, 1, -1, -1, -1])
    return entries((6, 2), seed, "plain") + 0.8 * y[:, None], y


def best_separator(x, y, p):
    """The (w, b) with ‖w‖_q ≤ 1 whose smallest margin is the largest."""
    w, b, reach = cp.Variable(2), cp.Variable(), cp.Variable()
    limits = [cp.multiply(y.numpy(), x.numpy() @ w + b) >= reach, cp.norm(w, dual(p)) <= 1]
    cp.Problem(cp.Maximize(reach), limits).solve(solver=cp.CLARABEL)
    return torch.tensor(w.value), torch.tensor(float(b.value), dtype=torch.float64)


@theorem("thm-separable")
@settings(max_examples=30)  # each solves two convex programs
@given(orders, seeds, st.floats(0.05, 0.95))
def test_below_the_largest_margin_the_loss_falls_to_0_and_never_arrives(p, seed, share):
    x, y = two_clouds(seed)
    reach = linear.largest_margin(x, y, p)
    assume(reach > 0.01)
    w, b = best_separator(x, y, p)
    ball = Ball(p, share * reach)
    along = [robust_loss(s * w, s * b, x, y, ball).item() for s in (1, 10, 100, 1000, 1e5)]
    assert along == sorted(along, reverse=True)
    assert along[-1] < 1e-12
    for i in range(20):  # "never arrives": log(1 + e^−m) > 0 for every finite m
        assert robust_loss(entries((2,), i, "plain"), entries((), i, "plain"), x, y, ball) > 0
    with pytest.raises(ValueError, match=f"no minimum.*{reach:.4g}"):
        linear.robust_logistic_regression(x, y, ball)


@theorem("thm-separable")
@settings(max_examples=30)  # each solves two convex programs
@given(orders, seeds, st.floats(0.05, 2))
def test_above_the_largest_margin_the_loss_grows_on_every_ray_and_has_a_positive_minimum(p, seed, more):
    x, y = two_clouds(seed)
    reach = linear.largest_margin(x, y, p)
    ball = Ball(p, reach + more)
    w, b = linear.robust_logistic_regression(x, y, ball)
    lowest = robust_loss(w, b, x, y, ball)
    assert lowest > 0
    for i in range(20):
        v, c = entries((2,), seed + i, "uneven"), entries((), seed + i + 1, "plain")
        if i == 0:
            v = torch.zeros_like(v)  # the ray along b alone
        v, c = (u / max(vector_norm(v, ord=dual(p)), c.abs()) for u in (v, c))
        near, far, farther = (robust_loss(s * v, s * c, x, y, ball) for s in (1.0, 1e4, 1e5))
        assert min(near, far) >= lowest - 1e-7  # Clarabel's accuracy
        assert farther > 5 * far > 5
        # some sample has a margin of at most (ε* − ε)‖v‖ there, so the loss grows at least this fast
        assert far >= 1e4 * more * vector_norm(v, ord=dual(p)) / len(x) - 1e-2


# ---- K classes ----


def classes(seed, n=6, d=4, K=4):
    """W, b, x in the box, labels below K."""
    W, b = entries((K, d), seed, "plain"), entries((K,), seed + 1, "plain")
    return W, b, inputs((n, d), seed), torch.randint(0, K, (n,), generator=seeded(seed))


@theorem("thm-multiclass-margin")
@given(orders, radii, seeds, st.sampled_from([None, BOX]))
def test_every_margin_is_reached_never_passed_and_all_positive_means_certified(p, eps, seed, box):
    """With a box, what the ball and the box leave of a dual norm is in its place."""
    W, b, x, y = classes(seed, n=12)
    eps = eps / 10
    n, K, ball = len(x), len(W), Ball(p, eps, box)
    margins = linear.margins(W, b, x, y, ball)
    z = x @ W.T + b
    tries = Case(ball, x, x if box else None).points(20)
    if not box:
        tries = torch.cat([tries, on_the_sphere(seed, 20, 4, p, eps)[:, None].expand(-1, n, -1)])
    changed = torch.zeros(n, dtype=torch.bool)
    for k in range(K):
        away = W[y] - W[k]
        taken = ball.support(-away, x) if box else eps * vector_norm(away, ord=dual(p), dim=1)
        stated = z[range(n), y] - z[:, k] - taken
        rival = y != k
        torch.testing.assert_close(margins[rival, k], stated[rival])
        passed = z[range(n), y] - z[:, k] + (tries * away).sum(2)
        assert (passed >= stated - EXACT).all()
        moved = (x + ball.argmax(-away, x if box else None)) @ W.T + b
        reached = moved[range(n), y] - moved[:, k]
        torch.testing.assert_close(reached, stated)
        changed |= rival & (reached <= 0)
    clear = margins.abs().amin(1) > 1e-9  # rounding decides the rest
    assert torch.equal((margins > 0).all(1)[clear], ~changed[clear])
    assert torch.equal(linear.certified(W, b, x, y, ball), (margins > 0).all(1))


@theorem("thm-ce-bound")
@given(
    orders,
    st.one_of(st.just(0.0), radii),
    seeds,
    st.sampled_from([2, 3, 10]),
    st.sampled_from([0.1, 1, 10]),
    st.sampled_from([None, BOX]),
)
def test_the_bound_is_never_below_the_robust_cross_entropy_nor_log_of_k_minus_1_above_it(
    p, eps, seed, K, size, box
):
    W, b, x, y = classes(seed, K=K)
    W, ball = size * W, Ball(p, eps, box)
    bound = linear.robust_cross_entropy_bound(W, b, x, y, ball)
    margins = linear.margins(W, b, x, y, ball)
    others = torch.nn.functional.one_hot(y, K) == 0
    stated = torch.log1p(torch.where(others, torch.exp(-margins), 0).sum(1))
    torch.testing.assert_close(bound, stated)

    def loss(delta):
        return cross_entropy((x + delta) @ W.T + b, y, reduction="none")

    at = x if box else None
    aimed = torch.stack([loss(ball.argmax(W[k] - W[y], at)) for k in range(K)]).amax(0)
    for delta in Case(ball, x, at).points(40):
        assert (loss(delta) <= bound + EXACT * (1 + bound)).all()
    assert (aimed <= bound + EXACT * (1 + bound)).all()
    assert (bound - aimed <= math.log(K - 1) + EXACT * (1 + bound)).all()  # K = 2: an equality
