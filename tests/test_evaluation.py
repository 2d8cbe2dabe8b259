"""A rate with its count and its interval; the worst of several attacks; a loss along directions."""

import dataclasses
import math
import statistics
import warnings
from functools import partial

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import (
    BOX,
    ORDERS,
    entries,
    generators,
    orders,
    problem,
    same,
    seeded,
    seeds,
    trained_on_digits,
)
from torch import nn

from adv_lib import attacks, bounds, linear, losses, models
from adv_lib.diagnostics import Symptom, cross_section, landscape, loss_along, masking
from adv_lib.evaluation import (
    Rate,
    Spread,
    Table,
    rate,
    robust_accuracy,
    robust_accuracy_curve,
    survivors,
    table,
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


# ---- a number from several runs ----

several = st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=12)


@given(several)
def test_mean_deviation_and_interval_are_those_of_scipy(values):
    got = Spread(tuple(values))
    mean, sem = np.mean(values), scipy.stats.sem(values)
    assert got.mean == pytest.approx(mean, rel=1e-9, abs=1e-6)
    assert got.deviation == pytest.approx(np.std(values, ddof=1), rel=1e-9, abs=1e-6)
    if sem > 1e-6:
        expected = scipy.stats.t.interval(0.95, len(values) - 1, loc=mean, scale=sem)
        assert got.interval == pytest.approx(expected, rel=1e-9, abs=1e-6)


@given(several, st.sampled_from((-3.0, 0.5, 10.0)), st.sampled_from((-100.0, 7.0)))
def test_in_other_units_the_spread_is_the_same(values, scale, shift):
    got, moved = Spread(tuple(values)), Spread(tuple(scale * v + shift for v in values))
    assert moved.mean == pytest.approx(scale * got.mean + shift, rel=1e-9, abs=1e-4)
    assert moved.deviation == pytest.approx(abs(scale) * got.deviation, rel=1e-9, abs=1e-4)
    low, high = sorted(scale * v + shift for v in got.interval)
    assert moved.interval == pytest.approx((low, high), rel=1e-9, abs=1e-4)
    assert got.interval[0] <= got.mean <= got.interval[1]


def test_the_interval_holds_the_true_mean_in_95_of_100_experiments():
    draws = np.random.default_rng(0).normal(3.0, 2.0, (2000, 5))
    covered = [low <= 3.0 <= high for low, high in (Spread(tuple(row)).interval for row in draws)]
    assert statistics.fmean(covered) == pytest.approx(0.95, abs=0.015)


def test_of_a_single_run_nobody_knows_how_far_another_seed_may_lead():
    one = Spread((97.5,))
    assert (one.mean, one.interval) == (97.5, (-math.inf, math.inf))
    assert math.isnan(one.deviation)
    assert f"{one:.1f}" == "97.5"


def test_a_spread_reads_as_mean_and_deviation_in_the_format_asked_for():
    runs = Spread((90.0, 92.0, 94.0))
    assert (f"{runs:.1f}", f"{runs:.0f}", str(runs)) == ("92.0 ± 2.0", "92 ± 2", "92 ± 2")
    assert runs.interval == pytest.approx((92 - 4.968, 92 + 4.968), abs=1e-3)  # t = 4.3027 for 2


def test_a_spread_takes_numbers_from_anywhere_and_does_not_change():
    plain = Spread((1.0, 2.0))
    for values in ([1, 2], np.array([1.0, 2.0]), torch.tensor([1.0, 2.0])):
        assert Spread(values) == plain
        assert hash(Spread(values)) == hash(plain)
    with pytest.raises(dataclasses.FrozenInstanceError):
        plain.values = (3.0,)


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


def test_where_each_entry_has_a_radius_the_curve_scales_all_of_them():
    model, x, y, _ = case()
    mask = torch.rand((60, 8), generator=seeded(0)) * (torch.rand((60, 8), generator=seeded(1)) < 0.5)
    mask[3] = 0
    radii = [0.0, 0.1, 0.5]
    curve = robust_accuracy_curve(model, x, y, Ball(math.inf, 7 * mask, BOX), [PGD], radii)
    share = mask / mask.amax(1, keepdim=True).clamp(min=1e-9)
    alone = [robust_accuracy(model, x, y, Ball(math.inf, eps * share, BOX), [PGD]) for eps in radii]
    assert curve == alone
    assert curve[0].count > curve[-1].count
    free = robust_accuracy_curve(model, x, y, Ball(math.inf, 1.0, BOX), [PGD], radii)
    assert free[-1].count < curve[-1].count


# ---- the loss along lines and planes ----


@pytest.mark.parametrize("loss", [losses.cross_entropy, losses.log_odds, losses.margin_loss])
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


# ---- a table of models and attacks ----


def rows_of_networks(n=60):
    """Two ways of training with two seeds each, their data, and a ball that breaks many."""
    model, x, y, ball = case(n=n)
    others = [problem(seed, n=n).model for seed in (1, 2)]
    return {"one": [model, model], "other": others}, x, y, ball


def certify_interval(model, x, y, ball):
    return (bounds.margins(model, x, y, ball) > 0).all(1)


def certify_crown(model, x, y, ball):
    return (bounds.margins(model, x, y, ball, "crown") > 0).all(1)


ATTACKS = {"FGSM": attacks.fgsm, "PGD": PGD, "square": partial(attacks.square, queries=30)}
PROOFS = {"interval": certify_interval, "CROWN": certify_crown}


@pytest.mark.parametrize("eps", [0.003, 0.03])
@pytest.mark.parametrize("batch_size", [7, 1000])
def test_what_is_proved_withstands_the_worst_and_that_every_attack_sample_by_sample(eps, batch_size):
    rows, x, y, _ = rows_of_networks()
    ball = Ball(math.inf, eps, BOX)
    got = table(rows, x, y, ball, ATTACKS, PROOFS, batch_size=batch_size)
    assert list(got.right) == ["one", "other"]
    for name, columns in got.right.items():
        assert list(columns) == ["clean", *ATTACKS, "worst", *PROOFS]
        assert all(cell.shape == (2, 60) and cell.dtype == torch.bool for cell in columns.values())
        for attack in ATTACKS:
            assert (columns["worst"] <= columns[attack]).all()
            assert (columns[attack] <= columns["clean"]).all()
        for proof in PROOFS:
            assert (columns[proof] <= columns["worst"]).all()
        alone = torch.stack([columns[attack] for attack in ATTACKS])
        assert torch.equal(columns["worst"], alone.all(0) & columns["clean"])
        assert columns["CROWN"].any()
        for seed, model in enumerate(rows[name]):
            assert torch.equal(columns["clean"][seed], model(x).argmax(1) == y)
            assert torch.equal(columns["PGD"][seed], survivors(model, x, y, ball, [PGD]))


def noisy(model, size):
    """A model that adds noise of its own drawing to every x."""
    generator = seeded(0)

    def answer(x):
        return model(x + size * torch.randn(x.shape, generator=generator, dtype=x.dtype))

    return answer


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("size", [1e-3, 0.3, 3.0])
def test_of_a_model_that_draws_at_random_the_table_warns_and_right_under_attack_is_right_as_it_is(
    whole, size
):
    model, x, y, ball = case(n=60)
    still = lambda model, x, y, ball: torch.zeros_like(x)  # noqa: E731
    with pytest.warns(UserWarning, match=r"mine gives \d+ of 60 samples other logits") as caught:
        got = table(
            {"mine": [noisy(model, size)]},
            x,
            y,
            ball,
            {"still": still, "PGD": PGD},
            whole_batches=whole,
            batch_size=25,
        )
    assert [warning.filename for warning in caught] == [__file__]
    columns = got.right["mine"]
    for attack in ("still", "PGD"):
        assert (columns["worst"] <= columns[attack]).all()
        assert (columns[attack] <= columns["clean"]).all()
    if size == 3:
        assert (columns["still"] < columns["clean"]).any()  # another draw


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_model_that_only_rounds_otherwise_is_not_taken_for_one_that_draws(dtype):
    model, x, y, ball = case(n=60)
    turn, model = iter(range(1000)), model.to(dtype)

    def rounded(x):
        return model(x) * (1 + 4 * torch.finfo(dtype).eps * (-1) ** next(turn))

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        table({"a": [rounded]}, x.to(dtype), y, ball, {"FGSM": attacks.fgsm})


def test_the_worst_for_each_sample_is_lower_than_the_worst_attack():
    rows, x, y, ball = rows_of_networks()

    def half(parity):
        def attack(model, x_now, y, ball):
            mine = (x_now[:, None] == x[parity::2]).all(2).any(1)
            return attacks.pgd(model, x_now, y, ball) * mine[:, None]

        return attack

    got = table({"one": rows["one"]}, x, y, ball, {"even": half(0), "odd": half(1)})
    even, odd, worst = (got.percent("one", column).mean for column in ("even", "odd", "worst"))
    assert worst < min(even, odd) < got.percent("one", "clean").mean


def test_every_attack_is_judged_alone_and_sees_every_sample_that_is_right():
    rows, x, y, ball = rows_of_networks()
    seen = []

    def note(model, x, y, ball):
        seen.append(len(x))
        return attacks.pgd(model, x, y, ball)

    got = table({"one": rows["one"][:1]}, x, y, ball, {"first": note, "second": note})
    right = int(got.right["one"]["clean"].sum())
    assert seen == [right, right]


def test_a_table_without_attacks_is_the_accuracy():
    rows, x, y, ball = rows_of_networks()
    got = table(rows, x, y, ball, {})
    assert list(got.right["one"]) == ["clean", "worst"]
    assert torch.equal(got.right["one"]["clean"], got.right["one"]["worst"])
    assert got.percent("one", "clean").mean == pytest.approx(
        100 * robust_accuracy(rows["one"][0], x, y, ball).value
    )


@pytest.mark.parametrize("liar", ["of one that an attack breaks", "of one that is wrong as it is"])
def test_a_proof_that_contradicts_an_attack_is_refused_by_name(liar):
    rows, x, y, ball = rows_of_networks()
    right = survivors(rows["one"][0], x, y, ball)
    broken = right & ~survivors(rows["one"][0], x, y, ball, [attacks.fgsm])
    chosen = (broken if "breaks" in liar else ~right).nonzero()[0].item()

    def claim(model, x, y, ball):
        return torch.arange(len(x)) == chosen

    with pytest.raises(ValueError, match=rf"(?s)my proof.*one.*\[{chosen}\]"):
        table(rows, x, y, ball, {"FGSM": attacks.fgsm}, {"my proof": claim})


def test_an_attack_that_leaves_the_set_is_refused_in_a_table_too():
    rows, x, y, ball = rows_of_networks()
    with pytest.raises(ValueError, match="outside"):
        table(rows, x, y, ball, {"far": lambda model, x, y, ball: torch.full_like(x, 0.2) - x})


def test_a_table_reads_in_percent_with_the_spread_over_the_seeds():
    def cells(*seeds):
        return torch.tensor(seeds).bool()

    right = {
        "standard": {"clean": cells([1, 1, 1, 1], [1, 1, 1, 0]), "worst": cells([0] * 4, [0] * 4)},
        "robust": {"clean": cells([1] * 4, [1] * 4), "worst": cells([1, 0, 0, 0], [1, 1, 0, 0])},
    }
    got = Table(right)
    assert got.percent("standard", "clean") == Spread((100.0, 75.0))
    seconds = {"robust": Spread((2.0, 4.0)), "standard": Spread((1.0, 1.0))}
    text = got.markdown(**{"CPU s": seconds})
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines()]
    assert lines == [
        ["model", "clean", "worst", "CPU s"],
        ["---", "---:", "---:", "---:"],
        ["standard", "87.5 ± 17.7", "0.0 ± 0.0", "1.0 ± 0.0"],
        ["robust", "100.0 ± 0.0", "37.5 ± 17.7", "3.0 ± 1.4"],
    ]
    assert got._repr_markdown_() == got.markdown()
    assert "CPU s" not in got.markdown()
    header, _, first, _ = got.markdown(["worst", "clean"]).splitlines()
    assert [cell.strip() for cell in header.split("|")[2:-1]] == ["worst", "clean"]
    assert first == "| standard | 0.0 ± 0.0 | 87.5 ± 17.7 |"


def test_a_single_seed_has_no_spread_in_the_table():
    rows, x, y, ball = rows_of_networks()
    got = table({"one": rows["one"][:1]}, x, y, ball, {"FGSM": attacks.fgsm})
    assert "±" not in got.markdown()


def test_judging_leaves_the_networks_as_they_are():
    model, x, y, ball = case()
    model.train()
    model[1].weight.grad = torch.ones_like(model[1].weight)
    before = [p.clone() for p in model.parameters()], generators()
    table({"one": [model]}, x, y, ball, ATTACKS, PROOFS)
    masking(model, x, y, ball, PGD, queries=20)
    landscape(model, x[:1], y[:1], ball, torch.linspace(0, 1, 3))
    assert all(module.training for module in model.modules())
    assert same(before, ([p.clone() for p in model.parameters()], generators()))
    assert (model[1].weight.grad == 1).all()
    assert all(p.grad is None for p in list(model.parameters())[1:])


# ---- symptoms of masked gradients ----

CROSS = partial(attacks.pgd, loss=losses.cross_entropy)
NAMES = ("gradient is exactly 0", "large as the box", "one step", "200 steps", "another loss", "search")


def symptoms(model, digits, attack=attacks.pgd, p=math.inf, eps=0.1, n=100):
    """What masking finds on digits that the network gets right, by a word of each name."""
    x, y = digits.x_test[:n], digits.y_test[:n]
    found = masking(model, x, y, Ball(p, eps, BOX), attack, queries=100)
    assert len(found) == (5 if p == 1 else 6)
    for symptom, name in zip(found, NAMES, strict=False):
        assert name in symptom.name
    return dict(zip(NAMES, found, strict=False))


@pytest.mark.parametrize(("p", "eps"), [(math.inf, 0.1), (2, 0.6), (1, 2.0)])
def test_an_honest_network_under_a_good_attack_shows_nothing(p, eps, digits):
    for symptom in symptoms(trained_on_digits(), digits, p=p, eps=eps).values():
        assert not symptom.suspicious, symptom
        assert str(symptom).startswith(" ")


def test_an_honest_linear_model_shows_nothing():
    """Two classes: an attack along the weights is exact, and no other finds more."""
    w, b = entries((2, 6), 0, "plain").float(), torch.zeros(2)
    x = problem(shape=(6,), n=200, dtype=torch.float32).x
    y = (x @ w.T + b).argmax(1)
    for p in ORDERS:
        for symptom in masking(lambda x: x @ w.T + b, x, y, Ball(p, RADIUS[p], BOX), queries=100):
            assert not symptom.suspicious, symptom


def test_logits_times_1000_show_gradients_of_0_and_that_cross_entropy_cannot_follow_them(digits):
    steep, plain = (lambda x, s=s: s * trained_on_digits()(x) for s in (1000, 1))
    found = symptoms(steep, digits, CROSS)
    assert found["gradient is exactly 0"].suspicious
    assert found["large as the box"].suspicious
    assert found["one step"].suspicious  # on the log-odds, which do not saturate
    assert found["another loss"].suspicious
    assert str(found["one step"]).startswith("!")
    assert not any(s.suspicious for s in symptoms(plain, digits, CROSS).values())
    blind = {name for name, s in symptoms(steep, digits).items() if s.suspicious}
    assert blind == {"gradient is exactly 0"}  # the log-odds are not blind, the cross-entropy is


def test_a_quantised_input_shows_gradients_of_0_and_a_search_without_gradients_sees_through_it(digits):
    def quantised(x):
        return trained_on_digits()((4 * x).round() / 4)

    found = symptoms(quantised, digits)
    right = survivors(quantised, digits.x_test[:100], digits.y_test[:100], Ball(math.inf, 0.1, BOX))
    assert found["gradient is exactly 0"].shown.count == right.sum()
    assert found["large as the box"].shown.count == right.sum()
    assert found["search"].suspicious
    assert not any(found[name].shown.count for name in ("one step", "200 steps", "another loss"))


def test_an_attack_that_does_nothing_is_beaten_by_one_step_and_by_all_the_others(digits):
    found = symptoms(trained_on_digits(), digits, lambda model, x, y, ball: torch.zeros_like(x))
    assert not found.pop("gradient is exactly 0").suspicious
    assert all(symptom.suspicious for symptom in found.values())


@pytest.mark.parametrize("p", ORDERS)
def test_every_symptom_is_counted_on_the_samples_that_it_names(p):
    model, x, y, ball = case(p)
    weak = partial(attacks.pgd, steps=1, step_size=0.3 * RADIUS[p])
    got = [symptom.shown.count for symptom in masking(model, x, y, ball, weak, queries=50)]
    left = survivors(model, x, y, ball, [weak])
    whole = {math.inf: 1.0, 2: math.sqrt(8), 1: 8.0}[p]  # from one corner of the box to the other
    expected = [0, survivors(model, x, y, Ball(p, whole, BOX), [weak]).sum()]
    others = [
        attacks.fgsm,
        partial(attacks.pgd, steps=200),
        partial(attacks.apgd, loss=losses.margin_loss),
    ]
    if p != 1:
        others.append(partial(attacks.square, queries=50))
    expected += [(left & ~survivors(model, x, y, ball, [other])).sum() for other in others]
    assert got == [int(count) for count in expected]
    assert got[2] > 0


def test_a_model_of_which_autograd_sees_nothing_has_a_gradient_of_0():
    from adv_lib.diagnostics import _slope

    model, x, y, _ = case()
    for shape in ((60, 8), (60, 2, 4)):
        at = x.reshape(shape)
        for deaf in (lambda v: model(v.detach()), lambda v: model(v.detach()).detach()):
            assert torch.equal(_slope(deaf, at, y), torch.zeros(60, dtype=torch.float64))
        leaf = at.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(losses.cross_entropy(model(leaf), y).sum(), leaf)
        assert torch.equal(_slope(model, at, y), gradient.flatten(1).abs().amax(1))


@pytest.mark.parametrize(("count", "n"), [(0, 100), (2, 100), (4, 100), (1, 50), (30, 1000), (1, 1)])
def test_a_symptom_is_suspicious_beyond_one_percent_and_what_the_size_of_the_test_set_leaves_open(
    count, n
):
    symptom = Symptom("name", rate(tensor(count, n)))
    assert symptom.suspicious == (symptom.shown.low > 0.01)
    assert symptom.suspicious == ((count, n) in {(4, 100), (30, 1000), (1, 1)})
    assert str(symptom).startswith("!" if symptom.suspicious else " ")
    assert f"{count} of {n}" in str(symptom)


# ---- the loss around a sample ----


@pytest.mark.parametrize("p", ORDERS)
def test_a_landscape_is_the_loss_along_the_steepest_step_and_a_random_one_of_the_same_size(p):
    loss = losses.cross_entropy
    model, x, y, ball = problem(1, n=1, p=p, K=6)
    t = torch.tensor([-1.0, 0.0, 0.5, 1.0], dtype=torch.float64)
    got = landscape(model, x, y, ball, t)
    free = Ball(p, ball.eps)
    steepest = attacks.fgsm(model, x, y, free, loss=loss)
    random = free.argmax(torch.randn(x.shape, generator=seeded(0), dtype=x.dtype))
    for u in (steepest, random):
        assert torch.linalg.vector_norm(u, p).item() == pytest.approx(ball.eps)
    assert got.shape == (4, 4)
    for i in range(4):
        for j in range(4):
            expected = loss(model(x + t[i] * steepest + t[j] * random), y).item()
            assert got[i, j].item() == pytest.approx(expected, abs=1e-12)
    assert got[1, 1].item() == pytest.approx(loss(model(x), y).item(), abs=1e-12)
    torch.testing.assert_close(got[:, 1], loss_along(model, x, y, [steepest], t, loss=loss))
    assert not got.requires_grad


def test_drawing_a_landscape_leaves_modes_statistics_and_gradients_alone():
    body = models.mlp([8, 12, 3])
    model = nn.Sequential(*body[:2], nn.BatchNorm1d(12), nn.ReLU(), nn.Dropout(0.5), body[3])
    x, y = problem(n=1, dtype=torch.float32)[1:3]
    before = [v.clone() for v in model.state_dict().values()]
    ball, t = Ball(2, 0.1), torch.linspace(0, 1, 3)
    got = landscape(model, x, y, ball, t)
    assert same(list(model.state_dict().values()), before)
    assert all(module.training for module in model.modules())
    assert all(p.grad is None for p in model.parameters())
    assert torch.equal(got, landscape(model.eval(), x, y, ball, t))


# ---- a cut through the decision regions ----


def test_a_cross_section_cuts_along_the_attack_and_orthogonally_to_it():
    W = torch.eye(3, dtype=torch.float64)
    x, delta = (
        torch.tensor([[0.5, 0.2, 0.1]], dtype=W.dtype),
        torch.tensor([[0.0, 0.3, 0.4]], dtype=W.dtype),
    )
    along, across = torch.tensor([0.0, 1.0, 2.0]), torch.tensor([-1.0, 0.0, 1.0, 3.0])
    z = cross_section(lambda v: v @ W.T, x, delta, along, across)
    assert z.shape == (3, 4, 3)
    for i, s in enumerate(along):
        for j, t in enumerate(across):
            moved = z[i, j] - x[0] - s * delta[0]
            assert abs(float((moved * delta[0]).sum())) < 1e-9
            assert float(moved.norm()) == pytest.approx(abs(float(t)) * 0.5, abs=1e-9)
    other = cross_section(lambda v: v @ W.T, x, delta, along, across, generator=seeded(1))
    assert torch.equal(other[:, 1], z[:, 1])
    assert not torch.allclose(other, z)
