"""Detection: scores, thresholds, what rejects and what attacks it, each against slow loops."""

import copy
import math
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import betainc
from strategies import BOX, DTYPES, entries, inputs, seeded, seeds, trained_on_digits
from torch import nn

from adv_lib import attacks, bounds, detection, losses, models
from adv_lib.detection import KernelDensity, LocalDimension, Rejecting, climb, confidence
from adv_lib.threat import Ball

INF = math.inf
CUBE = Ball(INF, 0.2, BOX)
kinds = st.sampled_from(["plain", "ties", "sparse", "uneven"])


def network(L=4, seed=0, norm=False, scale=3.0, hidden=(7, 5), dtype=torch.float64):
    """Six inputs, five features, L logits whose spread is scale, and no class that wins everywhere."""
    found = models.mlp([6, *hidden, L], seeded(seed), norm=norm).double().eval()
    with torch.no_grad():
        z = found(inputs((100, 6), seed + 9))
        found[-1].weight *= scale / z.std(0)[:, None]
        found[-1].bias *= scale / z.std(0)
        found[-1].bias -= found(inputs((100, 6), seed + 9)).mean(0)
    return found.to(dtype).train()


def batch(n=20, L=4, seed=0, dtype=torch.float64):
    return inputs((n, 1, 2, 3), seed).to(dtype), torch.arange(n) % L


def logits(seed=0, n=8, K=5, scale=1.0, kind="plain", dtype=torch.float64):
    return (scale * entries((n, K), seed, kind)).to(dtype)


def log_probabilities(row):
    """log p of one row of logits, summed without rounding on the way."""
    top = max(row)
    log_sum = top + math.log(math.fsum(math.exp(v - top) for v in row))
    return [v - log_sum for v in row]


def others(row, c):
    return [v for j, v in enumerate(row) if j != c]


# ---- reverse cross-entropy ----


@given(seeds, st.integers(2, 7), kinds, st.sampled_from([0.1, 1.0, 30.0]))
def test_reverse_cross_entropy_is_its_formula(seed, K, kind, scale):
    z = logits(seed, K=K, scale=scale, kind=kind)
    y = torch.arange(8) % K
    found = detection.reverse_cross_entropy(z, y)
    assert found.shape == (8,)
    for row, own, value in zip(z.tolist(), y.tolist(), found.tolist(), strict=True):
        wanted = -math.fsum(others(log_probabilities(row), own)) / (K - 1)
        assert value == pytest.approx(wanted, rel=1e-12, abs=1e-12)


@pytest.mark.parametrize("K", [2, 3, 10])
def test_its_gradient_is_the_probability_less_an_equal_share_of_the_others(K):
    z, y = logits(K=K, scale=3.0).requires_grad_(), torch.arange(8) % K
    (slope,) = torch.autograd.grad(detection.reverse_cross_entropy(z, y).sum(), z)
    share = torch.full_like(z, 1 / (K - 1)).scatter(1, y[:, None], 0.0)
    torch.testing.assert_close(slope, z.softmax(1) - share, rtol=0, atol=1e-12)


@pytest.mark.parametrize("far", [300.0, 5000.0, 1e8])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_label_that_is_all_but_ruled_out_leaves_the_value_of_the_others(dtype, far):
    """log p_y is as far away as the logit, and no part of the loss."""
    z = torch.tensor([[-far, 0.5, -0.25, 1.0], [far, 0.5, -0.25, 1.0]], dtype=dtype, requires_grad=True)
    y = torch.tensor([0, 0])
    found = detection.reverse_cross_entropy(z, y)
    (slope,) = torch.autograd.grad(found.sum(), z)
    wanted = -math.fsum(log_probabilities([0.5, -0.25, 1.0])) / 3
    assert found[0].item() == pytest.approx(wanted, rel=4 * torch.finfo(dtype).eps)
    assert found[1].item() == pytest.approx(far - 1.25 / 3, rel=1e-6)
    assert slope.isfinite().all()


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_reversed_logits_give_the_softmax_of_minus_z_from_the_same_features(dtype, norm):
    original, (x, _) = network(norm=norm, dtype=dtype).eval(), batch(dtype=dtype)
    before = copy.deepcopy(original.state_dict())
    turned = detection.reversed_logits(original)
    assert [str(layer) for layer in turned] == [str(layer) for layer in original]
    z, features = original(x), original[:-1](x)
    torch.testing.assert_close(turned(x).softmax(1), (-z).softmax(1))
    assert torch.equal(turned[:-1](x), features)
    taken = {t.data_ptr() for t in original.state_dict().values()}
    assert not taken & {t.data_ptr() for t in turned.state_dict().values()}
    with torch.no_grad():
        for parameter in turned.parameters():
            parameter.zero_()
    assert all(torch.equal(t, before[name]) for name, t in original.state_dict().items())
    assert all(parameter.requires_grad for parameter in turned.parameters())


def test_reversing_twice_changes_nothing_and_bounds_read_what_is_reversed():
    original, (x, y) = network(), batch(5)
    twice = detection.reversed_logits(detection.reversed_logits(original))
    assert torch.equal(twice(x), original(x))
    turned, small = detection.reversed_logits(original), Ball(INF, 0.02, BOX)
    bound, other = bounds.margins(turned, x, y, small), torch.arange(4) != y[:, None]
    for seed in range(10):
        z = turned(x + small.sample(x, seeded(seed)))
        assert ((z.gather(1, y[:, None]) - z)[other] >= bound[other] - 1e-9).all()


def test_a_last_layer_without_a_bias_is_reversed_too():
    alone = nn.Sequential(nn.Flatten(), nn.Linear(6, 3, bias=False))
    x = batch(dtype=torch.float32)[0]
    torch.testing.assert_close(detection.reversed_logits(alone)(x), -alone(x))


def test_how_far_a_reversal_can_be_off_is_what_one_computes_by_hand():
    assert detection.reversal_bounds(0, 10) == (0, 0)
    assert detection.reversal_bounds(0.2, 2)[0] == pytest.approx(0.2)
    rest, apart = detection.reversal_bounds(0.1, 3)  # k = 2: 0.4 / 1.2, and 2 · 0.04 / (0.96 · 1.4)
    assert rest == pytest.approx(1 / 3)
    assert apart == pytest.approx(0.08 / 1.344)
    assert detection.reversal_bounds(0.33333, 4)[0] < 1


# ---- scores of the logits ----


@given(seeds, st.integers(2, 7), kinds, st.sampled_from([0.1, 1.0, 10.0]))
def test_confidence_is_the_log_odds_of_the_largest_probability(seed, K, kind, scale):
    z = logits(seed, K=K, scale=scale, kind=kind).clamp(-15, 15)
    for row, value in zip(z.tolist(), confidence(z).tolist(), strict=True):
        log_p = log_probabilities(row)
        c = max(range(K), key=log_p.__getitem__)
        doubt = math.fsum(map(math.exp, others(log_p, c)))  # 1 − p, without its cancellation
        assert value == pytest.approx(log_p[c] - math.log(doubt), rel=1e-12, abs=1e-12)
        if doubt > 1e-4:
            p = math.exp(log_p[c])
            assert value == pytest.approx(math.log(p / (1 - p)), rel=1e-9, abs=1e-9)


def test_confidence_is_ordered_as_the_largest_probability_and_has_no_end():
    z = logits(n=200, scale=2.0)
    assert torch.equal(confidence(z).argsort(), z.softmax(1).amax(1).argsort())
    sure = torch.tensor([[20.0, 0.0, 0.0], [40.0, 0.0, 0.0], [3000.0, 0.0, 0.0]])
    assert (sure.softmax(1)[:, 0] == 1).all()
    torch.testing.assert_close(confidence(sure), sure[:, 0] - math.log(2))


@given(seeds, st.integers(3, 7), kinds, st.sampled_from([0.1, 1.0, 30.0]))
def test_non_me_is_the_entropy_of_what_is_left_without_the_predicted_class(seed, K, kind, scale):
    z = logits(seed, K=K, scale=scale, kind=kind)
    found = detection.non_maximal_entropy(z)
    for row, value in zip(z.tolist(), found.tolist(), strict=True):
        c = max(range(K), key=row.__getitem__)
        log_p = log_probabilities(others(row, c))
        wanted = -math.fsum(math.exp(v) * v for v in log_p)
        assert value == pytest.approx(wanted, rel=1e-10, abs=1e-12)
    moved = z.scatter_add(1, z.argmax(1, keepdim=True), torch.full((8, 1), 7.0).double())
    torch.testing.assert_close(detection.non_maximal_entropy(moved), found, rtol=0, atol=1e-12)


@pytest.mark.parametrize("size", [300.0, 5000.0])
@pytest.mark.parametrize("dtype", DTYPES)
def test_scores_of_logits_and_their_slopes_stay_finite_far_out(dtype, size):
    signs = torch.tensor([[1, -1, -1], [1, 1, -1], [1, 1, 1], [0, 1, -1], [0, 0, 1], [0, 0, 0]])
    z = (size * signs).to(dtype).requires_grad_()
    for score in (confidence, detection.non_maximal_entropy):
        found = score(z)
        (slope,) = torch.autograd.grad(found.sum(), z)
        assert found.dtype == dtype
        assert found.isfinite().all()
        assert slope.isfinite().all()
        torch.testing.assert_close(found.detach().double(), score(z.detach().double()))
    assert confidence(z)[0].item() == pytest.approx(2 * size - math.log(2))


# ---- scores of the features ----


def kept(m=30, d=5, K=3, seed=7, dtype=torch.float64):
    return entries((m, d), seed, "plain").to(dtype), torch.arange(m) % K


@given(seeds, st.integers(1, 6), st.sampled_from([0.3, 1.0, 4.0]))
def test_the_density_is_its_formula_summed_without_rounding(seed, d, bandwidth):
    features, labels = kept(d=d, seed=seed)
    labels[:5] = 0  # not as many of each
    z, h = logits(seed, K=3), entries((8, d), seed + 1, "plain")
    found = KernelDensity(features, labels, bandwidth)(z, h)
    for i in range(8):
        c = max(range(3), key=z[i].tolist().__getitem__)
        own = [f for f, k in zip(features.tolist(), labels.tolist(), strict=True) if k == c]
        far = [math.dist(h[i].tolist(), f) ** 2 / bandwidth**2 for f in own]
        near = min(far)
        total = math.fsum(math.exp(near - v) for v in far)
        wanted = math.log(total / len(own)) - near
        assert found[i].item() == pytest.approx(wanted, rel=1e-11, abs=1e-11)


@given(seeds, st.integers(1, 6), st.integers(2, 12))
def test_the_local_dimension_is_its_formula(seed, d, k):
    features, h = kept(d=d, seed=seed)[0], entries((8, d), seed + 1, "plain")
    found, score = LocalDimension(features, k)(None, h), LocalDimension(features, k)
    for i in range(8):
        r = sorted(math.dist(h[i].tolist(), f) for f in features.tolist())[:k]
        wanted = math.fsum(math.log(r[-1] / v) for v in r) / k
        rounding = 1e-13 / r[0] ** 2  # squares of 1 that cancel down to r²
        assert found[i].item() == pytest.approx(wanted, abs=rounding)
        assert score.dimension(h)[i].item() == pytest.approx(1 / wanted, rel=1e-9 + rounding / wanted)


@pytest.mark.parametrize("k", [2, 3, 5, 7, 11])
@pytest.mark.parametrize("dtype", DTYPES)
def test_where_all_neighbours_are_as_far_the_score_is_0_and_the_dimension_has_no_end(dtype, k):
    score = LocalDimension(1.3 * torch.eye(k, dtype=dtype), k)
    h = torch.full((1, k), 0.1, dtype=dtype)
    assert score(None, h).tolist() == [0.0]
    assert score.dimension(h).tolist() == [INF]


@pytest.mark.parametrize("dtype", DTYPES)
def test_scores_of_features_and_their_slopes_stay_finite_at_a_distance_of_a_thousand(dtype):
    features, labels = kept(dtype=dtype)
    h = 1e3 * entries((20, 5), 3, "plain").to(dtype)
    h = torch.cat([h, features[:3], features[:3] + 1e3, 0 * h[:1]]).requires_grad_()
    z = logits(n=len(h), K=3, dtype=dtype)
    scores = {
        "narrow": KernelDensity(features, labels, 0.1),
        "wide": KernelDensity(features, labels, 30.0),
        "local": LocalDimension(features, 5),
        "all": LocalDimension(features, len(features)),
    }
    for name, score in scores.items():
        found = score(z, h)
        (slope,) = torch.autograd.grad(found.sum(), h)
        assert found.dtype == dtype, name
        assert found.isfinite().all(), name
        assert slope.isfinite().all(), name
    assert (scores["local"](z, h) >= 0).all()
    terms = torch.exp(-(torch.cdist(h[:20], features) ** 2) / 0.01)
    assert (terms == 0).all()  # as a sum there is nothing left
    assert (scores["narrow"](z, h)[:20] < -1e6).all()


@pytest.mark.parametrize("score", ["density", "local"])
def test_the_slopes_of_the_scores_of_features_are_those_of_finite_differences(score):
    features, labels = kept()
    h, z = entries((4, 5), 3, "plain").requires_grad_(), logits(n=4, K=3)
    of = {"density": KernelDensity(features, labels, 1.5), "local": LocalDimension(features, 6)}[score]
    (slope,) = torch.autograd.grad(of(z, h).sum(), h)
    for i in range(5):
        step = 1e-6 * torch.eye(5).double()[i]
        rise = (of(z, h + step) - of(z, h - step)) / 2e-6
        torch.testing.assert_close(slope[:, i], rise.detach(), rtol=1e-6, atol=1e-6)


def test_two_sided_is_positive_between_its_ends_and_by_how_much():
    s = torch.tensor([-1.0, 0.0, 0.5, 2.0, 3.0, 9.0])
    inside = detection.two_sided(lambda z, h: z[:, 0], 0.0, 3.0)
    assert inside(s[:, None], s[:, None]).tolist() == [-1.0, 0.0, 0.5, 1.0, 0.0, -6.0]
    half = detection.two_sided(lambda z, h: z[:, 0], -INF, 3.0)
    assert half(s[:, None], s[:, None]).tolist() == [4.0, 3.0, 2.5, 1.0, 0.0, -6.0]


# ---- what a detector is judged by ----


@pytest.mark.parametrize("dtype", DTYPES)
@given(seeds, st.integers(1, 40), st.floats(0, 1), st.sampled_from([0.5, 0.9, 0.95]))
def test_the_threshold_is_the_kth_smallest_score_with_the_quantiles_of_beta(dtype, seed, n, f, level):
    scores = entries((n,), seed, "plain").to(dtype)
    k = min(n, max(1, int(f * (n + 1))))
    found = detection.threshold(scores, k / (n + 1), level)
    assert found.value == sorted(scores.tolist())[k - 1]
    assert betainc(k, n + 1 - k, found.low) == pytest.approx((1 - level) / 2, rel=1e-9)
    assert betainc(k, n + 1 - k, found.high) == pytest.approx((1 + level) / 2, rel=1e-9)
    between = detection.threshold(scores, (k + 0.5) / (n + 1), level)
    assert between == found
    assert int((scores < found.value).sum()) == k - 1


@pytest.mark.parametrize(("n", "f", "k"), [(99, 0.05, 5), (19, 0.1, 2), (9, 0.3, 3), (1, 0.5, 1)])
def test_a_rate_that_is_a_whole_number_of_scores_is_not_rounded_down(n, f, k):
    scores = torch.arange(1.0, n + 1)
    assert detection.threshold(scores, f).value == k


LAWS = {  # quantiles and distribution functions
    "uniform": (lambda u: u, lambda s: s),
    "normal": (torch.special.ndtri, torch.special.ndtr),
    "Cauchy": (lambda u: torch.tan(math.pi * (u - 0.5)), lambda s: 0.5 + torch.atan(s) / math.pi),
    "exponential": (lambda u: -torch.log1p(-u), lambda s: -torch.expm1(-s)),
}


@pytest.mark.parametrize(("n", "f"), [(19, 0.1), (99, 0.05), (50, 0.3)])
@pytest.mark.parametrize("law", LAWS.values(), ids=LAWS)
def test_the_share_below_a_threshold_is_what_it_says_whatever_the_scores_distribution(law, n, f):
    draws, k = 4000, math.floor(f * (n + 1) + 1e-9)
    quantile, share_below = law
    scores = quantile(torch.rand(draws, n, generator=seeded(n), dtype=torch.float64))
    some = [detection.threshold(row, f) for row in scores[:200]]
    at = scores.sort(1).values[:, k - 1]
    assert [one.value for one in some] == at[:200].tolist()
    share = share_below(at)
    spread = math.sqrt(k * (n + 1 - k) / (n + 1) ** 2 / (n + 2))
    assert share.mean().item() == pytest.approx(k / (n + 1), abs=4 * spread / math.sqrt(draws))
    covered = ((share >= some[0].low) & (share <= some[0].high)).double().mean().item()
    assert covered == pytest.approx(0.95, abs=4 * math.sqrt(0.95 * 0.05 / draws))


def pair(seed, n, m, kind="ties"):
    """Scores of clean and of attacked inputs, with ties among and between them."""
    return entries((n,), seed, kind) + 0.5, entries((m,), seed + 1, kind)


@settings(max_examples=30)
@given(seeds, st.integers(1, 15), st.integers(1, 15), kinds, st.sampled_from(DTYPES))
def test_the_auc_counts_pairs_and_is_the_formula_of_mid_ranks(seed, n, m, kind, dtype):
    ordinary, attacked = (s.to(dtype) for s in pair(seed, n, m, kind))
    found = detection.auc(ordinary, attacked)
    won = [(s > t) + (s == t) / 2 for s in ordinary.tolist() for t in attacked.tolist()]
    assert found == pytest.approx(math.fsum(won) / (n * m), abs=1e-12)
    both = [*ordinary.tolist(), *attacked.tolist()]
    ranks = sum(sum(t < s for t in both) + (both.count(s) + 1) / 2 for s in both[:n])
    assert found == pytest.approx((ranks - n * (n + 1) / 2) / (n * m), abs=1e-12)
    assert detection.auc(-ordinary, -attacked) == pytest.approx(1 - found, abs=1e-12)


@settings(max_examples=30)
@given(seeds, st.integers(1, 15), st.integers(1, 15), kinds)
def test_the_roc_counts_who_lies_below_or_at_every_threshold(seed, n, m, kind):
    ordinary, attacked = pair(seed, n, m, kind)
    alarms, found, at = detection.roc(ordinary, attacked)
    assert {t.dtype for t in (alarms, found, at)} == {torch.float64}
    assert at.tolist() == [-INF, *sorted({*ordinary.tolist(), *attacked.tolist()})]
    for f, t, value in zip(alarms.tolist(), found.tolist(), at.tolist(), strict=True):
        assert f == pytest.approx(sum(s <= value for s in ordinary.tolist()) / n, abs=1e-12)
        assert t == pytest.approx(sum(s <= value for s in attacked.tolist()) / m, abs=1e-12)
    assert (alarms[0], found[0], alarms[-1], found[-1]) == (0, 0, 1, 1)
    area = torch.trapezoid(found, alarms).item()
    assert area == pytest.approx(detection.auc(ordinary, attacked), abs=1e-12)


# ---- a classifier that rejects ----


def scores(seed=0, L=4, dtype=torch.float64):
    """A score of each kind for `network`, from its own features."""
    own = network(L, seed, dtype=dtype)
    with torch.no_grad():
        h = own[:-1](inputs((40, 1, 2, 3), seed + 50).to(dtype))
    return {
        "confidence": confidence,
        "non-ME": detection.non_maximal_entropy,
        "density": KernelDensity(h, torch.arange(40) % L, 0.3),
        "local dimension": LocalDimension(h, 8),
        "two-sided": detection.two_sided(confidence, 0.0, 2.0),
    }


SCORES = list(scores())
each_score = pytest.mark.parametrize("name", SCORES)


def refusing(name="confidence", seed=0, t=None, n=20, norm=False, dtype=torch.float64, share=0.4):
    """A network with a score that rejects a share of its inputs; and inputs that it has right."""
    own, (x, _) = network(seed=seed, norm=norm, dtype=dtype), batch(n, seed=seed, dtype=dtype)
    model = Rejecting(own, scores(seed, dtype=dtype)[name])
    with torch.no_grad():
        y, s = model.eval()(x).argmax(1), model.parts(x)[2]
    model.threshold = s.quantile(share).item() if t is None else t
    return model.train(), x, y


@each_score
@pytest.mark.parametrize("norm", [False, True])
def test_it_gives_the_networks_logits_and_says_what_it_accepts(name, norm):
    model, x, y = refusing(name, norm=norm)
    y[::3] = (y[::3] + 1) % 4
    modes = [module.training for module in model.modules()]
    before = {key: value.clone() for key, value in model.state_dict().items()}
    right, s = model.judged(x, y)
    accepted, fooled = model.accepts(x), model.fooled(x, y)
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not s.requires_grad
    model.eval()
    z, h, again = model.parts(x)
    assert torch.equal(model(x), model.network(x))
    assert torch.equal(z, model.network(x))
    assert torch.equal(h, model.network[:-1](x))
    assert torch.equal(again, model.score(z, h))
    assert torch.equal(right, z.argmax(1) == y)
    assert torch.equal(s, again)
    assert torch.equal(accepted, s >= model.threshold)
    assert torch.equal(fooled, (z.argmax(1) != y) & (s >= model.threshold))
    assert fooled.any()
    assert not accepted.all()


def test_what_lies_at_the_threshold_is_accepted_and_minus_infinity_accepts_all():
    model, x, _ = refusing()
    s = model.judged(x, torch.zeros(20).long())[1]
    model.threshold = s[3].item()
    assert model.accepts(x)[3]
    assert Rejecting(model.network).accepts(x).all()
    assert not Rejecting(model.network, threshold=INF).accepts(x).any()


def test_a_tie_is_a_wrong_answer():
    tied = nn.Sequential(nn.Flatten(), nn.Linear(2, 3))
    nn.init.zeros_(tied[1].weight)
    nn.init.zeros_(tied[1].bias)
    model, x = Rejecting(tied, threshold=-1.0), torch.rand(3, 2, generator=seeded(0))
    assert model.fooled(x, torch.arange(3)).all()


def test_scores_pass_gradients_on_and_judging_passes_none():
    model, x, y = refusing()
    leaf = x.clone().requires_grad_()
    (slope,) = torch.autograd.grad(model.parts(leaf)[2].sum(), leaf)
    assert (slope != 0).any()
    for answer in (*model.judged(leaf, y), model.accepts(leaf), model.fooled(leaf, y)):
        assert not answer.requires_grad
    assert leaf.grad is None


def test_a_network_that_changes_its_input_leaves_the_callers_alone():
    class Halves(nn.Module):
        def forward(self, v):
            return v.mul_(0.5)

    x = batch()[0].float()
    model, before = Rejecting(nn.Sequential(Halves(), nn.Flatten(), nn.Linear(6, 3))), x.clone()
    model.accepts(x)
    model.judged(x, torch.zeros(20).long())
    assert torch.equal(x, before)


@each_score
def test_it_is_the_same_without_gradients(name):
    model, x, y = refusing(name)
    with torch.no_grad():
        quiet = [*model.judged(x, y), model.accepts(x), model.fooled(x, y)]
    loud = [*model.judged(x, y), model.accepts(x), model.fooled(x, y)]
    assert all(torch.equal(a, b) for a, b in zip(quiet, loud, strict=True))


# ---- what an attack climbs ----


@settings(max_examples=40)
@given(seeds, st.integers(2, 6), kinds, st.floats(0, 5))
def test_what_an_attack_climbs_is_its_definition(seed, K, kind, weight):
    z, y = logits(seed, K=K, scale=3.0, kind=kind), torch.arange(8) % K
    g = entries((8,), seed + 1, "plain")
    for i in range(8):
        row, own = z[i].tolist(), int(y[i])
        rest = others(row, own)
        top = max(rest)
        odds = top + math.log(math.fsum(math.exp(v - top) for v in rest)) - row[own]
        lead, excess = top - row[own], g[i].item()
        wanted = {
            "constrained": odds if lead < 0 else excess,
            "weakest": min(lead, excess),
            "penalised": odds + weight * min(excess, 0.0),
        }
        each = {**LOSSES, "penalised": detection.penalised(weight)}
        one = slice(i, i + 1)
        found = {name: each[name](z[one], g[one], y[one]).item() for name in wanted}
        assert found == pytest.approx(wanted, rel=1e-9, abs=1e-9)
    assert torch.equal(detection.penalised(0)(z, g, y), losses.log_odds(z, y))


LOSSES = {
    "constrained": detection.constrained,
    "weakest": detection.weakest,
    "penalised": detection.penalised(2.0),
}
CLIMBS = {
    "PGD": partial(attacks.pgd, steps=8),
    "PGD, restarts": partial(attacks.pgd, steps=4, restarts=2),
    "APGD": partial(attacks.apgd, steps=8),
}
few = partial(attacks.pgd, steps=6)


def knowing(x, y, attack=few):
    """An attack of each kind that knows the detector."""
    found = {name: climb(loss, attack) for name, loss in LOSSES.items()}
    return found | {
        "targeted": detection.targeted(attack),
        "matching": detection.matching(x.flip(0), y.flip(0), attack),
    }


KNOWING = ["constrained", "weakest", "penalised", "targeted", "matching"]
each_knowing = pytest.mark.parametrize("which", KNOWING)


# ---- attacks that know the detector ----


@each_score
@each_knowing
def test_what_they_find_is_allowed_and_they_leave_no_trace(which, name):
    model, x, y = refusing(name, norm=True)
    modes = [module.training for module in model.modules()]
    before = {key: value.clone() for key, value in model.state_dict().items()}
    model.network[1].weight.grad = torch.ones_like(model.network[1].weight)
    attack = knowing(x, y, partial(attacks.pgd, steps=3))[which]
    for ball in (CUBE, Ball(2, 0.5, BOX), Ball(INF, torch.linspace(0, 0.3, 20))):
        leaf = x.clone().requires_grad_()
        delta = attack(model, leaf, y, ball)
        assert (delta.shape, delta.dtype) == (x.shape, x.dtype)
        assert not delta.requires_grad
        assert leaf.grad is None
        assert ball.contains(delta, x).all()
    with torch.no_grad():
        assert torch.equal(attack(model, x, y, ball), delta)
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert torch.equal(model.network[1].weight.grad, torch.ones_like(model.network[1].weight))
    assert all(p.grad is None for p in model.parameters() if p is not model.network[1].weight)


@each_knowing
def test_what_was_made_in_inference_mode_is_attacked_like_anything_else(which):
    model, x, y = refusing("density")
    expected = knowing(x, y)[which](model, x, y, CUBE)
    with torch.inference_mode():
        mine, own = x.clone(), y.clone()
        assert torch.equal(knowing(mine, own)[which](model, mine, own, CUBE), expected)
    assert torch.equal(knowing(mine, own)[which](model, mine, own, CUBE), expected)


def best_of(seen, y):
    """Of all iterates, by sample: the highest score of a wrong answer, the nearest to wrong if none."""
    wrong = torch.stack([~losses.correct(z, y) for z, _ in seen])
    g = torch.stack([g for _, g in seen]).masked_fill(~wrong, -INF).amax(0)
    return wrong.any(0), g, torch.stack([losses.margin(z, y) for z, _ in seen]).amin(0)


@pytest.mark.parametrize("attack", CLIMBS.values(), ids=CLIMBS)
@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
@each_score
def test_the_wrong_answer_with_the_highest_score_of_all_iterates_is_kept(name, loss, attack):
    model, x, y = refusing(name, seed=3)
    seen = []

    def watched(z, g, own):
        assert torch.equal(own, y)
        seen.append((z.detach(), g.detach()))
        return loss(z, g, own)

    heard = []
    attack = partial(attack, callback=heard.append)  # asks for the loss of the last iterate, too
    delta = climb(watched, attack)(model, x, y, CUBE)
    wrong, g, lead = best_of(seen, y)
    right, s = model.judged(x + delta, y)
    assert torch.equal(~right, wrong)
    torch.testing.assert_close((s - model.threshold)[wrong], g[wrong], rtol=1e-9, atol=1e-9)
    margin = losses.margin(model.eval()(x + delta), y)
    torch.testing.assert_close(margin[~wrong], lead[~wrong], rtol=1e-6, atol=1e-9)
    assert torch.equal(model.fooled(x + delta, y), wrong & (g >= -1e-12))
    assert wrong.any()
    for iterate in heard:  # a callback is told what the margin is about
        at, s = model.judged(x + iterate.delta, y)
        torch.testing.assert_close(-iterate.margin[~at], (s - model.threshold)[~at])
        assert torch.equal(iterate.margin > 1e20, at)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bandwidth", [0.3, 0.003, 3e-5])
def test_so_it_is_where_all_scores_are_far_below_the_threshold(bandwidth, dtype):
    """A score of −10⁶ and one of −10⁶ + 1 are not the same to what keeps the best."""
    model, x, y = refusing("density", seed=3, dtype=dtype)
    model.score = KernelDensity(model.score.features, model.score.labels, bandwidth)
    model.threshold, seen = 0.0, []

    def watched(z, g, own):
        seen.append((z.detach(), g.detach()))
        return detection.constrained(z, g, own)

    delta = climb(watched, partial(few, callback=lambda iterate: None))(model, x, y, CUBE)
    wrong, g, _ = best_of(seen, y)
    right, s = model.judged(x + delta, y)
    assert wrong.sum() > 3
    assert torch.equal(~right, wrong)
    exact = 1e-9 if dtype == torch.float64 else 1e-4
    torch.testing.assert_close(s[wrong], g[wrong], rtol=exact, atol=exact)


@each_knowing
def test_where_everything_is_accepted_who_is_wrong_is_fooled(which):
    for name in SCORES:
        model, x, y = refusing(name, t=-INF)
        for attack in (few, partial(attacks.apgd, steps=6)):
            delta = knowing(x, y, attack)[which](model, x, y, CUBE)
            assert delta.isfinite().all()
            right, _ = model.judged(x + delta, y)
            assert torch.equal(model.fooled(x + delta, y), ~right)
            if which in ("constrained", "penalised"):
                plain = model.judged(x + attack(model, x, y, CUBE), y)[0]
                assert (~right).sum() >= (~plain).sum()


@each_knowing
def test_where_nothing_is_accepted_nobody_is_fooled_and_nothing_fails(which):
    model, x, y = refusing(t=INF)
    for attack in (few, partial(attacks.apgd, steps=6)):
        delta = knowing(x, y, attack)[which](model, x, y, CUBE)
        assert delta.isfinite().all()
        assert not model.fooled(x + delta, y).any()


@each_knowing
def test_an_empty_batch_gives_an_empty_answer(which):
    model, x, y = refusing()
    attack = knowing(x, y)[which]
    assert attack(model, x[:0], y[:0], CUBE).shape == (0, 1, 2, 3)
    assert detection.highest(model, x[:0], y[:0], CUBE, [attack]).shape == (0,)


@pytest.mark.parametrize("share", [0.05, 0.3])
def test_who_knows_the_score_fools_more_than_who_does_not(share, digits):
    """A network trained on digits that rejects where it is not sure."""
    x, y = digits.x_test[:100], digits.y_test[:100]
    model, ball = Rejecting(trained_on_digits()), Ball(INF, 0.1, BOX)
    model.threshold = detection.threshold(model.judged(digits.x_train, digits.y_train)[1], share).value
    plain = model.fooled(x + attacks.pgd(model, x, y, ball, steps=20), y)
    delta = climb(detection.constrained, partial(attacks.pgd, steps=20))(model, x, y, ball)
    assert model.fooled(x + delta, y).sum() >= plain.sum()
    delta = detection.targeted(partial(attacks.pgd, steps=20))(model, x, y, ball)
    assert model.fooled(x + delta, y).sum() > plain.sum()


def ramp():
    """z = (0, u − 0.1, 3u − 1) of one number u: class 1 is in the way, and never sure of itself."""
    layer = nn.Linear(1, 3)
    layer.weight.data = torch.tensor([[0.0], [1.0], [3.0]])
    layer.bias.data = torch.tensor([0.0, -0.1, -1.0])
    return Rejecting(nn.Sequential(nn.Flatten(), layer), threshold=0.5)


def test_towards_every_class_there_is_a_way_up_where_the_nearest_has_none():
    model, x, y, ball = ramp(), torch.zeros(1, 1), torch.tensor([0]), Ball(INF, 1.0, BOX)
    attack = partial(attacks.pgd, steps=40)
    near = x + climb(detection.constrained, attack)(model, x, y, ball)
    assert model(near).argmax(1).item() == 1
    assert not model.fooled(near, y)
    one = x + detection.targeted(attack, targets=1)(model, x, y, ball)
    assert not model.fooled(one, y)
    far = x + detection.targeted(attack)(model, x, y, ball)
    assert model.fooled(far, y)
    assert far.item() == pytest.approx(1, abs=1e-6)


def test_of_all_classes_that_are_tried_the_one_that_comes_furthest_is_kept():
    model, x, y = refusing(seed=3)
    z = model.eval()(x).detach()
    ranked = z.scatter(1, y[:, None], -INF).argsort(1, descending=True)
    tried = []
    for place in range(3):
        goal = ranked[:, place]
        reach = lambda z, g, _, goal=goal: torch.where(  # noqa: E731
            losses.correct(z, goal), g, -losses.log_odds(z, goal)
        )
        tried.append(climb(reach, few))
        best = detection.highest(model, x, y, CUBE, tried)
        found = detection.targeted(few, targets=place + 1)
        torch.testing.assert_close(detection.highest(model, x, y, CUBE, [found]), best)


# ---- matching ----


def plain_features(K=3, d=4):
    """Features that are the input itself."""
    return nn.Sequential(nn.Flatten(), models.linear(d, K, seeded(2))[1]).double()


@pytest.mark.parametrize("p", [2, INF])
def test_where_features_are_linear_matching_reaches_those_of_the_nearest_image_of_a_wrong_class(p):
    model, x = Rejecting(plain_features()), inputs((6, 2, 2), 1)
    with torch.no_grad():
        y = model(x).argmax(1)
    images, labels = inputs((9, 2, 2), 2), torch.arange(9) % 3
    for targets in (1, 2):
        attack = partial(attacks.pgd, steps=200, keep="last")
        delta = detection.matching(images, labels, attack, targets)(model, x, y, Ball(p, 3.0, BOX))
        for i in range(6):
            far = [math.dist((x + delta)[i].flatten(), image.flatten()) for image in images]
            allowed = [v for v, label in zip(far, labels.tolist(), strict=True) if label != y[i]]
            assert min(allowed) < 0.08  # a step or two of 2.5 · 3 / 200


def test_with_little_room_it_comes_as_near_as_that_allows():
    model, x = Rejecting(plain_features(2)), torch.full((1, 4), 0.5).double()
    images = torch.tensor([[0.9, 0.5, 0.5, 0.45], [0.5, 0.0, 0.0, 0.0]]).double()
    y = torch.tensor([1])
    attack = partial(attacks.pgd, steps=200, keep="last")
    delta = detection.matching(images, torch.tensor([0, 1]), attack)(model, x, y, Ball(INF, 0.1, BOX))
    torch.testing.assert_close(delta, torch.tensor([[0.1, 0, 0, -0.05]]).double(), rtol=0, atol=2e-3)


def test_any_score_of_features_takes_what_matches_for_the_clean_image():
    model, x, y = refusing("density", seed=3, n=12, t=-INF)
    everything = Ball(INF, 1.0, BOX)
    images, labels = x.flip(0), y.flip(0)
    attack = partial(attacks.pgd, steps=100)
    delta = detection.matching(images, labels, attack)(model, x, y, everything)
    right, _ = model.judged(x + delta, y)
    assert (~right).double().mean() > 0.8


# ---- what is judged without a threshold, and what is proved ----


@pytest.mark.parametrize("name", ["confidence", "density"])
def test_the_highest_score_is_the_largest_over_all_attacks_and_no_attack(name):
    model, x, y = refusing(name, seed=3)
    y[:4] = (y[:4] + 1) % 4  # wrong from the start
    small = Ball(INF, 0.05, BOX)
    tried = list(knowing(x, y).values())
    found = detection.highest(model, x, y, small, tried)
    deltas = [0 * x, *(attack(model, x, y, small) for attack in tried)]
    judged = [model.judged(x + delta, y) for delta in deltas]
    for i in range(20):
        assert found[i].item() == max([-INF, *(s[i].item() for right, s in judged if not right[i])])
    assert not found.requires_grad
    start = detection.highest(model, x, y, small)
    assert (start[:4] > -INF).all()
    assert (start[4:] == -INF).all()
    assert (found >= start).all()
    assert (found[4:] > -INF).any()
    assert (found == -INF).any()  # some stay right
    for t in (-2.0, 0.0, *found[found > -INF].tolist()):  # fooled at every threshold up to its own
        judge = Rejecting(model.network, model.score, t)
        fooled = torch.stack([judge.fooled(x + delta, y) for delta in deltas]).any(0)
        assert torch.equal(fooled, found >= t)


def test_an_attack_that_leaves_the_ball_is_refused():
    model, x, y = refusing()
    for beyond in (lambda m, x, y, ball: 0.25 * torch.ones_like(x), lambda m, x, y, ball: -x - 0.1):
        with pytest.raises(ValueError, match="samples outside"):
            detection.highest(model, x, y, CUBE, [beyond])
    edge = detection.highest(model, x, y, CUBE, [lambda m, x, y, ball: ball.argmax(x, x)])
    assert edge.shape == (20,)


@given(seeds, st.floats(-3, 3))
def test_what_is_never_fooled_has_every_bound_above_minus_the_threshold_or_0(seed, t):
    m, y = entries((8, 4), seed, "ties"), torch.arange(8) % 4
    m[0] = 5.0
    m = m.scatter(1, y[:, None], INF)
    m[1, 0] = -INF  # no bound at all
    found = detection.never_fooled(m, t)
    assert found.dtype == torch.bool
    for i in range(8):
        assert found[i].item() == all(m[i, j].item() > -max(t, 0) for j in range(4) if j != y[i])


def test_what_is_proved_at_a_threshold_is_not_fooled_and_more_is_proved_than_right_answers():
    model, x, y = refusing(seed=3)
    small = Ball(INF, 0.04, BOX)
    margins = bounds.margins(model.network.eval(), x, y, small)
    model.threshold = 2.0
    proved = detection.never_fooled(margins, 2.0)
    assert proved.any()
    assert proved[(margins > 0).all(1)].all()
    assert proved.sum() > (margins > 0).all(1).sum()
    best = detection.highest(model, x, y, small, list(knowing(x, y).values()))
    assert (best[proved] < 2.0).all()


# ---- what is refused ----


sequential = nn.Sequential(nn.Flatten(), nn.Linear(6, 4))
three, y3 = torch.eye(3), torch.arange(3)
REFUSED = {
    "labels from 0 to 2": lambda: detection.reverse_cross_entropy(three, y3 + 1),
    "ends with a Linear": lambda: detection.reversed_logits(nn.Sequential(nn.Linear(2, 2), nn.ReLU())),
    "ends with a Linear, got": lambda: detection.reversed_logits(nn.Sequential()),
    "0 ≤ alpha < 1/2": lambda: detection.reversal_bounds(0.5, 3),
    "classes ≥ 2": lambda: detection.reversal_bounds(0.1, 1),
    "K ≥ 2": lambda: confidence(three[:, :1]),
    "K ≥ 3": lambda: detection.non_maximal_entropy(three[:, :2]),
    "bandwidth > 0": lambda: KernelDensity(three, y3, 0.0),
    "finite features": lambda: KernelDensity(three / 0, y3, 1.0),
    "none of \\[2\\]": lambda: KernelDensity(three, y3 % 2, 1.0)(three, three),
    "features \\(n, 3\\)": lambda: KernelDensity(three, y3, 1.0)(three, three[:, :2]),
    "neighbours from 2 to 3": lambda: LocalDimension(three, 4),
    "features \\(m, d\\), at least one": lambda: LocalDimension(three[:0], 2),
    "low < high": lambda: detection.two_sided(confidence, 1.0, 1.0),
    "false_alarms from 1/10": lambda: detection.threshold(torch.arange(9.0), 0.05),
    "0 < level < 1": lambda: detection.threshold(torch.arange(9.0), 0.5, 95),
    "scores \\(n,\\), at least one": lambda: detection.auc(three[0], three[0, :0]),
    "finite scores": lambda: detection.roc(three[0] / 0, three[0]),
    "two layers or more": lambda: Rejecting(nn.Sequential(nn.Linear(2, 3))),
    "a score and a threshold": lambda: Rejecting(sequential, threshold=math.nan),
    "a score \\(20,\\), one a sample": lambda: Rejecting(sequential, lambda z, h: z).accepts(
        batch(dtype=torch.float32)[0]
    ),
    "a Rejecting": lambda: detection.highest(sequential, *batch(dtype=torch.float32), CUBE),
    "a finite threshold": lambda: detection.never_fooled(three.masked_fill(three == 1, INF), INF),
    "one \\+∞ in each row": lambda: detection.never_fooled(three, 1.0),
    "weight ≥ 0": lambda: detection.penalised(-1),
    "a Rejecting, got": lambda: climb(detection.weakest)(sequential, *batch(), CUBE),
    "targets ≥ 1": lambda: detection.targeted(targets=0),
    "as many images as labels": lambda: detection.matching(three, y3[:2]),
}


@pytest.mark.parametrize(("words", "call"), REFUSED.items(), ids=REFUSED)
def test_what_makes_no_sense_is_refused_in_words(words, call):
    with pytest.raises(ValueError, match=words):
        call()
