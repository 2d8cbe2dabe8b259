"""Let a chapter be an ordinary notebook, and a chapter of the book too.

A chapter's cells are plain Markdown and Python, so that Jupyter and Colab show them well. What only
the book needs (numbers, labels, boxes, slides) stands in cell metadata. While Sphinx reads the
notebook, `to_book` turns that metadata into MyST; CONTRIBUTING.md lists what an author can write.
"""

import json
import os
import re
import sys
from functools import cache
from pathlib import Path

GLOSSARY = Path(__file__).parents[1] / "glossary.md"
SLIDE_END = "% slide: end"
GENTLE_LINK = re.compile(
    r"\[([^\]]+)\]\([\w./]*#((thm|def|lem|cor|prop|ex|fig|err|cite|term)-[\w-]+|(adv_lib)\.[\w.]+)\)"
)
NUMBERED_WORDS = re.compile(r"(theorem|definition|lemma|corollary|proposition|exercise|figure)\b", re.I)
COMMENT_CELL = re.compile(r"<!-- (slide|notes)\n(.*?)\n?-->\s*", re.DOTALL)
DETAILS = re.compile(r"\s*<details>\s*<summary>.*?</summary>(.*)</details>\s*", re.DOTALL)
LEAD = re.compile(r"\A(\*\*.+?\*\*|#+ .*)\s*")  # **Theorem (…).**, **So far.** or ### Exercise: …
FORM_TITLE = re.compile(r"\A# @title.*\n")
TIMING = re.compile(r"Timing: (\d+) minutes?\b[^.]*\.")
KINDS = {"pencil": "pencil and paper", "code": "code", "break": "break it"}
DIFFICULTIES = ("easy", "moderate", "hard")
IMPORTANCES = ("essential", "useful", "extra")  # later chapters or the argument lean on the first
NBGRADER_CONFIG = """c = get_config()
c.CourseDirectory.course_id = "adversarial-robustness"
c.ClearSolutions.code_stub = {"python": ""}  # the stubs are in the notebooks
c.ExecutePreprocessor.timeout = 3600  # seconds a cell
"""


def to_book(notebook: dict) -> dict:
    """The notebook as the book reads it: every cell translated, and every opened box closed."""
    cells, opener = [], None  # opener: the cell whose exercise or solution is still open
    for cell in notebook["cells"]:
        if opener and (box(opener) not in tags(cell) or box(cell)):
            cells.append(closing(opener, len(cells)))
            opener = None
        cells.append(book_cell(cell))
        opener = cell if box(cell) else opener
    if opener:
        cells.append(closing(opener, len(cells)))
    return notebook | {"cells": cells}


def to_student(notebook: dict) -> dict:
    """The notebook without solutions and without the lecturer's notes."""
    cells = [c for c in notebook["cells"] if "solution" not in tags(c) and slide_type(c) != "notes"]
    return notebook | {"cells": cells}


def to_nbgrader(notebook: dict) -> dict:
    """The notebook as nbgrader's source: every stub holds its solution, and a graded test follows it.

    `nbgrader generate_assignment` takes the solutions out again. A test is worth its exercise's minutes.
    """
    answers, cells, asked = solutions(notebook), [], None
    for cell in to_student(notebook)["cells"]:
        asked = cell["metadata"].get("exercise", asked)
        checked = "exercise" in tags(cell) and source(cell).splitlines()[-1].startswith("check.")
        cells += graded(cell, asked, answers[asked["label"]]) if checked else [cell]
    return notebook | {"cells": cells}


def solutions(notebook: dict) -> dict[str, str]:
    """The code that solves each exercise, by the exercise's label."""
    found, label = {}, None
    for cell in notebook["cells"]:
        label = cell["metadata"].get("solution_of", label)
        if "solution" in tags(cell) and cell["cell_type"] == "code":
            found[label] = found.get(label, "") + FORM_TITLE.sub("", source(cell)) + "\n"
    return found


def graded(stub: dict, asked: dict, answer: str) -> list[dict]:
    """The stub with its solution between nbgrader's marks, and the locked cell that gives the points."""
    *lines, call = source(stub).splitlines()
    label, points = asked["label"], asked["minutes"]
    marked = [*lines, "### BEGIN SOLUTION", answer.rstrip("\n"), "### END SOLUTION", call]
    test = [f"# {points} points", f"verdict = {call}", 'assert verdict.status == "passes", verdict']
    new = {"cell_type": "code", "id": f"test-{label}", "execution_count": None, "outputs": []}
    return [
        stub | with_role(stub["metadata"], marked, grade_id=label, solution=True, locked=False),
        new | with_role({}, test, grade_id=f"test-{label}", grade=True, points=points),
    ]


def with_role(metadata: dict, lines: list[str], **role) -> dict:
    """A cell's text and metadata with its role in nbgrader; it is locked unless that says otherwise."""
    plain = {"schema_version": 3, "grade": False, "solution": False, "task": False, "locked": True}
    return {"source": "\n".join(lines), "metadata": metadata | {"nbgrader": plain | role}}


def tags(cell: dict) -> list[str]:
    """The cell's tags."""
    return cell["metadata"].get("tags", [])


def slide_type(cell: dict) -> str | None:
    """The cell's part in the deck: slide, subslide, fragment, notes, or None when it has none."""
    return cell["metadata"].get("slideshow", {}).get("slide_type")


def box(cell: dict) -> str | None:
    """The box that the cell opens, named like the tag of the cells that belong to it."""
    meta = cell["metadata"]
    return "exercise" if "exercise" in meta else "solution" if "solution_of" in meta else None


def source(cell: dict) -> str:
    """The cell's text, which nbformat may store as a list of lines."""
    return "".join(cell["source"])


def book_cell(cell: dict) -> dict:
    """One cell in the book's own syntax."""
    if cell["cell_type"] == "markdown":
        return cell | {"source": book_markdown(cell)}
    return cell | {"source": FORM_TITLE.sub("", source(cell))}


def book_markdown(cell: dict) -> str:
    """The MyST of a Markdown cell, between marks that tell the deck where its slides are."""
    meta, text = cell["metadata"], references(source(cell))
    if comment := COMMENT_CELL.fullmatch(text):
        text = f"::::::{{container}} deck-only\n{comment[2]}\n::::::"
    elif "prf" in meta:
        text = theorem(meta["prf"], LEAD.sub("", text))
    elif "exercise" in meta:
        text = exercise(meta["exercise"], LEAD.sub("", text))
    elif "solution_of" in meta:
        text = '<details class="solution">\n<summary>Solution</summary>\n\n' + details_body(text)
    elif "recap" in meta:
        text = f":::{{admonition}} So far\n:class: recap\n\n{LEAD.sub('', text)}\n:::"
    elif "badges" in meta:
        text = f":::{{container}} badges\n{text}\n:::"
    if not slide_type(cell):
        return text
    return f"% slide: {slide_type(cell)}\n\n{text}\n\n" + ("" if box(cell) else SLIDE_END)


def theorem(prf: dict, text: str) -> str:
    """A numbered theorem, lemma, definition, …"""
    return f"::::{{prf:{prf['kind']}}} {prf.get('title', '')}\n:label: {prf['label']}\n\n{text}\n::::"


def exercise(ex: dict, text: str) -> str:
    """The opening of a numbered exercise; `closing` ends it after the stub."""
    marks = f"{ex['minutes']} min · {ex['difficulty']} · {ex['importance']}"
    return (
        f":::{{exercise-start}} {ex['title']}\n:label: {ex['label']}\n:class: {ex['kind']}\n:::\n\n"
        f'<p class="exercise-kind"><span>{KINDS[ex["kind"]]}</span> {marks}</p>\n\n{text}'
    )


def closing(opener: dict, index: int) -> dict:
    """The cell that ends the exercise or the solution that `opener` began."""
    text = {"exercise": ":::{exercise-end}\n:::\n\n", "solution": "</details>\n\n"}[box(opener)]
    text += SLIDE_END if slide_type(opener) else ""
    return {"cell_type": "markdown", "id": f"end-{index}", "metadata": {}, "source": text}


def references(text: str) -> str:
    """Gentle links as roles: [Theorem (dual norm)](#thm-dual-norm) becomes “Theorem 1.2”.

    Words that do not begin with the kind of item are kept: [Hölder](#thm-dual-norm) stays “Hölder”.
    """
    return GENTLE_LINK.sub(lambda link: role(link[1], link[2], link[3] or link[4]), text)


def role(words: str, label: str, kind: str) -> str:
    """The MyST role of one gentle link."""
    if kind == "cite":
        return f"{{cite:t}}`{label.removeprefix('cite-')}`"
    if kind == "adv_lib":
        return f"{{py:obj}}`{words.strip('`')} <{label}>`"
    if kind == "term":
        anchor = label.removeprefix("term-")
        return f"{{term}}`{words} <{glossary().get(anchor, anchor)}>`"
    plain, numbered = ("ref", "numref") if kind in ("ex", "fig", "err") else ("prf:ref", "prf:ref")
    if NUMBERED_WORDS.match(words):
        return f"{{{numbered}}}`{label}`"
    return f"{{{plain}}}`{words} <{label}>`"


@cache
def glossary() -> dict[str, str]:
    """The glossary's terms by what follows #term- in a link: "min-max-problem" → "min-max problem"."""
    entries = GLOSSARY.read_text(encoding="utf-8").partition("```{glossary}")[2]
    terms = re.findall(r"^(?![\s`]).+$", entries, re.MULTILINE)
    return {re.sub(r"[^a-z0-9]+", "-", term.lower()).strip("-"): term for term in terms}


def details_body(text: str) -> str:
    """What stands inside a <details> block."""
    match = DETAILS.fullmatch(text)
    if not match:
        raise ValueError(f"a solution's text is not one <details> block: {text[:60]!r}")
    return match[1].strip()


def read_source(app, docname: str, content: list[str]) -> None:
    """Hand Sphinx the translated text in place of the file's."""
    if str(app.env.doc2path(docname)).endswith(".ipynb"):
        content[0] = json.dumps(to_book(json.loads(content[0])))
    else:
        content[0] = references(content[0])


def setup(app) -> dict:
    """Register with Sphinx, and hide progress bars: a page would keep their first frame."""
    os.environ.setdefault("TQDM_DISABLE", "1")
    app.connect("source-read", read_source)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def write(copies: dict[Path, dict]) -> None:
    """Write each notebook to its path."""
    for path, notebook in copies.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps(notebook, indent=1, ensure_ascii=False) + "\n"
        path.write_text(text, encoding="utf-8")
        print(path)


def main(kind: str, folder: Path, chapters: list[Path]) -> None:
    """Write the chapters for students, or for nbgrader as a course of one assignment a chapter."""
    read = {chapter: json.loads(chapter.read_text(encoding="utf-8")) for chapter in chapters}
    if kind == "student":
        write({folder / chapter.name: to_student(notebook) for chapter, notebook in read.items()})
    elif kind == "nbgrader":
        source_folder = folder / "source"
        write({source_folder / c.stem / c.name: to_nbgrader(n) for c, n in read.items()})
        (folder / "nbgrader_config.py").write_text(NBGRADER_CONFIG, encoding="utf-8")
    else:
        raise SystemExit(f"expected student or nbgrader, got {kind}")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), [Path(name) for name in sys.argv[3:]])
