"""One flow, whose datapoints are mapped by several processes or threads.

    flow ─▶ numbered datapoints ─▶ map_func in the workers ─▶ results as they are ready, or in order

    strict         a pass gives exactly what MapData gives, then ends; None is an error
    not strict     no end: the flow is repeated, and passes may mix; None drops the datapoint
    ordered        in MapData's order, strict or not (not in tensorpack)

No more than `buffer_size` datapoints are under way; that may be more than the flow has.

With `fix_rng_seed`, random numbers in a process's `map_func` (augmentors, `random`, `numpy.random`) depend on the
number of the datapoint and not on which worker it meets, so that results are the same for any number of processes.
Threads share such generators: draw from one of your own there.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from moxserve.dataflow import seeds
from moxserve.dataflow.base import DataFlow, DataFlowReentrantGuard, DataFlowTerminated, ProxyDataFlow
from moxserve.dataflow.parallel import Endless, Failure, nothing_left, old_name
from moxserve.dataflow.slots import MAX_SLOTS
from moxserve.dataflow.transport import PoolOptions
from moxserve.dataflow.workshop import MapBatch, MapFunc, MapOne, Processes, Threads, Workshop
from moxserve.errors import DataError, UsageError

__all__ = [
    "MultiProcessMapAndBatchData",
    "MultiProcessMapAndBatchDataZMQ",
    "MultiProcessMapData",
    "MultiProcessMapDataZMQ",
    "MultiThreadMapData",
    "ThreadedMapData",
]


@dataclass
class _Feed:
    """What is handed in.

    Attributes:
        inputs: of the workers.
        ended: whether there are no more.
        failure: what the flow raised.
    """

    inputs: Iterator[Any]
    ended: bool = False
    failure: Exception | None = None


class _ParallelMap(ProxyDataFlow):
    """What all of them share: what is handed in, what is given out, and when a pass ends.

    Args:
        ds: the flow.
        strict: one exact pass an iteration.
        ordered: results in the order of the flow.
    """

    def __init__(self, ds: DataFlow, strict: bool, ordered: bool) -> None:
        super().__init__(ds)
        self._is_strict, self._is_ordered = strict, ordered
        self._guard = DataFlowReentrantGuard()
        self._workshop: Workshop | None = None
        self._number = seeds.next_number()
        self._forget()

    def __getstate__(self) -> dict[str, Any]:
        """A copy has no workers yet."""
        return {**super().__getstate__(), "_workshop": None, "_source": None, "_pending": 0, "_early": {}}

    def _forget(self) -> None:
        # Datapoints handed in and given out over all passes, those under way, and results that came before their turn.
        self._submitted = self._given = self._pending = 0
        self._early: dict[int, Any] = {}
        self._source: Iterator[Any] | None = None

    def reset_state(self) -> None:
        """Reset the flow and start the workers."""
        # Workers first: a flow that was reset may hold files and threads that they should not inherit.
        self._workshop = self._start()
        super().reset_state()
        self._forget()

    def _start(self) -> Workshop:
        raise TypeError(f"{type(self).__name__} starts no workers")

    def _inputs(self, ds: DataFlow) -> Iterator[Any]:
        """Yield what is handed to the workers."""
        return iter(ds)

    def __iter__(self) -> Iterator[Any]:
        """Yield results.

        Raises:
            BaseException: what the flow or the function raised, behind the results before it.
            DataFlowWorkerError: a worker died.
            DataError: the function returned None in strict mode.
            DataFlowTerminated: `close` was called.
        """
        with self._guard:
            if self._is_strict:
                # Of a pass that was given up.
                while self._pending:
                    self._take()
                yield from self._pump(self._inputs(self.ds))
                return
            if self._source is None:
                self._source = self._inputs(Endless(self.ds))
            yield from self._pump(self._source)

    def _pump(self, inputs: Iterator[Any]) -> Iterator[Any]:
        feed = _Feed(inputs)
        while True:
            self._fill(feed)
            if not self._pending:
                if feed.failure is not None:
                    raise feed.failure
                return
            number, result = self._take()
            if isinstance(result, Failure):
                raise result.error
            if result is not None:
                yield result
            elif self._is_strict:
                raise DataError(
                    f"map_func returned None for datapoint {number}, which {type(self).__name__} may not drop"
                    " in strict mode",
                    hint="drop datapoints with MapData before or behind it, or use strict=False",
                )

    def _fill(self, feed: _Feed) -> None:
        """Hand in as much as there is room for."""
        capacity = self._opened().capacity
        while not feed.ended and self._pending < capacity:
            try:
                dp = next(feed.inputs)
            except StopIteration:
                feed.ended = True
            except Exception as error:  # noqa: BLE001 - raised behind the results before it
                feed.ended, feed.failure, self._source = True, error, None
            else:
                self._submit(dp)

    def _opened(self) -> Workshop:
        if self._workshop is None:
            raise DataFlowTerminated(f"{type(self).__name__} was closed")
        return self._workshop

    def _submit(self, dp: Any) -> None:
        self._opened().submit(self._submitted, dp)
        self._submitted += 1
        self._pending += 1

    def _take(self) -> tuple[int, Any]:
        number, result = self._in_order() if self._is_ordered else self._opened().receive()
        self._given += 1
        self._pending -= 1
        return number, result

    def _in_order(self) -> tuple[int, Any]:
        turn = self._given
        while turn not in self._early:
            number, result = self._opened().receive()
            self._early[number] = result
        return turn, self._early.pop(turn)

    def close(self) -> None:
        """End the workers now, instead of when this flow is collected or the program ends."""
        if self._workshop is not None:
            self._workshop.close()


def _checked(map_func: MapFunc | None, buffer_size: int) -> MapFunc:
    if not callable(map_func):
        raise UsageError(f"map_func must be a function of a datapoint, got {type(map_func).__name__}")
    if buffer_size < 1:
        raise UsageError(f"buffer_size must be at least 1, got {buffer_size}")
    return map_func


class MultiProcessMapData(_ParallelMap):
    """MapData in several processes; alias MultiProcessMapDataZMQ.

    The flow itself runs here; the function and what it refers to is forked at `reset_state`.

    Args:
        ds: the flow.
        num_proc: processes; old name `nr_proc`.
        map_func: gets a datapoint, returns the new one, or None to drop it (not in strict mode).
        buffer_size: datapoints that may be under way, at most 2048; more than the flow has is not an error.
        strict: an iteration gives exactly the set that MapData gives; otherwise it has no end.
        ordered: results come in the order of the flow.
        start_method: `fork`, or `spawn` for a function that can be pickled.

    Raises:
        UsageError: an argument is missing or out of range.
    """

    def __init__(
        self,
        ds: DataFlow,
        num_proc: int | None = None,
        map_func: MapFunc | None = None,
        buffer_size: int = 200,
        strict: bool = False,
        *,
        ordered: bool = False,
        start_method: str | None = None,
        **old: int,
    ) -> None:
        super().__init__(ds, strict, ordered)
        self.num_proc = old_name("num_proc", num_proc, old)
        nothing_left(type(self), old)
        self.map_func = _checked(map_func, buffer_size)
        self._options = PoolOptions(type(self).__name__, self.num_proc, int(buffer_size), start_method)

    def _start(self) -> Workshop:
        return Processes(self._options, MapOne(self.map_func), self, self._number)


class MultiProcessMapAndBatchData(_ParallelMap):
    """BatchData of MapData in several processes, which make the batches too; alias MultiProcessMapAndBatchDataZMQ.

    A batch is mapped by one process, which writes it where this process reads it.

    Args:
        ds: the flow.
        num_proc: processes; old name `nr_proc`.
        map_func: gets a datapoint, returns the new one, or None to drop it (not in strict mode).
        batch_size: datapoints a batch.
        buffer_size: datapoints that may be under way, 10 batches unless told; at least one batch.
        strict: an iteration gives each datapoint once, then ends; otherwise the flow is repeated without end, and a
            batch may hold datapoints of two passes.
        remainder: in strict mode, what is left at the end is a smaller batch, instead of dropped.
        ordered: batches come in the order of the flow.
        start_method: `fork`, or `spawn` for a function that can be pickled.

    Raises:
        UsageError: an argument is missing or out of range.
    """

    def __init__(
        self,
        ds: DataFlow,
        num_proc: int | None = None,
        map_func: MapFunc | None = None,
        batch_size: int = 0,
        buffer_size: int | None = None,
        *,
        strict: bool = False,
        remainder: bool = False,
        ordered: bool = False,
        start_method: str | None = None,
        **old: int,
    ) -> None:
        super().__init__(ds, strict, ordered)
        self.num_proc = old_name("num_proc", num_proc, old)
        nothing_left(type(self), old)
        self.batch_size, self.remainder = int(batch_size), remainder
        if self.batch_size < 1:
            raise UsageError(f"batch_size must be at least 1, got {batch_size}")
        buffer_size = 10 * self.batch_size if buffer_size is None else int(buffer_size)
        if buffer_size < self.batch_size:
            raise UsageError(f"buffer_size must be at least a batch of {batch_size} datapoints, got {buffer_size}")
        self.map_func = _checked(map_func, buffer_size)
        batches = buffer_size // self.batch_size
        self._options = PoolOptions(type(self).__name__, self.num_proc, batches, start_method)

    def __len__(self) -> int:
        """How many batches a pass has, if the function drops nothing."""
        whole, left = divmod(len(self.ds), self.batch_size)
        return whole + bool(left and self.remainder and self._is_strict)

    def _inputs(self, ds: DataFlow) -> Iterator[Any]:
        dps = []
        for dp in ds:
            dps.append(dp)
            if len(dps) == self.batch_size:
                yield dps
                dps = []
        if dps and self.remainder:
            yield dps

    def _start(self) -> Workshop:
        return Processes(self._options, MapBatch(self.map_func, self.batch_size, self._is_strict), self, self._number)


class MultiThreadMapData(_ParallelMap):
    """MapData in several threads; alias ThreadedMapData. For functions that wait, or compute outside Python's lock.

    Args:
        ds: the flow.
        num_thread: threads; old name `nr_thread`.
        map_func: gets a shallow copy of a datapoint, returns the new one, or None to drop it (not in strict mode).
        buffer_size: datapoints that may be under way; more than the flow has is not an error.
        strict: an iteration gives exactly the set that MapData gives; otherwise it has no end.
        ordered: results come in the order of the flow.

    Raises:
        UsageError: an argument is missing or out of range.
    """

    def __init__(
        self,
        ds: DataFlow,
        num_thread: int | None = None,
        map_func: MapFunc | None = None,
        buffer_size: int = 200,
        strict: bool = False,
        *,
        ordered: bool = False,
        **old: int,
    ) -> None:
        super().__init__(ds, strict, ordered)
        self.num_thread = old_name("num_thread", num_thread, old)
        nothing_left(type(self), old)
        self.map_func = _checked(map_func, buffer_size)
        self._capacity = min(int(buffer_size), MAX_SLOTS)

    def _start(self) -> Workshop:
        return Threads(self.num_thread, self._capacity, self.map_func, self)


MultiProcessMapDataZMQ = MultiProcessMapData
MultiProcessMapAndBatchDataZMQ = MultiProcessMapAndBatchData
ThreadedMapData = MultiThreadMapData
