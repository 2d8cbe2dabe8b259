"""Multiply the logits: no prediction changes, but how many samples do attacks still break?"""

from __future__ import annotations

import math

from torch import Tensor, nn

from adv_lib import data, losses

from . import contest, networks, peers, tables
from .peers import Attack

CHANGE = 0.02  # target 3: the most by which robust accuracy may change with s
SCALES = (1, 16, 64)


class Scaled(nn.Module):
    """A model with all logits s times as large."""

    def __init__(self, model: nn.Module, s: float):
        super().__init__()
        self.model, self.s = model, s

    def forward(self, x: Tensor) -> Tensor:
        return self.s * self.model(x)


def with_cross_entropy(model: nn.Module, *settings) -> Attack:
    """The package's PGD with the loss that the libraries climb."""
    return peers.ours("best")(model, *settings, loss=losses.cross_entropy)


CONTESTANTS = {
    "adv_lib": peers.ours("best"),
    "adv_lib with the cross-entropy": with_cross_entropy,
    "by hand": peers.by_hand,
    **peers.OTHERS,
    "Auto-PGD of adv-lib": peers.library_apgd,
}

TEXT = """## Logits multiplied by s

Robust accuracy when the logits of a network are multiplied by s, which changes no prediction: {steps}
steps of ε/10 on the MLP of the first table ({n:,} images). The cross-entropy of a confident network is 0
in float32, and so is its gradient; the log-odds, which `adv_lib` climbs, cannot saturate.

{table}

{targets}
"""


def section(pair: data.Data) -> str:
    """Every library's PGD at every scale, for both norms."""
    model, x, y = networks.mnist_mlp(pair)
    radii = {math.inf: 0.1, 2: 1.5}
    found: dict[tuple[str, float, int], float | str] = {}
    for name, adapter in CONTESTANTS.items():
        for p, eps in radii.items():
            for s in SCALES:
                scaled = Scaled(model, s).eval()
                try:
                    attack = adapter(scaled, p, eps, eps / 10, contest.STEPS)
                    found[name, p, s] = contest.accuracy(scaled, attack, x, y, 200)
                except Exception as error:
                    found[name, p, s] = peers.clause(error)
        print(
            f"  {name}: " + ", ".join(str(found[name, p, s]) for p in radii for s in SCALES), flush=True
        )
    columns = [(p, s) for p in radii for s in SCALES]
    head = ["", *(f"{contest.norm(p)}, s = {s}" for p, s in columns)]
    shown = {key: cell if isinstance(cell, str) else f"{cell:.3f}" for key, cell in found.items()}
    rows = ((name, *(shown[name, p, s] for p, s in columns)) for name in CONTESTANTS)
    change = {
        p: max(abs(found["adv_lib", p, s] - found["adv_lib", p, 1]) for s in SCALES) for p in radii
    }
    what = f"accuracy changes ≤ {tables.short(CHANGE)}"
    targets = (tables.at_most(what, contest.norm(p), v, CHANGE, 3) for p, v in change.items())
    return TEXT.format(
        steps=contest.STEPS,
        n=len(x),
        table=tables.table(head, rows),
        targets=tables.targets(targets, "target 3"),
    )
