"""Measures one loaded model in this process: times of calls by one caller, CPU time, memory."""

from __future__ import annotations

import contextlib
import resource
import sys
import time
from collections.abc import Callable
from typing import TypeVar

import numpy as np

from moxserve.export.facts import Measured, Timing
from moxserve.probe.result import ProbeOptions
from moxserve.serving.machine import machine

__all__ = ["Meter"]

T = TypeVar("T")

_LEAST_CALLS = 3
_MOST_CALLS = 5000
_WARM_CALLS = 20
# Part of the time for calls that do not count.
_WARM_SHARE = 0.15
_MB = 1e6


class Meter:
    """Takes the figures of one model, from before it is loaded until it was called often enough.

    Args:
        options: how long to measure.
    """

    def __init__(self, options: ProbeOptions) -> None:
        self._options = options
        self._timings: dict[int, Timing] = {}
        self._load_s = self._first_ms = 0.0
        _forget_peak()
        self._base_mb = _memory_mb("VmRSS")

    def load(self, load: Callable[[], T]) -> T:
        """Load the model, and take the time."""
        started = time.perf_counter()
        loaded = load()
        self._load_s = time.perf_counter() - started
        return loaded

    def first(self, call: Callable[[], object]) -> None:
        """Call it for the first time, and take the time."""
        started = time.perf_counter()
        call()
        self._first_ms = 1000 * (time.perf_counter() - started)

    def time(self, batch: int, call: Callable[[], object]) -> None:
        """Call it again and again, some times uncounted; at least a few times, however slow it is.

        Args:
            batch: rows a call.
            call: one call.
        """
        _repeat(call, self._options.budget_s * _WARM_SHARE, 1, _WARM_CALLS)
        before = time.process_time()
        taken = np.array(_repeat(call, self._options.budget_s, _LEAST_CALLS, _MOST_CALLS)) * 1000
        cpu_ms = 1000 * (time.process_time() - before) / len(taken)
        middle, late = np.percentile(taken, [50, 95])
        least = float(taken.min())
        self._timings[batch] = Timing(
            batch=batch,
            calls=len(taken),
            min_ms=least,
            p50_ms=float(middle),
            p95_ms=float(late),
            rows_per_s=1000 * batch / float(middle),
            best_rows_per_s=1000 * batch / least,
            cpu_ms=cpu_ms,
        )

    def measured(self) -> Measured:
        """Return the figures."""
        return Measured(
            machine=machine(),
            load_s=self._load_s,
            first_call_ms=self._first_ms,
            timings=tuple(self._timings[batch] for batch in sorted(self._timings)),
            base_memory_mb=self._base_mb,
            peak_memory_mb=_memory_mb("VmHWM"),
            threads=self._options.intra_op_threads,
        )


def _repeat(call: Callable[[], object], budget_s: float, least: int, most: int) -> list[float]:
    """Return how many seconds each call took."""
    taken: list[float] = []
    until = time.perf_counter() + budget_s
    while len(taken) < least or (len(taken) < most and time.perf_counter() < until):
        started = time.perf_counter()
        call()
        taken.append(time.perf_counter() - started)
    return taken


def _forget_peak() -> None:
    """Let the peak of the memory begin here, where Linux allows it; else it includes what importing took."""
    with contextlib.suppress(OSError), open("/proc/self/clear_refs", "w") as f:
        f.write("5")


def _memory_mb(field: str) -> float:
    """Read `VmRSS` (now) or `VmHWM` (the most); elsewhere than on Linux the most for both."""
    with contextlib.suppress(OSError, ValueError), open("/proc/self/status") as f:
        line = next((line for line in f if line.startswith(f"{field}:")), "")
        return int(line.split()[1]) * 1024 / _MB
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most * (1 if sys.platform == "darwin" else 1024) / _MB
