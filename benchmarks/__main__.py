"""Run parts of the benchmarks and write their page: `python -m benchmarks bench speed l1`.

The first word is the page, `bench` or `reproduce`; then come the parts to run, or `all`. A part is the
module of its name: its `section` takes MNIST and returns a text, or a text and the figures in it.
"""

from __future__ import annotations

import importlib
import sys

import torch

from adv_lib import data

from . import networks, pages, results
from .timing import Timer


def main(page: str, *names: str) -> None:
    """Run what is named, then write the page; without MNIST say so and leave the page as it is."""
    if page not in pages.PARTS:
        sys.exit(f"expected one of {', '.join(pages.PARTS)}, got {page}")
    parts = tuple(part for part in pages.PARTS[page] if part not in pages.ELSEWHERE)
    names = parts if names == ("all",) else names
    if unknown := set(names) - set(parts):
        sys.exit(f"unknown: {', '.join(unknown)}; there are: {', '.join(parts)}")
    if names:
        run(names)
    pages.write(page)
    print(f"wrote {pages.PAGES[page].relative_to(pages.BOOK.parent)}")


def run(names: tuple[str, ...]) -> None:
    """Run the parts and keep what they find."""
    try:
        mnist = data.load("mnist")
    except RuntimeError as error:
        sys.exit(f"the benchmarks need MNIST: {error}")
    torch.set_num_threads(1)  # two wait for each other when anything else runs
    torch.backends.cudnn.allow_tf32 = False  # as exact as on a CPU
    for name in names:
        timer = Timer()
        print(f"== {name} ==", flush=True)
        found = importlib.import_module(f"benchmarks.{name}").section(mnist)
        text, figures = (found, ()) if isinstance(found, str) else found
        ran_on = " and ".join(sorted(networks.RAN_ON)) or results.machine()
        networks.RAN_ON.clear()
        results.save(name, text, list(figures), ran_on)
        print(f"{text}\n{name} took {timer.clock():.0f} s", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:] or [""])
