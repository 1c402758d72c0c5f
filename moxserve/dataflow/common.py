"""Flows that change, choose, repeat, keep or order the datapoints of one flow.

`batch` groups them, `mix` joins flows, `speed` looks at them; their names are here, too, as in tensorpack.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any

from moxserve.dataflow.base import DataFlow, DataFlowReentrantGuard, ProxyDataFlow, RNGDataFlow, UnknownLengthError
from moxserve.dataflow.batch import BatchData, BatchDataByShape, component
from moxserve.dataflow.mix import ConcatData, JoinData, RandomChooseData, RandomMixData
from moxserve.dataflow.speed import PrintData, TestDataSpeed
from moxserve.errors import DataError, UsageError

__all__ = [
    "BatchData",
    "BatchDataByShape",
    "CacheData",
    "ConcatData",
    "FixedSizeData",
    "JoinData",
    "LocallyShuffleData",
    "MapData",
    "MapDataComponent",
    "PrintData",
    "RandomChooseData",
    "RandomMixData",
    "RepeatedData",
    "RepeatedDataPoint",
    "SelectComponent",
    "TestDataSpeed",
]


def shallow_copy(dp: Any) -> Any:
    """Copy a datapoint, not its components, so that a function may put others in their place."""
    kind = type(dp)
    if kind is list or kind is dict:
        return dp.copy()
    return dp if kind is tuple else copy.copy(dp)


class FixedSizeData(ProxyDataFlow):
    """Yields a fixed number of datapoints an iteration; begins the flow again when it ends.

    Args:
        ds: the flow; it may be endless.
        size: datapoints an iteration, at least 1.
        keep_state: the next iteration goes on where this one stopped; otherwise each one begins the flow again.

    Raises:
        UsageError: `size` is less than 1.
    """

    def __init__(self, ds: DataFlow, size: int, keep_state: bool = True) -> None:
        super().__init__(ds)
        if size < 1:
            raise UsageError(f"FixedSizeData needs a size of at least 1, got {size}")
        self._size, self._keep_state = int(size), keep_state
        self._open: Iterator[Any] | None = None
        self._guard = DataFlowReentrantGuard()

    def __len__(self) -> int:
        """The size."""
        return self._size

    def __getstate__(self) -> dict[str, Any]:
        """A copy begins the flow."""
        return {**super().__getstate__(), "_open": None}

    def reset_state(self) -> None:
        """Begin the flow again."""
        super().reset_state()
        self._open = None

    def __iter__(self) -> Iterator[Any]:
        """Yield datapoints.

        Raises:
            DataError: the flow is empty.
        """
        with self._guard:
            if not self._keep_state:
                self._open = None
            for _ in range(self._size):
                yield self._next()

    def _next(self) -> Any:
        # A sentinel, as a datapoint may be anything.
        end = object()
        found = end if self._open is None else next(self._open, end)
        if found is end:
            self._open = iter(self.ds)
            found = next(self._open, end)
        if found is end:
            raise DataError(f"{type(self.ds).__name__} is empty: FixedSizeData cannot take {self._size} datapoints")
        return found


class MapData(ProxyDataFlow):
    """Applies a function to each datapoint.

    Args:
        ds: the flow.
        func: gets a shallow copy of the datapoint, and returns the new one, or None to drop it; `len` does not know
            of dropped ones.
    """

    func: Callable[[Any], Any]

    def __init__(self, ds: DataFlow, func: Callable[[Any], Any]) -> None:
        super().__init__(ds)
        self.func = func

    def __iter__(self) -> Iterator[Any]:
        """Yield what the function returns."""
        func = self.func
        for dp in self.ds:
            mapped = func(shallow_copy(dp))
            if mapped is not None:
                yield mapped


class MapDataComponent(MapData):
    """Applies a function to one component of each datapoint.

    Args:
        ds: the flow; tuples become lists.
        func: gets the component, and returns the new one, or None to drop the datapoint.
        index: of the component, or its key where datapoints are dicts.
    """

    def __init__(self, ds: DataFlow, func: Callable[[Any], Any], index: int | str = 0) -> None:
        ProxyDataFlow.__init__(self, ds)
        self._component_func, self._index = func, index

    # A method, not an attribute: a bound method in it would be a cycle, and keep what the flow holds open.
    def func(self, dp: Any) -> Any:
        """Map the component; None to drop the datapoint."""
        mapped = self._component_func(component(dp, self._index))
        if mapped is None:
            return None
        if isinstance(dp, tuple):
            dp = list(dp)
        dp[self._index] = mapped
        return dp


class SelectComponent(MapData):
    """Picks components and puts them in another order.

    Args:
        ds: the flow.
        idxs: indices, or keys where datapoints are dicts. `[c1, c2, c3]` with `[2, 1]` gives `[c3, c2]`.
    """

    def __init__(self, ds: DataFlow, idxs: Sequence[int | str]) -> None:
        ProxyDataFlow.__init__(self, ds)
        self._idxs = tuple(idxs)

    def func(self, dp: Any) -> list[Any]:
        """Pick the components."""
        return [component(dp, i) for i in self._idxs]


class RepeatedData(ProxyDataFlow):
    """Iterates a flow several times.

    Args:
        ds: the flow.
        num: how many times; -1 for no end.

    Raises:
        UsageError: `num` is less than -1.
    """

    def __init__(self, ds: DataFlow, num: int) -> None:
        super().__init__(ds)
        if num < -1:
            raise UsageError(f"RepeatedData expected a number of times, or -1 for no end; got {num}")
        self.num = num

    def __len__(self) -> int:
        """The length of all repetitions.

        Raises:
            UnknownLengthError: there is no end.
        """
        if self.num == -1:
            raise UnknownLengthError("RepeatedData with num=-1 has no end, and no length")
        return len(self.ds) * self.num

    def __iter__(self) -> Iterator[Any]:
        """Yield the datapoints again and again.

        Raises:
            DataError: an empty flow was to be repeated without end.
        """
        done = 0
        while done != self.num:
            empty = True
            for dp in self.ds:
                empty = False
                yield dp
            if empty and self.num == -1:
                raise DataError(f"{type(self.ds).__name__} is empty: it cannot be repeated without end")
            done += 1


class RepeatedDataPoint(ProxyDataFlow):
    """Yields each datapoint several times in a row.

    Args:
        ds: the flow.
        num: how many times.

    Raises:
        UsageError: `num` is less than 1.
    """

    def __init__(self, ds: DataFlow, num: int) -> None:
        super().__init__(ds)
        if num < 1:
            raise UsageError(f"RepeatedDataPoint expected a number of times of at least 1, got {num}")
        self.num = int(num)

    def __len__(self) -> int:
        """The number of datapoints with their repetitions."""
        return len(self.ds) * self.num

    def __iter__(self) -> Iterator[Any]:
        """Yield each datapoint `num` times; the same object each time."""
        for dp in self.ds:
            for _ in range(self.num):
                yield dp


class CacheData(ProxyDataFlow, RNGDataFlow):
    """Keeps the datapoints of the first complete pass in memory, and yields them in each later one.

    The same objects are yielded each time: what changes them in place changes them for good.

    Args:
        ds: the flow; finite.
        shuffle: in another order each pass; the first pass comes as the flow gives it.
    """

    def __init__(self, ds: DataFlow, shuffle: bool = False) -> None:
        super().__init__(ds)
        self.shuffle = shuffle
        self._guard = DataFlowReentrantGuard()
        self._kept: list[Any] | None = None

    def reset_state(self) -> None:
        """Forget what is kept."""
        RNGDataFlow.reset_state(self)
        self.ds.reset_state()
        self._kept = None

    def __iter__(self) -> Iterator[Any]:
        """Yield the datapoints."""
        with self._guard:
            if self._kept is None:
                kept = []
                for dp in self.ds:
                    kept.append(dp)
                    yield dp
                # Only here: a pass that was abandoned did not see all.
                self._kept = kept
                return
            order = self.rng.permutation(len(self._kept)) if self.shuffle else range(len(self._kept))
            for i in order:
                yield self._kept[i]


class LocallyShuffleData(ProxyDataFlow, RNGDataFlow):
    """Shuffles in a buffer, for flows that are read in order; endless, and passes of the flow mix.

    The buffer is a queue: a datapoint enters at its end, one leaves at its head, and it is shuffled now and then. An
    iteration goes on where the last one was closed.

    Args:
        ds: the flow.
        buffer_size: datapoints in the buffer.
        num_reuse: how often each datapoint enters the buffer, for flows that read slowly.
        shuffle_interval: shuffle after this many datapoints of `ds`; None for a third of the buffer.
        nr_reuse: the older name of `num_reuse`.

    Raises:
        UsageError: a number is less than 1.
    """

    def __init__(
        self,
        ds: DataFlow,
        buffer_size: int,
        num_reuse: int = 1,
        shuffle_interval: int | None = None,
        nr_reuse: int | None = None,
    ) -> None:
        super().__init__(ds)
        reuse = num_reuse if nr_reuse is None else nr_reuse
        interval = max(1, buffer_size // 3) if shuffle_interval is None else shuffle_interval
        for name, number in (("buffer_size", buffer_size), ("num_reuse", reuse), ("shuffle_interval", interval)):
            if number < 1:
                raise UsageError(f"LocallyShuffleData needs a {name} of at least 1, got {number}")
        self._size, self._reuse, self._interval = int(buffer_size), int(reuse), int(interval)
        self._guard = DataFlowReentrantGuard()
        self._open: Generator[Any, None, None] | None = None

    def __len__(self) -> int:
        """The datapoints of one pass with their reuses; iteration does not end there."""
        return len(self.ds) * self._reuse

    def __getstate__(self) -> dict[str, Any]:
        """A copy begins with an empty buffer."""
        return {**super().__getstate__(), "_open": None}

    def reset_state(self) -> None:
        """Begin with an empty buffer."""
        RNGDataFlow.reset_state(self)
        self.ds.reset_state()
        self._open = None

    def __iter__(self) -> Iterator[Any]:
        """Yield datapoints without end.

        Raises:
            DataError: the flow is empty.
        """
        with self._guard:
            # One that raised an error has ended: the next iteration begins another one.
            if self._open is None or inspect.getgeneratorstate(self._open) == inspect.GEN_CLOSED:
                self._open = self._shuffled()
            for dp in self._open:  # noqa: UP028 - `yield from` would close it with this iteration
                yield dp

    def _shuffled(self) -> Generator[Any, None, None]:
        buffer: list[Any] = []
        head = 0
        for number, dp in enumerate(RepeatedData(self.ds, -1)):
            if number % self._interval == 0:
                buffer = [buffer[i] for i in self.rng.permutation(len(buffer))]
                head = 0
            for _ in range(self._reuse):
                if len(buffer) < self._size:
                    buffer.append(dp)
                    continue
                leaving, buffer[head] = buffer[head], dp
                head = (head + 1) % self._size
                yield leaving
