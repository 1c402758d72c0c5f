"""Protobuf's bytes without protobuf's objects: tags, varints and tensors, written as copies of memory.

Protobuf's Python API takes the numbers of a tensor one by one, 30 to 150 ns each, and copies a large tensor three times
on the way to the socket. What is written here is what the C++ library would write, field by field in order of number.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

from moxserve.protocol import messages
from moxserve.protocol.tensors import to_array
from moxserve.types import DTYPES, DType, dtype_of

__all__ = ["packed_varints", "sized", "tag", "tensor_head", "tensor_payload", "varint"]

TENSOR_CONTENT = 4
_STRING_VAL = 8
_LENGTH_DELIMITED = 2
_FIELDS = {
    "float_val": 5, "double_val": 6, "int_val": 7, "string_val": _STRING_VAL, "scomplex_val": 9, "int64_val": 10,
    "bool_val": 11, "dcomplex_val": 12, "half_val": 13, "uint32_val": 16, "uint64_val": 17,
}  # fmt: skip
# Those whose values take the same bytes on the wire as in memory.
_AS_IN_MEMORY = frozenset(("float_val", "double_val", "scomplex_val", "dcomplex_val", "bool_val"))
_BY_NUMPY = {d.numpy: d for d in DTYPES if d.name != "string"}
# Below, protobuf's 50 ns a number are less than NumPy's dozen calls for all of them.
_FEW = 400
_LARGE_BYTES = 100_000
# The largest size that raises glibc's limit is 32 MiB with its header.
_REUSED_BYTES = 32 * 1024 * 1024 - 65536


def varint(number: int) -> bytes:
    """Encode a number of 0 or more."""
    if number < 0x80:
        return _ONE_BYTE[number]
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


_ONE_BYTE = [bytes([number]) for number in range(128)]


def tag(field: int, size: int) -> bytes:
    """Return the head of a field of bytes, text, packed numbers or a message: its number and its size in bytes."""
    return varint(field << 3 | _LENGTH_DELIMITED) + varint(size)


def sized(field: int, data: Any) -> bytes:
    """Return a field of bytes, text, packed numbers or a message."""
    return b"".join((tag(field, len(data)), data))


def packed_varints(values: np.ndarray) -> bytes:
    """Encode integers one after the other; negative ones take ten bytes, as protobuf's signed types have it.

    Args:
        values: 1-D, of any integer dtype.
    """
    if values.size < _FEW:
        return _few_varints(values)
    wide = values.astype(np.int64).view(np.uint64) if values.dtype.kind == "i" else values
    largest = int(wide.max())
    if largest < 0x80:
        return wide.astype(np.uint8).tobytes()
    if largest < 1 << 32:
        wide = wide.astype(np.uint16 if largest < 1 << 16 else np.uint32)
    # One row for each byte that a number may have, one column a number; `used` tells which of them it has.
    longest = (largest.bit_length() + 6) // 7
    rows = np.empty((longest, wide.size), np.uint8)
    used = np.ones((longest, wide.size), np.uint8)
    for k in range(longest):
        if k:
            np.not_equal(wide, 0, out=used[k].view(np.bool_))
        np.bitwise_and(wide, 0x7F, out=rows[k], casting="unsafe")
        wide = wide >> 7
    rows[:-1] |= used[1:] << 7
    return rows.T[used.T.view(np.bool_)].tobytes()


def _few_varints(values: np.ndarray) -> bytes:
    numbers = values.tolist()
    if not numbers or (min(numbers) >= 0 and max(numbers) < 0x80):
        return bytes(numbers)
    field: bytes = messages.TensorProto(int64_val=values.astype(np.int64).tolist()).SerializeToString()
    # Without its tag, a byte, and its size, of which 14 bits are enough here.
    return field[2 if len(field) - 2 < 0x80 else 3 :]


def tensor_head(enum: int, shape: tuple[int, ...], field: int, size: int) -> bytes:
    """Return a serialized TensorProto up to its content.

    Args:
        enum: number in TensorFlow's DataType enum.
        shape: of the tensor.
        field: number of the field with the values, `TENSOR_CONTENT` or a typed one; 0 when the content has its own
            tags.
        size: of the content in bytes; no field is opened for none.
    """
    proto = messages.TensorProto(dtype=enum)
    # Named even when empty: that is how a scalar is told from a tensor of unknown rank.
    proto.tensor_shape.SetInParent()
    for length in shape:
        proto.tensor_shape.dim.add().size = length
    head: bytes = proto.SerializeToString()
    return head + tag(field, size) if field and size else head


def tensor_payload(array: np.ndarray, *, typed: bool) -> tuple[int, int, Any]:
    """Return the content of a TensorProto.

    Args:
        array: of a dtype that a tensor carries; strings as an object array of bytes or text.
        typed: for the typed field, such as `float_val`, instead of `tensor_content`.

    Returns:
        The number in TensorFlow's DataType enum; the number of the field, 0 when the content has its own tags; and the
        content, bytes or the array's own memory.

    Raises:
        InvalidArgument: no tensor has such elements.
    """
    dtype = _BY_NUMPY.get(array.dtype)
    if dtype is None:
        dtype = dtype_of(array)
        if dtype.name == "string":
            return dtype.enum, *_string_payload(array, typed)
        array = array.astype(dtype.numpy)
    if not typed:
        return dtype.enum, TENSOR_CONTENT, _memory(array)
    return dtype.enum, _FIELDS[dtype.proto_field], _typed_payload(array, dtype)


def _typed_payload(array: np.ndarray, dtype: DType) -> Any:
    if dtype.proto_field in _AS_IN_MEMORY:
        return _memory(array)
    if dtype.proto_field == "half_val":
        array = np.ascontiguousarray(array).view(np.uint16)
    return packed_varints(array.reshape(-1))


def _memory(array: np.ndarray) -> Any:
    """Return the bytes of an array in row order, little-endian; of a large one its own memory."""
    if array.nbytes < _LARGE_BYTES:
        return array.tobytes()
    keep_large_buffers()
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


def _string_payload(array: np.ndarray, typed: bool) -> tuple[int, bytes]:
    values: list[bytes] = array.reshape(-1).tolist()
    if array.dtype != object or set(map(type, values)) - {bytes}:
        values = to_array(array).reshape(-1).tolist()
    if typed:
        content: bytes = messages.TensorProto(string_val=values).SerializeToString()
        return 0, content
    # TensorFlow's own layout: all lengths, then all bytes.
    lengths = np.fromiter(map(len, values), np.int64, len(values))
    return TENSOR_CONTENT, packed_varints(lengths) + b"".join(values)


@cache
def keep_large_buffers() -> None:
    """Have the C library reuse the memory of large messages instead of returning it after each one.

    glibc maps every allocation over 128 KiB anew, and the kernel then clears each of its pages, which cost a third of a
    request of 600 KB. Freeing one larger block raises that limit for good; its pages are never touched, so it is free.
    """
    np.empty(_REUSED_BYTES, np.uint8)
