"""The decks' extension: what a slide shows at first, and how long its captions are."""

import importlib.util
from pathlib import Path

import pytest
from docutils import nodes

PATH = Path(__file__).parents[1] / "book/_ext/deck.py"
spec = importlib.util.spec_from_file_location("deck", PATH)
deck = importlib.util.module_from_spec(spec)
spec.loader.exec_module(deck)


@pytest.fixture
def section():
    return nodes.section("", nodes.title("", "Dual norms"), ids=["dual-norms"])


def fragments(slide):
    return [node for node in slide.shown if "fragment" in node.get("classes", [])]


def test_a_slide_without_a_heading_takes_the_one_of_its_section(section):
    slide = deck.Slide(section, [nodes.paragraph("", "text")])
    assert [node.astext() for node in slide.shown] == ["Dual norms", "text"]
    own = deck.Slide(section, [nodes.rubric("", "Mine", level=2)])
    assert [node.astext() for node in own.shown] == ["Mine"]


def test_a_slide_that_is_only_a_heading_shows_its_first_fragment_at_once(section):
    slide = deck.Slide(section, [nodes.rubric("", "Ask", level=2)])
    slide.uncover([nodes.paragraph("", "at once")])
    slide.uncover([nodes.paragraph("", "later")])
    assert [node.astext() for node in fragments(slide)] == ["later"]


def test_a_question_keeps_its_answer_covered(section):
    slide = deck.Slide(
        section,
        [nodes.rubric("", "Ask", level=2), nodes.block_quote("", nodes.paragraph("", "How many?"))],
    )
    slide.uncover([nodes.paragraph("", "seven")])
    assert [node.astext() for node in fragments(slide)] == ["seven"]


@pytest.mark.parametrize(
    ("caption", "said"),
    [
        ("Three norms. Blue is clean.", "Three norms."),
        ("The relaxed unit. Move l and u.", "The relaxed unit."),
        ("Sizes of 0.01 (red) and more. Left: all.", "Sizes of 0.01 (red) and more."),
        ("The same network, " + "more and " * 9 + "more words.", "The same network."),
        ("Weights (red adds " + "a lot and " * 6 + "ink), the sum.", "Weights, the sum."),
        ("No " + "place to stop " * 7 + "at.", "No " + "place to stop " * 7 + "at."),
    ],
)
def test_a_caption_is_its_first_sentence_or_as_much_of_it_as_takes_one_breath(caption, said):
    assert deck.brief(caption) == said
