"""The bounds of the dual network: the same numbers by others, all of MNIST, and what is not ordered."""

from __future__ import annotations

import functools
import math
import multiprocessing
import os
import textwrap
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from importlib import metadata
from pathlib import Path
from statistics import median
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from adv_lib import bounds, data, dual, models
from adv_lib.affine import Bounds, affine_pieces
from adv_lib.threat import Ball

from . import certified, dual_peers, networks, speed
from .verification import race, row

ROUNDS, FEW = 15, 3
SAMPLES, PARTS = 200, 4  # of digits
OTHERS = ("by hand", "auto_LiRPA")
IMAGES = 10  # of the convnet, next to convex_adversarial
NETWORKS = 200
STEPS = 20
STATUS = Path("/proc/self/status")
EARLIER = {  # certified by another network, on the same number of samples
    0.02: (0.49, 0.975, 0.975, 0.975),
    0.05: (0, 0.915, 0.915, 0.92),
    0.1: (0, 0.60, 0.645, 0.65),
}

TEXT = """## Bounds by the dual network

All for p = ∞ with the box, in float64 unless said otherwise. The first two tables show medians of
{rounds} turns, each of {samples} samples at once.

**CROWN by three programs.** Ours is `bounds.margins(…, "crown")`. *By hand* is plain CROWN on dense
matrices, written after Zhang et al. 2018, Theorem 3.2: linear functions above and below, all units, each
layer intersected with its intervals, as ours is. The time is ours, then its ratio to theirs; *apart* is
the largest difference of a margin.
{lirpa}

| network | ε | milliseconds | / by hand | / auto_LiRPA | apart from by hand | from auto_LiRPA |
|---|---|---|---|---|---|---|
{table_crown}

**Wong & Kolter's own code**, convex_adversarial with `bounded_input=True`. It does not
intersect with intervals. So what is compared are the layer bounds and margins of our `dual` module
without intersection, then our margins on its layer bounds. The times are of `bounds.margins(…, "dual")`,
which does intersect. The convnet is that of the table of MNIST below, with {images} images and
{few_rounds} turns.

| network | ε | milliseconds | ours / theirs | layer bounds apart | margins apart | on its bounds |
|---|---|---|---|---|---|---|
{table_convex}

**How much they certify, and how long they take**, the first {samples} test images of digits on the
book's robust network 64-50-50-10. In brackets: another network of this size, in an earlier run. *Best
slopes* is `bounds.best_slopes` with {steps} steps; it and the linear program build on CROWN's layer
bounds. A time counts the layer bounds too, and is a ratio to CROWN's, the median over {parts} parts.

| ε | | interval | dual | CROWN | best slopes | LP on CROWN bounds |
|---|---|---|---|---|---|---|
{table_digits}

**Many images of MNIST** in one call, in float32, each in a fresh process: how many images a second of
CPU time, and by how much the process's memory grows at its peak, with fewer images and with more. (There
the C library gives freed memory back at once, `MALLOC_MMAP_THRESHOLD_`; by itself it keeps some, and the
peak differs from run to run.) The images are the first of the test set; {more:,} of them are
{input:.0f} MB themselves. The convnet is the small one of Wong & Kolter 2018, 16 and 32 channels with
stride 2, then 100-10, trained briefly by PGD against ε = 0.1.

| network | ε | bound | images | certified | images / s | memory, MB |
|---|---|---|---|---|---|---|
{table_whole}

**Orders that are no theorems.** The slopes are a choice, and tighter layer bounds change them too. So
no theorem says that CROWN is at least as good as the other dual bound, or either at least as good as
intervals. On {networks} random networks ({widths}, weights {scale} times those at the start of
training, ε = {random_eps}, one input and one margin each): how often is the first bound larger than the
second? First with layers by the dual network alone, then with each intersected with its intervals, as
`bounds` does it. Every method builds on its own layer bounds unless said otherwise. These narrow, deep
networks were picked after trying others, because orders fail on them.

| first larger than second | layers alone | intersected | |
|---|---|---|---|
{table_orders}

| target | | measured | |
|---|---|---|---|
{targets}
"""


def region(eps: float) -> Ball:
    return Ball(math.inf, eps, (0, 1))


def alone(model: nn.Sequential, x: Tensor, ball: Ball, method: str) -> list[Bounds]:
    """The pre-activation bounds of all units by the dual network alone, without intervals."""
    pieces = affine_pieces(model, x.shape[1:], x.dtype)
    layers = bounds.pre_activations(model, x, ball)[:1]
    for depth, piece in enumerate(pieces[1:-1], 1):
        relus = [dual.lines(layer, method) for layer in layers]
        one = torch.eye(math.prod(piece.shape_out), dtype=x.dtype)
        sample = torch.arange(len(x)).repeat_interleave(len(one))

        def both(rows: Tensor, one: Tensor = one) -> Tensor:
            c = one[rows % len(one)].unsqueeze(1)
            return torch.cat([c, -c], 1)

        ends = dual.in_parts(pieces[: depth + 1], relus, x, ball.region(x), sample, both, 2)
        least, most = (end.reshape(len(x), *piece.shape_out) for end in ends.unbind(1))
        layers.append(Bounds(least, -most))
    return layers


def apart(a: Tensor, b: Tensor) -> float:
    """The largest difference, +∞ in a left out: the margin of y to itself."""
    return float((a - b)[a.isfinite()].abs().max())


# ---- the same numbers by others ----


def crown(tests: dict[str, tuple]) -> tuple[str, list[str]]:
    """The table of CROWN, and the lines of target 5."""
    lines, targets, worst = [], [], {}
    for name, (model, x, y, radii) in tests.items():
        for eps in radii:
            ours = partial(bounds.margins, model, ball=region(eps), method="crown")
            ways = {"ours": ours, "by hand": dual_peers.crown(model, eps)}
            if not missing(dual_peers.auto_lirpa):
                ways["auto_LiRPA"] = dual_peers.auto_lirpa(model, eps)
            found = race(ways, [(x, y)] * ROUNDS)
            ratios = {way: found.ratio("ours", way) for way in ways}
            gaps = {way: apart(found.results["ours"][0], found.results[way][0]) for way in ways}
            worst = {way: max(gap, worst.get(way, 0)) for way, gap in gaps.items()}
            shown = [f"{ratios[way]:.2f}" if way in ways else "–" for way in OTHERS]
            shown += [f"{gaps[way]:.0e}" if way in ways else "–" for way in OTHERS]
            lines.append(row(name, eps, f"{1e3 * median(found.seconds['ours']):.1f}", *shown))
            if "auto_LiRPA" in ways:
                what, where = "5: time ≤ 1.0 × auto_LiRPA's", f"{name}, ε = {eps}"
                targets.append(speed.target(what, where, ratios["auto_LiRPA"], 1.0))
    del worst["ours"]
    near = [target(f"5: CROWN, {way}: within 1e-5", gap, 1e-5) for way, gap in worst.items()]
    return "\n".join(lines), near + targets


def convex(tests: dict[str, tuple]) -> tuple[str, list[str]]:
    """The table of convex_adversarial, and the line of the target: equal to 1e-6."""
    if error := missing(dual_peers.convex_adversarial):
        return row("–", "–", error, "–", "–", "–", "–"), []
    lines, worst = [], 0.0
    for name, (model, x, y, radii) in tests.items():
        for eps in radii:
            ball = region(eps)
            theirs = dual_peers.convex_adversarial(model, eps)
            ways = {"ours": partial(bounds.margins, model, ball=ball, method="dual"), "theirs": theirs}
            found = race(ways, [(x, y)] * (ROUNDS if x.ndim == 2 else FEW))
            margins, layers = theirs(x, y), dual_peers.convex_adversarial_layers(model, x, eps)
            mine = alone(model, x, ball, "dual")
            pairs = [
                (a, b)
                for one, two in zip(mine, layers, strict=True)
                for a, b in zip(one, two, strict=True)
            ]
            gaps = [max(apart(a, b) for a, b in pairs)]
            gaps += [
                apart(bounds.margins(model, x, y, ball, "dual", layer_bounds=given), margins)
                for given in (mine, layers)
            ]
            milliseconds = f"{1e3 * median(found.seconds['ours']):.1f}"
            ratio = f"{found.ratio('ours', 'theirs'):.2f}"
            lines.append(row(name, eps, milliseconds, ratio, *(f"{gap:.0e}" for gap in gaps)))
            worst = max(worst, *gaps)
    return "\n".join(lines), [target("convex_adversarial, layers and margins: within 1e-6", worst, 1e-6)]


def target(what: str, gap: float, most: float) -> str:
    """One line of the table of targets, about the largest difference in a table."""
    return f"| {what} | everywhere | {gap:.0e} | {'met' if gap <= most else '**not met**'} |"


@functools.cache
def missing(adapter: Callable) -> str:
    """Why a library takes no part, or nothing."""
    try:
        adapter(models.mlp([2, 2, 2]), 0.1)
    except Exception as error:
        return f"it takes no part: {type(error).__name__}: {error}"
    return ""


def lirpa() -> str:
    """What the page says of auto_LiRPA."""
    if error := missing(dual_peers.auto_lirpa):
        return f"auto_LiRPA: {error}."
    text = (
        f"auto_LiRPA {metadata.version('auto_LiRPA')}, from PyPI, asks for PyTorch below 1.13. It runs "
        "here after three names that NumPy and PyTorch have removed are put back. Its time leaves out "
        "the conversion of the network."
    )
    return textwrap.fill(text, 105)


# ---- how much, how long, how large ----


def best(model: nn.Sequential, x: Tensor, y: Tensor, ball: Ball, layers: list[Bounds]) -> Tensor:
    """Margins with the best slopes on these layer bounds."""
    slopes = bounds.best_slopes(model, x, y, ball, layer_bounds=layers, steps=STEPS)
    return bounds.margins(model, x, y, ball, "crown", layer_bounds=layers, slopes=slopes)


def digits(model: nn.Sequential, x: Tensor, y: Tensor) -> str:
    """Which share every method certifies, and its time."""
    lines = []
    for eps, earlier in EARLIER.items():
        ball = region(eps)

        def on_crown(x: Tensor, y: Tensor, ball: Ball = ball, lp: bool = False) -> Tensor:
            layers = bounds.pre_activations(model, x, ball, "crown")
            if lp:
                settings = {"layer_bounds": layers, "jobs": 1, "progress": False}
                return bounds.margins(model, x, y, ball, "lp", **settings)
            return best(model, x, y, ball, layers)

        ways: dict[str, Callable] = {
            method: partial(bounds.margins, model, ball=ball, method=method)
            for method in ("interval", "dual", "crown")
        }
        ways |= {"best": on_crown, "lp": partial(on_crown, lp=True)}
        found = race(ways, list(zip(x.chunk(PARTS), y.chunk(PARTS), strict=True)))
        shares = [float((torch.cat(found.results[w]).amin(1) > 0).double().mean()) for w in ways]
        brackets = [f" ({share:.3f})" for share in earlier] + [""]
        cells = [f"{share:.3f}{more}" for share, more in zip(shares, brackets, strict=True)]
        lines.append(row(eps, "certified", *cells))
        lines.append(row("", "time", *(f"{found.ratio(w, 'crown'):.2g}" for w in ways)))
    return "\n".join(lines)


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
        before, begin = peak(), time.process_time()
        margins = bounds.margins(model, x, y, region(eps), method)
        seconds = time.process_time() - begin
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


def all_images(tests: dict[str, tuple]) -> str:
    """The table of many images."""
    lines = []
    for name, (model, x, y, eps, timed, sizes) in tests.items():

        def first(n: int, x: Tensor = x, y: Tensor = y) -> tuple[np.ndarray, np.ndarray]:
            return x[:n].numpy(), y[:n].numpy()

        for method in ("dual", "crown"):
            found = alone_in_process(model, *first(timed), eps, method)
            share, rate = f"{found.certified / timed:.3f}", f"{timed / found.seconds:,.0f}"
            lines.append(row(name, eps, method, f"{timed:,}", share, rate, ""))
        for n in sizes:
            found = alone_in_process(model, *first(n), eps, "dual", MALLOC_MMAP_THRESHOLD_="1000000")
            lines.append(row(name, eps, "dual", f"{n:,}", "", "", f"{found.megabytes:.0f}"))
    return "\n".join(lines)


# ---- orders ----

WIDTHS, SCALE, RANDOM_EPS = [4, 8, 8, 8, 8, 2], 2, 0.2
ORDERS = {  # pairs of bounds, and whether the second is never smaller
    ("interval", "dual"): False,
    ("interval", "CROWN"): False,
    ("dual", "CROWN"): False,
    ("dual on interval bounds", "dual"): False,
    ("CROWN on interval bounds", "CROWN"): False,
    ("LP on interval bounds", "CROWN"): False,
    ("CROWN", "LP on interval bounds"): False,
    ("CROWN", "best slopes"): True,
    ("best slopes", "LP on CROWN bounds"): True,
    ("dual", "LP on LP bounds"): True,
    ("CROWN", "LP on LP bounds"): True,
}


def random_network(seed: int) -> tuple[nn.Sequential, Tensor]:
    """A network with random weights, and an image."""
    generator = torch.Generator().manual_seed(seed)
    model = models.mlp(WIDTHS, generator).double()
    with torch.no_grad():
        for weights in model.parameters():
            weights *= SCALE
    return model, torch.rand(1, WIDTHS[0], dtype=torch.float64, generator=generator)


def orders() -> str:
    """How often the first bound of each pair beats the second."""
    counts = {pair: [0, 0] for pair in ORDERS}
    for seed in range(NETWORKS):
        model, x = random_network(seed)
        ball, y = region(RANDOM_EPS), torch.tensor([0])
        settings = {"ball": ball, "jobs": 1, "progress": False}
        margin = partial(bounds.margins, model, x, y, **settings)
        intervals = bounds.pre_activations(model, x, ball)
        fixed = {
            "interval": margin(),
            "dual on interval bounds": margin(method="dual", layer_bounds=intervals),
            "CROWN on interval bounds": margin(method="crown", layer_bounds=intervals),
            "LP on interval bounds": margin(method="lp", layer_bounds=intervals),
            "LP on LP bounds": margin(method="lp"),
        }
        for column, layers in enumerate((alone, bounds.pre_activations)):
            on_dual, on_crown = (layers(model, x, ball, method) for method in ("dual", "crown"))
            found = fixed | {
                "dual": margin(method="dual", layer_bounds=on_dual),
                "CROWN": margin(method="crown", layer_bounds=on_crown),
                "best slopes": best(model, x, y, ball, on_crown),
                "LP on CROWN bounds": margin(method="lp", layer_bounds=on_crown),
            }
            for a, b in ORDERS:
                counts[a, b][column] += bool(found[a][0, 1] > found[b][0, 1] + 1e-9)
    return "\n".join(
        row(f"{a} > {b}", *counts[a, b], "never, by theorem" if ORDERS[a, b] else "") for a, b in ORDERS
    )


def section(pair: data.Data) -> str:
    """Five tables and the targets."""
    model, x, y = networks.digits_mlp()
    x, y = x[:SAMPLES].double(), y[:SAMPLES]
    small, strided = certified.small(pair), networks.mnist_strided(pair)[0]
    images = pair.x_test[:SAMPLES].double(), pair.y_test[:SAMPLES]
    mlps = {
        "digits, 64-50-50-10": (model, x, y, (0.02, 0.05, 0.1)),
        "MNIST, 784-50-20-10": (small, *images, (0.01, 0.02, 0.05)),
    }
    few = {"convnet": (strided, images[0][:IMAGES], images[1][:IMAGES], (0.02,))}
    whole_mnist = {
        "784-50-20-10": (small, pair.x_test, pair.y_test, 0.02, 10000, (1000, 10000)),
        "convnet": (strided, pair.x_test, pair.y_test, 0.01, 300, (350, 700)),
    }
    with torch.no_grad():
        table_crown, targets_crown = crown(mlps)
        first = {name: mlps[name] for name in list(mlps)[:1]}
        table_convex, targets_convex = convex(first | few)
        tables = {"table_digits": digits(model, x, y), "table_orders": orders()}
    return TEXT.format(
        rounds=ROUNDS,
        few_rounds=FEW,
        parts=PARTS,
        scale=SCALE,
        samples=SAMPLES,
        images=IMAGES,
        steps=STEPS,
        networks=NETWORKS,
        widths="-".join(map(str, WIDTHS)),
        random_eps=RANDOM_EPS,
        lirpa=lirpa(),
        table_crown=table_crown,
        table_convex=table_convex,
        table_whole=all_images(whole_mnist),
        more=len(pair.x_test),
        input=pair.x_test.nbytes / 2**20,
        targets="\n".join(targets_crown + targets_convex),
        **tables,
    )
