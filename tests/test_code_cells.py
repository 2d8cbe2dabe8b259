"""How the page shows code, output and tables: what folds, what is cut, what may wrap."""

import importlib.util
from pathlib import Path
from types import SimpleNamespace

import pytest
from docutils import nodes
from docutils.utils import new_document

PATH = Path(__file__).parents[1] / "book/_ext/code_cells.py"
spec = importlib.util.spec_from_file_location("code_cells", PATH)
code_cells = importlib.util.module_from_spec(spec)
spec.loader.exec_module(code_cells)

PICTURE = nodes.figure("", nodes.image(), ids=["fig-walk"])


def cell(source, *output, hidden=False, tags=(), index=1):
    """A code cell as MyST-NB leaves it."""
    block = nodes.literal_block(source, source, language="ipython3")
    new = nodes.container(nb_element="cell_code", cell_index=index, cell_metadata={"tags": list(tags)})
    new += nodes.container("", block, classes=["cell_input"], nb_element="cell_code_source")
    if output:
        new += nodes.container("", *output, classes=["cell_output"], nb_element="cell_code_output")
    if hidden:
        new["hide_mode"] = "input"
    return new


def printed(text):
    return nodes.literal_block(text, text, classes=["output", "stream"])


def arranged(*children):
    """The page with these nodes, whose figure has number 2.3."""
    document = new_document("page")
    document += nodes.section("", *(node.deepcopy() for node in children))
    env = SimpleNamespace(toc_fignumbers={"page": {"figure": {"fig-walk": (2, 3)}}})
    builder = SimpleNamespace(format="html", name="html")
    code_cells.arrange(SimpleNamespace(env=env, builder=builder), document, "page")
    return document[0]


def folds(page):
    """(summary, code) of every fold, in order."""
    found = []
    for opening in page.findall(nodes.raw):
        if opening.astext().startswith("<details"):
            beside = opening.parent.children
            words = opening.astext().split("<summary>")[1].removesuffix("</summary>")
            found.append((words, beside[beside.index(opening) + 1].astext()))
    return found


def test_hidden_cells_before_a_figure_become_one_fold_below_it_that_has_its_number():
    first, second = cell("a = 1", hidden=True), cell("b = 2", hidden=True)
    note = nodes.container("", nodes.paragraph("", "say"), classes=["deck-only"])
    mark = nodes.comment("", "slide: end")
    page = arranged(first, note, second, mark, cell("plot(a, b)", PICTURE, hidden=True))
    assert folds(page) == [("Code for Figure 2.3", "a = 1\n\n\nb = 2\n\n\nplot(a, b)")]
    (left,) = (node for node in page if code_cells.is_cell(node))
    assert left[0]["nb_element"] == "cell_code_output"
    assert left[1].astext().startswith("<details")


@pytest.mark.parametrize(
    ("cells", "summaries"),
    [
        ([cell("import a", hidden=True), cell("A = 1", hidden=True, tags=["parameters"])], ["Set-up"]),
        ([cell("a = 1", hidden=True)], ["Code"]),
        ([cell("a", printed("1"), hidden=True)], ["Code"]),
        (
            [cell("a", nodes.raw("", '<figure class="adv-slider">'), hidden=True)],
            ["Code for this figure"],
        ),
        (
            [cell("a", PICTURE, hidden=True), cell("b", PICTURE, hidden=True)],
            ["Code for Figure 2.3"] * 2,
        ),
    ],
)
def test_a_fold_says_what_its_code_is_for(cells, summaries):
    assert [words for words, _ in folds(arranged(*cells))] == summaries


def test_text_between_hidden_cells_keeps_them_apart():
    text = nodes.paragraph("", "and then")
    page = arranged(cell("a = 1", hidden=True), text, cell("b = 2", PICTURE, hidden=True))
    assert folds(page) == [("Code", "a = 1"), ("Code for Figure 2.3", "b = 2")]


def test_the_assertions_of_a_cell_fold_away_below_its_output_with_their_comments():
    checks = "# never more\nassert x <= 1\nassert all(\n    y > 0  # each\n    for y in z\n)"
    source = f"%time x = f()\nprint(x)\n{checks}\ng(x)"
    page = arranged(cell(source, printed("1")))
    assert code_cells.code(page[0]) == "%time x = f()\nprint(x)\ng(x)"
    assert folds(page) == [("checked: <code>x &lt;= 1</code>, and 1 more", checks)]
    assert page[0][1]["nb_element"] == "cell_code_output"


def test_a_cell_of_assertions_is_part_of_the_fold_of_the_cell_before_it():
    page = arranged(cell("print(x)\nassert x", printed("1")), cell("assert y\nassert z"))
    assert folds(page) == [("checked: <code>x</code>, and 2 more", "assert x\nassert y\nassert z")]
    assert len(page) == 1


def test_a_cell_of_assertions_alone_is_a_fold_and_nothing_else():
    page = arranged(nodes.paragraph("", "We check."), cell("assert x, 'why'"))
    assert folds(page) == [("checked: <code>x</code>", "assert x, 'why'")]
    assert code_cells.part(page[1], "source") is None


@pytest.mark.parametrize(
    "source", ["for x in y:\n    assert x", "f(1)  # assert", "def f():\n    assert x", "not python ("]
)
def test_what_is_inside_something_else_stays(source):
    page = arranged(cell(source))
    assert folds(page) == []
    assert code_cells.code(page[0]) == source


def test_a_long_claim_is_cut():
    check = "assert " + " + ".join(["something"] * 9) + " > 1"
    assert len(code_cells.claim(check)) <= 44
    assert code_cells.claim(check).endswith("something + someth …")


@pytest.mark.parametrize("lines", [30, 31])
def test_a_listing_of_more_than_thirty_lines_gets_a_button_and_a_shorter_one_does_not(lines):
    text = "\n".join(f"line {n}" for n in range(lines))
    page = arranged(cell("print(text)", printed(text)), cell(text), cell(text, hidden=True))
    buttons = [raw for raw in page.findall(nodes.raw) if "checkbox" in raw.astext()]
    assert [f"Show all {lines} lines" in raw.astext() for raw in buttons] == [True] * 2 * (lines > 30)


@pytest.mark.parametrize(
    ("text", "wraps"),
    [
        ("a rate of 5.0 % (3 of 60)\nand another", True),
        ("name    1.0  2.0\nother  10.0  3.0", False),
        ("def f():\n    return 1", False),
    ],
)
def test_only_sentences_may_wrap(text, wraps):
    page = arranged(cell("print()", printed(text)))
    (block,) = (b for b in page.findall(nodes.literal_block) if "stream" in b["classes"])
    assert ("sentences" in block["classes"]) == wraps


def table(*rows):
    """A table of text; the first row is its head."""
    built = [
        nodes.row("", *(nodes.entry("", nodes.paragraph("", text)) for text in row)) for row in rows
    ]
    group = nodes.tgroup("", nodes.thead("", built[0]), nodes.tbody("", *built[1:]), cols=len(rows[0]))
    return nodes.table("", group)


def test_a_column_of_numbers_stands_to_the_right():
    page = arranged(table(["name", "share", "x"], ["a", "97.3 ± 0.2 %", "1"], ["b", "−1.5", ""]))
    classes = [entry["classes"] for entry in page.findall(nodes.entry)]
    assert classes == [[], ["text-right"], ["text-right"]] * 3


@pytest.mark.parametrize(
    ("rows", "cards"),
    [
        ([["q", "answer", "what it proves"], ["why?", "because " * 9, "nothing " * 9]], True),
        ([["q", "answer"], ["why?", "because " * 9]], False),
        ([["name", *"abcdefgh"], ["x", *["98.7"] * 8]], False),
    ],
)
def test_a_table_of_sentences_becomes_cards_that_have_the_head_for_labels(rows, cards):
    page = arranged(table(*rows))
    openings = [raw.astext() for raw in page.findall(nodes.raw) if "cards" in raw.astext()]
    assert len(openings) == cards
    assert all(f"--head-2:&quot;{rows[0][1]}&quot;" in opening for opening in openings)


def test_the_slides_keep_every_cell():
    document = new_document("page")
    document += [cell("a = 1", hidden=True), cell("plot()", PICTURE.deepcopy(), hidden=True)]
    before = document.pformat()
    builder = SimpleNamespace(format="html", name="deck")
    code_cells.arrange(SimpleNamespace(env=None, builder=builder), document, "page")
    assert document.pformat() == before
