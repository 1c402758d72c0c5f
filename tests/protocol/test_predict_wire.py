"""Predict requests and answers as bytes: against protobuf's own reading of them, and against TensorFlow's."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from typing import Any

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
from google.protobuf.message import DecodeError
from hypothesis import given, settings
from hypothesis import strategies as st

from moxserve.errors import InvalidArgument
from moxserve.protocol import messages
from moxserve.protocol.predict_wire import (
    read_predict,
    read_predict_response,
    write_predict_request,
    write_predict_response,
)
from moxserve.protocol.tensors import from_proto, to_proto
from moxserve.protocol.wire import packed_varints, tag, varint
from moxserve.types import DTYPES, ModelRef

ENUMS = [d.enum for d in DTYPES]


def bits(array: np.ndarray) -> Any:
    """What two arrays must share to be the same, NaNs and signs of zeros included."""
    values = array.tolist() if array.dtype == object else np.ascontiguousarray(array).tobytes()
    return str(array.dtype), array.shape, values


def by_protobuf(data: bytes) -> Any:
    """What a request means: as protobuf reads it, or None when it is no request."""
    try:
        request = messages.PredictRequest.FromString(data)
    except DecodeError:
        return None
    spec = request.model_spec
    version = spec.version.value if spec.HasField("version") else None
    head = (spec.name, version, spec.version_label or None, spec.signature_name, request.HasField("model_spec"))
    try:
        tensors = {alias: bits(from_proto(proto)) for alias, proto in sorted(request.inputs.items())}
    except InvalidArgument:
        tensors = None
    return *head, tuple(request.output_filter), sorted(request.inputs), tensors


def by_wire(data: bytes) -> Any:
    try:
        m = read_predict(data)
    except InvalidArgument as error:
        return None if "are no PredictRequest" in error.message else error
    try:
        tensors = {alias: bits(array) for alias, array in sorted(m.tensors().items())}
    except InvalidArgument as error:
        tensors = None if error.message.startswith("tensor parsing error: ") else error
    head = (m.model, m.version, m.label, m.signature_name, m.has_spec)
    return *head, m.output_filter, sorted(m.aliases), tensors


# Bytes as protobuf allows them


def sized(field: int, data: bytes) -> bytes:
    return tag(field, len(data)) + data


def number(field: int, value: int) -> bytes:
    return varint(field << 3) + varint(value)


numbers = st.one_of(st.integers(0, 3), st.integers(0, 300), st.integers(0, 2**64 - 1))
unknown = st.one_of(
    st.builds(sized, st.integers(20, 40), st.binary(max_size=5)),
    st.builds(number, st.integers(20, 3000), numbers),
    st.builds(lambda field: varint(field << 3 | 5) + b"abcd", st.integers(20, 40)),
    st.builds(lambda field: varint(field << 3 | 1) + b"abcdefgh", st.integers(20, 40)),
    # A group, with a field in it.
    st.builds(lambda f, v: varint(f << 3 | 3) + number(1, v) + varint(f << 3 | 4), st.integers(20, 40), numbers),
)
dims = st.builds(lambda size: sized(2, number(1, size)), st.integers(0, 4))
shapes = st.one_of(
    st.lists(dims, max_size=3).map(b"".join),
    st.lists(st.one_of(dims, dims, unknown, st.just(number(3, 1)), st.just(sized(2, number(1, 2**64 - 1))))).map(
        b"".join
    ),
)


def packed(width: int) -> st.SearchStrategy[bytes]:
    whole = st.integers(0, 6).flatmap(lambda n: st.binary(min_size=n * width, max_size=n * width))
    return st.one_of(whole, whole, whole, st.binary(max_size=9))


varints = st.lists(st.one_of(st.integers(0, 127), numbers), max_size=5).map(lambda vs: b"".join(map(varint, vs)))
FLOATS = {5: 4, 6: 8, 9: 4, 12: 8}
INTS = (7, 10, 11, 13, 16, 17)
values = st.one_of(
    *[st.builds(sized, st.just(f), packed(w)) for f, w in FLOATS.items()],
    *[st.builds(sized, st.just(f), varints) for f in INTS],
    st.builds(sized, st.just(4), st.one_of(packed(4), st.binary(max_size=12))),
    st.builds(sized, st.just(8), st.binary(max_size=4)),
)
unpacked = st.one_of(
    st.builds(lambda f, v: varint(f << 3 | 5) + v, st.sampled_from([5, 9]), st.binary(min_size=4, max_size=4)),
    st.builds(lambda f, v: varint(f << 3 | 1) + v, st.sampled_from([6, 12]), st.binary(min_size=8, max_size=8)),
    st.builds(number, st.sampled_from(INTS), numbers),
)
dtypes = st.builds(number, st.just(1), st.one_of(st.sampled_from(ENUMS), st.sampled_from(ENUMS), numbers))


@st.composite
def matching(draw: Any) -> bytes:
    """A tensor whose values are in the right field, few or many of them."""
    dtype = draw(st.sampled_from(DTYPES))
    field = messages.TensorProto.DESCRIPTOR.fields_by_name[dtype.proto_field].number
    content = draw(packed(FLOATS[field]) if field in FLOATS else st.binary(max_size=4) if field == 8 else varints)
    parts = [number(1, dtype.enum), sized(2, draw(shapes)), sized(field, content)]
    return b"".join(draw(st.permutations(parts)) if draw(st.booleans()) else parts)


pieces = st.lists(
    st.one_of(dtypes, st.builds(sized, st.just(2), shapes), values, values, unpacked, unknown), max_size=5
)
tensors = st.one_of(matching(), matching(), pieces.map(b"".join), st.binary(max_size=30))
keys = st.one_of(st.sampled_from([b"x", b"y"]), st.text(max_size=3).map(str.encode), st.binary(max_size=3))


@st.composite
def entries(draw: Any) -> bytes:
    parts = [sized(1, draw(keys)), sized(2, draw(tensors))]
    kind = draw(st.integers(0, 9))
    if kind == 0:
        parts = draw(st.permutations(parts))
    elif kind == 1:
        parts = draw(st.lists(st.sampled_from([*parts, sized(2, draw(tensors)), draw(unknown)]), max_size=4))
    return sized(2, b"".join(parts))


spec_parts = st.one_of(
    st.builds(sized, st.just(1), keys), st.builds(lambda v: sized(2, number(1, v)), numbers),
    st.builds(sized, st.just(3), keys), st.builds(sized, st.just(4), keys), unknown,
)  # fmt: skip
specs = st.lists(spec_parts, max_size=4).map(lambda parts: sized(1, b"".join(parts)))
filters = st.builds(sized, st.just(3), keys)
requests = st.lists(st.one_of(specs, entries(), entries(), entries(), filters, unknown), max_size=5).map(b"".join)


@pytest.mark.slow
@given(requests)
@settings(max_examples=1500, deadline=None)
def test_any_request_means_what_protobuf_says(data: bytes) -> None:
    assert by_wire(data) == by_protobuf(data)


def as_response(data: bytes) -> bytes:
    """Swap the numbers of the first two fields, as far as the bytes are such fields."""
    parts, at = [], 0
    while at < len(data):
        swapped = {0x0A: b"\x12", 0x12: b"\x0a"}.get(data[at])
        if swapped is None or at + 1 == len(data) or data[at + 1] > 0x7F:
            return b"".join(parts) + data[at:]
        stop = at + 2 + data[at + 1]
        parts.append(swapped + data[at + 1 : stop])
        at = stop
    return b"".join(parts)


@pytest.mark.slow
@given(requests)
@settings(max_examples=300, deadline=None)
def test_any_answer_means_what_protobuf_says(data: bytes) -> None:
    data = as_response(data)
    try:
        response = messages.PredictResponse.FromString(data)
    except DecodeError:
        with pytest.raises(InvalidArgument, match="are no PredictResponse"):
            read_predict_response(data)
        return
    found = read_predict_response(data)
    spec = response.model_spec
    assert (found.model, found.signature_name) == (spec.name, spec.signature_name)
    assert found.version == (spec.version.value if spec.HasField("version") else None)
    try:
        expected = {alias: bits(from_proto(proto)) for alias, proto in response.outputs.items()}
    except InvalidArgument:
        with pytest.raises(InvalidArgument, match="tensor parsing error"):
            found.tensors()
    else:
        assert {alias: bits(array) for alias, array in found.tensors().items()} == expected


@pytest.mark.slow
@given(requests, st.data())
@settings(max_examples=600, deadline=None)
def test_damaged_requests_mean_what_protobuf_says(data: bytes, draw: st.DataObject) -> None:
    damaged = bytearray(data)
    for _ in range(draw.draw(st.integers(1, 3))):
        at = draw.draw(st.integers(0, len(damaged)))
        damaged[at : at + draw.draw(st.integers(0, 2))] = draw.draw(st.binary(max_size=2))
    assert by_wire(bytes(damaged)) == by_protobuf(bytes(damaged))


@given(entries(), st.integers(1, 30))
@settings(max_examples=200, deadline=None)
def test_requests_that_are_cut_off_are_refused_as_protobuf_does(data: bytes, cut: int) -> None:
    assert by_wire(data[:-cut]) == by_protobuf(data[:-cut])


def test_a_dtype_of_two_bytes_is_not_taken_for_a_shape() -> None:
    tensor = b"\x08\xac\x12\x00" + number(1, 1) + sized(5, b"abcd")
    data = sized(2, sized(1, b"x") + sized(2, tensor))
    assert by_wire(data) == by_protobuf(data)


def test_values_of_the_dtype_that_was_said_first_do_not_count() -> None:
    tensor = number(1, 1) + sized(5, b"abcdefgh") + number(1, 2)
    found = read_predict(sized(2, sized(1, b"x") + sized(2, tensor))).tensors()["x"]
    assert (found.dtype, found.tolist()) == (np.float64, 0.0)


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: d.name)
def test_tensorflow_reads_typed_values_alike(dtype: Any, eager: None) -> None:
    """TensorFlow's own parser, on what its rules leave open: values that are missing or too many."""
    import tensorflow as tf

    @given(st.lists(st.integers(0, 4), max_size=2), st.data())
    @settings(max_examples=25, deadline=None)
    def check(shape: list[int], draw: st.DataObject) -> None:
        proto = messages.TensorProto(dtype=dtype.enum)
        for size in shape:
            proto.tensor_shape.dim.add().size = size
        elements = {
            "string_val": st.binary(max_size=3), "bool_val": st.booleans(), "half_val": st.integers(0, 2**16 - 1),
            "int_val": st.integers(-(2**31), 2**31 - 1), "int64_val": st.integers(-(2**63), 2**63 - 1),
            "uint32_val": st.integers(0, 2**32 - 1), "uint64_val": st.integers(0, 2**64 - 1),
        }.get(dtype.proto_field, st.floats(width=32))  # fmt: skip
        listed = draw.draw(st.lists(elements, max_size=7))
        getattr(proto, dtype.proto_field).extend(listed)
        data = proto.SerializeToString()
        theirs = tf.io.parse_tensor(data, tf.dtypes.as_dtype(dtype.enum)).numpy()
        ours = read_predict(sized(2, sized(1, b"x") + sized(2, data))).tensors()["x"]
        assert bits(ours) == bits(np.array(theirs, dtype=dtype.numpy))

    check()


# Cost


def big_request(typed: bool) -> tuple[np.ndarray, bytes]:
    array = np.random.default_rng(1).random((1, 224, 224, 3), np.float32)
    request = messages.PredictRequest()
    request.model_spec.name = "m"
    request.inputs["x"].CopyFrom(to_proto(array, typed=typed))
    return array, request.SerializeToString()


def least_memory(work: Callable[[], np.ndarray]) -> tuple[int, np.ndarray]:
    """The least of several peaks, since other threads of this process are counted too; and what `work` returned."""
    peaks = []
    for _ in range(3):
        tracemalloc.start()
        try:
            found = work()
            peaks.append(tracemalloc.get_traced_memory()[1])
        finally:
            tracemalloc.stop()
    return min(peaks), found


@pytest.mark.parametrize("typed", [False, True])
def test_large_tensors_are_views_of_the_request(typed: bool) -> None:
    array, data = big_request(typed)
    peak, found = least_memory(lambda: read_predict(data).tensors()["x"])
    np.testing.assert_array_equal(found, array)
    assert not found.flags.writeable
    assert np.shares_memory(found, np.frombuffer(data, np.uint8))
    assert peak < 50_000


def test_one_value_for_a_large_tensor_is_not_copied() -> None:
    tensor = number(1, 1) + sized(2, sized(2, number(1, 4_000_000))) + sized(5, np.float32(7).tobytes())
    data = sized(2, sized(1, b"x") + sized(2, tensor))
    peak, found = least_memory(lambda: read_predict(data).tensors()["x"])
    assert peak < 50_000
    assert found.shape == (4_000_000,)
    assert found.strides == (0,)
    assert found[-1] == 7


@pytest.mark.parametrize("field", [b"", sized(5, b"\0" * 4), sized(5, b"\0" * 8)])
@pytest.mark.parametrize("enum", [1, 7])
def test_a_few_bytes_cannot_ask_for_a_huge_tensor(enum: int, field: bytes) -> None:
    tensor = number(1, enum) + sized(2, sized(2, number(1, 20_000_000))) + field
    with pytest.raises(InvalidArgument, match="tensor parsing error: x: a tensor of 20000000 elements is too large"):
        read_predict(sized(2, sized(1, b"x") + sized(2, tensor))).tensors()


@pytest.mark.parametrize("shape", [[1] * 65, [0, 2**62, 2**62], [2**62, 2**62, 0]])
def test_shapes_that_no_array_has_are_refused(shape: list[int]) -> None:
    tensor = number(1, 1) + sized(2, b"".join(sized(2, number(1, n)) for n in shape)) + sized(5, b"\0" * 4)
    with pytest.raises(InvalidArgument, match="cannot be held"):
        read_predict(sized(2, sized(1, b"x") + sized(2, tensor))).tensors()


# Writing

SHAPES = hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=5)
PLAIN = [d.numpy for d in DTYPES if d.name not in ("string", "bfloat16")]
arrays = st.one_of(
    st.sampled_from(PLAIN).flatmap(lambda dtype: hnp.arrays(dtype, SHAPES)),
    hnp.arrays(object, SHAPES, elements=st.binary(max_size=200), fill=st.nothing()),
)


@pytest.mark.slow
@given(st.dictionaries(st.text(max_size=150), arrays, max_size=3), st.booleans())
@settings(max_examples=400, deadline=None)
def test_answers_are_what_the_messages_read(outputs: dict[str, np.ndarray], typed: bool) -> None:
    data = write_predict_response("m", 3, "serving_default", outputs, typed=typed)
    response = messages.PredictResponse.FromString(data)
    spec = response.model_spec
    assert (spec.name, spec.version.value, spec.signature_name) == ("m", 3, "serving_default")
    assert {a: bits(from_proto(p)) for a, p in response.outputs.items()} == {a: bits(v) for a, v in outputs.items()}
    for proto in response.outputs.values():
        assert not (proto.tensor_content if typed else proto.float_val or proto.string_val or proto.int_val)


@given(st.sampled_from([1, 30, 399, 400, 3000]), st.sampled_from(PLAIN), st.integers(0, 64), st.integers(0, 2**32))
@settings(max_examples=150, deadline=None)
def test_typed_values_of_any_number_and_size(count: int, dtype: Any, width: int, seed: int) -> None:
    raw = np.random.default_rng(seed).integers(0, 2**64, count * 2, np.uint64, endpoint=False)
    kept = raw >> np.uint64(63) if dtype == np.bool_ else raw >> np.uint64(min(63, 64 - width))
    array = kept[:count].astype(dtype) if dtype.kind in "iub" else kept.view(dtype)[:count]
    response = messages.PredictResponse.FromString(write_predict_response("m", 1, "s", {"y": array}))
    assert bits(from_proto(response.outputs["y"])) == bits(array)


@pytest.mark.parametrize("value", [0, 1, 127, 128, 2**14 - 1, 2**14, 2**32 - 1, 2**32, 2**63, 2**64 - 1])
@pytest.mark.parametrize("count", [1, 12, 13, 500])
def test_varints_at_their_limits(value: int, count: int) -> None:
    assert packed_varints(np.full(count, value, np.uint64)) == varint(value) * count


@pytest.mark.parametrize("typed", [True, False])
def test_tensorflow_reads_answers(typed: bool, eager: None) -> None:
    import tensorflow as tf
    from tensorflow.core.framework import tensor_pb2

    array = np.array([b"a", "dög", b"x" * 200, b""], dtype=object).reshape(2, 2)
    data = write_predict_response("m", 1, "s", {"y": array}, typed=typed)
    proto = messages.PredictResponse.FromString(data).outputs["y"].SerializeToString()
    assert tf.io.parse_tensor(proto, tf.string).numpy().tolist() == [[b"a", "dög".encode()], [b"x" * 200, b""]]
    for array in (np.float16([1, -2]), np.int8([-1, 5]), np.arange(6, dtype=np.int32).reshape(2, 3)[:, ::-1]):
        data = write_predict_response("m", 1, "s", {"y": array}, typed=typed)
        theirs = tensor_pb2.TensorProto.FromString(
            messages.PredictResponse.FromString(data).outputs["y"].SerializeToString()
        )
        np.testing.assert_array_equal(tf.make_ndarray(theirs), array)


def test_answers_are_the_same_bytes_whatever_the_order() -> None:
    a, b = np.float32([1]), np.int64([2])
    assert write_predict_response("m", 1, "s", {"a": a, "b": b}) == write_predict_response(
        "m", 1, "s", {"b": b, "a": a}
    )


def test_arrays_of_another_order_or_byte_order() -> None:
    array = np.arange(12, dtype=">f4").reshape(3, 4).T
    for typed in (True, False):
        data = write_predict_response("m", 1, "s", {"y": array}, typed=typed)
        found = from_proto(messages.PredictResponse.FromString(data).outputs["y"])
        np.testing.assert_array_equal(found, array)


def test_what_no_tensor_carries_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="input 'x': an array of datetime64"):
        write_predict_request(ModelRef("m"), "s", {"x": np.zeros(1, "datetime64[s]")})
    with pytest.raises(InvalidArgument, match="element 0 of a string tensor is NoneType"):
        write_predict_response("m", 1, "s", {"y": np.array([None])})
