"""The loop: participants, a clock and a stepper until there is a reason to stop. See `participants` for the order of
points.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from moxserve.tensorflow.executor.env import tf
from moxserve.tensorflow.executor.participants import NEVER, Clock, Participant
from moxserve.tensorflow.executor.stepper import Stepper

__all__ = ["Loop", "LoopTiming"]


@dataclass
class LoopTiming:
    """How long the steps took.

    Attributes:
        first_step_s: seconds of the first step, which pays for start-up.
        later_steps: how many steps followed.
        later_s: seconds of all of those together, with everything that participants did between them.
    """

    first_step_s: float = 0.0
    later_steps: int = 0
    later_s: float = 0.0

    @property
    def step_s(self) -> float:
        """Seconds a step, the first one left out; 0.0 when there were fewer than two."""
        return self.later_s / self.later_steps if self.later_steps else 0.0


class Loop:
    """Runs steps and calls the participants at their points.

    Args:
        stepper: runs single steps.
        participants: in the order in which they are called.
        clock: the stepper's clock; its epochs bound the run.
        stopped: asked between steps; True ends the run as a signal does.
    """

    def __init__(
        self,
        stepper: Stepper,
        participants: Sequence[Participant],
        clock: Clock,
        stopped: Callable[[], bool] = lambda: False,
    ) -> None:
        self._stepper = stepper
        self._participants = list(participants)
        self._clock = clock
        self._stopped = stopped
        self.timing = LoopTiming()

    def run(self) -> str:
        """Run until the last epoch ends, the input ends, a participant asks, or `stopped` says so.

        Returns:
            `max_steps`, `end_of_input`, `request_stop` or `signal`.
        """
        ok = False
        self._clock.epoch_num = self._clock.starting_epoch - 1
        try:
            self._call("train_start")
            reason = self._epochs()
            ok = True
        finally:
            self._finish(ok)
        return reason

    def _finish(self, ok: bool) -> None:
        if ok:
            for participant in self._participants:
                participant.finish(True)
            return
        for (
            participant
        ) in self._participants:  # the error is on its way: nobody's clean-up may hide it or skip the others'
            try:
                participant.finish(False)
            except Exception as error:  # noqa: BLE001
                _log_cleanup_error(participant, error)

    def _call(self, point: str) -> None:
        for participant in self._participants:
            getattr(participant, point)(self._clock)

    def _epochs(self) -> str:
        clock = self._clock
        clock.started_at = time.monotonic()
        for epoch in range(clock.starting_epoch, clock.max_epoch + 1):
            clock.epoch_num, clock.local_step = epoch, -1
            self._call("epoch_start")
            reason = self._steps(clock.run_step + clock.steps_per_epoch)
            if reason is not None:
                return reason
            self._call("epoch_end")
            self._call("epoch_trigger")
        return "max_steps"

    def _steps(self, end: int) -> str | None:
        """Run the steps of one epoch; tells why the run is over, None when only the epoch is."""
        clock = self._clock
        try:
            while clock.run_step < end:
                if self._stopped():
                    return "signal"
                if self._quiet_steps(end):
                    continue
                clock.local_step += 1
                began = time.perf_counter()
                stop = self._stepper.step(self._active())
                self._time(began, 1)
                if stop:
                    return "request_stop"
        except tf.errors.OutOfRangeError as error:
            if not _is_end_of_input(error):
                raise
            return "end_of_input"
        return None

    def _active(self) -> list[Participant]:
        step, now = self._clock.run_step, time.monotonic()
        return [p for p in self._participants if p.next_step(self._clock) <= step or p.next_time() <= now]

    def _quiet_steps(self, end: int) -> int:
        """Run the steps up to the next one that somebody wants; tells how many there were."""
        clock, stopped, now, quiet = self._clock, self._stopped, time.monotonic, self._stepper.quiet
        until = min((p.next_step(clock) for p in self._participants), default=NEVER)
        deadline = min((p.next_time() for p in self._participants), default=math.inf)
        steps = min(until, end) - clock.run_step
        if steps <= 0 or now() >= deadline:
            return 0
        done = 0
        began = time.perf_counter()
        try:
            while done < steps and not stopped() and now() < deadline:
                quiet()
                done += 1
        finally:  # also when the input ends in the middle
            clock.advance(done)
            clock.local_step += done
            self._time(began, done)
        return done

    def _time(self, began: float, steps: int) -> None:
        """Account for steps that are done; of a first stretch of several, one average step counts as the first."""
        seconds = time.perf_counter() - began
        if self._clock.run_step == steps and steps > 0 and self.timing.first_step_s == 0.0:
            self.timing.first_step_s = seconds / steps
            self.timing.later_s += seconds - self.timing.first_step_s
            self.timing.later_steps += steps - 1
            return
        self.timing.later_s += seconds
        self.timing.later_steps += steps


def _is_end_of_input(error: Any) -> bool:
    """Tell an exhausted iterator or a closed queue from any other OutOfRangeError."""
    message = str(error.message)
    return "End of sequence" in message or "insufficient elements" in message


def _log_cleanup_error(participant: Participant, error: Exception) -> None:
    from moxserve.tensorflow.executor.env import tf1

    tf1.logging.error("%s failed to clean up after an error: %s", type(participant).__name__, error)
