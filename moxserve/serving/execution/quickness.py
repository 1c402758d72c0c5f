"""Whether a model is quick enough to be run right on the event loop, where everything else waits for it."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np

from moxserve.serving.execution.admission import ServiceTimes

__all__ = ["Quickness", "payload_bytes"]

_QUICK_S = 250e-6
_PAUSE_S = 0.005
_SURE_AFTER, _MAX_PENALTY = 4, 32
_RISE = 1.05


class Quickness:
    """What is known of one signature, from its runs on threads and on the loop.

    On a busy server a run on a thread also waits for the interpreter, often much longer than it takes: of those the
    quickest tell most, so what is known rises by a few per cent a run at most. A run that held the loop up for
    milliseconds sends the next few to the threads, and twice as many when that happens again. Times are known by the
    magnitude of the inputs, since one row may be quick and a thousand rows not.
    """

    def __init__(self) -> None:
        self._times = ServiceTimes()
        self._doubt = _SURE_AFTER
        self._penalty = _SURE_AFTER

    def note(self, size: int, seconds: float, *, on_loop: bool) -> None:
        """Note a run; from any thread.

        Args:
            size: bytes of its inputs.
            seconds: how long it took.
            on_loop: whether it ran on the loop.
        """
        if on_loop and seconds > _PAUSE_S:
            self._penalty = min(2 * self._penalty, _MAX_PENALTY)
            self._doubt = self._penalty
        elif self._doubt:
            self._doubt -= 1
        elif on_loop and self._penalty > _SURE_AFTER:
            self._penalty -= 1
        if not on_loop and not math.isnan(unit_s := self._times.unit_s(size)):
            seconds = min(seconds, unit_s * max(1, size) * _RISE)
        self._times.record(size, seconds)

    def suits(self, size: int) -> bool:
        """Whether a run with inputs of so many bytes is known to be quick."""
        return not self._doubt and self._times.run_s(size) < _QUICK_S


def payload_bytes(arrays: Iterable[np.ndarray]) -> int:
    """Return how much data arrays hold; of strings, which may be words or photographs, their lengths."""
    return sum([array.nbytes if array.dtype != object else sum(map(len, array.flat)) for array in arrays])
