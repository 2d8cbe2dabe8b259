"""The tricks of adversarial training, as the page of reproduced results judges them."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from adv_lib import data
from adv_lib.comparison import Paired
from benchmarks import networks, recipe, results

LEVEL = {name: [[50.0] * recipe.SEEDS] * 3 for name in (*recipe.RECIPES, *recipe.CAPACITY)}


def judged(mean, low, high):
    """What the claims say where every difference is this one."""
    every = {pair: [Paired(mean, low, high, 0.0)] * 3 for pair in recipe.PAIRS}
    return {claim.what: claim.holds for claim in recipe.claims(LEVEL, LEVEL, every)}


def test_an_effect_needs_its_interval_on_the_published_side_and_no_effect_a_narrow_one():
    better, worse, none = judged(3, 1, 5), judged(-3, -5, -1), judged(0, -1.9, 1.9)
    told = [
        ("(ii) moderate label smoothing, 0.1 and 0.3: AutoAttack", better),
        ("(iii) attack in eval mode: clean accuracy up", better),
        ("(iii) attack in eval mode: robust accuracy about the same", none),
        ("(iv) an attack that stops early: AutoAttack down", worse),
        ("Adam in place of SGD: AutoAttack", worse),
        ("warm-up of the rate changes nothing: AutoAttack", none),
    ]
    for what, holds in told:
        assert [verdicts[what] for verdicts in (better, worse, none)] == [
            verdicts is holds for verdicts in (better, worse, none)
        ]


def test_smooth_activations_help_the_narrow_network_more_where_their_gains_differ():
    narrow = LEVEL | {"softplus 15": [[55.0 + i % 2 for i in range(recipe.SEEDS)]] * 3}
    every = {pair: [Paired(0, -1, 1, 1.0)] * 3 for pair in recipe.PAIRS}
    found = {claim.what: claim for claim in recipe.claims(LEVEL, narrow, every)}
    claim = found["(v) smooth activations add more where capacity is small"]
    assert claim.holds
    assert "softplus +5.5 and +0.0 points" in claim.ours
    assert not judged(0, -1, 1)[claim.what]


def test_every_claim_that_can_fail_says_why():
    every = {pair: [Paired(0, -math.inf, math.inf, 1.0)] * 3 for pair in recipe.PAIRS}
    assert all(claim.why and not claim.holds for claim in recipe.claims(LEVEL, LEVEL, every))


def test_the_kept_figures_are_those_of_the_claims():
    kept = [figure.what for figure in results.load("recipe")["figures"]]
    assert kept == list(judged(0, -1, 1))


@pytest.mark.parametrize("inner", list(recipe.INNERS))
def test_members_of_a_stack_end_where_they_would_end_alone(inner):
    digits = recipe.task(data.load("digits"), 120, 40, 1)
    small = replace(recipe.BASE, inner=inner, widths=(6,))
    other = replace(small, decay=2.0, activation=nn.SiLU)
    both, alone = recipe.trained([small, other], digits), recipe.trained([other], digits)
    for one, same in zip(both.members()[recipe.SEEDS :], alone.members(), strict=True):
        for a, b in zip(one.parameters(), same.parameters(), strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=2e-3)
    clean, weak, worst = recipe.judged(both, digits)
    assert len(clean) == 2 * recipe.SEEDS
    assert (worst <= weak).all()
    assert (weak <= clean).all()


def test_what_is_measured_is_kept_stack_by_stack(tmp_path, monkeypatch):
    monkeypatch.setattr(networks, "KEPT", tmp_path)
    digits = recipe.task(data.load("digits"), 120, 40, 1)
    some = {f"{share}": replace(recipe.BASE, widths=(6,), share=share) for share in (0.0, 0.1, 0.2, 0.3)}
    found, seconds = recipe.measured(some, digits, "some")
    assert sorted(path.name for path in tmp_path.glob("*.json")) == ["some_0.0.json", "some_0.3.json"]
    assert {name: [len(column) for column in columns] for name, columns in found.items()} == {
        name: [recipe.SEEDS] * 3 for name in some
    }
    assert recipe.measured(some, digits, "some") == (found, seconds)
