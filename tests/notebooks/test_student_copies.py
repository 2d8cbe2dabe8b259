"""Every chapter as a student gets it: no solutions, every stub untouched.

A student's copy is the author's notebook without the solutions. The author's has run, each stub before
its solution, and what it showed is kept for the book. So the copy shows the same if no cell that is left
needs a solution. One copy runs from top to bottom all the same.
"""

import ast

import chapter_cells
import nbformat
import pytest
import run_notebooks
from cell_names import names

pytestmark = pytest.mark.slow


@pytest.fixture(scope="session")
def ran(path):
    """A chapter with what the book shows of it. An error stops here, and so does a word on stderr."""
    return run_notebooks.executed(path)


@pytest.fixture
def shortest(path, tmp_path_factory):
    """The shortest chapter's copy, run."""
    if path != min(path.parent.glob("*.ipynb"), key=lambda path: path.stat().st_size):
        pytest.skip("not the shortest chapter")
    chapter = nbformat.read(path, as_version=4)
    copy = nbformat.from_dict(chapter_cells.to_student(chapter))
    return run_notebooks.execute(copy, tmp_path_factory.mktemp("student"), run_notebooks.ONE_THREAD)


def stubs(notebook) -> list:
    """The cells that students fill in and that ask for the verdict."""
    return [
        cell
        for cell in run_notebooks.code(notebook)
        if "exercise" in chapter_cells.tags(cell) and cell.source.splitlines()[-1].startswith("check")
    ]


def titles(exercises) -> list[str]:
    """The titles of the exercises."""
    return [statement.metadata["exercise"]["title"] for statement, _, _ in exercises]


def shown(notebook, mark: str) -> list[str]:
    """What the last cell says of each exercise; its first line counts those that pass."""
    (output,) = notebook.cells[-1].outputs
    first, *lines = output.data["text/plain"].splitlines()
    passed = len(lines) if mark == "✓" else 0
    assert f": {passed} of {len(lines)} exercises pass" in first
    assert "text/html" in output.data
    return lines


def changes(cell) -> set[str]:
    """The names of what a cell changes in place, by an index or an attribute."""
    found = set()
    for node in ast.walk(ast.parse(cell.source)):
        if isinstance(node, ast.Subscript | ast.Attribute) and isinstance(node.ctx, ast.Store | ast.Del):
            while isinstance(node, ast.Subscript | ast.Attribute):
                node = node.value
            found |= {node.id} if isinstance(node, ast.Name) else set()
    return found


def inside(cell) -> set[str]:
    """The names that some function of a cell gives a meaning, its arguments included."""
    nodes = list(ast.walk(ast.parse(cell.source)))
    stored = {n.id for n in nodes if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
    return stored | {n.arg for n in nodes if isinstance(n, ast.arg)}


def test_no_cell_that_is_left_needs_a_solution(chapter, record_property):
    record_property("chapters that run without their solutions", chapter.cells[0].source)
    cells = run_notebooks.code(chapter)
    solutions = [cell for cell in cells if "solution" in chapter_cells.tags(cell)]
    left = [c for c in cells if not {"solution", "exercise"} & set(chapter_cells.tags(c))]
    assert solutions
    given = set().union(*(names(cell)[0] for cell in solutions))
    for cell in left:
        assert names(cell)[1] & given == set(), cell.source
    for cell in solutions:
        assert changes(cell) - inside(cell) == set(), cell.source


def test_every_untouched_stub_says_not_attempted(ran):
    assert stubs(ran)
    for cell in stubs(ran):
        assert "not attempted" in str(cell.outputs), cell.source


def test_who_runs_every_solution_has_passed_every_exercise(ran, exercises):
    assert shown(ran, "✓") == [f"✓ {title}: passes" for title in titles(exercises)]


def test_every_figure_a_cell_draws_has_its_alt_text(ran):
    for cell in run_notebooks.code(ran):
        if any("image/png" in output.get("data", {}) for output in cell.outputs):
            alt = cell.metadata.get("mystnb", {}).get("image", {}).get("alt", "")
            assert len(alt.split()) >= 5, cell.source


def test_nothing_is_written_to_stderr(ran):
    printed = [
        output.text
        for cell in run_notebooks.code(ran)
        for output in cell.outputs
        if output.get("name") == "stderr"
    ]
    assert printed == []


def test_a_student_copy_runs_from_top_to_bottom(shortest, exercises):
    for cell in stubs(shortest):
        assert "not attempted" in str(cell.outputs), cell.source
    assert shown(shortest, "○") == [f"○ {title}: not attempted yet" for title in titles(exercises)]
