"""Bytes: the hand-joined requests against the real messages, and JSON bodies there and back."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from moxserve.client.bodies import decode_json, decode_predict, encode_predict, model_path
from moxserve.client.calls import PredictCall
from moxserve.client.wire import encode
from moxserve.errors import ClientError, UsageError
from moxserve.protocol import messages
from moxserve.protocol.tensors import from_proto
from moxserve.types import DTYPES, ModelRef, Signature, TensorSpec, dtype_of

SHAPES = hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4)
TEXTS = hnp.arrays(object, SHAPES, elements=st.binary(max_size=200), fill=st.nothing())


def arrays_of(names: list[str]) -> Any:
    numbers = [d.numpy for d in DTYPES if d.name in names]
    return st.one_of(*(hnp.arrays(n, SHAPES) for n in numbers), TEXTS)


ANY_ARRAY = arrays_of([d.name for d in DTYPES if d.name not in ("string", "bfloat16")])
JSON_NAMES = ["float32", "float64", "int8", "uint8", "int16", "int32", "uint32", "int64", "uint64", "bool"]


@settings(max_examples=200, deadline=None)
@given(st.dictionaries(st.text(max_size=200), ANY_ARRAY, max_size=3), st.integers(0, 2**62) | st.none())
def test_request_bytes_are_what_the_messages_read(inputs, version) -> None:
    call = PredictCall(ModelRef("m", version), inputs, "sig", ["a", "b"])
    request = messages.PredictRequest.FromString(encode(call).payload)
    assert request.model_spec.name == "m"
    assert request.model_spec.signature_name == "sig"
    assert request.model_spec.HasField("version") is (version is not None)
    assert request.model_spec.version.value == (version or 0)
    assert list(request.output_filter) == ["a", "b"]
    assert set(request.inputs) == set(inputs)
    for name, array in inputs.items():
        found = from_proto(request.inputs[name])
        assert found.dtype == array.dtype
        np.testing.assert_array_equal(found, array)


def test_official_messages_read_the_request() -> None:
    predict_pb2 = pytest.importorskip("tensorflow_serving.apis.predict_pb2")
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    payload = encode(PredictCall(ModelRef("m", label="stable"), {"x": array[:, ::-1]}, "s")).payload
    request = predict_pb2.PredictRequest.FromString(payload)
    assert request.model_spec.version_label == "stable"
    import tensorflow as tf

    np.testing.assert_array_equal(tf.make_ndarray(request.inputs["x"]), array[:, ::-1])


def echo(inputs: dict[str, np.ndarray]) -> Signature:
    specs = {n: TensorSpec(n, dtype_of(a), (None,) * a.ndim) for n, a in inputs.items()}
    return Signature("s", "tensorflow/serving/predict", specs, specs)


@pytest.mark.slow
@settings(max_examples=200, deadline=None)
@given(st.dictionaries(st.from_regex(r"[a-z]{1,8}", fullmatch=True), arrays_of(JSON_NAMES), min_size=1, max_size=3))
def test_columns_there_and_back(inputs) -> None:
    call = PredictCall(ModelRef("m"), inputs, "s", signature=echo(inputs))
    body = decode_json(encode_predict(call))
    assert body["signature_name"] == "s"
    outputs = body["inputs"] if len(inputs) > 1 else next(iter(body["inputs"].values()))
    for name, array in decode_predict(call, {"outputs": outputs}).outputs.items():
        assert array.dtype == inputs[name].dtype
        if inputs[name].size:
            np.testing.assert_array_equal(array, inputs[name])


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 4), st.sampled_from([["x"], ["x", "y"]]), st.data())
def test_rows_there_and_back(rows, names, data) -> None:
    shape = st.just((rows, *data.draw(hnp.array_shapes(min_dims=0, max_dims=2, max_side=3))))
    inputs = {name: data.draw(hnp.arrays(np.float32, shape)) for name in names}
    call = PredictCall(ModelRef("m"), inputs, "s", signature=echo(inputs))
    body = decode_json(encode_predict(call, rows=True))
    assert len(body["instances"]) == rows
    for name, array in decode_predict(call, {"predictions": body["instances"]}).outputs.items():
        np.testing.assert_array_equal(array, inputs[name])


def test_rows_need_a_common_count() -> None:
    call = PredictCall(ModelRef("m"), {"x": np.zeros(2, np.float32), "y": np.zeros(3, np.float32)})
    with pytest.raises(UsageError, match=r"same number of rows; got \{'x': 2, 'y': 3\}"):
        encode_predict(call, rows=True)


def test_not_a_number_is_written_as_the_server_reads_it() -> None:
    call = PredictCall(ModelRef("m"), {"x": np.array([np.nan, np.inf, -np.inf, 1], np.float32)})
    assert json.dumps(json.loads(encode_predict(call))["inputs"]["x"]) == "[NaN, Infinity, -Infinity, 1.0]"
    assert b"NaN" in encode_predict(call)


def test_text_that_is_no_utf8_survives_a_raw_answer() -> None:
    spec = TensorSpec("t", dtype_of(np.array(["a"])), (None,))
    call = PredictCall(ModelRef("m"), {}, signature=Signature("s", "", {}, {"t": spec}))
    assert decode_predict(call, decode_json(b'{"outputs": ["\xff\xfe"]}')).outputs["t"].tolist() == [b"\xff\xfe"]


@pytest.mark.parametrize(
    "answer", [[], {}, {"results": 1}, {"outputs": {"a": 1}}, {"outputs": ["x"]}, {"outputs": [[1], 2]}]
)
def test_answers_of_another_form(answer) -> None:
    spec = TensorSpec("y", dtype_of(np.zeros(1, np.float32)), (None,))
    call = PredictCall(ModelRef("m"), {}, signature=Signature("s", "", {}, {"y": spec}))
    with pytest.raises(ClientError):
        decode_predict(call, answer)


def test_paths_are_quoted() -> None:
    assert model_path(ModelRef("a/b c", 3)) == "/v1/models/a%2Fb%20c/versions/3"
    assert model_path(ModelRef("m", label="ü")) == "/v1/models/m/labels/%C3%BC"
