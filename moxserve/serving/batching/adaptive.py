"""The queue that needs no parameters: a batch is made when a thread is free, of what waits then.

So nothing waits while a thread is idle, and batches grow with the load. How large they may grow is learned:
`BatchLimit` goes through the powers of two as long as rows get cheaper in larger batches.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence

from moxserve.errors import Unavailable
from moxserve.serving.batching.scheduler import Task
from moxserve.serving.execution.admission import ServiceTimes

__all__ = ["AdaptiveQueue", "BatchLimit"]

_MAX_ROWS = 1024
_MAX_BYTES = 64 << 20
_MAX_BATCH_S = 0.25
_GAIN = 0.95
_SURE_AFTER = 8
_TRY_AGAIN_AFTER = 128


class BatchLimit:
    """The rows of the largest batch of a queue, learned from how long batches take.

    It begins with one row. Only batches that fill the limit teach anything about it. After a few of them it is doubled;
    when the rows of the larger batches are then not at least 5 % cheaper, it is halved again, and stays for a
    hundred batches before the next try, since models and machines change. A batch never grows beyond 1024 rows, 64 MiB
    of inputs or a quarter of a second, which is how long the requests that come meanwhile wait.

    Args:
        times: how long batches take, which the caller notes.
        max_batch_s: how long a batch may take, in s.

    Attributes:
        rows: the limit, a power of two.
    """

    def __init__(self, times: ServiceTimes, max_batch_s: float = _MAX_BATCH_S) -> None:
        self.rows = 1
        self._max_batch_s = max_batch_s
        self._times = times
        self._largest = _MAX_ROWS
        self._full = 0
        self._least = _MAX_ROWS
        self._patience = _SURE_AFTER

    def fix(self) -> None:
        """Let nothing be put together from now on."""
        self.rows = self._largest = 1

    def learn(self, rows: int, row_bytes: int) -> None:
        """Take a batch into account that has run, and whose time is noted.

        Args:
            rows: of the batch.
            row_bytes: bytes of one row of all inputs.
        """
        if self._largest > 1:
            self._largest = min(self._largest, max(1, _floor_power(_MAX_BYTES // max(1, row_bytes))))
            self.rows = min(self.rows, self._largest)
        if rows < self.rows:
            return
        self._full += 1
        self._least = min(self._least, rows)
        if self._full < self._patience:
            return
        least, self._full, self._least = self._least, 0, _MAX_ROWS
        if least >= 2 * self.rows:
            # Requests that have more rows than the limit are batches anyway: it means nothing below them.
            self.rows = min(_floor_power(least), self._largest)
            self._patience = _SURE_AFTER
        else:
            self._step()

    def _step(self) -> None:
        here, half = self._times.unit_s(self.rows), self._times.unit_s(self.rows // 2)
        # Nobody knows about smaller batches when requests have many rows; they get a try, too, when it does not hurry.
        smaller = math.isnan(half) and self._patience == _TRY_AGAIN_AFTER
        if self.rows > 1 and (smaller or here > _GAIN * half or here * self.rows > self._max_batch_s):
            self.rows //= 2
            self._patience = _SURE_AFTER if smaller else _TRY_AGAIN_AFTER
        elif self.rows < self._largest and 2 * here * self.rows <= self._max_batch_s:
            self.rows *= 2
            self._patience = _SURE_AFTER
        else:
            self._patience = _TRY_AGAIN_AFTER


def _floor_power(number: int) -> int:
    return 1 << (number.bit_length() - 1) if number > 0 else 0


class AdaptiveQueue:
    """A queue that makes batches of what waits; see `scheduler.Queue`.

    A request of more rows than the limit is a batch of its own: nothing is refused for its size.

    Args:
        limit: of a batch.
        max_waiting: requests that may wait.
        process: runs a batch.
        times: how long batches take, by their rows.
    """

    def __init__(
        self,
        limit: BatchLimit,
        max_waiting: int,
        process: Callable[[Sequence[Task]], None],
        times: ServiceTimes,
    ) -> None:
        self.closed = False
        self._limit = limit
        self._max_waiting = max_waiting
        self._process = process
        self._times = times
        self._tasks: deque[Task] = deque()
        self._rows = 0

    def offer(self, task: Task, now: float) -> None:  # noqa: ARG002 - a queue with time limits needs it
        """Take a task in; see `Queue.offer`."""
        if len(self._tasks) >= self._max_waiting:
            raise Unavailable(
                "The batch scheduling queue to which this task was submitted is full; currently "
                f"{len(self._tasks)} requests enqueued and the most is {self._max_waiting}"
            )
        self._tasks.append(task)
        self._rows += task.rows

    def ready_at(self) -> float:
        """Return when the next batch may go: now, if anything waits."""
        return -math.inf if self._tasks else math.inf

    def take(self) -> list[Task]:
        """Hand out the next batch: tasks until it is full, which the last one may overfill to less than the double.

        Were it never overfilled, then batches of tasks with three rows would never fill a limit of four.
        """
        batch = [self._tasks.popleft()]
        rows, limit = batch[0].rows, self._limit.rows
        while self._tasks and rows < limit and rows + self._tasks[0].rows < 2 * limit:
            batch.append(self._tasks.popleft())
            rows += batch[-1].rows
        self._rows -= rows
        return batch

    def drop(self, task: Task) -> None:
        """Forget a waiting task."""
        if task in self._tasks:
            self._tasks.remove(task)
            self._rows -= task.rows

    def batches_ahead(self, task: Task) -> int:  # noqa: ARG002 - as of offer
        """Return how many batches go before the one that a task would be in."""
        return self._rows // self._limit.rows

    def batches(self) -> int:
        """Return how many batches wait."""
        return -(-self._rows // self._limit.rows)

    def batch_s(self) -> float:
        """Guess how long the next batch takes, in s."""
        return self._times.run_s(max(1, min(self._rows, self._limit.rows)))

    def process(self, batch: Sequence[Task]) -> None:
        """Run a batch."""
        self._process(batch)
