"""What all checks compare by: values as tensors, equal up to rounding, and shown in a sentence."""

from __future__ import annotations

import copy
import reprlib
from typing import Any

import torch


def as_tensor(value: Any) -> torch.Tensor | None:
    """value as float64, or None if it is not made of real numbers."""
    try:
        if isinstance(value, (list, tuple)) and value and all(map(torch.is_tensor, value)):
            value = torch.stack(tuple(value))
        tensor = torch.as_tensor(value).detach()
    except (TypeError, ValueError, RuntimeError):
        return None
    return None if tensor.is_complex() else tensor.double()


def close(got: Any, expected: Any) -> bool:
    """Whether two values are made of the same real numbers, up to rounding, in the same shape."""
    got, expected = as_tensor(got), as_tensor(expected)
    if got is None or expected is None:
        return False
    return got.shape == expected.shape and torch.allclose(
        got, expected, rtol=1e-4, atol=1e-6, equal_nan=True
    )


def copies(case: tuple) -> tuple:
    """The arguments of a case for one call, which may spoil them."""
    return tuple(v.clone() if isinstance(v, torch.Tensor) else copy.deepcopy(v) for v in case)


def show(value: Any) -> str:
    """A number or a tensor, short enough for a sentence."""
    if isinstance(value, torch.Tensor) and value.dtype == torch.bool:
        return str(value.tolist())
    if isinstance(value, (torch.Tensor, list, tuple)):
        flat = as_tensor(value)
        if flat.ndim == 0:
            return f"{flat.item():.4g}"
        entries = [show(v) for v in flat] if flat.ndim > 1 else [f"{v:.4g}" for v in flat.tolist()]
        return "(" + ", ".join(entries) + ")"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def show_shape(value: Any) -> str:
    """What kind of number or tensor was given, in words."""
    shape = tuple(as_tensor(value).shape)
    return f"a tensor of shape {shape}" if shape else "a single number"


def shape_or_value(value: Any) -> str:
    """The shape of a tensor; anything else, which should have been one, as it is."""
    return str(tuple(value.shape)) if isinstance(value, torch.Tensor) else reprlib.repr(value)
