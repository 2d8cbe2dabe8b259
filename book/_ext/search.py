"""Search by section: an index made from the same reading that made the pages.

Sphinx finds pages and shows their sources. Here every section, statement, exercise, term of the glossary
and name of the API becomes a record in plain words: no code, no output, formulas in Unicode. Pagefind
makes of them an index that the browser reads in small pieces; book/_static/search.js shows its finds.
"""

import re
import subprocess
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from html import escape
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory

from docutils import nodes
from pagefind.service import get_executable
from plain_math import plain
from sphinx import addnodes
from sphinx.errors import SphinxError

HEADING = 10  # times as much as in the text counts a word in a heading,
FRAME = 0.3  # and so much under a heading that most chapters share: Further reading
UNUSED = {"_static/doctools.js", "_static/sphinx_highlight.js"}  # Sphinx's own search
SURPLUS = ("pagefind-*.css", "pagefind-*.js", "wasm.unknown.*")  # interfaces other than ours
SILENT = (
    nodes.comment,
    nodes.image,
    nodes.literal_block,
    nodes.raw,
    nodes.system_message,
    addnodes.index,
)
UNSAID = {"badges", "deck-only", "toctree-wrapper"}
BOXES = {"proof-content", "exercise-content", "solution-content"}  # sections that are none


@dataclass
class Record:
    """Something to land on: where, its heading, what it is part of, its words, and what it is.

    sort: section, statement, exercise, term, page or name, by which search.js ranks.
    """

    address: str
    title: str
    place: str
    text: str
    sort: str


# ---- what a page has ----


def records(app, doctree: nodes.document, docname: str) -> Iterator[Record]:
    """The sections, statements, exercises, terms and names of a page, in its order."""
    page, whole = app.builder.get_target_uri(docname), app.env.titles[docname].astext()
    chapter = app.env.toc_secnumbers.get(docname, {}).get("")
    place = f"Chapter {chapter[0]}: {whole}" if chapter else whole
    for node in doctree.findall(nodes.Element):
        if title := heading(node):
            anchor = "" if node.parent is doctree else f"#{anchor_of(node)}"
            number = ".".join(map(str, number_of(app.env, docname, node)))
            shown = " ".join(filter(None, [kind(node), number])) + (": " if kind(node) else " ")
            yield Record(page + anchor, (shown + title).strip(), place, words(node), sort(docname, node))


def heading(node: nodes.Node) -> str:
    """What a reader would call the place, or nothing if it is none to land on."""
    match node:
        case nodes.section() if set(node["ids"]) - BOXES:
            return text_of(node[0])
        case nodes.definition_list_item() if node[0]["ids"]:
            return text_of(node[0])
        case addnodes.desc() if node[0].get("ids"):
            return anchor_of(node).removeprefix("adv_lib.")
        case nodes.Element() if kind(node):
            return text_of(node[0]).removeprefix("Exercise").strip(" ()") or kind(node)
    return ""


def kind(node: nodes.Element) -> str:
    """Theorem, Definition, …, Exercise; nothing for what has no box of its own."""
    return node.get("realtype", "exercise" if "exercise" in node["classes"] else "").title()


def sort(docname: str, node: nodes.Element) -> str:
    """What kind of place it is, for the order of what is found."""
    if kind(node):
        return "exercise" if kind(node) == "Exercise" else "statement"
    if isinstance(node, nodes.definition_list_item):
        return "term"
    return "section" if docname.startswith("chapters/") else "name" if docname == "book/api" else "page"


def anchor_of(node: nodes.Element) -> str:
    """The id that stands in the page: the node's own, or that of its first line."""
    return (node["ids"] or node[0]["ids"])[0]


def number_of(env, docname: str, node: nodes.Element) -> tuple[int, ...]:
    """What the page prints before the heading: (8, 2)."""
    if isinstance(node, nodes.section):
        return env.toc_secnumbers.get(docname, {}).get(f"#{anchor_of(node)}", ())
    counted = env.toc_fignumbers.get(docname, {})
    return counted.get(node.get("countertype", node.get("type")), {}).get((node["ids"] or [""])[0], ())


def words(node: nodes.Element) -> str:
    """The words of a place itself, without those of the places inside it and without solutions."""
    parts, solution = [], False
    for child in node.children:
        if isinstance(child, nodes.raw):
            opens = '<details class="solution"' in child.astext()
            solution = opens or (solution and "</details>" not in child.astext())
        elif not solution and not isinstance(child, nodes.title | nodes.term | addnodes.desc_signature):
            parts.append("" if heading(child) else text(child))
    return re.sub(r" ([,;:)]|\.(?!\d))", r"\1", " ".join(" ".join(parts).split())).rstrip(" ·")


def text(node: nodes.Node) -> str:
    """The words of a node as a reader sees them."""
    match node:
        case nodes.Text():
            return node.astext()
        case nodes.math():
            return plain(node.astext())
        case nodes.math_block():
            return f" {plain(node.astext())} "
    if isinstance(node, SILENT) or UNSAID & set(node["classes"]) or is_of_numbers(node):
        return ""
    if node.get("nb_element") == "cell_code":
        return " ".join(map(text, node.findall(nodes.caption)))
    inner = text_of(node)
    if isinstance(node, nodes.entry):
        return f" {inner} ·"
    return inner if isinstance(node, nodes.Inline) else f" {inner} "


def text_of(node: nodes.Element) -> str:
    """The words inside a node, without the places inside it."""
    return "".join(text(child) for child in node.children if not heading(child))


def is_of_numbers(node: nodes.Node) -> bool:
    """Whether a table has more cells of numbers than of words."""
    if not isinstance(node, nodes.table):
        return False
    entries = [entry.astext() for entry in node.findall(nodes.entry)]
    return 2 * sum(bool(re.search(r"\d", entry)) and len(entry) < 30 for entry in entries) > len(entries)


# ---- Sphinx ----


def collect(app, doctree: nodes.document, docname: str) -> None:
    """Keep a page's records until all pages are written."""
    if app.builder.name == "html":
        found = app.builder.__dict__.setdefault("search_records", {})
        found[docname] = list(records(app, doctree, docname))


def leave_out_sphinx_search(app) -> None:
    """Make neither Sphinx's index nor its page."""
    app.builder.search = False


def unload_sphinx_search(app, pagename, templatename, context, doctree) -> None:
    """Drop the scripts of Sphinx's own search, and of its marks, which stay."""
    scripts = context.get("script_files", [])
    context["script_files"] = [s for s in scripts if getattr(s, "filename", s) not in UNUSED]


def search_page(app) -> Iterator[tuple[str, dict, str]]:
    """The page of all results, which the field leads to and which works with ?q=."""
    body = (
        '<h1>Search</h1><noscript><p class="adv-search-plain">Search works in the browser and needs '
        'JavaScript. Without it, the <a href="book/glossary.html">glossary</a> and the '
        '<a href="genindex.html">index</a> list terms and names.</p></noscript>'
        '<div id="adv-search-page"></div>'
    )
    if app.builder.name == "html":
        yield "search", {"title": "Search", "body": body}, "page.html"


def write_index(app, error: Exception | None) -> None:
    """Hand all records to Pagefind, which writes pagefind/ into the site."""
    if error or app.builder.name != "html":
        return
    for docname in sorted(app.env.found_docs - set(app.builder.search_records)):
        app.env.get_and_resolve_doctree(docname, app.builder)  # a page that had not changed
    found = [record for page in app.builder.search_records.values() for record in page]
    shared = Counter(bare(record.title) for record in found)
    with TemporaryDirectory() as folder:
        for number, record in enumerate(found):
            weight = FRAME if shared[bare(record.title)] > 3 else 1
            Path(folder, f"{number}.html").write_text(as_html(record, weight), encoding="utf-8")
        pagefind(folder, Path(app.outdir, "pagefind"))


def bare(title: str) -> str:
    """A heading without its number."""
    return re.sub(r"^[\d.]+ ", "", title)


def as_html(record: Record, weight: float) -> str:
    """A record as a page for Pagefind."""
    meta = {"to": record.address, "place": record.place}
    return (
        '<!doctype html><html lang="en"><head>'
        + "".join(
            f'<meta data-pagefind-meta="{k}[content]" content="{escape(v)}">' for k, v in meta.items()
        )
        + f'<meta data-pagefind-filter="sort[content]" content="{record.sort}"></head>'
        f'<body data-pagefind-weight="{weight}"><h1 data-pagefind-weight="{HEADING * weight}">'
        f"{escape(record.title)}</h1><p>{escape(record.text)}</p></body></html>"
    )


def pagefind(folder: str, out: Path) -> None:
    """Run Pagefind, and fail with its own words if it does."""
    command = [get_executable(), "--site", folder, "--output-path", out, "--include-characters", "∞_"]
    done = subprocess.run([*command, "--quiet"], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SphinxError(f"pagefind: {done.stdout}{done.stderr}")
    for file in chain.from_iterable(map(out.glob, SURPLUS)):
        file.unlink()


def setup(app) -> dict:
    """Register with Sphinx."""
    app.add_css_file("search.css")
    app.add_js_file("search.js", loading_method="defer")
    app.connect("builder-inited", leave_out_sphinx_search)
    app.connect("doctree-resolved", collect, priority=400)  # before others change formulas
    app.connect("html-page-context", unload_sphinx_search, priority=900)
    app.connect("html-collect-pages", search_page)
    app.connect("build-finished", write_index)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
