"""The outer minimum: stochastic gradient descent on whatever inner maximum it is given."""

import itertools
import math

import pytest
import torch
from strategies import BOX, entries, inputs, seeded
from torch.nn.functional import cross_entropy

from adv_lib import attacks, linear, losses, models, training
from adv_lib.data import Data
from adv_lib.evaluation import robust_accuracy
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
    assert [len(batch) for batch in seen] == [25, 25, 10] * 2
    for half in (seen[:3], seen[3:]):
        assert sorted(torch.cat(half).tolist()) == sorted(separable[0].tolist())
    assert not torch.equal(seen[0], seen[3])


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


def test_epochs_are_counted_from_1(separable):
    assert [epoch.number for epoch in run(models.linear(2, 1), separable)] == [1, 2, 3]
    assert run(models.linear(2, 1), separable, epochs=0) == []


def test_a_loss_that_is_not_finite_stops_before_it_reaches_the_weights(separable):
    model = models.linear(2, 1)
    before = weights(model)
    with pytest.raises(FloatingPointError, match="nan in epoch 1"):
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
    assert torch.equal(start, weights(standard))
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


def test_a_reference_network_has_no_gradients_left_that_an_attack_made(robust):
    before = [None if p.grad is None else p.grad.clone() for p in robust.parameters()]
    x, y = torch.rand(4, 1, 8, 8), torch.tensor([0, 1, 2, 3])
    attacks.pgd(robust, x, y, Ball(math.inf, 0.1, BOX), loss=losses.cross_entropy)
    after = [p.grad for p in robust.parameters()]
    assert all(a is None if b is None else torch.equal(a, b) for a, b in zip(after, before, strict=True))
