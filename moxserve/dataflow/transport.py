"""How datapoints get from one process to another: slots of shared memory, and two pipes that carry their numbers.

                      down: numbers of slots, for whichever worker reads first
    parent  ──────────────────────────────────────────────▶  workers
            ◀──────────────────────────────────────────────
                      up: numbers of slots that are filled

A slot has one owner: who read its number from a pipe. A worker that has none waits for one; so nothing is ever dropped,
and no more is made than there is room for. What goes down empty is filled by the worker (a flow that runs there), and
what goes down full is worked on (a function that maps there): the pool does not tell the two apart.

An error in a worker goes up like a datapoint, behind those before it. A worker that dies without a word is noticed by
the end of its process.
"""

from __future__ import annotations

import array
import contextlib
import functools
import os
import select
import signal
import sys
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from multiprocessing.util import Finalize
from typing import Any

from moxserve.dataflow import processes, seeds
from moxserve.dataflow.base import DataFlowTerminated
from moxserve.dataflow.processes import DataFlowWorkerError, ErrorParts, Lifeline
from moxserve.dataflow.slots import DATA, ERROR, MAX_SLOTS, Message, Slots, WritableSlot
from moxserve.errors import UsageError

__all__ = ["Pool", "Station"]

_NUMBER_BYTES = 4
# Numbers read at once; also what keeps reads of several workers whole.
_READ_BYTES = 256 * _NUMBER_BYTES
# How long after the last word of its pipe a dead process may take to be told of by the system.
_REAP_S = 1.0


def _pack(slots: Sequence[int]) -> bytes:
    return array.array("I", slots).tobytes()


@dataclass
class Station:
    """What a worker has of a pool.

    Attributes:
        index: of this worker in the pool.
        siblings: how many other workers there are.
        slots: shared with the parent.
        down: numbers of slots that come.
        up: numbers of slots that go.
        life: its tie to the parent.
        work: what it does: called with this object.
    """

    index: int
    siblings: int
    slots: Slots
    down: Connection
    up: Connection
    life: Lifeline
    work: Callable[[Station], None]

    def take(self) -> Iterator[int]:
        """Wait for slots; ends when the parent wants the worker to."""
        # Of several workers, none takes what another could have begun.
        size = _NUMBER_BYTES if self.siblings else _READ_BYTES
        down = self.down.fileno()
        while numbers := os.read(down, size):
            yield from array.array("I", numbers)

    def give(self, slot: int, kind: int, number: int, value: Any) -> None:
        """Fill a slot and send it up."""
        self.send(WritableSlot(self.slots, slot), slot, Message(kind, self.index, number, value))

    def send(self, place: WritableSlot, slot: int, message: Message) -> None:
        """Write a message, or why it cannot be written, and send it up."""
        try:
            place.write(message)
        except Exception as error:  # noqa: BLE001 - it cannot be pickled, or there is no room: for the parent to know
            parts = ErrorParts.of(error)
            WritableSlot(self.slots, slot).write(Message(ERROR, self.index, message.number, parts))
        os.write(self.up.fileno(), slot.to_bytes(_NUMBER_BYTES, sys.byteorder))

    def fail(self, slot: int, number: int, error: BaseException) -> None:
        """Send an error up in a slot."""
        self.give(slot, ERROR, number, ErrorParts.of(error))


def _main(station: Station) -> None:
    processes.begin_worker(station.life)
    with contextlib.suppress(BrokenPipeError):
        station.work(station)


@dataclass(frozen=True)
class PoolOptions:
    """How a pool is made.

    Attributes:
        name: of the flow, for messages.
        workers: how many.
        slots: how many datapoints may be under way.
        start_method: `fork` or `spawn`; None for the first that the system has.
    """

    name: str
    workers: int
    slots: int
    start_method: str | None = None


class Pool:
    """Workers that fill slots.

    Starts them. The pool ends when `owner` is collected, at the end of the program, or by `close`.

    Args:
        options: how many workers and slots.
        work: what each worker does, until `Station.take` ends; of a module, for a method other than fork.
        owner: the flow.

    Raises:
        UsageError: there are no workers or slots, too many slots, or no processes can be started so.
    """

    def __init__(self, options: PoolOptions, work: Callable[[Station], None], owner: Any) -> None:
        if options.workers < 1 or options.slots < 1:
            raise UsageError(f"{options.name} needs at least one worker and room for one datapoint, got {options}")
        self._options = options
        self.slots = Slots(min(options.slots, MAX_SLOTS))
        self._ready: deque[int] = deque()
        self._returned: list[int] = []
        self._held: dict[int, Any] = {}
        self._let_go: deque[int] = deque()
        self._lock = threading.Lock()
        self._closed, self._forked = False, False
        self._failure: BaseException | None = None
        with processes.no_fork():
            down, self._down = Pipe(duplex=False)
            self._up, up = Pipe(duplex=False)
            end, self._life = Pipe(duplex=False)
            processes.close_in_children(self)
        path = seeds.worker_path()
        stations = [
            Station(i, options.workers - 1, self.slots, down, up, Lifeline(os.getpid(), end, (*path, i)), work)
            for i in range(options.workers)
        ]
        try:
            method = processes.default_method(options.start_method)
            self._processes = processes.start_processes(_main, stations, method)
        except BaseException:
            with processes.no_fork():
                self.forked()
            raise
        finally:
            for connection in (down, up, end):
                connection.close()
        self._poll = select.poll()
        for readable in (self._up.fileno(), *(process.sentinel for process in self._processes)):
            self._poll.register(readable, select.POLLIN)
        # Before multiprocessing waits for its children at the end of the program.
        self._finalizer = Finalize(owner, functools.partial(Pool.close, self), exitpriority=100)

    def forked(self) -> None:
        """In a child of this process: this is not its pool, and another thread of the parent may hold the lock."""
        self._forked, self._lock = True, threading.Lock()
        for connection in (self._down, self._up, self._life):
            with contextlib.suppress(OSError):
                connection.close()

    def put(self, slots: Sequence[int]) -> None:
        """Send slots down.

        Raises:
            DataFlowTerminated: the pool was closed.
        """
        with self._lock:
            if self._closed or self._forked:
                raise DataFlowTerminated(f"{self._options.name} was closed")
            if self._failure is not None:  # what came before it is still given, and nobody is left to take slots
                return
            # A worker that died is told of by `get`.
            with contextlib.suppress(BrokenPipeError):
                os.write(self._down.fileno(), _pack(slots))

    def put_back(self, slot: int) -> None:
        """Send a slot down, with others: the fewer words, the less often processes wake each other.

        Raises:
            DataFlowTerminated: the pool was closed.
        """
        self._returned.append(slot)
        if not self._ready or len(self._returned) * 4 >= self.slots.count:
            slots, self._returned = self._returned, []
            self.put(slots)

    def get(self) -> int:
        """Wait for a slot that a worker filled, and return its number.

        Raises:
            DataFlowWorkerError: a worker died.
            DataFlowTerminated: the pool was closed.
        """
        while not self._ready:
            if self._closed or self._forked:
                raise DataFlowTerminated(f"{self._options.name} was closed")
            if self._failure is not None:
                raise self._failure
            self._wait()
        return self._ready.popleft()

    def fail(self, error: BaseException) -> None:
        """End the workers; from now on, `get` raises this."""
        self._failure = error
        self._ready.clear()
        self._end(0.0)

    def receive(self) -> tuple[int, Message]:
        """Wait for a message, and return it with its slot, which is the caller's now."""
        slot = self.get()
        return slot, self.slots.read(slot)

    def receive_view(self) -> Message:
        """Wait for a message whose arrays lie in their slot; it goes down again when none of them is left.

        Half of the slots never wait for that: when as many are held, arrays are copied, and nothing comes to a stop.
        """
        while self._let_go:
            slot = self._let_go.popleft()
            del self._held[slot]
            self.put_back(slot)
        slot = self.get()
        if 2 * len(self._held) >= self.slots.count - 1:
            message = self.slots.read(slot)
            self.put_back(slot)
            return message
        message, owner = self.slots.view(slot)
        # Collecting garbage may call this anywhere; a deque needs no lock.
        let_go = self._let_go
        self._held[slot] = weakref.ref(owner, lambda _: let_go.append(slot))
        return message

    def _wait(self) -> None:
        up = self._up.fileno()
        told = {file for file, _ in self._poll.poll()}
        if up in told:
            self._read(up)
        if not told <= {up} and not self._closed:
            # What was sent before is given first.
            while _readable(up) and self._read(up):
                pass
            self._failure = self._death()
            self._end(0.0)

    def _read(self, up: int) -> bool:
        numbers = os.read(up, _READ_BYTES)
        self._ready.extend(array.array("I", numbers))
        return bool(numbers)

    def _death(self) -> DataFlowWorkerError:
        for index, process in enumerate(self._processes):
            process.join(0)
            if process.exitcode is None and _readable(process.sentinel):
                process.join(_REAP_S)
            if process.exitcode is not None:
                how = _how_it_ended(process.exitcode)
                return DataFlowWorkerError(
                    f"worker {index} (process {process.pid}) of {self._options.name} {how}",
                    hint="SIGKILL often comes from the system when memory is short: see its log, and take fewer workers"
                    " or a smaller buffer"
                    if process.exitcode == -signal.SIGKILL
                    else "its own output may tell why",
                )
        return DataFlowWorkerError(f"a worker of {self._options.name} ended")

    def close(self) -> None:
        """End the workers; an iteration that waits for them ends with DataFlowTerminated. Twice is the same as once."""
        if not self._forked:
            self._closed = True
            self._end(2.0)

    def _end(self, patience_s: float) -> None:
        with self._lock, processes.no_fork():
            for connection in (self._down, self._life):
                connection.close()
        processes.end_processes(self._processes, patience_s)


def _readable(file: int) -> bool:
    poll = select.poll()
    poll.register(file, select.POLLIN)
    return bool(poll.poll(0))


def _how_it_ended(code: int) -> str:
    if code >= 0:
        return f"ended with exit code {code}"
    try:
        return f"was killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"was killed by signal {-code}"


def value_of(message: Message) -> Any:
    """Return a datapoint.

    Raises:
        BaseException: the error that the worker sent instead.
    """
    if message.kind == DATA:
        return message.value
    raise message.value.error(message.worker)
