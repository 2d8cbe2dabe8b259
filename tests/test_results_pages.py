"""The pages of benchmarks and of reproduced results say what the kept result files say."""

import re
from pathlib import Path

import pytest

from benchmarks import chapters, pages, results

ROOT = Path(__file__).parents[1]
PARTS = {page: {part: results.load(part) for part in parts} for page, parts in pages.PARTS.items()}
FIGURES = [f for r in PARTS["reproduce"].values() for f in r["figures"]] + pages.UNTRIED


@pytest.mark.parametrize(
    ("page", "make"), [("bench", pages.benchmarks), ("reproduce", pages.reproduced)]
)
def test_the_page_is_what_its_result_files_make_of_it(page, make):
    assert pages.PAGES[page].read_text("utf-8") == make(PARTS[page])


@pytest.mark.parametrize("part", [part for parts in pages.PARTS.values() for part in parts])
def test_every_part_says_when_and_where_it_ran_and_how_to_run_it_again(part):
    found = results.load(part)
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", found["date"])
    assert all(found[what] for what in ("machine", "python", "torch"))


def test_every_figure_has_a_status_and_those_that_fail_or_are_missing_say_why():
    assert {figure.status for figure in FIGURES} == set(results.STATUSES)
    unexplained = [f for f in FIGURES if f.status in results.STATUSES[2:] and not f.why]
    assert unexplained == []


def test_every_source_is_in_the_list_of_references():
    keys = re.findall(r"@\w+\{([^,]+),", (ROOT / "book/references.bib").read_text("utf-8"))
    assert {figure.source for figure in FIGURES} <= set(keys)


@pytest.mark.parametrize(("published", "verdict"), [(0.9, 0), (1.0, 0), (3.1, 0), (0.8, 2), (3.2, 2)])
def test_a_figure_is_reproduced_within_our_range_and_a_little_more_and_no_further(published, verdict):
    assert results.status(published, [2.0, 1.0, 3.0], 0.15) == results.STATUSES[verdict]


def test_no_figure_is_counted_twice():
    named = [(figure.source, figure.what) for figure in FIGURES]
    assert len(named) == len(set(named))


def test_a_claim_that_its_chapter_contradicts_is_not_reproduced(monkeypatch):
    claim = chapters.CLAIMS[-1]  # accuracy without attack changes little
    told = {"clean": -7.0}
    monkeypatch.setattr(chapters, "CLAIMS", (claim,))
    monkeypatch.setattr(chapters, "QUESTIONS", {claim.chapter: {}})
    monkeypatch.setattr(chapters, "answers", lambda *_: told)
    assert chapters.section(None)[1][0].status == "did not reproduce"
    told["clean"] = -0.1
    assert chapters.section(None)[1][0].status == "reproduced at smaller scale"


def test_a_status_that_does_not_exist_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(results, "RESULTS", tmp_path)
    figure = results.Figure("kolter2018tutorial", "an error", "1%", "2%", "almost")
    with pytest.raises(ValueError, match="almost"):
        results.save("some", "## Some\n", [figure], "a machine")
    results.save("some", "## Some\n", [figure._replace(status="not attempted")], "a machine")
    assert results.load("some")["figures"][0].status == "not attempted"
