"""The frame slider: every frame drawn up front, in one piece of HTML."""

import json
import math
from html.parser import HTMLParser

import ipywidgets
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch

from adv_lib._drawing import data_uri
from adv_lib.widgets import Control, slider


def draw(*values):
    figure, ax = plt.subplots(figsize=(1, 1), dpi=40)
    ax.set_title(" ".join(map(str, values)))
    return figure


def tell(*values):
    return "a picture of " + " and ".join(map(str, values))


class Page(HTMLParser):
    """The tags of a slider with their attributes, its data, and its visible text."""

    def __init__(self, source):
        super().__init__()
        self.tags, self.text, self.payload, self.reads = [], [], "", ""
        self.feed(source)
        self.data = json.loads(self.payload)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag in ("script", "style"):
            self.reads = dict(attrs).get("type", tag)

    def handle_endtag(self, tag):
        self.reads = "" if tag in ("script", "style") else self.reads

    def handle_data(self, text):
        if self.reads == "application/json":
            self.payload += text
        elif self.reads == "":
            self.text.append(text)

    def all(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


def page(figure):
    return Page(figure._repr_html_())


@pytest.fixture(scope="module")
def two():
    return slider(
        draw,
        tell,
        Control("ε", [0.0, 0.5, 1.0], "{:g} px".format, start=1),
        Control("p", ["1", "2", "∞"], str, start=2),
        caption="two controls",
    )


def test_there_is_a_frame_for_every_combination_and_the_last_control_changes_fastest(two):
    expected = [tell(e, p) for e in (0.0, 0.5, 1.0) for p in ("1", "2", "∞")]
    assert list(two.alts) == expected
    assert len(two.frames) == 9
    assert len(set(two.frames)) == 9
    assert page(two).data["says"] == expected
    assert page(two).data["frames"] == [data_uri(frame) for frame in two.frames]
    assert page(two).data["texts"] == [["0 px", "0.5 px", "1 px"], ["1", "2", "∞"]]


def test_a_frame_is_the_picture_of_its_values(two):
    alone = slider(lambda v: draw(0.5, "2"), tell, Control("v", [1]), caption="one frame")
    assert two.frames[4] == alone.frames[0]


def test_before_any_script_runs_the_start_frame_is_shown(two):
    (image,) = page(two).all("img")
    assert image["src"] == data_uri(two.frames[5])
    assert image["alt"] == tell(0.5, "∞")
    assert tell(0.5, "∞") in page(two).text


def test_numbers_are_a_labelled_range_and_names_are_buttons_of_which_one_is_chosen(two):
    number, *names = page(two).all("input")
    assert number["type"] == "range"
    assert (number["min"], number["max"], number["step"]) == ("0", "2", "1")
    assert number["value"] == "1"
    assert number["aria-label"] == "ε"
    assert number["aria-valuetext"] == "0.5 px"
    assert [name["type"] for name in names] == ["radio"] * 3
    assert ["checked" in name for name in names] == [False, False, True]
    assert len({name["name"] for name in names}) == 1
    assert [text for text in page(two).text if text in ("1", "2", "∞")] == ["1", "2", "∞"]
    assert "p" in page(two).text


@pytest.mark.parametrize(
    ("values", "slides"),
    [
        ([0.1, 0.2, 0.3], True),
        (range(5), True),
        (torch.linspace(0, 1, 3), True),
        ([1, 2], False),
        ([1, 2, math.inf], False),
        (["a", "b", "c"], False),
        ([False, True, False], False),
    ],
)
def test_only_a_range_of_finite_numbers_slides(values, slides):
    assert Control("v", values).slides == slides


def test_steps_in_time_have_a_button_that_plays_them_and_names_cannot_be_played():
    steps = slider(draw, tell, Control("step", [0, 1, 2], play=True), caption="c")
    assert [button["aria-label"] for button in page(steps).all("button")] == ["play step"]
    assert page(slider(draw, tell, Control("step", [0, 1, 2]), caption="c")).all("button") == []
    with pytest.raises(ValueError, match="play"):
        slider(draw, tell, Control("step", ["a", "b", "c"], str, play=True), caption="c")


def test_the_same_figure_gives_the_same_html(two):
    controls = (
        Control("ε", [0.0, 0.5, 1.0], "{:g} px".format, 1),
        Control("p", ["1", "2", "∞"], str, 2),
    )
    again = slider(draw, tell, *controls, caption="two controls")
    assert again._repr_html_() == two._repr_html_()


@pytest.mark.parametrize(
    "other",
    [
        {"caption": "other"},
        {"start": 1},
        {"label": "q"},
        {"show": "{:.2f}".format},
        {"alt": lambda v: f"other {v}"},
    ],
)
def test_figures_that_differ_in_anything_have_different_names(other):
    def name(caption="c", start=0, label="p", show="{:g}".format, alt=tell):
        figure = slider(draw, alt, Control(label, [1, 2], show, start), caption=caption)
        return page(figure).all("figure")[0]["data-slider"]

    assert name(**other) != name()


def test_only_pages_get_a_second_drawing_for_phones(two, monkeypatch):
    assert two.narrow == ()
    assert page(two).all("source") == []
    monkeypatch.setenv("ADV_LIB_PAGES", "1")
    figure = slider(draw, tell, Control("v", [1, 2, 3]), caption="c")
    assert len(figure.narrow) == 3
    (source,) = page(figure).all("source")
    assert source["srcset"] == data_uri(figure.narrow[0])
    assert "max-width" in source["media"]
    assert page(figure).data["narrow"] == [data_uri(frame) for frame in figure.narrow]


def test_a_slider_reads_short_in_a_terminal(two):
    assert repr(two) == "<slider with 9 frames: ε, p>"


def test_drawing_the_frames_leaves_no_figure_open():
    before = plt.get_fignums()
    slider(draw, tell, Control("p", [1, 2, 3]), caption="c")
    assert plt.get_fignums() == before


def test_no_text_can_break_out_of_the_html():
    nasty = "</script><!--<script>\"&'{0}<b>"
    figure = slider(draw, lambda v: nasty, Control(nasty, [1], lambda v: nasty), caption=nasty)
    parsed = page(figure)
    assert parsed.data["says"] == [nasty]
    assert parsed.data["texts"] == [[nasty]]
    assert parsed.all("b") == []
    assert len(parsed.all("script")) == 2
    assert parsed.all("img")[0]["alt"] == nasty
    ranged = slider(draw, tell, Control(nasty, [1, 2, 3], lambda v: nasty), caption="c")
    (number,) = page(ranged).all("input")
    assert number["aria-label"] == number["aria-valuetext"] == nasty
    assert "<" not in parsed.payload  # "<!--<script>" would swallow the end of the script
    assert nasty in parsed.text


def test_the_html_asks_for_nothing_from_anywhere_else(two):
    assert "http" not in two._repr_html_()
    assert all(frame.startswith("data:") for frame in page(two).data["frames"])


def test_numbers_read_short_unless_told_otherwise():
    figure = slider(draw, tell, Control("ε", [0.1, 0.25, 1.0]), caption="c")
    assert page(figure).data["texts"] == [["0.1", "0.25", "1"]]


@pytest.mark.parametrize("values", [np.linspace(0, 1, 3), torch.linspace(0, 1, 3), range(3)])
def test_any_sequence_of_values_will_do(values):
    figure = slider(draw, tell, Control("v", values), caption="c")
    listed = slider(draw, tell, Control("v", list(values)), caption="c")
    assert figure._repr_html_() == listed._repr_html_()
    with pytest.raises(ValueError, match="values"):
        slider(draw, tell, Control("v", values[:0]), caption="c")


def test_a_slider_has_no_id_so_that_a_page_may_show_it_twice(two):
    assert all("id" not in attributes for _, attributes in page(two).tags)


# ---- with a kernel ----


def test_live_gives_widgets_that_redraw_for_values_between():
    seen = []

    def watch(eps, p):
        seen.append((eps, p))
        return draw(eps, p)

    controls = Control("ε", [0.0, 0.5, 1.0], start=1), Control("p", [1, 2], "p = {}".format)
    live = slider(watch, tell, *controls, caption="c", live=True)
    assert isinstance(live, ipywidgets.Widget)
    continuous, steps = live.children[:2]
    assert isinstance(continuous, ipywidgets.FloatSlider)
    assert (continuous.min, continuous.max, continuous.value) == (0, 1, 0.5)
    assert [text for text, _ in steps.options] == ["p = 1", "p = 2"]
    before = plt.get_fignums()
    continuous.value = 0.35
    steps.value = 2
    assert seen[-2:] == [(0.35, 1), (0.35, 2)]
    assert plt.get_fignums() == before


def test_live_draws_nothing_before_it_is_shown():
    def never(p):
        raise AssertionError("drawn")

    slider(never, tell, Control("p", [1.0, 2.0]), caption="c", live=True)
