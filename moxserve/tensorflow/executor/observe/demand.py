"""Signals that ask a run for a look at its next steps: SIGUSR1 for a timeline, SIGUSR2 for a profile.

A signal that somebody handles already, or that is ignored, is left to them: schedulers announce the end of a job's time
with SIGUSR1 if they are asked to.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Mapping
from types import FrameType, TracebackType
from typing import Any

from moxserve.tensorflow.executor.participants import Clock

__all__ = ["Demand"]


class Demand:
    """Context manager: while it is open, each of some signals calls a function, and the next step is no quiet one.

    Outside of the main thread it does nothing, because only the main thread may handle signals.

    Args:
        clock: woken by each of the signals.
        asked: name of a signal: what it calls; must be quick, and safe in a signal handler.
    """

    def __init__(self, clock: Clock, asked: Mapping[str, Callable[[], None]]) -> None:
        self._clock = clock
        # A platform without a signal has the others.
        self._asked = {getattr(signal, name): call for name, call in asked.items() if hasattr(signal, name)}
        self._saved: dict[int, Any] = {}

    def __enter__(self) -> None:
        if threading.current_thread() is not threading.main_thread():
            return
        for signum in self._asked:
            if signal.getsignal(signum) is signal.SIG_DFL:
                self._saved[signum] = signal.signal(signum, self._handle)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for signum, handler in self._saved.items():
            signal.signal(signum, handler)

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        self._asked[signum]()
        self._clock.woken = True
