"""The API page as built: everything public has its place."""

import re
from pathlib import Path

import pytest
from package import documented, public

SITE = Path(__file__).parents[2] / "_build/html"


@pytest.mark.parametrize("module", [module.__name__ for module in documented()])
def test_every_public_name_of_the_package_has_its_place_on_the_page(module, address):
    page = (SITE / "book/api.html").read_text("utf-8")
    anchors = set(re.findall(r'id="([\w.]+)"', page))
    names = [f"adv_lib.{name}" for name, _ in public()]
    own = [name for name in names if name.startswith(f"{module}.")]
    assert own
    assert [name for name in own if name not in anchors] == []


def test_every_signature_is_python(address):
    page = (SITE / "book/api.html").read_text("utf-8")
    assert [odd for odd in ("&lt;built-in", " at 0x", "~collections") if odd in page] == []
