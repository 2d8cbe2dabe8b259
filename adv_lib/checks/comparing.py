"""What all checks compare by: values as tensors, equal up to rounding, and shown in a sentence."""

from __future__ import annotations

import copy
import math
import reprlib
from collections.abc import Sequence
from typing import Any

import torch

RELATIVE, ABSOLUTE = 1e-4, 1e-6  # what counts as rounding


def as_tensor(value: Any) -> torch.Tensor | None:
    """value as float64, or None if it is not made of real numbers."""
    try:
        if isinstance(value, (list, tuple)) and value and all(map(torch.is_tensor, value)):
            value = torch.stack(tuple(value))
        if torch.as_tensor(value).is_complex():
            return None
        return torch.as_tensor(value, dtype=torch.float64).detach()  # a list's floats as they are
    except (TypeError, ValueError, RuntimeError):
        return None


def close(got: Any, expected: Any) -> bool:
    """Whether two values are made of the same real numbers, up to rounding, in the same shape."""
    got, expected = as_tensor(got), as_tensor(expected)
    if got is None or expected is None:
        return False
    return got.shape == expected.shape and torch.allclose(
        got, expected, rtol=RELATIVE, atol=ABSOLUTE, equal_nan=True
    )


def finite(tensor: torch.Tensor) -> bool:
    """Whether all entries are."""
    return bool(tensor.isfinite().all())


def written(values: Sequence[float]) -> list[float | str]:
    """Numbers for JSON, which has no ∞."""
    return [v if math.isfinite(v) else str(v) for v in map(float, values)]


def copies(case: tuple) -> tuple:
    """The arguments of a case for one call, which may spoil them."""
    return tuple(v.clone() if isinstance(v, torch.Tensor) else copy.deepcopy(v) for v in case)


def show(value: Any) -> str:
    """A number or a tensor, short enough for a sentence."""
    if isinstance(value, torch.Tensor) and value.dtype == torch.bool:
        return str(value.tolist())
    if isinstance(value, (torch.Tensor, list, tuple)):
        flat = as_tensor(value) + 0.0  # −0 is 0
        if flat.ndim == 0:
            return f"{flat.item():.4g}"
        entries = [show(v) for v in flat] if flat.ndim > 1 else [f"{v:.4g}" for v in flat.tolist()]
        return "(" + ", ".join(entries) + ")"
    return f"{value + 0.0:.4g}" if isinstance(value, float) else str(value)


def show_shape(value: Any) -> str:
    """What kind of number or tensor was given, in words."""
    shape = tuple(as_tensor(value).shape)
    return f"a tensor of shape {shape}" if shape else "a single number"


def shape_or_value(value: Any) -> str:
    """The shape of a tensor; anything else, which should have been one, as it is."""
    return str(tuple(value.shape)) if isinstance(value, torch.Tensor) else reprlib.repr(value)


def no_loss(value: Any, n: int, logits: str) -> str | None:
    """Why this is no loss of n samples that an attack could climb; None if it is one.

    logits: what the exercise calls them.
    """
    if value is None:
        return "your function returns None: the last line needs a return."
    if isinstance(value, torch.Tensor) and value.ndim == 0:
        return "expected one number a sample, got a single number. Take no mean over the batch."
    if not isinstance(value, torch.Tensor) or value.shape != (n,):
        return f"expected one number a sample, a tensor ({n},), got {shape_or_value(value)}."
    if not value.requires_grad:
        cuts = "argmax, a comparison, detach or item cuts it off"
        return f"your loss has no gradient in {logits}: {cuts}."
    return None
