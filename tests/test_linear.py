"""Linear models: closed forms against brute force, the convex program against descent."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import BOX, DTYPES, ORDERS, entries, inputs, orders, seeded, seeds, tolerance
from torch.autograd import gradcheck
from torch.nn.functional import cross_entropy

from adv_lib import data, linear, models
from adv_lib.threat import Ball

boxes = st.sampled_from([None, BOX])
radii = st.sampled_from([0.0, 0.05, 0.3, 2.0])


def two_classes(seed, n=6, d=4, dtype=torch.float64):
    """w, b, x in the box and labels ±1."""
    w, b = entries((d,), seed, "plain"), entries((), seed + 1, "plain")
    y = torch.randint(0, 2, (n,), generator=seeded(seed)) * 2 - 1
    return w.to(dtype), b.to(dtype), inputs((n, d), seed).to(dtype), y


def many_classes(seed, n=6, d=4, K=3, dtype=torch.float64):
    """W, b, x in the box and labels below K."""
    W, b = entries((K, d), seed, "plain"), entries((K,), seed + 1, "plain")
    y = torch.randint(0, K, (n,), generator=seeded(seed))
    return W.to(dtype), b.to(dtype), inputs((n, d), seed).to(dtype), y


# ---- two classes: the inner minimum ----


@given(seeds, orders, boxes, radii, st.sampled_from(DTYPES))
def test_the_worst_case_is_allowed_and_has_the_robust_margin(seed, p, box, eps, dtype):
    w, b, x, y = two_classes(seed, dtype=dtype)
    ball = Ball(p, eps, box)
    delta = linear.worst_case(w, x, y, ball)
    assert ball.contains(delta, x).all()
    exact = linear.robust_margin(w, b, x, y, ball)
    reached = linear.margin(w, b, x + delta, y)
    assert exact.dtype == dtype
    scale = w.abs().sum() * (1 + eps) + b.abs()
    assert ((exact - reached).abs() <= tolerance(x) * scale).all()


@given(seeds, orders, boxes)
def test_a_larger_ball_never_raises_a_margin_or_lowers_the_error(seed, p, box):
    w, b, x, y = two_classes(seed, n=40)
    grid = [0.0, 0.01, 0.1, 0.3, 1.0, 5.0]
    margins = torch.stack([linear.robust_margin(w, b, x, y, Ball(p, e, box)) for e in grid])
    assert (margins.diff(dim=0) <= 1e-12).all()
    errors = [linear.robust_error(w, b, x, y, Ball(p, e, box)) for e in grid]
    assert errors == sorted(errors)


@given(seeds, orders, radii)
def test_the_box_only_helps_the_defender(seed, p, eps):
    w, b, x, y = two_classes(seed)
    free, boxed = (linear.robust_margin(w, b, x, y, Ball(p, eps, box)) for box in (None, BOX))
    assert (boxed >= free - 1e-12).all()


@given(seeds, orders)
def test_without_a_radius_the_robust_error_is_the_error(seed, p):
    w, b, x, y = two_classes(seed, n=30)
    wrong = torch.sign(x @ w + b) != y
    assert linear.robust_error(w, b, x, y, Ball(p, 0.0)) == pytest.approx(wrong.double().mean().item())


@given(seeds, orders, boxes)
def test_the_robust_error_counts_the_samples_that_their_worst_case_breaks(seed, p, box):
    w, b, x, y = two_classes(seed, n=30)
    ball = Ball(p, 0.1, box)
    broken = linear.margin(w, b, x + linear.worst_case(w, x, y, ball), y) <= 0
    assert linear.robust_error(w, b, x, y, ball) == pytest.approx(broken.double().mean().item())


def test_a_margin_of_0_counts_as_wrong():
    w, b, x, y = (
        torch.tensor([1.0]),
        torch.tensor(0.0),
        torch.tensor([[0.5], [0.75]]),
        torch.tensor([1, 1]),
    )
    assert linear.robust_error(w, b, x, y, Ball(math.inf, 0.5)) == 0.5


def test_images_and_one_eps_per_sample_work_like_vectors_one_by_one():
    w, b, x, y = two_classes(0, n=5, d=12)
    eps = torch.tensor([0.0, 0.1, 0.2, 0.3, 0.4], dtype=torch.float64)
    images = x.reshape(5, 3, 2, 2)
    for p, box in itertools.product(ORDERS, (None, BOX)):
        together = linear.robust_margin(w, b, images, y, Ball(p, eps, box))
        assert linear.worst_case(w, images, y, Ball(p, eps, box)).shape == images.shape
        for i in range(5):
            alone = Ball(p, eps[i].item(), box)
            one = linear.robust_margin(w, b, x[i : i + 1], y[i : i + 1], alone)
            torch.testing.assert_close(together[i : i + 1], one)


@pytest.mark.parametrize("box", [None, BOX])
@pytest.mark.parametrize("p", ORDERS)
def test_gradients_flow_through_the_robust_margin(p, box):
    w, b, x, y = two_classes(3)
    ball = Ball(p, 0.2, box)
    w.requires_grad_()
    b.requires_grad_()
    assert gradcheck(lambda w, b: linear.robust_margin(w, b, x, y, ball), (w, b))


def test_the_logistic_loss_is_stable_and_falls_with_slope_between_minus_1_and_0():
    m = torch.tensor([-1e4, -5.0, 0.0, 5.0, 1e4], dtype=torch.float64, requires_grad=True)
    loss = linear.logistic(m)
    near_0 = torch.log1p(torch.exp(-m[1:4]))
    torch.testing.assert_close(loss[1:4], near_0)
    assert loss[0] == 1e4
    assert 0 <= loss[4] < 1e-300
    (slope,) = torch.autograd.grad(loss.sum(), m)
    assert (slope <= 0).all()
    assert (slope >= -1).all()


# ---- weights ----


def test_weights_are_those_of_the_model_and_carry_gradients():
    model, x = models.linear(4, 1), torch.rand(3, 4)
    w, b = linear.weights(model)
    assert (w.shape, b.shape) == ((4,), ())
    torch.testing.assert_close(x @ w + b, model(x).squeeze(1))
    (w.sum() + b).backward()
    assert model[1].weight.grad.tolist() == [[1.0] * 4]
    W, b = linear.weights(models.linear(4, 3))
    assert (W.shape, b.shape) == ((3, 4), (3,))


# ---- the outer minimum ----


def objective(w, b, x, y, ball):
    return linear.logistic(linear.robust_margin(w, b, x, y, ball)).mean()


def overlapping(seed, n=30, d=3):
    """Two clouds that no line separates."""
    _, _, x, y = two_classes(seed, n, d)
    return x + 0.1 * y[:, None], y


@pytest.mark.parametrize("p", ORDERS)
@pytest.mark.parametrize("eps", [0.0, 0.05])
def test_descent_comes_as_low_as_the_convex_program_and_never_lower(p, eps):
    x, y = overlapping(0)
    ball = Ball(p, eps)
    best = objective(*linear.robust_logistic_regression(x, y, ball), x, y, ball).item()
    w, b = torch.zeros(3, dtype=torch.float64), torch.zeros((), dtype=torch.float64)
    w.requires_grad_()
    b.requires_grad_()
    lowest = math.inf
    for step in range(1500):
        loss = objective(w, b, x, y, ball)
        lowest = min(lowest, loss.item())
        gw, gb = torch.autograd.grad(loss, (w, b))
        with torch.no_grad():  # steps that shrink, since the dual norms have kinks
            rate = 10 / (1 + step / 50)
            w -= rate * gw
            b -= rate * gb
    assert lowest >= best - 1e-8  # Clarabel's own accuracy
    assert lowest <= best + 1e-3


@settings(max_examples=15)  # each is two convex programs
@given(seeds, orders, st.sampled_from([0.0, 0.05, 0.2]))
def test_no_step_away_from_the_convex_programs_answer_goes_down(seed, p, eps):
    x, y = overlapping(seed)
    ball = Ball(p, eps)
    if linear.largest_margin(x, y, p) < max(eps, 1e-6):
        w, b = linear.robust_logistic_regression(x, y, ball)
        best = objective(w, b, x, y, ball)
        for i, size in enumerate((1e-3, 1e-2, 0.1, 1.0) * 10):
            near = w + size * entries((3,), i, "plain"), b + size * entries((), i + 99, "plain")
            assert objective(*near, x, y, ball) >= best - 1e-7


@pytest.mark.parametrize("scale", [1e-3, 255.0, 1e8])
def test_the_convex_programs_answer_does_not_depend_on_the_unit_of_the_inputs(scale):
    x, y = overlapping(1)
    ball = Ball(math.inf, 0.05)
    best = objective(*linear.robust_logistic_regression(x, y, ball), x, y, ball)
    w, b = linear.robust_logistic_regression(scale * x, y, Ball(math.inf, 0.05 * scale))
    assert objective(scale * w, b, x, y, ball).item() == pytest.approx(best.item(), abs=1e-6)


def test_the_convex_program_answers_in_the_type_and_size_of_the_data(digits):
    pair = data.binary(digits, 3, 8)
    w, b = linear.robust_logistic_regression(pair.x_train[:100], pair.y_train[:100], Ball(math.inf, 0.5))
    assert (w.shape, b.shape) == ((64,), ())
    assert w.dtype == b.dtype == torch.float32


def test_weights_that_the_optimum_has_at_0_are_0():
    """A column that says nothing costs ε|w_i| under ℓ∞, so its weight is 0 and not 1e-9."""
    x, y = overlapping(2)
    x = torch.cat([x, torch.full((len(x), 1), 0.5, dtype=torch.float64)], 1)
    w, _ = linear.robust_logistic_regression(x, y, Ball(math.inf, 0.05))
    assert w[3] == 0
    assert w[:3].abs().max() > 0.1


@settings(max_examples=20)
@given(seeds, orders)
def test_the_largest_margin_of_two_points_is_half_their_distance(seed, p):
    x = entries((2, 3), seed, "plain")
    half = torch.linalg.vector_norm(x[1] - x[0], ord=p).item() / 2
    assert linear.largest_margin(x, torch.tensor([1, -1]), p) == pytest.approx(half, rel=1e-6)


@pytest.mark.parametrize("p", ORDERS)
def test_the_largest_margin_is_0_where_no_line_separates(p):
    cross = torch.tensor([[0.0, 0.0], [1.0, 1.0], [0.0, 1.0], [1.0, 0.0]])
    assert linear.largest_margin(cross, torch.tensor([1, 1, -1, -1]), p) == pytest.approx(0, abs=1e-7)


@settings(max_examples=20)
@given(seeds, orders)
def test_no_line_has_a_larger_margin_than_the_largest(seed, p):
    x, y = overlapping(seed, n=4, d=2)
    if len(y.unique()) == 2:
        reach = linear.largest_margin(x, y, p)
        for i in range(50):
            w = entries((2,), i, "plain")
            w = w / Ball(p, 1.0).support(w[None])
            lowest, highest = (y * (x @ w))[y == 1].amin(), (y * (x @ w))[y == -1].amin()
            assert (lowest + highest) / 2 <= reach + 1e-6  # the best b puts both classes equally far


# ---- K classes ----


@given(seeds, orders, boxes, radii, st.sampled_from(DTYPES))
def test_each_margin_is_that_of_the_difference_of_two_rows(seed, p, box, eps, dtype):
    W, b, x, y = many_classes(seed, dtype=dtype)
    ball = Ball(p, eps, box)
    margins = linear.margins(W, b, x, y, ball)
    assert margins.dtype == dtype
    scale = 4 * (W.abs().sum(1).max() * (1 + eps) + b.abs().max())
    for i, k in itertools.product(range(len(x)), range(3)):
        if k == y[i]:
            assert margins[i, k] == math.inf
        else:
            pair = W[y[i]] - W[k], b[y[i]] - b[k]
            alone = linear.robust_margin(*pair, x[i : i + 1], torch.tensor([1]), ball)
            assert abs(margins[i, k] - alone) <= tolerance(x) * scale


@given(seeds, orders, boxes)
def test_two_classes_are_the_binary_case(seed, p, box):
    W, b, x, y = many_classes(seed, K=2)
    w, c = W[1] - W[0], b[1] - b[0]
    signs, ball = 2 * y - 1, Ball(p, 0.2, box)
    margins = linear.margins(W, b, x, y, ball).gather(1, 1 - y[:, None]).squeeze(1)
    torch.testing.assert_close(margins, linear.robust_margin(w, c, x, signs, ball))
    bound = linear.robust_cross_entropy_bound(W, b, x, y, ball)
    torch.testing.assert_close(bound, linear.logistic(margins))


@given(seeds, orders, boxes)
def test_one_eps_per_sample_means_each_sample_its_own(seed, p, box):
    W, b, x, y = many_classes(seed)
    eps = torch.rand(len(x), generator=seeded(seed), dtype=torch.float64)
    together = linear.margins(W, b, x, y, Ball(p, eps, box))
    for i in range(len(x)):
        row = slice(i, i + 1)
        alone = linear.margins(W, b, x[row], y[row], Ball(p, eps[row], box))
        torch.testing.assert_close(together[row], alone)
        torch.testing.assert_close(
            together[row], linear.margins(W, b, x[row], y[row], Ball(p, eps[i], box))
        )


def test_a_single_eps_in_a_tensor_serves_the_whole_batch():
    W, b, x, y = many_classes(0)
    expected = linear.margins(W, b, x, y, Ball(2, 0.25))
    for eps in (torch.tensor(0.25), torch.tensor([0.25])):
        torch.testing.assert_close(linear.margins(W, b, x, y, Ball(2, eps)), expected)


def test_a_tie_with_a_rival_is_not_certified():
    W, b, x = torch.eye(2), torch.zeros(2), torch.tensor([[0.75, 0.25]])
    just, short = Ball(math.inf, 0.25), Ball(math.inf, 0.125)  # the margin is 0.5 − 2ε, without rounding
    assert linear.margins(W, b, x, torch.tensor([0]), just)[0, 1] == 0
    assert not linear.certified(W, b, x, torch.tensor([0]), just).any()
    assert linear.certified(W, b, x, torch.tensor([0]), short).all()


@given(seeds, orders)
def test_without_a_radius_the_bound_is_the_cross_entropy(seed, p):
    W, b, x, y = many_classes(seed)
    exact = cross_entropy(x @ W.T + b, y, reduction="none")
    torch.testing.assert_close(linear.robust_cross_entropy_bound(W, b, x, y, Ball(p, 0.0)), exact)


@pytest.mark.parametrize("box", [None, BOX])
@pytest.mark.parametrize("p", ORDERS)
def test_gradients_flow_through_the_bound(p, box):
    W, b, x, y = many_classes(5)
    W.requires_grad_()
    b.requires_grad_()
    ball = Ball(p, 0.2, box)
    assert gradcheck(lambda W, b: linear.robust_cross_entropy_bound(W, b, x, y, ball), (W, b))


def test_the_bound_survives_huge_logits():
    W, x = 1e4 * torch.eye(3), torch.rand(4, 3, generator=seeded(0))
    y = torch.tensor([0, 1, 2, 0])
    W.requires_grad_()
    bound = linear.robust_cross_entropy_bound(W, torch.zeros(3), x, y, Ball(math.inf, 0.5))
    assert bound.isfinite().all()
    (gradient,) = torch.autograd.grad(bound.sum(), W)
    assert gradient.isfinite().all()


# ---- on real images ----


def test_on_digits_the_model_trained_for_an_attack_bears_it_better(digits):
    pair = data.binary(digits, 3, 8)
    train, test, ball = pair[:2], pair[2:], Ball(math.inf, 0.2)
    ready = linear.robust_logistic_regression(*train, ball)
    unready = linear.robust_logistic_regression(*train, Ball(math.inf, 0.05))
    assert linear.robust_error(*ready, *test, ball) < linear.robust_error(*unready, *test, ball)


def test_on_mnist_the_exact_robust_error_is_reached_by_the_worst_case(mnist):
    pair = data.binary(mnist, 0, 1)
    w = (
        pair.x_train[pair.y_train == 1].mean(0).flatten()
        - pair.x_train[pair.y_train == -1].mean(0).flatten()
    )
    middle = torch.tensor(0.0) - (pair.x_train.flatten(1) @ w).mean()
    ball = Ball(math.inf, 0.2, BOX)
    x, y = pair.x_test, pair.y_test
    broken = linear.margin(w, middle, x + linear.worst_case(w, x, y, ball), y) <= 0
    assert linear.robust_error(w, middle, x, y, ball) == pytest.approx(
        broken.double().mean().item(), abs=1e-3
    )
