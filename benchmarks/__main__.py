"""Run all benchmarks, or those named, as in `python -m benchmarks speed`, and write their pages."""

from __future__ import annotations

import datetime
import platform
import sys
import time
from importlib import metadata
from pathlib import Path

import torch

from adv_lib import data

from . import (
    certified,
    defects,
    dual,
    mnist_attacks,
    mnist_linear,
    mnist_training,
    networks,
    scale,
    shortest,
    sparse,
    speed,
    verification,
)

BOOK = Path(__file__).parent.parent / "book"
PAGES = {
    "benchmarks.md": {
        "speed": speed,
        "l1": sparse,
        "scale": scale,
        "defects": defects,
        "verification": verification,
        "dual": dual,
        "shortest": shortest,
    },
    "reproduced.md": {
        "linear": mnist_linear,
        "mnist": mnist_attacks,
        "certified": certified,
        "training": mnist_training,
    },
}
HEADS = {
    "benchmarks.md": """# Benchmarks

The attacks of `adv_lib` next to those of other libraries, and its bounds next to other ways to the same
bounds, on the same models and data. `make bench` runs everything on this page and rewrites it,
here with Python {python} and PyTorch {torch} on a CPU in one thread. The other libraries: {libraries}.

All contestants of a table take turns in one run. Times are CPU times, and medians over all turns. Trust
the ratios, not the milliseconds. The targets were set before this code was written. secml-torch is
missing: where this book's `adv_lib` is installed it takes it for another library of that name, and does
not import.

""",
    "reproduced.md": """# Reproduced results

Published numbers next to ours, computed by the book's own code. `make bench` runs everything on this
page and rewrites it, here with Python {python} and PyTorch {torch} on a CPU.

""",
}
LIBRARIES = (
    "torchattacks",
    "foolbox",
    "cleverhans",
    "adversarial-robustness-toolbox",
    "adv-lib",
    "convex_adversarial",
    "auto_LiRPA",
)


def version(library: str) -> str:
    """A library and its version."""
    try:
        return f"{library} {metadata.version(library)}"
    except metadata.PackageNotFoundError:
        return f"{library} (not installed)"


def write(page: str) -> None:
    """Put a page together from its sections, each as it came out when it was last run."""
    sections = [networks.KEPT / f"{name}.md" for name in PAGES[page]]
    if missing := [path.stem for path in sections if not path.exists()]:
        return print(f"book/{page} stays as it is: not yet run: {', '.join(missing)}")
    head = HEADS[page].format(
        python=platform.python_version(),
        torch=metadata.version("torch").split("+")[0],
        libraries=", ".join(map(version, LIBRARIES)),
    )
    (BOOK / page).write_text(head + "\n".join(p.read_text("utf-8") for p in sections), "utf-8")
    print(f"wrote book/{page}")


def main() -> None:
    """Run what is named; without MNIST say so and leave the pages as they are."""
    parts = {name: part for page in PAGES.values() for name, part in page.items()}
    names = sys.argv[1:] or list(parts)
    if unknown := set(names) - set(parts):
        sys.exit(f"unknown: {', '.join(unknown)}; there are: {', '.join(parts)}")
    try:
        mnist = data.load("mnist")
    except RuntimeError as error:
        sys.exit(f"the benchmarks need MNIST: {error}")
    torch.set_num_threads(1)  # two wait for each other when anything else runs
    networks.KEPT.mkdir(exist_ok=True)
    for name in names:
        begin = time.perf_counter()
        print(f"== {name} ==", flush=True)
        text = parts[name].section(mnist) + f"\n*Run on {datetime.date.today()}.*\n"
        (networks.KEPT / f"{name}.md").write_text(text, "utf-8")
        print(f"{text}\n{name} took {time.perf_counter() - begin:.0f} s", flush=True)
    for page, sections in PAGES.items():
        if set(names) & set(sections):
            write(page)


if __name__ == "__main__":
    main()
