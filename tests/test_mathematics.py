"""Formulas, set when the book is built."""

import importlib.util
from pathlib import Path

import pytest

path = Path(__file__).parents[1] / "book/_ext/mathematics.py"
spec = importlib.util.spec_from_file_location("mathematics", path)
mathematics = importlib.util.module_from_spec(spec)
spec.loader.exec_module(mathematics)


def inline(tex):
    return mathematics.mathml(tex, False)


def test_a_formula_that_is_not_tex_is_refused_by_the_name_of_its_error():
    with pytest.raises(ValueError, match="frob"):
        inline(r"\frob x")
    with pytest.raises(ValueError, match="Expected"):
        mathematics.mathml("{x", True)


def test_a_short_formula_stays_whole_and_a_long_one_may_end_a_line_after_a_relation():
    assert inline("a+b=c").count("<math>") == 1
    pieces = inline("f(x_1)=a_1+b_1+c_1+d_1+e_1+(f_1+g_1+h_1)+i_1").split("</math>")[:-1]
    assert len(pieces) > 3
    assert all(piece.endswith("</mo>") for piece in pieces[:-1])
    assert all(piece.count("(</mo>") == piece.count(")</mo>") for piece in pieces), (
        "broken within brackets"
    )


def test_a_long_formula_says_the_same_in_pieces():
    tex = r"\lVert x\rVert_q+\max_{i\in I}f_i(x)\le a+b+c+d+e+f+g+h+i+j+k+l+m+n"
    text = mathematics.ElementTree.fromstring(f"<p>{inline(tex)}</p>").itertext()
    assert "".join(text) == "‖x‖q+maxi∈I\u2061fi(x)≤a+b+c+d+e+f+g+h+i+j+k+l+m+n"


def test_an_index_hangs_on_the_closing_bar_and_not_on_all_that_is_between():
    assert "‖</mo><mi>q</mi></msub>" in inline(r"\lVert\hat x\rVert_q")


def test_a_sign_after_a_comma_and_a_space_belongs_to_its_number():
    assert '<mo form="prefix">−</mo><mi>l' in inline(r"\max\{0,\,-l\}")
    assert "<mo>−</mo><mi>l" in inline(r"a-l")
