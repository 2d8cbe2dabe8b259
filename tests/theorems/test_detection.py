"""Chapter 13, detection: every labelled statement, attacked with random scores, networks and grids."""

import itertools
import math
from fractions import Fraction
from functools import partial

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.integrate import quad
from scipy.optimize import minimize
from scipy.special import betainc, gammainc
from strategies import entries, orders, problem, seeded, seeds, theorem

from adv_lib import attacks, bounds, detection
from adv_lib.detection import LocalDimension, Rejecting, climb

kinds = st.sampled_from(["plain", "ties", "sparse", "uneven"])
INF = math.inf
FAR = 2.2  # of √N · D_N in a test of Kolmogorov and Smirnov: one in 8000 that fit is further off


def distance(cdf):
    """√N times the largest difference between 1/N, …, 1 and the values of a distribution function."""
    cdf, n = cdf.double().sort().values, len(cdf)
    steps = torch.arange(n + 1).double() / n
    return math.sqrt(n) * float(torch.maximum((cdf - steps[:-1]).max(), (steps[1:] - cdf).max()))


# ---- the area below the curve ----


@theorem("thm-auc-ranks")
@settings(max_examples=30)
@given(seeds, st.integers(1, 12), st.integers(1, 12), kinds, st.sampled_from([0.0, 0.5, 3.0]))
def test_the_auc_is_what_the_ranks_of_the_clean_scores_say(seed, n, m, kind, shift):
    s = torch.cat([entries((n,), seed, kind) + shift, entries((m,), seed + 1, kind)])
    assert detection.auc(s[:n], s[n:]) == pytest.approx(float(by_ranks(s.tolist(), n)), abs=1e-12)
    assert by_ranks(s.tolist(), n) == by_pairs(s.tolist(), n)


@theorem("thm-auc-ranks")
@pytest.mark.parametrize(("n", "m"), [(1, 1), (2, 2), (3, 2), (2, 3)])
def test_so_it_is_in_every_order_with_every_tie(n, m):
    for values in itertools.product(range(n + m), repeat=n + m):
        assert by_ranks(values, n) == by_pairs(values, n)


def by_ranks(values, n):
    """(R − n(n + 1)/2)/(nm), exactly; tied values share the mean of their ranks."""
    m = len(values) - n
    ranks = [2 * sum(v < own for v in values) + sum(v == own for v in values) + 1 for own in values[:n]]
    return (Fraction(sum(ranks), 2) - Fraction(n * (n + 1), 2)) / (n * m)


def by_pairs(values, n):
    """P(s > s') + ½ P(s = s'), exactly."""
    won = [2 * (s > t) + (s == t) for s in values[:n] for t in values[n:]]
    return Fraction(sum(won), 2 * len(won))


def hidden(A, f):
    """Between what shares a detector with this AUC can find at this rate of false alarms."""
    return max(0.0, (A - 1 + f) / f), min(1.0, A / (1 - f))


@theorem("thm-auc-hides")
@given(seeds, st.integers(1, 8), st.sampled_from(["even", "clumped"]))
def test_no_rising_curve_leaves_what_its_area_allows(seed, steps, kind):
    """Curves that jump and stay; at a jump all that lies between its ends counts."""
    g = seeded(seed)
    at = torch.rand(steps, generator=g, dtype=torch.float64).sort().values
    level = torch.rand(steps + 1, generator=g, dtype=torch.float64).sort().values
    if kind == "clumped":
        at, level = at**6, level.round(decimals=1)
    ends = torch.cat([torch.zeros(1).double(), at, torch.ones(1).double()])
    A = float((level * ends.diff()).sum())
    for f in torch.cat([torch.linspace(0.01, 0.99, 33).double(), at]).tolist():
        if not 0 < f < 1:
            continue
        low, high = hidden(A, f)
        below, above = int((at < f).sum()), int((at <= f).sum())
        for t in (level[below], level[above], (level[below] + level[above]) / 2):
            assert low - 1e-12 <= float(t) <= high + 1e-12


@theorem("thm-auc-hides")
@settings(max_examples=50)
@given(seeds, st.integers(1, 30), st.integers(1, 30), kinds, st.sampled_from([-1.0, 0.0, 0.5, 2.0]))
def test_no_detector_leaves_what_its_auc_allows(seed, n, m, kind, shift):
    ordinary, attacked = entries((n,), seed, kind) + shift, entries((m,), seed + 1, kind)
    A, (alarms, found, _) = detection.auc(ordinary, attacked), detection.roc(ordinary, attacked)
    mixed = 0.3 * alarms[:-1] + 0.7 * alarms[1:], 0.3 * found[:-1] + 0.7 * found[1:]  # by a coin
    for f, t in zip(torch.cat([alarms, mixed[0]]), torch.cat([found, mixed[1]]), strict=True):
        if 0 < f < 1:
            low, high = hidden(A, float(f))
            assert low - 1e-12 <= float(t) <= high + 1e-12


@theorem("thm-auc-hides")
@settings(max_examples=40)
@given(st.integers(2, 30), st.integers(1, 30), st.data())
def test_both_ends_are_attained(n, m, data):
    alarms, hits = data.draw(st.integers(1, n - 1)), data.draw(st.integers(0, m))
    f, t = alarms / n, hits / m
    clean = torch.arange(n).double()  # `alarms` of them lie below alarms − ½
    low = torch.tensor([-1.0] * hits + [alarms - 0.5] * (m - hits)).double()
    assert detection.auc(clean, low) == pytest.approx(1 - f + f * t, abs=1e-12)
    assert hidden(1 - f + f * t, f)[0] == pytest.approx(t, abs=1e-9)
    high = torch.tensor([alarms - 0.5] * hits + [n + 1.0] * (m - hits)).double()
    assert detection.auc(clean, high) == pytest.approx(t * (1 - f), abs=1e-12)
    assert hidden(t * (1 - f), f)[1] == pytest.approx(t, abs=1e-9)
    for attacked, level in ((low, alarms - 0.75), (high, alarms - 0.5)):
        assert float((clean <= level).double().mean()) == pytest.approx(f)
        assert float((attacked <= level).double().mean()) == pytest.approx(t)


@theorem("thm-base-rate")
@given(seeds, st.integers(0, 40), st.integers(0, 40), st.floats(0, 1), st.floats(0, 1))
def test_who_raises_an_alarm_is_attacked_as_often_as_the_base_rate_says(seed, clean, bad, few, many):
    g = seeded(seed)
    false = int((torch.rand(clean, generator=g) < few).sum())
    hits = int((torch.rand(bad, generator=g) < many).sum())
    assume(clean and bad and false + hits)
    pi, f, t = Fraction(bad, clean + bad), Fraction(false, clean), Fraction(hits, bad)
    assert Fraction(hits, hits + false) == pi * t / (pi * t + (1 - pi) * f)


# ---- the threshold ----


LAWS = {  # quantile functions of continuous distributions, from uniform numbers
    "uniform": lambda u: u,
    "normal": torch.special.ndtri,
    "Cauchy": lambda u: torch.tan(math.pi * (u - 0.5)),
    "exponential": lambda u: -torch.log1p(-u),
    "two far parts": lambda u: torch.where(u < 0.3, u - 1e6, 1e3 * u),
}


@theorem("thm-threshold")
@pytest.mark.parametrize(("n", "k"), [(1, 1), (9, 1), (9, 9), (19, 2), (99, 5), (200, 37)])
@pytest.mark.parametrize("law", LAWS)
def test_the_rate_below_the_kth_smallest_is_beta_whatever_the_distribution(law, n, k):
    draws, fresh = 4000, 50
    u = torch.rand(draws, n, generator=seeded(7 * n + k), dtype=torch.float64)
    scores = LAWS[law](u)
    at = scores.kthvalue(k, 1)
    value = [detection.threshold(row, k / (n + 1)).value for row in scores[:50]]
    assert value == at.values[:50].tolist()
    rate = u.gather(1, at.indices[:, None])[:, 0]  # F of the score: this much lies below it
    cdf = torch.from_numpy(betainc(k, n + 1 - k, rate.numpy()))
    assert distance(cdf) < FAR
    spread = math.sqrt(k * (n + 1 - k) / (n + 2)) / (n + 1)
    assert float(rate.mean()) == pytest.approx(k / (n + 1), abs=4 * spread / math.sqrt(draws))
    others = LAWS[law](torch.rand(draws, fresh, generator=seeded(n + k), dtype=torch.float64))
    below = float((others < at.values[:, None]).double().mean())
    spread = math.hypot(spread, 0.5 / math.sqrt(fresh))
    assert below == pytest.approx(k / (n + 1), abs=4 * spread / math.sqrt(draws))


@theorem("thm-threshold")
@pytest.mark.parametrize("n", [1, 2, 3, 5])
def test_in_all_orders_of_the_scores_and_the_next_one_it_is_below_in_k_of_n_plus_1(n):
    for k in range(1, n + 1):
        orders_ = list(itertools.permutations(range(n + 1)))
        values = [detection.threshold(torch.tensor(o[:-1]).double(), k / (n + 1)).value for o in orders_]
        below = sum(o[-1] < value for o, value in zip(orders_, values, strict=True))
        assert Fraction(below, len(orders_)) == Fraction(k, n + 1)


# ---- non-ME ----


@theorem("thm-nonme")
@given(seeds, st.integers(3, 8), kinds, st.sampled_from([1e-3, 0.1, 1.0, 30.0]))
def test_non_me_is_between_0_and_the_logarithm_of_the_other_classes(seed, K, kind, scale):
    z = scale * entries((30, K), seed, kind)
    found = detection.non_maximal_entropy(z)
    assert (found >= 0).all()
    assert (found <= math.log(K - 1) + 1e-12).all()
    rest = z.sort(1, descending=True).values[:, 1:]
    uneven = (rest.softmax(1) - 1 / (K - 1)).abs().sum(1)
    assert (math.log(K - 1) - found >= uneven**2 / 2 - 1e-12).all()  # Pinsker: below, if not all alike
    alike = rest[:, :1].expand(-1, K - 1) - entries((30, 1), seed + 1, "plain").abs()
    even = torch.cat([rest[:, :1], alike], 1)[:, torch.randperm(K, generator=seeded(seed))]
    full = torch.full((30,), math.log(K - 1), dtype=torch.float64)
    torch.testing.assert_close(detection.non_maximal_entropy(even), full, rtol=0, atol=1e-12)


def equal_others(W, b, c):
    """The set of h where all logits but the c-th are equal: a point, and directions (dim, d)."""
    rest = [k for k in range(len(W)) if k != c]
    D, e = W[rest[1:]] - W[rest[0]], b[rest[0]] - b[rest[1:]]
    point = torch.linalg.pinv(D) @ e
    rank = int(torch.linalg.matrix_rank(D))
    directions = torch.linalg.svd(D).Vh[rank:]
    return point, directions, torch.allclose(D @ point, e, atol=1e-8)


@theorem("thm-nonme")
@given(seeds, st.integers(3, 7), st.integers(0, 4))
def test_features_of_maximal_non_me_lie_in_an_affine_set_of_d_less_k_less_2_dimensions(seed, K, spare):
    d, c = K - 2 + spare, seed % K
    W, b = entries((K, d), seed, "plain"), entries((K,), seed + 1, "plain")
    point, directions, there = equal_others(W, b, c)
    assert there  # d ≥ K − 2 planes in general position meet
    assert len(directions) == d - (K - 2)
    h = point + 10 * entries((60, len(directions)), seed + 2, "plain") @ directions
    z = h @ W.T + b
    leads = z[:, c] > torch.cat([z[:, :c], z[:, c + 1 :]], 1).amax(1) + 1e-6
    found = detection.non_maximal_entropy(z)
    most = torch.full_like(found, math.log(K - 1))
    torch.testing.assert_close(found[leads], most[leads], rtol=0, atol=1e-9)
    # and away from it, across the set, it is less, where c is still predicted
    across = torch.linalg.svd(directions).Vh[len(directions) :] if len(directions) else torch.eye(d)
    away = h + entries((60, len(across)), seed + 3, "plain") @ across.double()
    z = away @ W.T + b
    led = z.argmax(1) == c
    rest = z[led].sort(1, descending=True).values[:, 1:]
    apart = (rest[:, 0] - rest[:, -1]) > 1e-2
    assert (detection.non_maximal_entropy(z[led])[apart] < math.log(K - 1) - 1e-9).all()


@theorem("thm-nonme")
@given(seeds, st.integers(3, 6), st.integers(1, 6))
def test_so_it_is_for_weights_that_depend_on_each_other_unless_the_set_is_empty(seed, K, d):
    """Whole numbers, with rows that repeat: planes that coincide, or never meet."""
    W, b, c = entries((K, d), seed, "ties"), entries((K,), seed + 1, "ties"), seed % K
    W[-1], W[0] = W[1], (W[0] if seed % 2 else 2 * W[1])
    point, directions, there = equal_others(W, b, c)
    if there:
        assert len(directions) >= d - (K - 2)
        z = (point + entries((20, len(directions)), seed, "plain") @ directions) @ W.T + b
        rest = torch.cat([z[:, :c], z[:, c + 1 :]], 1)
        torch.testing.assert_close(rest, rest[:, :1].expand_as(rest), rtol=0, atol=1e-7)
    else:  # then nothing comes near the maximum with c predicted
        z = (10 * entries((200, d), seed + 2, "plain")) @ W.T + b
        z = z[z.argmax(1) == c]
        rest = torch.cat([z[:, :c], z[:, c + 1 :]], 1)
        assert (rest.amax(1) - rest.amin(1) > 1e-9).all()


@theorem("thm-nonme")
def test_some_points_of_the_set_are_predicted_as_c_if_it_is_more_than_a_point():
    """So that the tests above look at something."""
    for seed in range(20):
        K, d = 3 + seed % 4, 6
        W, b, c = entries((K, d), seed, "plain"), entries((K,), seed + 1, "plain"), seed % K
        point, directions, _ = equal_others(W, b, c)
        h = point + 10 * entries((60, len(directions)), seed, "plain") @ directions
        z = h @ W.T + b
        assert (z.argmax(1) == c).any()


# ---- reverse cross-entropy ----


@theorem("thm-rce-minimum")
@given(seeds, st.integers(2, 9), kinds, st.sampled_from([1e-2, 1.0, 5.0, 100.0]))
def test_no_finite_logits_cost_as_little_as_the_logarithm_of_the_other_classes(seed, K, kind, scale):
    z, y = scale * entries((50, K), seed, kind), torch.arange(50) % K
    found, floor = detection.reverse_cross_entropy(z, y), math.log(K - 1)
    assert (found >= floor - 1e-12).all()
    rest = z.scatter(1, y[:, None], -INF).logsumexp(1)
    doubt = torch.nn.functional.softplus(z.gather(1, y[:, None])[:, 0] - rest)  # −log(1 − p_y)
    assert (found >= floor + doubt - 1e-12 * (1 + z.abs().amax(1))).all()
    assert (found > floor)[doubt > 1e-10].all()


@theorem("thm-rce-minimum")
@given(st.integers(2, 12), st.floats(-5, 5))
def test_equal_others_and_a_label_that_falls_away_come_as_close_as_one_likes(K, level):
    y, floor = torch.zeros(1, dtype=torch.int64), math.log(K - 1)
    gaps = []
    for far in (1.0, 5.0, 10.0, 20.0, 30.0):
        z = torch.full((1, K), level, dtype=torch.float64)
        z[0, 0] -= far
        gaps.append(detection.reverse_cross_entropy(z, y).item() - floor)
        assert gaps[-1] == pytest.approx(math.log1p(math.exp(-far) / (K - 1)), abs=1e-12)
    assert all(a > b for a, b in itertools.pairwise(gaps[:4]))
    assert gaps[-1] < 1e-12


@theorem("thm-rce-minimum")
@pytest.mark.parametrize("K", [2, 3, 10])
def test_descent_from_anywhere_comes_there(K):
    y, start = torch.arange(10) % K, entries((10, K), K, "plain")

    def cost(v):
        z = torch.tensor(v).view(10, K).requires_grad_()
        value = detection.reverse_cross_entropy(z, y)
        return value.sum().item(), torch.autograd.grad(value.sum(), z)[0].flatten().numpy()

    found = minimize(cost, start.flatten().numpy(), jac=True, method="L-BFGS-B").x
    gaps = detection.reverse_cross_entropy(torch.tensor(found).view(10, K), y) - math.log(K - 1)
    assert (gaps < 1e-3).all()
    assert (gaps > -1e-12).all()


def measured(p):
    """α of probabilities whose class 0 is the label, 1 − q_0 and how far apart the others are in q."""
    k = p.shape[1] - 1
    alpha = torch.maximum(p[:, 0], (p[:, 1:] - 1 / k).abs().amax(1))
    q = (-p.log()).softmax(1)
    return alpha, 1 - q[:, 0], q[:, 1:].amax(1) - q[:, 1:].amin(1)


def check_bounds(p):
    """Neither the two bounds nor the source's numerators are passed; the shares that are attained."""
    K = p.shape[1]
    k, shares = K - 1, []
    for alpha, rest, apart in zip(*(part.tolist() for part in measured(p)), strict=True):
        if alpha * k >= 1:
            continue
        first, second = detection.reversal_bounds(alpha, K)
        assert rest <= first * (1 + 1e-9) + 1e-12
        assert apart <= second * (1 + 1e-9) + 1e-12
        source = alpha * k**2, 2 * alpha**2 * k**2
        assert first <= source[0] + 1e-15
        assert rest <= source[0] + 1e-12
        if K >= 3:
            assert source[1] >= 1 or second <= source[1] + 1e-15
            assert apart <= source[1] + 1e-12
        shares.append((rest / first, apart / second if second else 0.0))
    return shares


@theorem("thm-rce-bounds")
@given(seeds, st.integers(2, 9), st.floats(-6, 0), kinds)
def test_how_far_the_reversal_is_from_one_hot_is_bounded(seed, K, power, kind):
    k, g = K - 1, seeded(seed)
    alpha = 10**power / k
    p = torch.cat(
        [
            alpha * torch.rand(40, 1, generator=g, dtype=torch.float64) + 1e-15,
            1 / k + alpha * entries((40, k), seed, kind).clamp(-1, 1),
        ],
        1,
    ).clamp(min=1e-15)
    p[:20, 1:] *= (1 - p[:20, :1]) / p[:20, 1:].sum(1, keepdim=True)
    p /= p.sum(1, keepdim=True)
    p[-10:, 1:] = (1 - p[-10:, :1]) / k  # even others
    check_bounds(p)


def extreme(alpha, k):
    """p_y = α, one other at 1/k − α, one at 1/k + α, the rest even: as far apart as it goes."""
    p = torch.full((k + 1,), 1 / k, dtype=torch.float64)
    p[0], p[1] = alpha, 1 / k - alpha
    if k >= 3:
        p[2], p[3:] = 1 / k + alpha, 1 / k - alpha / (k - 2)
    return p[None]  # for k = 2 the other has all that is left, 1/2


@theorem("thm-rce-bounds")
@pytest.mark.parametrize("K", [2, 3, 4, 6, 10])
def test_the_bounds_are_nearly_attained_where_alpha_is_small(K):
    """The first by even others, the second for K ≥ 4 by two that are α off, one to each side."""
    k = K - 1
    shares = []
    for alpha in (0.1 / k, 1e-3 / k, 1e-5 / k):
        even = torch.full((1, K), (1 - alpha) / k, dtype=torch.float64)
        even[0, 0] = alpha
        own = check_bounds(even)
        shares.append(max(one for one, _ in own + (check_bounds(extreme(alpha, k)) if k > 1 else [])))
        if k == 1:
            assert own[0][0] == pytest.approx(1, rel=1e-9)  # attained
    assert shares[0] < shares[1] < shares[2] or k == 1
    assert shares[2] == pytest.approx(1, rel=1e-3)
    if k > 1:
        apart = [check_bounds(extreme(alpha, k))[0][1] for alpha in (0.1 / k, 1e-3 / k, 1e-5 / k)]
        assert apart[2] == pytest.approx(1 if k > 2 else 0.5, rel=1e-3)
        assert apart[0] > 0.2


@theorem("thm-rce-bounds")
@given(seeds, st.integers(2, 6), st.floats(0.02, 0.98))
def test_nor_are_they_passed_at_the_corners_of_what_alpha_allows(seed, K, share):
    """All others at 1/k ± α in every pattern but one, which has what is left to sum to 1."""
    k = K - 1
    alpha, rows = share / k, []
    for own in (alpha, alpha / 2, 1e-12):
        for signs in itertools.product((-1, 1), repeat=k - 1):
            p = [own, *(1 / k + sign * alpha for sign in signs)]
            last = 1 - sum(p)
            if abs(last - 1 / k) <= alpha + 1e-15 and last > 0:
                rows.append([*p, last])
    assume(rows)
    check_bounds(torch.tensor(rows, dtype=torch.float64).clamp(min=1e-15))


# ---- local dimension ----


@theorem("thm-lid")
@pytest.mark.parametrize("D", [1, 2, 7.5])
@pytest.mark.parametrize("k", [3, 5, 10, 20, 100])
def test_the_mean_of_the_estimate_is_d_k_over_k_less_2(k, D):
    draws = 20000
    u = torch.rand(draws, k - 1, generator=seeded(k), dtype=torch.float64)
    r = torch.cat([u ** (1 / D), torch.ones(draws, 1).double()], 1)
    logs = -r.log().sum(1)
    for i in range(30):  # on a line, r_i away from 0
        found = LocalDimension(r[i][:, None], k).dimension(torch.zeros(1, 1).double())
        assert found.item() == pytest.approx(k / logs[i].item(), rel=1e-9)
    assert distance(torch.from_numpy(gammainc(k - 1, (D * logs).numpy()))) < FAR
    exact = quad(
        lambda v: k * D / v * v ** (k - 2) * math.exp(-v) / math.gamma(k - 1), 0, 300, limit=500
    )
    assert exact[0] == pytest.approx(D * k / (k - 2), rel=1e-6)
    if k > 4:  # below, the variance of the mean has no end
        own = k / logs
        assert float(own.mean()) == pytest.approx(
            D * k / (k - 2), abs=4 * float(own.std()) / math.sqrt(draws)
        )


@theorem("thm-lid")
@pytest.mark.parametrize(("D", "k", "m"), [(1, 6, 6), (2, 8, 40), (3, 20, 60)])
def test_so_it_is_among_points_that_fill_a_ball_evenly(D, k, m):
    draws, g = 1500, seeded(D)
    h, found = torch.zeros(1, D + 2).double(), []
    for _ in range(draws):
        direction = torch.randn(m, D, generator=g, dtype=torch.float64)
        radius = torch.rand(m, 1, generator=g, dtype=torch.float64) ** (1 / D)
        points = radius * direction / direction.norm(dim=1, keepdim=True)
        points = torch.nn.functional.pad(points, (0, 2))  # a piece of a larger space
        found.append(LocalDimension(points, k).dimension(h).item())
    found = torch.tensor(found).double()
    slack = 4 * float(found.std()) / math.sqrt(draws)
    assert float(found.mean()) == pytest.approx(D * k / (k - 2), abs=slack)


# ---- detection and classification ----


def within(points, centre, radius):
    """Which points of a grid (n, d) are that near to one of them, in ℓ∞."""
    return (points - centre).abs().amax(1) <= radius


@theorem("thm-detector-is-classifier")
@given(seeds, st.sampled_from([1, 2]), st.sampled_from([1.0, 2.0, 3.0, 4.0]), st.floats(0.1, 0.9))
def test_a_detector_that_is_right_or_rejects_makes_a_classifier_that_is_right_at_half_the_radius(
    seed, dimensions, eps, accepting
):
    side, g = (25 if dimensions == 1 else 9), seeded(seed)
    points = torch.cartesian_prod(*[torch.arange(side).double()] * dimensions).view(-1, dimensions)
    label = torch.randint(0, 3, (len(points),), generator=g)
    accepted = torch.rand(len(points), generator=g) < accepting
    centre, y = int(torch.randint(len(points), (), generator=g)), seed % 3
    near = within(points, points[centre], eps)
    label[centre], accepted[centre] = y, True
    accepted &= ~near | (label == y)  # what it answers within ε of x is right
    for there in within(points, points[centre], eps / 2).nonzero()[:, 0].tolist():
        answers = label[accepted & within(points, points[there], eps / 2)]
        assert len(answers)  # there is an answer, as x is near enough
        assert (answers == y).all()  # and any of them is the right one


@theorem("thm-detector-is-classifier")
@pytest.mark.parametrize("eps", [2, 4, 6])
def test_at_more_than_half_the_radius_it_may_be_wrong(eps):
    points = torch.arange(20).double()[:, None]
    label, accepted = torch.zeros(20, dtype=torch.int64), torch.zeros(20, dtype=torch.bool)
    accepted[0], accepted[eps + 1], label[eps + 1] = True, True, 1  # right or silent within ε of 0
    there = eps // 2 + 1
    answers = label[accepted & within(points, points[there], eps / 2)]
    assert answers.tolist() == [1]


def rejects(seed, t, p=INF, scale=2.0, eps=0.05, n=8):
    """A small network that rejects below a confidence of t, images, its own answers, and a ball."""
    some = problem(seed, (2, 3), n, p=p, eps=eps, hidden=(8, 6), scale=scale)
    return Rejecting(some.model, threshold=t), some.x, some.model(some.x).argmax(1), some.ball


@theorem("thm-certified-rejection")
@settings(max_examples=20)
@given(seeds, st.floats(-1, 4), orders, st.sampled_from([1.0, 2.0, 4.0]), st.sampled_from([0.02, 0.1]))
def test_what_is_proved_to_be_right_or_rejected_is_not_fooled(seed, t, p, scale, eps):
    eps *= {1: 4, 2: 2, INF: 1}[p]
    model, x, y, ball = rejects(seed, t, p, scale, eps)
    margins = bounds.margins(model.network, x, y, ball).detach()
    proved = detection.never_fooled(margins, t)
    assert proved[(margins > -t).all(1)].all()
    if t > 0:
        assert proved[(margins > 0).all(1)].all()
    few = partial(attacks.pgd, steps=4)
    tried = [climb(loss, few) for loss in (detection.constrained, detection.weakest)]
    tried += [detection.targeted(few), attacks.fgsm]
    deltas = [0 * x, *(attack(model, x, y, ball) for attack in tried)]
    deltas += [ball.sample(x, seeded(i)) for i in range(10)]
    deltas += [ball.argmax(entries(x.shape, i, "plain"), x) for i in range(10)]
    for delta in deltas:
        assert not model.fooled(x + delta, y)[proved].any()


@theorem("thm-certified-rejection")
@settings(max_examples=20)
@given(seeds, st.floats(0, 3))
def test_whoever_is_accepted_leads_every_other_class_by_the_threshold(seed, t):
    """Why it holds, at every point: an accepted wrong answer needs a margin of −t or less."""
    model, x, y, _ = rejects(seed, t, n=40, scale=4.0)
    y = (y + torch.arange(40)) % 3
    with torch.no_grad():
        z = model(x)
    smallest = (z.gather(1, y[:, None]) - z).amin(1)
    assert (smallest[model.fooled(x, y)] <= -t).all()


@theorem("thm-certified-rejection")
def test_it_is_easier_to_prove_than_that_every_answer_is_right():
    more = 0
    for seed in range(10):
        model, x, y, ball = rejects(seed, 1.0, eps=0.05, n=20)
        margins = bounds.margins(model.network, x, y, ball).detach()
        right, safe = (margins > 0).all(1), detection.never_fooled(margins, 1.0)
        assert safe[right].all()
        more += int((safe & ~right).sum())
    assert more > 5
