"""How far a run is, and how long it will take: a line every so often, or on a terminal one line that is kept up to
date below all others.

The line is `progress: 40 % (400 of 1000 steps), 0:03:10 left`; where nobody knows how many steps there will be, as with
an input that just ends, `progress: 400 steps, 12.3 steps/s`. Steps are counted as by `max_number_of_steps`, so a
training that goes on from a checkpoint does not start at 0 %. The time left is reckoned from the speed of the last
while, with all that happened between the steps: summaries, checkpoints, evaluations.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable
from datetime import timedelta

from moxserve.talk import Event
from moxserve.tensorflow.executor.env import tf1
from moxserve.tensorflow.executor.observe.live import LiveLine
from moxserve.tensorflow.executor.observe.steps import shown_step
from moxserve.tensorflow.executor.participants import NEVER, Clock, Participant, StepContext

__all__ = ["Progress"]

_LIVE_PERIOD_S = 0.5
_BAR = 24
_WINDOW_S = 120.0


class Progress(Participant):
    """Tells now and then how far the run is.

    Args:
        period_s: seconds between lines.
        live: a terminal's line, kept up to date instead; None prints lines.
        now: clock in seconds, for tests.
    """

    def __init__(
        self, period_s: float, live: LiveLine | None = None, now: Callable[[], float] = time.monotonic
    ) -> None:
        self._period_s = period_s if live is None else min(period_s, _LIVE_PERIOD_S)
        self._live = live
        self._now = now
        self._due = math.inf
        self._seen: deque[tuple[float, int]] = deque()

    def train_start(self, clock: Clock) -> None:
        """Open the terminal's line."""
        if self._live is not None:
            self._live.open()

    def next_step(self, clock: Clock) -> int:
        """The first step, from the end of which time is taken; after it the schedule goes by time."""
        return NEVER if self._seen else clock.run_step

    def next_time(self) -> float:
        """When the next line is due."""
        return self._due

    def step_done(self, context: StepContext) -> None:
        """Tell, where it is time."""
        now, first = self._now(), not self._seen
        if not first and now < self._due:
            return
        self._seen.append((now, context.clock.run_step))
        self._due = now + self._period_s
        while len(self._seen) > 2 and now - self._seen[1][0] > _WINDOW_S:
            self._seen.popleft()
        if not first:
            self._tell(context.clock)

    def _tell(self, clock: Clock) -> None:
        (first_time, first_step), (last_time, last_step) = self._seen[0], self._seen[-1]
        speed = (last_step - first_step) / max(last_time - first_time, 1e-9)
        event = _event(shown_step(clock), _goal(clock), speed)
        if self._live is None:
            tf1.logging.info("%s", event)
        else:
            self._live.show(_bar(event))

    def finish(self, ok: bool) -> None:
        """Take the terminal's line away."""
        if self._live is not None:
            self._live.close()


def _goal(clock: Clock) -> int | None:
    """The number of steps at the end of the run; None where only the end of the input ends it."""
    if clock.steps_per_epoch >= NEVER:
        return None
    epochs = clock.max_epoch - clock.starting_epoch + 1
    return shown_step(clock) - clock.run_step + clock.steps_per_epoch * epochs


def _event(step: int, goal: int | None, speed: float) -> Event:
    """Write the line.

    Args:
        step: steps that are done.
        goal: how many there will be; None if nobody knows.
        speed: steps a second.
    """
    facts = {"event": "progress", "step": step, "of": goal, "steps_per_s": speed}
    if not goal:
        return Event(f"progress: {step} steps, {speed:.3g} steps/s", facts)
    left_s = (goal - step) / speed if speed else math.inf
    percent = 100 * step / goal
    facts |= {"percent": percent, "left_s": left_s if math.isfinite(left_s) else None}
    left = str(timedelta(seconds=round(left_s))) if math.isfinite(left_s) else "unknown time"
    return Event(f"progress: {math.floor(percent)} % ({step} of {goal} steps), {left} left", facts)


def _bar(event: Event) -> str:
    """The line with a bar and the speed, for a terminal."""
    text, percent = event.removeprefix("progress: "), event.facts.get("percent")
    if percent is None:
        return text
    filled = math.floor(_BAR * percent / 100)
    return f"[{'#' * filled}{'-' * (_BAR - filled)}] {text}, {event.facts['steps_per_s']:.3g} steps/s"
