"""The pages of benchmarks and of reproduced results say what the kept result files say."""

import importlib.util
import re
from pathlib import Path

import pytest

from benchmarks import chapters, pages, results, tables, timing

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


@pytest.mark.parametrize("part", [p for parts in pages.PARTS.values() for p in parts if p != "colab"])
def test_every_part_that_runs_here_is_the_module_of_its_name(part):
    assert importlib.util.find_spec(f"benchmarks.{part}") is not None


def test_a_target_is_read_back_as_it_was_written():
    rows = [
        tables.at_most("as fast", "", 1.004, 1.0),
        tables.at_most("as small", "here", 2, 1, 0, " MB"),
    ]
    text = tables.targets([*rows, tables.Target("", "there", "not measured", None)], where="where")
    text += "\n\nTarget 4, a sentence: **met**.\nTarget 5, another: **not met**."
    assert tables.verdicts(text) == [
        ("as fast, , 1.00, at most 1.00", True),
        ("as small, here, 2 MB, at most 1", False),
        ("Target 4, a sentence", True),
        ("Target 5, another", False),
    ]


def test_a_table_aligns_the_columns_that_it_is_asked_to():
    assert tables.table(("", "n"), [("a", 1), ("b", "")], right=[1]) == (
        "| | n |\n|---|---:|\n| a | 1 |\n| b |  |"
    )


def test_contestants_of_a_race_take_turns_at_beginning():
    order = []
    runners = {name: lambda task, name=name: order.append(name) or task for name in "abc"}
    race = timing.race(runners, [(k,) for k in range(3)])
    assert "".join(order) == "abcbcacab"
    assert race.results == {name: [0, 1, 2] for name in "abc"}
    assert all(len(seconds) == 3 for seconds in race.seconds.values())


def test_a_figure_that_does_not_reproduce_needs_a_reason():
    assert results.compare("a", "b", 0.1, [0.1, 0.2], 0.0, "no matter").why == ""
    assert results.compare("a", "b", 0.5, [0.1, 0.2], 0.0, "so it is").why == "so it is"
    with pytest.raises(ValueError, match="why"):
        results.compare("a", "b", 0.5, [0.1, 0.2], 0.0, "")


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
