"""The repairs to what Sphinx writes."""

import importlib.util
from pathlib import Path
from types import SimpleNamespace

path = Path(__file__).parents[1] / "book/_ext/page_fixes.py"
spec = importlib.util.spec_from_file_location("page_fixes", path)
page_fixes = importlib.util.module_from_spec(spec)
spec.loader.exec_module(page_fixes)


def test_what_stands_in_chapter_0_is_numbered_from_zero_and_nothing_else_is():
    counted = {
        "chapters/00_introduction": {
            "figure": {"fig-a": (1,), "fig-b": (2,)},
            "exercise": {"ex-a": (1,)},
        },
        "chapters/01_linear_models": {"figure": {"fig-c": (1, 1)}},
        "book/index": {"figure": {"fig-d": (3,)}},
    }
    env = SimpleNamespace(toc_fignumbers=counted)
    for _ in range(2):  # counting again changes nothing
        assert page_fixes.count_from_zero(None, env) == []
        assert counted["chapters/00_introduction"] == {
            "figure": {"fig-a": (0, 1), "fig-b": (0, 2)},
            "exercise": {"ex-a": (0, 1)},
        }
        assert counted["chapters/01_linear_models"] == {"figure": {"fig-c": (1, 1)}}
        assert counted["book/index"] == {"figure": {"fig-d": (3,)}}


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
