"""The dual of a branch: J stays below it, its ascent, what each unit costs, and searches built on it."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import (
    BOX,
    NETWORKS,
    ORDERS,
    Branch,
    Case,
    minimum_of_pattern,
    network_case,
    orders,
    problem,
    seeded,
    seeds,
    towards,
)
from torch import nn

from adv_lib import bounds, branching, dual, leaves
from adv_lib.affine import Bounds, affine_pieces
from adv_lib.branching import TOLERANCE, Leaf
from adv_lib.threat import Ball

EXACT = 1e-9  # float64, and sums of a few terms of size up to 10
SOLVED = 1e-5  # the same after a solver of convex programs
boxes = st.sampled_from([None, BOX])
radii = st.sampled_from([0.03, 0.3, 2.0])
kinds = st.sampled_from([kind for kind in NETWORKS if kind != "linear"])
shares = st.sampled_from([0.0, 0.3, 1.0])
each_p = pytest.mark.parametrize("p", ORDERS)


# ---- J in a branch ----


@settings(max_examples=250)
@given(kinds, seeds, orders, boxes, radii, shares, st.sampled_from([0.0, 0.1, 3.0]))
def test_no_point_of_the_branch_lies_below_j(kind, seed, p, box, eps, share, size):
    one = Branch(kind, seed, p, box, eps, share, size)
    a, z = one.network(one.points)
    kept = one.inside(a)
    assert kept.any(0).all()  # every branch was made of a point
    values = torch.einsum("mnk,nrk->mnr", z, one.c)
    J, best = one.bound(), one.ascend(4).value
    assert (values >= J - EXACT)[kept].all()
    assert (values >= best - EXACT)[kept].all()


def one_unit():
    """h = max(a, 0), z = −h, and a = x + δ from −0.1 to 1: put on, the smallest z is −1."""
    model = nn.Sequential(nn.Linear(1, 1), nn.ReLU(), nn.Linear(1, 1)).double().requires_grad_(False)
    for layer, weight in ((model[0], 1.0), (model[2], -1.0)):
        layer.weight.fill_(weight)
        layer.bias.fill_(0.0)
    x, c = torch.tensor([[0.45]]).double(), torch.ones(1, 1, 1).double()
    pieces, region = affine_pieces(model, (1,)), Ball(math.inf, 0.55).region(x)
    layers = dual.branch([Bounds(*torch.tensor([[[-0.1]], [[1.0]]]).double())], [torch.ones(1, 1)])
    relus = [dual.lines(layers[0], "crown")]
    return lambda beta: dual.bound(pieces, relus, x, region, c, [torch.full((1, 1, 1), beta)]).item()


def test_beta_of_the_wrong_sign_proves_what_is_false():
    J = one_unit()
    assert J(0.0) == pytest.approx(-1)
    assert all(J(beta) <= -1 + EXACT for beta in (0.1, 1.0, 10.0))
    assert J(-1.0) == pytest.approx(0)


def test_with_wrong_signs_random_networks_contradict_it_too():
    wrong = 0
    for seed in range(20):
        one = Branch("mlp", seed, share=1.0)
        a, z = one.network(one.points)
        J = one.bound(betas=[-beta for beta in one.betas])
        wrong += (torch.einsum("mnk,nrk->mnr", z, one.c) < J - 1e-3)[one.inside(a)].any()
    assert wrong > 0


def test_a_branch_clamps_the_bounds_of_its_units_and_of_no_other():
    layer = Bounds(torch.tensor([[-1.0, -1, -1]]), torch.tensor([[2.0, 2, 2]]))
    (found,) = dual.branch([layer], [torch.tensor([[1.0, -1, 0]])])
    assert found.lower.tolist() == [[0, -1, -1]]
    assert found.upper.tolist() == [[2, 0, 2]]
    assert torch.equal(layer.lower, -torch.ones(1, 3))


# ---- the ascent ----


@settings(max_examples=60)
@given(kinds, seeds, orders, boxes, radii, st.sampled_from([0, 1, 8]))
def test_the_ascent_ends_no_lower_than_it_began_with_allowed_numbers_and_says_what_they_prove(
    kind, seed, p, box, eps, steps
):
    one = Branch(kind, seed, p, box, eps)
    best = one.ascend(steps)
    assert (best.value >= one.bound() - EXACT).all()
    torch.testing.assert_close(best.value, one.bound(best.slopes, best.betas))
    for alpha, beta, phase in zip(best.slopes, best.betas, one.phases, strict=True):
        assert ((alpha >= 0) & (alpha <= 1)).all()
        assert (beta * phase[:, None] >= 0).all()
        assert (beta[(phase == 0)[:, None].expand_as(beta)] == 0).all()
    for k in range(one.r):
        assert one.ball.contains(best.delta[:, k].reshape(one.x.shape), one.x).all()
    hats = dual.multipliers(one.pieces, one.lines(best.slopes), one.c, best.betas)[1]
    for hat, expected in zip(best.hats, hats, strict=True):
        torch.testing.assert_close(hat, expected)


@pytest.mark.parametrize("tiny", [0.0, 1e-300, 1e-200])
def test_where_a_layer_sends_nothing_back_beta_still_proves_nothing_false(tiny):
    one = Branch("deep mlp", 3, eps=0.5, share=1.0, size=10.0)
    one.c = one.c * tiny  # then so is the minimum
    best = one.ascend(20)
    assert (one.bound() < -0.1).any()
    assert best.value.isfinite().all()
    assert (best.value <= EXACT).all()
    assert (best.value.amin() > one.bound().amin() + 0.1).all()  # β is still on its way to 0


def test_the_ascent_in_beta_gains_what_slopes_alone_do_not():
    gained = []
    for seed in range(8):
        one = Branch("deep mlp", seed, eps=0.5, share=1.0, size=0.0)
        plain = dual.ascend(one.pieces, one.layers, one.x, one.region, one.c, one.slopes, 30).value
        gained.append((one.ascend(30).value - plain).amax().item())
    assert min(gained) > -0.01
    assert max(gained) > 0.1


@each_p
def test_where_it_is_enough_each_problem_stops_for_itself_as_it_would_alone(p):
    one = Branch("deep mlp", 3, p, eps=1.0, size=0.0, n=3)
    start, end = one.bound(), one.ascend(20).value
    enough = start + 0.2 * (end - start)
    stopped = one.ascend(20, enough=enough).value
    assert ((stopped > enough) | (end < start + EXACT)).all()
    assert (stopped < end).any()
    for i in range(len(one.x)):
        here = [Bounds(l[i : i + 1], u[i : i + 1]) for l, u in one.layers]
        own = [[each[i : i + 1] for each in parts] for parts in (one.slopes, one.phases, one.betas)]
        for k in range(one.r):
            slopes, phases, betas = (
                [each[:, k : k + 1] if each.ndim > 2 else each[:, None] for each in parts]
                for parts in own
            )
            alone = dual.ascend(
                *(one.pieces, here, one.x[i : i + 1], one.region[torch.tensor([i])]),
                *(one.c[i : i + 1, k : k + 1], slopes, 20, phases, betas, enough[i, k].item()),
            )
            assert alone.value.item() == pytest.approx(stopped[i, k].item(), abs=EXACT)


@settings(max_examples=60)
@given(kinds, seeds, orders, boxes, radii)
def test_one_forward_pass_has_the_value_and_both_gradients(kind, seed, p, box, eps):
    """∂J/∂β = −a and ∂J/∂α = a [ν̂]₋, by autograd of the formula for J, where that has no kink."""
    one = Branch(kind, seed, p, box, eps)
    one.slopes = [alpha.clamp(0.05, 0.95) for alpha in one.slopes]
    slopes = [alpha.clone().requires_grad_() for alpha in one.slopes]
    betas = [beta.clone().requires_grad_() for beta in one.betas]
    J = one.bound(slopes, betas)
    best = one.ascend(0)
    a = dual.forward(one.pieces, one.lines(), one.x, best.delta, best.hats)
    paid = sum((beta * pre).flatten(2).sum(2) for beta, pre in zip(one.betas, a, strict=False))
    torch.testing.assert_close((one.c * a[-1].view_as(one.c)).sum(2) - paid, J.detach())
    by_beta = torch.autograd.grad(J.sum(), betas, retain_graph=True)
    by_alpha = torch.autograd.grad(J.sum(), slopes)
    smooth = torch.stack([(hat != 0).flatten(2).all(2) for hat in best.hats]).all(0)
    for pre, hat, (l, u), phase, dbeta, dalpha in zip(
        a, best.hats, one.layers, one.phases, by_beta, by_alpha, strict=False
    ):
        free, split = ((l < 0) & (u > 0))[:, None], phase[:, None].abs()
        torch.testing.assert_close((dbeta * split)[smooth], (-pre * split)[smooth])
        expected = pre * (-hat).clamp(min=0) * free
        torch.testing.assert_close(dalpha[smooth], expected[smooth])


# ---- what each unit costs ----


def seen(one, best):
    """What a score may look at, problem by problem: the views and the points they are about."""
    for k in range(one.r):
        a, z = one.network(best.delta[:, k][None])
        relus = [
            dual.lines(pair, alpha[:, k : k + 1])
            for pair, alpha in zip(one.layers, best.slopes, strict=True)
        ]
        hats, a = [hat[:, k : k + 1] for hat in best.hats], [each[0][:, None] for each in a]
        yield k, leaves.View(one.layers, relus, hats, a), (z[0] * one.c[:, k]).sum(1)


@settings(max_examples=60)
@given(kinds, seeds, orders, boxes, radii)
def test_without_a_split_the_shares_of_the_units_are_the_gap(kind, seed, p, box, eps):
    """Where no unit is split: cᵀa_D at the δ of the pass is J plus a share ≥ 0 of each unit."""
    one = Branch(kind, seed, p, box, eps, share=0.0)
    best = one.ascend(3)
    for k, view, value in seen(one, best):
        parts = [each.flatten(1).sum(1) for each in leaves.share(view)]
        torch.testing.assert_close(value, best.value[:, k] + sum(parts))


@settings(max_examples=60)
@given(kinds, seeds, orders, boxes, radii, shares)
def test_in_a_branch_so_does_what_is_paid_for_the_splits(kind, seed, p, box, eps, share):
    """cᵀa_D = J + Σ ν̂ (line − ReLU) + Σ βᵀa, all of it at the network's own a; shares, in the branch."""
    one = Branch(kind, seed, p, box, eps, share)
    best = one.ascend(3)
    for k, view, value in seen(one, best):
        paid, gap = torch.zeros_like(value), torch.zeros_like(value)
        for relu, hat, a, beta in zip(view.relus, view.hats, view.a, best.betas, strict=True):
            line = torch.where(hat > 0, relu.upper * (a - relu.left), relu.lower * a)
            gap += (hat * (line - a.relu())).flatten(1).sum(1)
            paid += (beta[:, k : k + 1] * a).flatten(1).sum(1)
        torch.testing.assert_close(value, best.value[:, k] + gap + paid)
        kept = one.inside([a[:, 0][None] for a in view.a])[0]
        parts = sum(each.flatten(1).sum(1) for each in leaves.share(view))
        torch.testing.assert_close(parts[kept], gap[kept])


@given(kinds, seeds, orders, boxes, radii)
@settings(max_examples=40)
def test_no_score_is_negative_and_units_that_are_stable_have_no_share_and_no_price(
    kind, seed, p, box, eps
):
    one = Branch(kind, seed, p, box, eps, share=0.0)
    for _, view, _ in seen(one, one.ascend(1)):
        for score in (leaves.share, leaves.price, leaves.spread):
            for each, (l, u) in zip(score(view), view.bounds, strict=True):
                assert each.shape == l[:, None].shape
                assert (each >= -EXACT).all()
                if score is not leaves.spread:
                    assert (each.abs() <= EXACT)[~((l < 0) & (u > 0))[:, None]].all()


# ---- all units decided ----


def small(seed, p, box, hidden=(4, 2)):
    """A network small enough to try all patterns of its units, one input, and what they can be."""
    eps = {1: 1.5, 2: 0.9, math.inf: 0.5}[p]
    model, x, y, ball = problem(seed, (3,), 1, p, eps, box, hidden=hidden, scale=3)
    model.requires_grad_(False)
    layers = bounds.pre_activations(model, x, ball, "crown")
    unstable = torch.cat([((l < 0) & (u > 0)).flatten() for l, u in layers])
    on = torch.cat([(l >= 0).flatten() for l, _ in layers])
    choices = [
        (1.0, -1.0) if free else (1.0,) if up else (-1.0,)
        for free, up in zip(unstable.tolist(), on.tolist(), strict=True)
    ]
    patterns = torch.tensor([*itertools.product(*choices)], dtype=torch.float64)
    patterns = patterns[torch.randperm(len(patterns), generator=seeded(seed))]
    return model, x, ball, towards(y, 3)[0, [int(y == 0)]], layers, unstable, patterns


@each_p
def test_with_all_units_decided_the_best_beta_reach_the_minimum_and_far_above_it_where_there_is_none(p):
    empty = reached = 0
    for seed, box in itertools.product((1, 3), (None, BOX)):
        model, x, ball, c, root, unstable, patterns = small(seed, p, box)
        pieces, region = affine_pieces(model, x.shape[1:]), ball.region(x)
        deltas = Case(ball, x, x if box else None).points(400)
        most = (model((x + deltas).flatten(0, 1)) @ c[0]).amax().item()
        for pattern in patterns[:6]:
            flat = (pattern * unstable).split([piece.shape_out[0] for piece in pieces[:-1]])
            phases = [part[None] for part in flat]
            layers = dual.branch(root, phases)
            delta, betas = leaves.program(pieces, layers, x, region, c[0], phases)
            assert ball.contains(delta.reshape(x.shape), x).all()
            assert all((beta * s >= 0).all() for beta, s in zip(betas, phases, strict=True))
            relus = [dual.lines(pair, "crown") for pair in layers]
            J = dual.bound(pieces, relus, x, region, c[None], [beta[:, None] for beta in betas]).item()
            least = minimum_of_pattern(pieces, x, ball, c[0], pattern > 0)
            if math.isfinite(least):
                assert pytest.approx(least, abs=SOLVED) == J
                reached += 1
            elif math.isinf(minimum_of_pattern(pieces, x, ball, c[0], pattern > 0, slack=0.02)):
                assert most < J
                empty += 1
    assert min(reached, empty) > 2


def leaf(phases=None, root=0, enough=math.inf, found=None):
    return Leaf(root, phases or {}, -math.inf, enough, found)


@each_p
def test_a_case_whose_units_are_all_decided_is_bounded_by_its_minimum(p):
    for seed, box in ((1, None), (3, BOX)):
        model, x, ball, c, root, unstable, patterns = small(seed, p, box)
        pieces = affine_pieces(model, x.shape[1:])
        evaluate = leaves.Leaves(pieces, root, x, ball.region(x), c, torch.tensor([0]))
        units = unstable.nonzero().flatten().tolist()
        made = [leaf({unit: bool(row[unit] > 0) for unit in units}) for row in patterns[:6]]
        for row, case in zip(patterns[:6], evaluate(made), strict=True):
            least = minimum_of_pattern(pieces, x, ball, c[0], row > 0)
            assert case.bound <= least + SOLVED
            assert math.isinf(least) or case.bound >= min(least, case.value) - SOLVED
            assert (case.scores == 0).all()
            point = torch.from_numpy(case.point)[None]
            assert ball.contains(point - x, x).all()
            assert (model(point)[0] @ c[0]).item() == pytest.approx(case.value)


# ---- cases ----


@settings(max_examples=30)
@given(kinds, seeds, orders, boxes)
def test_cases_are_bounded_by_what_holds_in_them_with_a_point_and_scores_for_free_units_only(
    kind, seed, p, box
):
    one = Branch(kind, seed, p, box, share=0.5, n=2)
    root = bounds.pre_activations(one.model, one.x, one.ball, "crown")
    sample = torch.arange(2).repeat_interleave(one.r)
    evaluate = leaves.Leaves(one.pieces, root, one.x, one.region, one.c.flatten(0, 1), sample)
    flat = torch.cat([phase.flatten(1) for phase in one.phases], 1)
    made = []
    for row, i in enumerate(sample.tolist()):
        made += [
            leaf(root=row),
            leaf({u: bool(flat[i, u] > 0) for u in flat[i].nonzero().flatten().tolist()}, row),
        ]
    cases = evaluate(made)
    a, z = one.network(one.points)
    values, kept = torch.einsum("mnk,nrk->mnr", z, one.c).flatten(1), one.inside(a)
    unstable = torch.cat([((l < 0) & (u > 0)).flatten(1) for l, u in root], 1)
    for each, case in zip(made, cases, strict=True):
        i = int(sample[each.root])
        inside = kept[:, i] if each.phases else torch.ones_like(kept[:, i])
        assert (values[inside, each.root] >= case.bound - 1e-7).all()  # β wait in float32
        point = torch.from_numpy(case.point).reshape(1, *one.x.shape[1:])
        assert one.ball.subset(torch.tensor([i])).contains(point - one.x[i], one.x[i : i + 1]).all()
        value = (one.model(point)[0] * one.c.flatten(0, 1)[each.root]).sum().item()
        assert value == pytest.approx(case.value)
        scores = torch.from_numpy(case.scores)
        assert (scores >= 0).all()
        assert (scores[~unstable[i]] == 0).all()
        assert all(scores[unit] == 0 for unit in each.phases)


@settings(max_examples=15)
@given(kinds, seeds, orders)
def test_a_case_that_begins_where_its_parent_ended_is_bounded_no_worse_than_its_parent(kind, seed, p):
    one = Branch(kind, seed, p, n=1)
    root = bounds.pre_activations(one.model, one.x, one.ball, "crown")
    c = one.c[0, [int(one.c[0, 0].abs().sum() == 0)]]
    evaluate = leaves.Leaves(one.pieces, root, one.x, one.region, c, torch.tensor([0]))
    (parent,) = evaluate([leaf()])
    if parent.scores.max() > 0:
        unit = int(parent.scores.argmax())
        for case in evaluate([leaf({unit: on}, found=parent.found) for on in (False, True)]):
            assert case.bound >= parent.bound - 1e-6  # the numbers wait in float32


@pytest.mark.parametrize("score", [leaves.share, leaves.price, leaves.spread])
def test_whatever_is_split_first_the_minimum_is_the_same(score):
    for seed in (1, 3):
        model, x, ball, c, root, _, patterns = small(seed, 2, BOX)
        pieces = affine_pieces(model, x.shape[1:])
        problem = pieces, root, x, ball.region(x), c, torch.tensor([0])
        evaluate = leaves.Leaves(*problem, score=score)
        (found,) = branching.search(evaluate, [(math.inf, x[0].numpy())], width=3)
        assert found.upper - found.lower <= TOLERANCE
        least = min(minimum_of_pattern(pieces, x, ball, c[0], row > 0) for row in patterns)
        assert found.upper == pytest.approx(least, abs=SOLVED)
        assert evaluate.passes >= found.nodes


# ---- tighter layer bounds ----


TIGHTER = {
    "tightened": lambda one, root: bounds.tightened(one.pieces, root, one.x, one.region),
    "refined": lambda one, root: leaves.refined(one.pieces, root, one.x, one.region, 5)[0],
    "refined for no time": lambda one, root: leaves.refined(one.pieces, root, one.x, one.region, 5, -1)[
        0
    ],
}


@pytest.mark.parametrize("name", TIGHTER)
@settings(max_examples=20)
@given(
    st.sampled_from(["linear", "deep mlp", "nested", "dilated, in groups", "affine in eval mode"]),
    seeds,
    orders,
    boxes,
    radii,
)
def test_tighter_bounds_hold_for_every_point_and_are_never_wider(name, kind, seed, p, box, eps):
    one = Branch(kind, seed, p, box, eps, n=2) if kind != "linear" else linear(seed, p, box)
    root = bounds.pre_activations(one.model, one.x, one.ball)
    before = [end.clone() for pair in root for end in pair]
    found = TIGHTER[name](one, root)
    assert all(
        torch.equal(*ends) for ends in zip(before, (e for pair in root for e in pair), strict=True)
    )
    a, _ = one.network(one.points)
    for each, wide, narrow in zip(a, root, found, strict=True):
        assert narrow.lower.shape == wide.lower.shape
        assert (narrow.lower >= wide.lower).all()
        assert (narrow.upper <= wide.upper).all()
        assert (narrow.lower <= narrow.upper).all()
        assert ((narrow.lower - 1e-7 <= each) & (each <= narrow.upper + 1e-7)).all()


def linear(seed, p, box):
    """A network without a hidden layer, which has nothing to tighten."""
    one = Branch.__new__(Branch)
    one.model, one.x, _, one.ball = network_case("linear", seed, p, box)
    one.pieces, one.region = affine_pieces(one.model, one.x.shape[1:]), one.ball.region(one.x)
    one.points = Case(one.ball, one.x, one.x if box else None).points(4)
    return one


@each_p
def test_searches_for_the_units_are_tighter_than_ascents_and_count_their_cases(p):
    model, x, _, ball = problem(4, (3,), 2, p, 0.5, hidden=(6, 6, 4), scale=3)
    model.requires_grad_(False)
    pieces, region = affine_pieces(model, x.shape[1:]), ball.region(x)
    root = bounds.pre_activations(model, x, ball)
    ascended = bounds.tightened(pieces, root, x, region)
    few, one_each = leaves.refined(pieces, ascended, x, region, 1)
    searched, nodes = leaves.refined(pieces, ascended, x, region, 200)
    total = lambda layers: sum((u - l).sum().item() for l, u in layers)  # noqa: E731
    assert total(root) > total(ascended) >= total(few) > total(searched)
    unstable = sum(((l < 0) & (u > 0)).sum(1) for l, u in ascended[1:])
    assert (one_each <= 2 * unstable).all()
    assert (nodes > one_each).all()
