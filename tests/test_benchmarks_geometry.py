"""Fixed centres and other attacks, as the page of reproduced results judges them."""

import copy

import pytest
import torch
from torch import nn

from adv_lib import data
from adv_lib.mahalanobis import NearestCentre, centres
from adv_lib.stack import Stack
from benchmarks import geometry, networks, results
from benchmarks.results import FAILED, SMALLER

COLUMNS = [geometry.at(name, eps) for name in geometry.ALL for eps in geometry.RADII]
LEVEL = {name: dict.fromkeys(("silent", "clean", *COLUMNS), [50.0] * 3) for name in geometry.SETTINGS}
FIXED, AUTO, WORST = geometry.FIXED, geometry.at("AutoAttack"), geometry.at("worst case")
AHEAD = "MMC-10 is ahead of SCE: PGD-10, PGD-50"
TIED = "after PGD training MMC-10 is not ahead of SCE: AutoAttack"


def judged(changes):
    """The status of every claim where all has 50 % right but what (setting, column) names."""
    found = copy.deepcopy(LEVEL)
    for (name, column), values in changes.items():
        found[name][column] = values
    return {figure.what: figure for figure in geometry.claims(found)}


@pytest.mark.parametrize(
    ("ten", "fifty", "status"),
    [
        ([60, 61, 62], [60, 61, 62], SMALLER),
        ([60, 61, 62], [50, 50, 50], FAILED),
        ([40, 41, 42], [40, 41, 42], FAILED),
        ([80, 50, 51], [60, 61, 62], FAILED),  # ahead on average only
    ],
)
def test_a_lead_needs_its_interval_above_zero_under_both_attacks(ten, fifty, status):
    changes = {("MMC-10", geometry.at("PGD-10")): ten, ("MMC-10", geometry.at("PGD-50")): fifty}
    assert judged(changes)[AHEAD].status == status


@pytest.mark.parametrize(
    ("auto", "status"),
    [
        ([50, 50.5, 51], SMALLER),
        ([40, 41, 42], SMALLER),
        ([60, 61, 62], FAILED),
        ([45, 50, 55], FAILED),  # too wide to say
    ],
)
def test_no_lead_needs_a_narrow_interval_or_one_below_zero(auto, status):
    assert judged({(FIXED, AUTO): auto})[TIED].status == status


@pytest.mark.parametrize(("worst", "status"), [([0, 1, 5], SMALLER), ([0, 0, 6], FAILED)])
def test_mmc_is_broken_where_every_seed_is(worst, status):
    (claim,) = (f for what, f in judged({("MMC-10", WORST): worst}).items() if "breaks" in what)
    assert claim.status == status


def test_every_claim_that_can_fail_says_why():
    figures = judged({(FIXED, AUTO): [60, 61, 62]}).values()
    assert all(figure.status == FAILED and figure.why for figure in figures)


def test_the_kept_figures_are_those_of_the_claims():
    assert [figure.what for figure in results.load("geometry")["figures"]] == list(judged({}))


def test_the_gradient_is_lost_at_centres_of_length_10_and_not_of_length_1():
    def alone(norm):
        network = nn.Sequential(nn.Linear(9, 9), NearestCentre(centres(10, 9, norm)))
        with torch.no_grad():
            network[0].weight.copy_(norm * torch.eye(9))
            network[0].bias.zero_()
        return network

    x, y = centres(10, 9).float(), torch.arange(10)
    stack = Stack([alone(norm) for norm in (1.0, 10.0, 100.0)])
    assert geometry.silent(stack, x, y).double().mean(0).tolist() == [0, 1, 1]


@pytest.mark.parametrize(("name", "moved"), [("MMC-10", False), ("L-GM", True)])
def test_centres_move_in_training_where_they_are_learned(name, moved):
    digits = geometry.task(data.load("digits"), 120, 10, 2)
    setting = geometry.SETTINGS[name]
    for seed, member in enumerate(geometry.trained(setting, digits).members()):
        assert torch.equal(member[-1].centres, setting.last(seed).centres) is not moved


def test_settings_of_one_seed_begin_with_the_same_features():
    digits = geometry.task(data.load("digits"), 120, 10, 0)
    first, second = (geometry.trained(geometry.SETTINGS[n], digits) for n in ("SCE", "MMC-100"))
    for a, b in zip(first.members(), second.members(), strict=True):
        assert torch.equal(a[:-1](digits.x), b[:-1](digits.x))


def test_what_is_measured_is_kept_setting_by_setting_and_nothing_is_worse_than_the_worst(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(networks, "KEPT", tmp_path)
    monkeypatch.setattr(geometry, "AUTO", {"steps": 3, "queries": 10})
    digits = geometry.task(data.load("digits"), 300, 10, 3)
    some = {name: geometry.SETTINGS[name] for name in ("SCE", "MMC-10")}
    found, seconds = geometry.measured(some, digits, "some")
    assert sorted(path.name for path in tmp_path.glob("*.json")) == ["some_MMC-10.json", "some_SCE.json"]
    assert geometry.measured(some, digits, "some") == (found, seconds)
    for columns in found.values():
        assert set(columns) == {"silent", "clean", *COLUMNS}
        for eps in geometry.RADII:
            worst = columns[geometry.at("worst case", eps)]
            for name in geometry.ALL:
                assert all(a <= b for a, b in zip(worst, columns[geometry.at(name, eps)], strict=True))
