"""Detectors and reverse cross-entropy, as the page of reproduced results judges them."""

import copy
import math

import pytest
import torch

from adv_lib import data, losses
from adv_lib.detection import non_maximal_entropy
from benchmarks import detection, networks, results
from benchmarks.results import FAILED, SMALLER

NAMES = [name for attack in detection.PUBLISHED for name in detection.rows(attack)]
COLUMNS = [detection.at(name, score) for name in NAMES for score in detection.SCORES]
LEVEL = {loss: dict.fromkeys(COLUMNS, [50.0] * 3) for loss in detection.LOSSES}
NEAR, FAR = detection.rows("BIM")
SMALL = detection.Scale(
    30, 16, 12, other=100, kept=30, batch=40, neighbours=5, steps=4, cw=20, targets=2
)


def judged(changes):
    """The status of every claim where all AUCs are 50 but what (loss, attack, score) names."""
    found = copy.deepcopy(LEVEL)
    for (loss, name, score), values in changes.items():
        found[loss][detection.at(name, score)] = values
    return {figure.what: figure for figure in detection.claims(found)}


def claim(changes, said):
    (figure,) = (figure for what, figure in judged(changes).items() if said in what)
    return figure


@pytest.fixture(scope="module")
def digits():
    return detection.task(data.load("digits"), 1201, 596, 20)


@pytest.fixture(scope="module")
def reverse(digits):
    return detection.trained("RCE", digits)


@pytest.mark.parametrize(
    ("near", "far", "status"),
    [
        ([60, 61, 62], [60, 61, 62], SMALLER),
        ([60, 61, 62], [50, 50, 50], FAILED),
        ([50, 50, 50], [60, 61, 62], FAILED),
        ([40, 41, 42], [40, 41, 42], FAILED),
        ([80, 50, 51], [60, 61, 62], FAILED),  # ahead on average only
    ],
)
def test_a_gain_needs_its_interval_above_zero_at_both_radii(near, far, status):
    changes = {("RCE", NEAR, "non-ME"): near, ("RCE", FAR, "non-ME"): far}
    assert claim(changes, "BIM").status == status


@pytest.mark.parametrize(
    ("plain", "reversed_", "status"),
    [([0, 1, 5], [5, 0, 0], SMALLER), ([0, 0, 0], [0, 0, 6], FAILED), ([6, 0, 0], [0, 0, 0], FAILED)],
)
def test_confidence_is_near_zero_where_every_network_of_both_losses_is(plain, reversed_, status):
    changes = {("CE", "C&W-hc", "confidence"): plain, ("RCE", "C&W-hc", "confidence"): reversed_}
    assert claim(changes, "near 0").status == status


@pytest.mark.parametrize(("least", "status"), [(91, SMALLER), (89, FAILED)])
def test_the_density_is_above_where_every_network_is_under_every_attack(least, status):
    changes = {("RCE", name, "K-density"): [95, 96, 97] for name in NAMES}
    changes |= {("RCE", FAR, "K-density"): [99, 99, least]}
    figure = claim(changes, "K-density")
    assert figure.status == status
    assert status == SMALLER or f"8 of {len(NAMES)}" in figure.why


def test_every_claim_that_can_fail_says_why():
    figures = judged({}).values()
    assert all(figure.status == FAILED and figure.why for figure in figures)


def test_the_kept_figures_are_those_of_the_claims():
    assert [figure.what for figure in results.load("detection")["figures"]] == list(judged({}))


def test_a_network_of_rce_gives_the_label_and_thinks_the_others_alike(digits, reverse):
    assert len(reverse) == detection.SEEDS
    for network in reverse:
        with torch.no_grad():
            z = network(digits.x_test)
        assert losses.correct(z, digits.y_test).double().mean() > 0.8
        assert non_maximal_entropy(z).median() > 0.98 * math.log(9)


def test_the_density_keeps_so_many_training_images_of_each_predicted_class(digits, reverse):
    density = detection.detectors(reverse[0], "RCE", digits, SMALL)["K-density"]
    assert density.labels.bincount().tolist() == [SMALL.kept] * 10
    assert density.bandwidth**2 == pytest.approx(0.1 / 0.26)


def test_every_attack_of_the_table_is_run_on_images_of_its_own_number_within_its_radius(digits, reverse):
    found = {name: each for name, *each in detection.attacked(reverse[0], digits, SMALL)}
    assert set(found) == set(NAMES)
    for name, (x, y, delta) in found.items():
        few = {"JSMA": SMALL.fewest, "C&W": SMALL.few, "C&W-hc": SMALL.few}.get(name, SMALL.many)
        assert len(x) == len(y) == len(delta) == few
        assert (x + delta).min() >= -1e-6
        assert (x + delta).max() <= 1 + 1e-6
        if "ε" in name:
            assert delta.abs().max() <= float(name.split()[-1]) + 1e-6


def test_what_is_measured_is_kept_loss_by_loss_and_who_knows_more_does_no_worse(
    digits, tmp_path, monkeypatch
):
    monkeypatch.setattr(networks, "KEPT", tmp_path)
    monkeypatch.setattr(detection, "SEEDS", 2)
    monkeypatch.setattr(detection, "PUBLISHED", {"BIM": detection.PUBLISHED["BIM"]})
    monkeypatch.setattr(detection, "attacked", lambda *given: bim(*given))
    found, seconds = detection.measured(digits, SMALL, "some")
    assert sorted(path.name for path in tmp_path.glob("*.json")) == ["some_CE.json", "some_RCE.json"]
    assert detection.measured(digits, SMALL, "some") == (found, seconds)
    for columns in found.values():
        assert {len(values) for values in columns.values()} == {2}
        assert all(0 <= value <= 100 for values in columns.values() for value in values)
        wrong = columns[detection.at(detection.AWARE, detection.NOTHING)]
        for score in detection.PUBLISHED_SCORES:
            pgd, knows = (
                columns[detection.at(name, score)] for name in (detection.UNAWARE, detection.AWARE)
            )
            assert all(a <= b <= c for a, b, c in zip(pgd, knows, wrong, strict=True))
    assert detection.aucs(found).count("→") == 2 * 2 * len(detection.PUBLISHED_SCORES)
    assert len(detection.undetected(found).splitlines()) == 2 + 1 + len(detection.PUBLISHED_SCORES)


def bim(network, on, scale):
    x, y = on.x_test[: scale.many], on.y_test[: scale.many]
    for name, eps in zip(detection.rows("BIM"), (0.2, 0.3), strict=True):
        ball = detection.Ball(math.inf, eps, (0, 1))
        yield name, x, y, detection.attacks.bim(network, x, y, ball)
