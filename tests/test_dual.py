"""The dual network: its lines, its multipliers, its two formulas for J, and the ascent in α."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import (
    BOX,
    DTYPES,
    NETWORKS,
    ORDERS,
    entries,
    network,
    network_case,
    orders,
    seeded,
    seeds,
    towards,
)

from adv_lib import _work, affine, bounds, conjugates, dual
from adv_lib.affine import Bounds, affine_pieces
from adv_lib.threat import Ball

EXACT = 1e-9  # float64, and sums of a few terms of size up to 10
each_kind = pytest.mark.parametrize("kind", NETWORKS)
deep = pytest.mark.parametrize("kind", [kind for kind in NETWORKS if kind != "linear"])
boxes = st.sampled_from([None, BOX])
names = st.sampled_from(sorted(dual.SLOPES))
radii = st.sampled_from([0.0, 0.03, 0.3, 2.0])


def layer(seed, shape=(3, 5)):
    """Bounds of a layer of ReLUs: on, off, unstable, touching 0, and single points."""
    low, high = entries(shape, seed, "plain"), entries(shape, seed + 1, "ties")
    low, high = torch.minimum(low, high), torch.maximum(low, high)
    return Bounds(low, torch.where(torch.rand(shape, generator=seeded(seed)) < 0.1, low, high))


def random_slopes(layers, seed, r=None):
    """Any α, a third of them 0 or 1: (n, *shape), or (n, r, *shape)."""
    share = [
        torch.rand(len(l), *([r] if r else []), *l.shape[1:], generator=seeded(seed)) for l, _ in layers
    ]
    return [(1.5 * alpha.double() - 0.25).clamp(0, 1) for alpha in share]


class Pass:
    """Everything that a backward pass is given, for one random network."""

    def __init__(self, kind, seed, p=math.inf, box=BOX, eps=0.3, method="interval", n=2):
        self.model, self.x, self.y, self.ball = network_case(kind, seed, p, box, eps, n, each_eps=True)
        self.pieces = [piece.detach() for piece in affine_pieces(self.model, self.x.shape[1:])]
        with torch.no_grad():
            self.layers = bounds.pre_activations(self.model, self.x, self.ball, method)
        self.region = self.ball.region(self.x)
        self.c = towards(self.y, math.prod(self.pieces[-1].shape_out))

    def lines(self, slopes):
        slopes = [slopes] * len(self.layers) if isinstance(slopes, str) else slopes
        return [dual.lines(*pair) for pair in zip(self.layers, slopes, strict=True)]

    def bound(self, slopes, c=None):
        c = self.c if c is None else c
        return dual.bound(self.pieces, self.lines(slopes), self.x, self.region, c)

    def multipliers(self, slopes):
        return dual.multipliers(self.pieces, self.lines(slopes), self.c)[0]

    def value(self, nu):
        return dual.value(self.pieces, self.layers, self.x, self.ball, nu)

    def ascend(self, slopes, steps, c=None):
        c = self.c if c is None else c
        return dual.ascend(self.pieces, self.layers, self.x, self.region, c, slopes, steps).slopes


# ---- lines ----


@given(seeds, st.one_of(names, st.none()))
def test_between_the_bounds_the_relu_lies_between_the_two_lines(seed, name):
    pair = layer(seed)
    lower, upper, left = dual.lines(pair, name or random_slopes([pair], seed)[0])
    for share in torch.linspace(0, 1, 21).double():
        a = (pair.lower + share * (pair.upper - pair.lower))[:, None]
        assert (lower * a <= a.relu() + EXACT).all()
        assert (a.relu() <= upper * (a - left) + EXACT).all()


@given(seeds, st.one_of(names, st.none()))
def test_the_upper_line_goes_through_both_ends_of_the_graph_and_a_stable_unit_has_one_line(seed, name):
    pair = layer(seed)
    lower, upper, left = (t.squeeze(1) for t in dual.lines(pair, name or random_slopes([pair], seed)[0]))
    unstable = (pair.lower < 0) & (pair.upper > 0)
    for a in pair:
        reached = upper * (a - left)
        torch.testing.assert_close(reached[unstable], a.relu()[unstable])
        torch.testing.assert_close((lower * a)[~unstable], a.relu()[~unstable])
        torch.testing.assert_close(reached[~unstable], a.relu()[~unstable])
    assert (left[~unstable] == 0).all()
    assert torch.equal(lower[~unstable], upper[~unstable])
    assert ((lower == 0) | (lower == 1))[~unstable].all()


@given(seeds)
def test_the_lines_of_dual_are_parallel_and_those_of_crown_enclose_the_smaller_area(seed):
    pair = layer(seed)
    parallel = dual.lines(pair, "dual")
    assert torch.equal(parallel.lower, parallel.upper)
    unstable = (pair.lower < 0) & (pair.upper > 0)

    def area(alpha):  # ∫ u/(u − l) (a − l) − αa over l ≤ a ≤ u
        return pair.upper * (pair.upper - pair.lower) / 2 - alpha * (pair.upper**2 - pair.lower**2) / 2

    crown = dual.lines(pair, "crown").lower.squeeze(1)
    assert ((crown == 0) | (crown == 1)).all()
    for alpha in torch.linspace(0, 1, 11).double():
        assert (area(crown) <= area(alpha) + EXACT)[unstable].all()


def test_where_both_triangles_are_equally_large_crown_takes_the_slope_0():
    pair = Bounds(torch.tensor([[-2.0, -1.0]]), torch.tensor([[2.0, 1.0]]))
    assert dual.lines(pair, "crown").lower.tolist() == [[[0.0, 0.0]]]
    assert dual.lines(pair, "dual").lower.tolist() == [[[0.5, 0.5]]]


@given(seeds)
def test_a_slope_is_used_as_it_is_where_a_unit_is_unstable_and_nowhere_else(seed):
    pair = layer(seed)
    unstable = (pair.lower < 0) & (pair.upper > 0)
    alpha, other = random_slopes([pair], seed)[0], random_slopes([pair], seed + 9)[0]
    one = dual.lines(pair, alpha)
    assert torch.equal(one.lower.squeeze(1)[unstable], alpha[unstable])
    two = dual.lines(pair, torch.where(unstable, alpha, other))
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


@given(seeds)
def test_slopes_may_be_one_for_each_problem(seed):
    pair = layer(seed, (3, 2, 2))
    alpha = random_slopes([pair], seed, 4)[0]
    together = dual.lines(pair, alpha)
    assert together.lower.shape == (3, 4, 2, 2)
    for problem in range(4):
        alone = dual.lines(pair, alpha[:, problem])
        assert torch.equal(alone.lower, together.lower[:, problem : problem + 1])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", dual.SLOPES)
def test_lines_have_the_type_of_the_bounds_and_gradients_without_nan(name, dtype):
    lower = torch.tensor([[-1.0, 0.0, 0.0, -2.0, 1.0, -1.0]], dtype=dtype, requires_grad=True)
    upper = torch.tensor([[2.0, 0.0, 1.0, 0.0, 1.0, -1.0]], dtype=dtype, requires_grad=True)
    found = dual.lines(Bounds(lower, upper), name)
    assert all(t.dtype == dtype for t in found)
    slopes = torch.autograd.grad(sum(t.sum() for t in found), (lower, upper))
    assert all(slope.isfinite().all() for slope in slopes)


# ---- the backward pass ----


@each_kind
@settings(max_examples=10)
@given(seeds, names)
def test_backwards_every_unit_multiplies_by_a_slope_that_the_sign_decides(kind, seed, name):
    """ν_D = −c; 0 where off, ν̂ where on, u/(u − l)[ν̂]₊ − α[ν̂]₋ where unstable, with ν̂ = Wᵀν."""
    one = Pass(kind, seed)
    alphas = random_slopes(one.layers, seed)
    for slopes in (name, alphas):
        nu = one.multipliers(slopes)
        assert len(nu) == len(one.pieces)
        assert torch.equal(nu[-1], -one.c)
        for depth in range(len(one.layers)):
            W, _ = one.pieces[depth + 1].matrix()
            hat = nu[depth + 1].flatten(2) @ W
            l, u = (end.flatten(1)[:, None] for end in one.layers[depth])
            if slopes is name:
                alpha = u / (u - l) if name == "dual" else (u > -l).double()
            else:
                alpha = alphas[depth].flatten(1)[:, None]
            expected = u / (u - l) * hat.clamp(min=0) + alpha * hat.clamp(max=0)
            expected = torch.where(l >= 0, hat, torch.where(u <= 0, 0 * hat, expected))
            torch.testing.assert_close(nu[depth].flatten(2), expected)


@each_kind
@settings(max_examples=15)
@given(seeds, orders, boxes, radii, st.one_of(names, st.none()))
def test_at_the_multipliers_of_the_pass_both_formulas_for_j_agree(kind, seed, p, box, eps, name):
    """I*_S(−ν, ν̂) is −l[ν]₊ where unstable and 0 elsewhere."""
    one = Pass(kind, seed, p, box, eps)
    slopes = name or random_slopes(one.layers, seed)
    found = one.bound(slopes)
    assert found.shape == (2, one.c.shape[1])
    torch.testing.assert_close(found, one.value(one.multipliers(slopes)))


@settings(max_examples=30)
@given(seeds, orders, boxes, names)
def test_j_of_a_sum_is_at_least_the_sum_of_js_and_grows_with_the_objective(seed, p, box, name):
    """A minimum of a sum is at least the sum of the minima; so for J, with parallel lines."""
    one = Pass("deep mlp", seed, p, box)
    torch.testing.assert_close(one.bound(name, 3 * one.c), 3 * one.bound(name))
    assert not one.bound(name, 0 * one.c).any()
    other = entries(one.c.shape, seed, "plain")
    together = one.bound("dual", one.c + other)
    assert (together >= one.bound("dual") + one.bound("dual", other) - EXACT).all()


@deep
@settings(max_examples=10)
@given(seeds, orders, boxes)
def test_j_is_concave_in_the_multipliers(kind, seed, p, box):
    one = Pass(kind, seed, p, box)
    first, second = (
        [entries(t.shape, seed + i, "plain") for t in one.multipliers("dual")] for i in (1, 2)
    )
    between = [0.3 * a + 0.7 * b for a, b in zip(first, second, strict=True)]
    assert (one.value(between) >= 0.3 * one.value(first) + 0.7 * one.value(second) - EXACT).all()


@deep
@settings(max_examples=5)
@given(seeds, orders)
def test_every_problem_of_every_sample_is_its_own(kind, seed, p):
    one = Pass(kind, seed, p)
    K = one.c.shape[1]
    alphas = random_slopes(one.layers, seed, K)
    nu = [entries(t.shape, seed, "plain") for t in one.multipliers(alphas)]
    bound, value = one.bound(alphas), one.value(nu)
    for i in range(2):
        row = slice(i, i + 1)
        layers = [Bounds(l[row], u[row]) for l, u in one.layers]
        ball = Ball(p, one.ball.eps[i].item(), BOX)
        for k in range(K):
            col = slice(k, k + 1)
            relus = [
                dual.lines(pair, alpha[row, col]) for pair, alpha in zip(layers, alphas, strict=True)
            ]
            alone = dual.bound(one.pieces, relus, one.x[row], ball.region(one.x[row]), one.c[row, col])
            torch.testing.assert_close(alone, bound[row, col])
            alone = dual.value(one.pieces, layers, one.x[row], ball, [t[row, col] for t in nu])
            torch.testing.assert_close(alone, value[row, col])


@settings(max_examples=5)
@given(st.sampled_from(["deep mlp", "convolution"]), seeds, orders, boxes)
def test_j_has_the_gradients_that_differences_show(kind, seed, p, box):
    one = Pass(kind, seed, p, box, n=1)
    alphas = [alpha.requires_grad_() for alpha in random_slopes(one.layers, seed)]
    alphas = [(0.8 * alpha + 0.1).detach().requires_grad_() for alpha in alphas]
    c = entries(one.c[:, :1].shape, seed, "plain").requires_grad_()
    assert torch.autograd.gradcheck(lambda c, *alphas: one.bound(list(alphas), c), (c, *alphas))
    nu = [entries(t.shape, seed, "plain").requires_grad_() for t in one.multipliers("dual")]
    assert torch.autograd.gradcheck(lambda *nu: one.value(nu), nu)


@pytest.mark.parametrize("kind", ["mlp", "convolution"])
def test_j_has_gradients_in_the_bounds_that_differences_show(kind):
    one = Pass(kind, 0, eps=2.0, n=1)
    ends = [end.clone().requires_grad_() for pair in one.layers for end in pair]
    assert any(((l < 0) & (u > 0)).any() for l, u in one.layers)

    def bound(*ends):
        relus = [dual.lines(Bounds(*pair), "dual") for pair in zip(ends[::2], ends[1::2], strict=True)]
        return dual.bound(one.pieces, relus, one.x, one.region, one.c)

    assert torch.autograd.gradcheck(bound, ends)


# ---- the ascent ----


@deep
@settings(max_examples=5)
@given(seeds, orders, boxes, st.sampled_from([0, 1, 7]))
def test_the_ascent_ends_nowhere_worse_than_it_began_with_slopes_between_0_and_1(
    kind, seed, p, box, steps
):
    one = Pass(kind, seed, p, box)
    start = random_slopes(one.layers, seed, one.c.shape[1])
    kept = [alpha.clone() for alpha in start]
    best = one.ascend(start, steps)
    assert all(torch.equal(a, b) for a, b in zip(start, kept, strict=True))
    assert [a.shape for a in best] == [a.shape for a in start]
    assert all(((a >= 0) & (a <= 1)).all() and not a.requires_grad for a in best)
    assert (one.bound(best) >= one.bound(start) - EXACT).all()
    if steps == 0:
        here, there = one.lines(start), one.lines(best)
        assert all(torch.equal(a.lower, b.lower) for a, b in zip(here, there, strict=True))


def test_the_ascent_finds_slopes_that_are_better_than_those_of_either_name():
    better = 0
    for seed in range(5):
        one = Pass("deep mlp", seed, eps=0.6, method="dual")
        start = [dual.lines(pair, "crown").lower.expand(-1, 4, -1) for pair in one.layers]
        found = one.bound(one.ascend(start, 20))
        better += int((found > torch.maximum(one.bound("dual"), one.bound("crown")) + 0.01).sum())
    assert better >= 5


@pytest.mark.parametrize("method", ["interval", "dual", "lp"])
def test_on_small_networks_the_ascent_comes_near_to_the_linear_program(method):
    """With bounds that earlier layers imply. The problem is not concave, so a little may be left."""
    for seed in range(3):
        one = Pass("nested", seed, method=method)
        start = [dual.lines(pair, "crown").lower.expand(-1, 3, -1) for pair in one.layers]
        found = one.bound(one.ascend(start, 200))
        program = bounds.margins(
            one.model, one.x, one.y, one.ball, "lp", layer_bounds=one.layers, jobs=1
        )
        others = program < math.inf
        assert (found <= program + 1e-6)[others].all()
        assert (found >= program - 2e-3)[others].all()


@settings(max_examples=5)
@given(seeds, orders)
def test_every_problem_climbs_by_itself(seed, p):
    one = Pass("deep mlp", seed, p)
    start = random_slopes(one.layers, seed, 4)
    together = one.ascend(start, 6)
    for k in range(4):
        alone = one.ascend([a[:, k : k + 1] for a in start], 6, one.c[:, k : k + 1])
        for a, b in zip(alone, together, strict=True):
            torch.testing.assert_close(a, b[:, k : k + 1])


def test_the_ascent_works_where_gradients_are_switched_off_and_leaves_none():
    one = Pass("deep mlp", 0)
    start = random_slopes(one.layers, 0, 4)
    expected = one.ascend(start, 5)
    with torch.no_grad():
        assert all(torch.equal(a, b) for a, b in zip(one.ascend(start, 5), expected, strict=True))
    assert all(alpha.grad is None for alpha in start)


def test_without_a_relu_there_is_nothing_to_climb():
    assert Pass("linear", 0).ascend([], 5) == []


# ---- in parts ----


@pytest.mark.parametrize("budget", [1, 7, 100])
@pytest.mark.parametrize("p", ORDERS)
@deep
def test_in_parts_of_any_size_the_numbers_are_the_same(kind, p, budget, monkeypatch):
    one = Pass(kind, 0, p, n=3)
    K = one.c.shape[1]
    sample = torch.tensor([2, 0, 0, 1, 2])
    c = entries((5, K, K), 1, "plain")
    relus = one.lines(random_slopes(one.layers, 0, K))
    whole = dual.in_parts(one.pieces, relus, one.x, one.region, sample, lambda rows: c[rows], K)
    assert whole.shape == (5, K)
    monkeypatch.setattr(_work, "BUDGET", budget)
    parts = dual.in_parts(one.pieces, relus, one.x, one.region, sample, lambda rows: c[rows], K)
    torch.testing.assert_close(parts, whole, rtol=1e-12, atol=1e-12)


def test_in_parts_of_nothing_there_is_nothing():
    one = Pass("mlp", 0)
    none = torch.zeros(0, dtype=torch.int64)
    given = one.pieces, one.lines("dual"), one.x, one.region, none, lambda rows: one.c[rows], 3
    assert dual.in_parts(*given).shape == (0, 3)


@pytest.mark.parametrize(("n", "numbers"), [(0, 5), (1, 5), (7, 30), (12, 100), (10, 1000)])
def test_runs_are_all_numbers_in_order_as_many_at_a_time_as_fit(n, numbers, monkeypatch):
    monkeypatch.setattr(_work, "BUDGET", 100)
    runs = _work.runs(n, numbers)
    assert [i for run in runs for i in run.tolist()] == list(range(n))
    assert all(len(run) == 1 or len(run) * numbers <= 100 for run in runs)
    assert all((len(run) + 1) * numbers > 100 for run in runs[:-1])


@pytest.mark.parametrize(
    ("kind", "widest"), [("mlp", 6), ("linear", 6), ("convolution", 16), ("dilated, in groups", 24)]
)
def test_the_width_is_that_of_the_widest_layer_the_input_counted(kind, widest):
    assert affine.width(affine_pieces(network(kind, 0), NETWORKS[kind][0])) == widest


# ---- slopes, planes and conjugates ----


@given(seeds)
def test_the_term_of_a_unit_is_minus_the_smallest_value_of_its_part_of_the_lagrangian(seed):
    """νa − ν̂h over the relaxed ReLU: what J subtracts is the conjugate, at any ν."""
    pair = layer(seed, (1, 6))
    nu, hat = entries((1, 6), seed, "plain"), entries((1, 6), seed + 1, "plain")
    corners = [(pair.lower, pair.lower.relu()), (pair.upper, pair.upper.relu())]
    least = torch.stack([nu * a - hat * h for a, h in corners]).amin(0)
    unstable = (pair.lower < 0) & (pair.upper > 0)
    least = torch.where(unstable, least.clamp(max=0), least)
    torch.testing.assert_close(-conjugates.relu(-nu, hat, *pair), least)
