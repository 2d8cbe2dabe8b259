"""Chapter 10, the recipe: every labelled statement, attacked with random instances."""

import itertools
import math

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy import stats
from strategies import entries, seeded, seeds, theorem
from torch import nn
from torch.nn.functional import cross_entropy, one_hot

from adv_lib import comparison, losses

EXACT = 1e-9  # float64, and sums of a few terms of size about 1
kinds = st.sampled_from(["plain", "ties", "sparse"])
shares = st.floats(0.01, 1)
classes = st.integers(2, 8)

# ---- pairs ----


def chances(m, seed):
    """m probabilities, none of them tiny."""
    weights = torch.rand(m, generator=seeded(seed), dtype=torch.float64) + 0.1
    return weights / weights.sum()


def variance(value, chance):
    mean = (chance * value).sum()
    return float((chance * (value - mean) ** 2).sum())


def of_mean(values, chance, n):
    """The variance of the mean of n independent draws, by all mⁿ of them."""
    draws = torch.cartesian_prod(*[torch.arange(len(values))] * n).reshape(-1, n)
    return variance(values[draws].mean(1), chance[draws].prod(1))


def of_unpaired_mean(a, b, chance, n):
    """The variance of the difference of two means over n draws each, by all m²ⁿ of them."""
    draws = torch.cartesian_prod(*[torch.arange(len(a))] * (2 * n))
    return variance((a[draws[:, :n]] - b[draws[:, n:]]).mean(1), chance[draws].prod(1))


@theorem("thm-pairing")
@given(seeds, st.integers(2, 4), st.integers(1, 3), kinds)
def test_the_mean_difference_of_pairs_has_the_variance_of_the_formula(seed, m, n, kind):
    a, b = entries((2, m), seed, kind)
    chance = chances(m, seed)
    deviations = [math.sqrt(variance(v, chance)) for v in (a, b)]
    assume(min(deviations) > 1e-3)
    centred = [v - (chance * v).sum() for v in (a, b)]
    rho = float((chance * centred[0] * centred[1]).sum()) / math.prod(deviations)
    formula = (deviations[0] ** 2 + deviations[1] ** 2 - 2 * rho * math.prod(deviations)) / n
    assert of_mean(a - b, chance, n) == pytest.approx(formula, abs=EXACT)
    apart = of_unpaired_mean(a, b, chance, n)
    assert apart == pytest.approx((deviations[0] ** 2 + deviations[1] ** 2) / n, abs=EXACT)
    if abs(rho) > 1e-6:
        assert (of_mean(a - b, chance, n) < apart) == (rho > 0)


@theorem("thm-pairing")
@given(seeds, st.integers(1, 3))
def test_where_the_settings_have_nothing_in_common_pairs_neither_help_nor_hurt(seed, n):
    u, v = entries((2, 2), seed, "plain")
    first, second = chances(2, seed), chances(2, seed + 1)
    a, b = u.repeat_interleave(2), v.repeat(2)  # of two independent parts of the seed
    chance = (first[:, None] * second).flatten()
    paired, apart = of_mean(a - b, chance, n), of_unpaired_mean(a, b, chance, n)
    assert paired == pytest.approx(apart, abs=EXACT)


# ---- the interval ----


@theorem("thm-paired")
@pytest.mark.parametrize("n", [3, 8])
@pytest.mark.parametrize(("common", "own"), [(0.0, 1.0), (3.0, 0.1), (1.0, 40.0)])
def test_the_interval_covers_the_mean_as_often_as_it_says(n, common, own):
    times, effect = 12_000, 0.7
    draws = torch.randn((3, times, n), generator=seeded(n), dtype=torch.float64)
    first = effect + common * draws[0] + own * draws[1]
    second = common * draws[0] + 2 * own * draws[2]
    for level in (0.95, 0.8):
        found = [
            comparison.paired(a, b, level=level)
            for a, b in zip(first.tolist(), second.tolist(), strict=True)
        ]
        covered = sum(each.low <= effect <= each.high for each in found) / times
        assert covered == pytest.approx(level, abs=0.01)


@theorem("thm-paired")
@pytest.mark.parametrize("shared", [True, False])
def test_all_intervals_hold_together_at_least_as_often_as_they_say(shared):
    times, n, c = 4000, 5, 6
    draws = torch.randn((times, c + 1, n), generator=seeded(0), dtype=torch.float64)
    held = 0
    for baseline, *others in draws.tolist():
        old = baseline if shared else [0.0] * n  # one baseline for all makes them depend on each other
        found = [comparison.paired(new, old, comparisons=c) for new in others]
        held += all(each.low <= 0 <= each.high for each in found)
    assert held / times >= 0.94
    if not shared:  # independent: 0.95 is no more than a little pessimistic
        assert held / times == pytest.approx((1 - 0.05 / c) ** c, abs=0.01)


@theorem("thm-paired")
@given(seeds, st.integers(2, 30), st.floats(0.5, 0.999), st.integers(1, 9))
def test_it_is_student_s_interval(seed, n, level, c):
    first, second = entries((2, n), seed, "plain").tolist()
    found = comparison.paired(first, second, level=level, comparisons=c)
    test = stats.ttest_rel(first, second)
    low, high = test.confidence_interval(1 - (1 - level) / c)
    assert found.low == pytest.approx(low, rel=1e-6, abs=1e-9)
    assert found.high == pytest.approx(high, rel=1e-6, abs=1e-9)
    assert found.p_value == pytest.approx(min(1, c * test.pvalue), rel=1e-6)
    assert (found.low <= 0 <= found.high) == (found.p_value >= 1 - level)


# ---- designs ----


def factorial(k, runs):
    """±1 of every factor, (runs, k): all 2ᵏ settings equally often."""
    settings = torch.tensor(list(itertools.product((-1.0, 1.0), repeat=k)), dtype=torch.float64)
    return settings.repeat(runs // 2**k, 1)


def one_at_a_time(k, runs):
    """±1 of every factor, (runs, k): all off, and each on by itself, equally often."""
    settings = 2 * torch.eye(k + 1, k, dtype=torch.float64) - 1  # the last row has none
    return settings.repeat(runs // (k + 1), 1)


def with_constant(*columns):
    return torch.cat([torch.ones(len(columns[0]), 1, dtype=torch.float64), *columns], 1)


def effects_variance(X, k, noise):
    """The variances of the k main effects, from −1 to 1, by least squares: 4σ² of (XᵀX)⁻¹."""
    return 4 * noise * torch.linalg.inv(X.T @ X).diagonal()[1 : k + 1]


def products(D):
    """The columns of all interactions of two factors and more."""
    k = D.shape[1]
    sets = [s for size in range(2, k + 1) for s in itertools.combinations(range(k), size)]
    return torch.stack([D[:, s].prod(1) for s in sets], 1)


@theorem("thm-factorial")
@pytest.mark.parametrize("k", [1, 2, 3, 4])
@given(st.integers(1, 3), st.floats(0.01, 100))
def test_a_full_design_estimates_every_effect_from_all_runs_and_one_at_a_time_from_few(k, r, noise):
    N = r * 2**k * (k + 1)
    full, single = factorial(k, N), one_at_a_time(k, N)
    assert len(full) == len(single) == N
    all_runs = torch.full((k,), 4 * noise / N, dtype=torch.float64)
    few = torch.full((k,), 2 * (k + 1) * noise / N, dtype=torch.float64)
    torch.testing.assert_close(effects_variance(with_constant(full), k, noise), all_runs)
    torch.testing.assert_close(effects_variance(with_constant(single), k, noise), few)
    if k > 1:  # the interactions cost nothing
        X = with_constant(full, products(full))
        torch.testing.assert_close(effects_variance(X, k, noise), all_runs)


@theorem("thm-factorial")
@given(seeds, st.integers(1, 4), st.integers(1, 3))
def test_the_estimates_are_differences_of_means_and_find_the_effects_of_a_sum(seed, k, r):
    N = r * 2**k * (k + 1)
    effects, level = entries((k,), seed, "plain"), entries((1,), seed + 1, "plain")
    noise = entries((N,), seed + 2, "plain")
    for D in (factorial(k, N), one_at_a_time(k, N)):
        X, truth = with_constant(D), level + D @ effects / 2
        exact = 2 * torch.linalg.lstsq(X, truth[:, None]).solution[1:, 0]
        torch.testing.assert_close(exact, effects)
        noisy = 2 * torch.linalg.lstsq(X, (truth + noise)[:, None]).solution[1:, 0]
        for j in range(k):
            on, y = D[:, j] > 0, truth + noise
            off = ~on if len(D.unique(dim=0)) == 2**k else (D < 0).all(1)
            torch.testing.assert_close(noisy[j], y[on].mean() - y[off].mean())


@theorem("thm-factorial")
@pytest.mark.parametrize("k", [2, 3, 4])
def test_one_at_a_time_cannot_see_an_interaction_and_the_full_design_can(k):
    N = 2**k * (k + 1)
    full, single = factorial(k, N), one_at_a_time(k, N)
    for i, j in itertools.combinations(range(k), 2):
        both = [with_constant(D, (D[:, i] * D[:, j])[:, None]) for D in (full, single)]
        assert [int(torch.linalg.matrix_rank(X)) for X in both] == [k + 2, k + 1]
    X = with_constant(full, products(full))
    assert int(torch.linalg.matrix_rank(X)) == X.shape[1] == 2**k


# ---- weights before BatchNorm ----


def normalised(h):
    """BatchNorm in train mode, without its ε and its weights."""
    return (h - h.mean(0)) / h.var(0, correction=0).sqrt()


def scale_free(seed, n, d, units, bias):
    """W, and the loss of a network as a function of W, its first layer, with BatchNorm after it."""
    x, W = entries((n, d), seed, "plain"), entries((units, d), seed + 1, "plain")
    gamma, beta, b = entries((3, units), seed + 2, "plain")
    V, y = entries((units, 3), seed + 3, "plain"), torch.arange(n) % 3

    def f(W):
        h = x @ W.T + (b if bias else 0)
        return cross_entropy((gamma * normalised(h) + beta).tanh() @ V, y)

    assume((x @ W.T).var(0, correction=0).min() > 1e-2)
    return f, W


def slope(f, W):
    W = W.clone().requires_grad_()
    return torch.autograd.grad(f(W), W)[0]


networks = (seeds, st.integers(3, 8), st.integers(1, 6), st.integers(1, 5), st.booleans())


@theorem("thm-scale-free")
@given(*networks, st.floats(1e-3, 1e3))
def test_a_factor_of_the_weights_changes_no_output_and_divides_the_gradient(seed, n, d, units, bias, a):
    f, W = scale_free(seed, n, d, units, bias)
    torch.testing.assert_close(f(a * W), f(W), rtol=1e-8, atol=EXACT)
    expected = slope(f, W)
    torch.testing.assert_close(a * slope(f, a * W), expected, rtol=1e-6, atol=1e-8)


@theorem("thm-scale-free")
@given(*networks, st.floats(1e-2, 10))
def test_the_gradient_is_at_right_angles_to_the_weights_so_that_every_step_makes_them_longer(
    seed, n, d, units, bias, alpha
):
    f, W = scale_free(seed, n, d, units, bias)
    G = slope(f, W)
    size = float(1 + W.norm() * G.norm())
    assert abs(float((W * G).sum())) < EXACT * size
    after = float((W - alpha * G).norm() ** 2)
    assert after == pytest.approx(float(W.norm() ** 2 + alpha**2 * G.norm() ** 2), rel=1e-8)
    assert after >= float(W.norm() ** 2) * (1 - EXACT)


@theorem("thm-scale-free")
@given(seeds, st.floats(0.1, 10))
def test_pytorch_s_own_layers_do_so_up_to_their_epsilon(seed, a):
    layer = nn.Linear(4, 5).double()
    layer.weight.data = entries((5, 4), seed, "plain")
    model = nn.Sequential(layer, nn.BatchNorm1d(5, eps=1e-14).double(), nn.ReLU()).train()
    x = entries((9, 4), seed + 1, "plain")
    assume((x @ layer.weight.T).var(0).min() > 1e-2)
    before = model(x)
    torch.testing.assert_close(before, normalised(x @ layer.weight.T).relu(), rtol=1e-6, atol=1e-8)
    layer.weight.data *= a
    torch.testing.assert_close(model(x), before, rtol=1e-6, atol=1e-8)


# ---- smoothed labels ----


def target(y, K, s):
    return (1 - s) * one_hot(y, K).double() + s / K


def at_minimum(y, K, s, shift):
    """Logits with the gap of the theorem at y, and any level."""
    return shift[:, None] + one_hot(y, K).double() * math.log(1 + K * (1 - s) / s)


def some_labels(K, seed, n=6):
    return torch.randint(0, K, (n,), generator=seeded(seed))


@theorem("thm-smoothing")
@given(seeds, classes, shares)
def test_with_that_gap_the_loss_is_the_entropy_of_the_target_and_flat(seed, K, s):
    y = some_labels(K, seed)
    z = at_minimum(y, K, s, entries((6,), seed, "plain")).requires_grad_()
    q = target(y, K, s)
    loss = losses.smoothed(z, y, s)
    torch.testing.assert_close(loss, -(q * q.log()).sum(1), rtol=1e-9, atol=EXACT)
    (gradient,) = torch.autograd.grad(loss.sum(), z)
    assert gradient.abs().max() < EXACT
    torch.testing.assert_close(z.softmax(1), q, rtol=1e-9, atol=EXACT)


@theorem("thm-smoothing")
@given(seeds, classes, shares, kinds, st.sampled_from([0.03, 1.0, 30.0]))
def test_with_any_other_gaps_the_loss_is_larger(seed, K, s, kind, size):
    y = some_labels(K, seed)
    least = at_minimum(y, K, s, torch.zeros(6, dtype=torch.float64))
    moved = size * entries((6, K), seed, kind)
    other = moved.amax(1) - moved.amin(1) > 1e-2
    q = target(y, K, s)
    entropy = -(q * q.log()).sum(1)
    above = losses.smoothed(least + moved, y, s) - entropy
    assert (above[other] > 1e-10).all()
    level = moved[:, :1].expand_as(least)  # all logits alike: the same gaps
    torch.testing.assert_close(losses.smoothed(least + level, y, s), entropy, rtol=1e-9, atol=EXACT)


@theorem("thm-smoothing")
@given(seeds, classes)
def test_without_smoothing_the_loss_falls_towards_0_and_never_gets_there(seed, K):
    y = some_labels(K, seed)
    z = entries((6, K), seed, "plain")
    assert (losses.smoothed(z, y, 0.0) > 0).all()
    towards = [losses.smoothed(z + gap * one_hot(y, K), y, 0.0) for gap in range(0, 25)]
    for wide, wider in itertools.pairwise(towards):
        assert ((wider > 0) & (wider < wide)).all()
    assert losses.smoothed(z + 100.0 * one_hot(y, K), y, 0.0).max() < 1e-12


# ---- the best of several ----


def expected_maximum(k, sigma=1.0):
    """E max of k independent N(0, σ²), by the integral of x times the density of the maximum."""
    x = torch.linspace(-12 * sigma, 12 * sigma, 20_001, dtype=torch.float64)
    log_density = -((x / sigma) ** 2) / 2 - math.log(sigma * math.sqrt(2 * math.pi))
    density = k * torch.exp(log_density + (k - 1) * torch.special.log_ndtr(x / sigma))
    return float(torch.trapezoid(x * density, x))


@theorem("thm-best")
def test_the_best_of_more_is_better_and_below_the_bound():
    found = [expected_maximum(k) for k in range(1, 1001)]
    assert all(fewer < more for fewer, more in itertools.pairwise(found))
    assert all(m <= math.sqrt(2 * math.log(k)) + 1e-12 for k, m in enumerate(found, 1))
    known = {1: 0, 2: 1 / math.sqrt(math.pi), 3: 1.5 / math.sqrt(math.pi), 4: 1.029375, 5: 1.162964}
    for k, m in known.items():
        assert found[k - 1] == pytest.approx(m, abs=1e-6)


@theorem("thm-best")
@given(st.floats(1e-3, 1e3), st.integers(1, 200))
def test_the_spread_of_the_runs_is_a_factor(sigma, k):
    expected = sigma * expected_maximum(k)
    assert expected_maximum(k, sigma) == pytest.approx(expected, rel=1e-9, abs=1e-9 * sigma)


@theorem("thm-best")
@pytest.mark.parametrize("k", [2, 12, 50])
def test_drawn_maxima_have_that_mean(k):
    draws = 2.5 * torch.randn((100_000, k), generator=seeded(k), dtype=torch.float64)
    mean = float(draws.amax(1).mean())
    assert mean == pytest.approx(2.5 * expected_maximum(k), abs=0.03)  # some four deviations
