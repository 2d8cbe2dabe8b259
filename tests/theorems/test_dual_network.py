"""Chapter 5, the dual network: every labelled statement, attacked with random instances."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import (
    BOX,
    NETWORKS,
    Branch,
    Case,
    aimed,
    detached,
    entries,
    inputs,
    minimum_of_pattern,
    network_case,
    orders,
    problem,
    reached,
    relaxed_minimum,
    seeded,
    seeds,
    theorem,
    towards,
    with_exact_bounds,
)

from adv_lib import bounds, conjugates, dual, exact, leaves, losses
from adv_lib.affine import Bounds
from adv_lib.threat import Ball

EXACT = 1e-9  # float64, and sums of a few terms of size up to 10
SOLVED = 1e-6  # the same after a solver
kinds = st.sampled_from([kind for kind in NETWORKS if kind != "linear"])
boxes = st.sampled_from([None, BOX])
radii = st.sampled_from([0.03, 0.3, 2.0])
few = settings(max_examples=25)


def attacked(model, x, y, ball):
    """The logits at what a few steps of ascent towards every class find."""
    found = aimed(model, x, y, ball)
    with torch.no_grad():
        return model((x + found).flatten(0, 1)).reshape(len(found), len(x), -1)


def any_slopes(layers, seed, r):
    """α for every problem of every unit, a third of them 0 or 1."""
    return [inputs((len(l), r, *l.shape[1:]), seed) for l, _ in layers]


# ---- the dual network ----


@theorem("thm-dual-network")
@settings(max_examples=40)
@given(kinds, seeds, orders, boxes, radii)
def test_for_all_slopes_the_backward_pass_has_the_value_of_the_closed_form_and_bounds_the_network(
    kind, seed, p, box, eps
):
    """J = −Σ ν_iᵀb_i − I*_{x+Δ}(ν̂_1) + Σ_unstable l[ν]₊, here summed up with matrices."""
    model, x, y, ball = network_case(kind, seed, p, box, eps, n=10)
    pieces, K = detached(model, x), model(x).shape[1]
    layers = [Bounds(*map(torch.detach, pair)) for pair in bounds.pre_activations(model, x, ball)]
    c = towards(y, K)
    relus = [dual.lines(*pair) for pair in zip(layers, any_slopes(layers, seed, K), strict=True)]
    nu, _ = dual.multipliers(pieces, relus, c)
    J = dual.bound(pieces, relus, x, ball.region(x), c)
    matrices = [piece.matrix() for piece in pieces]
    terms = [-(each.flatten(2) @ b) for each, (_, b) in zip(nu, matrices, strict=True)]
    for each, (l, u) in zip(nu, layers, strict=False):
        unstable = ((l < 0) & (u > 0)).flatten(1)[:, None]
        terms.append(
            (torch.where(unstable, l.flatten(1)[:, None], 0) * each.flatten(2).clamp(min=0)).sum(2)
        )
    hat = nu[0].flatten(2) @ matrices[0][0]
    ends = [conjugates.ball(hat[:, k].reshape(x.shape), x, ball) for k in range(K)]
    torch.testing.assert_close(J, sum(terms) - torch.stack(ends, 1))
    torch.testing.assert_close(J, dual.value(pieces, layers, x, ball, nu))
    z = torch.cat([reached(model, x, ball), attacked(model, x, y, ball)])
    values = torch.einsum("mnk,nrk->mnr", z, c)
    assert (values >= J - EXACT).all()


@theorem("thm-dual-network")
@few
@given(
    seeds, st.sampled_from([(5,), (3, 3)]), boxes, st.sampled_from(["interval", "dual", "lp", "exact"])
)
def test_on_any_valid_bounds_it_stays_below_the_program_and_the_program_below_the_minimum(
    seed, hidden, box, method
):
    model, x, y, ball, layers = with_exact_bounds(seed, hidden, box)
    if method != "exact":
        layers = bounds.pre_activations(model, x, ball, method, jobs=1)
    program = bounds.margins(model, x, y, ball, "lp", layer_bounds=layers, jobs=1)
    least = exact.margins(model, x, y, ball, jobs=1).margins
    slopes = any_slopes(layers, seed, 3)
    for chosen in ({"method": "dual"}, {"method": "crown"}, {"method": "crown", "slopes": slopes}):
        found = bounds.margins(model, x, y, ball, layer_bounds=layers, **chosen)
        assert (found <= program + SOLVED).all()
        assert (program <= least + SOLVED).all()


# ---- the best slopes ----


def implied_bounds(pieces, x, eps, slack=0.05):
    """Intervals of each layer from those of the one before, a little wider: nothing reaches them."""
    pair, found = Bounds(x - eps, x + eps), []
    for piece in pieces[:-1]:
        lower, upper = bounds.interval(piece, pair)
        found.append(Bounds(lower - slack, upper + slack))
        pair = Bounds(*(end.relu() for end in found[-1]))
    return found


@theorem("thm-alpha")
@settings(max_examples=60)
@given(kinds, seeds, orders, boxes, radii)
def test_with_bounds_that_the_earlier_layers_imply_some_slopes_reach_the_minimum_of_the_relaxation(
    kind, seed, p, box, eps
):
    """Those of the solver: α = ν_i / ν̂_{i+1}, unit by unit."""
    model, x, y, ball = network_case(kind, seed, p, box, eps, n=1)
    pieces = detached(model, x)
    layers, c = implied_bounds(pieces, x, eps), towards(y, model(x).shape[1])[:, [int(y == 0)]]
    least, nu = relaxed_minimum(pieces, layers, x, ball, c)
    slopes = []
    for piece, pair, each, after in zip(pieces[1:], layers, nu, nu[1:], strict=False):
        hat = after.flatten(2) @ piece.matrix()[0]
        alpha = (each / hat).nan_to_num(0, 0, 0).clamp(0, 1)
        slopes.append(alpha.reshape(1, 1, *pair.lower.shape[1:]))
    relus = [dual.lines(*pair) for pair in zip(layers, slopes, strict=True)]
    J = dual.bound(pieces, relus, x, ball.region(x), c).item()
    assert pytest.approx(least, abs=SOLVED, rel=SOLVED) == J
    if p == math.inf:
        program = bounds.margins(model, x, y, ball, "lp", layer_bounds=layers, jobs=1)
        assert pytest.approx(program[0, int(y == 0)].item(), abs=SOLVED, rel=SOLVED) == J


@theorem("thm-alpha")
def test_with_tighter_bounds_no_slopes_at_all_may_reach_the_minimum_that_free_multipliers_do():
    """Two unstable units between their exact bounds: all pairs of slopes, on a grid."""
    model, x, y, ball, layers = with_exact_bounds(21, (3, 3))
    pieces = detached(model, x)
    unstable = [((l < 0) & (u > 0)).flatten() for l, u in layers]
    assert sum(int(mask.sum()) for mask in unstable) == 2
    side = torch.linspace(0, 1, 41).double()
    pairs, slopes = torch.cartesian_prod(side, side), []
    for mask in unstable:
        slopes.append(torch.zeros(1, len(pairs), len(mask), dtype=torch.float64))
        slopes[-1][0, :, mask], pairs = pairs[:, : int(mask.sum())], pairs[:, int(mask.sum()) :]
    relus = [dual.lines(*pair) for pair in zip(layers, slopes, strict=True)]
    program = bounds.margins(model, x, y, ball, "lp", layer_bounds=layers, jobs=1)[0]
    found = bounds.best_slopes(model, x, y, ball, layer_bounds=layers, steps=100)
    ascended = bounds.margins(model, x, y, ball, "crown", layer_bounds=layers, slopes=found)[0]
    for k in (k for k in range(3) if k != y):
        c = towards(y, 3)[:, k : k + 1]
        least, nu = relaxed_minimum(pieces, layers, x, ball, c)
        free = dual.value(pieces, layers, x, ball, [*nu[:-1], -c]).item()
        assert free == pytest.approx(least, abs=SOLVED)
        assert program[k].item() == pytest.approx(least, abs=SOLVED)
        J = dual.bound(pieces, relus, x, ball.region(x), c.expand(-1, len(side) ** 2, -1))
        assert max(J.amax().item(), ascended[k].item()) < least - 0.1


# ---- layer by layer ----


@theorem("thm-layer-by-layer")
@settings(max_examples=40)
@given(kinds, seeds, orders, boxes, radii, st.sampled_from(["dual", "crown"]))
def test_bounds_found_layer_by_layer_hold_for_every_point_of_the_ball(kind, seed, p, box, eps, method):
    model, x, _, ball = network_case(kind, seed, p, box, eps, n=10, each_eps=True)
    plain, tight = (bounds.pre_activations(model, x, ball, m) for m in ("interval", method))
    pieces = detached(model, x)
    h = x + Case(ball, x, x if box else None).points(30).reshape(-1, *x.shape)
    for piece, wide, narrow in zip(pieces, plain, tight, strict=False):
        a = piece(h.flatten(0, 1)).reshape(*h.shape[:2], *piece.shape_out)
        assert ((narrow.lower - EXACT <= a) & (a <= narrow.upper + EXACT)).all()
        assert (narrow.lower >= wide.lower - EXACT).all()
        assert (narrow.upper <= wide.upper + EXACT).all()
        h = a.relu()


@theorem("thm-layer-by-layer")
@settings(max_examples=15)
@given(seeds, st.sampled_from([(3, 3), (2, 2, 2)]), boxes, st.sampled_from(["dual", "crown"]))
def test_they_hold_the_exact_range_of_every_unit_and_are_no_tighter_than_the_programs(
    seed, hidden, box, method
):
    model, x, _, ball, least = with_exact_bounds(seed, hidden, box)
    found = bounds.pre_activations(model, x, ball, method)
    programs = bounds.pre_activations(model, x, ball, "lp", jobs=1)
    for exact_ones, ours, program in zip(least, found, programs, strict=True):
        unstable = (program.lower < 0) & (program.upper > 0)  # the others are not asked for both ends
        assert (ours.lower <= exact_ones.lower + SOLVED).all()
        assert (exact_ones.upper <= ours.upper + SOLVED).all()
        assert (program.lower <= exact_ones.lower + SOLVED).all()
        assert (ours.lower <= program.lower + SOLVED)[unstable].all()
        assert (ours.upper >= program.upper - SOLVED)[unstable].all()


# ---- no unstable unit ----


@theorem("thm-tight-when-stable")
@settings(max_examples=60)
@given(kinds, seeds, orders, boxes)
def test_where_no_unit_is_unstable_j_is_the_minimum_over_the_ball(kind, seed, p, box):
    """Few kinks are near, so the network is affine on a small ball, and one δ reaches J."""
    model, x, y, _ = network_case(kind, seed, p, box, n=1)
    eps = 0.3
    while True:
        ball = Ball(p, eps, box)
        layers = bounds.pre_activations(model, x, ball)
        if not any(((l < 0) & (u > 0)).any() for l, u in layers):
            break
        eps /= 4
        if eps < 1e-9:  # x itself is at a kink, as with a ReLU on inputs that are 0
            return
    found = {m: bounds.margins(model, x, y, ball, m).detach() for m in ("dual", "crown")}
    torch.testing.assert_close(found["dual"], found["crown"], rtol=0, atol=EXACT)
    for k in (k for k in range(found["dual"].shape[1]) if k != y):
        z = (x + eps / (4 * x.numel()) * (0.5 - x).sign()).requires_grad_()  # not at a kink at the edge
        (slope,) = torch.autograd.grad((model(z)[:, y] - model(z)[:, k]).sum(), z)
        delta = ball.argmax(-slope, x if box else None)
        logits = model(x + delta)[0]
        assert (logits[y] - logits[k]).item() == pytest.approx(found["dual"][0, k].item(), abs=EXACT)
    values = reached(model, x, ball)
    leads = values[:, :, y] - values
    others = [k for k in range(values.shape[2]) if k != y]
    assert (leads >= found["dual"] - EXACT)[:, :, others].all()


# ---- units that are on or off ----


def passed(one, relus, betas):
    """J, ν̂ of each layer, and the δ at which the linear function it ends in is smallest."""
    J = dual.bound(one.pieces, relus, one.x, one.region, one.c, betas)
    nu, hats = dual.multipliers(one.pieces, relus, one.c, betas)
    first = (nu[0].flatten(2) @ one.pieces[0].matrix()[0]).detach()
    delta = [one.ball.argmax(first[:, k].reshape(one.x.shape), one.x) for k in range(one.r)]
    return J, hats, torch.stack(delta, 1).flatten(2)


@theorem("thm-split")
@settings(max_examples=120)
@given(
    kinds, seeds, orders, boxes, radii, st.sampled_from([0.2, 1.0]), st.sampled_from([0.1, 1.0, 30.0])
)
def test_with_beta_of_the_right_signs_j_is_below_every_point_of_the_branch(
    kind, seed, p, box, eps, share, size
):
    one = Branch(kind, seed, p, box, eps, share, size, n=6)
    J, _, _ = passed(one, one.lines(), one.betas)
    kept = one.inside(one.a)
    assert kept.any(0).all()  # the point that the branch was made of
    assert (torch.einsum("mnk,nrk->mnr", one.z, one.c) >= J - EXACT * (1 + size))[kept].all()


@theorem("thm-split")
@given(seeds, st.sampled_from([-1.0, 1.0]))
def test_a_ray_of_the_relu_costs_nothing_where_nu_is_on_its_side_and_everything_elsewhere(seed, side):
    """On: sup of pa + qh over h = a ≥ 0. Off: over h = 0 ≥ a. With p = −ν and q = ν̂."""
    nu, hat = entries((2, 50), seed, "ties")
    ray = torch.logspace(-3, 6, 40).double()[:, None]
    a, h = side * ray, torch.clamp(side * ray, min=0)
    most = (-nu * a + hat * h).amax(0)
    free = nu >= hat if side > 0 else nu <= 0
    assert (most[free] <= EXACT).all()
    assert (most[~free] > 1e3).all()


@theorem("thm-forward")
@settings(max_examples=60)
@given(kinds, seeds, orders, boxes, radii)
def test_j_and_its_gradients_are_read_off_one_forward_pass(kind, seed, p, box, eps):
    """The gradients: every change of α and β within their limits gains at most what they promise."""
    one = Branch(kind, seed, p, box, eps, n=6)
    relus = one.lines()
    J, hats, delta = passed(one, relus, one.betas)
    a = dual.forward(one.pieces, relus, one.x, delta, hats)
    paid = sum((beta * pre).flatten(2).sum(2) for beta, pre in zip(one.betas, a, strict=False))
    torch.testing.assert_close((one.c * a[-1].view_as(one.c)).sum(2) - paid, J)
    slopes = [alpha.clamp(0.05, 0.95) for alpha in one.slopes]
    one.slopes, t = slopes, 1e-7
    relus = one.lines()
    J, hats, delta = passed(one, relus, one.betas)
    a = dual.forward(one.pieces, relus, one.x, delta, hats)
    smooth = torch.stack([(hat.abs() > 1e-3).flatten(2).all(2) for hat in hats]).all(0)
    moved_beta = [entries(beta.shape, seed + 1, "plain") * beta.sign().abs() for beta in one.betas]
    moved_alpha = [entries(alpha.shape, seed + 2, "plain") for alpha in slopes]
    promised = sum((-pre * move).flatten(2).sum(2) for pre, move in zip(a, moved_beta, strict=False))
    for pre, hat, move, (l, u) in zip(a, hats, moved_alpha, one.layers, strict=False):
        free = ((l < 0) & (u > 0))[:, None]
        promised = promised + (pre * (-hat).clamp(min=0) * move * free).flatten(2).sum(2)
    gained = []
    for step in (t, -t):
        one.slopes = [alpha + step * move for alpha, move in zip(slopes, moved_alpha, strict=True)]
        betas = [beta + step * move for beta, move in zip(one.betas, moved_beta, strict=True)]
        gained.append((passed(one, one.lines(), betas)[0] - J) / step)
    same = smooth & ((gained[0] - gained[1]).abs() < 1e-3 * (1 + promised.abs()))  # no kink in between
    assert (same | ~smooth).float().mean() > 0.5
    torch.testing.assert_close(gained[0][same], promised[same], rtol=1e-3, atol=1e-3)


@theorem("thm-shares")
@settings(max_examples=60)
@given(kinds, seeds, orders, boxes, radii, st.sampled_from([0.0, 0.5, 1.0]))
def test_the_gap_is_a_sum_of_what_each_unit_costs_and_what_is_paid_for_the_splits(
    kind, seed, p, box, eps, share
):
    """cᵀa_D at the δ of the pass is J + Σ |ν̂| |max(a, 0) − its line| + Σ βᵀa; J + shares without one."""
    one = Branch(kind, seed, p, box, eps, share, n=6)
    relus = one.lines()
    J, hats, delta = passed(one, relus, one.betas)
    for k in range(one.r):
        a, z = one.network(delta[:, k][None])
        here = [
            dual.lines(*pair) for pair in zip(one.layers, [s[:, [k]] for s in one.slopes], strict=True)
        ]
        own = [hat[:, [k]] for hat in hats]
        shares = leaves.share(leaves.View(one.layers, here, own, [each[0][:, None] for each in a]))
        assert all((part >= 0).all() for part in shares)
        gap = sum(part.flatten(1).sum(1) for part in shares)
        paid = sum(
            (beta[:, k] * each[0]).flatten(1).sum(1) for beta, each in zip(one.betas, a, strict=True)
        )
        kept = one.inside(a)[0]
        assert share or kept.all()
        value = (z[0] * one.c[:, k]).sum(1)
        torch.testing.assert_close(value[kept], (J[:, k] + gap + paid)[kept])


@theorem("thm-all-split")
@pytest.mark.parametrize("p", [1, 2, math.inf])
def test_with_every_unit_decided_the_best_beta_reach_the_minimum_over_the_branch(p):
    """None goes above it; those of a solver reach it. An empty branch has no largest J."""
    eps, found, empty = {1: 1.5, 2: 0.9, math.inf: 0.5}[p], 0, 0
    for seed, box in itertools.product((1, 3), (None, BOX)):
        model, x, y, ball = problem(seed, (3,), 1, p, eps, box, hidden=(4, 2), scale=3)
        model.requires_grad_(False)
        pieces, region, c = detached(model, x), ball.region(x), towards(y, 3)[:, [int(y == 0)]]
        root = bounds.pre_activations(model, x, ball, "crown")
        draw = seeded(seed)
        for turn in range(4):
            share = inputs((1, 3), seed + turn) - x if box else entries((1, 3), seed + turn, "plain")
            at = ball.project(share, x)  # the first pattern is that of a point
            flat = [torch.randint(0, 2, l.shape, generator=draw).double() * 2 - 1 for l, _ in root]
            h, signs = x + at, []
            for piece, other in zip(pieces, flat, strict=False):
                a = piece(h)
                signs.append(other if turn else torch.where(a >= 0, 1.0, -1.0).to(a))
                h = a.relu()
            unstable = [(l < 0) & (u > 0) for l, u in root]
            phases = [sign * mask for sign, mask in zip(signs, unstable, strict=True)]
            layers = dual.branch(root, phases)
            on = torch.cat(
                [
                    torch.where(m, s > 0, l >= 0)[0]
                    for m, s, (l, _) in zip(unstable, signs, root, strict=True)
                ]
            )
            least = minimum_of_pattern(pieces, x, ball, c[0, 0], on)
            relus = [dual.lines(pair, "crown") for pair in layers]
            size = [
                phase[:, None] * entries((1, 200, *phase.shape[1:]), seed, "uneven").abs()
                for phase in phases
            ]
            J = dual.bound(pieces, relus, x, region, c.expand(-1, 200, -1), size)
            assert not (least + SOLVED < J).any()
            _, betas = leaves.program(pieces, layers, x, region, c[0, 0], phases)
            best = dual.bound(pieces, relus, x, region, c, [beta[:, None] for beta in betas]).item()
            if math.isfinite(least):
                assert best == pytest.approx(least, abs=10 * SOLVED)
                found += 1
            elif math.isinf(minimum_of_pattern(pieces, x, ball, c[0, 0], on, slack=0.003)):
                grown = [1e3 * beta[:, None] for beta in betas]
                assert dual.bound(pieces, relus, x, region, c, grown).item() > best > 10
                empty += 1
    assert found > 3
    assert empty > 0 or p == math.inf


# ---- losses ----


MONOTONE = {
    "cross_entropy": losses.cross_entropy,
    "margin": losses.margin_loss,
    "log_odds": losses.log_odds,
}


@theorem("thm-loss")
@pytest.mark.parametrize("name", MONOTONE)
@given(seeds, st.sampled_from(["plain", "ties", "uneven"]))
def test_the_losses_do_not_change_with_a_shift_and_never_fall_when_a_rival_rises_or_the_true_class_falls(
    name, seed, kind
):
    loss, z = MONOTONE[name], entries((20, 4), seed, kind)
    y = torch.randint(0, 4, (20,), generator=seeded(seed))
    shift, rise = entries((20, 1), seed + 1, "plain"), entries((20, 4), seed + 2, "sparse").abs()
    slack = 1e-12 * (1 + z.abs().amax(1))
    assert ((loss(z + shift, y) - loss(z, y)).abs() <= slack).all()
    true = torch.nn.functional.one_hot(y, 4).bool()
    assert (loss(z + torch.where(true, -rise, rise), y) >= loss(z, y) - slack).all()
    for k in range(4):
        one = torch.where(torch.arange(4) == k, torch.where(true, -rise, rise), 0)
        assert (loss(z + one, y) >= loss(z, y) - slack).all()


@theorem("thm-robust-loss")
@settings(max_examples=40)
@given(
    st.sampled_from(list(NETWORKS)),
    seeds,
    orders,
    boxes,
    radii,
    st.sampled_from(["interval", "dual", "crown"]),
)
def test_no_perturbation_has_a_larger_loss_than_the_worst_logits(kind, seed, p, box, eps, method):
    model, x, y, ball = network_case(kind, seed, p, box, eps, n=10, each_eps=True)
    found = losses.worst_logits(bounds.margins(model, x, y, ball, method).detach())
    assert not found.gather(1, y[:, None]).any()  # column y is 0
    z = torch.cat([reached(model, x, ball), attacked(model, x, y, ball)])
    for name, loss in MONOTONE.items():
        worst = loss(z.flatten(0, 1), y.repeat(len(z))).reshape(len(z), -1)
        assert (worst <= loss(found, y) + EXACT).all(), name
        torch.testing.assert_close(
            bounds.robust_loss(model, x, y, ball, method, loss).detach(), loss(found, y)
        )


@theorem("thm-robust-loss")
@few
@given(seeds, boxes, st.sampled_from(["interval", "dual", "crown"]))
def test_a_sample_is_certified_where_its_margin_loss_is_negative_and_only_then(seed, box, method):
    model, x, y, ball = network_case("deep mlp", seed, box=box, eps=0.05, n=6)
    y = torch.where(torch.arange(6) < 4, model(x).argmax(1), y)
    certified = (bounds.margins(model, x, y, ball, method) > 0).all(1)
    assert torch.equal(certified, bounds.robust_loss(model, x, y, ball, method, losses.margin_loss) < 0)
    z = torch.cat([reached(model, x, ball), attacked(model, x, y, ball)])
    assert (z.argmax(2) == y)[:, certified].all()


@theorem("thm-robust-loss")
def test_the_worst_logits_are_those_of_a_linear_model_where_one_delta_is_worst_for_both_classes():
    """Two classes: one δ lowers z_y − z_k the most, and the loss there is the bound."""
    for seed, p, box in itertools.product(range(5), (1, 2, math.inf), (None, BOX)):
        model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 2)).double()
        model[1].weight.data, model[1].bias.data = (
            entries((2, 4), seed, "plain"),
            entries((2,), seed, "plain"),
        )
        x, y = inputs((3, 4), seed), torch.tensor([0, 1, 0])
        ball = Ball(p, 0.2, box)
        row = model[1].weight[1 - y] - model[1].weight[y]
        delta = ball.argmax(row.detach(), x if box else None)
        for loss in MONOTONE.values():
            torch.testing.assert_close(
                bounds.robust_loss(model, x, y, ball, "dual", loss), loss(model(x + delta), y)
            )
