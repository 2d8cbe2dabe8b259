"""Ensembles: what they answer, how they are trained, attacked and proved, against their definitions."""

import copy
import math
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import BOX, DTYPES, NETWORKS, entries, inputs, seeded, seeds
from torch import nn

from adv_lib import attacks, bounds, ensembles, evaluation, exact, losses, models, suite, training
from adv_lib.ensembles import Ensemble, adp, adp_loss, averaged, climb, diversity, log_mean, mean_margins
from adv_lib.optimisers import SGD, Adam
from adv_lib.stack import Stack, matrices, members_of
from adv_lib.threat import Ball

CUBE = Ball(math.inf, 0.2, BOX)
LOSSES = {
    "mean probability": ensembles.mean_probability,
    "mean logits": ensembles.mean_logits,
    "mean margin": ensembles.mean_margin,
    "strongest": ensembles.strongest,
    "member 1": ensembles.of_member(1),
}


def networks(K=3, L=4, seed=0, norm=False, scale=1.0, hidden=(7, 5), dtype=torch.float64):
    """K networks of six inputs, each from its own seed; scale multiplies their last weights."""
    found = [models.mlp([6, *hidden, L], seeded(seed + k), norm=norm).to(dtype) for k in range(K)]
    for network in found:
        for parameter in network[-1].parameters():
            parameter.data *= scale
    return found


def batch(n=20, L=4, seed=0, dtype=torch.float64):
    return inputs((n, 1, 2, 3), seed).to(dtype), torch.arange(n) % L


def logits(seed=0, n=8, K=3, L=5, scale=1.0, dtype=torch.float64):
    y = torch.randint(L, (n,), generator=seeded(seed))
    return (scale * entries((n, K, L), seed, "plain")).to(dtype), y


def agree(some, others, atol=1e-9):
    for one, other in zip(some, others, strict=True):
        for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-9 if atol else 0, atol=atol)


# ---- the ensemble ----


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("norm", [False, True])
def test_it_answers_with_the_logarithm_of_the_mean_of_its_members_probabilities(dtype, norm):
    alone, (x, _) = networks(norm=norm, dtype=dtype), batch(dtype=dtype)
    ensemble = Ensemble(alone).eval()
    by_hand = sum(network.eval()(x).softmax(1) for network in alone) / 3
    found = ensemble(x)
    assert found.dtype == dtype
    assert found.shape == (20, 4)
    torch.testing.assert_close(found.exp(), by_hand)
    each = torch.stack([network(x) for network in alone], 1)
    torch.testing.assert_close(ensemble.each(x), each)
    torch.testing.assert_close(log_mean(each), found)


def test_its_members_are_those_it_was_made_from_and_their_weights_its_own():
    alone = networks(norm=True)
    ensemble, (x, _) = Ensemble(alone), batch()
    agree(ensemble.members(), alone, atol=0)
    agree(Ensemble(ensemble.members()).members(), alone, atol=0)
    ensemble.eval()
    before, answers = copy.deepcopy(alone), ensemble(x)
    with torch.no_grad():
        for p in ensemble.parameters():
            p.mul_(1.5)
    agree(alone, before, atol=0)
    assert not torch.equal(ensemble(x), answers)
    torch.testing.assert_close(ensemble.member(1)(x), ensemble.each(x)[:, 1], rtol=0, atol=1e-12)


def test_it_survives_saving_and_loading_and_counts_as_one_network():
    one, other = Ensemble(networks()), Ensemble(networks(seed=9))
    other.load_state_dict(one.state_dict())
    x, _ = batch()
    assert torch.equal(one(x), other(x))
    assert len(one) == 3
    assert members_of(one) == 1
    assert [p.ndim for p in matrices(one).values()] == [3, 3, 3]


@pytest.mark.parametrize("K", [1, 2, 5])
def test_with_a_single_member_it_is_that_member_and_with_copies_too(K):
    (alone,), (x, _) = networks(1), batch()
    found = Ensemble([alone] * K)(x)
    torch.testing.assert_close(found, alone(x).log_softmax(1))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scale", [1.0, 100.0, 1e4])
def test_the_logarithm_of_the_mean_stays_finite_where_the_probabilities_do_not(dtype, scale):
    z, _ = logits(scale=scale, dtype=dtype)
    z.requires_grad_()
    found = log_mean(z)
    (slope,) = torch.autograd.grad(found.sum(), z)
    assert found.isfinite().all()
    assert slope.isfinite().all()
    wanted = log_mean(z.detach().double())
    torch.testing.assert_close(found.detach().double(), wanted, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found.logsumexp(1), torch.zeros(8, dtype=dtype), rtol=0, atol=1e-5)


# ---- diversity, and the loss ----


@given(seeds, st.integers(1, 5), st.integers(2, 7), st.sampled_from([0.1, 1.0, 6.0]))
def test_the_diversity_is_the_squared_volume_that_gram_and_schmidt_find(seed, K, L, scale):
    z, y = logits(seed, K=K, L=L, scale=scale)
    found = diversity(z, y)
    for i in range(len(z)):
        p = z[i].softmax(1)
        columns, volume = [], 1.0
        for k in range(K):
            v = torch.cat([p[k, : y[i]], p[k, y[i] + 1 :]])
            v = v / v.norm()
            for u in columns + columns:  # twice, against rounding
                v = v - (v @ u) * u
            volume *= float(v.norm())
            columns.append(v / v.norm().clamp(min=1e-12))
        assert float(found[i]) == pytest.approx(volume**2, abs=1e-10)


@given(seeds, st.floats(0, 5), st.floats(0, 5))
def test_the_loss_is_its_definition(seed, alpha, beta):
    z, y = logits(seed)
    found = adp_loss(z, y, alpha, beta)
    for i in range(len(z)):
        p = z[i].softmax(1)
        mean, rest = p.mean(0), torch.cat([p[:, : y[i]], p[:, y[i] + 1 :]], 1)
        rest = rest / rest.norm(dim=1, keepdim=True)
        gram = rest @ rest.T + 1e-6 * torch.eye(3).double()
        own = -p[:, y[i]].log().sum() + alpha * (mean * mean.log()).sum() - beta * gram.det().log()
        assert float(found[i]) == pytest.approx(float(own), rel=1e-9, abs=1e-9)


@pytest.mark.parametrize(("alpha", "beta"), [(0, 0), (2, 0), (0, 0.5), (2, 0.5)])
def test_its_gradient_is_that_of_finite_differences(alpha, beta):
    z, y = logits(scale=2.0)
    z.requires_grad_()
    assert torch.autograd.gradcheck(lambda z: adp_loss(z, y, alpha, beta), z)


@pytest.mark.parametrize("beta", [0, 0.5])
@pytest.mark.parametrize("K", [2, 3, 6])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e4])
def test_loss_and_gradient_stay_finite_in_32_bits_where_members_agree_or_are_sure(K, scale, beta):
    """Also with more members than wrong classes, whose matrix is singular."""
    different, y = logits(n=50, K=K, scale=scale, dtype=torch.float32)
    alike = different[:, :1].expand(-1, K, -1)
    nearly = alike * (1 + 1e-7 * different.sign())
    even = 0 * different
    for z in (different, alike, nearly, even, -different):
        own = z.clone().requires_grad_()
        loss = adp_loss(own, y, 2.0, beta)
        (slope,) = torch.autograd.grad(loss.sum(), own)
        assert loss.dtype == torch.float32
        assert loss.isfinite().all()
        assert slope.isfinite().all()
        found = diversity(z, y)
        assert ((found >= 0) & (found <= 1)).all()


def test_who_agrees_in_all_but_the_label_pays_for_the_diagonal_only():
    z, y = logits(K=2)
    z[:, 1] = z[:, 0].scatter_add(1, y[:, None], torch.ones(8, 1).double())
    assert (diversity(z, y) < 1e-12).all()
    cost = adp_loss(z, y, 0, 1) - adp_loss(z, y, 0, 0)
    torch.testing.assert_close(cost, torch.full_like(cost, -math.log(2e-6 + 1e-12)), rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    ("alpha", "K", "L", "p"), [(2, 3, 10, 0.588), (6, 3, 10, 0.333), (2 * 3, 3, 10, 0.333)]
)
def test_the_optimum_has_the_values_of_the_book(alpha, K, L, p):
    found = ensembles.optimum(alpha, K, L)
    assert round(found, 3) == p
    assert 1 / found == pytest.approx(alpha / K * math.log(found * (L - 1) / (1 - found)), rel=1e-9)
    P = ensembles.optimal_predictions(alpha, K, L)
    assert P.shape == (K, L)
    assert P.dtype == torch.float64
    assert P[:, 0].tolist() == [found] * K
    assert (P[:, 1:] > 0).sum(1).tolist() == [3, 3, 3]
    assert (P[:, 1:] > 0).sum(0).tolist() == [1] * 9


@pytest.mark.parametrize("alpha", [5e-324, 1e-300, 1e-3, 1e3, 1e300])
def test_the_optimum_of_numbers_far_out_is_between_chance_and_certainty(alpha):
    found = ensembles.optimum(alpha, 3, 10)
    assert 0.1 - 1e-15 <= found <= 1
    assert found == pytest.approx(1.0 if alpha < 1 else 0.1, abs=1e-2)


# ---- training ----


OPTIMISERS = {"SGD": SGD(), "SGD, momentum": SGD(0.9, weight_decay=1e-3), "Adam": Adam()}


def atol(optimiser, norm):
    """Adam scales up what rounding leaves of the gradient of a bias that BatchNorm takes away."""
    return 1e-6 if isinstance(optimiser, Adam) and norm else 1e-9


def trained(model, inner, optimiser, **options):
    sizes = {"lr": 0.01 if isinstance(optimiser, Adam) else 0.2, "optimiser": optimiser}
    return list(training.fit(model, batch(22), inner, epochs=3, batch_size=8, **sizes, **options))


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("optimiser", OPTIMISERS.values(), ids=OPTIMISERS)
def test_without_alpha_and_beta_each_member_ends_where_it_would_alone(optimiser, norm):
    alone = networks(norm=norm)
    ensemble = Ensemble(alone)
    together = trained(ensemble, adp(0, 0), optimiser)
    apart = [trained(network, training.clean, optimiser) for network in alone]
    agree(ensemble.members(), alone, atol(optimiser, norm))
    for epoch, *own in zip(together, *apart, strict=True):
        assert epoch.loss == pytest.approx(sum(one.loss for one in own))


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("optimiser", OPTIMISERS.values(), ids=OPTIMISERS)
@pytest.mark.parametrize(("alpha", "beta"), [(0, 0), (2, 0.5)])
def test_ensembles_side_by_side_end_where_each_would_alone(alpha, beta, optimiser, norm):
    alone = [networks(3, seed=seed, norm=norm) for seed in (0, 10)]
    stack, apart = Stack(alone[0] + alone[1]), [Ensemble(members) for members in alone]
    together = trained(stack, adp(alpha, beta, 3), optimiser)
    for e, ensemble in enumerate(apart):
        own = trained(ensemble, adp(alpha, beta), optimiser)
        agree(stack.members()[3 * e : 3 * e + 3], ensemble.members(), atol(optimiser, norm))
        for all_of_them, one in zip(together, own, strict=True):
            assert sum(all_of_them.loss[3 * e : 3 * e + 3]) == pytest.approx(one.loss)


def test_ensembles_side_by_side_have_weights_of_their_own():
    alone, alphas, betas = [networks(3, seed=seed) for seed in (0, 10)], (0.0, 2.0), (0.5, 0.1)
    stack = Stack(alone[0] + alone[1])
    trained(stack, adp(alphas, betas, 3), SGD())
    for e, (members, alpha, beta) in enumerate(zip(alone, alphas, betas, strict=True)):
        ensemble = Ensemble(members)
        trained(ensemble, adp(alpha, beta), SGD())
        agree(stack.members()[3 * e : 3 * e + 3], ensemble.members())


def test_the_loss_takes_a_weight_for_each_sample():
    (z, y), alpha = logits(), torch.linspace(0, 2, 8).double()
    found = adp_loss(z, y, alpha, alpha.flip(0))
    for i in range(8):
        own = adp_loss(z[i : i + 1], y[i : i + 1], float(alpha[i]), float(alpha[7 - i]))
        torch.testing.assert_close(found[i : i + 1], own)


def test_a_stack_is_told_what_each_of_its_networks_adds():
    stack, (x, y) = Stack(networks(6)), batch(5)
    loss = adp(2, 0.5, 3)(stack, stack.rows(x), stack.rows(y))
    assert loss.shape == (30,)
    whole = adp(2, 0.5)(Ensemble(stack.members()[3:]), x, y)
    torch.testing.assert_close(loss.view(5, 6)[:, 3:].sum(1), whole)


def test_the_diversity_grows_with_beta_and_the_doubt_with_alpha(digits):
    x, y = digits.x_train[:200], digits.y_train[:200]
    found = {}
    for name, inner in {"none": adp(0, 0), "alpha": adp(6, 0), "beta": adp(0, 0.5)}.items():
        ensemble = Ensemble([models.mlp([64, 16, 10], seeded(k)) for k in range(3)])
        list(training.fit(ensemble, (x, y), inner, epochs=30, lr=0.1, batch_size=20, optimiser=SGD(0.9)))
        with torch.no_grad():
            z = ensemble.each(x)
            found[name] = float(diversity(z, y).mean()), float(log_mean(z).exp().amax(1).mean())
    assert found["beta"][0] > 2 * found["none"][0]
    assert found["alpha"][1] < found["none"][1] - 0.5
    assert found["alpha"][1] == pytest.approx(ensembles.optimum(6, 3, 10), abs=0.05)


# ---- attacks ----


def attacked(seed=0, scale=3.0, n=20, K=3):
    """An ensemble, and samples that it has right."""
    ensemble, (x, _) = Ensemble(networks(K, seed=seed, scale=scale)), batch(n, seed=seed)
    return ensemble, x, ensemble(x).argmax(1)


@given(seeds, st.integers(2, 4))
def test_what_an_attack_climbs_is_its_definition(seed, K):
    z, y = logits(seed, K=K, scale=3.0)
    for i in range(len(z)):
        p, own = z[i].softmax(1), int(y[i])
        others = [j for j in range(z.shape[2]) if j != own]
        mean = float(p[:, own].mean())
        margins = [float(max(z[i, k, j] for j in others) - z[i, k, own]) for k in range(K)]
        odds = lambda v, own=own, others=others: float(v[others].exp().sum().log() - v[own])  # noqa: E731
        wanted = {
            "mean probability": math.log((1 - mean) / mean),
            "mean logits": odds(z[i].mean(0)),
            "mean margin": sum(margins) / K,
            "strongest": min(margins),
            "member 1": odds(z[i, 1]),
        }
        found = {name: float(loss(z[i : i + 1], y[i : i + 1])) for name, loss in LOSSES.items()}
        assert found == pytest.approx(wanted, rel=1e-9, abs=1e-9)


def test_what_is_tried_has_names_and_an_attack_for_each_member():
    common = ["mean probability", "mean logits", "mean margin", "strongest"]
    assert list(ensembles.against(2)) == [*common, "member 0", "member 1"]
    assert list(ensembles.against(1)) == [*common, "member 0"]


ATTACKS = {
    "PGD": partial(attacks.pgd, steps=10),
    "PGD, restarts": partial(attacks.pgd, steps=4, restarts=3),
    "APGD": partial(attacks.apgd, steps=10),
    "APGD, restarts": partial(attacks.apgd, steps=6, restarts=2),
}


@pytest.mark.parametrize("p", [1, 2, math.inf])
@pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS)
def test_the_attacks_stay_in_the_ball_and_return_what_is_worst_for_the_ensemble(attack, p):
    ensemble, x, y = attacked()
    ball = Ball(p, {1: 0.6, 2: 0.4, math.inf: 0.2}[p], BOX)
    modes = [module.training for module in ensemble.modules()]
    with torch.no_grad():
        clean = losses.margin(ensemble(x), y)
        for name, one in ensembles.against(3, attack).items():
            delta = one(ensemble, x, y, ball)
            assert delta.shape == x.shape
            assert ball.contains(delta, x).all()
            margin = losses.margin(ensemble(x + delta), y)
            assert (margin <= clean + 1e-12).all(), name
            assert (margin < clean - 1e-3).float().mean() > 0.5, name
    assert [module.training for module in ensemble.modules()] == modes
    assert all(parameter.grad is None for parameter in ensemble.parameters())


@pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS)
@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_the_iterate_with_the_smallest_margin_is_kept_and_the_loss_seen_is_that_of_the_members(
    loss, attack
):
    ensemble, x, y = attacked(seed=3)
    seen = []
    delta = climb(loss, partial(attack, callback=seen.append))(ensemble, x, y, CUBE)
    with torch.no_grad():
        for iterate in seen:
            z = ensemble.each(x + iterate.delta)
            torch.testing.assert_close(iterate.loss, loss(z, y), rtol=1e-9, atol=1e-9)
            margin = losses.margin(log_mean(z), y)
            torch.testing.assert_close(iterate.margin, margin, rtol=1e-9, atol=1e-9)
        best = torch.stack([iterate.margin for iterate in seen]).amin(0)
        torch.testing.assert_close(losses.margin(ensemble(x + delta), y), best, rtol=1e-9, atol=1e-9)
    assert max(float(iterate.loss.mean()) for iterate in seen) > float(seen[0].loss.mean())


def test_through_the_mean_probability_it_is_the_attack_on_one_network():
    ensemble, x, y = attacked(seed=5)
    for attack in ATTACKS.values():
        own = climb(ensembles.mean_probability, attack)(ensemble, x, y, CUBE)
        torch.testing.assert_close(own, attack(ensemble, x, y, CUBE), rtol=0, atol=1e-9)


def test_sure_members_who_disagree_hide_the_gradient_from_the_mean_and_not_from_the_others():
    weight = torch.tensor([[1.0, 0.0], [0.0, 0.0]])
    members = []
    for lead in (300.0, -200.0, 200.0):
        layer = nn.Linear(2, 2)
        layer.weight.data, layer.bias.data = weight.clone(), torch.tensor([lead, 0.0])
        members.append(nn.Sequential(nn.Flatten(), layer))
    ensemble, x, y = Ensemble(members), torch.full((1, 2), 0.5), torch.tensor([0])
    v = x.clone().requires_grad_()
    slopes = {
        name: float(torch.autograd.grad(loss(ensemble.each(v), y).sum(), v)[0].norm())
        for name, loss in LOSSES.items()
    }
    assert slopes["mean probability"] < 1e-30
    assert all(slope > 0.1 for name, slope in slopes.items() if name != "mean probability")


@pytest.mark.parametrize("norm", [False, True])
def test_the_suite_and_survivors_take_it_for_a_classifier(norm):
    ensemble = Ensemble(networks(norm=norm, scale=3.0, dtype=torch.float32, hidden=()))
    x, _ = batch(dtype=torch.float32)
    y = ensemble.eval()(x).argmax(1)
    cube = Ball(math.inf, 0.3, BOX)
    found = suite.autoattack(ensemble, x, y, cube, steps=5, queries=20)
    assert found.doubts == ()
    assert found.right.all()
    assert cube.contains(found.delta, x).all()
    tried = list(ensembles.against(3, partial(attacks.pgd, steps=5)).values())
    left = evaluation.survivors(ensemble, x, y, cube, tried)
    assert left.shape == (20,)
    assert not left.all()
    for attack in (attacks.fab, partial(attacks.square, queries=20), partial(attacks.pgd, keep="first")):
        assert cube.contains(attack(ensemble, x, y, cube), x).all()


def test_the_strongest_attack_brings_all_members_down_where_others_need_only_the_mean():
    ensemble, x, y = attacked(seed=2, scale=6.0, n=40)
    ball = Ball(math.inf, 0.4, BOX)
    left = {}
    for name in ("strongest", "member 0"):
        delta = ensembles.against(3, partial(attacks.pgd, steps=20))[name](ensemble, x, y, ball)
        left[name] = float(ensembles.strongest(ensemble.each(x + delta).detach(), y).mean())
    assert left["strongest"] > left["member 0"]


# ---- transfer ----


def plane(w, b):
    """Two classes: 0 where w·x + b > 0."""
    layer = nn.Linear(2, 2)
    layer.weight.data, layer.bias.data = torch.tensor([w, [0.0, 0.0]]), torch.tensor([b, 0.0])
    return nn.Sequential(nn.Flatten(), layer)


def test_the_table_of_transfers_is_what_one_counts():
    x, y = torch.tensor([[0.3, 0.3], [0.3, 0.9], [0.9, 0.3], [0.9, 0.9]]), torch.zeros(4).long()
    across, up, wrong = plane([1.0, 0.0], -0.2), plane([0.0, 1.0], -0.5), plane([0.0, 0.0], -1.0)
    ball = Ball(math.inf, 0.2, BOX)
    found = ensembles.transfer([across, up, wrong], x, y, ball)
    assert found.dtype == torch.float64
    # across has all right, and loses the two at 0.3 to its own attack, which leaves the other axis alone
    # up has two right, at 0.9, which are out of reach
    torch.testing.assert_close(found[:2, :2], torch.tensor([[0.5, 0.0], [0.0, 0.0]]).double())
    assert found[:, 2].isnan().all()
    assert found[2, :2].tolist() == [0.0, 0.0] or not found[2, :2].isnan().any()
    near = ensembles.transfer([across, plane([1.0, 1.0], -0.7)], x, y, ball)
    # the second has three right, and its attack moves along both axes: it loses none of 0.5, 0.5, 1.1
    torch.testing.assert_close(near, torch.tensor([[0.5, 0.0], [0.5, 0.0]]).double())
    far = ensembles.transfer([across, plane([1.0, 1.0], -0.9)], x, y, ball)
    # here two of its three are at 0.3: one is at (0.3, 0.9), and the attack of across moves it, too
    torch.testing.assert_close(far, torch.tensor([[0.5, 0.0], [0.5, 2 / 3]]).double())


def test_the_diagonal_is_the_success_of_the_attack_on_its_own_network():
    alone, (x, y) = networks(4, scale=3.0), batch(40)
    attack = partial(attacks.pgd, steps=5)
    found = ensembles.transfer(alone, x, y, CUBE, attack)
    assert ((found >= 0) & (found <= 1)).all()
    for i, network in enumerate(alone):
        right = losses.correct(network(x), y)
        left = evaluation.survivors(network, x, y, CUBE, [attack])
        assert float(found[i, i]) == pytest.approx(1 - float(left.sum() / right.sum()))
        for j, other in enumerate(alone):
            moved = x + attack(network, x, y, CUBE)
            own = losses.correct(other(x), y)
            fell = (own & ~losses.correct(other(moved), y)).sum() / own.sum()
            assert float(found[i, j]) == pytest.approx(float(fell))


# ---- certificates ----


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("hidden", [(), (5,), (6, 4)])
@pytest.mark.parametrize("K", [1, 3])
def test_the_average_is_the_mean_of_the_logits(K, hidden, dtype):
    alone, (x, _) = networks(K, hidden=hidden, dtype=dtype), batch(dtype=dtype)
    before = copy.deepcopy(alone)
    one = averaged(alone)
    found = one(x)
    assert found.dtype == dtype
    assert all(own.requires_grad for own in one.parameters())
    torch.testing.assert_close(found, torch.stack([network(x) for network in alone]).mean(0))
    with torch.no_grad():
        for parameter in one.parameters():
            parameter.zero_()
    agree(alone, before, atol=0)


@pytest.mark.parametrize("kind", ["linear", "ReLU first", "ReLU twice", "without a bias", "mlp"])
def test_it_may_have_any_order_of_these_layers(kind):
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(3)
        shape, make = NETWORKS[kind]
        alone = [make().double() for _ in range(3)]
    x = entries((5, *shape), 1, "plain")
    torch.testing.assert_close(averaged(alone)(x), torch.stack([f(x) for f in alone]).mean(0))


@pytest.mark.parametrize("method", sorted(exact.SOLVERS))
def test_bounds_and_exact_methods_read_the_average_and_nothing_in_the_ball_passes_them(method):
    alone, (x, _) = networks(2, L=3, hidden=(3,), scale=3.0), batch(4)
    one, small = averaged(alone), Ball(math.inf, 0.1, BOX)
    y = one(x).argmax(1)
    proof = exact.margins(one, x, y, small, method=method, jobs=1)
    tried = [attacks.pgd(one, x, y, small), *(small.sample(x, seeded(i)) for i in range(20))]
    other = torch.arange(3) != y[:, None]
    for delta in tried:
        z = torch.stack([network(x + delta) for network in alone]).mean(0).detach()
        leads = (z.gather(1, y[:, None]) - z)[other]
        assert (proof.margins[other] <= leads + 1e-6).all()
    for bound in ("interval", "dual", "crown", "lp"):
        assert (bounds.margins(one, x, y, small, bound)[other] <= proof.attained[other] + 1e-6).all()


@given(seeds, st.integers(1, 4), st.integers(2, 5), st.sampled_from([0.1, 1.0, 10.0]))
def test_the_mean_of_margins_is_its_definition_and_no_point_passes_it(seed, K, L, scale):
    m, y = scale * entries((K, 6, L), seed, "plain"), torch.arange(6) % L
    m.scatter_(2, y.expand(K, 6)[:, :, None], math.inf)
    found = mean_margins(m)
    for i in range(6):
        for j in range(L):
            r = [[math.exp(-float(v)) for v in m[k, i]] for k in range(K)]  # 0 for the label
            terms = [
                (1 - r[k][j]) / (1 + sum(r[k])) if m[k, i, j] >= 0 else (1 - r[k][j]) / (1 + r[k][j])
                for k in range(K)
            ]
            wanted = math.inf if j == y[i] else sum(terms) / K
            assert float(found[i, j]) == pytest.approx(wanted, rel=1e-9, abs=1e-12)
    z = -(m + entries(m.shape, seed + 1, "plain").abs()).masked_fill(m == math.inf, 0.0)
    p = z.softmax(2).mean(0)
    label = torch.arange(L) == y[:, None]
    assert ((p.gather(1, y[:, None]) - p)[~label] >= found[~label] - 1e-12).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_margins_far_out_give_numbers(dtype):
    inf = math.inf
    rows = [
        [inf, 1e4, 1e4],
        [inf, -1e4, 1e4],
        [inf, -1e4, -1e4],
        [inf, 0, -1e4],
        [inf, 1e4, 0],
        [inf, 0, 0],
    ]
    found = mean_margins(torch.tensor([rows], dtype=dtype))
    assert found.dtype == dtype
    wanted = [[1, 1], [-1, 0], [-1, -1], [0, -1], [0.5, 0], [0, 0]]
    torch.testing.assert_close(found[:, 1:], torch.tensor(wanted, dtype=dtype), rtol=0, atol=1e-6)
    nothing = torch.tensor([[[inf, -inf, 2.0]]], dtype=dtype)  # no bound at all
    assert mean_margins(nothing)[0, 1:].tolist() == [-1, 0]


@pytest.mark.parametrize("method", ["interval", "dual", "crown", "lp"])
def test_no_attack_and_no_sample_passes_the_certificate_of_the_members(method):
    ensemble, x, y = attacked(n=6)
    small = Ball(math.inf, 0.05, BOX)
    bound = ensembles.margins(ensemble.members(), x, y, small, method)
    assert bound.shape == (6, 4)
    other = torch.arange(4) != y[:, None]
    assert (bound[~other] == math.inf).all()
    tried = [attack(ensemble, x, y, small) for attack in ensembles.against(3).values()]
    for delta in tried + [small.sample(x, seeded(i)) for i in range(50)]:
        p = ensemble(x + delta).exp().detach()
        assert ((p.gather(1, y[:, None]) - p)[other] >= bound[other] - 1e-9).all()
    proved = (bound > 0).all(1)
    assert proved.any()
    assert evaluation.survivors(ensemble, x, y, small, list(ensembles.against(3).values()))[proved].all()
