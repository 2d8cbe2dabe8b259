"""The few classifiers of the book: small, plain `nn.Sequential`, seeded.

Each takes images (n, C, H, W) or vectors (n, d) in [0, 1] and returns logits (n, K).
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import nn


def linear(features: int, outputs: int, generator: torch.Generator | None = None) -> nn.Sequential:
    """Wx + b. With one output, its sign separates two classes."""
    return mlp([features, outputs], generator)


def mlp(widths: list[int], generator: torch.Generator | None = None) -> nn.Sequential:
    """Fully connected layers of these widths, input first, with ReLU between them.

    generator: decides the initial weights; None means a fresh one seeded 0.
    """
    if len(widths) < 2 or min(widths) < 1:
        raise ValueError(f"widths must name an input and an output of at least 1, got {widths!r}")

    def build() -> nn.Sequential:
        layers: list[nn.Module] = [nn.Flatten()]
        for fan_in, fan_out in pairwise(widths):
            layers += [nn.Linear(fan_in, fan_out), nn.ReLU()]
        return nn.Sequential(*layers[:-1])

    return _seeded(build, generator)


def _seeded(build: Callable[[], nn.Sequential], generator: torch.Generator | None) -> nn.Sequential:
    """Build a network with initial weights drawn from generator; the global generator stays as it is."""
    generator = generator or torch.Generator().manual_seed(0)
    seed = torch.randint(2**62, (), generator=generator).item()
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return build()
