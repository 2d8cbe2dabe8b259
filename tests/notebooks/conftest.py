"""The chapters, for the tests of what they promise and of the copy that students get."""

from itertools import takewhile
from pathlib import Path

import chapter_cells
import nbformat
import pytest

CHAPTERS = sorted(Path(__file__).parents[2].glob("chapters/*.ipynb"))


@pytest.fixture(scope="session", params=CHAPTERS, ids=lambda path: path.stem)
def path(request):
    """The file of a chapter."""
    return request.param


@pytest.fixture(scope="session")
def chapter(path):
    """A chapter as its author has it."""
    return nbformat.read(path, as_version=4)


@pytest.fixture
def exercises(chapter):
    """(statement, its stub cells, its solution cells) of every exercise."""
    found = []
    for number, statement in enumerate(chapter.cells):
        if "exercise" in statement.metadata:
            rest = chapter.cells[number + 1 :]
            stub = list(takewhile(lambda cell: "exercise" in chapter_cells.tags(cell), rest))
            after = rest[len(stub) :]
            solution = list(takewhile(lambda cell: "solution" in chapter_cells.tags(cell), after))
            found.append((statement, stub, solution))
    return found
