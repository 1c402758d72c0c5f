"""Batches of a quick model, run right on the event loop: the way to a thread and back costs more than the run.

Requests that the loop reads in one go meet: the first one has a batch run after all that is ready now. So a request
that comes alone waits for nothing.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from moxserve.errors import Unavailable
from moxserve.serving.batching.adaptive import BatchLimit
from moxserve.serving.batching.scheduler import Task
from moxserve.serving.execution.admission import ServiceTimes
from moxserve.serving.execution.quickness import Quickness, payload_bytes

__all__ = ["Learned", "LoopBatches"]

_MAX_S = 500e-6


@dataclass(frozen=True, slots=True)
class Learned:
    """Learns from batches run in one place, for both places; see `execute.Learner`.

    Attributes:
        limit: of a batch.
        quickness: of the model.
        on_loop: whether these batches are run on the loop.
    """

    limit: BatchLimit
    quickness: Quickness
    on_loop: bool

    def learn(self, rows: int, size: int, seconds: float) -> None:
        """Take a batch into account."""
        self.limit.learn(rows, size // max(1, rows))
        self.quickness.note(size, seconds, on_loop=self.on_loop)

    def fix(self) -> None:
        """Put nothing together any more."""
        self.limit.fix()


class LoopBatches:
    """The batches of one queue on one event loop, whose thread alone uses it.

    Args:
        execute: runs a batch, and tells the owners on the same thread.
        limit: of a batch.
        times: how long batches take, by their rows.
        quickness: of the model.
        max_waiting: requests that may wait.
    """

    def __init__(
        self,
        execute: Callable[[Sequence[Task]], None],
        limit: BatchLimit,
        times: ServiceTimes,
        quickness: Quickness,
        max_waiting: int,
    ) -> None:
        self._execute = execute
        self._limit = limit
        self._times = times
        self._quickness = quickness
        self._max_waiting = max_waiting
        self._tasks: deque[Task] = deque()

    def suits(self, task: Task) -> bool:
        """Whether a request is known to be quick."""
        return self._quickness.suits(payload_bytes(task.arrays))

    def offer(self, task: Task, now: float) -> None:
        """Take a task in, to be run when the loop has read what else there is.

        Raises:
            Unavailable: too many wait.
        """
        if len(self._tasks) >= self._max_waiting:
            raise Unavailable(f"overloaded: {len(self._tasks)} requests are waiting for this model, which is the most")
        task.queued_at = now
        self._tasks.append(task)
        if len(self._tasks) == 1:
            asyncio.get_running_loop().call_soon(self._run)

    def _run(self) -> None:
        batch = [self._tasks.popleft()]
        rows = batch[0].rows
        while self._tasks and (more := rows + self._tasks[0].rows) < 2 * self._limit.rows:
            if rows >= self._limit.rows or self._times.run_s(more) > _MAX_S:
                break
            batch.append(self._tasks.popleft())
            rows = more
        if self._tasks:
            # Not all in one go: others on the loop have their turn in between.
            asyncio.get_running_loop().call_soon(self._run)
        self._execute(batch)
