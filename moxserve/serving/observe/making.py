"""Makes the recorder that an operator asks for."""

from __future__ import annotations

from moxserve.serving.metrics import ServingMetrics
from moxserve.serving.observe.options import ObserveOptions
from moxserve.serving.observe.recorder import Recorder, Sink

__all__ = ["make_recorder"]


def make_recorder(options: ObserveOptions, metrics: ServingMetrics) -> Recorder:
    """Open the access log and set up traces, as far as they are asked for.

    Args:
        options: what is asked for.
        metrics: where records that are dropped are counted.

    Raises:
        UsageError: the file cannot be opened, or OpenTelemetry's variables make no sense.
        MissingExtraError: OpenTelemetry is not installed.
    """
    sinks: list[Sink] = []
    if options.tracing:
        # Before the log, which tells the ids of traces.
        from moxserve.serving.observe.tracing import Tracing

        sinks.append(Tracing())
    if options.access_log:
        from moxserve.serving.observe.access_log import AccessLog

        sinks.append(AccessLog(options.access_log))
    return Recorder(sinks, lambda count: metrics.records_dropped.add((), count))
