from __future__ import annotations

import random

import pytest

from moxserve.serving.metrics import ServingMetrics
from moxserve.serving.rest.page.figures import percentile, read_figures


def test_percentiles_lie_within_their_bucket_of_the_true_ones() -> None:
    metrics = ServingMetrics()
    random.seed(7)
    seconds = sorted(random.lognormvariate(-6, 1) for _ in range(5000))
    for value in seconds:
        metrics.request("m", "OK", api="Predict", entrypoint="GRPC", seconds=value)
    latency = read_figures(metrics)["m"].latency
    assert latency.count == 5000
    for share, estimate_ms in ((0.5, latency.p50_ms), (0.95, latency.p95_ms), (0.99, latency.p99_ms)):
        true_ms = seconds[int(share * 5000)] * 1e3
        assert true_ms / 1.8 < estimate_ms < true_ms * 1.8


@pytest.mark.parametrize(
    ("counts", "share", "value"),
    [
        ([0, 0, 0], 0.5, 0.0),
        ([10, 0, 0], 0.5, 5.0),
        ([0, 10, 0], 0.5, 15.0),
        ([5, 5, 0], 0.5, 10.0),
        ([0, 0, 3], 0.5, 20.0),
        ([1, 0, 3], 0.99, 20.0),
        ([0, 1, 0], 1.0, 20.0),
    ],
)
def test_percentile(counts, share, value) -> None:
    assert percentile([10.0, 20.0], counts, share) == pytest.approx(value)


def test_figures_add_protocols_up_and_leave_looks_at_the_status_out_of_latencies() -> None:
    metrics = ServingMetrics()
    metrics.request("m", "OK", api="Predict", entrypoint="GRPC", seconds=0.001)
    metrics.request("m", "OK", api="predict", entrypoint="REST", seconds=0.001)
    metrics.request("m", "OK", api="", entrypoint="REST", seconds=9.0)
    metrics.request("m", "INVALID_ARGUMENT", api="predict", entrypoint="REST", seconds=0.1)
    metrics.request("m", "UNAVAILABLE", api="Predict", entrypoint="GRPC", seconds=0.1)
    metrics.run("m", "Predict", "tensorflow", 0.0005)
    figures = read_figures(metrics)["m"]
    assert (figures.succeeded, figures.failed) == (3, {"INVALID_ARGUMENT": 1, "UNAVAILABLE": 1})
    assert (figures.failures, figures.faults) == (2, 1)
    assert (figures.latency.count, figures.run.count) == (2, 1)
    assert figures.latency.p99_ms < 2
