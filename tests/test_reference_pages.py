"""Glossary, notation and formula sheet keep up with the chapters."""

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CHAPTERS = sorted(ROOT.glob("chapters/*.ipynb"))
LEADS = r"\*\*(?:Definition|Theorem|Lemma|Corollary|Proposition) \(.*?\)\.\*\*"
MERELY_STRESSED = {"worst", "robust"}


def page(name):
    return (ROOT / f"book/{name}.md").read_text("utf-8")


def cells(chapter):
    """The Markdown of a chapter that its readers see, without the deck's own."""
    every = json.loads(chapter.read_text("utf-8"))["cells"]
    return [
        c for c in every if c["cell_type"] == "markdown" and not "".join(c["source"]).startswith("<!--")
    ]


def entries():
    """[(terms, definition)] of the glossary."""
    blocks = page("glossary").partition("```{glossary}\n")[2].removesuffix("\n```\n").split("\n\n")
    split = [block.splitlines() for block in blocks]
    return [([t for t in lines if t[0] != " "], lines[-1].strip()) for lines in split]


def table(name, heading):
    """The rows of the first table below a heading."""
    rows = page(name).partition(f"## {heading}\n")[2].partition("\n## ")[0].splitlines()
    return [re.split(r" ?\| ?", row.strip("| ")) for row in rows if row.startswith("| ")][1:]


def test_every_numbered_statement_of_the_chapters_is_on_the_formula_sheet():
    labels = [
        c["metadata"]["prf"]["label"] for file in CHAPTERS for c in cells(file) if "prf" in c["metadata"]
    ]
    linked = set(re.findall(r"#([\w-]+)\)", page("formulas")))
    assert labels
    assert [label for label in labels if label not in linked] == []


def test_every_term_of_the_glossary_stands_there_once_and_in_alphabetical_order():
    first = [terms[0].lower() for terms, _ in entries()]
    every = [term.lower() for terms, _ in entries() for term in terms]
    assert first == sorted(first)
    assert len(every) == len(set(every))


def test_every_term_of_the_glossary_leads_to_the_chapter_that_introduces_it():
    assert [terms for terms, text in entries() if not re.search(r"\]\(\.\./chapters/\d\d_", text)] == []


@pytest.mark.parametrize("chapter", CHAPTERS, ids=lambda file: file.stem)
def test_every_term_that_a_chapter_introduces_in_bold_is_in_the_glossary(chapter):
    known = {term for terms, _ in entries() for term in terms} | MERELY_STRESSED
    text = "\n\n".join(
        re.sub(LEADS, "", "".join(c["source"])) for c in cells(chapter) if "badges" not in c["metadata"]
    )
    bold = [re.sub(r"\[(.*?)\]\(.*?\)", r"\1", b) for b in re.findall(r"\*\*([^*\n]+)\*\*", text)]
    terms = [b for b in bold if re.fullmatch(r"[a-z][\w+-]*(?: [\w-]+){0,3}", b)]
    inside = lambda term: any(re.search(rf"\b{re.escape(k)}", term) for k in known)  # noqa: E731
    assert [term for term in terms if not inside(term)] == []


def test_every_symbol_stands_once_in_the_notation_and_leads_to_its_chapter():
    rows = table("notation", "Symbols")
    symbols = [symbol for first, *_ in rows for symbol in re.findall(r"\$.*?\$", first)]
    assert len(symbols) == len(set(symbols))
    assert [row for row in rows if "](../chapters/" not in row[-1]] == []
