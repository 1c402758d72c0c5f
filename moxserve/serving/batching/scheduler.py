"""Threads that run batches, fairly, of many queues. Knows neither models nor arrays nor an event loop.

A queue decides what makes a batch (`queues`, `adaptive`); the threads take the next batch of the next queue that has
one, in turn, and hand it to the queue's `process`. Time is `time.monotonic`.
"""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from moxserve.errors import FailedPrecondition, Unavailable
from moxserve.serving.execution.admission import Admission

__all__ = ["BatchThreads", "Queue", "Task", "settled"]

_JOIN_S = 5.0


@dataclass(slots=True, eq=False)
class Task:
    """A request, or a part of one, that waits to be run with others.

    Attributes:
        arrays: its inputs, each [rows, ...], in the order of its queue.
        rows: how many.
        deadline: when its caller stops waiting; infinite for never.
        owner: what the caller put here, to find its request again.
        queued_at: when it came into the queue; set by the threads.
        cancelled: whether its caller has left.
        outputs: what came out, each [rows, ...], in the order of its queue; None before and after a failure.
        error: what went wrong instead.
        parts: what it was cut into; empty when it was not.
        whole: of what it is a part; None for a request.
        told: whether `settled` has named it.
        run_began: when the model began to run it, by `time.perf_counter`, in s; 0.0 when it did not yet.
        run_s: how long the model ran, in s.
    """

    arrays: Sequence[np.ndarray]
    rows: int
    deadline: float = math.inf
    owner: Any = None
    queued_at: float = 0.0
    cancelled: bool = False
    outputs: Sequence[np.ndarray] | None = None
    error: BaseException | None = None
    parts: Sequence[Task] = ()
    whole: Task | None = None
    told: bool = False
    run_began: float = 0.0
    run_s: float = 0.0

    def split(self, sizes: Sequence[int]) -> Sequence[Task]:
        """Cut it into parts of so many rows, which are run each by itself; `settled` puts their outputs together."""
        begin = 0
        parts = []
        for size in sizes:
            arrays = [array[begin : begin + size] for array in self.arrays]
            parts.append(Task(arrays, size, self.deadline, queued_at=self.queued_at, whole=self))
            begin += size
        self.parts = parts
        return parts

    @property
    def left(self) -> bool:
        """Whether nobody waits for it any more, or nobody can be helped: its caller left, or another part failed."""
        whole = self.whole
        return self.cancelled or (whole is not None and (whole.cancelled or whole.error is not None))

    @property
    def done(self) -> bool:
        """Whether it has outputs or an error."""
        return self.outputs is not None or self.error is not None


_settling = threading.Lock()


def settled(tasks: Sequence[Task]) -> list[Task]:
    """Return the requests that are finished now that these tasks are: each once, whether it was cut into parts or not.

    Args:
        tasks: that have outputs or an error.
    """
    finished = []
    for task in tasks:
        whole = task.whole
        if whole is None:
            finished.append(task)
            continue
        with _settling:
            if whole.told:
                continue
            if task.error is not None:
                whole.error = task.error
            elif all(part.outputs is not None for part in whole.parts):
                _put_together(whole)
            else:
                continue
            whole.told = True
        finished.append(whole)
    return finished


def _put_together(whole: Task) -> None:
    columns = list(zip(*(part.outputs or () for part in whole.parts), strict=True))
    shapes = [sorted({array.shape[1:] for array in column}) for column in columns]
    if any(len(different) > 1 for different in shapes):
        # Each part took on the lengths of its own batch.
        whole.error = FailedPrecondition(
            f"the parts of a split request gave outputs of different shapes, {shapes}: "
            "pad_variable_length_inputs and enable_large_batch_splitting do not go together with this model"
        )
        return
    whole.outputs = [np.concatenate(column) for column in columns]


class Queue(Protocol):
    """What makes a batch of waiting tasks. The threads call it under their lock, so it needs none; `process` without.

    Attributes:
        closed: takes nothing more; what waits may go at once.
    """

    closed: bool

    def offer(self, task: Task, now: float) -> None:
        """Take a task in.

        Raises:
            InvalidArgument: it is too large.
            Unavailable: the queue is full.
        """
        ...

    def ready_at(self) -> float:
        """Return when the next batch may go; infinite when nothing waits."""
        ...

    def take(self) -> list[Task]:
        """Hand out the next batch, which is ready."""
        ...

    def drop(self, task: Task) -> None:
        """Forget a task that waits; one that does not is fine."""
        ...

    def batches_ahead(self, task: Task) -> int:
        """Return how many batches would be run before the one that a task would be in, were it offered now."""
        ...

    def batches(self) -> int:
        """Return how many batches wait."""
        ...

    def batch_s(self) -> float:
        """Guess how long the next batch takes, in s; 0.0 when nobody knows."""
        ...

    def process(self, batch: Sequence[Task]) -> None:
        """Run a batch, on a thread, and tell the owners; must not raise."""
        ...


class BatchThreads:
    """The threads of all models, started when they are first needed.

    Args:
        threads: batches run at once.
        name: of the threads.
        admission: refuses tasks that would wait too long; None takes all that the queues take.
    """

    def __init__(self, threads: int, name: str = "batch_threads", admission: Admission | None = None) -> None:
        self.threads = threads
        self._name = name
        self._admission = admission or Admission()
        self._lock = threading.Lock()
        # Idle threads sleep; one of them, the watcher, sleeps only until the next batch is due.
        self._sleep = threading.Condition(self._lock)
        self._watch = threading.Condition(self._lock)
        self._sleeping = 0
        self._watching = False
        self._watched = math.inf
        self._active: deque[Queue] = deque()
        self._running: dict[int, float] = {}
        # Which queue's batch a thread runs, and that a thread is through with one.
        self._at: dict[int, Queue] = {}
        self._through = threading.Condition(self._lock)
        self._started: list[threading.Thread] = []
        self._closed = False

    def submit(self, queue: Queue, task: Task) -> None:
        """Put a task into a queue.

        Raises:
            InvalidArgument: the task is too large.
            Unavailable: the queue is full, the task would wait too long, or queue or threads are closed.
        """
        now = time.monotonic()
        with self._lock:
            if self._closed or queue.closed:
                raise Unavailable("the server is being stopped")
            if self._admission.max_delay_s:
                self._admission.check(self._wait_s(queue, task, now), task.deadline)
            task.queued_at = now
            queue.offer(task, now)
            first = queue not in self._active
            if first:
                self._active.append(queue)
            if first or queue.ready_at() <= now:
                self._wake()

    def _wait_s(self, queue: Queue, task: Task, now: float) -> float:
        """Guess how long a task would wait. Queues take turns, so of each other one as many batches go before."""
        own = queue.batches_ahead(task)
        ahead_s = own * queue.batch_s()
        for other in self._active:
            if other is not queue:
                ahead_s += min(other.batches(), own + 1) * other.batch_s()
        free_s = 0.0
        if len(self._running) >= self.threads:
            free_s = max(0.0, min(self._running.values()) - now)
        return free_s + ahead_s / self.threads

    def cancel(self, queue: Queue, task: Task) -> None:
        """Give a task up: it is not begun any more, and makes room in its queue at once."""
        with self._lock:
            for one in (task, *task.parts):
                one.cancelled = True
                if not one.done:
                    queue.drop(one)

    def close_queue(self, queue: Queue) -> None:
        """Take nothing more into a queue, run what waits in it at once, and wait for the end of its last batch.

        Not on a thread of these. A batch may be run for nobody: all who asked for it may have left.
        """
        with self._lock:
            queue.closed = True
            if queue in self._active:
                self._wake()
            self._through.wait_for(
                lambda: queue.ready_at() == math.inf and not any(at is queue for at in self._at.values())
            )

    def close(self) -> None:
        """Take nothing more in, run what waits, end the threads."""
        with self._lock:
            self._closed = True
            for queue in self._active:
                queue.closed = True
            self._sleep.notify_all()
            self._watch.notify_all()
        deadline = time.monotonic() + _JOIN_S
        for thread in self._started:
            if thread is not threading.current_thread():
                thread.join(max(0.0, deadline - time.monotonic()))

    # Threads

    def _wake(self) -> None:
        """Have one more thread look for work; the lock is held."""
        if self._sleeping:
            self._sleep.notify()
        elif self._watching:
            self._watch.notify()
        elif len(self._started) < self.threads:
            name = f"{self._name}_{len(self._started)}"
            thread = threading.Thread(target=self._work, name=name, daemon=True)
            self._started.append(thread)
            thread.start()

    def _work(self) -> None:
        me = threading.get_ident()
        while True:
            with self._lock:
                self._running.pop(me, None)
                if self._at.pop(me, None) is not None:
                    self._through.notify_all()
                queue = self._next()
                if queue is None:
                    return
                self._at[me] = queue
                self._running[me] = time.monotonic() + queue.batch_s()
                batch = self._take(queue)
                if self._active:
                    self._wake()
            queue.process(batch)
            # What a batch held, possibly large, must not live until the next one comes.
            del batch, queue

    def _take(self, queue: Queue) -> list[Task]:
        batch = queue.take()
        if queue.ready_at() == math.inf:
            self._active.remove(queue)
        return batch

    def _next(self) -> Queue | None:
        """Wait for a queue with a batch that may go; None when the threads are closed and nothing waits."""
        while True:
            now = time.monotonic()
            queue, due = self._pick(now)
            if queue is not None:
                return queue
            if self._closed and not self._active:
                return None
            if due < math.inf and not self._watching:
                self._watching, self._watched = True, due
                self._watch.wait(due - now)
                self._watching = False
            else:
                if due < self._watched:
                    self._watch.notify()
                self._sleeping += 1
                self._sleep.wait()
                self._sleeping -= 1

    def _pick(self, now: float) -> tuple[Queue | None, float]:
        """Return the next queue in turn that has a batch, or none and when one will be due."""
        soonest = math.inf
        for _ in range(len(self._active)):
            queue = self._active.popleft()
            due = queue.ready_at()
            if due == math.inf:
                continue
            self._active.append(queue)
            if due <= now:
                return queue, now
            soonest = min(soonest, due)
        return None, soonest
