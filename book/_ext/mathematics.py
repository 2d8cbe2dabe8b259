r"""Set the mathematics when the book is built: TeX becomes MathML, which a browser shows without a script.

Temml (in temml/, version 0.13.5) translates, run by V8 inside this process. A long formula in a line of
text comes in pieces that end where TeX would break it, after a relation or an operator, so that the browser
may break the line there; a displayed one stands in a box that scrolls.
"""

import atexit
import re
from functools import cache
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
    return found if display else "".join(f"<math>{piece}</math>" for piece in pieces(found))


def pieces(formula: str) -> list[str]:
    """The parts of an inline formula between which a line may end: one, unless the formula is long."""
    math = ElementTree.fromstring(formula)
    rows = [ElementTree.tostring(part, "unicode", short_empty_elements=False) for part in math]
    if len("".join(math.itertext())) < LONG:
        return ["".join(rows)]
    joined = rows[:1]
    for row in rows[1:]:
        if joined[-1].endswith("</mo></mrow>") and not joined[-1].endswith(f"{APPLY}</mo></mrow>"):
            joined.append(row)
        else:
            joined[-1] += row
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


def setup(app) -> dict:
    """Register with Sphinx."""
    app.add_html_math_renderer("mathml", (visit_math, None), (visit_math_block, None))
    return {"parallel_read_safe": True, "parallel_write_safe": False}  # V8 does not survive a fork
