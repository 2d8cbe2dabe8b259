"""Chapter 11, geometry: every labelled statement, attacked with random instances and simulations."""

import math
from itertools import combinations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize
from strategies import entries, seeded, seeds, theorem

from adv_lib import mahalanobis
from adv_lib.losses import cross_entropy

kinds = st.sampled_from(["plain", "ties", "sparse", "uneven"])


def unit(v):
    return v / torch.linalg.vector_norm(v, dim=-1, keepdim=True).clamp(min=1e-300)


def largest_product(vectors):
    """max over pairs of ⟨μ_i, μ_j⟩."""
    gram = vectors @ vectors.T
    return float(gram.masked_fill(torch.eye(len(gram), dtype=torch.bool), -math.inf).max())


# ---- Gaussian classes ----


@theorem("thm-lda")
@given(seeds, st.integers(2, 6), st.integers(1, 5), kinds)
def test_the_posterior_of_gaussians_with_one_covariance_is_a_softmax_of_linear_logits(seed, L, d, kind):
    mu, z = entries((L, d), seed, kind), entries((20, d), seed + 1, "plain")
    root = entries((d, d), seed + 2, "plain") + 2 * torch.eye(d)
    sigma = root @ root.T + 0.1 * torch.eye(d).double()
    density = torch.stack(
        [torch.distributions.MultivariateNormal(m, sigma).log_prob(z) for m in mu], 1
    )  # equal priors
    solved = torch.linalg.solve(sigma, mu.T)
    logits = z @ solved - (mu.T * solved).sum(0) / 2
    torch.testing.assert_close(logits.softmax(1), density.softmax(1), rtol=1e-6, atol=1e-9)


@theorem("thm-lda")
@given(seeds, st.integers(2, 6), st.integers(1, 5))
def test_with_covariance_one_the_posterior_is_the_softmax_of_the_nearest_centre(seed, L, d):
    mu, z = entries((L, d), seed, "plain"), entries((20, d), seed + 1, "plain")
    density = torch.distributions.Normal(mu, 1.0).log_prob(z[:, None]).sum(2)
    h = -(z[:, None] - mu).square().sum(2) / 2
    torch.testing.assert_close(h.softmax(1), density.softmax(1), rtol=1e-9, atol=1e-12)
    assert torch.equal(h.argmax(1), torch.cdist(z, mu).argmin(1))


# ---- the simplex ----


@theorem("thm-simplex")
@given(seeds, st.integers(2, 12), st.integers(1, 12), kinds)
def test_no_unit_vectors_are_all_further_apart_than_the_centres(seed, L, d, kind):
    drawn = entries((L, d), seed, kind)
    drawn[~drawn.any(1)] = 1.0
    assert largest_product(unit(drawn)) >= -1 / (L - 1) - 1e-12


@theorem("thm-simplex")
@pytest.mark.parametrize(("L", "d"), [(2, 2), (3, 2), (4, 3), (5, 7), (10, 9), (6, 3)])
def test_vectors_that_are_pushed_apart_reach_the_bound_and_do_not_pass_it(L, d):
    v, found = entries((L, d), 3, "plain").flatten().numpy(), []
    pairs = torch.triu_indices(L, L, 1)
    for sharp in (3, 10, 30, 100, 300):  # a maximum that gets sharper

        def pushed(v, sharp=sharp):
            own = torch.tensor(v).requires_grad_()
            u = unit(own.view(L, d))
            loss = torch.logsumexp(sharp * (u @ u.T)[pairs[0], pairs[1]], 0) / sharp
            return loss.item(), torch.autograd.grad(loss, own)[0].numpy()

        v = minimize(pushed, v, jac=True, method="L-BFGS-B").x
        found.append(largest_product(unit(torch.tensor(v).view(L, d))))
    lowest = min(found)
    bound = -1 / (L - 1)
    assert lowest >= bound - 1e-12
    assert (lowest <= bound + 1e-3) == (d >= L - 1)  # with fewer dimensions it is out of reach


@theorem("thm-simplex")
@pytest.mark.parametrize("L", [2, 3, 4, 10, 100, 1000])
@pytest.mark.parametrize("spare", [0, 5])
def test_the_centres_attain_the_bound_for_every_pair(L, spare):
    mu = mahalanobis.centres(L, L - 1 + spare)
    wanted = torch.full((L, L), -1 / (L - 1), dtype=torch.float64).fill_diagonal_(1)
    torch.testing.assert_close(mu @ mu.T, wanted, rtol=0, atol=1e-14)
    assert not mu[:, L - 1 :].any()


@theorem("thm-simplex")
@given(seeds, st.integers(3, 8))
def test_where_one_product_is_below_the_bound_another_is_above_it(seed, L):
    """Moving one centre away from a second brings it closer to a third: the sum of all is 0."""
    mu = mahalanobis.centres(L, L - 1)
    torch.testing.assert_close(mu.sum(0), torch.zeros(L - 1, dtype=torch.float64), rtol=0, atol=1e-14)
    moved = mu.clone()
    moved[0] = unit(moved[0] + 0.1 * entries((L - 1,), seed, "plain"))
    products = moved[1:] @ moved[0]
    assert products.min() <= -1 / (L - 1) + 1e-15
    assert products.max() >= -1 / (L - 1) - 1e-15


# ---- the robust radius ----


@theorem("thm-rb")
@given(st.integers(2, 60), st.floats(0.01, 1000), st.integers(0, 3))
def test_the_radius_is_half_the_smallest_distance_between_two_centres(L, norm, spare):
    mu = mahalanobis.centres(L, L - 1 + spare, norm)
    nearest = min(float((mu[i] - mu[j]).norm()) for i, j in combinations(range(L), 2))
    assert mahalanobis.robust_radius(L, norm) == pytest.approx(nearest / 2, rel=1e-12)


@theorem("thm-rb")
@given(seeds, st.integers(2, 10), st.floats(0.1, 100))
def test_no_shorter_move_from_a_centre_changes_the_class_and_one_as_long_does(seed, L, norm):
    mu, radius = mahalanobis.centres(L, L + 2, norm), mahalanobis.robust_radius(L, norm)
    moves = radius * unit(entries((50, L + 2), seed, "plain"))
    head = mahalanobis.Quadratic(mu, torch.eye(L + 2).double().expand(L, -1, -1), 0 * mu[:, 0])
    start = torch.arange(50) % L
    assert torch.equal(head(mu[start] + (1 - 1e-9) * moves).argmax(1), start)
    towards = radius * unit(mu[(start + 1) % L] - mu[start])
    assert torch.equal(head(mu[start] + (1 + 1e-9) * towards).argmax(1), (start + 1) % L)


@theorem("thm-rb")
@given(seeds, st.integers(2, 8), st.integers(1, 8))
def test_no_other_centres_of_that_length_have_a_larger_radius(seed, L, d):
    mu = unit(entries((L, d), seed, "plain"))
    nearest = min(float((mu[i] - mu[j]).norm()) for i, j in combinations(range(L), 2))
    assert nearest / 2 <= mahalanobis.robust_radius(L) + 1e-12


# ---- the distance to the boundary ----


@theorem("thm-folded")
@pytest.mark.parametrize("delta", [0.0, 0.3, 1.0, 2.5, 6.0])
@pytest.mark.parametrize("d", [1, 3])
def test_the_mean_distance_of_a_gaussian_to_the_boundary_is_that_of_the_formula(delta, d):
    draw = seeded(7)
    normal = unit(torch.randn(d, generator=draw, dtype=torch.float64))
    z = torch.randn(4_000_000, d, generator=draw, dtype=torch.float64)  # its centre is 0, the other Δ·n
    distance = ((z - delta / 2 * normal) @ normal).abs()
    got = float(mahalanobis.expected_distance(torch.tensor(delta, dtype=torch.float64)))
    assert got == pytest.approx(float(distance.mean()), abs=1e-3)


@theorem("thm-folded")
@given(st.floats(0, 40))
def test_the_formula_is_the_integral_of_the_folded_normal(delta):
    """By its own terms, and by numbers: ∫ |t| φ(t − Δ/2) dt."""
    got = float(mahalanobis.expected_distance(torch.tensor(delta, dtype=torch.float64)))
    cdf = torch.special.ndtr(torch.tensor(-delta / 2, dtype=torch.float64)).item()
    formula = math.sqrt(2 / math.pi) * math.exp(-(delta**2) / 8) + delta / 2 * (1 - 2 * cdf)
    assert got == pytest.approx(formula, abs=1e-12)
    t = torch.linspace(-12, 12, 48_001, dtype=torch.float64)
    density = torch.exp(-(t**2) / 2) / math.sqrt(2 * math.pi)
    assert got == pytest.approx(float(torch.trapezoid((t + delta / 2).abs() * density, t)), abs=1e-6)
    assert got >= delta / 2 * (1 - 1e-14)


# ---- softmax cross-entropy is a g-SCE loss ----


@theorem("thm-gsce")
@given(seeds, st.integers(2, 6), st.integers(1, 6), kinds, st.sampled_from([0.1, 1.0, 30.0]))
def test_the_softmax_of_a_linear_layer_is_that_of_its_quadratic_form(seed, L, d, kind, scale):
    W, b = scale * entries((L, d), seed, kind), entries((L,), seed + 1, kind)
    z, y = entries((20, d), seed + 2, "plain"), torch.arange(20) % L
    quadratic, linear = mahalanobis.as_quadratic(W, b)(z), z @ W.T + b
    size = float((W.square().sum(1).max() + z.square().sum(1).max() + b.abs().max()).clamp(min=1))
    torch.testing.assert_close(
        quadratic, linear - z.square().sum(1, keepdim=True), rtol=0, atol=1e-13 * size
    )
    torch.testing.assert_close(
        cross_entropy(quadratic, y), cross_entropy(linear, y), rtol=0, atol=1e-12 * size
    )


@theorem("thm-gsce")
@given(seeds, st.integers(2, 6), st.integers(1, 6))
def test_a_quadratic_form_whose_precisions_differ_is_the_softmax_of_no_linear_layer(seed, L, d):
    """The other way the inclusion is strict: differences of logits are not affine."""
    mu, B = entries((L, d), seed, "plain"), entries((L,), seed + 1, "plain")
    precisions = torch.eye(d).double() * torch.arange(1, L + 1).double()[:, None, None]
    head, z = mahalanobis.Quadratic(mu, precisions, B), entries((d,), seed + 2, "plain")
    line = head(torch.stack([-z, 0 * z, z]))
    bend = (line - line[:, :1]).diff(n=2, dim=0)[0, 1:]  # 0 for an affine function
    steps = torch.arange(1, L).double()
    torch.testing.assert_close(bend, -2 * steps * z.square().sum(), rtol=1e-9, atol=1e-9)


# ---- what the loss tells the features ----


def slopes(mu, z, y):
    """∇_z of the cross-entropy and of MMC, by autograd."""
    found = []
    for loss in (cross_entropy, mahalanobis.mmc):
        at = z.clone().requires_grad_()
        h = -(at[:, None] - mu).square().sum(2) / 2
        found.append(torch.autograd.grad(loss(h, y).sum(), at)[0])
    return (*found, (-(z[:, None] - mu).square().sum(2) / 2).softmax(1))


@theorem("thm-curse")
@given(seeds, st.integers(2, 6), st.integers(1, 6), kinds)
def test_the_gradients_in_the_features_are_those_of_the_formulas(seed, L, d, kind):
    mu, z = entries((L, d), seed, kind), entries((20, d), seed + 1, "plain")
    y = torch.arange(20) % L
    softmax, mmc, p = slopes(mu, z, y)
    apart = mu[None] - mu[y][:, None]
    torch.testing.assert_close(softmax, (p[..., None] * apart).sum(1), rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(mmc, z - mu[y], rtol=0, atol=1e-12)
    rest = 1 - p.gather(1, y[:, None])[:, 0]
    longest = apart.norm(dim=2).max(1).values
    assert (softmax.norm(dim=1) <= rest * longest * (1 + 1e-9) + 1e-12).all()


@theorem("thm-curse")
@given(seeds, st.integers(2, 4), st.integers(1, 4))
def test_at_a_right_angle_to_the_differences_only_mmc_sees_a_move(seed, L, spare):
    d = L - 1 + spare
    mu, z, y = entries((L, d), seed, "plain"), entries((20, d), seed + 1, "plain"), torch.arange(20) % L
    basis = torch.linalg.svd(mu - mu.mean(0))[2][L - 1 :]  # spans what no difference reaches
    moved = z + entries((20, len(basis)), seed + 2, "plain") @ basis
    loss = [cross_entropy(-(v[:, None] - mu).square().sum(2) / 2, y) for v in (z, moved)]
    torch.testing.assert_close(loss[0], loss[1], rtol=1e-8, atol=1e-8)
    assert (slopes(mu, z, y)[0] @ basis.T).abs().max() < 1e-8
    away = (moved - z).norm(dim=1) > 1e-3
    mmc = slopes(mu, moved, y)[1] - slopes(mu, z, y)[1]
    assert (mmc[away].norm(dim=1) > 1e-3 - 1e-9).all()


# ---- longer centres ----


@theorem("thm-zoom")
@given(seeds, st.integers(2, 6), st.integers(1, 6), kinds, st.floats(0.01, 30))
def test_longer_features_and_centres_multiply_the_logits_and_change_no_prediction(seed, L, d, kind, a):
    mu, z = entries((L, d), seed, kind), entries((20, d), seed + 1, "plain")
    h, scaled = (-(s * z[:, None] - s * mu).square().sum(2) / 2 for s in (1, a))
    torch.testing.assert_close(scaled, a**2 * h, rtol=1e-9, atol=1e-9 * a**2)
    lead = h.topk(2).values.diff(dim=1).abs()[:, 0] > 1e-6
    assert torch.equal(h.argmax(1)[lead], scaled.argmax(1)[lead])


@theorem("thm-zoom")
@given(seeds, st.integers(2, 8), st.floats(0.1, 3))
def test_the_gradient_of_the_cross_entropy_fades_as_the_bound_says(seed, L, a):
    h = (3 * entries((20, L), seed, "plain")).requires_grad_()
    y = h.detach().argmax(1)
    scaled = a**2 * h.detach()
    at = scaled.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(cross_entropy(at, y).sum(), at)
    m = h.detach().topk(2).values.diff(dim=1).abs()[:, 0]
    assert (gradient.abs().sum(1) <= 2 * (L - 1) * torch.exp(-(a**2) * m) + 1e-12).all()


@theorem("thm-zoom")
@given(seeds, st.integers(2, 10), st.floats(104.01, 1e6))
def test_in_32_bits_it_is_exactly_0_beyond_104_and_not_before(seed, L, lead):
    y = torch.arange(20) % L
    rest = -lead - entries((20, L), seed, "plain").abs()
    for start, silent in ((rest, True), (rest + lead - 100, False)):
        h = start.scatter(1, y[:, None], 0.0).float()
        if not silent:  # one rival only 100 behind
            h[torch.arange(20), (y + 1) % L] = -100.0
        at = h.requires_grad_()
        (gradient,) = torch.autograd.grad(cross_entropy(at, y).sum(), at)
        assert bool((gradient == 0).all()) == silent


# ---- sample density ----


def near(z, point, radius):
    """Samples per volume in a small ball around a point."""
    d = len(point)
    volume = math.pi ** (d / 2) / math.gamma(d / 2 + 1) * radius**d
    return float(((z - point).square().sum(1) < radius**2).sum()) / volume


def loss_density(losses, at, width):
    """How many losses per unit lie about a value, of all of them."""
    return ((losses - at).abs() < width / 2).double().mean() / width


@theorem("thm-density-mmc")
@pytest.mark.parametrize("d", [1, 2, 3, 4])
@pytest.mark.parametrize("at", [0.5, 1.5])
def test_the_density_of_the_mmc_loss_is_what_one_counts_around_a_point(d, at):
    n = 2_000_000
    mu = mahalanobis.centres(2, d, 2.0)[0]
    z = mu + torch.randn(n, d, generator=seeded(d), dtype=torch.float64)
    p = loss_density((z - mu).square().sum(1) / 2, at, 0.02)[None]
    C = torch.tensor([at], dtype=torch.float64)
    got = float(mahalanobis.mmc_density(C, p, n, d))
    point = mu.clone()
    point[-1] += math.sqrt(2 * at)
    assert got == pytest.approx(near(z, point, 0.25), rel=0.15)
    assert got == pytest.approx(n * math.exp(-at) / (2 * math.pi) ** (d / 2), rel=0.04)


@theorem("thm-density-mmc")
@given(st.integers(1, 100), st.floats(0.05, 50))
def test_a_gaussian_has_the_density_of_its_formula_in_any_dimension(d, at):
    """½‖z − μ‖² of N(μ, I) has the density C^{d/2−1} e^{−C} / Γ(d/2)."""
    C = torch.tensor([at], dtype=torch.float64)
    p = torch.exp((d / 2 - 1) * C.log() - C - math.lgamma(d / 2))
    got = float(mahalanobis.mmc_density(C, p, 1, d).log())
    assert got == pytest.approx(-at - d / 2 * math.log(2 * math.pi), rel=1e-9, abs=1e-9)


@theorem("thm-density-mmc")
def test_without_the_thickness_of_the_shell_the_density_of_uniform_features_is_not_constant():
    """p(C)/C^{(d−1)/2}, as published, is off by √C."""
    d, C = 4, torch.tensor([0.1, 1.0, 10.0], dtype=torch.float64)
    p = C ** (d / 2 - 1)  # uniform features: volume inside grows as C^{d/2}
    exact, published = mahalanobis.mmc_density(C, p, 1, d), p / C ** ((d - 1) / 2)
    assert (exact / exact[0] - 1).abs().max() < 1e-12
    assert float(published[0] / published[2]) == pytest.approx(10, rel=1e-9)


PAIRS = [  # σ of the own class and the rival, B of both
    ((2.0, 1.0), (0.0, 0.0)),
    ((1.0, 2.0), (0.5, 0.0)),
    ((0.5, 0.3), (0.0, 0.4)),
    ((3.0, 2.9), (-1.0, 1.0)),
]


@theorem("thm-density-sce")
@given(seeds, st.integers(1, 6), st.sampled_from(PAIRS), st.floats(0.01, 30))
def test_the_loss_is_the_same_on_the_whole_sphere_and_no_sample_has_one_without_a_sphere(
    seed, d, pair, at
):
    (s, t), (b, c) = pair
    mu, C = entries((2, d), seed, "plain"), torch.tensor([at], dtype=torch.float64)
    identity = torch.eye(d, dtype=torch.float64)
    head = mahalanobis.Quadratic(
        mu, torch.stack([s * identity, t * identity]), torch.tensor([b, c], dtype=torch.float64)
    )
    own = torch.zeros(200, dtype=torch.int64)
    try:
        middle, R = mahalanobis.level_set(C, mu, (s, t), (b, c))
    except ValueError:
        anywhere = 100 * entries((199, d), seed + 2, "uneven")
        middle = (s * mu[0] - t * mu[1]) / (s - t)
        loss = cross_entropy(head(torch.cat([middle[None], anywhere])), own)
        assert (loss >= at - 1e-9).all() if s > t else (loss <= at + 1e-9).all()
        return
    z = middle + R * unit(entries((200, d), seed + 1, "plain"))
    size = float(head(z).abs().max())
    torch.testing.assert_close(
        cross_entropy(head(z), own), C.expand(200), rtol=1e-9, atol=1e-12 * (1 + size)
    )


@theorem("thm-density-sce")
@pytest.mark.parametrize(("precisions", "biases"), PAIRS[:3])
@pytest.mark.parametrize("at", [0.4, 1.2])
def test_the_density_of_the_g_sce_loss_is_what_one_counts_in_a_mixture(precisions, biases, at):
    """Features symmetric about M, so that the mean over the sphere is the density at its points."""
    d, n = 3, 2_000_000
    mu = torch.tensor([[0.0, 0.0, 0.0], [2.0, 1.0, 0.0]], dtype=torch.float64)
    C = torch.tensor([at], dtype=torch.float64)
    middle, R = mahalanobis.level_set(C, mu, precisions, biases)
    z = middle + 0.7 * R * torch.randn(n, d, generator=seeded(5), dtype=torch.float64)
    identity = torch.eye(d, dtype=torch.float64)
    head = mahalanobis.Quadratic(
        mu,
        torch.stack([s * identity for s in precisions]),
        torch.tensor(biases, dtype=torch.float64),
    )
    loss = cross_entropy(head(z), torch.zeros(n, dtype=torch.int64))
    got = float(
        mahalanobis.gsce_density(C, loss_density(loss, at, 0.02)[None], n, mu, precisions, biases)
    )
    point = middle + R * unit(torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64))
    assert got == pytest.approx(near(z, point, 0.2 * float(R)), rel=0.1)
    sigma = 0.7 * float(R)
    gaussian = n * math.exp(-(float(R) ** 2) / 2 / sigma**2) / (2 * math.pi * sigma**2) ** (d / 2)
    assert got == pytest.approx(gaussian, rel=0.05)


@theorem("thm-density-sce")
@pytest.mark.parametrize(("precisions", "biases"), PAIRS[:3])
def test_uniform_features_have_one_density_at_every_loss_and_the_published_form_does_not(
    precisions, biases
):
    mu = torch.tensor([[0.0, 0.0], [2.0, 1.0]], dtype=torch.float64)
    C = torch.linspace(0.4, 1.4, 6, dtype=torch.float64)
    _, R = mahalanobis.level_set(C, mu, precisions, biases)
    step = 1e-6  # uniform: p(C) is how fast the area inside grows, by differences
    ends = [mahalanobis.level_set(C + sign * step, mu, precisions, biases)[1] for sign in (-1, 1)]
    p = math.pi * (ends[1] ** 2 - ends[0] ** 2).abs() / (2 * step)
    exact = mahalanobis.gsce_density(C, p, 1, mu, precisions, biases)
    torch.testing.assert_close(exact, torch.ones_like(exact), rtol=1e-6, atol=0)
    published = p / R
    assert float(published.max() / published.min()) > 1.2
