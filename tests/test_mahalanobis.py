"""Centres, last layers, their losses and an attack on features, against their definitions."""

import math
from functools import partial
from itertools import combinations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import BOX, DTYPES, entries, inputs, seeded, seeds, tolerance
from torch import nn

from adv_lib import attacks, bounds, exact, losses, mahalanobis, models, suite, training
from adv_lib.mahalanobis import NearestCentre, Quadratic, centres, random_centres
from adv_lib.optimisers import SGD
from adv_lib.stack import Stack
from adv_lib.threat import Ball

CUBE = Ball(math.inf, 0.1, BOX)


def by_recursion(L, d):
    """The centres as the source has them, entry by entry, in Python's own numbers."""
    mu = [[0.0] * d for _ in range(L)]
    mu[0][0] = 1.0
    for k in range(1, L):
        for j in range(k):
            inner = sum(a * b for a, b in zip(mu[k], mu[j], strict=True))
            mu[k][j] = -(1 / (L - 1) + inner) / mu[j][j]
            if j == L - 2:  # the last centre needs no entry of its own
                return torch.tensor(mu, dtype=torch.float64)
        mu[k][k] = math.sqrt(1 - sum(a * a for a in mu[k]))
    return torch.tensor(mu, dtype=torch.float64)


def network(mu, seed=0, learned=False, hidden=7):
    """A network of six inputs whose features gather around these centres."""
    body = models.mlp([6, hidden, mu.shape[1]], seeded(seed))
    return nn.Sequential(*body, NearestCentre(mu, learned=learned))


def batch(n=12, L=4, seed=0):
    return inputs((n, 1, 2, 3), seed).float(), torch.arange(n) % L


def logits(seed, L=4, n=8, dtype=torch.float64, scale=3.0):
    """Features, centres, the logits of the layer, and labels."""
    z, mu = scale * entries((n, 5), seed, "plain").to(dtype), entries((L, 5), seed + 1, "plain")
    head = NearestCentre(mu).to(dtype)
    return z, head.centres, head(z), torch.randint(L, (n,), generator=seeded(seed))


# ---- centres ----


@pytest.mark.parametrize("L", [2, 3, 4, 7, 20, 50])
def test_the_centres_are_those_of_the_published_recursion(L):
    found, wanted = centres(L, L + 3), by_recursion(L, L + 3)
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-13)


@pytest.mark.parametrize("norm", [1e-3, 1, 10.0, 100])
def test_their_length_is_the_norm_and_all_distances_are_the_same(norm):
    mu = centres(10, 64, norm)
    torch.testing.assert_close(mu.norm(dim=1), torch.full((10,), float(norm)).double())
    apart = [float((mu[i] - mu[j]).norm()) for i, j in combinations(range(10), 2)]
    assert min(apart) == pytest.approx(max(apart), rel=1e-12)
    assert max(apart) == pytest.approx(norm * math.sqrt(20 / 9), rel=1e-12)


def test_random_centres_have_one_length_and_are_closer_than_the_best():
    mu = random_centres(10, 64, 10.0, seeded(1))
    torch.testing.assert_close(mu.norm(dim=1), torch.full((10,), 10.0).double())
    assert torch.equal(mu, random_centres(10, 64, 10.0, seeded(1)))
    assert not torch.equal(mu, random_centres(10, 64, 10.0))
    nearest = min(float((mu[i] - mu[j]).norm()) for i, j in combinations(range(10), 2))
    assert nearest / 2 < mahalanobis.robust_radius(10, 10.0)


@given(seeds)
def test_the_means_are_those_of_each_class(seed):
    z, y = entries((20, 3), seed, "plain"), torch.arange(20) % 4
    found = mahalanobis.means(z, y, 4)
    for k in range(4):
        torch.testing.assert_close(found[k], sum(z[y == k]) / 5)


# ---- last layers ----


@pytest.mark.parametrize("dtype", DTYPES)
@given(seed=seeds, L=st.integers(2, 8))
def test_the_layer_says_minus_half_the_squared_distance(dtype, seed, L):
    z, mu, h, _ = logits(seed, L, dtype=dtype)
    wanted = torch.tensor([[-((a - c).square().sum()) / 2 for c in mu.double()] for a in z.double()])
    assert h.dtype == dtype
    assert ((h - wanted).abs() <= tolerance(z) * (1 + wanted.abs())).all()
    assert torch.equal(
        h.argmax(1), torch.cdist(z, mu, compute_mode="donot_use_mm_for_euclid_dist").argmin(1)
    )


@given(seeds, st.integers(2, 8))
def test_its_linear_form_has_the_same_margins_and_cross_entropy_for_any_centres(seed, L):
    z, mu, h, y = logits(seed, L)
    head = NearestCentre(mu).double()
    linear = head.linear()(z)
    torch.testing.assert_close(linear - z.square().sum(1, keepdim=True) / 2, h)
    torch.testing.assert_close(losses.margin(linear, y), losses.margin(h, y))
    torch.testing.assert_close(losses.cross_entropy(linear, y), losses.cross_entropy(h, y))


@given(seeds)
def test_with_centres_of_one_length_mmlda_is_the_cross_entropy_of_the_inner_products(seed):
    """−log softmax(−½‖z − μ‖²)_y = −log softmax(zᵀμ)_y, with the minus in both."""
    z, y = entries((9, 12), seed, "plain"), torch.arange(9) % 5
    head = NearestCentre(centres(5, 12, 3.0)).double()
    mmlda = losses.cross_entropy(head(z), y)
    assert (mmlda > 0).all()
    torch.testing.assert_close(mmlda, losses.cross_entropy(z @ head.centres.T, y), rtol=1e-5, atol=1e-5)


@given(seeds, st.integers(2, 5))
def test_a_quadratic_layer_is_its_definition_and_with_half_the_identity_it_is_the_nearest_centre(
    seed, L
):
    z, mu, h, _ = logits(seed, L)
    A, B = entries((L, 5, 5), seed + 2, "plain"), entries((L,), seed + 3, "plain")
    found = Quadratic(mu, A @ A.mT, B)(z)
    for k in range(L):
        away = z - mu[k]
        wanted = B[k] - torch.stack([v @ A[k] @ A[k].T @ v for v in away])
        torch.testing.assert_close(found[:, k], wanted)
    half = torch.eye(5, dtype=torch.float64).expand(L, -1, -1) / 2
    torch.testing.assert_close(Quadratic(mu, half, 0 * B)(z), h)


def test_the_centres_stay_unless_they_are_learned_and_are_never_those_of_the_caller():
    mu, (x, y) = centres(4, 5, 3.0), batch()
    for learned in (False, True):
        net = network(mu, learned=learned)
        before = net[-1].centres.detach().clone()
        assert (net[-1].centres in set(net.parameters())) == learned
        list(training.fit(net, (x, y), training.clean, epochs=2, lr=0.05, batch_size=6))
        assert torch.equal(net[-1].centres, before) == (not learned)
        assert torch.equal(mu, centres(4, 5, 3.0))


def test_the_layer_survives_saving_and_loading():
    one, other = network(centres(4, 5, 3.0)), network(random_centres(4, 5, 3.0), seed=1)
    other.load_state_dict(one.state_dict())
    x, _ = batch()
    assert torch.equal(one(x), other(x))


# ---- it is an ordinary classifier ----


def test_the_attacks_and_the_suite_take_it_for_a_classifier():
    net, (x, y) = network(centres(4, 5, 3.0)), batch()
    y = net(x).argmax(1)  # right everywhere
    found = suite.autoattack(net, x, y, CUBE, steps=5, queries=20)
    assert found.doubts == ()
    assert CUBE.contains(found.delta, x).all()
    for attack in (attacks.pgd, attacks.fab, attacks.square):
        assert CUBE.contains(attack(net, x, y, CUBE), x).all()


def test_bounds_and_exact_methods_read_it_with_its_linear_form():
    net, (x, y) = network(centres(4, 3, 2.0), hidden=5).double(), batch(4)
    readable = nn.Sequential(*net[:-1], net[-1].linear())
    small = Ball(math.inf, 0.02, BOX)
    lower = bounds.margins(readable, x.double(), y, small)
    delta = attacks.pgd(net, x.double(), y, small)
    assert (lower.amin(1) <= losses.margin(net(x.double() + delta), y) + 1e-9).all()
    proof = exact.margins(readable, x.double(), y, small)
    with pytest.raises(ValueError, match="NearestCentre"):
        bounds.margins(net, x.double(), y, small)
    assert proof is not None


@pytest.mark.parametrize("learned", [False, True])
@pytest.mark.parametrize("name", ["cross-entropy", "MMC", "L-GM", "centre loss", "PGD"])
def test_in_a_stack_each_member_ends_where_it_would_alone_with_centres_of_its_own(name, learned):
    inner = {
        "cross-entropy": training.clean,
        "MMC": partial(training.clean, loss=mahalanobis.mmc),
        "L-GM": partial(training.clean, loss=partial(mahalanobis.large_margin, alpha=0.3, weight=0.1)),
        "centre loss": mahalanobis.centre_loss(0.1),
        "PGD": training.adversarial(partial(attacks.pgd, steps=2), CUBE, loss=mahalanobis.mmc),
    }[name]
    (x, y), where = batch(22), [centres(4, 5, 2.0), random_centres(4, 5, 2.0), random_centres(4, 5, 1.0)]
    alone = [network(mu, seed, learned).double() for seed, mu in enumerate(where)]
    stack = Stack(alone)
    options = {"epochs": 3, "lr": 0.05, "batch_size": 8, "optimiser": SGD(0.9)}
    list(training.fit(stack, (x.double(), y), inner, **options))
    for net in alone:
        list(training.fit(net, (x.double(), y), inner, **options))
    for one, other, shared in zip(stack.members(), alone, map(stack.member, range(3)), strict=True):
        for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-9)
        torch.testing.assert_close(shared(x.double()), other(x.double()), rtol=0, atol=1e-8)
    together = stack(stack.rows(x.double())).view(22, 3, 4)
    torch.testing.assert_close(together[:, 1], alone[1](x.double()), rtol=0, atol=1e-8)


# ---- losses ----


@given(seeds, st.integers(2, 6))
def test_mmc_is_half_the_squared_distance_to_the_own_centre(seed, L):
    z, mu, h, y = logits(seed, L)
    torch.testing.assert_close(mahalanobis.mmc(h, y), (z - mu[y]).square().sum(1) / 2)


@given(seeds, st.floats(0, 2), st.floats(0, 2))
def test_l_gm_is_its_definition_and_without_a_margin_it_is_mmlda_and_mmc(seed, alpha, weight):
    z, mu, h, y = logits(seed, scale=1.0)
    found = mahalanobis.large_margin(h, y, alpha, weight)
    for i in range(len(z)):
        d = [float((z[i] - c).square().sum()) / 2 for c in mu]
        own = d[y[i]] * (1 + alpha)
        others = sum(math.exp(own - d[k]) for k in range(len(d)) if k != y[i])
        assert float(found[i]) == pytest.approx(math.log1p(others) + weight * d[y[i]], rel=1e-9)
    plain = mahalanobis.large_margin(h, y, 0, weight)
    torch.testing.assert_close(
        plain, losses.cross_entropy(h, y) + weight * mahalanobis.mmc(h, y), rtol=1e-12, atol=1e-12
    )
    assert (found >= plain - 1e-12).all()


@given(seeds, st.floats(0, 3))
def test_the_centre_loss_pulls_features_to_the_mean_of_their_class_in_the_batch(seed, weight):
    net, (x, y) = models.mlp([6, 5, 4], seeded(seed)).double(), batch(seed=seed)
    x = x.double()
    found = mahalanobis.centre_loss(weight)(net, x, y)
    z, y = net[:-1](x), y
    away = (z - mahalanobis.means(z, y, 4)[y]).square().sum(1)
    wanted = losses.cross_entropy(net(x), y) + weight / 2 * away
    torch.testing.assert_close(found, wanted)


def test_the_centre_loss_makes_features_of_one_class_alike_and_takes_a_class_without_samples(digits):
    x, y = digits.x_train[:300], digits.y_train[:300]
    spread = []
    for weight in (0.0, 1.0):
        net = models.mlp([64, 30, 20, 10])
        inner = mahalanobis.centre_loss(weight)
        list(training.fit(net, (x, y), inner, epochs=20, lr=0.1, optimiser=SGD(0.9)))
        z = net[:-1](x).detach()
        mean = mahalanobis.means(z, y, 10)
        spread.append(float((z - mean[y]).square().sum() / (mean - mean.mean(0)).square().sum()))
        assert (net(x).argmax(1) == y).float().mean() > 0.9
        assert inner(net, x[:3], y[:3]).isfinite().all()
    assert spread[1] < spread[0] / 2


def test_at_its_centre_the_cross_entropy_has_no_gradient_and_the_label_s_logit_moves_on_the_way_there():
    head, y = NearestCentre(centres(10, 64, 10.0)), torch.tensor([3])
    z = (head.centres[[3]] + 0.1 * torch.randn(1, 64, generator=seeded(0))).requires_grad_()
    (blind,) = torch.autograd.grad(losses.cross_entropy(head(z), y).sum(), z)
    (seeing,) = torch.autograd.grad(mahalanobis.mmc(head(z), y).sum(), z)
    assert not blind.any()
    torch.testing.assert_close(seeing, (z - head.centres[3]).detach())


# ---- the attack on features ----


def trained(digits, norm, loss):
    body = models.mlp([64, 60, 20])
    net = nn.Sequential(*body, NearestCentre(centres(10, 20, norm)))
    x, y = digits.x_train[:300], digits.y_train[:300]
    inner = partial(training.clean, loss=loss)
    list(training.fit(net, (x, y), inner, epochs=20, lr=0.02, optimiser=SGD(0.9)))
    return net.eval()


def test_the_attack_brings_features_closer_to_the_other_centre_and_stays_in_the_ball(digits):
    net = trained(digits, 3.0, mahalanobis.mmc)
    x, y = digits.x_test[:60], digits.y_test[:60]
    goal, mu = (y + 1) % 10, net[-1].centres
    delta = mahalanobis.towards_centre(mu, 10)(net, x, y, CUBE, goal)
    assert CUBE.contains(delta, x).all()
    distances = [(net[:-1](v) - mu[goal]).norm(dim=1).detach() for v in (x, x + delta)]
    assert (distances[1] < distances[0]).float().mean() > 0.9


def test_it_breaks_what_the_gradient_of_the_cross_entropy_cannot_see(digits):
    net = trained(digits, 30.0, mahalanobis.mmc)
    x, y = digits.x_test[:60], digits.y_test[:60]
    blind = attacks.pgd(net, x, y, CUBE, loss=losses.cross_entropy)
    sees = suite.every_target(mahalanobis.towards_centre(net[-1].centres, 20))(net, x, y, CUBE)
    right = [float(losses.correct(net(x + delta), y).float().mean()) for delta in (blind, sees)]
    assert right[1] < right[0] - 0.2


def test_it_takes_a_network_without_centres_by_the_means_of_its_features_and_leaves_its_mode(digits):
    net = models.mlp([64, 30, 10], norm=True)
    net[2].eval()  # one layer in another mode than the rest
    x, y = digits.x_train[:100], digits.y_train[:100]
    modes = [layer.training for layer in net.modules()]
    mu = mahalanobis.means(net[:-1](x).detach(), y, 10)
    delta = mahalanobis.towards_centre(mu, 3)(net, x, y, CUBE, (y + 1) % 10)
    assert CUBE.contains(delta, x).all()
    assert delta.any()
    assert [layer.training for layer in net.modules()] == modes
    assert all(p.grad is None for p in net.parameters())


# ---- the geometry ----


def test_the_radius_grows_with_the_norm_and_shrinks_with_the_classes():
    assert mahalanobis.robust_radius(2, 3) == pytest.approx(3)
    assert mahalanobis.robust_radius(10, 10) == pytest.approx(10 * math.sqrt(10 / 18))
    found = [mahalanobis.robust_radius(L) for L in (2, 3, 10, 1000)]
    assert found == sorted(found, reverse=True)
    assert found[-1] > math.sqrt(0.5)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_expected_distance_is_at_least_half_the_distance_and_close_to_it_far_out(dtype):
    delta = torch.linspace(0, 20, 50, dtype=dtype)
    found = mahalanobis.expected_distance(delta)
    assert found.dtype == dtype
    assert float(found[0]) == pytest.approx(math.sqrt(2 / math.pi))
    assert (found >= delta / 2 * (1 - tolerance(delta))).all()
    torch.testing.assert_close(found[-5:], delta[-5:] / 2)


def test_the_density_of_a_large_loss_in_many_dimensions_neither_overflows_nor_vanishes():
    C = torch.tensor([0.01, 50.0, 800.0], dtype=torch.float64)
    assert (mahalanobis.mmc_density(C, torch.ones(3), 1, 64) > 0).all()
    mu = torch.stack([torch.zeros(64), torch.ones(64)]).double()
    found = mahalanobis.gsce_density(C[1:], torch.ones(2), 1, mu, (2.0, 1.0), (0.0, 0.0))
    assert (found > 0).all()
    assert found.isfinite().all()
