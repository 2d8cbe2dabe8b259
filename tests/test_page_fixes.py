"""The repairs to what Sphinx writes."""

import importlib.util
from pathlib import Path
from types import SimpleNamespace

from docutils import nodes

path = Path(__file__).parents[1] / "book/_ext/page_fixes.py"
spec = importlib.util.spec_from_file_location("page_fixes", path)
page_fixes = importlib.util.module_from_spec(spec)
spec.loader.exec_module(page_fixes)


def entry(number):
    """A page's entry in the contents, and its title."""
    link = nodes.reference("", "a page", internal=True, secnumber=number)
    return nodes.bullet_list("", link), nodes.title("", "a page", secnumber=number)


def test_chapters_and_what_stands_in_them_are_numbered_from_zero_and_nothing_else_is():
    pages = {"chapters/00_introduction": [1], "chapters/01_linear_models": [2], "book/index": None}
    entries = {name: entry(number) for name, number in pages.items()}
    env = SimpleNamespace(
        toc_secnumbers={
            "chapters/00_introduction": {"": (1,), "#a-section": (1, 1)},
            "chapters/01_linear_models": {"": (2,)},
            "book/index": {"": ()},
        },
        toc_fignumbers={
            "chapters/00_introduction": {"figure": {"fig-a": (1, 1), "fig-b": (1, 2)}},
            "chapters/01_linear_models": {"exercise": {"ex-c": (2, 1)}},
            "book/index": {"figure": {"fig-d": (3,)}},
        },
        tocs={name: contents for name, (contents, _) in entries.items()},
        titles={name: title for name, (_, title) in entries.items()},
    )
    for _ in range(2):  # counting again changes nothing
        assert page_fixes.count_from_zero(None, env) == []
        assert env.toc_secnumbers == {
            "chapters/00_introduction": {"": (0,), "#a-section": (0, 1)},
            "chapters/01_linear_models": {"": (1,)},
            "book/index": {"": ()},
        }
        assert env.toc_fignumbers == {
            "chapters/00_introduction": {"figure": {"fig-a": (0, 1), "fig-b": (0, 2)}},
            "chapters/01_linear_models": {"exercise": {"ex-c": (1, 1)}},
            "book/index": {"figure": {"fig-d": (3,)}},
        }
        for name, shown in zip(pages, [(0,), (1,), None], strict=True):
            contents, title = entries[name]
            assert contents.children[0]["secnumber"] == title["secnumber"] == shown


def test_a_page_loads_neither_thebe_nor_a_design_that_it_has_nothing_of():
    def loaded(body):
        names = "print.js", "sphinx-thebe.js", "design-tabs.js", "sphinx-design.min.css"
        files = [SimpleNamespace(filename=f"_static/{name}", attributes={}) for name in names]
        files.append(SimpleNamespace(filename=None, attributes={"body": "const THEBE_JS_URL = 1"}))
        context = {"body": body, "script_files": files}
        page_fixes.leave_out_what_no_page_uses(None, "", "", context, None)
        return [file.filename for file in context["script_files"]]

    assert loaded("<p>") == ["_static/print.js"]
    assert loaded('<div class="sd-card">') == ["_static/print.js", "_static/sphinx-design.min.css"]
