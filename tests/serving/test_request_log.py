"""Request logs: what is written, when a file is finished, and that requests never wait for it."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest

from moxserve.errors import InvalidArgument
from moxserve.protocol import messages
from moxserve.protocol.examples import make_example
from moxserve.protocol.tensors import from_proto
from moxserve.protocol.tfrecord import read_records
from moxserve.serving import request_log, warmup
from moxserve.serving.classify import Task
from moxserve.serving.dataplane import Prediction
from moxserve.serving.main import Server
from moxserve.serving.model_config import ModelConfig, RequestLogging, model_configs
from moxserve.serving.reload import ReloadOptions
from moxserve.serving.request_log import LogLimits, RequestLogs
from moxserve.types import CLASSIFY_METHOD, REGRESS_METHOD, ModelRef


@pytest.fixture
def logs() -> Iterator[Callable[..., RequestLogs]]:
    """`logs(config, **LogLimits)`."""
    made: list[RequestLogs] = []

    def make(*configs: ModelConfig, **limits: Any) -> RequestLogs:
        made.append(RequestLogs(["serve"], LogLimits(**limits)))
        made[-1].configure(configs)
        return made[-1]

    yield make
    for log in made:
        assert log.close(60)


def model(folder: Path, rate: float = 1.0, name: str = "m", prefix: str = "log") -> ModelConfig:
    return ModelConfig(name, "/m", logging=RequestLogging(str(folder / prefix), rate))


def record(logs: RequestLogs, value: float = 1.0, name: str = "m", count: int = 1) -> int:
    """Make as many requests; returns how many were sampled."""
    sampled = 0
    for _ in range(count):
        sample = logs.sampled(name)
        if sample:
            sample.keep(lambda: {"x": np.float32([value])})()
            sample.predict(Prediction(name, 7, "serving_default", {"y": np.float32([2 * value])}, 0.0), ["y"])
            sampled += 1
    return sampled


def files(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


def read(folder: Path) -> list[Any]:
    return [
        messages.PredictionLog.FromString(payload)
        for name in sorted(files(folder), key=lambda n: int(n.split("-")[-1].split(".")[0]))
        for payload in read_records(folder / name)
    ]


def test_a_record(logs, tmp_path) -> None:
    log = logs(model(tmp_path, name="a/b"))
    record(log, 3.0, "a/b")
    assert log.sampled("other") is None
    assert log.close(60)
    (name,) = files(tmp_path)
    assert name.startswith("log.a%2Fb.")
    assert name.endswith(f"Z-{os.getpid()}-1.tfrecord")
    (message,) = read(tmp_path)
    metadata, request, response = message.log_metadata, message.predict_log.request, message.predict_log.response
    assert (metadata.model_spec.name, metadata.model_spec.version.value) == ("a/b", 7)
    assert metadata.model_spec.signature_name == "serving_default"
    assert metadata.sampling_config.sampling_rate == 1
    assert list(metadata.saved_model_tags) == ["serve"]
    assert metadata.timestamp_secs > 1_700_000_000
    assert (request.model_spec, response.model_spec) == (metadata.model_spec, metadata.model_spec)
    assert list(request.output_filter) == ["y"]
    assert from_proto(request.inputs["x"]) == [3.0]
    assert from_proto(response.outputs["y"]) == [6.0]


def test_files_are_finished_by_number_size_and_age(logs, tmp_path, wait_for) -> None:
    for name, limits in (("number", {"file_records": 10}), ("size", {"file_bytes": 1}), ("age", {"file_age_s": 0.05})):
        folder = tmp_path / name
        folder.mkdir()
        log = logs(model(folder), **limits)
        record(log, count=25)
        wait_for(lambda: any(n.endswith(".tfrecord") for n in files(folder)), name)  # noqa: B023 - waits here
        assert log.close(60)
        assert len(read(folder)) == 25
        if name == "number":
            assert len(files(folder)) == 3
        elif name == "size":
            assert len(files(folder)) == 25
    assert LogLimits().file_records == warmup.MAX_RECORDS


def test_an_open_file_is_flushed_and_another_name_until_it_is_finished(logs, tmp_path, wait_for) -> None:
    log = logs(model(tmp_path))
    record(log, count=3)
    wait_for(lambda: files(tmp_path) and len(read(tmp_path)) == 3, "three records on disk")
    (name,) = files(tmp_path)
    assert name.endswith(".tfrecord.partial")
    log.configure([model(tmp_path), model(tmp_path, name="n")])
    record(log, count=2)
    wait_for(lambda: len(read(tmp_path)) == 5, "two more in the same file")
    assert files(tmp_path) == [name]
    log.configure([])
    assert record(log) == 0
    wait_for(lambda: files(tmp_path) == [name.removesuffix(".partial")], "the file to be finished")


def test_a_model_that_leaves_while_its_log_is_written(logs, tmp_path, wait_for, monkeypatch) -> None:
    tidying, gate = threading.Event(), threading.Event()
    tidy = RequestLogs._tidy

    def slowly(self: RequestLogs, current: Any) -> None:
        if self._open and not tidying.is_set():
            tidying.set()
            assert gate.wait(60)
        tidy(self, current)

    monkeypatch.setattr(RequestLogs, "_tidy", slowly)
    log = logs(model(tmp_path))
    record(log)
    assert tidying.wait(60)
    log.configure([])
    gate.set()
    wait_for(lambda: any(name.endswith(".tfrecord") for name in files(tmp_path)), "the file to be finished")


def test_the_sampling_rate(logs, tmp_path, caplog) -> None:
    log = logs(model(tmp_path, 0.25))
    assert 350 < record(log, count=2000) < 650
    log.configure([model(tmp_path, 0.0)])
    assert record(log, count=100) == 0
    assert "No requests of m are logged: sampling_config.sampling_rate is 0" in caplog.text


def test_a_full_queue_costs_records_and_no_time(logs, tmp_path, caplog, wait_for, monkeypatch) -> None:
    stuck, gate = threading.Event(), threading.Event()
    encode = request_log.to_proto

    def wait(array: Any, *, typed: bool) -> Any:
        stuck.set()
        assert gate.wait(60)
        return encode(array, typed=typed)

    monkeypatch.setattr(request_log, "to_proto", wait)
    log = logs(model(tmp_path), queue_records=10)
    record(log)
    assert stuck.wait(60)
    record(log, count=25)
    gate.set()
    wait_for(lambda: "15 requests were not logged: the queue was full" in caplog.text, "the warning")
    assert log.close(60)
    assert len(read(tmp_path)) == 11


def test_a_request_that_is_too_large_for_the_queue(logs, tmp_path, caplog, wait_for) -> None:
    log = logs(model(tmp_path), queue_bytes=100)
    for size in (1000, 10):
        sample = log.sampled("m")
        sample.keep(lambda: {"x": np.zeros(size)})()  # noqa: B023 - called here
        sample.predict(Prediction("m", 1, "s", {}, 0.0), [])
    wait_for(lambda: "1 requests were not logged: the queue was full" in caplog.text, "the warning")
    assert log.close(60)
    assert len(read(tmp_path)) == 1


def test_a_disk_that_fails_harms_no_request(logs, tmp_path, caplog, wait_for) -> None:
    folder = tmp_path / "gone"
    folder.mkdir()
    log = logs(model(folder))
    folder.rmdir()
    record(log, count=5)
    wait_for(lambda: "requests of m cannot be logged: " in caplog.text, "the error")
    folder.mkdir()
    wait_for(lambda: record(log) and files(folder), "a file after the trouble")
    assert len([r for r in caplog.records if r.levelname == "ERROR" and r.name == request_log.__name__]) == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "filename_prefix='': expected an absolute path"),
        ('log_collector_config { filename_prefix: "a/b" }', "filename_prefix='a/b': expected an absolute path"),
        ('log_collector_config { filename_prefix: "/tmp\\000x" }', "expected an absolute path"),
        ('log_collector_config { filename_prefix: "/tmp/" }', "filename_prefix='/tmp/': expected an absolute path"),
        ('log_collector_config { filename_prefix: "/nothing/there/x" }', "the directory /nothing/there is not there"),
        ('log_collector_config { type: "kafka" filename_prefix: "/tmp/x" }', "type 'tfrecord' or none; got 'kafka'"),
        ("custom_logging_config {}", "expected a log_collector_config"),
        ('log_collector_config { filename_prefix: "/tmp/x" } sampling_config { sampling_rate: 2 }', "expected 0 to 1"),
    ],
)  # fmt: skip
def test_settings_that_are_refused(text, message) -> None:
    config = messages.parse_text(
        f'model_config_list {{ config {{ name: "m" base_path: "/m" model_platform: "tensorflow" '
        f"logging_config {{ {text} }} }} }}",
        messages.ModelServerConfig(),
    )
    with pytest.raises(InvalidArgument) as caught:
        model_configs(config)
    assert caught.value.message.startswith("Model m: logging_config")
    assert message in caught.value.message


def config_text(base: Path, folder: Path) -> str:
    return (
        f'model_config_list {{ config {{ name: "m" base_path: "{base}" model_platform: "tensorflow" logging_config {{ '
        f'log_collector_config {{ type: "tfrecord" filename_prefix: "{folder}/log" }} '
        "sampling_config { sampling_rate: 1 } } } }"
    )


def test_a_log_is_a_warmup_file(testdata, tmp_path, options, caplog) -> None:
    """Every kind of request is logged, and the log warms up the same model."""
    folder, base = tmp_path / "log", tmp_path / "base"
    folder.mkdir()
    shutil.copytree(testdata / "saved_model_half_plus_two_cpu", base)
    path = tmp_path / "models.txt"
    path.write_text(config_text(base, folder))
    server = Server(options("", config=ReloadOptions(file=str(path))))
    with server:
        url = f"http://127.0.0.1:{server.rest_port}/v1/models/m:predict"
        assert httpx2.post(url, content='{"instances": [1.0, 2.0]}').json() == {"predictions": [2.5, 3.0]}
        assert httpx2.post(url, content='{"instances": ["a"]}').status_code == 400
        examples = np.array([make_example({"x": [v]}).SerializeToString() for v in (1.0, 2.0)], dtype=object)
        ref, classify, regress = ModelRef("m"), "classify_x_to_y", "regress_x_to_y"
        server.call(server.dataplane.classify(ref, classify, lambda: examples))
        server.call(server.dataplane.regress(ref, regress, lambda: examples))
        tasks = [Task("m", classify, CLASSIFY_METHOD), Task("m", regress, REGRESS_METHOD)]
        server.call(server.dataplane.multi_inference(ref, tasks, lambda: examples))
    logged = read(folder)
    kinds = ["predict_log", "classify_log", "regress_log", "multi_inference_log"]
    assert [message.WhichOneof("log_type") for message in logged] == kinds
    assert [message.log_metadata.model_spec.version.value for message in logged] == [123] * 4
    assert from_proto(logged[0].predict_log.response.outputs["y"]).ravel().tolist() == [2.5, 3.0]
    assert [r.value for r in logged[2].regress_log.response.result.regressions] == [2.5, 3.0]
    assert logged[1].classify_log.request.input.example_list.examples[1].features.feature["x"].float_list.value == [2.0]
    result = logged[3].multi_inference_log.response.results[0].classification_result
    assert [c.classes[0].score for c in result.classifications] == [2.5, 3.0]
    assert all(n.endswith(".tfrecord") for n in files(folder))
    (version,) = (p for p in base.iterdir() if p.name.isdigit())
    (version / "assets.extra").mkdir(exist_ok=True)
    shutil.copy(folder / files(folder)[0], version / warmup.WARMUP_FILE)
    caplog.set_level("INFO")
    with Server(options(base)):
        assert f"Number of warmup records read: {len(kinds)}." in caplog.text
