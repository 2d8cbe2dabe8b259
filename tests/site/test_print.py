"""Every page of the built book, on paper."""

import pytest

A4 = {"width": 658, "height": 986}  # 210 × 297 mm without margins of 18 mm, in CSS pixels
ON_SCREEN_ONLY = (
    ".bd-sidebar-primary, .bd-sidebar-secondary, .bd-header, .bd-header-article, .prev-next-footer,"
    " .badges, .headerlink, .copybtn, .toggle-button, figure.adv-slider :is(input, button)"
)
CUT_OFF = """width => [...document.querySelectorAll(
        "main :is(p, li, td, dt, dd, pre, table, img, math)")]
    .filter(e => e.checkVisibility())
    .filter(e => e.getBoundingClientRect().right > width + 1
        || (e.matches("pre, td, dt") && e.scrollWidth > e.clientWidth + 1))
    .map(e => e.outerHTML.slice(0, 150))"""


@pytest.fixture(params=["light", "dark"])
def printed(request, visit):
    """The page as it is printed from a window in light or dark mode."""
    page = visit.page
    page.emulate_media(color_scheme=request.param)
    page.wait_for_function("s => document.documentElement.dataset.theme === s", arg=request.param)
    page.set_viewport_size(A4)
    page.emulate_media(media="print", color_scheme=request.param)
    page.wait_for_function("document.documentElement.dataset.theme === 'light'")
    return page


def test_sidebars_and_buttons_are_not_printed(printed):
    left = printed.eval_on_selector_all(
        ON_SCREEN_ONLY, "all => all.filter(e => e.checkVisibility()).map(e => e.outerHTML.slice(0, 100))"
    )
    assert left == []


def test_nothing_is_wider_than_a4(printed):
    assert printed.evaluate(CUT_OFF, A4["width"]) == []
    assert printed.evaluate("document.documentElement.scrollWidth") <= A4["width"]


def test_paper_is_white_and_the_text_on_it_dark(printed):
    colours = printed.evaluate(
        """() => ["backgroundColor", "color"].map(
            name => getComputedStyle(document.querySelector("main article") ?? document.body)[name]
                .match(/[\\d.]+/g).map(Number))"""
    )
    paper, ink = colours
    assert paper in ([255, 255, 255], [0, 0, 0, 0])
    assert max(ink[:3]) < 100


def test_proofs_and_hints_are_open_on_paper_and_shut_again_after(visit):
    folded = "main details:not([open], .solution, .hide)"
    before = visit.page.locator(folded).count()
    visit.page.emulate_media(media="print")
    visit.page.wait_for_function("s => !document.querySelector(s)", arg=folded)
    visit.page.emulate_media(media="screen")
    visit.page.wait_for_function(
        "([s, n]) => document.querySelectorAll(s).length === n", arg=[folded, before]
    )


def test_a_solution_is_printed_only_if_its_reader_opened_it(visit):
    visit.page.emulate_media(media="print")
    shut = visit.page.eval_on_selector_all("main details.solution", "all => all.map(d => d.open)")
    visit.page.emulate_media(media="screen")
    assert not any(shut)
