"""Chapter 7, Danskin: every labelled statement, attacked with random instances."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import entries, seeded, seeds, theorem

from adv_lib import danskin

EXACT = 1e-9  # float64, and sums of a few terms of size up to 10
few = settings(max_examples=25)
kinds = st.sampled_from(["plain", "ties", "sparse"])


def pair_at(inner, turn):
    """Unit vectors u, v in the plane with ⟨u, v⟩ = inner, turned together."""
    angles = torch.tensor([turn, turn + math.acos(inner)], dtype=torch.float64)
    return torch.stack([angles.cos(), angles.sin()], 1)


def directions(d, seed, count=200):
    """Random unit vectors (count, d)."""
    gamma = torch.randn(count, d, generator=seeded(seed), dtype=torch.float64)
    return gamma / gamma.norm(dim=1, keepdim=True)


def shortest(gradients):
    return danskin.min_norm_point(gradients) @ gradients


# ---- the counterexample, and when one gradient is enough ----


@theorem("thm-both-ascend")
@given(st.floats(-0.999, -1e-3), st.floats(0, 2 * math.pi))
def test_both_gradients_lead_up_and_their_sum_leads_down(inner, turn):
    """By the formula of the package, and by differences of φ, whose maximum over δ is in closed form."""
    u, v = pair_at(inner, turn)
    zero = torch.zeros(2, dtype=torch.float64)

    def g(theta, delta):
        return delta * (theta @ u) + (1 - delta) * (theta @ v) + delta * (delta - 1)

    def phi(theta):  # g is convex in δ: its maximum is at an end
        return torch.stack([theta @ u, theta @ v]).amax()

    ends = danskin.maximisers(g, zero, (0.0, 1.0))
    assert sorted(ends.tolist()) == [0, 1]
    slopes = {"−u": -inner, "−v": -inner, "−(u + v)": -1 - inner}
    for gamma, expected in zip((-u, -v, -(u + v)), slopes.values(), strict=True):
        found = danskin.directional_derivative(g, zero, gamma, (0.0, 1.0))
        assert found.item() == pytest.approx(expected, abs=EXACT)
        assert (phi(1e-4 * gamma) / 1e-4).item() == pytest.approx(expected, abs=EXACT)
    assert slopes["−u"] > 0 > slopes["−(u + v)"]


@theorem("thm-one-gradient")
@given(seeds, st.integers(1, 5), st.integers(1, 4), kinds)
def test_minus_one_gradient_leads_down_if_and_only_if_all_products_with_it_are_positive(
    seed, m, d, kind
):
    """φ is the largest of m planes, all 0 at 0, plus curvature: the slope by the formula, by a step."""
    G, bend = entries((m, d), seed, kind), entries((m,), seed + 1, "plain")

    def g(theta, delta):
        return G[delta] @ theta + bend[delta] / 2 * (theta @ theta)

    zero, h = torch.zeros(d, dtype=torch.float64), 1e-6
    for one in G:
        slope = danskin.directional_derivative(g, zero, -one, torch.arange(m)).item()
        assert slope == pytest.approx(-(G @ one).amin().item(), abs=EXACT)
        assert (slope < 0) == bool(((G @ one) > 0).all())
        stepped = g(-h * one, torch.arange(m)).amax().item()
        assert stepped / h == pytest.approx(slope, abs=h * float(bend.abs().max() * (one @ one)) + EXACT)


@theorem("thm-one-gradient")
@given(seeds, st.integers(1, 4))
def test_with_one_maximiser_minus_its_gradient_always_leads_down(seed, d):
    one = entries((d,), seed, "plain")
    slope = danskin.directional_derivative(
        lambda theta, delta: delta @ theta, torch.zeros_like(one), -one, one[None]
    )
    assert slope.item() == pytest.approx(-float(one @ one))


# ---- the direction that falls fastest ----


@theorem("thm-steepest-descent")
@given(seeds, st.integers(1, 6), st.integers(1, 5), kinds, st.floats(0, 2))
def test_no_direction_is_steeper_than_minus_the_shortest_mixture_and_none_is_as_steep(
    seed, m, d, kind, offset
):
    G = entries((m, d), seed, kind) + offset
    g, gamma = shortest(G), danskin.descent_direction(G)
    best = -g.norm()
    others = directions(d, seed)
    assert ((others @ G.T).amax(1) >= best - EXACT).all()
    if gamma.any():
        assert gamma.norm().item() == pytest.approx(1)
        assert (G @ gamma).amax().item() == pytest.approx(best.item(), abs=1e-7)
        # nowhere else: ⟨γ, g*⟩ ≤ max_i ⟨γ, g_i⟩, and that is at least −‖g*‖ cos of the angle to γ*
        assert ((others @ G.T).amax(1) >= best * (others @ gamma) - 1e-7).all()
    else:
        assert best.abs() <= 1e-6 * G.norm(dim=1).max()


@theorem("thm-steepest-descent")
@given(seeds, st.integers(2, 4), kinds)
def test_where_the_hull_contains_0_no_direction_leads_down(seed, d, kind):
    """Gradients of which a mixture with positive weights is 0."""
    some, weights = entries((d, d), seed, kind), 0.1 + entries((d,), seed + 1, "plain").abs()
    G = torch.cat([some, -(weights @ some)[None]])
    assert shortest(G).norm() <= 1e-6 * G.norm(dim=1).max()
    assert not danskin.descent_direction(G).any()
    assert ((directions(d, seed, 2000) @ G.T).amax(1) >= -EXACT).all()


@theorem("thm-steepest-descent")
def test_in_the_plane_the_steepest_direction_is_the_best_of_all_angles():
    for seed in range(30):
        G = entries((4, 2), seed, "plain") + entries((2,), seed + 100, "plain")
        angles = torch.linspace(0, 2 * math.pi, 100_001, dtype=torch.float64)
        slopes = (torch.stack([angles.cos(), angles.sin()], 1) @ G.T).amax(1)
        reach = G.norm(dim=1).max().item()
        assert min(slopes.min().item(), 0) == pytest.approx(-shortest(G).norm().item(), abs=1e-4 * reach)


# ---- what is left of one gradient ----


@theorem("thm-closer")
@given(seeds, st.integers(1, 6), st.integers(1, 4), kinds)
def test_for_convex_pieces_one_worst_gradient_is_a_subgradient_and_short_steps_come_closer(
    seed, m, d, kind
):
    """φ is the largest of m convex quadratics, some of them tied at θ; η at every distance."""
    roots, lines = entries((m, d, d), seed, kind), entries((m, d), seed + 1, kind)
    A = roots @ roots.transpose(1, 2)  # no negative eigenvalue
    theta = entries((d,), seed + 2, "plain")
    height = entries((m,), seed + 3, "ties").clamp(max=0)
    height[0] = 0

    def g(at, piece):  # `height` at θ
        step = at - theta
        return height[piece] + lines[piece] @ step + (A[piece] @ step) @ step / 2

    pieces = torch.arange(m)
    far = 10 ** torch.linspace(-3, 1, 40).double()[:, None]
    others = theta + far * directions(d, seed, 40)
    phi = torch.stack([g(eta, pieces).amax() for eta in others])
    scale = 1 + float(phi.abs().max())
    for worst in danskin.maximisers(g, theta, pieces).tolist():
        slope = lines[worst]
        assert (phi >= (others - theta) @ slope - EXACT * scale).all()  # φ(θ) is 0
        length = slope.norm()
        for eta, value in zip(others, phi, strict=True):
            if value < -EXACT * scale:
                reach = -2 * value / length
                for share in (0.01, 0.5, 0.99):
                    moved = theta - share * reach * slope / length
                    assert (moved - eta).norm() < (theta - eta).norm()


# ---- how to find it, and to know it ----


@theorem("thm-shortest")
@given(seeds, st.integers(1, 6), st.integers(1, 5), kinds)
def test_the_gap_is_at_least_0_and_bounds_the_squared_distance_to_the_shortest_mixture(seed, m, d, kind):
    G = entries((m, d), seed, kind)
    g, scale = shortest(G), 1 + float((G * G).sum(1).max())
    alpha = torch.rand(50, m, generator=seeded(seed), dtype=torch.float64) ** 4 + 1e-12
    for v in torch.cat([(alpha / alpha.sum(1, keepdim=True)) @ G, G, g[None]]):
        gap = v @ v - (G @ v).min()
        assert gap >= -EXACT * scale
        assert (v - g) @ (v - g) <= gap + EXACT * scale
    assert g @ g - (G @ g).min() <= 1e-7 * scale


@theorem("thm-frank-wolfe")
@given(seeds, st.integers(1, 8), st.integers(1, 6), kinds)
def test_frank_wolfe_is_at_most_four_diameters_squared_over_t_plus_2_too_long(seed, m, d, kind):
    """From every gradient, by the exact line search of the text, for t = 1, …, 60."""
    G = entries((m, d), seed, kind)
    least, D = shortest(G).norm() ** 2, torch.cdist(G, G).max()
    v = G  # a run from each gradient, one a row
    for t in range(1, 61):
        towards = G[(v @ G.T).argmin(1)] - v
        square = (towards * towards).sum(1).clamp(min=1e-300)  # where it is 0, so is the step
        share = (-(v * towards).sum(1) / square).clamp(0, 1)
        v = v + share[:, None] * towards
        assert ((v * v).sum(1) - least <= 4 * D**2 / (t + 2) + EXACT * (1 + D**2)).all()


@theorem("thm-frank-wolfe")
@given(seeds, st.integers(1, 8), st.integers(1, 6), kinds)
def test_the_package_s_frank_wolfe_keeps_the_bound(seed, m, d, kind):
    G = entries((m, d), seed, kind)
    least, D = shortest(G).norm() ** 2, torch.cdist(G, G).max()
    for t in (1, 2, 5, 20, 100):
        alpha = danskin.product_weights(G @ G.T, 1, tolerance=0, steps=t).flatten()
        assert (alpha >= -EXACT).all()
        assert alpha.sum().item() == pytest.approx(1)
        v = alpha @ G
        assert v @ v - least <= 4 * D**2 / (t + 2) + EXACT * (1 + D**2)


# ---- some of the maximisers; a product of them ----


@theorem("thm-finite-subset")
@given(seeds, st.integers(1, 3), st.integers(2, 40), st.floats(0.1, 2))
def test_the_direction_from_some_maximisers_is_nearly_as_steep_as_the_best(seed, waves, m, offset):
    """S* = [0, 1], all of it maximal at θ = 0, with gradients along a curve of which m points are known.

    ∇_θ g(0, δ) = c + Σ_k a_k sin(kδ + b_k), Lipschitz with L = Σ_k k ‖a_k‖.
    """
    a, c = entries((waves, 3), seed, "plain"), offset + entries((3,), seed + 1, "plain") / 4
    b, k = entries((waves,), seed + 2, "plain"), torch.arange(1.0, waves + 1).double()

    def curve(delta):
        return c + torch.sin(delta[:, None] * k + b) @ a

    L = float((k * a.norm(dim=1)).sum())
    known = torch.rand(m, generator=seeded(seed), dtype=torch.float64).sort().values
    ends = torch.tensor([known[0], 1 - known[-1]])
    rho = max(ends.max().item(), known.diff().max().item() / 2)
    every = curve(torch.cat([known, torch.linspace(0, 1, 201).double()]))
    some = every[:m]
    gamma, length = danskin.descent_direction(some), shortest(some).norm()
    if not gamma.any():
        return
    slope = (every @ gamma).amax()
    assert slope <= -length + L * rho + 1e-7
    best = -shortest(every).norm()  # over these points of S*: all of it allows no steeper one
    assert -length <= best + 1e-7
    assert slope >= best - 1e-7
    if L * rho < length - 1e-6:
        assert slope < 0


def product_gradients(seed, m, k, d, kind):
    """Gradients (m, k, d) of k samples at m maximisers each, and the averages of all m^k batches."""
    G = entries((m, k, d), seed, kind) + 0.3
    picks = torch.tensor(list(itertools.product(range(m), repeat=k)))
    return G, torch.stack([G[pick, torch.arange(k)].mean(0) for pick in picks])


def batch_loss(G, values):
    """g(θ, pick) of a batch: the mean over samples j of values[i, j] + ⟨G[i, j], θ⟩ at i = pick[j]."""
    samples = torch.arange(values.shape[1])

    def g(theta, picks):
        return (values[picks, samples] + G[picks, samples] @ theta).mean(1)

    return g


@theorem("thm-product")
@given(seeds, st.integers(1, 3), st.integers(1, 4), st.integers(1, 4), kinds)
def test_a_batch_has_the_product_of_the_maximisers_and_the_mean_of_the_slopes_of_its_samples(
    seed, m, k, d, kind
):
    """All m^k batches, by the package, against sample by sample; whole numbers, so that some tie."""
    G, values = entries((m, k, d), seed, kind), entries((m, k), seed + 1, "ties")
    picks = torch.tensor(list(itertools.product(range(m), repeat=k)))
    g, zero = batch_loss(G, values), torch.zeros(d, dtype=torch.float64)
    tied = values == values.amax(0)
    expected = set(itertools.product(*(column.nonzero().flatten().tolist() for column in tied.T)))
    assert set(map(tuple, danskin.maximisers(g, zero, picks).tolist())) == expected
    for gamma in entries((5, d), seed + 2, "plain"):
        slope = danskin.directional_derivative(g, zero, gamma, picks)
        own = (G @ gamma).masked_fill(~tied, -math.inf).amax(0).mean()
        assert slope.item() == pytest.approx(own.item(), abs=EXACT * (1 + float(G.abs().max())))


@theorem("thm-product")
@few
@given(seeds, st.integers(1, 3), st.integers(1, 4), st.integers(1, 4), kinds)
def test_one_simplex_a_sample_gives_exactly_the_hull_of_all_batches(seed, m, k, d, kind):
    """Both ways: any α gives a point of the hull of all batches, and the shortest ones agree."""
    G, every = product_gradients(seed, m, k, d, kind)
    scale = 1 + float((every * every).sum(1).max())
    alpha = torch.rand(m, k, generator=seeded(seed), dtype=torch.float64) + 1e-3
    alpha = alpha / alpha.sum(0)
    chances = torch.tensor(  # the weight of a batch is the product of those of its samples
        [
            math.prod(alpha[i, j].item() for j, i in enumerate(pick))
            for pick in itertools.product(range(m), repeat=k)
        ],
        dtype=torch.float64,
    )
    assert chances.sum().item() == pytest.approx(1)
    mixed = (alpha[:, :, None] * G).sum(0).mean(0)
    torch.testing.assert_close(chances @ every, mixed, rtol=0, atol=EXACT * scale)

    flat = G.flatten(0, 1)
    weights = danskin.product_weights(flat @ flat.T, k, tolerance=1e-4, steps=20_000)
    torch.testing.assert_close(weights.sum(0), torch.ones(k).double())
    assert (weights >= 0).all()
    found, expected = (weights.flatten() @ flat) / k, shortest(every)
    largest = float((flat * flat).sum(1).max())
    assert found @ found <= expected @ expected + 1e-4 * largest + EXACT * scale
    assert found @ found >= expected @ expected - 1e-7 * scale
