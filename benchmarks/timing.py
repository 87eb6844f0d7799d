"""Times two ways alternately, and writes the line of the table with their ratio."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median


@dataclass(frozen=True)
class Line:
    """One row of the table: the ratio of the second time to the first, for each repeat."""

    name: str
    ours: Sequence[float]
    theirs: Sequence[float]
    bar: str
    unit: str = "s"

    @property
    def ratios(self) -> list[float]:
        """The second time by the first."""
        return [b / a for a, b in zip(self.ours, self.theirs, strict=True)]

    def __str__(self) -> str:
        ratios = self.ratios
        spread = f"{min(ratios):.2f} to {max(ratios):.2f}"
        times = f"{median(self.ours):.3g} {self.unit} | {median(self.theirs):.3g} {self.unit}"
        return f"| {self.name} | {times} | {median(ratios):.2f} | {spread} | {self.bar} |"


HEAD = "| figure | ours | against | ratio | over the repeats | bar |" + "\n|" + 6 * " --- |"


class Clock:
    """What computing is timed with."""

    now: Callable[[], float] = staticmethod(time.process_time)


def timed(work: Callable[[], object], now: Callable[[], float] | None = None) -> float:
    """Return the seconds that a piece of work takes."""
    now = now or Clock.now
    started = now()
    work()
    return now() - started


def in_turn(
    repeats: int,
    ours: Callable[[], object],
    theirs: Callable[[], object],
    now: Callable[[], float] | None = None,
) -> tuple[list[float], list[float]]:
    """Time two ways in turn, so that what else the machine does falls on both."""
    found = [(timed(ours, now), timed(theirs, now)) for _ in range(repeats)]
    return [a for a, _ in found], [b for _, b in found]
