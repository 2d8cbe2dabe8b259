"""What every chapter promises its readers, without running it; CONTRIBUTING.md describes the cells."""

import ast
import importlib
import re
from collections import Counter
from statistics import median

import chapter_cells
import nbformat
import overview
import reading
from cell_names import names

from adv_lib.checks import Pencil


def tagged(cell, tag: str) -> bool:
    """Whether the cell carries `tag`."""
    return tag in chapter_cells.tags(cell)


def code(cells) -> list:
    """The code cells among `cells`."""
    return [cell for cell in cells if cell.cell_type == "code"]


def syntax(cell) -> ast.Module:
    """The cell's Python, without its magics."""
    return ast.parse(re.sub(r"^(\s*)[%!].*", r"\1pass", cell.source, flags=re.MULTILINE))


def test_the_notebook_is_valid_and_stored_without_outputs(chapter):
    nbformat.validate(chapter)
    assert [c.source for c in code(chapter.cells) if c.outputs or c.execution_count] == []


def test_the_first_code_is_the_install_cell_then_one_cell_with_all_imports(chapter):
    install, imports, *rest = code(chapter.cells)
    assert tagged(install, "install")
    assert tagged(install, "remove-cell")
    assert {type(s) for s in syntax(imports).body} <= {ast.Import, ast.ImportFrom, ast.Expr}
    late = [
        cell.source
        for cell in rest
        if any(isinstance(node, ast.Import | ast.ImportFrom) for node in ast.walk(syntax(cell)))
    ]
    assert late == []


def test_the_chapter_offers_its_parameters_and_its_badges_once(chapter):
    assert sum(tagged(cell, "parameters") for cell in chapter.cells) == 1
    assert sum("badges" in cell.metadata for cell in chapter.cells) == 1


def test_the_badges_promise_the_minutes_of_the_exercises(chapter, exercises):
    (badges,) = (cell.source for cell in chapter.cells if "badges" in cell.metadata)
    promised = re.search(r" · \d+ min to read, (\d+) min of exercises · needs: ", badges)[1]
    assert int(promised) == sum(s.metadata["exercise"]["minutes"] for s, _, _ in exercises)


def test_the_core_is_one_sitting_with_a_recap_after_each_half_an_hour(chapter):
    assert reading.rounded(reading.minutes(chapter.cells)[0]) <= 60
    assert max(reading.legs(chapter.cells)) <= 30
    recaps = [cell.source for cell in chapter.cells if "recap" in cell.metadata]
    assert [text for text in recaps if not text.startswith("**So far.** ")] == []


def test_the_chapter_asks_for_what_it_needs_before_it_begins(chapter):
    headings = [n for n, c in enumerate(chapter.cells) if c.source.startswith("## ")]
    (first,) = [
        n
        for n, cell in enumerate(chapter.cells)
        if re.match(r"\*\*(Two questions from Chapter|Five questions about what you need)", cell.source)
    ]
    assert headings[0] < first < headings[1]  # what you will be able to do, and the first section
    asked, _, answers = chapter.cells[first].source.partition("<details><summary>Answers</summary>")
    count = 5 if "Five" in asked else 2
    assert len(re.findall(r"^\d\. ", asked, re.MULTILINE)) == count
    assert len(re.findall(r"^\d\. ", answers, re.MULTILINE)) == count


def test_the_badges_promise_the_minutes_that_the_cells_take_to_read(chapter):
    core, starred = reading.minutes(chapter.cells)
    (badges,) = (cell.source for cell in chapter.cells if "badges" in cell.metadata)
    assert int(re.search(r" · (\d+) min to read", badges)[1]) == reading.rounded(core)
    for cell in chapter.cells:
        if promised := re.search(r"★ \(about (\d+) minutes\)", cell.source):
            assert int(promised[1]) == reading.rounded(starred)


def test_no_exercise_stands_in_a_section_that_a_first_reader_skips(chapter):
    stars = {
        cell.metadata["exercise"]["label"]: star
        for cell, _, star in reading.stretches(chapter.cells)
        if "exercise" in cell.metadata
    }
    assert [label for label, star in stars.items() if star.startswith(reading.SKIPPED)] == []


def test_the_code_cells_that_are_shown_are_short(chapter):
    shown = [c for c in code(chapter.cells) if not c.metadata.get("jupyter", {}).get("source_hidden")]
    lengths = [len(cell.source.splitlines()) for cell in shown]
    assert median(lengths) <= 6


# How many cells that are shown use names that a folded cell has made, so that readers have to unfold it.
# No chapter may have more. Before their second edition chapters 0 to 8 had 13, 12, 32, 31, 2, 27, 10,
# 14 and 42.
HIDDEN = {
    "00_introduction": 3,
    "01_linear_models": 1,
    "02_attacks": 4,
    "03_exact_and_relaxed": 0,
    "04_duality": 1,
    "05_dual_network": 2,
    "06_adversarial_training": 4,
    "07_danskin": 0,
    "08_dent": 0,
    "09_trial": 8,
    "10_recipe": 32,
    "11_geometry": 33,
    "12_ensembles": 29,
    "13_detection": 22,
}


def test_few_cells_that_are_shown_need_one_that_is_folded(path, chapter):
    folded, found = set(), []
    for cell in code(chapter.cells)[2:]:
        if {"parameters", "exercise", "solution", "remove-cell"} & set(chapter_cells.tags(cell)):
            continue
        made, needed = names(cell)
        if tagged(cell, "hide-input"):
            folded |= made
        else:
            found += [cell.source] if needed & folded else []
            folded -= made
    assert len(found) <= HIDDEN[path.stem], found


def test_no_cell_hides_an_error(chapter):
    assert [c.source for c in chapter.cells if tagged(c, "raises-exception")] == []


def test_cells_read_as_ordinary_markdown(chapter):
    myst = [
        line
        for cell in chapter.cells
        if cell.cell_type == "markdown"
        for line in cell.source.splitlines()
        if re.match(r"\s*(:{3,}|`{3,}\{)|.*\{(ref|cite|numref|prf:ref|eq|doc|term)[\w:]*\}`", line)
    ]
    assert myst == []


def test_every_theorem_says_what_it_is_to_readers_in_jupyter(chapter):
    for cell in chapter.cells:
        if prf := cell.metadata.get("prf"):
            assert cell.source.startswith(f"**{prf['kind'].capitalize()} ({prf['title']}).**")
            assert re.fullmatch(r"[a-z]+-[a-z0-9-]+", prf["label"])


def test_slide_text_and_notes_are_comments_and_nothing_else(chapter):
    for cell in chapter.cells:
        kind = cell.metadata.get("slideshow", {}).get("slide_type")
        comment = re.fullmatch(r"<!-- (slide|notes)\n.*\n-->", cell.source.strip(), re.DOTALL)
        assert kind in {None, "slide", "subslide", "fragment", "notes"}
        assert (kind == "notes") == bool(comment and comment[1] == "notes")
        assert not cell.source.startswith("<!--") or (comment and kind), cell.source


def slides(chapter) -> list[list]:
    """The cells of each slide in order."""
    found = []
    for cell in chapter.cells:
        kind = cell.metadata.get("slideshow", {}).get("slide_type")
        if kind in ("slide", "subslide"):
            found.append([cell])
        elif kind:
            found[-1].append(cell)
    return found


def test_every_slide_has_a_note(chapter):
    silent = [
        cells[0].source[:60]
        for cells in slides(chapter)
        if not any(cell.source.startswith("<!-- notes\n") for cell in cells)
    ]
    assert silent == []


def test_a_theorem_on_a_slide_has_a_heading_in_plain_words_and_the_idea_of_its_proof(chapter):
    for first, *rest in slides(chapter):
        stated = [cell.metadata["prf"] for cell in [first, *rest] if "prf" in cell.metadata]
        if stated:
            assert first.source.startswith("<!-- slide\n## "), stated
            said = [cell for cell in rest if cell.source.startswith("<!-- slide\n**Why:** ")]
            assert len(said) == sum(prf["kind"] != "definition" for prf in stated), stated


def test_a_lecture_can_be_given_in_the_minutes_of_its_notes(path, chapter):
    lecture, sittings = overview.Chapter(path.stem, chapter.cells).lecture, Counter()
    for stretch in lecture:
        assert 1.5 <= stretch.minutes / len(stretch.slides) <= 6, stretch.slides
        sittings[stretch.star] += stretch.minutes
    assert max(sittings.values()) <= 75


def test_a_note_with_minutes_covers_every_slide(chapter):
    kinds = [cell.metadata.get("slideshow", {}).get("slide_type") for cell in chapter.cells]
    notes = {n: chapter.cells[n].source for n, kind in enumerate(kinds) if kind == "notes"}
    timed = [n for n, text in notes.items() if chapter_cells.TIMING.search(text)]
    assert timed == [n for n, text in notes.items() if "Timing" in text]
    assert timed[-1] > max(n for n, kind in enumerate(kinds) if kind in ("slide", "subslide"))


def test_the_chapter_has_pencil_code_and_break_it_exercises(exercises):
    kinds = [statement.metadata["exercise"]["kind"] for statement, _, _ in exercises]
    assert set(kinds) == {"pencil", "code", "break"}
    assert len(kinds) >= 4
    assert kinds.count("code") >= 2


def test_some_exercises_are_essential_and_at_most_half_of_the_minutes(exercises):
    about = [statement.metadata["exercise"] for statement, _, _ in exercises]
    essential = sum(each["minutes"] for each in about if each["importance"] == "essential")
    assert 0 < essential <= sum(each["minutes"] for each in about) / 2


def test_every_exercise_has_a_statement_a_hint_a_stub_with_a_check_and_a_solution(exercises):
    for statement, stub, solution in exercises:
        about = statement.metadata["exercise"]
        kind = chapter_cells.KINDS[about["kind"]]
        heading = "### Exercise: {title} ({minutes} min, {kind}; {difficulty}, {importance})\n"
        assert statement.source.startswith(heading.format(**about | {"kind": kind}))
        assert about["difficulty"] in chapter_cells.DIFFICULTIES
        assert about["importance"] in chapter_cells.IMPORTANCES
        assert "<details><summary>Hint</summary>" in statement.source
        assert stub
        assert all(cell.cell_type == "code" for cell in stub)
        assert solution
        assert stub[-1].source.splitlines()[-1].startswith("check")
        explanation, *answers = solution
        assert explanation.metadata["solution_of"] == about["label"]
        assert explanation.source.startswith("<details><summary>Solution</summary>\n\n")
        assert explanation.source.endswith("\n\n</details>")
        assert answers
        for cell in answers:
            assert cell.source.startswith("# @title Solution")
            assert cell.metadata["jupyter"]["source_hidden"]
            assert cell.metadata["cellView"] == "form"


def test_the_chapter_ends_with_how_far_the_reader_is_in_exactly_its_exercises(chapter, exercises):
    last = chapter.cells[-1]
    assert last.source == "progress(check)"
    assert all(tagged(cell, "remove-cell") for cell in chapter.cells[-2:])
    imports = code(chapter.cells)[1].source
    module = re.search(r"^from adv_lib\.checks import (\w+) as check$", imports, re.MULTILINE)[1]
    checks = importlib.import_module(f"adv_lib.checks.{module}")
    titles = [statement.metadata["exercise"]["title"] for statement, _, _ in exercises]
    calls = [stub[-1].source.splitlines()[-1] for _, stub, _ in exercises]
    names = [re.match(r"check\.(\w+)", call)[1] for call in calls]
    assert list(checks.EXERCISES) == titles
    assert list(checks.EXERCISES.values()) == [getattr(checks, name) for name in names]


def test_the_page_can_check_every_pencil_exercise(chapter, exercises):
    imports = code(chapter.cells)[1].source
    module = re.search(r"^from adv_lib\.checks import (\w+) as check$", imports, re.MULTILINE)[1]
    checks = importlib.import_module(f"adv_lib.checks.{module}")
    by_hand = [s.metadata["exercise"] for s, _, _ in exercises]
    titles = [each["title"] for each in by_hand if each["kind"] == "pencil"]
    assert [t for t in titles if not isinstance(checks.EXERCISES[t], Pencil)] == []


def test_no_later_cell_uses_what_a_reader_writes_in_an_exercise(chapter, exercises):
    written = {
        name.id if isinstance(name, ast.Name) else name.name
        for _, stub, _ in exercises
        for cell in stub
        for statement in syntax(cell).body
        for name in [statement, *getattr(statement, "targets", [])]
        if isinstance(name, ast.FunctionDef | ast.Name)
    }
    elsewhere = {
        node.id
        for cell in code(chapter.cells)
        if not tagged(cell, "exercise") and not tagged(cell, "solution")
        for node in ast.walk(syntax(cell))
        if isinstance(node, ast.Name)
    }
    assert written
    assert written & elsewhere == set()
