"""Write each chapter's slides from the same reading of the notebook that made the book.

The deck is a second builder on the doctrees of the first, so that nothing runs twice and a theorem has
one number. `slides` picks the marked parts of a chapter; `DeckBuilder` writes them as one reveal.js page
that needs no network and no server.
"""

import re
import shutil
from dataclasses import dataclass, field
from html import escape, unescape
from pathlib import Path
from string import Template

from docutils import nodes
from sphinx.builders.html import StandaloneHTMLBuilder

HERE = Path(__file__).parent
STATIC = HERE.parent / "_static"
BREATH = 16  # words of a caption that a room reads while it looks at the figure
CAPTION = re.compile(r"(?<=<figcaption>)[^<]+(?=</figcaption>)")


@dataclass
class Slide:
    """What one slide shows, what its notes say, and the section of the chapter that it comes from."""

    section: nodes.section
    shown: list[nodes.Node]
    notes: list[nodes.Node] = field(default_factory=list)

    def __post_init__(self):
        """A slide without a heading takes the one of its section."""
        if not any(isinstance(node, nodes.rubric) for node in self.shown):
            title = self.section.next_node(nodes.title)
            self.shown.insert(0, heading(title.deepcopy(), level=2))

    def uncover(self, part: list[nodes.Node]) -> None:
        """Show `part` at the next key press, or at once on a slide that is nothing but a heading yet."""
        empty = all(isinstance(node, nodes.rubric) for node in self.shown)
        self.shown += part if empty else [nodes.container("", *part, classes=["fragment"])]

    def written(self, chapter: str) -> list[nodes.Node]:
        """The slide in reveal.js's elements; deck.html makes a link of where it is in the book."""
        place = f"{chapter}#{self.section['ids'][0]}"
        notes = [html('<aside class="notes">'), *self.notes, html("</aside>")] if self.notes else []
        return [html(f'<section data-book="{place}">'), *self.shown, *notes, html("</section>")]


def slides(doctree: nodes.document, chapter: str) -> list[nodes.Node]:
    """The doctree's marked parts, in reveal.js's sections: a column for each slide and its subslides.

    chapter: where the chapter's page is, seen from the deck.
    """
    columns = []
    for kind, section, part in parts(doctree):
        if kind == "slide":
            columns.append([Slide(section, part)])
        elif not columns:
            raise ValueError(f"a chapter's first slide_type must be 'slide', not {kind!r}")
        elif kind == "subslide":
            columns[-1].append(Slide(section, part))
        elif kind == "fragment":
            columns[-1][-1].uncover(part)
        elif kind == "notes":
            columns[-1][-1].notes += part
        else:
            raise ValueError(f"unknown slide_type {kind!r}")
    if not columns:
        raise ValueError("no cell of the chapter has a slide_type")
    deck = []
    for column in columns:
        inner = [node for slide in column for node in slide.written(chapter)]
        deck += inner if len(column) == 1 else [html("<section>"), *inner, html("</section>")]
    return deck


def parts(doctree: nodes.document):
    """Each (slide_type, section, nodes) in order: marked Markdown, and code cells by metadata."""
    kind, begun, part = None, None, []
    for section, node in flat(doctree):
        if isinstance(node, nodes.comment) and node.astext().startswith("slide: "):
            if kind:
                yield kind, begun, [within(n) for n in part]
            kind, begun, part = node.astext().removeprefix("slide: "), None, []
            kind = None if kind == "end" else kind
        elif kind:
            begun = begun or section
            part.append(node)
        elif node.get("nb_element") == "cell_code" and (shown := node["cell_metadata"].get("slideshow")):
            yield shown["slide_type"], section, code_on_slide(node)


def flat(node: nodes.Element, section: nodes.section | None = None):
    """(section, child) for all children of nested sections in one row, titles as plain headings."""
    for child in node.children:
        if isinstance(child, nodes.section):
            yield from flat(child, child)
        elif "deck-only" in child.get("classes", []):
            yield from flat(child, section)
        elif isinstance(child, nodes.title | nodes.rubric):
            yield section, heading(child, level=1 if isinstance(node.parent, nodes.document) else 2)
        else:
            yield section, child


def heading(title: nodes.Element, level: int) -> nodes.rubric:
    """A title's words as a heading that opens no section."""
    return nodes.rubric("", "", *title.children, level=level)


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
    for output in shown:
        shorten_captions(output)
    live = [html('<p class="live-demo">Run this live</p>')] if "live-demo" in tags else []
    return [nodes.container("", *live, *shown, classes=["cell"])]


def shorten_captions(output: nodes.Element) -> None:
    """Say below figures and sliders what the room sees; the rest is in the book."""
    for caption in output.findall(nodes.caption):
        if all(isinstance(node, nodes.Text) for node in caption):
            caption.children = [nodes.Text(brief(caption.astext()))]
    for slider in output.findall(nodes.raw):
        text = CAPTION.sub(lambda found: escape(brief(unescape(found[0]))), slider.astext())
        slider.children = [nodes.Text(text)]


def brief(caption: str) -> str:
    """The first sentence of a caption, or as many of its clauses, without asides, as take one breath."""
    sentence = re.split(r"(?<=[.?!])\s", caption)[0]
    if len(sentence.split()) <= BREATH:
        return sentence
    clauses = re.split(r"(?<=[,;:])\s", re.sub(r"\s\([^()]*\)", "", sentence))
    while len(clauses) > 1 and len(" ".join(clauses).split()) > BREATH:
        clauses.pop()
    return " ".join(clauses).rstrip(",;:.") + "."


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
        for name in ("tokens", "fonts", "mathematics", "figures", "deck"):
            sheet = (STATIC / f"{name}.css").read_text("utf-8")
            sheet = sheet.replace("font-display: optional", "font-display: swap")  # a room waits
            (static / f"{name}.css").write_text(sheet, "utf-8")
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
            deck = slides(doctree, f"../{docname}.html")
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
