"""Takes records from requests and hands them to whoever tells them, in a thread of its own.

A request only puts its record into a queue of bounded length. When the queue is full, because a disk or a collector is
slower than the requests, records are dropped and counted: a log must never hold up a request.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Protocol

from moxserve.serving.observe.record import RequestRecord

__all__ = ["Recorder", "Sink"]

logger = logging.getLogger(__name__)

_CAPACITY = 10_000
_GATHER_S = 0.02
_REMIND_S = 60.0


class Sink(Protocol):
    """Where records are told. Only the recorder's thread calls it, but for `reopen`."""

    name: str

    def write(self, records: Sequence[RequestRecord], dropped: int) -> None:
        """Tell some records, and how many were dropped since the last call.

        Raises:
            OSError: they cannot be written; they are lost then.
        """
        ...

    def reopen(self) -> None:
        """Open the file anew at the next write, since it was moved away. Called from any thread."""
        ...

    def close(self) -> None:
        """Tell what is left, and let go."""
        ...


class Recorder:
    """The queue and the thread behind it.

    Args:
        sinks: where records are told; without any the recorder does nothing, and is `active` never.
        dropped: called with the number of records that were dropped since the last call, sometimes.
        capacity: how many records wait at most.

    Attributes:
        active: whether anybody wants records. Requests look here before they make one.
    """

    def __init__(
        self, sinks: Sequence[Sink] = (), dropped: Callable[[int], None] | None = None, capacity: int = _CAPACITY
    ) -> None:
        self.active = bool(sinks)
        self._sinks = sinks
        self._tell_dropped = dropped
        self._capacity = capacity
        self._queue: deque[RequestRecord] = deque()
        self._dropped = 0
        self._wake = threading.Event()
        self._stop = threading.Event()
        self._told_at: dict[str, float] = {}
        self._thread = threading.Thread(target=self._run, name="moxserve-recorder", daemon=True)

    def start(self) -> None:
        """Begin to tell."""
        if self.active:
            self._thread.start()

    def take(self, record: RequestRecord) -> None:
        """Take a finished record; returns at once."""
        if len(self._queue) >= self._capacity:
            self._dropped += 1
        else:
            self._queue.append(record)
        if not self._wake.is_set():
            self._wake.set()

    def reopen(self) -> None:
        """Have files opened anew, after they were moved away; may be called from a handler of signals."""
        for sink in self._sinks:
            sink.reopen()

    def close(self, timeout_s: float) -> bool:
        """Tell what is left and end; False when the time was up first. Harmless when done before."""
        first = not self._stop.is_set()
        self._stop.set()
        if first and not self._thread.is_alive():
            self._close_sinks()  # it was never started
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _run(self) -> None:
        while not self._stop.is_set():
            self._wake.wait()
            # Wakes the thread once for many requests: each switch between threads costs the loop as much as a record.
            self._stop.wait(_GATHER_S)
            self._wake.clear()
            self._drain()
        self._drain()
        self._close_sinks()

    def _close_sinks(self) -> None:
        for sink in self._sinks:
            self._safely(sink, sink.close)

    def _drain(self) -> None:
        records = []
        while self._queue:
            records.append(self._queue.popleft())
        # Two threads may count at once and lose one; that there was a loss is never lost.
        dropped, self._dropped = self._dropped, 0
        if dropped:
            self._told(
                "queue", "%d records of requests were dropped: they came faster than they could be told", dropped
            )
            if self._tell_dropped is not None:
                self._tell_dropped(dropped)
        for sink in self._sinks:
            self._safely(sink, lambda sink=sink: sink.write(records, dropped))  # type: ignore[misc]

    def _safely(self, sink: Sink, work: Callable[[], None]) -> None:
        try:
            work()
        except OSError as error:
            self._told(sink.name, "%s cannot be written: %s", sink.name, error)
        except Exception:
            # Without this thread nothing would ever be told again.
            logger.exception("%s failed", sink.name)

    def _told(self, about: str, text: str, *arguments: object) -> None:
        now = time.monotonic()
        if now - self._told_at.get(about, -_REMIND_S) >= _REMIND_S:
            self._told_at[about] = now
            logger.warning(text, *arguments)
