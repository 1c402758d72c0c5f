"""ModelInfer messages: tritonclient reads what is written, what it writes is read, and nonsense is refused."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moxserve.errors import InvalidArgument, Unimplemented
from moxserve.protocol import v2_grpc
from moxserve.protocol.v2 import InferAnswer, InferRequest, RequestedOutput
from moxserve.types import ModelRef

BIG = np.linspace(0, 1, 10_000, dtype=np.float32).reshape(100, 100)
TYPED = {
    "BOOL": ("bool_contents", [True, False], np.bool_), "INT8": ("int_contents", [-128, 127], np.int8),
    "INT16": ("int_contents", [-1, 300], np.int16), "INT32": ("int_contents", [-1, 2**31 - 1], np.int32),
    "INT64": ("int64_contents", [-1, 2**63 - 1], np.int64), "UINT8": ("uint_contents", [0, 255], np.uint8),
    "UINT16": ("uint_contents", [0, 65535], np.uint16), "UINT32": ("uint_contents", [0, 2**32 - 1], np.uint32),
    "UINT64": ("uint64_contents", [0, 2**64 - 1], np.uint64), "FP32": ("fp32_contents", [0.5, -2.0], np.float32),
    "FP64": ("fp64_contents", [0.1, 1e300], np.float64),
}  # fmt: skip


def triton_request(inputs: dict[str, np.ndarray], **changes: Any) -> bytes:
    """Write a request as tritonclient does."""
    import tritonclient.grpc as triton
    from tritonclient.grpc._utils import _get_inference_request
    from tritonclient.utils import np_to_triton_dtype

    tensors = []
    for name, array in inputs.items():
        tensor = triton.InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype))
        tensors.append(tensor.set_data_from_numpy(array))
    arguments = {
        "model_version": "", "request_id": "", "outputs": None, "sequence_id": 0, "sequence_start": False,
        "sequence_end": False, "priority": 0, "timeout": None, "parameters": None,
    } | changes  # fmt: skip
    return _get_inference_request("m", tensors, **arguments).SerializeToString()


def typed_request(datatype: str, field: str, values: list[Any], shape: list[int]) -> bytes:
    request = v2_grpc.message("ModelInferRequest", model_name="m")
    tensor = request.inputs.add(name="x", datatype=datatype, shape=shape)
    getattr(tensor.contents, field).extend(values)
    return request.SerializeToString()


@pytest.mark.parametrize("array", [BIG, BIG[:2], np.zeros((0, 3), np.int8), np.array(7, np.int64)], ids=str)
def test_requests_of_tritonclient(array: np.ndarray) -> None:
    import tritonclient.grpc as triton

    text = np.array([["häl", b"\xff\0"]], object)
    data = triton_request(
        {"x": array, "text": text, "half": BIG[:1].astype(np.float16), "brain": BIG[:1].astype(ml_dtypes.bfloat16)},
        model_version="stable", request_id="id 1", outputs=[triton.InferRequestedOutput("y")], timeout=3_000_000,
        parameters={"signature_name": "sig", "flag": True, "ratio": 0.5, "count": 3},
    )  # fmt: skip
    request = v2_grpc.infer_request(data)
    assert request.model == ModelRef("m", label="stable")
    assert (request.id, request.signature_name, request.timeout_s) == ("id 1", "sig", 3.0)
    assert request.parameters["flag"] is True
    assert (request.parameters["ratio"], request.parameters["count"]) == (0.5, 3)
    assert request.outputs == (RequestedOutput("y"),)
    assert list(request.inputs) == ["x", "text", "half", "brain"]
    assert request.inputs["x"].dtype == array.dtype
    np.testing.assert_array_equal(request.inputs["x"], array)
    assert request.inputs["text"].tolist() == [["häl".encode(), b"\xff\0"]]
    np.testing.assert_array_equal(request.inputs["half"], BIG[:1].astype(np.float16))
    np.testing.assert_array_equal(request.inputs["brain"], BIG[:1].astype(ml_dtypes.bfloat16))


def test_raw_tensors_of_large_requests_are_not_copied() -> None:
    # Padding until the tensor starts at a multiple of four, where nothing has to be copied.
    for padding in range(1, 5):
        data = triton_request({"x": BIG}, request_id="i" * padding)
        array = v2_grpc.infer_request(data).inputs["x"]
        if np.shares_memory(array, np.frombuffer(data, np.uint8)):
            break
    else:
        pytest.fail("copied at every alignment")
    np.testing.assert_array_equal(array, BIG)


@pytest.mark.parametrize("datatype", TYPED)
def test_typed_contents(datatype: str) -> None:
    field, values, dtype = TYPED[datatype]
    array = v2_grpc.infer_request(typed_request(datatype, field, values, [2, 1])).inputs["x"]
    assert array.dtype == dtype
    np.testing.assert_array_equal(array, np.array(values, dtype).reshape(2, 1))


def test_typed_text() -> None:
    array = v2_grpc.infer_request(typed_request("BYTES", "bytes_contents", [b"a", b"\xff\0"], [2])).inputs["x"]
    assert array.tolist() == [b"a", b"\xff\0"]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"\xff\xff\xff", "the 3 bytes of the request are no ModelInferRequest"),
        (b"\x3a\xff" + bytes(40_000), "bytes of the request are no ModelInferRequest"),
        (b"\x3a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01" + bytes(40_000), "are no ModelInferRequest"),
        (typed_request("FP32", "fp32_contents", [1, 2, 3], [2, 2]), r"'x' has 3 elements; its shape \[2, 2\] needs 4"),
        (typed_request("FP32", "fp32_contents", [], [2**62, 2**62]), "needs more than can be counted"),
        (typed_request("FP32", "fp64_contents", [1], [1]), "is FP32, but has fp64_contents; expected fp32_contents"),
        (typed_request("FP16", "fp32_contents", [1], [1]), "is FP16, which has no typed contents; send raw"),
        (typed_request("UINT8", "uint_contents", [1, 256], [2]), "has an element 256, which UINT8 cannot hold"),
        (typed_request("INT8", "int_contents", [-129], [1]), "has an element -129, which INT8 cannot hold"),
        (typed_request("FP99", "fp32_contents", [1], [1]), "has the datatype 'FP99'"),
        (typed_request("FP32", "fp32_contents", [1], [-1]), r"has the shape \[-1\]"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_requests_that_make_no_sense(data: bytes, message: str) -> None:
    with pytest.raises(InvalidArgument, match=message):
        v2_grpc.infer_request(data)


def changed(data: bytes, change: Any) -> bytes:
    request = v2_grpc.parse("ModelInferRequest", data)
    change(request)
    return request.SerializeToString()


@pytest.mark.parametrize("array", [BIG, BIG[:1]], ids=["large", "small"])
def test_tensors_that_contradict_each_other(array: np.ndarray) -> None:
    data = triton_request({"x": array})
    with pytest.raises(InvalidArgument, match="1 inputs, but 2 raw_input_contents; expected one for each"):
        v2_grpc.infer_request(changed(data, lambda r: r.raw_input_contents.append(b"")))
    with pytest.raises(InvalidArgument, match="input 'x' has contents, but there are raw_input_contents too"):
        v2_grpc.infer_request(changed(data, lambda r: r.inputs[0].contents.fp32_contents.append(1)))
    with pytest.raises(InvalidArgument, match="input 'x' is there twice"):
        v2_grpc.infer_request(
            changed(triton_request({"x": array, "y": array}), lambda r: setattr(r.inputs[1], "name", "x"))
        )
    with pytest.raises(InvalidArgument, match="bytes of data; FP32"):
        v2_grpc.infer_request(changed(data, lambda r: r.inputs[0].shape.append(2)))


def test_shared_memory_and_classification_are_refused_by_name() -> None:
    import tritonclient.grpc as triton

    data = triton_request({"x": BIG}, outputs=[triton.InferRequestedOutput("y", class_count=3)])
    with pytest.raises(Unimplemented, match="output 'y' is asked for as a classification"):
        v2_grpc.infer_request(data)
    request = v2_grpc.message("ModelInferRequest", model_name="m")
    tensor = request.inputs.add(name="x", datatype="FP32", shape=[1])
    tensor.parameters["shared_memory_region"].string_param = "region"
    with pytest.raises(Unimplemented, match="input 'x' is in shared memory"):
        v2_grpc.infer_request(request.SerializeToString())


@pytest.mark.slow
@given(st.data())
@settings(max_examples=300, deadline=None)
def test_damaged_requests_are_read_or_refused(data: st.DataObject) -> None:
    large = data.draw(st.booleans())
    raw = bytearray(triton_request({"x": BIG if large else BIG[0, :4], "s": np.array([b"ab", b"c"], object)}))
    for _ in range(data.draw(st.integers(1, 6))):
        # Mostly in the head and the tail: the middle of a large one is nothing but numbers.
        at = data.draw(st.integers(0, 60)) * data.draw(st.sampled_from([1, -1]))
        raw[max(-len(raw), min(at, len(raw) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, 30))
    try:
        request = v2_grpc.infer_request(bytes(raw[: len(raw) - cut]))
    except (InvalidArgument, Unimplemented):
        return
    assert all(isinstance(array, np.ndarray) for array in request.inputs.values())


@given(st.lists(st.binary(max_size=2000), max_size=40))
@settings(max_examples=200, deadline=None)
def test_large_and_small_requests_are_read_alike(parts: list[bytes]) -> None:
    """The split at the level of bytes finds what protobuf finds, in any order of fields."""
    message = b"".join(
        v2_grpc.message("ModelInferRequest", raw_input_contents=[part], id=str(i)).SerializeToString()
        for i, part in enumerate(parts)
    )
    head, raw = v2_grpc._without_raw(message)
    whole = v2_grpc.parse("ModelInferRequest", message)
    assert raw is not None
    assert [bytes(part) for part in raw] == list(whole.raw_input_contents)
    whole.ClearField("raw_input_contents")
    assert v2_grpc.parse("ModelInferRequest", head) == whole


# Answers


def answer(outputs: dict[str, np.ndarray], *, binary: bool = True, request_id: str = "") -> bytes:
    request = InferRequest(ModelRef("m"), {}, id=request_id, binary=binary)
    return v2_grpc.infer_response(InferAnswer(request, "m", 7, outputs))


def test_answers_are_read_by_tritonclient() -> None:
    import tritonclient.grpc as triton
    from tritonclient.grpc import service_pb2

    outputs = {name: np.array(values, dtype).reshape(2, 1) for name, (_, values, dtype) in TYPED.items()}
    outputs |= {"text": np.array([b"a", b"\xff\0"], object), "large": BIG, "none": np.zeros((0, 2), np.float32)}
    outputs |= {"half": BIG[0].astype(np.float16), "brain": BIG[0].astype(ml_dtypes.bfloat16)}
    response = service_pb2.ModelInferResponse.FromString(answer(outputs, request_id="id 1"))
    assert (response.model_name, response.model_version, response.id) == ("m", "7", "id 1")
    result = triton.InferResult(response)
    assert [output.name for output in response.outputs] == list(outputs)
    for name, array in outputs.items():
        back = result.as_numpy(name)
        assert back.dtype == array.dtype
        np.testing.assert_array_equal(back, array)


def test_typed_answers() -> None:
    from tritonclient.grpc import service_pb2

    outputs = {name: np.array(values, dtype).reshape(2, 1) for name, (_, values, dtype) in TYPED.items()}
    outputs["BYTES"] = np.array([b"a", b"\xff\0"], object)
    response = service_pb2.ModelInferResponse.FromString(answer(outputs, binary=False))
    assert not response.raw_output_contents
    fields = {name: field for name, (field, _, _) in TYPED.items()} | {"BYTES": "bytes_contents"}
    for output in response.outputs:
        assert list(getattr(output.contents, fields[output.name])) == outputs[output.name].reshape(-1).tolist()
        assert list(output.shape) == list(outputs[output.name].shape)


def test_answers_without_a_form() -> None:
    with pytest.raises(Unimplemented, match="output 'z' is complex64, for which the protocol has no datatype"):
        answer({"z": np.zeros(2, np.complex64)})
    with pytest.raises(
        Unimplemented, match="output 'h' is FP16, which has no typed contents; leave binary_data_output"
    ):
        answer({"h": np.zeros(2, np.float16)}, binary=False)
