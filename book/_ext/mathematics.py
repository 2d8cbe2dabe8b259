r"""Set the mathematics when the book is built: TeX becomes MathML, which browsers show without a script.

Temml (in temml/, version 0.13.5) translates, run by V8 inside this process. A long formula in a line of
text comes in pieces that end where TeX would break it, after a relation or an operator, so that the
browser may break the line there; a displayed one stands in a box that scrolls.
"""

import atexit
import re
from functools import cache
from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree

from docutils import nodes
from py_mini_racer import MiniRacer
from sphinx.errors import ExtensionError
from sphinx.util.math import get_node_equation_number

TEMML = Path(__file__).parent / "temml/temml.min.js"
SET = """(tex, display) => {
    try { return temml.renderToString(tex, {displayMode: display, throwOnError: true, wrap: "tex"}) }
    catch (error) { return error.message }
}"""
NUMBERED = re.compile(r"(\\(?:begin|end)\{(?:align|alignat|equation|gather|multline))\}")
APPLY = "\u2061"  # between max and what it is taken of
LONG = 30  # signs: two thirds of a phone's width
STAY = "&#8288;"  # no line begins between a formula and the word that it is part of
TIED = re.compile(rf"(<math>(?:(?!</math>).)*</math>)(?:{STAY})?([.,;:!?)\]’”]+)", re.DOTALL)


@cache
def translator() -> MiniRacer:
    """Temml, started once; V8 must end before Python does."""
    engine = MiniRacer()
    atexit.register(engine.close)
    engine.eval(TEMML.read_text(encoding="utf-8"))
    engine.eval(f"const set = {SET}")
    return engine


@cache
def mathml(tex: str, display: bool) -> str:
    """The formula as MathML; a ValueError says what is wrong with it."""
    found = translator().call("set", tex, display)
    if not found.startswith("<math"):
        raise ValueError(" ".join(found.split()))
    math = ElementTree.fromstring(found)
    parts = [math] if display else pieces(math)
    for part in [inner for outer in parts for inner in list(outer.iter())]:
        script_the_fence(part)
        for before, after in pairwise([None, *(child for child in part if child.tag != "mspace"), None]):
            space(before, after)
    return "".join(map(text_of, parts))


def text_of(part: ElementTree.Element) -> str:
    """The element as it stands in HTML."""
    return ElementTree.tostring(part, "unicode", short_empty_elements=False)


def script_the_fence(part: ElementTree.Element) -> None:
    """Hang an index or exponent of (…) on the closing fence, as TeX does, whatever is tall inside."""
    if part.tag not in ("msub", "msup", "msubsup") or part[0].tag != "mrow" or not len(part[0]):
        return
    row, fence = part[0], part[0][-1]
    if fence.get("form") == "postfix" and fence.get("stretchy") == "false":
        row.remove(fence)
        scripted = ElementTree.Element(part.tag)
        scripted.extend([fence, *part[1:]])
        part[:] = [*row, scripted]
        part.tag = "mrow"


def space(before: ElementTree.Element | None, after: ElementTree.Element | None) -> None:
    """Leave no room beside a sign in front of its number, nor between dots and their comma."""
    opens = before is None or "separator" in before.attrib or before.get("form") == "prefix"
    if after is not None and after.tag == "mo" and after.text in ("+", "−") and opens:
        after.set("form", "prefix")
    if before is not None and before.text == "…" and after is not None and "separator" in after.attrib:
        before.set("rspace", "0")


def pieces(math: ElementTree.Element) -> list[ElementTree.Element]:
    """The parts of an inline formula between which a line may end: one, unless the formula is long."""
    long = len("".join(math.itertext())) >= LONG
    joined = [ElementTree.Element("math")]
    for row in math:
        last = joined[-1][-1] if len(joined[-1]) else None
        if long and last is not None and last.tag == "mo" and last.text != APPLY:
            joined.append(ElementTree.Element("math"))
        joined[-1].extend(row if row.tag == "mrow" else [row])
    return joined


def set_formula(writer, node: nodes.Element, display: bool) -> str:
    """The node's formula as MathML; one that Temml does not understand ends the build."""
    tex = node.astext().strip()
    try:
        return mathml(NUMBERED.sub(r"\1*}", tex), display)
    except ValueError as error:
        page = writer.builder.env.doc2path(writer.builder.current_docname)
        raise ExtensionError(f"{page}: {error}, in the formula\n{tex}") from error


def beside(node: nodes.Element, where: int) -> str:
    """The character before (−1) or after (1) the node, a space where there is none."""
    place = node.parent.index(node) + where
    text = node.parent[place].astext() if 0 <= place < len(node.parent) else ""
    return (text or " ")[0 if where > 0 else -1]


def visit_math(writer, node: nodes.math) -> None:
    """A formula in a line of text."""
    before, after = ("" if beside(node, where).isspace() else STAY for where in (-1, 1))
    formula = before + set_formula(writer, node, False) + after
    if node["ids"] or node["classes"]:
        formula = f"{writer.starttag(node, 'span', '')}{formula}</span>"
    writer.body.append(formula)
    raise nodes.SkipNode


def visit_math_block(writer, node: nodes.math_block) -> None:
    """A formula in lines of its own, with its number if it has a label."""
    writer.body.append(writer.starttag(node, "div", CLASS="math"))
    if node["number"]:
        writer.body.append(f'<span class="eqno">({get_node_equation_number(writer, node)})')
        writer.add_permalink_ref(node, "Link to this equation")
        writer.body.append("</span>")
    writer.body.append(set_formula(writer, node, True) + "</div>\n")
    raise nodes.SkipNode


def tie(app, pagename, templatename, context, doctree) -> None:
    """Keep what follows a formula without a space in its line, as a browser would not by itself."""
    if "body" in context:
        context["body"] = TIED.sub(r'<span class="tied">\1\2</span>', context["body"])


def setup(app) -> dict:
    """Register with Sphinx."""
    app.connect("html-page-context", tie)
    app.add_html_math_renderer("mathml", (visit_math, None), (visit_math_block, None))
    return {"parallel_read_safe": True, "parallel_write_safe": False}  # V8 does not survive a fork
