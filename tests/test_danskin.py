"""Slopes of a maximum, shortest mixtures of gradients, and training with them."""

import copy
import itertools
import math
from functools import partial

import cvxpy as cp
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import (
    BOX,
    DTYPES,
    ORDERS,
    entries,
    generators,
    inputs,
    orders,
    problem,
    seeded,
    seeds,
    trained_on_digits,
)
from torch import nn
from torch.nn.functional import cross_entropy

from adv_lib import attacks, danskin, models, training
from adv_lib.optimisers import SGD
from adv_lib.threat import Ball

kinds = st.sampled_from(["plain", "ties", "sparse", "uneven"])
zero = torch.zeros(1, dtype=torch.float64)


# ---- the slope of a maximum ----


def bilinear(theta, delta):
    return delta * theta


def second(theta, delta):
    """The second counterexample of Latorre et al. 2023."""
    u, v = torch.tensor([1.0, 0.0]).double(), -torch.ones(2).double() / math.sqrt(2)
    return delta * (theta @ u) + (1 - delta) * (theta @ v) + delta * (delta - 1)


def test_the_first_counterexample_has_slope_1_both_ways_and_no_way_down():
    for gamma in (1 + zero, -1 + zero):
        assert danskin.directional_derivative(bilinear, zero, gamma, (-1.0, 1.0)) == 1
    assert danskin.descent_direction(torch.tensor([[1.0], [-1.0]])).tolist() == [0]


def test_the_second_counterexample():
    """Minus either gradient has slope 1/√2, minus their sum 1/√2 − 1; the best unit slope is −0.3827."""
    u, v = torch.tensor([1.0, 0.0]).double(), -torch.ones(2).double() / math.sqrt(2)
    slope = partial(danskin.directional_derivative, second, torch.zeros(2).double(), S=(0.0, 1.0))
    assert slope(gamma=-u).item() == pytest.approx(0.7071, abs=5e-5)
    assert slope(gamma=-v).item() == pytest.approx(0.7071, abs=5e-5)
    assert slope(gamma=-(u + v)).item() == pytest.approx(-0.2929, abs=5e-5)
    steepest = danskin.descent_direction(torch.stack([u, v]))
    torch.testing.assert_close(steepest, -(u + v) / (u + v).norm())
    assert slope(gamma=steepest).item() == pytest.approx(-(u + v).norm().item() / 2)


@given(seeds, st.integers(1, 6), st.integers(1, 4), kinds)
def test_over_a_finite_set_the_slope_is_that_of_a_small_step(seed, m, d, kind):
    """Ties included: the constants are whole numbers."""
    b, c = entries((m, d), seed, kind), entries((m,), seed + 1, "ties")
    b = b / b.abs().max().clamp(min=1)
    gamma = entries((d,), seed + 2, "plain")

    def g(theta, delta):
        return c[delta] + torch.sin(b[delta] @ theta)

    S, theta, h = torch.arange(m), torch.zeros(d, dtype=torch.float64), 1e-5
    slope = danskin.directional_derivative(g, theta, gamma, S)
    step = (g(theta + h * gamma, S).amax() - g(theta, S).amax()) / h
    assert slope.item() == pytest.approx(step.item(), abs=1e-4)


@settings(max_examples=30)
@given(st.floats(-0.9, 0.9), st.sampled_from((-1.0, 1.0)))
def test_over_an_interval_the_slope_is_that_of_a_small_step(at, side):
    """(θ − δ)² on [−1, 1] is worst at an end, sin(3θ + δ) − δ² inside; φ = |θ − end|² or smooth."""
    theta, gamma, fine = at + zero, side + zero, torch.linspace(-1, 1, 200_001).double()
    for g in (
        lambda theta, delta: (theta - delta) ** 2,
        lambda theta, delta: torch.sin(3 * theta + delta) - delta**2,
    ):
        slope = danskin.directional_derivative(g, theta, gamma, (-1.0, 1.0))
        h = 1e-4
        step = (g(theta + h * gamma, fine).amax() - g(theta, fine).amax()) / h
        assert slope.item() == pytest.approx(step.item(), abs=5e-3)


def test_on_an_interval_all_maximisers_are_found_inside_and_at_the_ends():
    found = danskin.maximisers(lambda theta, d: torch.cos(2 * math.pi * d) + theta, zero, (-1.0, 1.5))
    torch.testing.assert_close(found.sort().values, torch.tensor([-1.0, 0.0, 1.0]).double())
    everywhere = danskin.maximisers(lambda theta, d: 0 * d + theta, zero, (-2.0, 2.0))
    assert everywhere.min() == -2
    assert everywhere.max() == 2
    assert danskin.maximisers(bilinear, 1 + zero, (0.5, 0.5)).unique().tolist() == [0.5]


def test_the_tolerance_decides_what_counts_as_worst():
    S = torch.tensor([0.0, 1.0 - 1e-6, 1.0]).double()
    count = [len(danskin.maximisers(bilinear, 1 + zero, S, t)) for t in (1e-9, 1e-5, 2.0)]
    assert count == [1, 2, 3]
    big = [len(danskin.maximisers(bilinear, 1e6 + zero, S, t)) for t in (1e-9, 1e-5)]
    assert big == [1, 2]  # relative to |φ| where that is large


def test_in_float32_what_differs_by_rounding_ties():
    S = torch.tensor([0.1, 0.2, 0.3])
    g = lambda theta, delta: theta * (delta / 3 + delta / 3 + delta / 3) / delta  # noqa: E731
    assert len(danskin.maximisers(g, torch.ones(1), S)) == 3


def test_a_function_that_does_not_depend_on_theta_has_slope_0():
    flat = lambda theta, delta: -(delta**2)  # noqa: E731
    assert danskin.directional_derivative(flat, zero, 1 + zero, (-1.0, 1.0)) == 0


def test_theta_and_delta_may_have_any_shape():
    theta, S = torch.ones(2, 3).double(), entries((5, 2, 3), 0, "plain")
    g = lambda theta, delta: (delta * theta).flatten(1).sum(1)  # noqa: E731
    assert danskin.maximisers(g, theta, S).shape == (1, 2, 3)
    slope = danskin.directional_derivative(g, theta, 2 * theta, S)
    torch.testing.assert_close(slope, 2 * S.flatten(1).sum(1).amax())


# ---- the shortest mixture ----


def check_shortest(G, alpha, slack=1e-7):
    """Weights of the simplex, and the certificate ‖v‖² − min ⟨v, g⟩ near 0."""
    assert alpha.dtype == G.dtype
    assert (alpha >= 0).all()
    assert alpha.sum().item() == pytest.approx(1, abs=1e-5)
    rows, alpha = G.double().flatten(1), alpha.double()
    v = alpha @ rows
    assert v @ v - (rows @ v).min() <= slack * max((rows * rows).sum(1).max().item(), 1e-300)


@given(seeds, st.integers(1, 12), st.integers(1, 12), kinds, st.sampled_from((1e-5, 1.0, 1e5)))
def test_min_norm_point_is_certified_for_many_or_few_gradients_of_any_scale(seed, m, d, kind, scale):
    G = scale * entries((m, d), seed, kind)
    check_shortest(G, danskin.min_norm_point(G))
    check_shortest(G.float(), danskin.min_norm_point(G.float()), 1e-5)


@given(seeds, st.integers(1, 6), st.integers(1, 12), kinds)
def test_gradients_that_depend_on_each_other_do_no_harm(seed, m, d, kind):
    """Each one twice, some mixtures of them, and 0 among them."""
    G = entries((m, d), seed, kind)
    several = torch.cat([G, G, G[:1] / 2 + G[-1:] / 2])
    check_shortest(several, danskin.min_norm_point(several))
    with_zero = torch.cat([G, torch.zeros(1, d, dtype=torch.float64)])
    alpha = danskin.min_norm_point(with_zero)
    assert (alpha @ with_zero).norm() <= 1e-7 * max(G.norm(dim=1).max().item(), 1e-300)
    assert danskin.min_norm_point(torch.zeros(3, d)).sum().item() == pytest.approx(1)


@pytest.mark.parametrize("seed", [454, 21093, 39841])
def test_where_least_squares_alone_cycles_or_stops_early(seed):
    """Of 80,000 random hulls with equal and nearly equal gradients the three that did."""
    G = entries(
        (1 + seed % 23, 1 + 7 * seed % 19), seed, ("plain", "ties", "sparse", "uneven")[seed % 4]
    )
    for several in (G, torch.cat([G, G * (1 + 1e-13), G[:1]])):
        check_shortest(several, danskin.min_norm_point(several), 1e-12)
        check_shortest(several, danskin.min_norm_weights(several @ several.T), 1e-12)


@given(seeds, st.integers(1, 20), st.integers(1, 20), kinds)
def test_inner_products_in_float32_are_good_to_their_rounding(seed, m, d, kind):
    G = entries((m, d), seed, kind)
    alpha = danskin.min_norm_weights((G @ G.T).float()).double()
    check_shortest(G, alpha / alpha.sum(), 1e-4)


@pytest.mark.parametrize(("m", "d"), [(1, 3), (2, 2), (3, 5), (6, 3), (10, 40)])
def test_min_norm_point_agrees_with_a_convex_program(m, d):
    for seed in range(5):
        G = entries((m, d), seed, "plain") + 0.2
        alpha = cp.Variable(m, nonneg=True)
        goal = cp.Minimize(cp.sum_squares(G.numpy().T @ alpha))
        least = cp.Problem(goal, [cp.sum(alpha) == 1]).solve(solver=cp.CLARABEL)
        found = danskin.min_norm_point(G) @ G
        assert (found @ found).item() == pytest.approx(least, abs=1e-6)


@given(seeds, kinds)
def test_for_two_gradients_it_is_the_closed_form(seed, kind):
    a, b = entries((2, 4), seed, kind)
    square = (a - b) @ (a - b)
    t = ((a @ (a - b)) / square).clamp(0, 1) if square > 0 else torch.tensor(0.0).double()
    pair = torch.stack([a, b])
    reach = max(pair.abs().max().item(), 1e-300)
    torch.testing.assert_close(
        danskin.min_norm_point(pair) @ pair, a + t * (b - a), rtol=0, atol=1e-6 * reach
    )


@given(seeds, st.integers(1, 8), st.integers(1, 8), kinds)
def test_inner_products_are_enough(seed, m, d, kind):
    """The shortest vector is one; its weights need not be."""
    G = entries((m, d), seed, kind)
    by_rows, by_gram = danskin.min_norm_point(G) @ G, danskin.min_norm_weights(G @ G.T) @ G
    reach = max(G.norm(dim=1).max().item(), 1e-300)
    torch.testing.assert_close(by_rows, by_gram, rtol=0, atol=1e-4 * reach)
    check_shortest(G, danskin.min_norm_weights(G @ G.T))


def test_gradients_of_any_shape():
    G = entries((4, 2, 3), 0, "plain") + 0.5
    alpha = danskin.min_norm_point(G)
    assert torch.equal(alpha, danskin.min_norm_point(G.flatten(1)))
    assert danskin.descent_direction(G).shape == (2, 3)
    assert danskin.descent_direction(torch.tensor([2.0, 1.0])).item() == -1
    assert danskin.min_norm_point(torch.tensor([2.0, -1.0])).tolist() == pytest.approx([1 / 3, 2 / 3])


@given(seeds, st.integers(1, 6), st.integers(1, 6), kinds, st.sampled_from(DTYPES))
def test_a_descent_direction_is_a_unit_vector_that_leads_down_or_0(seed, m, d, kind, dtype):
    G = (entries((m, d), seed, kind) + 0.3).to(dtype)
    gamma = danskin.descent_direction(G)
    assert gamma.dtype == dtype
    assert not gamma.any() or gamma.norm().item() == pytest.approx(1, abs=1e-5)
    assert not gamma.any() or (G @ gamma).max() < 1e-5 * G.norm(dim=1).max()


@pytest.mark.parametrize("scale", [1e-20, 1.0, 1e20])
@pytest.mark.parametrize("dtype", DTYPES)
def test_at_a_stationary_point_there_is_no_direction_at_any_scale(scale, dtype):
    triangle = torch.tensor([[2.0, 0.0], [-1.0, 1.0], [-1.0, -1.0]], dtype=dtype)
    assert not danskin.descent_direction(scale * triangle).any()
    shifted = danskin.descent_direction(scale * (triangle + torch.tensor([3.0, 0.0])))
    torch.testing.assert_close(shifted, torch.tensor([-1.0, 0.0], dtype=dtype))
    assert not danskin.descent_direction(torch.zeros(2, 3, dtype=dtype)).any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_in_half_precision_a_hull_around_0_is_seen(dtype):
    assert not danskin.descent_direction(torch.tensor([[-1.0], [1.5]], dtype=dtype)).any()
    down = danskin.descent_direction(torch.tensor([[1.0], [1.5]], dtype=dtype))
    assert down.dtype == dtype
    assert down.item() == -1


@given(seeds, st.integers(1, 4), st.integers(1, 4), st.integers(1, 6), kinds)
def test_product_weights_certify_themselves(seed, m, s, d, kind):
    """The gap over the product is at most the tolerance asked for."""
    G = entries((m, s, d), seed, kind)
    flat = G.flatten(0, 1)
    alpha = danskin.product_weights(flat @ flat.T, s, tolerance=1e-3, steps=20_000)
    assert alpha.shape == (m, s)
    torch.testing.assert_close(alpha.sum(0), torch.ones(s).double())
    assert (alpha >= 0).all()
    v = alpha.flatten() @ flat / s
    gap = v @ v - (G @ v).amin(0).mean()
    assert 2 * gap <= 1.001e-3 * (flat * flat).sum(1).max() / s + 1e-12


@pytest.mark.parametrize("chain", [(1, 2, 6, 12), (1, 3, 6, 12), (1, 2, 4, 12)])
def test_finer_parts_never_have_a_longer_shortest_mixture(chain):
    """Each number of parts divides the next; with one part it is the shortest mixture."""
    flat = entries((24, 5), 3, "plain") + 0.4  # 2 perturbations of 12 samples
    lengths = []
    for parts in chain:
        means = flat.view(2, parts, 12 // parts, 5).mean(2).flatten(0, 1)
        alpha = danskin.product_weights(means @ means.T, parts, tolerance=1e-6, steps=50_000)
        lengths.append(((alpha.flatten() @ means) / parts).norm().item())
    pair = flat.view(2, 12, 5).mean(1)
    assert lengths[0] == pytest.approx((danskin.min_norm_point(pair) @ pair).norm().item(), abs=1e-3)
    assert all(b <= a + 1e-3 for a, b in itertools.pairwise(lengths))
    assert lengths[-1] < lengths[0] - 0.05


def test_with_one_gradient_a_part_there_is_nothing_to_choose():
    flat = entries((12, 5), 3, "plain")
    assert danskin.product_weights(flat @ flat.T, 12).tolist() == [[1.0] * 12]


@given(seeds, st.integers(1, 5), st.integers(1, 3), st.integers(1, 4), kinds)
def test_product_weights_stay_in_their_simplices_at_any_tolerance(seed, m, s, d, kind):
    """Also where gradients are equal, or nearly so, and every gap is rounding."""
    G = entries((m, s, d), seed, kind)
    for twins in (G, G * (1 + 1e-15)):
        flat = torch.cat([G, twins, G]).flatten(0, 1)
        for tolerance in (0.0, 1e-12):
            alpha = danskin.product_weights(flat @ flat.T, s, tolerance=tolerance, steps=300)
            assert (alpha >= -1e-12).all()
            torch.testing.assert_close(alpha.sum(0), torch.ones(s).double())


# ---- the synthetic example ----


def phi(theta):
    return theta[0] ** 2 + (theta[1].abs() + 1) ** 2


def run(m, seed, steps=50, term=True):
    """φ along normalised steps of 0.1 from (1, 0); the attack: ten ascent steps of 1 from random δ."""
    theta, generator, seen = torch.tensor([1.0, 0.0]).double(), seeded(seed), []
    for _ in range(steps):
        seen.append(phi(theta).item())
        delta = torch.rand(m, generator=generator, dtype=torch.float64)
        for _ in range(10):
            delta = (delta + 4 * theta[1] + term * (2 * delta - 1)).clamp(0, 1)
        across = 2 * delta * (theta[1] + 1) + 2 * (1 - delta) * (theta[1] - 1)
        gradients = torch.stack([(2 * theta[0]).expand(m), across], 1)
        theta = theta + 0.1 * danskin.descent_direction(gradients)
    return [*seen, phi(theta).item()]


def ups(values):
    return sum(b > a + 1e-9 for a, b in itertools.pairwise(values))


def test_the_synthetic_example():
    """One gradient: 1.33 on average after 10 steps, then up and down between 1.04 and 1.5; DDD: 1.00."""
    single, several = ([run(m, seed) for seed in range(20)] for m in (1, 10))
    after = [values[10] for values in single]
    assert 1.25 < sum(after) / 20 < 1.40
    assert min(after) > 1.1
    late = [values[20:] for values in single]
    assert 1.02 < sum(map(min, late)) / 20 < 1.15
    assert 1.3 < sum(map(max, late)) / 20 < 1.7
    assert 20 <= sum(map(ups, single)) / 20 <= 30
    assert [values[10] for values in several] == pytest.approx([1.0] * 20, abs=1e-12)
    assert sum(ups(values) == 0 for values in several) >= 15


def test_without_its_missing_term_the_attack_of_the_synthetic_example_stays_where_it_starts():
    """On the crease every δ is then a maximiser; DDD still arrives, one gradient still does not."""
    assert phi(torch.zeros(2)) == 1
    assert [run(10, seed, 10, term=False)[10] for seed in range(10)] == pytest.approx(
        [1.0] * 10, abs=0.02
    )
    assert min(run(1, seed, 10, term=False)[10] for seed in range(10)) > 1.1


# ---- inner products of batch gradients ----


def celu(seed=0):
    layers = models.mlp([8, 12, 3], seeded(seed))
    return nn.Sequential(*(nn.CELU() if isinstance(f, nn.ReLU) else f for f in layers)).double()


def with_batchnorm(seed=0):
    flat, first, relu, last = models.mlp([8, 12, 3], seeded(seed))
    return nn.Sequential(flat, first, nn.BatchNorm1d(12), relu, last).double()


def small_convnet(seed=0):
    return models.convnet((1, 4, 4), 3, seeded(seed)).double()


def frozen(seed=0):
    model = celu(seed)
    model[1].bias.requires_grad_(False)
    return model


class Odd(nn.Module):
    """A parameter that is one number, one that is used twice, and one that is not used."""

    def __init__(self):
        super().__init__()
        self.scale, self.spare = nn.Parameter(torch.tensor(2.0)), nn.Parameter(torch.ones(3))
        self.inside, self.last = nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x):
        return self.scale * self.last(self.inside(self.inside(x).tanh()))


def odd(seed=0):
    model = Odd().double()
    for p in model.parameters():
        p.data = entries(p.shape, seed, "plain") if p.ndim else p.data
    return model


NETWORKS = {
    "CELU": (celu, (8,)),
    "BatchNorm": (with_batchnorm, (8,)),
    "convnet": (small_convnet, (1, 4, 4)),
    "a frozen bias": (frozen, (8,)),
    "odd parameters": (odd, (8,)),
}
each_network = pytest.mark.parametrize(("build", "shape"), NETWORKS.values(), ids=NETWORKS)


def batches(shape, r=4, b=5):
    x = inputs((r, b, *shape), 0)
    return x, torch.randint(0, 3, (r, b), generator=seeded(1))


def one_by_one(model, x, y):
    """The gradients of the mean losses of r batches as rows, by a pass and a backward each."""
    own = [p for p in model.parameters() if p.requires_grad]
    rows = []
    for one, labels in zip(x, y, strict=True):
        parts = torch.autograd.grad(
            cross_entropy(model(one), labels), own, allow_unused=True, materialize_grads=True
        )
        rows.append(torch.cat([part.flatten() for part in parts]))
    return torch.stack(rows)


@each_network
@pytest.mark.parametrize("mode", [True, False])
def test_gram_has_the_products_of_the_gradients_one_by_one(build, shape, mode):
    model, (x, y) = build().train(mode), batches(shape)
    rows = one_by_one(copy.deepcopy(model), x, y)
    products, values = danskin.gram(model, x, y)
    torch.testing.assert_close(products, rows @ rows.T)
    again = copy.deepcopy(model)
    expected = torch.stack(
        [cross_entropy(again(a), b, reduction="none") for a, b in zip(x, y, strict=True)]
    )
    torch.testing.assert_close(values, expected)
    assert products.dtype == torch.float64


@each_network
def test_what_gram_returns_can_be_differentiated_and_a_mixture_has_the_mixed_gradient(build, shape):
    model, (x, y) = build(), batches(shape)
    rows = one_by_one(copy.deepcopy(model), x, y)
    products, values = danskin.gram(model, x, y)
    before, alpha = products.clone(), torch.tensor([0.1, 0.2, 0.3, 0.4]).double()
    own = [p for p in model.parameters() if p.requires_grad]
    mixed = torch.autograd.grad((alpha @ values.mean(1)), own, allow_unused=True, materialize_grads=True)
    torch.testing.assert_close(torch.cat([part.flatten() for part in mixed]), alpha @ rows)
    assert torch.equal(products, before)  # differentiating once more adds nothing
    assert all(p.grad is None for p in model.parameters())


def test_gram_moves_the_statistics_by_the_mean_of_what_each_batch_would_and_only_in_training_mode():
    (x, y), model = batches((8,)), with_batchnorm()
    moved = []
    for one in x:
        alone = copy.deepcopy(model)
        alone(one)
        moved.append(alone[2].running_mean)
    danskin.gram(model, x, y)
    torch.testing.assert_close(model[2].running_mean, torch.stack(moved).mean(0))
    assert model[2].num_batches_tracked == 1
    still = copy.deepcopy(model.eval().state_dict())
    danskin.gram(model, x, y)
    assert all(torch.equal(value, still[name]) for name, value in model.state_dict().items())


class Masked(nn.Module):
    """Buffers that no mean can be taken of, and that nobody changes."""

    def __init__(self):
        super().__init__()
        self.last = nn.Linear(8, 3).double()
        self.register_buffer("mask", torch.tensor([0.0, -math.inf, 0.0]).double())
        self.register_buffer("on", torch.tensor([True, False]))

    def forward(self, x):
        return self.last(x) + self.mask.exp() * self.on[0]


def test_gram_leaves_buffers_alone_that_the_batches_leave_alone():
    model, (x, y) = Masked(), batches((8,))
    danskin.gram(model, x, y)
    assert model.mask.tolist() == [0, -math.inf, 0]
    assert model.on.tolist() == [True, False]


def test_gram_of_float32_adds_up_in_float64_and_needs_no_gradients_switched_on():
    model, (x, y) = celu().float(), batches((8,))
    with torch.no_grad():
        products, values = danskin.gram(model, x.float(), y)
    rows = one_by_one(model, x.float(), y).double()
    torch.testing.assert_close(products, rows @ rows.T, rtol=1e-5, atol=1e-7)
    with torch.inference_mode():
        inside, _ = danskin.gram(model, x.float(), y)
    assert torch.equal(products, inside)
    assert values.shape == y.shape


# ---- training with it ----


@settings(max_examples=25)
@given(seeds, orders, st.sampled_from((None, BOX)), st.sampled_from((0.0, 0.3, 5.0)))
def test_perturbations_stay_in_the_ball_and_the_first_is_that_of_adversarial_training(seed, p, box, eps):
    model, x, y, ball = problem(seed % 1000, p=p, box=box, eps=eps, n=4)
    delta = danskin.perturbations(model, x, y, ball, 3, seeded(seed), steps=3)
    assert delta.shape == (3, 4, 8)
    for one in delta:
        assert ball.contains(one, x).all()
    torch.testing.assert_close(delta[0], attacks.pgd(model, x, y, ball, steps=3, keep="last"))
    again = danskin.perturbations(model, x, y, ball, 3, seeded(seed), steps=3)
    assert torch.equal(delta, again)


def test_more_perturbations_of_an_image_differ():
    model, x, y, ball = problem(n=10, hidden=(30,), scale=3)
    delta = danskin.perturbations(model, x, y, ball, 4, seeded(0))
    distances = torch.cdist(delta.transpose(0, 1).flatten(2), delta.transpose(0, 1).flatten(2))
    assert (distances.amax((1, 2)) > 1e-6).any()


@pytest.mark.parametrize("p", ORDERS)
def test_with_one_perturbation_it_is_adversarial_training(p):
    model, x, y, ball = problem(p=p)
    pgd = partial(attacks.pgd, steps=10, keep="last")
    expected = training.adversarial(pgd, ball)(model, x, y)
    assert torch.equal(danskin.ddd(ball, seeded(0), 1)(model, x, y), expected)


def gradient_of(values, model):
    parts = torch.autograd.grad(values.mean(), list(model.parameters()))
    return torch.cat([part.flatten() for part in parts])


@pytest.mark.parametrize("build", [celu, with_batchnorm])
@pytest.mark.parametrize("parts", [1, 2, 3, 6])
def test_the_gradient_of_its_mean_is_the_shortest_mixture(build, parts):
    """m = 4 perturbations of 6 samples, by explicit gradients of all parts; in BatchNorm's mode too."""
    _, x, y, ball = problem()
    model = build().eval() if build is with_batchnorm and parts == 6 else build()
    inner = danskin.ddd(ball, seeded(2), 4, parts=parts)
    twin = copy.deepcopy(model)
    got = gradient_of(inner(model, x, y), model)
    moved = x + danskin.perturbations(twin, x, y, ball, 4, seeded(2))
    rows = moved.view(4, parts, 6 // parts, 8).flatten(0, 1)
    G = one_by_one(twin, rows, y.repeat(4).view(rows.shape[:2]))
    if parts == 1:
        expected = danskin.min_norm_point(G) @ G
    else:
        expected = danskin.product_weights(G @ G.T, parts).flatten() @ G / parts
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-6)


def test_its_step_is_the_steepest_for_the_maximum_over_its_perturbations():
    """Over ten batches of a trained network, by the certificate; minus no gradient is steeper."""
    model, ball = copy.deepcopy(trained_on_digits()).requires_grad_(), Ball(math.inf, 0.1, BOX)
    x, y = inputs((20, 64), 0).float(), torch.arange(20) % 10
    got = gradient_of(danskin.ddd(ball, seeded(0), 10)(model, x, y), model).double()
    moved = x + danskin.perturbations(model, x, y, ball, 10, seeded(0))
    G = one_by_one(model, moved, y.expand(10, -1)).double()
    slope = (G @ -got).max() / got.norm()
    assert slope < 0
    assert slope.item() == pytest.approx(-got.norm().item(), rel=1e-3)
    single = -G / G.norm(dim=1, keepdim=True)
    assert ((single @ G.T).amax(1) >= slope - 1e-6).all()


def test_a_batch_that_the_parts_do_not_divide_falls_into_as_many_as_do():
    model, x, y, ball = problem(n=6)
    four = danskin.ddd(ball, seeded(0), 3, parts=4)(model, x, y)
    three = danskin.ddd(ball, seeded(0), 3, parts=3)(model, x, y)
    assert torch.equal(four, three)
    lone = danskin.ddd(ball, seeded(0), 3, parts=10)(model, x[:1], y[:1])
    assert lone.shape == (1,)


def test_training_with_it_is_decided_by_its_generator():
    def trained(seed):
        model, x, y, ball = problem(dtype=torch.float32, n=12)
        inner = danskin.ddd(ball, seeded(seed), 3, steps=2)
        list(
            training.fit(
                model, (x, y), inner, epochs=2, lr=0.5, batch_size=4, optimiser=SGD(normalise=True)
            )
        )
        return torch.cat([p.detach().flatten() for p in model.parameters()])

    state = generators()
    assert torch.equal(trained(1), trained(1))
    assert not torch.equal(trained(1), trained(2))
    assert generators() == state


def test_training_with_it_raises_robust_accuracy(digits):
    """A small network on 300 digits: from chance to far above it, counted after an attack."""
    ball, model = Ball(math.inf, 0.05, BOX), models.mlp([64, 30, 10])
    inner = danskin.ddd(ball, seeded(0), 3, steps=3)
    few = digits.x_train[:300], digits.y_train[:300]
    list(
        training.fit(model, few, inner, epochs=20, lr=0.3, batch_size=50, optimiser=SGD(normalise=True))
    )
    delta = attacks.pgd(model, *few, ball, steps=20)
    assert (model(few[0] + delta).argmax(1) == few[1]).float().mean() > 0.7
