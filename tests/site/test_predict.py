"""Predictions: committed by mouse, keyboard and finger, kept, skipped, asked again, printed."""

import json
from pathlib import Path

import matplotlib.pyplot as plt
import pytest
from axe_playwright_python.sync_playwright import Axe

from adv_lib.widgets import predict

SITE = Path(__file__).parents[2] / "_build/html"
ADDRESS = "http://book.test/"  # a page with a storage of its own
DARK = "@media (prefers-color-scheme: dark) { body { background: #111; color: #eee } }"
SHOWN_LATER = """source => {  // as notebooks do: markup first, then its script from anywhere
  const place = document.createElement("div");
  place.innerHTML = source;
  document.querySelector("main").append(place);
  const script = document.createElement("script");
  script.textContent = place.querySelector("script[data-adv]").textContent;
  document.head.append(script);
}"""


def picture():
    ax = plt.figure(figsize=(4, 3)).subplots()
    ax.set(xlim=(-1, 1), ylim=(0, 4), xlabel="a", ylabel="h")
    return ax


NUMBER = predict("How many?", 12, low=0, high=40, unit="images", why="Few are.")
SHARE = predict("Which share?", 12.0, low=0, high=100, unit="%", why="Few are.")
CHOICE = predict("Which one?", "this", choices=["that", "this", "neither"], why="It is better.")
POINT = predict("Where?", (0.5, 1.0), picture=picture(), alt="an empty square", why="It is there.")
EVERY = [NUMBER, CHOICE, POINT]


def document(*predictions):
    boxes = "".join(p._repr_html_() for p in predictions)
    return (
        f'<!doctype html><html lang="en"><head><title>Predictions</title><style>{DARK}</style>'
        '<meta name="viewport" content="width=device-width"></head>'
        f"<body><main><h1>Predictions</h1>{boxes}</main></body></html>"
    )


@pytest.fixture
def show(browser):
    """Opens a page that holds the predictions in a browser of its own; no page may complain."""
    contexts, complaints = [], []

    def opened(*predictions, **options):
        context = browser.new_context(**options)
        contexts.append(context)
        answer = {"body": document(*predictions), "content_type": "text/html; charset=utf-8"}
        context.route(ADDRESS, lambda route: route.fulfill(**answer))
        page = context.new_page()
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.goto(ADDRESS)
        return page

    yield opened
    for context in contexts:
        context.close()
    assert complaints == []


def told(page, box=0):
    """What the reader is told, or None while the question is open."""
    result = page.locator(".adv-predict").nth(box).locator(".adv-predict-result")
    return " ".join(result.inner_text().split()) if result.is_visible() else None


def press(page, name):
    """Click every button of that name."""
    for button in page.get_by_role("button", name=name).element_handles():
        button.click()


def commit(page):
    press(page, "Commit")


# ---- three kinds ----


def test_nothing_tells_the_answer_before_the_reader_has_committed(show):
    page = show(*EVERY)
    text = page.locator("main").inner_text()
    assert all(p.answer not in text and p.why not in text for p in EVERY if p is not CHOICE)
    assert CHOICE.why not in text
    assert page.locator(".adv-predict-right").is_hidden()


@pytest.mark.parametrize(
    ("said", "verdict", "words"),
    [
        ("12", "right", "You said 12 images, and so it is. Few are."),
        ("15", "near", "You said 15 images, it is 12 images: 3 images off. Few are."),
        ("40", "far", "You said 40 images, it is 12 images: 28 images off. Few are."),
    ],
)
def test_a_number_is_compared_with_what_the_reader_said(show, said, verdict, words):
    page = show(NUMBER)
    page.get_by_label("Your number, exactly").fill(said)
    commit(page)
    assert words in told(page)
    assert page.locator(".adv-predict-result").get_attribute("data-verdict") == verdict


def test_shares_differ_by_points(show):
    page = show(SHARE)
    page.get_by_label("Your number, exactly").fill("40")
    commit(page)
    assert "You said 40 %, it is 12 %: 28 points off." in told(page)


def test_the_slider_and_the_exact_number_say_the_same(show):
    page = show(NUMBER)
    exact, rough = page.get_by_label("Your number, exactly"), page.get_by_label("Your number, roughly")
    rough.press("ArrowRight")
    assert exact.input_value() == rough.input_value() == "21"
    assert rough.get_attribute("aria-valuetext") == "21\N{NO-BREAK SPACE}images"
    exact.fill("7")
    assert rough.input_value() == "7"


def test_a_number_out_of_range_and_a_choice_not_made_are_not_committed(show):
    page = show(NUMBER, CHOICE)
    page.get_by_label("Your number, exactly").fill("41")
    commit(page)
    assert told(page, 0) is told(page, 1) is None


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ("this", "You said “this”, and so it is. It is better."),
        ("that", "You said “that”; it is “this”. It is better."),
    ],
)
def test_a_choice_is_compared_with_what_the_reader_chose(show, said, words):
    page = show(CHOICE)
    page.get_by_role("radio", name=said).click()
    commit(page)
    assert words in told(page)


def at(page, x, y):
    """Where a point of the axes lies in the picture: its left and its top, in pixels."""
    data = json.loads(page.locator(".adv-predict script").first.text_content())
    image = page.locator(".adv-predict img").bounding_box()
    left, top, width, height = data["place"]
    (x0, x1), (y0, y1) = data["x"], data["y"]
    across, down = left + width * (x - x0) / (x1 - x0), top + height * (y1 - y) / (y1 - y0)
    return {"x": across * image["width"], "y": down * image["height"]}


def test_a_point_is_where_the_reader_clicked_and_the_answer_is_marked_where_it_lies(show):
    page = show(POINT)
    page.locator(".adv-predict img").click(position=at(page, -0.5, 1.0))
    commit(page)
    assert "You pointed at ○ (−0.5" in told(page)
    assert "it is ◆ (0.50, 1.00): 1.0" in told(page)
    for mark, x in ((".adv-predict-right", 0.5), (".adv-predict-said", -0.5)):
        box, image = (page.locator(s).bounding_box() for s in (mark, ".adv-predict img"))
        place = at(page, x, 1.0)
        assert box["x"] + box["width"] / 2 - image["x"] == pytest.approx(place["x"], abs=2)
        assert box["y"] + box["height"] / 2 - image["y"] == pytest.approx(place["y"], abs=2)


def test_a_point_that_is_nearly_hit_is_there(show):
    page = show(POINT)
    page.locator(".adv-predict img").click(position=at(page, 0.52, 1.05))
    commit(page)
    assert "and there it is: ◆ (0.50, 1.00). It is there." in told(page)


def test_a_committed_point_stays_where_it_is_when_the_picture_is_clicked(show):
    page = show(POINT)
    commit(page)
    before = told(page)
    page.locator(".adv-predict img").click(position=at(page, 0.5, 1.0))
    assert page.locator(".adv-predict-said").get_attribute("style").startswith("left: 5")
    assert told(page) == before


# ---- by keyboard and by finger ----


def test_everything_can_be_done_by_keyboard(show):
    page = show(*EVERY)
    key = page.keyboard.press
    for each in ("Tab", "ArrowLeft", "Tab", "Enter"):  # the slider, then Enter in the exact number
        key(each)
    assert "You said 19 images" in told(page, 0)
    for each in ("Tab", "Tab", "Space", "ArrowDown", "Enter"):  # past Ask again
        key(each)
    assert "You said “this”" in told(page, 1)
    for each in ("Tab", "Tab", "ArrowRight", "Tab", "ArrowUp", "Tab", "Enter"):
        key(each)
    assert "You pointed at ○ (0.01, 2.01)" in told(page, 2)
    for each in ("Tab", "Enter"):  # Ask again, and the reader is in the question
        key(each)
    assert told(page, 2) is None
    assert page.evaluate("document.activeElement.closest('.adv-predict').dataset.kind") == "point"


def test_everything_can_be_done_by_finger(show):
    phone = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True}
    page = show(*EVERY, **phone)
    buttons = page.get_by_role("button", name="Commit")
    exact = page.get_by_label("Your number, exactly")
    exact.tap()
    exact.fill("3")
    buttons.first.tap()
    page.get_by_role("radio", name="neither").tap()
    buttons.first.tap()
    place = page.locator(".adv-predict img").bounding_box()
    page.locator(".adv-predict img").tap(position={"x": place["width"] / 2, "y": place["height"] / 4})
    buttons.first.tap()
    assert "You said 3 images" in told(page, 0)
    assert "You said “neither”" in told(page, 1)
    assert "You pointed at" in told(page, 2)


def test_a_finger_finds_44_pixels(show):
    page = show(*EVERY, viewport={"width": 390, "height": 844})
    small = page.eval_on_selector_all(
        ".adv-predict :is(button, input:not([type=radio]), fieldset label)",
        "all => all.map(e => e.getBoundingClientRect().height).filter(height => height < 44)",
    )
    assert small == []
    assert page.evaluate("document.documentElement.scrollWidth") == 390


# ---- kept, skipped, asked again ----


def test_a_prediction_is_kept_when_the_page_is_loaded_again(show):
    page = show(*EVERY)
    page.get_by_label("Your number, exactly").fill("30")
    page.get_by_role("radio", name="that").click()
    commit(page)
    before = [told(page, box) for box in range(3)]
    page.reload()
    assert None not in before
    assert [told(page, box) for box in range(3)] == before


def test_who_skips_is_told_the_answer_and_may_still_be_asked(show):
    page = show(NUMBER)
    page.get_by_role("button", name="Skip").click()
    assert told(page) == "12 images. Few are. Ask again"
    page.reload()
    assert told(page).startswith("12 images.")
    page.get_by_role("button", name="Ask again").click()
    assert told(page) is None
    page.reload()
    assert told(page) is None


def test_ask_again_forgets_what_was_said(show):
    page = show(CHOICE, POINT)
    page.get_by_role("radio", name="that").click()
    press(page, "Commit")
    press(page, "Ask again")
    assert page.locator(":checked").count() == 0
    assert page.locator(".adv-predict-right").is_hidden()
    page.reload()
    assert told(page, 0) is told(page, 1) is None


def test_what_no_longer_fits_the_question_is_asked_anew(show):
    page = show(CHOICE)
    page.get_by_role("radio", name="that").click()
    commit(page)
    kept = page.evaluate("Object.keys(localStorage)")
    for broken in ('{"said": "something else"}', "no JSON", "7"):
        page.evaluate("([key, value]) => localStorage.setItem(key, value)", [kept[0], broken])
        page.reload()
        assert told(page) is None
    assert len(kept) == 1


def test_a_page_that_may_keep_nothing_asks_and_tells_all_the_same(browser):
    page = browser.new_page()
    page.set_content(
        '<iframe sandbox="allow-scripts"></iframe>'
        "<script>addEventListener('message', (e) => { document.title = e.data; })</script>"
    )
    inside = (
        document(NUMBER) + "<script>onerror = (message) => parent.postMessage(message, '*')</script>"
    )
    page.evaluate("html => { document.querySelector('iframe').srcdoc = html }", inside)
    frame = page.frame_locator("iframe")
    frame.get_by_role("button", name="Commit").click()
    assert "You said 20 images" in frame.locator(".adv-predict-result").inner_text().replace("\xa0", " ")
    assert page.title() == ""
    page.close()


def test_a_prediction_that_is_shown_three_times_is_answered_where_the_reader_answers(show):
    page = show(CHOICE, CHOICE)
    page.evaluate(SHOWN_LATER, CHOICE._repr_html_())
    for box, said in ((2, "that"), (0, "this")):
        shown = page.locator(".adv-predict").nth(box)
        shown.get_by_role("radio", name=said).click()
        shown.get_by_role("button", name="Commit").click()
    assert "You said “this”" in told(page, 0)
    assert told(page, 1) is None
    assert "You said “that”" in told(page, 2)


# ---- without scripts, in the dark, on slides, on paper ----


def test_without_scripts_the_answer_lies_in_a_fold(show):
    page = show(*EVERY, java_script_enabled=False)
    for prediction, box in zip(EVERY, page.locator(".adv-predict").all(), strict=True):
        assert prediction.why not in box.inner_text()
        assert box.get_by_role("button").count() == 0
        box.get_by_text("Show the answer").click()
        assert prediction.why in box.inner_text()


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("committed", [False, True])
def test_axe_finds_nothing_wrong(show, committed, scheme, width):
    page = show(*EVERY, viewport={"width": width, "height": 800}, color_scheme=scheme)
    if committed:
        page.get_by_role("radio", name="that").click()
        commit(page)
    found = Axe().run(page, None, {"preload": False}).response["violations"]
    assert [f"{v['id']}: {v['nodes'][0]['html'][:150]}" for v in found] == []


def test_a_printed_page_asks_leaves_room_and_tells_nothing(show):
    page = show(*EVERY)
    press(page, "Skip")
    page.emulate_media(media="print")
    text = page.locator("main").inner_text()
    assert all(prediction.question in text for prediction in EVERY)
    assert not any(prediction.why in text for prediction in EVERY)
    assert "☐" in page.evaluate(
        "getComputedStyle(document.querySelector('[data-kind=choice] li'), '::before').content"
    )
    assert page.locator(".adv-predict-right").is_hidden()


def with_predictions(folder):
    return [page for page in sorted(folder.glob("[0-9]*.html")) if "data-predict=" in page.read_text()]


def test_the_answers_of_a_chapter_are_printed_together_at_its_end(browser, address):
    chapters = with_predictions(SITE / "chapters")
    if not chapters:
        pytest.skip("No chapter with predictions in _build/html: make book.")
    page = browser.new_page()
    page.goto(f"{address}/chapters/{chapters[0].name}", wait_until="networkidle")
    answers = page.locator(".adv-predict-answers li")
    asked = page.locator(".adv-predict").count()
    page.emulate_media(media="print")
    page.wait_for_function("document.querySelector('.adv-predict-answers')")
    assert answers.count() == asked > 0
    assert all(answer.is_visible() and answer.inner_text() for answer in answers.all())
    last = page.evaluate("document.querySelector('main article').lastElementChild.className")
    assert last == "adv-predict-answers"
    page.emulate_media(media="screen")
    page.wait_for_function("!document.querySelector('.adv-predict-answers')")
    page.close()


def test_a_deck_asks_for_hands_and_the_next_key_tells_the_answer(browser):
    decks = with_predictions(SITE / "slides")
    if not decks:
        pytest.skip("No deck with predictions in _build/html/slides: make book.")
    page = browser.new_page(viewport={"width": 1280, "height": 720})
    page.goto(decks[0].as_uri())
    page.wait_for_function("window.Reveal?.isReady()")
    places = page.evaluate(
        """() => Reveal.getSlides().filter(slide => slide.querySelector(".adv-predict"))
            .map(slide => Reveal.getIndices(slide)).map(({h, v}) => [h, v ?? 0])"""
    )
    assert places
    for h, v in places:
        page.evaluate("([h, v]) => Reveal.slide(h, v, -1)", [h, v])
        box = page.locator("section.present:not(.stack) .adv-predict")
        answer = box.locator(".adv-predict-answer")
        assert box.locator("form").is_hidden()
        assert box.locator("li, img").first.is_visible()
        assert not answer.evaluate("e => e.classList.contains('visible')")
        page.keyboard.press("Space")
        assert (
            answer.evaluate("e => e.classList.contains('visible') && getComputedStyle(e).display")
            == "block"
        )
        assert page.evaluate("(({h, v}) => [h, v])(Reveal.getIndices())") == [h, v]
    page.close()
