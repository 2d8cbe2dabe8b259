"""Every labelled statement of the book has a test, and every such test a statement."""

import ast
import json
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).parents[2]
PROVED = {"theorem", "proposition", "lemma", "corollary"}


def statements() -> list[tuple[str, str]]:
    """(kind, label) of every theorem-like cell of every chapter."""
    found = []
    for chapter in sorted(ROOT.glob("chapters/*.ipynb")):
        for cell in json.loads(chapter.read_text("utf-8"))["cells"]:
            if prf := cell["metadata"].get("prf"):
                found.append((prf["kind"], prf["label"]))
    return found


def marked() -> dict[str, list[str]]:
    """The names of the tests that carry @theorem(label), read from the source."""
    found = {}
    for file in sorted(Path(__file__).parent.glob("test_*.py")):
        for node in ast.parse(file.read_text("utf-8")).body:
            for mark in getattr(node, "decorator_list", []):
                if isinstance(mark, ast.Call) and getattr(mark.func, "id", "") == "theorem":
                    found.setdefault(ast.literal_eval(mark.args[0]), []).append(node.name)
    return found


def test_every_theorem_of_the_book_has_a_test_that_tries_to_break_it():
    labels = {label for kind, label in statements() if kind in PROVED}
    assert labels  # the chapters are there
    assert labels - marked().keys() == set()


def test_every_theorem_test_names_a_statement_of_the_book():
    assert marked().keys() - {label for kind, label in statements() if kind in PROVED} == set()


def test_what_carries_a_theorem_mark_is_collected_as_a_test():
    names = [name for tests in marked().values() for name in tests]
    assert all(name.startswith("test_") for name in names)
    assert len(names) == len(set(names))


def test_no_label_stands_twice():
    assert [
        label for label, times in Counter(label for _, label in statements()).items() if times > 1
    ] == []
