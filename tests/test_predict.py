"""Predictions: what the reader is asked and told, in one piece of HTML that needs nothing else."""

import base64
import json
import re
from html.parser import HTMLParser

import matplotlib.pyplot as plt
import numpy as np
import pytest

from adv_lib import widgets
from adv_lib.widgets import predict

NASTY = "</script><!--<script>\"&'{0}<b>"
VOID = {"img", "input", "br", "circle"}


class Page(HTMLParser):
    """A prediction: its tags with their attributes, its data, what is shown, what lies in the fold."""

    def __init__(self, source):
        super().__init__()
        self.tags, self.open, self.shown, self.told, self.payload = [], [], "", "", ""
        self.feed(source)
        self.data = json.loads(self.payload)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop()[0] == tag

    def handle_data(self, text):
        tags = [tag for tag, _ in self.open]
        if ("script", {"type": "application/json"}) in self.open:
            self.payload += text
        elif "details" in tags and "summary" not in tags:
            self.told += text
        elif not {"script", "style"} & set(tags) and all("hidden" not in a for _, a in self.open):
            self.shown += text

    def all(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


def page(prediction):
    return Page(prediction._repr_html_())


def square(**axes):
    ax = plt.figure(figsize=(2, 2), dpi=50).subplots()
    ax.set(xlim=(0, 1), ylim=(0, 2), **axes)
    return ax


def number(**options):
    return predict("How many?", 12, low=0, high=40, unit="images", why="few are", **options)


def choice(answer="no"):
    return predict("Is it safe?", answer, choices=["yes", "no"], why="an attack finds it")


def point():
    return predict("Where?", (0.25, 0.5), picture=square(xlabel="a"), alt="a square", why="it is")


EVERY = pytest.mark.parametrize("prediction", [number(), choice(), point()], ids=lambda p: p.kind)


@EVERY
def test_without_scripts_the_question_is_read_and_the_answer_lies_in_a_fold(prediction):
    read = page(prediction)
    assert prediction.question in read.shown
    assert prediction.answer not in read.shown
    assert prediction.why not in read.shown
    assert prediction.answer in read.told
    assert prediction.why in read.told


@EVERY
def test_a_terminal_shows_the_question_and_not_the_answer(prediction):
    assert prediction.question in repr(prediction)
    assert prediction.why not in repr(prediction)
    assert "12" not in repr(prediction)


@EVERY
def test_style_and_script_stand_after_the_box_where_a_page_can_drop_them(prediction):
    read = page(prediction)
    assert read.all("style") == [{"data-adv": "predict"}]
    assert read.all("script") == [{"type": "application/json"}, {"data-adv": "predict"}]
    box, after = prediction._repr_html_().split("<style", 1)
    assert box.rstrip().endswith("</div>")
    assert "<p" not in after


@EVERY
def test_the_html_asks_for_nothing_from_anywhere_else(prediction):
    assert "http" not in prediction._repr_html_()
    assert all(image["src"].startswith("data:image/svg") for image in page(prediction).all("img"))


@EVERY
def test_no_element_has_an_id_so_that_a_page_may_show_it_twice(prediction):
    assert all("id" not in attributes for _, attributes in page(prediction).tags)


@EVERY
def test_every_input_has_a_name_that_is_read_aloud(prediction):
    source = prediction._repr_html_()
    for attributes in page(prediction).all("input"):
        assert (
            attributes.get("aria-label") or attributes["type"] == "radio" or "<label><span>a" in source
        )


def test_it_is_remembered_by_its_question_whatever_its_answer():
    def name(prediction):
        return page(prediction).all("div")[0]["data-predict"]

    assert name(choice("yes")) == name(choice("no"))
    assert name(choice()) != name(number())


def test_a_number_is_told_in_its_unit_to_the_digits_of_its_range():
    assert number().answer == "12\N{NO-BREAK SPACE}images"
    assert predict("?", 0.1234, low=0, high=1, why=".").answer == "0.12"
    assert predict("?", -19.4, low=-100, high=100, unit="%", why=".").answer == "−19\N{NO-BREAK SPACE}%"
    assert predict("?", 1234.5, low=0.0, high=5000.0, why=".").answer == "1234"


@pytest.mark.parametrize("whole", [int, np.int64])
def test_between_whole_numbers_only_whole_numbers_can_be_said(whole):
    small = predict("?", whole(3), low=0, high=5, why=".")
    assert {given["step"] for given in page(small).all("input")} == {"1"}
    assert small.answer == "3"


def test_a_room_raises_its_hands_for_the_choices_or_for_parts_of_the_range():
    assert choice().hands == ("yes", "no")
    assert [hand.replace("\N{NO-BREAK SPACE}", " ") for hand in number().hands] == [
        "0 to 10 images", "11 to 20 images", "21 to 30 images", "31 to 40 images",
    ]  # fmt: skip


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0, 2), (0, 5), (0, 50), (-3, 7), (0, 1000)])
def test_each_number_belongs_to_one_show_of_hands(low, high):
    hands = predict("?", low, low=low, high=high, why=".").hands
    bands = [map(int, hand.replace("\N{MINUS SIGN}", "-").split(" to ")) for hand in hands]
    assert [n for least, most in bands for n in range(least, most + 1)] == list(range(low, high + 1))


def test_the_answer_is_marked_where_it_lies_in_the_drawn_picture():
    ax = square()
    ax.plot(0.25, 0.5, "s", ms=8, color="red", markeredgewidth=0)
    prediction = predict("Where?", (0.25, 0.5), picture=ax, alt="a red square", why="look")
    (image,) = page(prediction).all("img")
    drawing = base64.b64decode(image["src"].split(",")[1]).decode()
    width, height = map(float, re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', drawing).groups())
    x, y = map(
        float, re.search(r'<use [^>]*x="([\d.]+)" y="([\d.]+)" style="fill: #ff0000', drawing).groups()
    )
    (mark,) = (a["style"] for a in page(prediction).all("span") if "style" in a)
    left, top = (float(part.split(":")[1].rstrip("%")) / 100 for part in mark.split(";"))
    assert left * width == pytest.approx(x, abs=1)
    assert top * height == pytest.approx(y, abs=1)


def test_axes_that_run_backwards_are_measured_too():
    ax = square()
    ax.invert_yaxis()
    data = page(predict("Where?", (0, 2), picture=ax, alt="a square", why="look")).data
    assert data["y"] == [2, 0]


def test_the_reader_moves_the_point_over_the_whole_picture():
    across, up = page(point()).all("input")
    assert (float(across["min"]), float(across["max"])) == (0, 1)
    assert (float(up["min"]), float(up["max"])) == (0, 2)


def test_negative_numbers_have_a_minus_sign_and_words_keep_their_hyphens():
    asked = predict(f"Is min-max {-1}, or -2?", "no", choices=["yes", "no"], why="2-1 is not -1")
    assert asked.question == "Is min-max −1, or −2?"
    assert asked.why == "2-1 is not −1"


def test_a_picture_is_closed_once_it_is_drawn():
    before = plt.get_fignums()
    point()
    assert plt.get_fignums() == before


def test_no_text_can_break_out_of_the_html():
    ax = square(xlabel=NASTY)
    for prediction in (
        predict(NASTY, NASTY, choices=[NASTY, "other"], why=NASTY),
        predict(NASTY, 1, low=0, high=2, unit=NASTY, why=NASTY),
        predict(NASTY, (0, 0), picture=ax, alt=NASTY, why=NASTY),
    ):
        read = page(prediction)
        assert read.all("b") == []
        assert len(read.all("script")) == 2
        assert read.data["why"] == NASTY
        assert "<" not in read.payload
        assert NASTY in read.shown
        assert NASTY in read.told


def test_it_is_the_widgets_own():
    assert widgets.predict.__module__ == widgets.Prediction.__module__ == "adv_lib.widgets"
