"""Bounds of many images in one call, in a process of its own: how fast, and how much memory it takes."""

from __future__ import annotations

import math
import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from adv_lib import bounds, data

from . import networks, tables
from .dual_peers import region
from .timing import Timer

STATUS = Path("/proc/self/status")

TEXT = """\
**Many images of MNIST** in one call, in float32, each in a fresh process: how many images a second of
CPU time, and by how much the process's memory grows at its peak, with fewer images and with more. (There
the C library gives freed memory back at once, `MALLOC_MMAP_THRESHOLD_`; by itself it keeps some, and the
peak differs from run to run.) The images are the first of the test set; {more:,} of them are
{input:.0f} MB themselves. The convnet is the small one of Wong & Kolter 2018, 16 and 32 channels with
stride 2, then 100-10, trained briefly by PGD against ε = 0.1.

{table}"""


class Case(NamedTuple):
    """A network, ε, how many images are timed, and with how many the memory is measured."""

    model: nn.Sequential
    eps: float
    timed: int
    sizes: tuple[int, int]


class Whole(NamedTuple):
    """CPU seconds, how many images were certified, and by how many megabytes memory grew."""

    seconds: float
    certified: int
    megabytes: float


def whole(model: nn.Sequential, x: np.ndarray, y: np.ndarray, eps: float, method: str) -> Whole:
    """Margins of all images in one call; meant for a process of its own."""
    torch.set_num_threads(1)
    x, y = torch.from_numpy(x), torch.from_numpy(y)
    with torch.no_grad():
        bounds.margins(model, x[:1], y[:1], region(eps), method)
        if STATUS.exists():
            STATUS.with_name("clear_refs").write_text("5")  # the peak is now that of what follows
        before, timer = peak(), Timer()
        margins = bounds.margins(model, x, y, region(eps), method)
        seconds = timer.cpu()
    return Whole(seconds, int((margins.amin(1) > 0).sum()), peak() - before)


def peak() -> float:
    """The peak of this process's memory in MB, on Linux. (`resource` would count the parent's.)"""
    return (
        float(STATUS.read_text().split("VmHWM:")[1].split()[0]) / 1024 if STATUS.exists() else math.nan
    )


def alone_in_process(*arguments: object, **environment: str) -> Whole:
    """`whole` in a fresh process, with these variables in its environment."""
    os.environ.update(environment)
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        found = pool.submit(whole, *arguments).result()
    for name in environment:
        del os.environ[name]
    return found


def section(pair: data.Data) -> str:
    """The table of many images."""
    cases = {
        "784-50-20-10": Case(networks.mnist_small(pair), 0.02, 10000, (1000, 10000)),
        "convnet": Case(networks.mnist_strided(pair)[0], 0.01, 300, (350, 700)),
    }
    rows = []

    def first(n: int) -> tuple[np.ndarray, np.ndarray]:
        return pair.x_test[:n].numpy(), pair.y_test[:n].numpy()

    for name, (model, eps, timed, sizes) in cases.items():
        for method in ("dual", "crown"):
            found = alone_in_process(model, *first(timed), eps, method)
            share, rate = f"{found.certified / timed:.3f}", f"{timed / found.seconds:,.0f}"
            rows.append(tables.printed(name, eps, method, f"{timed:,}", share, rate, ""))
        for n in sizes:
            found = alone_in_process(model, *first(n), eps, "dual", MALLOC_MMAP_THRESHOLD_="1000000")
            rows.append(tables.printed(name, eps, "dual", f"{n:,}", "", "", f"{found.megabytes:.0f}"))
    head = ("network", "ε", "bound", "images", "certified", "images / s", "memory, MB")
    return TEXT.format(
        more=len(pair.x_test), input=pair.x_test.nbytes / 2**20, table=tables.table(head, rows)
    )
