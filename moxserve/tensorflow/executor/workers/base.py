"""What the executor asks of the processes of a job, answered for a single process; and the choice among the kinds."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from moxserve.errors import UsageError
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
    """

    initial: Any
    local: tuple[Any, ...]
    restore: Callable[[Any], None]


class Workers:
    """A single process: everything is done here.

    Args:
        topology: of the job.
        devices: of this process.

    Attributes:
        target: of the session; empty for one in this process.
        run_options: RunOptions of every step, None for TensorFlow's defaults.
    """

    target: str = ""
    run_options: Any = None
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

    def participants(self) -> list[Participant]:
        """Who takes part in the loop on behalf of the job; made while the graph is open."""
        return []

    def agree(self, stop: bool) -> bool:
        """Whether any of the processes wants to stop; asked by all of them at the same step."""
        return stop

    def finish(self, session: Any) -> None:
        """This process is done with its steps; the session is still open."""


def current_workers() -> Workers | None:
    """The workers of the run whose graph is being built; None outside of one."""
    return getattr(Workers._building, "current", None)


def workers_of(topology: Topology, devices: Devices) -> Workers:
    """Choose how the processes of a job work together."""
    if topology.distributed or topology.job not in ("", "worker"):
        raise UsageError(
            f"flags --job_name={topology.job!r} --ps_hosts={','.join(topology.ps)!r} "
            f"--worker_hosts={','.join(topology.workers)!r}: this version trains in a single process",
            hint="leave the four cluster flags out, and unset TF_CONFIG",
        )
    return Workers(topology, devices)
