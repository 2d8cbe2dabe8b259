"""Small repairs to the pages that Sphinx and its extensions write."""

from docutils import nodes
from sphinx.util.osutil import relative_uri


def link_within_the_site(app, doctree: nodes.document, docname: str) -> None:
    """Make absolute links to the published book relative, so that they work offline and in forks.

    Notebooks must name the deck and the student copy by their public address, for Colab.
    """
    home, here = app.config.html_baseurl, app.builder.get_target_uri(docname)
    root = "../" if app.builder.name == "deck" else ""
    for link in doctree.findall(nodes.reference):
        if home and link.get("refuri", "").startswith(home):
            link["refuri"] = relative_uri(here, root + link["refuri"].removeprefix(home))


def keep_ids_unique(app, doctree: nodes.document, docname: str) -> None:
    """Drop the ids that sphinx-proof and sphinx-exercise give to the inside of every box."""
    for section in doctree.findall(nodes.section):
        if set(section["ids"]) & {"proof-content", "exercise-content", "solution-content"}:
            section["ids"].clear()


def say_constants_once(app, pagename, templatename, context, doctree) -> None:
    """Drop repeated inline scripts: declaring the same `const` twice is an error in the console."""
    seen, scripts = set(), []
    for script in context.get("script_files", []):
        body = getattr(script, "attributes", {}).get("body")
        if body is None or body not in seen:
            scripts.append(script)
        seen.add(body)
    context["script_files"] = scripts


def leave_out_what_no_page_uses(app, pagename, templatename, context, doctree) -> None:
    """Drop Thebe, which no page starts, and sphinx-design where a page has nothing of it."""
    unused = ["sphinx-thebe", "design-tabs"]
    unused += [] if 'class="sd-' in context.get("body", "") else ["sphinx-design"]
    for kind in ("script_files", "css_files"):
        context[kind] = [
            file
            for file in context.get(kind, [])
            if not any(name in str(file.filename) for name in unused)
            and "THEBE_JS_URL" not in (file.attributes.get("body") or "")
        ]


def launch_notebooks_only(app, pagename, templatename, context, doctree):
    """Drop the launch buttons of a page that runs from Markdown, which Colab cannot open."""
    if not str(app.env.doc2path(pagename)).endswith(".ipynb"):
        buttons = context.get("header_buttons", [])
        context["header_buttons"] = [b for b in buttons if b.get("label") != "launch-buttons"]


def repair_roles(app, pagename, templatename, context, doctree) -> None:
    """Let a screen reader count a bibliography's entries, and a keyboard scroll a wide table."""
    table = 'class="pst-scrollable-table-container"'
    if "body" in context:
        body = context["body"].replace('role="doc-biblioentry"', 'role="listitem"')
        context["body"] = body.replace(table, f'{table} tabindex="0"')


def count_from_zero(app, env) -> list[str]:
    """Number the chapters 0, 1, …, and with them their sections, figures, theorems and exercises."""
    numbers = [number for sections in env.toc_secnumbers.values() for number in sections.values()]
    if min(filter(None, numbers), default=(0,))[0] == 0:
        return []  # nothing is numbered, or all of it from 0
    for counted in (*env.toc_secnumbers.values(), *by_kind(env)):
        counted.update({name: less_one(number) for name, number in counted.items() if number})
    for docname, contents in env.tocs.items():
        for numbered in (env.titles[docname], *contents.findall(nodes.reference)):
            if numbered.get("secnumber"):
                numbered["secnumber"] = less_one(numbered["secnumber"])
    return []


def by_kind(env):
    """The numbers of figures, theorems, … of each numbered page."""
    for docname, sections in env.toc_secnumbers.items():
        if any(sections.values()):
            yield from env.toc_fignumbers.get(docname, {}).values()


def less_one(number: tuple[int, ...]) -> tuple[int, ...]:
    """The number with the chapter's part one lower."""
    return (number[0] - 1, *number[1:])


def setup(app) -> dict:
    """Register with Sphinx."""
    app.connect("env-get-updated", count_from_zero, priority=900)  # after Sphinx has counted
    app.connect("doctree-resolved", link_within_the_site)
    app.connect("doctree-resolved", keep_ids_unique)
    app.connect("html-page-context", say_constants_once, priority=900)
    app.connect("html-page-context", leave_out_what_no_page_uses, priority=900)
    app.connect("html-page-context", launch_notebooks_only, priority=900)
    app.connect("html-page-context", repair_roles)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
