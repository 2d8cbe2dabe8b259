"""The one timer: seconds by the clock or of the CPU, for one call or for contestants that take turns."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any, NamedTuple


class Timer:
    """Runs from the moment that it is made."""

    def __init__(self) -> None:
        self.begin = time.perf_counter(), time.process_time()

    def clock(self) -> float:
        """Seconds by the clock so far."""
        return time.perf_counter() - self.begin[0]

    def cpu(self) -> float:
        """Seconds of this process's CPU time so far."""
        return time.process_time() - self.begin[1]


def clock(call: Callable[[], object], rounds: int) -> float:
    """The median seconds by the clock of a call."""
    took = []
    for _ in range(rounds):
        timer = Timer()
        call()
        took.append(timer.clock())
    return median(took)


class Race(NamedTuple):
    """CPU seconds and results of every contestant, one for each task."""

    seconds: dict[str, list[float]]
    results: dict[str, list[Any]]

    def ratio(self, name: str, to: str) -> float:
        """The median over all tasks of the time's ratio to that of another contestant."""
        return median(a / b for a, b in zip(self.seconds[name], self.seconds[to], strict=True))

    def milliseconds(self, name: str) -> float:
        """The median over all tasks."""
        return 1e3 * median(self.seconds[name])


def race(contestants: dict[str, Callable], tasks: Sequence[tuple]) -> Race:
    """All contestants on one task after the other; each task begins with another contestant.

    Python collects its garbage between the tasks only, so that nobody pays for another's.
    """
    found = Race({name: [] for name in contestants}, {name: [] for name in contestants})
    names = list(contestants)
    gc.disable()
    gc.freeze()  # what is there already is not looked through again
    try:
        for turn, task in enumerate(tasks):
            first = turn % len(names)
            for name in names[first:] + names[:first]:
                timer = Timer()
                result = contestants[name](*task)
                found.seconds[name].append(timer.cpu())
                found.results[name].append(result)
            gc.collect()
    finally:
        gc.unfreeze()
        gc.enable()
    return found
