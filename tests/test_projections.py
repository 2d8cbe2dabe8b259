"""The nearest point of a hyperplane inside a box, for every norm."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog
from strategies import DTYPES, ORDERS, entries, inputs, orders, seeds, tolerance
from torch.linalg import vector_norm

from adv_lib import projections

each_p = pytest.mark.parametrize("p", ORDERS)
KINDS = ("plain", "ties", "sparse", "uneven")


def hyperplanes(seed, kind, shape, share, box):
    """x in the box, w, and b such that ⟨w, v⟩ = b is `share` of the way from x to the last corner."""
    x, w = inputs(shape, seed), entries(shape, seed, kind)
    if not box:
        return x, w, (w * x).sum(1, keepdim=True) + share, -math.inf, math.inf
    side = 1 if share >= 0 else -1
    corner = torch.where(side * w > 0, 1.0, 0.0)
    most = (w * (corner - x)).sum(1, keepdim=True)
    return x, w, (w * x).sum(1, keepdim=True) + abs(share) * most, 0.0, 1.0


def cut(x, w, b, low, high, p, dtype=torch.float64):
    ends = (torch.full_like(x, end) for end in (low, high))
    return projections.onto_hyperplane(*(v.to(dtype) for v in (x, w, b, *ends)), p)


def nearest_of_one(x, w, b, low, high, p):
    """The smallest ‖v − x‖_p by a linear program, or for p = 2 by bisection of the multiplier."""
    d = len(x)
    if p == 2:
        gap = b - w @ x
        w, down, up = w * gap.sign(), 0.0, 1.0
        room = torch.where(w > 0, high - x, x - low)

        def size(lam):
            return (lam * w.abs()).minimum(room)

        while (w.abs() * size(up)).sum() < gap.abs() and up < 1e30:
            up *= 2
        for _ in range(200):
            middle = (down + up) / 2
            far = (w.abs() * size(middle)).sum() >= gap.abs()
            down, up = (down, middle) if far else (middle, up)
        return size(up).norm().item()
    # v − x = plus − minus, both ≥ 0; for ∞ one more variable above them all
    costs = [1.0] * (2 * d) if p == 1 else [0.0] * (2 * d) + [1.0]
    bounds = [(0, high - v) for v in x.tolist()] + [(0, v - low) for v in x.tolist()]
    equal = torch.cat([w, -w])[None].numpy()
    above = None
    if p == math.inf:
        bounds.append((0, None))
        equal = torch.cat([w, -w, torch.zeros(1)])[None].numpy()
        above = torch.cat([torch.eye(2 * d), -torch.ones(2 * d, 1)], 1).numpy()
    zeros = None if above is None else [0.0] * (2 * d)
    found = linprog(costs, above, zeros, equal, [float(b - w @ x)], bounds)
    assert found.status == 0
    return found.fun


@each_p
@settings(max_examples=40)
@given(
    seed=seeds,
    kind=st.sampled_from(("plain", "ties", "sparse")),
    share=st.sampled_from((-0.9, -0.1, 0.0, 0.3, 0.97)),
    box=st.booleans(),
)
def test_no_point_of_the_hyperplane_in_the_box_is_nearer(p, seed, kind, share, box):
    x, w, b, low, high = hyperplanes(seed, kind, (4, 6), share, box)
    v = cut(x, w, b, low, high, p)
    for i in range(4):
        if not w[i].any():
            assert torch.equal(v[i], x[i])
            continue
        reached = vector_norm(v[i] - x[i], ord=p).item()
        assert reached == pytest.approx(nearest_of_one(x[i], w[i], b[i], low, high, p), abs=1e-7)


@settings(max_examples=100)
@given(
    seed=seeds,
    kind=st.sampled_from(KINDS),
    shape=st.sampled_from(((1, 1), (5, 2), (3, 40), (2, 300))),
    share=st.floats(-1, 1),
    box=st.booleans(),
    p=orders,
    dtype=st.sampled_from(DTYPES),
)
def test_what_is_found_lies_on_the_hyperplane_and_in_the_box(seed, kind, shape, share, box, p, dtype):
    x, w, b, low, high = hyperplanes(seed, kind, shape, share, box)
    v = cut(x, w, b, low, high, p, dtype)
    assert v.dtype == dtype
    assert ((v >= low) & (v <= high)).all()
    off = ((w * v).sum(1, keepdim=True) - b).abs()
    size = (w.abs() * (1 + x.abs() + v.abs())).sum(1, keepdim=True)
    moves = w.any(1, keepdim=True)
    assert (off <= tolerance(v) * size + 1e-12)[moves].all()
    assert torch.equal(v[w == 0], x.to(dtype)[w == 0])


@each_p
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("share", [-3.0, -1.0, 1.0, 1.5, 1e30])
def test_where_the_hyperplane_misses_the_box_it_is_the_corner_nearest_to_it(p, dtype, share):
    x, w, b, low, high = hyperplanes(0, "sparse", (6, 9), share, True)
    side = 1 if share > 0 else -1
    corner = torch.where(side * w > 0, 1.0, torch.where(side * w < 0, 0.0, x))
    v = cut(x, w, b, low, high, p, dtype)
    torch.testing.assert_close(v, corner.to(dtype), rtol=0, atol=1e-6)


@each_p
def test_a_point_on_the_hyperplane_stays_and_so_does_one_without_a_normal(p):
    x, w, b, low, high = hyperplanes(1, "ties", (6, 9), 0.0, True)
    assert torch.equal(cut(x, w, b, low, high, p), x)
    assert torch.equal(cut(x, 0 * w, b + 1, low, high, p), x)


@each_p
@pytest.mark.parametrize("power", [-100, 100])
def test_the_length_of_the_normal_does_not_matter(p, power):
    x, w, b, low, high = hyperplanes(2, "plain", (6, 9), 0.4, True)
    scaled = cut(x, w * 2.0**power, b * 2.0**power, low, high, p)
    torch.testing.assert_close(scaled, cut(x, w, b, low, high, p), rtol=0, atol=1e-12)


@each_p
def test_rows_do_not_see_each_other(p):
    x, w, b, low, high = hyperplanes(3, "uneven", (8, 200), 0.6, True)
    together = cut(x, w, b, low, high, p)
    for i in range(8):
        alone = cut(x[i : i + 1], w[i : i + 1], b[i : i + 1], low, high, p)
        torch.testing.assert_close(together[i : i + 1], alone, rtol=0, atol=1e-12)
