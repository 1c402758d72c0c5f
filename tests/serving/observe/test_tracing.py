"""Spans of requests, by OpenTelemetry's own SDK; what requests put into them is in test_requests.py."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

pytest.importorskip("opentelemetry.sdk", reason="the extra otel is not installed")

from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from moxserve.errors import UsageError
from moxserve.serving.observe import RequestRecord
from moxserve.serving.observe.tracing import Tracing

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


@pytest.fixture
def told():
    exporter = InMemorySpanExporter()
    tracing = Tracing(exporter)

    def tell(record: RequestRecord) -> list[Any]:
        exporter.clear()
        tracing.write([record], 0)
        return list(exporter.get_finished_spans())

    yield tell
    tracing.close()


def predict(**more: Any) -> RequestRecord:
    record = RequestRecord("grpc", "/tensorflow.serving.PredictionService/Predict", peer="[::1]:4711", **more)
    record.model = "half"
    record.ran(record.began + 0.01, 0.2)
    record.answered(123, "serving_default", 0.3)
    record.end("OK", 0, 10)
    record.duration_s = 0.5
    return record


def test_a_request_and_the_run_in_it(told) -> None:
    record = predict(request_id="abc")
    run, span = told(record)
    assert (span.name, span.kind) == ("tensorflow.serving.PredictionService/Predict", SpanKind.SERVER)
    assert dict(span.attributes) == {
        "rpc.system": "grpc", "rpc.service": "tensorflow.serving.PredictionService", "rpc.method": "Predict",
        "rpc.grpc.status_code": 0, "network.peer.address": "::1", "network.peer.port": 4711,
        "moxserve.request_id": "abc", "moxserve.model.name": "half", "moxserve.model.version": 123,
        "moxserve.model.signature": "serving_default",
    }  # fmt: skip
    assert (span.start_time, span.end_time - span.start_time) == (record.time_ns, 500_000_000)
    assert span.status.status_code is StatusCode.UNSET
    assert span.parent is None
    assert run.parent.span_id == span.context.span_id
    assert run.name == "run half"
    assert run.start_time - span.start_time == pytest.approx(10_000_000, abs=1000)
    assert run.end_time - run.start_time == 200_000_000
    assert record.trace_id == f"{span.context.trace_id:032x}"


@pytest.mark.parametrize(
    "headers", [[("traceparent", f"00-{TRACE}-{PARENT}-01")], [(b"Traceparent", f"00-{TRACE}-{PARENT}-01".encode())]]
)
def test_the_callers_span_is_the_parent(told, headers) -> None:
    _, span = told(predict(headers=headers))
    assert f"{span.context.trace_id:032x}" == TRACE
    assert f"{span.parent.span_id:016x}" == PARENT


def test_a_caller_that_is_not_sampled_is_not_told(told) -> None:
    assert told(predict(headers=[("traceparent", f"00-{TRACE}-{PARENT}-00")])) == []


@pytest.mark.parametrize("broken", ["", "00", f"00-{TRACE}-{PARENT}", "ff-" + "0" * 60, "\x00ä"])
def test_a_broken_traceparent_is_none(told, broken) -> None:
    _, span = told(predict(headers=[("traceparent", broken)]))
    assert span.parent is None


def test_http(told) -> None:
    record = RequestRecord(
        "http", "POST /v1/models/half:predict", route="/v1/models/{model}:predict", peer="10.0.0.1:5"
    )
    record.end("UNAVAILABLE", 503, 20)
    (span,) = told(record)
    assert span.name == "POST /v1/models/{model}:predict"
    assert dict(span.attributes) == {
        "http.request.method": "POST", "url.path": "/v1/models/half:predict", "url.scheme": "http",
        "http.route": "/v1/models/{model}:predict", "http.response.status_code": 503, "http.request.body.size": 0,
        "http.response.body.size": 20, "error.type": "UNAVAILABLE", "network.peer.address": "10.0.0.1",
        "network.peer.port": 5,
    }  # fmt: skip
    assert (span.status.status_code, span.status.description) == (StatusCode.ERROR, "UNAVAILABLE")


@pytest.mark.parametrize(
    ("protocol", "status", "code", "failed"),
    [("grpc", "INTERNAL", 13, True), ("grpc", "NOT_FOUND", 5, False), ("grpc", "UNAVAILABLE", 14, True),
     ("http", "NOT_FOUND", 404, False), ("http", "INTERNAL", 500, True)],
)  # fmt: skip
def test_only_the_servers_own_failures_are_errors(told, protocol, status, code, failed) -> None:
    record = RequestRecord(protocol, "/a.B/C" if protocol == "grpc" else "GET /v1/models/x")
    record.end(status, code, 0)
    (span,) = told(record)
    assert (span.status.status_code is StatusCode.ERROR) is failed
    assert span.attributes["error.type"] == status


def test_the_service_has_a_name(told, monkeypatch) -> None:
    _, span = told(predict())
    assert span.resource.attributes["service.name"] == "moxserve"
    monkeypatch.setenv("OTEL_SERVICE_NAME", "mine")
    exporter = InMemorySpanExporter()
    tracing = Tracing(exporter)
    tracing.write([predict()], 0)
    tracing.close()
    assert exporter.get_finished_spans()[0].resource.attributes["service.name"] == "mine"


def test_exporters_of_the_environment(monkeypatch) -> None:
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "none")
    Tracing().close()
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "zipkin")
    with pytest.raises(UsageError, match="no package that is installed has the exporter 'zipkin'"):
        Tracing()
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "otlp")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "http")
    with pytest.raises(UsageError, match="known: grpc, http/protobuf"):
        Tracing()


def test_the_extra_is_named_when_it_is_missing() -> None:
    code = (
        "import sys; sys.modules['opentelemetry'] = None\n"
        "from moxserve.errors import MissingExtraError\n"
        "from moxserve.serving.observe.tracing import Tracing\n"
        "try:\n    Tracing()\nexcept MissingExtraError as error:\n    print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=240, check=True)
    assert 'pip install "moxserve[otel]"' in done.stdout
