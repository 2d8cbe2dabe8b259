"""What an attacker maximises, against plain loops, and what each loss cannot see."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import DTYPES, entries, seeded, seeds, tolerance

from adv_lib import losses


def logits(seed, n=6, K=5, kind="plain", dtype=torch.float64, scale=3.0):
    """Logits (n, K), labels, and targets that differ from them."""
    draw = seeded(seed)
    y = torch.randint(0, K, (n,), generator=draw)
    targets = (y + torch.randint(1, K, (n,), generator=draw)) % K
    return (scale * entries((n, K), seed, kind)).to(dtype), y, targets


def plain(name, z, y, t):
    """Each loss of one sample from its definition, in Python's own numbers."""
    rivals = [z[j] for j in range(len(z)) if j != y]
    ranked, lead = sorted(z, reverse=True), max(rivals) - z[y]
    return {
        "cross_entropy": lambda: math.log(sum(math.exp(v - z[y]) for v in z)),
        "log_odds": lambda: math.log(sum(math.exp(v - z[y]) for v in rivals)),
        "margin": lambda: -lead,
        "margin_loss": lambda: lead,
        "dlr": lambda: lead / (ranked[0] - ranked[2]),
        "targeted": lambda: z[t] - z[y],
        "targeted_all": lambda: z[t] - sum(z[k] for k in range(len(z)) if k != t),
    }[name]()


UNTARGETED, TARGETED = ("cross_entropy", "log_odds", "margin_loss", "dlr"), ("targeted", "targeted_all")


def call(name, z, y, targets):
    return getattr(losses, name)(z, y, *((targets,) if name in TARGETED else ()))


def slopes(loss, z):
    """∇_z of every sample's loss."""
    z = z.clone().requires_grad_()
    return torch.autograd.grad(loss(z).sum(), z)[0]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["margin", *UNTARGETED, *TARGETED])
@given(seed=seeds, K=st.integers(3, 10))
def test_every_loss_is_its_definition_sample_by_sample(name, dtype, seed, K):
    z, y, targets = logits(seed, K=K, dtype=dtype)
    expected = [
        plain(name, *sample) for sample in zip(z.tolist(), y.tolist(), targets.tolist(), strict=True)
    ]
    got = call(name, z, y, targets)
    assert got.dtype == dtype
    expected = torch.tensor(expected, dtype=torch.float64)
    # the rounding is that of the terms: logits, and for dlr in units of the gap it divides by
    size = z.double().abs().amax(1) * K
    if name == "dlr":
        top = z.double().topk(3, dim=1).values
        size = size * (1 + expected.abs()) / (top[:, 0] - top[:, 2])
    assert ((got.double() - expected).abs() <= tolerance(z) * (1 + size)).all()


@pytest.mark.parametrize("name", ["cross_entropy", "log_odds", "margin_loss", "targeted"])
@given(seed=seeds, shift=st.sampled_from((-1e4, -3.0, 1e4)))
def test_adding_a_number_to_all_logits_changes_no_loss_but_targeted_all(name, seed, shift):
    z, y, targets = logits(seed)
    moved = call(name, z + shift, y, targets)
    torch.testing.assert_close(moved, call(name, z, y, targets), rtol=0, atol=1e-10)


@given(seeds, st.sampled_from((-1e4, -3.0, 1e4)), st.sampled_from((1e-3, 0.5, 64.0, 1e6)))
def test_dlr_does_not_change_when_the_logits_are_shifted_or_scaled(seed, shift, scale):
    z, y, _ = logits(seed)
    torch.testing.assert_close(losses.dlr(scale * z, y), losses.dlr(z, y), rtol=1e-9, atol=1e-9)
    gap = (z.topk(3, dim=1).values[:, 0] - z.topk(3, dim=1).values[:, 2]).min()
    torch.testing.assert_close(
        losses.dlr(z + shift, y), losses.dlr(z, y), rtol=0, atol=float(1e-9 / gap)
    )


# ---- what they agree on ----


@pytest.mark.parametrize("name", ["margin_loss", "dlr"])
@given(seed=seeds)
def test_these_losses_are_positive_exactly_where_the_prediction_is_wrong(name, seed):
    z, y, _ = logits(seed, n=50)
    assert torch.equal(getattr(losses, name)(z, y) > 0, z.argmax(1) != y)


def test_the_margin_is_0_at_a_tie_and_a_tie_is_not_correct_nor_is_nan():
    z, y = torch.tensor([[2.0, 2.0, 1.0], [2.0, 1.0, 1.0], [1.0, 2.0, 2.0]]), torch.tensor([0, 0, 0])
    assert losses.margin(z, y).tolist() == [0.0, 1.0, -1.0]
    assert losses.margin_loss(z, y).tolist() == [0.0, -1.0, 1.0]
    assert losses.correct(z, y).tolist() == [False, True, False]
    assert losses.correct(math.nan * z, y).tolist() == [False] * 3


@given(seed=seeds)
def test_correct_is_what_the_largest_logit_says(seed):
    z, y, _ = logits(seed, n=50)
    assert torch.equal(losses.correct(z, y), z.argmax(1) == y)
    assert torch.equal(losses.correct(z, y), losses.margin(z, y) > 0)


@given(seeds)
def test_a_sample_that_cross_entropy_puts_above_log_k_is_wrong_and_one_below_log_2_is_right(seed):
    z, y, _ = logits(seed, n=50)
    loss, wrong = losses.cross_entropy(z, y), z.argmax(1) != y
    assert wrong[loss > math.log(z.shape[1]) + 1e-12].all()
    assert not wrong[loss < math.log(2) - 1e-12].any()


@given(seeds)
def test_negative_log_odds_mean_a_right_prediction(seed):
    z, y, _ = logits(seed, n=50)
    assert (losses.log_odds(z, y) >= losses.margin_loss(z, y)).all()
    assert (z.argmax(1) == y)[losses.log_odds(z, y) < 0].all()


@pytest.mark.parametrize("name", ["margin_loss", "log_odds", "targeted"])
@given(seed=seeds)
def test_with_two_classes_they_are_the_same_difference(name, seed):
    z, y, _ = logits(seed, K=2)
    expected = (z[:, 1] - z[:, 0]) * torch.where(y == 0, 1, -1)
    torch.testing.assert_close(call(name, z, y, 1 - y), expected)


# ---- log_odds against cross-entropy ----


@pytest.mark.parametrize("dtype", DTYPES)
def test_at_1000_times_the_logits_only_the_log_odds_still_have_a_slope(dtype):
    z, _, _ = logits(0, n=50, dtype=dtype)
    y = z.argmax(1)  # confident and right: what an attack starts from
    keep = z.topk(2, dim=1).values.diff(dim=1).abs().squeeze(1) > 1
    z, y = 1e3 * z[keep], y[keep]
    assert len(z) > 20
    assert (slopes(lambda z: losses.cross_entropy(z, y), z) == 0).all()
    assert (losses.cross_entropy(z, y) == 0).all()
    steep = slopes(lambda z: losses.log_odds(z, y), z)
    assert (steep.gather(1, y[:, None]) == -1).all()
    assert (losses.log_odds(z, y) < 0).all()


@given(seeds, st.sampled_from(("plain", "ties", "uneven")), st.sampled_from((1e-3, 3.0, 1e6)))
def test_the_slope_of_the_log_odds_in_the_true_class_is_always_minus_1(seed, kind, scale):
    z, y, _ = logits(seed, kind=kind, scale=scale, dtype=torch.float32)
    steep = slopes(lambda z: losses.log_odds(z, y), z)
    assert (steep.gather(1, y[:, None]) == -1).all()
    rest = (steep.clamp(min=0).sum(1) - 1).abs()
    # e^{z_j − s} moves by the rounding of s, which is relative to the size of the logits
    assert (rest <= tolerance(z) * (1 + z.abs().amax(1))).all()


@given(seeds, st.sampled_from((0.1, 3.0, 1e3)), st.sampled_from(DTYPES))
def test_the_slope_of_the_log_odds_is_their_gradient(seed, scale, dtype):
    z, y, _ = logits(seed, scale=scale, dtype=dtype)
    got = losses.log_odds_slope(z, y)
    assert got.dtype == dtype
    expected = slopes(lambda z: losses.log_odds(z, y), z.double())
    assert ((got - expected).abs() <= tolerance(z) * (1 + z.abs().amax())).all()
    assert (got.gather(1, y[:, None]) == -1).all()
    assert not losses.log_odds_slope(z.requires_grad_(), y).isnan().any()


# ---- what each is blind to ----


def test_cross_entropy_in_float32_is_blind_to_margins_above_17_and_has_no_slope_above_100():
    y, lead = torch.tensor([0]), lambda m: torch.tensor([[m, 0.0]])
    assert losses.cross_entropy(lead(17.0), y) == 0 < losses.cross_entropy(lead(16.0), y)
    steep = slopes(lambda z: losses.cross_entropy(z, y), lead(17.0))[0]
    assert steep[0] == 0 < steep[1]  # the term of the true class is gone, the rival's is left
    assert slopes(lambda z: losses.cross_entropy(z, y), lead(80.0)).any()
    assert not slopes(lambda z: losses.cross_entropy(z, y), lead(110.0)).any()
    assert losses.cross_entropy(lead(17.0).double(), y) > 0


def test_positive_log_odds_do_not_mean_a_wrong_prediction():
    z, y = torch.tensor([[1.0, 0.9, 0.9, 0.9]]), torch.tensor([0])
    assert losses.log_odds(z, y) > 0 > losses.margin_loss(z, y)


def test_the_margin_is_blind_to_every_rival_but_the_strongest():
    y, z = torch.tensor([0]), torch.tensor([[3.0, 2.0, 1.99, -5.0]])
    other = torch.tensor([[3.0, 2.0, -9.0, 1.0]])
    assert torch.equal(losses.margin_loss(z, y), losses.margin_loss(other, y))
    assert losses.log_odds(z, y) != losses.log_odds(other, y)
    before, after = (
        slopes(lambda z: losses.margin_loss(z, y), z + torch.tensor([0, 0, r, 0])) for r in (0, 0.02)
    )
    assert before.tolist() == [[-1, 1, 0, 0]]
    assert after.tolist() == [[-1, 0, 1, 0]]  # another took the lead, the gradient jumped


def test_dlr_is_blind_to_confidence():
    z, y = torch.tensor([[3.0, 2.0, 0.0]]), torch.tensor([0])
    assert losses.dlr(100 * z, y) == losses.dlr(z, y)
    assert losses.margin_loss(100 * z, y) == 100 * losses.margin_loss(z, y)


def test_dlr_is_not_defined_where_the_three_largest_logits_tie():
    z = torch.tensor([[1.0, 1.0, 1.0, 0.0]] * 2)
    got = losses.dlr(z, torch.tensor([0, 3]))
    assert got[0].isnan()
    assert got[1].isinf()


def test_targeted_is_blind_to_a_third_class_that_wins():
    z, y, t = torch.tensor([[0.0, 5.0, 9.0]]), torch.tensor([0]), torch.tensor([1])
    assert losses.targeted(z, y, t) > 0
    assert z.argmax(1) == 2
    assert torch.equal(losses.targeted(z + torch.tensor([0, 0, 50.0]), y, t), losses.targeted(z, y, t))


def test_targeted_all_is_blind_to_which_class_is_in_the_way_and_does_not_use_the_label():
    z, t = torch.tensor([[4.0, 3.0, -20.0]]), torch.tensor([1])
    steep = [
        slopes(lambda z, y=y: losses.targeted_all(z, torch.tensor([y]), t), z).tolist() for y in (0, 2)
    ]
    assert steep == [[[-1.0, 1.0, -1.0]]] * 2  # as much on the class far behind as on the leader
    lowered = z - torch.tensor([[0.0, 0.0, 10.0]])
    assert losses.targeted_all(lowered, t, t) > losses.targeted_all(z, t, t)
    assert lowered.argmax(1) == z.argmax(1) == 0


# ---- edges ----


@pytest.mark.parametrize("name", ["margin", *UNTARGETED, *TARGETED])
def test_no_samples_give_no_losses_and_the_arguments_stay_as_they_are(name):
    z, y, targets = logits(0)
    copies = z.clone(), y.clone(), targets.clone()
    assert call(name, z, y, targets).shape == (6,)
    assert all(torch.equal(a, b) for a, b in zip((z, y, targets), copies, strict=True))
    assert call(name, z[:0], y[:0], targets[:0]).shape == (0,)


@given(seeds)
def test_in_float32_every_loss_is_the_rounded_float64_one_at_any_size(seed):
    """No sum of exponentials overflows on the way."""
    z, y, targets = logits(seed, dtype=torch.float32, scale=1e4)
    for name in ("cross_entropy", "log_odds", "margin_loss", "targeted", "targeted_all"):
        got, exact = call(name, z, y, targets), call(name, z.double(), y, targets)
        assert got.isfinite().all()
        assert ((got - exact).abs() <= tolerance(z) * z.abs().sum(1)).all()


# ---- the worst that margins allow ----


MONOTONE = ("cross_entropy", "log_odds", "margin_loss")


def led(z, y):
    """z_y − z_k, +∞ at k = y."""
    lead = z.gather(1, y[:, None]) - z
    return lead.scatter(1, y[:, None], math.inf)


@pytest.mark.parametrize("dtype", DTYPES)
@given(seed=seeds, K=st.integers(2, 10))
def test_the_worst_logits_are_the_margins_with_the_sign_turned_and_0_at_the_true_class(dtype, seed, K):
    z, y, _ = logits(seed, K=K, dtype=dtype)
    margins = led(z, y)
    worst = losses.worst_logits(margins)
    assert worst.dtype == dtype
    assert not worst.gather(1, y[:, None]).any()
    assert torch.equal(led(worst, y), margins)


@pytest.mark.parametrize("name", MONOTONE)
@given(seed=seeds)
def test_the_loss_of_the_worst_logits_of_exact_margins_is_the_loss(name, seed):
    z, y, targets = logits(seed)
    worst = losses.worst_logits(led(z, y))
    torch.testing.assert_close(call(name, worst, y, targets), call(name, z, y, targets))


@pytest.mark.parametrize("name", MONOTONE)
@given(seed=seeds, kind=st.sampled_from(("plain", "ties", "sparse")))
def test_no_logits_that_keep_the_margins_have_a_larger_loss_than_the_worst(name, seed, kind):
    z, y, targets = logits(seed, kind=kind)
    slack = entries(z.shape, seed + 1, "sparse").abs()
    found = call(name, losses.worst_logits(led(z, y) - slack), y, targets)
    assert (call(name, z, y, targets) <= found + 1e-10).all()


def test_a_loss_that_shrinks_with_the_scale_or_counts_all_rivals_is_not_bounded_by_them():
    """dlr divides by a gap, targeted_all changes with a shift: neither is what worst_logits asks for."""
    z, y, targets = logits(0, n=200)
    worst = losses.worst_logits(led(z, y) - entries(z.shape, 1, "plain").abs())
    for name in ("dlr", "targeted_all"):
        assert (call(name, z, y, targets) > call(name, worst, y, targets) + 0.1).any()


def test_the_worst_logits_pass_gradients_on_to_every_margin_but_the_infinite_one():
    z, y, _ = logits(0)
    margins = led(z, y).requires_grad_()
    (slope,) = torch.autograd.grad(losses.worst_logits(margins).sum(), margins)
    assert torch.equal(slope, torch.full_like(slope, -1.0).scatter(1, y[:, None], 0.0))


def test_no_margins_are_no_logits_and_nan_stays_nan():
    assert losses.worst_logits(torch.empty(0, 3)).shape == (0, 3)
    found = losses.worst_logits(torch.tensor([[math.inf, math.nan, -math.inf]]))
    assert found[0, 0] == 0
    assert found[0, 1].isnan()
    assert found[0, 2] == math.inf


# ---- how far a prediction moved ----


def pair(seed, kind="plain", scale=3.0, dtype=torch.float64, n=20, K=5):
    """Two sets of logits."""
    z, moved = scale * entries((2, n, K), seed, kind)
    return z.to(dtype), moved.to(dtype)


@given(seeds, st.sampled_from(("plain", "ties", "sparse")), st.sampled_from((1e-3, 3.0, 100.0)))
def test_the_divergence_is_the_sum_of_its_definition(seed, kind, scale):
    z, moved = pair(seed, kind, scale)
    terms = torch.nn.functional.kl_div(
        moved.log_softmax(1), z.log_softmax(1), reduction="none", log_target=True
    )
    torch.testing.assert_close(losses.divergence(z, moved), terms.sum(1), rtol=1e-12, atol=1e-14)
    for a, b, got in zip(z[:3].tolist(), moved.tolist(), losses.divergence(z, moved), strict=False):
        p, q = ([math.exp(v - max(row)) for v in row] for row in (a, b))
        p, q = ([v / sum(row) for v in row] for row in (p, q))
        if min(p + q) > 1e-300:
            expected = sum(s * (math.log(s) - math.log(t)) for s, t in zip(p, q, strict=True))
            assert got.item() == pytest.approx(expected, rel=1e-9, abs=1e-12)


@given(seeds, st.sampled_from((1e-3, 3.0, 100.0)))
def test_the_divergence_is_at_least_half_the_squared_distance_of_the_probabilities(seed, scale):
    """Pinsker's inequality: it is 0 for the same probabilities and for no others."""
    z, moved = pair(seed, scale=scale)
    apart = (z.softmax(1) - moved.softmax(1)).abs().sum(1)
    assert (losses.divergence(z, moved) >= apart**2 / 2 - 1e-14).all()
    assert scale > 3 or (losses.divergence(z, moved) > 0).all()


@given(seeds, st.sampled_from((0.0, -3.0, 1e3)), st.sampled_from(DTYPES))
def test_the_divergence_does_not_see_a_shift_of_all_logits_and_is_0_without_a_move(seed, shift, dtype):
    z, moved = pair(seed, dtype=dtype)
    assert not losses.divergence(z, z.clone()).any()
    size = tolerance(z) * (1 + abs(shift))
    assert (losses.divergence(z, z + shift).abs() <= size).all()
    expected = losses.divergence(z, moved)
    for a, b in ((z + shift, moved), (z, moved + shift)):
        assert ((losses.divergence(a, b) - expected).abs() <= 10 * size * (1 + expected)).all()


def test_the_divergence_looks_from_the_first_prediction_and_is_not_symmetric():
    sure, unsure = torch.tensor([[9.0, 0.0]]).double(), torch.tensor([[0.0, 0.0]]).double()
    assert losses.divergence(sure, unsure).item() == pytest.approx(math.log(2), abs=2e-3)
    assert losses.divergence(unsure, sure).item() > 3


@given(seeds, st.sampled_from((0.1, 3.0)))
def test_the_gradients_of_the_divergence_are_those_on_paper(seed, scale):
    """q − p in the moved logits; p_k (log p_k − log q_k − KL) in the others; 0 where nothing moved."""
    z, moved = (v.requires_grad_() for v in pair(seed, scale=scale))
    apart = losses.divergence(z, moved)
    at_z, at_moved = torch.autograd.grad(apart.sum(), (z, moved))
    p, q = z.softmax(1), moved.softmax(1)
    torch.testing.assert_close(at_moved, (q - p).detach())
    torch.testing.assert_close(at_z, (p * (p.log() - q.log() - apart[:, None])).detach())
    for slope in torch.autograd.grad(losses.divergence(z, 1 * z).sum(), z):
        assert (slope.abs() < 1e-15).all()


def test_the_divergence_of_huge_logits_is_finite_in_float32():
    z, moved = pair(0, scale=1e4, dtype=torch.float32)
    got, exact = losses.divergence(z, moved), losses.divergence(z.double(), moved.double())
    torch.testing.assert_close(got.double(), exact, rtol=1e-5, atol=1e-2)
    assert losses.divergence(z[:0], moved[:0]).shape == (0,)


def test_the_targeted_ratio_sees_no_scale_rises_with_its_target_and_says_0_where_both_are_level():
    z = torch.tensor([[5.0, 3.0, 1.0, -1.0], [2.0, 2.0, 0.5, 0.0]], dtype=torch.float64)
    y, t = torch.tensor([0, 0]), torch.tensor([1, 1])
    got = losses.targeted_dlr(z, y, t)
    torch.testing.assert_close(got, torch.tensor([-2 / 5, 0.0], dtype=z.dtype))
    torch.testing.assert_close(losses.targeted_dlr(200 * z - 7, y, t), got)
    raised = z + torch.tensor([0.0, 0.1, 0.0, 0.0], dtype=z.dtype)
    assert (losses.targeted_dlr(raised, y, t) > got).all()
    level = torch.zeros(1, 4, dtype=z.dtype)
    assert losses.targeted_dlr(level, y[:1], t[:1]) == 0


# ---- smoothed labels ----


@pytest.mark.parametrize("share", [0.0, 0.1, 0.7, 1.0])
@given(seed=seeds, K=st.integers(2, 8))
def test_smoothed_is_that_of_torch_and_one_share_a_row_is_each_row_by_itself(share, seed, K):
    z, y, _ = logits(seed, K=K)
    expected = torch.nn.functional.cross_entropy(z, y, reduction="none", label_smoothing=share)
    torch.testing.assert_close(losses.smoothed(z, y, share), expected)
    shares = torch.linspace(0, share, len(z))
    each = [losses.smoothed(z[i : i + 1], y[i : i + 1], s.item()) for i, s in enumerate(shares)]
    torch.testing.assert_close(losses.smoothed(z, y, shares), torch.cat(each), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("share", "K"), [(0.1, 10), (0.3, 3)])
def test_smoothed_is_least_at_this_margin_and_there_flat(share, K):
    lead = math.log(1 + K * (1 - share) / share)
    at = torch.zeros(1, K, dtype=torch.float64)
    at[0, 0] = lead
    y = torch.zeros(1, dtype=torch.int64)
    assert slopes(lambda z: losses.smoothed(z, y, share), at).abs().max() < 1e-12
    for other in (lead - 0.1, lead + 0.1):
        moved = at.clone()
        moved[0, 0] = other
        assert losses.smoothed(moved, y, share) > losses.smoothed(at, y, share)
