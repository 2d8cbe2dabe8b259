"""Figures as the rendered book shows them: small SVG, keys beside the data, and a drawing for phones."""

from __future__ import annotations

import base64
import html
import io
import itertools
import os
import re
import textwrap

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.legend import Legend
from matplotlib.text import Text
from matplotlib.transforms import ScaledTranslation

PHONE = 3.6  # inches: the text column of a phone, in CSS pixels of 1/96 inch
HEAVY = 60_000  # characters of SVG above which curves are drawn in pixels instead
LONG = re.compile(r"(\d\.\d\d)\d+")  # a hundredth of a point is enough
LETTERS = 10  # points: no smaller letters, since a page may shrink the drawing a little
ROOM = 9.4  # inches: wider drawings are shrunk so much that they need larger letters
GAP = 4  # points between what a key stands beside and the key


def for_pages() -> bool:
    """Whether the drawings are for the rendered book, which shows them on phones, too."""
    return bool(os.environ.get("ADV_LIB_PAGES"))


def pictures(figure: Figure, narrow: bool) -> tuple[str, ...]:
    """The figure as SVG, and another for phones if `narrow`; it is closed, and no longer what it was."""
    drawn = (svg(arrange(figure)),)
    if narrow:
        drawn += (svg(arrange(getattr(figure, "on_a_phone", None) or stack(figure))),)
    plt.close(figure)
    return drawn


def size(drawing: str) -> str:
    """The SVG's width and height as attributes of an <img>, in CSS pixels."""
    width, height = re.match(r'<svg[^>]* width="([\d.]+)pt" height="([\d.]+)pt"', drawing).groups()
    return f'width="{float(width) * 4 / 3:.0f}" height="{float(height) * 4 / 3:.0f}"'


def with_narrow(figure: Figure) -> str:
    """The figure as one SVG, its drawing for phones kept in the element <metadata>."""
    wide, narrow = pictures(figure, narrow=True)
    return wide.replace("</svg>", f"<metadata>{html.escape(narrow)}</metadata></svg>")


def apart(drawing: str) -> tuple[str, str]:
    """What `with_narrow` put together."""
    wide, narrow = drawing.split("<metadata>")
    return wide + "</svg>", html.unescape(narrow.removesuffix("</metadata></svg>"))


def data_uri(drawing: str) -> str:
    """The SVG as the source of an <img>."""
    return "data:image/svg+xml;base64," + base64.b64encode(drawing.encode()).decode()


# ---- keys ----


def arrange(figure: Figure) -> Figure:
    """Lay out, with every key beside its axes, where it covers no data and stays when they change."""
    if figure.get_layout_engine() is None:
        figure.set_layout_engine("constrained")
    least = LETTERS * max(1.0, figure.get_figwidth() / ROOM)
    for text in figure.findobj(Text):
        text.set_fontsize(max(text.get_fontsize(), least))
    keys, across = {ax: ax.get_legend() for ax in figure.axes if ax.get_legend()}, list(figure.legends)
    for key in (*keys.values(), *across):
        key.remove()
    _lay_out(figure)
    if _turn_crowded(figure):
        _lay_out(figure)
    for ax, key in keys.items():
        _key_below(ax, key)
    for key in across:
        _fit(figure, key, figure.bbox.width, {"loc": "outside upper center", "fontsize": _size(key)})
    if keys or across:
        _lay_out(figure)
    return figure


def _lay_out(figure: Figure) -> None:
    """Place the axes, if there are any, without drawing what is in them."""
    if figure.axes:
        figure.get_layout_engine().execute(figure)


def _key_below(ax: Axes, old: Legend) -> None:
    """The key under the axis' label, in as many columns as the axes are wide."""
    box, point = ax.get_window_extent(), ax.get_figure(root=True).dpi / 72
    scale = (
        ax.xaxis.get_tightbbox() if ax.xaxis.get_visible() and ax.axison else None
    )  # or names nothing
    under = box.y0 - scale.y0 if scale else 0
    down = ScaledTranslation(0, -(under / point + GAP) / 72, ax.figure.dpi_scale_trans)
    look = {"loc": "upper left", "bbox_to_anchor": (0, 0), "bbox_transform": ax.transAxes + down}
    _fit(ax, old, box.width, look | {"fontsize": _size(old), "title_fontsize": _size(old)})


def _size(key: Legend) -> float:
    return key.get_texts()[0].get_fontsize()


def _fit(place: Axes | Figure, old: Legend, width: float, look: dict) -> None:
    """The same key with as many columns as `width` has room for."""
    names, title = [text.get_text() for text in old.get_texts()], old.get_title().get_text() or None
    look |= {"alignment": "left", "handlelength": 1.6, "handletextpad": 0.6, "columnspacing": 1.2}
    for columns in range(len(names), 0, -1):
        key = place.legend(
            old.legend_handles, names, title=title, ncols=columns, borderaxespad=0, borderpad=0.2, **look
        )
        if key.get_window_extent().width <= width or columns == 1:
            break
        key.remove()


def _turn_crowded(figure: Figure) -> bool:
    """Turn the names on scales whose names run into each other; whether there were any."""
    turned = False
    for ax in figure.axes:
        labels = [t for t in ax.get_xticklabels() if t.get_text() and t.get_visible()]
        boxes = [t.get_window_extent() for t in labels if ax.axison]
        if any(a.x1 > b.x0 and a.x0 < b.x1 for a, b in itertools.pairwise(boxes)):
            for label in labels:
                label.set(rotation=40, ha="right", rotation_mode="anchor")
            turned = True
    return turned


# ---- phones ----


def stack(figure: Figure) -> Figure:
    """Lay the figure out anew, as wide as a phone's text: panels below each other, images in rows."""
    axes = [ax for ax in figure.axes if ax.get_subplotspec()]
    rows, height = _rows(figure, axes), 0.0
    columns = max(map(len, rows))
    heights = [max(_height(figure, ax, columns) for ax in row) for row in rows]
    width, _ = figure.get_size_inches()
    grid = figure.add_gridspec(len(rows), columns, height_ratios=heights)
    for i, row in enumerate(rows):
        for j, ax in enumerate(row):
            ax.set_subplotspec(grid[i, j] if _is_picture(ax) else grid[i, :])
            _speak_for_itself(ax)
    height = sum(heights) + 0.1 * len(rows) + (0.3 if figure._suptitle else 0)
    figure.set_size_inches(min(width, PHONE), height)
    for ax in figure.axes:
        _wrap(ax, PHONE * 72 / max(1, next((len(row) for row in rows if ax in row), 1)))
    return figure


def _rows(figure: Figure, axes: list[Axes]) -> list[list[Axes]]:
    """The axes row by row, with as many images side by side as their titles leave room for."""
    rows: list[list[Axes]] = []
    pictures = [ax for ax in axes if _is_picture(ax)]
    widest = max([_title_width(figure, ax) for ax in pictures], default=0)
    most = max(1, min(5, int(PHONE // max(widest + 0.12, 0.55))))
    start = {}
    for ax in axes:
        here = ax.get_subplotspec().rowspan.start
        together = _is_picture(ax) and rows and _is_picture(rows[-1][0]) and start[id(rows[-1])] == here
        if together:
            rows[-1].append(ax)
        else:
            rows.append([ax])
            start[id(rows[-1])] = here
    return [part for row in rows for part in _parts(row, most)]


def _parts(row: list[Axes], most: int) -> list[list[Axes]]:
    """The row cut into equal parts of at most `most`."""
    parts = -(-len(row) // most)
    size = -(-len(row) // parts)
    return [row[i : i + size] for i in range(0, len(row), size)]


def _is_picture(ax: Axes) -> bool:
    """Whether the axes show an image without scales, or hold the place of one."""
    empty = not ax.axison and not (ax.lines or ax.patches or ax.texts or ax.collections)
    return (bool(ax.images) and not len(ax.get_xticks())) or empty


def _title_width(figure: Figure, ax: Axes) -> float:
    """In inches."""
    return ax.title.get_window_extent().width / figure.dpi if ax.get_title() else 0


def _height(figure: Figure, ax: Axes, together: int) -> float:
    """Inches that the axes need in a row of a phone, with titles, scales and key."""
    lines = ax.get_title().count("\n") + 1 if ax.get_title() else 0
    if _is_picture(ax):
        return min(PHONE / together, 1.9) * 0.92 + 0.2 * lines
    entries = len(ax.get_legend().get_texts()) if ax.get_legend() else 0
    if ax.get_aspect() != "auto":
        return 0.85 * PHONE + 0.2 * lines + 0.2 * entries
    return max(2.1, 0.95 * ax.get_tightbbox().height / figure.dpi) + 0.2 * lines + 0.17 * entries


def _speak_for_itself(ax: Axes) -> None:
    """Scales and labels that a neighbour showed for these axes, too."""
    if _is_picture(ax) or not ax.axison:
        return
    for name, side, shared in (
        ("xaxis", "labelbottom", ax.get_shared_x_axes()),
        ("yaxis", "labelleft", ax.get_shared_y_axes()),
    ):
        others = [other for other in shared.get_siblings(ax) if other is not ax]
        axis = getattr(ax, name)
        if others:
            axis.set_tick_params(**{side: True})
        if not axis.get_label_text():
            theirs = (getattr(other, name).get_label_text() for other in others)
            axis.set_label_text(next(filter(None, theirs), ""))


def _wrap(ax: Axes, room: float) -> None:
    """Break titles and labels that are wider than `room`, in points."""
    for text, most in ((ax.title, room), (ax.xaxis.label, room - 36), (ax.yaxis.label, 150)):
        _break(text, most)


def _break(text: Text, room: float) -> None:
    letters = max(8, int(room / (0.5 * text.get_fontsize())))
    lines = text.get_text().split("\n")
    text.set_text("\n".join("\n".join(textwrap.wrap(line, letters)) for line in lines))


# ---- SVG ----


def svg(figure: Figure) -> str:
    """The figure as SVG without what a page does not need; curves of many points in pixels."""
    drawn = _written(figure)
    if len(drawn) <= HEAVY:
        return drawn
    for ax in figure.axes:
        ax.patch.set_visible(False)  # or the pixels would be white where nothing is drawn
        ax.set_axisbelow(False)  # scales stand over what becomes pixels, and stay curves
        ax.set_rasterization_zorder(2.2)
    return min(drawn, _written(figure, dpi=200), key=len)


def _written(figure: Figure, dpi: float = 100) -> str:
    """What Matplotlib writes, with the layout as it is, made small."""
    engine, file = figure.get_layout_engine(), io.StringIO()
    figure.set_layout_engine("none")
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    with plt.rc_context({"svg.hashsalt": "adv_lib"}):
        figure.savefig(file, format="svg", dpi=dpi, metadata=nothing)
    figure.set_layout_engine(engine)
    return _small(file.getvalue())


def _small(text: str) -> str:
    """The same drawing in fewer characters."""
    text = text[text.index("<svg") :]
    text = re.sub(r"<!--.*?-->|<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r"\s*\n\s*", " ", text).strip()
    text = re.sub(r' d="[^"]*"|translate\([^)]*\)', lambda part: LONG.sub(r"\1", part[0]), text)
    used = set(re.findall(r"(?<=#)[\w.-]+", text))
    text = re.sub(r' id="([\w.-]*)"', lambda part: part[0] * (part[1] in used), text)
    text = re.sub(r"> <", "><", text).replace(' "', '"').replace("base64, ", "base64,")
    text = re.sub(r"<g>\s*</g>|<g/>", "", text)
    return re.sub(r"data:image/png;base64,([\w+/=]+)", lambda png: _repacked(png[1]), text)


def _repacked(png: str) -> str:
    """The picture as WebP: exact, but for photographs."""
    from PIL import Image

    picture, packed = Image.open(io.BytesIO(base64.b64decode(png))), io.BytesIO()
    photograph = picture.getcolors(5000) is None
    picture.save(packed, format="webp", lossless=not photograph, quality=85)
    return "data:image/webp;base64," + base64.b64encode(packed.getvalue()).decode()
