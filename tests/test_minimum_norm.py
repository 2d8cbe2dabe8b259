"""DeepFool, C&W, DDN and FAB: what they find is allowed, breaks the sample, and is short."""

import math
from dataclasses import replace
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import BOX, ORDERS, SHAPES, orders, problem, problems, seeded, seeds
from test_attacks import Witness, linear_problem, norms, scaled
from torch import nn

from adv_lib import attacks, linear, losses, models
from adv_lib.evaluation import robust_accuracy, survivors, table
from adv_lib.stack import Stack
from adv_lib.threat import Ball

RUNS = {
    "deepfool": attacks.deepfool,
    "ddn": partial(attacks.ddn, steps=60),
    "cw": partial(attacks.cw, steps=40, searches=3),
    "fab": partial(attacks.fab, steps=8, restarts=2),
}
ONLY_2 = ("ddn", "cw")
each_run = pytest.mark.parametrize("name", RUNS)
TAKEN = [
    (name, p, box)
    for name in RUNS
    for p in (ORDERS if name not in ONLY_2 else (2,))
    for box in ((None, BOX) if name != "cw" else (BOX,))
]
each_taken = pytest.mark.parametrize(("name", "p", "box"), TAKEN)


def fitting(name, inputs):
    """The problem with a ball that this attack takes."""
    ball = inputs.ball
    if name in ONLY_2:
        ball = replace(ball, p=2)
    return inputs._replace(ball=ball)


def broken(model, x, y, delta):
    return ~losses.correct(model(x + delta).detach(), y)


# ---- what is found is allowed, and breaks ----


@settings(max_examples=20)
@each_run
@given(data=st.data())
def test_what_is_found_is_allowed_and_breaks_the_sample_unless_it_is_0(name, data):
    fixed = {"box": BOX} if name == "cw" else {}
    model, x, y, ball = fitting(name, data.draw(problems(**fixed)))
    delta = RUNS[name](model, x, y, ball)
    assert (delta.shape, delta.dtype) == (x.shape, x.dtype)
    assert ball.contains(delta, x).all()
    if ball.box:
        assert (x + delta >= 0).all()
        assert (x + delta <= 1).all()
    wrong = losses.margin_loss(model(x + delta).detach(), y) >= -1e-5
    assert (wrong | (delta == 0).flatten(1).all(1)).all()


@each_taken
def test_the_cap_changes_no_iterate_it_only_says_which_of_them_come_back(name, p, box):
    model, x, y, ball = problem(p=p, box=box, n=40, eps=math.inf)
    free = RUNS[name](model, x, y, ball)
    length = norms(free, p)
    assert broken(model, x, y, free).double().mean() >= 0.95
    for eps in (0.0, length.median().item(), length.max().item() * 1.001):
        capped = RUNS[name](model, x, y, Ball(p, eps, box))
        assert torch.equal(capped, torch.where((length <= eps)[:, None], free, 0))


@each_taken
def test_one_run_without_a_cap_has_the_whole_curve(name, p, box):
    model, x, y, ball = problem(p=p, box=box, n=40, eps=math.inf, K=4)
    delta = RUNS[name](model, x, y, ball)
    length = norms(delta, p)
    length[~broken(model, x, y, delta)] = math.inf
    for eps in length.quantile(torch.tensor([0.2, 0.5, 0.8]).double()).tolist():
        expected = (length > eps).double().mean()
        assert robust_accuracy(model, x, y, Ball(p, eps, box), [RUNS[name]]).value == expected


@each_taken
def test_a_model_that_never_changes_its_mind_is_not_broken_and_gives_no_nan(name, p, box):
    model, x, y, ball = problem(p=p, box=box, eps=math.inf)
    nn.init.zeros_(model[-1].weight)
    model[-1].bias.data = torch.tensor([1.0, 0.0, 0.0]).double()
    assert (RUNS[name](model, x, 0 * y, ball) == 0).all()
    assert (RUNS[name](model, x, 0 * y + 1, ball) == 0).all()  # broken as it is


@each_taken
def test_the_defaults_shorten_what_the_gradient_sign_finds_on_the_way_and_miss_nothing(name, p, box):
    model, x, y, ball = problem(p=p, box=box, n=40, eps=math.inf)
    found = norms(getattr(attacks, name)(model, x, y, ball), p)
    short = Ball(p, found.clamp(min=1e-9) * 0.6, box)
    assert (
        survivors(model, x, y, short, [partial(attacks.pgd, steps=40)])[found > 0].double().mean() > 0.8
    )


# ---- every sample for itself ----


@each_taken
def test_a_batch_is_its_samples_one_by_one(name, p, box):
    shape = SHAPES[2 + ORDERS.index(p)]
    whole = problem(shape=shape, p=p, box=box, eps=math.inf)
    attack = RUNS[name] if name != "fab" else partial(attacks.fab, steps=8)
    together = attack(*whole)
    for i in range(len(whole.x)):
        torch.testing.assert_close(attack(*whole.row(i)), together[i : i + 1], rtol=0, atol=1e-6)


@each_taken
def test_a_radius_for_each_sample_caps_each_sample(name, p, box):
    model, x, y, _ = problem(n=4, p=p, box=box)
    radii = (0.0, 0.02, 0.5, math.inf)
    each = torch.tensor(radii, dtype=torch.float64)
    together = RUNS[name](model, x, y, Ball(p, each, box))
    for i, eps in enumerate(radii):
        assert torch.equal(together[i], RUNS[name](model, x, y, Ball(p, eps, box))[i])


@each_run
@pytest.mark.parametrize("shape", [(4, 6), (5, 7, 7)])
def test_the_shape_of_a_sample_does_not_matter(name, shape):
    model, x, y, ball = problem(shape=shape, p=2, eps=math.inf)
    flat = RUNS[name](model, x.flatten(1), y, ball)
    assert torch.equal(RUNS[name](model, x, y, ball).flatten(1), flat)


@each_run
def test_inputs_and_labels_made_in_inference_mode_are_attacked_like_others(name):
    model, x, y, ball = problem(p=2)
    expected = RUNS[name](model, x, y, ball)
    with torch.inference_mode():
        assert torch.equal(RUNS[name](model, x.clone(), y.clone(), ball), expected)


@each_run
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_logits_may_have_another_type_than_the_inputs(name, dtype):
    model, x, y, ball = problem(p=2, dtype=torch.float32)
    delta = RUNS[name](lambda x: model(x).to(dtype), x, y, ball)
    assert delta.dtype == torch.float32
    assert ball.contains(delta, x).all()


def test_the_generator_decides_where_fab_starts_again_and_moves_on():
    inputs, generator = problem(eps=math.inf, n=30, scale=3, hidden=(12, 12)), seeded(5)
    run = partial(attacks.fab, *inputs, steps=3, restarts=3)
    first = run(generator=generator)
    assert torch.equal(first, run(generator=seeded(5)))
    assert not torch.equal(first, run(generator=generator))
    assert torch.equal(run(), run(generator=seeded(0)))


def test_who_drops_samples_refuses_a_stack_and_the_others_take_one():
    stack = Stack([models.mlp([8, 5, 3], seeded(i)) for i in range(2)])
    _, x, y, _ = problem(n=4, dtype=torch.float32)
    for name, attack in RUNS.items():
        judge = partial(
            table, {"a": [stack]}, x, y, Ball(2, 1.0, BOX), {"b": attack}, whole_batches=True
        )
        if name == "deepfool":
            with pytest.raises(ValueError, match="drops samples"):
                judge()
        else:
            judge()


# ---- targets and confidence ----


@each_taken
def test_with_targets_what_comes_back_is_classified_as_them(name, p, box):
    model, x, _, ball = problem(K=4, n=30, p=p, box=box, eps=math.inf)
    y = model(x).argmax(1)
    targets = (y + 1 + torch.arange(30) % 3) % 4
    delta = RUNS[name](model, x, y, ball, targets=targets)
    found = (delta != 0).flatten(1).any(1)
    assert found.double().mean() > 0.6
    z = model(x + delta).detach()
    assert (losses.margin_loss(z, targets)[found] <= 1e-9).all()
    free = attacks.fab(model, x, y, ball)
    assert (norms(free, p)[found] <= 1.05 * norms(delta, p)[found] + 1e-9).double().mean() > 0.8


@pytest.mark.parametrize("confidence", [0.3, 1.0])
def test_what_cw_finds_with_confidence_leads_by_as_much_and_is_longer(confidence):
    model, x, y, ball = problem(p=2, eps=math.inf, n=30, scale=3)
    plain, sure = (attacks.cw(model, x, y, ball, confidence=k) for k in (0.0, confidence))
    found = (sure != 0).any(1)
    assert found.sum() > 8
    assert (losses.margin_loss(model(x + sure).detach(), y)[found] >= confidence - 1e-9).all()
    assert (norms(sure, 2)[found] >= norms(plain, 2)[found] - 1e-9).all()


# ---- what it costs ----


def test_calls_are_counted_as_the_docstrings_count_them():
    model, x, y, ball = problem(p=2, eps=math.inf)
    for attack, most in (
        (partial(attacks.deepfool, steps=9), 9 + 1 + 3),
        (partial(attacks.ddn, steps=9), 9 + 3),
        (partial(attacks.cw, steps=9, searches=2), 1 + 18 + 3),
        (partial(attacks.fab, steps=9, restarts=2), 36 + 3),
    ):
        witness = Witness(model)
        attack(witness, x, y, ball)
        assert len(witness.asked) <= most
        assert not any(gradient for *_, gradient in witness.asked[-3:])


def test_deepfool_leaves_broken_samples_alone():
    model, x, y, ball = problem(p=2, eps=math.inf, n=40, scale=3)
    witness = Witness(model)
    attacks.deepfool(witness, x, y, ball)
    sizes = [len(x) for x, *_ in witness.asked[:-3]]
    assert sizes[0] == 40
    assert sizes[-1] < 20
    assert sizes == sorted(sizes, reverse=True)


# ---- against the truth, which linear models have ----


def linear_distances(W, b, x, y, p):
    """min_k (z_y − z_k) / ‖w_y − w_k‖_q without a box, 0 if that is negative."""
    z, q = x @ W.T + b, {1: math.inf, 2: 2, math.inf: 1}[p]
    lead = z.gather(1, y[:, None]) - z
    far = lead / torch.linalg.vector_norm(W[y][:, None] - W, ord=q, dim=2)
    return far.nan_to_num(nan=math.inf).amin(1).clamp(min=0)


@pytest.mark.parametrize("p", ORDERS)
@settings(max_examples=20)
@given(seed=seeds, K=st.sampled_from((2, 4)))
def test_on_a_linear_model_one_step_of_deepfool_is_the_distance_to_the_nearest_class(p, seed, K):
    W, b, model, x, y, ball = linear_problem(seed, p, math.inf, None, K, n=16)
    found = norms(attacks.deepfool(model, x, y, ball, steps=1), p)
    exact = linear_distances(W, b, x, y, p)
    assert (found >= exact * (1 - 1e-9)).all()
    torch.testing.assert_close(found, exact, rtol=1e-3, atol=1e-12)


@each_taken
@settings(max_examples=8)
@given(seed=seeds)
def test_on_a_linear_model_of_two_classes_what_is_found_is_hardly_longer_than_the_shortest(
    name, p, box, seed
):
    W, b, model, x, y, ball = linear_problem(seed, p, math.inf, box, 2, n=16)
    delta = getattr(attacks, name)(model, x, y, ball)
    wrong, length = broken(model, x, y, delta), norms(delta, p)
    part = 0.85 if name == "cw" else 0.99
    shorter = Ball(p, torch.where(wrong, part * length, 99), box)
    margins = linear.margins(W, b, x, y, shorter).amin(1)  # where all of the box is right, in all of it
    assert (margins > -1e-9)[(length > 0) | ~wrong].all()
    assert box or wrong.all()


@settings(max_examples=20)
@each_run
@given(seed=seeds, K=st.sampled_from((2, 4)), p=orders)
def test_on_a_linear_model_nothing_is_found_within_what_is_certified(name, seed, K, p):
    if name in ONLY_2:
        p = 2
    W, b, model, x, y, ball = linear_problem(seed, p, math.inf, BOX, K, n=16)
    for options in ({}, {"targets": (y + 1) % K}):
        delta = RUNS[name](model, x, y, ball, **options)
        length = norms(delta, p)
        reached = Ball(p, length, BOX)
        stands = linear.margins(W, b, x, y, reached).amin(1) > 1e-9
        assert not (stands & broken(model, x, y, delta)).any()


# ---- as published ----


def test_ddn_asks_where_algorithm_1_of_the_paper_does():
    model, x, y, ball = problem(p=2, eps=math.inf, n=8)
    witness = Witness(model)
    attacks.ddn(witness, x, y, ball, steps=30)
    for i in range(8):
        delta, eps = torch.zeros_like(x[i]), 1.0
        for k in range(30):
            torch.testing.assert_close(witness.asked[k][0][i], x[i] + delta, rtol=0, atol=1e-7)
            at = (x[i] + delta).requires_grad_()
            z = model(at[None])
            (g,) = torch.autograd.grad(nn.functional.cross_entropy(z, y[i : i + 1]), at)
            eps *= 0.95 if broken(model, x[i : i + 1], y[i : i + 1], delta).item() else 1.05
            alpha = 0.01 + 0.99 * (1 + math.cos(math.pi * k / 30)) / 2
            delta = delta + alpha * g / g.norm()
            delta = (x[i] + eps * delta / delta.norm()).clamp(0, 1) - x[i]


def test_fab_asks_where_algorithm_1_of_the_paper_does_without_a_box():
    """On two classes, for p = 2, where the projection is one line."""
    model, x, _, ball = problem(p=2, box=None, eps=math.inf, n=8, K=2, scale=2)
    y = model(x).argmax(1)
    witness = Witness(model)
    attacks.fab(witness, x, y, ball, steps=6)
    for i in range(8):
        at = x[i]
        for k in range(6):
            torch.testing.assert_close(witness.asked[2 * k][0][i], at, rtol=0, atol=1e-9)
            at = at.clone().requires_grad_()
            z = model(at[None])[0]
            f = z[1 - y[i]] - z[y[i]]
            (w,) = torch.autograd.grad(f, at)
            at, f = at.detach(), f.detach()
            d = -f * w / (w @ w)
            d0 = -(f + w @ (x[i] - at)) * w / (w @ w)
            a = min(max((d.norm() / (d.norm() + d0.norm())).item(), 0.01), 0.1)
            at = (1 - a) * (at + 1.05 * d) + a * (x[i] + 1.05 * d0)
            torch.testing.assert_close(witness.asked[2 * k + 1][0][i], at, rtol=0, atol=1e-9)
            if broken(model, at[None], y[i : i + 1], 0).item():
                at = x[i] + 0.9 * (at - x[i])


# ---- on digits ----


@each_run
def test_multiplying_the_logits_by_64_hides_nothing(name, digits):
    x, y, ball = digits.x_test[:100], digits.y_test[:100], Ball(2, math.inf, BOX)
    plain, sharp = (norms(RUNS[name](scaled(s), x, y, ball), 2) for s in (1, 64))
    assert sharp.median() == pytest.approx(plain.median().item(), rel=0.02)


def test_the_attacks_agree_on_digits_and_pgd_breaks_few_that_they_do_not(digits):
    x, y, model = digits.x_test[:100], digits.y_test[:100], scaled(1)
    lengths = {}
    for name in RUNS:
        delta = getattr(attacks, name)(model, x, y, Ball(2, math.inf, BOX))
        assert broken(model, x, y, delta).all()
        lengths[name] = norms(delta, 2)
    best = torch.stack([*lengths.values()]).amin(0)
    for length in lengths.values():
        assert length.median() <= 1.06 * best.median()
    ball = Ball(2, best.median().item(), BOX)
    left = survivors(model, x, y, ball, [partial(attacks.pgd, steps=100)])
    assert left.double().mean() >= (lengths["fab"] > ball.eps).double().mean() - 0.02


@pytest.mark.parametrize("p", ORDERS)
def test_fab_is_never_longer_with_more_restarts(p):
    model, x, y, ball = problem(p=p, eps=math.inf, n=30, scale=3, hidden=(12, 12))
    few, many = (attacks.fab(model, x, y, ball, steps=5, restarts=r) for r in (1, 4))
    assert (norms(many, p) <= norms(few, p) * 1.02 + 1e-9).all()
    assert p == 1 or norms(many, p).mean() < norms(few, p).mean()
