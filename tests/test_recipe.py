"""What recipes add: labels, stages, modes, weights that move, replays; each against a loop by hand."""

import itertools
import math
from functools import partial

import pytest
import torch
from strategies import BOX, ORDERS, problem, seeded
from test_stack import CUBE, images, networks
from test_training import Asked, messy, run, weights
from torch import nn
from torch.nn.functional import cross_entropy

from adv_lib import attacks, losses, models, recipe, training
from adv_lib.stack import Stack
from adv_lib.threat import Ball

PGD = partial(attacks.pgd, steps=3, keep="last")


# ---- labels ----


@pytest.mark.parametrize("share", [0.0, 0.2, 1.0])
def test_the_loss_that_is_minimised_is_the_smoothed_one_at_the_delta_of_the_attack(share):
    network, x, y, ball = problem()
    loss, smooth = recipe.smoothing(share), partial(cross_entropy, label_smoothing=share)
    inners = {
        "adversarial": training.adversarial(PGD, ball, loss=loss),
        "fast": training.fast(ball, seeded(0), loss=loss),
        "clean": partial(training.clean, loss=loss),
        "free": recipe.Free(ball, 1, loss=loss),
    }
    for inner in inners.values():
        model = Asked(network)
        got = inner(model, x, y)
        expected = smooth(network(model.inputs[-1]), y, reduction="none")
        torch.testing.assert_close(got, expected)
    plain = training.trades(ball, seeded(0), 2.0)(network, x, y)
    smoothed = training.trades(ball, seeded(0), 2.0, loss=loss)(network, x, y)
    change = smooth(network(x), y, reduction="none") - training.clean(network, x, y)
    torch.testing.assert_close(smoothed, plain + change)


def test_smoothing_deals_one_share_a_member():
    z, y = torch.randn(6, 3, generator=seeded(0)), torch.tensor([0, 1, 2, 0, 1, 2])
    got = recipe.smoothing([0.0, 0.1, 0.5])(z, y)
    for e, share in enumerate((0.0, 0.1, 0.5)):
        torch.testing.assert_close(got[e::3], losses.smoothed(z[e::3], y[e::3], share))


# ---- modes ----


@pytest.mark.parametrize("name", ["adversarial", "trades"])
@pytest.mark.parametrize("training_mode", [True, False])
def test_in_train_mode_the_attack_sees_the_model_as_it_is_and_in_eval_mode_it_does_not(
    name, training_mode
):
    (_, x, y, ball), seen = problem(dtype=torch.float32), []

    def attack(model, x, y, ball):
        return PGD(model, x, y, ball)

    makers = {
        "adversarial": lambda mode: training.adversarial(attack, ball, mode=mode),
        "trades": lambda mode: training.trades(ball, seeded(0), mode=mode),
    }
    own = {"adversarial": 1, "trades": 2}[name]  # passes of the loss, after the attack
    for mode in ("train", "eval"):
        model = messy().train(training_mode)
        model[2].register_forward_hook(lambda module, *_: seen.append(module.training))
        seen.clear()
        makers[name](mode)(model, x, y)
        assert len(seen) > own + 2
        assert set(seen[:-own]) == {training_mode and mode == "train"}
        assert set(seen[-own:]) == {training_mode}
        assert model[2].num_batches_tracked == training_mode * (len(seen) if mode == "train" else own)
        assert all(module.training == training_mode for module in model.modules())


def test_in_train_mode_the_attack_climbs_with_the_statistics_of_the_batch():
    model, (x, y) = networks(1, norm=True)[0], images(8)
    found = []

    def attack(model, x, y, ball):
        found.append(PGD(model, x, y, ball))
        return found[-1]

    for mode in ("train", "eval"):
        training.adversarial(attack, CUBE, mode=mode)(model, x, y)
    fresh = networks(1, norm=True)[0]
    batch = lambda v: fresh(v)  # noqa: E731
    torch.testing.assert_close(found[0], PGD(batch, x, y, CUBE), rtol=0, atol=1e-12)
    assert not torch.equal(found[0], found[1])


# ---- stages ----


def test_a_stage_lasts_until_the_next_begins():
    staged = recipe.Staged([(0, "a"), (0.4, "b"), (0.7, "c")])
    parts = (0, 0.39, 0.4, 0.69, 0.7, 1)
    assert [staged.at(done) for done in parts] == ["a", "a", "b", "b", "c", "c"]


def test_a_run_asks_the_stage_of_the_part_that_is_done_also_for_a_ramp_in_it():
    model, x, y, ball = problem(n=10)
    asked = []

    def noted(name):
        return lambda model, x, y: asked.append(name) or training.clean(model, x, y)

    ramp = training.Ramp(lambda b: noted(b.eps), ball, 0.0, 1.0)
    run(model, (x, y), recipe.Staged([(0, noted("first")), (0.5, ramp)]), epochs=2, batch_size=2)
    assert asked[:5] == ["first"] * 5
    assert asked[5:] == pytest.approx([ball.eps * i / 10 for i in range(5, 10)])


# ---- weights that move ----


def moved(model, x, y, gamma):
    """A copy of the model one step up, by hand: v = γ ‖W‖ G/‖G‖ for each matrix."""
    mode = model.training
    proxy = networks(1, norm=any(isinstance(m, nn.BatchNorm1d) for m in model))[0].train(mode)
    proxy.load_state_dict(model.state_dict())
    cross_entropy(proxy(x), y).backward()
    copy = networks(1, norm=len(model) > 6)[0].train(mode)
    copy.load_state_dict(model.state_dict())
    with torch.no_grad():
        for layer, other in zip(copy, proxy, strict=True):
            if isinstance(layer, nn.Linear):
                G = other.weight.grad
                layer.weight += gamma * layer.weight.norm() * G / G.norm()
    return copy


@pytest.mark.parametrize("training_mode", [True, False])
@pytest.mark.parametrize("norm", [False, True])
def test_awp_is_the_loss_and_the_gradient_at_weights_one_step_up(norm, training_mode):
    (model,), (x, y) = networks(1, norm), images(9)
    model.train(training_mode)
    delta, before = PGD(model, x, y, CUBE), [p.detach().clone() for p in model.parameters()]
    by_hand = moved(model, x + delta, y, 0.1)
    expected = cross_entropy(by_hand(x + delta), y, reduction="none")
    expected.mean().backward()
    got = recipe.awp(PGD, CUBE, 0.1)(model, x, y)
    torch.testing.assert_close(got, expected)
    got.mean().backward()
    for p, q, old in zip(model.parameters(), by_hand.parameters(), before, strict=True):
        torch.testing.assert_close(p.grad, q.grad)
        assert torch.equal(p, old)
    for a, b in zip(model.buffers(), by_hand.buffers(), strict=True):
        torch.testing.assert_close(a, b)  # learned once, at θ + v
    assert not norm or model[2].num_batches_tracked == training_mode


def test_a_step_of_awp_is_taken_from_the_weights_as_they_were():
    (model,), (x, y) = networks(1), images(9)
    before = weights(model)
    by_hand = moved(model, x, y, 0.2)
    cross_entropy(by_hand(x), y).backward()
    slope = torch.cat([p.grad.flatten() for p in by_hand.parameters()])
    stay = lambda model, x, y, ball: torch.zeros_like(x)  # noqa: E731
    run(model, (x, y), recipe.awp(stay, CUBE, 0.2), epochs=1, lr=0.3, batch_size=9)
    torch.testing.assert_close(weights(model), before - 0.3 * slope)


def test_awp_raises_the_loss_more_the_larger_gamma_is_and_with_0_it_is_adversarial_training():
    (model,), (x, y) = networks(1), images(9)
    means = [recipe.awp(PGD, CUBE, g)(model, x, y).mean().item() for g in (0, 0.01, 0.05)]
    assert means[0] < means[1] < means[2]
    plain = training.adversarial(PGD, CUBE)(model, x, y).mean().item()
    assert means[0] == pytest.approx(plain, abs=1e-12)


def test_where_the_loss_is_flat_awp_stays():
    (model,), (x, y) = networks(1), images(9)
    with torch.no_grad():
        model[-1].weight.zero_()
        model[-1].bias.copy_(torch.tensor([100.0, 0.0, 0.0]))
    stay = lambda model, x, y, ball: torch.zeros_like(x)  # noqa: E731
    got = recipe.awp(stay, CUBE, 0.5)(model, x, 0 * y)
    assert torch.equal(got, training.clean(model, x, 0 * y))


# ---- replays ----


@pytest.mark.parametrize("replays", [1, 3])
@pytest.mark.parametrize("norm", [False, True])
def test_free_is_the_published_algorithm(replays, norm):
    """δ and θ move by the same backward pass; δ is kept from a batch of 8 to one of 7 and back."""
    x, y = images(22)  # in batches of 7, 7 and 8
    (model,), (by_hand,) = networks(1, norm), networks(1, norm)
    seen, free = [], recipe.Free(CUBE, replays)

    def noted(model, x, y):
        seen.append((x, y))
        return free(model, x, y)

    epochs = run(model, (x, y), noted, epochs=2, lr=0.2, batch_size=8, update=free.update)
    delta, found = torch.zeros_like(x[:8]), []
    for x_, y_ in seen[::replays]:
        n, low, high = len(x_), (-x_).clamp(min=-0.2), (1 - x_).clamp(max=0.2)
        delta = torch.cat([delta, torch.zeros_like(x[:8])])[:n].clamp(low, high)
        for _ in range(replays):
            at = delta.clone().requires_grad_()
            loss = cross_entropy(by_hand(x_ + at), y_)
            slopes = torch.autograd.grad(loss, [at, *by_hand.parameters()])
            with torch.no_grad():
                for p, g in zip(by_hand.parameters(), slopes[1:], strict=True):
                    p -= 0.2 * g
            delta = (delta + 0.2 * slopes[0].sign()).clamp(low, high)
            found.append(loss.item() * n)
    assert {len(x_) for x_, _ in seen} == {7, 8}
    assert len(seen) == 6 * replays
    torch.testing.assert_close(weights(model), weights(by_hand))
    for a, b in zip(model.buffers(), by_hand.buffers(), strict=True):
        torch.testing.assert_close(a, b)
    halves = found[: len(found) // 2], found[len(found) // 2 :]
    for epoch, half in zip(epochs, halves, strict=True):
        assert epoch.loss == pytest.approx(sum(half) / replays / 22)


@pytest.mark.parametrize("p", ORDERS)
@pytest.mark.parametrize("box", [None, BOX])
def test_the_delta_of_free_is_in_the_ball_and_raises_the_loss(p, box):
    network, x, y, ball = problem(p=p, box=box)
    free, still = recipe.Free(ball, 4), lambda: None
    asked = Asked(network)

    def gradient():
        loss = free(asked, x, y)
        loss.mean().backward()
        return loss.detach().mean()[None]

    free.update(network, gradient, still)
    after = free(network, x, y).mean()
    for inputs in asked.inputs:
        assert ball.contains(inputs - x, x).all()
    assert after > training.clean(network, x, y).mean()


def test_without_its_update_the_delta_of_free_stays_0():
    (model,), (x, y) = networks(1), images(9)
    free = recipe.Free(CUBE, 2)
    run(model, (x, y), free, epochs=2)
    assert not free.delta.any()


# ---- an attack that stops ----


@pytest.mark.parametrize("tolerance", [0, 1, 3])
def test_friendly_stops_a_sample_after_so_many_steps_from_points_where_it_is_broken(tolerance):
    network, x, y, ball = problem(n=40, eps=0.5, dtype=torch.float64)
    asked = Asked(network)
    delta = attacks.friendly(asked, x, y, ball, steps=8, tolerance=tolerance)
    path, wrong = asked.inputs, torch.zeros(len(x), dtype=torch.int64)
    assert len(path) == 8
    stopped = 0
    for here, there in itertools.pairwise([*path, x + delta]):
        wrong += losses.margin(network(here), y) <= 0
        stays = wrong > tolerance
        assert torch.equal(here[stays], there[stays])
        stopped += int(stays.sum())
    assert stopped > 0
    free = Asked(network)
    attacks.pgd(free, x, y, ball, steps=8, keep="last")
    assert torch.equal(path[1], free.inputs[1]) or tolerance == 0
    never = losses.margin(network(x + delta), y) > 0
    full = attacks.pgd(network, x, y, ball, steps=8, keep="last")
    assert torch.equal(delta[never], full[never]) or not never.any()


def test_friendly_that_tolerates_every_step_is_pgd_and_its_loss_grows_with_the_tolerance():
    network, x, y, ball = problem(n=40, eps=0.5)
    found = [attacks.friendly(network, x, y, ball, tolerance=t) for t in (0, 1, 2, 10)]
    means = [training.clean(network, x + delta, y).mean().item() for delta in found]
    assert means == sorted(means)
    assert torch.equal(found[-1], attacks.pgd(network, x, y, ball, steps=10, keep="last"))


def test_a_sample_that_is_wrong_to_begin_with_does_not_move_without_tolerance():
    network, x, y, ball = problem(n=40)
    wrong = ~losses.correct(network(x), y)
    assert wrong.any()
    delta = attacks.friendly(network, x, y, ball)
    assert not delta[wrong].any()
    assert delta[~wrong].flatten(1).any(1).all()


def test_every_trick_at_once_trains_one_stack():
    """Activations, decays, smoothings, schedules: a grid in one run, and losses that fall."""
    makers = (nn.ReLU, nn.SiLU, nn.Softplus)
    stack = Stack([models.mlp([6, 12, 3], seeded(0), norm=True, activation=a).double() for a in makers])
    x, y = images(60)
    y = (3 * x.flatten(1).mean(1)).long().clamp(0, 2)
    inner = training.adversarial(
        partial(attacks.friendly, steps=3, tolerance=1),
        Ball(math.inf, 0.05, BOX),
        loss=recipe.smoothing([0.0, 0.1, 0.2]),
    )
    epochs = list(training.fit(stack, (x, y), inner, epochs=20, lr=0.2, batch_size=20))
    assert all(last < first for first, last in zip(epochs[0].loss, epochs[-1].loss, strict=True))
