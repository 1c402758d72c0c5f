"""TensorProto and arrays, held against TensorFlow's own conversion."""

from __future__ import annotations

from typing import Any

import hypothesis.extra.numpy as hnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moxserve.errors import InvalidArgument
from moxserve.protocol import messages
from moxserve.protocol.tensors import from_proto, to_array, to_proto
from moxserve.types import DTYPES

NUMERIC = [d for d in DTYPES if d.name != "string"]


def _bits(array: np.ndarray) -> Any:
    """What two arrays must share to be the same, NaNs and signs of zeros included."""
    return array.tolist() if array.dtype == object else np.ascontiguousarray(array).tobytes()


def _sample(dtype: Any, shape: tuple[int, ...]) -> np.ndarray:
    """Random bit patterns; for booleans, booleans."""
    random = np.random.default_rng(7)
    size = int(np.prod(shape))
    if dtype.name == "bool":
        return random.integers(0, 2, shape).astype(bool)
    return random.integers(0, 256, size * dtype.numpy.itemsize, dtype=np.uint8).view(dtype.numpy).reshape(shape)


def _arrays() -> st.SearchStrategy[np.ndarray]:
    plain = [d.numpy for d in NUMERIC if d.name != "bfloat16"]
    shapes = hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4)
    numbers = st.sampled_from(plain).flatmap(lambda dtype: hnp.arrays(dtype, shapes))
    text = st.lists(st.binary(max_size=300), max_size=5).map(
        lambda items: np.array([*items, b""], dtype=object)[: len(items)]
    )
    return st.one_of(numbers, text)


@given(_arrays(), st.booleans())
@settings(max_examples=300, deadline=None)
def test_what_is_encoded_is_decoded(array: np.ndarray, typed: bool) -> None:
    proto = messages.TensorProto.FromString(to_proto(array, typed=typed).SerializeToString())
    found = from_proto(proto)
    assert (found.dtype, found.shape) == (array.dtype, array.shape)
    if array.dtype == object:
        assert found.tolist() == array.tolist()
    else:
        np.testing.assert_array_equal(found, array)


@given(st.binary(max_size=200))
@settings(max_examples=300, deadline=None)
def test_arbitrary_bytes_give_an_array_or_a_clear_error(data: bytes) -> None:
    from google.protobuf.message import DecodeError

    try:
        proto = messages.TensorProto.FromString(data)
    except DecodeError:
        return
    try:
        assert isinstance(from_proto(proto), np.ndarray)
    except InvalidArgument:
        return


@pytest.mark.parametrize("typed", [False, True], ids=["content", "typed"])
@pytest.mark.parametrize("dtype", NUMERIC, ids=lambda d: d.name)
def test_tensorflow_reads_what_we_write(dtype: Any, typed: bool) -> None:
    import tensorflow as tf
    from tensorflow.core.framework import tensor_pb2

    for shape in ((2, 3), (), (0, 4)):
        array = _sample(dtype, shape)
        theirs = tf.make_ndarray(tensor_pb2.TensorProto.FromString(to_proto(array, typed=typed).SerializeToString()))
        assert theirs.shape == shape
        assert _bits(theirs) == _bits(array)


@pytest.mark.parametrize("dtype", NUMERIC, ids=lambda d: d.name)
def test_we_read_what_tensorflow_writes(dtype: Any) -> None:
    import tensorflow as tf

    for shape in ((2, 3), (), (1,), (0, 4)):
        array = _sample(dtype, shape)
        proto = tf.make_tensor_proto(array)
        ours = from_proto(messages.TensorProto.FromString(proto.SerializeToString()))
        assert ours.shape == shape
        assert _bits(ours) == _bits(array)
        # A proto of TensorFlow's own class is as good.
        assert _bits(from_proto(proto)) == _bits(array)


def test_strings_go_both_ways() -> None:
    import tensorflow as tf
    from tensorflow.core.framework import tensor_pb2

    array = np.array([[b"a", b"\x00\xff"], ["dög".encode(), b""]], dtype=object)
    theirs = tf.make_ndarray(tensor_pb2.TensorProto.FromString(to_proto(array).SerializeToString()))
    assert theirs.tolist() == array.tolist()
    ours = from_proto(tf.make_tensor_proto(array.tolist()))
    assert ours.tolist() == array.tolist()
    assert ours.shape == (2, 2)


def test_strings_in_tensor_content_are_read_as_the_runtime_writes_them() -> None:
    """The C++ runtime packs a constant string tensor: all lengths, then all bytes."""
    values = [b"a", b"", b"x" * 300]
    content = b"\x01\x00\xac\x02" + b"".join(values)
    proto = messages.TensorProto(dtype=7, tensor_content=content)
    proto.tensor_shape.dim.add().size = 3
    assert from_proto(proto).tolist() == values


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\x01", "ends inside the lengths of 2 strings"),
        (b"\x01\x01a", "has 3 bytes; its 2 strings need 4"),
        (b"\x01\x01abc", "has 5 bytes; its 2 strings need 4"),
        (b"\xff" * 12, "ends inside the lengths"),
    ],
)
def test_damaged_string_content_is_refused(content: bytes, message: str) -> None:
    proto = messages.TensorProto(dtype=7, tensor_content=content)
    proto.tensor_shape.dim.add().size = 2
    with pytest.raises(InvalidArgument, match=message):
        from_proto(proto)


def _proto(dtype: int, dims: list[int], **fields: Any) -> Any:
    proto = messages.TensorProto(dtype=dtype, **fields)
    for size in dims:
        proto.tensor_shape.dim.add().size = size
    return proto


@pytest.mark.parametrize(
    ("proto", "expected"),
    [
        (_proto(1, [3], float_val=[1, 2]), [1, 2, 2]),
        (_proto(1, [2], float_val=[1, 2, 3]), [1, 2]),
        (_proto(1, [2]), [0, 0]),
        (_proto(1, [], float_val=[5]), 5),
        (_proto(7, [3], string_val=[b"a"]), [b"a", b"a", b"a"]),
        (_proto(7, [2]), [b"", b""]),
        (_proto(4, [2], int_val=[255, 256]), [255, 0]),
        (_proto(6, [1], int_val=[200]), [-56]),
        (_proto(19, [2], half_val=[15360, -32768]), [1.0, -0.0]),
        (_proto(14, [1], half_val=[16256]), [1.0]),
        (_proto(8, [2], scomplex_val=[1, 2, 3]), [1 + 2j, 1 + 2j]),
        (_proto(10, [2], bool_val=[True]), [True, True]),
    ],
)
def test_typed_fields_are_filled_up_and_cut_as_tensorflow_does(proto: Any, expected: Any) -> None:
    assert from_proto(proto).tolist() == expected


def test_without_a_rank_a_tensor_is_a_scalar() -> None:
    proto = messages.TensorProto(dtype=3, int_val=[4])
    assert from_proto(proto).shape == ()
    proto.tensor_shape.unknown_rank = True
    assert from_proto(proto).tolist() == 4


@pytest.mark.parametrize(
    ("proto", "message"),
    [
        (messages.TensorProto(), "without a dtype"),
        (_proto(20, [1]), "DataType 20 cannot be carried"),
        (_proto(101, [1]), "DataType 101 cannot be carried"),
        (_proto(1, [-1]), "negative dimension"),
        (_proto(1, [2], tensor_content=b"1234567"), r"7 bytes; float32\[2\] needs 8"),
        (_proto(1, [2**62, 2**62]), "too large"),
        (_proto(1, [2**50], float_val=[1.0]), "too large"),
        (_proto(7, [2**50]), "too large"),
    ],
)
def test_what_is_no_tensor_is_refused(proto: Any, message: str) -> None:
    with pytest.raises(InvalidArgument, match=message):
        from_proto(proto)


@pytest.mark.parametrize(
    ("value", "dtype", "shape"),
    [
        (1.5, "float32", ()),
        ([1, 2], "int64", (2,)),
        ([[1.0], [2]], "float32", (2, 1)),
        (np.float64(1), "float64", ()),
        (np.zeros(2), "float64", (2,)),
        (True, "bool", ()),
        ("dög", "object", ()),
        (["a", b"b"], "object", (2,)),
        ([["a\0"], [b"\0\0"]], "object", (2, 1)),
        (np.array(["a", "bc"]), "object", (2,)),
        (np.array([b"a"]), "object", (1,)),
        ([], "float32", (0,)),
        (np.zeros(1, ml_dtypes.bfloat16), "bfloat16", (1,)),
    ],
)
def test_python_values_become_arrays(value: Any, dtype: str, shape: tuple[int, ...]) -> None:
    array = to_array(value)
    assert (str(array.dtype), array.shape) == (dtype, shape)


def test_zero_bytes_at_the_end_of_strings_are_kept() -> None:
    for value in ([b"a\0", b"\0"], b"a\0", "a\0", [["a\0"]], np.array([b"a\0"], dtype=object)):
        assert to_array(value).reshape(-1)[0] == b"a\0"


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([[1], [1, 2]], "ragged"),
        ([None], "element 0 of a string tensor is NoneType"),
        (["a", 1], "element 1 of a string tensor is int"),
        ({"a": 1}, "element 0 of a string tensor is dict"),
        (np.array(["2020-01-01"], "datetime64[D]"), "an array of datetime64"),
        (np.zeros(1, np.longdouble), "an array of"),
    ],
)
def test_what_no_tensor_carries_is_refused(value: Any, message: str) -> None:
    with pytest.raises(InvalidArgument, match=message):
        to_proto(value)


@pytest.mark.parametrize("typed", [False, True])
@pytest.mark.parametrize("dtype", [">f4", ">i2", ">f2", ">c8", ">u8"])
def test_the_byte_order_of_an_array_does_not_matter(dtype: str, typed: bool) -> None:
    array = np.array([1, 2, 3]).astype(dtype)
    found = from_proto(to_proto(array, typed=typed))
    np.testing.assert_array_equal(found, array)
    assert found.dtype.isnative


def test_arrays_that_are_not_contiguous_are_encoded() -> None:
    array = np.arange(12, dtype=np.int32).reshape(3, 4)[::2, ::-1]
    np.testing.assert_array_equal(from_proto(to_proto(array)), array)
    np.testing.assert_array_equal(from_proto(to_proto(array.T, typed=True)), array.T)
