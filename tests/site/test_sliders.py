"""A slider in a page of its own, shown more than once, as a notebook or a deck may do it."""

import matplotlib.pyplot as plt
import pytest

from adv_lib.widgets import Control, slider

ADDED_LATER = """source => {  // as notebooks do: markup first, then its script from anywhere
  const place = document.createElement("div");
  place.innerHTML = source;
  document.body.append(place);
  const script = document.createElement("script");
  script.textContent = place.querySelector("script:not([type])").textContent;
  document.head.append(script);
}"""


@pytest.fixture
def page(browser):
    page = browser.new_page()
    yield page
    page.close()


def test_a_slider_that_is_shown_three_times_moves_the_picture_below_the_control_and_no_other(page):
    draw = lambda v: plt.figure(figsize=(1, 1), dpi=20, facecolor=(v, 0, 0))  # noqa: E731
    source = slider(draw, str, Control("v", [0.0, 0.5, 1.0]), caption="c")._repr_html_()
    page.set_content(source + source)
    page.evaluate(ADDED_LATER, source)
    figures = page.query_selector_all("figure.adv-slider")
    shown = [0, 0, 0]
    for turn, figure in enumerate(figures):
        for _ in range(turn % 2 + 1):
            figure.query_selector("input").press("ArrowRight")
        shown[turn] = turn % 2 + 1
        pictures = [f.query_selector("img").get_attribute("alt") for f in figures]
        assert pictures == [str(v / 2) for v in shown]
    assert len(figures) == 3
