"""Exercises in the page, which has no kernel: a pencil exercise is answered there, the others in Colab.

A stub in a notebook ends with a call of its check. On the page, a pencil exercise has a form above its
stub, with the check's own rules (`Pencil.rules`), which answers.js examines; the stub folds away. Below
the stub of any other exercise, a button opens the chapter in Colab at that cell. Decks show neither.
"""

import importlib
import json
import re
from html import escape
from pathlib import Path

from chapter_cells import source, tags
from deck import html
from docutils import nodes
from overview import Chapter
from sphinx.errors import ExtensionError
from sphinx.util.osutil import relative_uri

from adv_lib.checks import Exercise, Pencil, Words

CHECKS = re.compile(r"^from adv_lib\.checks import (\w+) as check$", re.MULTILINE)
CALL = re.compile(r"^check\.(\w+)\(.*\Z", re.MULTILINE)
HELP = "Decimals, fractions or roots: <code>0.25</code>, <code>-1/3</code>, <code>0.1*sqrt(2)</code>."


def stubs(chapter: Chapter) -> list[tuple[dict, dict]]:
    """The metadata of the exercise, and the cell, for each code cell of a stub."""
    found, asked = [], None
    for cell in chapter.cells:
        asked = cell["metadata"].get("exercise", asked)
        if "exercise" in tags(cell):
            found.append((asked, cell))
    return found


def check_of(chapter: Chapter, name: str) -> Exercise:
    """The exercise that the chapter calls `check.name`."""
    (module,) = (found[1] for cell in chapter.cells if (found := CHECKS.search(source(cell))))
    return getattr(importlib.import_module(f"adv_lib.checks.{module}"), name)


def form(asked: dict, check: Pencil) -> str:
    """The place for a reader's answer: a field for each entry, and what the check says to them."""
    label, title = asked["label"], escape(asked["title"])
    fields = [field(f"{label}-{i}", name, check, f"{label}-help") for i, name in enumerate(check.names)]
    rules = escape(json.dumps(check.rules(), ensure_ascii=False, allow_nan=False))
    hint = "" if isinstance(check, Words) else f'<p class="adv-help" id="{label}-help">{HELP}</p>'
    return (
        f'<form class="adv-answers" aria-label="Your answer to {title}" autocomplete="off" '
        f'data-label="{label}" data-rules="{rules}"><p class="adv-lead">Your answer</p>'
        f'<div class="adv-fields">{"".join(fields)}</div>{hint}'
        '<p class="adv-buttons"><button type="submit">Check</button>'
        '<button type="reset">Forget my answer</button></p>'
        '<div class="adv-verdict" role="status"></div></form>'
    )


def field(name: str, label: str, check: Pencil, described_by: str) -> str:
    """One entry of an answer: a choice among words, or a line to type a number on."""
    if isinstance(check, Words):
        choices = "".join(
            f'<label><input type="radio" name="{name}" value="{escape(repr(word))}">{escape(str(word))}'
            "</label>"
            for word in check.among
        )
        return f"<fieldset><legend>{escape(label)}</legend><div>{choices}</div></fieldset>"
    return (
        f'<label>{escape(label)}<input type="text" name="{name}" aria-describedby="{described_by}" '
        'maxlength="60" autocapitalize="none" spellcheck="false"></label>'
    )


def elsewhere(asked: dict, colab: str, copy: str) -> str:
    """Where the exercise can be solved in a notebook."""
    title = f'<span class="visually-hidden">: {escape(asked["title"])}</span>'
    return (
        '<p class="adv-elsewhere">'
        f'<a class="adv-button" href="{escape(colab)}">Solve it in Colab{title}</a>'
        f'<a href="{escape(copy)}" download>Download the student copy{title}</a></p>'
    )


def drop_verdict(stub: nodes.container) -> None:
    """Take away the output that says "not attempted yet", and what would then be empty."""
    for output in list(stub.findall(nodes.raw)):
        if 'class="adv-verdict adv-not"' in output.astext():
            while len(output.parent) == 1:
                output = output.parent
            output.parent.remove(output)


def answer_in_the_page(app, doctree: nodes.document, docname: str) -> None:
    """Give each exercise of a chapter its form, or its way to Colab."""
    path = Path(app.env.doc2path(docname))
    if app.builder.name == "deck" or path.suffix != ".ipynb":
        return
    chapter = Chapter(docname, json.loads(path.read_text(encoding="utf-8"))["cells"])
    shown = [n for n in doctree.findall(nodes.container) if is_stub(n)]
    copy = relative_uri(app.builder.get_target_uri(docname), f"student/{chapter.name}.ipynb")
    for stub, (asked, cell) in zip(shown, stubs(chapter), strict=True):
        if call := CALL.search(source(cell)):
            links = html(elsewhere(asked, f"{chapter.badges['colab']}#scrollTo={cell['id']}", copy))
            drop_verdict(stub)
            around = [stub, links]
            if asked["kind"] == "pencil":
                check = check_of(chapter, call[1])
                if not isinstance(check, Pencil):
                    raise ExtensionError(
                        f"{asked['label']}: a page cannot check a {type(check).__name__}"
                    )
                fold = '<details class="hide adv-notebook"><summary>In a notebook</summary>'
                around = [html(form(asked, check)), html(fold), *around, html("</details>")]
            place = stub.parent.index(stub)
            stub.parent[place : place + 1] = around


def is_stub(node: nodes.container) -> bool:
    """Whether the node is a code cell that the reader is to fill in."""
    return node.get("nb_element") == "cell_code" and "exercise" in node["cell_metadata"].get("tags", [])


def add_files(app, pagename: str, templatename: str, context: dict, doctree) -> None:
    """Load the script and the style where there are exercises."""
    if doctree is not None and str(app.env.doc2path(pagename)).endswith(".ipynb"):
        app.add_css_file("answers.css")
        app.add_js_file("answers.js", loading_method="defer")


def setup(app) -> dict:
    """Register with Sphinx."""
    app.connect("doctree-resolved", answer_in_the_page)
    app.connect("html-page-context", add_files)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
