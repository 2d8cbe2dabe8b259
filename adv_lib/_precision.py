"""In which floating-point type a proof is computed: that of its arguments, whatever the caller set."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps

import torch

DEVICES = ("cpu", "cuda", "mps", "xpu")


def in_its_own_type(function: Callable) -> Callable:
    """The same function with autocast off inside, which would round products to 8 or 11 bits.

    What autocast rounds is another network, and by more than a margin may be.
    """

    @wraps(function)
    def inside(*args, **options):
        on = [device for device in DEVICES if torch.is_autocast_enabled(device)]
        if not on:
            return function(*args, **options)
        with torch.autocast(on[0], enabled=False):
            return inside(*args, **options)

    return inside
