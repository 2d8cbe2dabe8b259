"""Claims that the chapters test on digits, read out of the chapters themselves as they run.

Nothing is measured twice: a chapter runs in a kernel, and what its cells found is asked for at the end.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import nbformat
from nbclient import NotebookClient

from . import tables
from .results import FAILED, REPRODUCED, SMALLER, Figure

CHAPTERS = Path(__file__).parent.parent / "chapters"
# What to ask a chapter for: a name, and Python that its kernel can evaluate at the end.
QUESTIONS = {
    "06_adversarial_training": {
        "fooled": "evaluation.table({'n': [fooled]}, x, y, big, judges).percent('n', 'FGSM').mean",
        "broken": "evaluation.table({'n': [fooled]}, x, y, big, judges).percent('n', 'worst').mean",
        "best": "100 * best.watched['robust']",
        "last": "100 * last.watched['robust']",
        "best loss": "-best.watched['−loss']",
        "last loss": "-last.watched['−loss']",
    },
    "07_danskin": {
        "slopes": "[float(slope(gamma=gamma)) for gamma in (-u, -v, -(u + v))]",
        "one": "summary(1)[0].tolist()",
        "DDD": "summary(10)[0].tolist()",
        "naive": "costs['DDD, naive, m = 10']",
        "decay": "decay",
        "comb": "costs['DDD, m = 2, 10 parts']",
        "ahead": "[len(every_gain), len(apart), ahead]",
    },
    "08_dent": {
        "static": "table.percent('static', 'through').mean",
        "dent": "table.percent('dent, lr .05', 'through').mean",
        "dent+": "table.percent('dent+, lr .05', 'through').mean",
        "gain": "[gain('dent+, lr .05', 'worst').mean, *gain('dent+, lr .05', 'worst').interval]",
        "loss": "[gain('dent, lr .05', 'worst').mean, *gain('dent, lr .05', 'worst').interval]",
        "clean": "gain('dent+, lr .05', 'clean').mean",
    },
}


class Claim(NamedTuple):
    """A published claim, what a chapter found about it, and whether that agrees.

    ours: the sentence, from the chapter's answers.  holds: whether they agree.  why: said if not.
    """

    source: str
    chapter: str
    what: str
    published: str
    ours: Callable[[dict], str]
    holds: Callable[[dict], bool]
    why: str = ""
    exact: bool = False  # the published setting itself, not a smaller one


CLAIMS = (
    Claim(
        "wong2020fast",
        "06_adversarial_training",
        "training by FGSM can pass FGSM and fail PGD (catastrophic overfitting)",
        "CIFAR-10, ε = 8/255: about 0 % under PGD",
        lambda a: f"ε = 0.3: {a['fooled']:.1f}% under FGSM, {a['broken']:.1f}% under all attacks",
        lambda a: a["fooled"] > 2 * a["broken"],
    ),
    Claim(
        "rice2020overfitting",
        "06_adversarial_training",
        "robust accuracy falls when training goes on (robust overfitting)",
        "CIFAR-10: 53.49% → 45.59%",
        lambda a: (
            f"{a['best']:.1f}% → {a['last']:.1f}%; loss {a['best loss']:.2f} → {a['last loss']:.2f}"
        ),
        lambda a: a["last"] < a["best"] - 1,
        "one run on 300 images: the held-out loss rises, the accuracy does not fall",
    ),
    Claim(
        "latorre2023finding",
        "07_danskin",
        "counterexample 2: −u and −v ascend, −(u + v) descends",
        "slopes > 0, > 0, < 0",
        lambda a: ", ".join(f"{slope:+.4f}" for slope in a["slopes"]),
        lambda a: a["slopes"][0] > 0 and a["slopes"][1] > 0 and a["slopes"][2] < 0,
        exact=True,
    ),
    Claim(
        "latorre2023finding",
        "07_danskin",
        "synthetic example: one gradient zig-zags, DDD descends to 1",
        "a figure",
        lambda a: (
            f"φ after 10 steps, 20 seeds: {min(a['one']):.2f} to {max(a['one']):.2f} and "
            f"{min(a['DDD']):.2f} to {max(a['DDD']):.2f}"
        ),
        lambda a: min(a["one"]) > 1.1 and max(a["DDD"]) < 1.01,
        exact=True,
    ),
    Claim(
        "latorre2023finding",
        "07_danskin",
        "time of naive DDD with ten gradients, over PGD training",
        "10 to 12",
        lambda a: f"{a['naive']:.1f}",
        lambda a: 9 <= a["naive"] <= 13,
    ),
    Claim(
        "latorre2023finding",
        "07_danskin",
        "the same with fewer gradients along the run (decay), or few combined over parts (comb)",
        "about 3",
        lambda a: f"{a['decay']:.1f} and {a['comb']:.1f}",
        lambda a: max(a["decay"], a["comb"]) <= 3.5,
    ),
    Claim(
        "latorre2023finding",
        "07_danskin",
        "DDD gives more robust networks than one gradient",
        "CIFAR-10, ResNet-18 without momentum: yes",
        lambda a: "{} comparisons; the interval excludes 0 in {}, with DDD ahead in {}".format(
            *a["ahead"]
        ),
        lambda a: a["ahead"][2] > a["ahead"][1] / 2,
        "on digits the gradients at ten attacks are nearly parallel",
    ),
    Claim(
        "wang2021fighting",
        "08_dent",
        "accuracy under attack through the defense (the released code adapts image by image: our dent+)",
        "CIFAR-10, AutoAttack: 60.04% → 80.33%, 59.53% → 82.28%, 43.21% → 71.82%",
        lambda a: f"PGD: {a['static']:.1f}% → {a['dent+']:.1f}%; a batch together: {a['dent']:.1f}%",
        lambda a: a["dent+"] > a["static"] + 4,
    ),
    Claim(
        "wang2021fighting",
        "08_dent",
        "the network behind it became more robust",
        "yes",
        lambda a: (
            "worst of eight attacks: dent+ {:+.1f} points (95 % interval {:+.1f} to {:+.1f}), ".format(
                *a["gain"]
            )
            + "dent {:+.1f} ({:+.1f} to {:+.1f})".format(*a["loss"])
        ),
        lambda a: a["gain"][1] > 0,
        "attacks that go around the defense break what attacks through it leave",
    ),
    Claim(
        "wang2021fighting",
        "08_dent",
        "accuracy without attack changes little (dent+)",
        "−1.2 to +0.3 points",
        lambda a: f"{a['clean']:+.1f} points (dent+)",
        lambda a: abs(a["clean"]) <= 1.2,
    ),
)
TEXT = """## What the chapters test on digits

These claims were published for photographs and deep networks, or for toys. The chapters test them on
handwritten digits or on the same toys. The command runs the chapters and asks them what they found.
*Reproduced at smaller scale*: the digits agree with the claim. Digits that disagree do not say that it
is wrong where it was made.

{table}
"""


def answers(chapter: str, questions: dict[str, str]) -> dict:
    """Run a chapter and evaluate the questions in its kernel."""
    notebook = nbformat.read(CHAPTERS / f"{chapter}.ipynb", as_version=4)
    asked = ", ".join(f"{name!r}: {code}" for name, code in questions.items())
    last = nbformat.v4.new_code_cell(f"import json\nprint(json.dumps({{{asked}}}))")
    notebook.cells.append(last)
    client = NotebookClient(notebook, timeout=None, iopub_timeout=3600, kernel_name="python3")
    client.execute(cwd=str(CHAPTERS))
    return json.loads(notebook.cells[-1].outputs[0].text)


def section(_pair: object) -> tuple[str, list[Figure]]:
    """Every claim with what its chapter found."""
    found = {chapter: answers(chapter, asked) for chapter, asked in QUESTIONS.items()}
    rows, figures = [], []
    for claim in CLAIMS:
        here = found[claim.chapter]
        holds = claim.holds(here)
        status = FAILED if not holds else REPRODUCED if claim.exact else SMALLER
        ours, why = claim.ours(here), "" if holds else claim.why
        figures.append(Figure(claim.source, claim.what, claim.published, ours, status, why))
        number = int(claim.chapter[:2])
        link = f"[{number}](../chapters/{claim.chapter}.ipynb)"
        rows.append((claim.what, claim.published, ours, link, status))
    head = ("claim", "published", "ours", "chapter", "status")
    return TEXT.format(table=tables.table(head, rows)), figures
