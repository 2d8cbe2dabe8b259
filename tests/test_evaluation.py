"""A rate with its count and its interval; the worst of several attacks; a loss along directions."""

import dataclasses
import math
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import BOX, ORDERS, entries, orders, problem, seeded, seeds
from torch import nn

from adv_lib import attacks, linear, losses, models
from adv_lib.evaluation import (
    Rate,
    loss_along,
    rate,
    robust_accuracy,
    robust_accuracy_curve,
    survivors,
)
from adv_lib.threat import Ball


def tensor(count, n):
    return torch.arange(n) < count


counts = st.integers(1, 2000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n)))


@given(counts)
def test_the_interval_is_wilsons(pair):
    count, n = pair
    got, p, z = rate(tensor(count, n)), count / n, 1.959963984540054
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    assert (got.count, got.n, got.value) == (count, n, p)
    assert got.low == pytest.approx(centre - half, abs=1e-12)
    assert got.high == pytest.approx(centre + half, abs=1e-12)


@given(counts)
def test_the_rate_lies_in_its_interval_and_the_interval_in_0_to_1(pair):
    got = rate(tensor(*pair))
    assert 0 <= got.low <= got.value <= got.high <= 1
    assert got.low < got.high


@given(counts)
def test_counting_the_opposite_mirrors_the_interval(pair):
    happened = tensor(*pair)
    got, opposite = rate(happened), rate(~happened)
    assert got.low == pytest.approx(1 - opposite.high, abs=1e-12)
    assert got.high == pytest.approx(1 - opposite.low, abs=1e-12)


def test_ten_times_the_samples_narrow_the_interval():
    few, many = rate(tensor(3, 10)), rate(tensor(30, 100))
    assert few.low < many.low < many.high < few.high


def test_a_rate_reads_with_its_count_and_its_interval():
    assert str(rate(tensor(3, 40))) == "7.5 % (3 of 40; 95 % interval 2.6–19.9 %)"


def test_a_rate_does_not_change():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Rate(1, 2, 0.0, 1.0).count = 2


# ---- robust accuracy ----

PGD = partial(attacks.pgd, steps=10)
FIXED = (attacks.fgsm, PGD, partial(attacks.apgd, steps=10))  # the same for a sample in any batch
RADIUS = {1: 0.8, 2: 0.3, math.inf: 0.1}


def case(p=math.inf, n=60, **options):
    """A model that is right on most samples and breaks on many."""
    model, x, y, ball = problem(n=n, p=p, **{"eps": RADIUS[p], **options})
    y = torch.where(torch.arange(n) % 10 == 0, y, model(x).argmax(1))
    return model, x, y, ball


@pytest.mark.parametrize("box", [None, BOX])
@pytest.mark.parametrize("p", ORDERS)
def test_who_survives_several_attacks_survives_each_of_them_alone_and_the_other_way_round(p, box):
    inputs = case(p, box=box)
    alone = [survivors(*inputs, [attack]) for attack in FIXED]
    for order in (FIXED, FIXED[::-1]):
        assert torch.equal(survivors(*inputs, order), torch.stack(alone).all(0))
    assert 0 < torch.stack(alone).all(0).sum() < (inputs[0](inputs[1]).argmax(1) == inputs[2]).sum()


def test_survivors_are_those_that_the_model_gets_right_at_every_perturbation_found():
    model, x, y, ball = case()
    expected = model(x).argmax(1) == y
    for attack in FIXED:
        expected &= model(x + attack(model, x, y, ball)).argmax(1) == y
    assert torch.equal(survivors(model, x, y, ball, FIXED), expected)
    got = robust_accuracy(model, x, y, ball, FIXED)
    assert (got.count, got.n) == (expected.sum(), 60)


def test_without_attacks_it_is_the_accuracy():
    model, x, y, ball = case()
    assert robust_accuracy(model, x, y, ball).count == (model(x).argmax(1) == y).sum() < 60


def test_every_attack_sees_only_the_samples_that_withstood_those_before():
    model, x, y, ball = case()
    seen = []

    def note(model, x, y, ball):
        seen.append(x)
        return PGD(model, x, y, ball)

    survivors(model, x, y, ball, [note, note])
    right = model(x).argmax(1) == y
    assert torch.equal(seen[0], x[right])
    assert torch.equal(seen[1], x[survivors(model, x, y, ball, [PGD])])
    survivors(model, x, y, Ball(math.inf, 1.0), [PGD, lambda *_: pytest.fail("nobody is left")])


@pytest.mark.parametrize("batch_size", [1, 7])
@pytest.mark.parametrize("p", ORDERS)
def test_the_batch_size_does_not_matter(p, batch_size):
    eps = torch.rand(60, generator=seeded(0)) * 2 * RADIUS[p]
    model, x, y, ball = case(p, eps=eps)
    small = survivors(model, x, y, ball, FIXED, batch_size=batch_size)
    assert torch.equal(small, survivors(model, x, y, ball, FIXED))
    sizes = []
    survivors(
        model, x, y, ball, [lambda m, x, y, b: sizes.append(len(x)) or PGD(m, x, y, b)], batch_size=7
    )
    assert max(sizes) == 7


@pytest.mark.parametrize("p", ORDERS)
def test_with_one_radius_for_each_sample_each_is_attacked_within_its_own(p):
    radii = torch.tensor([0.0, 0.5, 1.0, 2.0], dtype=torch.float64) * RADIUS[p]
    model, x, y, _ = case(p)
    eps = radii[torch.arange(60) % 4]
    got = survivors(model, x, y, Ball(p, eps, BOX), [PGD])
    for radius in radii:
        alone = survivors(model, x, y, Ball(p, radius.item(), BOX), [PGD])
        assert torch.equal(got[eps == radius], alone[eps == radius])
    assert torch.equal(got[eps == 0], (model(x).argmax(1) == y)[eps == 0])


def test_a_radius_in_a_tensor_of_one_entry_is_that_of_all_samples():
    model, x, y, ball = case()
    one = Ball(math.inf, torch.tensor([ball.eps], dtype=torch.float64), BOX)
    assert torch.equal(survivors(model, x, y, one, FIXED), survivors(model, x, y, ball, FIXED))


@pytest.mark.parametrize("cheat", ["too far", "out of the box", "NaN"])
def test_an_attack_that_leaves_the_set_is_not_counted_but_refused(cheat):
    model, x, y, ball = case()

    def cheats(model, x, y, ball):
        delta = torch.zeros_like(x)
        delta[-1] = {"too far": ball.eps * 1.01, "out of the box": -0.05 - x[-1], "NaN": math.nan}[cheat]
        return delta

    wide = ball if cheat == "too far" else Ball(math.inf, 2.0, BOX)
    for attempt in (survivors, robust_accuracy):
        with pytest.raises(ValueError, match=r"outside|finite"):
            attempt(model, x, y, wide, [cheats], batch_size=7)
    assert cheat != "out of the box" or survivors(model, x, y, Ball(math.inf, 2.0), [cheats]).any()


def test_a_tie_counts_as_broken():
    x, y = torch.zeros(2, 3), torch.tensor([0, 0])

    def tied(x):
        return torch.tensor([[1.0, 1.0, 0.0], [1.0, 0.5, 0.0]])[: len(x)]

    assert survivors(tied, x, y, Ball(2, 0.1)).tolist() == [False, True]


@settings(max_examples=20)
@given(seeds, orders, st.sampled_from((None, BOX)))
def test_on_a_linear_model_the_certified_samples_survive_and_with_two_classes_no_others(seed, p, box):
    for K in (2, 4):
        W, b = entries((K, 6), seed, "plain"), entries((K,), seed + 1, "plain")
        x = problem(seed, shape=(6,), n=20, box=box).x
        y, ball = (x @ W.T + b).argmax(1), Ball(p, RADIUS[p], box)
        model = models.linear(6, K).double()
        model[1].weight.data, model[1].bias.data = W, b
        truth, got = linear.certified(W, b, x, y, ball), survivors(model, x, y, ball, FIXED)
        assert (got >= truth).all()
        clear = linear.margins(W, b, x, y, ball).abs().amin(1) > 1e-9
        assert K > 2 or torch.equal(got[clear], truth[clear])


def test_measuring_changes_neither_the_model_nor_the_data():
    body = models.mlp([8, 12, 3])
    model = nn.Sequential(*body[:2], nn.BatchNorm1d(12), nn.Dropout(0.5), *body[2:])
    model[3].eval()
    _, x, y, ball = problem(dtype=torch.float32)
    x.requires_grad_()
    before = [v.clone() for v in (x, y, *model.state_dict().values())]
    modes = [module.training for module in model.modules()]
    robust_accuracy_curve(model, x, y, ball, FIXED, [0.05, 0.1])
    loss_along(model, x[:1], y[:1], [torch.ones(1, 8)], torch.linspace(0, 1, 3))
    after = (x, y, *model.state_dict().values())
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert [module.training for module in model.modules()] == modes
    assert all(v.grad is None for v in (x, *model.parameters()))


# ---- the curve ----


@pytest.mark.parametrize("box", [None, BOX])
@pytest.mark.parametrize("p", ORDERS)
def test_the_curve_never_rises_and_is_at_most_the_robust_accuracy_at_each_radius(p, box):
    model, x, y, ball = case(p, box=box)
    radii = [0.0, *(RADIUS[p] * s for s in (0.5, 0.5, 1, 8))]
    curve = robust_accuracy_curve(model, x, y, ball, FIXED, radii, batch_size=13)
    counts = [point.count for point in curve]
    assert counts == sorted(counts, reverse=True)
    alone = [robust_accuracy(model, x, y, Ball(p, eps, box), FIXED).count for eps in radii]
    assert all(a <= b for a, b in zip(counts, alone, strict=True))
    assert counts[0] == alone[0] == robust_accuracy(model, x, y, ball).count > counts[-1]
    assert {point.n for point in curve} == {60}


def test_what_broke_at_one_radius_stays_broken_at_the_next():
    model, x, y, ball = case()

    def only_weak(model, x, y, ball):  # finds nothing in large balls
        return PGD(model, x, y, ball) if ball.eps < 0.15 else torch.zeros_like(x)

    small, large = robust_accuracy_curve(model, x, y, ball, [only_weak], [0.1, 0.2])
    assert large.count == small.count < robust_accuracy(model, x, y, ball).count
    assert robust_accuracy(model, x, y, Ball(math.inf, 0.2, BOX), [only_weak]).count > large.count


def test_the_radius_of_the_ball_itself_is_not_used_and_no_radii_give_no_points():
    model, x, y, _ = case()
    curves = [
        robust_accuracy_curve(model, x, y, Ball(math.inf, eps, BOX), [PGD], [0.05, 0.1])
        for eps in (0.0, 0.7, torch.rand(60))
    ]
    assert curves[0] == curves[1] == curves[2]
    assert robust_accuracy_curve(model, x, y, Ball(2, 0.1), [PGD], []) == []


# ---- the loss along lines and planes ----


@pytest.mark.parametrize("loss", [losses.cross_entropy, losses.log_odds, losses.margin])
@pytest.mark.parametrize("shape", [(8,), (1, 4, 6)])
def test_the_loss_along_directions_is_the_loss_at_every_point_of_the_grid(shape, loss):
    model, x, y, _ = problem(shape=shape, n=1)
    u, v = entries((2, 1, *shape), 1, "plain")
    s, t = torch.linspace(-1, 1, 5), torch.linspace(0, 2, 3)
    line = loss_along(model, x, y, [u], s, loss=loss)
    plane = loss_along(model, x, y, [u, v], s, t, loss=loss)
    assert (line.shape, plane.shape) == ((5,), (5, 3))
    for i in range(5):
        expected = loss(model(x + s[i].item() * u), y)[0]
        assert line[i].item() == pytest.approx(expected.item(), abs=1e-12)
        for j in range(3):
            expected = loss(model(x + s[i].item() * u + t[j].item() * v), y)[0]
            assert plane[i, j].item() == pytest.approx(expected.item(), abs=1e-12)
    assert not plane.requires_grad


def test_the_default_loss_along_a_line_is_the_cross_entropy_and_distances_count_in_its_direction():
    model, x, y, _ = problem(n=1)
    u, t = entries((1, 8), 1, "plain"), torch.linspace(0, 1, 4)
    got = loss_along(model, x, y, [u], t)
    assert torch.equal(got, loss_along(model, x, y, [u], t, loss=losses.cross_entropy))
    torch.testing.assert_close(loss_along(model, x, y, [2 * u], t / 2), got)
    torch.testing.assert_close(got[:1], losses.cross_entropy(model(x), y).detach())
