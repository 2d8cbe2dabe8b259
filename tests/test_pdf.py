"""The book as one page to print: every article once, unique ids, links that lead somewhere."""

import importlib.util
from pathlib import Path

import pytest
from bs4 import BeautifulSoup

PATH = Path(__file__).parents[1] / "book/_tools/pdf.py"
spec = importlib.util.spec_from_file_location("pdf", PATH)
pdf = importlib.util.module_from_spec(spec)
spec.loader.exec_module(pdf)

CONFIG = "title: The Book\nauthor: Us\nhtml: {baseurl: 'https://us.github.io/book/'}\n"
TOC = (
    "{root: book/index, parts: [{chapters: [{file: book/how}]}, {chapters: [{file: chapters/01_one}]}]}"
)
PAGE = """<html><head><link rel="stylesheet" href="../_static/book.css"></head><body><nav>menu</nav>
<article class="bd-article"><h1 id="top">{title}</h1>{body}</article></body></html>"""
CHAPTER = """<div class="badges">Colab</div><img src="../_images/a.png">
<details><summary>Proof</summary>Because.</details>
<details class="solution"><summary>Solution</summary>42</details>
<div class="adv-predict"><p>How many?</p>
<p class="adv-predict-answer fragment" hidden><strong>12.</strong> Few.</p>
<details><summary>Show the answer</summary>12. Few.</details></div>
<a href="../book/how.html#top">how</a> <a href="#top">up</a> <a href="01_one.html">here</a>
<a href="../slides/01_one.html">slides</a> <a href="https://example.org/x">elsewhere</a>"""


@pytest.fixture
def book(tmp_path):
    """The one page of a small book."""
    (tmp_path / "_config.yml").write_text(CONFIG)
    (tmp_path / "_toc.yml").write_text(TOC)
    (tmp_path / "pyproject.toml").write_text('[project]\nversion = "1.2"\n')
    for name, body in {"book/index": "", "book/how": "", "chapters/01_one": CHAPTER}.items():
        file = tmp_path / f"_build/html/{name}.html"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(PAGE.format(title=f"On {name[-3:]}", body=body))
    return BeautifulSoup(pdf.document(tmp_path), "html.parser")


def test_the_articles_come_in_the_order_of_the_contents_and_without_their_site(book):
    assert [h.text for h in book.select("h1")] == ["On dex", "On how", "On one"]
    assert [p.text for p in book.select(".contents a")] == ["On dex", "On how", "On one"]
    assert "menu" not in book.text
    assert "Edition 1.2" in book.text


def test_proofs_are_open_and_solutions_and_badges_left_out(book):
    assert [d.summary.text for d in book.select("details[open]")] == ["Proof"]
    assert "42" not in book.text
    assert "Colab" not in book.text


def test_the_answers_to_the_predictions_stand_together_at_the_end_of_their_chapter(book):
    *_, chapter = book.select("article")
    *_, last = chapter.find_all(recursive=False)
    assert [answer.text for answer in last.select("li")] == ["12. Few."]
    assert last.h2.text == "Answers to the predictions"
    assert chapter.text.count("Few.") == 1
    assert len(book.select(".adv-predict-answers")) == 1


def test_every_id_is_unique_and_every_link_inside_leads_to_one(book):
    ids = [element["id"] for element in book.select("[id]")]
    assert len(ids) == len(set(ids))
    inside = [a["href"][1:] for a in book.select("a[href^='#']")]
    assert len(inside) == 6
    assert set(inside) <= set(ids)


def test_other_links_lead_to_the_public_site_and_pictures_to_the_built_one(book):
    links = [a["href"] for a in book.select("article a[href^=http]")]
    assert links == ["https://us.github.io/book/slides/01_one.html", "https://example.org/x"]
    assert [image["src"] for image in book.select("img")] == ["html/_images/a.png"]
    assert [sheet["href"] for sheet in book.select("link")] == ["html/_static/book.css"]
