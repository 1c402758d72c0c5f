"""The part of this process in the distributed trainings of its script: which run it is, and which attempt.

A script may train several times, one `run` after the other, and each process of the job runs the same script: the runs
have numbers, from 1, by which the processes know what they talk about. So have the phases of a training, each of which
has a graph of its own. A process that loses the others in a run tries again by itself, with a new graph and session,
before it gives up.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

from moxserve.errors import MoxserveError, WorkersLostError
from moxserve.tensorflow.executor.cluster import Topology
from moxserve.tensorflow.executor.env import tf, tf1
from moxserve.tensorflow.executor.workers.peers import POLL_S, members, unreachable

__all__ = ["Part", "is_lost"]

_ATTEMPTS = 5
_STEADY_S = 60.0
# A parameter server that was started again knows nothing of the graphs, variables and queues that it held.
_FORGOTTEN = (
    "uninitialized",
    "not initialized",
    "does not exist",
    "Could not find variable",
    "not found",
    "was closed",
)
# What one hears whose call was under way when another process ended: of its connection, or of a collective.
_BROKEN_OFF = ("Stream removed", "BufRendezvous", "Collective ops is aborted")


def is_lost(error: Exception) -> bool:
    """Whether an error of the runtime says that another process is gone, or came back without its state."""
    if isinstance(error, (tf.errors.UnavailableError, tf.errors.AbortedError, tf.errors.DeadlineExceededError)):
        return True
    telling: tuple[str, ...] = ()
    if isinstance(error, (tf.errors.FailedPreconditionError, tf.errors.NotFoundError, tf.errors.CancelledError)):
        telling += _FORGOTTEN
    if isinstance(error, (tf.errors.UnknownError, tf.errors.InternalError, tf.errors.CancelledError)):
        telling += _BROKEN_OFF
    return any(text in str(getattr(error, "message", "")) for text in telling)


@dataclass
class Part:
    """What this process does in one `run`.

    Attributes:
        topology: of the job.
        run: number of the distributed training in this process, from 1; 0 for a run that is none.
        attempt: how often this process has tried, from 1.
        phase: number of the phase of the training, from 0: the same in all processes, also in one that begins late.
        is_last: whether no other phase follows.
    """

    topology: Topology
    run: int = 0
    attempt: int = 0
    phase: int = 0
    is_last: bool = True

    _runs: ClassVar[int] = 0
    _current: ClassVar[Part | None] = None

    @classmethod
    @contextmanager
    def taken(cls, topology: Topology, *, training: bool) -> Iterator[Part]:
        """Take part in a `run`."""
        distributed = training and topology.distributed and topology.job in ("ps", "worker")
        if distributed:
            Part._runs += 1
        before, part = Part._current, cls(topology, Part._runs if distributed else 0)
        Part._current = part
        try:
            yield part
        except WorkersLostError as error:
            tf1.logging.error("%s", error)  # a script that does not catch it ends without a word
            raise
        finally:
            Part._current = before

    @classmethod
    def current(cls) -> Part | None:
        """The part of the run in progress."""
        return Part._current

    @property
    def name(self) -> str:
        """Of the resource containers that the processes share in this phase."""
        return self.name_of(self.phase)

    def name_of(self, phase: int) -> str:
        """Like `name`, of another phase of the training."""
        return f"moxserve/run{self.run}/phase{phase}"

    def persist(self, attempt: Callable[[], Any]) -> Any:
        """Make an attempt, and further ones while the other processes fail.

        Args:
            attempt: makes a RunResult, all anew: graph, session, input.

        Raises:
            WorkersLostError: the others fail again and again, or this process cannot rejoin them.
        """
        if not self.run:
            return attempt()
        failed = 0
        while True:
            self.attempt += 1
            began = time.monotonic()
            try:
                return attempt()
            except (tf.errors.OpError, MoxserveError) as error:
                lost = _lost_in(error)
                if lost is None:
                    raise
                failed = 1 if time.monotonic() - began > _STEADY_S else failed + 1
                self._go_on_or_raise(lost, failed)
            time.sleep(POLL_S)

    def _go_on_or_raise(self, error: Exception, failed: int) -> None:
        """Say who is gone; raise where no other attempt is worth it."""
        rejoins = not self.topology.without_servers
        missing = ", ".join(map(str, unreachable(members(self.topology, "ps" if rejoins else "worker"))))
        what = f"{missing} does not answer any more" if missing else "another process of the job failed"
        if rejoins and failed < _ATTEMPTS:
            tf1.logging.warning("%s (%s): joining again", what, _brief(error))
            return
        raise WorkersLostError(
            f"{what}: {_brief(error)}",
            hint="start the job again, all of its processes: it goes on from the last checkpoint",
        ) from error


def _lost_in(error: BaseException | None) -> Exception | None:
    """The error that says another process is gone: itself, or what it was raised from, as when a checkpoint cannot be
    written because the parameter server is gone that has the variables.
    """
    while error is not None:
        if isinstance(error, tf.errors.OpError) and is_lost(error):
            return error
        error = error.__cause__
    return None


def _brief(error: Any) -> str:
    """The line of a message about another process that says what happened; the rest names operations and devices."""
    noise = (
        "UNAVAILABLE: From /job",
        "From /job",
        "[[",
        "=",
        "\t",
        "Additional GRPC",
        "The above",
        "Hint",
        "Original stack",
    )
    lines = [line.strip() for line in str(error.message).splitlines() if line.strip()]
    told = [line for line in lines if not line.startswith(noise) and "root error" not in line]
    return f"{type(error).__name__}: {(told or lines or ['no message'])[0][:200]}"
