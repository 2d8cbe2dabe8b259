"""Checks that teach: each answer is passed, not attempted yet, or wrong in a way that has a name.

An exercise knows the right answer and the tempting wrong ones. A wrong answer that matches a tempting
one is told which mistake that is. Checks never raise in a reader's notebook.
"""

from __future__ import annotations

import copy
import html
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from types import ModuleType
from typing import Any

import torch

PASSES, FAILS, NOT_ATTEMPTED = "passes", "fails", "not attempted yet"
MARKS = {PASSES: "✓", FAILS: "✗", NOT_ATTEMPTED: "○"}


@dataclass(frozen=True)
class Verdict:
    """What a check found: a status and one or two sentences."""

    status: str
    message: str = ""

    def __str__(self) -> str:
        return f"{MARKS[self.status]} {self.status}" + (f": {self.message}" if self.message else "")

    __repr__ = __str__

    def _repr_html_(self) -> str:
        kind = self.status.split()[0]
        return f'<div class="adv-verdict adv-{kind}" role="status">{html.escape(str(self))}</div>'


class Exercise:
    """Call it with an answer to get a verdict; subclasses say in `examine` what is wrong, or None."""

    praise: str
    latest = Verdict(NOT_ATTEMPTED)

    def examine(self, answer: Any) -> str | None:
        raise NotImplementedError

    def __call__(self, answer: Any) -> Verdict:
        verdict = self._judge(answer)
        vars(self)["latest"] = verdict  # what is asked is frozen, what was answered is not
        return verdict

    def _judge(self, answer: Any) -> Verdict:
        if untouched(answer):
            return Verdict(NOT_ATTEMPTED)
        try:
            complaint = self.examine(answer)
        except Exception as error:  # the reader's code may raise anything; the verdict says what
            if type(error) is NotImplementedError and not error.args:  # a stub's; PyTorch's say more
                return Verdict(NOT_ATTEMPTED)
            return Verdict(FAILS, f"your code raised {type(error).__name__}: {error}")
        return Verdict(PASSES, self.praise) if complaint is None else Verdict(FAILS, complaint)


@dataclass(frozen=True)
class Code(Exercise):
    """The answer is a function: compare it with the reference on every case.

    cases:    argument tuples, small enough to print.
    mistakes: sentence → the wrong function that someone who needs the sentence would write.
    """

    reference: Callable
    cases: Sequence[tuple]
    mistakes: Mapping[str, Callable]
    praise: str = "equal to the reference on every case."

    def examine(self, answer: Callable) -> str | None:
        if not callable(answer):
            return f"expected a function, got {answer!r}."
        for case in self.cases:
            expected, got = self.reference(*case), answer(*_copies(case))
            if got is None:
                return "your function returns None: the last line needs a return."
            if _tensor(got) is None:
                return f"for {self._describe(case)} expected {_show(expected)}, got {got!r}."
            if _tensor(got).shape != _tensor(expected).shape:
                return f"expected {_shape(expected)}, got {_shape(got)}."
            if not _close(got, expected):
                return (
                    f"for {self._describe(case)} expected {_show(expected)}, got {_show(got)}. "
                    + self._diagnosis(answer)
                )
        return None

    def _diagnosis(self, answer: Callable) -> str:
        """The sentence of the mistake that gives the reader's result in every case, if there is one."""
        for sentence, wrong in self.mistakes.items():
            if all(_close(answer(*_copies(case)), wrong(*_copies(case))) for case in self.cases):
                return sentence
        return "Try this case by hand, then step through your function."

    def _describe(self, case: tuple) -> str:
        names = self.reference.__code__.co_varnames
        return ", ".join(f"{n} = {_show(v)}" for n, v in zip(names, case, strict=False))


@dataclass(frozen=True)
class Numbers(Exercise):
    """The answer is a list of numbers worked out by hand.

    mistakes: sentence → the wrong numbers that someone who needs the sentence would get.
    """

    expected: Sequence[float]
    mistakes: Mapping[str, Sequence[float]]
    praise: str = "these are the right numbers."
    labels: Sequence[str] = field(default=())

    def examine(self, answer: Sequence[float]) -> str | None:
        if _tensor(answer) is None or _tensor(answer).shape != (len(self.expected),):
            return f"expected {len(self.expected)} numbers, got {answer!r}."
        if _close(answer, self.expected):
            return None
        for sentence, wrong in self.mistakes.items():
            if _close(answer, wrong):
                return f"got {_show(answer)}. {sentence}"
        off = [i for i, pair in enumerate(zip(answer, self.expected, strict=True)) if not _close(*pair)]
        names = ", ".join(self.labels[i] if self.labels else f"number {i + 1}" for i in off)
        return f"not yet right: {names}."


@dataclass(frozen=True)
class Words(Exercise):
    """The answer is a list of words, one for each statement.

    why: for each statement, the sentence for who says something else than the truth.
    """

    truth: Sequence
    why: Sequence[str]
    among: Sequence
    praise: str

    def examine(self, answer: Sequence) -> str | None:
        listed = ", ".join(repr(word) for word in self.among)
        answer = answer.tolist() if hasattr(answer, "tolist") else answer
        if not isinstance(answer, list | tuple) or len(answer) != len(self.truth):
            return f"expected a list of {len(self.truth)} entries, got {answer!r}."
        for number, (said, truth, why) in enumerate(zip(answer, self.truth, self.why, strict=True), 1):
            if said not in self.among:
                return f"entry {number}: expected one of {listed}, got {said!r}."
            if said != truth:
                return f"entry {number}: you said {said!r}. {why}"
        return None


@dataclass(frozen=True)
class Progress:
    """How far a reader is: the last verdict of every exercise, by the exercise's title."""

    chapter: str
    day: date
    verdicts: Mapping[str, Verdict]

    @property
    def headline(self) -> str:
        """The count and the date, in one line."""
        passed = sum(verdict.status == PASSES for verdict in self.verdicts.values())
        return f"{self.chapter}: {passed} of {len(self.verdicts)} exercises pass ({self.day})"

    @property
    def lines(self) -> list[str]:
        """One line an exercise: its mark, its title, its status."""
        return [f"{MARKS[v.status]} {title}: {v.status}" for title, v in self.verdicts.items()]

    def __str__(self) -> str:
        return "\n".join([self.headline, *self.lines])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        items = "".join(f"<li>{html.escape(line)}</li>" for line in self.lines)
        return (
            f'<div class="adv-progress"><p><strong>{html.escape(self.headline)}</strong></p>'
            f'<ul style="list-style: none; padding-left: 0">{items}</ul></div>'
        )


def progress(chapter: ModuleType) -> Progress:
    """How far a reader is in a chapter, as this kernel has seen it.

    chapter: the chapter's module of checks, which lists its exercises in `EXERCISES`, by title; of
             anything else no exercise is shown.  Returns what a notebook shows as text or as HTML.
    """
    name = getattr(chapter, "__name__", "").rpartition(".")[2].replace("_", " ").capitalize()
    exercises = getattr(chapter, "EXERCISES", {})
    return Progress(name, date.today(), {title: each.latest for title, each in exercises.items()})


def _copies(case: tuple) -> tuple:
    return tuple(v.clone() if isinstance(v, torch.Tensor) else copy.deepcopy(v) for v in case)


def _shape(value: Any) -> str:
    shape = tuple(_tensor(value).shape)
    return f"a tensor of shape {shape}" if shape else "a single number"


def untouched(answer: Any) -> bool:
    """Whether the dots of a stub, alone or in a list, are still there."""
    return answer is ... or (isinstance(answer, (list, tuple)) and any(a is ... for a in answer))


def _tensor(value: Any) -> torch.Tensor | None:
    """value as float64, or None if it is not made of real numbers."""
    try:
        if isinstance(value, (list, tuple)) and value and all(map(torch.is_tensor, value)):
            value = torch.stack(tuple(value))
        tensor = torch.as_tensor(value).detach()
    except (TypeError, ValueError, RuntimeError):
        return None
    return None if tensor.is_complex() else tensor.double()


def _close(got: Any, expected: Any) -> bool:
    got, expected = _tensor(got), _tensor(expected)
    if got is None or expected is None:
        return False
    return got.shape == expected.shape and torch.allclose(
        got, expected, rtol=1e-4, atol=1e-6, equal_nan=True
    )


def _show(value: Any) -> str:
    """A number or a tensor, short enough for a sentence."""
    if isinstance(value, torch.Tensor) and value.dtype == torch.bool:
        return str(value.tolist())
    if isinstance(value, (torch.Tensor, list, tuple)):
        flat = _tensor(value)
        if flat.ndim == 0:
            return f"{flat.item():.4g}"
        entries = [_show(v) for v in flat] if flat.ndim > 1 else [f"{v:.4g}" for v in flat.tolist()]
        return "(" + ", ".join(entries) + ")"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
