"""Numbers of steps as the console shows them, and sets of these as flags name them: `100,200,300-305`."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from moxserve.errors import UsageError
from moxserve.tensorflow.executor.participants import NEVER, Clock

__all__ = ["StepSet", "run_step_of", "shown_step"]

_ITEM = re.compile(r"(\d+)(?:-(\d+))?\Z")


def shown_step(clock: Clock) -> int:
    """The number of the step that is about to run: the global step in TRAIN, else the step of the run."""
    return clock.global_step if clock.counts_globally else clock.run_step


def run_step_of(number: int, clock: Clock) -> int:
    """The index in this run of the step of a number."""
    return number - shown_step(clock) + clock.run_step


@dataclass(frozen=True)
class StepSet:
    """Numbers of steps, kept as ranges.

    Attributes:
        ranges: (first, last) pairs, both included, in order, none touching another.
    """

    ranges: tuple[tuple[int, int], ...] = ()

    @classmethod
    def parse(cls, text: str, what: str) -> StepSet:
        """Read `100,200,300-305`.

        Args:
            text: the steps; empty for none.
            what: what is read, for the error.

        Raises:
            UsageError: it is written otherwise.
        """
        found = []
        for item in filter(None, (word.strip() for word in text.split(","))):
            match = _ITEM.match(item)
            first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
            if first > last:
                raise UsageError(f"{what}={text!r}: {item!r} is no step; expected numbers, such as 100,200 or 300-305")
            found.append((first, last))
        return cls(_joined(found))

    @classmethod
    def of(cls, steps: Iterable[int], what: str) -> StepSet:
        """Take numbers of steps.

        Raises:
            UsageError: one is no whole number, or negative.
        """
        found = []
        for step in steps:
            if isinstance(step, bool) or not hasattr(step, "__index__") or step < 0:
                raise UsageError(f"{what}: {step!r} is no step; expected whole numbers, 0 or more")
            found.append((int(step), int(step)))
        return cls(_joined(found))

    def next_from(self, step: int) -> int:
        """The first of the steps that is not before `step`; NEVER when there is none."""
        for first, last in self.ranges:
            if step <= last:
                return max(step, first)
        return NEVER

    def last_of(self, step: int) -> int:
        """The last step of the range that a step is in; the step itself when it is in none."""
        return next((last for first, last in self.ranges if first <= step <= last), step)

    def after(self, step: int) -> StepSet:
        """Those of the steps that come after one."""
        return StepSet(tuple((max(first, step + 1), last) for first, last in self.ranges if last > step))


def _joined(ranges: list[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    joined: list[tuple[int, int]] = []
    for first, last in sorted(ranges):
        if joined and first <= joined[-1][1] + 1:
            joined[-1] = (joined[-1][0], max(last, joined[-1][1]))
        else:
            joined.append((first, last))
    return tuple(joined)
