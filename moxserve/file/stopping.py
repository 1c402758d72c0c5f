"""Threads that share a piece of work, and end soon when one of them fails or Ctrl-C is pressed.

Without this a copy that has failed would go on until all large files that are in hand are there.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

__all__ = ["Stopped", "check", "pause", "working_together"]

_here = threading.local()


class Stopped(BaseException):
    """The work of this thread is not wanted any more."""


def _stops() -> tuple[threading.Event, ...]:
    stops: tuple[threading.Event, ...] = getattr(_here, "stops", ())
    return stops


def _join(stops: tuple[threading.Event, ...]) -> None:
    _here.stops = stops


@contextlib.contextmanager
def working_together(threads: int, name: str) -> Iterator[ThreadPoolExecutor]:
    """Give threads; when the block ends with an error, what they have not begun is dropped, and `check` ends the rest.

    Args:
        threads: how many at most.
        name: that theirs begin with.
    """
    stop = threading.Event()
    # Who works for others, stops when they do.
    pool = ThreadPoolExecutor(threads, name, initializer=_join, initargs=((*_stops(), stop),))
    try:
        yield pool
    except BaseException:
        stop.set()
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def check() -> None:
    """End the work of this thread if it is not wanted any more.

    Raises:
        Stopped: it is not.
    """
    for stop in _stops():
        if stop.is_set():
            raise Stopped


def pause(seconds: float) -> None:
    """Wait, not longer than the work is wanted.

    Raises:
        Stopped: it is not.
    """
    stops = _stops()
    if stops:
        stops[-1].wait(seconds)
    else:
        time.sleep(seconds)
    check()
