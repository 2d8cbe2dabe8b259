"""What the look of a page adds to its HTML."""

from types import SimpleNamespace

import page_look
import pytest
from bs4 import BeautifulSoup
from docutils import nodes

HTML = SimpleNamespace(builder=SimpleNamespace(name="html"))


def badges() -> nodes.document:
    """A line of badges as a chapter has it."""
    line = nodes.paragraph()
    line += [
        nodes.reference("", "Open in Colab"),
        nodes.Text(" · "),
        nodes.reference("", "Slides"),
        nodes.Text(" · 30 min to read, 20 min of exercises · needs: "),
        nodes.reference("", "Chapter 1"),
        nodes.Text(", above all norms"),
    ]
    document = nodes.document(SimpleNamespace(), None)
    document += nodes.container("", line, classes=["badges"])
    return document


def test_the_badges_of_a_chapter_are_a_list_of_links_a_time_and_needs():
    document = badges()
    page_look.badges_as_a_list(HTML, document, "chapters/01_linear_models")
    items = list(document.findall(nodes.list_item))
    assert [(item["classes"], item.astext().strip()) for item in items] == [
        (["badge-link"], "Open in Colab"),
        (["badge-link"], "Slides"),
        (["badge-time"], "30 min to read, 20 min of exercises"),
        (["badge-needs"], "needs: Chapter 1, above all norms"),
    ]


def test_a_deck_keeps_its_badges_as_they_are():
    document = badges()
    app = SimpleNamespace(builder=SimpleNamespace(name="deck"))
    page_look.badges_as_a_list(app, document, "chapters/01_linear_models")
    assert not list(document.findall(nodes.list_item))


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("<details><summary>Proof</summary>", '<details class="adv-proof"><summary>Proof</summary>'),
        ("<details><summary>Hint</summary>", '<details class="adv-hint"><summary>Hint</summary>'),
        ("<details><summary>Answers</summary>", "<details><summary>Answers</summary>"),
    ],
)
def test_proofs_and_hints_are_marked_and_nothing_else_is(body, expected):
    context = {"body": body}
    page_look.name_the_parts(HTML, "book/errata", "page.html", context, None)
    assert context["body"] == expected


def test_the_sidebar_sets_chapter_numbers_apart_and_lists_this_page_s_sections():
    tree = (
        '<ul><li><a href="00_introduction.html">Introduction</a></li>'
        '<li class="current"><a href="#">1 Linear models</a></li>'
        '<li><a href="../book/errata.html">Errata</a></li></ul>'
    )
    toc = '<ul><li class="toc-h2"><a class="nav-link" href="#margins">1.1 Margins</a></li></ul>'
    context = {
        "generate_toctree_html": lambda: BeautifulSoup(tree, "html.parser"),
        "generate_toc_html": lambda: BeautifulSoup(toc, "html.parser"),
    }
    page_look.contents_of_the_book(HTML, "chapters/01_linear_models", "page.html", context, None)
    made = context["generate_toctree_html"]()
    assert [number.get_text() for number in made.select(".adv-number")] == ["0", "1"]
    assert [title.get_text() for title in made.select(".adv-number + span")] == [
        "Introduction",
        "Linear models",
    ]
    assert [link["href"] for link in made.select("li.current > .adv-sections a")] == ["#margins"]
    assert made.select_one("a[href$='errata.html']").get_text() == "Errata"
