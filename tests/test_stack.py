"""Networks side by side: each member of a stack does, and becomes, what it would by itself."""

import copy
import math
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import seeded, seeds
from torch import nn

from adv_lib import attacks, danskin, losses, models, recipe, training
from adv_lib.dent import Dent
from adv_lib.optimisers import SGD
from adv_lib.stack import ACTIVATIONS, Stack, aligned, dealt, drawn, matrices, members_of
from adv_lib.threat import Ball

CUBE = Ball(math.inf, 0.2, (0.0, 1.0))
pgd = partial(attacks.pgd, steps=3, keep="last")
INNERS = {  # every inner maximum of the book, from the generators that it draws from
    "clean": lambda draws: training.clean,
    "FGSM": lambda draws: training.adversarial(attacks.fgsm, CUBE),
    "PGD": lambda draws: training.adversarial(pgd, CUBE),
    "PGD, best": lambda draws: training.adversarial(partial(attacks.pgd, steps=3), CUBE),
    "PGD on the margin, ℓ2": lambda draws: training.adversarial(
        partial(pgd, loss=losses.margin_loss), Ball(2, 0.5, (0.0, 1.0))
    ),
    "APGD": lambda draws: training.adversarial(partial(attacks.apgd, steps=4), CUBE),
    "fast": lambda draws: training.fast(CUBE, draws),
    "TRADES": lambda draws: training.trades(CUBE, draws, 3.0),
    "mixed": lambda draws: training.mixed(training.adversarial(pgd, CUBE), 0.3),
    "ramped": lambda draws: training.Ramp(lambda ball: training.adversarial(pgd, ball), CUBE, 0.1),
    "DDD": lambda draws: danskin.ddd(CUBE, draws, 3, steps=2),
    "DDD, one": lambda draws: danskin.ddd(CUBE, draws, 1, steps=2),
    "DDD, parts": lambda draws: danskin.ddd(CUBE, draws, 2, steps=2, parts=4),
    "interval": lambda draws: training.certified(CUBE, "interval"),
    "dual": lambda draws: training.certified(CUBE, "dual"),
    "CROWN": lambda draws: training.Ramp(partial(training.certified, method="crown"), CUBE),
}
WITHOUT_NORMS = ("interval", "dual", "CROWN")  # bounds are for networks without BatchNorm


def networks(E, norm=False, seed=0, act=nn.ReLU):
    """E networks 6-7-5-3 in float64, each from its own seed."""
    found = [models.mlp([6, 7, 5, 3], seeded(seed + e), norm=norm).double() for e in range(E)]
    return [nn.Sequential(*(act() if isinstance(l, nn.ReLU) else l for l in m)) for m in found]


def images(n=22, seed=0):
    x = torch.rand(n, 1, 2, 3, generator=seeded(seed), dtype=torch.float64)
    return x, torch.randint(3, (n,), generator=seeded(seed + 1))


def trained(model, inner, **options):
    options = {"epochs": 3, "lr": 0.3, "batch_size": 8} | options
    return list(training.fit(model, images(), inner, **options))


def agree(stack, alone, atol=1e-9):
    for one, other in zip(stack.members(), alone, strict=True):
        for (name, a), b in zip(one.state_dict().items(), other.state_dict().values(), strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=atol, msg=lambda m, name=name: f"{name}: {m}")


CASES = [(name, norm) for name in INNERS for norm in (False, True)[: 1 if name in WITHOUT_NORMS else 2]]


@pytest.mark.parametrize(("name", "norm"), CASES)
def test_members_trained_together_equal_members_trained_alone(name, norm):
    alone = networks(3, norm)
    stack = Stack(alone)
    draws = [seeded(10 + e) for e in range(3)]
    together = trained(stack, INNERS[name](draws), generator=draws)
    for e, network in enumerate(alone):
        own = seeded(10 + e)
        by_itself = trained(network, INNERS[name](own), generator=own)
        assert [epoch.loss[e] for epoch in together] == pytest.approx(
            [epoch.loss for epoch in by_itself]
        )
    agree(stack, alone)


@pytest.mark.parametrize("normalise", [False, True])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_members_have_step_sizes_of_their_own_and_the_same_batches_if_there_is_one_generator(
    momentum, normalise
):
    alone, sizes = networks(4, norm=True), (0.01, 0.1, 0.3, 1.0)
    stack, inner = Stack(alone), INNERS["PGD"](None)
    options = {"optimiser": SGD(momentum, normalise)}
    falling = [lambda done, size=size: size * (1 - done) for size in sizes]
    together = trained(stack, inner, lr=lambda done: [f(done) for f in falling], **options)
    for e, network in enumerate(alone):
        by_itself = trained(network, inner, lr=falling[e], **options)
        assert together[-1].loss[e] == pytest.approx(by_itself[-1].loss)
    agree(stack, alone)
    other = Stack(networks(4, norm=True))
    trained(other, inner, lr=list(sizes), **options)
    constant = networks(4, norm=True)
    for size, network in zip(sizes, constant, strict=True):
        trained(network, inner, lr=size, **options)
    agree(other, constant)


def test_members_have_shares_and_betas_of_their_own():
    values = [0.0, 0.4, 1.0]
    inner, draws = INNERS["PGD"](None), [seeded(e) for e in range(3)]
    makers = {
        "mixed": lambda value, draws: training.mixed(inner, value),
        "TRADES": lambda value, draws: training.trades(CUBE, draws, value),
    }
    for make in makers.values():
        alone = networks(3)
        stack = Stack(alone)
        draws = [seeded(e) for e in range(3)]
        trained(stack, make(values, draws), generator=draws)
        for e, network in enumerate(alone):
            trained(network, make(values[e], own := seeded(e)), generator=own)
        agree(stack, alone)


# ---- what a recipe adds ----


RECIPES = {  # from the generators, and from a member or None for all three
    "a smoothed clean loss": lambda draws, e: partial(
        training.clean, loss=recipe.smoothing(own((0.0, 0.1, 0.4), e))
    ),
    "a smoothed adversarial loss": lambda draws, e: training.adversarial(
        pgd, CUBE, loss=recipe.smoothing(own((0.0, 0.1, 0.4), e))
    ),
    "train mode": lambda draws, e: training.adversarial(pgd, CUBE, mode="train"),
    "fast, smoothed": lambda draws, e: training.fast(CUBE, draws, loss=recipe.smoothing(0.2)),
    "TRADES in train mode": lambda draws, e: training.trades(
        CUBE, draws, 3.0, loss=recipe.smoothing(0.2), mode="train"
    ),
    "friendly": lambda draws, e: training.adversarial(
        partial(attacks.friendly, steps=4, tolerance=1), CUBE, mode="train"
    ),
    "staged": lambda draws, e: recipe.Staged(
        [(0, training.clean), (0.3, INNERS["ramped"](None)), (0.6, INNERS["FGSM"](None))]
    ),
    "AWP": lambda draws, e: recipe.awp(pgd, CUBE, own((0.0, 0.01, 0.1), e)),
    "free": lambda draws, e: recipe.Free(CUBE, 3),
    "free, ℓ2": lambda draws, e: recipe.Free(Ball(2, 0.5, (0.0, 1.0)), 2, loss=recipe.smoothing(0.1)),
}


def own(values, e):
    return values if e is None else values[e]


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("name", RECIPES)
def test_members_trained_by_a_recipe_equal_members_trained_alone(name, norm):
    alone = networks(3, norm)
    stack, draws = Stack(alone), [seeded(10 + e) for e in range(3)]

    def inner_and_update(draws, e=None):
        inner = RECIPES[name](draws, e)
        return {"inner": inner, "update": getattr(inner, "update", training.one_step)}

    trained(stack, **inner_and_update(draws), generator=draws)
    for e, network in enumerate(alone):
        draw = seeded(10 + e)
        trained(network, **inner_and_update(draw, e), generator=draw)
    agree(stack, alone)


# ---- activations ----


@pytest.mark.parametrize("norm", [False, True])
def test_members_with_activations_of_their_own_end_where_they_would_alone(norm):
    makers = [*ACTIVATIONS, nn.ReLU, nn.ReLU, lambda: nn.ELU(0.5), lambda: nn.CELU(2.0)]
    alone = [networks(1, norm, e, make)[0] for e, make in enumerate(makers)]
    stack, (x, _) = Stack(alone), images()
    for e, (network, again) in enumerate(zip(alone, stack.members(), strict=True)):
        assert str(again) == str(network) == str(stack.member(e))
        torch.testing.assert_close(again.eval()(x), network.eval()(x), rtol=0, atol=1e-12)
        network.train()
    trained(stack, INNERS["PGD"](None), lr=0.1)
    for network in alone:
        trained(network, INNERS["PGD"](None), lr=0.1)
    agree(stack, alone)


# ---- the best epoch of each ----


@pytest.mark.parametrize("norm", [False, True])
def test_every_member_ends_with_its_own_best_epoch(norm):
    scores = [(1.0, 3.0, 2.0), (5.0, 4.0, 5.0), (0.0, -1.0, 2.0)]  # a member's, epoch by epoch
    alone, stack = networks(3, norm), Stack(networks(3, norm))
    on_the_way, epochs = [], iter(range(3))

    def look(model):
        on_the_way.append(model.members())
        number = next(epochs)
        return [row[number] for row in scores]

    trained(stack, INNERS["PGD"](None), watch={"score": look}, best="score")
    for e, (network, row) in enumerate(zip(alone, scores, strict=True)):
        values = iter(row)
        watch = {"score": lambda model, values=values: next(values)}
        trained(network, INNERS["PGD"](None), watch=watch, best="score")
        best = on_the_way[row.index(max(row))][e].state_dict()
        for name, value in stack.members()[e].state_dict().items():
            assert torch.equal(value, best[name]), name
    agree(stack, alone)


def test_a_member_whose_score_becomes_nan_stops_the_run():
    watch = {"score": lambda model: [1.0, math.nan]}
    with pytest.raises(FloatingPointError, match="'score' became nan in epoch 1"):
        trained(Stack(networks(2)), training.clean, watch=watch, best="score")


@settings(max_examples=30)
@given(seeds, st.integers(1, 5), st.integers(1, 4), st.booleans(), st.booleans())
def test_row_i_goes_through_member_i_mod_E_and_no_member_sees_another(seed, E, n, norm, training_mode):
    alone = [m.train(training_mode) for m in networks(E, norm, seed % 1000, nn.CELU)]
    stack, (x, _) = Stack(alone), images(E * (n + 1), seed % 1000)
    assert (len(stack), members_of(stack), members_of(alone[0])) == (E, E, 1)
    at = x.clone().requires_grad_()
    z = stack(at)
    for e, network in enumerate(alone):
        torch.testing.assert_close(z[e::E], network(x[e::E]), rtol=0, atol=1e-12)
        (slope,) = torch.autograd.grad(z[e::E].square().sum(), at, retain_graph=True)
        others = torch.arange(len(x)) % E != e
        assert not slope[others].any()
    agree(stack, alone, atol=1e-12)  # the statistics, too


@pytest.mark.parametrize("scope", ["batch", "sample"])
@pytest.mark.parametrize("adapt", ["model", "input", "both"])
def test_of_an_empty_batch_there_are_no_logits_also_from_a_defense(scope, adapt):
    nothing = torch.zeros(0, 1, 2, 3).double()
    for model in (networks(1, norm=True)[0], Stack(networks(2, norm=True))):
        assert model.eval()(nothing).shape == (0, 3)
        assert Dent(model, steps=2, scope=scope, adapt=adapt)(nothing).shape == (0, 3)


@pytest.mark.parametrize("attack", [attacks.fgsm, partial(attacks.pgd, restarts=1), attacks.apgd])
def test_an_attack_on_a_stack_is_the_attack_on_each_member(attack):
    alone = [m.eval() for m in networks(3, norm=True)]
    stack, (x, y) = Stack(alone), images()
    delta = attack(stack, stack.rows(x), stack.rows(y), CUBE)
    for e, network in enumerate(alone):
        torch.testing.assert_close(delta[e::3], attack(network, x, y, CUBE), rtol=0, atol=1e-9)


@pytest.mark.parametrize("attack", [partial(attacks.pgd, keep="first"), attacks.square])
def test_an_attack_that_drops_samples_is_refused(attack):
    stack, (x, y) = Stack(networks(2)), images()
    with pytest.raises(ValueError, match="drops samples"):
        attack(stack, stack.rows(x), stack.rows(y), CUBE)
    with pytest.raises(ValueError, match="drops samples"):  # also behind a function
        training.adversarial(attack, CUBE, mode="train")(stack, stack.rows(x), stack.rows(y))


def test_a_member_shares_the_weights_of_the_stack_and_members_do_not():
    stack = Stack(networks(2, norm=True)).eval()
    x, y = images()
    shared, apart = stack.member(1), stack.members()[1]
    torch.testing.assert_close(shared(x), apart(x), rtol=0, atol=1e-12)
    losses.cross_entropy(shared(x), y).sum().backward()
    assert all(p.grad[1].any() and not p.grad[0].any() for p in stack.parameters())
    assert all(p.grad is None and p.requires_grad for p in apart.parameters())
    with torch.no_grad():
        for p in stack.parameters():
            p.add_(1.0)
    assert not torch.equal(shared(x), apart(x))
    torch.testing.assert_close(stack.member(1)(x), stack(stack.rows(x))[1::2], rtol=0, atol=1e-12)


def test_a_stack_leaves_the_networks_that_it_is_made_of_alone():
    alone = networks(2, norm=True)
    before = copy.deepcopy(alone)
    trained(Stack(alone), training.clean)
    for old, network in zip(before, alone, strict=True):
        pairs = zip(old.state_dict().values(), network.state_dict().values(), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)
        assert all(p.grad is None for p in network.parameters())


def test_what_is_watched_is_one_number_a_member():
    stack = Stack(networks(3))
    watch = {"which": lambda model: [float(e) for e, _ in enumerate(model.members())]}
    run = training.fit(stack, images(), training.clean, epochs=2, lr=0.1, watch=watch)
    for epoch in training.progress(run, 2):
        assert epoch.watched["which"] == (0.0, 1.0, 2.0)
        assert len(epoch.loss) == 3


@given(seeds, st.integers(1, 5), st.integers(1, 4))
def test_each_member_draws_from_its_own_generator_what_it_would_draw_alone(seed, E, n):
    x = torch.zeros(E * n, 2)
    one = drawn(CUBE.sample, x, [seeded(seed + e) for e in range(E)])
    for e in range(E):
        assert torch.equal(one[e::E], CUBE.sample(x[e::E], seeded(seed + e)))
    assert torch.equal(drawn(CUBE.sample, x, seeded(seed)), CUBE.sample(x, seeded(seed)))


def test_numbers_of_members_go_to_their_rows_and_to_their_weights():
    rows, stack = torch.zeros(6, 2), Stack(networks(3, norm=True))
    assert dealt(0.5, rows) == 0.5
    assert dealt([1, 2, 3], rows).tolist() == [1, 2, 3, 1, 2, 3]
    p = stack.layers[1].weight
    assert aligned(0.5, p) == 0.5
    assert (aligned([1.0, 2.0, 3.0], p) * torch.ones_like(p)).mean((1, 2)).tolist() == [1, 2, 3]


def test_the_weight_matrices_are_those_of_the_members():
    alone = networks(3, norm=True)
    found = matrices(Stack(alone))
    assert [tuple(p.shape) for p in found.values()] == [(3, 7, 6), (3, 5, 7), (3, 3, 5)]
    assert list(matrices(alone[0])) == [name.removeprefix("layers.") for name in found]


OTHERS = (
    ([], "none"),
    ([models.mlp([4, 3]), models.mlp([4, 5, 3])], "same layers"),
    ([models.mlp([4, 5, 3]), models.mlp([4, 6, 3])], "same layers"),
    ([models.mlp([4, 5, 3]), models.mlp([4, 5, 3]).double()], "same layers"),
    ([nn.Sequential(nn.Linear(2, 2, bias=False))], "Linear"),
    ([nn.Sequential(nn.BatchNorm1d(2, track_running_stats=False))], "BatchNorm1d"),
    ([nn.Sequential(nn.Conv2d(1, 1, 1))], "Conv2d"),
    ([nn.Sequential(nn.PReLU())], "PReLU"),
    ([nn.Sequential(nn.ReLU()), nn.Sequential(nn.Flatten())], "same layers"),
)


@pytest.mark.parametrize(("members", "words"), OTHERS, ids=lambda value: str(value)[:20])
def test_networks_that_cannot_stand_side_by_side_are_refused(members, words):
    with pytest.raises(ValueError, match=words):
        Stack(members)


def test_a_stack_and_a_run_of_it_refuse_what_does_not_fit():
    stack, (x, _) = Stack(networks(3)), images()
    with pytest.raises(ValueError, match="22"):
        stack(x)
    for options, words in (
        ({"generator": [seeded(0), seeded(1)]}, "each of 3"),
        ({"generator": [seeded(0)] * 3}, "different"),
        ({"watch": {"a": lambda model: [1.0]}}, "3 networks"),
        ({"checkpoint": "run.pt"}, "one network"),
        ({"optimiser": SGD(weight_decay=[0.1, 0.2])}, "each of 3"),
        ({"lr": [0.1, -0.1, 0.1]}, "lr"),
    ):
        with pytest.raises((ValueError, TypeError), match=words):
            trained(stack, training.clean, **options)
