"""Bounds: nothing in the ball crosses them, they are ordered, and exact where they can be."""

import copy
import math
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import (
    BOX,
    DTYPES,
    NETWORKS,
    ORDERS,
    Case,
    aimed,
    entries,
    inputs,
    network_case,
    on_patch,
    orders,
    problem,
    scaled,
    seeded,
    seeds,
)
from torch import nn

from adv_lib import _work, bounds, dual, exact, linear, losses, models
from adv_lib.affine import affine_pieces, sight
from adv_lib.bounds import Bounds
from adv_lib.threat import Ball

EXACT = 1e-9  # float64, and sums of a few terms of size up to 10
NEAR = 1e-6  # what a solver leaves, in the units of the logits
each_kind = pytest.mark.parametrize("kind", NETWORKS)
BACKWARD = tuple(dual.SLOPES)  # the methods that pass through the network backwards
ANY_BALL = ("interval", *BACKWARD)  # and those that take any p
each_method = pytest.mark.parametrize("method", bounds.METHODS)
any_ball = pytest.mark.parametrize("method", ANY_BALL)
backward = pytest.mark.parametrize("method", BACKWARD)
boxes = st.sampled_from([None, BOX])


@contextmanager
def float64_by_default():
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


def tries(model, x, y, ball, count=20):
    """(m, n, *shape): x + δ for random δ ∈ Δ(x), ends of axes, corners, and what attacks find."""
    one = Case(ball, x, x if ball.box else None)
    deltas = [one.points(count), *([one.corners(count)] if ball.p == math.inf else [])]
    deltas = torch.cat(deltas).reshape(-1, *x.shape).to(x.dtype)
    return x + torch.cat([deltas, aimed(model, x, y, ball)])


def into_every_relu(model, x):
    """What enters each ReLU when x runs through the model, (n, units) each, and the logits."""
    seen = []
    relus = {module for module in model.modules() if isinstance(module, nn.ReLU)}
    hooks = [relu.register_forward_pre_hook(lambda _, a: seen.append(a[0].flatten(1))) for relu in relus]
    with torch.no_grad():
        logits = model(x)
    for hook in hooks:
        hook.remove()
    return seen, logits


def differences(z, y):
    """z_y − z_k for every class k, +∞ at k = y."""
    margin = z.gather(1, y[:, None]) - z
    return margin.masked_fill(nn.functional.one_hot(y, z.shape[1]).bool(), math.inf)


def reached(model, x, y, ball):
    """What enters each ReLU, (m, n, units) each, and z_y − z_k, (m, n, K), at points of the ball."""
    moved = tries(model, x, y, ball)
    m = len(moved)
    seen, logits = into_every_relu(model, moved.flatten(0, 1))
    apart = differences(logits, y.repeat(m)).reshape(m, len(x), -1)
    return [a.reshape(m, len(x), -1) for a in seen], apart


def assert_nothing_crosses(points, layers, margins, slack=EXACT):
    seen, apart = points
    assert len(seen) == len(layers)
    for a, layer in zip(seen, layers, strict=True):
        assert (a >= layer.lower.flatten(1) - slack).all()
        assert (a <= layer.upper.flatten(1) + slack).all()
    assert (apart >= margins - slack).all()


# ---- whatever the caller's context and whatever the model is wrapped in ----


def whatever_proves(model, x, y, ball):
    """What everything that proves says of a network, as one list of tensors."""
    pieces, c = affine_pieces(model, x.shape[1:], x.dtype), torch.eye(3).to(x)[y][:, None]
    layers = bounds.pre_activations(model, x, ball, "crown")
    relus = [dual.lines(layer, "crown") for layer in layers]
    W, b = pieces[0].matrix()
    return [
        *(bounds.margins(model, x, y, ball, method, jobs=1) for method in bounds.METHODS),
        *(bounds.margins(model, x, y, Ball(p, 0.1, BOX), m) for p in (1, 2) for m in ANY_BALL),
        *(end for m in bounds.METHODS for end in bounds.pre_activations(model, x, ball, m, jobs=1)[0]),
        *bounds.interval(pieces[0], Bounds(x, x + 1)),
        *bounds.best_slopes(model, x, y, ball, steps=2),
        bounds.robust_loss(model, x, y, ball),
        dual.bound(pieces, relus, x, ball.region(x), c),
        dual.value(pieces, layers, x, ball, dual.multipliers(pieces, relus, c)[0]),
        exact.margins(model, x, y, ball, jobs=1).margins,
        exact.certify(model, x, y, ball, jobs=1).margins,
        linear.margins(W, b, x, y, ball),
        linear.robust_margin(W[0], b[0], x, x.new_ones(len(x)), ball),
        x.new_tensor(linear.robust_error(W[0], b[0], x, x.new_ones(len(x)), ball)),
    ]


CONTEXTS = {
    "autocast to bfloat16": lambda: torch.autocast("cpu", torch.bfloat16),
    "autocast to float16": lambda: torch.autocast("cpu", torch.float16),
    "inference mode": torch.inference_mode,
    "no gradients": torch.no_grad,
    "float64 by default": float64_by_default,
}


@pytest.mark.parametrize("context", CONTEXTS)
def test_a_proof_is_the_same_in_every_context_of_the_caller(context):
    model, x, y, ball = network_case("affine in eval mode", 3, eps=0.1, n=3)
    model, x = model.float(), x.float()
    expected = whatever_proves(model, x, y, ball)
    with CONTEXTS[context]():
        found = whatever_proves(model, x, y, ball)
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == other.dtype
        assert torch.equal(one, other)


def test_under_autocast_no_margin_is_proved_that_a_point_falsifies():
    """0.9981 · 100 + 0.1 and 100 are the same in bfloat16, and so is what an ε of 0.1 adds."""
    model = nn.Sequential(nn.Linear(1, 1), nn.ReLU(), nn.Linear(1, 2))
    for layer, w, b in ((model[0], [[1.0]], [0.0]), (model[2], [[0.9981], [1.0]], [0.1, 0.0])):
        layer.weight.data, layer.bias.data = torch.tensor(w), torch.tensor(b)
    x, y, ball = torch.tensor([[100.0]]), torch.tensor([0]), Ball(math.inf, 0.1)
    with torch.autocast("cpu", torch.bfloat16):
        found = [bounds.margins(model, x, y, ball, m, jobs=1)[0, 1].item() for m in bounds.METHODS]
    assert found == pytest.approx([0.1 - 0.0019 * 100.1] * 4, abs=1e-4)


def test_training_under_autocast_has_the_gradients_of_training_without():
    model, x, y, ball = network_case("affine in eval mode", 3, eps=0.1, n=3)
    model, x, gradients = model.float(), x.float(), []
    for on in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=on):
            model(x)  # leaves rounded weights in autocast's cache
            loss = bounds.robust_loss(model, x, y, ball).sum()
        gradients.append(torch.autograd.grad(loss, list(model.parameters())))
    assert all(torch.equal(*pair) for pair in zip(*gradients, strict=True))


@pytest.mark.parametrize("everywhere", [False, True])
def test_a_model_with_a_hook_is_refused_by_everything_that_proves(everywhere):
    model, x, y, ball = network_case("mlp", 0)
    negated = lambda module, _, out: -out if module is model else None  # noqa: E731
    add = nn.modules.module.register_module_forward_hook if everywhere else model.register_forward_hook
    hook = add(negated)
    try:
        for prove in (
            bounds.margins,
            bounds.robust_loss,
            bounds.best_slopes,
            exact.margins,
            exact.certify,
        ):
            with pytest.raises(ValueError, match="forward hook on layer ''"):
                prove(model, x, y, ball)
        with pytest.raises(ValueError, match="forward hook on layer ''"):
            bounds.pre_activations(model, x, ball)
    finally:
        hook.remove()
    bounds.margins(model, x, y, ball)


@settings(max_examples=5)
@given(seeds)
def test_batch_norm_in_training_mode_is_bounded_as_in_eval_mode_by_every_method_and_exactly(seed):
    model, x, y, ball = network_case("BatchNorm", seed, n=4)
    with torch.no_grad():
        moved = tries(model, x, y, ball)
        apart = differences(model(moved.flatten(0, 1)), y.repeat(len(moved)))
    model.train()
    least = exact.margins(model, x, y, ball, jobs=1)
    assert least.closed.all()
    for method in bounds.METHODS:
        found = bounds.margins(model, x, y, ball, method, jobs=1)
        assert (found <= least.attained + NEAR).all()
    assert (apart.reshape(-1, *least.margins.shape) >= least.margins - NEAR).all()
    assert (
        exact.certify(model, x, y, ball, jobs=1).are("robust") == (least.margins > NEAR).all(1)
    ).all()
    assert all(module.training for module in model.modules())


# ---- no point of the ball crosses a bound ----


# Each example is one network with many inputs: their pre-activations fall on either side of every kink.


@each_kind
@settings(max_examples=15)
@given(seeds, orders, boxes, st.sampled_from([0.0, 0.03, 0.3, 2.0]), st.booleans())
def test_no_point_of_the_ball_leaves_the_intervals(kind, seed, p, box, eps, each_eps):
    model, x, y, ball = network_case(kind, seed, p, box, eps, n=20, each_eps=each_eps)
    layers = bounds.pre_activations(model, x, ball)
    points = reached(model, x, y, ball)
    assert_nothing_crosses(points, layers, bounds.margins(model, x, y, ball))


@each_kind
@settings(max_examples=6)
@given(seeds, orders, boxes, st.sampled_from([0.0, 0.03, 0.3, 2.0]), st.booleans())
def test_no_point_of_the_ball_leaves_the_bounds_of_the_backward_passes(
    kind, seed, p, box, eps, each_eps
):
    """With either slopes, on either layer bounds, with random slopes and with the best ones."""
    model, x, y, ball = network_case(kind, seed, p, box, eps, n=20, each_eps=each_eps)
    points = reached(model, x, y, ball)
    plain = bounds.pre_activations(model, x, ball)
    for method in BACKWARD:
        layers = bounds.pre_activations(model, x, ball, method)
        assert_nothing_crosses(points, layers, bounds.margins(model, x, y, ball, method))
        found = bounds.margins(model, x, y, ball, method, layer_bounds=plain)
        assert_nothing_crosses(points, plain, found)
    best = bounds.best_slopes(model, x, y, ball, layer_bounds=layers, steps=3)
    anyhow = [inputs(layer.lower.shape, seed) for layer in layers]
    for slopes in (best, anyhow):
        found = bounds.margins(model, x, y, ball, "crown", layer_bounds=layers, slopes=slopes)
        assert_nothing_crosses(points, layers, found)


@each_kind
@settings(max_examples=10)
@given(seeds, boxes, st.sampled_from([0.0, 0.03, 0.3, 2.0]), st.booleans())
def test_no_unit_leaves_the_bounds_of_the_programs_and_backward_passes_prove_no_more_than_programs(
    kind, seed, box, eps, each_eps
):
    model, x, y, ball = network_case(kind, seed, math.inf, box, eps, each_eps=each_eps)
    layers = {m: bounds.pre_activations(model, x, ball, m, jobs=1) for m in bounds.METHODS}
    tight = bounds.margins(model, x, y, ball, "lp", jobs=1)
    assert_nothing_crosses(reached(model, x, y, ball), layers["lp"], tight)
    for tighter in (layers[m] for m in bounds.METHODS if m != "interval"):
        assert_inside_the_intervals(tighter, layers["interval"])
    for known in ("interval", "crown"):
        given = {"layer_bounds": layers[known]}
        program = bounds.margins(model, x, y, ball, "lp", **given, jobs=1)
        best = bounds.best_slopes(model, x, y, ball, **given, steps=3)
        for method, slopes in (("dual", None), ("crown", None), ("crown", best)):
            found = bounds.margins(model, x, y, ball, method, **given, slopes=slopes)
            assert (found <= program + NEAR).all()


def assert_inside_the_intervals(tighter, plain):
    for wide, narrow in zip(plain, tighter, strict=True):
        assert (narrow.lower >= wide.lower - EXACT).all()
        assert (narrow.upper <= wide.upper + EXACT).all()
        assert (narrow.lower <= narrow.upper).all()


@settings(max_examples=12)
@given(seeds, orders, boxes, st.sampled_from([0.0, 0.03, 0.3]))
def test_in_float32_nothing_leaves_them_by_more_than_rounding(seed, p, box, eps):
    model, x, y, ball = network_case("deep mlp", seed, p, box, eps, n=20)
    model, x = model.float(), x.float()
    points = reached(model, x, y, ball)
    for method in ANY_BALL:
        layers = bounds.pre_activations(model, x, ball, method)
        margins = bounds.margins(model, x, y, ball, method)
        assert_nothing_crosses(points, layers, margins, slack=1e-4)


@each_method
@each_kind
def test_a_ball_of_radius_0_has_the_margins_of_x(kind, method):
    for dtype, slack in ((torch.float64, EXACT), (torch.float32, 1e-4)):
        model, x, y, ball = network_case(kind, 0, eps=0.0, n=9)
        model, x = model.to(dtype), x.to(dtype)
        expected = differences(model(x).detach(), y).double()
        for chosen in (None, bounds.pre_activations(model, x, ball)):
            found = bounds.margins(model, x, y, ball, method, layer_bounds=chosen, jobs=1)
            torch.testing.assert_close(found.double(), expected, rtol=slack, atol=slack)


@pytest.mark.parametrize("eps", [0.0, 1e-8, 1e-7])
def test_float32_bounds_that_miss_the_whole_ball_by_rounding_certify_nothing(eps):
    """The linear program then has no point at all, which says something of the bounds only."""
    for seed in range(5):
        model = models.mlp([64, 50, 50, 5], seeded(seed))
        for parameter in model.parameters():
            parameter.data *= 3
        x, y, ball = inputs((3, 64), seed).float(), torch.tensor([0, 1, 2]), Ball(math.inf, eps)
        layers = bounds.pre_activations(model, x, ball)
        expected = differences(model(x).detach(), y).double()
        for method in bounds.METHODS:
            found = bounds.margins(model, x, y, ball, method, layer_bounds=layers, jobs=1)
            torch.testing.assert_close(found.double(), expected, rtol=0, atol=2e-4 + 1e4 * eps)
            assert (found <= expected + 2e-4).all()


@backward
@pytest.mark.parametrize("eps", [0.0, 1e-8, 1e-7])
def test_in_float32_the_two_passes_of_a_unit_never_contradict_each_other_by_rounding(eps, method):
    for seed in range(5):
        model = models.mlp([64, 50, 50, 50, 5], seeded(seed))
        for parameter in model.parameters():
            parameter.data *= 3
        x, y, ball = inputs((3, 64), seed).float(), torch.tensor([0, 1, 2]), Ball(math.inf, eps)
        for p in ORDERS:
            layers = bounds.pre_activations(model, x, Ball(p, eps), method)
            assert all((layer.lower <= layer.upper).all() for layer in layers)
        expected = differences(model(x).detach(), y)
        found = bounds.margins(model, x, y, ball, method)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-3 + 1e4 * eps)


# ---- exact where they can be ----


@settings(max_examples=30)
@given(st.sampled_from([k for k in NETWORKS if k != "linear"]), seeds, orders, boxes)
def test_the_ends_of_the_first_interval_are_reached_inside_the_ball(kind, seed, p, box):
    model, x, _, ball = network_case(kind, seed, p, box, n=10)
    layer = bounds.pre_activations(model, x, ball)[0]
    lower, upper = layer.lower.flatten(1), layer.upper.flatten(1)
    leaf = x.clone().requires_grad_()
    for j in range(lower.shape[1]):
        (slope,) = torch.autograd.grad(into_first_relu(model, leaf)[:, j].sum(), leaf)
        for end, sign in ((lower[:, j], -1), (upper[:, j], 1)):
            delta = ball.argmax(sign * slope, x)
            assert ball.contains(delta, x).all()
            reached = into_first_relu(model, x + delta)[:, j]
            torch.testing.assert_close(reached, end, rtol=EXACT, atol=EXACT)


def into_first_relu(model, x):
    seen = []
    relu = next(module for module in model.modules() if isinstance(module, nn.ReLU))
    hook = relu.register_forward_pre_hook(lambda _, a: seen.append(a[0].flatten(1)))
    model(x)
    hook.remove()
    return seen[0]


@given(seeds, orders, boxes, st.sampled_from([0.0, 0.1, 0.5]))
def test_without_a_relu_every_method_gives_the_margins_of_a_linear_model(seed, p, box, eps):
    model, x, y, ball = network_case("linear", seed, p, box, eps, each_eps=True)
    expected = linear.margins(*linear.weights(model), x, y, ball)
    for method in ANY_BALL:
        torch.testing.assert_close(bounds.margins(model, x, y, ball, method), expected)
        assert bounds.pre_activations(model, x, ball, method) == []
    assert bounds.best_slopes(model, x, y, ball) == []
    if p == math.inf:
        found = bounds.margins(model, x, y, ball, "lp", jobs=1)
        torch.testing.assert_close(found, expected.detach())
        assert bounds.pre_activations(model, x, ball, "lp") == []


@pytest.mark.parametrize("box", [None, BOX])
@pytest.mark.parametrize("p", ORDERS)
@pytest.mark.parametrize("method", [m for m in bounds.METHODS if m != "interval"])
def test_where_no_unit_is_unstable_all_but_intervals_are_exact(method, p, box):
    """All units on: the network is W₂ W₁ x + W₂ b₁ + b₂. All off: it is b₂."""
    if method == "lp" and p != math.inf:
        return
    for seed in range(5):
        model, x, y, ball = network_case("mlp", seed, p, box)
        (W, b), (V, a) = ((layer.weight, layer.bias) for layer in (model[1], model[3]))
        for shift in (50, -50):
            b.data.fill_(shift)
            on = float(shift > 0)
            found = bounds.margins(model, x, y, ball, method, jobs=1).detach()
            expected = linear.margins(on * V @ W, on * V @ b + a, x, y, ball).detach()
            torch.testing.assert_close(found, expected, rtol=EXACT, atol=EXACT)


# ---- in order ----


@backward
@each_kind
def test_every_unit_that_intervals_leave_unstable_has_the_better_of_both_bounds(kind, method):
    """Layer by layer: two passes from the unit with the slopes of the method, and the intervals."""
    for seed in range(3):
        model, x, _, ball = network_case(kind, seed, eps=0.5)
        model.requires_grad_(False)
        pieces, relus, h = affine_pieces(model, x.shape[1:]), [], None
        for depth, layer in enumerate(bounds.pre_activations(model, x, ball, method)):
            if h is not None:
                wide = bounds.interval(pieces[depth], h)
                one = torch.eye(wide.lower[0].numel(), dtype=torch.float64).expand(len(x), -1, -1)
                passes = [
                    sign * dual.bound(pieces[: depth + 1], relus, x, ball.region(x), sign * one)
                    for sign in (1, -1)
                ]
                least, most = (found.reshape(wide.lower.shape) for found in passes)
                unstable = (wide.lower < 0) & (wide.upper > 0)
                lower = torch.where(unstable, wide.lower.maximum(least), wide.lower)
                upper = torch.where(unstable, wide.upper.minimum(most), wide.upper)
                torch.testing.assert_close(layer.lower, lower)
                torch.testing.assert_close(layer.upper, upper)
            relus.append(dual.lines(layer, method))
            h = Bounds(layer.lower.relu(), layer.upper.relu())


def test_of_intervals_dual_and_crown_none_is_always_the_tightest():
    wins = set()
    for seed in range(40):
        model, x, y, ball = network_case("deep mlp", seed, eps=0.15)
        found = {method: bounds.margins(model, x, y, ball, method) for method in ANY_BALL}
        others = found["dual"] < math.inf
        for one in ANY_BALL:
            for other in ANY_BALL:
                if (found[one] > found[other] + 1e-3)[others].any():
                    wins.add((one, other))
    assert {("dual", "crown"), ("crown", "dual"), ("interval", "dual"), ("dual", "interval")} <= wins


@settings(max_examples=10)
@given(seeds, orders, boxes, st.sampled_from([0.1, 0.5]))
def test_the_best_slopes_are_never_worse_than_those_they_began_with(seed, p, box, eps):
    model, x, y, ball = network_case("deep mlp", seed, p, box, eps, n=10, each_eps=True)
    for layers in (None, bounds.pre_activations(model, x, ball)):
        usual = bounds.margins(model, x, y, ball, "crown", layer_bounds=layers)
        for steps in (0, 1, 8):
            slopes = bounds.best_slopes(model, x, y, ball, layer_bounds=layers, steps=steps)
            found = bounds.margins(model, x, y, ball, "crown", layer_bounds=layers, slopes=slopes)
            assert (found >= usual - EXACT).all()
            if steps == 0:
                torch.testing.assert_close(found, usual)


def test_the_best_slopes_are_often_better():
    better = 0
    for seed in range(5):
        model, x, y, ball = network_case("deep mlp", seed, eps=0.5)
        slopes = bounds.best_slopes(model, x, y, ball)
        found = bounds.margins(model, x, y, ball, "crown", slopes=slopes)
        better += int((found > bounds.margins(model, x, y, ball, "crown") + 0.01).sum())
    assert better >= 8


def test_all_three_differ_on_a_deep_network():
    model, x, y, ball = network_case("deep mlp", 0)
    plain = bounds.pre_activations(model, x, ball)
    interval = bounds.margins(model, x, y, ball)
    on_plain = bounds.margins(model, x, y, ball, "lp", layer_bounds=plain, jobs=1)
    on_tight = bounds.margins(model, x, y, ball, "lp", jobs=1)
    others = interval < math.inf
    assert (on_plain > interval + 0.01)[others].any()
    assert (on_tight > on_plain + 0.01)[others].any()


@settings(max_examples=10)
@given(seeds, boxes)
def test_a_larger_ball_never_has_a_larger_margin(seed, box):
    model, x, y, _ = network_case("deep mlp", seed, box=box)
    for method, p in (("interval", 1), ("interval", 2), ("interval", math.inf), ("lp", math.inf)):
        grid = [Ball(p, eps, box) for eps in (0.0, 0.01, 0.1, 0.5, 1.5)]
        found = torch.stack([bounds.margins(model, x, y, ball, method, jobs=1) for ball in grid])
        others = found[0] < math.inf
        assert (found.diff(dim=0)[:, others] <= NEAR).all()


# ---- bounds of one's own ----


@each_method
def test_margins_are_built_on_the_bounds_that_are_given(method):
    for seed in range(5):
        model, x, y, ball = network_case("deep mlp", seed)
        layers = bounds.pre_activations(model, x, ball, method, jobs=1)
        usual = bounds.margins(model, x, y, ball, method, jobs=1)
        same = bounds.margins(model, x, y, ball, method, layer_bounds=layers, jobs=1)
        torch.testing.assert_close(same, usual, rtol=NEAR, atol=NEAR)
        wide = [Bounds(layer.lower - 1, layer.upper + 1) for layer in layers]
        looser = bounds.margins(model, x, y, ball, method, layer_bounds=wide, jobs=1)
        assert (looser < usual - 0.1)[usual < math.inf].all()


@settings(max_examples=20)
@given(seeds, orders, boxes)
def test_on_given_bounds_with_given_slopes_both_backward_methods_are_one(seed, p, box):
    model, x, y, ball = network_case("deep mlp", seed, p, box)
    layers = bounds.pre_activations(model, x, ball)
    names = {m: [dual.lines(layer, m).lower.squeeze(1) for layer in layers] for m in BACKWARD}
    for method, other in (BACKWARD, BACKWARD[::-1]):
        usual = bounds.margins(model, x, y, ball, method, layer_bounds=layers)
        same = bounds.margins(model, x, y, ball, other, layer_bounds=layers, slopes=names[method])
        torch.testing.assert_close(same, usual)


@pytest.mark.parametrize("kind", ["deep mlp", "dilated, in groups", "ReLU last"])
@backward
def test_slopes_may_be_one_for_each_class(kind, method):
    """The margin towards a class depends on the slopes of that class only."""
    model, x, y, ball = network_case(kind, 0, eps=0.5)
    layers = bounds.pre_activations(model, x, ball)
    K = model(x).shape[1]
    shared = [inputs(layer.lower.shape, 3) for layer in layers]
    each = [alpha.unsqueeze(1).expand(-1, K, *alpha.shape[1:]) for alpha in shared]
    usual = bounds.margins(model, x, y, ball, method, slopes=shared)
    torch.testing.assert_close(bounds.margins(model, x, y, ball, method, slopes=each), usual)
    other = [inputs(alpha.shape, 4) for alpha in each]
    mixed = [torch.cat([a[:, :1], b[:, 1:]], 1) for a, b in zip(each, other, strict=True)]
    found = bounds.margins(model, x, y, ball, method, slopes=mixed)
    torch.testing.assert_close(found[:, 0], usual[:, 0])


def test_slopes_of_units_that_are_on_or_off_play_no_part():
    model, x, y, ball = network_case("deep mlp", 1)
    layers = bounds.pre_activations(model, x, ball)
    unstable = [(layer.lower < 0) & (layer.upper > 0) for layer in layers]
    assert any(mask.any() for mask in unstable)
    slopes = [inputs(mask.shape, 0) for mask in unstable]
    other = [torch.where(m, a, 1 - a) for m, a in zip(unstable, slopes, strict=True)]
    one, two = (
        bounds.margins(model, x, y, ball, "dual", layer_bounds=layers, slopes=s) for s in (slopes, other)
    )
    assert torch.equal(one, two)


def test_bounds_in_float64_serve_a_network_in_float32():
    model, x, y, ball = network_case("deep mlp", 0)
    expected = bounds.margins(
        model, x, y, ball, layer_bounds=bounds.pre_activations(model, x, ball, "lp")
    )
    model, x = model.float(), x.float()
    tight = bounds.pre_activations(model, x, ball, "lp")
    assert tight[0].lower.dtype == torch.float64
    found = bounds.margins(model, x, y, ball, layer_bounds=tight)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-4)
    slopes = bounds.best_slopes(model, x, y, ball, layer_bounds=tight)
    assert {alpha.dtype for alpha in slopes} == {torch.float32}
    given = [alpha.double() for alpha in slopes]
    found = bounds.margins(model, x, y, ball, "crown", layer_bounds=tight, slopes=given)
    assert found.dtype == torch.float32


# ---- what comes back ----


@each_method
@pytest.mark.parametrize("dtype", DTYPES)
@each_kind
def test_bounds_have_the_shape_of_their_layer_and_margins_one_row_a_sample(kind, dtype, method):
    model, x, y, ball = network_case(kind, 0, n=3)
    model, x = model.to(dtype), x.to(dtype)
    expected = torch.float64 if method == "lp" else dtype
    layers = bounds.pre_activations(model, x, ball, method, jobs=1)
    shapes = [(3, *piece.shape_out) for piece in affine_pieces(model, x.shape[1:])[:-1]]
    for end in (0, 1):
        assert [tuple(layer[end].shape) for layer in layers] == shapes
        assert all(layer[end].dtype == expected for layer in layers)
    margins = bounds.margins(model, x, y, ball, method, jobs=1)
    assert (margins.dtype, margins.shape) == (expected, model(x).shape)
    assert torch.equal(margins == math.inf, nn.functional.one_hot(y, margins.shape[1]).bool())


@pytest.mark.parametrize("dtype", DTYPES)
@each_kind
def test_the_best_slopes_have_the_shape_of_their_layer_one_for_each_class(kind, dtype):
    model, x, y, ball = network_case(kind, 0, n=3)
    model, x = model.to(dtype), x.to(dtype)
    found = bounds.best_slopes(model, x, y, ball, steps=2)
    shapes = [piece.shape_out for piece in affine_pieces(model, x.shape[1:])[:-1]]
    assert [tuple(alpha.shape) for alpha in found] == [
        (3, model(x).shape[1], *shape) for shape in shapes
    ]
    assert all(alpha.dtype == dtype and not alpha.requires_grad for alpha in found)
    assert all(((alpha >= 0) & (alpha <= 1)).all() for alpha in found)


def test_the_bounds_of_a_convolution_have_channels_height_and_width():
    model, x, _, ball = network_case("dilated, in groups", 0)
    for method in bounds.METHODS:
        layers = bounds.pre_activations(model, x, ball, method)
        assert [tuple(layer.lower.shape) for layer in layers] == [(2, 4, 3, 2), (2, 2, 3, 2)]


@settings(max_examples=20)
@given(st.sampled_from(list(NETWORKS)), seeds, orders, boxes)
def test_every_sample_is_bounded_by_itself_and_by_its_own_radius(kind, seed, p, box):
    model, x, y, ball = network_case(kind, seed, p, box, n=3, each_eps=True)
    for method in bounds.METHODS if p == math.inf else ANY_BALL:
        together = bounds.margins(model, x, y, ball, method, jobs=1)
        layers = bounds.pre_activations(model, x, ball, method, jobs=1)
        for i in range(3):
            alone = replace(ball, eps=ball.eps[i].item())
            one = bounds.margins(model, x[i : i + 1], y[i : i + 1], alone, method, jobs=1)
            torch.testing.assert_close(together[i : i + 1], one, rtol=NEAR, atol=NEAR)
            found = bounds.pre_activations(model, x[i : i + 1], alone, method, jobs=1)
            for a, b in zip(found, layers, strict=True):
                torch.testing.assert_close(a.lower, b.lower[i : i + 1], rtol=NEAR, atol=NEAR)
                torch.testing.assert_close(a.upper, b.upper[i : i + 1], rtol=NEAR, atol=NEAR)


def assert_same_bounds(one, other):
    """The same margins and layers, by every method that takes this p."""
    for method in bounds.METHODS if one[-1].p == math.inf else ANY_BALL:
        a, b = (bounds.margins(*inputs, method, jobs=1) for inputs in (one, other))
        torch.testing.assert_close(a, b, rtol=NEAR, atol=NEAR)
        a, b = (
            bounds.pre_activations(model, x, ball, method, jobs=1) for model, x, _, ball in (one, other)
        )
        for here, there in zip(a, b, strict=True):
            torch.testing.assert_close(here.lower, there.lower, rtol=NEAR, atol=NEAR)
            torch.testing.assert_close(here.upper, there.upper, rtol=NEAR, atol=NEAR)


@settings(max_examples=10)
@given(seeds, orders, st.sampled_from([(), (6,), (5, 4)]))
def test_a_radius_for_each_entry_is_one_radius_for_inputs_in_other_units(seed, p, hidden):
    model, x, y, _ = problem(seed, (2, 3), 3, box=None, hidden=hidden, scale=2)
    c = 4 ** (2 * torch.rand((1, 2, 3), generator=seeded(seed), dtype=torch.float64) - 1)
    there = scaled(model, c), x / c, y, Ball(p, 0.3)
    assert_same_bounds((model, x, y, Ball(p, 0.3 * c)), there)


@settings(max_examples=10)
@given(seeds, orders, boxes, st.sampled_from([(), (6,), (5, 4)]))
def test_a_patch_is_a_network_that_sees_nothing_else(seed, p, box, hidden):
    model, x, y, _ = problem(seed, (2, 3), 1, box=box, hidden=hidden, scale=2)
    free = torch.tensor([[[1, 1, 0], [0, 1, 0]]], dtype=torch.bool)
    there = on_patch(model, x, free), x[free][None], y, Ball(p, 0.3, box)
    assert_same_bounds((model, x, y, Ball(p, 0.3 * free, box)), there)


BUDGETS, SPLIT = (1, 30, 200), ("deep mlp", "dilated, in groups", "linear")
LATIN = [(SPLIT[i], BUDGETS[(i + j) % 3], ORDERS[j]) for i in range(3) for j in range(3)]


@pytest.mark.parametrize(("kind", "budget", "p"), LATIN)
def test_however_little_memory_there_is_the_numbers_are_the_same(kind, budget, p, monkeypatch):
    model, x, y, ball = network_case(kind, 0, p, eps=0.5, n=4, each_eps=True)
    plain = bounds.pre_activations(model, x, ball)

    def everything():
        for method in ANY_BALL:
            yield from (end for pair in bounds.pre_activations(model, x, ball, method) for end in pair)
            yield bounds.margins(model, x, y, ball, method)
            yield bounds.margins(model, x, y, ball, method, layer_bounds=plain)
        slopes = bounds.best_slopes(model, x, y, ball, steps=3)
        yield from slopes
        yield bounds.margins(model, x, y, ball, "crown", slopes=slopes)
        yield bounds.margins(model, x, y, ball, "dual", slopes=[inputs(l.lower.shape, 0) for l in plain])

    whole = list(everything())
    monkeypatch.setattr(_work, "BUDGET", budget)
    for found, expected in zip(everything(), whole, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


def test_the_boxes_of_the_programs_reach_as_far_as_eps_says_in_float64():
    """0.7 in float32 is smaller than 0.7."""
    model, x, _, _ = network_case("mlp", 0, box=None)
    (_, lower, upper), *_ = bounds.problems(affine_pieces(model, (4,)), x, Ball(math.inf, 0.7))
    np.testing.assert_array_equal(lower, (x[0] - 0.7).numpy())
    np.testing.assert_array_equal(upper, (x[0] + 0.7).numpy())


# ---- gradients ----


BALLS = [(p, box) for box in (None, BOX) for p in ORDERS]
TWO_BALLS = [  # every kind of network with every method, and each of both in all six balls
    (kind, method, *BALLS[(i + 2 * j + k) % 6])
    for i, kind in enumerate(NETWORKS)
    for j, method in enumerate(ANY_BALL)
    for k in (0, 3)
]


@pytest.mark.parametrize(("kind", "method", "p", "box"), TWO_BALLS)
def test_bounds_and_their_margins_have_the_gradients_that_differences_show(kind, box, p, method):
    model, x, y, ball = network_case(kind, 7, p, box)
    parameters = list(model.parameters())
    directions = [entries(w.shape, i, "plain") for i, w in enumerate(parameters)]

    def total():
        margins = bounds.margins(model, x, y, ball, method)
        layers = bounds.pre_activations(model, x, ball, method)
        ends = sum((layer.upper.sum() - 2 * layer.lower.sum()) for layer in layers)
        return margins[margins < math.inf].sum() + ends

    slopes = torch.autograd.grad(total(), parameters)
    expected = sum((s * v).sum() for s, v in zip(slopes, directions, strict=True)).item()
    values = []
    for step in (1e-6, -1e-6):
        for w, v in zip(parameters, directions, strict=True):
            w.data += step * v
        values.append(total().item())
        for w, v in zip(parameters, directions, strict=True):
            w.data -= step * v
    assert (values[0] - values[1]) / 2e-6 == pytest.approx(expected, rel=1e-5, abs=1e-5)
    with torch.no_grad():
        assert not bounds.margins(model, x, y, ball, method).requires_grad
        torch.testing.assert_close(total(), torch.tensor(values).double().mean(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["deep mlp", "convolution"])
def test_margins_are_differentiable_in_the_slopes_and_in_the_bounds_they_build_on(kind):
    model, x, y, ball = network_case(kind, 0, eps=1.0, n=1)
    model.requires_grad_(False)
    layers = bounds.pre_activations(model, x, ball)
    ends = [end.clone().requires_grad_() for pair in layers for end in pair]
    slopes = [(0.1 + 0.8 * inputs(l.lower.shape, 0)).requires_grad_() for l in layers]

    def margins(*given):
        pairs = [
            Bounds(*pair) for pair in zip(given[: len(ends) : 2], given[1 : len(ends) : 2], strict=True)
        ]
        found = bounds.margins(model, x, y, ball, "dual", layer_bounds=pairs, slopes=given[len(ends) :])
        return found[found < math.inf]

    assert margins(*ends, *slopes).requires_grad
    assert torch.autograd.gradcheck(margins, (*ends, *slopes))


@any_ball
def test_no_gradient_is_nan_or_infinite_where_units_touch_0(method):
    """Weights and inputs of whole numbers: bounds of exactly 0, equal ones, ties of every kind."""
    for seed in range(20):
        model, x, y, ball = network_case("deep mlp", seed, eps=1.0, box=None)
        for weights in model.parameters():
            weights.data.round_()
        x = x.round()
        margins = bounds.margins(model, x, y, ball, method)
        parameters = list(model.parameters())
        slopes = torch.autograd.grad(margins[margins < math.inf].sum(), parameters, allow_unused=True)
        assert all(slope is None or slope.isfinite().all() for slope in slopes)


@any_ball
def test_a_network_can_be_trained_to_be_certified_by_them(method):
    model, x, y, ball = network_case("mlp", 1, n=4, eps=0.02)
    x = torch.eye(4, dtype=torch.float64)
    parameters = list(model.parameters())
    assert (bounds.margins(model, x, y, ball, method).amin(1) <= 0).any()
    for _ in range(60):
        margins = bounds.margins(model, x, y, ball, method)
        loss = nn.functional.softplus(-margins[margins < math.inf]).mean()
        for w, slope in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
            w.data -= 0.3 * slope
    assert (bounds.margins(model, x, y, ball, method) > 0).all()


# ---- a loss that no perturbation exceeds ----


LOSSES = {
    "cross_entropy": losses.cross_entropy,
    "margin": losses.margin_loss,
    "log_odds": losses.log_odds,
}
each_loss = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)


@each_loss
@any_ball
@each_kind
def test_in_a_ball_of_radius_0_it_is_the_loss(kind, method, loss):
    model, x, y, ball = network_case(kind, 0, eps=0.0, n=9)
    found = bounds.robust_loss(model, x, y, ball, method, loss)
    torch.testing.assert_close(found, loss(model(x), y), rtol=EXACT, atol=EXACT)


@any_ball
@given(seeds, orders, boxes, st.sampled_from([0.0, 0.1, 0.5]))
def test_of_a_linear_model_it_is_the_bound_that_chapter_1_has(method, seed, p, box, eps):
    model, x, y, ball = network_case("linear", seed, p, box, eps, each_eps=True)
    expected = linear.robust_cross_entropy_bound(*linear.weights(model), x, y, ball)
    torch.testing.assert_close(bounds.robust_loss(model, x, y, ball, method), expected)


def test_it_is_cross_entropy_by_the_dual_network_unless_asked_for_something_else():
    model, x, y, ball = network_case("deep mlp", 0)
    found = bounds.robust_loss(model, x, y, ball)
    assert torch.equal(found, bounds.robust_loss(model, x, y, ball, "dual", losses.cross_entropy))
    logits = losses.worst_logits(bounds.margins(model, x, y, ball, "dual"))
    assert torch.equal(found, nn.functional.cross_entropy(logits, y, reduction="none"))


@each_loss
@pytest.mark.parametrize("kind", ["deep mlp", "convolution"])
@any_ball
def test_it_has_gradients_in_all_weights_and_leaves_none_behind(method, kind, loss):
    model, x, y, ball = network_case(kind, 0, n=4)
    parameters = list(model.parameters())
    slopes = torch.autograd.grad(bounds.robust_loss(model, x, y, ball, method, loss).sum(), parameters)
    assert all(slope.isfinite().all() for slope in slopes)
    assert any(slope.any() for slope in slopes)
    assert all(weights.grad is None for weights in parameters)


# ---- several at a time ----


def test_parallel_map_keeps_the_order_whoever_is_first():
    from time import sleep

    def slow(i):
        sleep(0.02 * (3 - i % 4))
        return i

    assert _work.parallel_map(slow, [(i,) for i in range(8)], jobs=4) == list(range(8))
    assert _work.parallel_map(slow, []) == []


def test_several_jobs_have_one_thread_of_pytorch_each_and_whoever_asks_keeps_his_own():
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        assert set(_work.parallel_map(torch.get_num_threads, [()] * 8, jobs=2)) == {1}
        assert _work.parallel_map(torch.get_num_threads, [()] * 8, jobs=1) == [3] * 8
        assert _work.parallel_map(torch.get_num_threads, [()], jobs=2) == [3]
        with ThreadPoolExecutor(1) as later:
            assert later.submit(torch.get_num_threads).result() == torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


def test_a_bar_is_shown_on_stdout_only_and_only_when_asked_for(capfd):
    tasks = [(i,) for i in range(3)]
    _work.parallel_map(abs, tasks, progress=True)
    shown = capfd.readouterr()
    assert "0/3" in shown.out
    assert shown.err == ""
    for progress in (None, False):  # None: stdout is no terminal here
        _work.parallel_map(abs, tasks, progress=progress)
        assert capfd.readouterr() == ("", "")


def test_several_at_a_time_give_what_one_after_the_other_gives():
    model, x, y, ball = network_case("deep mlp", 0, n=4)
    one, two = (bounds.margins(model, x, y, ball, "lp", jobs=jobs) for jobs in (1, 2))
    assert torch.equal(one, two)
    alone, both = (bounds.pre_activations(model, x, ball, "lp", jobs=jobs) for jobs in (1, 2))
    for a, b in zip(alone, both, strict=True):
        assert torch.equal(a.lower, b.lower)
        assert torch.equal(a.upper, b.upper)


# ---- on a GPU ----


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@any_ball
@pytest.mark.parametrize("p", ORDERS)
@pytest.mark.parametrize("kind", ["deep mlp", "dilated, in groups", "ReLU first"])
def test_a_gpu_gives_what_the_cpu_gives(kind, p, method):
    model, x, y, ball = network_case(kind, 0, p, eps=0.5, n=4, each_eps=True)
    here, there = (model, x, y), (copy.deepcopy(model).cuda(), x.cuda(), y.cuda())

    def everything(model, x, y):
        yield from (end for pair in bounds.pre_activations(model, x, ball, method) for end in pair)
        yield bounds.margins(model, x, y, ball, method)
        yield bounds.robust_loss(model, x, y, ball, method)
        if method in BACKWARD:
            slopes = bounds.best_slopes(model, x, y, ball, steps=3)
            yield bounds.margins(model, x, y, ball, method, slopes=slopes)

    for expected, found in zip(everything(*here), everything(*there), strict=True):
        assert found.device.type == "cuda"
        torch.testing.assert_close(found.cpu(), expected, rtol=NEAR, atol=NEAR)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("method", ["interval", "crown"])
def test_the_linear_programs_take_what_stands_on_a_gpu(method):
    model, x, y, ball = network_case("deep mlp", 0)
    there = copy.deepcopy(model).cuda(), x.cuda(), y.cuda(), ball
    layers = bounds.pre_activations(there[0], there[1], ball, method)
    found = bounds.margins(*there, "lp", layer_bounds=layers)
    assert found.device.type == "cuda"
    here = bounds.pre_activations(model, x, ball, method)
    expected = bounds.margins(model, x, y, ball, "lp", layer_bounds=here)
    torch.testing.assert_close(found.cpu(), expected, rtol=NEAR, atol=NEAR)


# ---- what one unit of a convolution sees ----

CONVOLUTIONS = {
    "strides and padding": (
        (1, 8, 8),
        lambda: [
            *(nn.Conv2d(1, 3, 3, 2, 1), nn.ReLU(), nn.Conv2d(3, 4, 3, 1, 1), nn.ReLU()),
            *(nn.Conv2d(4, 2, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(2, 3)),
        ],
    ),
    "uneven, in groups": (
        (2, 9, 7),
        lambda: [
            *(nn.Conv2d(2, 4, (3, 2), (2, 1), (1, 0), dilation=(1, 2)), nn.ReLU()),
            *(nn.Conv2d(4, 6, 2, 2, 1, groups=2), nn.ReLU(), nn.Flatten(), nn.Linear(54, 3)),
        ],
    ),
    "all at once": (
        (1, 6, 6),
        lambda: [
            *(nn.Conv2d(1, 2, 5, 1, 2), nn.ReLU(), nn.Conv2d(2, 3, 6), nn.ReLU()),
            *(nn.Flatten(), nn.Linear(3, 3)),
        ],
    ),
    "many channels": (
        (6, 6, 6),
        lambda: [
            *(nn.Conv2d(6, 6, 3, 1, "same"), nn.ReLU(), nn.Conv2d(6, 8, 3, 2), nn.ReLU()),
            *(nn.Flatten(), nn.Linear(32, 3)),
        ],
    ),
}


@pytest.mark.parametrize("kind", CONVOLUTIONS)
@pytest.mark.parametrize("p", [1, 2, math.inf])
def test_the_window_that_a_unit_sees_gives_the_bounds_of_the_whole_network(kind, p, monkeypatch):
    shape, layers = CONVOLUTIONS[kind]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, x = nn.Sequential(*layers()).double(), torch.rand(3, *shape, dtype=torch.float64)
        each = 0.2 * torch.rand(3, *shape, dtype=torch.float64)
    y, pieces = model(x).argmax(1), affine_pieces(model, shape)
    windowed = bool(sight(pieces[:2])[1])  # there is a smaller network
    assert windowed is (kind != "all at once")
    for ball in (Ball(p, 0.1, BOX), Ball(p, each), Ball(p, torch.tensor([0.0, 0.1, 0.3]).double(), BOX)):

        def found(ball=ball):
            margins = {m: bounds.margins(model, x, y, ball, m) for m in ("dual", "crown")}
            finite = margins["dual"].isfinite()
            total = sum(each[finite].sum() for each in margins.values())
            gradients = torch.autograd.grad(total, list(model.parameters()))
            with torch.no_grad():
                layers = bounds.pre_activations(model, x, ball, "crown")
                tight = bounds.tightened([q.detach() for q in pieces], layers, x, ball.region(x))
            ends = [end for layer in (*layers, *tight) for end in layer]
            return [*(m.detach()[finite] for m in margins.values()), *gradients, *ends]

        by_windows = found()
        with monkeypatch.context() as patch:
            patch.setattr(bounds, "sight", lambda pieces: (list(pieces), []))
            for one, other in zip(by_windows, found(), strict=True):
                torch.testing.assert_close(one, other)
