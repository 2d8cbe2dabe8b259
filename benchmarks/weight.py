"""How long each chapter takes, and took before, as multiples of a fixed piece of work done in between.

Seconds of different days do not compare, because machines differ threefold from day to day; multiples of
the same work do. Every chapter runs from top to bottom in a fresh kernel, in the tree of a commit before
the book was made light and in this one, in turns, with the work timed before and after each.
"""

from __future__ import annotations

import io
import math
import os
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import NamedTuple

import torch

from adv_lib import data, models

from . import pages, peers, results, tables, timing

HERE = Path(__file__).parent.parent
BEFORE = "c7c59d9"  # the last commit before
WAS = {  # names that have changed since; "": not there yet, or as a half of another chapter
    "04_duality": "",
    "05_dual_network": "",
    "06_adversarial_training": "05_adversarial_training",
    "07_danskin": "06_danskin",
    "08_dent": "07_dent",
}
WORK = 0.009  # seconds that one loop of `fixed_work` took on 2026-11-27, when all chapters took 697
# Targets, in seconds of that day: a chapter, all chapters, the first figure.
BUDGET, ALL, FIRST = 45, 360, 10
HEAD = (
    "chapter",
    "before, s",
    "now, s",
    "before, loops",
    "now, loops",
    "of the time",
    "first figure before, s",
    "now, s",
)

# Runs a notebook and prints the seconds of the whole, and from the imports to the first figure.
RUN = """
import sys, time, nbformat
from nbclient import NotebookClient

notebook = nbformat.read(sys.argv[1], as_version=4)
code = [cell for cell in notebook.cells if cell.cell_type == "code"]
done = {}
client = NotebookClient(
    notebook, timeout=None, kernel_name="python3",
    on_cell_executed=lambda cell, **_: done.setdefault(cell.id, time.perf_counter()),
)
begin = time.perf_counter()
client.execute()
end = time.perf_counter()
drawn = [
    done[cell.id] for cell in code
    if any({"image/png", "text/html"} & set(output.get("data", {})) for output in cell.outputs)
]
print(end - begin, drawn[0] - done[code[1].id])
"""

TEXT = """## What a chapter weighs

Every chapter from top to bottom in a fresh kernel, nothing else running: as it was at commit `{before}`
and as it is now, in turns, on one machine. Seconds of different days do not compare, so the times are
also given as multiples of a fixed piece of work, timed before and after each run: one loop of the PGD
by hand, forty steps on 200 digits through 64-50-50-10. It took {work:.1f} milliseconds here (median;
{least:.1f} to {most:.1f}), and {then:.1f} on 2026-11-27, the day by which the budgets are meant, when
all chapters took 697 seconds: a second of that day is {scale:.2f} seconds here. *First figure* is from
the end of the imports. Chapters that were not there, or
were a part of another, have no *before*.

{table}

{targets}
"""


class Weight(NamedTuple):
    """A chapter from top to bottom, and from its imports to its first figure, in seconds and loops."""

    seconds: float
    figure: float
    loops: float
    figure_loops: float


def fixed_work() -> Callable[[], float]:
    """Takes the time of forty steps of PGD by hand on 200 digits: the median of 50 loops, in seconds."""
    digits = data.load("digits")
    x, y = digits.x_test[:200].flatten(1), digits.y_test[:200]
    loop = peers.by_hand(models.mlp([64, 50, 50, 10]), math.inf, 0.1, 0.01, 40)
    return partial(timing.clock, partial(loop, x, y), 50)


def run(tree: Path, chapter: str) -> tuple[float, float]:
    """Seconds for a chapter of a tree, and from its imports to its first figure."""
    settings = os.environ | {"PYTHONPATH": str(tree), "TQDM_DISABLE": "1"}
    file = tree / "chapters" / f"{chapter}.ipynb"
    command = [sys.executable, "-c", RUN, str(file)]
    done = subprocess.run(command, env=settings, cwd=file.parent, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{file} failed:\n{done.stderr[-3000:]}")
    whole, first = map(float, done.stdout.split()[-2:])
    return whole, first


def section() -> str:
    """Run all chapters, before and now."""
    torch.set_num_threads(1)
    chapters, work = {}, fixed_work()
    with tempfile.TemporaryDirectory() as folder:
        old = Path(folder)
        archive = subprocess.run(["git", "archive", BEFORE], cwd=HERE, capture_output=True, check=True)
        with tarfile.open(fileobj=io.BytesIO(archive.stdout)) as files:
            files.extractall(old, filter="data")
        works = [work()]
        for file in sorted(HERE.glob("chapters/*.ipynb")):
            name = WAS.get(file.stem, file.stem)
            runs = []
            for tree, stem in ((old, name), (HERE, file.stem)):
                if not stem:
                    runs.append(None)
                    continue
                seconds, figure = run(tree, stem)
                works.append(work())
                beside = (works[-2] + works[-1]) / 2
                runs.append(Weight(seconds, figure, seconds / beside, figure / beside))
                print(f"    {stem} {tree}: {seconds:.1f} s, {beside * 1e3:.1f} ms", flush=True)
            chapters[file.stem] = runs
    return page(chapters, works)


def page(chapters: dict[str, list[Weight | None]], works: list[float]) -> str:
    """The table and the targets: each chapter before, if it was there, and now."""
    both = [runs for runs in chapters.values() if runs[0]]
    before, same = (Weight(*map(sum, zip(*runs, strict=True))) for runs in zip(*both, strict=True))
    now = Weight(*map(sum, zip(*(run for _, run in chapters.values()), strict=True)))
    rows = [
        (name, *row(*runs), *("–" if r is None else f"{r.figure:.1f}" for r in runs))
        for name, runs in chapters.items()
    ]
    rows.append(("**those that were there**", *row(before, same), "", ""))
    whole = [target("a chapter", name, run.loops, BUDGET) for name, (_, run) in chapters.items()]
    first = [target("first figure", name, r.figure_loops, FIRST) for name, (_, r) in chapters.items()]
    targets = [*whole, target("all chapters", "", now.loops, ALL), *first]
    return TEXT.format(
        before=BEFORE,
        work=1e3 * median(works),
        least=1e3 * min(works),
        most=1e3 * max(works),
        then=1e3 * WORK,
        scale=median(works) / WORK,
        table=tables.table(HEAD, rows, right=range(1, len(HEAD))),
        targets=tables.targets(targets, right=[2]),
    )


def row(before: Weight | None, now: Weight) -> list[str]:
    """Seconds, loops and what is left of them."""
    if before is None:
        return ["–", f"{now.seconds:.0f}", "–", f"{now.loops:,.0f}", ""]
    seconds = [f"{run.seconds:.0f}" for run in (before, now)]
    loops = [f"{run.loops:,.0f}" for run in (before, now)]
    return [*seconds, *loops, f"{now.loops / before.loops:.2f}"]


def target(what: str, chapter: str, loops: float, seconds: float) -> tables.Target:
    """A budget in seconds of that day, for loops of today."""
    took = loops * WORK
    return tables.Target(f"{what} ≤ {seconds} s of that day", chapter, f"{took:.0f} s", took <= seconds)


if __name__ == "__main__":
    results.save("weight", section(), [], results.machine())
    pages.write("bench")
