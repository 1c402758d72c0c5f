"""Who maps the datapoints of `parallel_map`: processes, which take and give them in slots of shared memory, or threads.

Neither knows of the flow, of passes or of order.
"""

from __future__ import annotations

import queue
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

from moxserve.dataflow import seeds
from moxserve.dataflow.base import DataFlowTerminated
from moxserve.dataflow.batch import BatchBuilder
from moxserve.dataflow.common import shallow_copy
from moxserve.dataflow.parallel import Failure
from moxserve.dataflow.slots import DATA, Message, WritableSlot
from moxserve.dataflow.threads import start_threads
from moxserve.dataflow.transport import Pool, PoolOptions, Station
from moxserve.errors import DataError

__all__ = ["MapBatch", "MapFunc", "MapOne", "Processes", "Threads", "Workshop"]

MapFunc = Callable[[Any], Any]


class Workshop(Protocol):
    """Workers that map."""

    capacity: int

    def submit(self, number: int, dp: Any) -> None:
        """Hand a datapoint in; there is room for `capacity` of them."""

    def receive(self) -> tuple[int, Any]:
        """Wait for one, in any order; return its number, and the result or a Failure."""

    def close(self) -> None:
        """End the workers."""


@dataclass(frozen=True)
class _Map:
    """What a worker process does: read a datapoint from a slot, and put the result into the same one.

    Attributes:
        function: of a datapoint and the slot that the result may be made in.
        path: numbers of the worker that the flow itself runs in, and of the flow.
    """

    function: Callable[[Any, WritableSlot], Any]
    path: tuple[int, ...]

    def __call__(self, station: Station) -> None:
        """Map until the parent wants no more."""
        for slot in station.take():
            number = 0
            try:
                job = station.slots.read(slot)
                number = job.number
                place = WritableSlot(station.slots, slot)
                value = self._map(number, job.value, place)
            except BaseException as error:  # noqa: BLE001 - it goes to the parent
                station.fail(slot, number, error)
            else:
                station.send(place, slot, Message(DATA, station.index, number, value))
                del value, place

    def _map(self, number: int, dp: Any, place: WritableSlot) -> Any:
        if not seeds.is_fixed():
            return self.function(dp, place)
        with seeds.as_worker((*self.path, number)):
            seeds.reseed()
            return self.function(dp, place)


@dataclass(frozen=True)
class MapOne:
    """Maps one datapoint."""

    map_func: MapFunc

    def __call__(self, dp: Any, _: WritableSlot) -> Any:
        """Return the result, None to drop it."""
        return self.map_func(dp)


class MapBatch:
    """Maps the datapoints of a batch, and makes the batch where it has to be."""

    def __init__(self, map_func: MapFunc, batch_size: int, strict: bool) -> None:
        self._map_func, self._size, self._strict = map_func, batch_size, strict
        self._mapped: list[Any] = []

    def __call__(self, dps: list[Any], place: WritableSlot) -> Any:
        """Return a batch, None while there is none."""
        # What an error left is of another batch in strict mode.
        ready = [] if self._strict else self._mapped
        for i, dp in enumerate(dps):
            mapped = self._map_func(dp)
            if mapped is not None:
                ready.append(mapped)
            elif self._strict:
                raise DataError(
                    f"map_func returned None for datapoint {i} of a batch, which may not be dropped in strict mode",
                    hint="drop datapoints with MapData before it, or use strict=False",
                )
        if not self._strict and len(ready) < self._size:
            return None
        batch, self._mapped = ready[: self._size], ready[self._size :]
        builder = BatchBuilder(len(batch), allocate=place.allocate)
        for dp in batch:
            builder.add(dp)
        return builder.finish()


class Processes:
    """Processes that map: slots go down full and come up full.

    Args:
        options: of the pool.
        function: MapOne or MapBatch.
        owner: the flow, with whose end they end.
        number: of the flow, for random numbers.
    """

    def __init__(self, options: PoolOptions, function: Any, owner: Any, number: int) -> None:
        work = _Map(function, (*seeds.worker_path(), number))
        self._pool = Pool(options, work, owner)
        self.capacity = self._pool.slots.count
        self._idle = list(range(self.capacity))

    def submit(self, number: int, dp: Any) -> None:
        """Put a datapoint into a slot and send it."""
        slot = self._idle[-1]
        self._pool.slots.write(slot, Message(DATA, 0, number, dp))
        self._idle.pop()
        self._pool.put((slot,))

    def receive(self) -> tuple[int, Any]:
        """Wait for a slot that comes back."""
        slot, message = self._pool.receive()
        self._idle.append(slot)
        result = message.value
        return message.number, result if message.kind == DATA else Failure(result.error(message.worker))

    def close(self) -> None:
        """End the processes."""
        self._pool.close()


class Threads:
    """Threads that map.

    Args:
        count: how many.
        capacity: datapoints that may be under way.
        map_func: of a datapoint.
        owner: the flow, with whose end they end.
    """

    def __init__(self, count: int, capacity: int, map_func: MapFunc, owner: Any) -> None:
        self.capacity = capacity
        self._todo: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._done: queue.SimpleQueue[Any] = queue.SimpleQueue()
        path = seeds.worker_path()
        works = [partial(_map_in_thread, map_func, self._todo, self._done, (*path, i)) for i in range(count)]
        stop = partial(_stop_threads, self._todo, self._done, count)
        self._stop = start_threads(owner, works, stop, "moxserve-map")

    def submit(self, number: int, dp: Any) -> None:
        """Hand a datapoint in."""
        self._todo.put((number, dp))

    def receive(self) -> tuple[int, Any]:
        """Wait for a result."""
        item = self._done.get()
        if item is None:
            # For the next one who asks.
            self._done.put(None)
            raise DataFlowTerminated("MultiThreadMapData was closed")
        return item

    def close(self) -> None:
        """End the threads."""
        self._stop()


def _map_in_thread(
    map_func: MapFunc, todo: queue.SimpleQueue[Any], done: queue.SimpleQueue[Any], path: tuple[int, ...]
) -> None:
    with seeds.as_worker(path):
        while (item := todo.get()) is not None:
            number, dp = item
            try:
                done.put((number, map_func(shallow_copy(dp))))
            except BaseException as error:  # noqa: BLE001 - it goes to who iterates
                done.put((number, Failure(error)))
            del item, dp


def _stop_threads(todo: queue.SimpleQueue[Any], done: queue.SimpleQueue[Any], count: int) -> None:
    # What waits is not mapped any more.
    while not todo.empty():
        try:
            todo.get_nowait()
        except queue.Empty:
            break
    for _ in range(count):
        todo.put(None)
    done.put(None)
