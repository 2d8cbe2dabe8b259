"""Bounds: nothing in the ball crosses them, they are ordered, and exact where they can be."""

import math
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
    entries,
    inputs,
    network,
    orders,
    seeded,
    seeds,
)
from torch import nn

from adv_lib import attacks, bounds, linear, models
from adv_lib.bounds import Bounds
from adv_lib.threat import Ball

EXACT = 1e-9  # float64, and sums of a few terms of size up to 10
NEAR = 1e-6  # what a solver leaves, in the units of the logits
each_kind = pytest.mark.parametrize("kind", NETWORKS)
each_method = pytest.mark.parametrize("method", bounds.METHODS)
boxes = st.sampled_from([None, BOX])


def case(kind, seed, p=math.inf, box=BOX, eps=0.3, n=2, each_eps=False):
    """A random network of this kind, inputs that fit it, labels, and a ball."""
    model, shape = network(kind, seed), NETWORKS[kind][0]
    x = inputs((n, *shape), seed) if box else entries((n, *shape), seed, "plain")
    K = model(x).shape[1]
    y = torch.randint(0, K, (n,), generator=seeded(seed))
    if each_eps:
        eps = eps * torch.rand(n, generator=seeded(seed), dtype=torch.float64)
    return model, x, y, Ball(p, eps, box)


def tries(model, x, y, ball, count=20):
    """(m, n, *shape): x + δ for random δ ∈ Δ(x), ends of axes, corners, and what attacks find."""
    n, d = len(x), x[0].numel()
    one = Case(ball, x, x if ball.box else None)
    deltas = [*one.points(count)]
    if ball.p == math.inf:
        deltas += [one.inside(entries((n, d), seed, "plain").sign()) for seed in range(count)]
    deltas = [delta.reshape(x.shape).to(x.dtype) for delta in deltas]
    K = model(x).shape[1]
    for step in range(1, K):  # towards every other class
        deltas.append(attacks.pgd(model, x, y, ball, steps=5, targets=(y + step) % K))
    return x + torch.stack(deltas)


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


def assert_nothing_crosses(model, x, y, ball, layers, margins, slack=EXACT):
    moved = tries(model, x, y, ball)
    m = len(moved)
    seen, logits = into_every_relu(model, moved.flatten(0, 1))
    assert len(seen) == len(layers)
    for a, layer in zip(seen, layers, strict=True):
        a = a.reshape(m, len(x), -1)
        assert (a >= layer.lower.flatten(1) - slack).all()
        assert (a <= layer.upper.flatten(1) + slack).all()
    reached = differences(logits, y.repeat(m)).reshape(m, len(x), -1)
    assert (reached >= margins - slack).all()


# ---- no point of the ball crosses a bound ----


@each_kind
@settings(max_examples=60)
@given(seeds, orders, boxes, st.sampled_from([0.0, 0.03, 0.3, 2.0]), st.booleans())
def test_no_point_of_the_ball_leaves_the_intervals(kind, seed, p, box, eps, each_eps):
    model, x, y, ball = case(kind, seed, p, box, eps, each_eps=each_eps)
    layers = bounds.pre_activations(model, x, ball)
    assert_nothing_crosses(model, x, y, ball, layers, bounds.margins(model, x, y, ball))


@each_kind
@settings(max_examples=10)
@given(seeds, boxes, st.sampled_from([0.0, 0.03, 0.3, 2.0]), st.booleans())
def test_no_point_of_the_cube_leaves_the_bounds_of_the_linear_programs(kind, seed, box, eps, each_eps):
    model, x, y, ball = case(kind, seed, math.inf, box, eps, each_eps=each_eps)
    layers = bounds.pre_activations(model, x, ball, "lp", jobs=1)
    for chosen in (None, layers, bounds.pre_activations(model, x, ball)):
        margins = bounds.margins(model, x, y, ball, "lp", layer_bounds=chosen, jobs=1)
        assert_nothing_crosses(model, x, y, ball, layers, margins)


@settings(max_examples=30)
@given(seeds, orders, boxes, st.sampled_from([0.0, 0.03, 0.3]))
def test_in_float32_nothing_leaves_them_by_more_than_rounding(seed, p, box, eps):
    model, x, y, ball = case("deep mlp", seed, p, box, eps)
    model, x = model.float(), x.float()
    layers, margins = bounds.pre_activations(model, x, ball), bounds.margins(model, x, y, ball)
    assert_nothing_crosses(model, x, y, ball, layers, margins, slack=1e-4)


@each_method
@each_kind
def test_a_ball_of_radius_0_has_the_margins_of_x(kind, method):
    for seed in range(3):
        for dtype, slack in ((torch.float64, EXACT), (torch.float32, 1e-4)):
            model, x, y, ball = case(kind, seed, eps=0.0, n=3)
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
        found = bounds.margins(model, x, y, ball, "lp", layer_bounds=layers, jobs=1)
        expected = differences(model(x).detach(), y).double()
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-4 + 1e4 * eps)
        assert (found <= expected + 1e-4).all()


# ---- exact where they can be ----


@settings(max_examples=60)
@given(st.sampled_from([k for k in NETWORKS if k != "linear"]), seeds, orders, boxes)
def test_the_ends_of_the_first_interval_are_reached_inside_the_ball(kind, seed, p, box):
    model, x, _, ball = case(kind, seed, p, box)
    layer = bounds.pre_activations(model, x, ball)[0]
    lower, upper = layer.lower.flatten(1), layer.upper.flatten(1)
    for i in range(len(x)):
        inside = Ball(p, ball.eps, box)
        for j in range(lower.shape[1]):
            one = x[i : i + 1].clone().requires_grad_()
            a = into_first_relu(model, one)[0, j]
            (slope,) = torch.autograd.grad(a, one)
            for end, sign in ((lower[i, j], -1), (upper[i, j], 1)):
                delta = inside.argmax(sign * slope, one.detach())
                assert inside.contains(delta, one.detach()).all()
                reached = into_first_relu(model, one.detach() + delta)[0, j]
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
    model, x, y, ball = case("linear", seed, p, box, eps, each_eps=True)
    expected = linear.margins(*linear.weights(model), x, y, ball)
    torch.testing.assert_close(bounds.margins(model, x, y, ball), expected)
    assert bounds.pre_activations(model, x, ball) == []
    if p == math.inf:
        found = bounds.margins(model, x, y, ball, "lp", jobs=1)
        torch.testing.assert_close(found, expected.detach())
        assert bounds.pre_activations(model, x, ball, "lp") == []


@pytest.mark.parametrize("box", [None, BOX])
def test_where_no_unit_is_unstable_the_linear_program_is_exact(box):
    """All units on: the network is W₂ W₁ x + W₂ b₁ + b₂. All off: it is b₂."""
    for seed in range(5):
        model, x, y, ball = case("mlp", seed, box=box)
        (W, b), (V, a) = ((layer.weight, layer.bias) for layer in (model[1], model[3]))
        for shift in (50, -50):
            b.data.fill_(shift)
            on = float(shift > 0)
            found = bounds.margins(model, x, y, ball, "lp", jobs=1)
            expected = linear.margins(on * V @ W, on * V @ b + a, x, y, ball).detach()
            torch.testing.assert_close(found, expected, rtol=EXACT, atol=EXACT)


@given(seeds, orders, boxes)
def test_elision_gives_the_exact_minimum_over_the_last_hidden_box(seed, p, box):
    """A linear function is smallest over a box at the corner that its signs point away from."""
    model, x, y, ball = case("deep mlp", seed, p, box)
    layer = bounds.pre_activations(model, x, ball)[-1]
    low, high = layer.lower.relu(), layer.upper.relu()
    W, b = model[-1].weight, model[-1].bias
    found = bounds.margins(model, x, y, ball)
    for i, k in np.ndindex(len(x), len(W)):
        if k != y[i]:
            row = W[y[i]] - W[k]
            corner = torch.where(row > 0, low[i], high[i])
            torch.testing.assert_close(found[i, k], row @ corner + b[y[i]] - b[k])


# ---- in order ----


@pytest.mark.parametrize("kind", [kind for kind in NETWORKS if kind != "linear"])
@settings(max_examples=20)
@given(seeds, orders, boxes, st.sampled_from([0.0, 0.03, 0.3, 2.0]))
def test_elision_is_never_worse_than_the_intervals_of_the_logits(kind, seed, p, box, eps):
    model, x, y, ball = case(kind, seed, p, box, eps)
    last, piece = (
        bounds.pre_activations(model, x, ball)[-1],
        bounds.affine_pieces(model, x.shape[1:])[-1],
    )
    logits = bounds.interval(piece, Bounds(last.lower.relu(), last.upper.relu()))
    apart = logits.lower.gather(1, y[:, None]) - logits.upper
    assert (bounds.margins(model, x, y, ball) >= apart - EXACT).all()


@each_kind
@settings(max_examples=8)
@given(seeds, boxes, st.sampled_from([0.0, 0.03, 0.3, 2.0]))
def test_the_more_is_known_the_tighter_are_the_margins(kind, seed, box, eps):
    """intervals ≤ linear programs on intervals ≤ linear programs on linear programs, for every class."""
    model, x, y, ball = case(kind, seed, math.inf, box, eps)
    plain, tight = (bounds.pre_activations(model, x, ball, m, jobs=1) for m in bounds.METHODS)
    for wide, narrow in zip(plain, tight, strict=True):
        assert (narrow.lower >= wide.lower - EXACT).all()
        assert (narrow.upper <= wide.upper + EXACT).all()
        assert (narrow.lower <= narrow.upper).all()
    interval = bounds.margins(model, x, y, ball)
    on_plain = bounds.margins(model, x, y, ball, "lp", layer_bounds=plain, jobs=1)
    on_tight = bounds.margins(model, x, y, ball, "lp", jobs=1)
    assert (on_plain >= interval - NEAR).all()
    assert (on_tight >= on_plain - NEAR).all()
    assert (bounds.margins(model, x, y, ball, layer_bounds=tight) >= interval - EXACT).all()


def test_all_three_differ_on_a_deep_network():
    model, x, y, ball = case("deep mlp", 0)
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
    model, x, y, _ = case("deep mlp", seed, box=box)
    for method, p in (("interval", 1), ("interval", 2), ("interval", math.inf), ("lp", math.inf)):
        grid = [Ball(p, eps, box) for eps in (0.0, 0.01, 0.1, 0.5, 1.5)]
        found = torch.stack([bounds.margins(model, x, y, ball, method, jobs=1) for ball in grid])
        others = found[0] < math.inf
        assert (found.diff(dim=0)[:, others] <= NEAR).all()


# ---- bounds of one's own ----


@each_method
def test_margins_are_built_on_the_bounds_that_are_given(method):
    for seed in range(5):
        model, x, y, ball = case("deep mlp", seed)
        layers = bounds.pre_activations(model, x, ball, method, jobs=1)
        usual = bounds.margins(model, x, y, ball, method, jobs=1)
        same = bounds.margins(model, x, y, ball, method, layer_bounds=layers, jobs=1)
        torch.testing.assert_close(same, usual, rtol=NEAR, atol=NEAR)
        wide = [Bounds(layer.lower - 1, layer.upper + 1) for layer in layers]
        looser = bounds.margins(model, x, y, ball, method, layer_bounds=wide, jobs=1)
        assert (looser < usual - 0.1)[usual < math.inf].all()


def test_bounds_in_float64_serve_a_network_in_float32():
    model, x, y, ball = case("deep mlp", 0)
    expected = bounds.margins(
        model, x, y, ball, layer_bounds=bounds.pre_activations(model, x, ball, "lp")
    )
    model, x = model.float(), x.float()
    tight = bounds.pre_activations(model, x, ball, "lp")
    assert tight[0].lower.dtype == torch.float64
    found = bounds.margins(model, x, y, ball, layer_bounds=tight)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-4)


# ---- what comes back ----


@each_method
@pytest.mark.parametrize("dtype", DTYPES)
@each_kind
def test_bounds_have_the_shape_of_their_layer_and_margins_one_row_a_sample(kind, dtype, method):
    model, x, y, ball = case(kind, 0, n=3)
    model, x = model.to(dtype), x.to(dtype)
    expected = dtype if method == "interval" else torch.float64
    layers = bounds.pre_activations(model, x, ball, method, jobs=1)
    shapes = [(3, *piece.shape_out) for piece in bounds.affine_pieces(model, x.shape[1:])[:-1]]
    for end in (0, 1):
        assert [tuple(layer[end].shape) for layer in layers] == shapes
        assert all(layer[end].dtype == expected for layer in layers)
    margins = bounds.margins(model, x, y, ball, method, jobs=1)
    assert (margins.dtype, margins.shape) == (expected, model(x).shape)
    assert torch.equal(margins == math.inf, nn.functional.one_hot(y, margins.shape[1]).bool())


def test_the_bounds_of_a_convolution_have_channels_height_and_width():
    model, x, _, ball = case("dilated, in groups", 0)
    for method in bounds.METHODS:
        layers = bounds.pre_activations(model, x, ball, method)
        assert [tuple(layer.lower.shape) for layer in layers] == [(2, 4, 3, 2), (2, 2, 3, 2)]


@settings(max_examples=20)
@given(st.sampled_from(list(NETWORKS)), seeds, orders, boxes)
def test_every_sample_is_bounded_by_itself_and_by_its_own_radius(kind, seed, p, box):
    model, x, y, ball = case(kind, seed, p, box, n=3, each_eps=True)
    for method in bounds.METHODS[: 2 if p == math.inf else 1]:
        together = bounds.margins(model, x, y, ball, method, jobs=1)
        for i in range(3):
            alone = replace(ball, eps=ball.eps[i].item())
            one = bounds.margins(model, x[i : i + 1], y[i : i + 1], alone, method, jobs=1)
            torch.testing.assert_close(together[i : i + 1], one, rtol=NEAR, atol=NEAR)


def test_the_boxes_of_the_programs_reach_as_far_as_eps_says_in_float64():
    """0.7 in float32 is smaller than 0.7."""
    model, x, _, _ = case("mlp", 0, box=None)
    (_, lower, upper), *_ = bounds.problems(bounds.affine_pieces(model, (4,)), x, Ball(math.inf, 0.7))
    np.testing.assert_array_equal(lower, (x[0] - 0.7).numpy())
    np.testing.assert_array_equal(upper, (x[0] + 0.7).numpy())


# ---- gradients ----


@pytest.mark.parametrize("p", ORDERS)
@pytest.mark.parametrize("box", [None, BOX])
@each_kind
def test_intervals_and_their_margins_have_the_gradients_that_differences_show(kind, box, p):
    model, x, y, ball = case(kind, 7, p, box)
    parameters = list(model.parameters())
    directions = [entries(w.shape, i, "plain") for i, w in enumerate(parameters)]

    def total():
        margins = bounds.margins(model, x, y, ball)
        layers = bounds.pre_activations(model, x, ball)
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
        assert not bounds.margins(model, x, y, ball).requires_grad
        torch.testing.assert_close(total(), torch.tensor(values).double().mean(), rtol=1e-5, atol=1e-5)


def test_a_network_can_be_trained_to_be_certified_by_them():
    model, x, y, ball = case("mlp", 1, n=4, eps=0.02)
    x = torch.eye(4, dtype=torch.float64)
    parameters = list(model.parameters())
    assert (bounds.margins(model, x, y, ball).amin(1) <= 0).any()
    for _ in range(60):
        margins = bounds.margins(model, x, y, ball)
        loss = nn.functional.softplus(-margins[margins < math.inf]).mean()
        for w, slope in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
            w.data -= 0.3 * slope
    assert (bounds.margins(model, x, y, ball) > 0).all()


# ---- affine pieces ----


@each_kind
def test_the_pieces_with_relu_between_them_are_the_network(kind):
    for seed in range(5):
        model, x, _, _ = case(kind, seed, box=None, n=3)
        pieces, h = bounds.affine_pieces(model, x.shape[1:]), x
        for piece in pieces[:-1]:
            h = piece(h).relu()
        torch.testing.assert_close(pieces[-1](h), model(x))


@each_kind
def test_a_matrix_does_what_its_piece_does(kind):
    for seed in range(5):
        model, x, _, _ = case(kind, seed, box=None)
        for piece in bounds.affine_pieces(model, x.shape[1:]):
            W, b = piece.matrix()
            assert W.shape == (math.prod(piece.shape_out), math.prod(piece.shape_in))
            h = entries((3, *piece.shape_in), seed, "plain")
            torch.testing.assert_close(piece(h).flatten(1), h.flatten(1) @ W.T + b)
            torch.testing.assert_close(piece(h.flatten(1)), piece(h))


def test_the_pieces_hold_the_layers_own_weights_unless_asked_for_another_type():
    model = network("convolution", 0)
    pieces = bounds.affine_pieces(model, (1, 4, 4))
    assert pieces[0].weight is model[0].weight
    assert pieces[0].bias is model[0].bias
    assert bounds.affine_pieces(model, (1, 4, 4), torch.float32)[0].weight.dtype == torch.float32
    assert model[0].weight.dtype == torch.float64


@each_kind
@settings(max_examples=20)
@given(seeds)
def test_an_interval_holds_what_its_piece_makes_of_the_box_and_both_ends_are_reached(kind, seed):
    model, x, _, _ = case(kind, seed, box=None)
    for piece in bounds.affine_pieces(model, x.shape[1:]):
        lower = entries((1, *piece.shape_in), seed, "plain")
        upper = lower + entries(lower.shape, seed + 1, "sparse").abs()
        found = bounds.interval(piece, Bounds(lower, upper))
        share = torch.rand(50, *piece.shape_in, generator=seeded(seed), dtype=torch.float64)
        inside = piece(lower + share * (upper - lower))
        assert (found.lower - EXACT <= inside).all()
        assert (inside <= found.upper + EXACT).all()
        W, _ = piece.matrix()
        for sign, end in ((1, found.upper), (-1, found.lower)):
            corners = torch.where(sign * W > 0, upper.flatten(1), lower.flatten(1))
            reached = piece(corners).flatten(1).diagonal()
            torch.testing.assert_close(reached, end.flatten())


# ---- several at a time ----


def test_each_keeps_the_order_whoever_is_first():
    from time import sleep

    def slow(i):
        sleep(0.02 * (3 - i % 4))
        return i

    assert bounds.each(slow, [(i,) for i in range(8)], jobs=4) == list(range(8))
    assert bounds.each(slow, []) == []


def test_a_bar_is_shown_on_stdout_only_and_only_when_asked_for(capfd):
    tasks = [(i,) for i in range(3)]
    bounds.each(abs, tasks, progress=True)
    shown = capfd.readouterr()
    assert "0/3" in shown.out
    assert shown.err == ""
    for progress in (None, False):  # None: stdout is no terminal here
        bounds.each(abs, tasks, progress=progress)
        assert capfd.readouterr() == ("", "")


def test_several_at_a_time_give_what_one_after_the_other_gives():
    model, x, y, ball = case("deep mlp", 0, n=4)
    one, two = (bounds.margins(model, x, y, ball, "lp", jobs=jobs) for jobs in (1, 2))
    assert torch.equal(one, two)
    alone, both = (bounds.pre_activations(model, x, ball, "lp", jobs=jobs) for jobs in (1, 2))
    for a, b in zip(alone, both, strict=True):
        assert torch.equal(a.lower, b.lower)
        assert torch.equal(a.upper, b.upper)
