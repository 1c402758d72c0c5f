"""Workers that share their variables on parameter servers: what the asynchronous and the synchronous kind have in
common.

The chief gives the variables their values; the others wait for it. Who comes back finds the state on the parameter
servers as it is now: nothing is rolled back while they live. When one of them was lost, some of the state is gone, and
the chief restores all of it from the last checkpoint.

At the end all wait for each other, so that a worker which goes on (to evaluate, say) finds the last checkpoint, and so
that nobody is missed when a parameter server has to be replaced late.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from moxserve.errors import WorkersLostError
from moxserve.tensorflow.executor.cluster import Topology
from moxserve.tensorflow.executor.devices import Devices
from moxserve.tensorflow.executor.env import tf, tf1
from moxserve.tensorflow.executor.participants import Participant
from moxserve.tensorflow.executor.workers.base import Startup, Workers
from moxserve.tensorflow.executor.workers.part import Part
from moxserve.tensorflow.executor.workers.peers import POLL_S, Reminder, members, unreachable, wait_for
from moxserve.tensorflow.executor.workers.placement import SHARED_VARIABLES, Placement
from moxserve.tensorflow.executor.workers.server import server_of
from moxserve.tensorflow.executor.workers.serving import leave

__all__ = ["ParameterServerWorkers", "SharedState"]

_NOT_READY, _READY, _SAVED = 0, 1, 2
_NOT_ANEW = -1


class SharedState:
    """What the workers know about each other, in variables on the first parameter server.

    Args:
        placement: where that is.
        workers: how many there are.
    """

    def __init__(self, placement: Placement, workers: int) -> None:
        with placement.shared():
            self.phase = _variable("phase", [])
            self.done = _variable("done", [workers])
            self.steps = _variable("steps", [workers])
            self.ending = _variable("ending", [])
            self.began = _variable("began", [])  # global step at which the input began anew; _NOT_ANEW if it did not
            self.variables = [self.phase, self.done, self.steps, self.ending, self.began]
            self.value = tf1.placeholder(tf.int64, None)
            self.set_phase = self.phase.assign(tf.reshape(self.value, []), read_value=False)
            self.set_ending = self.ending.assign(tf.reshape(self.value, []), read_value=False)
            self.set_began = self.began.assign(tf.reshape(self.value, []), read_value=False)
            self.set_done = self.done.assign(tf.reshape(self.value, [workers]), read_value=False)
            self.set_steps = self.steps.assign(tf.reshape(self.value, [workers]), read_value=False)
            index = tf1.placeholder_with_default(0, [])
            self.index = index
            self.mark_done = self.done.scatter_update(tf.IndexedSlices(tf.constant(1, tf.int64), index))


def _variable(name: str, shape: list[int]) -> Any:
    return tf1.get_variable(
        f"moxserve/{name}", shape, tf.int64, tf1.zeros_initializer(), trainable=False, use_resource=True,
        collections=[SHARED_VARIABLES],
    )  # fmt: skip


class ParameterServerWorkers(Workers):
    """A worker of a job with parameter servers.

    Args:
        topology: of the job.
        devices: of this process.
        part: which run and attempt this is.

    Attributes:
        pause_s: between looks at what the others do.
    """

    pause_s: float = POLL_S / 5

    def __init__(self, topology: Topology, devices: Devices, part: Part) -> None:
        super().__init__(topology, devices)
        self.placement = Placement(topology, part.name, f"{part.name}/attempt{part.attempt}", on_ps=True)
        self._part = part
        config = topology.session_config()
        devices.configure(config)
        self.target = server_of(topology, config).target

    # -- while the graph is built

    @contextmanager
    def _device_scope(self) -> Iterator[None]:
        with self.placement.scope():
            self.state = SharedState(self.placement, self.topology.num_workers)
            self._phase_before = self._end_of_phase_before()
            yield

    def _end_of_phase_before(self) -> Any:
        """Make the operation that lets those go on who still wait for the last checkpoint of the phase before."""
        if not self._part.phase:
            return tf.no_op()
        server = self.placement.servers[0]
        with tf1.device(server):
            phase = tf.raw_ops.VarHandleOp(
                container=self._part.name_of(self._part.phase - 1), shared_name=self.state.phase.op.name,
                dtype=tf.int64, shape=[],
            )  # fmt: skip
            return tf.raw_ops.AssignVariableOp(resource=phase, value=tf.constant(_SAVED, tf.int64))

    def participants(self) -> list[Participant]:
        """Nobody yet; the model is complete here, so that its variables are known."""
        self._uninitialized = tf1.report_uninitialized_variables([*tf1.global_variables(), *self.state.variables])
        self._uninitialized.mark_used()  # in `start`
        return []

    def own_variable(self, name: str, shape: Any, dtype: Any, initializer: Any) -> Any:
        """Make a variable of this worker; no checkpoint has it."""
        with self.placement.own():
            return tf1.get_variable(
                name, shape, dtype, initializer, trainable=False, use_resource=True,
                collections=[tf1.GraphKeys.LOCAL_VARIABLES],
            )  # fmt: skip

    # -- while the session is open

    def configure(self, config: Any) -> None:
        """Keep the session to the parameter servers and this process: it does not wait for other workers."""
        super().configure(config)
        config.device_filters.extend(["/job:ps", f"/job:worker/task:{self.topology.index}"])
        self._config = config

    def start(self, session: Any, startup: Startup) -> None:
        """Restore or initialise as the chief; wait for the chief otherwise."""
        self._startup = startup
        wait_for(members(self.topology, "ps"), self.topology.start_timeout_s)
        for operation in startup.local:
            session.run(operation)
        if self.topology.is_chief:
            self._lead(session, startup)
        else:
            self._follow(session, startup)
        if startup.spread:
            session.run(startup.spread)
        steps, began = session.run([self.state.steps, self.state.began])
        self.steps_before = int(steps[self.topology.index])
        self._began = None if began == _NOT_ANEW else self._own_of(int(began))

    def _lead(self, session: Any, startup: Startup) -> None:
        session.run(self._phase_before)  # which a chief that was started again here has not ended itself
        missing = [name.decode() for name in session.run(self._uninitialized)]
        live = not missing and int(session.run(self.state.phase)) != _NOT_READY
        if live:
            self.joined = True
            tf1.logging.info(
                "the parameter servers hold the variables, at global step %d: going on from there",
                int(session.run(startup.global_step)),
            )
        else:
            self._set(session, self.state.set_phase, _NOT_READY)
            session.run(startup.initial)
            startup.restore(session)
            step = int(session.run(startup.global_step))
            self._set(session, self.state.set_steps, self._shares(step))
            self._set(session, self.state.set_done, [0] * self.topology.num_workers)
            self._set(session, self.state.set_ending, 0)
            self._set(session, self.state.set_began, step if startup.anew else _NOT_ANEW)
        self._led(session, int(session.run(startup.global_step)))
        self._set(session, self.state.set_phase, _READY)

    def _led(self, session: Any, global_step: int) -> None:
        """The chief knows all variables to have values; the others still wait."""

    def _follow(self, session: Any, startup: Startup) -> None:
        self.joined = True
        reminder = Reminder(self.topology.start_timeout_s)
        # The phase is read last: it is set when all variables have their final values.
        while len(session.run(self._uninitialized)) or int(session.run(self.state.phase)) == _NOT_READY:
            self._wait(reminder, "to give the variables their values")

    def began_at(self, startup: Startup, global_step: int) -> int | None:
        """As the chief knows it: whoever joins may find a checkpoint that was not there when the training began."""
        return self._began

    def _own_of(self, step: int) -> int:
        """How many of the steps up to a global step count as this worker's own."""
        return step

    def _shares(self, step: int) -> list[int]:
        """How many of the steps so far count as each worker's own."""
        workers = self.topology.num_workers
        if self.topology.chief_counts:
            return [step] * workers
        return [step // workers + (i < step % workers) for i in range(workers)]

    def _set(self, session: Any, operation: Any, value: Any) -> None:
        session.run(operation, {self.state.value: value})

    def _wait(self, reminder: Reminder, what: str) -> None:
        """Wait a moment for the chief, and say so now and then."""
        chief = members(self.topology, "worker")[0]
        if reminder.over:
            raise WorkersLostError(
                f"waited {reminder.waited_s} s (flag --session_timeout) for {chief} {what}",
                hint="start the chief, with the same --ps_hosts and --worker_hosts, or look into its log",
            )
        if reminder.due():
            advice = "it is at work" if chief.answers() else "it does not answer: is it started?"
            tf1.logging.info("waiting for %s %s (%d s): %s", chief, what, reminder.waited_s, advice)
        time.sleep(self.pause_s)

    # -- the end

    def _all_done(self, session: Any, stopped: Callable[[], bool]) -> None:
        """Wait until every worker has made its steps; say who has not."""
        reminder = Reminder()
        while not stopped():
            done = session.run(self.state.done)
            busy = [peer for peer in members(self.topology, "worker") if not done[peer.index]]
            if not busy:
                return
            if reminder.due():
                gone = unreachable(busy)
                tf1.logging.info(
                    "waiting for %s to make the last steps (%d s)%s",
                    ", ".join(map(str, busy)),
                    reminder.waited_s,
                    f"; {', '.join(map(str, gone))} does not answer: start it again" if gone else "",
                )
            self._idle(session)
            time.sleep(self.pause_s)

    def _idle(self, session: Any) -> None:
        """Something to do while others still train."""

    def finish(self, graph: Any, reason: str) -> None:
        """The chief has saved; the others wait until then. Then the parameter servers are told."""
        if reason == "signal":
            if self.topology.synchronous:  # all have stopped, and the job is over
                leave(self.topology, self._part.run, self._config)
            return
        with tf1.Session(self.target, graph=graph, config=self._config) as own:
            self._mark_done(own)
            if self.topology.is_chief:
                self._all_done(own, lambda: False)
                self._set(own, self.state.set_phase, _SAVED)
            else:
                reminder = Reminder()
                while int(own.run(self.state.phase)) != _SAVED:
                    self._wait(reminder, "to write the last checkpoint")
                    self._mark_done(own)  # again: a chief that had to begin anew may have cleared it
                    self._idle(own)
        if self._part.is_last:  # else the parameter servers are needed again
            leave(self.topology, self._part.run, self._config)

    def _mark_done(self, session: Any) -> None:
        session.run(self.state.mark_done, {self.state.index: self.topology.index})
