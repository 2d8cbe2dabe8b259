"""Chapter 9, the trial: every labelled statement, attacked with random instances."""

import itertools
import math

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from strategies import entries, inputs, orders, seeded, seeds, theorem
from torch.linalg import vector_norm

from adv_lib import attacks, losses
from adv_lib.checks import trial as check
from adv_lib.evaluation import survivors
from adv_lib.projections import onto_hyperplane
from adv_lib.threat import Ball

EXACT = 1e-9  # float64, and sums of a few terms of size about 1
kinds = st.sampled_from(["plain", "ties", "sparse"])
DUAL = {1: math.inf, 2: 2, math.inf: 1}

# ---- the ratio of logits ----


@theorem("thm-dlr")
@given(seeds, st.integers(3, 8), kinds, st.floats(1e-6, 1e6), st.floats(-1e3, 1e3))
def test_the_ratio_sees_neither_a_factor_nor_a_shift(seed, K, kind, a, b):
    z = entries((8, K), seed, kind)
    top = z.topk(3, dim=1).values
    z = z[(top[:, 0] - top[:, 2]) > 1e-3]
    assume(len(z))
    y = torch.randint(0, K, (len(z),), generator=seeded(seed))
    slack = 1e-9 * (1 + abs(b) / a)  # the shift rounds what the factor has made small
    torch.testing.assert_close(losses.dlr(a * z + b, y), losses.dlr(z, y), rtol=0, atol=slack)


@theorem("thm-dlr")
@given(seeds, st.integers(3, 8), kinds)
def test_it_is_positive_where_another_class_leads_and_between_minus_1_and_0_where_y_does(seed, K, kind):
    z = entries((8, K), seed, kind)
    top = z.topk(3, dim=1).values
    z = z[top[:, 0] > top[:, 2]]
    assume(len(z))
    y = torch.randint(0, K, (len(z),), generator=seeded(seed))
    ratio, margin = losses.dlr(z, y), losses.margin(z, y)
    assert ((ratio > 0) == (margin < 0)).all()
    assert ((ratio[margin > 0] < 0) & (ratio[margin > 0] >= -1)).all()


# ---- the nearest hyperplane ----


def linear(seed, K, d, kind):
    """A linear model, a point and its label, and the distance by the formula for every p."""
    W, b, x = (
        entries((K, d), seed, kind),
        entries((K,), seed + 1, "plain"),
        entries((1, d), seed + 2, "plain"),
    )
    z = (x @ W.T + b)[0]
    y = int(z.argmax())
    others = [k for k in range(K) if k != y]
    return W, b, x, y, others, z


@theorem("thm-deepfool")
@given(orders, seeds, st.integers(2, 6), st.integers(1, 6), kinds)
def test_nothing_shorter_makes_another_class_level_and_the_steepest_step_of_that_length_does(
    p, seed, K, d, kind
):
    W, b, x, y, others, z = linear(seed, K, d, kind)
    far = [(z[y] - z[k]) / vector_norm(W[k] - W[y], ord=DUAL[p]) for k in others if (W[k] != W[y]).any()]
    assume(far and min(far) > 1e-6)
    k = min(
        (k for k in others if (W[k] != W[y]).any()),
        key=lambda k: (z[y] - z[k]) / vector_norm(W[k] - W[y], ord=DUAL[p]),
    )
    length = float(min(far))
    step = Ball(p, length).argmax((W[k] - W[y])[None])
    reached = ((x + step) @ W.T + b)[0]
    assert float(vector_norm(step, ord=p)) == pytest.approx(length, rel=1e-9)
    assert abs(float(reached[y] - reached[k])) < EXACT * (1 + float(z.abs().max()))
    directions = entries((60, d), seed + 3, "plain")
    tried = directions / vector_norm(directions, ord=p, dim=1, keepdim=True).clamp(min=1e-300)
    moved = (x + 0.999 * length * tried) @ W.T + b
    assert (moved[:, [y]] > moved[:, others]).all()


@theorem("thm-deepfool")
@given(orders, seeds, st.integers(2, 6), kinds)
def test_deepfool_finds_it_in_a_step(p, seed, K, kind):
    W, b, x, y, others, z = linear(seed, K, 5, kind)
    far = [(z[y] - z[k]) / vector_norm(W[k] - W[y], ord=DUAL[p]) for k in others if (W[k] != W[y]).any()]
    assume(far and min(far) > 1e-3)
    label = torch.tensor([y])
    delta = attacks.deepfool(lambda v: v @ W.T + b, x, label, Ball(p, math.inf), steps=3)
    assert float(vector_norm(delta, ord=p)) == pytest.approx(float(min(far)), rel=0.03)


# ---- onto a hyperplane in a box ----


def sizes_by_halving(w, x, b, p):
    """δ of the theorem, in a plain loop."""
    room = torch.where(w >= 0, 1 - x, x)
    near, far = 0.0, 1.0 if p == math.inf else 1e6
    for _ in range(200):
        t = (near + far) / 2
        size = torch.minimum(torch.full_like(w, t) if p == math.inf else t * w.abs(), room)
        near, far = (t, far) if w @ (x + w.sign() * size) < b else (near, t)
    size = torch.minimum(torch.full_like(w, far) if p == math.inf else far * w.abs(), room)
    return w.sign() * size


@theorem("thm-onto")
@given(st.sampled_from([2, math.inf]), seeds, st.integers(1, 6), kinds, st.floats(0.01, 0.99))
def test_no_shorter_way_leads_onto_the_hyperplane_in_the_box(p, seed, d, kind, share):
    """That it is the maximum over its own length is Theorem thm-box, which has a test of its own."""
    w, x = entries((d,), seed, kind), inputs((d,), seed)
    most = w @ torch.where(w > 0, 1.0, 0.0).double()
    least = w @ x
    assume(most - least > 1e-3)
    b = least + share * (most - least)
    delta = sizes_by_halving(w, x, b, p)
    assert float(w @ (x + delta)) == pytest.approx(float(b), abs=1e-6)
    assert ((x + delta >= -EXACT) & (x + delta <= 1 + EXACT)).all()
    length = float(vector_norm(delta, ord=p))
    best = Ball(p, 0.999 * length, (0, 1)).support(w[None], x[None]).item()
    assert float(w @ x) + best < float(b)
    low, high = (-x)[None], (1 - x)[None]
    ours = onto_hyperplane(torch.zeros(1, d).double(), w[None], (b - least).reshape(1, 1), low, high, p)
    assert float(vector_norm(ours, ord=p)) == pytest.approx(length, rel=1e-5, abs=1e-9)
    if p == math.inf:
        checked = check.onto.reference(x, w, b)
        assert float(vector_norm(checked, ord=p)) == pytest.approx(length, rel=1e-5, abs=1e-9)


# ---- one run, all radii ----


@theorem("thm-distances")
@given(orders, seeds, st.integers(2, 5))
def test_the_share_of_distances_beyond_eps_is_the_robust_accuracy_for_a_linear_model(p, seed, K):
    """d(x) by the formula of thm-deepfool, the robust accuracy by the largest loss of each class."""
    W, b, x = (
        entries((K, 4), seed, "plain"),
        entries((K,), seed + 1, "plain"),
        entries((12, 4), seed + 2, "plain"),
    )
    y = torch.randint(0, K, (12,), generator=seeded(seed))
    z = x @ W.T + b
    lengths = vector_norm(W[None] - W[y][:, None], ord=DUAL[p], dim=2)
    far = ((z.gather(1, y[:, None]) - z) / lengths).scatter(1, y[:, None], math.inf).amin(1).clamp(min=0)
    for eps in (0.0, 0.1, 0.5, 2.0):
        ball = Ball(p, eps)
        leads = [z.gather(1, y[:, None])[:, 0] - z[:, k] - ball.support(W[k] - W[y]) for k in range(K)]
        right = (
            torch.stack([torch.where(y == k, math.inf, lead) for k, lead in enumerate(leads)]).amin(0)
            > 0
        )
        assert torch.equal(right, far > eps)


@theorem("thm-distances")
@given(orders, seeds)
def test_what_an_attack_finds_bounds_the_accuracy_from_above_at_every_radius(p, seed):
    W, b, x = entries((3, 4), seed, "plain"), entries((3,), seed + 1, "plain"), inputs((12, 4), seed)
    y = torch.randint(0, 3, (12,), generator=seeded(seed))

    def model(v):
        return torch.tanh(v @ W.T + b)

    endless = Ball(p, math.inf, (0, 1))
    delta = attacks.fab(model, x, y, endless, steps=5)
    found = ~survivors(model, x + delta, y, endless)
    far = torch.where(found, vector_norm(delta, ord=p, dim=1), math.inf)
    for eps in (0.05, 0.3, 1.0):
        inside = far <= eps
        broken = ~survivors(model, x + torch.where(inside[:, None], delta, 0.0), y, endless)
        assert (broken | ~inside).all()  # whoever is within ε comes with a δ that proves it
        share = check.curve.reference(far, torch.tensor([eps]))
        assert float(share) == pytest.approx(float((~inside).double().mean()))


# ---- rounding ----


def rounded(x, h):
    """To the nearest multiple of h, ties up."""
    return (x / h + 0.5).floor() * h


@theorem("thm-rounding")
@given(seeds, st.sampled_from([0.25, 0.5, 1.0]), st.floats(0, 0.499))
def test_below_half_a_level_rounding_gives_back_the_image(seed, h, share):
    x = rounded(inputs((40,), seed), h)
    delta = share * h * (2 * torch.rand(40, generator=seeded(seed), dtype=torch.float64) - 1)
    corners = share * h * torch.randn(40, generator=seeded(seed), dtype=torch.float64).sign()
    assert torch.equal(rounded(x + delta, h), x)
    assert torch.equal(rounded(x + corners, h), x)


@theorem("thm-rounding")
@given(seeds, st.sampled_from([0.25, 0.5, 1.0]), st.booleans())
def test_from_half_a_level_on_every_pixel_can_go_up_by_a_level_and_above_it_down_too(seed, h, above):
    x = rounded(inputs((3,), seed), h)
    eps = (0.5 + 0.01 * above) * h
    choices = (0.0, h, -h) if above else (0.0, h)
    for moves in itertools.product(choices, repeat=3):
        wanted = torch.tensor(moves, dtype=torch.float64)
        delta = eps * wanted.sign()
        assert torch.equal(rounded(x + delta, h), x + wanted)
        assert delta.abs().max() <= eps
