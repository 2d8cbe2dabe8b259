"""The networks that the benchmarks attack, and what took long to find: made once and kept in .bench/."""

from __future__ import annotations

import datetime
import json
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from adv_lib import attacks, data, models, training
from adv_lib.threat import Ball

from . import results

KEPT = Path(__file__).parent.parent / ".bench"
RAN_ON: set[str] = set()  # the machines whose findings were used
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def on_device(pair: data.Data) -> data.Data:
    """The data where the large networks of MNIST are trained: on the GPU if there is one."""
    return data.Data(*(tensor.to(DEVICE) for tensor in pair))


def kept(name: str, model: nn.Module, train: Callable[[nn.Module], None]) -> nn.Module:
    """The model with the weights kept under this name, or else trained now and kept."""
    path = _folder() / f"{name}.pt"
    if path.exists():
        model.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    else:
        print(f"  training {name}", flush=True)
        train(model)
        torch.save(model.state_dict(), path)
    return model.eval()


def _folder() -> Path:
    """.bench, which git ignores."""
    KEPT.mkdir(exist_ok=True)
    (KEPT / ".gitignore").write_text("*\n")
    return KEPT


def once(name: str, find: Callable[[], dict]) -> dict:
    """What `find` found when it first ran under this name; its machine and day are added to RAN_ON."""
    path = _folder() / f"{name}.json"
    if not path.exists():
        where = f"{results.machine()} ({datetime.date.today()})"
        path.write_text(json.dumps([find(), where], ensure_ascii=False), "utf-8")
    found, ran_on = json.loads(path.read_text("utf-8"))
    RAN_ON.add(ran_on)
    return found


def robust(name: str, model: nn.Module, pair: data.Data, eps: float, stages: list) -> nn.Module:
    """The model trained on the given number of batches, first clean ones, then attacked ones.

    stages: (batches, step size, attack steps); the attack is PGD for p = ∞, ε = eps and the box.
    """
    ball, generator = Ball(math.inf, eps, (0, 1)), torch.Generator().manual_seed(0)

    def train(model: nn.Module) -> None:
        for batches, lr, steps in stages:
            attack = partial(attacks.pgd, steps=steps, keep="last")
            inner = training.adversarial(attack, ball) if steps else training.clean
            n = min(len(pair.x_train), 100 * batches)
            some, epochs = (pair.x_train[:n], pair.y_train[:n]), math.ceil(100 * batches / n)
            for _ in training.fit(model, some, inner, epochs=epochs, lr=lr, generator=generator):
                pass

    return kept(name, model, train)


def digits_mlp() -> tuple[nn.Module, Tensor, Tensor]:
    """64-50-50-10, the robust reference network of the book, and all test images of digits."""
    pair = data.load("digits")

    def train(model: nn.Module) -> None:
        model.load_state_dict(training.reference("robust", pair).state_dict())

    model = kept("digits_mlp", models.mlp([64, 50, 50, 10]), train)
    return model, pair.x_test, pair.y_test


def mnist_mlp(pair: data.Data) -> tuple[nn.Module, Tensor, Tensor]:
    """784-200-100-100-10, trained against ε = 0.1, and the first 1,000 test images."""
    stages = [(1200, 0.1, 0), (960, 0.05, 10), (240, 0.01, 10)]
    model = robust("mnist_mlp", models.mlp([784, 200, 100, 100, 10]), pair, 0.1, stages)
    return model, pair.x_test[:1000], pair.y_test[:1000]


def mnist_conv(pair: data.Data) -> tuple[nn.Module, Tensor, Tensor]:
    """The convnet, trained against ε = 0.2 for a while, and the first 200 test images."""
    stages = [(400, 0.1, 0), (200, 0.05, 3)]
    model = robust("mnist_conv", models.convnet((1, 28, 28), 10), pair, 0.2, stages)
    return model, pair.x_test[:200], pair.y_test[:200]


def mnist_small(pair: data.Data) -> nn.Sequential:
    """784-50-20-10, trained by the settings of Kolter & Madry 2018 from seed 0."""
    generator = torch.Generator().manual_seed(0)

    def train(model: nn.Module) -> None:
        settings = {"epochs": 10, "lr": 0.1, "generator": generator}
        for _ in training.fit(model, (pair.x_train, pair.y_train), training.clean, **settings):
            pass

    return kept("published_small_0", models.mlp([784, 50, 20, 10], generator), train)


def mnist_strided(pair: data.Data) -> tuple[nn.Module, Tensor, Tensor]:
    """The small convnet of Wong & Kolter 2018, trained against ε = 0.1, and all test images."""
    model = robust("mnist_strided", strided(), pair, 0.1, [(400, 0.1, 0), (200, 0.05, 3)])
    return model, pair.x_test, pair.y_test


def strided(seed: int = 0) -> nn.Sequential:
    """The small convnet of Wong & Kolter 2018: two convolutions of stride 2, two linear layers."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        convs = nn.Conv2d(1, 16, 4, 2, 1), nn.ReLU(), nn.Conv2d(16, 32, 4, 2, 1), nn.ReLU()
        head = nn.Flatten(), nn.Linear(32 * 7 * 7, 100), nn.ReLU(), nn.Linear(100, 10)
        return nn.Sequential(*convs, *head)
