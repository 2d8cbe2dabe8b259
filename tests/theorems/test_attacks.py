"""Chapter 2, attacks: every labelled statement, attacked with random instances."""

import itertools
import math
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import BOX, ORDERS, Case, entries, inputs, orders, problem, seeded, seeds, theorem
from torch.linalg import vector_norm
from torch.nn.functional import cross_entropy

from adv_lib import attacks, linear, losses
from adv_lib.evaluation import robust_accuracy, survivors
from adv_lib.threat import Ball

EXACT = 1e-12  # float64, and sums of a few terms of size 1
radii = st.floats(0.001, 3)
kinds = st.sampled_from(["plain", "ties", "sparse"])
boxes = st.sampled_from([None, BOX])
DUAL = {1: math.inf, 2: 2, math.inf: 1}
ATTACKS = {
    "fgsm": attacks.fgsm,
    "bim": partial(attacks.bim, steps=8),
    "friendly": partial(attacks.friendly, steps=8),
    "ilcm": partial(attacks.ilcm, steps=8),
    "jsma": partial(attacks.jsma, share=1),
    "pgd": partial(attacks.pgd, steps=8, restarts=2),
    "pgd first": partial(attacks.pgd, steps=8, keep="first"),
    "apgd": partial(attacks.apgd, steps=8),
    "spsa": partial(attacks.spsa, steps=4, samples=4),
}
OF_ORDERS = {  # those that do not take every p
    partial(attacks.square, queries=20): (2, math.inf),
    partial(attacks.rays, queries=50): (math.inf,),
}
SHORTEST = {"deepfool": partial(attacks.deepfool, steps=5), "fab": partial(attacks.fab, steps=5)}
ONLY = {2: [partial(attacks.ddn, steps=10)]}


def usable(p):
    given = [attack for attack, those in OF_ORDERS.items() if p in those]
    return [*ATTACKS.values(), *SHORTEST.values(), *ONLY.get(p, []), *given]


def ends(d, p, eps):
    """The vertices of the ball for p = 1 and ∞, and for p = 2 the ends of the axes."""
    if p == math.inf:
        return eps * torch.tensor(list(itertools.product((-1.0, 1.0), repeat=d)), dtype=torch.float64)
    return eps * torch.cat([torch.eye(d), -torch.eye(d)]).double()


def anywhere(seed, count, d, p, eps):
    """Random points of the ball, half of them on its surface."""
    z = torch.cat([entries((count, d), seed + i, kind) for i, kind in enumerate(("plain", "sparse"))])
    z = eps * z / vector_norm(z, ord=p, dim=1, keepdim=True).clamp(min=1e-300)
    return torch.cat([z, z * torch.rand(len(z), 1, generator=seeded(seed), dtype=torch.float64)])


# ---- an attack is a lower bound ----


def linear_model(seed, K, d=4, n=12):
    W, b = entries((K, d), seed, "plain"), entries((K,), seed + 1, "plain") / 4
    x = inputs((n, d), seed)
    return W, b, (lambda x: x.flatten(1) @ W.T + b), x, (x @ W.T + b).argmax(1)


@theorem("thm-lower-bound")
@settings(max_examples=12)
@given(seeds, orders, st.sampled_from((0.02, 0.1, 0.5)), boxes, st.sampled_from((2, 4)))
def test_no_attack_finds_a_loss_above_the_maximum_nor_a_robust_accuracy_below_the_true_one(
    seed, p, eps, box, K
):
    W, b, model, x, y = linear_model(seed, K, n=40)
    ball = Ball(p, eps, box)
    margins, most = linear.margins(W, b, x, y, ball), linear.robust_cross_entropy_bound(W, b, x, y, ball)
    for attack in usable(p):
        z = model(x + attack(model, x, y, ball))
        assert (losses.margin_loss(z, y) <= -margins.amin(1) + EXACT).all()
        assert (cross_entropy(z, y, reduction="none") <= most + EXACT).all()
    truth = linear.certified(W, b, x, y, ball)
    clear = margins.abs().amin(1) > 1e-9  # rounding decides the rest
    left = survivors(model, x, y, ball, usable(p))
    assert (left >= truth)[clear].all()
    measured = robust_accuracy(model, x, y, ball, usable(p)).value
    assert measured >= (truth & clear).double().mean()


@theorem("thm-lower-bound")
@settings(max_examples=20)
@given(seeds, orders, boxes)
def test_the_same_holds_for_any_set_of_allowed_perturbations_tried_one_by_one(seed, p, box):
    W, b, model, x, y = linear_model(seed, 3)
    ball = Ball(p, 0.2, box)
    tries = [ball.sample(x, seeded(seed + i)) for i in range(10)]
    found = torch.stack([losses.margin_loss(model(x + delta), y) for delta in tries]).amax(0)
    assert (found <= -linear.margins(W, b, x, y, ball).amin(1) + EXACT).all()
    assert ((found < 0) >= linear.certified(W, b, x, y, ball)).all()


GRID = 61


def grid(ball, x):
    """Points of Δ(x) for one x of the plane, and how far any point of Δ(x) is from the nearest one."""
    side = torch.linspace(-ball.eps, ball.eps, GRID, dtype=torch.float64)
    square = torch.cartesian_prod(side, side)
    near = ball.project(square, x.expand(len(square), 2) if ball.box else None)
    return near, (side[1] - side[0]) / math.sqrt(2)  # projecting moves no two points apart


@theorem("thm-lower-bound")
@settings(max_examples=15)
@given(seeds, orders, boxes)
def test_in_the_plane_no_attack_beats_a_dense_grid_by_more_than_the_grid_can_miss(seed, p, box):
    model, x, _, ball = problem(seed, shape=(2,), n=6, p=p, eps=0.2, box=box)
    y = model(x).argmax(1)
    slope = math.sqrt(2) * math.prod(
        torch.linalg.matrix_norm(layer.weight, 2).item() for layer in model[1::2]
    )  # the margin is z_j − z_y, and ReLU stretches nothing
    found = [losses.margin_loss(model(x + a(model, x, y, ball)), y) for a in usable(p)]
    left = survivors(model, x, y, ball, usable(p))
    for i in range(len(x)):
        points, gap = grid(ball, x[i : i + 1])
        best = losses.margin_loss(model(x[i] + points), y[i : i + 1].expand(len(points))).max()
        assert max(value[i] for value in found) <= best + slope * gap + EXACT
        if best + slope * gap < 0:  # so no δ at all breaks it
            assert left[i]


# ---- the maximum of a linear loss ----


@theorem("thm-fgsm")
@given(orders, radii, seeds, kinds)
def test_no_point_of_the_ball_beats_eps_times_the_dual_norm_and_these_points_attain_it(
    p, eps, seed, kind
):
    g = entries((5,), seed, kind)
    if not g.any():
        g[0] = 1.0
    height = eps * vector_norm(g, ord=DUAL[p])
    tries = torch.cat([ends(5, p, eps), anywhere(seed, 50, 5, p, eps)])
    assert (tries @ g).max() <= height * (1 + EXACT)
    at = g.abs().argmax()
    best = {
        math.inf: eps * g.sign(),
        2: eps * g / g.norm(),
        1: eps * g[at].sign() * torch.nn.functional.one_hot(at, 5),
    }[p]
    assert vector_norm(best, ord=p) <= eps * (1 + EXACT)
    assert (best @ g).item() == pytest.approx(height.item(), rel=1e-12)
    assert (Ball(p, eps).argmax(g[None])[0] @ g).item() == pytest.approx(height.item(), rel=1e-12)
    if p != 2:  # the largest value over the vertices is the largest of all
        assert (ends(5, p, eps) @ g).max().item() == pytest.approx(height.item(), rel=1e-12)


@theorem("thm-fgsm")
@given(orders, st.floats(0.01, 0.5), seeds)
def test_fgsm_without_a_box_is_that_point_for_the_gradient_of_the_loss(p, eps, seed):
    model, x, y, ball = problem(seed, p=p, eps=eps, box=None)
    x.requires_grad_()
    (g,) = torch.autograd.grad(losses.log_odds(model(x), y).sum(), x)
    delta = attacks.fgsm(model, x, y, ball)
    reached = (g * delta).sum(1)
    torch.testing.assert_close(reached, eps * vector_norm(g, ord=DUAL[p], dim=1), rtol=1e-10, atol=1e-15)


# ---- where the linearisation is exact ----


@theorem("thm-fgsm-linear")
@given(orders, radii, seeds, boxes)
def test_on_a_linear_model_of_two_classes_fgsm_attains_the_worst_margin(p, eps, seed, box):
    W, b, model, x, _ = linear_model(seed, 2)
    y = torch.arange(len(x)) % 2
    ball = Ball(p, eps, box)
    exact = linear.margins(W, b, x, y, ball).amin(1)
    reached = losses.margin(model(x + attacks.fgsm(model, x, y, ball)), y)
    torch.testing.assert_close(reached, exact, rtol=1e-10, atol=1e-10)
    w, c, sign = W[1] - W[0], b[1] - b[0], 2 * y - 1  # the same as one output with labels ±1
    torch.testing.assert_close(
        reached, linear.robust_margin(w, c, x, sign, ball), rtol=1e-10, atol=1e-10
    )


@theorem("thm-fgsm-linear")
@given(orders, radii, seeds, boxes)
def test_on_k_classes_fgsm_towards_class_k_attains_the_margin_against_it(p, eps, seed, box):
    W, b, model, x, y = linear_model(seed, 4)
    ball = Ball(p, eps, box)
    exact = linear.margins(W, b, x, y, ball)
    for shift in (1, 2, 3):
        k = (y + shift) % 4
        z = model(x + attacks.fgsm(model, x, y, ball, loss=losses.targeted, targets=k))
        reached = -losses.targeted(z, y, k)
        torch.testing.assert_close(reached, exact[range(len(x)), k], rtol=1e-10, atol=1e-10)


# ---- how far pgd gets ----


@theorem("thm-reach")
@settings(max_examples=50)
@given(orders, seeds, boxes, st.sampled_from([0.01, 0.05, 0.2]), st.integers(1, 8))
def test_after_k_steps_of_size_alpha_pgd_is_at_most_k_alpha_from_where_it_started(
    p, seed, box, alpha, steps
):
    model, x, y, ball = problem(seed, p=p, eps=0.3, box=box)
    seen = []
    attacks.pgd(model, x, y, ball, steps=steps, step_size=alpha, callback=seen.append)
    for iterate in seen:
        moved = vector_norm(iterate.delta, ord=p, dim=1)
        assert (moved <= min(iterate.step * alpha, ball.eps) * (1 + EXACT)).all()
    if steps * alpha < ball.eps:  # too few steps to reach the boundary
        assert (vector_norm(seen[-1].delta, ord=p, dim=1) < ball.eps).all()


@theorem("thm-reach")
@pytest.mark.parametrize("p", ORDERS)
def test_on_a_linear_model_without_a_box_it_is_exactly_that_far_until_the_boundary(p):
    _, _, model, x, y = linear_model(0, 2)
    seen = []
    attacks.pgd(model, x, y, Ball(p, 0.3), steps=5, step_size=0.08, callback=seen.append)
    for iterate in seen:
        moved = vector_norm(iterate.delta, ord=p, dim=1)
        torch.testing.assert_close(moved, torch.full_like(moved, min(iterate.step * 0.08, 0.3)))


# ---- projections ----


def stated_projection(z, p, eps):
    """Clip; rescale; subtract from every size the λ that leaves a sum of ε, found by bisection."""
    if p == math.inf:
        return z.clamp(-eps, eps)
    if p == 2:
        return z * min(1.0, eps / max(z.norm().item(), 1e-300))
    if z.abs().sum() <= eps:
        return z
    low, high = 0.0, z.abs().max().item()
    for _ in range(200):
        lam = (low + high) / 2
        low, high = (lam, high) if (z.abs() - lam).clamp(min=0).sum() > eps else (low, lam)
    return z.sign() * (z.abs() - low).clamp(min=0)


@theorem("thm-projection")
@given(orders, radii, seeds, kinds, st.sampled_from((0.1, 1.0, 30.0)))
def test_no_point_of_the_ball_is_nearer_than_the_stated_one_and_all_lie_behind_it(
    p, eps, seed, kind, size
):
    z = size * entries((5,), seed, kind)
    nearest = stated_projection(z, p, eps)
    assert vector_norm(nearest, ord=p) <= eps * (1 + 1e-9)
    if p == 1 and z.abs().sum() > eps:
        assert nearest.abs().sum().item() == pytest.approx(eps, rel=1e-9)
    tries = torch.cat([ends(5, p, eps), anywhere(seed, 50, 5, p, eps), torch.zeros(1, 5).double()])
    tries = torch.cat([tries, nearest + 1e-3 * (tries - nearest)])  # near ones too: the ball is convex
    slack = EXACT * (1 + size) ** 2
    distance = (z - nearest).norm()
    assert ((z - tries).norm(dim=1) >= distance - slack).all()
    assert ((tries - nearest) @ (z - nearest) <= slack).all()
    # ⟨z − Pz, v⟩ is largest over the ball at Pz, where it is ε‖z − Pz‖_q: behind it lies all of the ball
    height = eps * vector_norm(z - nearest, ord=DUAL[p])
    outside = vector_norm(z, ord=p) > eps
    assert not outside or ((z - nearest) @ nearest).item() == pytest.approx(
        height.item(), rel=1e-6, abs=1e-9
    )
    torch.testing.assert_close(Ball(p, eps).project(z[None])[0], nearest, rtol=1e-9, atol=1e-9)


@theorem("thm-projection")
@given(orders, radii, seeds, kinds)
def test_of_points_in_a_cloud_around_it_none_in_the_ball_is_nearer(p, eps, seed, kind):
    z = entries((3,), seed, kind)
    nearest = stated_projection(z, p, eps)
    cloud = nearest + 0.05 * eps * entries((300, 3), seed + 1, "plain")
    inside = cloud[vector_norm(cloud, ord=p, dim=1) <= eps]
    assert ((z - inside).norm(dim=1) >= (z - nearest).norm() - 1e-9).all()
    case = Case(Ball(p, eps), z[None], None)
    assert ((z - case.points(10).squeeze(1)).norm(dim=1) >= (z - nearest).norm() - 1e-9).all()


# ---- the log-odds ----


@theorem("thm-log-odds")
@given(seeds, st.sampled_from((0.1, 2.0, 50.0)), st.integers(2, 8), kinds)
def test_cross_entropy_is_softplus_of_s_with_sigmoid_of_s_times_its_gradient_which_has_norm_2(
    seed, scale, K, kind
):
    z = (scale * entries((10, K), seed, kind)).requires_grad_()
    y = torch.randint(0, K, (10,), generator=seeded(seed))
    others = torch.nn.functional.one_hot(y, K) == 0
    s = torch.log(torch.where(others, torch.exp(z - z.gather(1, y[:, None])), 0).sum(1))
    entropy = cross_entropy(z, y, reduction="none")
    torch.testing.assert_close(losses.log_odds(z, y), s, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(entropy, torch.logaddexp(s, torch.zeros_like(s)), rtol=1e-10, atol=1e-12)
    slope_s, slope_ce, slope = (
        torch.autograd.grad(value.sum(), z, retain_graph=True)[0]
        for value in (s, entropy, losses.log_odds(z, y))
    )
    torch.testing.assert_close(slope, slope_s, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(slope_ce, torch.sigmoid(s)[:, None] * slope_s, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(slope.abs().sum(1), torch.full((10,), 2.0, dtype=torch.float64))
    for logits in (z.detach(), 1000 * z.detach()):  # where exponentials overflow, too
        s, loss = losses.log_odds(logits, y), losses.cross_entropy(logits, y)
        torch.testing.assert_close(loss, torch.logaddexp(s, torch.zeros_like(s)))


@theorem("thm-log-odds")
@pytest.mark.parametrize("p", ORDERS)
@pytest.mark.parametrize("attack", [attacks.fgsm, partial(attacks.pgd, steps=10, keep="last")])
def test_so_normalised_steps_on_either_loss_visit_the_same_points_while_nothing_saturates(attack, p):
    inputs_ = problem(p=p, n=20)
    own, entropy = attack(*inputs_), attack(*inputs_, loss=losses.cross_entropy)
    torch.testing.assert_close(own, entropy, rtol=0, atol=1e-9)


# ---- norms and volumes ----


@theorem("thm-norms")
@given(seeds, st.integers(1, 30), st.sampled_from(["plain", "ties", "sparse", "uneven"]))
def test_each_norm_is_at_most_the_next_and_these_factors_turn_them_round(seed, d, kind):
    v = entries((20, d), seed, kind)
    top, long, total = (vector_norm(v, ord=p, dim=1) for p in (math.inf, 2, 1))
    chain = [top, long, total, math.sqrt(d) * long, d * top]
    for smaller, larger in itertools.pairwise(chain):
        assert (smaller <= larger * (1 + EXACT)).all()


@theorem("thm-norms")
@pytest.mark.parametrize("d", [1, 2, 7, 784])
def test_each_of_these_inequalities_is_attained(d):
    axis, equal = torch.eye(d, dtype=torch.float64)[0], torch.ones(d, dtype=torch.float64)
    norm = {
        v: [vector_norm(u, ord=p).item() for p in (math.inf, 2, 1)]
        for v, u in (("a", axis), ("e", equal))
    }
    assert norm["a"][0] == norm["a"][1] == norm["a"][2] == 1
    assert norm["e"][2] == pytest.approx(math.sqrt(d) * norm["e"][1], rel=1e-12)
    assert math.sqrt(d) * norm["e"][1] == pytest.approx(d * norm["e"][0], rel=1e-12)


def radius(d, eps):
    """Of the ℓ2 ball with the volume (2ε)^d: 2 ε Γ(d/2 + 1)^{1/d} / √π, as a tensor over d."""
    d = torch.as_tensor(d, dtype=torch.float64)
    return 2 * eps * torch.exp(torch.lgamma(d / 2 + 1) / d) / math.sqrt(math.pi)


@theorem("thm-norms")
def test_the_radius_of_equal_volume_is_its_limit_times_a_factor_that_falls_to_1():
    d = torch.arange(1, 100_001, dtype=torch.float64)
    factor = radius(d, 1.0) / torch.sqrt(2 * d / (math.pi * math.e))
    assert (factor.diff() < 0).all()
    assert (factor > 1).all()
    assert factor[-1] - 1 < 1e-4
    stirling = torch.exp(torch.log(math.pi * d) / (2 * d) + 1 / (6 * d * d))
    assert (factor <= stirling * (1 + EXACT)).all()
    torch.testing.assert_close(radius(d, 0.3), 0.3 * radius(d, 1.0))


@theorem("thm-norms")
@pytest.mark.parametrize("d", [1, 2, 3])
def test_a_ball_of_that_radius_has_the_volume_of_the_cube(d):
    eps, n = 0.3, 200_000
    r = radius(d, eps).item()
    known = {1: eps, 2: 2 * eps / math.sqrt(math.pi), 3: 2 * eps * (3 / (4 * math.pi)) ** (1 / 3)}[d]
    assert r == pytest.approx(known, rel=1e-12)
    points = r * (2 * torch.rand(n, d, generator=seeded(d), dtype=torch.float64) - 1)
    share = (points.norm(dim=1) <= r).double().mean().item()
    # a share of n independent draws is off by less than 2.5/√n, five standard errors at most
    assert share * (2 * r) ** d == pytest.approx((2 * eps) ** d, abs=2.5 / math.sqrt(n) * (2 * r) ** d)


def test_there_was_something_to_attack_above():
    model, x, _, ball = problem(0, shape=(2,), n=6, eps=0.2)
    y = model(x).argmax(1)
    assert 0 < survivors(model, x, y, ball, usable(math.inf)).sum() < 6
    W, b, model, x, y = linear_model(0, 4)
    assert 0 < linear.certified(W, b, x, y, Ball(math.inf, 0.1, BOX)).sum() < len(x)
