"""The figures' one look."""

import math
import re
from itertools import combinations

import matplotlib.pyplot as plt
import pytest
import torch
from matplotlib.colors import to_hex, to_rgb

from adv_lib import plots

PALETTE = [plots.CLEAN, plots.ATTACKED, plots.CERTIFIED, plots.FAILED, plots.OTHER]


@pytest.fixture(autouse=True)
def _a_clean_slate():
    with plt.rc_context():
        yield
    plt.close("all")


def test_every_meaning_has_its_own_colour():
    for a, b in combinations([*PALETTE, plots.INK], 2):
        assert math.dist(to_rgb(a), to_rgb(b)) > 0.2


@pytest.mark.parametrize("colour", [plots.INK, plots.CLEAN, plots.ATTACKED, plots.CERTIFIED])
def test_lines_and_text_stand_out_from_the_white_background(colour):
    """WCAG 2: a contrast of 3 for graphics."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(colour)]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    assert 1.05 / (luminance + 0.05) > 3


def test_the_style_gives_new_figures_the_palette_on_an_opaque_background():
    plots.use_style()
    figure, ax = plt.subplots()
    drawn = [ax.plot([0, 1])[0].get_color() for _ in PALETTE]
    assert drawn == PALETTE
    assert to_hex(figure.get_facecolor(), keep_alpha=True) == "#ffffffff"
    assert plt.rcParams["savefig.facecolor"] == "white"


def test_no_other_module_or_chapter_names_a_colour_of_the_palette_by_its_number():
    from pathlib import Path

    root = Path(__file__).parents[1]
    files = [*root.glob("adv_lib/**/*.py"), *root.glob("chapters/*.ipynb")]
    named = re.compile("|".join(PALETTE), re.IGNORECASE)
    assert [f.name for f in files if f.name != "plots.py" and named.search(f.read_text("utf-8"))] == []


# ---- images ----


def drawn(figure):
    return [ax.images[0] for ax in figure.axes]


def test_images_in_the_unit_range_share_one_scale_with_0_white():
    x = torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(0)) / 2
    figure = plots.images(x, ["a", "b", "c"])
    assert [ax.get_title() for ax in figure.axes] == ["a", "b", "c"]
    for image, picture in zip(x, drawn(figure), strict=True):
        assert (picture.get_array().data == image[0].numpy()).all()
        assert picture.get_clim() == (0, 1)
        assert picture.cmap(0.0)[:3] == (1, 1, 1)
        assert picture.cmap(1.0)[:3] == (0, 0, 0)


def test_images_of_another_range_are_drawn_between_their_limits():
    for picture in drawn(plots.images(torch.rand(2, 1, 4, 4), ["a", "b"], limits=(-0.5, 2.0))):
        assert picture.get_clim() == (-0.5, 2)


def test_signed_images_have_0_in_the_middle_and_one_scale_for_the_row():
    x = torch.tensor([[[[0.5, -2.0]]], [[[1.0, 0.0]]]])
    for picture in drawn(plots.images(x, ["a", "b"], signed=True)):
        assert picture.get_clim() == (-2, 2)
        red, _, blue, _ = picture.cmap(1.0)
        assert red > blue
        assert min(picture.cmap(0.5)[:3]) > 0.95


def test_a_signed_image_of_zeros_is_drawn_white():
    (picture,) = drawn(plots.images(torch.zeros(1, 1, 2, 2), ["0"], signed=True))
    assert picture.get_clim() == (-1, 1)


def test_colour_images_and_tensors_with_gradients_are_drawn():
    x = torch.rand(2, 3, 4, 4, requires_grad=True)
    figure = plots.images(x, ["a", "b"])
    assert drawn(figure)[0].get_array().shape == (4, 4, 3)
    figure.canvas.draw()


def test_images_go_into_the_axes_they_are_given():
    figure, axes = plt.subplots(1, 2)
    assert plots.images(torch.rand(2, 1, 3, 3), ["a", "b"], axes=axes) is figure
    assert len(figure.axes) == 2


# ---- geometry ----


@pytest.mark.parametrize("p", [1, 1.5, 2, 7, math.inf])
def test_the_circle_is_made_of_points_of_norm_1_in_order_once_around(p):
    points = plots.circle(p)
    assert points.shape == (361, 2)
    torch.testing.assert_close(
        torch.linalg.vector_norm(points, ord=p, dim=1), torch.ones(361, dtype=torch.float64)
    )
    torch.testing.assert_close(points[0], points[-1], rtol=0, atol=1e-12)
    angle = torch.atan2(points[:, 1], points[:, 0])[:-1] % (2 * math.pi)
    assert (angle.diff() > 0).all()


@pytest.mark.parametrize("w", [[3.0, -4.0], [0.0, 2.0], [-1.0, 0.0]])
@pytest.mark.parametrize("b", [0.0, 0.7, torch.tensor(-2.0)])
def test_the_line_is_where_the_model_says_0(w, b):
    _, ax = plt.subplots()
    plots.line(ax, torch.tensor(w, requires_grad=True), b, color=plots.INK)
    (line,) = ax.lines
    for point in (line.get_xy1(), line.get_xy2()):
        assert w[0] * point[0] + w[1] * point[1] + float(b) == pytest.approx(0, abs=1e-9)
    assert math.dist(line.get_xy1(), line.get_xy2()) == pytest.approx(1)
    assert line.get_color() == plots.INK


def test_a_table_shows_its_rows_in_a_notebook_with_nothing_taken_for_markup():
    table = plots.Table(["a_b", "f*(1)", "x"], [("p|q", "1.5 %", 3), ("[0, 1]", "", 4.5)])
    assert table._repr_markdown_().splitlines() == [
        r"| a\_b | f\*(1) | x |",
        "| --- | ---: | ---: |",
        r"| p\|q | 1.5 % | 3 |",
        r"| \[0, 1\] |  | 4.5 |",
    ]


def test_a_table_stands_in_columns_in_a_terminal():
    lines = repr(plots.Table(["name", "share"], [("one", "9.5 %"), ("another", "10.5 %")])).splitlines()
    assert lines == ["name      share", "one       9.5 %", "another  10.5 %"]
    assert repr(plots.Table(["name", "n"], [])) == "name  n"
