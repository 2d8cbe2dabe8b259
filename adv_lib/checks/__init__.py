"""Checks that teach: each answer is passed, not attempted yet, or wrong in a way that has a name.

An exercise knows the right answer and the tempting wrong ones. A wrong answer that matches a tempting
one is told which mistake that is. Checks never raise in a reader's notebook.
"""

from __future__ import annotations

import html
import inspect
import reprlib
from collections import ChainMap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from functools import cache, partial
from itertools import combinations
from types import ModuleType
from typing import Any

from .comparing import as_tensor, close, copies, show, show_shape

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

    A mistake is recognised by what it computes: the answer has made it if both come to the same in every
    case.  What is compared is what the function returns, or what a subclass says in `outcome`.
    """

    reference: Callable
    cases: Sequence[tuple]
    mistakes: Mapping[str, Callable]
    praise: str = "equal to the reference on every case."
    advice = "Try this case by hand, then step through your function."  # for a mistake without a name

    def named_cases(self) -> Sequence[tuple[str, tuple]]:
        """Each case behind the name that a complaint gives it."""
        return [(self._printed(case), case) for case in self.cases]

    def arguments(self, case: tuple) -> tuple:
        """What a function is called with, which it may spoil."""
        return copies(case)

    def outcome(self, returned: Any, arguments: tuple) -> Any:
        """What is compared, of what a function has returned and of the arguments as it left them."""
        return returned

    def spoilt(self, name: str, case: tuple, arguments: tuple) -> str | None:
        """What is wrong with the arguments as the answer left them, whatever it returned."""
        return None

    def same(self, got: Any, expected: Any) -> bool:
        """Whether two outcomes count as equal."""
        return close(got, expected)

    def unfit(self, name: str, got: Any, expected: Any) -> str | None:
        """Why an outcome cannot be compared at all."""
        if got is None:
            return "your function returns None: the last line needs a return."
        if as_tensor(got) is None:
            return f"for {name} expected {show(expected)}, got {got!r}."
        if as_tensor(got).shape != as_tensor(expected).shape:
            return f"expected {show_shape(expected)}, got {show_shape(got)}."
        return None

    def complaint(self, name: str, got: Any, expected: Any, mistake: str | None) -> str:
        """The words for an outcome that is not the reference's, with the mistake's if it has a name."""
        told = mistake or self.advice
        return f"for {name} expected {show(expected)}, got {show(got)}. {told}"

    def examine(self, answer: Callable) -> str | None:
        if not callable(answer):
            return f"expected a function, got {answer!r}."
        cases = self.named_cases()
        for name, case in cases:
            _, expected = self._called(self.reference, case)
            left, got = self._called(answer, case)
            wrong = self.unfit(name, got, expected) or self.spoilt(name, case, left)
            if wrong is not None:
                return wrong
            if not self.same(got, expected):
                mistake = self._mistake(answer, [case for _, case in cases])
                return self.complaint(name, got, expected, mistake)
        return None

    def _called(self, function: Callable, case: tuple) -> tuple[tuple, Any]:
        """The arguments as the function leaves them, and its outcome."""
        arguments = self.arguments(case)
        returned = function(*arguments)
        return arguments, self.outcome(returned, arguments)

    def _mistake(self, answer: Callable, cases: Sequence[tuple]) -> str | None:
        """The sentence of the mistake with the answer's outcome in every case, if there is one."""
        outcome = cache(lambda number: self._called(answer, cases[number])[1])
        for sentence, wrong in self.mistakes.items():
            if all(self.same(outcome(i), self._called(wrong, c)[1]) for i, c in enumerate(cases)):
                return sentence
        return None

    def _printed(self, case: tuple) -> str:
        names = inspect.signature(self.reference).parameters
        return ", ".join(f"{n} = {show(v)}" for n, v in zip(names, case, strict=False))


@dataclass(frozen=True)
class NamedCases(Code):
    """Code whose cases are too large to print: a complaint has a case's name and the sentence.

    cases: names → argument tuples, made when they are first asked for.
    """

    cases: Callable[[], Mapping[str, tuple]]

    def named_cases(self) -> Sequence[tuple[str, tuple]]:
        return list(self.cases().items())

    def unfit(self, name: str, got: Any, expected: Any) -> str | None:
        if got is not None and as_tensor(got) is None:
            return f"expected {show_shape(expected)}, got {reprlib.repr(got)}."
        return super().unfit(name, got, expected)

    def complaint(self, name: str, got: Any, expected: Any, mistake: str | None) -> str:
        return f"{name}: {mistake or self.advice}"


def combined(function: Callable, mistakes: Mapping[str, Mapping[str, Any]]) -> dict[str, Callable]:
    """One mistake or several at once, under their sentences one after the other.

    mistakes: sentence → the options with which function makes that mistake.
    """
    chosen = [c for many in range(1, len(mistakes) + 1) for c in combinations(mistakes, many)]
    return {" ".join(c): partial(function, **ChainMap(*(mistakes[s] for s in c))) for c in chosen}


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
        if as_tensor(answer) is None or as_tensor(answer).shape != (len(self.expected),):
            return f"expected {len(self.expected)} numbers, got {answer!r}."
        if close(answer, self.expected):
            return None
        for sentence, wrong in self.mistakes.items():
            if close(answer, wrong):
                return f"got {show(answer)}. {sentence}"
        off = [i for i, pair in enumerate(zip(answer, self.expected, strict=True)) if not close(*pair)]
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


def untouched(answer: Any) -> bool:
    """Whether the dots of a stub, alone or in a list, are still there."""
    return answer is ... or (isinstance(answer, (list, tuple)) and any(a is ... for a in answer))
