"""Data flows one way: no module imports a module further on."""

import ast
import html
import runpy
from pathlib import Path

import pytest

import adv_lib

PACKAGE = Path(adv_lib.__file__).parent
ORDER = [
    "_precision",
    "projections",
    "threat",
    "_given",
    "data",
    "models",
    "stack",
    "losses",
    "linear",
    "_work",
    "attacks",
    "affine",
    "conjugates",
    "dual",
    "_arguments",
    "relaxation",
    "bounds",
    "branching",
    "leaves",
    "programs",
    "_tasks",
    "ladder",
    "exact",
]
ORDER += [
    "danskin",
    "mahalanobis",
    "ensembles",
    "smoothing",
    "optimisers",
    "schedules",
    "_checkpoint",
    "training",
    "recipe",
    "dent",
    "detection",
]
ORDER += [
    "evaluation",
    "comparison",
    "suite",
    "diagnostics",
    "adaptive",
    "_page",
    "_drawing",
    "plots",
    "_predict",
    "widgets",
]
ORDER += ["checks"]
FILES = sorted(PACKAGE.rglob("*.py"))
each = pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))


def module_of(file):
    """The name in ORDER of the module that a file belongs to."""
    part = file.relative_to(PACKAGE).parts[0]
    return part.removesuffix(".py")


def own_imports(file):
    """The modules of adv_lib that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(file.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            paths = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            package = ["adv_lib", *file.relative_to(PACKAGE).parts[:-1]]
            base = package[: len(package) - node.level + 1] if node.level else []
            prefix = ".".join([*base, *([node.module] if node.module else [])])
            paths = [f"{prefix}.{alias.name}" for alias in node.names]
        else:
            continue
        yield from (
            path.split(".")[1]
            for path in paths
            if path.startswith("adv_lib.") and path.split(".")[1] in ORDER
        )


def test_every_module_has_its_place_in_the_order():
    assert {module_of(file) for file in FILES} - {"__init__"} <= set(ORDER)


@each
def test_no_module_imports_one_further_on(file):
    if file.name == "__init__.py" and file.parent == PACKAGE:
        assert list(own_imports(file)) == []
    else:
        mine = ORDER.index(module_of(file))
        assert [name for name in own_imports(file) if ORDER.index(name) > mine] == []


@each
def test_no_module_but_the_checks_imports_the_checks(file):
    assert module_of(file) == "checks" or "checks" not in own_imports(file)


@each
def test_every_module_and_public_function_says_what_it_is(file):
    tree = ast.parse(file.read_text("utf-8"))
    assert ast.get_docstring(tree)
    kinds = ast.FunctionDef | ast.ClassDef
    public = [n for n in tree.body if isinstance(n, kinds) and not n.name.startswith("_")]
    assert [n.name for n in public if not ast.get_docstring(n)] == []


def test_the_picture_of_the_imports_shows_the_imports_of_today():
    tools = runpy.run_path(str(PACKAGE.parent / "book/_tools/import_graph.py"))
    picture = (PACKAGE.parent / ".github/imports.svg").read_text("utf-8")
    assert tools["text"](tools["reduced"](tools["graph"]())) in html.unescape(picture)
