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

from torch import Tensor

from .comparing import ABSOLUTE, RELATIVE, as_tensor, close, copies, finite, show, show_shape, written

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
                if mistake is None and as_tensor(got).isnan().any():
                    mistake = "NaN comes from 0/0, ∞ − ∞ or 0 · ∞: look where that happens."
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


@dataclass(frozen=True)
class Stable(Code):
    """Code whose last case only a function passes that neither underflows nor overflows.

    large: the sentence for who fails there in a way without a name.
    """

    large: str = ""

    def _mistake(self, answer: Callable, cases: list[tuple]) -> str | None:
        """By the other cases, if the answer is wrong there: on the last a slip may give anything."""
        mild = cases[:-1]
        called = [(self._called(answer, c)[1], self._called(self.reference, c)[1]) for c in mild]
        if all(self.same(got, expected) for got, expected in called):
            return super()._mistake(answer, cases) or self.large
        return super()._mistake(answer, mild)


def combined(function: Callable, mistakes: Mapping[str, Mapping[str, Any]]) -> dict[str, Callable]:
    """One mistake or several at once, under their sentences one after the other.

    mistakes: sentence → the options with which function makes that mistake.
    """
    chosen = [c for many in range(1, len(mistakes) + 1) for c in combinations(mistakes, many)]
    return {" ".join(c): partial(function, **ChainMap(*(mistakes[s] for s in c))) for c in chosen}


class Pencil(Exercise):
    """The answer is worked out by hand, so that a page without Python can check it too."""

    def rules(self) -> dict:
        """The check's own data, which book/_static/answers.js examines as `examine` does.

        kind:   which class it is.
        labels: what each entry of the answer is, as a sentence names it and the page asks for it.
        The rest are the class's fields, ready for JSON, and the tolerances.
        """
        raise NotImplementedError


@dataclass(frozen=True)
class Numbers(Pencil):
    """The answer is a list of numbers worked out by hand.

    mistakes: sentence → the wrong numbers that someone who needs the sentence would get.
    """

    expected: Sequence[float]
    mistakes: Mapping[str, Sequence[float]]
    praise: str = "these are the right numbers."
    labels: Sequence[str] = field(default=())

    @property
    def names(self) -> Sequence[str]:
        """What each number is."""
        return self.labels or [f"number {i}" for i, _ in enumerate(self.expected, 1)]

    def rules(self) -> dict:
        mistakes = [[sentence, written(wrong)] for sentence, wrong in self.mistakes.items()]
        return {
            "kind": "numbers",
            "labels": list(self.names),
            "expected": written(self.expected),
            "mistakes": mistakes,
            "praise": self.praise,
            "tolerance": {"relative": RELATIVE, "absolute": ABSOLUTE},
        }

    def examine(self, answer: Sequence[float]) -> str | None:
        if as_tensor(answer) is None or as_tensor(answer).shape != (len(self.expected),):
            entries = answer if isinstance(answer, list | tuple) else ()
            return no_number(self.names, entries) or (
                f"expected {len(self.expected)} numbers, got {answer!r}."
            )
        if close(answer, self.expected):
            return None
        for sentence, wrong in self.mistakes.items():
            if close(answer, wrong):
                return f"got {show(answer)}. {sentence}"
        pairs = zip(self.names, answer, self.expected, strict=True)
        off = [name for name, given, right in pairs if not close(given, right)]
        return f"not yet right: {', '.join(off)}."


@dataclass(frozen=True)
class Direction:
    """A unit vector that is asked for: the largest of some products with it must be below a limit.

    mistakes: sentence → the vector, of any length, in whose direction it points for who needs it.
    advice:   for a wrong vector without a name.
    """

    name: str
    limit: float
    mistakes: Mapping[str, Sequence[float]]
    advice: str


@dataclass(frozen=True)
class Directions(Pencil):
    """The answer is a list of unit vectors, along which the maximum of ⟨g, θ⟩ over some g must fall.

    near: how far a unit vector that was worked out by hand may be off.
    """

    gradients: Sequence[Sequence[float]]
    asked: Sequence[Direction]
    praise: str
    near: float = 1e-2

    @property
    def names(self) -> Sequence[str]:
        """What each entry of each vector is."""
        size = len(self.gradients[0])
        return [f"{each.name}, entry {i}" for each in self.asked for i in range(1, size + 1)]

    def rules(self) -> dict:
        asked = [vars(each) | {"mistakes": list(each.mistakes.items())} for each in self.asked]
        return {
            "kind": "directions",
            "labels": list(self.names),
            "gradients": self.gradients,
            "asked": asked,
            "praise": self.praise,
            "near": self.near,
        }

    def examine(self, answer: Sequence[Sequence[float]]) -> str | None:
        vectors, G = as_tensor(answer), as_tensor(self.gradients)
        if vectors is None or vectors.shape != (len(self.asked), G.shape[1]) or not finite(vectors):
            rows = answer if isinstance(answer, list | tuple) else ()
            entries = [entry for row in rows if isinstance(row, list | tuple) for entry in row]
            return no_number(self.names, entries, "finite number") or (
                f"expected {len(self.asked)} vectors of {G.shape[1]} finite numbers, got {answer!r}."
            )
        for each, vector in zip(self.asked, vectors, strict=True):
            if abs(vector.norm() - 1) > self.near:
                return f"{each.name} has length {show(vector.norm())}: divide it by that."
        for each, vector in zip(self.asked, vectors, strict=True):
            unit = vector / vector.norm()
            slope = round((G @ unit).max().item(), 6)  # rounding errors are no slope
            if slope >= each.limit:
                told = (s for s, wrong in each.mistakes.items() if self._along(unit, as_tensor(wrong)))
                return f"along {each.name} the slope is {show(slope)}. {next(told, each.advice)}"
        return None

    def _along(self, unit: Tensor, wrong: Tensor) -> bool:
        """Whether the unit vector points in the direction of the wrong one."""
        return bool((unit - wrong / wrong.norm()).norm() <= self.near)


def no_number(names: Sequence[str], entries: Sequence, wanted: str = "number") -> str | None:
    """Which entry is no number, if there are as many entries as names."""
    if len(names) == len(entries):
        for name, entry in zip(names, entries, strict=True):
            given = as_tensor(entry)
            if given is None or given.ndim or not (finite(given) or wanted == "number"):
                return f"{name}: expected a {wanted}, got “{entry}”."
    return None


@dataclass(frozen=True)
class Words(Pencil):
    """The answer is a list of words, one for each statement.

    why: for each statement, the sentence for who says something else than the truth.
    """

    truth: Sequence
    why: Sequence[str]
    among: Sequence
    praise: str
    labels: Sequence[str] = field(default=())

    @property
    def names(self) -> Sequence[str]:
        """What each word is about."""
        return self.labels or [f"entry {i}" for i, _ in enumerate(self.truth, 1)]

    def rules(self) -> dict:
        return {
            "kind": "words",
            "labels": list(self.names),
            "truth": [repr(word) for word in self.truth],
            "why": list(self.why),
            "among": [repr(word) for word in self.among],
            "praise": self.praise,
        }

    def examine(self, answer: Sequence) -> str | None:
        listed = ", ".join(repr(word) for word in self.among)
        answer = answer.tolist() if hasattr(answer, "tolist") else answer
        if not isinstance(answer, list | tuple) or len(answer) != len(self.truth):
            return f"expected a list of {len(self.truth)} entries, got {answer!r}."
        for name, said, truth, why in zip(self.names, answer, self.truth, self.why, strict=True):
            if said not in self.among:
                return f"{name}: expected one of {listed}, got {said!r}."
            if said != truth:
                return f"{name}: you said {said!r}. {why}"
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
