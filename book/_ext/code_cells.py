"""Code, output and tables in the page: what a reader may skip is folded, what is wide or long fits.

The notebook stays as it is, and so do the slides. In the page

- hidden cells that stand together become one fold, below the figure that they draw;
- the assertions of a cell fold away under its output;
- a listing of more than `LONG` lines shows its beginning and a button;
- an output says whether its lines may be broken, and a table how it goes on a phone.

`book/_static/cells.css` has the looks.
"""

import ast
import re
from html import escape

from deck import html
from docutils import nodes

LONG = 30  # lines; book/_static/cells.css shows 20 of them
PHONE = 46  # characters beside one another on a screen 390 pixels wide
SENTENCE = 30  # characters: a longer cell is read, a shorter one is looked up
LABELS = 6  # columns: book/_static/cells.css can name so many
WRAPPED = 18  # characters: the width that text is content with
MAGIC = re.compile(r"^(\s*)[%!].*", re.MULTILINE)
NUMBER = re.compile(r"([-+−]?\d[\d.,]*(e[-+]\d+)?( ± [\d.]+)?( ?(%|m?s|×))?( \([\d.]+\))?)?")
COLUMNS = re.compile(r"^\s|\S {2,}\S", re.MULTILINE)  # blanks that put something in its place


# ---- cells ----


def is_cell(node: nodes.Node) -> bool:
    """Whether the node is a code cell."""
    return isinstance(node, nodes.container) and node.get("nb_element") == "cell_code"


def is_hidden(node: nodes.Node) -> bool:
    """Whether the node is a code cell of which the page hides the source, and nothing else."""
    mode = node.get("hide_mode") if is_cell(node) else None
    return mode == "input" or (mode == "all" and part(node, "output") is None)


def is_silent(node: nodes.Node) -> bool:
    """Whether the page shows nothing of the node: marks and text for the slides."""
    return isinstance(node, nodes.comment | nodes.target) or "deck-only" in node.get("classes", [])


def part(cell: nodes.container, which: str) -> nodes.container | None:
    """The container of the cell's source or of its output."""
    found = (n for n in cell.findall(nodes.container) if n.get("nb_element") == f"cell_code_{which}")
    return next(found, None)


def code(cell: nodes.container) -> str:
    """The cell's source."""
    return part(cell, "source").astext()


def listing(source: str) -> nodes.container:
    """Code as a cell shows it."""
    return nodes.container(
        "", nodes.literal_block(source, source, language="ipython3"), classes=["cell_input"]
    )


def fold(kind: str, summary: str, source: str) -> list[nodes.Node]:
    """Code behind one quiet line, which is given as HTML."""
    opening = f'<details class="hide {kind}"><summary>{summary}</summary>'
    return [html(opening), listing(source), html("</details>")]


# ---- hidden cells ----


def merge_hidden(parent: nodes.Element, numbers: dict[str, tuple[int, ...]]) -> None:
    """Put the sources of hidden cells that stand together behind one line, below what they draw."""
    run = []
    for node in [*parent.children, nodes.paragraph()]:
        ends = not is_hidden(node) and not is_silent(node)
        if is_hidden(node):
            run.append(node)
            ends = part(node, "output") is not None
        if ends and run:
            merge(run, numbers)
            run = []


def merge(run: list[nodes.container], numbers: dict[str, tuple[int, ...]]) -> None:
    """Leave the last cell of a run, with the sources of all in a fold after its output."""
    source = "\n\n\n".join(map(code, run))
    summary = label(run, part(run[-1], "output"), numbers)
    for cell in run[:-1]:
        cell.parent.remove(cell)
    output = part(run[-1], "output")
    run[-1].children = []
    run[-1] += [*([output] if output else []), *fold("code-fold", escape(summary), source)]


def label(run: list[nodes.container], output: nodes.container | None, numbers: dict) -> str:
    """What the fold of these cells is called."""
    tags = [tag for cell in run for tag in cell["cell_metadata"].get("tags", [])]
    first = "Set-up, and code" if "parameters" in tags else "Code"
    if output is None:
        return first.split(",")[0]
    for figure in output.findall(nodes.figure):
        for name in set(figure["ids"]) & set(numbers):
            return f"{first} for Figure {'.'.join(map(str, numbers[name]))}"
    drawn = any(output.findall(nodes.image)) or "<figure" in output.astext()
    return f"{first} for this figure" if drawn else first


# ---- assertions ----


def split(source: str) -> tuple[str, list[str]]:
    """The code without the assertions that stand by themselves, and these, each with its comment."""
    try:
        body = ast.parse(MAGIC.sub(r"\1pass", source)).body
    except SyntaxError:
        return source, []
    lines, checks = source.splitlines(), []
    for statement in body:
        if isinstance(statement, ast.Assert):
            first, last = statement.lineno - 1, statement.end_lineno
            while first and (lines[first - 1] or "").startswith("#"):
                first -= 1
            checks.append("\n".join(lines[first:last]))
            lines[first:last] = [None] * (last - first)
    kept = "\n".join(line for line in lines if line is not None)
    return re.sub(r"\n{4,}", "\n\n\n", kept).strip("\n"), checks


def claim(check: str, room: int = 44) -> str:
    """What an assertion says, in one short line."""
    said = ast.unparse(ast.parse(check).body[0].test)
    return said if len(said) <= room else said[: room - 2].rstrip() + " …"


def fold_checks(parent: nodes.Element) -> None:
    """Take the assertions out of the visible cells, and fold them below the output."""
    before, found = None, []
    for node in list(parent.children):
        if is_cell(node) and not is_hidden(node) and part(node, "source") is not None:
            shown, checks = split(code(node))
            if checks and not shown and before is not None:
                found[-1][1].extend(checks)
                parent.remove(node)
                continue
            found.append((node, checks))
            before = node
            if checks and shown:
                replace_source(node, shown)
            elif checks:
                node.remove(part(node, "source"))
        elif not is_silent(node):
            before = None
    for cell, checks in found:
        if checks:
            more = f", and {len(checks) - 1} more" if len(checks) > 1 else ""
            summary = f"checked: <code>{escape(claim(checks[0]))}</code>{more}"
            cell += fold("check-fold", summary, "\n".join(checks))


def replace_source(cell: nodes.container, source: str) -> None:
    """Show this in place of the cell's source."""
    block = next(part(cell, "source").findall(nodes.literal_block))
    block.replace_self(nodes.literal_block(source, source, **block.attributes))


# ---- long and wide ----


def cut(cell: nodes.container) -> None:
    """Show the beginning of a long listing and a button for the rest of it."""
    parts = [box for which in ("source", "output") if (box := part(cell, which)) is not None]
    blocks = [block for box in parts for block in box.findall(nodes.literal_block)]
    for number, block in enumerate(blocks):
        lines = len(block.astext().splitlines())
        if lines > LONG:
            name = f"all-{cell['cell_index']}-{number}"
            button = (
                f'<input type="checkbox" id="{name}"><label for="{name}">Show all {lines} lines</label>'
            )
            box = nodes.container("", classes=["long"])
            block.replace_self(box)
            box += [block, html(button)]


def say_what_may_wrap(cell: nodes.container) -> None:
    """Mark outputs of sentences, which a phone may break into lines; columns stay what they are."""
    for block in cell.findall(nodes.literal_block):
        if "stream" in block["classes"] and not COLUMNS.search(block.astext()):
            block["classes"].append("sentences")


# ---- tables ----


def fit(table: nodes.table) -> None:
    """Numbers to the right; and as cards, on a phone, where there is too much text for a row."""
    rows = [list(row.findall(nodes.entry)) for row in table.findall(nodes.row)]
    head, body = rows[0], rows[1:]
    if not body or not any(table.findall(nodes.thead)) or len({len(row) for row in rows}) > 1:
        return
    need, longest = 0, 0  # the width that the rows ask for, and the longest text that explains one
    for number, (title, *cells) in enumerate(zip(head, *body, strict=True)):
        texts = [cell.astext().strip() for cell in cells]
        width = max(map(len, texts))
        if all(map(NUMBER.fullmatch, texts)) and any(texts):
            for cell in (title, *cells):
                cell["classes"] = ["text-right"]
        else:
            longest, width = max(longest, width if number else 0), min(width, WRAPPED)
        need += width + 3
    formulas = any(n for title in head for n in title.findall(nodes.math))
    if need > PHONE and longest > SENTENCE and len(head) <= LABELS and not formulas:
        names = (re.sub(r'["\\\n]', " ", title.astext().strip()) for title in head)
        style = ";".join(f'--head-{n}:"{name}"' for n, name in enumerate(names, 1) if name)
        beside, at = table.parent, table.parent.index(table)
        beside[at : at + 1] = [
            html(f'<div class="cards" style="{escape(style)}">'),
            table,
            html("</div>"),
        ]


def has_own_layout(table: nodes.table) -> bool:
    """Whether book.css sets the table in its own way."""
    node = table
    while node := node.parent:
        if "formulas" in node.get("classes", []):
            return True
    return False


def arrange(app, doctree: nodes.document, docname: str) -> None:
    """Arrange a page; the slides choose for themselves."""
    if app.builder.format != "html" or app.builder.name == "deck":
        return
    numbers = getattr(app.env, "toc_fignumbers", {}).get(docname, {}).get("figure", {})
    parents = {id(node.parent): node.parent for node in doctree.findall(is_cell)}
    for parent in parents.values():
        merge_hidden(parent, numbers)
        fold_checks(parent)
    for cell in list(doctree.findall(is_cell)):
        say_what_may_wrap(cell)
        cut(cell)
    for table in list(doctree.findall(nodes.table)):
        if not has_own_layout(table):
            fit(table)


def setup(app) -> dict:
    """Register with Sphinx."""
    app.connect("doctree-resolved", arrange)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
