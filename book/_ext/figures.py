"""Figures as files beside the page: for wide and narrow windows, for light and dark pages.

A figure comes out of its cell as one SVG that carries its drawing for phones; a slider as HTML that
carries its frames. Both become files in _images, named after their content, which the browser chooses
from and loads when the reader comes near. The drawing for dark pages is the same with other colours.
"""

import base64
import colorsys
import re
from hashlib import sha256
from html import escape
from pathlib import Path

from docutils import nodes
from sphinx.util.osutil import relative_uri

from adv_lib import plots
from adv_lib._drawing import apart, size
from adv_lib._page import source

WIDGETS = "slider", "predict"  # of adv_lib._page
PHONE = "(max-width: 600px)"
URI = re.compile(r"data:image/svg\+xml;base64,([\w+/=]+)")
COLOUR = re.compile(r"#[0-9a-f]{6}\b")
BLANK = re.compile(r'<path d="[^"]*" style="fill: #ffffff"/>')  # behind the figure and its axes
ASSETS = re.compile(r"\n?<(style|script) data-adv=.*?</\1>", re.DOTALL)
SLIDER = re.compile(
    r'<figure class="adv-slider"(?P<rest>.*?<img [^>]*width="(?P<width>\d+)")', re.DOTALL
)
POINTED = re.compile(r'(?<=<div class="adv-predict-picture">)<img (src="[^"]*)\.svg("[^>]*)>')
WIDER = 7.2 * 96  # CSS pixels: a figure that was drawn wider than this needs more room than the text has
PAPER = "#15181b"  # of dark pages, as in tokens.css
ON_DARK = {
    plots.CLEAN: "#5bb5ec",
    plots.ATTACKED: "#ff8a3d",
    plots.CERTIFIED: "#35c495",
    plots.FAILED: "#e3a5c6",
    plots.OTHER: "#f0b840",
    plots.INK: "#dde2e6",
    "#ffffff": PAPER,
}
ON_DARK = {light.lower(): other for light, other in ON_DARK.items()}


class Picture(nodes.image):
    """An image with four drawings, wide and narrow, light and dark; Sphinx leaves its address alone."""


def adopt(app, doctree: nodes.document) -> None:
    """Take over the images of cells that carry a drawing for phones, before Sphinx copies them."""
    for image in list(doctree.findall(nodes.image)):
        path = Path(app.srcdir, image["uri"].lstrip("/"))  # a leading / is the source's own root
        if path.suffix == ".svg" and path.exists() and "<metadata>" in (text := path.read_text("utf-8")):
            attributes = {name: image[name] for name in ("alt", "classes", "ids") if image.get(name)}
            image.replace_self(Picture("", uri="data:,", drawings=apart(text), **attributes))


def visit_picture(writer, node: Picture) -> None:
    """One <picture> for light pages and one for dark ones, of which the style sheet shows one."""
    wide, narrow = node["drawings"]
    shown = [picture(writer, wide, narrow, node.get("alt", ""), dark) for dark in (False, True)]
    box = "adv-figure adv-wide" if width(wide) > WIDER else "adv-figure"
    writer.body.append(f'<div class="{box}">{"".join(shown)}</div>')
    raise nodes.SkipNode


def picture(writer, wide: str, narrow: str, alt: str, dark: bool) -> str:
    """A <picture> of which the browser takes the drawing that fits the window."""
    drawings = [darkened(wide), darkened(narrow)] if dark else [transparent(wide), transparent(narrow)]
    here = writer.builder.current_docname
    wide_file, narrow_file = (write(writer.builder, here, drawing) for drawing in drawings)
    return (
        f'<picture class="only-{"dark" if dark else "light"}">'
        f'<source media="{PHONE}" srcset="{narrow_file}" {size(narrow)}>'
        f'<img src="{wide_file}" alt="{escape(alt)}" {size(wide)} loading="lazy"></picture>'
    )


def width(drawing: str) -> float:
    """In CSS pixels."""
    return float(re.search(r'width="(\d+)"', size(drawing))[1])


def write(builder, docname: str, drawing: str, name: str | None = None) -> str:
    """Keep the drawing with the page's images; its address from the page."""
    name = name or named(drawing)
    folder = Path(builder.outdir, builder.imagedir)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.svg").write_text(drawing, "utf-8")
    return relative_uri(builder.get_target_uri(docname), f"{builder.imagedir}/{name}.svg")


def named(drawing: str) -> str:
    """A name that only this drawing has."""
    return sha256(drawing.encode()).hexdigest()[:16]


def transparent(drawing: str) -> str:
    """Without the white behind it."""
    return BLANK.sub("", drawing)


def darkened(drawing: str) -> str:
    """With colours that stand out from a dark page, the same ones for the same things."""
    return COLOUR.sub(lambda colour: on_dark(colour[0]), transparent(drawing))


def on_dark(colour: str) -> str:
    """The book's own colours by name; any other as light as it was dark."""
    if colour in ON_DARK:
        return ON_DARK[colour]
    hue, light, saturation = colorsys.rgb_to_hls(*(int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)))
    rgb = colorsys.hls_to_rgb(hue, 0.08 + 0.84 * (1 - light), 0.8 * saturation)
    return "#" + "".join(f"{round(255 * value):02x}" for value in rgb)


def lighten(app, doctree: nodes.document, docname: str) -> None:
    """Write the frames of sliders into files, and leave style and script of widgets to the page."""
    if app.builder.format != "html":
        return
    for raw in doctree.findall(nodes.raw):
        if "adv-slider" in raw.astext() or "data-adv" in raw.astext():
            text = URI.sub(lambda uri: frame(app.builder, docname, uri[1]), raw.astext())
            text = ASSETS.sub("", text)
            text = SLIDER.sub(opened, text)
            text = POINTED.sub(
                r'<img class="only-light" \1.svg\2><img class="only-dark" \1-dark.svg\2>', text
            )
            raw.replace_self(nodes.raw("", text.replace("<img ", '<img loading="lazy" '), format="html"))


def opened(slider: re.Match) -> str:
    """The slider's first tags, told that there are dark frames, and whether they need more room."""
    wide = " adv-wide" if float(slider["width"]) > WIDER else ""
    return f'<figure class="adv-slider{wide}" data-dark{slider["rest"]}'


def frame(builder, docname: str, encoded: str) -> str:
    """The address of one frame, whose dark drawing has the same name and -dark."""
    drawing = base64.b64decode(encoded).decode()
    write(builder, docname, darkened(drawing), f"{named(drawing)}-dark")
    return write(builder, docname, transparent(drawing), named(drawing))


def add_assets(app) -> None:
    """The widgets' styles and scripts as two files of the page."""
    static = Path(app.outdir, "_static")
    static.mkdir(parents=True, exist_ok=True)
    for kind in ("css", "js"):
        text = "\n".join(source(name, kind) for name in WIDGETS)
        (static / f"adv_widgets.{kind}").write_text(text, "utf-8")


def setup(app) -> dict:
    """Register with Sphinx."""
    app.add_node(Picture, html=(visit_picture, None))
    app.connect("doctree-read", adopt, priority=400)  # before the images are collected
    app.connect("doctree-resolved", lighten)
    app.connect("builder-inited", add_assets)
    app.add_css_file("adv_widgets.css")
    app.add_js_file("adv_widgets.js", loading_method="defer")
    return {"parallel_read_safe": True, "parallel_write_safe": True}
