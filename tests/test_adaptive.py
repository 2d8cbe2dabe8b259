"""Attacks made for a defense that adapts, and the table that judges it by them."""

import copy
import itertools
import math
from functools import partial

import pytest
import torch
from strategies import BOX, ORDERS, entries, generators, inputs, seeded
from torch import nn

from adv_lib import adaptive, attacks, losses, models
from adv_lib.dent import Dent
from adv_lib.evaluation import table
from adv_lib.stack import Stack
from adv_lib.threat import Ball

judge = partial(table, whole_batches=True, batch_size=128)

PGD = partial(attacks.pgd, steps=4)
RADIUS = {1: 0.8, 2: 0.3, math.inf: 0.1}
SCOPES = ("batch", "sample")


def network(seed=0, width=12):
    """A random network with normalisation in train mode, and of which no class wins everywhere."""
    model = models.mlp([8, width, 3], seeded(seed), norm=True).double()
    norm = model[2]
    norm.running_var.uniform_(0.05, 0.3, generator=seeded(seed))
    norm.bias.data += 0.5 * entries((width,), seed, "plain")
    with models.evaluating(model):
        model[-1].bias.data -= model(inputs((60, 8), seed)).detach().mean(0)
    return model


def case(scope="batch", n=8, seed=0, p=math.inf, shape=(8,), **options):
    """A defense that moves far, inputs, labels of which some are wrong, and a ball that breaks some."""
    defense = Dent(network(seed), **{"scope": scope, "steps": 2, "lr": 0.3, **options})
    x = inputs((n, *shape), seed)
    y = answers(defense, x).argmax(1)
    y = torch.where(torch.arange(n) % 4 == 3, (y + 1) % 3, y)
    return defense, x, y, Ball(p, RADIUS[p], BOX)


def answers(model, x):
    with models.evaluating(model), torch.no_grad():
        return model(x)


def slope(model, x, c):
    """The gradient of ⟨c, z⟩."""
    x = x.detach().clone().requires_grad_()
    with torch.enable_grad(), models.evaluating(model):
        return torch.autograd.grad((c * model(x)).sum(), x)[0]


class Spy:
    """An attack that looks at what it is given and returns the δ that it was told to, one a call."""

    def __init__(self, look=lambda *_, **options: None, deltas=None):
        self.look, self.deltas, self.calls = look, deltas, []

    def __call__(self, model, x, y, ball, **options):
        self.calls.append((model, x, y, ball, options))
        self.look(model, x, y, ball, **options)
        return self.deltas[len(self.calls) - 1] if self.deltas else torch.zeros_like(x)


# ---- which network, or whose gradient ----


@pytest.mark.parametrize("attack", [attacks.fgsm, PGD, partial(attacks.square, queries=20)])
@pytest.mark.parametrize("scope", SCOPES)
def test_transfer_is_the_attack_on_the_network_that_the_defense_starts_from(scope, attack):
    defense, x, y, ball = case(scope)
    got = adaptive.transfer(attack)(defense, x, y, ball)
    assert torch.equal(got, attack(defense.model, x, y, ball))
    assert got.any()


@pytest.mark.parametrize("attack", [attacks.fgsm, PGD])
@pytest.mark.parametrize("scope", SCOPES)
def test_frozen_is_the_attack_on_the_network_that_has_adapted_to_x(scope, attack):
    defense, x, y, ball = case(scope)
    got = adaptive.frozen(attack)(defense, x, y, ball)
    assert torch.equal(got, attack(defense.adapt(x), x, y, ball))
    assert not torch.equal(got, adaptive.transfer(attack)(defense, x, y, ball))


@pytest.mark.parametrize("scope", SCOPES)
def test_a_frozen_network_moves_no_more_whatever_it_is_shown(scope):
    defense, x, y, ball = case(scope)
    held, spy = defense.adapt(x), Spy()
    adaptive.frozen(spy)(defense, x, y, ball)
    ((seen, *_),) = spy.calls
    for other in (x, inputs((8, 8), 5)):
        assert torch.equal(seen(other), held(other))
    assert not torch.allclose(seen(other), defense(other), atol=1e-3)


@pytest.mark.parametrize("scope", SCOPES)
def test_unrolled_shows_the_answers_of_the_defense_with_the_slope_of_the_whole_answer(scope):
    defense, x, y, ball = case(scope)
    c, spy = entries((8, 3), 1, "plain"), Spy()
    adaptive.unrolled(spy)(defense, x, y, ball)
    ((seen, *_),) = spy.calls
    assert torch.equal(answers(seen, x), answers(defense, x))
    assert not torch.allclose(slope(seen, x, c), slope(defense, x, c), atol=1e-2)
    way, h = entries((8, 8), 2, "plain"), 1e-7
    stepped = (c * (answers(defense, x + h * way) - answers(defense, x - h * way))).sum() / (2 * h)
    assert (slope(seen, x, c) * way).sum().item() == pytest.approx(stepped.item(), rel=1e-4)
    assert not defense.unroll
    got = adaptive.unrolled(PGD)(defense, x, y, ball)
    assert torch.equal(got, PGD(defense.unrolled(), x, y, ball))


@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("scope", SCOPES)
def test_bpda_shows_the_answers_of_the_defense_with_the_slope_of_the_stand_in(scope, own):
    """Without a stand-in of one's own, that of the network that the defense starts from."""
    defense, x, y, ball = case(scope)
    other, c = network(7) if own else defense.model, entries((8, 3), 1, "plain")
    shown = []

    def look(model, x, y, ball):
        at = x + 0.01
        assert torch.equal(model(at), defense(at))
        torch.testing.assert_close(slope(model, at, c), slope(other, at, c))
        shown.append(at)

    def stand_in(given):
        assert given is defense
        return other

    adaptive.bpda(Spy(look), stand_in if own else None)(defense, x, y, ball)
    assert len(shown) == 1
    assert other.training  # in train mode before, in eval mode meanwhile


def test_bpda_gets_through_a_defense_that_has_no_slope():
    class Rounded:
        """The network for x in steps of 1/20."""

        model = network()

        def __call__(self, x):
            return answers(self.model, (20 * x).round() / 20)

    x = inputs((20, 8), 0)
    defense, ball = Rounded(), Ball(math.inf, 0.1, BOX)
    y = defense(x).argmax(1)
    with pytest.raises(ValueError, match="autograd"):
        PGD(defense, x, y, ball)
    delta = adaptive.bpda(PGD)(defense, x, y, ball)
    assert (defense(x + delta).argmax(1) != y).sum() >= 3


# ---- a defense that draws ----


class Drawing(nn.Module):
    """One of several networks, in turn or by a generator, at every call."""

    def __init__(self, seed=None):
        super().__init__()
        self.members = nn.ModuleList(network(k) for k in range(3))
        self.generator = None if seed is None else seeded(seed)
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        if self.generator is None:
            return self.members[self.calls % 3](x)
        return self.members[torch.randint(3, (), generator=self.generator)](x)


@pytest.mark.parametrize("draws", [1, 3])
@pytest.mark.parametrize("scope", SCOPES)
def test_the_mean_answer_of_a_defense_that_does_not_draw_is_its_answer(scope, draws):
    defense, x, y, ball = case(scope)
    spy = Spy()
    adaptive.eot(spy, draws)(defense, x, y, ball)
    ((seen, *_),) = spy.calls
    torch.testing.assert_close(answers(seen, x), torch.log_softmax(answers(defense, x), 1))


@pytest.mark.parametrize("draws", [3, 6])
def test_the_mean_answer_is_the_logarithm_of_the_mean_probability_over_fresh_draws(draws):
    """Value and slope; three networks in turn have a mean that is known."""
    defense, (_, x, y, ball) = Drawing(), case()
    c, checked = entries((8, 3), 1, "plain"), []

    def mean(at):
        return torch.stack([torch.softmax(member(at), 1) for member in defense.members]).mean(0).log()

    def look(model, x, y, ball):
        before = defense.calls
        torch.testing.assert_close(model(x), mean(x))
        assert defense.calls == before + draws
        torch.testing.assert_close(slope(model, x, c), slope(mean, x, c))
        assert not defense.members[0].training
        checked.append(x)

    adaptive.eot(Spy(look), draws)(defense, x, y, ball)
    assert len(checked) == 1
    assert defense.members[0].training


def test_the_draws_of_a_query_are_those_that_the_defense_would_make_next():
    defense, twin, (_, x, y, ball) = Drawing(5), Drawing(5), case()
    checked = []

    def look(model, x, y, ball):
        for _ in range(2):
            drawn = torch.stack([torch.softmax(answers(twin, x), 1) for _ in range(7)])
            torch.testing.assert_close(model(x), drawn.mean(0).log())
            checked.append(drawn)

    adaptive.eot(Spy(look), 7)(defense, x, y, ball)
    assert not torch.equal(*checked)


# ---- all networks that a defense has been ----


@pytest.mark.parametrize("worst", [False, True])
@pytest.mark.parametrize("scope", SCOPES)
def test_the_pool_holds_the_first_network_and_one_more_a_round_which_adapted_to_the_last_attack(
    scope, worst
):
    """And the loss over it is the mean of all log-odds, or those of the member fooled least."""
    defense, x, y, ball = case(scope)
    deltas = [ball.sample(x, seeded(k)) for k in range(3)]
    pool, at, checked = [partial(answers, defense.model)], inputs((8, 8), 3), []

    def look(model, x, y, ball, loss, keep):
        before = (torch.zeros_like(x), *deltas)[len(pool) - 1]
        pool.append(defense.adapt(x + before))
        expected = torch.stack([member(at) for member in pool]).detach()
        z = model(at).detach()
        torch.testing.assert_close(torch.stack(z.chunk(len(pool), 1)), expected)
        each = torch.stack([losses.log_odds(part, y) for part in expected])
        torch.testing.assert_close(loss(z, y), each.min(0).values if worst else each.mean(0))
        assert keep == "last"
        checked.append(len(pool))

    adaptive.gmsa(Spy(look, deltas), rounds=3, worst=worst)(defense, x, y, ball)
    assert checked == [2, 3, 4]


@pytest.mark.parametrize("scope", SCOPES)
def test_every_sample_keeps_the_round_at_which_the_defense_itself_was_most_wrong(scope):
    defense, x, y, ball = case(scope)
    deltas = [ball.sample(x, seeded(k)) for k in range(4)]
    got = adaptive.gmsa(Spy(deltas=deltas), rounds=4)(defense, x, y, ball)
    leads = torch.stack([losses.margin_loss(answers(defense, x + delta), y) for delta in deltas])
    assert len(leads.argmax(0).unique()) > 1
    assert torch.equal(got, torch.stack(deltas)[leads.argmax(0), torch.arange(8)])
    if scope == "sample":  # in the company of other rounds, too
        torch.testing.assert_close(losses.margin_loss(answers(defense, x + got), y), leads.amax(0))


def test_one_round_is_the_attack_on_the_first_network_and_the_one_that_adapted_to_x():
    defense, x, y, ball = case()
    held = defense.adapt(x)

    def both(x):
        return torch.stack([defense.model(x), held(x)])

    def mean(z, y):
        return (losses.log_odds(z[:, :3], y) + losses.log_odds(z[:, 3:], y)) / 2

    with models.evaluating(defense):
        expected = PGD(lambda x: torch.cat([*both(x)], 1), x, y, ball, loss=mean, keep="last")
    assert torch.equal(adaptive.gmsa(PGD, rounds=1)(defense, x, y, ball), expected)


def test_with_more_rounds_no_sample_is_less_wrong():
    defense, x, y, ball = case("sample", n=20)
    leads = [
        losses.margin_loss(answers(defense, x + adaptive.gmsa(PGD, rounds=r)(defense, x, y, ball)), y)
        for r in (1, 2, 4)
    ]
    for fewer, more in itertools.pairwise(leads):
        assert (more >= fewer - 1e-9).all()
    assert (leads[-1] > leads[0] + 1e-3).any()


# ---- all of them ----

EVERY = {
    "transfer": adaptive.transfer(PGD),
    "frozen": adaptive.frozen(PGD),
    "unrolled": adaptive.unrolled(PGD),
    "bpda": adaptive.bpda(PGD),
    "bpda by one step": adaptive.bpda(PGD, lambda defense: Dent(defense.model, steps=1, lr=0.3)),
    "eot": adaptive.eot(PGD, 2),
    "gmsa": adaptive.gmsa(PGD, rounds=2),
    "gmsa worst": adaptive.gmsa(PGD, rounds=2, worst=True),
}
every = pytest.mark.parametrize("name", EVERY)


# Both scopes with every p, and every p with and without a box.
SETS = [(s, p, (None, BOX)[(i + j) % 2]) for i, s in enumerate(SCOPES) for j, p in enumerate(ORDERS)]


@every
@pytest.mark.parametrize(("scope", "p", "box"), SETS)
def test_every_attack_returns_a_perturbation_of_the_set(name, scope, p, box):
    defense, x, y, _ = case(scope, p=p)
    each = RADIUS[p] * torch.rand(8, generator=seeded(0)).double()
    for shaped, eps in ((x, RADIUS[p]), (x.view(8, 2, 2, 2), each)):
        ball = Ball(p, eps, box)
        delta = EVERY[name](defense, shaped, y, ball)
        assert delta.shape == shaped.shape
        assert delta.dtype == shaped.dtype
        assert not delta.requires_grad
        assert ball.contains(delta, shaped).all()
        assert delta.flatten(1).any(1).sum() >= 4


@every
@pytest.mark.parametrize("adapt", ["input", "both"])
@pytest.mark.parametrize("scope", SCOPES)
def test_every_attack_takes_a_defense_that_smooths_its_input(name, scope, adapt):
    defense, x, y, ball = case(scope, shape=(1, 2, 4), adapt=adapt)
    delta = EVERY[name](defense, x, y, ball)
    assert ball.contains(delta, x).all()
    assert delta.any()


@every
@pytest.mark.parametrize("scope", SCOPES)
def test_every_attack_leaves_the_defense_as_it_was(name, scope):
    defense, x, y, ball = case(scope)
    defense.model[3].eval()
    tensors = [*defense.state_dict().values(), x, y]
    before, modes = [v.clone() for v in tensors], [m.training for m in defense.modules()]
    state = generators()
    assert {True, False} == set(modes)
    first = EVERY[name](defense, x, y, ball)
    assert torch.equal(EVERY[name](defense, x, y, ball), first)
    assert all(torch.equal(a, b) for a, b in zip(before, tensors, strict=True))
    assert [m.training for m in defense.modules()] == modes
    assert all(p.grad is None and p.requires_grad for p in defense.parameters())
    assert generators() == state


@pytest.mark.parametrize("name", sorted(EVERY.keys() - {"bpda by one step"}))
def test_without_steps_every_attack_on_the_network_itself_breaks_as_much_as_the_plain_one(name):
    """A defense that does nothing: all ways to attack it are one, up to a δ that is as good."""
    defense, x, y, ball = case("sample", n=20, steps=0)
    own = answers(defense, x + PGD(defense.model, x, y, ball)).argmax(1) != y
    got = answers(defense, x + EVERY[name](defense, x, y, ball)).argmax(1) != y
    assert got.sum() == pytest.approx(own.sum(), abs=1)
    assert got.sum() > 5


# ---- the table ----

TWO = {"transfer": adaptive.transfer(PGD), "unrolled": adaptive.unrolled(PGD)}


def right(defense, x, y):
    return losses.margin_loss(answers(defense, x), y) < 0


@pytest.mark.parametrize("batch_size", [7, 100])
@pytest.mark.parametrize("scope", SCOPES)
def test_a_sample_is_right_in_the_batch_that_the_attack_made_and_the_union_is_right_in_all_columns(
    scope, batch_size
):
    defense, x, y, _ = case(scope, n=40)
    ball = Ball(math.inf, 0.05, BOX)
    got = judge({"mine": [defense]}, x, y, ball, TWO, batch_size=batch_size).right
    assert list(got) == ["mine"]
    row = got["mine"]
    assert list(row) == ["clean", "transfer", "unrolled", "worst"]
    assert all(cell.shape == (1, 40) and cell.dtype == torch.bool for cell in row.values())
    parts = torch.arange(40).split(batch_size)
    clean = torch.cat([right(defense, x[part], y[part]) for part in parts])
    assert torch.equal(row["clean"][0], clean)
    for name, attack in TWO.items():
        moved = [x[part] + attack(defense, x[part], y[part], ball) for part in parts]
        survived = torch.cat([right(defense, m, y[p]) for m, p in zip(moved, parts, strict=True)])
        assert torch.equal(row[name][0], survived & clean)
    union = row["clean"] & row["transfer"] & row["unrolled"]
    assert torch.equal(row["worst"], union)
    assert 0 < union.sum() < row["clean"].sum() < 40


def test_an_attack_gets_whole_batches_with_the_samples_that_are_wrong_or_broken_already():
    defense, x, y, _ = case(n=10)
    eps = torch.linspace(0, 0.1, 10).double()
    spies = {"first": Spy(), "second": Spy()}
    judge({"mine": [defense]}, x, y, Ball(math.inf, eps, BOX), spies, batch_size=4)
    assert not right(defense, x, y).all()
    for spy in spies.values():
        assert [len(seen) for _, seen, *_ in spy.calls] == [4, 4, 2]
        assert all(model is defense for model, *_ in spy.calls)
        assert torch.equal(torch.cat([seen for _, seen, *_ in spy.calls]), x)
        assert torch.equal(torch.cat([labels for _, _, labels, *_ in spy.calls]), y)
        assert torch.equal(torch.cat([ball.eps for *_, ball, _ in spy.calls]), eps)


def test_for_one_change_a_batch_the_company_decides_who_is_right():
    """So that a table that passes single samples on would be another."""
    defense, x, y, ball = case(n=40, lr=1.0)
    whole, single = (
        judge({"mine": [defense]}, x, y, ball, {}, batch_size=size).right["mine"]["clean"]
        for size in (40, 1)
    )
    assert not torch.equal(whole, single)
    each, _, _, _ = case("sample", n=40, lr=1.0)
    alone = judge({"mine": [each]}, x, y, ball, {}, batch_size=7).right["mine"]["clean"]
    assert torch.equal(alone, single)


def test_a_sample_that_is_wrong_as_it_is_counts_as_broken_by_every_attack():
    defense, x, y, _ = case("sample", n=20)

    def helps(defense, x, y, ball):
        return attacks.pgd(defense, x, y, ball, loss=lambda z, y: -losses.log_odds(z, y), keep="last")

    clean = right(defense, x, y)
    wide = Ball(math.inf, 0.5, BOX)
    helped = right(defense, x + helps(defense, x, y, wide), y)
    assert (helped & ~clean).any()
    row = judge({"mine": [defense]}, x, y, wide, {"helps": helps}).right["mine"]
    assert torch.equal(row["helps"][0], helped & clean)
    assert torch.equal(row["worst"], row["helps"] & row["clean"])


def test_without_attacks_the_table_is_the_accuracy():
    defense, x, y, ball = case(n=12)
    row = judge({"mine": [defense]}, x, y, ball, {}).right["mine"]
    assert list(row) == ["clean", "worst"]
    assert torch.equal(row["clean"], row["worst"])
    assert torch.equal(row["clean"][0], right(defense, x, y))


def test_a_tie_counts_as_wrong_in_every_column():
    def tied(x):
        return torch.tensor([[1.0, 1.0, 0.0], [1.0, 0.5, 0.0]]) + 0 * x[:, :1]

    x, y = torch.zeros(2, 3), torch.tensor([0, 0])
    row = judge({"tied": [tied]}, x, y, Ball(2, 0.1), {"nothing": Spy()}).right["tied"]
    assert {name: cell.tolist() for name, cell in row.items()} == {
        name: [[False, True]] for name in ("clean", "nothing", "worst")
    }


def test_several_seeds_of_several_defenses_stand_in_rows_of_their_own():
    _, x, y, ball = case(n=12)
    made = {"batch": [case(seed=k)[0] for k in range(3)]}
    made["sample"] = [case("sample", seed=k)[0] for k in range(3)]
    got = judge(made, x, y, ball, TWO)
    assert list(got.right) == ["batch", "sample"]
    for name, seeds in made.items():
        alone = [judge({"one": [defense]}, x, y, ball, TWO).right["one"] for defense in seeds]
        for column, cell in got.right[name].items():
            assert torch.equal(cell, torch.cat([row[column] for row in alone]))
        assert len(got.percent(name, "worst").values) == 3
    assert "| sample |" in got.markdown(["clean", "worst"])


# ---- networks side by side ----


def beside(scope, n=12, **options):
    """The defense of three networks side by side, each alone, inputs, labels and a ball."""
    options = {"scope": scope, "steps": 2, "lr": 0.3, **options}
    alone = [Dent(network(k), **options) for k in range(3)]
    defense = Dent(Stack([each.model for each in alone]), **options)
    _, x, y, ball = case(n=n)
    return defense, alone, x, y, ball


@every
@pytest.mark.parametrize("scope", SCOPES)
def test_an_attack_on_a_defense_of_several_networks_is_the_attack_on_each(name, scope):
    defense, alone, x, y, ball = beside(scope)
    rows = defense.model.rows
    delta = EVERY[name](defense, rows(x), rows(y), ball)
    for e, each in enumerate(alone):
        torch.testing.assert_close(delta[e::3], EVERY[name](each, x, y, ball), atol=1e-9, rtol=0)


@pytest.mark.parametrize("batch_size", [5, 100])
@pytest.mark.parametrize("scope", SCOPES)
def test_the_table_of_networks_side_by_side_is_that_of_one_after_the_other(scope, batch_size):
    defense, alone, x, y, _ = beside(scope)
    ball = Ball(math.inf, torch.linspace(0, 0.1, 12).double(), BOX)
    judged = partial(judge, x=x, y=y, ball=ball, attacks=TWO, batch_size=batch_size)
    got = judged({"dent": [defense]}).right["dent"]
    expected = judged({"dent": alone}).right["dent"]
    assert got.keys() == expected.keys()
    assert all(torch.equal(got[column], expected[column]) for column in got)
    assert len({tuple(row.tolist()) for row in got["worst"]}) == 3
    mixed = judged({"dent": [defense], "one by one": alone}).right
    assert all(torch.equal(*(mixed[name][column] for name in mixed)) for column in got)
    with pytest.raises(ValueError, match="as many networks"):
        judged({"dent": [defense], "two": alone[:2]})


def test_a_search_that_keeps_the_best_asks_about_whole_batches_and_breaks_the_same_samples():
    defense, alone, x, y, ball = beside("sample", n=40)
    search, asked = partial(attacks.square, queries=60), []

    def spied(at):
        asked.append(len(at))
        return answers(alone[0], at)

    best = search(spied, x, y, ball, keep="best")
    assert asked == [40] * 60
    first = search(alone[0], x, y, ball)
    lead = [losses.margin_loss(answers(alone[0], x + delta), y) for delta in (first, best)]
    assert torch.equal(*(v >= 0 for v in lead))
    assert 0 < (lead[0] >= 0).sum() < 40
    assert (lead[1] >= lead[0]).all()
    assert (lead[1] > lead[0]).any()
    rows = defense.model.rows
    assert ball.contains(search(defense, rows(x), rows(y), ball, keep="best"), rows(x)).all()
    with pytest.raises(ValueError, match="one network"):
        search(defense, rows(x), rows(y), ball)


@pytest.mark.parametrize("cheat", ["too far", "out of the box", "NaN", "another shape"])
def test_an_attack_that_leaves_the_set_is_refused(cheat):
    defense, x, y, ball = case()

    def cheats(defense, x, y, ball):
        delta = torch.zeros_like(x)
        delta[-1] = {"too far": 0.101, "out of the box": -0.05 - x[-1], "NaN": math.nan}.get(cheat, 0)
        return delta[:, :4] if cheat == "another shape" else delta

    wide = Ball(math.inf, 2.0, BOX) if cheat == "out of the box" else ball
    with pytest.raises(
        ValueError, match=r"from cheats, got 1 of 3 samples outside|cheats to return δ|finite"
    ):
        judge({"mine": [defense]}, x, y, wide, {"cheats": cheats}, batch_size=3)


@pytest.mark.parametrize("taken", ["clean", "worst"])
def test_an_attack_may_not_have_the_name_of_another_column(taken):
    defense, x, y, ball = case()
    with pytest.raises(ValueError, match="different names, none of them clean or worst"):
        judge({"mine": [defense]}, x, y, ball, {taken: adaptive.transfer(PGD)})


def test_a_defense_in_train_mode_is_judged_in_eval_mode_and_gets_its_modes_back():
    """Also one that has a dropout of its own, and in the eyes of the attack."""

    class Dropping(Dent):
        def __init__(self, model):
            super().__init__(model, lr=0.3)
            self.drop = nn.Dropout(0.9)

        def forward(self, x):
            return super().forward(self.drop(x))

    _, x, y, ball = case(n=12)
    defense = Dropping(network())
    calm = copy.deepcopy(defense).eval()
    defense.model[3].eval()
    modes, seen = [m.training for m in defense.modules()], []
    state = [v.clone() for v in defense.state_dict().values()]

    def look(defense, x, y, ball):
        seen.append(any(m.training for m in defense.modules()))

    attackers = {**TWO, "spy": Spy(look)}
    got = judge({"mine": [defense]}, x, y, ball, attackers).right["mine"]
    expected = judge({"mine": [calm]}, x, y, ball, attackers).right["mine"]
    assert all(torch.equal(got[column], expected[column]) for column in expected)
    assert seen == [False, False]
    assert [m.training for m in defense.modules()] == modes
    assert all(torch.equal(a, b) for a, b in zip(state, defense.state_dict().values(), strict=True))


def test_judge_asks_for_a_list_of_defenses_where_it_gets_one():
    defense, x, y, ball = case()
    with pytest.raises(ValueError, match="expected a list of networks"):
        judge({"dent": defense}, x, y, ball, {})
