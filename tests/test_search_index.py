"""What search knows: the places of a page and their words, as a small book has them."""

import sys
from pathlib import Path

import pytest
from plain_math import plain
from sphinx.application import Sphinx
from sphinx.util.docutils import docutils_namespace, patch_docutils

EXTENSIONS = Path(__file__).parents[1] / "book/_ext"

CHAPTER = r"""# Sums

An **easy** $\max_{\delta \in \Delta} \ell_\infty$.

## Carry on

```python
import secret
```

| a | b |
|---|---|
| 1 | 2 |
| 3 | 4.5 |

:::{prf:theorem} Order
:label: thm-order

It does not matter.
:::

:::{exercise} Add
:label: ex-add

Take two.
:::

<details class="solution">
<summary>Solution</summary>

Five hundred.

</details>

After it, at a rate of .05 .
"""
GLOSSARY = """# Glossary

```{glossary}
big M
  A number $M$.
```
"""


@pytest.fixture(scope="module")
def book(tmp_path_factory):
    """The builder of the small book when it has built."""
    folder = tmp_path_factory.mktemp("book")
    for name, text in {
        "index": "# Book\n\n```{toctree}\n:numbered:\nchapters/01_sums\nbook/glossary\n```\n",
        "chapters/01_sums": CHAPTER,
        "book/glossary": GLOSSARY,
    }.items():
        file = folder / f"{name}.md"
        file.parent.mkdir(exist_ok=True)
        file.write_text(text, encoding="utf-8")
    settings = {
        "source_suffix": {".md": "markdown"},  # whatever a book in the same process has registered
        "extensions": ["sphinx_proof", "sphinx_exercise", "myst_parser", "search"],
        "myst_enable_extensions": ["colon_fence", "dollarmath"],
        "numfig": True,
    }
    with patch_docutils(), docutils_namespace(), pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(EXTENSIONS)
        out = folder / "_build"
        app = Sphinx(folder, None, out / "html", out / "trees", "html", settings, None, None)
        app.build()
    yield app.builder
    sys.modules.pop("search")


@pytest.fixture
def found(book):
    """The records by address."""
    return {record.address: record for page in book.search_records.values() for record in page}


def test_sections_statements_exercises_and_terms_are_places_of_their_own(found):
    assert {
        address.removesuffix(".html"): (record.title, record.sort) for address, record in found.items()
    } == {
        "index": ("Book", "page"),
        "chapters/01_sums": ("Sums", "section"),
        "chapters/01_sums.html#carry-on": ("1.1 Carry on", "section"),
        "chapters/01_sums.html#thm-order": ("Theorem 1.1: Order", "statement"),
        "chapters/01_sums.html#ex-add": ("Exercise 1.1: Add", "exercise"),
        "book/glossary": ("Glossary", "page"),
        "book/glossary.html#term-big-M": ("big M", "term"),
    }


def test_a_place_says_its_own_words_without_code_numbers_or_solutions(found):
    assert found["chapters/01_sums.html"].text == "An easy max_(δ ∈ Δ) ℓ∞."
    assert found["chapters/01_sums.html#carry-on"].text == "After it, at a rate of .05."
    assert found["chapters/01_sums.html#thm-order"].text == "It does not matter."
    assert found["chapters/01_sums.html#ex-add"].text == "Take two."
    assert found["book/glossary.html#term-big-M"].text == "A number M."


def test_a_place_says_what_it_is_part_of(found):
    assert found["chapters/01_sums.html#thm-order"].place == "Chapter 1: Sums"


def test_the_site_has_an_index_and_neither_the_index_nor_the_interfaces_of_others(book):
    site = Path(book.outdir)
    assert {"pagefind.js", "pagefind-entry.json", "wasm.en.pagefind"} <= {
        file.name for file in (site / "pagefind").iterdir()
    }
    assert list((site / "pagefind").glob("*ui*")) == []
    assert not (site / "searchindex.js").exists()
    assert "needs JavaScript" in (site / "search.html").read_text("utf-8")


@pytest.mark.parametrize(
    ("tex", "text"),
    [
        (r"\ell_\infty", "ℓ∞"),
        (r"\lVert\delta\rVert_p \le \varepsilon", "‖δ‖ₚ ≤ ε"),
        (r"\frac1p + \frac1q = 1", "1/p + 1/q = 1"),
        (r"\frac{\partial H}{\partial z_k}", "(∂ H)/(∂ zₖ)"),
        (r"\max_{\delta \in \Delta(x)} \ell(\theta, x + \delta, y)", "max_(δ ∈ Δ(x)) ℓ(θ, x + δ, y)"),
        (r"\hat\delta = \varepsilon\,\mathrm{sign}(w)", "δ̂ = ε sign(w)"),
        (r"\{0, 1\}^d", "{0, 1}^d"),
        (r"x^{2}_{i} \\ &= \text{two words}", "x²ᵢ; = two words"),
        (r"\left( W_1^\top \nu \right)", "(W₁ᵀ ν)"),
    ],
)
def test_a_formula_becomes_a_line_of_unicode(tex, text):
    assert plain(tex) == text
