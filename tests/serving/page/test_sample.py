"""Sample requests are read by the server's own parser, with each dtype and shape."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from moxserve.protocol import rest
from moxserve.serving.rest.page.sample import sample_request
from moxserve.types import DTYPES, Signature, TensorSpec, dtype_by_name


def signature(*inputs: tuple[str, str, Any], name: str = "serving_default") -> Signature:
    specs = {alias: TensorSpec(alias, dtype_by_name(dtype), shape) for alias, dtype, shape in inputs}
    return Signature(name, "tensorflow/serving/predict", specs, {})


def expanded(value: Any) -> Any:
    """What the page's script does before it sends."""
    if isinstance(value, list):
        return [expanded(item) for item in value]
    if isinstance(value, dict):
        if "$fill" in value:
            return np.full(value["shape"], value["$fill"]).tolist()
        return {key: expanded(item) for key, item in value.items()}
    return value


def read(sig: Signature) -> dict[str, Any]:
    body = json.dumps(expanded(json.loads(sample_request(sig).text))).encode()
    return dict(rest.parse_predict(body).tensors(sig))


@pytest.mark.parametrize("dtype", [dtype.name for dtype in DTYPES])
def test_every_dtype_that_rest_carries(dtype) -> None:
    sig = signature(("x", dtype, (None, 2)))
    sample = sample_request(sig)
    if not sample.text:
        assert f"JSON cannot carry {dtype}" in sample.note
        return
    array = read(sig)["x"]
    assert array.shape == (1, 2)
    assert array.dtype == dtype_by_name(dtype).numpy


@pytest.mark.parametrize(
    ("inputs", "shapes"),
    [
        ([("x", "float32", (None,))], {"x": (1,)}),
        ([("x", "float32", None)], {"x": (1,)}),
        ([("x", "float32", ())], {"x": ()}),
        ([("x", "uint8", (None, 224, 224, 3))], {"x": (1, 224, 224, 3)}),
        ([("x", "string", (None, 100))], {"x": (1, 100)}),
        ([("x", "float32", (4, 2))], {"x": (4, 2)}),
        ([("x", "float32", (None, None, 3))], {"x": (1, 1, 3)}),
        ([("a", "int64", (None, 3)), ("b", "bool", (None,))], {"a": (1, 3), "b": (1,)}),
        ([("a", "int64", (4,)), ("b", "bool", (None,))], {"a": (4,), "b": (1,)}),
        ([("a", "int64", ()), ("b", "float32", (None, 200))], {"a": (), "b": (1, 200)}),
    ],
)
def test_shapes(inputs, shapes) -> None:
    assert {alias: array.shape for alias, array in read(signature(*inputs)).items()} == shapes


def test_what_a_person_reads() -> None:
    assert sample_request(signature(("x", "float32", (None,)))).text == '{\n  "instances": [\n    0.5\n  ]\n}'
    sample = sample_request(signature(("x", "float32", (None, 28, 28)), name="digits"))
    assert sample.text.splitlines()[1:4] == [
        '  "signature_name": "digits",', '  "instances": [', '    {"$fill": 0.5, "shape": [28, 28]}',
    ]  # fmt: skip
    assert sample.note == "Each $fill is sent as numbers of that shape."
    assert sample_request(signature()).text == ""
