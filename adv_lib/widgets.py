"""Figures that move without a kernel: frames drawn up front behind native range inputs."""

from __future__ import annotations

import base64
import hashlib
import html
import io
import itertools
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ._predict import Prediction as Prediction
from ._predict import predict as predict


@dataclass(frozen=True)
class Control:
    """One range input.

    label:  what it is called.
    values: those it steps through.
    show:   how a value reads: value → text.
    start:  the index of the value that it begins with, from 0.
    """

    label: str
    values: Sequence[Any]
    show: Callable[[Any], str] = "{:g}".format
    start: int = 0


@dataclass(frozen=True)
class Slider:
    """A figure that follows one or more controls; show it by ending a cell with it."""

    controls: tuple[Control, ...]
    frames: tuple[str, ...]  # data URIs; the last control changes fastest
    alts: tuple[str, ...]
    caption: str

    def _repr_html_(self) -> str:
        first = 0
        for control in self.controls:
            first = first * len(control.values) + control.start
        texts = [[control.show(value) for value in control.values] for control in self.controls]
        data = json.dumps({"frames": self.frames, "alts": self.alts, "texts": texts}, ensure_ascii=False)
        inputs = "".join(_input(control) for control in self.controls)
        name = hashlib.sha256((inputs + data + self.caption).encode()).hexdigest()[:12]
        return PAGE.format(
            name=f"adv-{name}",
            inputs=inputs,
            source=self.frames[first],
            alt=html.escape(self.alts[first]),
            caption=f"<figcaption>{html.escape(self.caption)}</figcaption>",
            data=data.replace("<", "\\u003c"),  # nothing in it can end the script element
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
    alt:     takes the same values and says in words what that frame shows.
    caption: what to look for while moving the controls.
    live:    with a kernel, an ipywidgets version instead that calls draw for every value between.
    Raises ValueError without a control, for a control without values, or for an empty alt text.
    """
    if not controls or any(not 0 <= c.start < len(c.values) for c in controls):
        raise ValueError("expected at least one control, each with values and a start among them")
    if live:
        return _live(draw, controls)
    combinations = list(itertools.product(*(control.values for control in controls)))
    alts = tuple(alt(*values) for values in combinations)
    if not all(text.strip() for text in alts):
        raise ValueError("every frame needs alt text that says what it shows")
    return Slider(controls, tuple(_frame(draw(*values)) for values in combinations), alts, caption)


def _frame(figure: Figure) -> str:
    """The figure as the data URI of a palette PNG, a quarter of the size of a full-colour one."""
    from PIL import Image

    canvas = FigureCanvasAgg(figure)
    canvas.draw()  # once, where savefig with a constrained layout would draw twice
    plt.close(figure)
    picture = Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
    picture, packed = picture.quantize(128, dither=Image.Dither.NONE), io.BytesIO()
    picture.save(packed, format="png", optimize=True)
    return "data:image/png;base64," + base64.b64encode(packed.getvalue()).decode()


def _input(control: Control) -> str:
    label, text = (
        html.escape(control.label),
        html.escape(control.show(control.values[control.start])),
    )
    return (
        f'<label><span>{label}</span> <input type="range" min="0" max="{len(control.values) - 1}" '
        f'step="1" value="{control.start}" aria-label="{label}" aria-valuetext="{text}" '
        f'autocomplete="off"> <output>{text}</output></label>'
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
<div class="adv-controls">{inputs}</div>
<img src="{source}" alt="{alt}">
{caption}
<script type="application/json">{data}</script>
<script>
document.querySelectorAll('figure[data-slider="{name}"]').forEach((figure) => {{
  if (figure.moves) return; // the same slider may be shown twice, and each one runs this
  figure.moves = true;
  const {{frames, alts, texts}} = JSON.parse(figure.querySelector("script").textContent);
  const inputs = [...figure.querySelectorAll("input")];
  const image = figure.querySelector("img");
  const show = () => {{
    let frame = 0;
    inputs.forEach((input, i) => {{
      const text = texts[i][input.value];
      frame = frame * texts[i].length + Number(input.value);
      input.setAttribute("aria-valuetext", text);
      input.nextElementSibling.textContent = text;
    }});
    image.src = frames[frame];
    image.alt = alts[frame];
  }};
  inputs.forEach((input) => input.addEventListener("input", show));
}});
</script>
</figure>"""
