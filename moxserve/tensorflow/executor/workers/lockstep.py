"""Workers that make each step together, each with a batch of its own: as one device with a batch as large as all.

What they tell each other travels with the gradients. Whoever leaves the loop before the goal is reached (its input has
ended, one of its hooks asks for it, a signal came) makes one last step without gradients and says why; the others, who
make that step with theirs, learn of it and leave, too. So nobody is left waiting, and all end at the same step.

Where a process is missing, no step comes to an end. Who got a signal waits a few seconds for it, then breaks the step
(see `wire`) and leaves without it: the chief saves what the last whole step has left, where that is within reach.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from typing import Any

from moxserve.tensorflow.executor.cluster import Topology
from moxserve.tensorflow.executor.env import tf, tf1
from moxserve.tensorflow.executor.participants import Clock, Participant, RunStopped, StepContext
from moxserve.tensorflow.executor.workers.bundles import END_OF_INPUT, REASONS, REQUEST_STOP, SIGNAL
from moxserve.tensorflow.executor.workers.part import is_lost
from moxserve.tensorflow.executor.workers.peers import Reminder, members, unreachable
from moxserve.tensorflow.executor.workers.wire import Wire

__all__ = ["Lockstep", "Member"]

_LOOK_S = 1.0
# How long a signal waits for a step to end: a few times what the last one took, within these bounds.
_PATIENCE_S, _LONGEST_PATIENCE_S, _PATIENCE_STEPS = 5.0, 15.0, 3
_REACH_MS = 5000


class Lockstep:
    """What the kinds of workers that step together have in common; mixed into `Workers`.

    Attributes:
        goal: global step that the run ends at; 0 for none.
        left: reasons to leave that were told so far, bits of `bundles.REASONS`.
        wire: what breaks a step; made with the participants.
        apart: this worker has left without the others, for whom it must not wait any more.
        out_of_reach: the variables are, too.
        lost: what told that another worker is gone, where this one has all that is to be saved; it ends the run when
            that is done.
    """

    goal: int = 0
    left: int = 0
    wire: Wire
    apart: bool = False
    out_of_reach: bool = False
    lost: Exception | None = None
    _abandoned: threading.Timer | None = None

    def news(self) -> Any:
        """A tensor `[2] int64`, fetched with each step: the global step after it, and reasons to leave."""
        raise NotImplementedError

    def say_farewell(self, session: Any, reason: int) -> tuple[int, int]:
        """Make the last step without gradients; returns the news."""
        raise NotImplementedError

    def break_off(self, session: Any) -> int:
        """Leave in the middle of a step, and tell those that it can be told; returns the global step.

        Raises:
            OpError: the variables are out of reach.
        """
        within = tf1.RunOptions(timeout_in_ms=_REACH_MS)
        return int(session.run(tf1.train.get_global_step(session.graph), options=within))

    @property
    def has_all(self) -> bool:
        """Whether this worker can save what the last whole step has left, when another one is gone."""
        return False

    def told_to_end(self, session: Any) -> bool:
        """Whether another worker has broken off, and nobody else can tell this one."""
        return False

    def apply_together(self, optimizer: Any, gradients: Any, name: str | None = None) -> Any:
        """Apply: the gradients are the mean over all workers already, in each step."""
        return optimizer.apply_gradients(gradients, name=name)

    def ending(self, reason: str, signum: int) -> tuple[str, int]:
        """Why the run ended, for all workers the same.

        Raises:
            OpError: another worker is gone.
        """
        if self.lost is not None:
            raise self.lost
        told = next((name for bit, name in REASONS.items() if self.left & bit), None)
        if told is None:
            return ("max_steps" if reason == "request_stop" else reason), 0
        number = (signum or signal.SIGTERM) if told == "signal" else 0
        if self.out_of_reach:
            # A session with a process that does not answer may never be closed.
            self._abandoned = threading.Timer(_REACH_MS / 1000, os._exit, (128 + number,))
            self._abandoned.daemon = True
            self._abandoned.start()
        return told, number

    def closed(self) -> None:
        """The session is closed: this process ends like any other."""
        if self._abandoned is not None:
            self._abandoned.cancel()


class Member(Participant):
    """Keeps one worker in step with the others; active at every step.

    Args:
        workers: this process's.
    """

    def __init__(self, workers: Any) -> None:
        self._workers = workers
        news = workers.news()
        self._args = tf1.train.SessionRunArgs(fetches=[news, workers.wire.beside([news])])
        self._clock: Clock | None = None
        self._session: Any = None
        self._asked = False
        self._watch = _Watch(workers)

    def session_ready(self, session: Any, coordinator: Any) -> None:
        """Remember the session."""
        self._session = self._workers.wire.session = session

    def train_start(self, clock: Clock) -> None:
        """The loop begins."""
        self._clock = clock
        self._watch.start(clock)

    def step_args(self, context: StepContext) -> Any:
        """Ask for the news, along with the step."""
        return self._args

    def step_values(self, context: StepContext, values: Any) -> None:
        """Set the clock; leave if somebody does, or the goal is reached."""
        self._watch.step()
        self._heard(context.clock, *map(int, values.results[0]))
        if self._over(context.clock):
            context.request_stop()

    def step_done(self, context: StepContext) -> None:
        """Notice whether somebody else asked for the end."""
        self._asked = context.stop_requested

    def cause(self, error: Exception) -> BaseException | None:
        """A step that was broken is no failure; nor is one that others broke, where this worker was to end anyway, or
        can save what there is.
        """
        stopped = self._clock is not None and self._clock.stopped()
        lost = is_lost(error)
        broken = lost or isinstance(error, tf.errors.CancelledError)
        if not self._workers.wire.is_cut and not (stopped and broken):
            if not lost or not self._workers.has_all:
                return None
            self._workers.lost = error
        self._workers.apart = True
        return RunStopped()

    def _heard(self, clock: Clock, global_step: int, left: int) -> None:
        clock.global_step = global_step
        self._workers.left |= left

    def _over(self, clock: Clock) -> bool:
        goal = self._workers.goal
        return bool(self._workers.left) or (goal > 0 and clock.global_step >= goal)

    def finish(self, ok: bool) -> None:
        """Tell the others why this worker leaves, where they do not know it yet; before anybody saves.

        Raises:
            RunStopped: this worker leaves without the others, and what they have in common is out of reach.
        """
        clock = self._clock
        try:
            if ok and clock is not None and not self._over(clock):
                self._leave(clock)
        finally:
            self._watch.end()

    def _leave(self, clock: Clock) -> None:
        if not self._workers.apart:
            reason = SIGNAL if clock.stopped() else REQUEST_STOP if self._asked else END_OF_INPUT
            try:
                self._heard(clock, *self._workers.say_farewell(self._session, reason))
                self._workers.left |= reason
                return
            except tf.errors.OpError as error:
                if self.cause(error) is None:
                    raise
        self._workers.left |= SIGNAL
        try:
            clock.global_step = self._workers.break_off(self._session)
        except tf.errors.OpError:
            self._workers.out_of_reach = True
            tf1.logging.warning("the variables are out of reach: what came after the last checkpoint is lost")
            raise RunStopped from None


class _Watch:
    """Says for whom a step waits, when it takes long because a process does not answer; breaks it after a signal.

    Args:
        workers: this process's.
    """

    def __init__(self, workers: Any) -> None:
        topology: Topology = workers.topology
        everybody = members(topology, "worker", *(() if topology.without_servers else ("ps",)))
        self._others = [peer for peer in everybody if (peer.job, peer.index) != (topology.job, topology.index)]
        self._workers = workers
        self._clock: Clock | None = None
        self._step = self._seen = 0
        self._at = self._took_s = self._stopped_at = 0.0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="moxserve-workers", daemon=True)

    def start(self, clock: Clock) -> None:
        """The loop begins."""
        self._clock, self._at = clock, time.monotonic()
        self._thread.start()

    def step(self) -> None:
        """A step is done."""
        now = time.monotonic()
        self._took_s, self._at = now - self._at, now
        self._step += 1

    def end(self) -> None:
        """The loop is over."""
        self._ended.set()

    def _run(self) -> None:
        reminder = Reminder()
        while not self._ended.wait(_LOOK_S):
            if self._is_hopeless():
                tf1.logging.warning("another process does not make the step: leaving without it")
                self._workers.wire.cut()
                return
            if self._step != self._seen:
                self._seen, reminder = self._step, Reminder()
            elif reminder.due() and (gone := unreachable(self._others)):
                tf1.logging.warning(
                    "no step for %d s: %s does not answer; start it again",
                    reminder.waited_s,
                    ", ".join(map(str, gone)),
                )

    def _is_hopeless(self) -> bool:
        """Whether this worker is to end, and the step has taken too long since then."""
        now, patience_s = time.monotonic(), min(max(_PATIENCE_S, _PATIENCE_STEPS * self._took_s), _LONGEST_PATIENCE_S)
        if self._clock is not None and self._clock.stopped():
            self._stopped_at = self._stopped_at or now
            return now - max(self._stopped_at, self._at) > patience_s
        return now - self._at > patience_s and bool(self._workers.told_to_end(self._workers.wire.session))
