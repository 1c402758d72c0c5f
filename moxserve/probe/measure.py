"""Measures one loaded model in this process: times of calls by one caller, CPU time, memory."""

from __future__ import annotations

import contextlib
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np

from moxserve.export.facts import Measured, Timing
from moxserve.probe.result import ProbeOptions
from moxserve.serving.machine import machine

__all__ = ["ROUNDS", "Meter"]

T = TypeVar("T")

# Batch sizes take turns: what else the machine does for a while then slows no single one of them.
ROUNDS = 3
_MOST_CALLS = 2000
_WARM_CALLS = 10
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
        self._counted: dict[int, _Counted] = {}
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
        """Call it again and again, some times uncounted; what was timed before of this batch size stays.

        Args:
            batch: rows a call.
            call: one call.
        """
        budget_s = self._options.budget_s / ROUNDS
        _repeat(call, budget_s * _WARM_SHARE, _WARM_CALLS)
        before = time.process_time()
        taken = _repeat(call, budget_s, _MOST_CALLS)
        counted = self._counted.setdefault(batch, _Counted())
        counted.cpu_s += time.process_time() - before
        counted.taken_s += taken

    def forget(self, batch: int) -> None:
        """Leave out a batch size that could not be timed to the end."""
        self._counted.pop(batch, None)

    def measured(self) -> Measured:
        """Return the figures."""
        return Measured(
            machine=machine(),
            load_s=self._load_s,
            first_call_ms=self._first_ms,
            timings=tuple(self._counted[batch].timing(batch) for batch in sorted(self._counted)),
            base_memory_mb=self._base_mb,
            peak_memory_mb=_memory_mb("VmHWM"),
            threads=self._options.intra_op_threads,
        )


@dataclass
class _Counted:
    """Calls of one batch size."""

    taken_s: list[float] = field(default_factory=list)
    cpu_s: float = 0.0

    def timing(self, batch: int) -> Timing:
        """Return their figures."""
        taken = np.array(self.taken_s) * 1000
        middle, late = (float(value) for value in np.percentile(taken, [50, 95]))
        least = float(taken.min())
        return Timing(
            batch=batch,
            calls=len(taken),
            min_ms=least,
            p50_ms=middle,
            p95_ms=late,
            rows_per_s=1000 * batch / middle,
            best_rows_per_s=1000 * batch / least,
            cpu_ms=1000 * self.cpu_s / len(taken),
        )


def _repeat(call: Callable[[], object], budget_s: float, most: int) -> list[float]:
    """Return how many seconds each call took; one at least, however slow it is."""
    taken: list[float] = []
    until = time.perf_counter() + budget_s
    while not taken or (len(taken) < most and time.perf_counter() < until):
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
