"""Style and script of what moves in a page; the book loads each once, a notebook with every output."""

from functools import cache
from pathlib import Path


@cache
def source(name: str, kind: str) -> str:
    """The style ("css") or the script ("js") of one widget."""
    return Path(__file__).with_name(f"{name}.{kind}").read_text("utf-8")


def assets(name: str) -> str:
    """Both as elements of HTML, to go with an output."""
    style, script = source(name, "css"), source(name, "js")
    return f'<style data-adv="{name}">\n{style}</style>\n<script data-adv="{name}">\n{script}</script>'
