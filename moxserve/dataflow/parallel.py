"""Runners: flows that run as a whole in other processes or threads, so that their datapoints wait when they are wanted.

    flow  ─▶ a copy of it in each worker ─▶ slots of shared memory ─▶ iteration

With one worker: the same data in the same order. With more, each worker runs the whole flow with random numbers of its
own: right for data that is shuffled without end, wrong for a pass over a validation set (`parallel_map`, strict, is).

The names say ZMQ as tensorpack's do; between processes of one machine it is shared memory (`transport`), and ZeroMQ
only between machines (`remote`).
"""

from __future__ import annotations

import itertools
import queue
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from moxserve.dataflow import seeds
from moxserve.dataflow.base import DataFlow, DataFlowReentrantGuard, DataFlowTerminated, ProxyDataFlow
from moxserve.dataflow.batch import BatchData
from moxserve.dataflow.slots import DATA, Message, WritableSlot
from moxserve.dataflow.threads import start_threads
from moxserve.dataflow.transport import Pool, PoolOptions, Station, value_of
from moxserve.errors import DataError, UsageError

__all__ = [
    "MultiProcessPrefetchData",
    "MultiProcessRunner",
    "MultiProcessRunnerZMQ",
    "MultiThreadPrefetchData",
    "MultiThreadRunner",
    "PrefetchData",
    "PrefetchDataZMQ",
]


def known_length(ds: DataFlow) -> int | None:
    """Return the length of a flow, None if it does not know."""
    try:
        return len(ds)
    except NotImplementedError:
        return None


def old_name(name: str, value: int | None, old: dict[str, Any], default: int | None = None) -> int:
    """Return an argument that tensorpack renamed: `num_proc` was `nr_proc`.

    Raises:
        UsageError: it was not given, given twice, or is less than 1.
    """
    before = f"nr_{name.removeprefix('num_')}"
    if before in old:
        if value is not None:
            raise UsageError(f"{name} and {before} are two names of one argument; both were given")
        value = old.pop(before)
    value = default if value is None else value
    if value is None:
        raise UsageError(f"{name} was not given")
    if int(value) < 1:
        raise UsageError(f"{name} must be at least 1, got {value}")
    return int(value)


def nothing_left(kind: type, old: dict[str, Any]) -> None:
    """Refuse keyword arguments that nobody knows.

    Raises:
        TypeError: there are some, as Python says it.
    """
    if old:
        raise TypeError(f"{kind.__name__}() got an unexpected keyword argument {next(iter(old))!r}")


class Endless(DataFlow):
    """A flow over and over, in a worker."""

    def __init__(self, ds: DataFlow) -> None:
        self._ds = ds

    def __iter__(self) -> Iterator[Any]:
        while True:
            empty = True
            for dp in self._ds:
                empty = False
                yield dp
            if empty:
                raise DataError(f"{type(self._ds).__name__} ended without a datapoint: there is nothing to repeat")


class _Run:
    """What a worker of a runner does: run the flow, and put what it yields into the slots that come."""

    def __init__(self, ds: DataFlow) -> None:
        self._ds = ds

    def __call__(self, station: Station) -> None:
        """Run until the parent wants no more, or the flow fails."""
        slots = station.take()
        try:
            self._ds.reset_state()
            source = self._source()
        except BaseException as error:  # noqa: BLE001 - it goes to the parent
            station.fail(next(slots), 0, error)
            return
        for number, slot in enumerate(slots):
            place = WritableSlot(station.slots, slot)
            try:
                dp = source(place)
            except BaseException as error:  # noqa: BLE001 - it goes to the parent
                station.fail(slot, number, error)
                return
            station.send(place, slot, Message(DATA, station.index, number, dp))
            del dp

    def _source(self) -> Callable[[WritableSlot], Any]:
        ds = self._ds
        if type(ds) is BatchData:
            # The batch is made where it has to be: in the slot.
            place: list[WritableSlot] = []
            batches = iter(Endless(_BatchesInPlace(ds, lambda shape, dtype: place[0].allocate(shape, dtype))))

            def next_batch(slot: WritableSlot) -> Any:
                place[:] = [slot]
                return next(batches)

            return next_batch
        datapoints = iter(Endless(ds))
        return lambda _: next(datapoints)


class _BatchesInPlace(ProxyDataFlow):
    def __init__(self, ds: BatchData, allocate: Callable[..., Any]) -> None:
        super().__init__(ds)
        self._allocate = allocate

    def __iter__(self) -> Iterator[Any]:
        batches: BatchData = self.ds  # type: ignore[assignment]
        return batches.batches(self._allocate)


class _ProcessRunner(ProxyDataFlow):
    """What both runners with processes share.

    Args:
        ds: the flow.
        workers: how many processes.
        slots: datapoints that may wait.
        start_method: how processes start.
        copy: out of the slots.
    """

    def __init__(self, ds: DataFlow, workers: int, slots: int, start_method: str | None, copy: bool) -> None:
        super().__init__(ds)
        self._copy = copy
        self.num_proc = workers
        # Each worker has one in hand while it makes the datapoint.
        self._options = PoolOptions(type(self).__name__, workers, slots + workers, start_method)
        self._guard = DataFlowReentrantGuard()
        self._pool: Pool | None = None

    def __getstate__(self) -> dict[str, Any]:
        """A copy has no workers yet."""
        return {**super().__getstate__(), "_pool": None}

    def reset_state(self) -> None:
        """Start the workers. The flow inside is reset there."""
        self._pool = Pool(self._options, _Run(self.ds), self)
        self._pool.put(range(self._pool.slots.count))

    def __iter__(self) -> Iterator[Any]:
        """Yield as many datapoints as the flow says it has, or without end; the next iteration goes on.

        Raises:
            BaseException: what the flow raised in a worker, with the traceback of the worker as its cause.
            DataFlowWorkerError: a worker died.
            DataFlowTerminated: `close` was called.
        """
        with self._guard:
            size = known_length(self.ds)
            for _ in itertools.count() if size is None else range(size):
                yield self._next()

    def _next(self) -> Any:
        pool = self._pool
        if pool is None:
            raise DataFlowTerminated(f"{type(self).__name__} was closed")
        if self._copy:
            slot, message = pool.receive()
            pool.put_back(slot)
        else:
            message = pool.receive_view()
        try:
            return value_of(message)
        except BaseException as error:
            pool.fail(error)
            raise

    def close(self) -> None:
        """End the workers now, instead of when this flow is collected or the program ends."""
        if self._pool is not None:
            self._pool.close()


class MultiProcessRunnerZMQ(_ProcessRunner):
    """Runs a flow in processes of its own; alias PrefetchDataZMQ.

    Processes start at `reset_state`, by fork: lambdas and open data stay usable, and it is best done before a session
    of TensorFlow is made. They end with this flow, with the program, and when the program is killed.

    Args:
        ds: the flow. It is reset in each process.
        num_proc: processes; old name `nr_proc`. One: the same data in the same order. More: each runs the whole flow
            with its own random numbers, and their datapoints come as they are ready.
        hwm: datapoints that may wait.
        start_method: `fork`, or `spawn` for a flow that can be pickled.
        copy: False for arrays that lie in the memory that they came in, which is used again when the last view of them
            is collected. Cheaper, above all for batches; not for a program that forks while it keeps such arrays,
            since a child would see them change.

    Raises:
        UsageError: an argument is out of range.
    """

    def __init__(
        self,
        ds: DataFlow,
        num_proc: int | None = None,
        hwm: int = 50,
        *,
        start_method: str | None = None,
        copy: bool = True,
        **old: int,
    ) -> None:
        workers = old_name("num_proc", num_proc, old, 1)
        nothing_left(type(self), old)
        if hwm < 1:
            raise UsageError(f"hwm must be at least 1, got {hwm}")
        super().__init__(ds, workers, int(hwm), start_method, copy)


class MultiProcessRunner(_ProcessRunner):
    """Runs a flow in processes of its own, with tensorpack's other argument list; alias PrefetchData.

    Args:
        ds: the flow.
        num_prefetch: datapoints that may wait; old name `nr_prefetch`.
        num_proc: processes; old name `nr_proc`.
        start_method: as for MultiProcessRunnerZMQ.
        copy: as for MultiProcessRunnerZMQ.

    Raises:
        UsageError: an argument is missing or out of range.
    """

    def __init__(
        self,
        ds: DataFlow,
        num_prefetch: int | None = None,
        num_proc: int | None = None,
        *,
        start_method: str | None = None,
        copy: bool = True,
        **old: int,
    ) -> None:
        slots = old_name("num_prefetch", num_prefetch, old)
        workers = old_name("num_proc", num_proc, old)
        nothing_left(type(self), old)
        super().__init__(ds, workers, slots, start_method, copy)


class MultiThreadRunner(DataFlow):
    """Runs flows in threads; alias MultiThreadPrefetchData.

    For flows that wait (files, networks) or compute outside Python's lock.

    Args:
        get_df: called once for each thread; returns the flow of that thread, another each time.
        num_prefetch: datapoints that may wait; old name `nr_prefetch`.
        num_thread: threads; old name `nr_thread`.

    Raises:
        UsageError: an argument is missing or out of range, or `get_df` returns no flow, or one flow twice.
    """

    def __init__(
        self,
        get_df: Callable[[], DataFlow],
        num_prefetch: int | None = None,
        num_thread: int | None = None,
        **old: int,
    ) -> None:
        self.num_prefetch = old_name("num_prefetch", num_prefetch, old)
        self.num_thread = old_name("num_thread", num_thread, old)
        nothing_left(type(self), old)
        self._flows = [get_df() for _ in range(self.num_thread)]
        for flow in self._flows:
            if not isinstance(flow, DataFlow):
                raise UsageError(f"get_df must return a DataFlow, got {type(flow).__name__}")
        if len({id(flow) for flow in self._flows}) < self.num_thread:
            raise UsageError("get_df returned one flow for several threads", hint="make a new one in each call")
        self._guard = DataFlowReentrantGuard()
        self._stop: Callable[[], Any] | None = None

    def __len__(self) -> int:
        """The length of the flow of the first thread."""
        return len(self._flows[0])

    def __getstate__(self) -> dict[str, Any]:
        """A copy has no threads yet."""
        return {k: v for k, v in super().__getstate__().items() if k != "_lanes"} | {"_stop": None}

    def reset_state(self) -> None:
        """Start the threads; each resets its flow."""
        self._lanes = _Lanes(self.num_prefetch)
        self._failure: Failure | None = None
        path = seeds.worker_path()
        works = [partial(_run_in_thread, flow, self._lanes, (*path, i)) for i, flow in enumerate(self._flows)]
        self._stop = start_threads(self, works, partial(self._lanes.stop, self.num_thread), "moxserve-flow")

    def __iter__(self) -> Iterator[Any]:
        """Yield as many datapoints as the flow says it has, or without end; the next iteration goes on.

        Raises:
            BaseException: what a flow raised.
            DataFlowTerminated: `close` was called.
        """
        with self._guard:
            size = known_length(self)
            for _ in itertools.count() if size is None else range(size):
                yield self._next()

    def _next(self) -> Any:
        if self._failure is None:
            dp = self._lanes.full.get()
            if not isinstance(dp, Failure):
                self._lanes.room.put(True)
                return dp
            # For the next iteration too.
            self._failure = dp
            self.close()
        raise self._failure.error

    def close(self) -> None:
        """End the threads now, instead of when this flow is collected."""
        if self._stop is not None:
            self._stop()


class Failure:
    """An error among results.

    Args:
        error: to raise where the result would be given.
    """

    def __init__(self, error: BaseException) -> None:
        self.error = error


class _Lanes:
    """Datapoints on their way, and the room for more. SimpleQueue, because collecting garbage may stop them anywhere.

    Attributes:
        full: datapoints, or a Failure.
        room: True for each datapoint that there is room for; False ends a thread.
    """

    def __init__(self, size: int) -> None:
        self.full: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.room: queue.SimpleQueue[bool] = queue.SimpleQueue()
        self.stopped = False
        for _ in range(size):
            self.room.put(True)

    def stop(self, threads: int) -> None:
        """End the threads, and who waits for them."""
        self.stopped = True
        for _ in range(threads):
            self.room.put(False)
        self.full.put(Failure(DataFlowTerminated("MultiThreadRunner was closed")))


def _run_in_thread(ds: DataFlow, lanes: _Lanes, path: tuple[int, ...]) -> None:
    with seeds.as_worker(path):
        try:
            ds.reset_state()
            for dp in Endless(ds):
                if not lanes.room.get() or lanes.stopped:
                    return
                lanes.full.put(dp)
        except BaseException as error:  # noqa: BLE001 - it goes to who iterates
            lanes.full.put(Failure(error))


PrefetchDataZMQ = MultiProcessRunnerZMQ
PrefetchData = MultiProcessPrefetchData = MultiProcessRunner
MultiThreadPrefetchData = MultiThreadRunner
