"""Write each chapter's slides from the same reading of the notebook that made the book.

The deck is a second builder on the doctrees of the first, so that nothing runs twice and a theorem has
one number. `slides` picks the marked parts of a chapter; `DeckBuilder` writes them as one reveal.js page
that needs no network and no server.
"""

import shutil
from html import escape
from pathlib import Path
from string import Template

from docutils import nodes
from sphinx.builders.html import StandaloneHTMLBuilder

HERE = Path(__file__).parent
STATIC = HERE.parent / "_static"


def slides(doctree: nodes.document) -> list[nodes.Node]:
    """The doctree's marked parts, in reveal.js's sections: a column for each slide and its subslides."""
    columns = []
    for kind, part in parts(doctree):
        if kind == "slide":
            columns.append([part])
        elif not columns:
            raise ValueError(f"a chapter's first slide_type must be 'slide', not {kind!r}")
        elif kind == "subslide":
            columns[-1].append(part)
        elif kind == "fragment":
            columns[-1][-1].append(nodes.container("", *part, classes=["fragment"]))
        elif kind == "notes":
            columns[-1][-1] += [html('<aside class="notes">'), *part, html("</aside>")]
        else:
            raise ValueError(f"unknown slide_type {kind!r}")
    if not columns:
        raise ValueError("no cell of the chapter has a slide_type")
    deck = []
    for column in columns:
        inner = [n for slide in column for n in (html("<section>"), *slide, html("</section>"))]
        deck += inner if len(column) == 1 else [html("<section>"), *inner, html("</section>")]
    return deck


def parts(doctree: nodes.document):
    """Each (slide_type, nodes) of a chapter in order: marked Markdown, and code cells by metadata."""
    kind, part = None, []
    for node in flat(doctree):
        if isinstance(node, nodes.comment) and node.astext().startswith("slide: "):
            if kind:
                yield kind, [within(n) for n in part]
            kind, part = node.astext().removeprefix("slide: "), []
            kind = None if kind == "end" else kind
        elif kind:
            part.append(node)
        elif node.get("nb_element") == "cell_code" and (shown := node["cell_metadata"].get("slideshow")):
            yield shown["slide_type"], code_on_slide(node)


def flat(node: nodes.Element):
    """The children of nested sections in one row, their titles as plain headings."""
    for child in node.children:
        if isinstance(child, nodes.section) or "deck-only" in child.get("classes", []):
            yield from flat(child)
        elif isinstance(child, nodes.title | nodes.rubric):
            level = 1 if isinstance(node.parent, nodes.document) else 2
            yield nodes.rubric("", "", *child.children, level=level)
        else:
            yield child


def within(box: nodes.Element) -> nodes.Element:
    """A box as a slide shows it: no sections, which are slides to reveal.js, and no unmarked code."""
    for section in list(box.findall(nodes.section)):
        section.replace_self(nodes.container("", *section.children, classes=section["classes"]))
    for cell in list(box.findall(nodes.container)):
        if cell.get("nb_element") == "cell_code":
            shown = code_on_slide(cell) if "slideshow" in cell["cell_metadata"] else []
            cell.parent.replace(cell, shown)
    return box


def code_on_slide(cell: nodes.container) -> list[nodes.Node]:
    """A code cell's output; its source too when a tag asks for it."""
    tags = set(cell["cell_metadata"].get("tags", []))
    wanted = {"cell_output"} | ({"cell_input"} if tags & {"show-code", "live-demo"} else set())
    shown = [n for n in cell.findall(nodes.container) if wanted & set(n["classes"])]
    live = [html('<p class="live-demo">Run this live</p>')] if "live-demo" in tags else []
    return [nodes.container("", *live, *shown, classes=["cell"])]


def html(text: str) -> nodes.raw:
    """A piece of HTML as it stands."""
    return nodes.raw("", text, format="html")


class DeckBuilder(StandaloneHTMLBuilder):
    """One page for each chapter, in a folder that opens from a disk as well as from the site."""

    name = "deck"
    search = False

    def get_target_uri(self, docname: str, typ: str | None = None) -> str:
        """Decks lie in slides/ inside the book: a sibling, or a page one folder up."""
        return f"{Path(docname).name}.html" if self.is_chapter(docname) else f"../{docname}.html"

    def get_outfilename(self, pagename: str) -> str:
        """Where a chapter's deck is written."""
        return str(Path(self.outdir, self.get_target_uri(pagename)))

    def is_chapter(self, docname: str) -> bool:
        """Whether the document is a notebook, which is what has slides."""
        return str(self.env.doc2path(docname)).endswith(".ipynb")

    def get_outdated_docs(self) -> list[str]:
        """Every chapter, every time: writing a deck takes a second."""
        return [docname for docname in self.env.found_docs if self.is_chapter(docname)]

    def write_doc(self, docname: str, doctree: nodes.document) -> None:
        """Write chapters only; Sphinx also offers the pages that list them."""
        if self.is_chapter(docname):
            super().write_doc(docname, doctree)

    def handle_page(self, pagename: str, addctx: dict, *_args, **_options) -> None:
        """Fill our own template: the book theme has nothing to say about slides."""
        page = Template((HERE / "deck.html").read_text(encoding="utf-8")).substitute(
            title=escape(self.env.titles[pagename].astext()),
            slides=addctx["body"],
        )
        Path(self.get_outfilename(pagename)).write_text(page, encoding="utf-8")

    def copy_static_files(self) -> None:
        """The deck's own files only; reveal.js comes with html_extra_path."""
        static = Path(self.outdir, "_static")
        static.mkdir(exist_ok=True)
        self.create_pygments_style_file()
        for name in ("tokens", "fonts", "mathematics", "deck", "widgets"):
            shutil.copy(STATIC / f"{name}.css", static)
        shutil.copy(STATIC / "favicon.svg", static)
        shutil.copytree(STATIC / "fonts", static / "fonts", dirs_exist_ok=True)

    def gen_indices(self) -> None:
        """A deck has no index."""


def link_to_the_book(deck: nodes.document, docname: str) -> None:
    """Send links whose target is on no slide to the chapter in the book."""
    ids = {name for node in deck.findall(nodes.Element) for name in node["ids"]}
    for link in deck.findall(nodes.reference):
        if link.get("refid", "") not in {"", *ids}:
            link["refuri"] = f"../{docname}.html#{link.attributes.pop('refid')}"


def select(app, doctree: nodes.document, docname: str) -> None:
    """Keep what the builder at work needs: slides for the deck, everything else for the book."""
    if app.builder.name == "deck":
        if app.builder.is_chapter(docname):
            deck = slides(doctree)
            doctree.clear()
            doctree += deck
            link_to_the_book(doctree, docname)
    else:
        for node in list(doctree.findall(nodes.container)):
            if "deck-only" in node["classes"]:
                node.parent.remove(node)


def setup(app) -> dict:
    """Register with Sphinx."""
    app.add_builder(DeckBuilder)
    app.connect("doctree-resolved", select)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
