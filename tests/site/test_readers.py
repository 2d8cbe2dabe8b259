"""What a reader does in the book itself; test_search finds a word, test_answers does an exercise."""

import re

import pytest


@pytest.fixture
def introduction(browser, address):
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    page = context.new_page()
    page.goto(f"{address}/chapters/00_introduction.html")
    yield page
    context.close()


def test_a_prediction_made_in_chapter_0_is_kept_when_the_page_is_loaded_again(introduction):
    page = introduction
    asked = page.locator(".adv-predict").first
    asked.locator("input[type=number]").fill("90")
    asked.get_by_role("button", name="Commit").click()
    told = asked.locator(".adv-predict-result").inner_text()
    assert "You said 90" in told
    page.reload()
    assert asked.locator(".adv-predict-result").inner_text() == told


def test_the_figure_that_settles_a_prediction_is_veiled_until_its_reader_has_answered(introduction):
    page = introduction
    veiled = page.locator(".adv-veiled")
    before = veiled.count()
    assert before == page.locator(".adv-predict").count()
    page.locator(".adv-predict .adv-predict-skip").first.click()
    assert veiled.count() == before - 1
    veiled.first.click()
    assert veiled.count() == before - 2


def test_chapter_0_opens_with_a_figure_that_moves_and_shows_no_code_before_it(introduction):
    figure = introduction.locator("figure.adv-slider").first
    assert figure.bounding_box()["y"] < 900
    before = figure.locator("img").get_attribute("src")
    figure.locator("input[type=range]").press("End")
    assert figure.locator("img").get_attribute("src") != before
    written, read = re.search(
        r"The (\d) .* reads a (\d)", figure.locator(".adv-says").inner_text()
    ).groups()
    assert written != read
    above = introduction.evaluate(
        """() => [...document.querySelectorAll("main pre, main details")]
            .filter(e => e.checkVisibility() && e.compareDocumentPosition(
                document.querySelector("figure.adv-slider")) & Node.DOCUMENT_POSITION_FOLLOWING)
            .map(e => e.outerHTML.slice(0, 100))"""
    )
    assert above == []


def test_the_index_leads_to_the_first_attack_and_chapter_0_to_chapter_1(browser, address):
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.goto(f"{address}/book/index.html")
    page.get_by_role("link", name="Start: your first attack").click()
    assert page.url.endswith("chapters/00_introduction.html")
    page.locator(".prev-next-footer a.right-next").click()
    assert page.url.endswith("chapters/01_linear_models.html")
    page.close()
