"""One look for every figure: the same colour means the same thing in the whole book."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import fontManager
from torch import Tensor

from ._drawing import for_pages, with_narrow

FONT = Path(__file__).with_name("fonts") / "SourceSansPro-Regular.ttf"

# Okabe & Ito's palette, told apart by every common kind of colour vision.
CLEAN = "#0072B2"  # inputs and errors without an adversary; class −1
ATTACKED = "#D55E00"  # what an adversary reaches
CERTIFIED = "#009E73"  # what is proved
FAILED = "#CC79A7"  # what does not work
OTHER = "#E69F00"  # class +1; a second thing of the same kind
INK = "#333333"

NUMBER = re.compile(
    r"([-+]?\d[\d.]*(e[-+]\d+)?( ± [\d.]+)?( ?(%|m?s|×))?)?"
)  # with its unit; or nothing
MARKUP = re.compile(r"[\\`*_|<$\[\]~]")  # what Markdown would take for more than a character

STYLE = {
    "figure.dpi": 110,
    "font.family": ["Source Sans Pro", "DejaVu Sans"],  # the second for what the first lacks
    "font.size": 11,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    "figure.constrained_layout.use": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.titlesize": "medium",
    "axes.titlecolor": INK,
    "axes.prop_cycle": plt.cycler(color=[CLEAN, ATTACKED, CERTIFIED, FAILED, OTHER]),
    "xtick.color": INK,
    "ytick.color": INK,
    "text.color": INK,
    "legend.frameon": False,
    "lines.linewidth": 2,
}


def use_style() -> None:
    """Give every figure drawn from now on the book's look.

    While the book is built (ADV_LIB_PAGES in the environment) figures also become SVG that carries its
    drawing for phones, which book/_ext/figures.py takes out again.
    """
    fontManager.addfont(FONT)
    plt.rcParams.update(STYLE)
    if for_pages():
        _show_as_svg()


def _show_as_svg() -> None:
    """Tell the notebook's kernel to show figures as one SVG that has the phone's in its metadata."""
    from IPython import get_ipython
    from matplotlib_inline.backend_inline import select_figure_formats

    if (shell := get_ipython()) is None:
        return
    plt.get_backend()  # chooses the notebook's own, which sets formats of its own
    select_figure_formats(shell, [])
    shell.display_formatter.formatters["image/svg+xml"].for_type(Figure, with_narrow)


def on_a_phone(figure: Figure, narrow: Figure) -> Figure:
    """Have `narrow` shown where a page is too narrow for `figure`, which cannot be stacked."""
    figure.on_a_phone = narrow
    plt.close(narrow)
    return figure


def images(
    x: Tensor,
    titles: Sequence[str],
    *,
    limits: tuple[float, float] = (0.0, 1.0),
    signed: bool = False,
    axes: Sequence[Axes] | None = None,
) -> Figure:
    """Draw a row of images with a title each.

    x: (n, C, H, W).  Gray images are dark where they are large, between the limits; if signed, red is
    positive, blue negative and white 0, on one scale for the row.  axes: n axes to draw into; None
    makes a figure.
    """
    if x.ndim != 4 or len(titles) != len(x):
        raise ValueError(
            "expected images (n, C, H, W), each with a title, "
            f"got {tuple(x.shape)} and {len(titles)} titles"
        )
    if axes is None:
        _, axes = plt.subplots(1, len(x), figsize=(1.35 * len(x), 1.65), squeeze=False)
        axes = axes[0]
    low, high = limits
    if signed:
        high = x.abs().max().item() or 1.0
        low = -high
    colours = "RdBu_r" if signed else "gray_r"
    for ax, image, title in zip(axes, x.detach().cpu(), titles, strict=True):
        ax.imshow(image.permute(1, 2, 0).squeeze(-1).numpy(), cmap=colours, vmin=low, vmax=high)
        ax.set_title(title, fontsize="small")
        ax.set_xticks([])
        ax.set_yticks([])
        ax.spines[:].set_visible(True)
        ax.spines[:].set_color("#BBBBBB")
    return axes[0].figure


def circle(p: float, points: int = 361) -> Tensor:
    """Points on the unit circle {δ ∈ ℝ² : ‖δ‖_p = 1} for any p ≥ 1, in order: (points, 2)."""
    if not p >= 1:
        raise ValueError(f"a norm has p ≥ 1, got {p!r}")
    angle = torch.linspace(0, 2 * math.pi, points, dtype=torch.float64)
    direction = torch.stack([angle.cos(), angle.sin()], 1)
    return direction / torch.linalg.vector_norm(direction, ord=p, dim=1, keepdim=True)


def line(ax: Axes, w: Tensor, b: Tensor | float, **look) -> None:
    """Draw {x ∈ ℝ² : wᵀx + b = 0}.  w: (2,), not 0."""
    if w.shape != (2,) or not w.any():
        raise ValueError(f"expected w (2,), not 0, got {tuple(w.shape)} {w.tolist()}")
    w = w.detach().double()
    foot = -float(b) * w / w.dot(w)
    along = torch.stack([-w[1], w[0]])
    ax.axline(foot.tolist(), (foot + along / along.norm()).tolist(), **look)


class Table:
    """Rows that a notebook shows as a table, and a terminal as columns of text.

    head: the names of the columns.  rows: as many cells each, of any kind that `str` knows; a column of
    numbers alone stands to the right.
    Raises ValueError for a row that is longer or shorter than the head.
    """

    def __init__(self, head: Sequence[str], rows: Iterable[Sequence[object]]):
        self.head = tuple(map(str, head))
        self.rows = [tuple(map(str, row)) for row in rows]
        for row in self.rows:
            if len(row) != len(self.head):
                raise ValueError(f"expected a cell for each of {self.head}, got {row}")

    def _numbers(self) -> list[bool]:
        """For each column, whether its cells are numbers."""
        columns = zip(*self.rows, strict=True) if self.rows else ["x"] * len(self.head)
        return [all(map(NUMBER.fullmatch, column)) for column in columns]

    def __repr__(self) -> str:
        widths = [max(map(len, column)) for column in zip(self.head, *self.rows, strict=True)]
        looks = list(zip(widths, self._numbers(), strict=True))
        return "\n".join(
            "  ".join(
                cell.rjust(width) if numbers else cell.ljust(width)
                for cell, (width, numbers) in zip(row, looks, strict=True)
            ).rstrip()
            for row in [self.head, *self.rows]
        )

    def _repr_markdown_(self) -> str:
        rule = ["---:" if numbers else "---" for numbers in self._numbers()]
        plain = [[MARKUP.sub(r"\\\g<0>", cell) for cell in row] for row in [self.head, *self.rows]]
        return "\n".join(f"| {' | '.join(row)} |" for row in [plain[0], rule, *plain[1:]])
