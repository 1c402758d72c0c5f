"""tf.Example messages and Python values.

A feature is a list of int64, of float32 or of bytes. Which one is taken from the value: integers and booleans, floats,
text and bytes.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import ml_dtypes
import numpy as np

from moxserve.errors import DataError, InvalidArgument
from moxserve.protocol import messages
from moxserve.protocol.tensors import to_array
from moxserve.protocol.tfrecord import read_records, write_records

__all__ = [
    "make_example",
    "parse_example",
    "read_examples",
    "serialized_examples",
    "with_context",
    "write_examples",
]

_INT64_MAX = 2**63 - 1


def make_example(features: Mapping[str, Any]) -> Any:
    """Build a tf.Example.

    Args:
        features: name -> scalar, list or array of any shape (flattened in row order).

    Raises:
        DataError: a value is neither number, text nor bytes, or an integer does not fit an int64.
    """
    example = messages.Example()
    for name, value in features.items():
        feature = example.features.feature[name]
        array = to_array(value)
        if array.dtype.kind in "iub":
            feature.int64_list.value.extend(_as_int64(name, array))
        elif array.dtype.kind == "f" or array.dtype == ml_dtypes.bfloat16:
            feature.float_list.value.extend(array.reshape(-1).astype(np.float32).tolist())
        elif array.dtype == object:
            feature.bytes_list.value.extend(array.reshape(-1).tolist())
        else:
            raise DataError(f"feature {name!r}: {array.dtype} is neither integer, float, text nor bytes")
    return example


def _as_int64(name: str, array: np.ndarray) -> list[int]:
    if array.dtype == np.uint64 and array.size and array.max() > _INT64_MAX:
        raise DataError(f"feature {name!r}: {array.max()} is larger than an int64 list can hold ({_INT64_MAX})")
    values: list[int] = array.reshape(-1).astype(np.int64).tolist()
    return values


def parse_example(serialized: bytes) -> dict[str, np.ndarray]:
    """Read a serialized tf.Example.

    Returns:
        name -> 1-D array: int64, float32, or object array of bytes; an empty float32 array for a feature without kind.

    Raises:
        DataError: the bytes are no tf.Example.
    """
    from google.protobuf.message import DecodeError

    try:
        example = messages.Example.FromString(serialized)
    except DecodeError as error:
        raise DataError(f"{len(serialized)} bytes are no serialized tf.Example: {error}") from None
    found: dict[str, np.ndarray] = {}
    for name, feature in example.features.feature.items():
        kind = feature.WhichOneof("kind")
        if kind == "int64_list":
            found[name] = np.array(feature.int64_list.value, dtype=np.int64)
        elif kind == "bytes_list":
            values = np.empty(len(feature.bytes_list.value), dtype=object)
            values[:] = list(feature.bytes_list.value)
            found[name] = values
        else:
            found[name] = np.array(feature.float_list.value if kind else [], dtype=np.float32)
    return found


def write_examples(path: str | os.PathLike[str], rows: Iterable[Mapping[str, Any]]) -> int:
    """Write a TFRecord file of tf.Examples, all or nothing. The same rows give the same bytes.

    Args:
        path: the file.
        rows: one mapping a row, as `make_example` takes it.

    Returns:
        How many rows were written.

    Raises:
        DataError: a value cannot be a feature; names the row.
    """
    return write_records(path, map(_serialized, itertools.count(), rows))


def _serialized(number: int, row: Mapping[str, Any]) -> bytes:
    try:
        serialized: bytes = make_example(row).SerializeToString(deterministic=True)
    except DataError as error:
        raise DataError(f"row {number}: {error.message}") from None
    return serialized


def read_examples(path: str | os.PathLike[str]) -> Iterator[dict[str, np.ndarray]]:
    """Yield the rows of a TFRecord file of tf.Examples, as `parse_example` gives them.

    Raises:
        DataError: the file is damaged, or a record is no tf.Example; names the record.
    """
    for number, payload in enumerate(read_records(path)):
        try:
            yield parse_example(payload)
        except DataError as error:
            raise DataError(f"{os.fspath(path)}: record {number}: {error.message}") from None


def serialized_examples(message: Any) -> np.ndarray:
    """Return the examples of an Input message as a 1-D object array of bytes, each with the context, if there is one.

    Raises:
        InvalidArgument: there is no example.
    """
    kind = message.WhichOneof("kind")
    listed = getattr(message, kind) if kind else None
    if listed is None or not listed.examples:
        raise InvalidArgument("Input is empty.")
    return with_context(listed.examples, listed.context if kind == "example_list_with_context" else None)


def with_context(examples: Iterable[Any], context: Any = None) -> np.ndarray:
    """Serialize tf.Example messages into a 1-D object array of bytes.

    Args:
        examples: the messages.
        context: a tf.Example whose features all of them have; of a feature that both have, the example's counts.
    """
    # Protobuf merges messages whose bytes follow each other; the last value of a map key wins.
    before = b"" if context is None else context.SerializeToString()
    serialized = [before + example.SerializeToString() for example in examples]
    array = np.empty(len(serialized), dtype=object)
    array[:] = serialized
    return array
