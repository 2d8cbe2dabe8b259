"""Code, output and tables in every page: quiet, whole, and within the reach of a thumb."""

import re

import pytest

PHONE = {"width": 390, "height": 844}
VISIBLE = "e => e.checkVisibility({ visibilityProperty: true })"
SCROLLERS = "main :is(pre, .pst-scrollable-table-container)"
ALIGNED = re.compile(r"\S {2,}\S+.*\S {2,}\S")  # three columns or more, by blanks


@pytest.fixture
def phone(visit):
    """The page on a phone."""
    visit.page.set_viewport_size(PHONE)
    return visit.page


@pytest.fixture
def open_folds(phone):
    """The page on a phone with everything open that folds."""
    phone.evaluate(
        """() => {
            window.wereShut = [...document.querySelectorAll("main details:not([open])")];
            window.wereShut.forEach(details => { details.open = true });
        }"""
    )
    phone.evaluate("new Promise(done => requestAnimationFrame(() => setTimeout(done)))")
    yield phone
    phone.evaluate("window.wereShut.forEach(details => { details.open = false })")


def test_no_two_folds_of_code_stand_together(visit):
    pairs = visit.page.eval_on_selector_all(
        "details.code-fold",
        """all => all.filter(fold => {
            const next = fold.parentElement.nextElementSibling;
            return next?.matches(".cell") && next.firstElementChild.matches("details.code-fold");
        }).map(fold => fold.innerText)""",
    )
    assert pairs == []


def test_the_code_of_a_figure_is_one_fold_right_below_it(visit):
    astray = visit.page.eval_on_selector_all(
        "main .tag_hide-input > .cell_output",
        """all => all.map(output => [output, output.nextElementSibling])
            .filter(([output, fold]) => !fold?.matches("details.code-fold, details.check-fold"))
            .map(([output]) => output.innerText.slice(0, 80))""",
    )
    assert astray == []


def test_the_fold_of_a_numbered_figure_has_its_number(visit):
    wrong = visit.page.eval_on_selector_all(
        "main .cell_output figure:has(.caption-number)",
        """all => all.map(f => [
                f.querySelector(".caption-number").innerText.trim(),
                f.closest(".cell").querySelector(":scope > .code-fold > summary")?.innerText.trim(),
            ]).filter(([number, words]) => words && !words.includes(number.match(/[\\d.]+$/)[0]))""",
    )
    assert wrong == []


def test_every_fold_of_code_opens_and_has_a_button_that_copies(visit):
    wrong = visit.page.evaluate(
        f"""() => {{
            const all = [...document.querySelectorAll("main details.code-fold")]
                .filter({VISIBLE});
            const shown = fold => ({VISIBLE})(fold.querySelector("pre"));
            const turn = () => all.forEach(fold => fold.querySelector("summary").click());
            const open = all.filter(shown);
            turn();
            const shut = all.filter(fold => !shown(fold)
                || fold.querySelectorAll("button.copybtn").length !== 1);
            turn();
            return [...open, ...shut, ...all.filter(shown)].map(fold => fold.innerText.slice(0, 80));
        }}"""
    )
    assert wrong == []


def test_a_fold_of_code_opens_and_shuts_by_keyboard(visit):
    fold = next(
        filter(lambda f: f.is_visible(), visit.page.query_selector_all("main details.code-fold")), None
    )
    for shown in (True, False) if fold else ():
        fold.query_selector("summary").press("Enter")
        assert fold.query_selector("pre").is_visible() == shown


def test_no_assertion_stands_open_in_a_cell(visit):
    texts = visit.page.eval_on_selector_all(
        ".cell > .cell_input pre", "all => all.map(pre => pre.textContent)"
    )
    assert [text for text in texts if re.search(r"^assert ", text, re.MULTILINE)] == []


def test_no_listing_of_more_than_thirty_lines_is_open(visit):
    open_ones = visit.page.eval_on_selector_all(
        "main .cell pre",
        f"""all => all.filter({VISIBLE}).filter(pre => {{
            const line = parseFloat(getComputedStyle(pre).lineHeight);
            return pre.closest("[class*=highlight-]").clientHeight > 31 * line + 40;
        }}).map(pre => pre.innerText.slice(0, 80))""",
    )
    assert open_ones == []


def test_a_long_listing_opens_by_keyboard_and_is_whole_on_paper(visit):
    page = visit.page
    for box in page.query_selector_all(".long"):
        height = "box => [box.firstElementChild.clientHeight, box.querySelector('pre').scrollHeight]"
        seen, whole = box.evaluate(height)
        assert seen < whole
        page.emulate_media(media="print")
        assert box.evaluate("box => box.firstElementChild.clientHeight") > seen
        page.emulate_media(media="screen")
        button = box.query_selector("input")
        button.focus()
        button.press("Space")
        seen, whole = box.evaluate(height)
        assert seen >= whole
        button.press("Space")


def test_output_that_stands_in_columns_by_blanks_is_a_table(visit):
    outputs = visit.page.eval_on_selector_all(
        "main .stream pre", "all => all.map(pre => pre.textContent)"
    )
    aligned = [
        text
        for text in outputs
        if not re.search(r"^(def|class|    def) ", text, re.MULTILINE)
        and sum(bool(ALIGNED.search(line)) for line in text.splitlines()) > 1
    ]
    assert aligned == []


def test_on_a_phone_no_code_output_or_table_is_wider_than_the_page(open_folds):
    wide = open_folds.eval_on_selector_all(
        "main :is(.cell_input, .cell_output, [class*=highlight-], .pst-scrollable-table-container)",
        """all => all.filter(e => e.getBoundingClientRect().right > innerWidth + 1)
            .map(e => e.outerHTML.slice(0, 120))""",
    )
    assert wide == []


def test_on_a_phone_everything_that_scrolls_is_reached_by_keyboard_and_shows_its_edge(open_folds):
    open_folds.wait_for_function(  # the theme waits a moment after the window has changed
        f"""() => [...document.querySelectorAll("{SCROLLERS}")]
            .filter(e => e.scrollWidth > e.clientWidth + 1).every(e => e.tabIndex === 0)"""
    )
    plain = open_folds.eval_on_selector_all(
        SCROLLERS,
        """all => all.filter(e => e.scrollWidth > e.clientWidth + 1).filter(e => {
            const look = getComputedStyle(e);
            const under = [...e.querySelectorAll("tr")].map(r => getComputedStyle(r).backgroundColor);
            return look.overflowX !== "auto"
                || !look.backgroundAttachment.startsWith("local, local, scroll, scroll")
                || under.some(colour => colour !== "rgba(0, 0, 0, 0)");
        }).map(e => e.outerHTML.slice(0, 120))""",
    )
    assert plain == []


def test_on_a_phone_a_wide_table_keeps_its_first_column_in_sight(open_folds):
    lost = open_folds.eval_on_selector_all(
        "main .pst-scrollable-table-container",
        """all => all.filter(e => e.scrollWidth > e.clientWidth + 1).filter(e => {
            e.scrollLeft = e.scrollWidth;
            const cell = e.querySelector("tbody td:first-child").getBoundingClientRect();
            const seen = Math.abs(cell.left - e.getBoundingClientRect().left) < 2;
            e.scrollLeft = 0;
            return !seen;
        }).map(e => e.innerText.slice(0, 80))""",
    )
    assert lost == []


def test_on_a_phone_every_cell_of_a_card_says_what_it_is(open_folds):
    silent = open_folds.eval_on_selector_all(
        ".cards tbody td",
        """all => all.filter(td => td.checkVisibility()).filter(td => {
            const head = td.closest("table").querySelectorAll("th")[td.cellIndex].textContent.trim();
            return head && !getComputedStyle(td, "::before").content.includes(head);
        }).map(td => td.innerText.slice(0, 80))""",
    )
    assert silent == []


def test_on_a_phone_what_is_pressed_is_large_enough_for_a_finger(phone):
    small = phone.eval_on_selector_all(
        "main :is(details.hide > summary, .long > label)",
        """all => all.filter(e => e.checkVisibility()).map(e => e.getBoundingClientRect())
            .filter(box => box.height < 44 || box.width < 44).length""",
    )
    assert small == 0
