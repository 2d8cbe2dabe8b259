"""Tables in Markdown, and among them those of targets, whose verdicts can be read back from a text."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence
from typing import NamedTuple


def row(cells: Iterable[object]) -> str:
    """One line of a table."""
    return f"| {' | '.join(map(str, cells))} |"


def printed(*cells: object) -> tuple[object, ...]:
    """The cells of a row, which is printed to show how far a part has come."""
    print(f"  {row(cells)}", flush=True)
    return cells


def table(head: Sequence[str], rows: Iterable[Iterable[object]], right: Collection[int] = ()) -> str:
    """A table whose columns with the numbers in `right` are aligned to the right."""
    rules = ("---:" if column in right else "---" for column in range(len(head)))
    return "\n".join([row(head).replace("|  |", "| |"), f"|{'|'.join(rules)}|", *map(row, rows)])


class Target(NamedTuple):
    """What was to be reached, where, what was measured, and whether that is met; None is unknown."""

    what: str
    where: str
    measured: str
    met: bool | None


def at_most(
    what: str, where: str, measured: float, most: float, digits: int = 2, unit: str = ""
) -> Target:
    """A target for a number that must not be larger; judged at the digits shown."""
    shown = f"{measured:.{digits}f}{unit}, at most {most:.{digits}f}"
    return Target(what, where, shown, round(measured, digits) <= round(most, digits))


def targets(
    found: Iterable[Target], name: str = "target", where: str = "", right: Collection[int] = ()
) -> str:
    """The table of targets; name and where are the heads of its first two columns."""
    rows = ((*target[:3], verdict(target.met)) for target in found)
    return table((name, where, "measured", ""), rows, right)


def verdict(met: bool | None) -> str:
    """The word in the last column of a table of targets."""
    return {True: "met", False: "**not met**", None: ""}[met]


def verdicts(text: str) -> list[tuple[str, bool]]:
    """What each target in a text says, in a table or in a sentence, and whether it is met."""
    lines = re.findall(r"^\| (.+) \| (met|\*\*not met\*\*) \|$", text, re.MULTILINE)
    lines += re.findall(r"^(Target.*): \*\*(met|not met)\*\*", text, re.MULTILINE)
    return [(" ".join(said.replace(" | ", ", ").split()), word == "met") for said, word in lines]


def short(number: float) -> str:
    """A number as targets spell it: .35, 1e-5."""
    return f"{number:g}".removeprefix("0").replace("e-0", "e-")
