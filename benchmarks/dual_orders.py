"""How often one bound is larger than another where no theorem orders them, and where one does."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from adv_lib import bounds, models

from . import tables
from .dual_peers import alone, best, region

NETWORKS = 200
WIDTHS, SCALE, EPS = [4, 8, 8, 8, 8, 2], 2, 0.2
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

TEXT = """\
**Orders that are no theorems.** The slopes are a choice, and tighter layer bounds change them too. So
no theorem says that CROWN is at least as good as the other dual bound, or either at least as good as
intervals. On {networks} random networks ({widths}, weights {scale} times those at the start of
training, ε = {eps}, one input and one margin each): how often is the first bound larger than the
second? First with layers by the dual network alone, then with each intersected with its intervals, as
`bounds` does it. Every method builds on its own layer bounds unless said otherwise. These narrow, deep
networks were picked after trying others, because orders fail on them.

{table}"""


def random_network(seed: int) -> tuple[nn.Sequential, Tensor]:
    """A network with random weights, and an image."""
    generator = torch.Generator().manual_seed(seed)
    model = models.mlp(WIDTHS, generator).double()
    with torch.no_grad():
        for weights in model.parameters():
            weights *= SCALE
    return model, torch.rand(1, WIDTHS[0], dtype=torch.float64, generator=generator)


def section() -> str:
    """How often the first bound of each pair beats the second."""
    counts = {pair: [0, 0] for pair in ORDERS}
    for seed in range(NETWORKS):
        model, x = random_network(seed)
        ball, y = region(EPS), torch.tensor([0])
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
    rows = [
        tables.printed(f"{a} > {b}", *counts[a, b], "never, by theorem" if never else "")
        for (a, b), never in ORDERS.items()
    ]
    return TEXT.format(
        networks=NETWORKS,
        widths="-".join(map(str, WIDTHS)),
        scale=SCALE,
        eps=EPS,
        table=tables.table(("first larger than second", "layers alone", "intersected", ""), rows),
    )
