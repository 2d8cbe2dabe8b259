"""The API page: all modules, all docstrings, and plain text that nothing takes for markup."""

import importlib
import importlib.util
import inspect
import re
from collections import Counter
from pathlib import Path

import docutils.frontend
import docutils.nodes
import docutils.parsers.rst
import docutils.utils
import pytest
from docutils.parsers.rst import roles
from test_imports import ORDER

import adv_lib

PATH = Path(__file__).parents[1] / "book/_ext/api_reference.py"
spec = importlib.util.spec_from_file_location("api_reference", PATH)
api = importlib.util.module_from_spec(spec)
spec.loader.exec_module(api)


def parse(lines):
    """The document tree of some reStructuredText; links to Python names are literals here."""
    roles.register_local_role("py:obj", roles.GenericRole("py:obj", docutils.nodes.literal))
    settings = docutils.frontend.get_default_settings(docutils.parsers.rst.Parser)
    settings.report_level = 5  # complaints are counted, not printed
    tree = docutils.utils.new_document("docstring", settings)
    docutils.parsers.rst.Parser().parse("\n".join(lines), tree)
    return tree


def translate(docstring, *names):
    return "\n".join(api.rst(docstring.splitlines(), set(names), "adv_lib.attacks"))


def documented():
    """(full name, object, docstring) of everything on the page."""
    for name in sorted(api.documented()):
        _, module, *path = name.split(".")
        thing = importlib.import_module(f"adv_lib.{module}")
        for part in path:
            thing = getattr(thing, part)
        yield name, thing, inspect.getdoc(thing)


THINGS = list(documented())
each = pytest.mark.parametrize(("name", "thing", "docstring"), THINGS, ids=[name for name, *_ in THINGS])


def test_the_page_has_every_module_in_the_order_of_the_book():
    assert api.HEADING.findall((api.ROOT / "book/api.md").read_text("utf-8")) == [
        module for module in ORDER if not module.startswith("_")
    ]


@each
def test_no_docstring_is_missing_or_broken_or_emphasised_by_accident(name, thing, docstring):
    tree = parse(api.rst(docstring.splitlines(), api.explained(thing), ".".join(name.split(".")[:2])))
    markup = (
        docutils.nodes.system_message, docutils.nodes.problematic, docutils.nodes.emphasis,
        docutils.nodes.strong, docutils.nodes.substitution_reference, docutils.nodes.block_quote,
    )  # fmt: skip
    assert [node.astext() for kind in markup for node in tree.findall(kind)] == []


@each
def test_no_letter_of_a_docstring_is_lost(name, thing, docstring):
    lines = api.rst(docstring.splitlines(), api.explained(thing), ".".join(name.split(".")[:2]))
    shown = re.sub(r"<adv_lib[\w.]*>", "", parse(lines).astext())
    plain = re.sub(r"^\d\. ", "", docstring, flags=re.MULTILINE)
    assert Counter(re.findall(r"\w", shown)) == Counter(re.findall(r"\w", plain))


def test_lines_on_arguments_become_a_list_with_the_source_last():
    text = translate(
        "Sum.\n\na: (n,).  b: like a,\n   too.  Returns (n,).\nSource: B 2000.\nMore.", "a", "b"
    )
    assert text.startswith("Sum.\n\nMore.\n\n.. container:: api-items")
    items = re.findall(r"^   (\S.*)\n      (.*)$", text, re.MULTILINE)
    assert items == [
        ("``a``", "(n,)."),
        ("``b``", "like a, too."),
        ("Returns", "(n,)."),
        ("Source", "B 2000."),
    ]


def test_a_word_with_a_colon_that_is_no_argument_stays_in_the_sentence():
    assert translate("Exact: it attains it.", "x") == "Exact: it attains it.\n"


@pytest.mark.parametrize(
    ("plain", "marked"),
    [
        ("s.", r"s\."),
        ("(n, *shape) and |w|_1", r"(n, \*shape) and \|w\|\_1"),
        ("γ' of the book's l'", "γ′ of the book's l′"),
        ("see `pgd`", "see :py:obj:`pgd <adv_lib.attacks.pgd>`"),
        ("see `losses.margin_loss`", "see :py:obj:`losses.margin_loss <adv_lib.losses.margin_loss>`"),
        ("see `x + delta`", "see ``x + delta``"),
        ('keep "best"', 'keep ``"best"``'),
    ],
)
def test_what_looks_like_markup_is_text_and_what_is_code_is_code(plain, marked):
    assert translate(plain) == f"{marked}\n"


def test_a_module_says_which_chapters_use_it_or_which_modules_do():
    assert "[Chapter 2](../chapters/02_attacks.ipynb)" in api.used("attacks")
    assert "[`threat`](#adv_lib.threat)" in api.used("projections")


def test_the_package_says_in_its_docstring_what_the_page_says_in_its_map():
    page = (api.ROOT / "book/api.md").read_text("utf-8")
    calls = re.findall(r"^\| (?!I want)([^|]+) \| \[`([\w.]+)`\]", page, re.MULTILINE)
    named = re.findall(r"^    (\S.*?)  +(\w+\.\w+)$", adv_lib.__doc__, re.MULTILINE)
    assert len(calls) > 9
    assert named == calls
    links = set(re.findall(r"\(#(adv_lib\.[\w.]+)\)", page))
    assert links <= api.documented()


def test_the_package_lists_its_modules_as_the_page_groups_them():
    page = (api.ROOT / "book/api.md").read_text("utf-8")
    groups = re.findall(r"^## (?!#)(.+)\n((?:.|\n)*?)(?=^## |\Z)", page, re.MULTILINE)
    listed = [(name.lower(), ", ".join(api.HEADING.findall(text))) for name, text in groups]
    lines = re.sub(r",\n +", ", ", adv_lib.__doc__).splitlines()  # a long list goes on below
    plain = [tuple(re.split(r"  +", line.strip(), maxsplit=1)) for line in lines]
    assert len(listed) > 4
    assert [pair for pair in plain if pair in listed] == listed
