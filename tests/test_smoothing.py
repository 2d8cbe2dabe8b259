"""Smoothing: what it counts, predicts and proves, against CERTIFY as others write it; and training."""

import copy
import math
from functools import partial

import joblib
import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy import stats
from strategies import (
    BOX,
    DTYPES,
    entries,
    generators,
    inputs,
    seeded,
    seeds,
    trained_on_digits,
    with_statistics,
)
from torch import nn
from torch.nn.functional import cross_entropy

from adv_lib import attacks, evaluation, models, smoothing, training
from adv_lib._work import BUDGET
from adv_lib.optimisers import SGD
from adv_lib.smoothing import ABSTAIN, Certified, Smooth, fixed_noise, noisy, smooth_adversarial
from adv_lib.stack import Stack
from adv_lib.threat import Ball

NOISES = ("gaussian", "laplace")
BALL = Ball(2, 0.3, BOX)
few = partial(attacks.pgd, steps=3, keep="last")


def network(seed=0, K=3, norm=False, dtype=torch.float64):
    """A network of six inputs that no class wins everywhere."""
    model = models.mlp([6, 8, K], seeded(seed), norm=norm).to(dtype)
    model[-1].bias.data -= model.eval()(batch(50, dtype=dtype)[0]).detach().mean(0)
    return model.train()


def batch(n=6, seed=0, K=3, dtype=torch.float64):
    return inputs((n, 1, 2, 3), seed).to(dtype), torch.arange(n) % K


def simplex(K, n=20):
    """Strategy: counts of K classes that sum to at most n, not all 0."""
    return st.lists(st.integers(0, n), min_size=K, max_size=K).filter(any)


class Told(Smooth):
    """One that is told its counts: `model` gives them by how many were asked for."""

    def counts(self, x, draws, generator, **options):
        return self.model(draws)


def told(counts, sigma=1.0, noise="gaussian"):
    """One that counts these, for the first question and for the second."""
    tables = {sum(votes): torch.tensor([votes]) for votes in counts}
    return Told(tables.get, sigma, noise), list(tables)


# ---- numbers ----


@pytest.mark.parametrize("dtype", DTYPES)
def test_radii_have_the_shape_and_type_of_the_probabilities(dtype):
    p = torch.tensor([[0.0, 0.3, 0.5], [0.6, 0.99, 1.0]], dtype=dtype)
    for found in (
        smoothing.radius(p, 0.5),
        smoothing.radius_between(p, 1 - p, 0.5),
        smoothing.laplace_radius(p, 0.5),
    ):
        assert found.shape == p.shape
        assert found.dtype == dtype
        assert found[0].tolist() == [0, 0, 0]
        assert found[1, 2] == math.inf
        assert (found[1].diff() > 0).all()
    wanted = torch.tensor(0.5 * stats.norm.ppf([0.6, 0.99]))
    torch.testing.assert_close(smoothing.radius(p, 0.5)[1, :2].double(), wanted, rtol=1e-5, atol=0)
    wanted = torch.tensor(stats.laplace(scale=0.5).ppf([0.6, 0.99]))
    torch.testing.assert_close(
        smoothing.laplace_radius(p, 0.5)[1, :2].double(), wanted, rtol=1e-5, atol=0
    )


def test_of_numbers_they_are_numbers_and_no_two_classes_that_tie_have_one():
    assert smoothing.radius(0.99, 0.5).item() == pytest.approx(0.5 * stats.norm.ppf(0.99))
    assert smoothing.radius(1, 0.5) == math.inf
    for p in (0.0, 0.3, 0.5):
        assert smoothing.radius_between(p, p, 1.0) == 0
    assert smoothing.radius_between(0.3, 0.4, 1.0) == 0
    assert smoothing.radius_between(0.4, 0.3, 2.0).item() == pytest.approx(
        stats.norm.ppf(0.4) - stats.norm.ppf(0.3)
    )
    assert smoothing.radius_between(0.4, 0.0, 1.0) == math.inf


@given(st.integers(1, 10**6), st.floats(1e-6, 0.999), st.floats(0, 1))
def test_the_lower_bound_is_that_of_scipy(n, alpha, share):
    k = round(share * n)
    found = smoothing.lower_bound(k, n, alpha)
    assert found.dtype == torch.float64
    wanted = stats.binomtest(k, n, alternative="greater").proportion_ci(1 - alpha).low
    assert found.item() == pytest.approx(wanted, rel=1e-7)
    assert found <= k / n or alpha > 0.5
    both = smoothing.lower_bound(torch.tensor([[k, 0], [n, k]]), n, alpha)
    assert both.shape == (2, 2)
    assert both[0, 0] == both[1, 1] == found
    assert both[0, 1] == 0


@given(st.integers(1, 10**6), st.floats(1e-6, 0.4), st.sampled_from([0.12, 1.0]))
def test_the_largest_radius_is_what_unanimous_draws_prove(n, alpha, sigma):
    found = smoothing.largest_radius(n, sigma, alpha)
    assert isinstance(found, float)
    assert found == pytest.approx(sigma * max(0, stats.norm.ppf(alpha ** (1 / n))), rel=1e-6)
    smooth = Told(lambda draws: torch.tensor([[0, draws]]), sigma)
    proved = smooth.certify(None, 5, n, alpha, None)
    assert proved.radius.item() == found
    assert proved.label.item() == (1 if found > 0 else ABSTAIN)


def test_a_hundred_thousand_draws_prove_no_more_than_four_sigma():
    assert smoothing.largest_radius(10**5, 1.0, 0.001) == pytest.approx(3.81, abs=0.01)


# ---- CERTIFY and PREDICT, as in the source ----


def certify(first, votes, sigma, alpha):
    """Algorithm 1 of the source in NumPy and SciPy, of the counts of one image."""
    c, n = int(np.argmax(first)), int(np.sum(votes))
    k = int(votes[c])
    p = 0.0 if k == 0 else stats.beta.ppf(alpha, k, n - k + 1)
    return (c, sigma * stats.norm.ppf(p)) if p > 0.5 else (ABSTAIN, 0.0)


def predict(votes, alpha):
    top = np.argsort(votes)[::-1]
    a, b = int(votes[top[0]]), int(votes[top[1]])
    p = stats.binomtest(a, a + b, 0.5).pvalue
    return int(top[0]) if p <= alpha else ABSTAIN, p


@given(st.integers(2, 6).flatmap(lambda K: st.tuples(simplex(K), simplex(K, 500))), st.floats(1e-4, 0.6))
def test_of_the_same_counts_certify_makes_what_the_algorithm_of_the_source_makes(counts, alpha):
    first, votes = counts
    assume(sum(first) != sum(votes) and sorted(first)[-1] > sorted(first)[-2])
    smooth, (guesses, draws) = told(counts, 0.7)
    found = smooth.certify(None, guesses, draws, alpha, None)
    label, radius = certify(first, votes, 0.7, alpha)
    assert found.label.tolist() == [label]
    assert found.radius.item() == pytest.approx(radius, rel=1e-8, abs=1e-12)
    assert (found.p.item() > 0.5) == (label != ABSTAIN)
    ell1 = told(counts, 0.7, "laplace")[0].certify(None, guesses, draws, alpha, None)
    assert ell1.label.tolist() == [label]
    assert ell1.radius.item() == pytest.approx(max(0, -0.7 * math.log(2 - 2 * found.p.item())))


@given(st.integers(2, 6).flatmap(partial(simplex, n=60)), st.floats(1e-4, 0.9))
def test_of_the_same_counts_predict_makes_what_the_algorithm_of_the_source_makes(votes, alpha):
    label, p = predict(votes, alpha)
    assume(abs(p - alpha) > 1e-9)
    smooth, (draws,) = told([votes])
    assert smooth.predict(None, draws, alpha, None).tolist() == [label]


@pytest.mark.parametrize("noise", NOISES)
def test_certify_is_the_algorithm_of_the_source_from_the_first_draw_to_the_radius(noise):
    model, (x, _) = network(), batch()
    smooth, g = Smooth(model, 0.4, noise), seeded(7)
    first, votes = smooth.counts(x, 30, g), smooth.counts(x, 200, g)
    found = smooth.certify(x, 30, 200, 0.01, seeded(7))
    wanted = [certify(a, b, 0.4, 0.01) for a, b in zip(first.numpy(), votes.numpy(), strict=True)]
    assert found.label.tolist() == [label for label, _ in wanted]
    if noise == "gaussian":
        assert found.radius.tolist() == pytest.approx([radius for _, radius in wanted])
    assert len({*found.label.tolist()}) > 1
    again = smooth.predict(x, 30, 0.01, seeded(7))
    assert again.tolist() == [predict(a, 0.01)[0] for a in first.numpy()]


# ---- counts ----


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("noise", NOISES)
def test_it_counts_what_the_model_says_to_noise_of_this_size(dtype, noise):
    seen = []

    def model(v):
        seen.append(v)
        return torch.stack([v.flatten(1)[:, 0], v.flatten(1)[:, 1]], 1)

    x = torch.tensor([[0.2, 0.7, 0.1], [1.0, 0.0, 0.5]], dtype=dtype)
    found = Smooth(model, 0.3, noise).counts(x, 20000, seeded(0), jobs=1)
    assert found.dtype == torch.int64
    assert found.sum(1).tolist() == [20000, 20000]
    for i, copies in enumerate(seen):
        assert copies.dtype == dtype
        assert found[i, 1] == (copies[:, 1] > copies[:, 0]).sum()
        eta = (copies - x[i]) / 0.3
        cdf = stats.norm.cdf if noise == "gaussian" else stats.laplace.cdf
        for entry in eta.T.double().numpy():
            assert stats.kstest(entry, cdf).pvalue > 1e-4
        assert np.abs(np.corrcoef(eta.T.double().numpy()) - np.eye(3)).max() < 0.03
    assert (seen[0] - x[0]).sub(seen[1] - x[1]).abs().max() > 0.1  # each image has draws of its own


def test_draws_come_in_runs_that_fit_into_the_cache_and_all_differ():
    seen = []

    def model(v):
        seen.append(v)
        return torch.stack([v[:, 0], -v[:, 0]], 1)

    x = torch.rand(1, 600, generator=seeded(0))
    most = BUDGET // 600
    found = Smooth(model, 0.1).counts(x, 3 * most + 5, seeded(0))
    assert [len(v) for v in seen] == [most] * 3 + [5]
    assert found.sum() == 3 * most + 5
    assert len(torch.cat(seen)[:, 0].unique()) > 3 * most


@pytest.mark.parametrize("noise", NOISES)
def test_what_an_image_gets_depends_on_its_place_and_on_nobody_else(noise):
    model, (x, _) = network(), batch(8)
    smooth = Smooth(model, 0.5, noise)
    whole = smooth.counts(x, 100, seeded(3))
    assert torch.equal(smooth.counts(x[:3], 100, seeded(3)), whole[:3])
    other = torch.cat([x[:2], 1 - x[2:3], x[3:]])
    assert torch.equal(smooth.counts(other, 100, seeded(3))[[0, 1, 3, 7]], whole[[0, 1, 3, 7]])
    assert not torch.equal(smooth.counts(x, 100, seeded(4)), whole)
    g = seeded(3)
    assert not torch.equal(smooth.counts(x, 100, g), smooth.counts(x, 100, g))


@pytest.mark.slow
def test_nor_does_it_depend_on_how_many_work_or_on_whether_they_are_processes():
    smooth, (x, _) = Smooth(network(norm=True), 0.5), batch(5)
    asked = partial(smooth.certify, x, 10, 60, 0.1)
    whole = asked(seeded(0), jobs=1)
    runs = [asked(seeded(0), jobs=2), asked(seeded(0), jobs=-1, progress=False)]
    with joblib.parallel_config("loky"):
        runs.append(asked(seeded(0), jobs=2))
    for found in runs:
        assert torch.equal(found.label, whole.label)
        assert torch.equal(found.radius, whole.radius)
        assert torch.equal(found.p, whole.p)


def test_the_guess_knows_nothing_of_the_draws_that_judge_it():
    seen = []

    def model(v):
        seen.append(v)
        return torch.stack([v[:, 0], 1 - v[:, 0]], 1)

    Smooth(model, 0.1).certify(torch.full((1, 1), 0.5), 50, 50, 0.1, seeded(0), jobs=1)
    assert len(torch.cat(seen).unique()) == 100


def test_progress_is_shown_when_asked_for(capsys):
    smooth, (x, _) = Smooth(network(), 0.5), batch(3)
    smooth.certify(x, 5, 5, 0.1, seeded(0))
    assert capsys.readouterr() == ("", "")
    smooth.certify(x, 5, 5, 0.1, seeded(0), progress=True)
    out, err = capsys.readouterr()
    assert "/3" in out
    assert err == ""


# ---- abstention, and certified accuracy ----


def test_where_no_class_leads_for_certain_it_abstains():
    flat, sure = (
        (lambda v: torch.stack([v[:, 0], -v[:, 0]], 1)),
        (lambda v: 0 * v[:, :2] + flat(v.abs())),
    )
    x, g = torch.zeros(40, 2), seeded(0)
    for model, answer in ((flat, ABSTAIN), (sure, 0)):
        smooth = Smooth(model, 0.5)
        found = smooth.certify(x, 10, 100, 0.001, g)
        share = (found.label == answer).double().mean()
        assert share > 0.95
        assert ((found.label == ABSTAIN) == (found.radius == 0)).all()
        assert ((found.label == ABSTAIN) == (found.p <= 0.5)).all()
        assert ((smooth.predict(x, 100, 0.001, g) == answer).double().mean()) > 0.95


def test_a_single_draw_proves_nothing_and_two_classes_that_tie_have_no_winner():
    smooth = Smooth(network(), 0.5)
    assert (smooth.certify(batch()[0], 5, 1, 0.1, seeded(0)).label == ABSTAIN).all()
    assert told([[5, 5, 1]])[0].predict(None, 11, 0.99, None).item() == ABSTAIN


def test_right_is_proved_to_be_right_within_the_radius_and_not_on_its_edge():
    found = Certified(
        torch.tensor([0, 1, 2, ABSTAIN]),
        torch.tensor([0.3, 0.2, 0.5, 0.0]),
        torch.tensor([0.9, 0.8, 0.9, 0.4]),
    )
    y = torch.tensor([0, 1, 1, 0])
    assert found.right(y).tolist() == [True, True, False, False]
    assert found.right(y, 0.2).tolist() == [True, False, False, False]
    assert not found.right(y, 0.3).any()
    assert evaluation.rate(found.right(y)).count == 2


def test_certificates_of_digits_survive_attacks_and_grow_with_sigma_until_nothing_is_left(digits):
    model, x, y = trained_on_digits(), digits.x_test[:40], digits.y_test[:40]
    accuracy = []
    for sigma in (0.05, 0.2, 5.0):
        smooth = Smooth(model, sigma)
        found = smooth.certify(x, 50, 400, 0.01, seeded(0))
        accuracy.append([found.right(y, r).double().mean().item() for r in (0, 0.1, 0.3)])
        assert (found.radius <= smoothing.largest_radius(400, sigma, 0.01)).all()
        if sigma == 0.2:
            ball = Ball(2, 0.99 * found.radius.float())
            held = fixed_noise(model, x, sigma, 50, seeded(1))
            moved = x + attacks.pgd(held, x, y, ball, steps=10)
            there = smooth.predict(moved, 400, 0.01, seeded(2))
            proved = found.label != ABSTAIN
            assert ((there == found.label) | (there == ABSTAIN))[proved].all()
    assert accuracy[0][0] > 0.9
    assert accuracy[0][2] == 0
    assert accuracy[1][2] > 0.2
    assert accuracy[2][0] < 0.5


# ---- modes, types, generators ----


def test_the_model_is_asked_in_eval_mode_and_left_as_it_was():
    model, (x, y) = with_statistics(network(norm=True)), batch()
    model = nn.Sequential(model, nn.Dropout(0.5))
    model[1].eval()
    modes, before, state = (
        [m.training for m in model.modules()],
        copy.deepcopy(model.state_dict()),
        generators(),
    )
    smooth = Smooth(model, 0.3)
    found = smooth.counts(x, 60, seeded(0))
    held = fixed_noise(model, x, 0.3, 4, seeded(0))
    z = held(x)
    with torch.no_grad():
        noisy(0.3, seeded(0))(model.eval(), x, y)
    for module, mode in zip(model.modules(), modes, strict=True):
        module.training = mode
    assert torch.equal(Smooth(copy.deepcopy(model).eval(), 0.3).counts(x, 60, seeded(0)), found)
    assert torch.equal(fixed_noise(copy.deepcopy(model).eval(), x, 0.3, 4, seeded(0))(x), z)
    assert [m.training for m in model.modules()] == modes
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])
    assert generators() == state


def test_the_mode_comes_back_when_the_model_fails():
    model = network()
    with pytest.raises(ValueError, match="NaN"):
        Smooth(nn.Sequential(model, Broken()), 0.3).counts(batch()[0], 5, seeded(0))
    assert all(module.training for module in model.modules())


class Broken(nn.Module):
    def forward(self, z):
        return z * math.nan


@pytest.mark.parametrize("autocast", [False, True])
def test_mixed_precision_around_it_changes_no_count(autocast):
    smooth, (x, _) = Smooth(network(dtype=torch.float32), 0.5), batch(dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        found = [smooth.counts(x, 200, seeded(0), jobs=jobs) for jobs in (1, 2)]
    assert torch.equal(found[0], smooth.counts(x, 200, seeded(0)))
    assert torch.equal(found[0], found[1])


def test_no_gradient_is_kept_of_votes():
    x = batch()[0].requires_grad_()
    found = Smooth(network(), 0.5).certify(x, 5, 20, 0.1, seeded(0))
    assert not found.p.requires_grad
    assert x.grad is None


# ---- what to attack ----


@pytest.mark.parametrize("dtype", DTYPES)
def test_held_noise_is_a_classifier_whose_answer_is_the_mean_probability(dtype):
    model, (x, _) = network(dtype=dtype), batch(dtype=dtype)
    asked = []

    def spy(v):
        asked.append(v.detach().clone())
        return model(v)

    held = fixed_noise(spy, x, 0.3, 5, seeded(0))
    z = held(x)
    assert z.dtype == dtype
    copies = asked[0].view(5, 6, 1, 2, 3)
    by_hand = sum(model(part).softmax(1) for part in copies) / 5
    torch.testing.assert_close(z.exp(), by_hand)
    noise = copies - x
    assert len(noise.flatten().unique()) > 0.9 * noise.numel()  # every draw of every sample is new
    assert float(noise.double().std()) == pytest.approx(0.3, rel=0.15)
    assert torch.equal(held(x), z)
    held(1 - x)
    torch.testing.assert_close(asked[2].view(5, 6, 1, 2, 3) - (1 - x), noise)


def test_its_gradient_is_that_of_finite_differences_and_any_attack_takes_it():
    model, (x, y) = network(), batch()
    model.eval().requires_grad_(False)
    held = fixed_noise(model, x, 0.3, 4, seeded(0))
    assert torch.autograd.gradcheck(held, x.clone().requires_grad_())
    climbed = attacks.pgd(held, x, y, BALL, steps=10)
    with torch.no_grad():
        loss = [cross_entropy(held(x + delta), y, reduction="none") for delta in (0 * x, climbed)]
    assert (loss[1] >= loss[0] - 1e-12).all()
    assert loss[1].mean() > loss[0].mean()


def test_shared_noise_is_what_attacks_take_that_drop_samples():
    model, (x, y) = network(), batch()
    held = fixed_noise(model, x[:1], 0.3, 4, seeded(0))
    torch.testing.assert_close(held(x)[2:3], held(x[2:3]))
    for attack in (partial(attacks.pgd, steps=3, keep="first"), partial(attacks.square, queries=10)):
        assert BALL.contains(attack(held, x, y, BALL), x).all()


def test_without_noise_it_is_the_model():
    model, (x, _) = network().eval(), batch()
    torch.testing.assert_close(fixed_noise(model, x, 0.0, 3, seeded(0))(x), model(x).log_softmax(1))


# ---- training ----


def by_hand(model, x, y, noise, delta):
    """The mean over the draws of the cross-entropy, draw by draw."""
    each = [
        cross_entropy(model(x + delta + noise[:, j]), y, reduction="none") for j in range(noise.shape[1])
    ]
    return sum(each) / len(each)


@pytest.mark.parametrize("norm", [False, True])
def test_smoothadv_attacks_the_mean_and_descends_the_mean_over_the_same_draws(norm):
    model, (x, y) = network(norm=norm).eval(), batch()
    noise = smoothing._noise(x, 0.3, 4, seeded(5))
    held = fixed_noise(model, x, 0.3, 4, seeded(5))
    delta = few(held, x, y, BALL)
    assert delta.abs().max() > 0.01
    found = smooth_adversarial(few, BALL, 0.3, 4, seeded(5))(model, x, y)
    wanted = by_hand(model, x, y, noise, delta)
    torch.testing.assert_close(found, wanted)
    slopes = [torch.autograd.grad(loss.mean(), list(model.parameters())) for loss in (found, wanted)]
    for one, other in zip(*slopes, strict=True):
        torch.testing.assert_close(one, other)


def test_one_draw_and_no_attack_is_training_with_noise():
    model, (x, y) = network(), batch()
    still = lambda model, x, y, ball: torch.zeros_like(x)  # noqa: E731
    one = smooth_adversarial(still, BALL, 0.3, 1, seeded(2))(model, x, y)
    torch.testing.assert_close(one, noisy(0.3, seeded(2))(model, x, y))
    assert torch.equal(noisy(0.0, seeded(0))(model, x, y), training.clean(model, x, y))


def test_smoothadv_learns_its_statistics_from_what_it_descends_and_not_from_the_attack():
    model, (x, y) = with_statistics(network(norm=True)).train(), batch()
    other = copy.deepcopy(model)
    smooth_adversarial(few, BALL, 0.3, 4, seeded(5))(model, x, y)
    noise = smoothing._noise(x, 0.3, 4, seeded(5))
    delta = few(fixed_noise(other, x, 0.3, 4, seeded(5)), x, y, BALL)
    assert all(module.training for module in other.modules())
    other((x + delta + noise.transpose(0, 1)).flatten(0, 1))
    for one, two in zip(model.buffers(), other.buffers(), strict=True):
        torch.testing.assert_close(one, two)


@pytest.mark.parametrize("noise", NOISES)
def test_training_with_noise_lowers_the_loss_under_noise(noise):
    x = torch.cat([torch.full((60, 2), 0.3), torch.full((60, 2), 0.7)])
    x, y = (x + 0.02 * torch.randn(x.shape, generator=seeded(0))).clamp(0, 1), torch.arange(120) // 60
    model = models.mlp([2, 16, 2], seeded(0))
    inner = noisy(0.25, seeded(1), noise)
    epochs = list(training.fit(model, (x, y), inner, epochs=30, lr=0.3, batch_size=20))
    assert epochs[-1].loss < 0.7 * epochs[0].loss
    found = Smooth(model, 0.25, noise).certify(x[::12], 20, 300, 0.01, seeded(2))
    assert found.right(y[::12]).double().mean() > 0.9
    again = models.mlp([2, 16, 2], seeded(0))
    runs = training.fit(again, (x, y), noisy(0.25, seeded(1), noise), epochs=30, lr=0.3, batch_size=20)
    assert [epoch.loss for epoch in runs] == [epoch.loss for epoch in epochs]


@pytest.mark.parametrize("adversarial", [False, True])
def test_each_member_of_a_stack_learns_what_it_would_learn_alone(adversarial):
    x, y = batch(24)
    sizes = [0.0, 0.2, 0.5]

    def inner(sigma, generator):
        if adversarial:
            return smooth_adversarial(few, BALL, sigma, 3, generator)
        return noisy(sigma, generator)

    def run(model, sigma, generator, shuffle):
        inner_ = inner(sigma, generator)
        settings = {"epochs": 2, "lr": 0.1, "batch_size": 8, "optimiser": SGD(0.9)}
        list(training.fit(model, (x, y), inner_, generator=shuffle, **settings))

    stack = Stack([network(seed, norm=True) for seed in range(3)])
    run(stack, sizes, [seeded(10 + e) for e in range(3)], [seeded(e) for e in range(3)])
    for e, member in enumerate(stack.members()):
        alone = network(e, norm=True)
        run(alone, sizes[e], seeded(10 + e), seeded(e))
        for one, other in zip(member.state_dict().values(), alone.state_dict().values(), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


def test_a_stack_answers_held_noise_as_its_members_do():
    members = [network(seed).eval() for seed in range(2)]
    x = Stack(members).rows(batch()[0])
    found = fixed_noise(Stack(members), x, (0.1, 0.4), 3, [seeded(0), seeded(1)])(x)
    for e, (member, sigma) in enumerate(zip(members, (0.1, 0.4), strict=True)):
        alone = fixed_noise(member, x[e::2], sigma, 3, seeded(e))(x[e::2])
        torch.testing.assert_close(found[e::2], alone)


@given(seeds, st.integers(1, 5), st.integers(1, 4))
def test_the_descended_loss_is_at_least_minus_the_log_of_the_mean_probability(seed, m, n):
    """Jensen: what SmoothAdv descends bounds what its attack climbs."""
    model, x = network(seed % 7).eval(), entries((n, 6), seed, "plain")
    y = torch.arange(n) % 3
    still = lambda model, x, y, ball: torch.zeros_like(x)  # noqa: E731
    descended = smooth_adversarial(still, Ball(2, 0.1), 0.5, m, seeded(seed))(model, x, y)
    climbed = cross_entropy(fixed_noise(model, x, 0.5, m, seeded(seed))(x), y, reduction="none")
    assert (descended >= climbed - 1e-9).all()
