"""Warmup records and request logs: what they ask for, and what is broken in them."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from moxserve.errors import UsageError
from moxserve.inspect.detect import detect
from moxserve.inspect.records import read_rows
from moxserve.protocol import messages
from moxserve.protocol.examples import make_example
from moxserve.protocol.tensors import to_proto
from moxserve.protocol.tfrecord import write_records


def predict(signature: str = "serving_default", **inputs):
    log = messages.PredictionLog()
    request = log.predict_log.request
    request.model_spec.name = "net"
    request.model_spec.signature_name = signature
    for alias, value in inputs.items():
        request.inputs[alias].CopyFrom(to_proto(value))
    return log


def classify(count: int):
    log = messages.PredictionLog()
    log.classify_log.request.model_spec.name = "net"
    for _ in range(count):
        log.classify_log.request.input.example_list.examples.append(make_example({"x": [1.0]}))
    return log


@pytest.fixture
def version(tmp_path: Path, saved_v1: Path):
    """A version directory that gets these records."""

    def make(*logs) -> Path:
        folder = tmp_path / "1"
        shutil.copytree(saved_v1, folder)
        (folder / "assets.extra").mkdir()
        payloads = [log if isinstance(log, bytes) else log.SerializeToString() for log in logs]
        write_records(folder / "assets.extra" / "tf_serving_warmup_requests", payloads)
        return folder

    return make


def test_records_are_told(version) -> None:
    good = predict(x=np.zeros((8, 6), np.float32))
    rows, problems = read_rows(detect(version(good, predict("", x=np.zeros((1, 6), np.float32)))))
    assert problems == []
    assert [(r.index, r.kind, r.model, r.signature, r.inputs, r.batch) for r in rows] == [
        (0, "predict", "net", "serving_default", "x: float32[8, 6]", 8),
        (1, "predict", "net", "serving_default", "x: float32[1, 6]", 1),
    ]
    assert rows[0].size_bytes == len(good.SerializeToString())


def test_broken_records_are_told_one_by_one(version) -> None:
    short = predict(x=np.zeros((2, 6), np.float32))
    short.predict_log.request.inputs["x"].tensor_content = b"abc"
    session = messages.PredictionLog()
    session.session_run_log.SetInParent()
    rows, problems = read_rows(
        detect(
            version(
                predict("other", x=np.zeros(1)),
                predict(y=np.zeros((1, 6), np.float32)),
                short,
                session,
                b"\xff\xff",
                make_example({"a": [1], "b": [2]}).SerializeToString(),
                messages.PredictionLog().SerializeToString(),
                classify(0),
            )
        )
    )
    expected = [
        "the version has no signature 'other'",
        "signature 'serving_default' takes the inputs x; the record has y",
        "input 'x': tensor_content has 3 bytes; float32[2, 6] needs 48",
        "servers do not replay session_run_log",
        "no PredictionLog with a request",
        "a tf.Example with a, b, not a PredictionLog",
        "no PredictionLog with a request",
        "it has no examples",
    ]
    assert [row.problem for row in rows] == expected
    assert problems == ["8 of 8 records cannot be replayed"]


def test_examples_and_several_tasks(tmp_path: Path) -> None:
    multi = messages.PredictionLog()
    for key in ("classify", "regress"):
        task = multi.multi_inference_log.request.tasks.add()
        task.model_spec.name, task.model_spec.signature_name = "net", key
    multi.multi_inference_log.request.input.example_list.examples.append(make_example({"x": [1.0]}))
    write_records(tmp_path / "log", [classify(3).SerializeToString(), multi.SerializeToString()])
    rows, problems = read_rows(detect(tmp_path / "log"))
    assert [(r.kind, r.signature, r.inputs, r.batch, r.problem) for r in rows] == [
        ("classify", "serving_default", "3 tf.Examples", 3, ""),
        ("multi_inference", "classify, regress", "1 tf.Example", 1, ""),
    ]
    assert problems == []


def test_a_cut_off_file_tells_what_came_before(version) -> None:
    folder = version(*[predict(x=np.zeros((4, 6), np.float32))] * 3)
    path = folder / "assets.extra" / "tf_serving_warmup_requests"
    path.write_bytes(path.read_bytes()[:-20])
    rows, problems = read_rows(detect(folder))
    assert len(rows) == 2
    assert len(problems) == 1
    assert "record 2 is cut off" in problems[0]


def test_more_records_than_servers_take(tmp_path: Path) -> None:
    write_records(tmp_path / "log", [predict(x=np.zeros(1)).SerializeToString()] * 1001)
    assert read_rows(detect(tmp_path / "log"))[1] == ["1001 records; servers refuse a warmup file with more than 1000"]


def test_a_version_without_records(saved_v1: Path) -> None:
    with pytest.raises(UsageError, match="has no warmup records"):
        read_rows(detect(saved_v1))
