"""Style and script of what moves in a page; the book loads each once, a notebook with every output."""

from functools import cache
from pathlib import Path


@cache
def assets(name: str) -> str:
    """The style and the script of one widget as elements of HTML."""
    css, js = (Path(__file__).with_name(f"{name}.{kind}").read_text("utf-8") for kind in ("css", "js"))
    return f'<style data-adv="{name}">\n{css}</style>\n<script data-adv="{name}">\n{js}</script>'
