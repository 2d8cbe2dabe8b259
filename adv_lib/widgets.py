"""Figures that move without a kernel: frames drawn up front behind native range inputs."""

from __future__ import annotations

import hashlib
import html
import itertools
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from ._drawing import data_uri, for_pages, pictures, size
from ._page import assets
from ._predict import Prediction as Prediction
from ._predict import predict as predict


@dataclass(frozen=True)
class Control:
    """One thing to choose: a range of numbers to slide through, or buttons for anything else.

    label:  what it is called.
    values: those to choose from.  Names, two values, or an infinite one among them become buttons.
    show:   how a value reads: value → text.
    start:  the index of the value that it begins with, from 0.
    play:   whether a button plays the range, because its values are steps in time.
    """

    label: str
    values: Sequence[Any]
    show: Callable[[Any], str] = "{:g}".format
    start: int = 0
    play: bool = False

    @property
    def slides(self) -> bool:
        """Whether the values are a range of numbers."""
        numbers = all(not isinstance(v, str | bool) and math.isfinite(v) for v in self.values)
        return numbers and len(self.values) > 2


@dataclass(frozen=True, repr=False)
class Slider:
    """A figure that follows one or more controls; show it by ending a cell with it."""

    controls: tuple[Control, ...]
    frames: tuple[str, ...]  # SVG; the last control changes fastest
    narrow: tuple[str, ...]  # the same for phones, when a page is drawn
    alts: tuple[str, ...]
    caption: str

    def __repr__(self) -> str:
        return f"<slider with {len(self.frames)} frames: {', '.join(c.label for c in self.controls)}>"

    def _repr_html_(self) -> str:
        first = 0
        for control in self.controls:
            first = first * len(control.values) + control.start
        data = {
            "frames": [data_uri(frame) for frame in self.frames],
            "narrow": [data_uri(frame) for frame in self.narrow] or None,
            "says": self.alts,
            "texts": [[control.show(value) for value in control.values] for control in self.controls],
        }
        kept = json.dumps(data, ensure_ascii=False)
        inputs = "".join(_input(control, i) for i, control in enumerate(self.controls))
        name = hashlib.sha256((inputs + kept + self.caption).encode()).hexdigest()[:12]
        return PAGE.format(
            name=f"adv-{name}",
            inputs=inputs,
            narrow=_on_phones(self.narrow[first]) if self.narrow else "",
            source=data["frames"][first],
            size=size(self.frames[first]),
            alt=html.escape(self.alts[first]),
            caption=html.escape(self.caption),
            data=kept.replace("<", "\\u003c"),  # nothing in it can end the script element
            assets=assets("slider"),
        )


def slider(
    draw: Callable[..., Figure],
    alt: Callable[..., str],
    *controls: Control,
    caption: str,
    live: bool = False,
) -> Slider:
    """Draw one frame for every combination of the controls' values.

    draw:    takes one value per control and returns a figure, always of the same size.
    alt:     takes the same values and says in a sentence, shown below, what that frame shows.
    caption: what to look for while moving the controls.
    live:    with a kernel, an ipywidgets version instead that calls draw for every value between.
    Raises ValueError without a control, for one without values or that plays what is no range, or for an
    empty alt text.
    """
    if not controls or any(not 0 <= c.start < len(c.values) for c in controls):
        raise ValueError("expected at least one control, each with values and a start among them")
    if unplayable := [c.label for c in controls if c.play and not c.slides]:
        raise ValueError(f"expected numbers to play through, at least three, for {unplayable}")
    if live:
        return _live(draw, controls)
    combinations = list(itertools.product(*(control.values for control in controls)))
    alts = tuple(alt(*values) for values in combinations)
    if not all(text.strip() for text in alts):
        raise ValueError("every frame needs alt text that says what it shows")
    frames, *narrow = zip(
        *(pictures(draw(*values), for_pages()) for values in combinations), strict=True
    )
    return Slider(controls, frames, narrow[0] if narrow else (), alts, caption)


def _on_phones(frame: str) -> str:
    return f'<source media="(max-width: 600px)" srcset="{data_uri(frame)}" {size(frame)}>'


def _input(control: Control, number: int) -> str:
    """The control's HTML.  Radio buttons of one name belong together within their form."""
    label, texts = html.escape(control.label), [html.escape(control.show(v)) for v in control.values]
    if control.slides:
        play = f'<button type="button" class="adv-play" aria-label="play {label}">▶</button>'
        return (
            f'<label class="adv-control"><span class="adv-name">{label}</span> '
            f'<input type="range" min="0" max="{len(texts) - 1}" step="1" value="{control.start}" '
            f'aria-label="{label}" aria-valuetext="{texts[control.start]}" autocomplete="off"> '
            f"<output>{texts[control.start]}</output>{play * control.play}</label>"
        )
    buttons = "".join(
        f'<label><input type="radio" name="{number}" value="{i}" autocomplete="off"'
        f"{' checked' * (i == control.start)}><span>{text}</span></label>"
        for i, text in enumerate(texts)
    )
    return (
        f'<fieldset class="adv-control"><legend>{label}</legend>'
        f'<div class="adv-choices">{buttons}</div></fieldset>'
    )


def _live(draw: Callable[..., Figure], controls: tuple[Control, ...]):
    """The same figure redrawn by the kernel: numbers move continuously, anything else in steps."""
    import ipywidgets
    from IPython.display import display

    inputs = {}
    for control in controls:
        start = control.values[control.start]
        if all(isinstance(value, float) for value in control.values):
            low, high = min(control.values), max(control.values)
            inputs[control.label] = ipywidgets.FloatSlider(
                start, min=low, max=high, step=(high - low) / 200, description=control.label
            )
        else:
            options = [(control.show(value), value) for value in control.values]
            inputs[control.label] = ipywidgets.SelectionSlider(
                options=options, value=start, description=control.label
            )

    def redraw(**values):
        figure = draw(*values.values())
        display(figure)
        plt.close(figure)

    return ipywidgets.interactive(redraw, **inputs)


PAGE = """<figure class="adv-slider" data-slider="{name}">
<form class="adv-controls" onsubmit="return false">{inputs}</form>
<picture>{narrow}<img src="{source}" alt="{alt}" {size}></picture>
<p class="adv-says" role="status">{alt}</p>
<figcaption>{caption}</figcaption>
<script type="application/json">{data}</script>
</figure>
{assets}"""
