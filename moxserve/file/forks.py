"""Locks that a process which was forked finds open: a thread that is not there may have held them."""

from __future__ import annotations

import os
import threading

__all__ = ["ForkLock"]


class ForkLock:
    """A lock of a module; a context manager."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._held: list[threading.Lock] = []  # one, and in a process that was forked inside, that of before below it
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._renew)

    def _renew(self) -> None:
        self._lock = threading.Lock()

    def __enter__(self) -> None:
        lock = self._lock
        lock.acquire()
        self._held.append(lock)

    def __exit__(self, *_: object) -> None:
        self._held.pop().release()
