"""What a real server tells of real requests: ids, the access log, spans, the profiler, the page of metrics."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import httpx2
import pytest

from moxserve.protocol import messages
from moxserve.serving import main
from moxserve.serving.batching.params import BatchingOptions
from moxserve.serving.main import Server, ServerOptions
from moxserve.serving.manager import Manager
from moxserve.serving.observe import ObserveOptions
from moxserve.serving.rest.options import RestOptions

PREDICT = "/tensorflow.serving.PredictionService/Predict"
STATUS = "/tensorflow.serving.ModelService/GetModelStatus"
TRACEPARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


@pytest.fixture(scope="module")
def half(shared_dir: Path) -> str:
    return str(shared_dir / "testdata" / "tfserving" / "saved_model_half_plus_two_cpu")


@pytest.fixture
def serve(half, monkeypatch) -> Iterator[Callable[..., Any]]:
    running: list[Server] = []

    def start(observe: ObserveOptions | None = None, **more: Any) -> SimpleNamespace:
        options = ServerOptions(
            "half", half, rest_address="127.0.0.1:0", observe=observe or ObserveOptions(), warmup=False, **more
        )
        server = Server(options)
        server.start()
        running.append(server)
        http = httpx2.Client(base_url=f"http://127.0.0.1:{server.rest_port}")
        channel = grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}")
        return SimpleNamespace(server=server, http=http, channel=channel)

    # What is left to tell at the end is told, however busy the machine is.
    monkeypatch.setattr(main, "_TELL_S", 60.0)
    yield start
    for server in running:
        server.stop(60)


def predict_bytes(model: str = "half") -> bytes:
    request = messages.PredictRequest()
    request.model_spec.name = model
    request.inputs["x"].dtype = 1
    request.inputs["x"].float_val.append(1.0)
    request.inputs["x"].tensor_shape.dim.add().size = 1
    return request.SerializeToString()


def call(channel: Any, method: str, data: bytes, **metadata: str) -> tuple[str, dict[str, str]]:
    """Return status and trailing metadata."""
    try:
        _, done = channel.unary_unary(method).with_call(data, metadata=list(metadata.items()) or None, timeout=60)
    except grpc.RpcError as error:
        return error.code().name, {m.key: m.value for m in error.trailing_metadata() or ()}
    return done.code().name, {m.key: m.value for m in done.trailing_metadata() or ()}


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_bytes().splitlines()]


# Request ids


def test_an_id_comes_back_and_none_is_made_unless_it_is_of_use(serve) -> None:
    server = serve()
    ask = {"instances": [1.0]}
    answer = server.http.post("/v1/models/half:predict", json=ask, headers={"X-Request-Id": "mine-1"})
    assert (answer.json(), answer.headers["x-request-id"]) == ({"predictions": [2.5]}, "mine-1")
    assert "x-request-id" not in server.http.post("/v1/models/half:predict", json=ask).headers
    assert call(server.channel, PREDICT, predict_bytes(), **{"x-request-id": "mine-2"}) == (
        "OK", {"x-request-id": "mine-2"},
    )  # fmt: skip
    assert call(server.channel, PREDICT, predict_bytes()) == ("OK", {})


def test_an_id_is_told_with_an_error_beside_the_text_of_the_original(serve) -> None:
    server = serve()
    text = "Servable not found for request: Latest(nope)"
    answer = server.http.post("/v1/models/nope:predict", content='{"instances": [1]}', headers={"x-request-id": "e1"})
    assert answer.json() == {"error": text, "request_id": "e1"}
    assert answer.headers["x-request-id"] == "e1"
    answer = server.http.post("/v1/models/nope:predict", content='{"instances": [1]}')
    assert answer.json() == {"error": text}
    assert call(server.channel, PREDICT, predict_bytes("nope"), **{"x-request-id": "e2"}) == (
        "NOT_FOUND", {"x-request-id": "e2"},
    )  # fmt: skip


@pytest.mark.parametrize("strange", ["x" * 129, "two words", "\xe4".encode("latin-1")])
def test_an_id_that_would_make_a_mess_is_not_given_back(serve, strange) -> None:
    server = serve()
    answer = server.http.get("/v1/models/half", headers={"x-request-id": strange})
    assert (answer.status_code, "x-request-id" in answer.headers) == (200, False)


# The access log


def test_every_request_is_a_line(serve, tmp_path) -> None:
    path = tmp_path / "access.log"
    server = serve(ObserveOptions(access_log=str(path)))
    body = b'{"instances": [1.0, 2.0]}'
    first = server.http.post("/v1/models/half:predict", content=body, headers={"x-request-id": "r1"})
    second = server.http.post("/v1/models/half:predict", content=b"{")
    server.http.get("/v1/models/nope")
    server.http.get("/elsewhere?secret=1")
    data = predict_bytes()
    _, metadata = call(server.channel, PREDICT, data, **{"x-request-id": "g1"})
    _, made = call(server.channel, PREDICT, b"\xff", **{"x-request-id": "two words"})
    call(server.channel, STATUS, b"")
    assert server.server.stop(60)
    told = {line["request_id"]: line for line in lines(path)}
    assert len(told) == len(lines(path)) == 7
    line = told["r1"]
    assert {key: line[key] for key in ("protocol", "method", "model", "version", "signature", "status", "code")} == {
        "protocol": "http", "method": "POST /v1/models/half:predict", "model": "half", "version": 123,
        "signature": "serving_default", "status": "OK", "code": 200,
    }  # fmt: skip
    assert (line["request_bytes"], line["response_bytes"]) == (len(body), len(first.content))
    assert line["peer"].startswith("127.0.0.1:")
    assert 0 <= line["queue_ms"] + line["run_ms"] <= line["duration_ms"] + 0.002
    refused = told[second.headers["x-request-id"]]
    assert (refused["status"], refused["code"], "run_ms" in refused) == ("INVALID_ARGUMENT", 400, False)
    methods = {line["method"]: line for line in told.values()}
    assert (methods["GET /v1/models/nope"]["status"], methods["GET /v1/models/nope"]["model"]) == ("NOT_FOUND", "nope")
    assert methods["GET /elsewhere"]["code"] == 404
    line = told["g1"]
    assert metadata["x-request-id"] == "g1"
    assert (line["protocol"], line["method"], line["status"], line["code"]) == ("grpc", PREDICT, "OK", 0)
    assert (line["model"], line["version"], line["request_bytes"]) == ("half", 123, len(data))
    assert line["response_bytes"] > 0
    assert line["peer"].startswith("127.0.0.1:")
    assert told[made["x-request-id"]]["status"] == "INVALID_ARGUMENT"
    assert (methods[STATUS]["status"], methods[STATUS]["code"]) == ("INVALID_ARGUMENT", 3)


def test_many_requests_at_once_are_each_told_once(serve, tmp_path) -> None:
    path = tmp_path / "access.log"
    server = serve(ObserveOptions(access_log=str(path)))

    def ask(worker: int) -> None:
        with grpc.insecure_channel(f"127.0.0.1:{server.server.grpc_port}") as channel:
            for i in range(100):
                call(channel, PREDICT, predict_bytes(), **{"x-request-id": f"{worker}-{i}"})

    threads = [threading.Thread(target=ask, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert server.server.stop(60)
    assert sorted(line["request_id"] for line in lines(path)) == sorted(
        f"{n}-{i}" for n in range(4) for i in range(100)
    )
    assert {(line["model"], line["version"], line["status"]) for line in lines(path)} == {("half", 123, "OK")}


def v2_request(model: str) -> bytes:
    """A ModelInferRequest: x = [[1.0]]."""
    request = messages.by_full_name("inference.ModelInferRequest")(model_name=model, id="7")
    tensor = request.inputs.add(name="x", datatype="FP32", shape=[1, 1])
    tensor.contents.fp32_contents.append(1.0)
    data: bytes = request.SerializeToString()
    return data


def test_the_open_inference_protocol_is_told_as_well(serve, tmp_path) -> None:
    path = tmp_path / "access.log"
    server = serve(ObserveOptions(access_log=str(path)))
    service = "/inference.GRPCInferenceService"
    call(server.channel, f"{service}/ModelInfer", v2_request("half"), **{"x-request-id": "unary"})
    stream = server.channel.stream_stream(f"{service}/ModelStreamInfer")
    sent = iter([v2_request("half"), v2_request("nope"), v2_request("half")])
    assert len(list(stream(sent, metadata=[("x-request-id", "stream")], timeout=60))) == 3
    body = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 1], "data": [1.0]}]}
    server.http.post("/v2/models/half/infer", json=body, headers={"x-request-id": "rest"})
    answer = server.http.post("/v2/models/nope/infer", json=body, headers={"x-request-id": "refused"})
    assert answer.json()["request_id"] == "refused"
    assert server.server.stop(60)
    told = [(line["request_id"], line["model"], line.get("version"), line["status"]) for line in lines(path)]
    assert sorted(told) == sorted([
        ("unary", "half", 123, "OK"), ("stream", "half", 123, "OK"), ("stream", "nope", None, "NOT_FOUND"),
        ("stream", "half", 123, "OK"), ("rest", "half", 123, "OK"), ("refused", "nope", None, "NOT_FOUND"),
    ])  # fmt: skip


def test_a_caller_that_leaves_is_told(serve, tmp_path, monkeypatch, wait_for) -> None:
    begun, reconfigure = threading.Event(), Manager.reconfigure

    def noted(*arguments: Any) -> None:
        begun.set()
        reconfigure(*arguments)

    monkeypatch.setattr(Manager, "reconfigure", noted)
    path = tmp_path / "access.log"
    server = serve(ObserveOptions(access_log=str(path)))
    config = 'model_config_list { config { name: "late" base_path: "/nowhere" model_platform: "tensorflow" } }'
    request = messages.ReloadConfigRequest()
    messages.parse_text(config, request.config)
    reload = server.channel.unary_unary("/tensorflow.serving.ModelService/HandleReloadConfigRequest")
    waiting = reload.future(request.SerializeToString(), timeout=60)
    assert begun.wait(60)
    waiting.cancel()
    wait_for(lambda: lines(path), "a line")
    assert server.server.stop(60)
    assert [(line["status"], line["code"]) for line in lines(path)] == [("CANCELLED", 1)]


def test_the_wait_for_a_turn_is_told_apart_from_the_run(serve, tmp_path) -> None:
    path = tmp_path / "access.log"
    server = serve(ObserveOptions(access_log=str(path)), batching=BatchingOptions(enabled=True))
    for _ in range(20):
        assert call(server.channel, PREDICT, predict_bytes())[0] == "OK"
    assert server.server.stop(60)
    for line in lines(path):
        assert line["queue_ms"] >= 0
        assert 0 < line["run_ms"] <= line["duration_ms"] - line["queue_ms"] + 0.002


# Traces


@pytest.fixture
def collector() -> Iterator[SimpleNamespace]:
    """A collector of OTLP over HTTP, which keeps what it is sent."""
    trace_service = pytest.importorskip("opentelemetry.proto.collector.trace.v1.trace_service_pb2")
    spans: list[Any] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            data = self.rfile.read(int(self.headers["content-length"]))
            if self.headers.get("content-encoding") == "gzip":
                import gzip

                data = gzip.decompress(data)
            for resource in trace_service.ExportTraceServiceRequest.FromString(data).resource_spans:
                for scope in resource.scope_spans:
                    spans.extend(scope.spans)
            self.send_response(200)
            self.end_headers()

        def log_message(self, *args: Any) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield SimpleNamespace(url=f"http://127.0.0.1:{server.server_port}", spans=spans)
    server.shutdown()
    server.server_close()


def test_requests_are_spans_at_the_collector(serve, collector, monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
    path = tmp_path / "access.log"
    server = serve(ObserveOptions(access_log=str(path), tracing=True))
    ask = {"instances": [1.0]}
    server.http.post("/v1/models/half:predict", json=ask, headers={"traceparent": TRACEPARENT})
    call(server.channel, PREDICT, predict_bytes("nope"), traceparent=TRACEPARENT)
    call(server.channel, PREDICT, predict_bytes())
    assert server.server.stop(60)
    names = {span.name: span for span in collector.spans}
    assert sorted(span.name for span in collector.spans) == [
        "POST /v1/models/{model}:predict", "run half", "run half", PREDICT[1:], PREDICT[1:],
    ]  # fmt: skip
    http = names["POST /v1/models/{model}:predict"]
    assert http.trace_id.hex() == TRACEPARENT.split("-")[1]
    assert http.parent_span_id.hex() == TRACEPARENT.split("-")[2]
    (run,) = [span for span in collector.spans if span.parent_span_id == http.span_id]
    assert run.name == "run half"
    assert http.start_time_unix_nano <= run.start_time_unix_nano
    assert run.end_time_unix_nano <= http.end_time_unix_nano + 1000
    statuses = {a.value.int_value for s in collector.spans for a in s.attributes if a.key == "rpc.grpc.status_code"}
    assert statuses == {0, 5}
    traced = {line["trace_id"] for line in lines(path)}
    assert traced == {span.trace_id.hex() for span in collector.spans}


@pytest.mark.slow
def test_a_collector_that_does_not_answer_holds_up_nothing(serve, monkeypatch, caplog) -> None:
    pytest.importorskip("opentelemetry.sdk")
    monkeypatch.setattr(main, "_TELL_S", 0.5)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        server = serve(ObserveOptions(tracing=True))
        for _ in range(50):
            assert call(server.channel, PREDICT, predict_bytes())[0] == "OK"
        assert server.server.stop(60)
        assert "traces of the last requests could not be sent within 0.5 s" in caplog.text
    # The collector is gone now: what still waits for it must not speak in the tests to come.
    server.server.recorder.close(60)


# Metrics


def test_a_query_on_the_page_of_metrics_is_refused_as_the_original_does(serve) -> None:
    server = serve(rest=RestOptions(metrics_path="/metrics"))
    assert server.http.get("/metrics").status_code == 200
    answer = server.http.get("/metrics?x=1")
    assert (answer.status_code, answer.headers["content-type"]) == (400, "text/plain")
    assert answer.text == "Unexpected path: /metrics?x=1. Should be /metrics"
