"""The life of worker processes: how they start, what they inherit, how they end, and how their errors travel.

A worker never outlives the process that started it: it holds the reading end of a pipe that nobody ever writes to, and
ends when that closes; Linux also kills it at once when its parent is gone. Ctrl-C and SIGTERM are for the parent, which
ends its workers.
"""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import os
import pickle
import signal
import sys
import threading
import time
import traceback
import weakref
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from typing import Any, Protocol

from moxserve.dataflow import seeds
from moxserve.errors import DataError, UsageError

__all__ = ["DataFlowWorkerError", "ErrorParts", "Lifeline", "begin_worker", "default_method", "start_processes"]

_GRACE_S = 0.5


class DataFlowWorkerError(DataError):
    """A worker of a flow ended, or failed with an error that cannot be handed between processes."""


class WorkerTraceback(Exception):  # noqa: N818 - never raised: the cause of an error that was raised in a worker
    """Where an error was raised in a worker; the cause of the error that the parent raises."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.text = text

    def __str__(self) -> str:
        return f"\n{self.text}"


@dataclass(frozen=True)
class ErrorParts:
    """An error on its way to the parent.

    Attributes:
        pickled: the error, None if it does not survive.
        summary: its type and message.
        text: the worker's traceback.
    """

    pickled: bytes | None
    summary: str
    text: str

    @classmethod
    def of(cls, error: BaseException) -> ErrorParts:
        """Take an error apart."""
        try:
            pickled: bytes | None = pickle.dumps(error)
            # Some errors pickle well and cannot be made again: their constructors want more than one argument.
            again = pickle.loads(pickled or b"")
            if type(again) is not type(error) or str(again) != str(error):
                pickled = None
        except Exception:  # noqa: BLE001 - whatever a user's error does: it travels as text then
            pickled = None
        text = "".join(traceback.format_exception(error))
        return cls(pickled, f"{type(error).__name__}: {error}", text)

    def error(self, worker: int) -> BaseException:
        """Put it together again, with the worker's traceback as its cause."""
        error: BaseException
        try:
            error = pickle.loads(self.pickled) if self.pickled else self._substitute(worker)
        except Exception:  # noqa: BLE001 - of a class that only the worker has
            error = self._substitute(worker)
        error.__cause__ = WorkerTraceback(f"in worker {worker}:\n{self.text}")
        return error

    def _substitute(self, worker: int) -> DataFlowWorkerError:
        return DataFlowWorkerError(f"worker {worker} failed with {self.summary}")


class Closes(Protocol):
    """Something with pipes that a forked child must not keep open."""

    def forked(self) -> None:
        """Close them; runs in the child."""


_at_fork: weakref.WeakSet[Closes] = weakref.WeakSet()
# Of one thread more than once: collecting garbage closes pools, whatever the thread was doing.
_forking = threading.RLock()


def close_in_children(owner: Closes) -> None:
    """Have `owner.forked()` called in every process that this one forks from now on."""
    _at_fork.add(owner)


def no_fork() -> AbstractContextManager[Any]:
    """Let no thread fork while pipes are made or closed: a child that found one half closed would close, by its number,
    what another thread has opened since.
    """
    return _forking


def _before() -> None:
    _forking.acquire()


def _after() -> None:
    _forking.release()


def _forked() -> None:
    global _forking
    _forking = threading.RLock()
    for owner in list(_at_fork):
        owner.forked()
    _at_fork.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before, after_in_parent=_after, after_in_child=_forked)


@dataclass
class Lifeline:
    """What ties a worker to its parent, and where it stands among the workers.

    Attributes:
        parent: process id.
        end: reading end of a pipe that closes when the parent ends, or wants the worker to.
        path: numbers of this worker and those it is part of.
        state: of the random numbers, for a worker that does not inherit it.
        kill: whether Linux may kill the worker when the thread that started it ends: it is the main one.
    """

    parent: int
    end: Connection
    path: tuple[int, ...]
    state: Any = field(default_factory=seeds.snapshot)
    kill: bool = field(default_factory=lambda: threading.current_thread() is threading.main_thread())

    def hold(self) -> None:
        """End this process when the parent is gone."""
        if self.kill:
            set_parent_death_signal = 1  # PR_SET_PDEATHSIG of <sys/prctl.h>
            with contextlib.suppress(OSError, AttributeError):
                ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL)
        if os.getppid() != self.parent:
            os._exit(1)
        threading.Thread(target=self._watch, name="moxserve-lifeline", daemon=True).start()

    def _watch(self) -> None:
        with contextlib.suppress(OSError):
            os.read(self.end.fileno(), 1)
        if os.getppid() == self.parent:
            # The parent closes its pipes: time to end in order.
            time.sleep(_GRACE_S)
        os._exit(0)


def begin_worker(life: Lifeline) -> None:
    """Make a fresh process a worker: call it first of all there."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    signal.set_wakeup_fd(-1)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _MASK)
    life.hold()
    seeds.restore(life.state)
    if "cv2" in sys.modules:
        # A worker is one of many; OpenCV's own threads on top would fight for the same cores.
        sys.modules["cv2"].setNumThreads(0)
    # The parent's own random numbers were inherited with everything else.
    seeds.become_worker(life.path)
    seeds.reseed()


_MASK = (signal.SIGINT, signal.SIGTERM)


def default_method(method: str | None) -> str:
    """Return how processes start: fork where it exists, so that lambdas and open data stay usable.

    Raises:
        UsageError: the system does not know the method.
    """
    # A server that forks (forkserver) would be the parent whose end is the workers' end.
    known = [name for name in ("fork", "spawn") if name in multiprocessing.get_all_start_methods()]
    if method is None:
        return known[0]
    if method not in known:
        raise UsageError(f"start_method={method!r}: expected one of {', '.join(known)}")
    return method


def start_processes(main: Callable[..., None], arguments: Sequence[Any], method: str) -> list[Any]:
    """Start a process for each of `arguments`: `main(argument)`.

    Args:
        main: a function of a module.
        arguments: of each process.
        method: `fork` or `spawn`.

    Raises:
        UsageError: this process may not have children, or something cannot be sent to a spawned one.
    """
    if multiprocessing.current_process().daemon:
        raise UsageError(
            "this is a daemonic process of multiprocessing, which may not start others",
            hint="iterate the flow outside multiprocessing.Pool, or use the flows with threads",
        )
    context: Any = multiprocessing.get_context(method)
    started: list[Any] = []
    if method != "fork":
        # It would be started with the first process otherwise, and let the signals through again.
        resource_tracker.ensure_running()
    # Until a worker ignores it, Ctrl-C would end it in the middle of its start.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _MASK)
    try:
        for argument in arguments:
            process = context.Process(target=main, args=(argument,), daemon=False)
            process.start()
            started.append(process)
    except BaseException as error:
        end_processes(started, 0.0)
        if isinstance(error, (pickle.PicklingError, AttributeError, TypeError)) and method != "fork":
            raise UsageError(
                f"start_method={method!r} has to pickle the flow and its functions: {error}",
                hint="use functions of a module instead of lambdas, or start_method='fork'",
            ) from error
        raise
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return started


def end_processes(processes: Sequence[Any], patience_s: float = 2 * _GRACE_S) -> None:
    """Wait for processes that were told to end; kill those that do not."""
    deadline = time.monotonic() + patience_s
    for process in processes:
        process.join(max(0.0, deadline - time.monotonic()))
    for process in processes:
        if process.is_alive():
            process.kill()
        process.join()
