"""The few classifiers of the book: small, plain `nn.Sequential`, seeded; and one for photographs.

Each takes images (n, C, H, W) or vectors (n, d) in [0, 1] and returns logits (n, K).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise

import torch
from torch import Tensor, nn

from . import data
from ._given import check_tensors, kind


def linear(features: int, outputs: int, generator: torch.Generator | None = None) -> nn.Sequential:
    """Wx + b. With one output, its sign separates two classes.

    features: d, the entries of one input.  outputs: 1, or one for each class.  generator: as for `mlp`.
    """
    return mlp([features, outputs], generator)


def mlp(
    widths: list[int],
    generator: torch.Generator | None = None,
    *,
    norm: bool = False,
    activation: Callable[[], nn.Module] = nn.ReLU,
) -> nn.Sequential:
    """Fully connected layers of these widths, input first, with an activation between them.

    generator: decides the initial weights; None means a fresh one seeded 0.
    norm: whether a BatchNorm stands before each activation.
    activation: makes one, a function of every entry, such as `nn.ReLU`, `nn.Softplus` or `nn.SiLU`. The
                bounds and the exact methods read ReLU only.
    Raises ValueError for widths of no network, and for what makes no module.
    """
    if len(widths) < 2 or min(widths) < 1:
        raise ValueError(f"widths must name an input and an output of at least 1, got {widths!r}")
    if not callable(activation) or not isinstance(made := activation(), nn.Module):
        got = kind(made) if callable(activation) else kind(activation)
        raise ValueError(f"expected an activation that makes a module, such as nn.ReLU, got {got}")

    def build() -> nn.Sequential:
        layers: list[nn.Module] = [nn.Flatten()]
        for fan_in, fan_out in pairwise(widths):
            layers += [nn.Linear(fan_in, fan_out)]
            layers += [nn.BatchNorm1d(fan_out), activation()] if norm else [activation()]
        return nn.Sequential(*layers[: -2 if norm else -1])

    return _seeded(build, generator)


def convnet(
    shape: tuple[int, int, int], classes: int, generator: torch.Generator | None = None
) -> nn.Sequential:
    """Four 3×3 convolutions (32, 32, 64, 64 channels, every second of stride 2) and two linear layers.

    shape: (C, H, W) of the images, H and W divisible by 4.  generator: as for `mlp`.
    Source: the `cnn` of Kolter & Madry 2018, chapter 3.
    """
    if len(shape) != 3 or min(shape) < 1 or shape[1] % 4 or shape[2] % 4 or classes < 1:
        raise ValueError(
            "expected a shape (C, H, W) with H and W divisible by 4 and at least one class, "
            f"got {shape!r} and {classes!r}"
        )

    channels, height, width = shape

    def build() -> nn.Sequential:
        layers: list[nn.Module] = []
        for fan_in, fan_out, stride in ((channels, 32, 1), (32, 32, 2), (32, 64, 1), (64, 64, 2)):
            layers += [nn.Conv2d(fan_in, fan_out, 3, stride=stride, padding=1), nn.ReLU()]
        flat = 64 * (height // 4) * (width // 4)
        head = [nn.Flatten(), nn.Linear(flat, 100), nn.ReLU(), nn.Linear(100, classes)]
        return nn.Sequential(*layers, *head)

    return _seeded(build, generator)


class Normalise(nn.Module):
    """(x − mean) / std, channel by channel, as a layer: a model that begins with it takes [0, 1].

    mean, std: one number a channel, in the units of x.
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float]):
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """x: (n, C, H, W) in [0, 1], C as many as mean and std have.  Returns the same shape."""
        return (x - self.mean) / self.std


def imagenet() -> tuple[nn.Sequential, list[str]]:
    """A ResNet-18 that knows the 1,000 classes of ImageNet, in eval mode, and the names of the classes.

    It takes photographs (n, 3, 224, 224) in [0, 1], as `data.photograph` gives them: its first layer
    normalises. The weights are torchvision's, 45 MB, downloaded into `data.folder()` on first use.
    Raises RuntimeError, which says what to put where, if the download is needed and fails.
    Source: He et al. 2016.
    """
    from torchvision.models import ResNet18_Weights, resnet18

    weights, root = ResNet18_Weights.IMAGENET1K_V1, data.folder()
    try:
        state = weights.get_state_dict(model_dir=str(root), progress=False, check_hash=True)
    except (OSError, RuntimeError) as error:
        name = weights.url.rpartition("/")[2]
        raise RuntimeError(
            f"the weights of ResNet-18 are not in {root} and could not be downloaded: connect to the "
            f"internet, or put torchvision's {name} there (another folder: set ADV_LIB_DATA)"
        ) from error
    network = resnet18()
    network.load_state_dict(state)
    seen = weights.transforms()
    return nn.Sequential(Normalise(seen.mean, seen.std), network).eval(), weights.meta["categories"]


@contextmanager
def evaluating(model: Callable) -> Iterator[None]:
    """Put a model in eval mode for a while, then give every submodule its own mode back.

    In eval mode dropout is off and BatchNorm neither uses the batch nor learns from it. A model that
    is a plain function has no mode and stays as it is.  Raises ValueError for what cannot be called.
    """
    if not callable(model):
        raise ValueError(f"expected a model, which takes images and returns logits, got {kind(model)}")
    modules = list(model.modules()) if isinstance(model, nn.Module) else []
    modes = [module.training for module in modules]
    try:
        for module in modules:
            module.training = False
        yield
    finally:
        for module, mode in zip(modules, modes, strict=True):
            module.training = mode


def logits(model: Callable, x: Tensor) -> Tensor:
    """The model's answer to x (n, *shape): logits (n, K).

    The model gets a copy, because some change their input in place, and x is the caller's.
    Differentiable in x.  Raises ValueError as `check_logits`.
    """
    check_tensors(x=x)
    return check_logits(model(x.clone()), x)


def check_logits(z: Tensor, x: Tensor, classes: int = 2) -> Tensor:
    """z, if that is floating-point logits (n, K) for n samples x, K ≥ classes; else ValueError."""
    if not isinstance(z, Tensor) or not z.is_floating_point():
        raise ValueError(f"expected the model to return a tensor of logits (n, K), got {kind(z)}")
    if z.ndim != 2 or z.shape[0] != x.shape[0] or z.shape[1] < classes:  # len would be slower
        raise ValueError(f"expected logits ({len(x)}, K) with K ≥ {classes}, got {tuple(z.shape)}")
    return z


def _seeded(build: Callable[[], nn.Sequential], generator: torch.Generator | None) -> nn.Sequential:
    """Build a network with initial weights drawn from generator; the global generator stays as it is."""
    generator = generator or torch.Generator().manual_seed(0)
    seed = torch.randint(2**62, (), generator=generator).item()
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return build()
