"""Recorded requests are replayed before a version takes traffic."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moxserve.errors import DataLoss, InvalidArgument, Unimplemented, UnknownError
from moxserve.protocol import messages
from moxserve.protocol.examples import make_example
from moxserve.protocol.tensors import to_proto
from moxserve.protocol.tfrecord import write_records
from moxserve.serving import backends
from moxserve.serving.execution import DirectRunner, WorkPool
from moxserve.serving.servable import Servable
from moxserve.serving.warmup import WARMUP_FILE, replay


def predict_log(x: Any, signature: str = "", model: str = "whatever") -> bytes:
    log = messages.PredictionLog()
    request = log.predict_log.request
    request.model_spec.name = model
    request.model_spec.signature_name = signature
    request.inputs["x"].CopyFrom(to_proto(x))
    return log.SerializeToString()


def examples_log(kind: str, signature: str, context: bool = False) -> bytes:
    log = messages.PredictionLog()
    request = getattr(log, kind).request
    request.model_spec.name = "whatever"
    request.model_spec.signature_name = signature
    example = make_example({"x": [3.0]}).SerializeToString()
    listed = request.input.example_list_with_context if context else request.input.example_list
    listed.examples.add().ParseFromString(example)
    if context:
        listed.context.ParseFromString(make_example({"unused": [1]}).SerializeToString())
    return log.SerializeToString()


def record(version_dir: Path, *payloads: bytes) -> Path:
    (version_dir / "assets.extra").mkdir(exist_ok=True)
    write_records(version_dir / WARMUP_FILE, payloads)
    return version_dir


def servable(version_dir: Path, backend: Any) -> Servable:
    return Servable("m", 1, str(version_dir), backend, DirectRunner(backend, WorkPool(1, 1, "test")))


class Spy:
    """A backend that notes the calls that it passes on."""

    def __init__(self, path: Path) -> None:
        self._inner = backends.load(path)
        self.runs: list[tuple[str, list[Any]]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def run(self, signature: str, inputs: Any, outputs: Any = None) -> Any:
        self.runs.append((signature, [array.tolist() for array in inputs.values()]))
        return self._inner.run(signature, inputs, outputs)

    def run_together(self, signatures: Any, array: Any) -> Any:
        self.runs.append((tuple(signatures), array.tolist()))
        return self._inner.run_together(signatures, array)


@pytest.fixture
def half(testdata: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(testdata / "saved_model_half_plus_two_cpu" / "00000123", tmp_path / "1"))


def replayed(version_dir: Path, iterations: int = 1) -> tuple[int, list[Any]]:
    spy = Spy(version_dir)
    count = replay(servable(version_dir, spy), asyncio.run, iterations)
    spy.close()
    return count, spy.runs


def test_records_run_in_order_whatever_model_they_name(half: Path) -> None:
    record(half, predict_log(np.float32([1])), b"", predict_log(np.float32([[2]]), "serving_default", "other"))
    count, runs = replayed(half)
    assert count == 3
    assert runs == [("serving_default", [[1.0]]), ("serving_default", [[[2.0]]])]


def test_iterations(half: Path) -> None:
    record(half, predict_log(np.float32([1])), predict_log(np.float32([2])))
    _, runs = replayed(half, 3)
    assert [inputs[0][0] for _, inputs in runs] == [1, 1, 1, 2, 2, 2]


def test_classify_and_regress_records(half: Path) -> None:
    record(
        half,
        examples_log("classify_log", "classify_x_to_y"),
        examples_log("regress_log", "regress_x_to_y", context=True),
    )
    count, runs = replayed(half)
    assert count == 2
    assert [signature for signature, _ in runs] == ["classify_x_to_y", "regress_x_to_y"]


def multi_inference_log(*tasks: tuple[str, str]) -> bytes:
    log = messages.PredictionLog()
    request = log.multi_inference_log.request
    for signature, method in tasks:
        task = request.tasks.add(method_name=f"tensorflow/serving/{method}")
        task.model_spec.name = "whatever"
        task.model_spec.signature_name = signature
    request.input.example_list.examples.add().ParseFromString(make_example({"x": [3.0]}).SerializeToString())
    return log.SerializeToString()


def test_multi_inference_records_run_as_one(half: Path) -> None:
    record(half, multi_inference_log(("classify_x_to_y", "classify"), ("regress_x_to_y2", "regress")))
    _, runs = replayed(half)
    assert runs == [(("classify_x_to_y", "regress_x_to_y2"), [make_example({"x": [3.0]}).SerializeToString()])]


def test_records_are_checked_as_requests_are(half: Path) -> None:
    record(half, examples_log("classify_log", "serving_default"))
    with pytest.raises(InvalidArgument, match="No classification inputs found in SignatureDef"):
        replayed(half)
    record(half, multi_inference_log(("regress_x_to_y", "predict")))
    with pytest.raises(Unimplemented, match="Unsupported signature method_name: tensorflow/serving/predict"):
        replayed(half)
    record(half, examples_log("classify_log", "regress_x_to_y"))
    spied = Spy(half)
    with pytest.raises(InvalidArgument, match="Expected classification signature method_name to be"):
        replay(servable(half, spied), asyncio.run, check_methods=True)


def test_records_of_other_kinds_cannot_be_replayed(half: Path) -> None:
    log = messages.PredictionLog()
    log.session_run_log.SetInParent()
    record(half, log.SerializeToString())
    with pytest.raises(Unimplemented, match=r"Unsupported log_type for warmup: \d+ \(session_run_log\)"):
        replayed(half)


def test_a_record_without_examples(half: Path) -> None:
    log = messages.PredictionLog()
    log.classify_log.request.model_spec.signature_name = "classify_x_to_y"
    record(half, log.SerializeToString())
    with pytest.raises(InvalidArgument, match="Input is empty"):
        replayed(half)


def test_without_a_file_nothing_is_run(half: Path) -> None:
    assert replayed(half) == (0, [])


@pytest.mark.parametrize(
    ("payloads", "error", "message"),
    [
        ([predict_log(np.float64([1]))], InvalidArgument, "Expects arg"),
        ([b"\xff\xff"], InvalidArgument, "Failed to parse warmup record"),
        ([predict_log(np.float32([1]))] * 1001, InvalidArgument, r"exceeds the maximum \(1000\)"),
    ],
)
def test_errors_fail_the_replay(half: Path, payloads, error, message) -> None:
    record(half, *payloads)
    with pytest.raises(error, match=message):
        replayed(half)


def test_a_file_that_is_no_tfrecord(half: Path) -> None:
    (half / "assets.extra").mkdir()
    (half / WARMUP_FILE).write_bytes(b"this is not a record file")
    with pytest.raises(DataLoss, match="Please verify your warmup data is in TFRecord format"):
        replayed(half)


def test_a_failing_record_keeps_the_version_from_being_served(half: Path, serve) -> None:
    record(half, predict_log(np.float32([1]), "no_such_signature"))
    with pytest.raises(UnknownError, match='FAILED_PRECONDITION: Serving signature key "no_such_signature" not found'):
        serve(half.parent)
    assert serve(half.parent, warmup=False).grpc_port


def test_the_replay_comes_before_the_traffic(tmp_path: Path, save_slow, serve, caplog) -> None:
    version = save_slow(tmp_path / "1")
    log = messages.PredictionLog()
    log.predict_log.request.inputs["n"].CopyFrom(to_proto(np.int32(1000)))
    record(version, log.SerializeToString())
    with caplog.at_level("INFO"):
        serve(tmp_path)
    texts = [r.getMessage() for r in caplog.records]
    warm = next(i for i, t in enumerate(texts) if "Number of warmup records read: 1" in t)
    ready = next(i for i, t in enumerate(texts) if "Successfully loaded servable version" in t)
    assert warm < ready
