"""Every page of the built book, as its readers meet it."""

import re
from functools import cache
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from axe_playwright_python.sync_playwright import Axe

ROOT = Path(__file__).parents[2]
SITE = ROOT / "_build/html"
SETTLED = """async () => {  // a transition that another one replaces is aborted: wait for that one, then
    const moving = () => document.getAnimations().filter(a => a.playState === "running");
    for (let left; (left = moving()).length; ) await Promise.allSettled(left.map(a => a.finished));
}"""
PHONE = {"width": 390, "height": 844}
FORMULAS_APART = {"exclude": [["math"]]}  # thousands of elements, in the colour of their text


@pytest.fixture
def opened(visit):
    """The page with every proof, hint, solution and hidden cell open, until the test ends."""
    visit.page.evaluate(
        """() => {
            window.wereShut = [...document.querySelectorAll("details:not([open])")];
            window.wereHidden = [...document.querySelectorAll(".toggle-hidden > button")];
            window.wereShut.forEach(details => { details.open = true });
            window.wereHidden.forEach(button => button.click());
        }"""
    )
    yield visit
    visit.page.evaluate(
        """() => {
            window.wereShut.forEach(details => { details.open = false });
            window.wereHidden.forEach(button => button.click());
        }"""
    )


def test_the_page_loads_without_a_complaint_in_the_console_or_a_failed_request(visit, record_property):
    record_property("pages opened in a browser", visit.name)
    assert visit.complaints == []


def test_the_page_asks_no_other_host(visit, address):
    assert visit.hosts() == {urlsplit(address).hostname}


def test_every_image_says_what_it_shows(visit):
    images = visit.page.eval_on_selector_all(
        "img",  # an image inside a link with words may leave the talking to them, as the logo does
        """all => all.filter(i => i.alt || !i.closest("a")?.innerText.trim())
                  .map(i => [i.alt, i.src.slice(0, 80)])""",
    )
    silent = [
        (alt, source)
        for alt, source in images
        if len(alt.split()) < 2 or re.search(r"\.(png|svg|jpe?g|webp)$|_images", alt)
    ]
    assert silent == []


def picture(figure):
    """(alt, source) of the picture that a slider shows now."""
    return figure.evaluate(
        "f => { const i = [...f.querySelectorAll('img')].find(i => i.checkVisibility());"
        " return [i.alt, i.src] }"
    )


def test_every_slider_changes_its_picture_by_keyboard_and_back(visit, record_property):
    before = len(visit.complaints)
    for figure in visit.page.query_selector_all("figure.adv-slider"):
        for number, control in enumerate(figure.query_selector_all("input[type=range]")):
            which = (visit.name, figure.get_attribute("data-slider"), number)
            record_property("sliders moved by keyboard", which)
            at_the_end = control.evaluate("c => Number(c.value) >= Number(c.max)")
            there, back = ["ArrowLeft", "ArrowRight"][:: 1 if at_the_end else -1]
            first = picture(figure)
            control.press(there)
            second = picture(figure)
            control.press(back)
            assert picture(figure) == first
            for old, new in zip(first, second, strict=True):
                assert old != new, f"{first[0]}: {there} changes nothing"
    assert visit.complaints[before:] == []


def test_every_button_of_a_slider_changes_its_picture_and_its_sentence(visit, record_property):
    for figure in visit.page.query_selector_all("figure.adv-slider"):
        says = lambda f=figure: f.query_selector(".adv-says").inner_text()  # noqa: E731
        for group in figure.query_selector_all("fieldset"):
            buttons = group.query_selector_all("input[type=radio]")
            chosen = next(b for b in buttons if b.is_checked())
            seen = [(picture(figure), says())]
            for button in buttons:
                if button != chosen:
                    button.check()
                    record_property("buttons of sliders pressed", (visit.name, len(seen)))
                    seen.append((picture(figure), says()))
            assert len({str(each) for each in seen}) == len(buttons)
            chosen.check()
            assert (picture(figure), says()) == seen[0]


def test_the_sentence_below_a_slider_says_what_its_picture_shows(visit):
    for figure in visit.page.query_selector_all("figure.adv-slider"):
        assert figure.query_selector(".adv-says").inner_text().split() == picture(figure)[0].split()


def test_every_proof_hint_and_solution_opens_and_one_of_each_kind_by_keyboard(visit):
    kinds = {}
    for opener in visit.page.query_selector_all(
        "main details:not([open]) > summary, main .toggle-hidden > button.toggle-button"
    ):
        kind = opener.evaluate("o => o.parentElement.className || o.textContent")
        if kind not in kinds and opener.is_visible():  # not inside one that has no place on this page
            kinds[kind] = opener
    opened = "o => o.parentElement.open ?? !o.parentElement.classList.contains('toggle-hidden')"
    for opener in kinds.values():
        opener.press("Enter")
        assert opener.evaluate(opened), opener.inner_text()
    for opener in reversed(kinds.values()):  # one within another before that
        opener.click()
        assert not opener.evaluate(opened), opener.inner_text()
    stuck = visit.page.evaluate(
        """() => {
            const all = [...document.querySelectorAll("main details:not([open]) > summary")]
                .filter(summary => summary.checkVisibility());
            all.forEach(summary => summary.click());
            const shut = all.filter(s => !s.parentElement.open || s.tabIndex < 0);
            all.reverse().forEach(summary => summary.click());
            return [...shut, ...all.filter(s => s.parentElement.open)].map(s => s.textContent);
        }"""
    )
    assert stuck == []


def test_the_mathematics_is_set_and_none_is_left_raw(opened):
    assert opened.page.eval_on_selector_all("merror", "all => all.map(e => e.textContent)") == []
    empty = opened.page.eval_on_selector_all(
        "main math",
        "all => all.filter(m => m.checkVisibility() && !m.getBoundingClientRect().width).length",
    )
    assert empty == 0
    prose = opened.page.evaluate(
        """() => {
            const main = document.querySelector("main").cloneNode(true);
            main.querySelectorAll("pre, code, script, style, math").forEach(e => e.remove());
            return main.textContent;
        }"""
    )
    assert re.findall(r".{0,40}(?:\$\$|\\\(|\\\[|\$\\).{0,40}", prose) == []


def test_the_face_of_the_mathematics_has_every_sign_of_every_formula(opened):
    missing = opened.page.evaluate(
        """() => {
            const face = [...document.fonts].find(f => f.family.includes("STIX Two Math"));
            const ranges = face.unicodeRange.replaceAll("U+", "").split(",")
                .map(r => r.trim().split("-").map(end => parseInt(end, 16)))
                .map(([first, last]) => [first, last ?? first]);
            const text = [...document.querySelectorAll("math")].map(m => m.textContent).join("");
            const has = point => ranges.some(([first, last]) => first <= point && point <= last);
            return [...new Set(text)].filter(sign => sign.trim() && !has(sign.codePointAt()));
        }"""
    )
    assert missing == []


def test_a_formula_wider_than_a_phone_shows_that_it_goes_on_and_scrolls_by_keyboard(opened):
    opened.page.set_viewport_size(PHONE)
    opened.page.wait_for_function(
        """() => [...document.querySelectorAll("div.math")].every(box =>
            (box.scrollWidth > box.clientWidth + 1) === box.matches("[data-more][tabindex='0']"))"""
    )
    for box in opened.page.query_selector_all("div.math[data-more]"):
        assert box.get_attribute("data-more") == "right"
        for _ in range(100):  # a key that is pressed while the page moves may be lost
            box.press("ArrowRight")
            opened.page.evaluate("() => new Promise(done => requestAnimationFrame(done))")
            if "left" in box.get_attribute("data-more"):
                break
        assert "left" in box.get_attribute("data-more")
        box.evaluate("box => { box.scrollLeft = 0 }")


def test_every_icon_is_drawn(opened):
    undrawn = opened.page.evaluate(
        """() => [
            ["[class*='fa-']", "::before"],
            [".admonition > .admonition-title", "::after"],
        ].flatMap(([all, part]) => [...document.querySelectorAll(all)].filter(e => {
                const icon = getComputedStyle(e, part);
                return e.checkVisibility() && icon.display !== "none"
                    && (!icon.maskImage.startsWith("url") || !(parseFloat(icon.width) > 8));
            }).map(e => e.outerHTML.slice(0, 120)))"""
    )
    assert undrawn == []


def test_no_script_of_a_page_is_larger_than_300_kb(visit):
    large = visit.page.evaluate(
        """() => performance.getEntriesByType("resource")
            .filter(r => r.initiatorType === "script" && r.decodedBodySize > 3e5).map(r => r.name)"""
    )
    assert large == []


def test_no_table_is_left_as_text(opened):
    texts = opened.page.eval_on_selector_all("main p", "all => all.map(p => p.textContent)")
    assert [text for text in texts if re.search(r"\|\s*[-—]+:?\s*\|", text)] == []


def test_no_theorem_exercise_or_solution_is_empty(opened):
    boxes = opened.page.eval_on_selector_all(
        "main :is(.proof, .exercise, details)", "all => all.map(box => box.innerText)"
    )
    assert [text for text in boxes if len(text.strip().splitlines()) < 2] == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_no_serious_violation(opened, scheme):
    opened.page.emulate_media(color_scheme=scheme)
    opened.page.wait_for_function("s => document.documentElement.dataset.theme === s", arg=scheme)
    opened.page.evaluate(SETTLED)
    opened.screenshot(f"desktop-{scheme}", full_page=True)
    options = {"preload": False, "resultTypes": ["violations"]}
    if scheme == "dark":  # nothing else depends on the colours
        options["runOnly"] = ["color-contrast"]
    found = Axe().run(opened.page, FORMULAS_APART, options).response["violations"]
    violations = [
        f"{violation['id']}: {node['html'][:150]}: {node['failureSummary']}"
        for violation in found
        for node in violation["nodes"]
        if violation["impact"] in ("serious", "critical")
    ]
    assert violations == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_hangs_over_the_edge_of_a_phone(opened, scheme):
    opened.page.emulate_media(color_scheme=scheme)
    opened.page.set_viewport_size(PHONE)
    opened.screenshot(f"phone-{scheme}", full_page=True)
    width = opened.page.evaluate("document.documentElement.scrollWidth")
    wide = opened.page.evaluate(
        """width => [...document.querySelectorAll("main *")]
            .filter(e => e.getBoundingClientRect().right > width + 1)
            .map(e => e.outerHTML.slice(0, 120)).slice(0, 5)""",
        PHONE["width"],
    )
    assert width <= PHONE["width"], wide


@cache
def anchors(path) -> set[str]:
    """The ids that a page of the build offers."""
    return set(re.findall(r'\b(?:id|name)="([^"]+)"', path.read_text()))


def test_every_internal_link_leads_to_a_page_and_an_anchor_that_exist(visit, address):
    links = visit.page.eval_on_selector_all("a[href]", "all => all.map(a => a.href)")
    broken = set()
    for link in links:
        if not link.startswith(address):
            continue
        url = urlsplit(link)
        path = SITE / unquote(url.path).lstrip("/")
        path = path / "index.html" if path.is_dir() else path
        generated = path.name == "search.html" or url.fragment in ("", "top")
        if not path.exists() or not (generated or unquote(url.fragment) in anchors(path)):
            broken.add(link.removeprefix(address))
    assert broken == set()


def test_every_launch_button_leads_to_a_notebook_of_the_repository(visit):
    links = visit.page.eval_on_selector_all(
        "a[href*='colab.research.google.com/github/']", "all => all.map(a => a.href)"
    )
    targets = [re.sub(r".*?/blob/[^/]+/", "", link.partition("#")[0]) for link in links]
    assert [t for t in targets if not (ROOT / t).is_file() or not t.endswith(".ipynb")] == []
    if visit.name.startswith("chapters/"):
        assert set(targets) == {visit.name.replace(".html", ".ipynb")}


def test_every_entry_of_the_errata_shows_what_its_cell_printed(address):
    entries = (SITE / "book/errata.html").read_text().split("<h3>")[1:]
    assert len(entries) > 1
    assert [entry[:80] for entry in entries if "cell_output" not in entry] == []
