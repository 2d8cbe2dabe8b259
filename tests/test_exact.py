"""Exact verification: three independent answers agree, witnesses are real, no word is ever wrong."""

import itertools
import math
import os
from dataclasses import fields

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import (
    BOX,
    NETWORKS,
    ORDERS,
    Case,
    entries,
    inputs,
    layers_of,
    minimum_by_patterns,
    minimum_of_pattern,
    network,
    on_patch,
    orders,
    problem,
    seeded,
    seeds,
    towards,
    trained_on_digits,
)
from torch import nn

from adv_lib import _work, attacks, bounds, branching, exact, leaves, linear, losses, models
from adv_lib.affine import affine_pieces
from adv_lib.exact import TOLERANCE
from adv_lib.threat import Ball

MIP = 1e-4  # what the solver's own tolerances leave of the answer by "mip"
ROUNDING = 1e-9
each_kind = pytest.mark.parametrize("kind", NETWORKS)
METHODS = ("dual", *exact.SOLVERS)
LADDERS = {"dual": exact.LADDER, "programs": exact.PROGRAMS}
each_method = pytest.mark.parametrize("method", METHODS)
each_ladder = pytest.mark.parametrize("stages", LADDERS.values(), ids=LADDERS)
each_p = pytest.mark.parametrize("p", ORDERS)
boxes = st.sampled_from([None, BOX])
cubes = st.sampled_from([0.0, 0.02, 0.1, 0.4])


def case(kind="deep mlp", seed=0, eps=0.2, box=BOX, n=2, right=False, each_eps=False, p=math.inf):
    """A random network of this kind, inputs, labels (what it says of x, if right), and a ball."""
    model, shape = network(kind, seed).requires_grad_(False), NETWORKS[kind][0]
    x = inputs((n, *shape), seed) if box else entries((n, *shape), seed, "plain")
    z = model(x)
    y = z.argmax(1) if right else torch.randint(0, z.shape[1], (n,), generator=seeded(seed))
    if each_eps:
        eps = eps * torch.rand(n, generator=seeded(seed), dtype=torch.float64)
    return model, x, y, Ball(p, eps, box)


def hard(seed=0, n=2, eps=0.2, K=3, p=math.inf):
    """A network with so many unstable units that the search has something to do, and its own labels."""
    model, x, _, ball = problem(seed, (4,), n, p, eps, K=K, hidden=(12, 12), scale=2)
    model.requires_grad_(False)
    return model, x, model(x).argmax(1), ball


def differences(z, y):
    """z_y − z_k for every class k, +∞ at k = y."""
    margin = z.gather(1, y[:, None]) - z
    return margin.masked_fill(nn.functional.one_hot(y, z.shape[1]).bool(), math.inf)


def cube(x, ball):
    """The ends of [x − ε, x + ε] ∩ [lo, hi], by no method of Ball."""
    eps = torch.as_tensor(ball.eps, dtype=x.dtype).reshape(-1, 1)
    lo, hi = ball.box or (-math.inf, math.inf)
    rows = x.flatten(1)
    return (rows - eps).clamp(min=lo), (rows + eps).clamp(max=hi)


def anywhere(x, ball, count, seed=0):
    """(count, n, *shape): points of the ball around every x, a third of a cube's entries at its ends."""
    if ball.p != math.inf:
        return x + Case(ball, x, x if ball.box else None).points(count).reshape(-1, *x.shape)
    lower, upper = cube(x, ball)
    share = torch.rand(count, *lower.shape, generator=seeded(seed), dtype=x.dtype)
    share = (1.5 * share - 0.25).clamp(0, 1)
    return (lower + share * (upper - lower)).reshape(count, *x.shape)


def equal(a, b):
    """Whether two answers agree in all that they hold, up to the last digits of a sum."""
    pairs = [(getattr(a, f.name), getattr(b, f.name)) for f in fields(a)]
    near = {"rtol": 0, "atol": ROUNDING}
    return all(torch.allclose(u, v, **near) if torch.is_tensor(u) else u == v for u, v in pairs)


# ---- independent answers ----


@settings(max_examples=20)
@given(st.sampled_from([[2, 5, 3], [3, 3, 3, 3], [2, 2, 2, 2, 2]]), seeds, boxes, cubes)
def test_both_searches_and_the_integer_program_find_the_minimum_over_all_patterns_of_on_and_off(
    widths, seed, box, eps
):
    """An answer that knows none of them: one linear program for each of the 2ⁿ patterns."""
    model = models.mlp(widths, seeded(seed)).double().requires_grad_(False)
    for weight in model.parameters():
        weight *= 2
    x = (inputs if box else lambda s, seed: entries(s, seed, "plain"))((1, widths[0]), seed)
    y, ball = torch.tensor([seed % widths[-1]]), Ball(math.inf, eps, box)
    searches = [exact.margins(model, x, y, ball, method=m, jobs=1) for m in ("dual", "search")]
    solved = exact.margins(model, x, y, ball, method="mip", jobs=1)
    assert all(searched.closed.all() for searched in searches)
    lower, upper = (end[0].numpy() for end in cube(x, ball))
    for k in range(widths[-1]):
        if k == y:
            continue
        c = np.eye(widths[-1])[y[0]] - np.eye(widths[-1])[k]
        least = minimum_by_patterns(layers_of(model), lower, upper, c)
        for searched in searches:
            assert searched.margins[0, k].item() == pytest.approx(least, abs=TOLERANCE)
            assert searched.margins[0, k] <= least + ROUNDING
            assert searched.attained[0, k] >= least - ROUNDING
        assert solved.margins[0, k].item() == pytest.approx(least, abs=MIP)
        assert solved.attained[0, k].item() == pytest.approx(least, abs=MIP)


@each_kind
@settings(max_examples=3)
@given(seeds, boxes, cubes)
def test_all_methods_agree_on_networks_of_every_kind(kind, seed, box, eps):
    model, x, y, ball = case(kind, seed, eps, box)
    dual, search, mip = (exact.margins(model, x, y, ball, method=m, jobs=1) for m in METHODS)
    for other, slack in ((dual, 2 * TOLERANCE), (mip, MIP)):
        torch.testing.assert_close(search.margins, other.margins, rtol=0, atol=slack)
        torch.testing.assert_close(search.attained, other.attained, rtol=0, atol=slack)


@settings(max_examples=12)
@given(
    st.sampled_from(["mlp", "deep mlp", "convolution", "BatchNorm", "without a bias"]),
    seeds,
    st.sampled_from([1, 2]),
    boxes,
    st.sampled_from(["one", "each sample", "each entry"]),
)
def test_for_p_1_and_2_the_search_finds_the_minimum_over_all_patterns_too(kind, seed, p, box, radius):
    """One convex program for each pattern that the layer bounds allow, by another solver."""
    model, x, y, ball = case(kind, seed, 0.3, box, n=2, p=p)
    if radius == "each sample":
        ball = Ball(p, torch.tensor([0.2, 0.5]).double(), box)
    if radius == "each entry":
        ball = Ball(p, 0.1 + 0.4 * torch.rand(x.shape, generator=seeded(seed)).double(), box)
    found, pieces = exact.margins(model, x, y, ball, jobs=1), affine_pieces(model, x.shape[1:])
    assert found.closed.all()
    layers = bounds.pre_activations(model, x, ball, "crown")
    k = int(y[0] == 0)
    one = ball.subset(torch.tensor([0]))
    choices = [
        (True, False) if l < 0 < u else (l >= 0,)
        for lower, upper in layers
        for l, u in zip(lower[0].flatten().tolist(), upper[0].flatten().tolist(), strict=True)
    ]
    if math.prod(map(len, choices)) > 64:
        return
    c = towards(y, model(x).shape[1])[0, k]
    least = min(
        minimum_of_pattern(pieces, x[:1], one, c, torch.tensor(on)) for on in itertools.product(*choices)
    )
    assert found.margins[0, k].item() == pytest.approx(least, abs=10 * TOLERANCE)
    assert ball.contains(found.delta[:, k], x).all()


@settings(max_examples=8)
@given(seeds, boxes, cubes)
def test_without_a_relu_the_margins_are_those_of_a_linear_model(seed, box, eps):
    model, x, y, ball = case("linear", seed, eps, box, n=3, each_eps=True)
    expected = linear.margins(*linear.weights(model), x, y, ball)
    for method in METHODS:
        found = exact.margins(model, x, y, ball, method=method, jobs=1)
        torch.testing.assert_close(found.margins, expected, rtol=0, atol=ROUNDING)
        torch.testing.assert_close(found.attained, expected, rtol=0, atol=ROUNDING)
    certified = linear.certified(*linear.weights(model), x, y, ball)
    clear = expected.amin(1).abs() > 2 * TOLERANCE
    for stages in (*LADDERS.values(), ["branches"], ["search"], ["crown"]):
        answer = exact.certify(model, x, y, ball, stages=stages, jobs=1)
        assert torch.equal(answer.are("robust")[clear], certified[clear])


@each_method
@pytest.mark.parametrize("shift", [-50.0, 50.0])
def test_where_no_unit_is_unstable_one_case_is_enough(shift, method):
    """All units off: the logits are the last bias. All on: a linear model."""
    model, x, y, ball = case("mlp", 0)
    (W, _), (V, a) = layers_of(model)
    model[1].bias.fill_(shift)
    on = float(shift > 0)
    product, offset = torch.from_numpy(on * V @ W), torch.from_numpy(on * V.sum(1) * shift + a)
    found = exact.margins(model, x, y, ball, method=method, jobs=1)
    expected = linear.margins(product, offset, x, y, ball)
    torch.testing.assert_close(found.margins, expected, rtol=0, atol=ROUNDING)
    assert (found.nodes <= 1).all()
    assert found.closed.all()


# ---- the witness ----


@each_kind
@settings(max_examples=3)
@given(seeds, boxes, cubes, st.booleans())
def test_the_witness_is_allowed_and_reaches_what_is_attained(kind, seed, box, eps, each_eps):
    model, x, y, ball = case(kind, seed, eps, box, each_eps=each_eps)
    for method in METHODS:
        found = exact.margins(model, x, y, ball, method=method, jobs=1)
        K = model(x).shape[1]
        assert (found.delta.shape, found.delta.dtype) == ((2, K, *x.shape[1:]), x.dtype)
        assert (found.margins <= found.attained).all()
        for k in range(K):
            delta, others = found.delta[:, k], y != k
            assert ball.contains(delta, x).all()
            assert (delta[~others] == 0).all()
            if box:
                assert ((x + delta >= 0) & (x + delta <= 1)).all()
            reached = differences(model(x + delta), y)[:, k]
            torch.testing.assert_close(reached[others], found.attained[others, k], rtol=0, atol=ROUNDING)
        assert torch.equal(found.attained == math.inf, nn.functional.one_hot(y, K).bool())
        if method != "mip":
            assert found.closed.all()


@each_p
def test_a_witness_in_float32_is_allowed_in_float32_and_reaches_it_up_to_rounding(p):
    for box, method in itertools.product((None, BOX), ("dual", None)):
        model, x, y, ball = case(n=4, box=box, p=p)
        model, x = model.float(), x.float()
        found = exact.margins(model, x, y, ball, method=method)
        assert (found.margins.dtype, found.attained.dtype) == (torch.float64, torch.float64)
        assert found.delta.dtype == torch.float32
        for k in range(4):
            delta, others = found.delta[:, k], y != k
            assert ball.contains(delta, x).all()
            reached = differences(model(x + delta), y)[others, k].double()
            torch.testing.assert_close(reached, found.attained[others, k], rtol=0, atol=1e-5)


# ---- hard searches and limits ----


def test_a_search_that_needs_many_nodes_ends_with_the_minimum():
    for seed in range(5):
        model, x, y, ball = hard(seed, eps=0.4)
        found = exact.margins(model, x, y, ball, jobs=1)
        passed = exact.margins(model, x, y, ball, method="dual", jobs=1)
        for searched in (found, passed):
            assert searched.nodes.max() > 5
            assert searched.closed.all()
        torch.testing.assert_close(found.margins, passed.margins, rtol=0, atol=2 * TOLERANCE)
        solved = exact.margins(model, x, y, ball, method="mip", jobs=1)
        torch.testing.assert_close(found.margins, solved.margins, rtol=0, atol=MIP)
        relaxed = bounds.margins(model, x, y, ball, "lp", jobs=1)
        assert (relaxed < found.margins - 0.01).any()


@each_method
@pytest.mark.parametrize("limit", [1, 2, 5, 20, 100])
def test_any_node_limit_leaves_both_ends_true_and_is_kept(method, limit):
    for seed in range(3):
        model, x, y, ball = hard(seed, eps=0.4)
        full = exact.margins(model, x, y, ball, jobs=1)
        cut = exact.margins(model, x, y, ball, method=method, node_limit=limit, jobs=1)
        slack = MIP if method == "mip" else ROUNDING
        if method != "mip":
            assert (cut.nodes.sum(1) <= max(limit, 2)).all()  # at least one for each of two classes
        assert (cut.margins <= full.attained + slack).all()
        assert (cut.attained >= full.margins - slack).all()
        assert (cut.margins > -math.inf).all()
        for k in range(3):
            assert ball.contains(cut.delta[:, k], x).all()
        if limit == 1 and method != "mip":
            assert not cut.closed.all()


def test_a_class_leaves_what_it_does_not_need_to_the_next_one():
    """Of K = 3 classes one is asked about first: half of the nodes are its, and the rest the other's."""
    gained = 0
    for seed in range(4):
        model, x, y, ball = hard(seed, n=3, eps=0.3)
        full = exact.margins(model, x, y, ball, jobs=1).nodes
        for i, needs in enumerate(full):
            first, second = [n for k, n in enumerate(needs.tolist()) if k != y[i]]
            one = model, x[i : i + 1], y[i : i + 1], ball
            enough = exact.margins(*one, node_limit=max(2 * first, first + second), jobs=1)
            assert enough.closed.all()
            gained += second > first
    assert gained  # else an equal share for each would do


@each_method
@pytest.mark.parametrize("limit", [1, 7, None])
def test_the_same_limit_gives_the_same_answer_twice_and_on_several_threads(method, limit):
    model, x, y, ball = hard(2, n=3, eps=0.3)
    runs = [
        exact.margins(model, x, y, ball, method=method, node_limit=limit, jobs=jobs)
        for jobs in (1, 1, 2)
    ]
    for field in fields(runs[0]):
        assert torch.equal(getattr(runs[0], field.name), getattr(runs[1], field.name))
    assert equal(runs[0], runs[2])  # the searches share batches, whose sums may round in another way


@each_method
def test_a_patch_is_a_network_that_sees_nothing_else(method):
    model, x, y, _ = problem(1, (2, 3), 1, hidden=(6, 5), scale=3)
    model.requires_grad_(False)
    free = torch.tensor([[[1, 1, 0], [0, 1, 0]]], dtype=torch.bool)
    ball = Ball(math.inf, 0.3 * free, BOX)
    found = exact.margins(model, x, y, ball, method=method)
    alone = exact.margins(
        on_patch(model, x, free), x[free][None], y, Ball(math.inf, 0.3, BOX), method=method
    )
    assert found.closed.all()
    torch.testing.assert_close(found.margins, alone.margins, rtol=MIP, atol=MIP)
    assert (found.delta[..., ~free[0]] == 0).all()
    assert all(ball.contains(delta, x).all() for delta in found.delta.unbind(1))


def test_with_a_radius_for_each_pixel_bounds_lie_below_the_minimum_attacks_above_and_words_are_right():
    model, x, y, _ = problem(2, (2, 4), 12, hidden=(8, 6), scale=2)
    model.requires_grad_(False)
    y = model(x).argmax(1)
    mask = (torch.rand(x.shape, generator=seeded(3), dtype=torch.float64) - 0.4).clamp(min=0)
    ball = Ball(math.inf, mask, BOX)
    least = exact.margins(model, x, y, ball)
    for method in bounds.METHODS:
        assert (bounds.margins(model, x, y, ball, method) <= least.attained + 1e-6).all()
    for attack in (attacks.pgd, attacks.apgd, attacks.square):
        delta = attack(model, x, y, ball)
        assert (differences(model(x + delta), y) >= least.margins - ROUNDING).all()
    for stages in LADDERS.values():
        words = exact.certify(model, x, y, ball, stages=stages)
        assert 0 < words.are("broken").sum() < len(x)
        assert torch.equal(words.are("robust"), least.margins.amin(1) > TOLERANCE)
        assert ball.contains(words.delta, x).all()


def test_closed_means_known_up_to_the_tolerance():
    inf = math.inf
    made = exact.Margins(
        torch.tensor([[inf, 1.0, 1.0, -inf]]),
        torch.tensor([[inf, 1 + TOLERANCE / 2, 1.1, 0.0]]).double(),
        torch.zeros(1, 4, 1),
        torch.zeros(1, 4),
    )
    assert made.closed.tolist() == [[True, True, False, False]]


# ---- certificates ----


def assert_true(answer, model, x, y, ball, count=300, slack=ROUNDING, stages=None):
    """What an answer says of each sample is so, as far as points of the ball and an attack can tell."""
    broken, robust = answer.are("broken"), answer.are("robust")
    assert set(answer.status) <= {"robust", "broken", "unknown"}
    assert set(answer.stage) <= set(exact.LADDER if stages is None else stages)
    assert ball.contains(answer.delta, x).all()
    assert (answer.delta[~broken] == 0).all()
    assert (losses.margin_loss(model(x + answer.delta), y)[broken] >= 0).all()
    moved = anywhere(x, ball, count)
    lead = losses.margin(model(moved.flatten(0, 1)), y.repeat(len(moved))).reshape(-1, len(x)).amin(0)
    delta = attacks.pgd(model, x, y, ball, steps=100)
    lead = lead.minimum(losses.margin(model(x + delta), y))
    assert (lead[robust] > 0).all()
    assert (answer.margins <= lead + slack).all()
    assert (answer.margins[robust] > TOLERANCE).all()


@each_kind
@settings(max_examples=4)
@given(seeds, orders, boxes, cubes, st.booleans(), st.booleans())
def test_no_word_is_wrong(kind, seed, p, box, eps, right, each_eps):
    model, x, y, ball = case(kind, seed, eps, box, n=3, right=right, each_eps=each_eps, p=p)
    for stages in LADDERS.values() if p == math.inf else [exact.LADDER]:
        answer = exact.certify(model, x, y, ball, stages=stages, jobs=1)
        assert_true(answer, model, x, y, ball, stages=stages)


def assert_signs(answer, found):
    """The words of a certificate are the signs of the exact margins, and none is withheld."""
    least, reached = found.margins.amin(1), found.attained.amin(1)
    for word, low, high in zip(answer.status, least, reached, strict=True):
        if low > 2 * TOLERANCE:
            assert word == "robust"
        if high < -2 * TOLERANCE:
            assert word == "broken"
    assert (answer.margins <= reached + ROUNDING).all()


@each_kind
@settings(max_examples=3)
@given(seeds, orders, boxes, cubes)
def test_the_words_are_the_signs_of_the_exact_margins(kind, seed, p, box, eps):
    model, x, y, ball = case(kind, seed, eps, box, n=3, right=True, p=p)
    found = exact.margins(model, x, y, ball, jobs=1)
    for stages in LADDERS.values() if p == math.inf else [exact.LADDER]:
        assert_signs(exact.certify(model, x, y, ball, stages=stages, jobs=1), found)


def test_they_are_the_signs_where_several_classes_need_the_search():
    robust_after_two = 0
    for seed, eps in ((2, 0.15), (21, 0.25), (28, 0.25)):
        model, x, y, ball = hard(seed, n=4, eps=eps, K=10)
        found = exact.margins(model, x, y, ball, jobs=1)
        for stages in LADDERS.values():
            answer = exact.certify(model, x, y, ball, stages=stages, jobs=1)
            assert_signs(answer, found)
        left = (bounds.margins(model, x, y, ball, "lp", jobs=1) <= 0).sum(1)
        robust_after_two += (answer.are("robust") & (left >= 2)).sum().item()
    assert robust_after_two  # else this asks too little


@each_ladder
def test_all_stages_answer_and_the_proved_margin_is_that_of_the_smallest_class(stages):
    """A class that only intervals looked at can have a smaller margin than those asked about again."""
    seen = set()
    for seed, eps in itertools.product(range(7), (0.02, 0.1, 0.15)):
        model, x, y, ball = hard(seed, n=4, eps=eps)
        answer = exact.certify(model, x, y, ball, stages=stages, jobs=1)
        found = exact.margins(model, x, y, ball, jobs=1)
        assert (answer.margins <= found.attained.amin(1) + ROUNDING).all()
        seen |= {*zip(answer.status, answer.stage, strict=True)}
        searched = torch.tensor([stage == stages[-1] for stage in answer.stage])
        assert (answer.nodes[searched] > 0).all()
        assert (answer.nodes[~searched] == 0).all()
        cheap = bounds.margins(model, x, y, ball).amin(1)
        assert (answer.margins >= cheap).all()
    assert seen >= {("broken", "attack")} | {("robust", name) for name in stages if name != "attack"}


def test_only_the_stages_that_are_asked_for_run_and_in_their_order():
    model, x, y, ball = hard(0, n=6, eps=0.1)
    full = exact.certify(model, x, y, ball, jobs=1)
    for stages in (["crown", "attack"], ["attack", "slopes"], ["branches", "interval"]):
        answer = exact.certify(model, x, y, ball, stages=stages, jobs=1)
        assert set(answer.stage) <= set(stages)
        for word, other in zip(answer.status, full.status, strict=True):
            assert word in ("unknown", other)
    for stages in (["branches"], ["search"]):
        answer = exact.certify(model, x, y, ball, stages=stages, jobs=1)
        assert answer.status == full.status
        assert answer.stage == tuple(stages * 6)


def test_the_table_counts_the_words_of_each_stage():
    model, x, y, ball = hard(0, n=12, eps=0.1)
    answer = exact.certify(model, x, y, ball, node_limit=1, jobs=1)
    rows = answer.table()
    assert [row[0] for row in rows] == [name for name in exact.LADDER if name in answer.stage]
    for name, *counts in rows:
        words = [w for w, stage in zip(answer.status, answer.stage, strict=True) if stage == name]
        assert counts == [words.count(word) for word in exact.WORDS]
    assert sum(sum(row[1:]) for row in rows) == 12


@each_ladder
def test_what_the_attacks_miss_the_search_finds(monkeypatch, stages):
    monkeypatch.setattr(attacks, "pgd", lambda model, x, y, ball, **options: torch.zeros_like(x))
    monkeypatch.setattr(attacks, "apgd", lambda model, x, y, ball, **options: torch.zeros_like(x))
    found = set()
    for seed in range(4):
        model, x, y, ball = hard(seed, n=4)
        answer = exact.certify(model, x, y, ball, stages=stages, jobs=1)
        assert_true(answer, model, x, y, ball, stages=stages)
        found |= {*zip(answer.status, answer.stage, strict=True)}
    assert ("broken", stages[-1]) in found
    assert "attack" not in {stage for _, stage in found}


def test_ten_thousand_points_and_a_long_attack_contradict_no_certificate():
    for seed, p in enumerate((math.inf, 2, 1)):
        model, x, y, ball = hard(seed, n=10, eps=0.15, p=p)
        assert_true(exact.certify(model, x, y, ball, jobs=1), model, x, y, ball, count=10_000)


def test_what_is_misclassified_or_tied_is_broken_without_moving():
    model = models.linear(2, 3).double().requires_grad_(False)
    model[1].weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]]))
    model[1].bias.zero_()
    x = torch.tensor([[0.9, 0.2], [0.5, 0.5], [0.2, 0.9]]).double()
    answer = exact.certify(model, x, torch.zeros(3, dtype=torch.int64), Ball(math.inf, 0.0))
    assert answer.status == ("robust", "broken", "broken")
    assert (answer.delta == 0).all()
    torch.testing.assert_close(answer.margins, torch.tensor([0.7, 0.0, -0.7]).double())
    narrow = exact.certify(model, x, torch.zeros(3, dtype=torch.int64), Ball(math.inf, 0.3))
    assert narrow.status == ("robust", "broken", "broken")
    touched = exact.certify(model, x[:1], torch.tensor([0]), Ball(math.inf, 0.375))
    assert touched.status == ("broken",)


@settings(max_examples=15)
@given(seeds, orders, boxes)
def test_a_ball_of_radius_0_asks_whether_x_is_right(seed, p, box):
    model, x, y, ball = case("deep mlp", seed, 0.0, box, n=4, p=p)
    answer = exact.certify(model, x, y, ball, jobs=1)
    right = losses.margin_loss(model(x), y) < 0
    assert torch.equal(answer.are("robust"), right)
    assert torch.equal(answer.are("broken"), ~right)
    least = differences(model(x), y).amin(1)
    torch.testing.assert_close(answer.margins, least, rtol=0, atol=ROUNDING)


@each_p
def test_every_sample_is_judged_by_its_own_radius_as_it_would_be_alone(p):
    model, x, y, _ = case("mlp", 4, n=6, right=True)
    eps = torch.tensor([0.0, 0.01, 0.05, 0.1, 0.3, 1.0]).double()
    together = exact.certify(model, x, y, Ball(p, eps, BOX))
    found = exact.margins(model, x, y, Ball(p, eps, BOX), method="dual")
    for i in range(6):
        one = (model, x[i : i + 1], y[i : i + 1], Ball(p, eps[i].item(), BOX))
        alone = exact.certify(*one)
        assert together.status[i : i + 1] == alone.status
        torch.testing.assert_close(together.margins[i : i + 1], alone.margins)
        assert torch.equal(together.nodes[i : i + 1], alone.nodes)
        torch.testing.assert_close(
            found.margins[i : i + 1], exact.margins(*one, method="dual").margins, rtol=0, atol=TOLERANCE
        )
    assert len(set(together.status)) == 2


@each_ladder
@pytest.mark.parametrize("limit", [1, 20])
def test_too_few_nodes_make_samples_unknown_and_no_word_wrong(limit, stages):
    words = set()
    for seed in range(5):
        model, x, y, ball = hard(seed, n=3, eps=0.2)
        options = {"stages": stages, "node_limit": limit}
        cut = exact.certify(model, x, y, ball, **options, jobs=1)
        assert equal(cut, exact.certify(model, x, y, ball, **options, jobs=2))
        assert (cut.nodes <= limit).all()
        full = exact.certify(model, x, y, ball, stages=stages, jobs=1)
        words |= {*zip(cut.status, full.status, strict=True)}
        assert_true(cut, model, x, y, ball, stages=stages)
    assert words <= {(w, w) for w in ("robust", "broken")} | {
        ("unknown", w) for w in ("robust", "broken", "unknown")
    }
    if (
        limit == 1 and stages is exact.PROGRAMS
    ):  # one case of the dual is an ascent, which is enough here
        assert "unknown" in {word for word, _ in words}


@each_p
def test_any_limit_in_seconds_leaves_true_words(monkeypatch, p):
    """The clocks tick once a look; seconds are looks."""
    clock = itertools.count().__next__
    for module, name in ((exact, "time"), (leaves, "time"), (branching, "monotonic")):
        monkeypatch.setattr(module, name, clock)
    left = []
    for seconds in (1, 8, 10_000):
        unknown = 0
        model, x, y, ball = hard(0, n=3, eps=0.2 if p == math.inf else 0.5, p=p)
        for stages in [exact.LADDER] + [exact.PROGRAMS] * (p == math.inf):
            options = {"stages": stages, "seconds": seconds, "jobs": 1}
            answer = exact.certify(model, x, y, ball, **options)
            assert_true(answer, model, x, y, ball, stages=stages)
            unknown += answer.status.count("unknown")
        left.append(unknown)
    assert left == sorted(left, reverse=True)
    assert left[-1] == 0


def test_little_room_for_cases_that_wait_changes_no_minimum(monkeypatch):
    for seed, p in enumerate(ORDERS):
        model, x, y, ball = hard(seed, n=1, eps=0.2, p=p)
        plain = exact.margins(model, x, y, ball, method="dual", jobs=1)
        with monkeypatch.context() as patch:
            patch.setattr(branching, "ROOM", 3)
            found = exact.margins(model, x, y, ball, method="dual", jobs=1)
        assert found.closed.all()
        torch.testing.assert_close(found.margins, plain.margins, rtol=0, atol=2 * TOLERANCE)


def test_a_larger_limit_leaves_no_more_samples_unknown():
    left = []
    for limit in (1, 3, 10, 30, None):
        unknown = 0
        for seed in range(5):
            model, x, y, ball = hard(seed, n=3, eps=0.2, K=4)
            answer = exact.certify(model, x, y, ball, node_limit=limit, jobs=1)
            unknown += answer.status.count("unknown")
        left.append(unknown)
    assert left == sorted(left, reverse=True)
    assert left[0] > left[-1] == 0


def test_are_picks_the_samples_with_a_status():
    answer = exact.Certificates(("robust", "broken", "robust"), ("lp",) * 3, *(torch.zeros(3, 1),) * 3)
    assert answer.are("robust").tolist() == [True, False, True]
    assert answer.are("unknown").tolist() == [False] * 3


# ---- the units of the hidden layers ----


def in_other_units(model, sizes):
    """The same function: each hidden layer multiplied by a number, the next one divided by it."""
    linear, before = [layer for layer in model if isinstance(layer, nn.Linear)], 1.0
    for layer, size in zip(linear, [*sizes, 1.0], strict=True):
        layer.weight *= size / before
        layer.bias *= size
        before = size
    return model


units = st.sampled_from([1e-8, 1e-4, 1.0, 1e4, 1e8])


@settings(max_examples=6)
@given(seeds, st.tuples(units, units))
def test_no_answer_depends_on_the_units_of_the_hidden_layers(seed, sizes):
    model, x, y, ball = hard(seed, n=1, eps=0.1)
    plain = {
        **{
            stages: exact.certify(model, x, y, ball, stages=stages, jobs=1)
            for stages in LADDERS.values()
        },
        **{method: exact.margins(model, x, y, ball, method=method, jobs=1) for method in METHODS},
        **{f"by {m}": bounds.margins(model, x, y, ball, m, jobs=1) for m in bounds.METHODS},
    }
    in_other_units(model, sizes)
    for stages in LADDERS.values():
        assert exact.certify(model, x, y, ball, stages=stages, jobs=1).status == plain[stages].status
    for method in METHODS:
        found = exact.margins(model, x, y, ball, method=method, jobs=1)
        assert found.closed.all()
        assert (found.margins <= found.attained).all()
        torch.testing.assert_close(found.margins, plain[method].margins, rtol=0, atol=2 * TOLERANCE)
    for method in bounds.METHODS:
        found = bounds.margins(model, x, y, ball, method, jobs=1)
        torch.testing.assert_close(found, plain[f"by {method}"], rtol=1e-6, atol=TOLERANCE)


def in_units_of(s):
    """Two inputs, two hidden units of size s, two classes."""
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2)).double().requires_grad_(False)
    model[0].weight.copy_(s * torch.tensor([[1.0, 1.0], [1.0, -1.0]]))
    model[0].bias.copy_(s * torch.tensor([-0.5, 0.1]))
    model[2].weight.copy_(torch.tensor([[1.0, 1.0], [-1.0, 2.0]]) / s)
    model[2].bias.copy_(torch.tensor([0.3, 0.0]))
    return model, torch.tensor([[0.4, 0.5]]).double(), torch.tensor([0]), Ball(math.inf, 0.3, BOX)


def test_units_that_are_tiny_prove_nothing_false():
    """The smallest margin is 0.1 whatever s is; tolerances that are absolute once made it 0.3."""
    for s in (1e-8, 1e-7, 1.0, 1e8, 1e15):
        model, x, y, ball = in_units_of(s)
        for method in METHODS:
            found = exact.margins(model, x, y, ball, method=method)
            assert found.margins[0, 1].item() == pytest.approx(0.1, abs=TOLERANCE)
            assert found.closed.all()
        for stages in LADDERS.values():
            assert exact.certify(model, x, y, ball, stages=stages).status == ("robust",)
        assert bounds.margins(model, x, y, ball, "lp")[0, 1].item() == pytest.approx(-0.1, abs=TOLERANCE)


def nearly_cancelling(seed, apart):
    """Units that see the difference of two units that are equal up to `apart`: all that counts."""
    model = models.mlp([3, 4, 4, 3], seeded(seed))[1:].double().requires_grad_(False)
    first, second, last = (model[i] for i in (0, 2, 4))
    difference = torch.randn(2, 3, generator=seeded(seed), dtype=torch.float64)
    first.weight[1::2] = first.weight[::2] + apart * difference
    first.bias.fill_(4.0)
    second.weight.copy_(torch.tensor([[1.0, -1, 0, 0], [0, 0, 1, -1], [-1, 1, 0, 0], [0, 0, -1, 1]]))
    second.bias.fill_(0.1 * apart)
    last.weight /= max(apart, 1e-8)
    return model, torch.rand(1, 3, generator=seeded(seed), dtype=torch.float64)


@pytest.mark.parametrize("apart", [0.0, 1e-8, 1e-6, 1e-3])
def test_nothing_false_is_proved_of_units_that_cancel_each_other(apart):
    for seed in range(6):
        model, x = nearly_cancelling(seed, apart)
        y, ball = model(x).argmax(1), Ball(math.inf, 0.3, BOX)
        z = model(anywhere(x, ball, 4000).flatten(0, 1))
        reached = (
            (z.gather(1, y.expand(len(z), 1)) - z).amin(0).masked_fill(torch.arange(3) == y, math.inf)
        )
        for method in METHODS:
            found = exact.margins(model, x, y, ball, method=method, node_limit=500, jobs=1)
            assert (found.margins[0] <= reached + 1e-5).all()
            if apart == 1e-3:
                assert found.closed.all()
        for stages in LADDERS.values():
            answer = exact.certify(model, x, y, ball, stages=stages, node_limit=500, jobs=1)
            assert answer.margins <= reached.min() + 1e-5


# ---- how hard certify attacks ----


def test_certify_finds_a_counterexample_behind_a_plateau_before_it_searches():
    """Class 1 wins where 0.77 < x < 0.81; the margin is constant up to 0.75 and from 0.83 on."""
    model = nn.Sequential(nn.Linear(1, 3), nn.ReLU(), nn.Linear(3, 2)).double().requires_grad_(False)
    model[0].weight.fill_(1.0)
    model[0].bias.copy_(-torch.tensor([0.75, 0.79, 0.83]))
    model[2].weight.copy_(torch.tensor([[0.0, 0.0, 0.0], [50.0, -100.0, 50.0]]))
    model[2].bias.copy_(torch.tensor([1.0, 0.0]))
    for x in torch.linspace(0.3, 0.7, 9, dtype=torch.float64):
        ball, y = Ball(math.inf, 0.9 - x, BOX), torch.tensor([0])
        assert attacks.pgd(model, x.view(1, 1), y, ball).item() == 0  # whose gradient is 0 at x
        answer = exact.certify(model, x.view(1, 1), y, ball)
        assert (answer.status, answer.stage) == (("broken",), ("attack",))


# ---- images, types, modes ----


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_images_and_their_types_come_back(dtype):
    shape = (1, 4, 4)
    nets = [models.mlp([16, 6, 3]), NETWORKS["convolution"][1]()]
    for model in nets:
        model = model.to(dtype).requires_grad_(False)
        x = inputs((3, *shape), 0).to(dtype)
        y, ball = model(x).argmax(1), Ball(math.inf, 0.1, BOX)
        answer, found = exact.certify(model, x, y, ball), exact.margins(model, x, y, ball)
        assert (answer.delta.shape, answer.delta.dtype) == (x.shape, dtype)
        assert (found.delta.shape, found.delta.dtype) == ((3, 3, *shape), dtype)
        assert (answer.margins.dtype, found.margins.dtype) == (torch.float64, torch.float64)
        assert (answer.margins.shape, answer.nodes.shape) == ((3,), (3,))
        assert found.margins.shape == found.attained.shape == found.nodes.shape == (3, 3)


def test_inputs_that_carry_gradients_give_answers_that_do_not():
    model, x, y, ball = hard(2, n=4)
    carrying = x.clone().requires_grad_()
    for function in (exact.margins, exact.certify):
        plain, found = function(model, x, y, ball), function(model, carrying, y, ball)
        assert equal(plain, found)
        assert not found.delta.requires_grad
        assert not found.margins.requires_grad
    assert carrying.grad is None


def test_the_mode_of_every_layer_stays_and_does_not_matter():
    model, x, y, ball = case("deep mlp", 0)
    expected = exact.certify(model.eval(), x, y, ball)
    model.train()
    model[2].eval()
    modes = [module.training for module in model.modules()]
    assert equal(exact.certify(model, x, y, ball), expected)
    assert [module.training for module in model.modules()] == modes


def test_real_digits_get_true_words_and_no_eps_helps_the_network(digits):
    model, x, y = trained_on_digits(), digits.x_test[:20], digits.y_test[:20]
    before = torch.ones(20, dtype=torch.bool)
    for eps in (0.0, 0.02, 0.05):
        ball = Ball(math.inf, eps, BOX)
        answer = exact.certify(model, x, y, ball, node_limit=2000)
        assert_true(answer, model, x, y, ball, slack=1e-4)
        assert not (answer.are("robust") & ~before).any()
        before = ~answer.are("broken")


# ---- several at a time, here and elsewhere ----


def test_several_at_a_time_give_what_one_after_the_other_gives():
    model, x, y, ball = hard(1, n=4)
    for function in (exact.margins, exact.certify):
        one, two = (function(model, x, y, ball, jobs=jobs) for jobs in (1, 2))
        assert equal(one, two)


def test_a_bar_is_shown_on_stdout_only_and_only_when_asked_for(capfd):
    arguments = hard(1)
    for function in (exact.margins, exact.certify):
        function(*arguments, progress=True)
        shown = capfd.readouterr()
        assert "%|" in shown.out
        assert shown.err == ""
        for progress in (None, False):  # None: stdout is no terminal here
            function(*arguments, progress=progress)
            assert capfd.readouterr() == ("", "")


def test_the_integer_program_says_nothing_on_stdout(capfd):
    for size in (1.0, 1e8):
        exact.margins(*in_units_of(size), method="mip", jobs=1)
    assert capfd.readouterr() == ("", "")


@pytest.fixture(scope="module")
def cluster():
    """Two processes of their own, with one thread each."""
    from dask.distributed import Client, LocalCluster

    options = {"n_workers": 2, "threads_per_worker": 1, "processes": True, "dashboard_address": None}
    with LocalCluster(**options) as workers, Client(workers) as client:
        yield client


def test_one_line_puts_the_work_on_a_cluster_and_changes_no_answer(cluster):
    import joblib

    model, x, y, ball = hard(1, n=6)
    calls = {
        "certify": lambda: exact.certify(model, x, y, ball),
        "margins": lambda: exact.margins(model, x, y, ball),
    }
    here = {name: call() for name, call in calls.items()}
    bound_here = bounds.margins(model, x, y, ball, "lp")
    with joblib.parallel_config(backend="dask"):
        there = {name: call() for name, call in calls.items()}
        bound_there = bounds.margins(model, x, y, ball, "lp")
        ran_in = set(_work.parallel_map(os.getpid, [()] * 20))
    assert all(equal(here[name], there[name]) for name in calls)
    torch.testing.assert_close(bound_here, bound_there, rtol=0, atol=ROUNDING)
    assert ran_in <= set(cluster.run(os.getpid).values())
    assert os.getpid() not in ran_in
