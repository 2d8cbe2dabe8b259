"""AutoAttack: what it finds, in what order, which models it doubts, and how it goes on after a kill."""

import math
from functools import partial

import pytest
import torch
from strategies import seeded, trained_on_digits
from torch import nn

from adv_lib import attacks, data, dent, models
from adv_lib.evaluation import survivors
from adv_lib.suite import autoattack, doubts, every_target
from adv_lib.threat import Ball

BALLS = [Ball(math.inf, 0.1, (0, 1)), Ball(2, 0.6, (0, 1)), Ball(1, 2.0, (0, 1)), Ball(math.inf, 0.1)]
QUICK = {"steps": 10, "targets": 2, "queries": 40}
FOUR = ["APGD on the log-odds", "APGD, targeted", "FAB, targeted", "Square"]


@pytest.fixture(scope="module")
def digits():
    images = data.load("digits")
    return trained_on_digits(), images.x_test[:60], images.y_test[:60]


class Rounds(nn.Module):
    """Pixels in five levels: every gradient is 0."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x):
        return self.model((4 * x).round() / 4)


class Draws(Rounds):
    """Noise on every query."""

    def forward(self, x):
        return self.model(x + 0.1 * torch.randn_like(x))


class Whitens(Rounds):
    """The mean of the batch is taken off."""

    def forward(self, x):
        return self.model(x - x.mean(0, keepdim=True))


class Climbs(Rounds):
    """One step against its own log-odds before it answers, image by image."""

    def forward(self, x):
        with torch.enable_grad():
            at = x.detach().requires_grad_()
            (slope,) = torch.autograd.grad(self.model(at).logsumexp(1).sum(), at)
        return self.model(x + 0.01 * slope)


@pytest.mark.parametrize("ball", BALLS, ids=str)
def test_each_sample_falls_to_one_attack_and_comes_with_the_delta_that_broke_it(digits, ball):
    model, x, y = digits
    found = autoattack(model, x, y, ball, **QUICK)
    fallen = torch.stack(list(found.broken.values())).sum(0)
    assert list(found.broken) == (FOUR[:3] if ball.p == 1 else FOUR)
    assert torch.equal(found.right, survivors(model, x, y, ball))
    assert torch.equal(fallen, (found.right & ~found.survivors).long())  # never twice, nothing else
    assert 0 < found.survivors.sum() < found.right.sum()
    assert ball.contains(found.delta, x).all()
    still = survivors(model, (x + found.delta).clamp(*(ball.box or (-9, 9))), y, Ball(2, 0.0))
    assert torch.equal(still, found.survivors)
    assert (found.delta[found.survivors] == 0).all()
    assert found.robust_accuracy.count == found.survivors.sum()
    assert found.doubts == ()


def test_an_attack_is_asked_only_about_what_the_ones_before_have_left(digits, monkeypatch):
    model, x, y = digits
    asked = []

    def watching(attack):
        def watched(model, x, y, ball, **options):
            asked.append(len(x))
            return attack(model, x, y, ball, **options)

        return watched

    for name in ("apgd", "fab", "square"):
        monkeypatch.setattr(attacks, name, watching(getattr(attacks, name)))
    found = autoattack(model, x, y, BALLS[0], **QUICK)
    broke = [int(fell.sum()) for fell in found.broken.values()]
    assert asked[0] == found.right.sum()
    assert asked[1] == QUICK["targets"] * (asked[0] - broke[0])
    assert asked[2] == asked[1] - QUICK["targets"] * broke[1]
    assert asked[-1] == found.survivors.sum() + broke[-1]


def test_where_gradients_are_0_the_search_without_them_finds_what_the_others_miss(digits):
    model, x, y = digits
    found = autoattack(
        Rounds(model).eval(), x, y, Ball(math.inf, 0.13, (0, 1)), **QUICK | {"queries": 300}
    )
    assert found.broken["Square"].sum() > 5
    assert not any(found.broken[name].any() for name in FOUR[:2])


def test_large_logits_hide_nothing_from_it(digits):
    model, x, y = digits

    class Times200(Rounds):
        def forward(self, x):
            return 200 * self.model(x)

    plain, scaled = (autoattack(m, x, y, BALLS[0], **QUICK) for m in (model, Times200(model).eval()))
    assert (plain.survivors != scaled.survivors).sum() <= 1


@pytest.mark.parametrize("K", [2, 3, 4])
def test_few_classes_are_enough(K):
    W = torch.randn(K, 8, generator=seeded(0), dtype=torch.float64)

    def net(v):
        return (v - 0.5) @ W.T

    x = torch.rand(20, 8, generator=seeded(1), dtype=torch.float64)
    y = net(x).argmax(1)
    found = autoattack(net, x, y, Ball(math.inf, 0.3, (0, 1)), **QUICK)
    assert found.right.all()
    assert found.survivors.sum() < 20


def test_every_target_goes_through_the_wrong_classes_by_their_logits(digits):
    model, x, y = digits
    asked = []

    def towards(model, x, y, ball, goal):
        asked.append(goal)
        return torch.zeros_like(x)

    every_target(towards)(model, x, y, BALLS[0])
    goals, z = asked[0].view(len(x), 9), model(x).detach()
    assert (goals != y[:, None]).all()
    assert all(len(set(row.tolist())) == 9 for row in goals)
    values = z.gather(1, goals)
    assert (values[:, :-1] >= values[:, 1:]).all()


def test_every_target_keeps_the_first_that_breaks_a_sample():
    steps = torch.tensor([0.0, 0.05, 0.3, 0.4])  # how far it goes for each class

    def net(v):  # class 1 is ahead of class 0 from 0.1 on, class 2 from 0.2 on, and so on
        return torch.cat([0 * v, *(v - k / 10 for k in (1, 2, 3))], 1)

    def towards(model, x, y, ball, goal):
        return steps[goal][:, None]

    x, y = torch.zeros(5, 1), torch.zeros(5, dtype=torch.long)
    assert (every_target(towards)(net, x, y, Ball(2, 1.0)) == 0.3).all()
    assert (every_target(towards, 1)(net, x, y, Ball(2, 1.0)) == 0.05).all()


# ---- what must not be believed ----


@pytest.mark.parametrize(
    ("defense", "words"),
    [
        (Draws, ["draws at random"]),
        (Whitens, ["depends on the batch"]),
        (Climbs, ["adapts to its input"]),
        (Rounds, []),
    ],
)
def test_it_says_of_which_models_its_number_is_not_to_be_believed(digits, defense, words):
    model, x, _ = digits
    found = doubts(defense(model).eval(), x)
    assert len(found) == len(words)
    assert all(word in doubt for word, doubt in zip(words, found, strict=True))


def test_dent_adapts_and_leans_on_its_batch(digits):
    _, x, y = digits
    network = models.mlp([64, 20, 10], seeded(0), norm=True)
    defense = dent.Dent(network.eval(), lr=0.5)
    found = " ".join(doubts(defense, x))
    assert "adapts to its input" in found
    assert "depends on the batch" in found
    told = autoattack(defense, x[:6], y[:6], BALLS[0], steps=1, targets=1, queries=1)
    assert all(doubt in told._repr_markdown_() for doubt in told.doubts)
    assert told.doubts


# ---- a run that was killed ----


class Killed(Exception):
    pass


def test_a_run_that_was_killed_goes_on_and_ends_as_one_that_was_not(digits, tmp_path, monkeypatch):
    model, x, y = digits
    run = partial(autoattack, model, x, y, BALLS[0], **QUICK, checkpoint=tmp_path / "run.pt")
    whole = autoattack(model, x, y, BALLS[0], **QUICK)
    square, calls = attacks.square, []

    def dies(*_, **__):
        raise Killed

    monkeypatch.setattr(attacks, "square", dies)
    with pytest.raises(Killed):
        run()
    monkeypatch.setattr(attacks, "square", square)
    for name in ("apgd", "fab"):
        monkeypatch.setattr(attacks, name, lambda *_, **__: calls.append(1))
    resumed = run()
    assert not calls
    assert torch.equal(resumed.delta, whole.delta)
    assert all(torch.equal(resumed.broken[name], fell) for name, fell in whole.broken.items())
    monkeypatch.setattr(attacks, "square", dies)
    assert torch.equal(run().delta, whole.delta)  # done: nothing is asked again


def test_the_file_of_another_run_is_refused(digits, tmp_path):
    model, x, y = digits
    file = tmp_path / "run.pt"
    autoattack(model, x, y, BALLS[0], **QUICK, checkpoint=file)
    with pytest.raises(ValueError, match="another run than this autoattack"):
        autoattack(model, x[1:], y[1:], BALLS[0], **QUICK, checkpoint=file)
    with pytest.raises(ValueError, match="another run than this autoattack"):
        autoattack(model, x, y, BALLS[0], **QUICK | {"steps": 5}, checkpoint=file)
    file.write_text("no checkpoint")
    with pytest.raises(ValueError, match="not a checkpoint of autoattack"):
        autoattack(model, x, y, BALLS[0], **QUICK, checkpoint=file)


def test_the_table_adds_up(digits):
    model, x, y = digits
    found = autoattack(model, x, y, BALLS[0], **QUICK)
    lines = found._repr_markdown_().splitlines()
    assert lines[2].startswith("| none |")
    assert f"| {100 * found.robust_accuracy.value:.1f} |" in lines[-1]
    assert [line.split("|")[1].strip() for line in lines[3:]] == FOUR
