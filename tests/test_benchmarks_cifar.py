"""The experiment on CIFAR-10, as far as it goes without a GPU and without CIFAR-10: random images."""

import math

import pytest
import torch
from torchvision.models import resnet18

from adv_lib import data, models
from benchmarks import cifar, networks


def noise(train, test=8):
    """Random images of CIFAR's shape, with random labels."""
    g = torch.Generator().manual_seed(0)
    x, labels = torch.rand(train + test, 3, 32, 32, generator=g), torch.arange(train + test) % 10
    return data.Data(x[:train], labels[:train], x[train:], labels[train:])


@pytest.fixture
def kept(tmp_path, monkeypatch):
    monkeypatch.setattr(networks, "KEPT", tmp_path)
    return tmp_path


def run(pair, checkpoint):
    """A narrow network from seed 0, and its training for two epochs."""
    model, generator = cifar.network(0, width=4), torch.Generator().manual_seed(0)
    settings = {"epochs": 2, "decay": 5e-4, "steps": 2, "held": 32}
    return model, cifar.train(model, pair, generator=generator, checkpoint=checkpoint, **settings)


def test_the_network_is_a_resnet_18_but_for_its_beginning():
    ours, theirs = cifar.network(0)[1].state_dict(), resnet18(num_classes=10).state_dict()
    differ = [name for name in theirs if ours[name].shape != theirs[name].shape]
    assert list(ours) == list(theirs)
    assert differ == ["conv1.weight"]
    narrow = cifar.network(0, width=4)
    assert models.logits(narrow.eval(), torch.rand(2, 3, 32, 32)).shape == (2, 10)
    again, other = cifar.network(0, width=4)[1].fc.weight, cifar.network(1, width=4)[1].fc.weight
    assert torch.equal(narrow[1].fc.weight, again)
    assert not torch.equal(again, other)


def test_images_are_moved_by_at_most_four_pixels_and_half_of_them_mirrored():
    x = torch.rand(200, 3, 32, 32) + 1
    moved = cifar.shifted(x, torch.Generator().manual_seed(0))
    assert moved.shape == x.shape
    seen = set()
    for before, after in zip(x, moved, strict=True):
        padded = torch.nn.functional.pad(before, (4, 4, 4, 4))
        fits = [
            (down, right, mirrored)
            for down in range(9)
            for right in range(9)
            for mirrored in (False, True)
            if torch.equal(
                padded[:, down : down + 32, right : right + 32].flip(2)
                if mirrored
                else padded[:, down : down + 32, right : right + 32],
                after,
            )
        ]
        assert len(fits) == 1
        seen.update(enumerate(fits[0]))
    assert seen == {(axis, by) for axis in (0, 1) for by in range(9)} | {(2, False), (2, True)}


def test_a_run_that_was_killed_ends_with_the_same_weights(tmp_path):
    pair = noise(128)
    whole, epochs = run(pair, None)
    losses = [epoch.loss for epoch in epochs]
    assert len(losses) == 2
    assert all(map(math.isfinite, losses))
    _, epochs = run(pair, tmp_path / "kept.run")
    assert next(epochs).loss == losses[0]
    second, epochs = run(pair, tmp_path / "kept.run")
    assert [epoch.loss for epoch in epochs] == losses[1:]
    state = whole.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in second.state_dict().items())


def test_the_experiment_trains_judges_and_is_kept(kept):
    small = {"width": 4, "steps": 2, "held": 32, "attacked": 4, "queries": 10, "targets": 2}
    pair = noise(128)
    found = cifar.experiment(pair, 5e-4, 1, **small)
    assert list(found) == ["clean", "PGD-10", "AutoAttack"]
    assert all(0 <= share <= 1 for share in found.values())
    assert found["PGD-10"] <= found["clean"]
    names = {path.name for path in kept.iterdir()} - {".gitignore"}
    assert names == {"cifar_0.0005_1_0_4_128.pt", "cifar_0.0005_1_0_4_128_4.json"}
    assert cifar.experiment(pair, 5e-4, 1, **small) == found


def test_without_cifar_10_it_says_what_to_put_where(monkeypatch):
    def refused(name):
        raise RuntimeError("no network")

    monkeypatch.setattr(data, "load", refused)
    with pytest.raises(SystemExit, match=r"CIFAR-10 is not in .* put the folder cifar-10-batches-py"):
        cifar.main("--epochs", "1", "--decay", "5e-4")
