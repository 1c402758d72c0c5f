"""Calls into Python from threads of other libraries, such as TensorFlow's, and the end of the program.

Such a thread is not known to Python, which takes the interpreter down under it: when it comes back from OpenCV then, it
is torn out of C++ code, and the program aborts ("terminate called without an active exception") or waits for ever for
what the thread held. So the end of the program waits for calls that are under way, and lets no other begin: those that
are tried are refused, which ends the pipelines that try them, and it waits until that has happened.
"""

from __future__ import annotations

import atexit
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from moxserve.errors import MoxserveError

__all__ = ["ProgramEndsError", "before_the_end"]

# How long the end of the program waits, at most.
_PATIENCE_S = 3.0
# How long no call may have ended, or been tried: for the few instructions until it is back in the other library, and
# for that library to see an error. On a busy machine, a thread waits a good part of it for its turn.
_QUIET_S = 0.1


class ProgramEndsError(MoxserveError):
    """Data were asked for while the program ends; nobody waits for them any more."""


class _Calls:
    """Calls under way, when one ended or was tried last, and whether more may begin."""

    def __init__(self) -> None:
        self.changed = threading.Condition(threading.Lock())
        self.count, self.any, self.ending = 0, False, False
        self.last = 0.0

    def begin(self) -> None:
        """Note that a call begins, or that it may not."""
        with self.changed:
            if self.ending:
                self.last = time.monotonic()
                raise ProgramEndsError("the program ends: no more data are read")
            self.count, self.any = self.count + 1, True

    def finish(self) -> None:
        """Note that a call ends."""
        with self.changed:
            self.count, self.last = self.count - 1, time.monotonic()
            self.changed.notify_all()

    def end(self) -> None:
        """Let no other call begin, and wait for those under way, and until no other is tried."""
        with self.changed:
            self.ending = True
            deadline = time.monotonic() + _PATIENCE_S
            while self.any:
                now = time.monotonic()
                until = deadline if self.count else min(self.last + _QUIET_S, deadline)
                if until <= now:
                    return
                self.changed.wait(until - now)


_calls = _Calls()


def _forked() -> None:
    # The threads that called stayed in the parent.
    global _calls
    _calls = _Calls()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)


@atexit.register
def _end() -> None:
    _calls.end()


@contextmanager
def before_the_end() -> Iterator[None]:
    """What is done inside is done before the program ends; may be nested.

    Raises:
        ProgramEndsError: the program ends already.
    """
    calls = _calls
    calls.begin()
    try:
        yield
    finally:
        calls.finish()
