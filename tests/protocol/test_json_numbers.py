"""Large bodies of numbers: the short way against the long one, and what it must leave to it."""

from __future__ import annotations

import json
import random
import tracemalloc
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from moxserve.errors import InvalidArgument, Unimplemented
from moxserve.protocol.json_numbers import LARGE_BYTES, NumberArray, loads_numbers
from moxserve.protocol.json_values import loads, read_object
from moxserve.protocol.rest import PredictBody, parse_predict
from moxserve.types import DTYPES as ALL_DTYPES
from moxserve.types import Signature, TensorSpec, dtype_by_name

DTYPES = [d.name for d in ALL_DTYPES if d.name not in ("complex64", "complex128")]
PIECES = [b"", b"[", b"]", b",", b"1", b"-", b'"', b"{", b"}", b".", b"e", b"\\"]
PAD = b" " * LARGE_BYTES


def padded(body: bytes) -> bytes:
    """A body of the same meaning that is large, and numbers as far as samples can tell."""
    return body[:-1] + PAD + body[-1:]


def outcome(body: PredictBody, **inputs: str) -> Any:
    specs = {alias: TensorSpec(alias, dtype_by_name(dtype), None) for alias, dtype in inputs.items()}
    try:
        arrays = body.tensors(Signature("s", "", specs, {}))
    except (InvalidArgument, Unimplemented) as error:
        return type(error), error.message
    return {
        alias: (str(a.dtype), a.shape, a.tolist() if a.dtype == object else a.tobytes()) for alias, a in arrays.items()
    }


def short(body: bytes, **inputs: str) -> Any:
    return outcome(parse_predict(body), **inputs)


def long(body: bytes, **inputs: str) -> Any:
    name, document = read_object(body)
    return outcome(PredictBody(name, "instances" in document, document), **inputs)


def plain(value: Any) -> Any:
    if isinstance(value, NumberArray):
        return plain(value.values.tolist())
    if isinstance(value, list):
        return [plain(item) for item in value]
    return {k: plain(v) for k, v in value.items()} if isinstance(value, dict) else value


# Documents

numbers = st.one_of(
    st.integers(-300, 300), st.integers(-(2**63) - 1, 2**64 + 1), st.floats(allow_nan=False, allow_infinity=False),
    st.sampled_from([-0.0, 1e300, 1e-320, 2**53 + 1, 2**63 + 2**39 + 1, 16777217, 0.1, 1.0]),
)  # fmt: skip
shapes = hnp.array_shapes(min_dims=1, max_dims=4, min_side=1, max_side=4)


@st.composite
def nested(draw: Any, elements: Any = numbers) -> Any:
    """Nested lists of equal length, sometimes with a flaw."""
    shape = draw(shapes)
    size = int(np.prod(shape))
    flat = draw(st.lists(elements, min_size=size, max_size=size))
    holder = np.empty(size, object)
    holder[:] = flat
    value = holder.reshape(shape).tolist()
    if draw(st.integers(0, 3)) == 0:
        place = value
        while isinstance(place[0], list) and draw(st.booleans()):
            place = draw(st.sampled_from(place))
        flaw = draw(st.sampled_from(["drop", "add", "wrap", "swap"]))
        at = draw(st.integers(0, len(place) - 1))
        if flaw == "drop":
            del place[at]
        elif flaw == "add":
            place.insert(at, draw(st.one_of(elements, st.just([]), st.just([1]), st.none(), st.just("a,b]["))))
        elif flaw == "wrap":
            place[at] = [place[at]]
        else:
            place[at] = draw(st.one_of(st.booleans(), st.none(), st.text(max_size=3), st.just({"b64": "AA=="})))
    return value


texts = st.sampled_from(["s", "", "[1,2]", '{"instances":', "a:b", "dög"])
values = st.one_of(nested(), nested(st.integers(0, 255)), nested(st.floats(0, 1, width=32)), numbers)
rows = st.lists(st.fixed_dictionaries({"x": values}, optional={"y": values, "é": numbers}), min_size=1, max_size=4)
documents = st.one_of(
    st.fixed_dictionaries({"instances": st.one_of(values, rows)}, optional={"signature_name": texts, "other": values}),
    st.fixed_dictionaries({"inputs": st.one_of(values, st.fixed_dictionaries({"x": values}, optional={"y": values}))}),
    st.fixed_dictionaries({"inputs": values, "instances": values}),
    st.dictionaries(texts, values, max_size=2),
)
writers = st.sampled_from([{}, {"separators": (",", ":")}, {"indent": 1}])


@pytest.mark.slow
@given(documents, writers, st.sampled_from(DTYPES), st.booleans())
@settings(max_examples=1500, deadline=None)
def test_both_ways_give_the_same(document: Any, writer: Any, dtype: str, two: bool) -> None:
    inputs = {"x": dtype, "y": "float32"} if two else {"x": dtype}
    body = padded(json.dumps(document, **writer).encode())
    assert short(body, **inputs) == long(body, **inputs)


@pytest.mark.slow
@given(documents, writers)
@settings(max_examples=500, deadline=None)
def test_what_is_read_is_the_document(document: Any, writer: Any) -> None:
    body = padded(json.dumps(document, ensure_ascii=False, **writer).encode())
    found = loads_numbers(body)
    if found is not None:
        assert json.dumps(plain(found)) == json.dumps(plain_numbers(loads(body)))


def plain_numbers(value: Any) -> Any:
    """Give lists the one element type that their array has: integers beside floats become floats."""
    if isinstance(value, dict):
        return {k: plain_numbers(v) for k, v in value.items()}
    if not isinstance(value, list):
        return value
    leaves: list[Any] = []

    def visit(part: Any) -> None:
        for item in part:
            visit(item) if isinstance(item, list) else leaves.append(item)

    visit(value)
    if any(type(leaf) not in (int, float) for leaf in leaves):
        return [plain_numbers(item) for item in value]
    whole = all(type(leaf) is int and -(2**63) <= leaf < 2**63 for leaf in leaves)

    def cast(part: Any) -> Any:
        return [cast(i) if isinstance(i, list) else i if whole else float(i) for i in part]

    return cast(value)


@pytest.mark.slow
@given(documents, st.integers(0, 2**32), st.sampled_from(DTYPES))
@settings(max_examples=800, deadline=None)
def test_damaged_bodies_give_the_same(document: Any, seed: int, dtype: str) -> None:
    body = bytearray(json.dumps(document, separators=(",", ":")).encode())
    rng = random.Random(seed)
    for _ in range(rng.randint(1, 3)):
        at = rng.randrange(len(body) + 1)
        body[at : at + rng.randint(0, 2)] = rng.choice(PIECES)
    # The blanks go in front of the last bracket, wherever it is now.
    data = padded(bytes(body)) if body[-1:] == b"}" else bytes(body) + PAD
    assert refusal_or(short, data, x=dtype) == refusal_or(long, data, x=dtype)


def refusal_or(way: Any, data: bytes, **inputs: str) -> Any:
    try:
        return way(data, **inputs)
    except InvalidArgument as error:
        return error.message


# What it is for


def images(values: np.ndarray, form: str) -> bytes:
    listed = values.tolist()
    document = {
        "rows": {"instances": listed}, "objects": {"instances": [{"x": row} for row in listed]},
        "columns": {"signature_name": "s[,]", "inputs": {"x": listed}}, "bare": {"inputs": listed},
    }[form]  # fmt: skip
    return json.dumps(document).encode()


@pytest.mark.parametrize("form", ["rows", "objects", "columns", "bare"])
@pytest.mark.parametrize("dtype", ["float32", "uint8", "int64", "float64"])
def test_large_bodies_take_the_short_way(form: str, dtype: str) -> None:
    array = np.random.default_rng(3).integers(0, 256, (2, 32, 32, 3))
    array = array / np.float32(255) if dtype.startswith("float") else array
    body = images(array, form)
    assert loads_numbers(body) is not None
    specs = {"x": TensorSpec("x", dtype_by_name(dtype), None)}
    found = parse_predict(body).tensors(Signature("s", "", specs, {}))["x"]
    assert (found.dtype, found.shape) == (np.dtype(dtype), array.shape)
    np.testing.assert_array_equal(found, array.astype(dtype))


def test_several_inputs_with_values_of_other_kinds() -> None:
    array = np.arange(3000, dtype=np.float32).reshape(2, 1500)
    rows = [{"x": row, "id": i, "name": "ab"[i]} for i, row in enumerate(array.tolist())]
    for document in ({"instances": rows}, {"inputs": {"x": array.tolist(), "id": [0, 1], "name": ["a", "b"]}}):
        body = json.dumps(document).encode()
        assert loads_numbers(body) is not None
        found = short(body, x="float32", id="int64", name="string")
        assert found == long(body, x="float32", id="int64", name="string")
        assert found["name"][2] == [b"a", b"b"]


@pytest.mark.parametrize(
    ("inner", "expected"),
    [
        ('{"inputs": [[1,2],[3],[4,5,6]]}', "unexpected size: 1 at level: 1"),
        ('{"inputs": [[1,2,[3,4]]]}', "unexpected level: 2"),
        ('{"inputs": [1,[2]]}', "unexpected level: 1"),
        ('{"inputs": [[1],[],[2,3]]}', "unexpected size: 0 at level: 1"),
        ('{"inputs": [NaN, 1, true]}', "Type: True"),
        ('{"inputs": [1, "2"]}', "Type: String"),
        ('{"signature_name": 1, "inputs": [1]}', "must be a string value"),
        ('{"inputs": [1], "instances": [1]}', "only one of"),
        ('{"outputs": [1]}', "Missing 'inputs' or 'instances' key"),
        ('\ufeff{"inputs": [1]}', "Invalid value. at offset: 0"),
    ],
)
def test_errors_are_those_of_the_long_way(inner: str, expected: str) -> None:
    with pytest.raises(InvalidArgument, match="^.*" + expected):
        parse_predict(padded(inner.encode())).tensors(
            Signature("s", "", {"x": TensorSpec("x", dtype_by_name("float32"), None)}, {})
        )


def test_numbers_that_json_does_not_have_and_bytes_after_the_value() -> None:
    body = padded(b'{"inputs": [NaN, Infinity, 1e999, 1]}')
    assert short(body, x="float32") == long(body, x="float32")
    body = padded(b'{"inputs": [1, 2]}') + b" and more"
    assert short(body, x="int8")["x"][2] == b"\x01\x02"


@pytest.mark.parametrize("opening", ["[", '{"a":', '[[1],"a",'])
def test_deep_nesting_is_left_to_the_long_way(opening: str) -> None:
    body = b'{"inputs": ' + opening.encode() * 900 + b"1" + PAD
    assert loads_numbers(body) is None


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_large_integers_are_rounded_as_by_python(dtype: str) -> None:
    # Rounded to 24 bits at once, some of them would end up elsewhere than by way of 53 bits.
    integers = [2**60 + 2**36 + 1, 2**60 - 2**35 - 1, -(2**62) - 2**38 - 1, 2**63 - 1, -(2**63), 2**53 + 1, 16777217]
    body = padded(json.dumps({"inputs": integers}).encode())
    assert loads_numbers(body)["inputs"].values.dtype == np.int64
    assert short(body, x=dtype) == long(body, x=dtype)


def test_shapes_far_larger_than_their_numbers_take_no_memory() -> None:
    lists = b"[" + b"1," * 30_000 + b"1]" + b",[]" * 30_000
    tracemalloc.start()
    try:
        assert loads_numbers(b'{"inputs": [' + lists + b"]}") is None
        assert tracemalloc.get_traced_memory()[1] < 10_000_000
    finally:
        tracemalloc.stop()


def test_parsers_are_used_again_whatever_is_kept_of_their_documents() -> None:
    kept = [loads_numbers(padded(b'{"inputs": [%d, 2]}' % i)) for i in range(20)]
    assert [document["inputs"].values[0] for document in kept] == list(range(20))
