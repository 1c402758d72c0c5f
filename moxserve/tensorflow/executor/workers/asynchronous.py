"""Workers that step apart: each applies its gradients to the variables on the parameter servers as they are."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import Any

from moxserve.tensorflow.executor.cluster import Topology
from moxserve.tensorflow.executor.devices import Devices, GradsAndVars
from moxserve.tensorflow.executor.env import tf, tf1
from moxserve.tensorflow.executor.participants import NEVER, Clock, Participant, StepContext
from moxserve.tensorflow.executor.workers.base import Startup
from moxserve.tensorflow.executor.workers.gathering import Gathering
from moxserve.tensorflow.executor.workers.part import Part
from moxserve.tensorflow.executor.workers.servers import ParameterServerWorkers

__all__ = ["AsynchronousWorkers"]

_BELIEF_S = 1.0
_GATHERING_PAUSE_S = 0.02


class AsynchronousWorkers(ParameterServerWorkers):
    """A worker of an asynchronous job with parameter servers.

    The global step counts the steps of all workers (of the chief only with `chief_inc_global_step`); each worker counts
    its own, in a variable on the parameter servers, so that one which comes back knows what is left of its share.

    Args:
        topology: of the job.
        devices: of this process.
        part: which run and attempt this is.
    """

    def __init__(self, topology: Topology, devices: Devices, part: Part) -> None:
        super().__init__(topology, devices, part)
        self._gatherings: list[Gathering] = []

    def apply(self, optimizer: Any, gradients: GradsAndVars, global_step: Any) -> Any:
        """Apply this worker's gradients to the shared variables."""
        counts = self.topology.is_chief or not self.topology.chief_counts
        applied = optimizer.apply_gradients(gradients, global_step=global_step if counts else None)
        if global_step is None:
            return applied
        self._global_step = global_step
        own = tf.IndexedSlices(tf.constant(1, tf.int64), tf.constant(self.topology.index))
        with tf1.control_dependencies([applied]):
            return self.state.steps.scatter_add(own).op

    def apply_together(self, optimizer: Any, gradients: GradsAndVars, name: str | None = None) -> Any:
        """Apply the mean over all workers, as soon as all have come here."""
        gathering = Gathering(f"gathering{len(self._gatherings)}", self.placement, self.topology)
        self._gatherings.append(gathering)
        self.state.variables += gathering.variables
        self.pause_s = _GATHERING_PAUSE_S
        return gathering.apply(optimizer, gradients)

    def participants(self) -> list[Participant]:
        """One that tells the clock the real global step when somebody is about to look at it."""
        self._belief = _RealStep(self, self._global_step)
        return [*super().participants(), self._belief]

    def agree(self, stop: bool) -> bool:
        """Tell the others to end, too; they look once a second at least."""
        if stop:
            self._belief.end_all()
        return stop

    def watch(self, participants: Sequence[Participant]) -> None:
        """Learn who looks at the clock."""
        self._belief.others = [p for p in participants if p is not self._belief]

    def _led(self, session: Any, global_step: int) -> None:
        for gathering in self._gatherings:
            gathering.led(session)

    def _follow(self, session: Any, startup: Startup) -> None:
        super()._follow(session, startup)
        for gathering in self._gatherings:
            gathering.followed(session)

    def _idle(self, session: Any) -> None:
        for gathering in self._gatherings:
            gathering.idle(session)

    def done_steps(self, global_step: int) -> int:
        """How many of the steps so far were this worker's."""
        return self.steps_before

    def _own_of(self, step: int) -> int:
        return self._shares(step)[self.topology.index]

    def wait_for_others(self, session: Any, clock: Clock) -> None:
        """Be done; the chief, who saves what all have learned, waits for the rest."""
        if clock.stopped():
            return
        self._mark_done(session)
        self._idle(session)
        if self.topology.is_chief:
            self._all_done(session, clock.stopped)


class _RealStep(Participant):
    """Sets the clock to the global step that all workers have brought about; it costs nothing while nobody looks."""

    def __init__(self, workers: AsynchronousWorkers, global_step: Any) -> None:
        self.others: list[Participant] = []
        self._workers = workers
        self._global_step = global_step
        self._args = tf1.train.SessionRunArgs(fetches=[global_step, workers.state.ending])
        self._clock: Clock | None = None
        self._session: Any = None
        self._last_time = math.inf

    def session_ready(self, session: Any, coordinator: Any) -> None:
        """Remember whom to ask at the end."""
        self._session = session

    def end_all(self) -> None:
        """Note for all workers that the training ends."""
        self._workers._set(self._session, self._workers.state.set_ending, 1)

    def train_start(self, clock: Clock) -> None:
        """The clock is right; it will not stay so."""
        self._clock, self._last_time = clock, time.monotonic()

    def next_step(self, clock: Clock) -> int:
        """Whenever another participant is active."""
        return min((p.next_step(clock) for p in self.others), default=NEVER)

    def next_time(self) -> float:
        """Once a second at least: schedules by the global step need to know where it is."""
        return min(self._last_time + _BELIEF_S, *(p.next_time() for p in self.others), math.inf)

    def step_args(self, context: StepContext) -> Any:
        """Ask for the global step, along with the step."""
        return self._args

    def step_values(self, context: StepContext, values: Any) -> None:
        """Set the clock; what was read may be older than this worker's own step. End where another worker says so."""
        clock, real = context.clock, int(values.results[0])
        if values.results[1]:
            context.request_stop()
        counts_own = self._workers.topology.is_chief or not self._workers.topology.chief_counts
        clock.global_step = max(clock.global_step, real) if counts_own else real
        self._last_time = time.monotonic()

    def finish(self, ok: bool) -> None:
        """Before the others end, so that the chief saves what all workers have made of the variables."""
        if ok and self._clock is not None:
            self._workers.wait_for_others(self._session, self._clock)
            self._clock.global_step = int(self._session.run(self._global_step))
