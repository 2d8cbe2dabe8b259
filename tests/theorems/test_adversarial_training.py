"""Chapter 6, adversarial training: every labelled statement, attacked with random instances."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import (
    BOX,
    ORDERS,
    Case,
    entries,
    inputs,
    network_case,
    orders,
    problem,
    seeded,
    seeds,
    theorem,
)
from torch import nn
from torch.nn.functional import softplus

from adv_lib import attacks, bounds, exact, linear, losses, models, training
from adv_lib.evaluation import survivors, table
from adv_lib.threat import Ball

EXACT = 1e-9  # float64, and sums of a few terms of size up to 10
boxes = st.sampled_from([None, BOX])
few = settings(max_examples=25)


# ---- Danskin: the slope of a maximum ----


def one_sided(phi, theta, gamma, h):
    """(φ(θ + hγ) − φ(θ)) / h."""
    return (phi(theta + h * gamma) - phi(theta)) / h


def tied(seed, m=6, d=3, ties=3):
    """g(θ, δ) for δ = 1, …, m: smooth, curved up or down, and `ties` of them maximal at one θ.

    g(θ, k) = c_k + ⟨b_k, θ⟩ + (s_k/2) ‖θ‖² + sin⟨w_k, θ⟩.  Returns g (m,) and its gradient (m, d) as
    functions of θ; θ; which are maximal there, all others by 1.1 less; and a bound on ‖∇²g‖.
    """
    b, w = entries((2, m, d), seed, "plain")
    s, theta = entries((m,), seed + 1, "plain"), entries((d,), seed + 2, "plain")

    def bare(theta):
        return b @ theta + s / 2 * (theta @ theta) + torch.sin(w @ theta)

    def slope(theta):
        return b + s[:, None] * theta + torch.cos(w @ theta)[:, None] * w

    maximal = torch.arange(m) < ties
    c = torch.where(maximal, 1.0, -0.1 - entries((m,), seed + 3, "plain").abs()) - bare(theta)
    return lambda at: c + bare(at), slope, theta, maximal, float((s.abs() + (w * w).sum(1)).max())


@theorem("thm-danskin")
@given(seeds, st.integers(1, 5), st.sampled_from(["plain", "ties", "sparse"]))
def test_the_slope_of_a_maximum_in_a_direction_is_the_largest_slope_of_those_that_attain_it(
    seed, ties, kind
):
    """Over a finite set: |φ(θ + hγ) − φ(θ) − h D| ≤ L h² ‖γ‖²/2 while none but the maximisers leads."""
    g, slope, theta, maximal, L = tied(seed, ties=ties)
    assert torch.equal(g(theta) >= g(theta).amax() - EXACT, maximal)
    for gamma in entries((5, len(theta)), seed + 4, kind):
        expected = (slope(theta) @ gamma)[maximal].amax()
        for h in (1e-3, 1e-4, 1e-5):
            found = one_sided(lambda at: g(at).amax(), theta, gamma, h)
            assert abs(found - expected) <= L * h * (gamma @ gamma) / 2 + 1e-14 / h


@theorem("thm-danskin")
@given(seeds)
def test_a_maximum_with_one_maximiser_has_its_gradient(seed):
    """From both sides, in every direction: D_γ = −D_{−γ} = ⟨γ, ∇g(θ, δ*)⟩."""
    g, slope, theta, _, L = tied(seed, ties=1)
    gradient = slope(theta)[g(theta).argmax()]
    h, leaf = 1e-5, theta.clone().requires_grad_()
    for gamma in entries((5, len(theta)), seed + 4, "plain"):
        up, down = (
            one_sided(lambda at: g(at).amax(), theta, side * gamma, h).item() for side in (1, -1)
        )
        assert up == pytest.approx(float(gradient @ gamma), abs=L * h * float(gamma @ gamma) + 1e-8)
        assert down == pytest.approx(-up, abs=2 * L * h * float(gamma @ gamma) + 1e-8)
    (by_autograd,) = torch.autograd.grad(g(leaf).amax(), leaf)
    torch.testing.assert_close(by_autograd, gradient)


@theorem("thm-danskin")
def test_with_two_maximisers_the_gradient_of_one_of_them_may_lead_uphill():
    """φ(θ) = max(θ₁ + θ₂, θ₁ − 3 θ₂) at 0: down the first slope, (1, 1), φ rises with slope 2."""
    slopes = torch.tensor([[1.0, 1.0], [1.0, -3.0]]).double()

    def phi(theta):
        return (slopes @ theta).amax()

    zero, down = torch.zeros(2).double(), -slopes[0]
    assert one_sided(phi, zero, down, 1e-6).item() == pytest.approx(2.0)
    assert (slopes @ down).amax() == 2
    assert one_sided(phi, zero, -down, 1e-6).item() == pytest.approx(2.0)  # no derivative: 2 both ways


@theorem("thm-danskin")
@given(seeds, orders, boxes, st.booleans())
def test_the_robust_logistic_loss_has_the_slope_of_its_worst_perturbation_also_where_all_are_worst(
    seed, p, box, at_the_kink
):
    """g((w, b), δ) = log(1 + e^{−y(⟨w, x + δ⟩ + b)}) over Δ(x): at w = 0 every δ is a maximiser."""
    x = inputs((1, 4), seed) if box else entries((1, 4), seed, "plain")
    y, ball = torch.tensor([1.0 if seed % 2 else -1.0]).double(), Ball(p, 0.3, box)
    w, b = entries((4,), seed + 1, "plain") * (not at_the_kink), entries((1,), seed + 2, "plain")[0]

    def phi(theta):
        return linear.logistic(linear.robust_margin(theta[:4], theta[4], x, y, ball))[0]

    theta = torch.cat([w, b[None]])
    weight = torch.sigmoid(-linear.robust_margin(w, b, x, y, ball))  # −ℓ'
    for gamma in entries((5, 5), seed + 3, "plain"):
        if at_the_kink:  # max over δ ∈ Δ(x) of −y ⟨γ, (x + δ, 1)⟩, a support function
            still = -y * (gamma[:4] @ x[0] + gamma[4])
            expected = weight * (still + ball.support(-y * gamma[None, :4], x))
        else:
            worst = linear.worst_case(w, x, y, ball)
            expected = -weight * y * (gamma[:4] @ (x + worst)[0] + gamma[4])
        found = one_sided(phi, theta, gamma, 1e-6)
        assert found.item() == pytest.approx(expected.item(), abs=1e-4 * (1 + float(gamma @ gamma)))


@theorem("thm-danskin")
@given(st.floats(-3, 3), st.sampled_from((0.5, 1.0, 2.0)))
def test_over_an_interval_the_slope_is_the_maximiser_inside_at_an_end_and_on_the_edge_between(theta, r):
    """φ(θ) = max over |δ| ≤ r of θδ − δ²/2: the maximiser is θ, cut to the interval, and so is φ'."""
    star = min(max(theta, -r), r)

    def phi(theta):
        grid = torch.linspace(-r, r, 20001, dtype=torch.float64)
        return (theta * grid - grid**2 / 2).amax()

    closed = theta**2 / 2 if abs(theta) <= r else r * abs(theta) - r**2 / 2
    assert phi(theta).item() == pytest.approx(closed, abs=1e-7)
    for sign in (1, -1):
        assert one_sided(phi, theta, sign, 1e-3).item() == pytest.approx(sign * star, abs=2e-3)


@theorem("thm-danskin")
@given(seeds)
def test_where_the_loss_has_two_equal_peaks_on_an_interval_the_slope_is_that_of_the_better_one(seed):
    """g(θ, δ) = −(δ² − 1)² + aδθ + bθ over |δ| ≤ 2: at θ = 0 the peaks δ = ±1 are equally high."""
    a, b = entries((2,), seed, "plain").tolist()
    grid = torch.linspace(-2, 2, 40001, dtype=torch.float64)

    def phi(theta):
        return (-((grid**2 - 1) ** 2) + a * grid * theta + b * theta).amax()

    for gamma in (1.0, -1.0):
        expected = max(gamma * (a * star + b) for star in (1, -1))  # |a| + b γ
        assert one_sided(phi, 0.0, gamma, 1e-4).item() == pytest.approx(expected, abs=1e-3)


@theorem("thm-danskin")
@few
@given(seeds)
def test_the_gradient_that_training_takes_is_that_of_the_maximum_when_the_attack_finds_it(seed):
    """A smooth network, a finite set S, and the attack that tries all of it."""
    x, y = inputs((2, 3), seed), torch.tensor([0, 1])
    S = torch.cat([torch.zeros(1, 3), 0.3 * entries((20, 3), seed + 1, "plain")]).double()
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed % 2**62)
        model = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2)).double()
    theta = nn.utils.parameters_to_vector(model.parameters()).detach().clone()

    def values():
        z = model((x[:, None] + S).flatten(0, 1))
        return losses.cross_entropy(z, y.repeat_interleave(len(S))).reshape(2, -1)

    def try_all(model, x, y, ball):
        return S[values().argmax(1)]

    @torch.no_grad()
    def phi(theta):
        nn.utils.vector_to_parameters(theta, model.parameters())
        return values().amax(1).mean()

    inner = training.adversarial(try_all, Ball(2, 9.0))
    torch.testing.assert_close(inner(model, x, y), values().amax(1))
    parts = torch.autograd.grad(inner(model, x, y).mean(), list(model.parameters()))
    gradient = nn.utils.parameters_to_vector(parts)
    top = values().detach().topk(2, dim=1).values
    if (top[:, 0] - top[:, 1]).amin() < 1e-4:  # nearly two maximisers
        return
    for gamma in entries((4, len(theta)), seed + 2, "plain"):
        gamma = gamma / gamma.norm()
        for sign in (1, -1):
            found = one_sided(phi, theta, sign * gamma, 1e-6).item()
            assert found == pytest.approx(sign * float(gradient @ gamma), abs=1e-4)


# ---- what a robust error is made of ----


def linear_case(seed, p, box, K=3, eps=0.3, n=40):
    """A linear model that is right on most samples; the exact worst margins; a worst δ for each."""
    W, b = entries((K, 4), seed, "plain"), entries((K,), seed + 1, "plain")
    x = inputs((n, 4), seed) if box else entries((n, 4), seed, "plain")
    y = (x @ W.T + b).argmax(1)
    y = torch.where(torch.arange(n) % 5 == 0, (y + 1) % K, y)
    ball = Ball(p, eps, box)
    least, k = linear.margins(W, b, x, y, ball).min(1)
    delta = ball.argmax(W[k] - W[y], x)
    return lambda x: x @ W.T + b, x, y, ball, least, delta


@theorem("thm-two-errors")
@given(seeds, orders, boxes, st.sampled_from((0.0, 0.05, 0.3, 2.0)))
def test_on_a_linear_model_the_robust_error_is_the_clean_error_and_the_boundary_error(seed, p, box, eps):
    model, x, y, _, least, delta = linear_case(seed, p, box, eps=eps)
    if least.abs().amin() < EXACT:
        return
    wrong = losses.margin_loss(model(x), y) >= 0
    reached = losses.margin_loss(model(x + delta), y) >= 0  # a worst δ: wrong somewhere is wrong here
    robustly_wrong = least <= 0
    boundary = ~wrong & reached
    assert torch.equal(wrong | reached, robustly_wrong)
    shares = [t.double().mean().item() for t in (robustly_wrong, wrong, boundary)]
    assert shares[0] == pytest.approx(shares[1] + shares[2])
    assert eps > 0 or not boundary.any()


@theorem("thm-two-errors")
@settings(max_examples=8)
@given(seeds, st.sampled_from(["mlp", "deep mlp"]), boxes)
def test_on_a_network_too_with_the_exact_worst_case_and_a_delta_to_show_for_each(seed, kind, box):
    model, x, y, ball = network_case(kind, seed, box=box, eps=0.15, n=8)
    y = torch.where(torch.arange(8) < 6, model(x).argmax(1), y)
    found = exact.certify(model, x, y, ball, jobs=1)
    if found.are("unknown").any():
        return
    wrong = ~survivors(model, x, y, ball)
    boundary = ~wrong & found.are("broken")
    assert (wrong <= found.are("broken")).all()  # δ = 0 is allowed
    assert ball.contains(found.delta, x).all()
    assert (losses.margin_loss(model(x + found.delta), y)[boundary] >= 0).all()
    assert found.are("broken").sum() == wrong.sum() + boundary.sum()

    def worst(model, x_now, y, ball):
        rows = (x_now[:, None] == x).flatten(2).all(2).int().argmax(1)
        return found.delta[rows]

    got = table({"one": [model]}, x, y, ball, {"exact": worst})
    clean, robust = (100 - got.percent("one", name).mean for name in ("clean", "worst"))
    assert robust == pytest.approx(clean + 100 * boundary.double().mean().item())


# ---- a loss that bounds the error ----


@theorem("thm-error-and-loss")
@given(seeds, orders, boxes, st.sampled_from((0.0, 0.1, 1.0)))
def test_on_two_classes_the_robust_error_is_at_most_the_mean_worst_loss_in_units_of_log_2(
    seed, p, box, eps
):
    """Two classes and a linear model: the worst loss is softplus of minus the least margin."""
    model, x, y, ball, least, delta = linear_case(seed, p, box, K=2, eps=eps)
    worst = softplus(-least)
    torch.testing.assert_close(losses.cross_entropy(model(x + delta), y), worst)
    wrong = (least <= 0).double()
    assert (wrong <= worst / math.log(2) + EXACT).all()  # sample by sample, hence for the means
    assert wrong.mean() <= worst.mean() / math.log(2) + EXACT
    layer, at = models.linear(4, 2).double(), torch.eye(5, 4, dtype=torch.float64)  # the last row is 0
    layer[1].weight.data, layer[1].bias.data = (model(at)[:4] - model(at)[4]).T, model(at)[4]
    for method in ("interval", "dual", "crown"):
        torch.testing.assert_close(training.certified(ball, method)(layer, x, y).detach(), worst)


@theorem("thm-error-and-loss")
@settings(max_examples=8)
@given(seeds, st.sampled_from(["mlp", "deep mlp", "convolution"]), boxes)
def test_on_a_network_the_chain_goes_from_the_exact_error_over_the_worst_loss_to_the_certified_one(
    seed, kind, box
):
    model, x, y, ball = network_case(kind, seed, box=box, eps=0.05, n=6)
    found = exact.certify(model, x, y, ball, jobs=1)
    broken = found.are("broken").double()
    points = [delta.reshape(x.shape) for delta in Case(ball, x, x if box else None).points(20)]
    with torch.no_grad():
        worst = torch.stack(  # at most the maximum, and as large where it matters
            [losses.cross_entropy(model(x + delta), y) for delta in (*points, found.delta)]
        ).amax(0)
    assert (broken <= worst / math.log(2) + 1e-6).all()
    for method in ("interval", "dual", "crown"):
        certified = training.certified(ball, method)(model, x, y).detach()
        assert (worst <= certified + EXACT).all()
        assert broken.mean() <= worst.mean() / math.log(2) + 1e-6
        assert broken.mean() <= certified.mean() / math.log(2) + 1e-6
        assert broken.mean() <= 1 - (certified < math.log(2)).double().mean()  # who is below is proved


@theorem("thm-error-and-loss")
@settings(max_examples=10)
@given(seeds, boxes)
def test_on_a_network_with_two_classes_the_middle_of_the_chain_is_known_exactly(seed, box):
    model, x, y, ball = problem(seed, shape=(3,), n=4, K=2, hidden=(5,), eps=0.1, box=box, scale=2)
    least = exact.margins(model, x, y, ball, jobs=1)
    worst = softplus(-least.margins.amin(1))
    wrong = (least.attained.amin(1) <= 0).double()
    assert (wrong <= worst / math.log(2) + 1e-6).all()
    for method in ("interval", "dual", "crown"):
        assert (worst <= bounds.robust_loss(model, x, y, ball, method) + 1e-6).all()
    assert (training.adversarial(attacks.pgd, ball)(model, x, y) <= worst + 1e-6).all()


@theorem("thm-error-and-loss")
def test_no_factor_smaller_than_1_over_log_2_will_do():
    """A tie of two classes is wrong and costs log 2; with more classes a wrong answer costs no less."""
    tie = torch.zeros(1, 2, dtype=torch.float64)
    assert losses.cross_entropy(tie, torch.tensor([0])).item() == pytest.approx(math.log(2))
    z = entries((1000, 4), 0, "ties")
    y = torch.randint(0, 4, (1000,), generator=seeded(0))
    wrong = losses.margin_loss(z, y) >= 0
    assert (losses.cross_entropy(z, y)[wrong] >= math.log(2) - EXACT).all()
    far = torch.tensor([[0.0, 0.0, -50.0, -50.0]]).double()
    assert losses.cross_entropy(far, torch.tensor([0])).item() == pytest.approx(math.log(2))


# ---- balls in balls ----


def chain(r, d, box=None):
    """(smaller, larger) pairs of balls in d dimensions of which the first lies in the second."""
    one, two, cube = (Ball(p, r, box) for p in ORDERS)
    wide = Ball(2, r * math.sqrt(d), box), Ball(1, r * math.sqrt(d), box)
    return [(one, two), (two, cube), (one, cube), (cube, wide[0]), (two, wide[1])]


@theorem("thm-inclusions")
@given(
    seeds, st.sampled_from((1, 2, 5, 40)), st.sampled_from((0.0, 1e-3, 0.3, 100.0)), boxes,
    st.sampled_from(["plain", "ties", "sparse", "uneven"]),
)  # fmt: skip
def test_every_point_of_the_smaller_ball_is_in_the_larger_one(seed, d, r, box, kind):
    x = inputs((30, d), seed) if box else entries((30, d), seed, "plain")
    v = entries((30, d), seed + 1, kind)
    for small, large in chain(r, d, box):
        for delta in (small.sample(x, seeded(seed)), small.argmax(v, x), small.project(9 * v, x)):
            assert small.contains(delta, x).all()
            assert large.contains(delta, x).all(), (small, large)


@theorem("thm-inclusions")
@given(seeds, st.sampled_from((2, 5, 40)), st.sampled_from((1e-3, 0.3)))
def test_the_factor_is_the_smallest_and_only_the_stated_inclusions_hold(seed, d, r):
    """The corner (r, …, r) has ‖·‖₂ = r√d; the same direction of length r in ℓ2 has ‖·‖₁ = r√d."""
    signs = torch.where(entries((1, d), seed, "plain") < 0, -1.0, 1.0).double()
    corner, diagonal = r * signs, r / math.sqrt(d) * signs
    less = (1 - 1e-6) * r * math.sqrt(d)
    assert Ball(math.inf, r).contains(corner).all()
    assert Ball(2, r * math.sqrt(d)).contains(corner).all()
    assert not Ball(2, less).contains(corner).any()
    assert Ball(2, r).contains(diagonal).all()
    assert Ball(1, r * math.sqrt(d)).contains(diagonal).all()
    assert not Ball(1, less).contains(diagonal).any()
    assert not Ball(2, r).contains(corner).any()  # B_∞(r) is in neither
    assert not Ball(1, r).contains(diagonal).any()


@theorem("thm-inclusions")
@given(seeds, boxes, st.sampled_from((0.03, 0.3)))
def test_the_exact_maxima_on_the_balls_are_ordered_and_robust_on_the_larger_is_robust_on_the_smaller(
    seed, box, r
):
    W, b = entries((3, 6), seed, "plain"), entries((3,), seed + 1, "plain")
    x = inputs((40, 6), seed) if box else entries((40, 6), seed, "plain")
    y = (x @ W.T + b).argmax(1)
    for small, large in chain(r, 6, box):
        easy, hard = (linear.margins(W, b, x, y, ball) for ball in (small, large))
        assert (easy >= hard - EXACT).all()
        assert (small.support(W[y], x) <= large.support(W[y], x) + EXACT).all()
        proved = [linear.certified(W, b, x, y, ball) for ball in (small, large)]
        assert (proved[1] <= proved[0]).all() or hard.abs().amin() < EXACT


@theorem("thm-inclusions")
@settings(max_examples=4)
@given(seeds, st.sampled_from(["mlp", "deep mlp"]))
def test_who_is_proved_robust_in_the_cube_withstands_every_attack_in_the_balls_inside(seed, kind):
    model, x, y, cube = network_case(kind, seed, eps=0.1, n=20)
    y, d = model(x).argmax(1), x[0].numel()
    proved = exact.certify(model, x, y, cube, jobs=1).are("robust")
    worst_in_cube = exact.margins(model, x, y, cube, jobs=1).margins.amin(1)
    for small, large in chain(0.1, d, BOX):
        if large.p != math.inf:
            continue
        for attack in (attacks.pgd, attacks.apgd):
            assert (proved <= survivors(model, x, y, small, [attack])).all()
            delta = attack(model, x, y, small, loss=losses.margin_loss)
            assert (losses.margin(model(x + delta), y) >= worst_in_cube - 1e-6).all()
    inside = Ball(math.inf, 0.1 / math.sqrt(d), BOX)  # and the cube that is inside the ball
    delta = attacks.pgd(model, x, y, inside)
    assert Ball(2, 0.1, BOX).contains(delta, x).all()
