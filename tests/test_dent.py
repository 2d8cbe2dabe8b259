"""How sure a prediction is, a blur whose width can be learned, and a defense that adapts by both."""

import copy
import itertools
import math
from functools import partial

import pytest
import scipy.linalg
import scipy.special
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import DTYPES, entries, generators, seeded, seeds
from torch import nn
from torch.func import functional_call

from adv_lib import dent, losses, models
from adv_lib.dent import WIDTH, Dent, blur
from adv_lib.stack import Stack

few = settings(max_examples=25)
SCOPES, ADAPTS, OPTIMISERS = ("batch", "sample"), ("model", "input", "both"), ("adamod", "sgd")
SHAPE = (2, 3, 4)


# ---- how sure a prediction is ----

scales = st.sampled_from((0.1, 1.0, 10.0))


def logits(seed, n, K, scale=1.0):
    return scale * entries((n, K), seed, "plain")


@given(seeds, st.integers(1, 5), st.integers(2, 6), scales)
def test_entropy_is_that_of_the_softmax(seed, n, K, scale):
    z = logits(seed, n, K, scale)
    expected = scipy.stats.entropy(scipy.special.softmax(z.numpy(), axis=1), axis=1)
    torch.testing.assert_close(losses.entropy(z), torch.from_numpy(expected), atol=1e-12, rtol=1e-9)


@given(seeds, st.integers(2, 6), scales)
def test_entropy_lies_between_0_for_one_sure_class_and_log_k_for_equal_logits(seed, K, scale):
    z = logits(seed, 4, K, scale)
    assert (losses.entropy(z) >= 0).all()
    assert (losses.entropy(z) <= math.log(K) + 1e-12).all()
    assert losses.entropy(1e4 * torch.eye(K)).tolist() == [0] * K
    equal = losses.entropy(z[:, :1].expand(4, K))
    torch.testing.assert_close(equal, torch.full_like(equal, math.log(K)))


@given(seeds, st.integers(2, 6), scales, st.sampled_from((-100.0, 3.0)))
def test_a_shift_of_all_logits_changes_neither_entropy_nor_information(seed, K, scale, shift):
    z = logits(seed, 3, K, scale)
    for objective in (losses.entropy, losses.information):
        torch.testing.assert_close(objective(z + shift), objective(z), atol=1e-10, rtol=0)


@given(seeds, st.integers(2, 6), scales)
def test_the_gradient_of_entropy_is_minus_p_times_log_p_plus_entropy(seed, K, scale):
    z = logits(seed, 3, K, scale).requires_grad_()
    H = losses.entropy(z)
    (slope,) = torch.autograd.grad(H.sum(), z)
    log_p = torch.log_softmax(z, 1)
    torch.testing.assert_close(slope, -log_p.exp() * (log_p + H[:, None]), atol=1e-12, rtol=0)


@pytest.mark.parametrize("objective", [losses.entropy, losses.information])
@pytest.mark.parametrize("dtype", DTYPES)
def test_logits_of_ten_thousand_give_numbers_and_so_do_two_derivatives(objective, dtype):
    rows = [[1e4, -1e4, 0.0], [-1e4, -1e4, 1e4], [1e4, 1e4, -1e4], [0.0, 0.0, 0.0]]
    z = torch.tensor(rows, dtype=dtype, requires_grad=True)
    (slope,) = torch.autograd.grad(objective(z).sum(), z, create_graph=True)
    (curvature,) = torch.autograd.grad((slope**2).sum() + slope.sum(), z)
    assert all(v.isfinite().all() for v in (objective(z), slope, curvature))
    torch.testing.assert_close(
        losses.entropy(z).detach(),
        torch.tensor([0, 0, math.log(2), math.log(3)], dtype=dtype),
        rtol=0,
        atol=1e-6,
    )


@given(seeds, st.integers(1, 5), st.integers(2, 6), scales)
def test_information_is_entropy_less_the_entropy_of_the_mean_prediction(seed, n, K, scale):
    z = logits(seed, n, K, scale)
    mean = scipy.special.softmax(z.numpy(), axis=1).mean(0)
    expected = losses.entropy(z) - scipy.stats.entropy(mean)
    torch.testing.assert_close(losses.information(z), expected, atol=1e-10, rtol=0)


@given(seeds, st.integers(2, 5), st.integers(2, 6), scales)
def test_the_mean_information_is_at_most_0_and_0_only_where_all_predictions_are_equal(seed, n, K, scale):
    """By Jensen: minus the mutual information of sample and class."""
    z = logits(seed, n, K, scale)
    p = torch.softmax(z, 1)
    mutual = (p * (p / p.mean(0)).log()).sum(1).mean()
    assert mutual > 1e-9
    assert -losses.information(z).mean().item() == pytest.approx(mutual.item(), abs=1e-12)
    same = losses.information(z[:1].expand(n, K))
    torch.testing.assert_close(same, torch.zeros_like(same), atol=1e-12, rtol=0)


def test_the_most_information_is_to_be_sure_of_a_different_class_for_every_sample():
    sure = 1e4 * torch.eye(5)
    torch.testing.assert_close(losses.information(sure), torch.full((5,), -math.log(5)))


# ---- a blur ----

variances = st.floats(0, 20)


def images(seed, n=2, shape=SHAPE):
    return torch.rand(n, *shape, generator=seeded(seed), dtype=torch.float64)


def number(value):
    return torch.tensor(value, dtype=torch.float64)


def second_difference(size):
    """L, with edges that reflect: the pixel before the first is the first."""
    L = torch.diag(torch.full((size,), -2.0)) + sum(
        torch.diag(torch.ones(size - 1), side) for side in (1, -1)
    )
    L[0, 0] += 1
    L[-1, -1] += 1
    return L.double()


near = partial(torch.testing.assert_close, atol=1e-11, rtol=0)


@given(seeds, variances, st.sampled_from([(1, 1, 1), (1, 1, 7), (3, 5, 1), (2, 6, 4)]))
def test_the_blur_is_the_exponential_of_the_second_difference_on_both_axes(seed, variance, shape):
    x = images(seed, shape=shape)
    down, across = (
        torch.from_numpy(scipy.linalg.expm(variance / 2 * second_difference(size).numpy()))
        for size in shape[1:]
    )
    near(blur(x, number(variance)), down @ x @ across.T)


@given(seeds)
def test_a_blur_of_width_0_changes_nothing_and_one_without_end_leaves_the_mean(seed):
    x = images(seed)
    near(blur(x, number(0.0)), x)
    near(blur(x, number(1e9)), x.mean((2, 3), keepdim=True).expand_as(x))


@given(seeds, variances, variances)
def test_the_widths_of_two_blurs_add(seed, s, t):
    x = images(seed)
    near(blur(blur(x, number(s)), number(t)), blur(x, number(s + t)))


@given(seeds, variances, st.sampled_from(DTYPES))
def test_a_blur_keeps_the_mean_of_each_channel_and_the_range_of_the_image(seed, variance, dtype):
    x = (images(seed) > 0.5).to(dtype)  # at both ends of the range
    blurred, slack = blur(x, number(variance)), 16 * torch.finfo(dtype).eps
    assert blurred.dtype == dtype
    torch.testing.assert_close(blurred.mean((2, 3)), x.mean((2, 3)), atol=slack, rtol=0)
    assert (blurred >= x.amin((2, 3), keepdim=True) - slack).all()
    assert (blurred <= x.amax((2, 3), keepdim=True) + slack).all()


@pytest.mark.parametrize("variance", [1e-3, 0.3, 1.0, 4.0, 9.0])
def test_the_variance_of_a_blurred_point_far_from_the_edges_is_the_variance_asked_for(variance):
    x = torch.zeros(1, 1, 61, 63).double()
    x[0, 0, 30, 31] = 1
    kernel = blur(x, number(variance))[0, 0]
    for axis, centre in ((1, 30), (0, 31)):
        weights = kernel.sum(axis)
        squares = (torch.arange(len(weights)) - centre).double() ** 2
        assert weights.sum().item() == pytest.approx(1, abs=1e-12)
        assert (weights @ squares).item() == pytest.approx(variance, abs=1e-9)


@given(seeds, st.integers(1, 4))
def test_with_one_width_a_sample_each_is_blurred_by_its_own(seed, n):
    x, widths = images(seed, n), 3 * torch.rand(n, generator=seeded(seed)).double()
    each = torch.cat([blur(x[i : i + 1], widths[i]) for i in range(n)])
    near(blur(x, widths), each)


@given(seeds)
def test_the_slope_of_the_blur_at_width_0_is_half_the_second_difference(seed):
    x, (H, W) = images(seed), SHAPE[1:]
    expected = (second_difference(H) @ x + x @ second_difference(W)) / 2
    at = (number(0.0), number(1.0))
    _, slope = torch.autograd.functional.jvp(lambda v: blur(x, v), *at)
    near(slope, expected)
    stepped = (blur(x, number(1e-6)) - x) / 1e-6
    torch.testing.assert_close(stepped, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("widths", [number(0.5), number([0.1, 2.0])])
def test_the_blur_has_two_derivatives_in_the_image_and_in_its_width(widths):
    inputs = (images(0).requires_grad_(), widths.clone().requires_grad_())
    assert torch.autograd.gradcheck(blur, inputs)
    assert torch.autograd.gradgradcheck(blur, inputs)


# ---- networks that can adapt ----


def _flat(norm):
    return lambda: nn.Sequential(nn.Flatten(), nn.Linear(24, 6), norm(), nn.Tanh(), nn.Linear(6, 3))


def _conv(norm):
    convolution = partial(nn.Conv2d, 2, 4, 3, padding=1)
    return lambda: nn.Sequential(convolution(), norm(), nn.CELU(), nn.Flatten(), nn.Linear(48, 3))


KINDS = {
    "BatchNorm1d": _flat(lambda: nn.BatchNorm1d(6)),
    "BatchNorm2d": _conv(lambda: nn.BatchNorm2d(4)),
    "GroupNorm": _conv(lambda: nn.GroupNorm(2, 4)),
    "LayerNorm": _flat(lambda: nn.LayerNorm(6)),
    "InstanceNorm": _conv(lambda: nn.InstanceNorm2d(4, affine=True)),
    "first of all": lambda: nn.Sequential(
        nn.BatchNorm2d(2), nn.Sequential(nn.Flatten(), nn.Linear(24, 5), nn.LayerNorm(5), nn.Tanh()),
        nn.BatchNorm1d(5, affine=False), nn.Linear(5, 3),
    ),
}  # fmt: skip


def network(kind="BatchNorm1d", seed=0, dtype=torch.float64):
    """A random network without kinks whose normalisation has learned something, in train mode."""
    g = seeded(seed)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        model = KINDS[kind]().double()
    for name, value in model.state_dict().items():
        if "running_var" in name:
            value.uniform_(0.5, 2, generator=g)
        elif value.is_floating_point() and (value.ndim == 1 or "Batch" not in name):
            value.add_(0.3 * torch.randn(value.shape, generator=g, dtype=value.dtype))
    return model.to(dtype)


def answers(model, x):
    """What a network says in eval mode."""
    return copy.deepcopy(model).eval()(x).detach()


def by_torch(model, x, objective, optimiser, steps, adapt):
    """The same defense for one batch, by a copy of the network and an optimiser of PyTorch."""
    model, width = copy.deepcopy(model).eval().requires_grad_(False), torch.zeros((), dtype=x.dtype)
    moving = []
    if adapt != "input":
        for module in model.modules():
            if "Norm" in type(module).__name__:
                moving += [parameter.requires_grad_() for parameter in module.parameters()]
    if adapt != "model":
        moving += [width.requires_grad_()]
    optimiser = optimiser(moving)

    def answer():
        return model(x if adapt == "model" else blur(x, width))

    found = [answer().detach()]
    for _ in range(steps):
        optimiser.zero_grad()
        objective(answer()).mean().backward()
        optimiser.step()
        width.data.clamp_(min=0)
        found.append(answer().detach())
    return found


def hesitant(z):
    """Minus the entropy: a blur serves it, so that widths grow."""
    return -losses.entropy(z)


# ---- the steps ----


@pytest.mark.parametrize("adapt", ADAPTS)
@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("kind", KINDS)
def test_without_steps_the_defense_is_its_network(kind, scope, adapt):
    model, x = network(kind), images(1, 4)
    defense = Dent(model, steps=0, scope=scope, adapt=adapt)
    near(defense(x).detach(), answers(model, x))


@pytest.mark.parametrize("unroll", [False, True])
@pytest.mark.parametrize("adapt", ADAPTS)
@pytest.mark.parametrize("scope", SCOPES)
def test_the_path_begins_with_the_network_and_holds_the_answer_after_each_step(scope, adapt, unroll):
    model, x = network(), images(1, 4)
    made = partial(Dent, model, scope=scope, adapt=adapt, lr=0.1, objective=hesitant, unroll=unroll)
    path = made(steps=3).path(x)
    assert len(path) == 4
    near(path[0](x).detach(), answers(model, x))
    for steps, adapted in enumerate(path):
        near(adapted(x).detach(), made(steps=steps)(x).detach())
    for one, other in itertools.pairwise(path):
        assert not torch.allclose(one(x), other(x), atol=1e-6)


@pytest.mark.parametrize("objective", [losses.entropy, losses.information, hesitant])
@pytest.mark.parametrize("adapt", ADAPTS)
@pytest.mark.parametrize("scope", SCOPES)
def test_small_steps_downhill_lower_the_objective_again_and_again(scope, adapt, objective):
    model, x = network("BatchNorm2d"), images(1, 4)
    options = {"scope": scope, "adapt": adapt, "objective": objective, "optimiser": "sgd"}
    path = Dent(model, steps=5, lr=1e-2, **options).path(x)
    if scope == "sample" and objective is not losses.information:  # each sample for itself
        values = torch.stack([objective(adapted(x)) for adapted in path]).detach()
    else:
        values = torch.stack([objective(adapted(x)).mean() for adapted in path]).detach()[:, None]
    at_rest = (values == values[0]).all(0)  # a width that would have to fall below 0
    assert ((values.diff(dim=0) < 0).all(0) | at_rest).all()
    assert adapt == "input" or not at_rest.any()
    assert objective is not hesitant or not at_rest.all()


@pytest.mark.parametrize("adapt", ADAPTS)
@pytest.mark.parametrize("kind", KINDS)
def test_every_step_is_that_of_the_optimiser_of_pytorch(kind, adapt):
    """One batch, and each sample as a batch of one."""
    model, x = network(kind), images(1, 3)
    made = partial(torch.optim.SGD, lr=0.3)
    lr, moves = made.keywords["lr"], []
    for objective in (losses.entropy, hesitant):
        options = {"steps": 4, "lr": lr, "adapt": adapt, "optimiser": "sgd", "objective": objective}
        after = partial(by_torch, model, objective=objective, optimiser=made, steps=4, adapt=adapt)
        alone = [after(x[i : i + 1]) for i in range(len(x))]
        for scope, expected in (
            ("batch", after(x)),
            ("sample", [torch.cat(rows) for rows in zip(*alone, strict=True)]),
        ):
            got = Dent(model, scope=scope, **options).path(x)
            for adapted, z in zip(got[1:], expected[1:], strict=True):
                torch.testing.assert_close(adapted(x).detach(), z, atol=1e-6, rtol=1e-6)
            moves.append((expected[-1] - expected[0]).abs().max())
    assert max(moves) > 1e-3  # of two opposite objectives one at least lets a width grow


def test_adamod_moves_as_its_paper_says():
    """z = γx + β of one number, downhill on cos(3z): sizes above and below their running mean."""
    model, x = nn.Sequential(nn.BatchNorm1d(1, eps=1.0)).double(), 0.7 * math.sqrt(2)
    defense = Dent(model, steps=30, lr=0.05, objective=lambda z: torch.cos(3 * z).sum(1))
    path, x = defense.path(number([[x]])), 0.7
    at, m, v, mean, capped = [1.0, 0.0], [0.0, 0.0], [0.0, 0.0], [0.0, 0.0], []
    for t in range(1, 31):
        pull = -3 * math.sin(3 * (at[0] * x + at[1]))
        for i, slope in enumerate((pull * x, pull)):
            m[i] = 0.99 * m[i] + 0.01 * slope
            v[i] = 0.999 * v[i] + 0.001 * slope * slope
            size = 0.05 * math.sqrt(1 - 0.999**t) / (1 - 0.99**t) / math.sqrt(v[i])
            mean[i] = 0.6 * mean[i] + 0.4 * size
            capped.append(size > mean[i])
            at[i] -= min(size, mean[i]) * m[i]
        got = [path[t].moved[f"0.{name}"].item() for name in ("weight", "bias")]
        assert got == pytest.approx(at, abs=1e-9)
    assert set(capped) == {True, False}


@pytest.mark.parametrize("scope", SCOPES)
def test_the_first_move_of_adamod_is_two_fifths_of_adams(scope):
    """Adam's first move is as long as lr in every entry, whatever the slope."""
    model, x = network(), images(1)
    start = Dent(model, steps=0, scope=scope).adapt(x).moved
    moved = Dent(model, steps=1, scope=scope).adapt(x).moved
    for name, value in start.items():
        assert (moved[name] - value).abs().max().item() == pytest.approx(0.4 * 6e-3, rel=1e-3)


# ---- one fixed function of its input ----


@pytest.mark.parametrize("adapt", ADAPTS)
@pytest.mark.parametrize("scope", SCOPES)
def test_nothing_is_kept_from_one_batch_to_the_next(scope, adapt):
    one, other = images(1, 4), images(2, 3)
    defense = Dent(network("BatchNorm2d"), scope=scope, adapt=adapt, lr=0.1)
    first, second = defense(one), defense(other)
    assert torch.equal(defense(other), second)
    assert torch.equal(defense(one), first)
    assert torch.equal(Dent(network("BatchNorm2d"), scope=scope, adapt=adapt, lr=0.1)(one), first)


@pytest.mark.parametrize("unroll", [False, True])
@pytest.mark.parametrize("adapt", ADAPTS)
@pytest.mark.parametrize("scope", SCOPES)
def test_the_answer_is_the_same_where_gradients_are_off(scope, adapt, unroll):
    defense, x = Dent(network(), scope=scope, adapt=adapt, unroll=unroll, lr=0.1), images(1)
    expected = defense(x)
    for off in (torch.no_grad, torch.inference_mode):
        with off():
            assert torch.equal(defense(x), expected)
            assert torch.equal(defense(x.clone()), expected)
            assert torch.equal(defense.adapt(x)(x), expected)
        assert torch.is_grad_enabled()


@pytest.mark.parametrize("unroll", [False, True])
@pytest.mark.parametrize("adapt", ADAPTS)
@pytest.mark.parametrize("scope", SCOPES)
def test_adapting_and_differentiating_leave_the_network_and_its_input_as_they_were(scope, adapt, unroll):
    model = nn.Sequential(*network("BatchNorm2d"), nn.Dropout(0.5))
    model[2].eval()
    model[0].weight.requires_grad_(False)
    model[1].bias.requires_grad_(False)
    x = images(1).requires_grad_()
    defense = Dent(model, scope=scope, adapt=adapt, unroll=unroll)
    tensors = [*model.state_dict().values(), x]
    before, modes = [v.detach().clone() for v in tensors], [m.training for m in defense.modules()]
    flags, state = [p.requires_grad for p in model.parameters()], generators()
    assert {True, False} == set(modes) == set(flags)
    torch.autograd.grad(defense(x).sum(), x)
    with torch.no_grad():
        defense(x)
    defense.path(x)[1](x)
    assert all(torch.equal(a, b) for a, b in zip(before, tensors, strict=True))
    assert [m.training for m in defense.modules()] == modes
    assert [p.requires_grad for p in model.parameters()] == flags
    assert all(v.grad is None for v in (x, *model.parameters()))
    assert generators() == state


@pytest.mark.parametrize("mode", [True, False])
def test_the_mode_of_the_network_does_not_matter(mode):
    model, x = nn.Sequential(*network(), nn.Dropout(0.9)).train(mode), images(1)
    expected = Dent(network())(x)
    for scope in SCOPES:
        near(Dent(model, steps=0, scope=scope)(x).detach(), answers(network(), x))
    near(Dent(model)(x).detach(), expected.detach())


# ---- who is in the batch ----


LATIN = [  # every pair of a kind and what adapts, the optimisers in turns
    (kind, adapt, OPTIMISERS[(i + j) % 2])
    for i, kind in enumerate(KINDS)
    for j, adapt in enumerate(ADAPTS)
]


@pytest.mark.parametrize(("kind", "adapt", "optimiser"), LATIN)
def test_one_change_a_sample_does_not_depend_on_the_company(kind, adapt, optimiser):
    """In any order, alone, and as a batch of one that changes as a batch does."""
    model, x = network(kind), images(1, 4)
    each, whole = (
        Dent(model, scope=scope, adapt=adapt, optimiser=optimiser, lr=0.1, objective=hesitant)
        for scope in ("sample", "batch")
    )
    close = partial(torch.testing.assert_close, atol=1e-7, rtol=0)
    z = each(x)
    close(each(x[[2, 0, 1]]), z[[2, 0, 1]])
    for i in range(4):
        close(each(x[i : i + 1]), z[i : i + 1])
        close(whole(x[i : i + 1]), z[i : i + 1])


@pytest.mark.parametrize("adapt", ADAPTS)
@pytest.mark.parametrize(
    ("scope", "objective"),
    [("batch", hesitant), ("batch", losses.information), ("sample", losses.information)],
)
def test_one_change_a_batch_depends_on_the_company_and_so_does_information(scope, objective, adapt):
    x = images(1, 4)
    if objective is losses.information:  # away from 0, where widths may stay
        objective = lambda z: -losses.information(z)  # noqa: E731
    defense = Dent(network(), scope=scope, objective=objective, adapt=adapt, lr=0.1)
    z = defense(x)
    assert not torch.allclose(defense(x[:2]), z[:2], atol=1e-4)
    near(defense(x.flip(0)).flip(0).detach(), z.detach())  # but not on the order


@pytest.mark.parametrize("adapt", ADAPTS)
def test_a_network_adapted_to_each_sample_answers_those_samples_only(adapt):
    x = images(1, 4)
    adapted = Dent(network(), scope="sample", adapt=adapt).adapt(x)
    for other in (x[:3], x[:1], images(2, 5)):
        with pytest.raises(ValueError, match=rf"the 4 samples .* got {len(other)}"):
            adapted(other)
    assert adapted(images(2, 4)).shape == (4, 3)
    held = Dent(network(), scope="batch", adapt=adapt).adapt(x)
    near(held(x[1:3]).detach(), held(x)[1:3].detach())


# ---- networks side by side ----

RATES = (0.02, 0.1, 0.3)


def three(width=6):
    """Three networks that have learned something else each, in train mode."""
    made = [models.mlp([24, width, 5, 3], seeded(seed), norm=True).double() for seed in range(3)]
    for seed, model in enumerate(made):
        for name, value in model.state_dict().items():
            if "running_var" in name:
                value.uniform_(0.5, 2, generator=seeded(seed))
            elif value.is_floating_point() and value.ndim == 1:
                value.add_(0.3 * entries(value.shape, seed, "plain"))
    return made


@pytest.mark.parametrize("optimiser", OPTIMISERS)
@pytest.mark.parametrize("adapt", ADAPTS)
@pytest.mark.parametrize("scope", SCOPES)
def test_each_member_of_a_stack_adapts_as_it_would_alone_at_a_rate_of_its_own(scope, adapt, optimiser):
    """Answers and gradients, as published and whole."""
    alone, x, close = three(), images(1, 4), partial(torch.testing.assert_close, atol=1e-9, rtol=0)
    stack, moves = Stack(alone), []
    for objective, unroll in itertools.product(
        (losses.entropy, losses.information, hesitant), (False, True)
    ):
        made = partial(
            Dent,
            scope=scope,
            adapt=adapt,
            optimiser=optimiser,
            objective=objective,
            unroll=unroll,
            steps=3,
        )
        at = stack.rows(x).requires_grad_()
        z = made(stack, lr=RATES)(at)
        (slope,) = torch.autograd.grad((z[:, 0] * z[:, 1]).sum(), at)
        for e, (model, lr) in enumerate(zip(alone, RATES, strict=True)):
            own = x.clone().requires_grad_()
            answer = made(model, lr=lr)(own)
            (pull,) = torch.autograd.grad((answer[:, 0] * answer[:, 1]).sum(), own)
            close(z[e::3], answer)
            close(slope[e::3], pull)
            moves.append((answer - answers(model, x)).abs().max())
        close(made(stack, lr=0.1)(at), made(stack, lr=[0.1] * 3)(at))
    assert max(moves) > 1e-4


@pytest.mark.parametrize("lr", [(0.1, 0.2), (0.1,) * 4, (0.1, -0.1, 0.1)])
def test_a_stack_has_one_rate_or_one_for_each_member_and_a_network_one(lr):
    for model in (Stack(three()), three()[0]):
        with pytest.raises(ValueError, match="lr"):
            Dent(model, lr=lr)


# ---- gradients ----


@pytest.mark.parametrize("adapt", ADAPTS)
@pytest.mark.parametrize("scope", SCOPES)
def test_as_published_the_gradient_is_that_of_the_adapted_network_held_fixed(scope, adapt):
    defense, c = Dent(network(), scope=scope, adapt=adapt, lr=0.1, objective=hesitant), logits(3, 2, 3)
    x = images(1).requires_grad_()
    (got,) = torch.autograd.grad((c * defense(x)).sum(), x)
    held = defense.adapt(x)
    (expected,) = torch.autograd.grad((c * held(x)).sum(), x)
    assert torch.equal(got, expected)
    (whole,) = torch.autograd.grad((c * defense.unrolled()(x)).sum(), x)
    assert not torch.allclose(whole, got, rtol=1e-2)


@pytest.mark.parametrize("optimiser", OPTIMISERS)
@pytest.mark.parametrize("adapt", ADAPTS)
@pytest.mark.parametrize("scope", SCOPES)
def test_the_unrolled_gradient_is_that_of_the_whole_answer(scope, adapt, optimiser):
    """By differences of x ↦ D(x), for widths that grow and for those that stay 0."""
    x = images(1)
    for objective in (hesitant, losses.entropy):
        options = {"scope": scope, "adapt": adapt, "optimiser": optimiser, "objective": objective}
        defense = Dent(network(), steps=3, lr=2.0 if optimiser == "sgd" else 0.1, **options)
        grown = adapt == "model" or defense.adapt(x).moved[WIDTH].amax() > 0.01
        assert grown or objective is losses.entropy
        x = x.requires_grad_()
        assert torch.autograd.gradcheck(defense.unrolled(), x, atol=1e-5, fast_mode=True)


@pytest.mark.parametrize("scope", SCOPES)
def test_the_unrolled_gradient_sees_how_one_sample_moves_another(scope):
    x = images(1).requires_grad_()
    z = Dent(network(), scope=scope, lr=0.1).unrolled()(x)
    (slope,) = torch.autograd.grad(z[0].sum(), x)
    assert slope[0].any()
    assert bool(slope[1].any()) == (scope == "batch")


def test_unrolling_gives_another_defense_with_the_same_answers_and_leaves_the_first_alone():
    defense, x = Dent(network(), adapt="both", lr=0.1, scope="sample", steps=2), images(1)
    before = defense(x)
    twin = defense.unrolled()
    assert twin is not defense
    assert (twin.unroll, defense.unroll) == (True, False)
    assert twin.model is defense.model
    assert torch.equal(twin(x), before)
    assert torch.equal(defense(x), before)
    assert torch.equal(twin.unrolled()(x), before)
    x.requires_grad_()
    slopes = [torch.autograd.grad(d(x).sum(), x)[0] for d in (defense, Dent(**_options(defense)))]
    assert torch.equal(*slopes)


def _options(defense):
    names = ("model", "steps", "lr", "scope", "objective", "optimiser")
    return {name: getattr(defense, name) for name in names} | {"adapt": defense.adapts}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("optimiser", OPTIMISERS)
@pytest.mark.parametrize("scope", SCOPES)
def test_a_dead_unit_stays_where_it_is_and_does_not_make_the_unrolled_gradient_nan(
    scope, optimiser, dtype
):
    """Its scale and shift have slopes that are exactly 0, where Adam divides by their size."""
    model = models.mlp([24, 6, 3], norm=True)
    model[2].bias.data[:2] = -100
    model, x = model.to(dtype), images(1).to(dtype).requires_grad_()
    defense = Dent(model, scope=scope, optimiser=optimiser, lr=0.1, unroll=True)
    moved = defense.adapt(x).moved
    for name, value in moved.items():
        start = model.get_parameter(name)
        assert torch.equal(value[..., :2], start[:2].expand_as(value[..., :2]))
        assert not torch.equal(value[..., 2:], start[2:].expand_as(value[..., 2:]))
    (slope,) = torch.autograd.grad(defense(x)[:, 0].sum(), x)
    assert slope.isfinite().all()
    assert slope.any()


def test_a_copy_with_the_adapted_parameters_gives_the_same_answers():
    model, x = network("BatchNorm2d"), images(1)
    adapted = Dent(model, lr=0.1).adapt(x)
    twin = copy.deepcopy(model).eval()
    twin.load_state_dict({k: v.detach() for k, v in adapted.moved.items()}, strict=False)
    near(adapted(x).detach(), twin(x).detach())
    near(functional_call(twin, dict(adapted.moved), x).detach(), twin(x).detach())


@pytest.mark.parametrize("variance", [math.inf, -math.inf, math.nan, -1.0])
def test_a_width_is_finite_and_not_negative(variance):
    with pytest.raises(ValueError, match="finite variances"):
        dent.blur(torch.rand(1, 1, 3, 3), torch.tensor(variance))


def test_an_objective_has_one_number_a_sample():
    defense = dent.Dent(models.mlp([4, 3, 2], norm=True), objective=lambda z: losses.entropy(z).mean())
    with pytest.raises(ValueError, match=r"objective \(5,\), got \(\)"):
        defense(torch.rand(5, 4))


def test_batchnorm_without_statistics_is_refused_because_its_answers_depend_on_the_batch():
    layers = nn.Linear(4, 3), nn.BatchNorm1d(3, track_running_stats=False)
    with pytest.raises(ValueError, match="statistics"):
        dent.Dent(nn.Sequential(*layers))
