"""Who takes part in the loop, and when: Clock, Every, Participant, and the adapter for SessionRunHooks.

The points of a run, in order. At each point the participants are called in the order of their list:

    begin                the graph is open, no session
    session_ready        the graph is frozen, variables hold their values
    train_start
      epoch_start
        ready            waits for what the step needs; the only point that quiet steps have, too
        step_args        may ask for fetches and feeds that ride along with the step
        (the step; the clock counts it)
        step_values      gets what was fetched
        step_done        after all participants got their values
      epoch_end
      epoch_trigger
    finish(ok)           always, also after an error (ok is False then)

A participant that needs no point at most steps says so with `next_step`: idle steps cost nothing. When a step fails,
or the input ends, `cause` is asked what really happened.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from moxserve.errors import ModelSpecError, UsageError, first_line

__all__ = [
    "NEVER",
    "Clock",
    "Every",
    "HookParticipant",
    "InputEnded",
    "InterStopped",
    "Participant",
    "RunStopped",
    "StepContext",
    "is_end_of_input",
]

NEVER = 1 << 62


@dataclass
class Clock:
    """Where the run stands.

    Attributes:
        global_step: steps of the model's whole life, also of earlier runs.
        run_step: steps that this run has finished; also the index of the step that is about to run.
        local_step: index of the current step within its epoch; -1 before the first.
        epoch_num: number of the current epoch; `starting_epoch - 1` before the first.
        steps_per_epoch: length of an epoch; `NEVER` when only the end of the input ends it.
        starting_epoch: number of the first epoch of this run.
        max_epoch: number of the last epoch.
        counts_globally: False in EVAL and PREDICT, whose steps are none of the model's life.
        started_at: `time.monotonic()` when the first step began.
        aside_s: wall and CPU seconds spent in `aside` so far.
        waited_s: seconds that steps after the first waited for their input before they began.
        stopped: whether the run is to end; for whoever waits.
        woken: set by somebody who wants a step at once that his schedule did not foresee (in a signal handler, say):
            a stretch of quiet steps ends, and all are asked for their next step again.
    """

    global_step: int = 0
    run_step: int = 0
    local_step: int = -1
    epoch_num: int = 0
    steps_per_epoch: int = NEVER
    starting_epoch: int = 1
    max_epoch: int = 1
    counts_globally: bool = True
    started_at: float = field(default_factory=time.monotonic)
    aside_s: tuple[float, float] = (0.0, 0.0)
    waited_s: float = 0.0
    stopped: Callable[[], bool] = lambda: False
    woken: bool = False

    def count(self) -> None:
        """A step is done."""
        self.advance(1)

    def advance(self, steps: int) -> None:
        """Some steps are done."""
        self.run_step += steps
        if self.counts_globally:
            self.global_step += steps

    def stopwatch(self) -> tuple[float, float]:
        """Wall and CPU seconds since any point in the past, those spent `aside` left out."""
        return time.perf_counter() - self.aside_s[0], time.process_time() - self.aside_s[1]

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Time inside is not counted as time of the steps: an evaluation in the middle of training."""
        wall, cpu = self.stopwatch()
        try:
            yield
        finally:
            now = self.stopwatch()
            self.aside_s = (self.aside_s[0] + now[0] - wall, self.aside_s[1] + now[1] - cpu)


class InterStopped(Exception):  # noqa: N818 - no error: nothing went wrong
    """A signal came in the middle of an intermediate evaluation, whose result nobody should judge."""


class InputEnded(Exception):  # noqa: N818 - no error: a clean end
    """The input has nothing more to give."""


class RunStopped(Exception):  # noqa: N818 - no error: somebody asked for it
    """The run is to end, said to whoever waited for the next step's input."""


def is_end_of_input(error: Any) -> bool:
    """Tell an exhausted iterator or a closed queue from any other error."""
    message = str(getattr(error, "message", ""))
    return "End of sequence" in message or "insufficient elements" in message


@dataclass(frozen=True)
class Every:
    """A schedule in steps or in seconds: the one type that all built-in participants use.

    Attributes:
        steps: period in steps; None for none.
        secs: period in seconds; None for none. Wins over `steps` when both are given.
    """

    steps: int | None = None
    secs: float | None = None

    def __post_init__(self) -> None:
        """Check the periods.

        Raises:
            UsageError: a period is not positive.
        """
        for name, value in (("steps", self.steps), ("secs", self.secs)):
            if value is not None and not value > 0:
                raise UsageError(f"a schedule needs a positive number of {name}, not {value!r}")

    def next_step(self, position: int, phase: int = 0) -> int:
        """The smallest step >= `position` that is a multiple of the period, shifted by `phase`; NEVER by seconds."""
        if self.steps is None or self.secs is not None:
            return NEVER
        return position + (phase - position) % self.steps

    def next_time(self, last: float) -> float:
        """When the next turn is due after one at `last` (`time.monotonic()`); infinity by steps."""
        return math.inf if self.secs is None else last + self.secs


@dataclass
class StepContext:
    """What a participant may use around one step.

    Attributes:
        session: the session, without any hooks.
        clock: where the run stands.
        stop_requested: set by `request_stop`.
        original_args: what the step runs by itself, as SessionRunArgs.
    """

    session: Any
    clock: Clock
    original_args: Any = None
    stop_requested: bool = False

    def request_stop(self) -> None:
        """Make this step the last one."""
        self.stop_requested = True


class Participant:
    """Someone who takes part in the loop. Every point does nothing here; override what you need."""

    def begin(self) -> None:
        """The graph is open, there is no session: add operations here."""

    def session_ready(self, session: Any, coordinator: Any) -> None:
        """The graph is frozen; variables are initialised and restored."""

    def train_start(self, clock: Clock) -> None:
        """Before the first epoch."""

    def epoch_start(self, clock: Clock) -> None:
        """Before the first step of an epoch."""

    def ready(self, clock: Clock) -> None:
        """Just before each step, quiet ones included: wait for what it needs. Keep it cheap.

        Raises:
            InputEnded: there is nothing more; the run ends cleanly.
            RunStopped: `clock.stopped()` became true.
        """

    def step_args(self, context: StepContext) -> Any:
        """Before a step: SessionRunArgs for what should run along with it, or None."""

    def step_values(self, context: StepContext, values: Any) -> None:
        """After a step, which the clock has counted: SessionRunValues of what was asked for."""

    def step_done(self, context: StepContext) -> None:
        """After every participant got its values."""

    def epoch_end(self, clock: Clock) -> None:
        """After the last step of an epoch; keep it fast."""

    def epoch_trigger(self, clock: Clock) -> None:
        """After `epoch_end` of all."""

    def next_step(self, clock: Clock) -> int:
        """The earliest `run_step` at which the three step points matter; the default is the very next one."""
        return clock.run_step

    def next_time(self) -> float:
        """`time.monotonic()` at which the step points matter, whatever the step; the default is never."""
        return math.inf

    def cause(self, error: Exception) -> BaseException | None:
        """The runtime says that a step failed, or that the input ended: what really happened; None if nobody knows.

        RunStopped: the step was given up because the run is to end, and what the steps before it did counts.
        """
        return None

    def finish(self, ok: bool) -> None:
        """The loop is over. `ok` is False after an error.

        Raises:
            RunStopped: the state of the model is out of reach; for those that follow `ok` is False.
        """


class HookParticipant(Participant):
    """A SessionRunHook in the loop: active at every step unless its `next_active_step` says otherwise, `end` only after
    a run that did not fail.

    Args:
        hook: the user's hook.
        agree: takes whether the hook asked after a step to stop, and tells whether this process stops; None: it does.
        counts_globally: the hook is asked with global steps, which are the same on all workers that step together.
    """

    def __init__(
        self, hook: Any, agree: Callable[[bool], bool] | None = None, *, counts_globally: bool = False
    ) -> None:
        self.hook = hook
        self._agree = agree
        self._session: Any = None
        self._clock: Clock | None = None
        self._ask = getattr(hook, "next_active_step", None)
        self._globally = counts_globally or getattr(hook, "counts_global_steps", False)
        self._towers = getattr(hook, "towers", None)  # gets the values of several devices
        self._asked: Any = None

    def next_step(self, clock: Clock) -> int:
        """Ask `hook.next_active_step`; the very next one for a plain SessionRunHook."""
        if self._ask is None:
            return clock.run_step
        before = clock.global_step - clock.run_step if self._globally and clock.counts_globally else 0
        try:
            return max(clock.run_step, int(self._ask(clock.run_step + before)) - before)
        except Exception as error:
            self._tell(error, "next_active_step")
            raise

    def begin(self) -> None:
        """Call `hook.begin`."""
        with self._telling("begin"):
            self.hook.begin()
            if self._towers is not None:
                self._towers.begin()

    def session_ready(self, session: Any, coordinator: Any) -> None:
        """Call `hook.after_create_session`."""
        self._session = session
        with self._telling("after_create_session"):
            self.hook.after_create_session(session, coordinator)

    def train_start(self, clock: Clock) -> None:
        """Remember the clock, to tell the step of an error."""
        self._clock = clock

    def step_args(self, context: StepContext) -> Any:
        """Call `hook.before_run`."""
        self._asked = None
        try:  # no context manager: this may be every step
            self._asked = self.hook.before_run(context)
            if self._asked is not None and not hasattr(self._asked, "fetches"):
                raise ModelSpecError(
                    f"before_run() of {type(self.hook).__name__} returned a {type(self._asked).__name__}",
                    hint="return tf.train.SessionRunArgs(fetches, feed_dict=...), or None",
                )
            return self._asked if self._towers is None else self._towers.expand(self._asked)
        except InterStopped:
            return None
        except Exception as error:
            self._tell(error, "before_run")
            raise

    def step_values(self, context: StepContext, values: Any) -> None:
        """Call `hook.after_run`; a signal in an evaluation ends the hook's work, and the loop sees the signal next."""
        if self._towers is not None:
            values = self._towers.reduce(values, self._asked)
        others_asked = context.stop_requested
        if self._agree is not None:
            context.stop_requested = False
        try:
            self.hook.after_run(context, values)
        except InterStopped:
            pass
        except Exception as error:
            self._tell(error, "after_run")
            raise
        if self._agree is not None:
            context.stop_requested = others_asked or (context.stop_requested and self._agree(True))

    def finish(self, ok: bool) -> None:
        """Call `hook.end`, as MonitoredSession does: not after an error."""
        if ok and self._session is not None:
            with suppress(InterStopped), self._telling("end"):
                self.hook.end(self._session)

    @contextmanager
    def _telling(self, method: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            self._tell(error, method)
            raise

    def _tell(self, error: Exception, method: str) -> None:
        """Say of an error which hook it is from, and at which step; not of a clean end."""
        if isinstance(error, (InterStopped, InputEnded, RunStopped)) or is_end_of_input(error):
            return
        clock = self._clock
        when = "" if clock is None else f" at step {clock.run_step} (global step {clock.global_step})"
        where = f"hook {type(self.hook).__name__} failed in {method}(){when}"
        logging.getLogger("tensorflow").error("%s: %s: %s", where, type(error).__name__, first_line(error))
        if hasattr(error, "add_note"):  # Python 3.11
            error.add_note(where)
