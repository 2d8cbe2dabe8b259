"""Every chapter as a student gets it: no solutions, every stub untouched, run from top to bottom."""

import chapter_cells
import nbformat
import pytest
import run_notebooks

pytestmark = pytest.mark.slow


@pytest.fixture(scope="session")
def student_copy(chapter, tmp_path_factory):
    """The copy with its outputs. An error stops here, and so does a word on stderr."""
    copy = nbformat.from_dict(chapter_cells.to_student(chapter))
    return run_notebooks.execute(copy, tmp_path_factory.mktemp("student"), run_notebooks.ONE_THREAD)


def test_the_student_copy_runs_and_every_stub_says_not_attempted(student_copy, record_property):
    record_property("chapters run as a student gets them", student_copy.cells[0].source)
    for cell in run_notebooks.code(student_copy):
        if "exercise" in chapter_cells.tags(cell) and cell.source.splitlines()[-1].startswith("check"):
            assert "not attempted" in str(cell.outputs), cell.source


def test_an_untouched_student_copy_shows_every_exercise_as_not_attempted(student_copy, exercises):
    (shown,) = student_copy.cells[-1].outputs
    first, *lines = shown.data["text/plain"].splitlines()
    assert f": 0 of {len(exercises)} exercises pass" in first
    titles = [statement.metadata["exercise"]["title"] for statement, _, _ in exercises]
    assert lines == [f"○ {title}: not attempted yet" for title in titles]
    assert "text/html" in shown.data


def test_every_figure_a_cell_draws_has_its_alt_text(student_copy):
    for cell in run_notebooks.code(student_copy):
        if any("image/png" in output.get("data", {}) for output in cell.outputs):
            alt = cell.metadata.get("mystnb", {}).get("image", {}).get("alt", "")
            assert len(alt.split()) >= 5, cell.source


def test_nothing_is_written_to_stderr(student_copy):
    printed = [
        output.text
        for cell in run_notebooks.code(student_copy)
        for output in cell.outputs
        if output.get("name") == "stderr"
    ]
    assert printed == []
