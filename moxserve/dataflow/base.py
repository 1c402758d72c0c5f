"""DataFlow: an iterable of datapoints, and the rules of iterating it, with tensorpack's names.

A datapoint is a list or tuple of components, or a dict. A flow is finite or endless; a finite one can be iterated again
when it has ended. Both vocabularies work: `__iter__`, `__len__` and the older `get_data`, `size`.

`reset_state` prepares a flow in the process that iterates it:

    first iteration            resets a flow that was not reset in this process
    reset_state()              does the same, earlier; once is enough, and further calls in the same process do nothing
    iteration after a fork     of a flow that the parent reset: DataFlowResetStateNotCalledError, since random numbers
                               and open files would be shared; call reset_state() in the child

So each flow is reset exactly once a process, however many flows stand around it. A copy, or a flow that was pickled, is
a flow that was not reset.
"""

from __future__ import annotations

import os
import threading
from abc import ABCMeta
from collections.abc import Callable, Iterator
from functools import wraps
from typing import Any

import numpy as np

from moxserve.dataflow.seeds import get_rng, next_number
from moxserve.errors import UsageError

__all__ = [
    "DataFlow",
    "DataFlowReentrantError",
    "DataFlowReentrantGuard",
    "DataFlowResetStateNotCalledError",
    "DataFlowTerminated",
    "ProxyDataFlow",
    "RNGDataFlow",
    "UnknownLengthError",
]


class DataFlowTerminated(BaseException):
    """A flow cannot give more data, because what it reads from was closed; a clean end, not an error."""


class DataFlowResetStateNotCalledError(UsageError):
    """A flow was used before `reset_state`, or in another process than the one that called it."""


class DataFlowReentrantError(UsageError, RuntimeError):
    """A flow with state was iterated while another iteration of it was open; tensorpack raises a ThreadError."""


class UnknownLengthError(UsageError, NotImplementedError, TypeError):
    """Nobody knows how many datapoints a flow has, or it has no end.

    NotImplementedError is tensorpack's contract; TypeError is what `list(flow)` takes for "no length to plan with".
    """


class DataFlowReentrantGuard:
    """Lets one iteration in at a time: `with guard:` around the body of a flow with state.

    The place is given back when the iteration ends, when its generator is closed or collected, and is free in a forked
    process whatever the parent was doing.
    """

    def __init__(self) -> None:
        self._lock, self._pid = threading.Lock(), os.getpid()

    def __enter__(self) -> None:
        """Take the only place.

        Raises:
            DataFlowReentrantError: an iteration is open.
        """
        if self._pid != os.getpid():
            self._lock, self._pid = threading.Lock(), os.getpid()
        if not self._lock.acquire(blocking=False):
            raise DataFlowReentrantError(
                "This DataFlow is not reentrant: an iteration of it is still open",
                hint="end or close that one first, or make a flow of its own for each reader",
            )

    def __exit__(self, *error: Any) -> None:
        """Give it back; nothing happens to an iteration that was opened before a fork."""
        if self._pid == os.getpid() and self._lock.locked():
            self._lock.release()

    def __reduce__(self) -> tuple[type[DataFlowReentrantGuard], tuple[()]]:
        """A copy has a free place of its own."""
        return DataFlowReentrantGuard, ()


def _ensure_reset(flow: DataFlow) -> None:
    pid = os.getpid()
    if flow._reset_pid == pid or flow._resetting == threading.get_ident():
        return
    if flow._reset_pid is not None:
        raise DataFlowResetStateNotCalledError(
            f"{type(flow).__name__} was reset in process {flow._reset_pid} and is iterated in process {pid}",
            hint="call reset_state() in the process that iterates, or make the flow after the fork",
        )
    flow.reset_state()


def _iterate(body: Callable[[Any], Iterator[Any]]) -> Callable[[Any], Iterator[Any]]:
    @wraps(body)
    def wrapped(self: DataFlow) -> Iterator[Any]:
        _ensure_reset(self)
        return body(self)

    return wrapped


def _reset(body: Callable[[Any], None]) -> Callable[[Any], None]:
    @wraps(body)
    def wrapped(self: DataFlow) -> None:
        if self._resetting == threading.get_ident():
            # A subclass called its parent's: part of the reset that is under way.
            body(self)
        elif self._reset_pid != os.getpid():
            self._resetting = threading.get_ident()
            try:
                body(self)
                self._reset_pid = os.getpid()
            finally:
                self._resetting = None

    return wrapped


_WRAPPERS: dict[str, Callable[[Any], Any]] = {"__iter__": _iterate, "get_data": _iterate, "reset_state": _reset}
_PAIRS = (("get_data", "__iter__"), ("size", "__len__"))


class _Rules(ABCMeta):
    """A class that defines one of `get_data` and `__iter__` has both, the same for `size` and `__len__`; iteration and
    `reset_state` keep the rules at the top of this module, whatever a subclass writes in them.
    """

    def __new__(mcs, name: str, bases: tuple[type, ...], body: dict[str, Any], **kwargs: Any) -> Any:
        cls: Any = super().__new__(mcs, name, bases, body, **kwargs)
        for pair in _PAIRS:
            # Along the whole order of resolution: a mixin that is no DataFlow may define one of the two.
            # Not `size` as a number or a property, which is the subclass' own business.
            home = next((c for c in cls.__mro__ if any(callable(vars(c).get(n)) for n in pair)), cls)
            defined = [n for n in pair if n in vars(home)]
            if len(defined) == 1:
                for n in pair:
                    setattr(cls, n, vars(home)[defined[0]])
        for method, wrapper in _WRAPPERS.items():
            found = next((vars(c)[method] for c in cls.__mro__ if method in vars(c)), None)
            if found is not None and not hasattr(found, "_keeps_rules"):
                kept = wrapper(found)
                kept._keeps_rules = True
                setattr(cls, method, kept)
        return cls


class DataFlow(metaclass=_Rules):
    """Base of all flows.

    A subclass defines `__iter__` (or `get_data`), and may define `__len__` (or `size`) and `reset_state`. It need not
    call the constructor of this class.
    """

    _reset_pid: int | None = None
    _resetting: int | None = None

    def __iter__(self) -> Iterator[Any]:
        """Yield datapoints."""
        raise TypeError(f"{type(self).__name__} defines neither __iter__ nor get_data")

    def get_data(self) -> Iterator[Any]:
        """Yield datapoints: the older name of `__iter__`."""
        return iter(self)

    def __len__(self) -> int:
        """How many datapoints an iteration yields; only an estimate for some flows.

        Raises:
            UnknownLengthError: nobody knows, or there is no end; a NotImplementedError, which callers rely on.
        """
        raise UnknownLengthError(f"{type(self).__name__} does not know its length")

    def size(self) -> int:
        """Return `len(self)`: the older name."""
        return len(self)

    def __bool__(self) -> bool:
        """A flow is true, empty or not: `if flow:` asks whether there is one."""
        return True

    def reset_state(self) -> None:
        """Prepare for iteration, in the process that iterates; once a process, whoever calls."""

    def __getstate__(self) -> dict[str, Any]:
        """A copy is a flow that was not reset."""
        return {k: v for k, v in self.__dict__.items() if k not in ("_reset_pid", "_resetting")}


class RNGDataFlow(DataFlow):
    """A flow with random numbers in `rng`, a `numpy.random.RandomState` (see `seeds`).

    A subclass that defines `reset_state` calls ours first, which makes the generator.
    """

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
                hint="call reset_state() once, in the process that iterates, before the first iteration; a subclass"
                " that defines reset_state calls super().reset_state()",
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

    Raises:
        UsageError: `ds` is no DataFlow.
    """

    def __init__(self, ds: DataFlow) -> None:
        if not isinstance(ds, DataFlow):
            raise UsageError(
                f"{type(self).__name__} expected a DataFlow, got {type(ds).__name__}",
                hint="wrap a list in DataFromList, a generator function in DataFromGenerator",
            )
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
