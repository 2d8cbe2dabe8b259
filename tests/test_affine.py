"""Affine pieces: they are the network, and each is a matrix, its transpose and an offset."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import DTYPES, NETWORKS, entries, generators, network, seeded, seeds, with_statistics
from torch import nn
from torch.nn.utils import parametrizations

from adv_lib import affine, bounds, models
from adv_lib.affine import affine_pieces

each_kind = pytest.mark.parametrize("kind", NETWORKS)
# PyTorch says so of every "same" convolution that needs a copy of its input.
quiet = pytest.mark.filterwarnings("ignore:Using padding='same'")

CONVOLUTIONS = {  # the shape of one sample, what Conv2d is given
    "stride that skips the last row": ((1, 6, 6), (1, 2, 3), {"stride": 2}),
    "stride that skips most of it": ((2, 7, 9), (2, 1, 2), {"stride": (4, 5)}),
    "stride longer than the kernel": ((1, 8, 8), (1, 2, 1), {"stride": 3}),
    "same, even kernel": ((1, 5, 5), (1, 2, 4), {"padding": "same"}),
    "same, even kernel and dilation": (
        (1, 6, 7),
        (1, 2, (2, 4)),
        {"padding": "same", "dilation": (3, 2)},
    ),
    "same, kernel wider than the image": ((1, 2, 3), (1, 1, (5, 6)), {"padding": "same"}),
    "valid": ((2, 4, 5), (2, 3, (2, 3)), {"padding": "valid"}),
    "valid, with strides": ((2, 6, 5), (2, 3, (2, 3)), {"padding": "valid", "stride": 2}),
    "padding wider than the kernel": ((1, 3, 3), (1, 2, 2), {"padding": (3, 4)}),
    "padding and strides": ((1, 5, 4), (1, 2, 3), {"padding": (2, 1), "stride": (3, 2)}),
    "rows skip what columns keep": ((1, 7, 4), (1, 1, (3, 1)), {"padding": (0, 2), "stride": (3, 1)}),
    "dilation": ((1, 9, 7), (1, 2, (3, 2)), {"dilation": (3, 4), "padding": 1}),
    "groups": ((4, 4, 4), (4, 6, 2), {"groups": 2, "stride": 2, "padding": 1}),
    "a group for each channel": ((3, 5, 4), (3, 6, 3), {"groups": 3, "dilation": 2, "padding": 2}),
    "everything at once": (
        (4, 9, 8),
        (4, 2, (2, 3)),
        {"stride": (2, 3), "padding": (1, 3), "dilation": (3, 2), "groups": 2, "bias": False},
    ),
    "only padding is seen": ((1, 1, 1), (1, 2, 1), {"stride": 5, "padding": 2}),
    "rows of padding only": ((2, 4, 1), (2, 2, (4, 1)), {"stride": (1, 5), "padding": (3, 2)}),
}


def convolution(shape, arguments, options, seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        layer = nn.Conv2d(*arguments, **options).double()
    (piece,) = affine_pieces(nn.Sequential(layer), shape)
    return layer, piece


def assert_is_the_transpose(piece, seed=0):
    W, b = piece.matrix()
    nu, h = (
        entries((3, *piece.shape_out), seed, "plain"),
        entries((3, *piece.shape_in), seed + 1, "plain"),
    )
    back = piece.transposed(nu)
    assert back.shape == h.shape
    torch.testing.assert_close(back.flatten(1), nu.flatten(1) @ W)
    torch.testing.assert_close(piece.offset(nu), nu.flatten(1) @ b)
    forth = (piece.times(piece.weight, h) * nu).flatten(1).sum(1)  # ⟨W h, ν⟩ = ⟨h, Wᵀν⟩
    torch.testing.assert_close((h * back).flatten(1).sum(1), forth)
    torch.testing.assert_close((piece(h) * nu).flatten(1).sum(1), forth + piece.offset(nu))


# ---- the pieces of a network ----


@each_kind
def test_the_pieces_with_relu_between_them_are_the_network(kind):
    for seed in range(5):
        model, shape = network(kind, seed), NETWORKS[kind][0]
        x = entries((3, *shape), seed, "plain")
        pieces, h = affine_pieces(model, shape), x
        for piece in pieces[:-1]:
            h = piece(h).relu()
        torch.testing.assert_close(pieces[-1](h), model(x))


@each_kind
def test_a_matrix_does_what_its_piece_does(kind):
    for seed in range(5):
        for piece in affine_pieces(network(kind, seed), NETWORKS[kind][0]):
            W, b = piece.matrix()
            assert W.shape == (math.prod(piece.shape_out), math.prod(piece.shape_in))
            h = entries((3, *piece.shape_in), seed, "plain")
            torch.testing.assert_close(piece(h).flatten(1), h.flatten(1) @ W.T + b)
            torch.testing.assert_close(piece(h.flatten(1)), piece(h))


def test_the_pieces_hold_the_layers_own_weights_unless_asked_for_another_type():
    model = network("convolution", 0)
    pieces = affine_pieces(model, (1, 4, 4))
    assert pieces[0].weight is model[0].weight
    assert pieces[0].bias is model[0].bias
    assert affine_pieces(model, (1, 4, 4), torch.float32)[0].weight.dtype == torch.float32
    assert model[0].weight.dtype == torch.float64


def test_what_stood_in_bounds_is_still_found_there():
    for name in ("Affine", "Bounds", "affine_pieces"):
        assert getattr(bounds, name) is getattr(affine, name)


# ---- layers that are affine in eval mode ----


@st.composite
def eval_affine(draw):
    """A random network of every layer that is accepted, in any order, and the shape of one sample."""
    one_of = lambda *options: draw(st.sampled_from(options))  # noqa: E731
    shape = one_of(1, 2, 4), one_of(4, 6, 7), one_of(4, 5, 8)
    layers, at = [], torch.zeros(2, *shape)
    for _ in range(one_of(1, 2, 3, 4, 5, 6)):
        C, groups = at.shape[1], 2 - at.shape[1] % 2
        conv = {"groups": one_of(1, groups), "stride": one_of(1, 2), "padding": one_of(0, 1, (2, 0))}
        layer = {
            "normalise": lambda C=C: models.Normalise([0.3] * C, [0.1 + k for k in range(C)]),
            "norm": lambda C=C: nn.BatchNorm2d(C, affine=one_of(True, False)).eval(),
            "convolution": lambda C=C, conv=conv: nn.Conv2d(C, 4, one_of(1, 2, 3), **conv),
            "same": lambda C=C: nn.Conv2d(C, 2, one_of(2, 3), padding="same"),
            "pool": lambda: nn.AvgPool2d(
                2, one_of(1, 2), one_of(0, 1), divisor_override=one_of(None, 3)
            ),
            "all": lambda: nn.AdaptiveAvgPool2d((None, 1)),
            "relu": nn.ReLU,
            "nothing": lambda: one_of(nn.Identity, nn.Dropout, nn.Dropout2d, nn.AlphaDropout)().eval(),
        }[
            one_of(
                "normalise",
                "norm",
                "norm",
                "convolution",
                "same",
                "pool",
                "pool",
                "all",
                "relu",
                "nothing",
            )
        ]()
        if min(at.shape[2:]) > 2:  # so that every window fits
            layers, at = [*layers, layer], layer(at)
    layers, d = [*layers, nn.Flatten()], at[0].numel()
    for kind in draw(st.lists(st.sampled_from(["norm", "linear", "relu"]), max_size=4)):
        layers.append(
            {"norm": nn.BatchNorm1d, "linear": lambda d: nn.Linear(d, 3)}.get(kind, lambda d: nn.ReLU())(
                d
            )
        )
        d = 3 if kind == "linear" else d
    return nn.Sequential(*layers), shape


@quiet
@settings(max_examples=150)
@given(eval_affine(), seeds, st.booleans())
def test_whatever_is_affine_in_eval_mode_is_in_the_pieces_and_all_gradients_flow(drawn, seed, training):
    model, shape = drawn
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed % 2**62)
        model = with_statistics(model).double().train(training)
    modes, before = [module.training for module in model.modules()], generators()
    pieces, x = affine_pieces(model, shape, torch.float64), entries((3, *shape), seed, "plain")
    assert (modes, before) == ([module.training for module in model.modules()], generators())
    h = x
    for piece in pieces[:-1]:
        h = piece(h).relu()
    h, z = pieces[-1](h).flatten(1), model.eval()(x)
    torch.testing.assert_close(h, z)
    for piece in pieces:
        assert_is_the_transpose(piece, seed)
    own = list(model.parameters())
    if own:
        along = entries(z.shape, seed + 1, "plain")
        gradients = [torch.autograd.grad((out * along).sum(), own, allow_unused=True) for out in (h, z)]
        for mine, other in zip(*gradients, strict=True):
            zero = torch.zeros(())
            torch.testing.assert_close(
                zero if mine is None else mine,
                torch.zeros_like(zero if mine is None else mine) if other is None else other,
            )


def test_convolutions_stay_convolutions_when_norms_and_pools_are_folded_in():
    model = nn.Sequential(
        models.Normalise([0.1, 0.2], [0.3, 0.4]),
        nn.Conv2d(2, 4, 3, padding=1, groups=2),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.AvgPool2d(2),
        nn.BatchNorm2d(4),
        nn.Conv2d(4, 3, 3, padding=1),
        nn.Dropout2d(),
        nn.ReLU(),
        nn.BatchNorm2d(3),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(48, 2),
    )
    first, second, third, _ = affine_pieces(model, (2, 8, 8))
    assert (first.weight.shape, first.conv["groups"]) == ((4, 1, 3, 3), 2)
    assert (second.weight.shape, second.conv["stride"]) == ((3, 4, 6, 6), (2, 2))
    assert third.weight.shape == (3, 1, 1)


# ---- a call of the model and its weights ----


@pytest.mark.parametrize("offset", [1e3, 1e4, 1e5])
def test_offsets_that_the_next_layer_takes_back_are_no_false_alarm(offset):
    """In float32 the model itself rounds them, by more than the logits that are left."""
    for seed in range(5):
        there, back = nn.Linear(4, 8).requires_grad_(False), nn.Linear(8, 3).requires_grad_(False)
        for weight in (there.weight, back.weight):
            weight.copy_(entries(tuple(weight.shape), seed, "plain"))
        there.bias.fill_(offset)
        back.bias.copy_(-back.weight @ there.bias)
        assert len(affine_pieces(nn.Sequential(there, back), (4,))) == 1
        norm = nn.BatchNorm1d(8).eval()
        norm.running_mean.copy_(there.bias)
        assert len(affine_pieces(nn.Sequential(there, norm), (4,))) == 1


def test_layers_whose_product_overflows_are_refused():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)).requires_grad_(False)
    for layer in model:
        layer.weight.fill_(1e30)
    with pytest.raises(ValueError, match=r"products are finite in torch\.float32"):
        affine_pieces(model, (2,))


@pytest.mark.parametrize("name", ["weight_norm", "spectral_norm", "orthogonal"])
def test_a_parametrised_layer_is_what_its_property_says_with_gradients_and_keeps_its_state(name):
    with torch.random.fork_rng(devices=[]):
        model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).double()
        getattr(parametrizations, name)(model[0])
    before = {key: value.clone() for key, value in model.state_dict().items()}
    first, second = affine_pieces(model, (3,))
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    x = entries((5, 3), 0, "plain")
    z = second(first(x).relu())
    torch.testing.assert_close(z, model.eval()(x))
    z.sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


class Backwards(nn.Sequential):
    """Runs its layers from the last to the first: no rule knows this one."""

    def __iter__(self):
        return iter(list(self._modules.values())[::-1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_model_that_does_something_else_than_its_layers_is_found_out_by_trying(dtype):
    model = Backwards(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 3))
    with pytest.raises(ValueError, match="does what its layers say"):
        affine_pieces(model, (3,), dtype)


def test_logits_that_are_small_because_large_numbers_cancel_are_no_reason_to_refuse():
    model = models.mlp([20, 30, 30, 2], seeded(0))
    hidden, last = model[3], model[5]
    for parameter in (hidden.weight, hidden.bias, last.weight.data.T):
        parameter.data[15:] = parameter.data[:15]
    last.weight.data[:, 15:] *= -1
    last.weight.data *= 1e9
    for dtype in (torch.float32, torch.float64):
        affine_pieces(model, (20,), dtype)


# ---- backwards ----


@each_kind
@settings(max_examples=10)
@given(seeds)
def test_backwards_every_piece_is_the_transpose_of_its_matrix(kind, seed):
    for piece in affine_pieces(network(kind, seed), NETWORKS[kind][0]):
        assert_is_the_transpose(piece, seed)


@quiet
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_backwards_a_convolution_of_any_kind_is_the_transpose_of_its_matrix(name):
    layer, piece = convolution(*CONVOLUTIONS[name])
    h = entries((2, *piece.shape_in), 0, "plain")
    torch.testing.assert_close(piece(h), layer(h))
    assert_is_the_transpose(piece)


@quiet
@settings(max_examples=200)
@given(st.data())
def test_backwards_so_is_any_convolution_at_all(data):
    def two(low, high):
        return data.draw(st.tuples(st.integers(low, high), st.integers(low, high)))

    groups = data.draw(st.sampled_from([1, 2]))
    kernel, dilation = two(1, 4), two(1, 3)
    padding = data.draw(st.one_of(st.just("same"), st.just("valid"), st.just(two(0, 4))))
    stride = (1, 1) if padding == "same" else two(1, 5)
    shape = (groups * data.draw(st.integers(1, 2)), *two(1, 7))
    arguments = shape[0], groups * data.draw(st.integers(1, 3)), kernel
    options = {"padding": padding, "stride": stride, "dilation": dilation, "groups": groups}
    try:
        _, piece = convolution(shape, arguments, options)
    except ValueError as error:  # a kernel that is larger than the image
        assert "fit" in str(error)  # noqa: PT017
        return
    assert_is_the_transpose(piece)


@quiet
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_multipliers_may_come_flat_and_keep_their_type(name, dtype):
    shape, arguments, options = CONVOLUTIONS[name]
    (piece,) = affine_pieces(nn.Sequential(nn.Conv2d(*arguments, **options).to(dtype)), shape)
    nu = entries((3, *piece.shape_out), 0, "plain").to(dtype)
    assert piece.transposed(nu).dtype == piece.offset(nu).dtype == dtype
    assert piece.transposed(nu).shape == (3, *shape)
    assert torch.equal(piece.transposed(nu.flatten(1)), piece.transposed(nu))


@each_kind
def test_the_gradients_of_the_way_back_are_those_of_the_way_forth(kind):
    """⟨h, Wᵀν⟩ and ⟨W h, ν⟩ are one function of W, h and ν."""
    for piece in affine_pieces(network(kind, 0), NETWORKS[kind][0]):
        h = entries((2, *piece.shape_in), 0, "plain").requires_grad_()
        nu = entries((2, *piece.shape_out), 1, "plain").requires_grad_()
        wanted = [h, nu, *(w for w in (piece.weight,) if w.requires_grad)]
        back = torch.autograd.grad((h * piece.transposed(nu)).sum(), wanted)
        forth = torch.autograd.grad((nu * piece.times(piece.weight, h)).sum(), wanted)
        for a, b in zip(back, forth, strict=True):
            torch.testing.assert_close(a, b)
        if piece.bias.requires_grad:
            (slope,) = torch.autograd.grad(piece.offset(nu).sum(), piece.bias)
            by_entry = nu.detach().sum(0).reshape(*piece.bias.shape, -1)
            torch.testing.assert_close(slope, by_entry.sum(-1))


def test_a_linear_layer_and_a_convolution_reach_the_weights_of_the_model():
    model = network("convolution", 0)
    nu = entries((1, 12), 0, "plain")
    piece = affine_pieces(model, (1, 4, 4))[0]
    (piece.transposed(nu).sum() + piece.offset(nu).sum()).backward()
    assert model[0].weight.grad.any()
    assert model[0].bias.grad.any()
    assert model[3].weight.grad is None


@each_kind
def test_through_a_detached_piece_no_gradient_flows_and_nothing_else_changes(kind):
    for piece in affine_pieces(network(kind, 0), NETWORKS[kind][0]):
        needed = piece.weight.requires_grad, piece.bias.requires_grad
        fixed = piece.detach()
        h, nu = entries((2, *piece.shape_in), 0, "plain"), entries((2, *piece.shape_out), 1, "plain")
        for one, other in (
            (piece(h), fixed(h)),
            (piece.transposed(nu), fixed.transposed(nu)),
            (piece.offset(nu), fixed.offset(nu)),
        ):
            assert torch.equal(one, other)
            assert not other.requires_grad
        assert (fixed.shape_in, fixed.shape_out, fixed.conv) == (
            piece.shape_in,
            piece.shape_out,
            piece.conv,
        )
        assert (piece.weight.requires_grad, piece.bias.requires_grad) == needed


def test_pieces_multiplied_into_one_or_put_in_as_the_identity_keep_their_shape_and_go_back_too():
    joined = affine_pieces(network("affine after affine", 0), (1, 3, 3))
    shapes = [(piece.shape_in, piece.shape_out) for piece in joined]
    assert shapes == [((1, 3, 3), (3, 1, 1)), ((3,), (3,))]
    first, *_ = affine_pieces(network("ReLU first", 0), (1, 2, 2))
    nu = torch.randn(5, 1, 2, 2, generator=seeded(0), dtype=torch.float64)
    assert torch.equal(first.transposed(nu), nu)
    assert not first.offset(nu).any()


@quiet
def test_no_rows_go_back_as_no_rows():
    for shape, arguments, options in CONVOLUTIONS.values():
        _, piece = convolution(shape, arguments, options)
        nu = torch.zeros(0, *piece.shape_out, dtype=torch.float64)
        assert piece.transposed(nu).shape == (0, *shape)
        assert piece.offset(nu).shape == (0,)
