"""A bounded pool of threads for work that would hold up the event loop."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TypeVar

from moxserve.errors import DeadlineExceeded, Unavailable
from moxserve.serving.execution.admission import Admission
from moxserve.serving.execution.context import RequestContext

__all__ = ["MAX_WAITING", "WorkPool", "patiently"]

T = TypeVar("T")

# Requests that may wait in one line, unless somebody says otherwise.
MAX_WAITING = 1000
TIMED_OUT = "Timed out waiting for notification"


class WorkPool:
    """Threads with a line before them that has an end.

    Args:
        threads: pieces of work done at once.
        max_waiting: pieces that may wait; one more is refused at once.
        name: of the threads.
        admission: refuses work that would wait too long; None takes all that has room.
    """

    def __init__(self, threads: int, max_waiting: int, name: str, admission: Admission | None = None) -> None:
        self.threads = threads
        self._admission = admission or Admission()
        self._max_waiting = max_waiting
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix=name)
        self._busy = 0
        self._expected_s = 0.0
        self._lock = threading.Lock()

    @property
    def busy(self) -> int:
        """Return how many pieces of work are being done or wait."""
        return self._busy

    async def run(self, work: Callable[[], T], context: RequestContext, expected_s: float = 0.0) -> T:
        """Do a piece of work on a thread, and wait for it as long as its caller does.

        Work that was not begun when its caller left, or when its time was up, is dropped. What was begun goes on to
        its end: no runtime can break off a run.

        Args:
            work: what to do.
            context: how long the caller waits.
            expected_s: how long it will take, as far as anyone knows, in s.

        Raises:
            DeadlineExceeded: the time was up.
            Unavailable: too much is waiting, it would wait too long, or the pool is closed.
            BaseException: what the work raised.
        """
        if self._busy >= self.threads + self._max_waiting:
            raise Unavailable(
                f"the queue to which this request was submitted is full; {self._max_waiting} requests are waiting for "
                f"{self.threads} threads"
            )
        self._admission.check(self._wait_s(), context.deadline)
        self._count(1, expected_s)
        try:
            task = self._pool.submit(work)
        except RuntimeError:
            self._count(-1, -expected_s)
            raise Unavailable("the server is being stopped") from None
        # Counted until it is really over: a run whose caller has left still holds its thread.
        task.add_done_callback(lambda _: self._count(-1, -expected_s))
        return await patiently(asyncio.wrap_future(task), context)

    def _wait_s(self) -> float:
        """Guess how long the next piece of work would wait: threads become free one after the other."""
        busy = self._busy
        return 0.0 if busy < self.threads else self._expected_s / busy * (busy - self.threads + 1) / self.threads

    def _count(self, change: int, expected_s: float) -> None:
        with self._lock:
            self._busy += change
            self._expected_s += expected_s

    def close(self, *, wait: bool = False) -> None:
        """Begin nothing more.

        Args:
            wait: for the work that has begun, also that whose caller has left. Not on the event loop.
        """
        self._pool.shutdown(wait=wait, cancel_futures=True)


async def patiently(future: asyncio.Future[T], context: RequestContext) -> T:
    """Wait for a result as long as the caller does; what is waited for is cancelled then.

    Raises:
        DeadlineExceeded: the time was up.
        asyncio.CancelledError: the caller has left.
        BaseException: what came instead of a result.
    """
    if context.gone is None and context.deadline == float("inf"):
        return await future
    loop = asyncio.get_running_loop()
    expired: list[None] = []

    def expire() -> None:
        expired.append(None)
        future.cancel()

    with contextlib.ExitStack() as stack:
        if context.deadline != float("inf"):
            timer = loop.call_later(max(0.0, context.deadline - time.monotonic()), expire)
            stack.callback(timer.cancel)
        if context.gone is not None:
            watch = asyncio.ensure_future(context.gone())
            watch.add_done_callback(partial(_left, future))
            stack.callback(watch.cancel)
        try:
            return await future
        except asyncio.CancelledError:
            if expired:
                raise DeadlineExceeded(TIMED_OUT) from None
            raise


def _left(future: asyncio.Future[T], watch: asyncio.Future[object]) -> None:
    if not watch.cancelled() and watch.exception() is None:
        future.cancel()
