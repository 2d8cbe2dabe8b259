"""The API page from the package itself: one heading a module, the rest from docstrings.

Our docstrings are plain text: a summary, paragraphs, lines `name: what it is`, then Returns, Raises and
Source, with formulas in Unicode and `code` in single backticks. `api_page` puts each module under its
heading in book/api.md, `rst` turns one docstring into reStructuredText for autodoc.
"""

import ast
import importlib
import inspect
import json
import re
from functools import cache
from pathlib import Path

PAGE = "book/api"
PACKAGE = "adv_lib"
ROOT = Path(__file__).parents[2]
BRIEF = {"checks": "Verdict"}  # the other names of that module are the exercises' own
HEADING = re.compile(r"^### `(\w+)`$", re.MULTILINE)
ITEM = r"(?:Returns|Raises|Yields|Source:)"
NAMES = re.compile(r"(\w+(?:, \w+)*): +")
MARKED = re.compile(rf"({ITEM}) *")
CODE = re.compile(r"`([^`]+)`|\"([\w-]+)\"")
ENUMERATOR = re.compile(r"^(\(?(?:[A-Za-z#]|\d+|[ivxlcdm]+))([.)])(?=\s|$)")  # would begin a list
PRIME = re.compile(r"(?<!\w)(\w)'(?!\w)")  # l' and δ', which typographers would turn into quotes


# ---- the page ----


def api_page(text: str) -> str:
    """book/api.md with every module under its heading, and where the book uses it."""
    return HEADING.sub(lambda heading: f"{heading[0]}\n\n{module_section(heading[1])}", text)


def module_section(module: str) -> str:
    """The MyST of one module: a line on its use, then autodoc's work."""
    return (
        f"{used(module)}\n\n```{{eval-rst}}\n.. automodule:: {PACKAGE}.{module}\n"
        f"   :members: {BRIEF.get(module, '')}\n   :member-order: bysource\n```"
    )


def used(module: str) -> str:
    """The chapters that import a module, or the modules that do if no chapter does."""
    chapters = [
        chapter for chapter in sorted(ROOT.glob("chapters/*.ipynb")) if module in imports(chapter)
    ]
    if chapters:
        links = [f"[Chapter {int(c.name[:2])}](../chapters/{c.name})" for c in chapters]
        return f"Used in {', '.join(links)}."
    files = sorted(ROOT.glob(f"{PACKAGE}/**/*.py"))
    inside = [f.relative_to(ROOT / PACKAGE).parts[0] for f in files if module in imports(f)]
    shown = sorted({name.removesuffix(".py") for name in inside if not name.startswith("_")})
    return f"Behind {', '.join(f'[`{user}`](#{PACKAGE}.{user})' for user in shown)}."


@cache
def imports(file: Path) -> set[str]:
    """The modules of the package that a notebook or a module imports."""
    code = file.read_text("utf-8")
    if file.suffix == ".ipynb":
        cells = [c for c in json.loads(code)["cells"] if c["cell_type"] == "code"]
        code = "\n".join("".join(cell["source"]) for cell in cells)
    code = re.sub(r"^( *)%.*$", r"\1pass", code, flags=re.MULTILINE)
    found = set()
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.ImportFrom):
            base = f"{PACKAGE}.{node.module or ''}".rstrip(".") if node.level else node.module
            if base == PACKAGE:
                found |= {alias.name for alias in node.names}
            elif base.startswith(f"{PACKAGE}."):
                found.add(base.split(".")[1])
    return found


# ---- one docstring ----


def rst(docstring: list[str], names: set[str], module: str, owner: str = "") -> list[str]:
    """A docstring as reStructuredText: its prose, then its items as one definition list.

    names: the parameters or fields, which a line may explain.  module, owner: where `code` is looked up.
    """
    out, items = [], []
    for paragraph in paragraphs(docstring):
        first = paragraph[0]
        if all(line.startswith("    ") for line in paragraph):
            lines = [inline(line.strip(), module, owner) for line in paragraph]
            out += [".. container:: api-formula", "", *(f"   | {line}" for line in lines), ""]
        elif re.match(r"1\. ", first):
            listed = re.split(r" (?=\d\. )", " ".join(line.strip() for line in paragraph))
            out += [f"#. {inline(entry[3:], module, owner)}" for entry in listed] + [""]
        else:
            prose, found = split(paragraph, names)
            out += [inline(prose, module, owner), ""] if prose else []
            items += found
    if items:
        items.sort(key=lambda item: item[0] == "Source")
        out += [".. container:: api-items", ""]
        for term, text in items:
            head = term if MARKED.match(f"{term}:") else f"``{term.replace(', ', '``, ``')}``"
            out += [f"   {head}", f"      {inline(text, module, owner)}"]
        out.append("")
    return out


def paragraphs(lines: list[str]) -> list[list[str]]:
    """Runs of lines that are not blank."""
    runs = [[]]
    for line in lines:
        if line.strip():
            runs[-1].append(line)
        elif runs[-1]:
            runs.append([])
    return [run for run in runs if run]


def split(paragraph: list[str], names: set[str]) -> tuple[str, list[tuple[str, str]]]:
    """The prose of a paragraph, and its items: (name or Returns, Raises, Yields, Source; text)."""
    prose, items, open_item = [], [], False
    for line in paragraph:
        for number, piece in enumerate(re.split(rf"(?<=[.\]?]) +(?={ITEM}|\w+(?:, \w+)*: )", line)):
            term, text = item(piece, names)
            if term:
                items.append((term, [text]))
                open_item = True
            elif open_item and (number or line.startswith(" ") or not items[-1][1][-1].endswith(".")):
                items[-1][1].append(piece.strip())
            else:
                prose.append(piece.strip())
                open_item = False
    return " ".join(prose), [(term, " ".join(text)) for term, text in items]


def item(piece: str, names: set[str]) -> tuple[str, str]:
    """What a line explains and what it says of it, or two empty strings."""
    if (match := NAMES.match(piece)) and set(match[1].split(", ")) <= names:
        return match[1], piece[match.end() :]
    if match := MARKED.match(piece):
        return match[1].rstrip(":"), piece[match.end() :]
    return "", ""


def inline(text: str, module: str, owner: str) -> str:
    """Text with nothing left that reStructuredText would take for markup, and `code` marked as such."""
    parts, end = [], 0
    for match in CODE.finditer(text):
        parts += [escape(text[end : match.start()]), code(match, module, owner)]
        end = match.end()
        parts += ["\\ "] if text[end : end + 1].isalnum() else []  # markup ends where a word does
    return ENUMERATOR.sub(r"\1\\\2", "".join([*parts, escape(text[end:])]))


def escape(text: str) -> str:
    """Plain text, with typographic primes."""
    return re.sub(r"([\\*`|_])", r"\\\1", PRIME.sub("\\1′", text))


def code(match: re.Match, module: str, owner: str) -> str:
    """`name` as a link if it is a documented name, else as it is; "word" as a Python string."""
    if match[2]:
        return f'``"{match[2]}"``'
    for full in (f"{module}.{owner}.{match[1]}", f"{module}.{match[1]}", f"{PACKAGE}.{match[1]}"):
        if full in documented():
            return f":py:obj:`{match[1]} <{full}>`"
    return f"``{match[1]}``"


@cache
def documented() -> frozenset[str]:
    """The full names of all public modules, functions, classes and methods on the page."""
    found = set()
    for module in HEADING.findall((ROOT / f"{PAGE}.md").read_text("utf-8")):
        full = f"{PACKAGE}.{module}"
        found.add(full)
        for name, member in public(importlib.import_module(full)):
            found.add(f"{full}.{name}")
            if inspect.isclass(member):
                found |= {f"{full}.{name}.{m}" for m, what in vars(member).items() if is_method(m, what)}
    return frozenset(found)


def public(module) -> list[tuple[str, object]]:
    """The functions and classes that a module defines for others, or those it is brief about."""
    brief = BRIEF.get(module.__name__.split(".")[-1])
    return [
        (name, member)
        for name, member in vars(module).items()
        if (inspect.isfunction(member) or inspect.isclass(member))
        and f"{member.__module__}.".startswith(f"{module.__name__}.")
        and not name.startswith("_")
        and brief in (None, name)
    ]


def is_method(name: str, what: object) -> bool:
    """Whether a class attribute is a public, documented method or property."""
    return not name.startswith("_") and (inspect.isfunction(what) or isinstance(what, property))


# ---- Sphinx ----


def fill_page(app, docname: str, content: list[str]) -> None:
    """Hand Sphinx the filled page."""
    if docname == PAGE:
        content[0] = api_page(content[0])


def translate(app, what: str, name: str, obj, options, lines: list[str]) -> None:
    """Hand autodoc the translated docstring."""
    _, module, *rest = name.split(".")
    owner = rest[0] if rest and what in ("class", "method", "property") else ""
    lines[:] = rst(list(lines), explained(obj), f"{PACKAGE}.{module}", owner)


def explained(obj) -> set[str]:
    """The names that a docstring's lines may explain: parameters, and fields of a class."""
    fields = set(getattr(obj, "__annotations__", {})) if inspect.isclass(obj) else set()
    try:
        return fields | set(inspect.signature(obj).parameters)
    except (TypeError, ValueError):
        return fields


def skip(app, what: str, name: str, obj, skipped: bool, options) -> bool | None:
    """Leave out fields: of those with a default Python only knows the docstring of its type."""
    return True if inspect.isbuiltin(obj) or type(obj).__name__ == "_tuplegetter" else None


def signature(app, what: str, name: str, obj, options, arguments: str | None, returns: str | None):
    """A protocol has no arguments of its own; a default without a literal is left to the docstring."""
    if inspect.isclass(obj) and getattr(obj, "_is_protocol", False):
        return "", None
    return arguments and re.sub(r"<[^<>]* object[^<>]*>", "...", arguments), returns


def setup(app) -> dict:
    """Register with Sphinx."""
    app.setup_extension("sphinx.ext.autodoc")
    app.connect("source-read", fill_page)
    app.connect("autodoc-process-docstring", translate)
    app.connect("autodoc-process-signature", signature)
    app.connect("autodoc-skip-member", skip)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
