"""Flows of what is in memory already, or made up."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from typing import Any, Protocol

import numpy as np

from moxserve.dataflow.base import DataFlow, RNGDataFlow, UnknownLengthError
from moxserve.errors import DataError, UsageError

__all__ = ["DataFromGenerator", "DataFromIterable", "DataFromList", "DataFromQueue", "FakeData"]


class FakeData(RNGDataFlow):
    """Arrays of random numbers, for tests and benchmarks.

    Args:
        shapes: of each component.
        size: datapoints a pass.
        random: new numbers in each datapoint; otherwise each one holds the same arrays.
        dtype: of all components, or one for each.
        domain: lowest number and the one that is not reached, for all components, or one pair for each.

    Raises:
        UsageError: there are not as many dtypes or domains as shapes.
    """

    def __init__(
        self,
        shapes: Sequence[Sequence[int]],
        size: int = 1000,
        random: bool = True,
        dtype: Any = "float32",
        domain: Any = (0, 1),
    ) -> None:
        self.shapes = [tuple(shape) for shape in shapes]
        self._size, self.random = int(size), random
        self.dtype = [np.dtype(d) for d in self._each("dtype", dtype, isinstance(dtype, (list, tuple)))]
        self.domain = self._each("domain", domain, isinstance(domain[0], (list, tuple)))

    def _each(self, name: str, given: Any, many: bool) -> list[Any]:
        if not many:
            return [given] * len(self.shapes)
        if len(given) != len(self.shapes):
            raise UsageError(f"FakeData has {len(self.shapes)} shapes and {len(given)} values of {name}")
        return list(given)

    def __len__(self) -> int:
        """The size."""
        return self._size

    def _draw(self) -> list[np.ndarray]:
        parts = zip(self.shapes, self.dtype, self.domain, strict=True)
        return [(self.rng.random_sample(s) * (high - low) + low).astype(t) for s, t, (low, high) in parts]

    def __iter__(self) -> Iterator[list[np.ndarray]]:
        """Yield datapoints."""
        same = None if self.random else self._draw()
        for _ in range(self._size):
            yield self._draw() if same is None else list(same)


class DataFromList(RNGDataFlow):
    """The items of a list.

    Args:
        lst: the datapoints; anything with a length and indices.
        shuffle: in another order each pass.
    """

    def __init__(self, lst: Sequence[Any], shuffle: bool = True) -> None:
        self.lst, self.shuffle = lst, shuffle

    def __len__(self) -> int:
        """The length of the list."""
        return len(self.lst)

    def __iter__(self) -> Iterator[Any]:
        """Yield the items."""
        if not self.shuffle:
            yield from self.lst
            return
        for i in self.rng.permutation(len(self.lst)).tolist():
            yield self.lst[i]


class DataFromGenerator(DataFlow):
    """What a generator yields.

    Args:
        gen: a function without arguments that returns an iterable, such as a generator function, called for each pass;
            or an iterable.
        size: how many datapoints a pass has, for `len`, where the iterable does not say.

    Raises:
        UsageError: it is neither.
    """

    def __init__(self, gen: Callable[[], Iterable[Any]] | Iterable[Any], size: int | None = None) -> None:
        if not callable(gen) and not isinstance(gen, Iterable):
            raise UsageError(f"{type(self).__name__} expected a generator function or an iterable, got {type(gen)!r}")
        self._gen, self._size = gen, size
        self._exhausted = False

    def __len__(self) -> int:
        """The length of the iterable, or what was given as `size`.

        Raises:
            UnknownLengthError: it has none, as generators have not.
        """
        if self._size is not None:
            return self._size
        if not callable(self._gen) and isinstance(self._gen, Sized):
            return len(self._gen)
        raise UnknownLengthError(
            f"{type(self).__name__} does not know how much it will yield",
            hint="give it with size=..., or wrap the flow in FixedSizeData",
        )

    def __iter__(self) -> Iterator[Any]:
        """Yield what the generator yields.

        Raises:
            DataError: a generator that can be iterated only once was used up by an earlier pass.
        """
        items = iter(self._gen() if callable(self._gen) else self._gen)
        once = items is self._gen
        if once and self._exhausted:
            raise DataError(
                f"{type(self).__name__} was given an iterator, which an earlier pass used up",
                hint="give the generator function instead of what it returns",
            )
        yield from items
        self._exhausted = once


class DataFromIterable(DataFromGenerator):
    """The items of an iterable, in its order.

    Args:
        iterable: of datapoints.

    Raises:
        UsageError: it is none.
    """

    def __init__(self, iterable: Iterable[Any]) -> None:
        if not isinstance(iterable, Iterable):
            raise UsageError(f"DataFromIterable expected an iterable, got {type(iterable)!r}")
        super().__init__(iterable)


class _Queue(Protocol):
    def get(self) -> Any: ...


class DataFromQueue(DataFlow):
    """What is put into a queue, without end.

    Args:
        queue: a `queue.Queue`, a `multiprocessing.Queue`, or anything with a blocking `get`.
    """

    def __init__(self, queue: _Queue) -> None:
        self.queue = queue

    def __iter__(self) -> Iterator[Any]:
        """Yield as things arrive."""
        while True:
            yield self.queue.get()
