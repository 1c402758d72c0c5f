"""Datapoints to batches: component by component, on a new first axis.

component of a datapoint                     of a batch
array, NumPy number                          array of that dtype (of the common one, where they differ)
bool; int; float                             bool; int32, or int64 if one is too big; float32, or float64
str                                          array of str
bytes                                        array of objects: bytes of any length, to the last zero
anything, with use_list                      list
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from moxserve.dataflow.base import DataFlow, DataFlowReentrantGuard, ProxyDataFlow, UnknownLengthError
from moxserve.errors import DataError, UsageError

__all__ = ["BatchBuilder", "BatchData", "BatchDataByShape", "UnsupportedTypeError", "aggregate_batch"]

_RAGGED = "resize or pad it first, group by shape with BatchDataByShape, or keep a list with use_list=True"


class UnsupportedTypeError(DataError, TypeError):
    """A component has a type that no array can hold; also a TypeError, which tensorpack raises."""


def _name(key: Hashable) -> str:
    return f"component {key!r}"


def _unsupported(key: Hashable, types: Iterable[type]) -> UnsupportedTypeError:
    names = ", ".join(sorted({t.__name__ for t in types}))
    return UnsupportedTypeError(
        f"cannot batch {_name(key)}: expected arrays, numbers, strings or bytes, all alike, got {names}",
        hint="turn it into an array with MapDataComponent, or keep a list with use_list=True",
    )


def _integers(values: Sequence[Any]) -> np.ndarray:
    low, high = min(values), max(values)
    for dtype in (np.int32, np.int64, np.uint64):
        limits = np.iinfo(dtype)
        if limits.min <= low and high <= limits.max:
            return np.array(values, dtype)
    raise DataError(f"cannot batch integers from {low} to {high}: no integer type of NumPy holds them")


def _floats(values: Sequence[Any]) -> np.ndarray:
    wide = np.array(values, np.float64)
    with np.errstate(over="ignore"):
        narrow = wide.astype(np.float32)
    return wide if np.any(np.isinf(narrow) & ~np.isinf(wide)) else narrow


def _objects(values: Sequence[Any]) -> np.ndarray:
    array = np.empty(len(values), object)
    array[:] = values
    return array


def _texts(values: Sequence[str]) -> np.ndarray:
    # NumPy's own strings end before trailing zeros.
    return _objects(values) if any(v.endswith("\0") for v in values) else np.array(values)


_NUMBERS = frozenset({bool, int, float})
# By the types of all values; the first set that holds them.
_PYTHON: tuple[tuple[frozenset[type], Callable[[Sequence[Any]], np.ndarray]], ...] = (
    (frozenset({bool}), lambda values: np.array(values, np.bool_)),
    (frozenset({bool, int}), _integers),
    (_NUMBERS, _floats),
    (frozenset({bytes}), _objects),
    (frozenset({str}), _texts),
)


class _Values:
    """The values of a component that are no arrays."""

    def __init__(self, key: Hashable) -> None:
        self._key = key
        self._values: list[Any] = []

    def add(self, value: Any) -> None:
        """Take the value of one more datapoint."""
        self._values.append(value)

    def finish(self) -> np.ndarray:
        """Return them as an array of one dimension."""
        values = self._values
        types = {type(v) for v in values}
        for known, make in _PYTHON:
            if types <= known:
                return make(values)
        if any(np.ndim(v) for v in values if isinstance(v, np.ndarray)):
            raise _ragged(self._key, [np.shape(v) for v in values])
        if not all(isinstance(v, (np.generic, np.ndarray)) or type(v) in _NUMBERS for v in values):
            raise _unsupported(self._key, types)
        arrays = [v if hasattr(v, "dtype") else _Values._one(v) for v in values]
        return np.array(arrays, _common(self._key, [a.dtype for a in arrays]))

    @staticmethod
    def _one(value: Any) -> np.ndarray:
        return next(make([value])[0] for known, make in _PYTHON if type(value) in known)


def _common(key: Hashable, dtypes: Iterable[np.dtype[Any]]) -> np.dtype[Any]:
    found = set(dtypes)
    kinds = {d.kind for d in found}
    # NumPy would write numbers out as text, and take bytes for ASCII.
    if kinds & set("SU") and len(kinds - set("O")) > 1:
        raise DataError(f"cannot batch {_name(key)}: expected one kind of values, got {sorted(map(str, found))}")
    try:
        return np.result_type(*found)
    except TypeError as error:
        raise DataError(f"cannot batch {_name(key)}: {error}") from None


def _ragged(key: Hashable, shapes: Sequence[tuple[int, ...]]) -> DataError:
    several = [f"{n} x {shape}" for shape, n in Counter(shapes).items()]
    shown = ", ".join(map(str, shapes) if len(shapes) <= 8 else several)
    return DataError(f"cannot batch {_name(key)}: the datapoints of a batch need one shape, got {shown}", hint=_RAGGED)


class _Arrays:
    """The arrays of a component, copied once, into the batch itself, while they are warm in the processor's cache."""

    def __init__(self, key: Hashable, size: int, allocate: Callable[..., np.ndarray]) -> None:
        self._key, self._size, self._allocate = key, size, allocate
        self._count = 0
        self._batch: np.ndarray | None = None

    def add(self, value: Any) -> None:
        """Copy the value of one more datapoint."""
        if type(value) is not np.ndarray:
            value = self._array(value)
        batch = self._batch
        if batch is None:
            batch = self._batch = self._allocate((self._size, *value.shape), value.dtype)
        elif value.shape != batch.shape[1:]:
            raise _ragged(self._key, [*[batch.shape[1:]] * self._count, value.shape])
        elif value.dtype != batch.dtype:
            batch = self._widen(batch, value.dtype)
        batch[self._count] = value
        self._count += 1

    def _array(self, value: Any) -> np.ndarray:
        if not hasattr(value, "__array__") and type(value) not in _NUMBERS:
            raise _unsupported(self._key, [np.ndarray, type(value)])
        return np.asarray(value)

    def _widen(self, batch: np.ndarray, dtype: np.dtype[Any]) -> np.ndarray:
        common = _common(self._key, (batch.dtype, dtype))
        if common != batch.dtype:
            wider = self._allocate(batch.shape, common)
            wider[: self._count] = batch[: self._count]
            self._batch = batch = wider
        return batch

    def finish(self) -> np.ndarray:
        """Return `[count, ...]`."""
        return self._batch[: self._count] if self._batch is not None else np.empty(0)


class _Kept:
    """The values of a component as they are."""

    def __init__(self) -> None:
        self._values: list[Any] = []
        self.add = self._values.append

    def finish(self) -> list[Any]:
        """Return them."""
        return self._values


class BatchBuilder:
    """One batch in the making: `add` datapoints, then `finish`.

    Args:
        size: how many datapoints there will be at most.
        use_list: keep each component as a list.
        allocate: makes an array of a shape and dtype; where the batch shall lie in memory.
    """

    def __init__(self, size: int, use_list: bool = False, allocate: Callable[..., np.ndarray] = np.empty) -> None:
        self._size, self._use_list, self._allocate = size, use_list, allocate
        self._columns: dict[Hashable, Any] = {}
        self._dict = False
        self.count = 0

    def add(self, dp: Any) -> None:
        """Take one more datapoint; its arrays are copied here, and may change afterwards.

        Args:
            dp: a list, tuple or dict of components.

        Raises:
            DataError: it is none, or does not fit the ones before: other components, shapes or types.
        """
        if not self.count:
            self._start(dp)
        columns = self._columns
        if len(dp) != len(columns) or isinstance(dp, Mapping) != self._dict:
            raise self._misfit(dp)
        try:
            for key, column in columns.items():
                column.add(dp[key])
        except KeyError:
            raise self._misfit(dp) from None
        self.count += 1

    def _start(self, dp: Any) -> None:
        self._dict = isinstance(dp, Mapping)
        if not self._dict and not isinstance(dp, (list, tuple)):
            raise UnsupportedTypeError(
                f"a datapoint is a list, tuple or dict of components; got {type(dp).__name__}",
                hint="yield [x] instead of x",
            )
        items = dp.items() if self._dict else enumerate(dp)
        self._columns = {key: self._column(key, value) for key, value in items}

    def _column(self, key: Hashable, value: Any) -> Any:
        if self._use_list:
            return _Kept()
        if hasattr(value, "__array__") and not isinstance(value, np.generic):
            return _Arrays(key, self._size, self._allocate)
        return _Values(key)

    def _misfit(self, dp: Any) -> DataError:
        def what(keys: Iterable[Any], is_dict: bool) -> str:
            keys = list(keys)
            return f"the keys {keys}" if is_dict else f"{len(keys)} components"

        is_dict = isinstance(dp, Mapping)
        got = what(dp if is_dict else range(len(dp)), is_dict)
        return DataError(
            f"datapoint {self.count} of a batch has {got}; the ones before it have {what(self._columns, self._dict)}"
        )

    def finish(self) -> Any:
        """Return the batch: a list of components, or a dict.

        Raises:
            DataError: the components of the datapoints do not fit together.
        """
        done = {key: column.finish() for key, column in self._columns.items()}
        return done if self._dict else list(done.values())


def aggregate_batch(data_holder: Sequence[Any], use_list: bool = False) -> Any:
    """Make a batch of datapoints.

    Args:
        data_holder: the datapoints, at least one: lists, tuples or dicts of components.
        use_list: keep each component as a list.

    Returns:
        A list of components `[batch, ...]`, or a dict for dicts.

    Raises:
        UsageError: there are none.
        DataError: shapes or components differ (the message lists the shapes), or no array can hold a component.
    """
    if not len(data_holder):
        raise UsageError("cannot make a batch of no datapoints")
    builder = BatchBuilder(len(data_holder), use_list)
    for dp in data_holder:
        builder.add(dp)
    return builder.finish()


class BatchData(ProxyDataFlow):
    """Groups datapoints into batches, component by component.

    Args:
        ds: the flow.
        batch_size: datapoints a batch.
        remainder: yield what is left at the end as a smaller batch, instead of dropping it.
        use_list: components become lists instead of arrays, for datapoints of different shapes.

    Raises:
        UsageError: `batch_size` is less than 1, or larger than the flow without `remainder`: there would be no batch.
    """

    def __init__(self, ds: DataFlow, batch_size: int, remainder: bool = False, use_list: bool = False) -> None:
        super().__init__(ds)
        self.batch_size, self.remainder, self.use_list = int(batch_size), remainder, use_list
        if self.batch_size < 1:
            raise UsageError(f"batch_size must be at least 1, got {batch_size}")
        if not remainder and 0 <= (known := _known_length(ds)) < self.batch_size:
            raise UsageError(
                f"batch_size {batch_size} is more than the {known} datapoints of the flow: it would give no batch",
                hint="take a smaller batch_size, or remainder=True",
            )

    def __len__(self) -> int:
        """How many batches there are; not exact if the flow inside only estimates its length."""
        whole, left = divmod(len(self.ds), self.batch_size)
        return whole + bool(left and self.remainder)

    def __iter__(self) -> Iterator[Any]:
        """Yield batches.

        Raises:
            DataError: datapoints of one batch do not fit together.
        """
        return self.batches()

    def batches(self, allocate: Callable[..., np.ndarray] = np.empty) -> Iterator[Any]:
        """Yield batches whose arrays lie where the caller wants them.

        Args:
            allocate: makes an array of a shape and dtype.

        Raises:
            DataError: datapoints of one batch do not fit together.
        """
        builder = None
        for dp in self.ds:
            if builder is None:
                builder = BatchBuilder(self.batch_size, self.use_list, allocate)
            builder.add(dp)
            if builder.count == self.batch_size:
                # Nothing here keeps the batch alive while its user works on it.
                finished, builder = builder.finish(), None
                yield finished
                del finished
        if builder is not None and self.remainder:
            yield builder.finish()

    aggregate_batch = staticmethod(aggregate_batch)


def _known_length(ds: DataFlow) -> int:
    """Return the length of a flow, -1 if it does not know."""
    try:
        return len(ds)
    except NotImplementedError:
        return -1


class BatchDataByShape(BatchData):
    """Groups datapoints of one shape; a batch is yielded as soon as there are enough.

    What is left of a pass is kept for the next one; shapes that are too rare are never yielded.

    Args:
        ds: the flow.
        batch_size: datapoints a batch.
        idx: index or key of the component whose shape counts; all others must have one shape within it.
    """

    def __init__(self, ds: DataFlow, batch_size: int, idx: int | str) -> None:
        # Shapes go on over several passes: a batch may be larger than one pass, as with a remainder.
        super().__init__(ds, batch_size, remainder=True)
        self.idx = idx
        self._guard = DataFlowReentrantGuard()

    def __len__(self) -> int:
        """Nobody knows.

        Raises:
            UnknownLengthError: always, as it depends on the shapes.
        """
        raise UnknownLengthError("BatchDataByShape does not know its length: it depends on the shapes")

    def reset_state(self) -> None:
        """Begin with no datapoints left over."""
        super().reset_state()
        self._waiting: dict[tuple[int, ...], list[Any]] = defaultdict(list)

    def __iter__(self) -> Iterator[Any]:
        """Yield batches.

        Raises:
            DataError: datapoints do not fit together.
        """
        with self._guard:
            for dp in self.ds:
                shape = np.shape(component(dp, self.idx))
                group = self._waiting[shape]
                group.append(dp)
                if len(group) == self.batch_size:
                    yield aggregate_batch(self._waiting.pop(shape))


def component(dp: Any, index: int | str) -> Any:
    """Return a component of a datapoint.

    Raises:
        DataError: it has none of that index or key.
    """
    try:
        return dp[index]
    except (IndexError, KeyError, TypeError):
        has = f"the keys {list(dp)}" if isinstance(dp, Mapping) else "components"
        if isinstance(dp, (list, tuple)):
            has = f"{len(dp)} components"
        raise DataError(f"a datapoint has no component {index!r}: a {type(dp).__name__} with {has}") from None
