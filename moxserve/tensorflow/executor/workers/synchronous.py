"""Workers that make each step together through parameter servers.

Rounds. Each worker has an accumulator for each bundle of gradients on each parameter server, and pushes into it, once a
round. The chief takes one contribution of every worker, applies their mean, which never leaves the parameter servers,
counts the round and hands each worker a token: the next round's number, the global step, reasons to leave. A worker
goes on when it has its token.

An accumulator refuses what is pushed for a round that is over. So a worker that died and came back, and does not know
whether its gradients were taken, may push again: the mean of a round holds each worker's contribution with the same
weight, always. A chief that came back drops what is in the accumulators and opens a round that nobody knows yet.
Rounds are numbered by the clock in microseconds, so that they grow from chief to chief.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from moxserve.tensorflow.executor.cluster import Topology
from moxserve.tensorflow.executor.devices import Devices, GradsAndVars
from moxserve.tensorflow.executor.env import tf, tf1
from moxserve.tensorflow.executor.participants import NEVER, Participant
from moxserve.tensorflow.executor.workers.base import Startup
from moxserve.tensorflow.executor.workers.bundles import SIGNAL, farewell, leaving, split, told
from moxserve.tensorflow.executor.workers.lockstep import Lockstep, Member
from moxserve.tensorflow.executor.workers.part import Part
from moxserve.tensorflow.executor.workers.rounds import Meeting, Rounds, new_number
from moxserve.tensorflow.executor.workers.servers import ParameterServerWorkers
from moxserve.tensorflow.executor.workers.wire import Wire

__all__ = ["SynchronousWorkers"]

_LOOK_MS = 2000


class SynchronousWorkers(Lockstep, ParameterServerWorkers):
    """A worker of a synchronous job with parameter servers.

    Args:
        topology: of the job.
        devices: of this process.
        part: which run and attempt this is.
    """

    def __init__(self, topology: Topology, devices: Devices, part: Part) -> None:
        super().__init__(topology, devices, part)
        self.updates_state = topology.is_chief
        self._meetings: list[Meeting] = []
        self._updates: list[Any] = []

    # -- while the graph is built

    def apply(self, optimizer: Any, gradients: GradsAndVars, global_step: Any) -> Any:
        """Push this worker's gradients. The chief applies the mean of all; with the last loss of a step it ends the
        round, for which the others wait.
        """
        places = len(self.placement.servers)
        bundles, sparse = split(gradients, self.placement.server_of, places, keep_sparse=True)
        # What may be fed instead of the gradients must not wait for them: only the bundles themselves do.
        with tf1.control_dependencies(None):
            if not self._meetings:
                self._rounds = Rounds(self.placement, self.topology, "steps")
                self.state.variables.append(self._rounds.number)
            meeting = Meeting(f"loss{len(self._meetings)}", bundles, sparse, self.placement, self.topology)
            self._meetings.append(meeting)
            pushed = meeting.push(self._rounds.local.read_value())
            if self.topology.is_chief:
                self._updates.append(self._lead_step(optimizer, meeting, global_step))
            elif global_step is not None:
                followed, self._news = self._rounds.follow()
                self._updates.append(followed)
            return tf.group(*pushed, *self._updates[-1:])

    def _lead_step(self, optimizer: Any, meeting: Meeting, global_step: Any) -> Any:
        """Apply the mean, after those of earlier losses; the sums stay on the parameter servers."""
        with tf1.control_dependencies(self._updates), tf1.device(self.placement.servers[0]):
            applied = optimizer.apply_gradients(meeting.means(), global_step=global_step)
            if global_step is None:
                return applied
            with tf1.control_dependencies([applied]):
                ended, self._news = self._rounds.close(global_step.read_value(), leaving(meeting.header))
            self._left = tf1.placeholder(tf.int64, [])
            with tf1.control_dependencies(None):
                self._unapplied = self._rounds.close(global_step.read_value(), self._left)
            return ended

    def participants(self) -> list[Participant]:
        """One that keeps this worker in step."""
        self.wire = Wire()
        if self.topology.is_chief:
            self._all_taken = self.wire.beside([total for meeting in self._meetings for total in meeting.totals])
        else:
            self._all_taken = self.wire.beside([self._news])
        return [*super().participants(), Member(self)]

    def news(self) -> Any:
        """The global step after the step, and reasons to leave."""
        return self._news

    # -- while the session is open

    def _led(self, session: Any, global_step: int) -> None:
        self._set(session, self.state.set_ending, 0)
        number = new_number()
        for meeting in self._meetings:
            meeting.drain(session, number)
        self._rounds.restart(session, number, global_step)

    def _follow(self, session: Any, startup: Startup) -> None:
        super()._follow(session, startup)
        self._rounds.join(session)

    def steps_to_make(self, goal: int, global_step: int) -> int:
        """The chief counts; the others stop when the global step that it tells has reached the goal."""
        self.goal = goal
        return max(goal - global_step, 0) if self.topology.is_chief or global_step >= goal else NEVER

    def break_off(self, session: Any) -> int:
        """The chief lets all others go, whenever they ask; another worker leaves word for the chief."""
        step = super().break_off(session)
        if self.topology.is_chief:
            self._rounds.dismiss(session, step, SIGNAL)
        else:
            self._set(session, self.state.set_ending, 1)
        return step

    def told_to_end(self, session: Any) -> bool:
        """Whether a worker has left word."""
        if not self.topology.is_chief:
            return False
        try:
            return bool(session.run(self.state.ending, options=tf1.RunOptions(timeout_in_ms=_LOOK_MS)))
        except (tf.errors.OpError, RuntimeError):  # out of reach, or closed: those who use them find out
            return False

    def finish(self, graph: Any, reason: str) -> None:
        """Tell the parameter servers, where they are within reach."""
        self.closed()
        if not self.out_of_reach:
            super().finish(graph, reason)

    def say_farewell(self, session: Any, reason: int) -> tuple[int, int]:
        """Push nothing, and say why; the chief applies what the others have pushed."""
        feed: dict[Any, np.ndarray] = {}
        for meeting in self._meetings:
            feed.update(farewell(meeting.bundles, meeting.sparse, reason))
        pushed = [op for meeting in self._meetings for op in meeting.pushed]
        if not self.topology.is_chief:
            news = session.run([self._news, *pushed, *self._updates, self._all_taken], feed)[0]
            return int(news[0]), int(news[1])
        totals = [total for meeting in self._meetings for total in meeting.totals]
        taken = session.run([*totals, *pushed, self._all_taken], feed)[: len(totals)]
        contributors, left = told(taken[totals.index(self._meetings[-1].header)])
        if contributors:
            news = session.run([self._news, *self._updates], dict(zip(totals, taken, strict=True)))[0]
        else:  # all have left at once: there is nothing to apply
            ended, told_news = self._unapplied
            news = session.run([told_news, ended], {self._left: left})[0]
        return int(news[0]), int(news[1])
