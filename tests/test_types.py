"""The dtype table, shapes, signatures and model references."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from moxserve.errors import InvalidArgument
from moxserve.protocol import messages
from moxserve.types import DTYPES, ModelRef, Signature, TensorSpec, dtype_by_enum, dtype_by_name, dtype_of


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: d.name)
def test_the_dtype_table_agrees_with_tensorflow(dtype: Any) -> None:
    import tensorflow as tf

    theirs = tf.dtypes.as_dtype(dtype.enum)
    assert theirs.name == dtype.name
    assert np.dtype(theirs.as_numpy_dtype) == dtype.numpy
    assert messages.enum_value("tensorflow.DataType", dtype.enum_name) == dtype.enum
    assert dtype.proto_field in messages.TensorProto.DESCRIPTOR.fields_by_name
    assert dtype_by_enum(dtype.enum) is dtype_by_name(dtype.name) is dtype


@pytest.mark.parametrize(
    ("array", "name"),
    [
        (np.zeros(1, ">f4"), "float32"),
        (np.array(["text"]), "string"),
        (np.array([b"bytes"]), "string"),
        (np.array([b"bytes"], dtype=object), "string"),
        (np.zeros(1, bool), "bool"),
    ],
)
def test_the_dtype_of_an_array(array: np.ndarray, name: str) -> None:
    assert dtype_of(array).name == name


def test_dtypes_that_are_not_known_are_refused() -> None:
    with pytest.raises(InvalidArgument, match=r"DataType 20 cannot be carried in a tensor"):
        dtype_by_enum(20)
    with pytest.raises(InvalidArgument, match=r"unknown dtype 'float'; known: .*float32"):
        dtype_by_name("float")
    with pytest.raises(InvalidArgument, match=r"an array of datetime64\[D\] cannot be sent"):
        dtype_of(np.zeros(1, "datetime64[D]"))


def test_specs_and_signatures_read_well() -> None:
    images = TensorSpec("images", dtype_by_name("uint8"), (None, 28, 28, 1), "images:0")
    anything = TensorSpec("x", dtype_by_name("string"), None)
    scalar = TensorSpec("s", dtype_by_name("int64"), ())
    assert [str(s) for s in (images, anything, scalar)] == ["images: uint8[?, 28, 28, 1]", "x: string[?]", "s: int64[]"]
    signature = Signature("serving_default", "tensorflow/serving/predict", {"images": images}, {"s": scalar})
    assert str(signature) == "serving_default(images: uint8[?, 28, 28, 1]) -> (s: int64[])"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("digits", ModelRef("digits")),
        ("digits:7", ModelRef("digits", version=7)),
        ("digits@stable", ModelRef("digits", label="stable")),
    ],
)
def test_model_references_are_read_and_written(text: str, expected: ModelRef) -> None:
    assert ModelRef.parse(text) == expected
    assert str(expected) == text


@pytest.mark.parametrize("text", ["", ":3", "digits:", "digits:v1", "digits:-1", "@stable", "digits@"])
def test_bad_model_references_are_refused(text: str) -> None:
    with pytest.raises(InvalidArgument, match=r"expected NAME, NAME:VERSION or NAME@LABEL"):
        ModelRef.parse(text)
