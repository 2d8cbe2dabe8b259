"""Write book/_static/icons.css: the icons that the theme's pages name, as masks in the text's colour.

    npm pack @fortawesome/fontawesome-free@6.7.2 && tar xzf fortawesome-fontawesome-free-6.7.2.tgz
    icons.py package        reads package/svgs

The theme asks for the whole of Font Awesome, 1.9 MB; book/_templates/layout.html leaves it out.
"""

import re
import sys
from pathlib import Path
from urllib.parse import quote

CSS = Path(__file__).parents[1] / "_static/icons.css"
ON_PAGES = {  # the theme's class → Font Awesome's file
    "fa-angle-left": "solid/angle-left",
    "fa-angle-right": "solid/angle-right",
    "fa-arrow-up": "solid/arrow-up",
    "fa-bars": "solid/bars",
    "fa-chevron-down": "solid/chevron-down",
    "fa-circle-half-stroke": "solid/circle-half-stroke",
    "fa-code": "solid/code",
    "fa-download": "solid/download",
    "fa-expand": "solid/expand",
    "fa-file": "solid/file",
    "fa-file-pdf": "solid/file-pdf",
    "fa-github": "brands/github",
    "fa-lightbulb": "solid/lightbulb",
    "fa-list": "solid/list",
    "fa-magnifying-glass": "solid/magnifying-glass",
    "fa-moon": "solid/moon",
    "fa-pencil-alt": "solid/pencil",
    "fa-rocket": "solid/rocket",
    "fa-sun": "solid/sun",
    "fa-xmark": "solid/xmark",
}
OF_BOXES = {  # the class of an admonition → Font Awesome's file
    "attention": "solid/circle-exclamation",
    "caution": "solid/triangle-exclamation",
    "danger": "solid/triangle-exclamation",
    "error": "solid/circle-xmark",
    "hint": "solid/lightbulb",
    "important": "solid/circle-exclamation",
    "note": "solid/circle-info",
    "seealso": "solid/circle-right",
    "tip": "solid/lightbulb",
    "warning": "solid/triangle-exclamation",
}
IN_TEXT = {  # what the theme writes before or after a link → Font Awesome's file
    ".nav-link.nav-external::after": "solid/arrow-up-right-from-square",
    "nav.bd-links li > a.reference.external::after": "solid/arrow-up-right-from-square",
    "a.reference.download::before": "solid/download",
    "a.github::before": "brands/github",
    "div#searchbox p.highlight-link a::before": "solid/magnifying-glass-minus",
    ".bd-sidebar-secondary.hide:not(:hover) .onthispage::after": "solid/angle-down",
}
HEAD = """\
/* Icons of Font Awesome Free 6.7.2 (https://fontawesome.com), Copyright 2024 Fonticons, Inc., CC BY 4.0.
   Written by book/_tools/icons.py: one for each class that a page of the theme uses. */

:is(.fa, .fas, .far, .fab, .fa-solid, .fa-regular, .fa-brands)::before,
.admonition > .admonition-title::after,
{in_text} {{
  content: "" !important;
  display: inline-block;
  width: 1em;
  height: 1em;
  vertical-align: -0.125em;
  background: currentcolor;
  mask: var(--icon) center / contain no-repeat;
  print-color-adjust: exact;
}}
.bd-header-article .pst-navbar-icon {{
  align-self: stretch;              /* as the buttons beside it */
  height: auto;
}}
@media (forced-colors: active) {{
  :is(.fa, .fas, .far, .fab, .fa-solid, .fa-regular, .fa-brands)::before,
  .admonition > .admonition-title::after {{
    forced-color-adjust: none;
    background: CanvasText;
  }}
}}
"""


def address(svg: Path) -> str:
    """The picture as a data address, without its comment."""
    text = re.sub(r"<!--.*?-->", "", svg.read_text("utf-8"), flags=re.DOTALL).strip()
    drawn = quote(text.replace('"', "'"), safe=" =:/'")
    return f'url("data:image/svg+xml,{drawn}")'


def rules(svgs: Path) -> dict[str, str]:
    """Every selector and its picture."""
    return (
        {f".{name}": address(svgs / f"{file}.svg") for name, file in ON_PAGES.items()}
        | {".admonition": address(svgs / "solid/circle-info.svg")}
        | {f".admonition.{name}": address(svgs / f"{file}.svg") for name, file in OF_BOXES.items()}
        | {where: address(svgs / f"{file}.svg") for where, file in IN_TEXT.items()}
    )


if __name__ == "__main__":
    drawn = rules(Path(sys.argv[1]) / "svgs")
    lines = "".join(f"{where} {{ --icon: {picture}; }}\n" for where, picture in drawn.items())
    CSS.write_text(HEAD.format(in_text=",\n".join(IN_TEXT)) + lines, "utf-8")
