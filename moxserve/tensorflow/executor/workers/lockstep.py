"""Workers that make each step together, each with a batch of its own: as one device with a batch as large as all.

What they tell each other travels with the gradients. Whoever leaves the loop before the goal is reached (its input has
ended, one of its hooks asks for it, a signal came) makes one last step without gradients and says why; the others, who
make that step with theirs, learn of it and leave, too. So nobody is left waiting, and all end at the same step.
"""

from __future__ import annotations

import signal
import threading
from typing import Any

from moxserve.tensorflow.executor.cluster import Topology
from moxserve.tensorflow.executor.env import tf1
from moxserve.tensorflow.executor.participants import Clock, Participant, StepContext
from moxserve.tensorflow.executor.workers.bundles import END_OF_INPUT, REASONS, REQUEST_STOP, SIGNAL
from moxserve.tensorflow.executor.workers.peers import Reminder, members, unreachable

__all__ = ["Lockstep", "Member"]

_LOOK_S = 1.0


class Lockstep:
    """What the kinds of workers that step together have in common; mixed into `Workers`.

    Attributes:
        goal: global step that the run ends at; 0 for none.
        left: reasons to leave that were told so far, bits of `bundles.REASONS`.
    """

    goal: int = 0
    left: int = 0

    def news(self) -> Any:
        """A tensor `[2] int64`, fetched with each step: the global step after it, and reasons to leave."""
        raise NotImplementedError

    def say_farewell(self, session: Any, reason: int) -> tuple[int, int]:
        """Make the last step without gradients; returns the news."""
        raise NotImplementedError

    def apply_together(self, optimizer: Any, gradients: Any, name: str | None = None) -> Any:
        """Apply: the gradients are the mean over all workers already, in each step."""
        return optimizer.apply_gradients(gradients, name=name)

    def ending(self, reason: str, signum: int) -> tuple[str, int]:
        """Why the run ended, for all workers the same."""
        told = next((name for bit, name in REASONS.items() if self.left & bit), None)
        if told is None:
            return ("max_steps" if reason == "request_stop" else reason), 0
        return told, (signum or signal.SIGTERM) if told == "signal" else 0


class Member(Participant):
    """Keeps one worker in step with the others; active at every step.

    Args:
        workers: this process's.
    """

    def __init__(self, workers: Any) -> None:
        self._workers = workers
        self._args = tf1.train.SessionRunArgs(fetches=workers.news())
        self._clock: Clock | None = None
        self._session: Any = None
        self._asked = False
        self._watch = _Watch(workers.topology)

    def session_ready(self, session: Any, coordinator: Any) -> None:
        """Remember the session."""
        self._session = session

    def train_start(self, clock: Clock) -> None:
        """The loop begins."""
        self._clock = clock
        self._watch.start()

    def step_args(self, context: StepContext) -> Any:
        """Ask for the news, along with the step."""
        return self._args

    def step_values(self, context: StepContext, values: Any) -> None:
        """Set the clock; leave if somebody does, or the goal is reached."""
        self._watch.step()
        self._heard(context.clock, *map(int, values.results))
        if self._over(context.clock):
            context.request_stop()

    def step_done(self, context: StepContext) -> None:
        """Notice whether somebody else asked for the end."""
        self._asked = context.stop_requested

    def _heard(self, clock: Clock, global_step: int, left: int) -> None:
        clock.global_step = global_step
        self._workers.left |= left

    def _over(self, clock: Clock) -> bool:
        goal = self._workers.goal
        return bool(self._workers.left) or (goal > 0 and clock.global_step >= goal)

    def finish(self, ok: bool) -> None:
        """Tell the others why this worker leaves, where they do not know it yet; before anybody saves."""
        self._watch.end()
        clock = self._clock
        if not ok or clock is None or self._over(clock):
            return
        reason = SIGNAL if clock.stopped() else REQUEST_STOP if self._asked else END_OF_INPUT
        self._heard(clock, *self._workers.say_farewell(self._session, reason))
        self._workers.left |= reason


class _Watch:
    """Says for whom a step waits, when it takes long because a process does not answer.

    Args:
        topology: of the job.
    """

    def __init__(self, topology: Topology) -> None:
        everybody = members(topology, "worker", *(() if topology.without_servers else ("ps",)))
        self._others = [peer for peer in everybody if (peer.job, peer.index) != (topology.job, topology.index)]
        self._step = self._seen = 0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="moxserve-workers", daemon=True)

    def start(self) -> None:
        """The loop begins."""
        self._thread.start()

    def step(self) -> None:
        """A step is done."""
        self._step += 1

    def end(self) -> None:
        """The loop is over."""
        self._ended.set()

    def _run(self) -> None:
        reminder = Reminder()
        while not self._ended.wait(_LOOK_S):
            if self._step != self._seen:
                self._seen, reminder = self._step, Reminder()
            elif reminder.due() and (gone := unreachable(self._others)):
                tf1.logging.warning(
                    "no step for %d s: %s does not answer; start it again",
                    reminder.waited_s,
                    ", ".join(map(str, gone)),
                )
