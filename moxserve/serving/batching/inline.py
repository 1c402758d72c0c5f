"""Batches of a quick model, run right on the event loop: the way to a thread and back costs more than the run.

Requests that the loop reads in one go meet: the first one has a batch run after all that is ready now. So a request
that comes alone waits for nothing.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from moxserve.errors import Unavailable
from moxserve.serving.batching.adaptive import BatchLimit
from moxserve.serving.batching.scheduler import Task
from moxserve.serving.execution.admission import ServiceTimes

__all__ = ["LoopBatches", "Quickness", "Recorded"]

_QUICK_S = 250e-6
_MAX_S = 500e-6
_PAUSE_S = 0.005
_SURE_AFTER, _MAX_PENALTY = 4, 256
_RISE = 1.05


class Quickness:
    """Whether a model is quick enough for the loop, from its runs in both places.

    On a busy server a run on a thread also waits for the interpreter, often much longer than it takes: of those the
    quickest tell most, so what is known rises by a few per cent a run at most. A run that held the loop up for
    milliseconds sends the next few to the threads, and twice as many when that happens again.
    """

    def __init__(self) -> None:
        self._times = ServiceTimes()
        self._doubt = _SURE_AFTER
        self._penalty = _SURE_AFTER

    def note(self, rows: int, seconds: float, *, on_loop: bool) -> None:
        """Note a run; from any thread.

        Args:
            rows: of the batch.
            seconds: how long it took.
            on_loop: whether it ran on the loop.
        """
        if on_loop and seconds > _PAUSE_S:
            self._penalty = min(2 * self._penalty, _MAX_PENALTY)
            self._doubt = self._penalty
        elif self._doubt:
            self._doubt -= 1
        elif on_loop and self._penalty > _SURE_AFTER:
            self._penalty -= 1
        if not on_loop and not math.isnan(unit_s := self._times.unit_s(rows)):
            seconds = min(seconds, unit_s * max(1, rows) * _RISE)
        self._times.record(rows, seconds)

    def suits(self, rows: int) -> bool:
        """Whether a batch of so many rows may run on the loop."""
        return not self._doubt and self._times.run_s(rows) < _QUICK_S


@dataclass(frozen=True, slots=True)
class Recorded:
    """Notes a run where it counts as one on the loop, or on a thread, as well as among all; an `execute.Recorder`.

    Attributes:
        times: of all runs.
        quickness: of the model.
        on_loop: whether these runs are on the loop.
    """

    times: ServiceTimes
    quickness: Quickness
    on_loop: bool

    def record(self, size: int, seconds: float) -> None:
        """Note a run; see `ServiceTimes.record`."""
        self.times.record(size, seconds)
        self.quickness.note(size, seconds, on_loop=self.on_loop)


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

    def suits(self, rows: int) -> bool:
        """Whether a request of so many rows is known to be quick."""
        return self._quickness.suits(rows)

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
