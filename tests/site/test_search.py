"""Search, as a reader uses it: type, choose, land."""

import re
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from axe_playwright_python.sync_playwright import Axe

SITE = Path(__file__).parents[2] / "_build/html"
START = "book/references.html"
DESKTOP, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}
HOUR = 3_600_000  # milliseconds: no wait ends by the clock
WORDS = ["ε", "ℓ∞", "PGD", "dual norm", "conjugate", "entropy", "Madry", "ReLU", "gradient", "install"]
MARKS = "() => CSS.highlights.get('adv-search-marks')?.size ?? 0"
READY = "window.MathJax?.startup?.promise?.then(() => true)"


@pytest.fixture
def window(browser):
    """Browser windows by size and colours; they close with the test, and nothing may have complained."""
    contexts, complaints = [], []

    def opened(**options):
        context = browser.new_context(**{"viewport": DESKTOP, "color_scheme": "light"} | options)
        context.set_default_timeout(HOUR)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda m: m.type in ("error", "warning") and complaints.append(m.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("response", lambda r: r.status >= 400 and complaints.append(f"{r.status} {r.url}"))
        return page

    yield opened
    for context in contexts:
        context.close()
    assert complaints == []


@pytest.fixture
def reader(window, address):
    """A reader of a page of the book."""
    page = window()
    page.goto(f"{address}/{START}")
    return page


def ask(page, words: str):
    """Open the dialog by the keyboard, type, and wait for an answer."""
    if not page.locator("dialog.adv-search[open]").count():
        page.keyboard.press("Control+k")
    page.locator("dialog input").fill("")
    page.wait_for_function("!document.querySelector('dialog .adv-search-count').textContent")
    page.locator("dialog input").fill(words)
    page.wait_for_function("document.querySelector('dialog .adv-search-count').textContent")


def finds(page) -> list[dict]:
    """What is shown: where each find leads, and what it says."""
    return page.eval_on_selector_all(
        ".adv-search-panel li",
        """all => all.map(li => ({
            to: li.querySelector("a").href, title: li.querySelector("a").textContent,
            place: li.querySelector(".adv-search-place").textContent,
            text: li.querySelector("p").textContent, marks: li.querySelectorAll("mark").length}))""",
    )


def test_the_word_unrolled_leads_to_its_section_in_chapter_8(reader):
    page = reader
    ask(page, "unrolled")
    page.keyboard.press("Enter")
    page.wait_for_url("**/chapters/08_dent.html#*")
    page.wait_for_load_state("load")
    page.evaluate(READY)
    section = page.locator(f"section#{urlsplit(page.url).fragment}")
    assert "unrolled" in section.inner_text()
    heading = section.locator("h2, h3").first
    page.wait_for_function(
        "h => { const y = h.getBoundingClientRect().top; return y >= 0 && y < innerHeight / 2 }",
        arg=heading.element_handle(),
    )


def test_search_asks_for_nothing_before_it_is_used_and_for_no_other_host(window, address):
    page, asked = window(), []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(f"{address}/{START}", wait_until="networkidle")
    assert [url for url in asked if "pagefind" in url] == []
    ask(page, "dual norm")
    assert [url for url in asked if "pagefind" in url] != []
    assert {urlsplit(url).netloc for url in asked if url.startswith("http")} == {
        urlsplit(address).netloc
    }


@pytest.mark.parametrize("name", [START, "book/index.html", "search.html"])
def test_no_page_loads_the_search_of_sphinx(name, address):
    scripts = r"<script[^>]*(?:searchtools|searchindex|language_data|doctools|sphinx_highlight)"
    assert re.findall(scripts, (SITE / name).read_text()) == []


@pytest.mark.parametrize("words", ["apgd", "transfer", "unrolled"])
def test_chapters_come_before_the_api(reader, address, words):
    reader.goto(f"{address}/search.html?q={words}")
    reader.wait_for_selector("#adv-search-page li")
    pages = [urlsplit(find["to"]).path for find in finds(reader)]
    assert "/book/api.html" in pages
    assert pages[0].startswith("/chapters/")


@pytest.mark.parametrize("words", WORDS)
def test_what_is_found_is_said_in_words_with_the_words_marked(reader, words):
    ask(reader, words)
    shown = finds(reader)
    assert shown
    assert all(find["marks"] and find["title"] and find["place"] for find in shown)
    said = "\n".join(f"{find['title']} {find['text']}" for find in shown)
    assert re.findall(r"\\[a-zA-Z]+|\$|</?\w+>|\{[a-z:]+\}`|`|^import |\bdef \w+\(", said) == []


def test_every_find_leads_to_a_page_and_an_anchor_that_exist(reader):
    for words in WORDS:
        ask(reader, words)
        for find in finds(reader):
            url = urlsplit(find["to"])
            assert not url.query
            page = Path(SITE, url.path.lstrip("/")).read_text()
            assert not url.fragment or f'id="{url.fragment}"' in page, find["to"]


@pytest.mark.parametrize(
    ("typed", "written"), [("l-infinity", "ℓ∞"), ("L2", "ℓ₂"), ("epsilon", "ε"), ("Holder", "Hölder")]
)
def test_what_people_type_finds_what_the_book_writes(reader, typed, written):
    ask(reader, typed)
    said = [f"{find['title']} {find['text']}" for find in finds(reader)]
    assert said
    assert all(written in text for text in said[:3])


def test_a_term_of_the_glossary_is_found_as_such(reader):
    ask(reader, "branch and bound")
    assert "/book/glossary.html#term-branch-and-bound" in [
        find["to"].removeprefix(reader.evaluate("location.origin")) for find in finds(reader)
    ]


def test_a_word_that_the_book_lacks_finds_nothing_and_says_so(reader):
    ask(reader, "zygote")
    assert finds(reader) == []
    assert "Nothing found" in reader.locator("dialog [role=status]").inner_text()


def test_suggestions_come_with_half_a_word_and_are_chosen_by_keyboard(reader):
    page = reader
    ask(page, "unrol")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowDown")
    second = page.evaluate("document.activeElement.href")
    assert second == finds(page)[1]["to"]
    page.keyboard.press("ArrowUp")
    page.keyboard.press("ArrowUp")
    assert page.evaluate("document.activeElement.matches('dialog input')")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    page.wait_for_url(second)


def test_the_button_opens_the_search_and_escape_returns_to_it(reader):
    page = reader
    button = page.locator(".search-button__button:visible").first
    button.click()
    assert page.evaluate("document.activeElement.matches('dialog input')")
    page.keyboard.press("Escape")
    assert page.locator("dialog[open]").count() == 0
    assert page.evaluate("document.activeElement.matches('.search-button__button')")


def test_marks_of_the_found_words_end_with_escape_or_the_visit(reader):
    page = reader

    def land():
        ask(page, "unrolled")
        page.keyboard.press("Enter")
        page.wait_for_url("**/08_dent.html#*")
        page.wait_for_function(MARKS)

    land()
    assert "?" not in page.url
    kept = "Object.keys(sessionStorage).concat(Object.keys(localStorage))"
    assert [key for key in page.evaluate(kept) if "search" in key or "highlight" in key] == []
    page.keyboard.press("Escape")
    assert page.evaluate(MARKS) == 0
    assert page.locator(".adv-search-unmark").count() == 0
    land()  # on the same page
    page.locator(".adv-search-unmark").click()
    assert page.evaluate(MARKS) == 0
    land()
    page.reload()
    assert page.evaluate(MARKS) == 0
    land()
    page.locator(".next-page, a.right-next, .prev-next-area a").first.click()
    page.wait_for_load_state("load")
    assert page.evaluate(MARKS) == 0
    page.go_back()
    page.wait_for_load_state("load")
    assert page.evaluate(MARKS) == 0


def test_the_page_of_search_answers_a_question_in_its_address(reader, address):
    reader.goto(f"{address}/search.html?q=dual+norm")
    reader.wait_for_selector("#adv-search-page li")
    assert reader.locator("#adv-search-page input").input_value() == "dual norm"
    before = len(finds(reader))
    assert before == 20
    reader.get_by_text("Show more").click()
    reader.wait_for_function(
        "n => document.querySelectorAll('#adv-search-page li').length > n", arg=before
    )


def test_all_finds_of_the_dialog_are_on_the_page_of_search(reader):
    ask(reader, "gradient")
    reader.locator("dialog .adv-search-more").click()
    reader.wait_for_url("**/search.html?q=gradient")
    reader.wait_for_selector("#adv-search-page li")


def test_without_scripts_the_page_of_search_says_so_and_leads_on(window, address):
    page = window(java_script_enabled=False)
    page.goto(f"{address}/search.html")
    assert "needs JavaScript" in page.locator("main").inner_text()
    for link in page.locator("main noscript a").all():
        assert Path(SITE, link.get_attribute("href")).exists()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_the_finds_fit_and_axe_finds_no_serious_violation(window, address, size, scheme):
    page = window(viewport=size, color_scheme=scheme)
    page.goto(f"{address}/{START}")
    page.wait_for_function("s => document.documentElement.dataset.theme === s", arg=scheme)
    page.locator(".search-button__button:visible").first.click()
    ask(page, "adversarial training")
    if size == PHONE:
        small = page.eval_on_selector_all(
            "dialog :is(input, button, li, .adv-search-more)",
            "all => all.filter(e => e.getBoundingClientRect().height < 44).map(e => e.outerHTML)",
        )
        assert small == []
    box = page.locator("dialog").bounding_box()
    assert box["x"] >= 0
    assert box["x"] + box["width"] <= size["width"]
    assert page.evaluate(
        "document.querySelector('dialog').scrollWidth <= document.querySelector('dialog').clientWidth"
    )
    found = Axe().run(page, {"include": [["dialog"]]}, {"preload": False}).response["violations"]
    assert [v["id"] for v in found if v["impact"] in ("serious", "critical")] == []
