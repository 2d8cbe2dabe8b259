"""The API page as built: everything public has its place."""

import importlib
import inspect
import re
from pathlib import Path

import pytest
from test_imports import ORDER

SITE = Path(__file__).parents[2] / "_build/html"


@pytest.mark.parametrize("module", [name for name in ORDER if name != "checks"])
def test_every_public_name_of_the_package_has_its_place_on_the_page(module, address):
    page = (SITE / "book/api.html").read_text("utf-8")
    anchors = set(re.findall(r'id="([\w.]+)"', page))
    found = importlib.import_module(f"adv_lib.{module}")
    public = [
        f"adv_lib.{module}.{name}"
        for name, what in vars(found).items()
        if (inspect.isfunction(what) or inspect.isclass(what))
        and what.__module__ == found.__name__
        and not name.startswith("_")
    ]
    assert public
    assert [name for name in public if name not in anchors] == []


def test_every_signature_is_python(address):
    page = (SITE / "book/api.html").read_text("utf-8")
    assert [odd for odd in ("&lt;built-in", " at 0x", "~collections") if odd in page] == []
