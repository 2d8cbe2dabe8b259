"""The lecture decks, opened from disk without a network."""

import re
from pathlib import Path

import pytest

SITE = Path(__file__).parents[2] / "_build/html"


def words(text: str) -> str:
    """The text with every run of white space as one space."""
    return re.sub(r"\s+", " ", text).strip()


def test_the_deck_opens_from_disk_without_complaint_and_without_a_network(deck):
    assert deck.complaints == []
    assert deck.hosts() == set()
    assert deck.page.evaluate("Reveal.getTotalSlides()") > 3


def test_the_frame_is_16_to_9(deck):
    assert deck.page.evaluate("Reveal.getConfig().width / Reveal.getConfig().height") == (
        pytest.approx(16 / 9, rel=0.01)
    )


def test_no_slide_overflows_its_frame(deck):
    overflowing = deck.page.evaluate(
        """() => Reveal.getSlides().flatMap(slide => {
            const {h, v} = Reveal.getIndices(slide);
            Reveal.slide(h, v, 99);
            const outside = [...slide.querySelectorAll("*")].filter(element => {
                const part = element.closest("aside") || element.parentElement.closest("math");
                if (part || !element.checkVisibility()) return false;
                const box = element.getBoundingClientRect();
                return box.top < -1 || box.left < -1
                    || box.bottom > innerHeight + 1 || box.right > innerWidth + 1;
            });
            const title = slide.innerText.slice(0, 60);
            return outside.slice(0, 1).map(e => [h, v, title, e.outerHTML.slice(0, 99)]);
        })"""
    )
    deck.page.evaluate("Reveal.slide(0, 0)")
    assert overflowing == []


def test_no_slide_begins_empty(deck):
    first = deck.page.evaluate(
        """() => Reveal.getSlides().map(slide => {
            const {h, v} = Reveal.getIndices(slide);
            Reveal.slide(h, v, -1);
            const shown = kind => [...slide.querySelectorAll(kind)].filter(element =>
                !element.closest("aside") && (element.innerText.trim() || element.matches("img"))
                && element.checkVisibility({opacityProperty: true, visibilityProperty: true}));
            return {heading: shown("h1, h2").map(e => e.innerText).join(), content:
                shown("p, li, td, pre, img").filter(e => !e.closest("h1, h2")).length};
        })"""
    )
    deck.page.evaluate("Reveal.slide(0, 0)")
    assert [n for n, slide in enumerate(first, 1) if not slide["heading"]] == []
    assert [slide["heading"] for slide in first if not slide["content"]] == []


def test_every_slide_has_a_note(deck):
    silent = deck.page.evaluate(
        """() => Reveal.getSlides()
            .filter(slide => !slide.querySelector("aside.notes")?.textContent.trim())
            .map(slide => slide.textContent.slice(0, 60))"""
    )
    assert silent == []


def test_every_slide_links_to_its_section_of_the_book(deck):
    places = deck.page.evaluate(
        """() => Reveal.getSlides().map(slide => {
            const {h, v} = Reveal.getIndices(slide);
            Reveal.slide(h, v);
            const link = document.querySelector(".in-the-book");
            return link.checkVisibility() && link.tabIndex === 0 ? link.getAttribute("href") : null;
        })"""
    )
    deck.page.evaluate("Reveal.slide(0, 0)")
    page = f"../{deck.name.replace('slides/', 'chapters/')}"
    ids = set(re.findall(r'<section\b[^>]*? id="([^"]+)"', (SITE / "slides" / page).read_text()))
    assert [place for place in places if place not in {f"{page}#{name}" for name in ids}] == []
    assert len(set(places)) > 3


def test_captions_are_short_enough_to_read_while_looking(deck):
    captions = deck.page.eval_on_selector_all(
        "figcaption", "all => all.map(c => (c.querySelector('.caption-text') ?? c).textContent)"
    )
    assert captions
    assert [text for text in map(words, captions) if len(text.split()) > 20] == []


def test_the_speaker_notes_are_in_the_deck_and_not_in_the_book(deck):
    notes = [words(text) for text in deck.page.eval_on_selector_all(
        "aside.notes", "all => all.map(n => n.textContent)"
    )]  # fmt: skip
    sentences = {s for note in notes for s in re.split(r"(?<=[.?!]) ", note) if len(s) > 30}
    assert sentences
    page = (SITE / deck.name.replace("slides/", "chapters/")).read_text()
    book = words(re.sub(r"<[^>]+>", " ", page))
    assert [sentence for sentence in sentences if sentence in book] == []


def test_the_deck_has_a_live_demo_and_its_source_is_shown(deck):
    assert deck.page.query_selector(".live-demo ~ .cell_input pre")


def test_every_image_of_the_deck_says_what_it_shows(deck):
    alts = deck.page.eval_on_selector_all(".slides img", "all => all.map(i => i.alt)")
    assert [alt for alt in alts if len(alt.split()) < 2] == []


def test_the_mathematics_of_the_deck_is_set(deck):
    assert deck.page.query_selector(".slides math")
    assert deck.page.query_selector(".slides merror") is None
    text = deck.page.eval_on_selector(".slides", "all => all.textContent")
    assert re.findall(r".{0,40}(?:\$\$|\\\(|\\\[|\$\\).{0,40}", text) == []
    assert deck.page.evaluate("document.fonts.check('1em \\'STIX Two Math\\'')")


def test_every_slide_can_be_reached_by_keyboard(deck, record_property):
    slides = deck.page.evaluate("Reveal.getTotalSlides()")
    for number in range(slides):
        record_property("slides reached by keyboard", (deck.name, number))
        deck.screenshot(f"{number + 1:02d}")
        while deck.page.evaluate("Reveal.availableFragments().next"):
            deck.page.keyboard.press("Space")
        deck.page.keyboard.press("Space")
    assert deck.page.evaluate("Reveal.isLastSlide()")
