"""Commit, then see: questions that a reader answers before the page does, without a kernel."""

from __future__ import annotations

import hashlib
import html
import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral

import matplotlib.pyplot as plt
from matplotlib.axes import Axes

from ._drawing import arrange, data_uri, svg
from ._page import assets

NEAR = 0.1  # of the range, or of the picture's diagonal
THERE = 0.03  # of the diagonal: as near as a finger can point
BANDS = 4  # for a show of hands on a number


@dataclass(frozen=True, repr=False)
class Prediction:
    """A question that its reader answers first; show it by ending a cell with it."""

    question: str
    answer: str  # in words
    why: str
    hands: tuple[str, ...]  # what a room raises its hands for
    kind: str  # number, choice or point
    form: str  # native elements to answer with
    picture: str  # HTML of a point's picture, or nothing
    data: str  # JSON for the script

    def __repr__(self) -> str:
        hands = " / ".join(self.hands)
        return f"Your prediction: {self.question}\n{hands}\nThen look at .answer and .why."

    def _repr_html_(self) -> str:
        told = f"<strong>{html.escape(self.answer)}.</strong> {html.escape(self.why)}"
        return MARKUP.format(
            name=hashlib.sha256(self.question.encode()).hexdigest()[:12],
            kind=self.kind,
            label=html.escape(f"Your prediction: {self.question}"),
            question=html.escape(self.question),
            picture=self.picture,
            hands="".join(f"<li>{html.escape(text)}</li>" for text in self.hands),
            form=self.form,
            told=told,
            data=self.data.replace("<", "\\u003c"),  # nothing in it can end the script element
            assets=assets("predict"),
        )


def predict(
    question: str,
    answer: float | str | tuple[float, float],
    *,
    why: str,
    choices: Sequence[str] | None = None,
    low: float | None = None,
    high: float | None = None,
    unit: str = "",
    picture: Axes | None = None,
    alt: str = "",
) -> Prediction:
    """Ask for a number, a choice or a point, and tell the answer once the reader has committed to one.

    The reader's answer is compared with the right one and remembered in the page; it can be skipped.  A
    deck asks for a show of hands, and paper leaves a line to write on.

    question:  also what the page remembers the reader's answer by.
    answer:    a number in [low, high], one of the choices, or the point (x, y) on the picture.
    why:       the reason in one line; assert in the cell what it says.
    choices:   what to choose from, at least two, all different.
    low, high: the range of a number, in steps of at most a hundredth of it, or of 1 if all are whole.
    unit:      of the number, as in "%" or "images".
    picture:   axes with linear scales to point at, drawn without the answer; their figure is closed.
    alt:       what the picture shows, in words.
    Raises ValueError for an answer of another kind than the question, or for an empty text.
    """
    if not question.strip() or not why.strip():
        raise ValueError("a prediction needs a question, and why the answer is what it is")
    question, why = _minus(question), _minus(why)
    ways = choices is not None, low is not None and high is not None, picture is not None
    if sum(ways) != 1:
        raise ValueError("expected one of: choices, low and high, or a picture")
    if choices is not None:
        return _choice(question, answer, tuple(choices), why)
    if picture is not None:
        return _point(question, answer, picture, alt, why)
    return _number(question, answer, low, high, unit, why)


# What a reader imports and reads about is in `widgets`.
Prediction.__module__ = predict.__module__ = "adv_lib.widgets"


def _choice(question: str, answer, choices: tuple[str, ...], why: str) -> Prediction:
    if len(choices) < 2 or len(set(choices)) < len(choices) or not all(c.strip() for c in choices):
        raise ValueError(f"expected at least two different choices, got {list(choices)}")
    if answer not in choices:
        raise ValueError(f"the answer must be one of the choices {list(choices)}, got {answer!r}")
    options = "".join(
        f'<label><input type="radio" name="said" value="{html.escape(text)}" required '
        f'autocomplete="off"> <span>{html.escape(text)}</span></label>'
        for text in choices
    )
    form = f'<fieldset aria-label="Choices">{options}</fieldset>'
    data = {"answer": answer, "choices": choices, "why": why}
    return Prediction(question, answer, why, choices, "choice", form, "", _json(data))


def _number(question: str, answer, low, high, unit: str, why: str) -> Prediction:
    whole = all(isinstance(value, Integral) for value in (answer, low, high))
    try:
        answer, low, high = float(answer), float(low), float(high)
    except (TypeError, ValueError):
        raise ValueError(f"expected numbers, got {answer!r} in [{low!r}, {high!r}]") from None
    if not -math.inf < low <= answer <= high < math.inf or low == high:
        raise ValueError(f"the answer must lie in [low, high], got {answer:g} in [{low:g}, {high:g}]")
    digits = 0 if whole else _digits(low, high)
    step = 10.0**-digits
    unit = f"\N{NO-BREAK SPACE}{unit}" if unit else ""

    def show(value: float, unit: str = unit) -> str:
        return _minus(f"{value:.{digits}f}{unit}")

    bounds = f'min="{low!r}" max="{high!r}" step="{step:g}" autocomplete="off"'
    value = f'value="{low + step * round((high - low) / 2 / step):.{digits}f}"'
    least, most = (f"<span>{show(end, '')}</span>" for end in (low, high))
    form = (
        f'{least}<input type="range" {bounds} {value} aria-label="Your number, roughly">{most}'
        f'<label><input type="number" {bounds} {value} required inputmode="decimal" '
        f'aria-label="Your number, exactly">{html.escape(unit)}</label>'
    )
    edges = sorted({round(low + (high - low) * i / BANDS, digits) for i in range(BANDS + 1)})
    starts = [low, *(edge + step for edge in edges[1:-1])]  # a number is in one band only
    hands = tuple(f"{show(a, '')} to {show(b)}" for a, b in zip(starts, edges[1:], strict=True))
    data = {"answer": answer, "digits": digits, "unit": unit, "near": NEAR * (high - low), "why": why}
    return Prediction(question, show(answer), why, hands, "number", form, "", _json(data))


def _point(question: str, answer, ax: Axes, alt: str, why: str) -> Prediction:
    if not alt.strip():
        raise ValueError("a picture needs alt text that says what it shows")
    if (ax.get_xscale(), ax.get_yscale()) != ("linear", "linear"):
        raise ValueError(f"expected linear axes, got {ax.get_xscale()} and {ax.get_yscale()}")
    ends = [sorted(map(float, limits)) for limits in (ax.get_xlim(), ax.get_ylim())]
    try:
        x, y = map(float, answer)
        inside = all(low <= value <= high for value, (low, high) in zip((x, y), ends, strict=True))
    except (TypeError, ValueError):
        inside = False
    if not inside:
        raise ValueError(f"the answer must be a point (x, y) on the picture, got {answer!r}")
    source, place = _drawn(ax)
    names = ax.get_xlabel() or "x", ax.get_ylabel() or "y"
    digits = [_digits(low, high) for low, high in ends]
    form = "<p>Tap or click on the picture, or move the point:</p>" + "".join(
        f'<label><span>{html.escape(name)}</span> <input type="range" min="{low!r}" max="{high!r}" '
        f'step="any" value="{(low + high) / 2:g}" autocomplete="off"> <output></output></label>'
        for name, (low, high) in zip(names, ends, strict=True)
    )
    told = _minus(", ".join(f"{v:.{d}f}" for v, d in zip((x, y), digits, strict=True)))
    mark = "left:{:.2f}%;top:{:.2f}%".format(*(100 * part for part in _part(ax, x, y, place)))
    picture = (
        f'<div class="adv-predict-picture"><img src="{source}" alt="{html.escape(alt)}">'
        f'<span class="adv-predict-mark adv-predict-right fragment" style="{mark}" hidden>◆</span></div>'
    )
    data = {
        "answer": [x, y], "x": ax.get_xlim(), "y": ax.get_ylim(), "place": place, "near": NEAR,
        "there": THERE, "digits": digits, "why": why,
    }  # fmt: skip
    return Prediction(
        question, f"({told})", why, ("a point on the picture",), "point", form, picture, _json(data)
    )


def _digits(low: float, high: float) -> int:
    """How many digits after the point tell a hundredth of the range, or nearly that."""
    return max(0, -math.floor(math.log10((high - low) / 100)))


def _drawn(ax: Axes) -> tuple[str, list[float]]:
    """The figure as a data URI, and where the axes lie in it: left, top, width, height, in [0, 1]."""
    figure = arrange(ax.figure)  # which moves the axes to their place
    box, source = ax.get_position(), data_uri(svg(figure))
    plt.close(figure)
    return source, [round(v, 5) for v in (box.x0, 1 - box.y1, box.width, box.height)]


def _part(ax: Axes, x: float, y: float, place: list[float]) -> tuple[float, float]:
    """Where a point of the axes lies in the picture, from its left and from its top."""
    (x0, x1), (y0, y1) = ax.get_xlim(), ax.get_ylim()
    left, top, width, height = place
    return left + width * (x - x0) / (x1 - x0), top + height * (y1 - y) / (y1 - y0)


def _minus(text: str) -> str:
    """The text with a minus sign before negative numbers, which Python writes with a hyphen."""
    return re.sub(r"(?<![\w-])-(?=\d)", "−", text)


def _json(data: dict) -> str:
    return json.dumps(data, ensure_ascii=False)


# Hidden is what only a script, a deck or paper shows; without any of them there is the fold.
MARKUP = """<div class="adv-predict" role="group" aria-label="{label}" data-predict="{name}" \
data-kind="{kind}" data-lm-suppress-shortcuts="true">
<p class="adv-predict-label"><svg viewBox="0 0 24 24" aria-hidden="true"><circle cx="12" cy="12" \
r="10"/><circle cx="12" cy="12" r="5.5"/><circle cx="12" cy="12" r="1"/></svg> Your prediction</p>
<p class="adv-predict-question">{question}</p>
{picture}<ul class="adv-predict-hands" hidden>{hands}</ul>
<form hidden>
<div class="adv-predict-input">{form}</div>
<div class="adv-predict-buttons"><button type="submit">Commit</button> \
<button type="button" class="adv-predict-skip">Skip: show me</button></div>
</form>
<div class="adv-predict-result" tabindex="-1" hidden></div>
<p class="adv-predict-answer fragment" hidden>{told}</p>
<details><summary>Show the answer</summary><p>{told}</p></details>
<script type="application/json">{data}</script>
</div>
{assets}"""
