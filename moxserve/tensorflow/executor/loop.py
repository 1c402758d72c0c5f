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
from moxserve.tensorflow.executor.participants import NEVER, Clock, InputEnded, Participant, RunStopped, is_end_of_input
from moxserve.tensorflow.executor.stepper import Stepper

__all__ = ["Loop", "LoopTiming"]


@dataclass(frozen=True)
class LoopTiming:
    """How long the steps took, the first one left out because it pays for start-up.

    Attributes:
        steps: how many steps followed the first.
        wall_s: seconds of all of those together, with everything that participants did between them but evaluations.
        cpu_s: CPU seconds of the process in that time, all threads.
    """

    steps: int = 0
    wall_s: float = 0.0
    cpu_s: float = 0.0

    @property
    def step_s(self) -> float:
        """Seconds a step; 0.0 when there were fewer than two steps."""
        return self.wall_s / self.steps if self.steps else 0.0

    @property
    def step_cpu_s(self) -> float:
        """CPU seconds a step; 0.0 when there were fewer than two steps."""
        return self.cpu_s / self.steps if self.steps else 0.0


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
        self._stopped = clock.stopped = stopped
        # Steps are made without a look at those who do not wait for anything.
        self._ready = [p.ready for p in participants if type(p).ready is not Participant.ready]
        self._mark: tuple[int, float, float] | None = None
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
            self._read_time()
            ok = True
        finally:
            self._finish(ok)
        return reason

    def _first_step_done(self) -> None:
        self._mark = (self._clock.run_step, *self._clock.stopwatch())

    def _read_time(self) -> None:
        if self._mark is not None:
            (step, wall, cpu), now = self._mark, self._clock.stopwatch()
            self.timing = LoopTiming(self._clock.run_step - step, now[0] - wall, now[1] - cpu)

    def _finish(self, ok: bool) -> None:
        if ok:
            for participant in self._participants:
                try:
                    participant.finish(ok)
                except RunStopped:
                    ok = False  # what the others would save is out of reach
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
                for ready in self._ready:
                    ready(clock)
                clock.local_step += 1
                stop = self._stepper.step(self._active())
                if self._mark is None:
                    self._first_step_done()
                if stop:
                    return "request_stop"
        except InputEnded:
            return "end_of_input"
        except RunStopped:
            return "signal"
        except tf.errors.OpError as error:
            if self._is_stopped(error):
                return "signal"
            if not isinstance(error, tf.errors.OutOfRangeError) or not is_end_of_input(error):
                raise
            return "end_of_input"
        return None

    def _is_stopped(self, error: Any) -> bool:
        """Whether somebody broke a step off because the run is to end; raises what else the cause was."""
        for participant in self._participants:
            cause = participant.cause(error)
            if isinstance(cause, RunStopped):
                return True
            if cause is not None:
                raise cause from None
        return False

    def _active(self) -> list[Participant]:
        step, now = self._clock.run_step, time.monotonic()
        return [p for p in self._participants if p.next_step(self._clock) <= step or p.next_time() <= now]

    def _quiet_steps(self, end: int) -> int:
        """Run the steps up to the next one that somebody wants; tells how many there were."""
        clock, stopped, now, quiet = self._clock, self._stopped, time.monotonic, self._stepper.quiet
        readies = self._ready
        clock.woken = False  # before they are asked: who wakes us after this is not missed
        until = min((p.next_step(clock) for p in self._participants), default=NEVER)
        deadline = min((p.next_time() for p in self._participants), default=math.inf)
        # The first step is made alone, so that it can be left out of the timing.
        steps = min(until, end) - clock.run_step if self._mark is not None else min(until - clock.run_step, 1)
        if steps <= 0 or now() >= deadline:
            return 0
        done = 0
        try:
            while done < steps and not clock.woken and not stopped() and now() < deadline:
                for ready in readies:
                    ready(clock)
                quiet()
                done += 1
        finally:  # also when the input ends in the middle
            clock.advance(done)
            clock.local_step += done
        if self._mark is None and done:
            self._first_step_done()
        return done


def _log_cleanup_error(participant: Participant, error: Exception) -> None:
    from moxserve.tensorflow.executor.env import tf1

    tf1.logging.error("%s failed to clean up after an error: %s", type(participant).__name__, error)
