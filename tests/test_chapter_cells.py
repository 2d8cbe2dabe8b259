"""The local Sphinx extension: notebooks become the book's syntax, student copies lose solutions."""

import importlib.util
import json
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest

PATH = Path(__file__).parents[1] / "book/_ext/chapter_cells.py"
spec = importlib.util.spec_from_file_location("chapter_cells", PATH)
chapter_cells = importlib.util.module_from_spec(spec)
spec.loader.exec_module(chapter_cells)


def markdown(text, **metadata):
    return {"cell_type": "markdown", "metadata": metadata, "source": text}


def code(text, **metadata):
    return {"cell_type": "code", "metadata": metadata, "source": text}


def book(*cells):
    return [c["source"] for c in chapter_cells.to_book({"cells": list(cells)})["cells"]]


EXERCISE = [
    markdown(
        "### Exercise: Add (5 min, code)\n\nAdd.",
        exercise={"label": "ex-add", "title": "Add", "minutes": 5, "kind": "code"}
        | {"difficulty": "easy", "importance": "extra"},
    ),
    code("def add(a, b):\n    raise NotImplementedError\n\n\ncheck.add(add)", tags=["exercise"]),
    markdown(
        "<details><summary>Solution</summary>\n\nPlus.\n\n</details>",
        solution_of="ex-add",
        tags=["solution"],
    ),
    code("# @title Solution\ndef add(a, b):\n    return a + b\n\n\ncheck.add(add)", tags=["solution"]),
]


def test_ordinary_markdown_and_code_stay_as_they_are():
    assert book(markdown("text with $x$"), code("1 + 1")) == ["text with $x$", "1 + 1"]


def test_a_theorem_gets_its_label_and_loses_only_its_opening():
    prf = {"kind": "theorem", "label": "thm-x", "title": "X"}
    (text,) = book(markdown("**Theorem (X).** Every **bold** claim.", prf=prf))
    assert text == "::::{prf:theorem} X\n:label: thm-x\n\nEvery **bold** claim.\n::::"


def test_a_recap_is_a_box_with_its_own_title():
    (text,) = book(markdown("**So far.** Attacks are lower bounds.", recap=True))
    assert text == ":::{admonition} So far\n:class: recap\n\nAttacks are lower bounds.\n:::"


def test_an_exercise_closes_after_its_stub_and_a_solution_after_its_code():
    texts = book(*EXERCISE, markdown("after"))
    assert texts[0].startswith(":::{exercise-start} Add\n:label: ex-add\n:class: code")
    assert "<span>code</span> 5 min · easy · extra</p>" in texts[0]
    assert texts[2].startswith(":::{exercise-end}")
    assert texts[3].startswith('<details class="solution">')
    assert texts[5].startswith("</details>")
    assert texts[6] == "after"


def test_two_exercises_in_a_row_do_not_swallow_each_other():
    texts = book(*EXERCISE[:2], *EXERCISE[:2])
    assert sum(t.startswith(":::{exercise-end}") for t in texts) == 2


def test_every_box_is_closed_at_the_end_of_the_notebook():
    assert book(*EXERCISE)[-1].startswith("</details>")
    assert book(*EXERCISE[:2])[-1].startswith(":::{exercise-end}")


def test_form_titles_for_colab_are_not_shown_in_the_book():
    assert book(code("# @title Figure\nplot()")) == ["plot()"]


@pytest.mark.parametrize(
    ("link", "role"),
    [
        ("[Theorem (dual norm)](#thm-dual-norm)", "{prf:ref}`thm-dual-norm`"),
        ("[Hölder](#thm-dual-norm)", "{prf:ref}`Hölder <thm-dual-norm>`"),
        ("[Exercise](#ex-add)", "{numref}`ex-add`"),
        ("[Madry](../book/references.md#cite-madry2018)", "{cite:t}`madry2018`"),
        ("[sign](../book/errata.md#err-mmlda)", "{ref}`sign <err-mmlda>`"),
        ("[attacks](../book/glossary.md#term-attack)", "{term}`attacks <attack>`"),
        ("[game](../book/glossary.md#term-min-max-problem)", "{term}`game <min-max problem>`"),
        ("[noise](../book/glossary.md#term-no-such-term)", "{term}`noise <no-such-term>`"),
        ("[`fgsm`](../book/api.md#adv_lib.attacks.fgsm)", "{py:obj}`fgsm <adv_lib.attacks.fgsm>`"),
        ("[a page](../book/notation.md)", "[a page](../book/notation.md)"),
    ],
)
def test_links_that_are_harmless_in_colab_become_references(link, role):
    assert book(markdown(link))[0].startswith(role)


def test_a_solution_that_is_not_one_folded_block_is_an_error():
    with pytest.raises(ValueError, match="not one <details> block"):
        book(markdown("Plus.", solution_of="ex-add", tags=["solution"]))


def test_the_student_copy_has_the_stub_and_neither_solution_nor_notes():
    notes = markdown("<!-- notes\nask\n-->", slideshow={"slide_type": "notes"})
    copy = chapter_cells.to_student({"cells": [*EXERCISE, notes]})["cells"]
    assert copy == EXERCISE[:2]


def test_nbgrader_gets_the_stub_with_its_solution_marked_and_a_locked_test_worth_the_minutes():
    statement, answer, test, after = chapter_cells.to_nbgrader(
        {"cells": [*EXERCISE, markdown("after")]}
    )["cells"]
    assert (statement, after) == (EXERCISE[0], markdown("after"))
    begin, end = "### BEGIN SOLUTION\n", "### END SOLUTION\n"
    stub, rest = answer["source"].split(begin)
    solution, call = rest.split(end)
    assert stub + call == EXERCISE[1]["source"]
    assert solution.startswith("def add(a, b):\n    return a + b")
    role = answer["metadata"]["nbgrader"]
    assert (role["grade_id"], role["solution"], role["locked"]) == ("ex-add", True, False)
    role = test["metadata"]["nbgrader"]
    assert (role["grade"], role["locked"], role["points"]) == (True, True, 5)
    assert role["grade_id"] != "ex-add"


@pytest.mark.parametrize("status", ["passes", "fails", "not attempted yet"])
def test_nbgraders_test_raises_unless_the_check_passes(status):
    test = chapter_cells.to_nbgrader({"cells": EXERCISE})["cells"][2]
    check = SimpleNamespace(add=lambda answer: SimpleNamespace(status=status))
    outcome = nullcontext() if status == "passes" else pytest.raises(AssertionError)
    with outcome:
        exec(test["source"], {"check": check, "add": max})


def test_an_exercise_of_several_stub_and_solution_cells_is_tested_once_with_all_of_its_code():
    more = [
        EXERCISE[0],
        code("one = 1", tags=["exercise"]),
        *EXERCISE[1:],
        code("# @title Solution\ntwo = 2", tags=["solution"]),
    ]
    cells = chapter_cells.to_nbgrader({"cells": more})["cells"]
    assert [("nbgrader" in c["metadata"]) for c in cells] == [False, False, True, True]
    assert "return a + b" in cells[2]["source"]
    assert "two = 2" in cells[2]["source"]


def test_copies_for_students_and_for_nbgrader_lie_where_they_are_looked_for(tmp_path):
    chapter = tmp_path / "01_sums.ipynb"
    chapter.write_text(json.dumps({"cells": EXERCISE}))
    chapter_cells.main("student", tmp_path / "student", [chapter])
    chapter_cells.main("nbgrader", tmp_path / "course", [chapter])
    assert json.loads((tmp_path / "student/01_sums.ipynb").read_text()) == {"cells": EXERCISE[:2]}
    assert "BEGIN SOLUTION" in (tmp_path / "course/source/01_sums/01_sums.ipynb").read_text()
    compile((tmp_path / "course/nbgrader_config.py").read_text(), "nbgrader_config.py", "exec")
    with pytest.raises(SystemExit, match="student or nbgrader, got both"):
        chapter_cells.main("both", tmp_path, [chapter])
