"""Let a chapter be an ordinary notebook, and a chapter of the book too.

A chapter's cells are plain Markdown and Python, so that Jupyter and Colab show them well. What only
the book needs (numbers, labels, boxes, slides) stands in cell metadata. While Sphinx reads the
notebook, `to_book` turns that metadata into MyST; CONTRIBUTING.md lists what an author can write.
"""

import json
import re
import sys
from pathlib import Path

GENTLE_LINK = re.compile(r"\[([^\]]+)\]\([\w./]*#((thm|def|lem|cor|prop|ex|fig|cite|term)-[\w-]+)\)")
COMMENT_CELL = re.compile(r"<!-- (slide|notes)\n(.*?)\n?-->\s*", re.DOTALL)
DETAILS = re.compile(r"\s*<details>\s*<summary>(.*?)</summary>(.*)</details>\s*", re.DOTALL)
NUMBERED = {"thm": "prf:ref", "def": "prf:ref", "lem": "prf:ref", "cor": "prf:ref",
            "prop": "prf:ref", "ex": "numref", "fig": "numref"}  # fmt: skip
KINDS = {"pencil": "pencil and paper", "code": "code", "break": "break it"}


def to_book(notebook: dict) -> dict:
    """The notebook as the book reads it: every cell translated, and every opened box closed."""
    cells, box = [], None
    for cell in notebook["cells"]:
        meta = cell["metadata"]
        if box and (box not in tags(cell) or "exercise" in meta):
            cells.append(closing(box, len(cells)))
            box = None
        cells.append(book_cell(cell))
        box = "exercise" if "exercise" in meta else "solution" if "solution_of" in meta else box
    if box:
        cells.append(closing(box, len(cells)))
    return notebook | {"cells": cells}


def to_student(notebook: dict) -> dict:
    """The notebook without solutions and without the lecturer's notes."""
    cells = [c for c in notebook["cells"] if "solution" not in tags(c) and slide_type(c) != "notes"]
    return notebook | {"cells": cells}


def tags(cell: dict) -> list[str]:
    """The cell's tags."""
    return cell["metadata"].get("tags", [])


def slide_type(cell: dict) -> str | None:
    """The cell's part in the deck: slide, subslide, fragment, notes, or None when it has none."""
    return cell["metadata"].get("slideshow", {}).get("slide_type")


def source(cell: dict) -> str:
    """The cell's text, which nbformat may store as a list of lines."""
    return "".join(cell["source"])


def book_cell(cell: dict) -> dict:
    """One cell in the book's own syntax."""
    if cell["cell_type"] == "markdown":
        return cell | {"source": book_markdown(cell)}
    if "solution" in tags(cell):  # the form title is for Colab
        return cell | {"source": re.sub(r"\A# @title.*\n", "", source(cell))}
    return cell


def book_markdown(cell: dict) -> str:
    """The MyST of a Markdown cell, between marks that tell the deck where its slides are."""
    meta, text = cell["metadata"], references(source(cell))
    if comment := COMMENT_CELL.fullmatch(text):
        text = f"::::::{{container}} deck-only\n{comment[2]}\n::::::"
    elif "prf" in meta:
        text = theorem(meta["prf"], without_first_line(text))
    elif "exercise" in meta:
        text = exercise(meta["exercise"], without_first_line(text))
    elif "solution_of" in meta:
        text = '<details class="solution">\n<summary>Solution</summary>\n\n' + details_body(text)
    elif "badges" in meta:
        text = f":::{{container}} badges\n{text}\n:::"
    kind = slide_type(cell)
    return f"% slide: {kind}\n\n{text}\n\n% slide: end" if kind else text


def theorem(prf: dict, text: str) -> str:
    """A numbered theorem, lemma, definition, …"""
    return f"::::{{prf:{prf['kind']}}} {prf.get('title', '')}\n:label: {prf['label']}\n\n{text}\n::::"


def exercise(ex: dict, text: str) -> str:
    """The opening of a numbered exercise; `closing` ends it after the stub."""
    return (
        f":::{{exercise-start}} {ex['title']}\n:label: {ex['label']}\n:class: {ex['kind']}\n:::\n\n"
        f'<p class="exercise-kind"><span>{KINDS[ex["kind"]]}</span> {ex["minutes"]} min</p>\n\n{text}'
    )


def closing(box: str, index: int) -> dict:
    """The cell that ends an exercise or a solution."""
    text = {"exercise": ":::{exercise-end}\n:::", "solution": "</details>"}[box]
    return {"cell_type": "markdown", "id": f"end-{index}", "metadata": {}, "source": text}


def references(text: str) -> str:
    """Gentle links as roles: [Theorem (dual norm)](#thm-dual-norm) becomes “Theorem 1.2”.

    A link to an item keeps its own words unless they begin with the item's kind.
    """

    def role(match: re.Match) -> str:
        words, label, kind = match.groups()
        if kind == "cite":
            return f"{{cite:t}}`{label.removeprefix('cite-')}`"
        if kind == "term":
            return f"{{term}}`{words} <{label.removeprefix('term-').replace('-', ' ')}>`"
        if re.match(r"(theorem|definition|lemma|corollary|proposition|exercise|figure)\b", words, re.I):
            return f"{{{NUMBERED[kind]}}}`{label}`"
        return f"{{{NUMBERED[kind].replace('numref', 'ref')}}}`{words} <{label}>`"

    return GENTLE_LINK.sub(role, text)


def without_first_line(text: str) -> str:
    """The text without the heading that only Jupyter's readers need."""
    return text.partition("\n")[2].strip()


def details_body(text: str) -> str:
    """What stands inside a <details> block."""
    match = DETAILS.fullmatch(text)
    if not match:
        raise ValueError(f"a solution's text is not one <details> block: {text[:60]!r}")
    return match[2].strip()


def read_source(app, docname: str, content: list[str]) -> None:
    """Hand Sphinx the translated text in place of the file's."""
    if str(app.env.doc2path(docname)).endswith(".ipynb"):
        content[0] = json.dumps(to_book(json.loads(content[0])))
    else:
        content[0] = references(content[0])


def setup(app) -> dict:
    """Register with Sphinx."""
    app.connect("source-read", read_source)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def write_student_copies(folder: Path, chapters: list[Path]) -> None:
    """Write each chapter without its solutions into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    for chapter in chapters:
        copy = to_student(json.loads(chapter.read_text(encoding="utf-8")))
        text = json.dumps(copy, indent=1, ensure_ascii=False) + "\n"
        (folder / chapter.name).write_text(text, encoding="utf-8")
        print(folder / chapter.name)


if __name__ == "__main__":
    write_student_copies(Path(sys.argv[1]), [Path(name) for name in sys.argv[2:]])
