"""The queue that follows BatchingParameters: batches are made when requests come in.

The last batch is open: a request that fits goes into it, one that does not closes it and opens another. A batch goes
when it is closed or full, or when its first request has waited for `batch_timeout_micros`.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from moxserve.errors import InvalidArgument, Unavailable
from moxserve.serving.batching.params import BatchingParameters
from moxserve.serving.batching.scheduler import Task
from moxserve.serving.execution.admission import ServiceTimes

__all__ = ["BatchQueue"]

_FULL = "The batch scheduling queue to which this task was submitted is full"


@dataclass(slots=True, eq=False)
class _Batch:
    began: float
    tasks: list[Task] = field(default_factory=list)
    rows: int = 0

    def add(self, task: Task) -> None:
        self.tasks.append(task)
        self.rows += task.rows


class BatchQueue:
    """A queue with TensorFlow Serving's rules; see `scheduler.Queue`.

    Args:
        parameters: sizes and times.
        process: runs a batch.
        times: how long batches take, by their rows.
    """

    def __init__(
        self, parameters: BatchingParameters, process: Callable[[Sequence[Task]], None], times: ServiceTimes
    ) -> None:
        self.closed = False
        self._parameters = parameters
        self._limit = parameters.execution_limit
        self._timeout_s = parameters.batch_timeout_micros / 1e6
        self._process = process
        self._times = times
        self._batches: deque[_Batch] = deque()

    def offer(self, task: Task, now: float) -> None:
        """Take a task in, see `Queue.offer`."""
        largest = self._parameters.max_batch_size
        if task.rows > largest:
            raise InvalidArgument(f"Task size {task.rows} is larger than maximum input batch size {largest}")
        if self._parameters.enable_large_batch_splitting:
            self._offer_parts(task, now)
            return
        if self._batches and self._batches[-1].rows + task.rows > self._limit:
            if len(self._batches) >= self._parameters.max_enqueued_batches:
                raise Unavailable(
                    f"{_FULL}; currently {len(self._batches)} batches enqueued and max_enqueued_batches is "
                    f"{self._parameters.max_enqueued_batches}"
                )
            self._batches.append(_Batch(now))
        elif not self._batches:
            self._batches.append(_Batch(now))
        self._batches[-1].add(task)

    def _offer_parts(self, task: Task, now: float) -> None:
        most = self._parameters.max_enqueued_batches
        tail = self._batches[-1].rows if self._batches else 0
        free = self._limit - tail
        capacity = (most - max(1, len(self._batches))) * self._limit + free
        if task.rows > capacity:
            raise Unavailable(
                f"{_FULL}; task size is {task.rows} but scheduling capacity is only {capacity} "
                f"(num_enqueued_batches={len(self._batches)}, max_enqueued_batches={most}, open_batch_size={tail}, "
                f"max_execution_batch_size={self._limit})"
            )
        sizes = [min(free, task.rows)] if free and self._batches else []
        while (left := task.rows - sum(sizes)) > 0:
            sizes.append(min(self._limit, left))
        parts = task.split(sizes) if len(sizes) > 1 else [task]
        for i, part in enumerate(parts):
            if i or not (free and self._batches):
                self._batches.append(_Batch(now))
            self._batches[-1].add(part)

    def ready_at(self) -> float:
        """Return when the next batch may go; see `Queue.ready_at`."""
        if not self._batches:
            return math.inf
        if self.closed or len(self._batches) > 1 or self._batches[0].rows >= self._limit:
            return -math.inf
        return self._batches[0].began + self._timeout_s

    def take(self) -> list[Task]:
        """Hand out the next batch."""
        return self._batches.popleft().tasks

    def drop(self, task: Task) -> None:
        """Forget a waiting task."""
        for batch in self._batches:
            if task in batch.tasks:
                batch.tasks.remove(task)
                batch.rows -= task.rows
                if not batch.tasks:
                    self._batches.remove(batch)
                return

    def batches_ahead(self, task: Task) -> int:
        """Return how many batches go before the one that a task would be in."""
        if self._batches and self._batches[-1].rows + task.rows <= self._limit:
            return len(self._batches) - 1
        return len(self._batches)

    def batches(self) -> int:
        """Return how many batches wait."""
        return len(self._batches)

    def batch_s(self) -> float:
        """Guess how long the next batch takes, in s."""
        rows = self._batches[0].rows if self._batches else 1
        return self._times.run_s(self._parameters.padded(rows))

    def process(self, batch: Sequence[Task]) -> None:
        """Run a batch."""
        self._process(batch)
