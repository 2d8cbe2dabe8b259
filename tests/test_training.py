"""The outer minimum: stochastic gradient descent on whatever inner maximum it is given."""

import itertools
import math
import os
import re
from functools import partial
from pathlib import Path

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from strategies import BOX, ORDERS, entries, generators, inputs, orders, problem, same, seeded, seeds
from torch import nn
from torch.nn.functional import cross_entropy

from adv_lib import attacks, bounds, danskin, exact, linear, losses, models, training
from adv_lib.data import Data
from adv_lib.evaluation import robust_accuracy
from adv_lib.optimisers import SGD
from adv_lib.stack import Stack
from adv_lib.threat import Ball


@pytest.fixture
def separable():
    """Two clouds in the square, labels ±1."""
    x = inputs((60, 2), 0).float()
    return x, torch.where(x.sum(1) + 0.3 * entries((60,), 1, "plain").float() > 1, 1, -1)


def logistic(model, x, y):
    return linear.logistic(linear.margin(*linear.weights(model), x, y))


def run(model, data, inner=logistic, **options):
    return list(training.fit(model, data, inner, **{"epochs": 3, "lr": 0.1, **options}))


def weights(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


@pytest.mark.parametrize("eps", [0.0, 0.05])
def test_training_a_convex_loss_comes_down_to_its_global_minimum(separable, eps):
    x, y = separable
    ball = Ball(math.inf, eps)

    def robust(model, x, y):
        return linear.logistic(linear.robust_margin(*linear.weights(model), x, y, ball))

    w, b = linear.robust_logistic_regression(x, y, ball)
    best = linear.logistic(linear.robust_margin(w, b, x, y, ball)).mean().item()
    losses = [
        epoch.loss for epoch in run(models.linear(2, 1), (x, y), robust, epochs=600, lr=1, batch_size=60)
    ]
    assert losses[0] > losses[20] > losses[-1]
    assert min(losses) >= best - 1e-6
    assert losses[-1] == pytest.approx(best, abs=5e-3)


def test_a_step_is_the_gradient_of_the_mean_over_the_batch(separable):
    x, y = separable
    model = models.linear(2, 1)
    w, b = (v.detach().clone() for v in linear.weights(model))
    (epoch,) = run(model, separable, epochs=1, lr=0.5, batch_size=len(x))
    slope = -y * torch.sigmoid(-linear.margin(w, b, x, y))
    assert epoch.loss == pytest.approx(linear.logistic(linear.margin(w, b, x, y)).mean().item())
    expected = torch.cat([w - 0.5 * (slope[:, None] * x).mean(0), (b - 0.5 * slope.mean())[None]])
    torch.testing.assert_close(weights(model), expected)


def test_every_epoch_sees_every_sample_once(separable):
    seen = []

    def watch(model, x, y):
        seen.append(x)
        return logistic(model, x, y)

    run(models.linear(2, 1), separable, watch, epochs=2, batch_size=25)
    assert [len(batch) for batch in seen] == [30, 30] * 2
    for half in (seen[:2], seen[2:]):
        assert sorted(torch.cat(half).tolist()) == sorted(separable[0].tolist())
    assert not torch.equal(seen[0], seen[2])


@settings(max_examples=200)
@given(st.integers(1, 400), st.integers(1, 450), st.integers(1, 3))
@example(1201, 100, 1)
@example(149, 100, 1)
@example(3, 2, 2)
def test_the_batches_of_an_epoch_are_alike_and_near_the_size_asked_for(n, b, E):
    """There are n/b of them, rounded, or one; of one sample none that need not be."""
    x, y = torch.arange(float(n))[:, None], torch.zeros(n, dtype=torch.int64)
    model, seen = models.linear(1, 2), []

    def note(model, x, y):
        seen.append(x.flatten())
        return losses.cross_entropy(model(0 * x), y)

    run(Stack([model] * E) if E > 1 else model, (x, y), note, epochs=1, batch_size=b)
    sizes = [len(rows) // E for rows in seen]
    assert max(sizes) - min(sizes) <= 1
    assert sorted(torch.cat(seen).tolist()) == x.flatten().repeat_interleave(E).tolist()
    assert abs(len(sizes) - n / b) <= 0.5 or len(sizes) == 1
    assert n / len(sizes) <= 1.5 * b
    assert min(sizes) > 1 or b == 1 or n == 1
    assert n % b or sizes == [b] * (n // b)


@pytest.mark.parametrize("n", [101, 1201])
def test_batchnorm_trains_on_any_number_of_samples(n, digits):
    model = models.mlp([64, 5, 10], norm=True)
    (epoch,) = run(model, (digits.x_train[:n], digits.y_train[:n]), training.clean, epochs=1)
    assert math.isfinite(epoch.loss)


def test_the_reported_loss_weights_every_sample_the_same():
    data = torch.arange(5.0)[:, None], torch.zeros(5)
    model = models.linear(1, 1)
    (epoch,) = run(
        model, data, lambda m, x, y: x.squeeze(1) + 0 * m(x).squeeze(1), epochs=1, batch_size=3
    )
    assert epoch.loss == pytest.approx(2.0)


def test_the_generator_decides_the_weights(separable):
    def trained(generator):
        model = models.linear(2, 1)
        run(model, separable, batch_size=7, generator=generator)
        return weights(model)

    assert torch.equal(trained(seeded(4)), trained(seeded(4)))
    assert not torch.equal(trained(seeded(4)), trained(seeded(5)))
    assert torch.equal(trained(None), trained(seeded(0)))


def test_nothing_runs_before_the_first_epoch_is_asked_for(separable):
    model = models.linear(2, 1)
    before = weights(model)
    epochs = training.fit(model, separable, logistic, epochs=5, lr=0.1)
    assert torch.equal(weights(model), before)
    next(epochs)
    assert not torch.equal(weights(model), before)


def test_stopping_early_leaves_the_weights_of_that_epoch(separable):
    stopped, short = models.linear(2, 1), models.linear(2, 1)
    list(itertools.islice(training.fit(stopped, separable, logistic, epochs=50, lr=0.1), 2))
    run(short, separable, epochs=2)
    assert torch.equal(weights(stopped), weights(short))


def test_no_gradient_is_left_for_the_callers_next_backward_to_add_to(separable):
    model = models.linear(2, 1)
    run(model, separable)
    assert [p.grad for p in model.parameters()] == [None, None]


def test_epochs_are_counted_from_1(separable):
    assert [epoch.number for epoch in run(models.linear(2, 1), separable)] == [1, 2, 3]
    assert run(models.linear(2, 1), separable, epochs=0) == []


def test_a_loss_that_is_not_finite_stops_before_it_reaches_the_weights(separable):
    model = models.linear(2, 1)
    before = weights(model)
    with pytest.raises(FloatingPointError, match=r"\[nan\] in epoch 1"):
        run(model, separable, lambda m, x, y: logistic(m, x, y) * math.nan)
    assert torch.equal(weights(model), before)


def test_a_network_learns_the_digits(digits):
    model = models.mlp([64, 50, 10])
    run(
        model,
        digits[:2],
        lambda m, x, y: cross_entropy(m(x), y, reduction="none"),
        epochs=30,
        batch_size=50,
    )
    assert (model(digits.x_test).argmax(1) == digits.y_test).float().mean() > 0.9


@pytest.mark.parametrize("p", [1, 2, math.inf])
def test_one_step_from_a_random_point_moves_only_the_pixels_of_the_mask(p):
    seen, mask = [], torch.tensor([[0.3, 0, 0.1, 0]])

    def model(at):
        seen.append(at.detach())
        return at[:, :2] * 2

    x, y = torch.full((5, 4), 0.5), torch.zeros(5, dtype=torch.int64)
    training.fast(Ball(p, mask, (0, 1)), seeded(0))(model, x, y)
    delta = seen[-1] - x
    assert Ball(p, 1.00001 * mask, (0, 1)).contains(delta, x).all()
    assert (delta[:, [1, 3]] == 0).all()
    assert delta[:, 0].all()


# ---- what stands for the inner maximum ----

PGD = partial(attacks.pgd, steps=5, keep="last")
INNERS = {  # (ball, generator) → inner
    "clean": lambda ball, generator: training.clean,
    "fgsm": lambda ball, generator: training.adversarial(attacks.fgsm, ball),
    "pgd": lambda ball, generator: training.adversarial(PGD, ball),
    "fast": training.fast,
    "trades": lambda ball, generator: training.trades(ball, generator, 2.0),
    "certified": lambda ball, generator: training.certified(ball),
    "mixed": lambda ball, generator: training.mixed(training.adversarial(PGD, ball), 0.5),
    "ddd": lambda ball, generator: danskin.ddd(ball, generator, 3, steps=2),
}
each_inner = pytest.mark.parametrize("make", INNERS.values(), ids=INNERS)
box_or_none = st.sampled_from((None, BOX))


class Asked:
    """A model that notes the inputs it is asked about."""

    def __init__(self, model):
        self.model, self.inputs = model, []

    def __call__(self, x):
        self.inputs.append(x.detach().clone())
        return self.model(x)


@pytest.mark.parametrize("attack", [attacks.fgsm, PGD, attacks.apgd, lambda m, x, y, b: 0.1 * x])
def test_adversarial_is_the_cross_entropy_at_the_delta_of_the_attack(attack):
    model, x, y, ball = problem()
    delta = attack(model, x, y, ball)
    assert delta.any()
    got = training.adversarial(attack, ball)(model, x, y)
    assert torch.equal(got, cross_entropy(model(x + delta), y, reduction="none"))


def test_clean_is_the_cross_entropy_and_adversarial_with_an_attack_that_stays_where_it_is():
    model, x, y, ball = problem()
    expected = cross_entropy(model(x), y, reduction="none")
    assert torch.equal(training.clean(model, x, y), expected)
    stay = training.adversarial(lambda model, x, y, ball: torch.zeros_like(x), ball)
    assert torch.equal(stay(model, x, y), expected)


@pytest.mark.parametrize("method", ["interval", "dual", "crown"])
def test_certified_is_the_robust_loss_of_the_bounds(method):
    model, x, y, ball = problem()
    got = training.certified(ball, method)(model, x, y)
    assert torch.equal(got, bounds.robust_loss(model, x, y, ball, method))
    assert got.requires_grad


@pytest.mark.parametrize("share", [0, 0.25, 1])
def test_mixed_weighs_the_inner_maximum_and_the_clean_loss(share):
    model, x, y, ball = problem()
    inner = training.adversarial(attacks.fgsm, ball)
    expected = share * inner(model, x, y) + (1 - share) * training.clean(model, x, y)
    torch.testing.assert_close(training.mixed(inner, share)(model, x, y), expected)


@settings(max_examples=30)
@given(seeds, orders, box_or_none, st.sampled_from((0.0, 0.5, 6.0)))
def test_trades_is_the_clean_loss_and_beta_times_the_divergence_to_a_point_of_the_ball(
    seed, p, box, beta
):
    network, x, y, ball = problem(seed, p=p, box=box)
    model = Asked(network)
    got = training.trades(ball, seeded(seed), beta)(model, x, y)
    delta = model.inputs[-1] - x
    assert ball.contains(delta, x).all()
    apart = losses.divergence(network(x), network(x + delta))
    torch.testing.assert_close(got, training.clean(network, x, y) + beta * apart, rtol=0, atol=1e-12)
    assert (got >= training.clean(network, x, y) - 1e-12).all()
    assert beta > 0 or torch.equal(got, training.clean(network, x, y))


@pytest.mark.parametrize("p", ORDERS)
def test_the_attack_of_trades_starts_at_noise_and_moves_the_prediction_away(p):
    network, x, y, ball = problem(p=p, n=30, dtype=torch.float32)
    model = Asked(network)
    training.trades(ball, seeded(0))(model, x, y)
    clean, start, *_, end = model.inputs
    assert torch.equal(clean, x)
    assert 0 < (start - x).abs().max() < 0.01
    first, last = (losses.divergence(network(x), network(z)) for z in (start, end))
    assert (last > 100 * first).all()


@pytest.mark.parametrize("p", ORDERS)
def test_the_attack_of_trades_climbs_the_divergence_from_the_clean_prediction(p):
    network, x, y, ball = problem(p=p, n=30, eps=1.0)
    model = Asked(network)
    training.trades(ball, seeded(0))(model, x, y)
    still, start = network(x).detach(), model.inputs[1] - x

    def moved(z, y):
        return nn.functional.kl_div(z.log_softmax(1), still.softmax(1), reduction="none").sum(1)

    expected = attacks.pgd(network, x, y, ball, steps=10, start=start, loss=moved, keep="last")
    torch.testing.assert_close(model.inputs[-1], x + expected)


def test_trades_in_a_ball_of_size_0_is_the_clean_loss_and_fast_too():
    model, x, y, _ = problem()
    for p in ORDERS:
        ball = Ball(p, 0, BOX)
        for inner in (training.trades(ball, seeded(0)), training.fast(ball, seeded(0))):
            torch.testing.assert_close(inner(model, x, y), training.clean(model, x, y))


@settings(max_examples=30)
@given(seeds, orders, box_or_none, st.sampled_from((1e-6, 0.3, 50.0)))
def test_fast_ends_in_the_ball_and_draws_from_its_generator(seed, p, box, eps):
    network, x, y, ball = problem(seed, p=p, box=box, eps=eps, dtype=torch.float32)
    generator, models_asked = seeded(seed), [Asked(network) for _ in range(3)]
    inner = training.fast(ball, generator)
    first, second = (inner(model, x, y) for model in models_asked[:2])
    again = training.fast(ball, seeded(seed))(models_asked[2], x, y)
    for model in models_asked:
        _, end = model.inputs  # two passes
        moved = end - x if box is None else end.clamp(*BOX) - x
        assert Ball(p, ball.eps * (1 + 1e-5) + 1e-6).contains(moved).all()
        assert box is None or torch.equal(end, end.clamp(*BOX))
    assert torch.equal(first, again)
    assert torch.equal(models_asked[0].inputs[0], models_asked[2].inputs[0])
    assert not torch.equal(models_asked[0].inputs[0], models_asked[1].inputs[0])
    assert eps < 1e-3 or not torch.equal(first, second)


def test_fast_is_one_step_of_five_quarters_of_the_radius_from_a_random_point_clipped():
    network, x, y, ball = problem(box=None)
    model = Asked(network)
    training.fast(ball, seeded(3))(model, x, y)
    start = ball.sample(x, seeded(3))
    at = (x + start).requires_grad_()
    (gradient,) = torch.autograd.grad(training.clean(network, at, y).sum(), at)
    expected = (start + 1.25 * ball.eps * gradient.sign()).clamp(-ball.eps, ball.eps)
    torch.testing.assert_close(model.inputs[-1], x + expected)


@pytest.mark.parametrize("method", ["interval", "dual", "crown"])
def test_what_an_attack_finds_is_at_most_the_exact_maximum_and_that_at_most_the_certified_loss(method):
    """Two classes: the cross-entropy is softplus of minus the margin, largest where that is smallest."""
    for seed in range(4):
        model, x, y, ball = problem(seed, shape=(3,), n=5, K=2, hidden=(5, 4), scale=2)
        least = exact.margins(model, x, y, ball, jobs=1).margins.amin(1)
        worst = nn.functional.softplus(-least)
        certified = training.certified(ball, method)(model, x, y)
        assert (worst <= certified + 1e-6).all()
        for name in ("clean", "fgsm", "pgd", "fast"):
            assert (INNERS[name](ball, seeded(0))(model, x, y) <= worst + 1e-6).all(), name
        assert (training.adversarial(attacks.pgd, ball)(model, x, y) > worst - 1e-3).any()


@each_inner
def test_every_inner_maximum_is_one_number_a_sample_that_does_not_depend_on_the_others(make):
    model, x, y, ball = problem()
    whole = make(ball, seeded(0))(model, x, y)
    assert whole.shape == (6,)
    if make in (INNERS["fast"], INNERS["trades"], INNERS["ddd"]):
        return  # these draw, and ddd mixes what the whole batch says
    for i in range(6):
        alone = make(ball, seeded(0))(model, x[i : i + 1], y[i : i + 1])
        torch.testing.assert_close(alone, whole[i : i + 1], rtol=0, atol=1e-9)


# ---- what an attack on the way must not do ----


def messy():
    """BatchNorm and dropout, which know two modes."""
    body = models.mlp([8, 12, 3])
    return nn.Sequential(*body[:2], nn.BatchNorm1d(12), nn.ReLU(), nn.Dropout(0.5), body[3])


TAKES_ANY = {name: make for name, make in INNERS.items() if name != "certified"}
PASSES = {"mixed": 2, "trades": 2}  # of the loss, in the caller's mode; 1 for all others


def own_attack(model, x, y, ball):
    """One step, by a reader who does not think of modes."""
    at = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(cross_entropy(model(at), y, reduction="sum"), at)
    return ball.argmax(gradient, x)


TAKES_ANY["own"] = lambda ball, generator: training.adversarial(own_attack, ball)


@pytest.mark.parametrize("name", TAKES_ANY)
@pytest.mark.parametrize("training_mode", [True, False])
def test_the_attack_sees_eval_mode_and_the_loss_the_mode_of_the_caller(name, training_mode):
    model, (_, x, y, ball), seen = messy().train(training_mode), problem(dtype=torch.float32), []
    for module in model:
        module.register_forward_hook(lambda module, *_: seen.append((module, module.training)))
    TAKES_ANY[name](ball, seeded(0))(model, x, y)
    for module in model:
        modes = [mode for which, mode in seen if which is module]
        passes = PASSES.get(name, 1)
        assert modes[-1] == training_mode
        assert sum(modes) == (passes if training_mode else 0)
    assert all(module.training == training_mode for module in model.modules())


@pytest.mark.parametrize("name", TAKES_ANY)
def test_the_statistics_move_once_for_every_pass_of_the_loss(name):
    """Once; for `mixed` and `trades` twice, by the images and by their perturbations."""
    model, (_, x, y, ball) = messy(), problem(dtype=torch.float32)
    TAKES_ANY[name](ball, seeded(0))(model, x, y)
    assert model[2].num_batches_tracked == PASSES.get(name, 1)
    list(training.fit(model, (x, y), TAKES_ANY[name](ball, seeded(0)), epochs=2, lr=0.1, batch_size=3))
    assert model[2].num_batches_tracked == 5 * PASSES.get(name, 1)
    model.eval()
    before = model[2].running_mean.clone()
    TAKES_ANY[name](ball, seeded(0))(model, x, y)
    assert torch.equal(model[2].running_mean, before)


def test_the_statistics_are_those_of_the_perturbed_images_and_not_of_the_steps_towards_them():
    model, (_, x, y, ball) = messy(), problem(dtype=torch.float32)
    delta = PGD(model, x, y, ball)
    training.adversarial(PGD, ball)(model, x, y)
    expected = 0.1 * model[1](x + delta).mean(0)
    torch.testing.assert_close(model[2].running_mean, expected)


@each_inner
def test_looking_at_an_inner_maximum_leaves_gradients_and_flags_of_the_weights_alone(make):
    model, x, y, ball = problem()
    model[1].weight.grad = torch.full_like(model[1].weight, 7.0)
    model[1].bias.requires_grad_(False)
    state, leaf = generators(), x.clone().requires_grad_()
    make(ball, seeded(0))(model, leaf, y)
    assert (model[1].weight.grad == 7).all()
    assert all(p.grad is None for p in model.parameters() if p is not model[1].weight)
    assert [p.requires_grad for p in model.parameters()] == [True, False, True, True]
    assert leaf.grad is None
    assert generators() == state


@pytest.mark.parametrize("name", ["fgsm", "pgd", "fast"])
def test_the_gradient_in_the_weights_is_that_of_the_loss_at_the_delta_that_was_found(name):
    network, x, y, ball = problem()
    model, parameters = Asked(network), list(network.parameters())
    got = torch.autograd.grad(INNERS[name](ball, seeded(0))(model, x, y).sum(), parameters)
    at = model.inputs[-1]
    expected = torch.autograd.grad(training.clean(network, at, y).sum(), parameters)
    assert same(got, expected)


def test_the_gradient_of_trades_takes_both_predictions_along_and_holds_the_delta_still():
    network, x, y, ball = problem()
    model, parameters = Asked(network), list(network.parameters())
    got = torch.autograd.grad(training.trades(ball, seeded(0), 3.0)(model, x, y).sum(), parameters)
    z, moved = network(x), network(model.inputs[-1])
    apart = nn.functional.kl_div(moved.log_softmax(1), z.softmax(1), reduction="sum")
    expected = torch.autograd.grad(training.clean(network, x, y).sum() + 3 * apart, parameters)
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b)


def test_what_an_attack_leaves_in_the_gradients_does_not_reach_the_weights():
    """An attack written as one often sees it, with backward, which fills the weights' gradients too."""
    model, x, y, ball = problem(dtype=torch.float32)

    def careless(model, x, y, ball):
        delta = torch.zeros_like(x, requires_grad=True)
        cross_entropy(model(x + delta), y, reduction="sum").backward()
        return ball.argmax(delta.grad, x)

    trained = []
    for attack in (careless, partial(attacks.fgsm, loss=losses.cross_entropy)):
        model = problem(dtype=torch.float32).model
        run(model, (x, y), training.adversarial(attack, ball), batch_size=2)
        trained.append(weights(model))
    assert torch.equal(*trained)


# ---- ramps ----


def test_a_ramp_is_0_until_it_begins_then_a_straight_line_and_full_from_its_end_on():
    ball = Ball(math.inf, 0.4, BOX)
    ramp = training.Ramp(lambda ball: ball, ball, begin=0.2, end=0.6)
    radii = [ramp.at(done).eps for done in (0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.9, 1)]
    assert radii == pytest.approx([0, 0, 0, 0.1, 0.2, 0.3, 0.4, 0.4, 0.4])
    assert radii[0] == radii[2] == 0
    assert radii[-3] == radii[-1] == ball.eps  # not a rounding less
    assert (ramp.at(0.3).p, ramp.at(0.3).box) == (math.inf, BOX)


@given(st.floats(0, 0.98), st.floats(0.01, 1), st.floats(0, 1), st.floats(0, 1))
def test_a_ramp_never_falls_and_never_exceeds_the_ball(begin, length, a, b):
    ramp = training.Ramp(lambda ball: ball.eps, Ball(2, 0.3), begin, min(1.0, begin + length))
    low, high = sorted((a, b))
    assert 0 <= ramp.at(low) <= ramp.at(high) <= 0.3
    assert ramp.at(1.0) == 0.3
    assert ramp.at(begin) == 0


def test_a_ramp_has_a_radius_for_each_sample_if_its_ball_has():
    ball = Ball(2, torch.tensor([0.0, 0.2, 0.4]))
    assert training.Ramp(lambda b: b.eps, ball, 0, 1).at(0.5).tolist() == pytest.approx([0.0, 0.1, 0.2])


def test_a_run_asks_the_ramp_for_the_part_of_the_run_that_is_done():
    model, x, y, ball = problem(n=10)
    radii = []
    ramp = training.Ramp(lambda b: radii.append(b.eps) or training.clean, ball, begin=0.1, end=0.7)
    run(model, (x, y), ramp, epochs=2, batch_size=2)
    expected = [ball.eps * min(1, max(0, i / 10 - 0.1) / 0.6) for i in range(10)]
    assert radii == pytest.approx(expected)


@pytest.mark.parametrize("name", ["pgd", "certified", "mixed", "fgsm"])
def test_a_ramped_loss_goes_from_the_clean_one_to_that_of_the_whole_ball(name):
    model, x, y, ball = problem()
    ramp = training.Ramp(lambda ball: INNERS[name](ball, seeded(0)), ball)
    losses_on_the_way = [ramp.at(done)(model, x, y).detach() for done in (0, 0.25, 0.5, 1)]
    torch.testing.assert_close(losses_on_the_way[0], training.clean(model, x, y).detach())
    whole = INNERS[name](ball, seeded(0))(model, x, y).detach()
    assert torch.equal(losses_on_the_way[2], whole)
    assert torch.equal(losses_on_the_way[3], whole)
    if name == "certified":
        assert all((b >= a).all() for a, b in itertools.pairwise(losses_on_the_way))


# ---- momentum, and steps of a given length ----


def batches_seen(inner):
    """The same inner maximum, and the batches that it was asked for."""
    seen = []
    return seen, lambda model, x, y: seen.append((x, y)) or inner(model, x, y)


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9])
@pytest.mark.parametrize("normalise", [False, True])
def test_a_step_goes_along_the_gradients_so_far_weighted_by_powers_of_the_momentum(momentum, normalise):
    """v ← μ v + g, θ ← θ − lr v, g divided by its norm over all parameters if that is asked."""
    model, data = network_and_data()
    by_hand = network_and_data()[0]
    seen, inner = batches_seen(training.clean)
    options = {"lr": lambda done: 0.3 * (1 - done), "batch_size": 6, "epochs": 2}
    run(model, data, inner, optimiser=SGD(momentum, normalise), **options)
    v = torch.zeros_like(weights(by_hand))
    for i, (x, y) in enumerate(seen):
        parts = torch.autograd.grad(training.clean(by_hand, x, y).mean(), list(by_hand.parameters()))
        g = torch.cat([part.flatten() for part in parts])
        v = momentum * v + (g / g.norm() if normalise else g)
        moved = weights(by_hand) - 0.3 * (1 - i / len(seen)) * v
        nn.utils.vector_to_parameters(moved, by_hand.parameters())
    assert len(seen) == 6
    torch.testing.assert_close(weights(model), weights(by_hand))


def test_a_normalised_step_is_as_long_as_lr_says_whatever_the_loss_is_multiplied_by():
    for factor in (1e-6, 1.0, 1e6):
        model, (x, y) = network_and_data()
        before = weights(model)
        run(
            model,
            (x, y),
            lambda m, x, y, c=factor: c * training.clean(m, x, y),
            epochs=1,
            batch_size=len(x),
            optimiser=SGD(normalise=True),
        )
        assert (weights(model) - before).norm().item() == pytest.approx(0.1, rel=1e-4)


def test_where_the_gradient_is_0_a_normalised_step_stays():
    model, data = network_and_data()
    before = weights(model)
    run(model, data, lambda m, x, y: 0 * training.clean(m, x, y), optimiser=SGD(normalise=True))
    assert torch.equal(weights(model), before)


# ---- what is done with a batch ----


def test_an_update_decides_how_often_a_batch_is_stepped_on():
    def twice(model, gradient, descend):
        first = gradient()
        descend()
        gradient()
        descend()
        return first

    model, (x, y) = network_and_data()
    by_hand, step = network_and_data()[0], {"epochs": 1, "batch_size": len(x)}
    (epoch,) = run(model, (x, y), training.clean, update=twice, **step)
    losses_ = [run(by_hand, (x, y), training.clean, **step)[0].loss for _ in range(2)]
    assert epoch.loss == losses_[0]
    torch.testing.assert_close(weights(model), weights(by_hand))


def test_an_update_may_take_the_gradient_at_other_weights():
    """A step up in the weights first, undone before the step down, as in weight perturbation."""

    def perturbed(model, gradient, descend):
        before = weights(model)
        gradient()
        up = torch.cat([p.grad.flatten() for p in model.parameters()])
        nn.utils.vector_to_parameters(before + 0.1 * up, model.parameters())
        loss = gradient()
        nn.utils.vector_to_parameters(before, model.parameters())
        descend()
        return loss

    model, (x, y) = network_and_data()
    shadow = network_and_data()[0]
    run(model, (x, y), training.clean, update=perturbed, epochs=1, batch_size=len(x))
    start = weights(shadow)

    def slope():
        loss = training.clean(shadow, x, y).mean()
        return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(shadow.parameters()))])

    nn.utils.vector_to_parameters(start + 0.1 * slope(), shadow.parameters())
    torch.testing.assert_close(weights(model), start - 0.1 * slope())


# ---- the step size, what is watched, and the best ----


def network_and_data(n=20, seed=0):
    """A small network in float32, and points with labels that it can learn."""
    x = inputs((n, 8), 5).float()
    return models.mlp([8, 6, 3], seeded(seed)), (x, (3 * x.mean(1)).long().clamp(0, 2))


def test_a_step_size_that_varies_is_asked_for_the_part_of_the_run_that_is_done(separable):
    x, y = separable
    model, asked = models.linear(2, 1), []
    w, b = (v.detach().clone() for v in linear.weights(model))

    def lr(done):
        asked.append(done)
        return 0.5 * (1 - done)

    run(model, separable, epochs=2, lr=lr, batch_size=len(x))
    assert asked == [0, 0.5]
    for size in (0.5, 0.25):
        slope = -y * torch.sigmoid(-linear.margin(w, b, x, y))
        w, b = w - size * (slope[:, None] * x).mean(0), b - size * slope.mean()
    torch.testing.assert_close(weights(model), torch.cat([w, b[None]]))
    run(models.linear(2, 1), separable, epochs=2, lr=lr, batch_size=20)
    assert asked[2:] == pytest.approx([i / 6 for i in range(6)])


def test_a_step_size_that_is_always_the_same_is_a_number():
    trained = []
    for lr in (0.3, lambda done: 0.3):
        model, data = network_and_data()
        run(model, data, training.clean, lr=lr, batch_size=7)
        trained.append(weights(model))
    assert torch.equal(*trained)


def test_what_is_watched_is_measured_on_the_weights_after_each_epoch_in_eval_mode():
    model, data = messy(), network_and_data()[1]
    model[3].eval()
    modes, seen = [module.training for module in model.modules()], []

    def measure(watched):
        assert watched is model
        seen.append(([module.training for module in watched.modules()], torch.is_grad_enabled()))
        return watched(data[0]).sum()  # a tensor will do

    for epoch in training.fit(model, data, training.clean, epochs=3, lr=0.1, watch={"sum": measure}):
        assert [module.training for module in model.modules()] == modes
        with models.evaluating(model):
            assert epoch.watched == {"sum": model(data[0]).sum().item()}
    assert type(epoch.watched["sum"]) is float
    assert len(seen) == 3
    assert not any(any(mode) or gradients for mode, gradients in seen)


def test_watching_changes_no_weight_even_if_it_attacks():
    trained, data, ball = [], network_and_data()[1], Ball(2, 0.1, BOX)
    for watch in ({}, {"accuracy": lambda m: robust_accuracy(m, *data, ball, [PGD]).value}):
        model = network_and_data()[0]
        epochs = run(model, data, training.clean, watch=watch)
        trained.append(weights(model))
    assert torch.equal(*trained)
    assert all(0 <= epoch.watched["accuracy"] <= 1 for epoch in epochs)
    assert [epoch.watched for epoch in run(*network_and_data(), training.clean)] == [{}] * 3


@pytest.mark.parametrize(
    ("measured", "best"),
    [([1, 3, 2, 3], 2), ([5, 4, 3, 2], 1), ([1, 2, 3, 4], 4), ([2, 2, 2, 2], 1), ([-3, -1, -2, -9], 2)],
)
def test_a_run_ends_with_the_weights_of_the_epoch_that_was_best_and_of_the_first_of_several(
    measured, best
):
    (model, data), values, on_the_way = network_and_data(), iter(measured), []
    watch = {"other": lambda m: 0.0, "score": lambda m: on_the_way.append(weights(m)) or next(values)}
    epochs = run(model, data, training.clean, epochs=4, watch=watch, best="score")
    assert [epoch.watched["score"] for epoch in epochs] == measured
    assert torch.equal(weights(model), on_the_way[best - 1])
    assert len({tuple(w.tolist()) for w in on_the_way}) == 4


def test_the_best_epoch_takes_its_statistics_along():
    model, data, values, means = messy(), network_and_data()[1], iter([2, 1]), []
    watch = {"score": lambda m: means.append(m[2].running_mean.clone()) or next(values)}
    run(model, data, training.clean, epochs=2, watch=watch, best="score")
    assert torch.equal(model[2].running_mean, means[0])
    assert not torch.equal(means[0], means[1])


def test_training_goes_on_from_the_last_epoch_and_not_from_the_best():
    trained = []
    for best in (None, "score"):
        (model, data), on_the_way = network_and_data(), []
        watch = {"score": lambda m, seen=on_the_way: seen.append(weights(m)) or -len(seen)}
        run(model, data, training.clean, watch=watch, best=best)
        trained.append(on_the_way)
    assert same(*trained)


# ---- runs that are killed, and go on ----


class Killed(Exception):
    """What ends a run in the middle of an epoch."""


def killed_at(inner, call):
    """The same inner maximum, which is no more at its call-th call."""
    calls = itertools.count(1)

    def dies(model, x, y):
        value = inner(model, x, y)  # what it draws, it has drawn
        if next(calls) == call:
            raise Killed
        return value

    return dies


def settings_of(best):
    """Four epochs, with a score of the weights that is largest where their size is `best`."""
    score = {"score": lambda m: -(weights(m).norm() - best).abs()}
    return {"epochs": 4, "lr": lambda done: 0.5 * (1 - done), "batch_size": 5} | (
        {"watch": score, "best": "score"} if best else {}
    )


SHARED = {name: INNERS[name] for name in ("clean", "pgd", "fast", "trades", "ddd")}


CALLS, BEST = (1, 4, 7, 16), (None, 1, 2)  # of 4 epochs of 4 batches
# Every inner maximum dies at every call and has every best epoch, and so does every call.
KILLED = [(n, c, BEST[(i + j) % 3]) for i, n in enumerate(SHARED) for j, c in enumerate(CALLS)]


@pytest.mark.parametrize(("name", "call", "best"), KILLED)
def test_a_run_that_was_killed_goes_on_to_the_same_weights_bit_by_bit(name, call, best, tmp_path):
    data, ball, path = network_and_data()[1], Ball(math.inf, 0.1, BOX), tmp_path / "run.pt"

    def start(seed, best, call=None, **more):
        model, generator = network_and_data(seed=seed)[0], seeded(seed)
        inner = SHARED[name](ball, generator)
        inner = killed_at(inner, call) if call else inner
        options = settings_of(best) | more
        return model, training.fit(model, data, inner, generator=generator, **options)

    model, plain = start(0, None)
    sizes = [weights(model).norm() for _ in plain]
    best = sizes[best - 1].item() if best else None  # so that this epoch is the best
    model, whole = start(0, best)
    whole, expected = list(whole), weights(model)
    _, dying = start(0, best, call, checkpoint=path)
    with pytest.raises(Killed):
        list(dying)
    # where nothing was written only the same start leads to the same end
    model, rest = start(8 if call > 4 else 0, best, checkpoint=str(path))
    rest = list(rest)
    assert [epoch.number for epoch in rest] == list(range((call - 1) // 4 + 1, 5))
    assert rest == whole[-len(rest) :]
    assert torch.equal(weights(model), expected)
    assert best is None or weights(model).norm().item() == pytest.approx(best)


def test_a_run_with_statistics_and_a_ramp_goes_on_to_the_same_weights_after_every_epoch(tmp_path):
    data, ball = network_and_data()[1], Ball(2, 0.3, BOX)

    def start(path=None):
        model, generator = messy(), seeded(0)
        model[4].p = 0.0
        ramp = training.Ramp(lambda b: training.fast(b, generator), ball, 0.2, 0.7)
        return model, training.fit(
            model, data, ramp, generator=generator, checkpoint=path, **settings_of(None)
        )

    model, whole = start()
    whole = list(whole)
    for epochs in range(1, 5):
        path = tmp_path / f"{epochs}.pt"
        list(itertools.islice(start(path)[1], epochs))
        other, rest = start(path)
        assert list(rest) == whole[epochs:]
        assert same(list(other.state_dict().values()), list(model.state_dict().values()))


@pytest.mark.parametrize("normalise", [False, True])
def test_a_run_with_momentum_goes_on_to_the_same_weights_after_every_epoch(normalise, tmp_path):
    options = settings_of(None) | {"optimiser": SGD(0.9, normalise)}
    model, data = network_and_data()
    run(model, data, training.clean, **options)
    for epochs in range(1, 4):
        path = tmp_path / f"{epochs}.pt"
        first = training.fit(network_and_data()[0], data, training.clean, checkpoint=path, **options)
        list(itertools.islice(first, epochs))
        other = network_and_data(seed=1)[0]
        run(other, data, training.clean, checkpoint=path, **options)
        assert torch.equal(weights(other), weights(model))


@pytest.mark.parametrize("best", [None, 3.0])
def test_a_run_that_is_over_is_not_run_again_and_gives_its_weights(best, tmp_path):
    (model, data), path = network_and_data(), tmp_path / "run.pt"
    run(model, data, training.clean, checkpoint=path, **settings_of(best))
    other = network_and_data(seed=1)[0]
    never = lambda *_: pytest.fail("it is over")  # noqa: E731
    assert run(other, data, never, checkpoint=path, **settings_of(best)) == []
    assert torch.equal(weights(other), weights(model))


def test_a_checkpoint_changes_nothing_in_a_run_that_is_not_killed(tmp_path):
    runs = []
    for path in (None, tmp_path / "run.pt"):
        model, data = network_and_data()
        runs.append([run(model, data, training.clean, checkpoint=path), weights(model)])
    assert runs[0][0] == runs[1][0]
    assert torch.equal(runs[0][1], runs[1][1])
    assert [file.name for file in tmp_path.iterdir()] == ["run.pt"]


OTHERS = {
    "epochs": {"epochs": 5},
    "a step size": {"lr": 0.2},
    "batches": {"batch_size": 6},
    "best": {"best": None},
    "momentum": {"optimiser": SGD(0.5)},
    "normalised": {"optimiser": SGD(normalise=True)},
    "data": {"n": 19},
}


@pytest.mark.parametrize("changed", OTHERS.values(), ids=OTHERS)
def test_the_checkpoint_of_another_run_is_refused_before_it_touches_the_model(changed, tmp_path):
    path, generator = tmp_path / "run.pt", seeded(1)
    run(*network_and_data(), training.clean, checkpoint=path, **settings_of(3.0))
    model, (x, y) = network_and_data(seed=1)
    options = settings_of(3.0) | changed
    n = options.pop("n", 20)
    before, written = weights(model), path.read_bytes()
    with pytest.raises(ValueError, match=r"run\.pt"):
        run(model, (x[:n], y[:n]), training.clean, generator=generator, checkpoint=path, **options)
    assert torch.equal(weights(model), before)
    assert torch.equal(generator.get_state(), seeded(1).get_state())
    assert path.read_bytes() == written


def test_a_disk_that_fills_up_while_a_checkpoint_is_written_leaves_the_one_before(tmp_path, monkeypatch):
    (model, data), path = network_and_data(), tmp_path / "run.pt"
    run(model, data, training.clean)
    expected, save = weights(model), torch.save

    def full(state, file):
        save(state, file)
        os.truncate(file, 100)
        raise OSError("no space left")

    epochs = training.fit(network_and_data()[0], data, training.clean, epochs=3, lr=0.1, checkpoint=path)
    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", full)
        with pytest.raises(OSError, match="no space left"):
            next(epochs)
        assert not path.exists()
    epochs = training.fit(network_and_data()[0], data, training.clean, epochs=3, lr=0.1, checkpoint=path)
    next(epochs)
    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", full)
        with pytest.raises(OSError, match="no space left"):
            next(epochs)
    other = network_and_data(seed=1)[0]
    assert [epoch.number for epoch in run(other, data, training.clean, checkpoint=path)] == [2, 3]
    assert torch.equal(weights(other), expected)


# ---- a bar that shows how far it is ----

SIZE = {"size": lambda m: weights(m).norm()}


@pytest.fixture
def bars(monkeypatch):
    """`make test` hides all bars."""
    monkeypatch.delenv("TQDM_DISABLE", raising=False)


def test_with_a_bar_the_epochs_are_the_same_and_the_bar_goes_away(bars, capsys):
    model, data = network_and_data()
    plain = run(model, data, training.clean, watch=SIZE)
    model, data = network_and_data()
    epochs = training.fit(model, data, training.clean, epochs=3, lr=0.1, watch=SIZE)
    assert list(training.progress(epochs, 3)) == plain
    shown = capsys.readouterr()
    assert shown.out == ""
    assert f"loss={plain[0].loss:.3f}" in shown.err
    assert f"size={plain[-1].watched['size']:.3f}" in shown.err
    assert shown.err.split("\r")[-1].strip() == ""


def test_the_bar_of_a_run_that_goes_on_begins_where_it_was(bars, tmp_path, capsys):
    path, (model, data) = tmp_path / "run.pt", network_and_data()
    options = {"epochs": 4, "lr": 0.1, "checkpoint": path}
    first = list(itertools.islice(training.fit(model, data, training.clean, **options), 2))
    bar = training.progress(training.fit(model, data, training.clean, **options), 4)
    next(bar)
    assert "3/4" in capsys.readouterr().err
    assert [e.number for e in bar] == [4]
    assert [e.number for e in first] == [1, 2]
    over = training.fit(model, data, training.clean, **options)
    assert list(training.progress(over, 4)) == []


def test_a_bar_that_is_left_early_stops_the_run_and_goes_away(bars, capsys):
    model, data = network_and_data()
    seen = []
    for epoch in training.progress(training.fit(model, data, training.clean, epochs=9, lr=0.1), 9):
        seen.append(epoch.number)
        if epoch.number == 2:
            break
    del epoch
    assert seen == [1, 2]
    assert capsys.readouterr().err.split("\r")[-1].strip() == ""


@pytest.mark.parametrize(("value", "hidden"), [("1", True), ("True", True), ("0", False), ("", False)])
def test_with_the_bar_switched_off_nothing_is_written(value, hidden, monkeypatch, capsys):
    monkeypatch.setenv("TQDM_DISABLE", value)
    epochs = [training.Epoch(1, 0.5, {"score": 1.0}), training.Epoch(2, 0.4, {"score": 2.0})]
    assert list(training.progress(iter(epochs), 2)) == epochs
    shown = capsys.readouterr()
    assert shown.out == ""
    assert (shown.err == "") == hidden


# ---- the networks that every chapter means ----


@pytest.fixture(scope="module")
def few(digits):
    """300 digits to train on: as many steps as ever, in less memory."""
    return Data(digits.x_train[:300], digits.y_train[:300], digits.x_test, digits.y_test)


@pytest.fixture(scope="module")
def standard(few):
    return training.reference("standard", few)


@pytest.fixture(scope="module")
def robust(few):
    return training.reference("robust", few)


def test_a_reference_network_is_the_same_twice_and_leaves_the_global_generator_alone(few, standard):
    torch.manual_seed(1)
    before = torch.get_rng_state()
    again = training.reference("standard", few)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(weights(again), weights(standard))
    assert [layer.out_features for layer in list(again)[1::2]] == [50, 50, 10]


def test_the_robust_network_goes_on_from_the_standard_one_with_ten_steps_of_pgd(
    few, standard, monkeypatch
):
    calls = []

    def note(model, x, y, ball, **options):
        if not calls:
            calls.append((weights(model).clone(), ball, options, len(x)))
        return torch.zeros_like(x)

    monkeypatch.setattr(training.attacks, "pgd", note)
    first = training.reference("robust", few)
    (start, ball, options, n), *_ = calls
    assert start.dtype == torch.float64
    assert torch.equal(start.float(), weights(standard))
    assert (ball.p, ball.eps, ball.box) == (math.inf, 0.1, BOX)
    assert (options["steps"], options["keep"], n) == (10, "last", 100)
    calls.clear()
    assert torch.equal(weights(training.reference("robust", few)), weights(first))


def test_the_robust_network_is_more_robust_on_new_digits_and_the_standard_one_knows_them(
    few, standard, robust
):
    x, y = few.x_test, few.y_test
    clean = Ball(math.inf, 0.0, BOX)
    assert robust_accuracy(standard, x, y, clean).value > 0.85
    assert robust_accuracy(robust, x, y, clean).value > 0.85
    attacked = Ball(math.inf, 0.1, BOX)
    weak, strong = (robust_accuracy(m, x, y, attacked, [attacks.pgd]) for m in (standard, robust))
    assert strong.low > weak.high  # far more than the size of the test set leaves open


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "seed"), training.SHIPPED)
def test_training_finds_the_shipped_weights_again(kind, seed, digits):
    shipped, again = training.reference(kind, digits, seed), training.trained(kind, digits, seed)
    if torch.__version__.split("+")[0] == pinned("torch"):
        torch.testing.assert_close(again.state_dict(), shipped.state_dict(), rtol=0, atol=1e-5)
    clean = Ball(math.inf, 0.0, BOX)
    found = (robust_accuracy(m, digits.x_test, digits.y_test, clean).value for m in (again, shipped))
    assert abs(next(found) - next(found)) <= 0.01


def pinned(package):
    """The version of a package in the lock."""
    lock = (Path(__file__).parents[1] / ".ci/requirements.lock").read_text()
    return re.search(rf"^{package}==([^ ;]+)", lock, re.MULTILINE)[1]


def test_the_shipped_networks_are_for_the_digits_and_nothing_else(digits, few, standard):
    other = Data(digits.x_train.flip(0), digits.y_train.flip(0), digits.x_test, digits.y_test)
    assert training.digest(other) != training.digest(digits)
    assert not torch.equal(weights(training.reference("standard", digits)), weights(standard))
    files = {file.stem for file in training.WEIGHTS.iterdir()}
    assert files == {f"{kind}-{seed}" for kind, seed in training.SHIPPED}
    for file in training.WEIGHTS.iterdir():
        assert torch.load(file, weights_only=True)["data"] == training.digest(digits)
        assert file.stat().st_size < 50_000


def test_what_a_caller_does_to_a_shipped_network_stays_with_the_caller(digits):
    first = training.reference("normalised", digits, 1)
    assert not first.training
    before = weights(first)
    run(first, (digits.x_train[:50], digits.y_train[:50]), training.clean, epochs=1)
    assert torch.equal(weights(training.reference("normalised", digits, 1)), before)


def test_a_reference_network_has_no_gradients_left_that_an_attack_made(robust):
    before = [None if p.grad is None else p.grad.clone() for p in robust.parameters()]
    x, y = torch.rand(4, 1, 8, 8), torch.tensor([0, 1, 2, 3])
    attacks.pgd(robust, x, y, Ball(math.inf, 0.1, BOX), loss=losses.cross_entropy)
    after = [p.grad for p in robust.parameters()]
    assert all(a is None if b is None else torch.equal(a, b) for a, b in zip(after, before, strict=True))
