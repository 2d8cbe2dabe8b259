"""Chapter 8, dent: every labelled statement, attacked with random instances."""

import math
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import entries, inputs, seeded, seeds, theorem

from adv_lib import adaptive, attacks, dent, losses, models
from adv_lib.dent import blur
from adv_lib.threat import Ball

EXACT = 1e-11  # float64, and sums of a few terms of size about 1
few = settings(max_examples=25)
kinds = st.sampled_from(["plain", "ties", "sparse"])
scales = st.sampled_from([0.01, 1.0, 20.0, 500.0])


def slope(z):
    """∇H by autograd."""
    z = z.detach().requires_grad_()
    return torch.autograd.grad(losses.entropy(z).sum(), z)[0]


# ---- entropy ----


@theorem("prop-entropy-gradient")
@given(seeds, st.integers(2, 8), kinds, scales)
def test_entropy_rises_with_a_logit_at_the_rate_minus_p_times_log_p_plus_entropy(seed, K, kind, scale):
    """By autograd and by differences."""
    z = scale * entries((4, K), seed, kind)
    log_p = torch.log_softmax(z, 1)
    p, H = log_p.exp(), -(log_p.exp() * log_p).sum(1, keepdim=True)
    rate = -p * (log_p + H)
    torch.testing.assert_close(slope(z), rate, atol=EXACT, rtol=0)
    h = 1e-5
    for k in range(K):
        step = h * torch.eye(K).double()[k]
        stepped = (losses.entropy(z + step) - losses.entropy(z - step)) / (2 * h)
        torch.testing.assert_close(stepped, rate[:, k], atol=1e-8, rtol=0)


def leads(z, t):
    """z_t − z_k for every class k."""
    return z.gather(1, t[:, None]) - z


@theorem("thm-entropy-leader")
@given(seeds, st.integers(2, 8), kinds, scales, st.floats(0, 1e4))
def test_no_step_down_the_entropy_brings_any_class_nearer_to_the_leader(seed, K, kind, scale, eta):
    """Of several leaders each, so that ties stay ties."""
    z = scale * entries((6, K), seed, kind)
    moved = z - eta * slope(z)
    slack = EXACT * (1 + scale + eta)
    for t in range(K):
        leader = z[:, t] == z.amax(1)
        label = torch.full((6,), t)
        assert (leads(moved, label) >= leads(z, label) - slack)[leader].all()
    ahead = z.topk(2, dim=1).values.diff(dim=1).squeeze(1) < -2 * slack
    assert torch.equal(moved.argmax(1)[ahead], z.argmax(1)[ahead])


@theorem("thm-entropy-leader")
@few
@given(seeds, st.integers(2, 6), scales, st.sampled_from([0.01, 1.0, 100.0]))
def test_no_number_of_steps_down_the_entropy_changes_the_prediction(seed, K, scale, eta):
    z = scale * entries((8, K), seed, "plain")
    t, lead = z.argmax(1), leads(z, z.argmax(1))
    for _ in range(100):
        z = z - eta * slope(z)
        assert torch.equal(z.argmax(1), t)
        now = leads(z, t)
        assert (now >= lead - EXACT * (1 + scale + eta)).all()
        lead = now


@theorem("thm-entropy-leader")
def test_a_step_up_the_entropy_does_change_predictions_so_the_sign_matters():
    z = entries((200, 4), 0, "plain")
    changed = [(z + eta * slope(z)).argmax(1) != z.argmax(1) for eta in (-10, 10)]
    assert (changed[0].sum(), changed[1].sum() > 20) == (0, True)


# ---- the blur ----

variances = st.floats(0, 30)
shapes = st.sampled_from([(1, 1, 1), (1, 1, 8), (1, 5, 1), (2, 6, 7)])
close = partial(torch.testing.assert_close, atol=EXACT, rtol=0)


def number(value):
    return torch.tensor(value, dtype=torch.float64)


@theorem("prop-smooth")
@given(seeds, shapes, variances, variances, kinds)
def test_widths_add_the_mean_stays_and_no_pixel_leaves_the_range(seed, shape, s, t, kind):
    x = entries((2, *shape), seed, kind)
    once, twice = blur(x, number(s + t)), blur(blur(x, number(s)), number(t))
    close(twice, once)
    for blurred in (once, twice):
        close(blurred.mean((2, 3)), x.mean((2, 3)))
        assert (blurred >= x.amin((2, 3), keepdim=True) - EXACT).all()
        assert (blurred <= x.amax((2, 3), keepdim=True) + EXACT).all()


@theorem("prop-smooth")
@few
@given(st.floats(0, 10), st.integers(0, 4), st.integers(0, 4))
def test_a_point_far_from_the_edges_spreads_with_the_variance_asked_for(variance, i, j):
    """On both axes, around itself, and not askew."""
    x = torch.zeros(1, 1, 65, 69).double()
    x[0, 0, 30 + i, 32 + j] = 1
    kernel = blur(x, number(variance))[0, 0]
    down, across = torch.arange(65).double() - 30 - i, torch.arange(69).double() - 32 - j
    moments = {"down": down**2 @ kernel.sum(1), "across": across**2 @ kernel.sum(0)}
    assert moments["down"].item() == pytest.approx(variance, abs=1e-9)
    assert moments["across"].item() == pytest.approx(variance, abs=1e-9)
    assert (down @ kernel.sum(1)).item() == pytest.approx(0, abs=1e-9)
    assert (down @ kernel @ across).item() == pytest.approx(0, abs=1e-9)


# ---- a defense that changes few predictions ----


def counts(f, D, y):
    """How many are right by D, right by f, and told apart by the two."""
    return int((y == D).sum()), int((y == f).sum()), int((f != D).sum())


@theorem("thm-changed")
@given(st.data(), st.integers(1, 30), st.integers(2, 5))
def test_no_classifier_is_right_more_often_than_another_by_more_than_they_differ(data, n, K):
    labels = st.lists(st.integers(0, K - 1), min_size=n, max_size=n).map(torch.tensor)
    f, D, y = (data.draw(labels) for _ in range(3))
    ours, theirs, changed = counts(f, D, y)
    assert ours <= theirs + changed
    assert counts(f, torch.where(f == y, f, y), y) == (n, theirs, n - theirs)  # and it can be so much


@theorem("thm-changed")
@pytest.mark.parametrize("scope", ["batch", "sample"])
@pytest.mark.parametrize("lr", [0.01, 0.1, 1.0])
def test_under_a_transfer_attack_a_defense_gains_at_most_the_share_of_predictions_that_it_changes(
    scope, lr
):
    differences = 0
    for seed in range(5):
        model = models.mlp([8, 12, 4], seeded(seed), norm=True).double()
        model[2].running_var.fill_(0.1)
        defense = dent.Dent(model, scope=scope, lr=lr)
        x, ball = inputs((60, 8), seed), Ball(math.inf, 0.1, (0.0, 1.0))
        with models.evaluating(defense), torch.no_grad():
            y = model(x).argmax(1)
            moved = x + adaptive.transfer(partial(attacks.pgd, steps=5))(defense, x, y, ball)
            for at in (x, moved):
                ours, theirs, changed = counts(model(at).argmax(1), defense(at).argmax(1), y)
                assert ours <= theirs + changed
                differences += changed
    assert differences > 0
