"""Calls into Python from threads of other libraries, such as TensorFlow's, and the end of the program.

Such a thread is not known to Python, which takes the interpreter down under it: when it comes back from OpenCV then, it
is torn out of C++ code, and the program aborts ("terminate called without an active exception") or waits for ever for
what the thread held. So the end of the program waits for calls that are under way, and lets no other begin.
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

# How long calls may take at the end of the program.
_PATIENCE_S = 3.0
# For the few instructions between the end of a call and the return to the other library.
_RETURN_S = 0.02


class ProgramEndsError(MoxserveError):
    """Data were asked for while the program ends; nobody waits for them any more."""


class _Calls:
    """Calls under way, and whether more may begin."""

    def __init__(self) -> None:
        self.changed = threading.Condition(threading.Lock())
        self.count, self.any, self.ending = 0, False, False

    def end(self) -> None:
        """Let no other call begin, and wait for those under way."""
        with self.changed:
            self.ending = True
            self.changed.wait_for(lambda: not self.count, _PATIENCE_S)
        if self.any:
            time.sleep(_RETURN_S)


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
    with calls.changed:
        if calls.ending:
            raise ProgramEndsError("the program ends: no more data are read")
        calls.count, calls.any = calls.count + 1, True
    try:
        yield
    finally:
        with calls.changed:
            calls.count -= 1
            calls.changed.notify_all()
