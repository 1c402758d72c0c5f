"""Values against signatures, targets, and what a client refuses at once."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from moxserve.client import Client, Retry
from moxserve.client.fit import fit_tensor
from moxserve.client.transport import parse_target
from moxserve.errors import UsageError
from moxserve.types import DTYPES, TensorSpec, dtype_by_name

NUMBERS = [d.name for d in DTYPES if d.name not in ("string", "bool")]


def fit(value, dtype: str, shape=(None,)):
    return fit_tensor(value, TensorSpec("x", dtype_by_name(dtype), shape))


@pytest.mark.parametrize("dtype", NUMBERS)
def test_small_whole_numbers_fit_every_numeric_dtype(dtype) -> None:
    array = fit([0, 1, 100], dtype)
    assert array.dtype == dtype_by_name(dtype).numpy
    assert array.astype(np.complex128).tolist() == [0, 1, 100]


@pytest.mark.parametrize(
    ("value", "dtype"),
    [([256], "uint8"), ([-1], "uint64"), ([2**24 + 1], "float32"), ([2**31], "int32"), ([257], "bfloat16")],
)
def test_whole_numbers_that_would_change_are_refused(value, dtype) -> None:
    with pytest.raises(UsageError, match=f"holds {value[0]}, which {dtype} cannot hold exactly"):
        fit(value, dtype)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32", "float64"])
def test_python_floats_take_any_floating_dtype(dtype) -> None:
    assert fit([0.1], dtype).dtype == dtype_by_name(dtype).numpy


@pytest.mark.parametrize(
    ("value", "dtype", "message"),
    [
        ([0.5], "int32", "holds float64 values; expected int32"),
        ([True], "float32", "holds true/false; expected float32"),
        ([1], "bool", "holds int64 values; expected bool"),
        (["a"], "float32", "is string; expected float32"),
        ([1.0], "string", "is float64; expected string"),
        ([[1, 2], [3]], "int32", "is ragged"),
        ([None], "float32", "is string; expected float32"),
        ([None], "string", "element 0 of a string tensor is NoneType"),
        (np.zeros(1), "float32", "is float64, which float32 cannot hold without loss"),
        (np.zeros(1, np.int64), "int32", "is int64, which int32 cannot hold without loss"),
        (np.zeros(1, np.int32), "float32", "is int32, which float32 cannot hold without loss"),
        (np.zeros(1, "datetime64[s]"), "int64", "cannot be sent"),
    ],
)
def test_refusals(value, dtype, message) -> None:
    with pytest.raises(UsageError, match=message):
        fit(value, dtype)


@pytest.mark.parametrize(
    ("array", "dtype"),
    [
        (np.arange(3, dtype=np.uint8), "float32"),
        (np.arange(3, dtype=np.int32), "int64"),
        (np.arange(3, dtype=np.int32), "float64"),
        (np.arange(3, dtype=np.float32), "float64"),
        (np.arange(3, dtype=ml_dtypes.bfloat16), "float32"),
        (np.arange(3, dtype=">f4"), "float32"),
    ],
)
def test_arrays_widen_without_loss(array, dtype) -> None:
    fitted = fit(array, dtype)
    assert fitted.dtype == dtype_by_name(dtype).numpy
    assert fitted.dtype.isnative
    assert fitted.astype(np.float64).tolist() == [0, 1, 2]


def test_right_arrays_are_not_copied() -> None:
    array = np.zeros(3, np.float32)
    assert fit(array, "float32") is array


@pytest.mark.parametrize(
    ("shape", "wanted", "hint"),
    [
        ((8, 8, 1), (None, 8, 8, 1), "array\\[None\\]"),
        ((5, 8, 8), (None, 8, 8, 1), r"array\[\.\.\., None\]"),
        ((5, 7, 8, 1), (None, 8, 8, 1), "check=False"),
    ],
)
def test_shape_hints(shape, wanted, hint) -> None:
    with pytest.raises(UsageError, match=hint):
        fit(np.zeros(shape, np.uint8), "uint8", wanted)


def test_free_rank_takes_any_shape() -> None:
    assert fit(np.zeros((1, 2, 3), np.uint8), "uint8", None).shape == (1, 2, 3)


@pytest.mark.parametrize(
    ("text", "kind", "shown"),
    [
        ("localhost:8500", "grpc", "grpc://localhost:8500"),
        ("grpc://[::1]:8500", "grpc", "grpc://[::1]:8500"),
        ("grpcs://models.example:443", "grpc", "grpcs://models.example:443"),
        ("unix:/run/m.sock", "grpc", "unix:/run/m.sock"),
        ("http://h:8501/", "rest", "http://h:8501"),
        ("https://h/prefix", "rest", "https://h/prefix"),
    ],
)
def test_targets(text, kind, shown) -> None:
    target = parse_target(text)
    assert (target.kind, str(target)) == (kind, shown)


def test_directories_are_targets(tmp_path) -> None:
    assert parse_target(str(tmp_path)).kind == "local"
    assert parse_target(tmp_path).kind == "local"
    assert parse_target(f"local:{tmp_path}").kind == "local"


@pytest.mark.parametrize(
    "text", ["", "localhost", "ftp://h:1", "h:99999", "h:0", ":8500", "local:/none", "/none", "grpc://h"]
)
def test_wrong_targets(text) -> None:
    with pytest.raises(UsageError, match=r"expected grpc://HOST:PORT|no such directory"):
        Client(text)


def test_wrong_settings() -> None:
    with pytest.raises(UsageError, match=r"timeout_s=0"):
        Client("h:1", timeout_s=0)
    with pytest.raises(UsageError, match="attempts=-1"):
        Retry(attempts=-1)
    with Client("h:1") as client:
        with pytest.raises(UsageError, match="expected NAME, NAME:VERSION or NAME@LABEL"):
            client.status("m:latest")
        with pytest.raises(UsageError, match=r"outputs='y': expected a list"):
            client.predict("m", [1.0], outputs="y")
