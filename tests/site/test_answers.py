"""Exercises on the page: pencil ones are checked there as in a notebook, the others lead to Colab."""

import importlib
import json
import math
import pkgutil
import random
import re
from html import unescape
from pathlib import Path

import pytest

from adv_lib import checks
from adv_lib.checks import (
    Directions,
    Numbers,
    Pencil,
    Words,
    adversarial_training,
    danskin,
    linear_models,
)
from adv_lib.checks.comparing import show

ROOT = Path(__file__).parents[2]
SITE = ROOT / "_build/html"
SCRIPT = ROOT / "book/_static/answers.js"
CHAPTERS = sorted(path.stem for path in (ROOT / "chapters").glob("*.ipynb"))
BY_HAND = {
    f"{module.name}.{name}": exercise
    for module in pkgutil.iter_modules(checks.__path__)
    for name, exercise in vars(importlib.import_module(f"{checks.__name__}.{module.name}")).items()
    if isinstance(exercise, Pencil)
}
NO_NUMBERS = ["abc", "1/0", "0/0", "nan", "1.2.3", "0,5", "2 3", "(1", "1)", "2*", "sqrt", "sqrt(-1)"]
NO_NUMBERS += [
    "alert(1)",
    "constructor",
    "inf+constructor",
    "__proto__",
    "abc^0",
    "()",
    "e",
    "1e",
    "½",
    "2√9",
]
EXPRESSIONS = {
    "7": 7.0,
    "-0.25": -0.25,
    "−0.25": -0.25,
    "+3.": 3.0,
    ".5": 0.5,
    "1e-3": 1e-3,
    "1E3": 1e3,
    "1/3": 1 / 3,
    "-1/3": -1 / 3,
    "2 - 3 - 4": -5.0,
    "8/2/2": 2.0,
    "1 + 2*3": 7.0,
    "(1 + 2)*3": 9.0,
    "3 · 4 × 2": 24.0,
    "-2**2": -4.0,
    "2^3^2": 512.0,
    "2**-1": 0.5,
    "0.1*sqrt(2)": 0.1 * math.sqrt(2),
    "√9": 3.0,
    "8 / 255 * math.sqrt(224**2 * 3)": 8 / 255 * math.sqrt(224**2 * 3),
    "pi": math.pi,
    "2*π": 2 * math.pi,
    "inf": math.inf,
    "-∞": -math.inf,
    "math.inf": math.inf,
}


@pytest.fixture(scope="module")
def script(browser):
    """The page's script, in a page without a form."""
    page = browser.new_page()
    page.add_script_tag(path=SCRIPT)
    yield lambda call, argument: page.evaluate(f"x => {call}", argument)
    page.close()


def test_a_reader_may_write_numbers_as_expressions(script):
    for text, value in EXPRESSIONS.items():
        assert script("advAnswers.parse(x)", text) == pytest.approx(value, rel=1e-15), text


def test_what_is_no_number_is_read_as_none(script):
    assert [text for text in NO_NUMBERS if not math.isnan(script("advAnswers.parse(x)", text))] == []


def test_numbers_are_shown_as_python_shows_them(script):
    draw = random.Random(0)
    ties = [sign * n / 16 * 2**power for n in range(1, 400) for power in range(8) for sign in (1, -1)]
    drawn = [draw.uniform(-1, 1) * 10 ** draw.uniform(-8, 8) for _ in range(2000)]
    values = [0.0, 9999.5, 0.99995, 1e-4, 99995e-9, 1e23, *ties, *drawn]
    assert script("x.map(advAnswers.show)", values) == [show(v) for v in values]
    assert script("[Infinity, -Infinity].map(advAnswers.show)", None) == ["inf", "-inf"]


def numbers(exercise):
    """Right and tempting answers, answers near them and between them, and others."""
    draw = random.Random(len(exercise.praise))
    known = [list(map(float, a)) for a in (exercise.expected, *exercise.mistakes.values())]
    yield from known
    for answer in known:
        for nearly in (1 + 0.5e-4, 1 - 0.5e-4, 1 + 1.5e-4, 1 - 1.5e-4):
            yield [value * nearly for value in answer]
        yield [value + 0.5e-6 for value in answer]
        yield [value + 2e-6 for value in answer]
        yield [*answer[:-1], draw.choice(NO_NUMBERS)]
        yield [draw.choice(NO_NUMBERS), *answer[1:]]
        yield [..., *answer[1:]]
    for _ in range(100):
        yield [draw.choice(column) for column in zip(*known, strict=True)]
        yield [round(draw.uniform(-9, 9), draw.randrange(4)) for _ in exercise.expected]
    yield [math.inf for _ in exercise.expected]
    yield [... for _ in exercise.expected]


def directions(exercise):
    """Vectors all around, of length 1 or nearly, the tempting ones, and what is no vector."""
    draw = random.Random(0)
    around = [[math.sin(i * math.tau / 48), math.cos(i * math.tau / 48)] for i in range(48)]
    tempting = [
        [entry / math.hypot(*wrong) for entry in wrong]
        for each in exercise.asked
        for wrong in each.mistakes.values()
    ]
    known = [*around, *tempting, [0.0, -1.0], [-0.447, -0.894], [0.0, -2.0], [0.0, 0.0]]
    for vector in known:
        yield [vector, [0.0, -1.0]]
        yield [[0.0, -1.0], vector]
        yield [[0.0, -1.0], [entry + draw.uniform(-0.01, 0.01) for entry in vector]]
        yield [draw.choice(known), draw.choice(known)]
    for x, y in tempting:
        for turn in (0.008, 0.014):  # just inside of what counts as the same direction, and just outside
            turned = [x * math.cos(turn) - y * math.sin(turn), x * math.sin(turn) + y * math.cos(turn)]
            yield [turned, [0.0, -1.0]]
            yield [[0.0, -1.0], turned]
    for wrong in (math.inf, -math.inf, *NO_NUMBERS):
        yield [[0.0, -1.0], [wrong, 0.0]]
    yield [..., ...]


def words(exercise):
    """The truth, each single slip, and any words."""
    draw = random.Random(0)
    yield list(exercise.truth)
    for place, truth in enumerate(exercise.truth):
        for word in {*exercise.among, ...} - {truth}:
            yield [*exercise.truth[:place], word, *exercise.truth[place + 1 :]]
    for _ in range(50):
        yield [draw.choice(exercise.among) for _ in exercise.truth]
    yield [... for _ in exercise.truth]


GRIDS = {Numbers: numbers, Directions: directions, Words: words}


def typed(exercise, answer):
    """What a reader of the page enters for an answer in a notebook."""
    if isinstance(exercise, Directions):
        answer = [entry for row in answer for entry in (["", ""] if row is ... else row)]
    if isinstance(exercise, Words):
        return ["" if word is ... else repr(word) for word in answer]
    return [entry if isinstance(entry, str) else "" if entry is ... else repr(entry) for entry in answer]


@pytest.mark.parametrize("name", BY_HAND)
def test_the_page_says_what_the_notebook_says(name, script, record_property):
    exercise = BY_HAND[name]
    answers = list(GRIDS[type(exercise)](exercise))
    asked = [json.loads(json.dumps(exercise.rules())), [typed(exercise, answer) for answer in answers]]
    said = script("x[1].map(entries => advAnswers.judge(x[0], entries))", asked)
    record_property("pencil exercises asked in Python and in the page", name)
    for answer, verdict in zip(answers, said, strict=True):
        expected = exercise(answer)
        assert (verdict["text"], verdict["kind"]) == (str(expected), expected.status.split()[0]), answer
    assert {verdict["kind"] for verdict in said} == {"passes", "fails", "not"}
    sentences = " ".join(verdict["text"] for verdict in said)
    rules = exercise.rules()
    assert [
        s for s in rules.get("why", [s for s, _ in rules.get("mistakes", [])]) if s not in sentences
    ] == []


# ---- the pages ----


def chapter(name):
    """The chapter's exercises with the ids of their stubs, and its page."""
    cells = json.loads((ROOT / f"chapters/{name}.ipynb").read_text())["cells"]
    found = []
    for cell in cells:
        if "exercise" in cell["metadata"]:
            found.append((cell["metadata"]["exercise"], []))
        elif "exercise" in cell["metadata"].get("tags", []):
            found[-1][1].append(cell["id"])
    return found, (SITE / f"chapters/{name}.html").read_text()


@pytest.mark.parametrize("name", CHAPTERS)
def test_every_pencil_exercise_has_its_form_and_every_other_none(name):
    exercises, page = chapter(name)
    by_hand = [about["label"] for about, _ in exercises if about["kind"] == "pencil"]
    assert re.findall(r'<form class="adv-answers"[^>]* data-label="([^"]+)"', page) == by_hand


@pytest.mark.parametrize("name", CHAPTERS)
def test_every_exercise_has_a_link_to_its_stub_in_colab_and_to_the_student_copy(name):
    exercises, page = chapter(name)
    links = re.findall(r'<p class="adv-elsewhere"><a [^>]*href="([^"]+)">.*?<a href="([^"]+)"', page)
    colab = [re.fullmatch(r"https://colab\..*/chapters/(\w+)\.ipynb#scrollTo=(.+)", c) for c, _ in links]
    assert [(link[1], [link[2]]) for link in colab] == [(name, stub[-1:]) for _, stub in exercises]
    copies = {(SITE / "chapters" / copy).resolve() for _, copy in links}
    assert copies == {SITE / f"student/{name}.ipynb"}
    assert f'"id": "{colab[0][2]}"' in copies.pop().read_text()


@pytest.mark.parametrize("name", CHAPTERS)
def test_no_exercise_on_a_page_says_that_nobody_has_attempted_it(name):
    assert "not attempted yet" not in unescape(chapter(name)[1])


def test_a_deck_has_no_form_and_no_way_out(deck):
    assert deck.page.locator(".adv-answers, .adv-elsewhere").count() == 0


READERS = {
    "01_linear_models#ex-three-balls": (
        linear_models.three_balls,
        [0.7, 0.5, 0.4],
        ["2/5", "0.1*sqrt(3^2 + 4^2)", ".7"],
    ),
    "06_adversarial_training#ex-published": (
        adversarial_training.published,
        ["iterate", "converge", "converge", "the whole defense"],
        list(map(repr, adversarial_training.published.truth)),
    ),
    "07_danskin#ex-by-hand": (
        danskin.by_hand,
        [[0.0, -1.0], [0.0, 1.0]],
        ["0", "-1", "0", "-1"],
    ),
}


@pytest.fixture(params=READERS)
def reader(request, browser, address):
    """A page of a reader's own at an exercise, and the exercise with a wrong and a right answer."""
    context = browser.new_context(viewport={"width": 390, "height": 844}, has_touch=True)
    page = context.new_page()
    name, label = request.param.split("#")
    page.goto(f"{address}/chapters/{name}.html#{label}")
    form = page.locator(f"form[data-label={label}]")
    yield page, form, *READERS[request.param]
    context.close()


def enter(form, entries):
    """Fill in the form with a mouse."""
    label = form.get_attribute("data-label")
    for number, entry in enumerate(entries):
        field = form.locator(f'[name="{label}-{number}"]')
        if field.count() == 1:
            field.fill(entry)
        else:
            form.locator(f'[name="{label}-{number}"][value="{entry}"]').check()


def entered(form):
    """What the form holds."""
    return form.evaluate("f => [...new FormData(f).values()]")


def test_a_reader_is_wrong_then_right_and_finds_the_answer_again(reader):
    page, form, exercise, wrong, right = reader
    verdict, check = form.get_by_role("status"), form.get_by_role("button", name="Check")
    check.tap()
    assert verdict.inner_text() == "○ not attempted yet"
    enter(form, typed(exercise, wrong))
    assert verdict.inner_text() == ""  # it was about another answer
    check.tap()
    assert verdict.inner_text() == str(exercise(wrong))
    enter(form, right)
    check.tap()
    assert verdict.inner_text() == f"✓ passes: {exercise.praise}"
    page.reload()
    assert entered(form) == right
    assert verdict.inner_text() == f"✓ passes: {exercise.praise}"
    form.get_by_role("button", name="Forget my answer").tap()
    page.reload()
    assert set(entered(form)) <= {""}
    assert verdict.inner_text() == ""


def test_a_finger_hits_every_field_and_button(reader):
    page, form, exercise, _, _ = reader
    assert form.locator("input, button").count() >= len(exercise.names) + 2
    small = page.eval_on_selector_all(
        ".adv-answers :is(button, label, [type=text]), .adv-elsewhere a, .adv-notebook summary",
        "all => all.filter(e => e.checkVisibility() && e.getBoundingClientRect().height < 44)"
        ".map(e => e.outerHTML)",
    )
    assert small == []


def test_an_exercise_is_done_by_keyboard_alone(reader):
    page, form, exercise, _, right = reader
    inside = lambda: form.evaluate("f => f.contains(document.activeElement)")  # noqa: E731
    for _ in range(9):  # links and the hint come first
        page.keyboard.press("Tab")
        if inside():
            break
    for name, entry in zip(exercise.names, right, strict=True):
        about = page.evaluate(
            "() => { const e = document.activeElement;"
            " return [e.closest('fieldset'), e.labels[0]].map(l => l?.innerText) }"
        )
        assert any(name in (text or "") for text in about)
        if isinstance(exercise, Words):
            page.keyboard.press("Space")
            for _ in range(list(map(repr, exercise.among)).index(entry)):
                page.keyboard.press("ArrowRight")
        else:
            page.keyboard.type(entry)
        page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    assert form.get_by_role("status").inner_text() == f"✓ passes: {exercise.praise}"


def test_what_is_missing_is_where_the_reader_types_next(reader):
    page, form, _, _, right = reader
    enter(form, right[:1])
    form.get_by_role("button", name="Check").tap()
    assert page.evaluate("document.activeElement.name").endswith("-1")


def test_paper_has_lines_to_write_on_and_no_answer(reader):
    page, form, _, _, right = reader
    enter(form, right)
    page.emulate_media(media="print")
    shown = form.evaluate(
        "f => [...f.querySelectorAll('button, .adv-verdict, .adv-help')]"
        ".filter(e => e.checkVisibility()).length"
    )
    assert shown == 0
    for field in form.locator("input[type=text]").all():
        assert field.evaluate("e => getComputedStyle(e).color") == "rgba(0, 0, 0, 0)"
        assert field.evaluate("e => parseFloat(getComputedStyle(e).borderBottomWidth)") > 0
