"""Small networks that start from the same weights for the same seed."""

import pytest
import torch
from strategies import seeded
from torch import nn

from adv_lib import models


def same(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))


def test_an_mlp_has_these_layers_with_relu_between_them():
    layers = list(models.mlp([64, 50, 50, 10]))
    kinds = [nn.Flatten, nn.Linear, nn.ReLU, nn.Linear, nn.ReLU, nn.Linear]
    assert [type(layer) for layer in layers] == kinds
    assert [tuple(layer.weight.shape) for layer in layers[1::2]] == [(50, 64), (50, 50), (10, 50)]


def test_a_linear_model_is_one_affine_map_of_the_flattened_input():
    model, x = models.linear(12, 3), torch.rand(5, 3, 2, 2)
    W, b = model[1].weight, model[1].bias
    assert len(model) == 2
    torch.testing.assert_close(model(x), x.flatten(1) @ W.T + b)


@pytest.mark.parametrize("shape", [(64,), (1, 8, 8), (4, 4, 4)])
def test_images_and_vectors_go_in_logits_come_out(shape):
    assert models.mlp([64, 20, 10])(torch.rand(7, *shape)).shape == (7, 10)


def test_the_generator_decides_the_weights():
    generator = seeded(3)
    first, second = models.mlp([4, 3, 2], generator), models.mlp([4, 3, 2], generator)
    assert same(first, models.mlp([4, 3, 2], seeded(3)))
    assert not same(first, second)


def test_without_a_generator_the_weights_are_those_of_seed_0():
    assert same(models.mlp([4, 3, 2]), models.mlp([4, 3, 2], seeded(0)))


def test_the_weights_do_not_depend_on_the_global_generator():
    torch.manual_seed(1)
    first = models.mlp([4, 3, 2])
    torch.manual_seed(2)
    assert same(first, models.mlp([4, 3, 2]))


def test_a_model_starts_in_training_mode_with_trainable_weights_and_no_gradients():
    model = models.mlp([4, 3, 2])
    assert model.training
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
