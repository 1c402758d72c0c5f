"""Warmup records: what a server replays before it lets users at a version."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moxserve.errors import UsageError
from moxserve.export.job import ExportJob


def _read(directory: str) -> list[Any]:
    """Read a version's records with TensorFlow's reader and TensorFlow Serving's own messages."""
    from tensorflow_serving.apis import prediction_log_pb2

    from moxserve.tensorflow.executor.env import tf1

    path = os.path.join(directory, "assets.extra", "tf_serving_warmup_requests")
    return [prediction_log_pb2.PredictionLog.FromString(r) for r in tf1.io.tf_record_iterator(path)]


@pytest.mark.slow
def test_records_are_real_rows_at_every_batch_size(conv_case: Any, export: Any) -> None:
    from moxserve.tensorflow.executor.env import tf

    result = export(conv_case.job)
    logs = _read(result.path)
    assert result.warmup_records == len(logs) == 6
    kinds = [log.WhichOneof("log_type") for log in logs]
    assert kinds == ["predict_log", "classify_log"] * 3
    for log, size in zip(logs[::2], (1, 8, 32), strict=True):
        request = log.predict_log.request
        assert (request.model_spec.name, request.model_spec.signature_name) == ("conv", "serving_default")
        images = tf.make_ndarray(request.inputs["images"])
        assert images.dtype == np.uint8
        np.testing.assert_array_equal(images, conv_case.images[:size])
    for log, size in zip(logs[1::2], (1, 8, 32), strict=True):
        request = log.classify_log.request
        assert request.model_spec.signature_name == "classify"
        examples = request.input.example_list.examples
        assert len(examples) == size
        values = examples[-1].features.feature["images"].int64_list.value
        np.testing.assert_array_equal(values, conv_case.images[size - 1].ravel())


@pytest.mark.slow
def test_every_record_can_be_replayed(conv_case: Any, export: Any, load_model: Any) -> None:
    from moxserve.tensorflow.executor.env import tf

    result = export(conv_case.job)
    model = load_model(result.path)
    for log in _read(result.path):
        if log.WhichOneof("log_type") == "predict_log":
            request = log.predict_log.request
            inputs = {alias: tf.make_ndarray(proto) for alias, proto in request.inputs.items()}
            answer = model(request.model_spec.signature_name, **inputs)["logits"]
            np.testing.assert_allclose(answer, conv_case.logits[: len(answer)], atol=1e-5)
        else:
            examples = [e.SerializeToString() for e in log.classify_log.request.input.example_list.examples]
            assert model("classify", inputs=examples)["scores"].shape == (len(examples), 3)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("batches", "rows", "expected"),
    [((1, 8, 32), 20, [1, 8, 20]), ((64, 128), 20, [20]), ((4, 4, 2), 20, [4, 2]), ((), 20, []), ((1, 8), 0, [])],
)
def test_batches_are_no_larger_than_the_rows_at_hand(
    batches: tuple[int, ...], rows: int, expected: list[int], half_job: ExportJob, export: Any
) -> None:
    samples = [a[:rows] for a in half_job.samples] if rows else []
    result = export(half_job, warmup_batches=batches, samples=samples)
    assert result.warmup_records == len(expected)
    if not expected:
        assert not os.path.exists(os.path.join(result.path, "assets.extra", "tf_serving_warmup_requests"))
        return
    assert [log.predict_log.request.inputs["x"].tensor_shape.dim[0].size for log in _read(result.path)] == expected


def test_more_records_than_a_server_reads_are_refused(half_job: ExportJob, export: Any, tmp_path: Path) -> None:
    many = [np.zeros(1001, np.float32)]
    with pytest.raises(UsageError, match="make 1001 records; a server refuses more than 1000"):
        export(half_job, warmup_batches=range(1, 1002), samples=many)
    assert os.listdir(tmp_path / "half") == []


@pytest.mark.parametrize("size", [0, -1, 1.5, True, "8"])
def test_a_batch_size_must_be_a_whole_number(size: Any, half_job: ExportJob, export: Any) -> None:
    with pytest.raises(UsageError, match=r"warmup batch size .*: expected a whole number of at least 1"):
        export(half_job, warmup_batches=[size])


def test_a_record_that_fails_keeps_the_version_from_being_published(
    half_job: ExportJob, export: Any, tmp_path: Path
) -> None:
    """A model that takes some batch sizes only would never become available on a server."""
    from moxserve.errors import ExportError

    def model_fn(inputs: Any, mode: str) -> Any:
        from moxserve.tensorflow.executor.env import tf
        from moxserve.tensorflow.executor.spec import ExportSpec, ModelSpec

        (x,) = inputs
        return ModelSpec(export_spec=ExportSpec({"x": x}, {"y": tf.reshape(tf.reshape(x, [-1, 8]), [-1])}))

    with pytest.raises(ExportError, match="writing warmup records: InvalidArgumentError"):
        export(half_job, model_fn=model_fn, warmup_batches=[8, 3])
    assert os.listdir(tmp_path / "half") == []
