"""Chapter 12, ensembles: every labelled statement, attacked with random members and by minimisation."""

import math
from functools import partial
from itertools import pairwise

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from strategies import BOX, entries, inputs, orders, seeded, seeds, theorem
from torch import nn

from adv_lib import attacks, bounds, ensembles, losses, models
from adv_lib.ensembles import Ensemble, climb
from adv_lib.threat import Ball

kinds = st.sampled_from(["plain", "ties", "sparse"])
alphas = st.floats(0.02, 50)


def simplex(seed, shape, kind="plain", scale=1.0):
    """Random probabilities along the last axis."""
    return torch.softmax(scale * entries(shape, seed, kind), -1)


def doubts(p, y):
    """M̃ (…, L − 1, K), from the probabilities p (…, K, L) of the members."""
    wrong = torch.cat([p[..., :y], p[..., y + 1 :]], -1)
    return (wrong / torch.linalg.vector_norm(wrong, dim=-1, keepdim=True)).mT


def squared_volume(columns):
    """By Gram and Schmidt: what each column adds at a right angle to those before, squared."""
    d, K = columns.shape[-2:]
    if d < K:
        return torch.zeros(columns.shape[:-2], dtype=torch.float64)
    return torch.linalg.qr(columns).R.diagonal(dim1=-2, dim2=-1).square().prod(-1)


def objective(p, y, alpha, beta=0.0):
    """J of the members' probabilities p (…, K, L), as it is written."""
    mean = p.mean(-2)
    total = -p[..., y].log().sum(-1) + alpha * torch.special.xlogy(mean, mean).sum(-1)
    return total - beta * squared_volume(doubts(p, y)).log() if beta else total


def least(p, alpha, K, L):
    """J where every member gives y the probability p, and the mean all other classes the same."""
    rest = (1 - p) / (L - 1)
    log_rest = math.log(rest) if rest else 0.0
    return -K * math.log(p) + alpha * (p * math.log(p) + (1 - p) * log_rest)


def minimised(loss, start):
    """What L-BFGS makes of a loss of the logits (K, L), and its value there."""

    def value(v):
        own = torch.tensor(v).requires_grad_()
        now = loss(own.view(start.shape))
        return now.item(), torch.autograd.grad(now, own)[0].numpy()

    options = {"maxiter": 5000, "ftol": 1e-16, "gtol": 1e-10}
    found = minimize(value, start.flatten().numpy(), jac=True, method="L-BFGS-B", options=options)
    return torch.tensor(found.x).view(start.shape).softmax(1), found.fun


def members(seed, K, L, scale=1.0, widths=(6, 5)):
    """K networks with 4 inputs, in float64; scale multiplies their last weights."""
    found = [models.mlp([4, *widths, L], seeded(seed + k)).double() for k in range(K)]
    for network in found:
        for parameter in network[-1].parameters():
            parameter.data *= scale
    return found


def slope(value, x):
    """∇_x of a number for each sample, (n, d)."""
    return torch.autograd.grad(value.sum(), x, retain_graph=True)[0].flatten(1)


# ---- diversity ----


@theorem("thm-ed-volume")
@given(seeds, st.integers(1, 5), st.integers(2, 8), kinds, st.sampled_from([0.1, 1.0, 5.0]))
def test_the_diversity_is_the_squared_volume_and_lies_between_0_and_1(seed, K, L, kind, scale):
    z, y = scale * entries((20, K, L), seed, kind), seed % L
    found = ensembles.diversity(z, torch.full((20,), y))
    columns = doubts(z.softmax(2), y)
    torch.testing.assert_close(found, squared_volume(columns), rtol=0, atol=1e-12)
    assert ((found >= 0) & (found <= 1)).all()
    if K > L - 1:
        assert (found < 1e-12).all()
        return
    narrow = torch.linalg.svdvals(columns).amin(1).square()  # 0 exactly where columns are dependent
    assert (found >= narrow**K - 1e-12).all()
    assert (found <= narrow * K ** (K - 1) + 1e-12).all()


@theorem("thm-ed-volume")
@given(seeds, st.integers(2, 5), st.integers(0, 3))
def test_members_who_mix_what_others_say_span_nothing(seed, K, spare):
    L = K + 1 + spare
    p = simplex(seed, (20, K, L))
    before = ensembles.diversity(p.log(), torch.zeros(20, dtype=torch.int64))
    weights = simplex(seed + 1, (20, 1, K - 1))
    p[:, -1:] = weights @ p[:, :-1]
    p[:, -1, 0] /= 2  # how sure it is of y has no part in it
    assert (ensembles.diversity(p.log(), torch.zeros(20, dtype=torch.int64)) < 1e-12).all()
    assert (before > 0).all()


@theorem("thm-ed-volume")
@given(seeds, st.integers(2, 4), st.integers(1, 3), st.floats(1e-3, 1))
def test_the_diversity_is_1_exactly_where_no_wrong_class_is_shared(seed, K, part, shared):
    own = torch.eye(K).double().repeat_interleave(part, 1)  # whose class it is
    p = torch.cat([torch.ones(K, 1).double(), own * (0.1 + simplex(seed, (K, K * part)))], 1)
    y = torch.tensor([0])
    assert float(ensembles.diversity(p.log()[None], y)) == pytest.approx(1, abs=1e-12)
    p[0, -1] = shared * p[-1, -1]  # the last member's class
    columns = doubts(p, 0)
    cosine = float(columns[:, 0] @ columns[:, -1])
    assert cosine > 0
    assert float(ensembles.diversity(p.log()[None], y)) <= 1 - cosine**2 + 1e-12


# ---- ADP without the entropy ----


@theorem("thm-adp-infimum")
@given(seeds, st.integers(2, 5), st.integers(0, 3), st.floats(0.01, 10), st.sampled_from([0.1, 1, 3]))
def test_without_entropy_every_prediction_costs_more_than_0(seed, K, spare, beta, scale):
    z = scale * entries((20, K, K + 1 + spare), seed, "plain")
    z[:10, :, 0] += 5 * scale  # surely right
    p, y = z.softmax(2), torch.zeros(20, dtype=torch.int64)
    assert (objective(p, 0, 0, beta) > 0).all()
    floor = -beta * K * math.log1p(ensembles.RIDGE)  # of what the diagonal adds
    assert (ensembles.adp_loss(z, y, 0, beta) > floor).all()


@theorem("thm-adp-infimum")
@given(seeds, st.integers(2, 5), st.integers(1, 3), st.floats(0.01, 10))
def test_sure_members_with_doubts_of_their_own_come_as_close_to_0_as_one_likes(seed, K, part, beta):
    own = torch.eye(K).double().repeat_interleave(part, 1)
    share = own * (0.1 + simplex(seed, (K, K * part)))
    share /= share.sum(1, keepdim=True)
    costs = []
    for doubt in 10.0 ** -torch.arange(1, 13).double():
        p = torch.cat([(1 - doubt).expand(K, 1), doubt * share], 1)
        costs.append(float(objective(p, 0, 0, beta)))
    assert all(a > b for a, b in pairwise(costs))
    assert 0 < costs[-1] < 1e-9 * (1 + beta)
    z = torch.cat([torch.full((K, 1), 2.0), own], 1)  # finite logits that grow
    far = [float(objective((a * z).softmax(1), 0, 0, beta)) for a in (1, 5, 10, 20, 30)]
    assert all(a > b for a, b in pairwise(far))
    assert 0 < far[-1] < 1e-9 * (1 + beta)


@theorem("thm-adp-infimum")
@given(seeds, st.integers(2, 4), st.integers(0, 2), st.floats(0.01, 10))
def test_with_more_members_than_wrong_classes_there_is_no_diversity_to_be_had(seed, L, more, beta):
    K = L + more
    z, y = entries((20, K, L), seed, "plain"), torch.zeros(20, dtype=torch.int64)
    columns = doubts(z.softmax(2), 0)
    assert (torch.linalg.matrix_rank(columns) < K).all()
    assert (torch.linalg.det(columns.mT @ columns).abs() < 1e-12).all()
    # what is left is the diagonal: one eigenvalue 10⁻⁶, and the others add up to K and theirs
    small = ensembles.RIDGE
    most = math.log(small) + (K - 1) * math.log(K / (K - 1) + small)
    assert (ensembles.adp_loss(z, y, 0, beta) >= -beta * most - 1e-6).all()


# ---- ADP with it ----


@theorem("thm-adp-optimum")
@given(alphas, st.integers(1, 6), st.integers(2, 12))
def test_the_optimum_is_the_only_root_of_the_equation(alpha, K, L):
    p = ensembles.optimum(alpha, K, L)
    assert 1 / L < p < 1 + 1e-15

    def left(t):  # 1/p − (α/K) log(p (L − 1)/(1 − p)), for t = log p − log(1 − p)
        return 1 + torch.exp(-t) - alpha / K * (t + math.log(L - 1))

    t, root = torch.linspace(-30, 600, 5001).double(), math.log(p) - math.log1p(-min(p, 1 - 1e-16))
    if p < 1 - 1e-12:
        size = 1 / p + alpha / K * abs(root)
        assert abs(float(left(torch.tensor(root, dtype=torch.float64)))) < 1e-3 * size
        assert ((left(t) > 0) == (t < root))[(t - root).abs() > 1e-3].all()


@theorem("thm-adp-optimum")
@given(seeds, alphas, st.integers(1, 5), st.integers(2, 8), st.sampled_from([1e-3, 0.1, 1.0, 5.0]))
def test_nothing_else_costs_as_little(seed, alpha, K, L, scale):
    """Neither anything at random nor a small step away from the optimum."""
    p = ensembles.optimum(alpha, K, L)
    best = least(p, alpha, K, L)
    at = torch.tensor([p, *[(1 - p) / (L - 1)] * (L - 1)], dtype=torch.float64)
    for centre in (at.log(), 0 * at):
        q = (centre + scale * entries((50, K, L), seed, "plain")).softmax(2)
        cost = objective(q, 0, alpha)
        assert (cost >= best - 1e-12 * (1 + abs(best) + alpha)).all()
        away = (q[:, :, 0] - p).abs().amax(1) + (q.mean(1) - at).abs().amax(1)
        assert (cost > best)[away > 1e-3].all()


@theorem("thm-adp-optimum")
@given(seeds, alphas, st.integers(1, 6))
def test_how_the_rest_is_dealt_among_the_members_does_not_matter_if_its_mean_is_even(seed, alpha, K):
    L, p = K + 1, ensembles.optimum(alpha, K, K + 1)
    q = (1 - p) * simplex(seed, (K,), scale=3.0)
    turned = torch.stack([q.roll(k) for k in range(K)])  # each class gets each share once
    P = torch.cat([torch.full((K, 1), p, dtype=torch.float64), turned], 1)
    assert float(objective(P, 0, alpha)) == pytest.approx(least(p, alpha, K, L), rel=1e-12, abs=1e-12)


@theorem("thm-adp-optimum")
@pytest.mark.parametrize(
    ("alpha", "K", "L"),
    [(2, 3, 10), (6, 3, 10), (0.5, 2, 3), (1, 1, 5), (20, 4, 4), (1, 5, 3), (3, 2, 2)],
)
def test_descent_from_anywhere_ends_at_the_optimum(alpha, K, L):
    p, y = ensembles.optimum(alpha, K, L), torch.tensor([0])
    for seed in range(3):
        found, value = minimised(
            lambda z: ensembles.adp_loss(z[None], y, alpha, 0).sum(), entries((K, L), seed, "plain")
        )
        assert value == pytest.approx(least(p, alpha, K, L), abs=1e-8)
        torch.testing.assert_close(found[:, 0], torch.full((K,), p).double(), rtol=0, atol=1e-4)
        rest = torch.full((L - 1,), (1 - p) / (L - 1)).double()
        torch.testing.assert_close(found.mean(0)[1:], rest, rtol=0, atol=1e-4)


@theorem("thm-adp-corollary")
@given(seeds, alphas, st.floats(0, 10), st.integers(1, 5), st.integers(1, 3))
def test_the_optimal_predictions_have_diversity_1_and_nothing_costs_less(seed, alpha, beta, K, part):
    L = K * part + 1
    P, p = ensembles.optimal_predictions(alpha, K, L), ensembles.optimum(alpha, K, L)
    assume(p < 1 - 1e-9)
    best = least(p, alpha, K, L)
    torch.testing.assert_close(P.sum(1), torch.ones(K).double(), rtol=0, atol=1e-12)
    assert float(squared_volume(doubts(P, 0))) == pytest.approx(1, abs=1e-12)
    assert float(objective(P, 0, alpha, beta)) == pytest.approx(best, rel=1e-9, abs=1e-9)
    y = torch.zeros(1, dtype=torch.int64)
    own = best - beta * K * math.log1p(ensembles.RIDGE)  # with the diagonal
    assert float(ensembles.adp_loss(P.log()[None], y, alpha, beta)) == pytest.approx(own, abs=1e-9)
    mixed = 0.01 * simplex(seed, (50, K, L), scale=3.0) + 0.99 * P
    for q in (mixed, simplex(seed + 1, (50, K, L), scale=3.0)):
        slack = 1e-10 * (1 + abs(best) + alpha)
        assert (objective(q, 0, alpha, beta) >= best - slack).all()
        assert (ensembles.adp_loss(q.log(), y.expand(50), alpha, beta) >= own - slack).all()


@theorem("thm-adp-corollary")
@pytest.mark.parametrize(("alpha", "beta", "K", "L"), [(2, 0.5, 3, 7), (6, 1.0, 2, 5), (1, 2.0, 3, 4)])
def test_descent_on_the_whole_loss_ends_at_the_optimal_predictions(alpha, beta, K, L):
    """From random logits, the best of several runs: up to the order of members and of classes."""
    P, y = ensembles.optimal_predictions(alpha, K, L), torch.tensor([0])
    runs = [
        minimised(
            lambda z: ensembles.adp_loss(z[None], y, alpha, beta).sum(), entries((K, L), seed, "plain")
        )
        for seed in range(4)
    ]
    lowest = float(ensembles.adp_loss(P.log()[None], y, alpha, beta))
    assert min(value for _, value in runs) == pytest.approx(lowest, abs=1e-4)
    assert all(value >= lowest - 1e-9 for _, value in runs)
    found = min(runs, key=lambda run: run[1])[0]
    torch.testing.assert_close(found[:, 0], P[:, 0], rtol=0, atol=1e-4)
    torch.testing.assert_close(found[:, 1:].amax(0), P[:, 1:].amax(0), rtol=0, atol=1e-3)
    assert torch.equal((found[:, 1:] > 1e-3).sum(0), torch.ones(L - 1).long())


@theorem("thm-adp-members")
@given(alphas, st.integers(1, 6), st.integers(1, 4))
def test_a_member_leads_by_log_k_less_than_the_ensemble_and_loses_where_that_is_less_than_0(
    alpha, K, part
):
    L = K * part + 1
    P, p = ensembles.optimal_predictions(alpha, K, L), ensembles.optimum(alpha, K, L)
    assume(p < 1 - 1e-9)
    m, mean = K / (alpha * p), P.mean(0)
    torch.testing.assert_close(
        (mean[0] / mean[1:]).log(), torch.full((L - 1,), m).double(), rtol=1e-6, atol=1e-9
    )
    for own in P:
        part_of_it = own[1:] > 0
        assert int(part_of_it.sum()) == part
        lead = (own[0] / own[1:][part_of_it]).log()
        torch.testing.assert_close(lead, torch.full_like(lead, m - math.log(K)), rtol=1e-6, atol=1e-9)
    assume(abs(m - math.log(K)) > 1e-6)
    wrong = m < math.log(K)
    assert wrong == (p < K / (K + L - 1))
    assert ((P.argmax(1) != 0) == wrong).all()
    assert float(mean[0]) > float(mean[1:].max())


# ---- the mean of probabilities ----


@theorem("thm-mean-of-probabilities")
@given(seeds, st.integers(1, 5), st.integers(2, 6), kinds, st.sampled_from([0.1, 1.0, 10.0]))
def test_where_the_ensemble_is_wrong_a_member_is(seed, K, L, kind, scale):
    z, y = scale * entries((50, K, L), seed, kind), torch.arange(50) % L
    z[:25].scatter_add_(2, y[:25, None, None].expand(-1, K, 1), torch.full((25, K, 1), scale).double())
    right = losses.correct(z.flatten(0, 1), y.repeat_interleave(K)).view(50, K)
    ensemble = losses.correct(ensembles.log_mean(z), y)
    assert ensemble[right.all(1)].all()
    lead = scale * entries((50, K), seed + 1, "plain").abs() + 1e-3  # every member right, by this
    rivals = z.scatter(2, y[:, None, None].expand(-1, K, 1), -math.inf).amax(2)
    z.scatter_(2, y[:, None, None].expand(-1, K, 1), (rivals + lead)[:, :, None])
    assert losses.correct(ensembles.log_mean(z), y).all()


@theorem("thm-mean-of-probabilities")
@given(st.integers(2, 40), st.integers(2, 12), st.floats(30, 1000), st.floats(1e-4, 0.01))
def test_one_sure_member_can_be_enough_and_all_can_be_wrong_without_harm(K, L, sure, lead):
    y = torch.tensor([0])
    z = torch.zeros(1, K, L, dtype=torch.float64)
    z[:, :, 0] = lead
    z[:, 0, 1] = sure
    assert losses.correct(z[0], y.expand(K)).tolist() == [False] + [True] * (K - 1)
    assert not losses.correct(ensembles.log_mean(z), y).any()
    if L > 2:
        p = torch.zeros(1, K, L, dtype=torch.float64)
        p[:, :, 0] = 0.49
        p[0, range(K), [1 + k % (L - 1) for k in range(K)]] = 0.51  # each to another class
        assert not losses.correct(p[0], y.expand(K)).any()
        assert losses.correct(ensembles.log_mean(p.log()), y).all()


@theorem("thm-mean-gradient")
@given(seeds, st.integers(1, 5), st.integers(2, 6), st.sampled_from([0.1, 3.0, 30.0]))
def test_a_member_has_the_share_of_the_gradient_that_it_has_of_the_probability(seed, K, L, scale):
    networks, y = members(seed, K, L, scale), torch.arange(8) % L
    x = inputs((8, 4), seed).requires_grad_()
    found = slope(Ensemble(networks)(x)[range(8), y], x)
    logs = [torch.log_softmax(network(x), 1)[range(8), y] for network in networks]
    p = torch.stack(logs).exp().detach()
    wanted = sum(w[:, None] * slope(own, x) for w, own in zip(p / p.sum(0), logs, strict=True))
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-12)


def fading(p):
    """ρ of the members' probabilities of y, (…, K)."""
    mean = p.mean(-1)
    return (p * (1 - p)).mean(-1) / (mean * (1 - mean))


@theorem("thm-mean-saturates")
@given(seeds, st.integers(1, 5), st.integers(2, 6), st.sampled_from([0.1, 3.0, 20.0]))
def test_the_gradient_of_the_log_odds_is_no_longer_than_the_bound(seed, K, L, scale):
    networks, y = members(seed, K, L, scale), torch.arange(8) % L
    x = inputs((8, 4), seed).requires_grad_()
    z = torch.stack([network(x) for network in networks])
    leads = z.gather(2, y.expand(K, 8)[:, :, None]) - z
    G = torch.stack([slope(leads[k, :, j], x).norm(dim=1) for k in range(K) for j in range(L)]).amax(0)
    rho = fading(z.detach().softmax(2)[:, range(8), y].T)
    found = slope(losses.log_odds(Ensemble(networks)(x), y), x).norm(dim=1)
    assert (found <= G * rho * (1 + 1e-7) + 1e-12).all()
    assert (rho <= 1 + 1e-7).all()


@theorem("thm-mean-saturates")
@given(seeds, st.integers(1, 5), st.integers(2, 6))
def test_members_who_differ_by_a_constant_attain_it(seed, K, L):
    w, b = entries((4,), seed, "plain"), 2 * entries((K, L), seed + 1, "plain")
    x, y = inputs((8, 4), seed).requires_grad_(), torch.zeros(8, dtype=torch.int64)
    z = b.expand(8, K, L) + (x @ w)[:, None, None] * torch.eye(L)[0]
    rho = fading(z.detach().softmax(2)[:, :, 0])
    found = slope(ensembles.mean_probability(z, y), x)
    torch.testing.assert_close(found, -rho[:, None] * w, rtol=1e-9, atol=1e-12)


@theorem("thm-mean-saturates")
@given(seeds, st.integers(2, 8), st.floats(0.05, 0.95))
def test_the_share_is_1_where_all_agree_and_fades_where_sure_members_disagree(seed, K, p):
    same = torch.full((K,), p, dtype=torch.float64)
    assert float(fading(same)) == pytest.approx(1, abs=1e-12)
    other = same.clone()
    other[0] = float(torch.rand((), generator=seeded(seed)))
    gap = float(((other - other.mean()) ** 2).mean() / (other.mean() * (1 - other.mean())))
    assert float(fading(other)) == pytest.approx(1 - gap, abs=1e-12)
    sides = torch.where(torch.arange(K) < 1 + seed % (K - 1), 1.0, -1.0).double()
    shares = [float(fading(torch.sigmoid(a * sides))) for a in (0, 1, 3, 10, 30)]
    assert all(a > b for a, b in pairwise(shares))
    assert shares[-1] < 1e-11


# ---- certificates ----


def led(m, y):
    """Logits whose z_y leads the others by m, up to a constant: (…, L)."""
    return -m.masked_fill(torch.arange(m.shape[-1]) == y[:, None], 0.0)


@theorem("thm-ensemble-certificate")
@given(seeds, st.integers(1, 5), st.integers(2, 6), kinds, st.sampled_from([0.1, 1.0, 10.0]))
def test_no_members_with_such_margins_say_less_of_the_label(seed, K, L, kind, scale):
    y = torch.arange(20) % L
    m = scale * entries((K, 20, L), seed, kind)
    m[:, 10:] = m[:, 10:].abs()
    label = torch.arange(L) == y[:, None]
    bound = ensembles.mean_margins(m.masked_fill(label, math.inf))
    assert torch.equal(bound == math.inf, label)
    assert (bound[10:] >= 0).all()
    strict = (m > 1e-9).masked_fill(label, True).all(0).all(1)
    assert (bound[strict] > 0).all()
    for more in (0.0, 0.1, 10.0):  # margins at least as large as these
        for how in ("plain", "sparse"):
            real = m + more * entries(m.shape, seed + 1, how).abs()
            mean = led(real, y).softmax(2).mean(0)
            apart = mean.gather(1, y[:, None]) - mean
            assert (apart >= bound.masked_fill(label, 0.0) - 1e-12).all()


@theorem("thm-ensemble-certificate")
@settings(max_examples=25)
@given(seeds, st.integers(1, 4), orders, st.sampled_from([0.01, 0.1, 0.4]), st.sampled_from([1.0, 10.0]))
def test_nothing_in_the_ball_has_a_smaller_lead_than_the_certificate(seed, K, p, eps, scale):
    networks, x = members(seed, K, 3, scale), inputs((6, 4), seed)
    ensemble, ball = Ensemble(networks), Ball(p, eps, BOX)
    y = ensemble(x).argmax(1)
    bound = ensembles.margins(networks, x, y, ball)
    tried = [ball.sample(x, seeded(seed + i)) for i in range(20)]
    few = partial(attacks.pgd, steps=5)
    tried += [attack(ensemble, x, y, ball) for attack in (few, climb(ensembles.mean_margin, few))]
    with torch.no_grad():
        for delta in tried:
            mean = ensemble(x + delta).exp()
            apart = mean.gather(1, y[:, None]) - mean
            assert (apart >= bound.masked_fill(bound == math.inf, 0.0) - 1e-9).all()


@theorem("thm-ensemble-certificate")
@given(st.integers(2, 6), st.integers(2, 5), st.floats(2, 50), st.floats(0.01, 0.3))
def test_an_ensemble_can_be_proved_where_a_member_is_not(K, L, sure, weak):
    m = torch.full((K, 1, L), float(sure) + math.log(L), dtype=torch.float64)
    m[0] = -weak
    m[:, :, 0] = math.inf
    assert (m[0] < 0).any()
    assert (ensembles.mean_margins(m) > 0).all()


@theorem("thm-averaged-margins")
@pytest.mark.parametrize("method", ["interval", "dual", "crown"])
@settings(max_examples=25)
@given(
    seed=seeds,
    K=st.integers(1, 4),
    p=orders,
    box=st.sampled_from([None, BOX]),
    eps=st.sampled_from([0.0, 0.05, 0.3, 1.0]),
    widths=st.sampled_from([(), (6,), (6, 5), (4, 4, 4)]),
)
def test_the_bound_of_the_mean_is_at_least_the_mean_of_the_bounds(method, seed, K, p, box, eps, widths):
    networks, x = members(seed, K, 3, 2.0, widths), inputs((4, 4), seed)
    y, ball = torch.arange(4) % 3, Ball(p, eps, box)
    together = bounds.margins(ensembles.averaged(networks), x, y, ball, method)
    apart = torch.stack([bounds.margins(network, x, y, ball, method) for network in networks]).mean(0)
    other = apart != math.inf
    assert torch.equal(together != math.inf, other)
    assert (together[other] >= apart[other] - 1e-10).all()


@theorem("thm-averaged-margins")
@pytest.mark.parametrize("method", ["dual", "crown"])
def test_members_that_no_single_move_can_hurt_are_where_it_is_tighter(method):
    first, second = nn.Linear(1, 2), nn.Linear(1, 2)
    for layer, w in ((first, 1.0), (second, -1.0)):
        layer.weight.data = torch.tensor([[w], [0.0]])
        layer.bias.data = torch.tensor([0.5, 0.0])
    networks = [nn.Sequential(nn.Flatten(), layer) for layer in (first, second)]
    x, y, ball = torch.zeros(1, 1), torch.tensor([0]), Ball(math.inf, 1.0)
    networks.append(ensembles.averaged(networks))
    found = [bounds.margins(network, x, y, ball, method)[0, 1].item() for network in networks]
    assert found == pytest.approx([-0.5, -0.5, 0.5])
