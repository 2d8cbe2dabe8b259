"""The look of every page: its column, its bar, its boxes, and that nothing jumps."""

import re

import pytest

DESKTOP = {"width": 1280, "height": 900}
PHONE = {"width": 390, "height": 844}
TOUCH = 44  # CSS pixels, as WCAG 2.5.5 asks
SHIFTS = """() => {
    window.shift = 0;
    new PerformanceObserver(list => list.getEntries().forEach(entry => {
        if (!entry.hadRecentInput) window.shift += entry.value;
    })).observe({type: "layout-shift", buffered: true});
}"""
CHARACTERS = """() => [...document.querySelectorAll("article section > p")]
    .filter(p => p.textContent.length > 150 && !p.querySelector(".math") && !p.closest(".admonition"))
    .map(p => {
        const range = document.createRange();
        range.selectNodeContents(p);
        const width = [...range.getClientRects()].reduce((sum, line) => sum + line.width, 0);
        return p.textContent.length / width * p.clientWidth;
    })"""
BOXES = """() => [
    ...document.querySelectorAll("article :is(.proof, .exercise, .adv-predict, .recap)"),
    ...document.querySelectorAll("article :is(.adv-proof, .adv-hint, .solution)"),
    ...document.querySelectorAll("article section[id^='what-can-go-wrong']"),
].filter(box => box.checkVisibility()).map(box => {
    const style = getComputedStyle(box);
    const label = box.querySelector(".admonition-title, summary, h2, legend, strong");
    const edges = ["top", "right", "bottom", "left"].map(side =>
        `${side} ${style[`border-${side}-style`]} ${style[`border-${side}-width`]}`);
    return {
        label: label?.innerText ?? "",
        edges: edges.filter(edge => !edge.includes("none") && !edge.endsWith(" 0px")).join(", "),
        kind: [...box.classList].find(name => name !== "admonition") ?? box.tagName,
    };
})"""


@pytest.fixture
def phone(visit):
    """The page on a phone, at its top."""
    visit.page.set_viewport_size(PHONE)
    visit.page.evaluate("scrollTo({top: 0, behavior: 'instant'})")
    return visit.page


@pytest.fixture
def chapter_on_a_phone(visit, phone):
    """A chapter on a phone: other pages have no number and few sections."""
    if not visit.name.startswith("chapters/"):
        pytest.skip("not a chapter")
    return phone


def place(page) -> list[str]:
    """What the bar says: the page, and the section if one has been reached."""
    return [text for text in page.locator(".adv-place > span").all_inner_texts() if text]


def read(page) -> float:
    """How long the line of progress is, as a share of the bar."""
    return page.evaluate(
        """() => document.querySelector(".adv-progress").getBoundingClientRect().width
            / document.querySelector(".bd-header-article").getBoundingClientRect().width"""
    )


def go_to(page, heading: str):
    """Jump to a section as its link does, and wait for the next frame after it."""
    page.evaluate(
        """async id => {
            document.getElementById(id).scrollIntoView({behavior: "instant"});
            for (let frame = 0; frame < 3; frame++) await new Promise(requestAnimationFrame);
        }""",
        heading,
    )


def test_a_line_of_a_chapter_holds_60_to_80_characters(visit):
    lengths = sorted(visit.page.evaluate(CHARACTERS))
    if visit.name.startswith("chapters/"):
        assert lengths
        assert 60 <= lengths[len(lengths) // 2] <= 80


def test_the_bar_names_the_chapter_and_then_the_section_on_the_screen(visit, chapter_on_a_phone):
    page = chapter_on_a_phone
    number = int(re.search(r"/(\d\d)_", visit.name)[1])
    title = page.locator("article h1").evaluate(
        "h => [...h.childNodes].find(n => n.nodeType === 3).data"
    )
    opening = [f"{number} · {title.split(':')[0]}"]
    page.wait_for_function("!document.querySelector('.adv-place-section').textContent")
    assert place(page) == opening
    sections = page.locator("article section > h2:not(:has(.math, code))").evaluate_all(
        "all => all.map(h => [h.parentElement.id, [...h.childNodes].find(n => n.nodeType === 3).data])"
    )
    named = [(section, name) for section, name in sections if len(name) > 8][:3]
    assert named
    for section, name in named:
        go_to(page, section)
        assert place(page) == [*opening, name]


def test_the_line_of_progress_grows_with_what_is_read(chapter_on_a_phone):
    page = chapter_on_a_phone
    lengths = []
    for share in (0, 0.3, 0.6, 1):
        page.evaluate(
            """async share => {
                scrollTo({top: share * document.documentElement.scrollHeight, behavior: "instant"});
                for (let frame = 0; frame < 3; frame++) await new Promise(requestAnimationFrame);
            }""",
            share,
        )
        lengths.append(read(page))
    assert lengths == sorted(set(lengths))
    assert lengths[0] < 0.01
    assert lengths[-1] > 0.99


def test_a_button_leads_back_to_the_top(chapter_on_a_phone):
    page = chapter_on_a_phone
    button = page.get_by_role("button", name="Back to top")
    button.wait_for(state="hidden")  # the page hears of the jump to its top one frame later
    page.evaluate("scrollTo({top: 4000, behavior: 'instant'})")
    button.click()
    page.wait_for_function("scrollY === 0")


def test_the_bar_is_one_finger_high_and_covers_no_heading(chapter_on_a_phone):
    page = chapter_on_a_phone
    bar = page.locator(".bd-header-article")
    assert 48 <= bar.bounding_box()["height"] <= 56
    for section in page.eval_on_selector_all(
        "article section > h2", "all => all.map(h => h.parentElement.id)"
    ):
        go_to(page, section)
        top = page.locator(f"[id='{section}'] > h2").evaluate("h => h.getBoundingClientRect().top")
        assert top >= bar.bounding_box()["height"]


def test_a_finger_hits_every_button_of_the_bar_and_every_fold(phone):
    small = phone.eval_on_selector_all(
        ".bd-header-article :is(a, button), article details:not(.hide) > summary,"
        " .badge-link a, .prev-next-area a",
        """(all, touch) => all.filter(e => e.checkVisibility())
            .map(e => [e.outerHTML.slice(0, 100), e.getBoundingClientRect()])
            .filter(([, box]) => box.height < touch || box.width < touch).map(([html]) => html)""",
        TOUCH,
    )
    assert small == []


def test_every_box_has_a_label_and_an_edge(visit):
    boxes = visit.page.evaluate(BOXES)
    assert [box for box in boxes if not box["label"].strip() or not box["edges"]] == []


def test_kinds_of_boxes_differ_by_more_than_colour(visit):
    edges = {}
    for box in visit.page.evaluate(BOXES):
        edges.setdefault(box["edges"], set()).add(box["kind"])
    kinds_of_text = {"proof", "exercise", "adv-predict", "SECTION"}
    assert [kinds for kinds in edges.values() if len(kinds & kinds_of_text) > 1] == []


@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["1280", "390"])
def test_nothing_jumps_while_a_page_loads(visit, browser, address, size):
    context = browser.new_context(viewport=size)
    page = context.new_page()
    page.goto(visit.page.url.partition("#")[0], wait_until="load")
    page.evaluate(SHIFTS)
    page.evaluate("window.MathJax?.startup?.promise?.then(() => true)")
    page.evaluate("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
    shift = page.evaluate("window.shift")
    context.close()
    assert shift < 0.1
