"""Drawings for light and dark pages, from one."""

import re

import figures
import matplotlib.pyplot as plt
import pytest

from adv_lib import _drawing, plots

PALETTE = [plots.CLEAN, plots.ATTACKED, plots.CERTIFIED, plots.FAILED, plots.OTHER, plots.INK]


@pytest.fixture
def drawing():
    with plt.rc_context():
        plots.use_style()
        figure, ax = plt.subplots()
        for colour in PALETTE:
            ax.plot([0, 1], color=colour)
        ax.text(0.5, 0.5, "a box", bbox={"fc": "white"})
        yield _drawing.pictures(figure, narrow=False)[0]


def luminance(colour):
    values = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in values]
    return sum(w * v for w, v in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


@pytest.mark.parametrize("colour", PALETTE)
def test_every_meaning_keeps_a_colour_of_its_own_that_is_seen_on_a_dark_page(colour):
    """WCAG 2: a contrast of 4.5, as for text."""
    dark = figures.on_dark(colour.lower())
    assert (luminance(dark) + 0.05) / (luminance(figures.PAPER) + 0.05) > 4.5
    assert len({figures.on_dark(each.lower()) for each in PALETTE}) == len(PALETTE)


def test_the_papers_colour_is_that_of_the_pages():
    tokens = (figures.Path(figures.__file__).parents[1] / "_static/tokens.css").read_text("utf-8")
    dark = tokens[tokens.index('data-theme="dark"') :]
    assert re.search(r"--adv-paper: (#\w+);", dark)[1] == figures.PAPER


def test_a_drawing_has_nothing_white_behind_it_and_its_boxes_stay(drawing):
    assert drawing.count("fill: #ffffff") == 3  # figure, axes, box
    assert figures.transparent(drawing).count("fill: #ffffff") == 1


def test_a_dark_drawing_has_none_of_the_light_ones_colours(drawing):
    dark = figures.darkened(drawing)
    assert re.findall("|".join([*PALETTE, "#ffffff"]), dark, re.IGNORECASE) == []
    assert figures.ON_DARK[plots.CLEAN.lower()] in dark


def test_a_light_colour_becomes_as_dark_as_it_was_light():
    light, dark = "#cdeee2", figures.on_dark("#cdeee2")
    assert luminance(dark) < 0.1 < 0.7 < luminance(light)
    assert luminance(figures.on_dark("#222222")) > 0.5
