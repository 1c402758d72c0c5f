"""Figures of a load test. Plain Python: used by the generator, the command and its tests."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

__all__ = ["SATURATED_CPU", "Latencies", "LoadResult"]

# Share of one core above which the generator, being one Python thread, is likely to be what is measured.
SATURATED_CPU = 0.9
_GROWTH = math.log(1.005)


class Latencies:
    """Counts latencies in steps of 0.5 %, so memory does not grow with the length of the test."""

    def __init__(self) -> None:
        self._buckets: Counter[int] = Counter()
        self.count = 0
        self.total_ms = 0.0
        self.min_ms = math.inf
        self.max_ms = 0.0

    def add(self, latency_ms: float) -> None:
        """Count one latency."""
        self.count += 1
        self.total_ms += latency_ms
        self.min_ms = min(self.min_ms, latency_ms)
        self.max_ms = max(self.max_ms, latency_ms)
        self._buckets[math.floor(math.log(max(latency_ms, 1e-6)) / _GROWTH)] += 1

    def percentile(self, percent: float) -> float | None:
        """Return a percentile in milliseconds, within 0.5 %; None without latencies."""
        if not self.count:
            return None
        wanted = max(1, math.ceil(self.count * percent / 100))
        seen = 0
        for bucket in sorted(self._buckets):
            seen += self._buckets[bucket]
            if seen >= wanted:
                middle = math.exp((bucket + 0.5) * _GROWTH)
                return min(self.max_ms, max(self.min_ms, middle))
        return self.max_ms

    @property
    def avg_ms(self) -> float | None:
        """Mean in milliseconds; None without latencies."""
        return self.total_ms / self.count if self.count else None


@dataclass
class LoadResult:
    """What a load test measured, from the moment when all users were there.

    Attributes:
        target: address of the server.
        model: as asked for.
        users: concurrent users, each with one request at a time on a connection of its own.
        rows: rows a request.
        source: where the payloads came from.
        duration_s: length of the measurement.
        requests: finished requests, failed ones included.
        failures: failed requests.
        fail_ratio: failures / requests, 0..1.
        rps: successful requests a second.
        rows_per_s: rows in successful requests a second.
        avg_ms: mean latency of successful requests; None without any, as the following.
        min_ms: smallest.
        max_ms: largest.
        p50_ms: median.
        p90_ms: 90th percentile.
        p95_ms: 95th percentile.
        p99_ms: 99th percentile.
        generator_cpu: CPU seconds of the generator a second, 1.0 being one core.
        loop_lag_ms: 95th percentile of how late the generator's event loop woke up.
        saturated: the generator was at its limit, so the figures tell of it rather than of the server.
        errors: the most frequent failures, message -> count.
    """

    target: str
    model: str
    users: int
    rows: int
    source: str
    duration_s: float = 0.0
    requests: int = 0
    failures: int = 0
    fail_ratio: float = 0.0
    rps: float = 0.0
    rows_per_s: float = 0.0
    avg_ms: float | None = None
    min_ms: float | None = None
    max_ms: float | None = None
    p50_ms: float | None = None
    p90_ms: float | None = None
    p95_ms: float | None = None
    p99_ms: float | None = None
    generator_cpu: float = 0.0
    loop_lag_ms: float | None = None
    saturated: bool = False
    errors: Mapping[str, int] = field(default_factory=dict)

    def measured(self, latencies: Latencies, errors: Counter[str], seconds: float) -> None:
        """Fill in what was counted."""
        good, failed = latencies.count, sum(errors.values())
        self.duration_s = seconds
        self.requests, self.failures = good + failed, failed
        self.fail_ratio = failed / self.requests if self.requests else 0.0
        self.rps = good / seconds
        self.rows_per_s = self.rps * self.rows
        self.errors = dict(errors.most_common(5))
        self.avg_ms = latencies.avg_ms
        self.min_ms, self.max_ms = (latencies.min_ms, latencies.max_ms) if good else (None, None)
        self.p50_ms, self.p90_ms, self.p95_ms, self.p99_ms = (latencies.percentile(p) for p in (50, 90, 95, 99))

    def generator_used(self, cpu_s: float, seconds: float, lags: Latencies) -> None:
        """Fill in what the generator itself needed."""
        self.generator_cpu = cpu_s / seconds
        self.saturated = self.generator_cpu > SATURATED_CPU
        self.loop_lag_ms = lags.percentile(95)

    def as_dict(self) -> dict[str, Any]:
        """Return the figures for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> LoadResult:
        """Read what `as_dict` wrote."""
        return cls(**values)


def table(result: LoadResult) -> Sequence[tuple[str, str]]:
    """Return the figures as (name, text) for people."""

    def ms(value: float | None) -> str:
        return "-" if value is None else f"{value:.3g} ms" if value < 100 else f"{value:,.0f} ms"

    quantiles = ", ".join(f"{n} {ms(getattr(result, f'{n}_ms'))}" for n in ("avg", "p50", "p90", "p95", "p99", "max"))
    lag = "" if result.loop_lag_ms is None else f", woke up {ms(result.loop_lag_ms)} late (p95)"
    return [
        ("requests", f"{result.requests:,} in {result.duration_s:.1f} s, {result.failures:,} failed"),
        ("rate", f"{result.rps:,.1f} requests/s, {result.rows_per_s:,.1f} rows/s"),
        ("latency", quantiles),
        ("generator", f"{result.generator_cpu:.0%} of one core{lag}"),
    ]
