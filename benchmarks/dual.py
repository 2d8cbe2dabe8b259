"""The bounds of the dual network: the same numbers by others, and how much they certify."""

from __future__ import annotations

import copy
import functools
import textwrap
from collections.abc import Callable
from functools import partial
from importlib import metadata
from typing import NamedTuple

import torch
from torch import Tensor, nn

from adv_lib import bounds, data, models
from adv_lib.threat import Ball

from . import dual_memory, dual_orders, dual_peers, networks, tables
from .dual_peers import STEPS, alone, best, region
from .timing import race

# Target 5: the largest difference of a margin of CROWN, and the time as a ratio to auto_LiRPA's.
SAME, TIME = 1e-5, 1.0
CONVEX = 1e-6  # target: the largest difference from convex_adversarial, layer bounds and margins

ROUNDS, FEW = 15, 3
SAMPLES, PARTS = 200, 4  # of digits
OTHERS = ("by hand", "auto_LiRPA")
CONVNET = 0.1  # ε of the table of convnets
IMAGES = 10  # of the convnet, next to convex_adversarial
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

{table_crown}

**Wong & Kolter's own code**, convex_adversarial with `bounded_input=True`. It does not
intersect with intervals. So what is compared are the layer bounds and margins of our `dual` module
without intersection, then our margins on its layer bounds. The times are of `bounds.margins(…, "dual")`,
which does intersect. The convnet is that of the table of MNIST below, with {images} images and
{few_rounds} turns.

{table_convex}

**Convnets** at ε = {eps}: milliseconds of `bounds.margins` by *dual* and by *crown*, and the time of
*dual* as a ratio to those of convex_adversarial, and of auto_LiRPA's CROWN. *W & K* is the small convnet
of Wong & Kolter 2018, with {images} images; *book* is `models.convnet`, with one, which
convex_adversarial cannot send back through its kernels of 3 with stride 2. Both were trained here for
some hundred batches against attacks.

{table_convnets}

**How much they certify, and how long they take**, the first {samples} test images of digits on the
book's robust network 64-50-50-10. In brackets: another network of this size, in an earlier run. *Best
slopes* is `bounds.best_slopes` with {steps} steps; it and the linear program build on CROWN's layer
bounds. A time counts the layer bounds too, and is a ratio to CROWN's, the median over {parts} parts.

{table_digits}

{memory}

{orders}

{targets}
"""


class Case(NamedTuple):
    """A network and its samples, and every ε."""

    model: nn.Sequential
    x: Tensor
    y: Tensor
    radii: tuple[float, ...]


def apart(a: Tensor, b: Tensor) -> float:
    """The largest difference, +∞ in a left out: the margin of y to itself."""
    return float((a - b)[a.isfinite()].abs().max())


def crown(cases: dict[str, Case]) -> tuple[str, list[tables.Target]]:
    """The table of CROWN, and target 5."""
    rows, targets, worst = [], [], {}
    for name, (model, x, y, radii) in cases.items():
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
            rows.append(tables.printed(name, eps, f"{found.milliseconds('ours'):.1f}", *shown))
            if "auto_LiRPA" in ways:
                what, where = f"5: time ≤ {TIME:.1f} × auto_LiRPA's", f"{name}, ε = {eps}"
                targets.append(tables.at_most(what, where, ratios["auto_LiRPA"], TIME))
    del worst["ours"]
    near = [target(f"5: CROWN, {way}", gap, SAME) for way, gap in worst.items()]
    head = ("network", "ε", "milliseconds", "/ by hand", "/ auto_LiRPA")
    head += ("apart from by hand", "from auto_LiRPA")
    return tables.table(head, rows), near + targets


def convex(cases: dict[str, Case]) -> tuple[str, list[tables.Target]]:
    """The table of convex_adversarial, and the target that it gets the same numbers."""
    head = ("network", "ε", "milliseconds", "ours / theirs")
    head += ("layer bounds apart", "margins apart", "on its bounds")
    if error := missing(dual_peers.convex_adversarial):
        return tables.table(head, [tables.printed("–", "–", error, "–", "–", "–", "–")]), []
    rows, worst = [], 0.0
    for name, (model, x, y, radii) in cases.items():
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
            times = f"{found.milliseconds('ours'):.1f}", f"{found.ratio('ours', 'theirs'):.2f}"
            rows.append(tables.printed(name, eps, *times, *(f"{gap:.0e}" for gap in gaps)))
            worst = max(worst, *gaps)
    return tables.table(head, rows), [target("convex_adversarial, layers and margins", worst, CONVEX)]


def convnets(cases: dict[str, Case]) -> tuple[str, list[tables.Target]]:
    """The table of convnets, and the target: no slower than the faster of the two others."""
    rows, targets = [], []
    for name, (model, x, y, (eps,)) in cases.items():
        for dtype in (torch.float32, torch.float64):
            ours = partial(bounds.margins, copy.deepcopy(model).to(dtype), ball=region(eps))
            ways: dict[str, Callable] = {way: partial(ours, method=way) for way in ("dual", "crown")}
            if name != "book" and not missing(dual_peers.convex_adversarial):
                ways["convex_adversarial"] = dual_peers.convex_adversarial(model, eps, dtype)
            if not missing(dual_peers.auto_lirpa):
                ways["auto_LiRPA"] = dual_peers.auto_lirpa(model, eps, dtype, x.shape[1:])
            found = race(ways, [(x.to(dtype), y)] * FEW)
            peers = ["convex_adversarial", "auto_LiRPA"]
            times = [f"{found.milliseconds(way):.0f}" for way in ("dual", "crown")]
            ratios = {way: found.ratio("dual", way) for way in peers if way in ways}
            shown = [f"{ratios[way]:.2f}" if way in ratios else "–" for way in peers]
            bits = str(dtype).removeprefix("torch.")
            rows.append(tables.printed(name, bits, *times, *shown))
            if ratios:
                worst, where = max(ratios.values()), f"{name}, {bits}"
                targets.append(tables.at_most("convnet: time ≤ 1 × the faster other's", where, worst, 1))
    head = ("network", "in", "dual, ms", "crown, ms", "dual / convex_adversarial", "dual / auto_LiRPA")
    return tables.table(head, rows), targets


def target(what: str, gap: float, most: float) -> tables.Target:
    """A target for the largest difference in a table."""
    return tables.Target(f"{what}: within {tables.short(most)}", "everywhere", f"{gap:.0e}", gap <= most)


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


def digits(model: nn.Sequential, x: Tensor, y: Tensor) -> str:
    """Which share every method certifies, and its time."""
    rows = []
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
        rows.append(tables.printed(eps, "certified", *cells))
        rows.append(tables.printed("", "time", *(f"{found.ratio(w, 'crown'):.2g}" for w in ways)))
    head = ("ε", "", "interval", "dual", "CROWN", "best slopes", "LP on CROWN bounds")
    return tables.table(head, rows)


def section(pair: data.Data) -> str:
    """The tables and the targets."""
    model, x, y = networks.digits_mlp()
    x, y = x[:SAMPLES].double(), y[:SAMPLES]
    images, labels = pair.x_test[:SAMPLES].double(), pair.y_test[:SAMPLES]
    on_digits = {"digits, 64-50-50-10": Case(model, x, y, (0.02, 0.05, 0.1))}
    small = Case(networks.mnist_small(pair), images, labels, (0.01, 0.02, 0.05))
    convnet = Case(networks.mnist_strided(pair)[0], images[:IMAGES], labels[:IMAGES], (0.02,))
    some = images[:IMAGES], labels[:IMAGES]
    both = {
        "W & K": Case(networks.mnist_strided(pair)[0], *some, (CONVNET,)),
        "book": Case(networks.mnist_conv(pair)[0], images[:1], labels[:1], (CONVNET,)),
    }
    with torch.no_grad():
        table_crown, targets_crown = crown(on_digits | {"MNIST, 784-50-20-10": small})
        table_convex, targets_convex = convex(on_digits | {"convnet": convnet})
        table_convnets, targets_convnets = convnets(both)
        table_digits, orders = digits(model, x, y), dual_orders.section()
    return TEXT.format(
        rounds=ROUNDS,
        few_rounds=FEW,
        parts=PARTS,
        samples=SAMPLES,
        images=IMAGES,
        steps=STEPS,
        lirpa=lirpa(),
        table_crown=table_crown,
        table_convex=table_convex,
        table_convnets=table_convnets,
        eps=CONVNET,
        table_digits=table_digits,
        memory=dual_memory.section(pair),
        orders=orders,
        targets=tables.targets(targets_crown + targets_convex + targets_convnets),
    )
