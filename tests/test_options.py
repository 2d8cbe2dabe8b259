"""Every option of the package has someone who sets it: a chapter, the errata, a benchmark, the package.

An option that nobody sets is one more thing to read, to test and to document, for nobody.
"""

import ast
import inspect
import json
import math
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest
from package import documented, public, public_methods

ROOT = Path(__file__).parents[1]
OTHER_DRAWS = "without it every run draws the same; who doubts a result must be able to draw again"
ONE_SIGNATURE = "attacks take the same arguments, so that a table can pass them on"
AS_MARGINS = "a long run of programs, which `bounds.margins` lets the caller share out and watch"
EXEMPT = {
    "branching.Case(found=)": "filled by position, from columns",
    "widgets.slider(live=)": "ipywidgets, for the laboratory",
    "attacks.pgd(generator=)": OTHER_DRAWS,
    "diagnostics.masking(generator=)": OTHER_DRAWS,
    "diagnostics.cross_section(generator=)": OTHER_DRAWS,
    "suite.autoattack(targets=)": "nine are the standard, and few of a thousand classes",
    **{f"attacks.apgd({option}=)": ONE_SIGNATURE for option in ("callback", "restarts")},
    **{f"attacks.bim({option}=)": ONE_SIGNATURE for option in ("loss", "steps", "targets")},
    **{f"attacks.{a}(targets=)": ONE_SIGNATURE for a in ("ilcm", "rays", "spsa", "square")},
    "attacks.ilcm(steps=)": ONE_SIGNATURE,
    "attacks.jsma(share=)": "with theta the two numbers of the paper, which say what few pixels are",
    "attacks.jsma(theta=)": "how far a pixel moves depends on the units of the input",
    "attacks.spsa(generator=)": OTHER_DRAWS,
    "attacks.fab(generator=)": OTHER_DRAWS,
    **{f"attacks.{name}(targets=)": ONE_SIGNATURE for name in ("ddn", "deepfool", "fab")},
    "adaptive.bpda(stand_in=)": "what the method asks of who attacks another defense; dent needs none",
    "adaptive.gmsa(worst=)": "the second of the two losses in the paper",
    "bounds.robust_loss(loss=)": "the theorem holds for every loss with two properties, not for one",
    "danskin.directional_derivative(tolerance=)": "what is a tie depends on the units of the loss",
    **{
        f"detection.{score}(h=)": "a score takes logits and features, whichever of them it reads"
        for score in ("confidence", "non_maximal_entropy")
    },
    **{
        f"smoothing.{option}": "of chapter 14, which is not written yet"
        for option in ("Smooth(noise=)", "Smooth.certify(jobs=)", "Smooth.certify(progress=)")
    },
    "smoothing.noisy(noise=)": "of chapter 14, which is not written yet",
    "ensembles.margins(method=)": "as `bounds.margins`, whose methods cost as much as they prove",
    "evaluation.robust_accuracy_curve(batch_size=)": "what fits into memory",
    **dict.fromkeys(
        (
            "attacks.friendly(step_size=)",
            "attacks.friendly(loss=)",
            "attacks.friendly(targets=)",
            "comparison.paired(level=)",
            "comparison.seeds_needed(level=)",
            "comparison.seeds_needed(power=)",
            "optimisers.Adam(decoupled=)",
            "optimisers.Adam(epsilon=)",
            "optimisers.Adam(weight_decay=)",
            "optimisers.SGD(centralise=)",
            "recipe.Free(loss=)",
            "schedules.one_cycle(peak=)",
            "training.fast(loss=)",
        ),
        "what the recipes of Pang et al. 2021 vary; with the default it is as published",
    ),
    "bounds.pre_activations(jobs=)": AS_MARGINS,
    "bounds.pre_activations(progress=)": AS_MARGINS,
}
MODULES = {module.__name__.split(".")[1] for module in documented()}


class Use(NamedTuple):
    """One call: of which name, of which module if that is plain, and what it hands over."""

    name: str
    module: str | None  # None: any module that has this name
    positions: float
    keywords: frozenset[str]


# ---- what is called, and with what ----


def code_of(file: Path) -> str:
    """The Python of a module, of a notebook's cells, or of the cells in a page of Markdown."""
    text = file.read_text("utf-8")
    if file.suffix == ".py":
        return text
    if file.suffix == ".ipynb":
        cells = json.loads(text)["cells"]
        code = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    else:
        cells = re.findall(r"^```\{code-cell\}.*\n(?::.*\n)*((?:.*\n)*?)```$", text, re.MULTILINE)
        code = "\n".join(cells)
    return re.sub(r"^( *)[%!].*$", r"\1pass", code, flags=re.MULTILINE)


def sources() -> list[Path]:
    """Whatever may set an option, but for the tests."""
    patterns = ("chapters/*.ipynb", "book/errata.md", "benchmarks/*.py", "adv_lib/**/*.py")
    return [file for pattern in patterns for file in sorted(ROOT.glob(pattern))]


def last_name(node: ast.expr) -> str | None:
    return getattr(node, "attr", None) or getattr(node, "id", None)


class Code:
    """Some code, asked what it calls.  module: where it stands, if that is a module of the package."""

    def __init__(self, code: str, module: str | None = None):
        tree = ast.parse(code)
        self.module = module or "this file"
        self.nodes = list(ast.walk(tree))
        self.own = {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)}
        self.assigned = {}  # name → every dictionary that is written where it is assigned
        for node in self.nodes:
            if isinstance(node, ast.Assign | ast.AnnAssign | ast.AugAssign) and node.value:
                for target in getattr(node, "targets", None) or [node.target]:
                    self.assigned.setdefault(last_name(target), []).extend(dictionaries(node.value))

    def uses(self) -> Iterator[Use]:
        for call in self.nodes:
            if isinstance(call, ast.Call):
                functions, given = self.called(call)
                keywords = frozenset().union(*map(self.words, call.keywords))
                for function in functions:
                    if name := last_name(function):
                        yield Use(name, self.module_of(function), positions(given), keywords)

    def called(self, call: ast.Call) -> tuple[list[ast.expr], list[ast.expr]]:
        """What is called and its positions: of `partial(f, 1)` and `delayed(f)(1)` it is f and 1.

        Of `TABLE[key](1)` it is all that stands in TABLE.
        """
        function, given = call.func, call.args
        if last_name(function) == "partial" and given:
            function, *given = given
        if isinstance(function, ast.Call) and last_name(function.func) == "delayed":
            function = function.args[0]
        if isinstance(function, ast.Subscript):
            tables = self.assigned.get(last_name(function.value), [])
            return [v for table in tables if isinstance(table, ast.Dict) for v in table.values], given
        return [function], given

    def module_of(self, function: ast.expr) -> str | None:
        if isinstance(function, ast.Attribute):
            of = getattr(function.value, "id", None)
            return of if of in MODULES else None
        return self.module if last_name(function) in self.own else None

    def words(self, keyword: ast.keyword) -> set[str]:
        """The option that is named, or for `**settings` the keys of all dictionaries of that name.

        Where that name is assigned none, as an argument is, it may be any dictionary of the code.
        """
        if keyword.arg:
            return {keyword.arg}
        named = dictionaries(keyword.value) or self.assigned.get(last_name(keyword.value))
        anything = [d for node in self.nodes for d in dictionaries(node, deep=False)]
        return set().union(*map(keys, named or anything))


def positions(given: list[ast.expr]) -> float:
    """How many positions a call fills for sure. What stands behind a star may stand anywhere."""
    stars = [i for i, value in enumerate(given) if isinstance(value, ast.Starred)]
    if not stars:
        return len(given)
    return stars[0] if stars[0] == len(given) - 1 else math.inf


def dictionaries(node: ast.AST, deep: bool = True) -> list[ast.Dict | ast.Call]:
    """`{…}` and `dict(…)`, here or anywhere below."""
    nodes = ast.walk(node) if deep else [node]
    return [
        n
        for n in nodes
        if isinstance(n, ast.Dict) or (isinstance(n, ast.Call) and last_name(n.func) == "dict")
    ]


def keys(dictionary: ast.Dict | ast.Call) -> set[str]:
    if isinstance(dictionary, ast.Call):
        return {keyword.arg for keyword in dictionary.keywords} - {None}
    return {key.value for key in dictionary.keys if isinstance(key, ast.Constant)}


@cache
def all_uses() -> dict[str, list[Use]]:
    """All calls of all sources, by the name that is called."""
    found = {}
    for file in sources():
        parts = file.relative_to(ROOT).parts
        module = parts[1].removesuffix(".py") if parts[0] == "adv_lib" else None
        for use in Code(code_of(file), module).uses():
            found.setdefault(use.name, []).append(use)
    return found


# ---- what could be handed over ----


def options(function: object, method: bool = False) -> Iterator[tuple[float, str]]:
    """(position, name) of every parameter with a default; the position as a caller counts, ∞ if none."""
    try:
        parameters = list(inspect.signature(function).parameters.values())[method:]
    except ValueError:
        return
    for position, parameter in enumerate(parameters):
        if parameter.default is not parameter.empty:
            by_name = parameter.kind is parameter.KEYWORD_ONLY
            yield (math.inf if by_name else position), parameter.name


def all_options() -> Iterator[tuple[str, str, str, float, str]]:
    """(as it is written, module, name, position, option), of all public functions, classes, methods."""
    for full, member in public():
        module, name = full.split(".")
        things = [(full, name, member, False)]
        if inspect.isclass(member):
            methods = public_methods(full, member)
            things += [(path, path.split(".")[-1], function, True) for path, function in methods]
        for path, called_as, thing, method in things:
            for position, option in options(thing, method):
                yield f"{path}({option}=)", module, called_as, position, option


def is_set(module: str, name: str, position: float, option: str) -> bool:
    """Whether some call hands this option over."""
    return any(
        use.module in (None, module) and (use.positions > position or option in use.keywords)
        for use in all_uses().get(name, [])
    )


def unused() -> set[str]:
    return {written for written, *option in all_options() if not is_set(*option)}


# ---- the test, and the tests of what it rests on ----


def test_every_option_is_set_by_someone_or_says_why_not():
    assert sorted(unused() - set(EXEMPT)) == []


def test_what_is_excused_is_an_option_that_nobody_sets():
    assert sorted(set(EXEMPT) - unused()) == []


def test_there_are_options_and_calls():
    assert len(list(all_options())) > 50
    assert len(all_uses()) > 100


@pytest.mark.parametrize(
    ("code", "use"),
    [
        ("f(1, 2, c=3)", Use("f", None, 2, frozenset("c"))),
        ("attacks.pgd(m, steps=3)", Use("pgd", "attacks", 1, frozenset({"steps"}))),
        ("model.pgd(m)", Use("pgd", None, 1, frozenset())),
        ("partial(attacks.pgd, m, steps=3)", Use("pgd", "attacks", 1, frozenset({"steps"}))),
        ("functools.partial(pgd, steps=3)", Use("pgd", None, 0, frozenset({"steps"}))),
        ("delayed(f)(1, b=2)", Use("f", None, 1, frozenset("b"))),
        ("f(1, *rest, c=3)", Use("f", None, 1, frozenset("c"))),
        ("f(1, *rest, 3)", Use("f", None, math.inf, frozenset())),
        ("settings = {'a': 1}; f(**settings)", Use("f", None, 0, frozenset("a"))),
        ("settings = dict(a=1); f(**settings)", Use("f", None, 0, frozenset("a"))),
        ("settings = {'a': 1}; other = {'b': 2}; f(**settings)", Use("f", None, 0, frozenset("a"))),
        ("settings = {'a': 1}; settings |= {'b': 2}; f(**settings)", Use("f", None, 0, frozenset("ab"))),
        ("def g(**more): f(**more)\ng(**{'a': 1})", Use("f", None, 0, frozenset("a"))),
        ("TABLE = {'a': f, 'b': g}; TABLE[k](1, c=2)", Use("g", None, 1, frozenset("c"))),
        ("settings = {'a': 1}; f(b=settings)", Use("f", None, 0, frozenset("b"))),
        ("def f(a=1): ...\nf(2)", Use("f", "this file", 1, frozenset())),
    ],
)
def test_a_call_is_read_as_it_is_meant(code, use):
    assert use in list(Code(code).uses())


def test_positions_are_counted_as_a_caller_does():
    class Ball:
        def sample(self, x, generator=None, *, n=1): ...

    assert list(options(Ball.sample, method=True)) == [(1, "generator"), (math.inf, "n")]
