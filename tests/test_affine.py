"""Affine pieces: they are the network, and each is a matrix, its transpose and an offset."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import DTYPES, NETWORKS, entries, network, seeded, seeds
from torch import nn

from adv_lib import affine, bounds
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
            by_unit = nu.detach().reshape(2, len(piece.bias), -1)
            torch.testing.assert_close(slope, by_unit.sum((0, 2)))


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


def test_pieces_multiplied_into_one_or_put_in_as_the_identity_are_flat_and_go_back_too():
    joined = affine_pieces(network("affine after affine", 0), (1, 3, 3))
    assert [(piece.shape_in, piece.shape_out) for piece in joined] == [((9,), (3,)), ((3,), (3,))]
    first, *_ = affine_pieces(network("ReLU first", 0), (1, 2, 2))
    nu = torch.randn(5, 4, generator=seeded(0), dtype=torch.float64)
    assert torch.equal(first.transposed(nu), nu)
    assert not first.offset(nu).any()


@quiet
def test_no_rows_go_back_as_no_rows():
    for shape, arguments, options in CONVOLUTIONS.values():
        _, piece = convolution(shape, arguments, options)
        nu = torch.zeros(0, *piece.shape_out, dtype=torch.float64)
        assert piece.transposed(nu).shape == (0, *shape)
        assert piece.offset(nu).shape == (0,)
