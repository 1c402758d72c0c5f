"""Turns of those who put something behind one object: threads, and processes of this user on this machine.

A store refuses what is based on an object that has changed since, and then it is done again; but some stores cannot.
Among machines there are no turns.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import threading
from collections.abc import Iterator

from moxserve.file.forks import ForkLock
from moxserve.file.places import cache_directory

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None  # type: ignore[assignment]

__all__ = ["turn"]

# More would be of use only to more writers than a machine has cores.
_COUNT = 64
_locks = [ForkLock() for _ in range(_COUNT)]
_here = threading.local()


@contextlib.contextmanager
def turn(name: str) -> Iterator[None]:
    """Wait for the turn of a name, and have it while the block lasts.

    Args:
        name: what must not be done by two at once; others may have to wait for it too, now and then. Who has a turn
            already (what a signal, or a log's handler, does in the middle of it) does not wait for another one.
    """
    if getattr(_here, "busy", False):
        yield
        return
    number = hashlib.sha256(name.encode()).digest()[0] % _COUNT
    _here.busy = True
    try:
        with _locks[number], _among_processes(number):
            yield
    finally:
        _here.busy = False


@contextlib.contextmanager
def _among_processes(number: int) -> Iterator[None]:
    if fcntl is None:
        yield
        return
    folder = os.path.join(cache_directory(), "turns")
    try:
        os.makedirs(folder, exist_ok=True)
        descriptor = os.open(os.path.join(folder, f"{number:02}"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError:  # no place to write: threads still take turns
        yield
        return
    try:
        with contextlib.suppress(OSError):  # a file system without locks
            # Not flock: a process that is forked meanwhile would have a share in it, and wait for itself.
            fcntl.lockf(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
