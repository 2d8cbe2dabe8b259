"""Chapter 14, smoothing: every statement, attacked with classifiers of known probabilities.

The labels, which stand in comments until the chapter has them, are those of its theorems.
"""

import math
from fractions import Fraction
from typing import NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from strategies import entries, inputs, seeded, seeds
from torch.special import ndtr, ndtri

from adv_lib import linear, smoothing
from adv_lib.smoothing import Smooth, radius, radius_between
from adv_lib.threat import Ball

sigmas = st.sampled_from([0.01, 0.25, 1.0, 30.0])
pieces = st.integers(1, 9)
kinds = st.sampled_from(["plain", "sparse", "uneven"])


def exact(value):
    return torch.tensor(value, dtype=torch.float64)


def laplace(t):
    """The distribution function of Laplace noise of size 1."""
    return torch.where(t < 0, t.clamp(max=0).exp() / 2, 1 - (-t.clamp(min=0)).exp() / 2)


class Cells(NamedTuple):
    """A classifier of the line or the plane: in each cell between cuts one class, known exactly.

    cuts: one sorted (m_i,) for each axis.  classes: (m_1 + 1,) or (m_1 + 1, m_2 + 1), from 0 to K − 1.
    """

    cuts: list
    classes: torch.Tensor
    K: int

    def probabilities(self, x, sigma, cdf=ndtr):
        """P(f(x + η) = c) for every class, of x (n, d): (n, K)."""
        mass = torch.ones(len(x), 1, dtype=torch.float64)
        for axis, cuts in enumerate(self.cuts):
            below = cdf((cuts - x[:, axis, None]) / sigma)
            ends = torch.zeros(len(x), 1).double(), torch.ones(len(x), 1).double()
            own = torch.cat([ends[0], below, ends[1]], 1).diff()
            mass = (mass[:, :, None] * own[:, None]).flatten(1)
        return mass @ torch.nn.functional.one_hot(self.classes.flatten(), self.K).double()

    def __call__(self, x):
        """f itself, as logits (n, K)."""
        at = [torch.searchsorted(c, x[:, i].double().contiguous()) for i, c in enumerate(self.cuts)]
        return torch.nn.functional.one_hot(self.classes[tuple(at)], self.K).double()


def cells(seed, m, K, sigma, dimensions, kind="plain"):
    """Random cuts, some σ from 0, and a random class in every cell."""
    cuts = [(1.5 * sigma * entries((m,), seed + i, kind)).sort().values for i in range(dimensions)]
    classes = torch.randint(0, K, (m + 1,) * dimensions, generator=seeded(seed))
    return Cells(cuts, classes, K)


def inside(R, p, dimensions, seed):
    """Points of the ball ‖δ‖_p < R, many of them at its edge: (n, dimensions)."""
    if dimensions == 1:
        return R * torch.linspace(-1, 1, 401, dtype=torch.float64)[:, None]
    angle = torch.linspace(0, 2 * math.pi, 161, dtype=torch.float64)
    directions = torch.stack([angle.cos(), angle.sin()], 1)
    directions /= torch.linalg.vector_norm(directions, ord=p, dim=1, keepdim=True)
    lengths = torch.rand(161, 1, generator=seeded(seed), dtype=torch.float64)
    return R * torch.cat([directions, 0.99 * directions, lengths * directions])


def check(f, sigma, R, x, answer, p=2, cdf=ndtr, seed=0):
    """No δ with ‖δ‖_p < R changes the answer."""
    if R in (0, math.inf):
        return
    moved = x + inside((1 - 1e-9) * R, p, x.shape[1], seed)
    there = f.probabilities(moved, sigma, cdf)
    rivals = there.scatter(1, torch.full((len(there), 1), answer), -1.0).amax(1)
    assert (there[:, answer] >= rivals - 1e-12).all()


# ---- the certificate ----


@pytest.mark.parametrize("dimensions", [1, 2])
@given(seeds, pieces, st.integers(2, 5), sigmas, kinds)
def test_nothing_nearer_than_the_radius_changes_the_answer(dimensions, seed, m, K, sigma, kind):
    # thm-smoothing-radius
    f, x = cells(seed, m, K, sigma, dimensions, kind), torch.zeros(1, dimensions).double()
    p, c = f.probabilities(x, sigma)[0].sort(descending=True)
    between, alone = float(radius_between(p[0], p[1], sigma)), float(radius(p[0], sigma))
    assert between >= alone - 1e-9 * sigma
    for R in (between, alone):
        check(f, sigma, R, x, int(c[0]), seed=seed)
    low, high = 0.99 * p[0], p[1] + 0.01 * p[0]  # bounds will do as well
    assert float(radius_between(low, high, sigma)) <= between
    check(f, sigma, float(radius_between(low, high, sigma)), x, int(c[0]), seed=seed)


@given(st.floats(0.01, 0.99), st.floats(0.01, 0.99), sigmas)
def test_with_two_classes_both_forms_of_the_radius_agree(p, share, sigma):
    # thm-smoothing-radius
    two = float(radius_between(p, 1 - p, sigma))
    assert two == pytest.approx(float(radius(p, sigma)), rel=1e-9, abs=1e-12)
    fewer = float(radius_between(p, share * (1 - p), sigma))
    assert fewer >= two
    assert (float(radius(p, sigma)) > 0) == (p > 0.5)


def halfspaces(p, rival, sigma):
    """A below one cut, B above another, between them others that are no more probable than B."""
    rest = 1 - p - rival
    between = math.ceil(rest / rival - 1e-12)
    shares = torch.linspace(p, 1 - rival, between + 1, dtype=torch.float64)
    classes = torch.tensor([0, *range(2, between + 2), 1])
    return Cells([sigma * ndtri(shares)], classes, between + 2)


@given(st.floats(0.05, 0.98), st.floats(0.02, 1), sigmas)
def test_classes_at_half_spaces_have_no_larger_radius(p, share, sigma):
    # thm-smoothing-tight
    rival = share * min(p, 1 - p)
    f, R = halfspaces(p, rival, sigma), float(radius_between(p, rival, sigma))
    zero = torch.zeros(1, 1).double()
    at = f.probabilities(zero, sigma)[0]
    assert at[0] == pytest.approx(p, abs=1e-9)
    assert at[1] == pytest.approx(rival, abs=1e-9)
    assert (at[2:] <= rival + 1e-9).all()
    near, far = (f.probabilities(zero + R + slack * sigma, sigma)[0] for slack in (-1e-3, 1e-3))
    assert near.argmax() == 0 or 1e-3 * sigma >= R
    assert far[1] > far[0]
    assert far.argmax() != 0


@given(seeds, st.integers(1, 6), st.floats(0.51, 0.999), sigmas)
def test_so_it_is_in_any_direction_of_any_space(seed, d, p, sigma):
    # thm-smoothing-tight
    w = entries((d,), seed, "plain")
    x, y = entries((1, d), seed + 1, "plain"), torch.ones(1).double()
    length = torch.linalg.vector_norm(w)
    b = sigma * length * ndtri(exact(p)) - x[0] @ w
    R = float(radius(smoothing.linear_probability(w, b, x, y, sigma), sigma))
    for share, wins in ((1 - 1e-3, True), (1 + 1e-3, False)):
        moved = x - share * R * w / length
        there = smoothing.linear_probability(w, b, moved, y, sigma)
        assert bool(there > 0.5) == wins


@given(seeds, pieces, sigmas, kinds)
def test_the_quantile_of_a_smoothed_function_has_slopes_of_at_most_1(seed, m, sigma, kind):
    # thm-smoothing-lipschitz
    f = cells(seed, m, m + 1, sigma, 1, kind)._replace(classes=torch.arange(m + 1))
    values = torch.rand(m + 1, generator=seeded(seed), dtype=torch.float64)
    for v in (values, values.round()):  # any function to [0, 1], and sets
        x = 4 * sigma * torch.linspace(-1, 1, 201, dtype=torch.float64)[:, None]
        p = f.probabilities(x, sigma) @ v
        middle = (p > 1e-6) & (p < 1 - 1e-6)
        h, x = sigma * ndtri(p[middle]), x[middle]
        rise = (h[:, None] - h).abs() - (x - x.T).abs()
        assert (rise <= 1e-8 * sigma).all()


@given(st.floats(-1, 1), sigmas)
def test_that_of_a_half_line_has_slope_1_everywhere(cut, sigma):
    # thm-smoothing-lipschitz
    f = Cells([exact([cut * sigma])], torch.tensor([0, 1]), 2)
    x = 3 * sigma * torch.linspace(-1, 1, 61, dtype=torch.float64)[:, None]
    h = sigma * ndtri(f.probabilities(x, sigma)[:, 1])
    torch.testing.assert_close(h.diff(), x[:, 0].diff(), rtol=1e-7, atol=0)


# ---- linear models ----


@given(seeds, st.integers(1, 8), kinds, sigmas)
def test_the_radius_of_a_linear_model_is_its_distance_for_every_sigma(seed, d, kind, sigma):
    # thm-smoothing-linear
    w, b = entries((d,), seed, "plain"), entries((), seed + 1, "plain")
    x, y = entries((20, d), seed + 2, kind), torch.ones(20).double() - 2 * (torch.arange(20) % 2)
    p = smoothing.linear_probability(w, b, x, y, sigma)
    away = linear.margin(w, b, x, y) / torch.linalg.vector_norm(w)
    seen = away.abs() < 4 * sigma  # where p is neither 0 nor 1 in floating point
    found = radius(p, sigma)
    torch.testing.assert_close(found[seen], away[seen].clamp(min=0), rtol=1e-9, atol=1e-9 * sigma)
    assert (found[away <= 0] == 0).all()
    for share, right in ((1 - 1e-6, True), (1 + 1e-6, False)):
        held = linear.robust_margin(w, b, x, y, Ball(2, share * found.clamp(max=1e6))) > 0
        proved = seen & (found > 1e-6 * sigma)
        assert (held[proved] == right).all()


@pytest.mark.parametrize("noise", ["gaussian", "laplace"])
@pytest.mark.parametrize("dimensions", [1, 2])
def test_draws_say_each_class_as_often_as_its_probability(noise, dimensions):
    # thm-smoothing-linear
    cdf, N = {"gaussian": ndtr, "laplace": laplace}[noise], 40000
    for seed in range(5):
        f, x = cells(seed, 4, 3, 0.5, dimensions), 0.5 * entries((3, dimensions), seed, "plain")
        p = f.probabilities(x, 0.5, cdf)
        found = Smooth(f, 0.5, noise).counts(x, N, seeded(seed)) / N
        assert ((found - p).abs() <= 4.5 * (p * (1 - p) / N).sqrt() + 1e-9).all()


# ---- Laplace noise ----


@pytest.mark.parametrize("dimensions", [1, 2])
@given(seeds, pieces, st.integers(2, 5), sigmas, kinds)
def test_with_laplace_noise_nothing_nearer_in_l1_changes_the_answer(dimensions, seed, m, K, scale, kind):
    # thm-laplace
    f, x = cells(seed, m, K, scale, dimensions, kind), torch.zeros(1, dimensions).double()
    p, c = f.probabilities(x, scale, laplace)[0].max(0)
    R = float(smoothing.laplace_radius(p, scale))
    assert (R > 0) == (p > 0.5)
    check(f, scale, R, x, int(c), p=1, cdf=laplace, seed=seed)


@pytest.mark.parametrize("dimensions", [1, 2])
@given(st.floats(0.501, 0.9999), sigmas)
def test_a_cut_across_an_axis_has_no_larger_radius_with_laplace_noise(dimensions, p, scale):
    # thm-laplace
    R = float(smoothing.laplace_radius(p, scale))
    cut = exact([-scale * math.log(2 * (1 - p))])
    cuts, classes = [cut, cut][:dimensions], torch.tensor([0, 1])
    f = Cells(cuts, classes if dimensions == 1 else classes[:, None].expand(2, 2), 2)
    along = torch.eye(dimensions, dtype=torch.float64)[:1]
    at = [f.probabilities(r * along, scale, laplace)[0, 0] for r in (0, R * (1 - 1e-3), R * (1 + 1e-3))]
    assert at[0] == pytest.approx(p, abs=1e-12)
    assert at[1] > 0.5 > at[2]


# ---- from counts ----


@pytest.mark.parametrize("alpha", [0.5, 0.1, 0.001])
@pytest.mark.parametrize("n", [1, 2, 5, 10, 37, 100, 1000])
def test_the_bound_exceeds_the_probability_in_no_more_than_a_share_alpha(n, alpha):
    # thm-clopper-pearson
    k = torch.arange(n + 1)
    bound = smoothing.lower_bound(k, n, alpha).numpy()
    edges = [bound, bound - 1e-9, bound + 1e-9, torch.linspace(0, 1, 401).double().numpy()]
    for p in (value for values in edges for value in values if 0 <= value <= 1):
        wrong = stats.binom.pmf(k.numpy(), n, p)[bound > p].sum()
        assert wrong <= alpha * (1 + 1e-9)


@pytest.mark.parametrize("alpha", [0.5, 0.1, 0.001])
@pytest.mark.parametrize("n", [1, 2, 7, 40])
def test_no_larger_bound_would_do_since_there_the_share_is_alpha(n, alpha):
    # thm-clopper-pearson
    assert float(smoothing.lower_bound(0, n, alpha)) == 0
    for count in range(1, n + 1):
        p = Fraction(float(smoothing.lower_bound(count, n, alpha)))
        tail = sum(math.comb(n, k) * p**k * (1 - p) ** (n - k) for k in range(count, n + 1))
        assert float(tail) == pytest.approx(alpha, rel=1e-9)


RUNS = 10000


class Drawn(Smooth):
    """A smoothed classifier with the probabilities in `model`, whose counts are drawn from them."""

    def counts(self, x, draws, generator, **options):
        rng = np.random.default_rng(generator.initial_seed() + draws)
        return torch.from_numpy(rng.multinomial(draws, self.model(x), len(x)))


def law(shares):
    """For `Drawn`: what stands for a model there."""
    return lambda x: shares


def share_wrong(smooth, p, alpha, seed):
    """How many of RUNS certificates at a cut of probability p are wrong, and how many there are."""
    x = torch.zeros(RUNS, 1, dtype=torch.float64)  # each has draws of its own
    found = smooth.certify(x, 15, 100, alpha, seeded(seed))
    true = (radius if smooth.noise == "gaussian" else smoothing.laplace_radius)(p, 1.0)
    wrong = (found.label == 1) | ((found.label == 0) & (found.radius > true))
    return float(wrong.double().mean()), float((found.label == 0).double().mean())


def at_most(alpha):
    return alpha + 4 * math.sqrt(alpha * (1 - alpha) / RUNS)


@pytest.mark.parametrize("noise", ["gaussian", "laplace"])
@pytest.mark.parametrize("alpha", [0.4, 0.1, 0.01])
@pytest.mark.parametrize("p", [0.5, 0.52, 0.6, 0.8, 0.9, 0.99])
def test_no_more_than_a_share_alpha_of_the_certificates_is_wrong(p, alpha, noise):
    # thm-certify; at p = ½ no radius is right, whatever the guess is
    smooth = Drawn(law([p, 1 - p]), 1.0, noise)
    wrong, certified = share_wrong(smooth, p, alpha, round(1000 * p))
    assert wrong <= at_most(alpha)
    assert certified >= (0.9 if p >= 0.8 else 0)


@pytest.mark.slow
def test_nor_is_it_where_the_classifier_is_asked():
    # thm-certify
    cut, alpha = ndtri(exact(0.6)), 0.2
    smooth = Smooth(Cells([cut[None]], torch.tensor([0, 1]), 2), 1.0)
    wrong, certified = share_wrong(smooth, 0.6, alpha, 1)
    assert alpha / 4 < wrong <= at_most(alpha)  # the bound is not far from what happens
    assert certified > 0.5


@pytest.mark.parametrize("alpha", [0.4, 0.1, 0.01])
@pytest.mark.parametrize(
    "shares", [(0.5, 0.5), (0.51, 0.49), (0.4, 0.35, 0.25), (0.34, 0.33, 0.33), (0.8, 0.1, 0.1)]
)
def test_no_more_than_a_share_alpha_of_the_predictions_is_another_class(shares, alpha):
    # thm-certify, for PREDICT
    x = torch.zeros(RUNS, 1, dtype=torch.float64)
    label = Drawn(law(shares), 1.0).predict(x, 60, alpha, seeded(len(shares)))
    another = (label != smoothing.ABSTAIN) & ((label != 0) | (shares[0] == shares[1]))
    assert float(another.double().mean()) <= at_most(alpha)
    assert float((label == 0).double().mean()) >= (0.99 if shares[0] == 0.8 else 0)


@settings(max_examples=20)
@given(seeds, st.integers(1, 5), sigmas)
def test_a_certificate_holds_against_the_exact_probabilities_nearby(seed, m, sigma):
    # thm-certify, with a level at which none of these runs should be wrong
    f, x = cells(seed, m, 3, sigma, 2), sigma * inputs((4, 2), seed)
    found = Smooth(f, sigma).certify(x, 20, 500, 1e-6, seeded(seed))
    for i in (found.label != smoothing.ABSTAIN).nonzero()[:, 0].tolist():
        check(f, sigma, float(found.radius[i]), x[i : i + 1], int(found.label[i]), seed=seed)
