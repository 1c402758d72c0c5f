"""The life of the threads of flows: how they start, and that none is inside native code when the interpreter goes.

A thread that comes back from OpenCV, say, while the interpreter is being taken down is torn out of C++ code, which
aborts the program ("terminate called without an active exception"). So the threads are told to stop at the end of the
program, and waited for; only those that wait for something else, such as a network, are left behind, which is harmless.
"""

from __future__ import annotations

import atexit
import os
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from typing import Any

from moxserve.file.forks import ForkLock

__all__ = ["start_threads"]

# How long a thread may take at the end of the program to come back from what it does.
_PATIENCE_S = 3.0
# How soon threads are looked for that others started meanwhile.
_SLICE_S = 0.1


class _Ending:
    """Tells threads to stop, once; at the end of the program too, when a `weakref.finalize` does nothing any more."""

    def __init__(self, stop: Callable[[], None]) -> None:
        self._stops = [stop]

    def __call__(self) -> None:
        while self._stops:
            try:
                stop = self._stops.pop()
            except IndexError:  # another thread took it
                return
            stop()


# How each is told to stop.
_running: weakref.WeakKeyDictionary[threading.Thread, _Ending] = weakref.WeakKeyDictionary()
_lock = ForkLock()


def start_threads(
    owner: Any, works: Sequence[Callable[[], None]], stop: Callable[[], None], name: str
) -> Callable[[], Any]:
    """Start a thread for each of `works`, which end when `owner` is collected, or with the program.

    Args:
        owner: the flow; neither `works` nor `stop` may refer to it.
        works: what each thread does.
        stop: tells them to end; called once, anywhere, as collecting garbage may call it.
        name: of the threads.

    Returns:
        Calls `stop`, if nobody did before.
    """
    ending = _Ending(stop)
    # `_join` calls it at the end of the program, before it waits.
    weakref.finalize(owner, ending).atexit = False
    for i, work in enumerate(works):
        thread = threading.Thread(target=work, name=f"{name}-{i}", daemon=True)
        with _lock:
            _running[thread] = ending
        thread.start()
    return ending


def _forked() -> None:
    # None of them is here: who waits for one is told so, instead of waiting for ever.
    for ending in list(_running.values()):
        ending()
    _running.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)


@atexit.register
def _join() -> None:
    deadline = time.monotonic() + _PATIENCE_S
    # Again and again: a thread that is on its way may start others.
    while time.monotonic() < deadline:
        with _lock:
            alive = [(thread, ending) for thread, ending in _running.items() if thread.is_alive()]
        if not alive:
            return
        for _, ending in alive:
            ending()
        until = min(time.monotonic() + _SLICE_S, deadline)
        for thread, _ in alive:
            thread.join(max(0.0, until - time.monotonic()))
