"""tf.Examples, held against TensorFlow's parser."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moxserve.errors import DataError, InvalidArgument
from moxserve.protocol.examples import make_example, parse_example

VALUES = st.one_of(
    st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=5),
    st.lists(st.floats(width=32, allow_nan=False), min_size=1, max_size=5),
    st.lists(st.binary(max_size=20), min_size=1, max_size=5),
)


@pytest.mark.slow
@given(st.dictionaries(st.text(max_size=10), VALUES, max_size=4))
@settings(max_examples=150, deadline=None)
def test_what_is_made_is_parsed(features: dict[str, Any]) -> None:
    found = parse_example(make_example(features).SerializeToString())
    assert found.keys() == features.keys()
    for name, values in features.items():
        assert found[name].tolist() == values


def test_tensorflow_parses_what_we_make() -> None:
    import tensorflow as tf

    example = make_example(
        {
            "pixels": np.arange(6, dtype=np.uint8).reshape(2, 3),
            "flag": True,
            "weight": 0.5,
            "half": np.array([1.5], ml_dtypes.bfloat16),
            "name": "dög",
            "parts": [b"a", b"\x00"],
        }
    )
    theirs = tf.train.Example.FromString(example.SerializeToString()).features.feature
    assert list(theirs["pixels"].int64_list.value) == [0, 1, 2, 3, 4, 5]
    assert list(theirs["flag"].int64_list.value) == [1]
    assert list(theirs["weight"].float_list.value) == [0.5]
    assert list(theirs["half"].float_list.value) == [1.5]
    assert list(theirs["name"].bytes_list.value) == ["dög".encode()]
    assert list(theirs["parts"].bytes_list.value) == [b"a", b"\x00"]


def test_we_parse_what_tensorflow_makes() -> None:
    import tensorflow as tf

    feature = {
        "i": tf.train.Feature(int64_list=tf.train.Int64List(value=[-1, 2])),
        "f": tf.train.Feature(float_list=tf.train.FloatList(value=[0.1])),
        "b": tf.train.Feature(bytes_list=tf.train.BytesList(value=[b"x"])),
        "none": tf.train.Feature(),
    }
    found = parse_example(tf.train.Example(features=tf.train.Features(feature=feature)).SerializeToString())
    assert {name: (str(a.dtype), a.tolist()) for name, a in found.items()} == {
        "i": ("int64", [-1, 2]),
        "f": ("float32", [np.float32(0.1)]),
        "b": ("object", [b"x"]),
        "none": ("float32", []),
    }


@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        (1 + 2j, DataError, "feature 'x': complex128 is neither integer, float, text nor bytes"),
        (np.uint64(2**63), DataError, "feature 'x': 9223372036854775808 is larger than an int64 list can hold"),
        ([[1], [2, 3]], InvalidArgument, "ragged"),
        (None, InvalidArgument, "NoneType"),
    ],
)
def test_what_no_feature_holds_is_refused(value: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make_example({"x": value})


def test_bytes_that_are_no_example_are_refused() -> None:
    with pytest.raises(DataError, match=r"5 bytes are no serialized tf.Example"):
        parse_example(b"\xff\xff\xff\xff\xff")
