"""Print every comparison with published results and write it to book/reproduced.md."""

from __future__ import annotations

import datetime
import math
import platform
import sys
from pathlib import Path

import torch

from adv_lib import data, linear

from . import mnist_linear

PAGE = Path(__file__).parent.parent / "book" / "reproduced.md"
TEXT = """# Reproduced results

Published numbers next to ours, computed by the book's own code. `make bench` runs everything on
this page and rewrites it; the last run was on {date}, with Python {python} and PyTorch {torch}, on a
CPU.

## MNIST, 0 against 1, linear model, ℓ∞

Published by [Kolter & Madry 2018](https://adversarial-ml-tutorial.org/linear_models/), chapter 2.
Settings as published: batches of 100; standard training 10 epochs with step size 1, robust training
20 epochs with step size 0.1, ε = 0.2 in pixels of [0, 1], no box. Ours: mean over {seeds} seeds with
the smallest and largest, {n:,} test images. Robust errors are exact, from the closed form of the
chapter on [linear models](../chapters/01_linear_models.ipynb).

| model | quantity | published | ours | smallest to largest | status |
|---|---|---|---|---|---|
{table}

*Reproduced* means that the published number lies within our smallest and largest, give or take 0.1
points. The training set can be separated for every ε below {reach:.4f}, so the standard model's loss
has no minimum: where its 10 epochs end, and with it its robust error, depends on the start.
"""


def row(found: dict) -> str:
    """One line of the table."""
    reproduced = found["low"] - 0.001 <= found["published"] <= found["high"] + 0.001
    published, ours, low, high = (f"{found[k]:.2%}" for k in ("published", "mean", "low", "high"))
    status = "reproduced" if reproduced else "did not reproduce"
    cells = (found["model"], found["quantity"], published, ours, f"{low} to {high}", status)
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    """Run the benchmarks; without MNIST say so and leave the page as it is."""
    try:
        pair = data.binary(data.load("mnist"), 0, 1)
    except RuntimeError as error:
        sys.exit(f"benchmarks need MNIST: {error}")
    table = "\n".join(row(found) for found in mnist_linear.rows(pair))
    print(table)
    page = TEXT.format(
        date=datetime.date.today(),
        python=platform.python_version(),
        torch=torch.__version__.split("+")[0],
        seeds=len(mnist_linear.SEEDS),
        n=len(pair.y_test),
        table=table,
        reach=linear.largest_margin(pair.x_train, pair.y_train, math.inf),
    )
    PAGE.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
