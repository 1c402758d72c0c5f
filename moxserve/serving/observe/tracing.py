"""Requests as spans of OpenTelemetry.

Each request is a span of kind SERVER, a child of the caller's when that sent `traceparent`; the run of the model is a
child of it. Names and attributes are those of OpenTelemetry's conventions for RPC and HTTP. Where spans go is told by
OpenTelemetry's own variables: OTEL_EXPORTER_OTLP_ENDPOINT, OTEL_TRACES_EXPORTER, OTEL_SERVICE_NAME,
OTEL_TRACES_SAMPLER, OTEL_PROPAGATORS and so on.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from importlib.metadata import entry_points
from typing import Any

from moxserve import __version__
from moxserve.errors import MissingExtraError, UsageError, did_you_mean
from moxserve.serving.observe.record import GRPC, RequestRecord

__all__ = ["Tracing"]

_GROUP = "opentelemetry_traces_exporter"
_PROTOCOLS = {"http/protobuf": "otlp_proto_http", "grpc": "otlp_proto_grpc"}
# Of the other gRPC statuses the caller is the cause.
_SERVERS_FAULT = frozenset(
    ("UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS")
)  # fmt: skip
_SERVER_ERROR = 500


class Tracing:
    """Makes spans of records and hands them to an exporter.

    Args:
        exporter: where spans go, at once; None takes what OpenTelemetry's variables say, in batches.

    Raises:
        MissingExtraError: OpenTelemetry is not installed.
        UsageError: there is no such exporter.
    """

    name = "tracing"

    def __init__(self, exporter: Any = None) -> None:
        try:
            from opentelemetry.sdk.resources import SERVICE_NAME, Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor, SimpleSpanProcessor
        except ImportError:
            raise MissingExtraError("opentelemetry-sdk", "otel", "--otel") from None
        resource = Resource.create()
        if not os.environ.get("OTEL_SERVICE_NAME") and "service.name" not in os.environ.get(
            "OTEL_RESOURCE_ATTRIBUTES", ""
        ):
            resource = resource.merge(Resource({SERVICE_NAME: "moxserve"}))
        # Not made the process's own provider: what else runs here may have one already.
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        if exporter is not None:
            self._provider.add_span_processor(SimpleSpanProcessor(exporter))
        else:
            for made in _exporters():
                self._provider.add_span_processor(BatchSpanProcessor(made))
        self._tracer = self._provider.get_tracer("moxserve", __version__)

    def write(self, records: Sequence[RequestRecord], dropped: int) -> None:  # noqa: ARG002 - told in the log
        """Make the spans of some requests; see `Sink`."""
        for record in records:
            self._span(record)

    def _span(self, record: RequestRecord) -> None:
        from opentelemetry.propagate import extract
        from opentelemetry.trace import SpanKind, set_span_in_context

        name, attributes = _described(record)
        span = self._tracer.start_span(
            name, context=extract(_carrier(record)), kind=SpanKind.SERVER, attributes=attributes,
            start_time=record.time_ns,
        )  # fmt: skip
        record.trace_id = f"{span.get_span_context().trace_id:032x}"
        if record.run_s >= 0:
            began_ns = record.time_ns + int(record.queue_s * 1e9)
            run = self._tracer.start_span(
                f"run {record.model}", context=set_span_in_context(span), attributes=_model(record), start_time=began_ns
            )
            run.end(began_ns + int(record.run_s * 1e9))
        if _failed(record):
            from opentelemetry.trace import Status, StatusCode

            span.set_status(Status(StatusCode.ERROR, record.status))
        span.end(record.time_ns + int(record.duration_s * 1e9))

    def reopen(self) -> None:
        """There is no file; see `Sink`."""

    def close(self) -> None:
        """Export what is left."""
        self._provider.shutdown()


def _exporters() -> list[Any]:
    """Make the exporters that the environment names, as OpenTelemetry's own automatic set-up does."""
    names = [name.strip() for name in os.environ.get("OTEL_TRACES_EXPORTER", "otlp").split(",") if name.strip()]
    return [_exporter(name) for name in names if name != "none"]


def _exporter(name: str) -> Any:
    wanted = name
    if name == "otlp":
        protocol = (
            os.environ.get("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL")
            or os.environ.get("OTEL_EXPORTER_OTLP_PROTOCOL")
            or "http/protobuf"
        )
        if protocol not in _PROTOCOLS:
            raise UsageError(f"OTEL_EXPORTER_OTLP_PROTOCOL={protocol!r}: {did_you_mean(protocol, _PROTOCOLS)}")
        wanted = _PROTOCOLS[protocol]
    for entry in entry_points(group=_GROUP, name=wanted):
        try:
            return entry.load()()
        except ImportError:
            continue
    if wanted == "otlp_proto_http":
        raise MissingExtraError("opentelemetry-exporter-otlp-proto-http", "otel", "--otel")
    known = {entry.name for entry in entry_points(group=_GROUP)}
    raise UsageError(
        f"OTEL_TRACES_EXPORTER={name!r}: no package that is installed has the exporter {wanted!r}; "
        f"{did_you_mean(wanted, known)}",
        hint="pip install opentelemetry-exporter-otlp-proto-grpc" if wanted == "otlp_proto_grpc" else None,
    )


def _carrier(record: RequestRecord) -> dict[str, str]:
    """Return the header fields as a propagator reads them."""
    return {_text(name).lower(): _text(value) for name, value in record.headers}


def _text(value: str | bytes) -> str:
    return value.decode("latin-1") if isinstance(value, bytes) else value


def _described(record: RequestRecord) -> tuple[str, dict[str, Any]]:
    if record.protocol == GRPC:
        service, _, method = record.method.lstrip("/").rpartition("/")
        name = f"{service}/{method}"
        attributes: dict[str, Any] = {
            "rpc.system": "grpc", "rpc.service": service, "rpc.method": method, "rpc.grpc.status_code": record.code,
        }  # fmt: skip
    else:
        verb, _, path = record.method.partition(" ")
        name = f"{verb} {record.route}" if record.route else verb
        attributes = {
            "http.request.method": verb, "url.path": path, "url.scheme": "http",
            "http.response.status_code": record.code, "http.request.body.size": record.request_bytes,
            "http.response.body.size": record.response_bytes,
        }  # fmt: skip
        if record.route:
            attributes["http.route"] = record.route
    if record.status != "OK":
        attributes["error.type"] = record.status
    address, _, port = record.peer.rpartition(":")
    if address and port.isdecimal():
        attributes |= {"network.peer.address": address.strip("[]"), "network.peer.port": int(port)}
    if record.request_id:
        attributes["moxserve.request_id"] = record.request_id
    return name, attributes | _model(record)


def _model(record: RequestRecord) -> dict[str, Any]:
    attributes: dict[str, Any] = {}
    if record.model:
        attributes["moxserve.model.name"] = record.model
    if record.version is not None:
        attributes |= {"moxserve.model.version": record.version, "moxserve.model.signature": record.signature}
    return attributes


def _failed(record: RequestRecord) -> bool:
    return record.status in _SERVERS_FAULT if record.protocol == GRPC else record.code >= _SERVER_ERROR
