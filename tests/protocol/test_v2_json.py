"""Bodies of the Open Inference Protocol over REST: JSON and binary tensors, with tritonclient on the other side."""

from __future__ import annotations

import json
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from moxserve.errors import InvalidArgument, Unimplemented
from moxserve.protocol.v2 import InferAnswer, InferRequest, RequestedOutput
from moxserve.protocol.v2_json import Body, infer_request, infer_response
from moxserve.types import ModelRef

MODEL = ModelRef("m")
JSON_NUMBERS = {
    "INT8": np.int8, "INT16": np.int16, "INT32": np.int32, "INT64": np.int64, "UINT8": np.uint8, "UINT16": np.uint16,
    "UINT32": np.uint32, "UINT64": np.uint64, "FP16": np.float16, "FP32": np.float32, "FP64": np.float64,
    "BOOL": np.bool_,
}  # fmt: skip


def body(*inputs: dict[str, Any], **more: Any) -> bytes:
    return json.dumps({"inputs": list(inputs), **more}).encode()


def tensor(data: Any, shape: Any = (2,), datatype: str = "FP32", name: str = "x", **parameters: Any) -> dict[str, Any]:
    return {"name": name, "shape": list(shape), "datatype": datatype, "data": data} | (
        {"parameters": parameters} if parameters else {}
    )


def triton_body(inputs: dict[str, np.ndarray], *, binary: bool, **changes: Any) -> tuple[bytes, int | None]:
    """Write a body as tritonclient does, with the length of its JSON."""
    import tritonclient.http as triton
    from tritonclient.http._utils import _get_inference_request
    from tritonclient.utils import np_to_triton_dtype

    tensors = []
    for name, array in inputs.items():
        item = triton.InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype))
        tensors.append(item.set_data_from_numpy(array, binary_data=binary))
    arguments = {
        "request_id": "", "outputs": None, "sequence_id": 0, "sequence_start": False, "sequence_end": False,
        "priority": 0, "timeout": None, "custom_parameters": None,
    } | changes  # fmt: skip
    return _get_inference_request(tensors, **arguments)


@st.composite
def tensors(draw: Any) -> dict[str, np.ndarray]:
    found: dict[str, np.ndarray] = {}
    for i in range(draw(st.integers(1, 3))):
        shape = draw(hnp.array_shapes(min_dims=1, max_dims=3, min_side=0, max_side=3))
        if draw(st.booleans()):
            dtype = np.dtype(draw(st.sampled_from(sorted(JSON_NUMBERS))).lower().replace("fp", "float"))
            found[f"x{i}"] = draw(hnp.arrays(dtype, shape))
        else:
            found[f"x{i}"] = draw(hnp.arrays(object, shape, elements=st.text(max_size=6).map(str.encode)))
    return found


def assert_equal(array: np.ndarray, expected: np.ndarray) -> None:
    assert array.dtype == expected.dtype
    assert array.shape == expected.shape
    np.testing.assert_array_equal(array, expected)


@pytest.mark.slow
@given(tensors(), st.booleans())
@settings(max_examples=150, deadline=None)
def test_requests_of_tritonclient(arrays: dict[str, np.ndarray], binary: bool) -> None:
    if not binary:
        # Its JSON has no FP16.
        arrays = {k: v.astype(np.float32) if v.dtype == np.float16 else v for k, v in arrays.items()}
    data, length = triton_body(arrays, binary=binary, request_id="id 1", timeout=5)
    request = infer_request(MODEL, data, length)
    assert list(request.inputs) == list(arrays)
    for name, array in arrays.items():
        assert_equal(request.inputs[name], array)
    assert request.id == "id 1"
    assert request.binary
    assert request.parameters["timeout"] == 5


def test_outputs_may_each_be_binary() -> None:
    import tritonclient.http as triton

    outputs = [triton.InferRequestedOutput("a"), triton.InferRequestedOutput("b", binary_data=False)]
    data, length = triton_body({"x": np.ones(2, np.float32)}, binary=True, outputs=outputs)
    request = infer_request(MODEL, data, length)
    assert request.outputs == (RequestedOutput("a", True), RequestedOutput("b", False))
    assert not request.binary
    asked = infer_request(MODEL, body(tensor([1, 2]), outputs=[{"name": "a"}], parameters={"binary_data_output": True}))
    assert asked.outputs == (RequestedOutput("a", True),)


@pytest.mark.parametrize("datatype", [*JSON_NUMBERS, "BF16"])
def test_data_may_be_flat_or_nested(datatype: str) -> None:
    dtype = np.dtype(JSON_NUMBERS.get(datatype, ml_dtypes.bfloat16))
    values: list[Any] = [True, False, True, True, False, False] if datatype == "BOOL" else [0, 1, 2, 3, 4, 5]
    expected = np.array(values).astype(dtype).reshape(1, 2, 3)
    for data in (values, [[values[:3], values[3:]]]):
        assert_equal(infer_request(MODEL, body(tensor(data, (1, 2, 3), datatype))).inputs["x"], expected)


def test_numbers_that_json_does_not_have() -> None:
    request = infer_request(
        MODEL, b'{"inputs":[{"name":"x","shape":[4],"datatype":"FP32","data":[NaN,-Infinity,1e99,2]}]}'
    )
    assert_equal(request.inputs["x"], np.array([np.nan, -np.inf, np.inf, 2], np.float32))


@pytest.mark.parametrize("datatype", [*JSON_NUMBERS, "BF16"])
def test_large_bodies(datatype: str) -> None:
    """They are read another way, to the same result."""
    dtype = np.dtype(JSON_NUMBERS.get(datatype, ml_dtypes.bfloat16))
    wide = np.arange(3000).reshape(3, 1000) % 120
    expected = (wide % 2 == 0) if datatype == "BOOL" else wide.astype(dtype)
    for nested in (expected, expected.reshape(-1)):
        for values in (
            nested.tolist(),
            nested.astype(float).tolist() if expected.dtype.kind == "f" else nested.tolist(),
        ):
            request = infer_request(MODEL, body(tensor(values, (3, 1000), datatype), id="a"))
            assert_equal(request.inputs["x"], expected)
            assert request.id == "a"


LARGE = list(range(3000))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (body(tensor(LARGE, (2999,))), "'x' has 3000 elements; its shape"),
        (body(tensor([LARGE, LARGE], (6000, 1))), r"nested as \[2, 3000\]; expected a flat list, or \[6000, 1\]"),
        (body(tensor([LARGE, [*LARGE, 1]], (6001,))), "ragged: lists of 3000 and of 3001 elements"),
        (body(tensor([*LARGE, "a"], (3001,))), 'holds "a", which is no FP32'),
        (body(tensor([*LARGE, 0.5], (3001,), "INT32")), "holds 0.5, which is no INT32"),
        (body(tensor([*LARGE, 2**31], (3001,), "INT32")), "holds 2147483648, which is no INT32"),
        (body(tensor(LARGE, (3000,), "INT8")), "holds 128, which is no INT8"),
        (body(tensor(LARGE, (3000,), "BOOL")), "holds 0, which is no BOOL"),
        (body(tensor(LARGE, (3000,), "BYTES")), "holds 0, which is no BYTES"),
        (body(tensor(LARGE, (3000,)), id=LARGE), "'id' of the request is"),
        (body(tensor(LARGE, (3000,)), outputs=LARGE), "'outputs' is .*; expected a list of objects"),
        (b'{"inputs": [' + b"1," * 5000 + b"1]}", "'inputs' is .*; expected a list of objects"),
        (body(tensor(LARGE, (3000,))) [:-1], "JSON Parse error"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_large_bodies_that_make_no_sense(data: bytes, message: str) -> None:
    with pytest.raises(InvalidArgument, match=message):
        infer_request(MODEL, data)


def test_large_numbers_in_large_bodies() -> None:
    values = [2**64 - 1] * 1000
    assert infer_request(MODEL, body(tensor(values, (1000,), "UINT64"))).inputs["x"].tolist() == values
    wide = infer_request(MODEL, body(tensor([1e300] * 1000, (1000,))), None).inputs["x"]
    assert_equal(wide, np.full(1000, np.inf, np.float32))


def test_text_and_bytes() -> None:
    request = infer_request(MODEL, body(tensor(["häl", {"b64": "/wA="}], (2, 1), "BYTES")))
    assert request.inputs["x"].tolist() == [["häl".encode()], [b"\xff\0"]]


def test_scalars_and_empty_tensors() -> None:
    inputs = infer_request(
        MODEL, body(tensor([5], (), "INT32"), tensor([], (0, 3), name="none"), tensor([[], []], (2, 0), name="rows"))
    ).inputs
    assert_equal(inputs["x"], np.array(5, np.int32))
    assert_equal(inputs["none"], np.zeros((0, 3), np.float32))
    assert_equal(inputs["rows"], np.zeros((2, 0), np.float32))


@pytest.mark.parametrize(
    ("item", "message"),
    [
        (tensor([1, 2, 3]), r"input 'x' has 3 elements; its shape \[2\] needs 2"),
        (tensor([[1, 2]], (2, 1)), r"the data of input 'x' is nested as \[1, 2\]; expected a flat list, or \[2, 1\]"),
        (tensor([[1], [2, 3]], (3,)), "the data of input 'x' is ragged: lists of 1 and of 2 elements"),
        (tensor([1, [2]]), r"the data of input 'x' holds \[2\], which is no FP32"),
        (tensor([1, "2"]), "the data of input 'x' holds \"2\", which is no FP32"),
        (tensor([1, True]), "holds true, which is no FP32"),
        (tensor([1, None]), "holds null, which is no FP32"),
        (tensor([1, 10**400]), "which is no FP32"),
        (tensor([1, 2.5], datatype="INT32"), "holds 2.5, which is no INT32"),
        (tensor([1, 2**31], datatype="INT32"), "holds 2147483648, which is no INT32"),
        (tensor([1, -1], datatype="UINT64"), "holds -1, which is no UINT64"),
        (tensor([1, 2**64], datatype="UINT64"), r"holds 1.8446744073709552e\+19, which is no UINT64"),
        (tensor([0, 1], datatype="BOOL"), "holds 0, which is no BOOL"),
        (tensor(["a", 1], datatype="BYTES"), "holds 1, which is no BYTES"),
        (tensor([{"b64": "?"}, "a"], datatype="BYTES"), "Unable to base64 decode"),
        (tensor([1, 2], datatype="FP31"), "input 'x' has the datatype 'FP31'"),
        (tensor([1, 2], (-2,)), r"input 'x' has the shape \[-2\]"),
        (tensor([1, 2], (2.0,)), r"input 'x' has the shape \[2.0\]"),
        (tensor([1, 2], binary_data_size=8), "input 'x' has both 'data' and the parameter 'binary_data_size'"),
        ({"name": "x", "shape": [1], "datatype": "FP32"}, "neither 'data' nor the parameter 'binary_data_size'"),
        ({"shape": [1], "datatype": "FP32", "data": [1]}, r"inputs\[0\] has no name"),
        ({"name": 7}, r"'name' of inputs\[0\] is 7; expected text"),
        ({"name": "\ud800"}, r"'name' of inputs\[0\] is no text that UTF-8 can write"),
        (tensor([1, 2]) | {"parameters": [1]}, r"'parameters' of input 'x' is \[1\]; expected an object"),
        (tensor([1, 2]) | {"shape": None}, "input 'x' has the shape None"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_inputs_that_make_no_sense(item: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidArgument, match=message):
        infer_request(MODEL, body(item))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "The document is empty"),
        (b"{", "JSON Parse error"),
        (b"[1]", "Is not object"),
        (b"{}", "the request has no inputs"),
        (b'{"inputs": {}}', "'inputs' is {}; expected a list of objects"),
        (b'{"inputs": [1]}', r"'inputs' is \[1\]; expected a list of objects"),
        (body(tensor([1, 2]), tensor([1, 2])), "input 'x' is there twice"),
        (body(tensor([1, 2]), outputs=[{"name": ""}]), r"outputs\[0\] has no name"),
        (body(tensor([1, 2]), outputs=[{"name": "y", "parameters": {"binary_data": 1}}]),
         "parameter 'binary_data' of output 'y' is 1; expected true or false"),
        (body(tensor([1, 2]), id=7), "'id' of the request is 7; expected text"),
    ],
)  # fmt: skip
def test_requests_that_make_no_sense(data: bytes, message: str) -> None:
    with pytest.raises(InvalidArgument, match=message):
        infer_request(MODEL, data)


def binary_body(size: Any, raw: bytes) -> tuple[bytes, int]:
    item = {"name": "x", "shape": [2], "datatype": "FP32", "parameters": {"binary_data_size": size}}
    head = body(item)
    return head + raw, len(head)


@pytest.mark.parametrize(
    ("size", "raw", "message"),
    [
        (8, bytes(7), "input 'x' has the binary_data_size 8, but only 7 bytes of data are left"),
        (8, bytes(9), "1 bytes of binary data follow those of the last input"),
        (7, bytes(7), r"input 'x' has 7 bytes of data; FP32\[2\] needs 8"),
        (-8, bytes(8), "is -8; expected a number of bytes"),
        ("8", bytes(8), "is '8'; expected a number of bytes"),
        (True, bytes(8), "is True; expected a number of bytes"),
    ],
)
def test_binary_data_that_does_not_fit(size: Any, raw: bytes, message: str) -> None:
    data, length = binary_body(size, raw)
    with pytest.raises(InvalidArgument, match=message):
        infer_request(MODEL, data, length)


def test_the_length_of_the_json_must_be_right() -> None:
    data, length = binary_body(8, bytes(8))
    assert infer_request(MODEL, data, length).inputs["x"].tolist() == [0, 0]
    for wrong in (0, -1, len(data) + 1):
        with pytest.raises(InvalidArgument, match=f"Inference-Header-Content-Length is {wrong}; expected"):
            infer_request(MODEL, data, wrong)
    with pytest.raises(InvalidArgument, match="JSON Parse error"):
        infer_request(MODEL, data, length - 1)


def test_binary_data_is_not_copied() -> None:
    for padding in range(4):
        array = np.arange(1000, dtype=np.float32)
        data, length = triton_body({"x": array}, binary=True, request_id="i" * padding)
        found = infer_request(MODEL, data, length).inputs["x"]
        assert_equal(found, array)
        if length % 4 == 0:
            assert np.shares_memory(found, np.frombuffer(data, np.uint8))


def test_classification_is_refused_by_name() -> None:
    data = body(tensor([1, 2]), outputs=[{"name": "y", "parameters": {"classification": 2}}])
    with pytest.raises(Unimplemented, match="output 'y' is asked for as a classification"):
        infer_request(MODEL, data)


# Answers


def answer(outputs: dict[str, np.ndarray], *asked: RequestedOutput, binary: bool = False, request_id: str = "") -> Body:
    request = InferRequest(MODEL, {}, tuple(asked), id=request_id, binary=binary)
    return infer_response(InferAnswer(request, "m", 7, outputs))


@given(tensors(), st.booleans(), st.data())
@settings(max_examples=150, deadline=None)
def test_answers_are_read_by_tritonclient(arrays: dict[str, np.ndarray], binary: bool, data: st.DataObject) -> None:
    import tritonclient.http as triton

    asked = [RequestedOutput(name, data.draw(st.booleans())) for name in arrays if data.draw(st.booleans())]
    written = answer(arrays, *asked, binary=binary, request_id="id ü")
    result = triton.InferResult.from_response_body(written.data, header_length=written.json_bytes)
    response = result.get_response()
    assert (response["model_name"], response["model_version"], response["id"]) == ("m", "7", "id ü")
    as_asked = dict.fromkeys(arrays, binary) | {output.name: output.binary for output in asked}
    assert (written.json_bytes is not None) == any(as_asked.values())
    for name, array in arrays.items():
        found = result.as_numpy(name)
        if array.dtype == object:
            found = np.array([v if isinstance(v, bytes) else v.encode() for v in found.reshape(-1)], object)
            found = found.reshape(array.shape)
        assert_equal(found, array)


def test_the_json_of_an_answer() -> None:
    outputs = {
        "f": np.array([[0.1, 2.0], [np.nan, np.inf]], np.float32), "d": np.array([1 / 3]),
        "i": np.array(2**63, np.uint64), "b": np.array([True, False]), "s": np.array(["ü".encode(), b'"'], object),
        "h": np.array([0.1], np.float16), "n": np.zeros((0, 2), np.int8),
    }  # fmt: skip
    written = answer(outputs)
    assert written.json_bytes is None
    assert written.data.decode() == (
        '{"model_name":"m","model_version":"7","outputs":['
        '{"name":"f","datatype":"FP32","shape":[2,2],"data":[0.1,2.0,NaN,Infinity]},'
        '{"name":"d","datatype":"FP64","shape":[1],"data":[0.33333333333333331]},'
        '{"name":"i","datatype":"UINT64","shape":[],"data":[9223372036854775808]},'
        '{"name":"b","datatype":"BOOL","shape":[2],"data":[true,false]},'
        '{"name":"s","datatype":"BYTES","shape":[2],"data":["ü","\\""]},'
        '{"name":"h","datatype":"FP16","shape":[1],"data":[0.0999755859]},'
        '{"name":"n","datatype":"INT8","shape":[0,2],"data":[]}]}'
    )


def test_answers_without_a_form() -> None:
    with pytest.raises(InvalidArgument, match="output 's' holds bytes that are no UTF-8, which JSON cannot carry"):
        answer({"s": np.array([b"\xff"], object)})
    assert answer({"s": np.array([b"\xff"], object)}, binary=True).data.endswith(b"\x01\0\0\0\xff")
    with pytest.raises(Unimplemented, match="output 'z' is complex64"):
        answer({"z": np.zeros(2, np.complex64)})
