"""How many minutes a chapter takes to read, counted from its cells.

A reader gets as far as *Before you leave*: what follows is looked up. Exercises have minutes of
their own, and what is folded, proofs and code, is not counted. Sections with a ★ are counted by
themselves. Readers of chapters 2 to 5 needed as long, or up to a third more.
"""

import re
from collections import Counter
from collections.abc import Iterator

from chapter_cells import COMMENT_CELL, source, tags

MINUTES = {
    "word": 1 / 200,
    "formula": 1.5,
    "symbol": 0.1,  # a formula in the text
    "line": 1 / 12,  # of code that is shown
    "picture": 1.0,  # a figure, a table or a prediction
}
STAR = "★ *"
SKIPPED = "★ *Not needed"  # a section that nothing leans on; a second sitting is another kind
END = "## Before you leave"
APART = {"exercise", "solution", "install", "parameters", "remove-cell"}
PICTURE = re.compile(r"\b(plt\.show|slider|plots\.Table|Markdown|predict)\(")
FOLDED = re.compile(r"<details>.*?</details>", re.DOTALL)
DISPLAYED = re.compile(r"\$\$.*?\$\$", re.DOTALL)
INLINE = re.compile(r"\$[^$]+\$")
TARGET = re.compile(r"\]\([^)]*\)")  # of a link
HEADING = re.compile(r"^(?=#{1,6} )", re.MULTILINE)


def minutes(cells: list[dict]) -> tuple[float, float]:
    """Minutes for the sections that everybody reads, and for those with a ★."""
    read = Counter()
    for cell, part, star in stretches(cells):
        read[bool(star)] += of(cell, part)
    return read[False], read[True]


def legs(cells: list[dict]) -> list[float]:
    """Minutes for what everybody reads up to each recap box, and after the last."""
    read = [0.0]
    for cell, part, star in stretches(cells):
        if not star and "recap" in cell["metadata"]:
            read.append(0.0)
        elif not star:
            read[-1] += of(cell, part)
    return read


def stretches(cells: list[dict]) -> Iterator[tuple[dict, str, str]]:
    """What is read, in order: a cell, its text below one heading, its section's ★ line or ""."""
    above = []  # (level, ★ line) of the headings over the cell, outermost first
    for cell in cells:
        parts = HEADING.split(text(cell))
        for part in parts[len(parts) > 1 and not parts[0] :]:  # nothing stands before a heading
            if part.startswith(END):
                return
            if level := len(part) - len(part.lstrip("#")):
                first = part.partition("\n")[2].lstrip().partition("\n")[0]
                mine = first if first.startswith(STAR) else ""
                above = [each for each in above if each[0] < level] + [(level, mine)]
            yield cell, part, next((star for _, star in above if star), "")


def text(cell: dict) -> str:
    """What the page shows of a Markdown cell to everybody."""
    meta, words = cell["metadata"], source(cell)
    apart = "exercise" in meta or "solution_of" in meta or APART & set(tags(cell))
    if cell["cell_type"] == "code" or apart or COMMENT_CELL.fullmatch(words):
        return ""
    return FOLDED.sub("", words)


def of(cell: dict, part: str) -> float:
    """Minutes for a cell, or for its text below one heading."""
    return of_code(cell) if cell["cell_type"] == "code" else of_text(part)


def of_text(words: str) -> float:
    """Minutes for words and formulas."""
    rest, formulas = DISPLAYED.subn("", words)
    rest, symbols = INLINE.subn("x", rest)
    count = len(TARGET.sub("]", rest).split())
    return count * MINUTES["word"] + formulas * MINUTES["formula"] + symbols * MINUTES["symbol"]


def of_code(cell: dict) -> float:
    """Minutes for the lines that are shown, and for what a cell shows."""
    if APART & set(tags(cell)):
        return 0
    shown = [] if "hide-input" in tags(cell) else source(cell).split("\n")
    lines = sum(bool(line.strip()) for line in shown)
    return lines * MINUTES["line"] + bool(PICTURE.search(source(cell))) * MINUTES["picture"]


def rounded(found: float) -> int:
    """To five minutes, as the badge says it."""
    return 5 * round(found / 5)
