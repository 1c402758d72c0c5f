"""Whether a request is worth taking in: how long would it wait, by how fast the model was lately?

`ServiceTimes` learns how long runs take by their size. `Admission` refuses a request that would wait too long. Neither
knows a queue: a runner says what is ahead of a request, in seconds. For runs of one request each on `n` threads:

    times.record(1, seconds)                                       # after each run
    admission.check(waiting * times.run_s(1) / n, context.deadline)    # before a request is taken in
"""

from __future__ import annotations

import math
import time

from moxserve.errors import Unavailable

__all__ = ["Admission", "ServiceTimes"]

_BUCKETS = 64
_SLOWER, _FASTER = 0.2, 0.5


class ServiceTimes:
    """How long runs of a model take lately, by the power of two that their size lies below.

    Noting is safe from any thread. A run that takes longer than known moves what is known less than one that is
    quicker: the first run of a shape, or a pause of the machine, must not keep requests away for long.
    """

    def __init__(self) -> None:
        # A list of fixed length, since a dict may not grow while another thread looks through it.
        self._unit_s: list[float] = [math.nan] * _BUCKETS

    def record(self, size: int, seconds: float) -> None:
        """Note a run.

        Args:
            size: rows, or requests, at least 1; less counts as 1.
            seconds: how long it took.
        """
        size = max(1, size)
        bucket = _bucket(size)
        known, unit_s = self._unit_s[bucket], seconds / size
        if math.isnan(known):
            self._unit_s[bucket] = unit_s
        else:
            self._unit_s[bucket] = known + (_FASTER if unit_s < known else _SLOWER) * (unit_s - known)

    def unit_s(self, size: int) -> float:
        """Return the seconds a row takes in runs of about this size; NaN when no such run was noted."""
        return self._unit_s[_bucket(max(1, size))]

    def run_s(self, size: int) -> float:
        """Guess how long a run of this size takes, in s, from the runs nearest in size; 0.0 when none was noted."""
        size = max(1, size)
        bucket = _bucket(size)
        for distance in range(_BUCKETS):
            for near in (bucket - distance, bucket + distance):
                if 0 <= near < _BUCKETS and not math.isnan(self._unit_s[near]):
                    return self._unit_s[near] * size
        return 0.0


def _bucket(size: int) -> int:
    return min(size.bit_length(), _BUCKETS - 1)


class Admission:
    """Refuses requests that would wait too long.

    Args:
        max_delay_s: how long a request may wait for its turn; 0 lets everything in, and only the length of the queue
            is a bound.

    Attributes:
        max_delay_s: as given.
    """

    def __init__(self, max_delay_s: float = 0.0) -> None:
        self.max_delay_s = max_delay_s

    def check(self, wait_s: float, deadline: float = math.inf) -> None:
        """Let a request in, or refuse it at once.

        Args:
            wait_s: how long it would wait for its turn, as far as anyone can tell.
            deadline: when its caller stops waiting, by `time.monotonic`, in s.

        Raises:
            Unavailable: it would wait longer than is allowed, or than its caller does.
        """
        if not self.max_delay_s or wait_s <= 0.0:
            return
        if wait_s > self.max_delay_s:
            raise Unavailable(
                f"overloaded: the request would wait about {wait_s * 1e3:.0f} ms for its turn, and "
                f"--max_queue_delay_ms allows {self.max_delay_s * 1e3:g} ms; try again later"
            )
        left_s = deadline - time.monotonic()
        if wait_s > left_s:
            raise Unavailable(
                f"overloaded: the request would wait about {wait_s * 1e3:.0f} ms for its turn, and its deadline is in "
                f"{left_s * 1e3:.0f} ms; try again later"
            )
