"""The page of metrics, read as Prometheus reads it, against what was asked of the server."""

from __future__ import annotations

import math
import shutil
import threading
from collections import defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import grpc
import httpx2
import numpy as np
import pytest
from prometheus_client import parser

from moxserve.client import Client
from moxserve.errors import ConfigError, UnknownError, UsageError
from moxserve.protocol import messages
from moxserve.protocol.examples import make_example
from moxserve.protocol.tensors import to_proto
from moxserve.protocol.tfrecord import write_records
from moxserve.serving.main import Server
from moxserve.serving.metrics import ServingMetrics
from moxserve.serving.rest.options import RestOptions, metrics_path
from moxserve.serving.warmup import WARMUP_FILE

PATH = "/monitoring/prometheus/metrics"
SERVING = ":tensorflow:serving:"
LATENCIES = [10 * 1.8**i for i in range(33)]

Samples = Mapping[str, Mapping[tuple[tuple[str, str], ...], float]]


def read(page: str) -> Samples:
    """Parse a page; sample name without the `_total` that the parser adds -> labels -> value."""
    found: dict[str, dict[tuple[tuple[str, str], ...], float]] = defaultdict(dict)
    for family in parser.text_string_to_metric_families(page):
        for sample in family.samples:
            name = sample.name.removesuffix("_total") if family.type == "counter" else sample.name
            found[name][tuple(sample.labels.items())] = sample.value
    return found


def labelled(samples: Samples, name: str, **labels: str) -> float:
    """Return a sample, or 0."""
    return samples.get(name, {}).get(tuple(labels.items()), 0.0)


def scrape(server: Server) -> Samples:
    reply = httpx2.get(f"http://127.0.0.1:{server.rest_port}{PATH}")
    assert reply.status_code == 200
    assert reply.headers["content-type"] == "text/plain"
    return read(reply.text)


@pytest.fixture
def half(testdata: Path, serve: Callable[..., Server]) -> Server:
    return serve(testdata / "saved_model_half_plus_two_cpu", rest=RestOptions(metrics_path=PATH), model_name="half")


def grpc_call(server: Server, method: str, request: Any) -> str:
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        try:
            channel.unary_unary(f"/tensorflow.serving.PredictionService/{method}")(request.SerializeToString())
        except grpc.RpcError as error:
            return error.code().name
    return "OK"


def request_of(kind: str, model: str, signature: str = "") -> Any:
    request = getattr(messages, kind)()
    request.model_spec.name = model
    request.model_spec.signature_name = signature
    if kind == "PredictRequest":
        request.inputs["x"].CopyFrom(to_proto(np.float32([1, 2])))
    else:
        request.input.example_list.examples.add().CopyFrom(make_example({"x": [2.0]}))
    return request


def test_requests_are_counted_by_model_and_status(half: Server) -> None:
    predict, regress = request_of("PredictRequest", "half"), request_of("RegressionRequest", "half", "regress_x_to_y")
    sent: dict[tuple[str, str], int] = defaultdict(int)
    for method, request, times in (
        ("Predict", predict, 3),
        ("Predict", request_of("PredictRequest", "nope"), 2),
        ("Predict", request_of("PredictRequest", "half", "zz"), 1),
        ("Predict", messages.PredictRequest(), 1),
        ("Regress", regress, 2),
        ("Classify", request_of("ClassificationRequest", "half", "classify_x_to_y"), 4),
        ("Classify", request_of("ClassificationRequest", "half"), 1),
    ):
        for _ in range(times):
            sent[request.model_spec.name, grpc_call(half, method, request)] += 1
    with httpx2.Client(base_url=f"http://127.0.0.1:{half.rest_port}/v1") as http:
        for path, body in (
            ("/models/half:predict", '{"instances": [1.0]}'),
            ("/models/half:regress", '{"signature_name": "regress_x_to_y", "examples": [{"x": 1.0}]}'),
            ("/models/half:classify", "{"),
            ("/models/no%20ne:predict", '{"instances": [1.0]}'),
            ("/nothing", "{}"),
        ):
            http.post(path, content=body)
        http.get("/models/half")
        http.get("/models/half/metadata")
    sent["half", "OK"] += 4
    sent["half", "INVALID_ARGUMENT"] += 1
    sent["no ne", "NOT_FOUND"] += 1
    sent["", "INVALID_ARGUMENT"] += 1
    samples = scrape(half)
    counted = {(dict(k)["model_name"], dict(k)["status"]): v for k, v in samples[SERVING + "request_count"].items()}
    assert counted == sent

    latency = {
        tuple(v for _, v in k): count for k, count in samples[SERVING + "request_latency_count"].items()
    }  # fmt: skip
    assert latency == {
        ("half", "Predict", "GRPC"): 3, ("half", "Regress", "GRPC"): 2, ("half", "Classify", "GRPC"): 4,
        ("half", "predict", "REST"): 1, ("half", "regress", "REST"): 1, ("half", "", "REST"): 2,
    }  # fmt: skip
    runs = {tuple(v for _, v in k): count for k, count in samples[SERVING + "runtime_latency_count"].items()}
    assert runs == {("half", "Predict", "TF1"): 4, ("half", "Regress", "TF1"): 3, ("half", "Classify", "TF1"): 4}


def test_latencies_are_told_in_microseconds(serve, save_slow, tmp_path) -> None:
    save_slow(tmp_path / "1")
    server = serve(tmp_path, rest=RestOptions(metrics_path=PATH))
    with Client(f"127.0.0.1:{server.grpc_port}") as client:
        client.predict("default", {"n": np.int32(0)})
        before = scrape(server)
        client.predict("default", {"n": np.int32(30_000)}, timeout_s=60)
    after = scrape(server)

    def grown(name: str, **labels: str) -> float:
        return labelled(after, SERVING + name, **labels) - labelled(before, SERVING + name, **labels)

    whole = {"model_name": "default", "API": "Predict", "entrypoint": "GRPC"}
    model = {"model_name": "default", "API": "Predict", "runtime": "TF1"}
    assert grown("runtime_latency_sum", **model) <= grown("request_latency_sum", **whole)
    assert 1e4 < grown("runtime_latency_sum", **model) < 6e7
    # The bucket that the value falls into, and all above it, have one more.
    value = grown("request_latency_sum", **whole)
    for limit in LATENCIES:
        assert grown("request_latency_bucket", **whole, le=f"{limit:.6g}") == (value <= limit)
    assert grown("request_latency_bucket", **whole, le="+Inf") == 1


def test_the_page_text_by_text(half: Server) -> None:
    grpc_call(half, "Predict", request_of("PredictRequest", "half"))
    text = httpx2.get(f"http://127.0.0.1:{half.rest_port}{PATH}").text
    assert "# HELP" not in text
    assert text.endswith("\n")
    lines = text.splitlines()
    types = [line for line in lines if line.startswith("#")]
    assert types == [
        "# TYPE :moxserve:request_records_dropped counter",
        "# TYPE :tensorflow:cc:saved_model:load_attempt_count counter",
        "# TYPE :tensorflow:cc:saved_model:load_latency counter",
        "# TYPE :tensorflow:serving:batching_session:input_batch_size histogram",
        "# TYPE :tensorflow:serving:batching_session:padding_size histogram",
        "# TYPE :tensorflow:serving:batching_session:processed_batch_size histogram",
        "# TYPE :tensorflow:serving:batching_session:queuing_latency histogram",
        "# TYPE :tensorflow:serving:batching_session:wrapped_run_count counter",
        "# TYPE :tensorflow:serving:mlmd_map gauge",
        "# TYPE :tensorflow:serving:model_warmup_latency histogram",
        "# TYPE :tensorflow:serving:model_warmup_records_read counter",
        "# TYPE :tensorflow:serving:request_count counter",
        "# TYPE :tensorflow:serving:request_example_count_total counter",
        "# TYPE :tensorflow:serving:request_example_counts histogram",
        "# TYPE :tensorflow:serving:request_latency histogram",
        "# TYPE :tensorflow:serving:request_log_count counter",
        "# TYPE :tensorflow:serving:runtime_latency histogram",
    ]
    assert ':tensorflow:serving:request_count{model_name="half",status="OK"} 1' in lines
    buckets = [line for line in lines if line.startswith(":tensorflow:serving:runtime_latency_bucket")]
    limits = ["10", "18", "32.4", "58.32", "104.976", "188.957"]
    for line, limit in zip(buckets, limits, strict=False):
        head, _ = line.rsplit(" ", 1)
        assert head == (
            f':tensorflow:serving:runtime_latency_bucket{{model_name="half",API="Predict",runtime="TF1",le="{limit}"}}'
        )
    assert len(buckets) == 34
    assert 'le="+Inf"} 1' in buckets[-1]


def test_the_name_in_ml_metadata(testdata, serve, tmp_path) -> None:
    metrics = ServingMetrics()
    metrics.loaded("m", 123, str(testdata / "saved_model_half_plus_two_mlmd" / "00000123"))
    metrics.loaded("m", 124, str(testdata / "saved_model_half_plus_two_cpu" / "00000123"))
    known = ':tensorflow:serving:mlmd_map{model_name="m",version="123",mlmd_uuid="test_mlmd_uuid"} 1'
    assert [line for line in metrics.page().decode().splitlines() if line.startswith(":tensorflow:serving:mlmd")] == [
        known
    ]
    total = ServingMetrics()
    for _ in range(2):
        total.absorb(metrics.counts())  # two processes that serve the same version
    assert known in total.page().decode()
    (tmp_path / "assets.extra" / "mlmd_uuid").mkdir(parents=True)
    metrics.loaded("m", 125, str(tmp_path))  # no file: told in the log, and no reason not to serve


def test_there_is_no_page_unless_it_is_asked_for(testdata, serve) -> None:
    server = serve(testdata / "saved_model_half_plus_two_cpu")
    assert httpx2.get(f"http://127.0.0.1:{server.rest_port}{PATH}").status_code == 404
    assert server.metrics.load_attempts.value() == 1


def test_examples_of_multi_inference(half: Server) -> None:
    request = messages.MultiInferenceRequest()
    for signature, method in (("regress_x_to_y", "regress"), ("classify_x_to_y", "classify")):
        task = request.tasks.add(method_name=f"tensorflow/serving/{method}")
        task.model_spec.name = "half"
        task.model_spec.signature_name = signature
    for i in range(3):
        request.input.example_list.examples.add().CopyFrom(make_example({"x": [float(i)]}))
    assert grpc_call(half, "MultiInference", request) == "OK"
    samples = scrape(half)
    # The original's name ends in what the parser takes for its own addition.
    assert labelled(samples, SERVING + "request_example_count", model="half") == 3
    counts = samples[SERVING + "request_example_counts_bucket"]
    assert {dict(k)["le"]: v for k, v in counts.items()} == {
        **{f"{2**i}": float(2**i >= 3) for i in range(15)},
        "+Inf": 1.0,
    }
    assert not samples.get(SERVING + "request_count")
    assert labelled(
        samples, SERVING + "runtime_latency_count", model_name="half", API="MultiInference", runtime="TF1"
    ) == 1  # fmt: skip


# Loads and warmup


def copy_half(testdata: Path, target: Path) -> Path:
    return Path(shutil.copytree(testdata / "saved_model_half_plus_two_cpu" / "00000123", target))


def record(version: Path, signature: str, times: int) -> None:
    log = messages.PredictionLog()
    log.predict_log.request.model_spec.signature_name = signature
    log.predict_log.request.inputs["x"].CopyFrom(to_proto(np.float32([1])))
    (version / "assets.extra").mkdir()
    write_records(version / WARMUP_FILE, [log.SerializeToString()] * times)


def test_loads_and_warmup(testdata, tmp_path, serve) -> None:
    version = copy_half(testdata, tmp_path / "1")
    record(version, "", 5)
    server = serve(tmp_path, rest=RestOptions(metrics_path=PATH))
    samples = scrape(server)
    path = str(version)
    loads = ":tensorflow:cc:saved_model:load_"
    assert samples[loads + "attempt_count"] == {(("model_path", path), ("status", "success")): 1.0}
    assert labelled(samples, loads + "latency", model_path=path) > 1000
    assert labelled(samples, SERVING + "model_warmup_records_read", model_path=path, status="OK") == 5
    assert labelled(samples, SERVING + "model_warmup_latency_count", model_path=path, status="OK") == 1
    assert labelled(samples, SERVING + "model_warmup_latency_sum", model_path=path, status="OK") > 10
    # Warmup is no traffic.
    assert not samples.get(SERVING + "runtime_latency_count")


def test_failed_loads_and_warmup(testdata, tmp_path, options) -> None:
    broken = copy_half(testdata, tmp_path / "a" / "1")
    (broken / "saved_model.pb").write_bytes(b"\xff\xff")
    cold = copy_half(testdata, tmp_path / "b" / "1")
    record(cold, "zz", 2)
    for base, version, status in (("a", broken, "fail"), ("b", cold, "success")):
        server = Server(options(tmp_path / base))
        with pytest.raises(UnknownError):
            server.start()
        samples = read(server.metrics.page().decode())
        attempts = samples[":tensorflow:cc:saved_model:load_attempt_count"]
        assert attempts == {(("model_path", str(version)), ("status", status)): 1.0}
    warmups = samples[SERVING + "model_warmup_records_read"]
    assert warmups == {(("model_path", str(cold)), ("status", "FAILED_PRECONDITION")): 1.0}


def test_a_reload_tells_what_it_changed(testdata, half: Server) -> None:
    request = messages.ReloadConfigRequest()
    base = str(testdata / "saved_model_half_plus_three")
    for name in ("half", "three"):
        path = base if name == "three" else str(testdata / "saved_model_half_plus_two_cpu")
        request.config.model_config_list.config.add(name=name, base_path=path, model_platform="tensorflow")
    known, unknown = "/tensorflow/cc/saved_model/load_attempt_count", "/nothing"
    request.metric_names.extend([known, unknown])
    with grpc.insecure_channel(f"127.0.0.1:{half.grpc_port}") as channel:
        call = channel.unary_unary("/tensorflow.serving.ModelService/HandleReloadConfigRequest")
        response = messages.ReloadConfigResponse.FromString(call(request.SerializeToString()))
    # The first cell is that of the model that was loaded before.
    assert [(m.name, m.int64_value_increase) for m in response.metric] == [(known, 0), (unknown, 0)]
    assert half.metrics.load_attempts.value((f"{base}/00000123", "success")) == 1


# The counters themselves


def test_labels_are_escaped() -> None:
    metrics = ServingMetrics()
    name = 'a"b\\c\nd}é'
    metrics.request(name, "OK", api="Predict", entrypoint="GRPC", seconds=0.1)
    page = metrics.page().decode()
    assert labelled(read(page), SERVING + "request_count", model_name=name, status="OK") == 1
    assert r'model_name="a\"b\\c\nd}é"' in page


def test_many_threads_lose_no_count() -> None:
    metrics = ServingMetrics()

    def count() -> None:
        for _ in range(2000):
            metrics.request("m", "OK", api="Predict", entrypoint="GRPC", seconds=1e-3)

    threads = [threading.Thread(target=count) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    samples = read(metrics.page().decode())
    assert labelled(samples, SERVING + "request_count", model_name="m", status="OK") == 16000
    labels = {"model_name": "m", "API": "Predict", "entrypoint": "GRPC"}
    assert labelled(samples, SERVING + "request_latency_count", **labels) == 16000
    assert math.isclose(labelled(samples, SERVING + "request_latency_sum", **labels), 16e6, rel_tol=1e-9)


def test_names_that_nobody_serves_do_not_fill_the_memory() -> None:
    metrics = ServingMetrics()
    for i in range(5000):
        metrics.request(f"stranger{i}", "NOT_FOUND", api="Predict", entrypoint="GRPC", seconds=0.0)
    metrics.request("x" * 100_000, "NOT_FOUND", api="Predict", entrypoint="GRPC", seconds=0.0)
    metrics.request("real", "OK", api="Predict", entrypoint="GRPC", seconds=0.0)
    metrics.request("real", "INTERNAL", api="Predict", entrypoint="GRPC", seconds=0.0)
    assert len(metrics.page()) < 200_000
    assert metrics.request_count.value(("real", "OK")) == 1
    assert metrics.request_count.value(("real", "INTERNAL")) == 1
    assert metrics.request_count.value(("", "NOT_FOUND")) == 4001


# --monitoring_config_file


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("prometheus_config { enable: true }", PATH),
        ("prometheus_config: { enable: true, path: '/metrics' }", "/metrics"),
        ("prometheus_config { path: '/metrics' }", ""),
        ("prometheus_config {}", ""),
        ("# nothing\n", ""),
    ],
)
def test_the_path_of_the_page(tmp_path, text, path) -> None:
    file = tmp_path / "monitoring.txt"
    file.write_text(text)
    assert metrics_path(str(file)) == path


def test_the_sample_of_the_original(testdata) -> None:
    assert metrics_path(str(testdata / "monitoring_config.txt")) == PATH


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("", ConfigError, "it is empty; expected a tensorflow.serving.MonitoringConfig"),
        ("prometheus_config {\n  enabled: true }", ConfigError,
         "Error parsing text-format tensorflow.serving.MonitoringConfig: 2:3: "),
        ("prometheus_config { enable: true path: 'metrics' }", UsageError, "expected a path that begins with /"),
    ],
)  # fmt: skip
def test_files_that_are_wrong(tmp_path, text, error, message) -> None:
    file = tmp_path / "monitoring.txt"
    file.write_text(text)
    with pytest.raises(error, match=message):
        metrics_path(str(file))
    with pytest.raises(UsageError, match="cannot read the monitoring configuration"):
        metrics_path(str(tmp_path / "none"))
