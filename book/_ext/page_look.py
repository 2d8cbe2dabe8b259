"""What the look of a page needs in its HTML, and neither Sphinx nor the theme writes."""

import copy
import re

from docutils import nodes

CHAPTER = re.compile(r"(?:^|/)(\d\d)_\w+(?:\.html)?$")
FOLDED = re.compile(r"<details>(\s*<summary>(Proof|Hint)\b)")
BETWEEN = " · "


def badges_as_a_list(app, doctree: nodes.document, docname: str) -> None:
    """Make a chapter's line of badges a list: its links can be buttons then, and its facts not."""
    if app.builder.name != "html":
        return
    for row in doctree.findall(nodes.container):
        if "badges" not in row["classes"]:
            continue
        row[:] = [nodes.bullet_list("", *(list_item(part) for part in split(row[0].children)))]


def split(children: list[nodes.Node]) -> list[list[nodes.Node]]:
    """The parts of a line between its middle dots."""
    parts = [[]]
    for child in children:
        first, *others = child.astext().split(BETWEEN) if isinstance(child, nodes.Text) else [child]
        parts[-1].append(nodes.Text(first) if isinstance(first, str) else first)
        parts += [[nodes.Text(text)] for text in others]
    parts = [[node for node in part if node.astext()] for part in parts]
    return [part for part in parts if part]


def list_item(part: list[nodes.Node]) -> nodes.list_item:
    """One badge: a link, a time, or what a chapter needs."""
    is_link = len(part) == 1 and isinstance(part[0], nodes.reference)
    kind = "link" if is_link else "needs" if part[0].astext().startswith("needs") else "time"
    return nodes.list_item("", nodes.paragraph("", "", *part), classes=[f"badge-{kind}"])


def name_the_parts(app, pagename, templatename, context, doctree) -> None:
    """Mark proofs and hints."""
    if "body" not in context or app.builder.name != "html":
        return
    context["body"] = FOLDED.sub(
        lambda found: f'<details class="adv-{found[2].lower()}">{found[1]}', context["body"]
    )


def contents_of_the_book(app, pagename, templatename, context, doctree) -> None:
    """Set the chapters' numbers apart in the sidebar, and this page's sections below its own entry."""
    made = context.get("generate_toctree_html")
    if made is None:
        return

    def with_numbers(*args, **options):
        tree = copy.copy(made(*args, **options))
        for link in tree.select("li > a"):
            if number := CHAPTER.search(pagename if link["href"] == "#" else link["href"]):
                title = re.sub(r"^\d+\.?\s+", "", link.get_text())
                link.clear()
                link.append(element(tree, "span", str(int(number[1])), "adv-number"))
                link.append(element(tree, "span", title))
        if (here := tree.select_one("li.current:has(> a[href='#'])")) and CHAPTER.search(pagename):
            here.append(sections(tree, context["generate_toc_html"]()))
        return tree

    context["generate_toctree_html"] = with_numbers


def sections(tree, contents):
    """The page's sections as a list; a screen with room shows them on the right instead."""
    listed = element(tree, "ul", None, "adv-sections")
    for link in contents.select("li.toc-h2 > a") if contents else []:
        item = element(tree, "li")
        item.append(copy.copy(link))
        item.a["class"] = "reference internal"
        listed.append(item)
    return listed


def element(tree, name: str, text: str | None = None, kind: str | None = None):
    """A new element of the tree."""
    made = tree.new_tag(name, attrs={"class": kind} if kind else {})
    if text:
        made.string = text
    return made


def setup(app) -> dict:
    """Register with Sphinx."""
    app.connect("doctree-resolved", badges_as_a_list)
    app.connect("html-page-context", name_the_parts)
    app.connect("html-page-context", contents_of_the_book, priority=900)  # after the theme has made it
    return {"parallel_read_safe": True, "parallel_write_safe": True}
