"""What callers hand over, where it is not of the kind that was expected: ValueError in words."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from numbers import Real

from torch import Tensor

from .threat import Ball


def kind(value: object) -> str:
    """What a value is, in words: type and shape of a tensor, the class of anything else."""
    if isinstance(value, Tensor):
        return f"{value.dtype} {tuple(value.shape)}"
    own = type(value)
    return own.__name__ if own.__module__ == "builtins" else f"{own.__module__}.{own.__name__}"


def check_tensors(**named: object) -> None:
    """Raise ValueError for the first argument, given by its name, that is no tensor."""
    for name, value in named.items():
        if not isinstance(value, Tensor):
            raise ValueError(f"expected {name} to be a tensor, got {kind(value)}")


def check_ball(ball: object) -> None:
    """Raise ValueError unless this is a `threat.Ball`."""
    if not isinstance(ball, Ball):
        raise ValueError(f"expected a threat.Ball, such as Ball(math.inf, 0.1), got {ball!r}")


def check_moves(attack: Callable, delta: object, x: Tensor) -> None:
    """Raise ValueError unless what an attack returned is a tensor of the shape of x."""
    if not isinstance(delta, Tensor) or delta.shape != x.shape:
        raise ValueError(f"expected {attack} to return δ {tuple(x.shape)}, got {kind(delta)}")


def within(values: object, low: float, high: float) -> bool:
    """Whether a number, or each of several, is in [low, high]."""
    each = values if isinstance(values, Sequence) and not isinstance(values, str) else [values]
    return all(isinstance(value, Real) and low <= value <= high for value in each)
