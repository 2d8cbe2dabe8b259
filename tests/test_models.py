"""Small networks that start from the same weights for the same seed."""

import math
from functools import partial
from urllib.error import URLError

import pytest
import torch
from PIL import Image
from sklearn.datasets import load_sample_image
from strategies import seeded
from torch import nn
from torchvision.models import ResNet18_Weights, resnet18

from adv_lib import bounds, data, models
from adv_lib.threat import Ball


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


# ---- with normalisation ----


def test_with_norm_a_batchnorm_of_the_right_width_stands_before_each_relu_and_nowhere_else():
    layers = list(models.mlp([64, 50, 20, 10], norm=True))
    block = [nn.Linear, nn.BatchNorm1d, nn.ReLU]
    assert [type(layer) for layer in layers] == [nn.Flatten, *block, *block, nn.Linear]
    assert [layer.num_features for layer in layers[2::3]] == [50, 20]
    assert [tuple(layer.weight.shape) for layer in layers[1::3]] == [(50, 64), (20, 50), (10, 20)]
    one = models.mlp([4, 3], norm=True)
    assert [type(layer) for layer in one] == [nn.Flatten, nn.Linear]


def test_norm_adds_layers_and_leaves_the_initial_weights_as_they_are():
    """BatchNorm draws nothing: fresh ones divide by √(1 + 1e-5) in eval mode."""
    plain, normed = models.mlp([4, 3, 3, 2], seeded(3)), models.mlp([4, 3, 3, 2], seeded(3), norm=True)
    linears = [[layer for layer in model if isinstance(layer, nn.Linear)] for model in (plain, normed)]
    assert all(same(a, b) for a, b in zip(*linears, strict=True))
    x = torch.rand(5, 4)
    torch.testing.assert_close(normed.eval()(x), plain(x), rtol=0, atol=1e-4)
    assert same(normed, models.mlp([4, 3, 3, 2], seeded(3), norm=True))
    assert not torch.allclose(normed.train()(x), plain(x), atol=1e-2)


# ---- the convolutional network ----


def test_the_convnet_has_these_layers_with_relu_between_them():
    layers = list(models.convnet((1, 28, 28), 10))
    assert all(isinstance(layer, nn.ReLU) for layer in [*layers[1:9:2], layers[10]])
    convolutions, head = layers[0:8:2], layers[8:]
    sizes = [(c.in_channels, c.out_channels, c.kernel_size, c.stride, c.padding) for c in convolutions]
    square = [(3, 3), (1, 1), (1, 1)], [(3, 3), (2, 2), (1, 1)]
    assert [size[:2] for size in sizes] == [(1, 32), (32, 32), (32, 64), (64, 64)]
    assert [list(size[2:]) for size in sizes] == [square[0], square[1]] * 2
    assert [type(layer) for layer in head] == [nn.Flatten, nn.Linear, nn.ReLU, nn.Linear]
    assert (head[1].in_features, head[1].out_features, head[3].out_features) == (64 * 7 * 7, 100, 10)


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 32, 32), (1, 28, 28), (2, 4, 12)])
def test_the_convnet_takes_images_of_its_shape_and_gives_logits(shape):
    assert models.convnet(shape, 7)(torch.rand(3, *shape)).shape == (3, 7)


def test_the_generator_alone_decides_the_weights_of_the_convnet():
    generator, before = seeded(3), torch.get_rng_state()
    first, second = (models.convnet((1, 8, 8), 2, generator) for _ in range(2))
    assert same(first, models.convnet((1, 8, 8), 2, seeded(3)))
    assert not same(first, second)
    assert same(models.convnet((1, 8, 8), 2), models.convnet((1, 8, 8), 2, seeded(0)))
    assert torch.equal(torch.get_rng_state(), before)


# ---- eval mode for a while ----


def nested():
    model = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.BatchNorm1d(2), nn.Dropout(0.5)))
    model[1].eval()
    model[1][1].train()
    return model


@pytest.mark.parametrize("fails", [False, True])
def test_for_a_while_every_part_is_in_eval_mode_and_then_each_has_its_own_again(fails):
    model = nested()
    modes = [module.training for module in model.modules()]
    assert True in modes
    assert False in modes
    try:
        with models.evaluating(model):
            assert not any(module.training for module in model.modules())
            with models.evaluating(model):
                pass
            assert not any(module.training for module in model.modules())
            if fails:
                raise KeyError
    except KeyError:
        assert fails
    assert [module.training for module in model.modules()] == modes


def test_in_eval_mode_a_model_gives_the_same_twice_and_learns_no_statistics():
    model, x = nested(), torch.rand(5, 2)
    state = [v.clone() for v in model.state_dict().values()]
    with models.evaluating(model):
        assert torch.equal(model(x), model(x))
        assert torch.equal(model(x)[:1], model(x[:1]))
    assert all(torch.equal(a, b) for a, b in zip(state, model.state_dict().values(), strict=True))


def test_a_plain_function_has_no_mode():
    with models.evaluating(torch.sin):
        pass


def test_a_model_that_answers_to_train_in_its_own_way_is_not_asked():
    class Stubborn(nn.Linear):
        def train(self, mode=True):
            raise RuntimeError("leave me alone")

    model = Stubborn(2, 2)
    with models.evaluating(model):
        assert not model.training
    assert model.training


# ---- photographs ----

WEIGHTS = ResNet18_Weights.IMAGENET1K_V1


@pytest.fixture(scope="module")
def resnet(tmp_path_factory):
    """The real loading path with random weights in the file that would be downloaded."""
    folder = tmp_path_factory.mktemp("weights")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        bare = resnet18().eval()
    torch.save(bare.state_dict(), folder / WEIGHTS.url.rpartition("/")[2])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ADV_LIB_DATA", str(folder))
        return bare, *models.imagenet()


def test_a_photograph_and_the_network_together_do_what_torchvision_says(resnet):
    """Resize, crop and [0, 1] outside, the normalisation inside: as in the weights' own transforms."""
    bare, network, _ = resnet
    photo, image = data.photograph("china"), Image.fromarray(load_sample_image("china.jpg"))
    seen = WEIGHTS.transforms()(image)[None]
    torch.testing.assert_close(network[0](photo), seen)
    with torch.no_grad():
        torch.testing.assert_close(network(photo), bare(seen))


def test_the_network_comes_in_eval_mode_with_the_names_of_its_classes(resnet):
    _, network, names = resnet
    assert not any(module.training for module in network.modules())
    assert len(names) == len(set(names)) == 1000
    assert names[404] == "airliner"


def test_offline_one_sentence_says_which_file_goes_where(tmp_path, monkeypatch):
    def offline(*args, **kwargs):
        raise URLError("no network")

    monkeypatch.setattr("torch.hub.download_url_to_file", offline)
    monkeypatch.setenv("ADV_LIB_DATA", str(tmp_path))
    with pytest.raises(RuntimeError) as caught:
        models.imagenet()
    for words in (str(tmp_path), "resnet18-f37072fd.pth", "connect to the internet", "ADV_LIB_DATA"):
        assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value.__cause__, URLError)


# ---- with other activations ----


@pytest.mark.parametrize("norm", [False, True])
def test_another_activation_stands_where_relu_would_and_the_weights_are_the_same(norm):
    plain = models.mlp([4, 3, 3, 2], seeded(3), norm=norm)
    other = models.mlp([4, 3, 3, 2], seeded(3), norm=norm, activation=partial(nn.LeakyReLU, 0.2))
    assert same(plain, other)
    for a, b in zip(plain, other, strict=True):
        assert type(b) is (nn.LeakyReLU if isinstance(a, nn.ReLU) else type(a))


@pytest.mark.parametrize("activation", [nn.LeakyReLU, nn.Softplus, nn.SiLU, nn.Tanh, nn.GELU])
def test_what_reads_relu_networks_refuses_others_by_name(activation):
    model, x = models.mlp([4, 3, 2], activation=activation), torch.rand(2, 4)
    with pytest.raises(ValueError, match=activation.__name__):
        bounds.margins(model, x, torch.tensor([0, 1]), Ball(math.inf, 0.1))
