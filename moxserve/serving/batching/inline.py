"""Batches of a quick model, run right on the event loop: the way to a thread and back costs more than the run.

Requests that the loop has at hand meet: a batch is run when it is full, when the loop had a few turns without another
request, or after a millisecond. A turn of an idle loop takes a few microseconds, so a request that comes alone does not
wait.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from moxserve.errors import Unavailable
from moxserve.serving.batching.adaptive import BatchLimit
from moxserve.serving.batching.scheduler import Task
from moxserve.serving.execution.quickness import Quickness, payload_bytes

__all__ = ["MAX_BATCH_S", "Learned", "LoopBatches"]

MAX_BATCH_S = 0.001
_QUIET_TURNS = 8
_COLLECT_S = 0.001


@dataclass(frozen=True, slots=True)
class Learned:
    """Learns from the batches run in one place; see `execute.Learner`.

    Attributes:
        limit: of a batch there.
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
        limit: of a batch, which should take little more than `MAX_BATCH_S`.
        quickness: of the model.
        max_waiting: requests that may wait.
    """

    def __init__(
        self,
        execute: Callable[[Sequence[Task]], None],
        limit: BatchLimit,
        quickness: Quickness,
        max_waiting: int,
    ) -> None:
        self._execute = execute
        self._limit = limit
        self._quickness = quickness
        self._max_waiting = max_waiting
        self._tasks: deque[Task] = deque()
        self._rows = 0
        self._seen = 0
        self._quiet = 0
        self._until = 0.0

    def suits(self, task: Task) -> bool:
        """Whether a request is known to be quick."""
        return self._quickness.suits(payload_bytes(task.arrays))

    def offer(self, task: Task, now: float) -> None:
        """Take a task in, to be run when the loop has read what else there is at hand.

        Raises:
            Unavailable: too many wait.
        """
        if len(self._tasks) >= self._max_waiting:
            raise Unavailable(f"overloaded: {len(self._tasks)} requests are waiting for this model, which is the most")
        task.queued_at = now
        self._tasks.append(task)
        self._rows += task.rows
        if len(self._tasks) == 1:
            self._collect()

    def _collect(self) -> None:
        self._seen, self._quiet, self._until = 0, 0, time.monotonic() + _COLLECT_S
        asyncio.get_running_loop().call_soon(self._turn)

    def _turn(self) -> None:
        """Run a batch, unless it is not full yet and more may come: requests come out of gRPC one a turn."""
        if self._rows < self._limit.rows and time.monotonic() < self._until:
            self._quiet = 0 if len(self._tasks) > self._seen else self._quiet + 1
            self._seen = len(self._tasks)
            if self._quiet < _QUIET_TURNS:
                asyncio.get_running_loop().call_soon(self._turn)
                return
        batch = self._take()
        if self._tasks:
            # Not all in one go: others on the loop have their turn in between.
            self._collect()
        self._execute(batch)

    def _take(self) -> list[Task]:
        batch = [self._tasks.popleft()]
        rows, limit = batch[0].rows, self._limit.rows
        while self._tasks and rows < limit and (more := rows + self._tasks[0].rows) < 2 * limit:
            batch.append(self._tasks.popleft())
            rows = more
        self._rows -= rows
        return batch
