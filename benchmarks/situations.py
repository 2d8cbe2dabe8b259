"""Situations that users of such libraries report, tried on this package: is what comes out right?"""

from __future__ import annotations

import contextlib
import math
import os
import re
import sys
import tempfile
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from textwrap import shorten
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from adv_lib import attacks, bounds, data, dent, evaluation, exact, models, stack, training, widgets
from adv_lib.threat import Ball

from . import tables

INF = math.inf
CUBE = Ball(INF, 0.1, (0, 1))

TEXT = """## Situations that users report

Public reports about software for attacks, verification, training and courses, tried on this package in
one run. A row is clean if what comes out is what the third column says, where *refused* means a
`ValueError` that says what was expected and what came. {clean} of {all} are clean; what is not is bold.

{table}
"""


class Situation(NamedTuple):
    """What is tried, what is right, and what comes out: the start of that text, or a number near it."""

    tried: str
    right: str | float
    answer: Callable[[], object]


# ---- networks and data ----


def layers(*modules: nn.Module) -> nn.Sequential:
    """A network in float64 and eval mode, with weights that the global generator has no part in."""
    model = nn.Sequential(*modules).double().eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(torch.rand(weight.shape, generator=generator, dtype=weight.dtype) - 0.4)
    return model


def tiny(s: float) -> tuple[nn.Sequential, Tensor, Tensor, Ball]:
    """Two hidden units of size s: the function does not depend on s, and the smallest margin is 0.1."""
    model = layers(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2)).requires_grad_(False)
    model[0].weight.copy_(s * torch.tensor([[1.0, 1.0], [1.0, -1.0]]))
    model[0].bias.copy_(s * torch.tensor([-0.5, 0.1]))
    model[2].weight.copy_(torch.tensor([[1.0, 1.0], [-1.0, 2.0]]) / s)
    model[2].bias.copy_(torch.tensor([0.3, 0.0]))
    return model, torch.tensor([[0.4, 0.5]]).double(), torch.tensor([0]), Ball(INF, 0.3, (0, 1))


def small(*modules: nn.Module) -> tuple[nn.Sequential, Tensor, Tensor]:
    """These layers in place of the ReLU of a small network, three inputs, and what it says of them."""
    model = layers(nn.Linear(4, 4), *(modules or [nn.ReLU()]), nn.Linear(4, 3))
    x = torch.rand(3, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return model, x, model(x).argmax(1)


def plateau() -> tuple[nn.Sequential, Tensor, Tensor, Ball]:
    """Class 1 wins where 0.77 < x < 0.81; the margin is constant up to 0.75 and from 0.83 on."""
    model = layers(nn.Linear(1, 3), nn.ReLU(), nn.Linear(3, 2)).requires_grad_(False)
    model[0].weight.fill_(1.0)
    model[0].bias.copy_(-torch.tensor([0.75, 0.79, 0.83]))
    model[2].weight.copy_(torch.tensor([[0.0, 0.0, 0.0], [50.0, -100.0, 50.0]]))
    model[2].bias.copy_(torch.tensor([1.0, 0.0]))
    return model, torch.tensor([[0.6]]).double(), torch.tensor([0]), Ball(INF, 0.3, (0, 1))


def photographed(image: Image.Image, **saved: object) -> Tensor:
    """What `data.photograph` makes of a file with this image, one channel: (224, 224)."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "picture.png")
        image.save(file, **saved)
        return data.photograph(str(file))[0, 0]


# ---- what is asked ----


def minimum(model, x, y, ball, method="mip") -> float:
    found = exact.margins(model, x, y, ball, method=method, jobs=1)
    return found.margins[0, 1].item() if found.closed.all() else math.nan


def printed(call: Callable) -> str:
    """What a call writes on stdout, also past Python."""
    with tempfile.TemporaryFile("w+") as file:
        sys.stdout.flush()
        kept = os.dup(1)
        os.dup2(file.fileno(), 1)
        try:
            call()
            sys.stdout.flush()
        finally:
            os.dup2(kept, 1)
            os.close(kept)
        file.seek(0)
        return file.read().strip() or "nothing"


def under_autocast(method: str) -> float:
    """A margin of −0.09, bounded where products are rounded to 8 bits."""
    model = layers(nn.Linear(1, 1), nn.ReLU(), nn.Linear(1, 2)).float().requires_grad_(False)
    model[0].weight.fill_(1.0)
    model[0].bias.fill_(0.0)
    model[2].weight.copy_(torch.tensor([[0.9981], [1.0]]))
    model[2].bias.copy_(torch.tensor([0.1, 0.0]))
    x, y = torch.tensor([[100.0]]), torch.tensor([0])
    with torch.autocast("cpu", torch.bfloat16):
        return bounds.margins(model, x, y, Ball(INF, 0.1), method)[0, 1].item()


def hooked() -> Tensor:
    model, x, y = small()
    model[0].register_forward_hook(lambda layer, given, z: -z)
    return bounds.margins(model, x, y, CUBE)


def forward_of_its_own() -> Tensor:
    model, x, y = small()
    model[0].forward = lambda v: -v
    return bounds.margins(model, x, y, CUBE)


def parametrised() -> str:
    model, x, y = small()
    parametrizations.weight_norm(model[0])
    gap = bounds.margins(model, x, y, Ball(INF, 0.0), "lp") - exact.margins(model, x, y, CUBE).attained
    return "bounds" if bool((gap.nan_to_num(0, 0) >= -1e-6).all()) else "wrong bounds"


def folded(*modules: nn.Module) -> str:
    model, x, y = small(*modules)
    proved = bounds.margins(model, x, y, CUBE, "crown")
    corners = x + 0.1 * torch.tensor([[-1.0], [1.0]]).double()[:, None]
    z = torch.stack([model(at.clamp(0, 1)) for at in corners])
    real = z.gather(2, y.expand(2, 3)[..., None]) - z
    return (
        "bounds"
        if bool((proved.masked_fill(proved == INF, -INF) <= real + 1e-9).all())
        else "wrong bounds"
    )


def in_place() -> str:
    model, x, y = small()
    before = x.clone()
    rates = {str(evaluation.robust_accuracy(lambda v: model(v.mul_(0.9)), x, y, CUBE)) for _ in range(3)}
    return (
        "x as it was, one answer"
        if torch.equal(x, before) and len(rates) == 1
        else f"x moved, {len(rates)} answers"
    )


def trained(**settings: object) -> str:
    digits = data.load("digits")
    model = models.mlp([64, 16, 10], norm=True)
    pair = (digits.x_train, digits.y_train)
    arguments = {"epochs": 1, "lr": 0.1} | settings
    for epoch in training.fit(model, pair, training.clean, **arguments):
        return f"a loss of {epoch.loss:.2f}"


def frozen() -> object:
    model, x, y = small()
    model.requires_grad_(False)
    return list(training.fit(model, (x, y), training.clean, epochs=1, lr=0.1))


def random_table() -> str:
    generator = torch.Generator().manual_seed(0)
    model, x, y = small()

    def drawing(v: Tensor) -> Tensor:
        return model(v) + 10 * torch.randn(len(v), 3, generator=generator, dtype=v.dtype)

    x, y = x.repeat(50, 1), y.repeat(50)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        right = evaluation.table({"m": [drawing]}, x, y, CUBE, {"none": lambda m, x, y, b: 0 * x}).right[
            "m"
        ]
    more = int((right["none"] & ~right["clean"]).sum())
    return f"{'a warning' if caught else 'no warning'}, {more} right under attack and wrong as they are"


def false_alarm() -> str:
    """A network that is sure of one row, with logits that happen to be 0.25 and 0.75."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model = nn.Sequential(nn.Linear(1, 2)).requires_grad_(False)
        model[0].weight.fill_(0.0)
        model[0].bias.copy_(torch.tensor([0.25, 0.75]))
        with contextlib.suppress(ValueError):
            attacks.pgd(model, torch.ones(1, 1), torch.tensor([1]), Ball(INF, 0.1), keep="last")
    return "a warning" if caught else "no warning"


def shown_twice() -> str:
    control = widgets.Control("x", np.linspace(0, 1, 3))

    def draw(value):
        from matplotlib.figure import Figure

        return Figure((1, 1))

    page = widgets.slider(draw, "{:g}".format, control, caption="c")._repr_html_()
    return "an id that two copies share" if "getElementById" in page else "each copy finds its own"


def masked(p: float) -> str:
    """What PGD does under a mask that leaves the first of four entries alone, and what CROWN proves."""
    model, x, y = small()
    eps = 0.2 * torch.tensor([[0.0, 1.0, 1.0, 0.5]]).double()
    ball = Ball(p, eps, (0, 1))
    delta = attacks.pgd(model, x, y, ball)
    z = model(x + delta)
    real = z.gather(1, y[:, None]) - z
    proved = bounds.margins(model, x, y, ball, "crown")
    holds = bool((proved.masked_fill(proved == INF, -INF) <= real + 1e-9).all())
    return "δ = 0 there, bounds hold" if holds and not delta[:, 0].any() and delta.any() else "wrong"


def certified() -> str:
    answer = exact.certify(*plateau(), jobs=1)
    return f"{answer.status[0]}, {answer.stage[0]}"


def on_its_side() -> str:
    """A file that is white below, which the camera says to turn by 90° to the left."""
    exif = Image.Exif()
    exif[0x0112] = 8
    image = Image.new("RGB", (256, 512))
    image.paste((255, 255, 255), (0, 256, 256, 512))
    shown = photographed(image, exif=exif)
    return f"{shown[112, 0]:.0f}, {shown[112, -1]:.0f}"


def empty_batch() -> str:
    model = stack.Stack([models.mlp([4, 4, 3], norm=True)] * 2).eval()
    return str(tuple(dent.Dent(model, steps=1, lr=0.1, scope="sample")(torch.zeros(0, 4)).shape))


def calls() -> dict[str, Callable[[], object]]:
    """Calls with what is no tensor, no model, no ball, no attack."""
    model, x, y = small()
    pgd = partial(attacks.pgd, model)
    rate = partial(evaluation.robust_accuracy, model, x, y, CUBE)
    return {
        "a model that returns a tuple": lambda: attacks.pgd(lambda v: (model(v), v), x, y, CUBE),
        "a model that returns a dict": lambda: evaluation.survivors(
            lambda v: {"logits": model(v)}, x, y, CUBE
        ),
        "x as a NumPy array": lambda: pgd(x.numpy(), y, CUBE),
        "y as a list": lambda: pgd(x, y.tolist(), CUBE),
        "`targets=3`": lambda: pgd(x, y, CUBE, targets=3),
        "a number in place of a ball": lambda: pgd(x, y, 0.1),
        "an attack that returns None": lambda: rate([lambda m, x, y, b: None]),
        "one attack in place of a list": lambda: rate(attacks.pgd),
        "`Ball(2, None)`": lambda: Ball(2, None),
        "a box per channel": lambda: Ball(2, 0.1, (torch.zeros(3, 1, 1), torch.ones(3, 1, 1))),
        "all parameters frozen in `fit`": frozen,
        "a DataLoader as data": lambda: list(
            training.fit(model, torch.utils.data.DataLoader([(x, y)]), training.clean, epochs=1, lr=0.1)
        ),
        "MaxPool before a proof": lambda: folded(nn.ReLU(), nn.MaxPool1d(1)),
        "a hook that negates a layer": hooked,
        "a `forward` that someone replaced": forward_of_its_own,
        "BatchNorm without running statistics": lambda: folded(
            nn.BatchNorm1d(4, track_running_stats=False), nn.ReLU()
        ),
    }


def situations() -> list[Situation]:
    """All of them, in the order of the table."""
    sizes = (1e-8, 1e-7, 1e8)
    grey = Image.fromarray(np.full((256, 256), 2**15, np.uint16))
    units = [
        Situation(
            f"smallest margin, hidden units of size {s:.0e}, `{method}`",
            0.1,
            partial(minimum, *tiny(s), method),
        )
        for s in sizes
        for method in exact.SOLVERS
    ]
    units += [
        Situation(
            f"linear programs, hidden units of size {s:.0e}",
            -0.1,
            lambda s=s: bounds.margins(*tiny(s), "lp", jobs=1)[0, 1].item(),
        )
        for s in sizes
    ]
    autocast = [
        Situation(
            f"bound on a margin of −0.090 under autocast to bfloat16, `{method}`",
            -0.0902,
            partial(under_autocast, method),
        )
        for method in bounds.METHODS
    ]
    affine = {
        "BatchNorm": nn.BatchNorm1d(4),
        "Dropout": nn.Dropout(),
        "Identity": nn.Identity(),
    }
    refused = [Situation(tried, "refused: ", call) for tried, call in calls().items()]
    return [
        *units,
        Situation(
            "the integer solver, on stdout", "nothing", lambda: printed(lambda: minimum(*tiny(1e8)))
        ),
        Situation("`certify` on a network with a plateau at x", "broken, attack", certified),
        *autocast,
        *(
            Situation(f"{name} before a ReLU, bounds", "bounds", partial(folded, layer, nn.ReLU()))
            for name, layer in affine.items()
        ),
        Situation("weight normalisation as a parametrization, bounds", "bounds", parametrised),
        Situation("a model that changes its input in place", "x as it was, one answer", in_place),
        Situation(
            "the grey of a picture of 16 bits that is half way to white",
            0.5,
            lambda: photographed(grey).mean().item(),
        ),
        Situation("a picture on its side, black above in the file: left and right", "0, 1", on_its_side),
        Situation("BatchNorm, 1,201 images in batches of 100", "a loss", trained),
        Situation("a model that draws at random, in a table", "a warning, 0 right", random_table),
        Situation("a sure network with small logits: “probabilities”?", "no warning", false_alarm),
        Situation("a slider shown twice", "each copy finds its own", shown_twice),
        *(
            Situation(
                f"a mask as ε, p = {'∞' if p == INF else p}",
                "δ = 0 there, bounds hold",
                partial(masked, p),
            )
            for p in (1, 2, INF)
        ),
        Situation("an empty batch for `Dent` around two networks", "(0, 3)", empty_batch),
        *refused,
    ]


def outcome(situation: Situation) -> tuple[str, bool]:
    """What came out, in short, and whether that is right."""
    try:
        value = situation.answer()
    except ValueError as error:
        text = f"refused: {error}"
    except Exception as error:  # in Python's own words, which is what a row looks for
        text = f"{type(error).__name__}: {error}"
    else:
        if isinstance(value, float) and isinstance(situation.right, float):
            return f"{value:.4f}", abs(value - situation.right) < 2e-3
        text = str(value)
    right = isinstance(situation.right, str) and text.startswith(situation.right)
    if right and text.startswith("refused"):
        right = "expected" in text or "must be" in text
    return shorten(re.sub(r" at 0x\w+", "", text), 80, placeholder=" …"), right


def section(_pair=None) -> str:
    """The table."""
    rows, clean = [], 0
    for situation in situations():
        text, right = outcome(situation)
        clean += right
        wanted = situation.right if isinstance(situation.right, str) else f"{situation.right:g}"
        rows.append((situation.tried, text if right else f"**{text}**", wanted.rstrip(": ")))
    head = ("situation", "what comes out", "what is right")
    return TEXT.format(clean=clean, all=len(rows), table=tables.table(head, rows))
