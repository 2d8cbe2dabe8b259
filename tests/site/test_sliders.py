"""A slider in a page of its own, shown more than once, as a notebook or a deck may do it."""

import matplotlib.pyplot as plt
import pytest

from adv_lib.widgets import Control, slider

ADDED_LATER = """source => {  // as notebooks do: markup first, then its script from anywhere
  const place = document.createElement("div");
  place.innerHTML = source;
  document.body.append(place);
  const script = document.createElement("script");
  script.textContent = place.querySelector("script[data-adv]").textContent;
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


@pytest.fixture
def steps(browser):
    """A page with one slider that plays, and buttons, for a finger."""
    context = browser.new_context(has_touch=True, viewport={"width": 390, "height": 844})
    page = context.new_page()
    draw = lambda v, k: plt.figure(figsize=(1, 1), facecolor=(v / 4, 0, k == "b"))  # noqa: E731
    controls = Control("step", range(4), "{}".format, play=True), Control("kind", ["a", "b"], str)
    page.set_content(slider(draw, "step {}, kind {}".format, *controls, caption="c")._repr_html_())
    yield page
    context.close()


def test_a_finger_chooses_a_button_and_moves_the_range(steps):
    says = lambda: steps.inner_text(".adv-says")  # noqa: E731
    assert says() == "step 0, kind a"
    steps.tap("label:has-text('b') input")
    assert says() == "step 0, kind b"
    box = steps.locator("input[type=range]").bounding_box()
    steps.touchscreen.tap(box["x"] + box["width"] - 4, box["y"] + box["height"] / 2)
    assert says() == "step 3, kind b"


def test_steps_play_until_the_last_and_pause(steps):
    steps.clock.install()
    steps.click("button.adv-play")
    assert steps.inner_text(".adv-says") == "step 1, kind a"
    steps.clock.run_for(1000)
    assert steps.inner_text(".adv-says") == "step 2, kind a"
    steps.click("button.adv-play")
    steps.clock.run_for(5000)
    assert steps.inner_text(".adv-says") == "step 2, kind a"
    steps.click("button.adv-play")
    steps.clock.run_for(5000)
    assert steps.inner_text(".adv-says") == "step 3, kind a"
    assert steps.get_attribute("button.adv-play", "aria-label") == "play step"


def test_without_scripts_the_first_frame_stands_with_its_sentence(browser):
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    draw = lambda v: plt.figure(figsize=(1, 1))  # noqa: E731
    page.set_content(slider(draw, str, Control("v", [1, 2, 3], start=1), caption="c")._repr_html_())
    assert page.get_attribute("img", "alt") == page.inner_text(".adv-says") == "2"
    context.close()
