"""DataFlow: an iterable of datapoints, and the rules of iterating it, with tensorpack's names.

A datapoint is a list or tuple of components, or a dict. A flow is finite or endless; a finite one can be iterated again
when it has ended. `reset_state` is called once, by the process that iterates, before the first iteration; iterating a
flow that was not reset does it. Both vocabularies work: `__iter__`, `__len__` and the older `get_data`, `size`.
"""

from __future__ import annotations

import os
import threading
from abc import ABCMeta
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from moxserve.dataflow.seeds import get_rng, next_number
from moxserve.errors import UsageError

__all__ = [
    "DataFlow",
    "DataFlowReentrantGuard",
    "DataFlowResetStateNotCalledError",
    "DataFlowTerminated",
    "ProxyDataFlow",
    "RNGDataFlow",
]


class DataFlowTerminated(BaseException):
    """A flow cannot give more data, because what it reads from was closed; a clean end, not an error."""


class DataFlowResetStateNotCalledError(UsageError):
    """A flow was used before `reset_state`, or in another process than the one that called it."""


class DataFlowReentrantGuard:
    """Lets one iteration in at a time; a flow with state cannot be iterated twice at once."""

    def __init__(self) -> None:
        self._lock = threading.Lock()

    @contextmanager
    def _held(self) -> Iterator[None]:
        if not self._lock.acquire(blocking=False):
            raise threading.ThreadError(
                "This DataFlow is not reentrant: an iteration of it is still open; end or close that one first"
            )
        try:
            yield
        finally:
            self._lock.release()

    def __enter__(self) -> None:
        """Take the only place."""
        self._context = self._held()
        self._context.__enter__()

    def __exit__(self, *error: Any) -> None:
        """Give it back."""
        self._context.__exit__(*error)


class _BothNames(ABCMeta):
    """A class that defines one of `get_data` and `__iter__` has both; the same for `size` and `__len__`."""

    def __new__(mcs, name: str, bases: tuple[type, ...], body: dict[str, Any], **kwargs: Any) -> Any:
        for old, new in (("get_data", "__iter__"), ("size", "__len__")):
            if old in body and new not in body:
                body[new] = body[old]
            elif new in body and old not in body:
                body[old] = body[new]
        return super().__new__(mcs, name, bases, body, **kwargs)


class DataFlow(metaclass=_BothNames):
    """Base of all flows.

    A subclass defines `__iter__` (or `get_data`), and may define `__len__` (or `size`) and `reset_state`.
    """

    def __iter__(self) -> Iterator[Any]:
        """Yield datapoints."""
        raise TypeError(f"{type(self).__name__} defines neither __iter__ nor get_data")

    def __len__(self) -> int:
        """How many datapoints an iteration yields; only an estimate for some flows.

        Raises:
            NotImplementedError: nobody knows, or there is no end. tensorpack's contract, which `len()` callers rely on.
        """
        raise NotImplementedError(f"{type(self).__name__} does not know its length")

    def reset_state(self) -> None:
        """Prepare for iteration, in the process that iterates. Called once."""


class RNGDataFlow(DataFlow):
    """A flow with random numbers in `rng`, a `numpy.random.RandomState` (see `seeds`)."""

    _rng: np.random.RandomState | None = None
    _pid: int = 0
    _number: int

    def __new__(cls, *_: Any, **__: Any) -> Any:
        """Number the flow, whether or not a subclass calls our constructor."""
        flow = super().__new__(cls)
        flow._number = next_number()
        return flow

    @property
    def rng(self) -> np.random.RandomState:
        """The generator.

        Raises:
            DataFlowResetStateNotCalledError: `reset_state` was not called in this process.
        """
        if self._rng is None or self._pid != os.getpid():
            where = "before" if self._rng is None else "in another process than"
            raise DataFlowResetStateNotCalledError(
                f"{type(self).__name__}.rng was used {where} reset_state()",
                hint="call reset_state() once, in the process that iterates, before the first iteration",
            )
        return self._rng

    @rng.setter
    def rng(self, value: np.random.RandomState) -> None:
        self._rng, self._pid = value, os.getpid()

    def reset_state(self) -> None:
        """Make the generator."""
        self.rng = get_rng(self._number)


class ProxyDataFlow(DataFlow):
    """A flow around another one; forwards everything.

    Args:
        ds: the flow.
    """

    def __init__(self, ds: DataFlow) -> None:
        if not isinstance(ds, DataFlow):
            raise UsageError(f"{type(self).__name__} expected a DataFlow, got {type(ds).__name__}")
        self.ds = ds

    def reset_state(self) -> None:
        """Reset the flow inside."""
        self.ds.reset_state()

    def __len__(self) -> int:
        """The length of the flow inside."""
        return len(self.ds)

    def __iter__(self) -> Iterator[Any]:
        """Yield what the flow inside yields."""
        yield from self.ds
