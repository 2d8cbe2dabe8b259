"""What the benchmarks found, kept in benchmarks/results/: a page is made without running anything."""

from __future__ import annotations

import datetime
import json
import os
import platform
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path
from statistics import mean
from typing import NamedTuple

import torch

RESULTS = Path(__file__).parent / "results"
REPRODUCED, SMALLER, FAILED, NOT_ATTEMPTED = STATUSES = (
    "reproduced",
    "reproduced at smaller scale",
    "did not reproduce",
    "not attempted",
)
LIBRARIES = (
    "torchattacks",
    "foolbox",
    "cleverhans",
    "adversarial-robustness-toolbox",
    "adv-lib",
    "convex_adversarial",
    "auto_LiRPA",
)


class Figure(NamedTuple):
    """One published figure next to ours, both as they stand on the page.

    source: its key in book/references.bib.  status: one of STATUSES.  why: where it is not the first.
    """

    source: str
    what: str
    published: str
    ours: str
    status: str
    why: str = ""


def status(published: float, ours: list[float], within: float) -> str:
    """Whether the published number lies within our smallest and largest, give or take `within`."""
    return REPRODUCED if min(ours) - within <= published <= max(ours) + within else FAILED


def compare(
    source: str, what: str, published: float, ours: list[float], within: float, why: str
) -> Figure:
    """A published share next to ours, one for each seed; why is said where it does not reproduce."""
    verdict = status(published, ours, within)
    if verdict == FAILED and not why:
        raise ValueError(f"{what} is {over(ours)}, not {published:.2%}: find out why, and say it")
    return Figure(
        source, what, f"{published:.2%}", over(ours), verdict, why if verdict == FAILED else ""
    )


def over(shares: Iterable[float]) -> str:
    """Mean and range over the seeds, or the one value."""
    shares = list(shares)
    if len(shares) == 1:
        return f"{shares[0]:.2%}"
    return f"{mean(shares):.2%} ({min(shares):.2%} to {max(shares):.2%})"


def machine() -> str:
    """What ran it: the name of the GPU, or how many cores."""
    return torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {os.cpu_count()} cores"


def libraries() -> list[str]:
    """The other libraries that are installed here, with their versions."""
    plain = lambda name: name.lower().replace("_", "-")  # noqa: E731
    here = {plain(found.metadata["Name"]): found.version for found in metadata.distributions()}
    return [f"{name} {here[plain(name)]}" for name in LIBRARIES if plain(name) in here]


def save(part: str, text: str, figures: list[Figure], ran_on: str) -> None:
    """Keep what a part found, with the day, the machine and the versions."""
    if wrong := [figure for figure in figures if figure.status not in STATUSES]:
        raise ValueError(f"expected a status out of {STATUSES}, got {wrong[0]}")
    found = {
        "date": str(datetime.date.today()),
        "machine": ran_on,
        "python": platform.python_version(),
        "torch": metadata.version("torch").split("+")[0],
        "libraries": libraries(),
        "figures": [figure._asdict() for figure in figures],
        "text": text.splitlines(),
    }
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{part}.json"
    path.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", "utf-8")


def load(part: str) -> dict | None:
    """What a part found when it last ran, or None."""
    path = RESULTS / f"{part}.json"
    if not path.exists():
        return None
    found = json.loads(path.read_text("utf-8"))
    found["figures"] = [Figure(**figure) for figure in found["figures"]]
    found["text"] = "\n".join(found["text"])
    return found
