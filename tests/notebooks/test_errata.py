"""The page of errata: every correction is computed, and the page runs as it stands."""

import ast
import re
from pathlib import Path

import pytest
import run_notebooks
import yaml

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "book/errata.md").read_text(encoding="utf-8")
MODE = re.MULTILINE | re.DOTALL
CELL = re.compile(r"^```\{code-cell\}[^\n]*\n((?::[^\n]*\n)*)(.*?)^```$", MODE)
ENTRY = re.compile(r"^\(err-([\w-]+)\)=\n### ([^\n]+)\n(.*?)(?=^\(err-|^## |\Z)", MODE)
ENTRIES = {label: (title, body) for label, title, body in ENTRY.findall(PAGE)}


def cells(text: str) -> list[str]:
    """The sources of the code cells in a piece of the page."""
    return [source for _options, source in CELL.findall(text)]


@pytest.fixture(params=ENTRIES)
def body(request):
    return ENTRIES[request.param][1]


def test_an_entry_says_what_circulates_and_then_what_is_right(body):
    parts = re.findall(r"^\*(In circulation|Right)\.\* \S", body, re.MULTILINE)
    assert parts == ["In circulation", "Right"]


def test_an_entry_has_one_cell_which_prints_its_numbers_and_asserts_them(body):
    (source,) = cells(body)
    nodes = list(ast.walk(ast.parse(source)))
    tests = [node.test for node in nodes if isinstance(node, ast.Assert)]
    assert tests
    assert not any(isinstance(test, ast.Constant) for test in tests)
    assert "print" in {
        node.func.id for node in nodes if isinstance(getattr(node, "func", None), ast.Name)
    }


def test_every_subheading_is_an_entry_and_the_table_lists_them_all_in_order():
    assert PAGE.count("\n### ") == len(ENTRIES)
    rows = re.findall(r"^\| \[(.+?)\]\(#err-([\w-]+)\) \|", PAGE, re.MULTILINE)
    assert rows == [(title, label) for label, (title, _body) in ENTRIES.items()]


def test_no_cell_is_removed_and_only_the_set_up_is_folded():
    options = [options for options, _source in CELL.findall(PAGE)]
    assert [o for o in options if o] == options[:1] == [":tags: [hide-cell]\n"]


def test_the_build_takes_the_page_for_a_notebook_and_runs_it():
    _, header, _ = PAGE.split("---\n", 2)
    assert yaml.safe_load(header)["file_format"] == "mystnb"
    assert yaml.safe_load(header)["kernelspec"]["name"] == "python3"
    execute = yaml.safe_load((ROOT / "_config.yml").read_text())["execute"]
    assert execute["execute_notebooks"] == "cache"
    assert execute["raise_on_error"] is True
    assert not execute.get("exclude_patterns")
    assert ROOT / "book/errata.md" in run_notebooks.pages()


@pytest.mark.slow
def test_the_cells_run_in_order_in_a_fresh_kernel_and_say_something_without_a_warning(record_property):
    page = run_notebooks.executed(ROOT / "book/errata.md")  # what the book shows
    assert [cell.source for cell in run_notebooks.code(page)] == [s.strip() for s in cells(PAGE)]
    set_up, *entries = run_notebooks.code(page)
    assert set_up.outputs == []
    for label, cell in zip(ENTRIES, entries, strict=True):
        assert {output.get("name") for output in cell.outputs} == {"stdout"}, cell.source
        record_property("errata computed", label)
