"""What the executor asks of the processes of a job, answered for a single process; and the choice among the kinds."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from moxserve.tensorflow.executor.cluster import Topology
from moxserve.tensorflow.executor.devices import Devices, GradsAndVars
from moxserve.tensorflow.executor.env import tf1
from moxserve.tensorflow.executor.participants import Participant

__all__ = ["Startup", "Workers", "current_workers", "workers_of"]


@dataclass(frozen=True)
class Startup:
    """How the variables of a run get their values.

    Attributes:
        initial: initialises the global variables.
        local: operations that initialise what each process has for itself: local variables, tables.
        restore: takes a session and restores from a checkpoint, where there is one; after `initial`.
        spread: operations that carry the restored variables to the towers of this process.
        global_step: the counter.
        anew: whether the input begins anew, since nothing in `log_dir` is gone on from.
    """

    initial: Any
    local: tuple[Any, ...]
    restore: Callable[[Any], None]
    spread: tuple[Any, ...] = ()
    global_step: Any = None
    anew: bool = False


class Workers:
    """A single process: everything is done here.

    Args:
        topology: of the job.
        devices: of this process.

    Attributes:
        target: of the session; empty for one in this process.
        run_options: RunOptions of every step, None for TensorFlow's defaults.
        joined: this process goes on with variables that others kept alive, instead of restoring them.
        updates_state: whether this process keeps what is learned besides gradients, such as moving averages; with
            shared variables and a common step that is one worker's task.
    """

    target: str = ""
    run_options: Any = None
    joined: bool = False
    updates_state: bool = True
    _building = threading.local()

    def __init__(self, topology: Topology, devices: Devices) -> None:
        self.topology = topology
        self.devices = devices

    # -- while the graph is built

    @contextmanager
    def placing(self) -> Iterator[None]:
        """Everything of a run's graph is built in here: input, towers, optimizers."""
        before = getattr(self._building, "current", None)
        self._building.current = self
        try:
            with self._device_scope():
                yield
        finally:
            self._building.current = before

    @contextmanager
    def _device_scope(self) -> Iterator[None]:
        yield

    def apply(self, optimizer: Any, gradients: GradsAndVars, global_step: Any) -> Any:
        """Make the operation that applies the gradients of a loss, the mean of this process's towers.

        Args:
            optimizer: of the loss.
            gradients: what is applied; together with those of the other processes, where they step together.
            global_step: the counter, to be incremented once by this; None where another loss does.
        """
        return optimizer.apply_gradients(gradients, global_step=global_step)

    def apply_together(self, optimizer: Any, gradients: GradsAndVars, name: str | None = None) -> Any:
        """Like `apply`, for an optimizer wrapper that lets the processes step apart and meet now and then
        (`sync_on_apply`): the mean over all processes is applied once. May be called inside a branch of `tf.cond` that
        all processes take at the same step.
        """
        return optimizer.apply_gradients(gradients, name=name)

    def own_variable(self, name: str, shape: Any, dtype: Any, initializer: Any) -> Any:
        """Make a variable of this process, for the state of an optimizer wrapper that each worker keeps for itself.

        In a single process it is saved in checkpoints.
        """
        return tf1.get_variable(name, shape, dtype, initializer, trainable=False, use_resource=True)

    # -- while the session is open

    def configure(self, config: Any) -> None:
        """Add to the ConfigProto of the session what talking to the others needs."""
        self.devices.configure(config)

    def start(self, session: Any, startup: Startup) -> None:
        """Give the variables their values, or wait until another process has."""
        session.run(startup.initial)
        for operation in startup.local:
            session.run(operation)
        startup.restore(session)
        if startup.spread:
            session.run(startup.spread)

    def done_steps(self, global_step: int) -> int:
        """How many of the steps so far count against this process's number of steps, and for its place in the input."""
        return global_step

    def began_at(self, startup: Startup, global_step: int) -> int | None:
        """How many steps of this process were made when the training began with the first row of its input; None where
        it went on from a checkpoint in `log_dir`, with what was noted there.
        """
        return self.done_steps(global_step) if startup.anew else None

    def steps_to_make(self, goal: int, global_step: int) -> int:
        """How many steps are left for this process until it has reached `max_number_of_steps`."""
        return goal - self.done_steps(global_step)

    def take_ahead(self, source: Any) -> None:
        """Change the input of a training where its batches must be taken before their steps.

        Args:
            source: the ModeInput, built into the graph.
        """

    def participants(self) -> list[Participant]:
        """Who takes part in the loop on behalf of the job; made while the graph is open."""
        return []

    def watch(self, participants: Sequence[Participant]) -> None:
        """Who takes part in the loop, those of `participants` included."""

    def agree(self, stop: bool) -> bool:
        """Whether to stop, for a hook that all processes run at the same step.

        One that says yes leaves the loop. Workers that step together learn of it with the step that follows, which
        they make without it, and all end there: nobody needs to be asked here.
        """
        return stop

    def from_chief(self, session: Any, value: float) -> float:
        """The chief's value, for something that each process has for itself and that must be the same everywhere.

        Asked by all processes that step together, at the same step; they wait for the chief. Where all share what is on
        the parameter servers there is nothing to be told, and each gets what it gave.
        """
        return value

    def all_same(self, session: Any, value: int) -> bool:
        """Whether all processes that will ask for the chief's value at the same steps give the same number here."""
        return True

    def ending(self, reason: str, signum: int) -> tuple[str, int]:
        """Why the run ended, and the signal that ended it: those of this process, or what the others said."""
        return reason, signum if reason == "signal" else 0

    def finish(self, graph: Any, reason: str) -> None:
        """This process has ended its loop, and saved what it saves; its session is closed.

        Args:
            graph: the frozen graph.
            reason: why the loop ended.
        """


def current_workers() -> Workers | None:
    """The workers of the run whose graph is being built; None outside of one."""
    return getattr(Workers._building, "current", None)


def workers_of(topology: Topology, devices: Devices, *, training: bool = True) -> Workers:
    """Choose how the processes of a job work together; outside of a training each works for itself."""
    from moxserve.tensorflow.executor.workers.part import Part

    part = Part.current()
    if not training or not topology.distributed or topology.job != "worker" or part is None or not part.run:
        return Workers(topology, devices)
    if topology.without_servers:
        if topology.num_workers == 1:
            return Workers(topology, devices)
        from moxserve.tensorflow.executor.workers.all_reduce import AllReduceWorkers

        return AllReduceWorkers(topology, devices, part)
    if topology.synchronous:
        from moxserve.tensorflow.executor.workers.synchronous import SynchronousWorkers

        return SynchronousWorkers(topology, devices, part)
    from moxserve.tensorflow.executor.workers.asynchronous import AsynchronousWorkers

    return AsynchronousWorkers(topology, devices, part)
