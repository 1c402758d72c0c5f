"""What the page tells of the metrics: requests by model, and how long they took.

The metrics are histograms, so percentiles are estimates: within a bucket, times are taken to lie evenly. Its limits are
a factor of 1.8 apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from moxserve.serving.metrics import ServingMetrics

# The statuses that say that the server could not do what it should; for the others the request was wrong.
_FAULTS = frozenset(("UNKNOWN", "DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS"))

__all__ = ["Latency", "ModelFigures", "percentile", "read_figures"]


@dataclass(frozen=True, slots=True)
class Latency:
    """How long requests took, in ms; nothing is known when `count` is 0."""

    count: int = 0
    p50_ms: float = 0.0
    p95_ms: float = 0.0
    p99_ms: float = 0.0


@dataclass(slots=True)
class ModelFigures:
    """What was counted of one model.

    Attributes:
        succeeded: requests that were answered, over both protocols.
        failed: requests that were not, by the name of their status.
        latency: of requests for inference that succeeded.
        run: of the model's runs alone, waiting for their turn included.
    """

    succeeded: int = 0
    failed: dict[str, int] = field(default_factory=dict)
    latency: Latency = field(default_factory=Latency)
    run: Latency = field(default_factory=Latency)

    @property
    def faults(self) -> int:
        """How many of them the server is to blame for."""
        return sum(count for status, count in self.failed.items() if status in _FAULTS)

    @property
    def failures(self) -> int:
        """How many failed."""
        return sum(self.failed.values())


def read_figures(metrics: ServingMetrics) -> dict[str, ModelFigures]:
    """Return the figures of each model that was asked for, the empty name for requests that named none."""
    found: dict[str, ModelFigures] = {}
    for (model, status), count in metrics.request_count.cells():
        figures = found.setdefault(model, ModelFigures())
        if status == "OK":
            figures.succeeded += count
        else:
            figures.failed[status] = figures.failed.get(status, 0) + count
    for histogram, attribute in ((metrics.request_latency, "latency"), (metrics.runtime_latency, "run")):
        sums: dict[str, list[int]] = {}
        for labels, counts, _ in histogram.cells():
            # Without an API it is no inference: a look at a status or at metadata.
            if labels[1]:
                known = sums.setdefault(labels[0], [0] * len(counts))
                sums[labels[0]] = [a + b for a, b in zip(known, counts, strict=True)]
        for model, counts in sums.items():
            setattr(found.setdefault(model, ModelFigures()), attribute, _latency(histogram.limits, counts))
    return found


def _latency(limits_us: Sequence[float], counts: Sequence[int]) -> Latency:
    p50, p95, p99 = (percentile(limits_us, counts, share) / 1e3 for share in (0.5, 0.95, 0.99))
    return Latency(sum(counts), p50, p95, p99)


def percentile(limits: Sequence[float], counts: Sequence[int], share: float) -> float:
    """Estimate the value that a share of the values lies below.

    Args:
        limits: upper limits of the buckets, growing.
        counts: values in each bucket, and in one more for what is larger.
        share: 0 to 1.

    Returns:
        In the unit of the limits; 0.0 without values. What lies above the last limit is told as that limit.
    """
    wanted = share * sum(counts)
    lower, below = 0.0, 0
    for limit, count in zip(limits, counts, strict=False):
        if count and below + count >= wanted:
            return lower + (limit - lower) * (wanted - below) / count
        below += count
        lower = limit
    return limits[-1] if counts[-1] else 0.0
