"""The lists of exercises, lectures and sessions, as a small book of two chapters shows them."""

import json
import re
import sys
from html import unescape
from pathlib import Path

import pytest
from sphinx.application import Sphinx
from sphinx.util.docutils import docutils_namespace, patch_docutils

ROOT = Path(__file__).parents[1]

PAGE = """# Page

:::{chapter-cards}
:::

:::{exercise-list}
:::

:::::{lecture-plan}

=== 01_sums

Say that **order** does not matter.
:::::

:::{course-plan}
:start: "9:50"

- {session: lecture, decks: [0, 1], class: [ex-add]}
- {session: lunch, minutes: 45}
- {session: lab, class: [1], home: [ex-carry]}
:::
"""


def slide(title):
    return markdown(f"<!-- slide\n## {title}\n-->", slideshow={"slide_type": "slide"})


def notes(text):
    return markdown(f"<!-- notes\n{text}\n-->", slideshow={"slide_type": "notes"})


def markdown(text, **metadata):
    return {"cell_type": "markdown", "id": f"m{abs(hash(text))}", "metadata": metadata, "source": text}


def exercise(label, title, minutes, kind, importance="essential"):
    asked = {"label": label, "title": title, "minutes": minutes, "kind": kind}
    asked |= {"difficulty": "easy", "importance": importance}
    return markdown(f"### Exercise: {title} ({minutes} min)\n\nDo.", exercise=asked)


LIVE = {
    "cell_type": "code",
    "id": "live",
    "execution_count": None,
    "outputs": [],
    "source": "print(1 + 1)",
}
BADGES = markdown(
    "[Open in Colab](https://colab.test/sums) · [Slides](s) · 30 min to read, 17 min of exercises · "
    "needs: [Chapter 1](01_sums.ipynb) and patience",
    badges=True,
)
SUMS = [
    markdown("# Sums: easy\n\n**What is one and one?**", slideshow={"slide_type": "slide"}),
    BADGES,
    slide("Why"),
    notes("Ask who can add. Timing: 5 minutes."),
    LIVE | {"metadata": {"tags": ["live-demo"], "slideshow": {"slide_type": "slide"}}},
    exercise("ex-add", "Add", 10, "code"),
    exercise("ex-carry", "Carry", 7, "pencil", "useful"),
    notes("Show. Timing: 12 minutes with the demo."),
    markdown("## Apart\n\n★ *Not needed for what follows.*"),
    slide("More"),
    notes("Skip. Timing: 3 minutes."),
    markdown("## Before you leave\n\nOne?", slideshow={"slide_type": "slide"}),
    notes("Ask. Timing: 2 minutes."),
]
PRODUCTS = [
    markdown("# Products\n\n**And one times one?**", slideshow={"slide_type": "slide"}),
    BADGES,
    exercise("ex-times", "Times", 20, "break"),
    notes("Timing: 1 minute."),
]


def write(folder: Path, name: str, cells: list) -> None:
    """A chapter of the small book."""
    notebook = {"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 5}
    (folder / f"{name}.ipynb").write_text(json.dumps(notebook), encoding="utf-8")


def build(folder: Path) -> str:
    """The text of the page, tags removed, after an (incremental) build."""
    settings = {
        "extensions": ["sphinx_external_toc", "sphinx_exercise", "myst_nb", "chapter_cells", "overview"],
        "external_toc_path": "_toc.yml",
        "myst_enable_extensions": ["colon_fence"],
        "nb_execution_mode": "off",
        "html_baseurl": "https://example.org/",
        "numfig": True,
    }
    with patch_docutils(), docutils_namespace():
        out = folder.parent / "built"
        Sphinx(folder, None, out / "html", out / "trees", "html", settings, None, None).build()
    html = (out / "html/page.html").read_text(encoding="utf-8")
    return " ".join(unescape(re.sub(r"<[^>]*>", " ", html)).split())


@pytest.fixture
def book(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "book/_ext")
    folder = tmp_path / "book"
    folder.mkdir()
    (folder / "page.md").write_text(PAGE, encoding="utf-8")
    toc = {"root": "page", "entries": [{"file": "01_sums"}, {"file": "02_products"}]}
    (folder / "_toc.yml").write_text(json.dumps(toc))
    write(folder, "01_sums", SUMS)
    write(folder, "02_products", PRODUCTS)
    yield folder
    for name in ("chapter_cells", "overview"):
        sys.modules.pop(name, None)


def test_the_lists_show_what_the_chapters_say_and_follow_them(book):
    text = build(book)
    assert "1 Sums: easy What is one and one? 30 minutes" in text
    assert "Sums: easy 1 1 0 2 17 10 Products 0 0 1 1 20 20 All 1 1 1 3 37 30" in text
    assert "1 Add 10 code easy essential Exercise 2 Carry 7 pencil and paper easy useful All 17" in text
    assert "Slides (19 minutes and ★ 3)" in text
    assert "5 Sums: easy · Why Ask who can add. 12 Why Show. ★ 3 More Skip. 2 Before you" in text
    assert "leave Ask. 19 and ★ 3 5 slides" in text
    assert re.search(r"Run this live Why: print *\( *1 *\+ *1 *\)", text)
    assert "Say that order does not matter." in text
    assert "9:50 lecture slides of Sums (19); Add (10) 29" in text
    assert "10:19 lunch 45 11:04 lab Add (10); Carry (7) 17 Carry (7) 7 All 91 7" in text
    assert "Not in this plan: slides of Products (1); exercises of 20 minutes." in text

    write(book, "02_products", [*PRODUCTS[:2], exercise("ex-times", "Times", 25, "break"), PRODUCTS[-1]])
    assert "All 1 1 1 3 42 35" in build(book)

    write(
        book,
        "00_start",
        [markdown("# Start\n\n**Go?**", slideshow={"slide_type": "slide"}), BADGES, PRODUCTS[-1]],
    )
    toc = {"root": "page", "entries": [{"file": f"0{n}"} for n in ("0_start", "1_sums", "2_products")]}
    (book / "_toc.yml").write_text(json.dumps(toc))
    text = build(book)
    assert "Start 0 0 0 0 0 0 Sums: easy" in text
    assert "lecture slides of Start (1); slides of Sums (19); Add (10) 30" in text


def test_a_slide_without_minutes_is_an_error(book):
    write(book, "01_sums", [*SUMS, slide("Untimed")])
    with pytest.raises(ValueError, match=r"01_sums: no note with a timing follows .*Untimed"):
        build(book)


def test_a_plan_with_an_exercise_that_does_not_exist_is_an_error(book):
    (book / "page.md").write_text(PAGE.replace("[ex-carry]", "[ex-curry]"), encoding="utf-8")
    with pytest.raises(ValueError, match="ex-curry"):
        build(book)


def test_a_deck_of_two_sittings_is_cut_at_a_slide(book):
    plan = "- {session: lecture, decks: [0, 1], class: [ex-add]}"
    halves = "- {session: one, decks: [1], until: Rest}\n- {session: two, decks: [1], from: Rest}"
    (book / "page.md").write_text(PAGE.replace(plan, halves), encoding="utf-8")
    with pytest.raises(ValueError, match=r"no stretch of slides begins with .*'Rest'"):
        build(book)

    write(book, "01_sums", [*SUMS[:4], slide("Rest"), notes("Timing: 3 minutes."), *SUMS[4:]])
    text = build(book)
    assert re.search(r"one slides of Sums up to Rest \(5\) 5", text)
    assert re.search(r"two slides of Sums from Rest on \(17\) 17", text)
