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
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch

from adv_lib import data, models

from . import pages, peers, results

HERE = Path(__file__).parent.parent
BEFORE = "c7c59d9"  # the last commit before
WAS = {  # the names in it that have changed; "" is the second half of the chapter before
    "05_dual_network": "",
    "06_adversarial_training": "05_adversarial_training",
    "07_danskin": "06_danskin",
    "08_dent": "07_dent",
}
WORK = 0.009  # seconds that one loop of `fixed_work` took on 2026-11-27, when all chapters took 697
BUDGET, ALL, FIRST = 45, 360, 10  # seconds of that day: a chapter, all chapters, the first figure

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


def fixed_work() -> Callable[[], float]:
    """Takes the time of forty steps of PGD by hand on 200 digits: the median of 50 loops, in seconds."""
    digits = data.load("digits")
    x, y = digits.x_test[:200].flatten(1), digits.y_test[:200]
    loop = peers.by_hand(models.mlp([64, 50, 50, 10]), math.inf, 0.1, 0.01, 40)

    def once() -> float:
        begin = time.perf_counter()
        loop(x, y)
        return time.perf_counter() - begin

    return lambda: median(once() for _ in range(50))


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


TEXT = """## What a chapter weighs

Every chapter from top to bottom in a fresh kernel, nothing else running: as it was at commit `{before}`
and as it is now, in turns, on one machine. Seconds of different days do not compare, so the times are
also given as multiples of a fixed piece of work, timed before and after each run: one loop of the PGD
by hand, forty steps on 200 digits through 64-50-50-10. It took {work:.1f} milliseconds here (median;
{least:.1f} to {most:.1f}), and {then:.1f} on 2026-11-27, the day by which the budgets are meant, when
all chapters took 697 seconds: a second of that day is {scale:.2f} seconds here. *First figure* is from
the end of the imports. Chapters 4 and 5 were one chapter in that commit, which is measured as chapter 4.

{table}

{targets}
"""


def section() -> str:
    """Run all chapters, before and now."""
    torch.set_num_threads(1)
    works, rows, work = [], [], fixed_work()
    with tempfile.TemporaryDirectory() as folder:
        old = Path(folder)
        archive = subprocess.run(["git", "archive", BEFORE], cwd=HERE, capture_output=True, check=True)
        with tarfile.open(fileobj=io.BytesIO(archive.stdout)) as files:
            files.extractall(old, filter="data")
        works.append(work())
        for file in sorted(HERE.glob("chapters/*.ipynb")):
            row = []
            for tree, name in ((old, WAS.get(file.stem, file.stem)), (HERE, file.stem)):
                if not name:
                    row.append(None)
                    continue
                took = run(tree, name)
                works.append(work())
                beside = (works[-2] + works[-1]) / 2
                row.append((*took, took[0] / beside, took[1] / beside))
                print(f"    {name} {tree}: {took[0]:.1f} s, {beside * 1e3:.1f} ms", flush=True)
            rows.append((file.stem, *row))
    return page(rows, works)


def page(rows: list[tuple], works: list[float]) -> str:
    """The table and the targets, from what was measured."""
    head = "chapter|before, s|now, s|before, loops|now, loops|of the time|first figure before, s|now, s"
    lines = ["| " + head.replace("|", " | ") + " |"]
    lines.append("|---|" + "---:|" * 7)
    for name, before, now in rows:
        if before:
            took, loops, first = f"{before[0]:.0f}", f"{before[2]:,.0f}", f"{before[1]:.1f}"
        else:
            took = loops = first = "–"
        share = "" if name in ("04_duality", "05_dual_network") else f"{now[2] / before[2]:.2f}"
        lines.append(
            f"| {name} | {took} | {now[0]:.0f} | {loops} | {now[2]:,.0f} | "
            f"{share} | {first} | {now[1]:.1f} |"
        )
    sums = [[sum(row[side][i] for row in rows if row[side]) for i in range(4)] for side in (1, 2)]
    lines.append(
        f"| **all** | {sums[0][0]:.0f} | {sums[1][0]:.0f} | {sums[0][2]:,.0f} | {sums[1][2]:,.0f} | "
        f"{sums[1][2] / sums[0][2]:.2f} | | |"
    )
    targets = ["| target | | measured | |", "|---|---|---:|---|"]

    def target(what: str, which: str, loops: float, seconds: float) -> None:
        met = "met" if loops * WORK <= seconds else "**not met**"
        targets.append(f"| {what} ≤ {seconds} s of that day | {which} | {loops * WORK:.0f} s | {met} |")

    for name, _, now in rows:
        target("a chapter", name, now[2], BUDGET)
    target("all chapters", "", sums[1][2], ALL)
    for name, _, now in rows:
        target("first figure", name, now[3], FIRST)
    least, most = min(works), max(works)
    return TEXT.format(
        before=BEFORE,
        work=1e3 * median(works),
        least=1e3 * least,
        most=1e3 * most,
        then=1e3 * WORK,
        scale=median(works) / WORK,
        table="\n".join(lines),
        targets="\n".join(targets),
    )


if __name__ == "__main__":
    results.save("weight", section(), [], results.machine())
    pages.write("bench")
