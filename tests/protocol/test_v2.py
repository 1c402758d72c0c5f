"""Tensors of the Open Inference Protocol as raw data, against tritonclient's own encoders."""

from __future__ import annotations

import math
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from moxserve.errors import InvalidArgument, Unimplemented
from moxserve.protocol.v2 import (
    InferRequest,
    checked_shape,
    datatype_of,
    dtype_by_datatype,
    from_raw,
    model_ref,
    refuse_extensions,
    to_raw,
)
from moxserve.types import ModelRef, dtype_by_name

NUMERIC = {
    "BOOL": np.bool_, "INT8": np.int8, "INT16": np.int16, "INT32": np.int32, "INT64": np.int64, "UINT8": np.uint8,
    "UINT16": np.uint16, "UINT32": np.uint32, "UINT64": np.uint64, "FP16": np.float16, "FP32": np.float32,
    "FP64": np.float64, "BF16": ml_dtypes.bfloat16,
}  # fmt: skip
SHAPES = hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4)


@st.composite
def arrays(draw: Any) -> np.ndarray:
    """Arrays of every datatype, any bits."""
    datatype = draw(st.sampled_from([*NUMERIC, "BYTES"]))
    shape = draw(SHAPES)
    count = math.prod(shape)
    if datatype == "BYTES":
        array = np.empty(count, object)
        array[:] = draw(st.lists(st.binary(max_size=12), min_size=count, max_size=count))
        return array.reshape(shape)
    dtype = np.dtype(NUMERIC[datatype])
    if datatype == "BOOL":
        return draw(hnp.arrays(np.bool_, shape))
    bits = draw(st.binary(min_size=count * dtype.itemsize, max_size=count * dtype.itemsize))
    return np.frombuffer(bits, dtype).reshape(shape)


def same(a: np.ndarray, b: np.ndarray) -> bool:
    """Equal in type, shape and every bit."""
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    return a.tolist() == b.tolist() if a.dtype == object else a.tobytes() == b.tobytes()


@given(arrays())
@settings(max_examples=300, deadline=None)
def test_raw_data_is_what_tritonclient_writes_and_comes_back(array: np.ndarray) -> None:
    from tritonclient.utils import np_to_triton_dtype, serialize_byte_tensor

    datatype = datatype_of(array, "x")
    assert datatype == np_to_triton_dtype(array.dtype)
    raw = bytes(to_raw(array))
    text = array.dtype == object and array.size > 0
    assert raw == (serialize_byte_tensor(array).item() if text else array.tobytes())
    assert same(from_raw(raw, dtype_by_datatype(datatype, "x"), array.shape, "x"), array)
    # also from the middle of a longer message, where nothing is aligned
    for offset in range(1, 4):
        view = memoryview(bytes(offset) + raw)[offset:]
        back = from_raw(view, dtype_by_datatype(datatype, "x"), array.shape, "x")
        assert back.flags.aligned
        assert same(back, array)


@given(st.sampled_from([*NUMERIC, "BYTES"]), st.lists(st.integers(0, 2**63 - 1), max_size=5), st.binary(max_size=64))
@settings(max_examples=300, deadline=None)
def test_any_bytes_are_a_tensor_or_an_invalid_argument(datatype: str, shape: list[int], data: bytes) -> None:
    try:
        array = from_raw(data, dtype_by_datatype(datatype, "x"), checked_shape(shape, "x"), "x")
    except InvalidArgument:
        return
    assert list(array.shape) == shape
    assert len(bytes(to_raw(array))) == len(data)


def test_numbers_are_views_of_the_message() -> None:
    data = np.arange(6, dtype=np.float32).tobytes()
    array = from_raw(data, dtype_by_name("float32"), (2, 3), "x")
    assert np.shares_memory(array, np.frombuffer(data, np.uint8))
    assert to_raw(array).obj is not None
    assert np.shares_memory(np.frombuffer(to_raw(array), np.uint8), array)


def test_big_endian_and_strided_arrays_are_written_as_little_endian_rows() -> None:
    array = np.arange(6, dtype=">i4").reshape(2, 3).T
    assert bytes(to_raw(array)) == np.ascontiguousarray(array).astype("<i4").tobytes()


def test_any_byte_but_zero_is_true() -> None:
    array = from_raw(b"\x00\x01\x02\xff", dtype_by_name("bool"), (4,), "x")
    assert array.view(np.uint8).tolist() == [0, 1, 1, 1]


@pytest.mark.parametrize(
    ("datatype", "shape", "data", "message"),
    [
        ("FP32", (2, 2), bytes(12), r"x has 12 bytes of data; FP32\[2, 2\] needs 16"),
        ("FP64", (2**40, 2**40), b"", r"x has 0 bytes of data; FP64\[1099511627776, 1099511627776\] needs"),
        ("FP32", (0, 2**62, 2**62), b"", r"x has the shape \[0, 4611686018427387904, 4611686018427387904\]"),
        ("BYTES", (3,), bytes(8), "x has 8 bytes of data, too few for 3 BYTES elements of at least 4 bytes"),
        ("BYTES", (2**60,), bytes(8), "too few for 1152921504606846976 BYTES elements"),
        ("BYTES", (1,), b"\x05\0\0\0abc", "x: element 0 of 1 has 5 bytes, but only 3 bytes follow"),
        ("BYTES", (2,), b"\x03\0\0\0abc\1", "x: the data ends before the length of element 1 of 2"),
        ("BYTES", (1,), b"\x01\0\0\0abc", "x: 2 bytes follow the last of its 1 elements"),
    ],
)  # fmt: skip
def test_data_that_does_not_fit_its_shape(datatype: str, shape: Any, data: bytes, message: str) -> None:
    with pytest.raises(InvalidArgument, match=message):
        from_raw(data, dtype_by_datatype(datatype, "x"), shape, "x")


@pytest.mark.parametrize("dims", [None, 3, "ab", [1, -1], [1.0], [True], [2**63], [1] * 65, [[1]]])
def test_shapes_that_are_none(dims: Any) -> None:
    with pytest.raises(InvalidArgument, match="input 'x' has the shape"):
        checked_shape(dims, "input 'x'")


def test_unknown_datatypes() -> None:
    with pytest.raises(InvalidArgument, match="input 'x' has the datatype 'FP31'; did you mean 'FP"):
        dtype_by_datatype("FP31", "input 'x'")
    with pytest.raises(InvalidArgument, match="known: BF16, BOOL, BYTES, FP16"):
        dtype_by_datatype("", "input 'x'")
    with pytest.raises(Unimplemented, match="output 'y' is complex64, for which the protocol has no datatype"):
        datatype_of(np.zeros(1, np.complex64), "output 'y'")


def test_versions() -> None:
    assert model_ref("half", "") == ModelRef("half")
    assert model_ref("half", "00000123") == ModelRef("half", 123)
    assert model_ref("half", "stable") == ModelRef("half", label="stable")
    assert model_ref("half", "-1") == ModelRef("half", label="-1")
    assert model_ref("half", "²") == ModelRef("half", label="²")
    for large in (str(2**63), "9" * 5000):
        with pytest.raises(InvalidArgument, match="larger than any version can be"):
            model_ref("half", large)


def test_parameters_that_mean_something() -> None:
    request = InferRequest(ModelRef("m"), {}, parameters={"signature_name": "text", "timeout": 2_500_000})
    assert request.signature_name == "text"
    assert request.timeout_s == 2.5
    assert InferRequest(ModelRef("m"), {}).timeout_s is None
    assert InferRequest(ModelRef("m"), {}, parameters={"timeout": 0}).timeout_s is None
    assert InferRequest(ModelRef("m"), {}, parameters={"timeout": "1000"}).timeout_s == 0.001
    for wrong in ("soon", math.inf, math.nan):
        with pytest.raises(InvalidArgument, match="parameter 'timeout'"):
            _ = InferRequest(ModelRef("m"), {}, parameters={"timeout": wrong}).timeout_s
    with pytest.raises(InvalidArgument, match="parameter 'signature_name' is 7; expected text"):
        _ = InferRequest(ModelRef("m"), {}, parameters={"signature_name": 7}).signature_name


def test_extensions_that_are_not_offered() -> None:
    refuse_extensions({"classification": 0, "binary_data": True}, "output 'y'")
    with pytest.raises(Unimplemented, match="output 'y' is asked for as a classification"):
        refuse_extensions({"classification": 3}, "output 'y'")
    with pytest.raises(Unimplemented, match="input 'x' is in shared memory"):
        refuse_extensions({"shared_memory_region": "r"}, "input 'x'")
