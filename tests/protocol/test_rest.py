"""The JSON of REST predict: against a slow, obvious reference, and text by text."""

from __future__ import annotations

import base64
import contextlib
import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from moxserve.errors import InvalidArgument, Unimplemented
from moxserve.protocol.float_text import write_floats
from moxserve.protocol.json_values import error_json, loads
from moxserve.protocol.rest import parse_predict, write_predict
from moxserve.types import Signature, TensorSpec, dtype_by_name


def signature(**inputs: str) -> Signature:
    specs = {alias: TensorSpec(alias, dtype_by_name(dtype), None) for alias, dtype in inputs.items()}
    return Signature("serving_default", "tensorflow/serving/predict", specs, {})


def read(body: str | bytes, **inputs: str) -> dict[str, np.ndarray]:
    raw = body.encode() if isinstance(body, str) else body
    return parse_predict(raw).tensors(signature(**inputs))


def refused(body: str | bytes, **inputs: str) -> str:
    with pytest.raises((InvalidArgument, Unimplemented)) as caught:
        read(body, **inputs)
    return caught.value.message


# Round trips

NUMBERS = ["float32", "float64", "int8", "uint8", "int16", "int32", "uint32", "int64", "uint64", "bool"]


@st.composite
def arrays(draw: Any, min_dims: int = 0) -> np.ndarray:
    dtype = draw(st.sampled_from(NUMBERS))
    shape = draw(hnp.array_shapes(min_dims=min_dims, max_dims=3, max_side=4) if min_dims else st.just(()))
    return draw(hnp.arrays(dtype_by_name(dtype).numpy, shape))


@given(arrays(min_dims=1), st.booleans())
def test_what_is_written_reads_back_equal(array, row_format) -> None:
    answer = loads(write_predict({"y": array}, row_format=row_format))
    value = answer["predictions" if row_format else "outputs"]
    key = "instances" if row_format else "inputs"
    dtype = array.dtype.name
    again = read(json.dumps({key: value}), x=dtype)["x"]
    assert again.dtype == array.dtype
    np.testing.assert_array_equal(again, array)


@given(arrays())
def test_scalars(array) -> None:
    value = loads(write_predict({"y": array}, row_format=False))["outputs"]
    np.testing.assert_array_equal(read(json.dumps({"inputs": value}), x=array.dtype.name)["x"], array)


@given(st.lists(st.binary(max_size=8), min_size=1, max_size=5), st.booleans())
def test_bytes_round_trip(values, row_format) -> None:
    array = np.array(values, object)
    answer = loads(write_predict({"y_bytes": array}, row_format=row_format))
    key, out = ("instances", "predictions") if row_format else ("inputs", "outputs")
    assert read(json.dumps({key: answer[out]}), x="string")["x"].tolist() == values


@pytest.mark.slow
@given(st.lists(st.text(max_size=8), min_size=1, max_size=5))
def test_text_round_trip(values) -> None:
    values = [v.encode("utf-8", "replace").decode() for v in values]
    array = np.array([v.encode() for v in values], object)
    assert json.loads(write_predict({"y": array}, row_format=True))["predictions"] == values
    assert read(json.dumps({"instances": values}), x="string")["x"].tolist() == array.tolist()


def reference_float(value: Any) -> str:
    """The rule, one value at a time: 6 digits if they read back equal, else 9 or 17; `.0` for whole numbers."""
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "Infinity" if value > 0 else "-Infinity"
    kind = type(value)
    text = f"{value:.6g}"
    if kind(text) != value:
        text = f"{value:.9g}" if kind is np.float32 else f"{value:.17g}"
    return text if "." in text or "e" in text else text + ".0"


@given(st.one_of(hnp.arrays(np.float32, st.integers(1, 20)), hnp.arrays(np.float64, st.integers(1, 20))))
def test_numbers_are_formatted_by_the_rule(array) -> None:
    text = write_predict({"y": array}, row_format=True).decode()
    inner = text.removeprefix('{\n    "predictions": [').removesuffix("\n    ]\n}")
    assert inner.split(", ") == [reference_float(v) for v in array]


SPECIAL = np.float32(
    [0, -0.0, 1, 9e6, 3e-5, 1e-4, 9.9999e-5, 0.1, 1 / 3, 16777217, 123456, 1234567, 1e-45, 999999.9, 999999.94, 9999999,
     99999996, 1e9, 1e10, 123456789012, np.nan, np.inf, -np.inf, -1.5, -1e-10, 1e22, 1e21, 9.99999e21, 1e-17, 1e38]
)  # fmt: skip


@st.composite
def many_floats(draw: Any) -> np.ndarray:
    """Enough float32 to be formatted together: random bits, decimals, halves (ties), special ones."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    count = draw(st.sampled_from([256, 300, 9000]))
    scale = 10.0 ** rng.integers(-18, 24, count)
    return draw(st.sampled_from([
        rng.integers(0, 2**32, count, np.uint32).view(np.float32),
        (rng.random(count) * scale).astype(np.float32),
        rng.dirichlet(np.full(count, 0.05)).astype(np.float32),
        (rng.integers(-(10**7), 10**7, count) / 10.0 ** rng.integers(0, 12, count)).astype(np.float32),
        (rng.integers(0, 2**24, count) * 2.0 ** rng.integers(-30, 10, count)).astype(np.float32),
        np.nextafter(rng.choice(SPECIAL, count), np.float32(rng.integers(-2, 2)), dtype=np.float32),
        rng.choice(SPECIAL, count),
    ]))  # fmt: skip


@given(many_floats())
@settings(max_examples=60, deadline=None)
def test_many_numbers_are_formatted_by_the_rule(array) -> None:
    assert write_floats(array) == [reference_float(v) for v in array]


@pytest.mark.parametrize("shape", [(1, 500), (500, 1), (3, 5, 7, 11), (2, 1, 9001), (20000,), (9000, 2, 1)])
def test_many_numbers_in_nested_lists(shape) -> None:
    array = np.random.default_rng(1).random(shape, np.float32)
    rows = [json.loads(row) for row in write_floats(array)]
    np.testing.assert_array_equal(np.array(rows, np.float32), array)
    again = read(write_predict({"y": array}, row_format=True).replace(b"predictions", b"instances"), x="float32")["x"]
    np.testing.assert_array_equal(again, array)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (3, "3.0"), (9e6, "9e+06"), (3e-5, "3e-05"), (0.1, "0.1"), (1 / 3, "0.333333343"), (16777217, "16777216.0"),
        (-0.0, "-0.0"), (123456, "123456.0"), (1234567, "1234567.0"), (1e-45, "1.4013e-45"),
    ],
)  # fmt: skip
def test_float_examples(value, text) -> None:
    assert text in write_predict({"y": np.float32([value])}, row_format=True).decode()


# Reading


def test_row_and_column_formats() -> None:
    rows = '{"instances": [{"a": [1, 2], "b": 3}, {"a": [4, 5], "b": 6}]}'
    columns = '{"inputs": {"a": [[1, 2], [4, 5]], "b": [3, 6], "extra": null}}'
    for body in (rows, columns):
        found = read(body, a="float32", b="int64")
        assert found["a"].dtype == np.float32
        assert found["a"].tolist() == [[1, 2], [4, 5]]
        assert found["b"].tolist() == [3, 6]
    assert parse_predict(rows.encode()).row_format
    assert not parse_predict(columns.encode()).row_format


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ('{"instances": [1, 2]}', [1, 2]),
        ('{"instances": [[1], [2]]}', [[1], [2]]),
        ('{"instances": [{"x": 1}, {"x": 2}]}', [1, 2]),
        ('{"inputs": [1, 2]}', [1, 2]),
        ('{"inputs": {"x": [1, 2]}}', [1, 2]),
        ('{"inputs": 5}', 5),
        ('{"inputs": []}', []),
        ('{"inputs": [[], []]}', [[], []]),
        ('{"instances": [1], "other": {"deep": [1, {}]}}', [1]),
        ('{"instances": [1]} and more', [1]),
        (' \n{"instances": [1]}', [1]),
    ],
)
def test_one_input(body, expected) -> None:
    assert read(body, x="int32")["x"].tolist() == expected
    assert read(body, x="int32")["x"].shape == np.array(expected).shape


def test_numbers_json_does_not_have() -> None:
    found = read('{"instances": [NaN, Infinity, -Infinity, 1e39, -1e39, 1e-60, 7]}', x="float32")["x"]
    np.testing.assert_array_equal(found, np.float32([np.nan, np.inf, -np.inf, np.inf, -np.inf, 0, 7]))


@pytest.mark.parametrize("tail", ["", " more", " " * 5000])
def test_of_keys_given_twice_the_first_counts(tail) -> None:
    body = '{"inputs": [1, 2], "signature_name": "a", "inputs": [3], "signature_name": "b"}' + tail
    assert read(body, x="int32")["x"].tolist() == [1, 2]
    assert parse_predict(body.encode()).signature_name == "a"
    assert refused('{"inputs": 18446744073709551616000, "inputs": [3]}', x="int32").startswith("JSON Value: 184")
    # A name that is said twice at different places is none of them.
    assert read('{"inputs": {"inputs": [NaN]}}', inputs="float32")["inputs"].shape == (1,)
    assert read('{"inputs": {"inputs": ["\\"inputs\\""]}}', inputs="string")["inputs"].tolist() == [b'"inputs"']


def test_signature_name() -> None:
    assert parse_predict(b'{"signature_name": "s", "inputs": 1}').signature_name == "s"
    assert parse_predict(b'{"inputs": 1}').signature_name == ""


@pytest.mark.parametrize("padding", ["", "="])
def test_b64(padding) -> None:
    text = base64.b64encode(b"\xff\x00").decode().rstrip("=") + padding
    found = read(json.dumps({"instances": [{"b64": text}, "plain"]}), x="string")["x"]
    assert found.tolist() == [b"\xff\x00", b"plain"]
    assert read(json.dumps({"inputs": {"b64": text}}), x="string")["x"].item() == b"\xff\x00"
    assert read(json.dumps({"instances": [{"x": {"b64": text}}]}), x="string")["x"].tolist() == [b"\xff\x00"]


def test_text_that_is_not_utf8_is_passed_on() -> None:
    assert read(b'{"instances": ["a\xff"]}', x="string")["x"].tolist() == [b"a\xff"]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("", "JSON Parse error: The document is empty"),
        ("  \n", "JSON Parse error: The document is empty"),
        ("{", "JSON Parse error: Missing a name for object member. at offset: 1"),
        ("nope", "JSON Parse error: Invalid value. at offset: 0"),
        ('{"a" 1}', "JSON Parse error: Missing a colon after a name of object member. at offset: 5"),
        ("[1, 2]", "JSON Value: [1, 2] Is not object"),
        ("{}", "Missing 'inputs' or 'instances' key"),
        ('{"instances": 1, "inputs": 1}', 'JSON Value: {"instances": 1, "inputs": 1} Not formatted correctly '
         "expecting only one of 'inputs' or 'instances' keys to exist "),
        ('{"signature_name": 5}', 'JSON Value: {"signature_name": 5} not formatted correctly. '
         "'signature_name' key must be a string value."),
        ('{"instances": 5}', """JSON Value: {"instances": 5} Expecting 'instances' to be an list/array"""),
        ('{"instances": []}', """JSON Value: {"instances": []} No values in 'instances' array"""),
        ('{"instances": [{"x": 1}, 2]}', "Expecting object but got list at item 1 of input list"),
        ('{"instances": [1, {"x": 2}]}', "Expecting value/list but got object at item 1 of input list"),
        ('{"instances": [{"x": 1}, {}]}',
         "Failed to process element: 1 of 'instances' list. JSON object: {} keys must be equal to: x"),
        ('{"instances": [{"x": 1, "y": 2}]}', "Failed to process element: 0 key: y of 'instances' list. Error: "
         "INVALID_ARGUMENT: JSON object: does not have named input: y"),
        ('{"instances": [{"x": [1]}, {"x": [1, 2]}]}', "Failed to process element: 1 key: x of 'instances' list. "
         "Error: INVALID_ARGUMENT: Expecting tensor size: 1 but got: 2"),
        ('{"instances": [[[1, 2, 3], [1, 2, 3]], [[1, 2], [1, 2], [1, 2]]]}', "Failed to process element: 1 of "
         "'instances' list. Error: INVALID_ARGUMENT: Expecting shape [2,3] but got: [3,2]"),
        ('{"inputs": {"y": 1}}', "Missing named input: x in 'inputs' object."),
        ('{"inputs": [[1, 2], [3]]}', "Encountered list at unexpected size: 1 at level: 1 expected size: 2"),
        ('{"inputs": [1, [2]]}', "Encountered list at unexpected level: 1 expected < 1"),
        ('{"inputs": [[1], 2]}',
         "JSON Value: 2 found at incorrect level: 1 in the JSON DOM. Expected at level: 2"),
        ('{"inputs": null}', "JSON Value: null Type: Null is not of expected type: float"),
        ('{"inputs": [1, true]}', "JSON Value: true Type: True is not of expected type: float"),
        ('{"inputs": "a"}', 'JSON Value: "a" Type: String is not of expected type: float'),
        ('{"inputs": [{}]}', "JSON Value: {} Type: Object is not of expected type: float"),
    ],
)  # fmt: skip
def test_error_texts(body, message) -> None:
    assert refused(body, x="float32") == message


@pytest.mark.parametrize(
    ("dtype", "value", "kind"),
    [
        ("int32", "1.0", "Number"), ("int32", "2147483648", "Number"), ("int8", "128", "Number"),
        ("uint8", "-1", "Number"), ("int64", "9223372036854775808", "Number"), ("uint64", "-1", "Number"),
        ("uint64", "18446744073709551616", "Number"), ("int64", "1e3", "Number"), ("int32", "true", "True"),
        ("bool", "1", "Number"), ("bool", '"true"', "String"), ("string", "1", "Number"), ("string", "null", "Null"),
    ],
)  # fmt: skip
def test_values_of_the_wrong_type(dtype, value, kind) -> None:
    message = refused(f'{{"inputs": [{value}]}}', x=dtype)
    assert f"Type: {kind} is not of expected type: {dtype}" in message


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "uint16", "complex64"])
def test_dtypes_without_json_form(dtype) -> None:
    name = "half" if dtype == "float16" else dtype
    with pytest.raises(Unimplemented, match=f"Conversion of JSON Value: 1 to type: {name}"):
        read('{"inputs": [1]}', x=dtype)
    with pytest.raises(InvalidArgument, match=f"Failed to write JSON value for tensor type: {name}"):
        write_predict({"y": np.zeros(1, dtype_by_name(dtype).numpy)}, row_format=True)


def test_several_inputs_need_names() -> None:
    assert refused('{"instances": [1]}', a="int32", b="int32").startswith("instances is a plain list")
    assert refused('{"inputs": [1]}', a="int32", b="int32").startswith("inputs is a plain value/list")
    assert refused('{"inputs": [1]}') == "Failed to get input map for signature: DEFAULT"


def test_bad_b64() -> None:
    assert refused('{"inputs": {"b64": "%"}}', x="string") == "Unable to base64 decode"
    assert refused('{"inputs": [{"b64": 1}]}', x="string").endswith("not formatted correctly for base64 data")


@pytest.mark.parametrize("opening", ["[", '{"inputs":[', '{"inputs":'])
def test_half_a_million_brackets(opening) -> None:
    assert "nested too deep" in refused(opening + "[" * 500_000, x="float32")


def test_big_documents_are_not_echoed() -> None:
    body = json.dumps({"instances": [1], "inputs": ["a" * 100_000]})
    assert len(refused(body, x="float32")) < 1000


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(body) -> None:
    with contextlib.suppress(InvalidArgument, Unimplemented):
        parse_predict(body).tensors(signature(x="float32"))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4) | st.just({"b64": "AA"}),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(["x", "y", "b64"]), inner, max_size=2),
    max_leaves=12,
)


@given(json_values, st.sampled_from(["instances", "inputs"]), st.sampled_from([*NUMBERS, "string"]))
def test_any_json_is_read_or_refused(value, key, dtype) -> None:
    body = json.dumps({key: value}).encode()
    try:
        found = parse_predict(body).tensors(signature(x=dtype))["x"]
    except (InvalidArgument, Unimplemented):
        return
    plain = value["x"] if isinstance(value, dict) and "x" in value else value
    if key == "instances" and isinstance(plain[0], dict) and "x" in plain[0]:
        plain = [row["x"] for row in plain]
    assert found.shape == np.array(json.loads(json.dumps(plain).replace('{"b64": "AA"}', '""')), object).shape


# Writing


def test_layout() -> None:
    rows = write_predict({"y": np.float32([3, 3.5, 4])}, row_format=True)
    assert rows == b'{\n    "predictions": [3.0, 3.5, 4.0\n    ]\n}'
    several = {"a": np.int32([[1, 2], [3, 4]]), "b": np.array([b"x", b"y"], object)}
    assert json.loads(write_predict(several, row_format=True)) == {
        "predictions": [{"a": [1, 2], "b": "x"}, {"a": [3, 4], "b": "y"}]
    }
    assert json.loads(write_predict(several, row_format=False)) == {"outputs": {"a": [[1, 2], [3, 4]], "b": ["x", "y"]}}
    assert json.loads(write_predict({"y": np.bool_(True)[()].reshape(())}, row_format=False)) == {"outputs": True}
    empty = np.zeros((2, 0, 3), np.float32)
    assert json.loads(write_predict({"y": empty}, row_format=True)) == {"predictions": [[], []]}


def test_text_that_is_not_utf8_is_written_as_b64() -> None:
    answer = json.loads(write_predict({"y": np.array([b"ok", b"\xff"], object)}, row_format=True))
    assert answer == {"predictions": ["ok", {"b64": "/w=="}]}


def test_rows_must_match() -> None:
    for outputs, message in (
        ({}, "Cannot convert empty tensor map to JSON"),
        ({"y": np.float32(1).reshape(())}, "Tensor name: y has no shape information "),
        ({"a": np.zeros(2, "i4"), "b": np.zeros(3, "i4")},
         "Tensor name: b has inconsistent batch size: 3 expecting: 2"),
    ):  # fmt: skip
        with pytest.raises(InvalidArgument) as caught:
            write_predict(outputs, row_format=True)
        assert caught.value.message == message


def test_errors() -> None:
    assert error_json('say "no"') == b'{\n    "error": "say \\"no\\""\n}'
    assert error_json("\udcff") == b'{\n    "error": "\\udcff"\n}'
