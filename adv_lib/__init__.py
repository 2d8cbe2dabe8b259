"""adv_lib: the attacks, bounds and defenses behind *Adversarial Robustness, Hands On*.

Each module is one idea of the book. Import what you need: ``from adv_lib.threat import Ball``.
"""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("adversarial-robustness-book")
except PackageNotFoundError:  # a bare checkout on the path
    __version__ = "0+unknown"
