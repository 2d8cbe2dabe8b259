"""The two pages of the book that the benchmarks write, from what is kept in benchmarks/results/."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

from . import tables
from .results import FAILED, NOT_ATTEMPTED, STATUSES, Figure, load

BOOK = Path(__file__).parent.parent / "book"
PARTS = {
    "bench": (
        "speed",
        "l1",
        "black_box",
        "minimum",
        "autoattack",
        "arena",
        "scale",
        "defects",
        "situations",
        "verification",
        "competition",
        "dual",
        "shortest",
        "weight",
        "colab",
    ),
    "reproduce": (
        "linear",
        "mnist",
        "training",
        "certified",
        "chapters",
        "recipe",
        "geometry",
        "detection",
    ),
}
ELSEWHERE = {"weight": "make weigh", "colab": "make test-colab"}  # parts that another command makes
PAGES = {"bench": BOOK / "benchmarks.md", "reproduce": BOOK / "reproduced.md"}

SOURCES = {  # in the order of the page: key in book/references.bib, what it is about
    "kolter2018tutorial": "the tutorial",
    "wong2018provable": "certified training",
    "tjeng2019evaluating": "exact verification",
    "wong2020fast": "fast adversarial training",
    "rice2020overfitting": "robust overfitting",
    "pang2021bag": "a bag of tricks",
    "latorre2023finding": "DDD",
    "wang2021fighting": "dent",
    "croce2020reliable": "AutoAttack",
    "pang2018max": "MMLDA",
    "pang2020rethinking": "max-Mahalanobis centres",
    "tramer2020adaptive": "adapted attacks",
    "pang2019adp": "diverse ensembles",
    "pang2018detection": "reverse cross-entropy",
}
CIFAR = "needs CIFAR-10 and hours of a GPU"
UNTRIED = [
    Figure(source, what, published, "–", NOT_ATTEMPTED, why)
    for source, what, published, why in (
        (
            "kolter2018tutorial",
            "the pig of ImageNet, a targeted attack",
            "a picture",
            "needs a download; the introduction runs it on your photograph",
        ),
        (
            "tjeng2019evaluating",
            "exact error of the network of Wong & Kolter",
            "4.38%",
            "its weights are not here, and our network of this kind had 2 of 100 epochs",
        ),
        (
            "pang2021bag",
            "ResNet-18 trained by PGD: clean, PGD-10, AutoAttack",
            "82.52%, 53.58%, 48.51%",
            f"{CIFAR}: `python -m benchmarks.cifar` is ready for whoever has both",
        ),
        ("pang2021bag", "TRADES, WRN-34-20: clean, AutoAttack", "86.43%, 54.39%", CIFAR),
        (
            "pang2021bag",
            "FastAT and FreeAT, weight decay 2e-4 → 5e-4: AutoAttack",
            "42.99% → 44.06%, 44.24% → 45.66%",
            CIFAR,
        ),
        (
            "croce2020reliable",
            "reported → AutoAttack: k-WTA, and others",
            "52.4% → 18.5%",
            "needs the published weights",
        ),
        (
            "pang2019adp",
            "ensembles with ADP",
            "CIFAR-10 tables",
            f"{CIFAR}; chapter 12 has the claim on digits",
        ),
        (
            "pang2018detection",
            "RCE, non-ME: AUC of detection, C&W",
            "50.2 → 94.7",
            f"{CIFAR}; chapter 13 has the claim on digits",
        ),
    )
]

REPRODUCED = """# Reproduced results

Published numbers next to ours, computed by this book's code. `make reproduce` writes this page from the
result files in `benchmarks/results`; `make reproduce PART=mnist` runs that part first, `PART=all` all of
them. What takes long is kept in `.bench`: delete that folder to find it anew. A figure counts as

- *reproduced* where ours, in the published setting, meet it by the rule that stands below its table;
- *reproduced at smaller scale* where smaller data or a smaller network show what it claims;
- *did not reproduce* otherwise, with a reason [below](#what-did-not-reproduce-and-why);
- *not attempted* where we could not, with a reason [at the end](#not-attempted).

{overview}

{sections}
## What did not reproduce, and why

{failed}

## Not attempted

{not_attempted}
"""
BENCHMARKS = """# Benchmarks

The attacks of `adv_lib` next to those of other libraries, and its bounds next to other ways to the same
bounds, on the same models and data. `make bench` runs everything on this page and writes it; `make bench
PART=speed` runs one part. All contestants of a table take turns in one run. Times are CPU times in one
thread, and medians over all turns. Trust the ratios, not the milliseconds.

The other libraries: {libraries}. secml-torch is missing: where this book's `adv_lib` is installed it
takes it for another library of that name, and does not import. The targets were set before this code was
written.

{targets}

{sections}"""


def write(page: str) -> str:
    """The page, `bench` or `reproduce`, put together from the results of its parts, and written."""
    found = {part: load(part) for part in PARTS[page]}
    if missing := [part for part, result in found.items() if result is None]:
        raise FileNotFoundError(f"not yet run: {', '.join(missing)}")
    text = (benchmarks if page == "bench" else reproduced)(found)
    PAGES[page].write_text(text, "utf-8")
    return text


def benchmarks(found: dict[str, dict]) -> str:
    """The page of ratios: first which targets are met, then every part."""
    rows = []
    for result in found.values():
        title = re.search(r"^## (.*)$", result["text"], re.MULTILINE)[1]
        verdicts = tables.verdicts(result["text"])
        missed = [said for said, met in verdicts if not met]
        count = f"{len(verdicts) - len(missed)} of {len(verdicts)}" if verdicts else "no target"
        rows.append((f"[{title}](#{anchor(title)})", count, "; ".join(missed)))
    return BENCHMARKS.format(
        libraries=", ".join(found["speed"]["libraries"]),
        targets=tables.table(("part", "targets met", "not met"), rows),
        sections=sections("bench", found),
    )


def reproduced(found: dict[str, dict]) -> str:
    """The page of published figures: an overview, every part, what failed, what was not tried."""
    figures = [figure for result in found.values() for figure in result["figures"]] + UNTRIED
    if strange := {figure.source for figure in figures} - set(SOURCES):
        raise ValueError(f"expected sources out of {list(SOURCES)}, got {strange}")
    rows = []
    for source in SOURCES:
        counts = Counter(figure.status for figure in figures if figure.source == source)
        rows.append((cite(source), *(counts[status] or "" for status in STATUSES)))
    total = Counter(figure.status for figure in figures)
    rows.append(("all", *(f"**{total[status]}**" for status in STATUSES)))
    head = ("source", "claim or figure", "published")
    return REPRODUCED.format(
        overview=tables.table(("source", *STATUSES), rows, right=range(1, len(STATUSES) + 1)),
        sections=sections("reproduce", found),
        failed=tables.table(
            (*head, "ours", "why"),
            (
                (cite(f.source), f.what, f.published, f.ours, f.why)
                for f in figures
                if f.status == FAILED
            ),
        ),
        not_attempted=tables.table(
            (*head, "why"), ((cite(f.source), f.what, f.published, f.why) for f in UNTRIED)
        ),
    )


def sections(page: str, found: dict[str, dict]) -> str:
    """Every part as it came out, and how to run it again."""
    texts = []
    for part, result in found.items():
        command = ELSEWHERE.get(part, f"make {page} PART={part}")
        where = f"{result['machine']}, Python {result['python']}, PyTorch {result['torch']}"
        texts.append(f"{result['text'].rstrip()}\n\n*`{command}`; run on {result['date']}, {where}.*\n")
    return "\n".join(texts)


def cite(source: str) -> str:
    """A source as a citation, and what it is about."""
    return f"[{source}](references.md#cite-{source}), {SOURCES[source]}"


def anchor(title: str) -> str:
    """The anchor of a heading."""
    return re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-")
