"""The minutes of a badge: a small chapter, counted by hand."""

import pytest
import reading


def markdown(text: str, **metadata) -> dict:
    return {"cell_type": "markdown", "metadata": metadata, "source": text}


def code(text: str, *tags: str) -> dict:
    return {"cell_type": "code", "metadata": {"tags": list(tags)}, "source": text}


CHAPTER = [
    markdown("# Two words"),  # 3 words, the sign # among them
    code("import torch\n", "install"),
    markdown("A sum $a + b$ of [two](far_away.md) is\n\n$$a + b.$$"),  # 6 words, 1 symbol, 1 formula
    markdown("**So far.** Much.", recap=True),  # 3 words
    code("x = 1\n\ny = 2"),  # 2 lines
    code("# @title Figure\nplt.plot(x)\nplt.show()", "hide-input"),  # 1 picture
    markdown("<!-- notes\nSay this aloud.\n-->"),
    markdown("<details><summary>Proof</summary>\n\nLong.\n\n</details>"),
    markdown("### Exercise: Add (5 min, code)\n\nAdd.", exercise={"label": "ex-add"}),
    code("add = ...", "exercise"),
    markdown("## Apart\n\n★ *May be skipped.*\n\nFive words are here now."),  # 2 + 4 + 5 words, starred
    code("plots.Table([], [])"),  # 1 line, 1 picture, starred
    markdown("**So far.** Skipped.", recap=True),  # 3 words, starred: it parts no legs of the core
    markdown("### Below\n\nToo."),  # 3 words, below a star
    markdown("## Again\n\nFor all."),  # 4 words
    markdown("## Before you leave\n\nOne. Two. Three."),
    code("plt.show()"),
]


def test_minutes_are_those_of_a_count_by_hand():
    core, starred = reading.minutes(CHAPTER)
    assert core == pytest.approx(16 / 200 + 1.5 + 0.1 + 2 / 12 + 1)
    assert starred == pytest.approx(17 / 200 + 1 / 12 + 1)


def test_recap_boxes_part_the_core_into_legs():
    before, after = reading.legs(CHAPTER)
    assert before == pytest.approx(9 / 200 + 1.5 + 0.1)
    assert after == pytest.approx(4 / 200 + 2 / 12 + 1)


@pytest.mark.parametrize(("found", "said"), [(57.4, 55), (57.6, 60), (62.4, 60)])
def test_the_badge_says_five_minutes_more_or_less(found, said):
    assert reading.rounded(found) == said
