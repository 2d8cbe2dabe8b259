"""The extension that lets readers of the page answer: which exercise gets what, and where."""

import json
from types import SimpleNamespace

import answers
import pytest
from docutils import nodes
from docutils.utils import new_document
from sphinx.errors import ExtensionError

BADGES = (
    "[Open in Colab](https://colab.research.google.com/github/o/r/blob/main/chapters/01_x.ipynb) · "
    "9 min to read, 5 min of exercises · needs: nothing"
)
VERDICT = '<div class="adv-verdict adv-not" role="status">○ not attempted yet</div>'


def notebook(kind: str, call: str) -> dict:
    """A chapter of one exercise, whose stub has two cells."""
    about = {"label": "ex-x", "title": "Less < more", "minutes": 5, "kind": kind}
    stub = {"cell_type": "code", "metadata": {"tags": ["exercise"]}}
    return {
        "cells": [
            {"cell_type": "markdown", "metadata": {"badges": True}, "source": BADGES},
            {
                "cell_type": "code",
                "metadata": {},
                "source": "from adv_lib.checks import linear_models as check",
            },
            {"cell_type": "markdown", "metadata": {"exercise": about}, "source": "### Exercise"},
            stub | {"id": "first", "source": "given = 3"},
            stub | {"id": "last", "source": f"mine = ...\ncheck.{call}(mine)"},
        ]
    }


def cell(*outputs: str) -> nodes.container:
    """A stub's code cell, as MyST-NB leaves it, with what it has shown."""
    shown = nodes.container("", *(nodes.raw("", o, format="html") for o in outputs))
    source = nodes.container("", nodes.literal_block("", "code"), classes=["cell_input"])
    return nodes.container(
        "",
        source,
        *([shown] if outputs else []),
        nb_element="cell_code",
        cell_metadata={"tags": ["exercise"]},
    )


@pytest.fixture
def page(tmp_path):
    """A function that gives the page of an exercise as text, from the kind of its builder."""

    def page(kind, call, *outputs, builder="html"):
        path = tmp_path / "01_x.ipynb"
        path.write_text(json.dumps(notebook(kind, call)))
        document = new_document("chapter")
        document += [cell(), cell(*outputs)]
        app = SimpleNamespace(
            builder=SimpleNamespace(name=builder, get_target_uri=lambda name: f"{name}.html"),
            env=SimpleNamespace(doc2path=lambda name: path),
        )
        answers.answer_in_the_page(app, document, "chapters/01_x")
        return "\n".join(node.astext() for node in document.findall(nodes.Text))

    return page


def test_a_pencil_exercise_is_asked_once_above_the_cell_with_its_check_which_is_folded(page):
    text = page("pencil", "three_balls", VERDICT)
    assert text.count("<form") == 1
    assert text.index("code") < text.index("<form") < text.index("<details") < text.rindex("code")
    assert text.rindex("code") < text.index("Solve it in Colab") < text.index("</details>")
    assert 'aria-label="Your answer to Less &lt; more"' in text
    assert text.count('<input type="text"') == 3


@pytest.mark.parametrize("kind", ["code", "break"])
def test_any_other_exercise_leads_to_the_cell_with_its_check_in_colab_and_to_the_copy(page, kind):
    text = page(kind, "worst_delta", VERDICT)
    assert "<form" not in text
    assert text.count("/github/o/r/blob/main/chapters/01_x.ipynb#scrollTo=last") == 1
    assert 'href="../student/01_x.ipynb" download' in text


def test_only_the_verdict_of_a_stub_is_taken_away(page):
    text = page("code", "worst_delta", "<p>a picture</p>", VERDICT)
    assert "a picture" in text
    assert "not attempted" not in text


def test_a_pencil_exercise_whose_check_has_no_rules_stops_the_build(page):
    with pytest.raises(ExtensionError, match="ex-x: a page cannot check a Code"):
        page("pencil", "worst_delta", VERDICT)


def test_a_deck_stays_as_it_is(page):
    assert page("pencil", "three_balls", VERDICT, builder="deck").split() == [
        "code", "code", *VERDICT.split()
    ]  # fmt: skip
