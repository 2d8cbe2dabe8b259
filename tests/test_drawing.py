"""Figures as the book's pages show them: small, with keys that keep away, and a drawing for phones."""

import base64
import io
import re
from itertools import pairwise

import matplotlib.pyplot as plt
import pytest
import torch
from PIL import Image

from adv_lib import _drawing, plots


@pytest.fixture(autouse=True)
def _the_books_look():
    with plt.rc_context():
        plots.use_style()
        yield
    plt.close("all")


def panels(n, **options):
    """A figure of n charts side by side."""
    return plt.subplots(1, n, figsize=(8.6, 2.6), squeeze=False, **options)


def size(drawing):
    return tuple(map(int, re.findall(r'"(\d+)"', _drawing.size(drawing))))


def letters(figure):
    """Heights in points of all visible text."""
    found = [t for t in figure.findobj(plt.Text) if t.get_text().strip() and t.get_visible()]
    return [text.get_fontsize() for text in found]


def test_the_drawing_for_phones_is_as_wide_as_a_phone_and_its_text_is_not_smaller():
    figure, axes = panels(3)
    for ax in axes.flat:
        ax.plot([0, 1], label="a curve")
        ax.set(title="a title", xlabel="x", ylabel="y")
        ax.legend(fontsize="small")
    drawn, narrow = _drawing.pictures(figure, narrow=True)
    assert size(narrow)[0] <= 350 < size(drawn)[0]
    assert size(narrow)[1] > size(drawn)[1]
    assert min(letters(figure)) * 96 / 72 >= 11


def test_panels_stand_below_each_other_on_a_phone_and_images_in_rows():
    figure, axes = plt.subplots(2, 4, figsize=(8.6, 4))
    plots.images(torch.rand(4, 1, 8, 8), ["a", "b", "c", "d"], axes=axes[0])
    for ax in axes[1]:
        ax.plot([0, 1])
    _drawing.arrange(_drawing.stack(figure))
    boxes = [ax.get_position() for ax in axes.flat]
    assert len({round(box.y0, 2) for box in boxes[:4]}) == 1
    assert all(above.y0 >= below.y1 for above, below in pairwise(boxes[3:]))


def test_a_panel_whose_scale_its_neighbour_showed_has_its_own_on_a_phone():
    figure, axes = panels(2, sharey=True)
    axes[0, 0].set(ylabel="loss")
    for ax in axes.flat:
        ax.plot([0, 1])
    _drawing.arrange(_drawing.stack(figure))
    right = axes[0, 1]
    assert right.get_ylabel() == "loss"
    assert any(label.get_visible() and label.get_text() for label in right.get_yticklabels())


def test_nothing_hangs_over_the_edge_of_a_drawing():
    figure, axes = panels(2)
    for ax in axes.flat:
        for k in range(6):
            ax.plot([0, k], label=f"a rather long name, number {k}")
        ax.set(title="a title that is much longer than a phone is wide", xlabel="x" * 12)
        ax.legend()
    for drawing in (figure, _drawing.stack(figure)):
        _drawing.arrange(drawing)
        page = drawing.bbox
        for ax in axes.flat:
            for part in (ax.title, ax.get_legend(), ax.xaxis.label):
                box = part.get_window_extent()
                assert box.x0 >= page.x0 - 1
                assert box.x1 <= page.x1 + 1


@pytest.mark.parametrize("heights", [(1, 1), (1, 9), (9, 1)])
def test_a_key_covers_no_data_and_stands_still_when_they_change(heights):
    where = []
    for values in ((0, 1), heights):
        figure, axes = panels(1)
        ax = axes[0, 0]
        ax.plot(values, label="a")
        ax.plot(values[::-1], label="b")
        ax.set(xlabel="x", ylim=(0, 10))
        ax.legend(loc="best")
        _drawing.arrange(figure)
        key = ax.get_legend().get_window_extent()
        assert key.y1 <= ax.get_window_extent().y0
        where.append(key.extents.round().tolist())
    assert where[0] == where[1]


def test_names_on_a_scale_do_not_run_into_each_other():
    figure, axes = panels(1)
    ax = axes[0, 0]
    ax.bar(range(7), range(7))
    ax.set_xticks(range(7), [f"a long name {k}" for k in range(7)])
    _drawing.arrange(_drawing.stack(figure))
    assert all(label.get_rotation() == 40 for label in ax.get_xticklabels())


def test_a_drawing_is_small_and_the_same_every_time():
    def drawn():
        figure, axes = panels(1)
        axes[0, 0].plot(range(50))
        return _drawing.pictures(figure, narrow=False)[0]

    assert drawn() == drawn()
    assert len(drawn()) < 30_000
    assert "<!--" not in drawn()


def test_many_curves_become_a_picture_inside_the_drawing_and_text_stays_text():
    figure, axes = panels(1)
    axes[0, 0].plot(torch.rand(400, 300))
    axes[0, 0].set_title("title")
    (drawing,) = _drawing.pictures(figure, narrow=False)
    assert "data:image/webp" in drawing
    assert "<use " in drawing
    assert drawing.count("#333333") > 10  # letters and ticks
    (webp,) = re.findall(r"data:image/webp;base64,([\w+/=]+)", drawing)
    drawn = Image.open(io.BytesIO(base64.b64decode(webp))).convert("RGBA")
    assert drawn.getextrema()[3][0] == 0  # nothing white behind the curves


def test_both_drawings_come_apart_as_they_were_put_together():
    draw = lambda: panels(2)[0]  # noqa: E731
    both = _drawing.with_narrow(draw())
    assert _drawing.apart(both) == _drawing.pictures(draw(), narrow=True)


def test_a_figure_can_bring_its_own_drawing_for_phones():
    own, axes = plt.subplots(figsize=(3, 5))
    axes.set_title("own")
    figure = plots.on_a_phone(panels(1)[0], own)
    _, narrow = _drawing.pictures(figure, narrow=True)
    assert size(narrow) == (288, 480)


def test_drawing_leaves_no_figure_open():
    before = plt.get_fignums()
    _drawing.pictures(panels(2)[0], narrow=True)
    assert plt.get_fignums() == before
