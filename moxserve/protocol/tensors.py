"""TensorProto and NumPy arrays, by TensorFlow's own rules.

Reading (TensorFlow's framework/tensor.cc):
  * dtype must be set; no shape, or an unknown rank, means a scalar; negative dimensions are refused;
  * `tensor_content`, when not empty, must have exactly the right size and beats the typed fields;
  * typed fields: fewer values than elements repeat the last one, none give zeros or empty strings, surplus is ignored;
  * half and bfloat16 travel as 16-bit patterns in `half_val`; small integers in `int_val` and wrap.
A few bytes may thus ask for a tensor of any size. One value that stands for all is not copied: the array is a read-only
view of that value with strides of 0. And no more than 64 MiB are filled up; beyond that the values must be sent.
Writing: raw little-endian `tensor_content` by default (fast both ways), or the typed fields, which some clients read
directly. Strings are arrays of `bytes` objects.
"""

from __future__ import annotations

import math
from itertools import accumulate, pairwise
from typing import Any

import numpy as np

from moxserve.errors import InvalidArgument
from moxserve.protocol import messages
from moxserve.types import DType, dtype_by_enum, dtype_of

__all__ = ["filled", "from_proto", "to_array", "to_proto"]

_MAX_FILLED_BYTES = 64 << 20
# What a string takes in TensorFlow's memory, however short it is.
_STRING_BYTES = 24


def to_array(value: Any) -> np.ndarray:
    """Turn a Python value into an array that a TensorProto can carry.

    Lists of floats become float32, as TensorFlow clients expect; text becomes UTF-8 bytes in an object array.

    Raises:
        InvalidArgument: the value is ragged, mixes text with numbers, or is of a type that no tensor carries.
    """
    try:
        array = np.asarray(value)
        if array.dtype.kind in "SU" and not isinstance(value, np.ndarray):
            # NumPy's fixed-width strings drop zero bytes at the end, and turn numbers beside text into text.
            array = np.asarray(value, dtype=object)
    except ValueError as error:
        raise InvalidArgument(f"the value is ragged: {error}; expected lists of equal length at each level") from None
    if array.dtype == np.float64 and not isinstance(value, (np.ndarray, np.generic)):
        array = array.astype(np.float32)
    if dtype_of(array).name == "string":
        return _as_bytes(array)
    return array


def _as_bytes(array: np.ndarray) -> np.ndarray:
    flat = np.empty(array.size, dtype=object)
    for i, item in enumerate(array.reshape(-1)):
        if isinstance(item, str):
            flat[i] = item.encode()
        elif isinstance(item, bytes):
            flat[i] = bytes(item)
        else:
            raise InvalidArgument(
                f"element {i} of a string tensor is {type(item).__name__} ({item!r:.80}); expected str or bytes"
            )
    return flat.reshape(array.shape)


def to_proto(value: Any, *, typed: bool = False) -> Any:
    """Encode an array as a TensorProto of `messages`.

    Args:
        value: array, or anything that `to_array` takes.
        typed: fill the typed repeated field (`float_val` …) instead of `tensor_content`.

    Raises:
        InvalidArgument: the value has no tensor type.
    """
    array = to_array(value)
    dtype = dtype_of(array)
    proto = messages.TensorProto(dtype=dtype.enum)
    dims = proto.tensor_shape.dim
    for size in array.shape:
        dims.add().size = size
    if dtype.name == "string":
        proto.string_val.extend(array.reshape(-1).tolist())
    elif typed:
        getattr(proto, dtype.proto_field).extend(_typed_values(array, dtype))
    else:
        proto.tensor_content = np.ascontiguousarray(array, dtype=dtype.numpy.newbyteorder("<")).tobytes()
    return proto


def _typed_values(array: np.ndarray, dtype: DType) -> Any:
    flat = np.ascontiguousarray(array, dtype=dtype.numpy).reshape(-1)
    if dtype.proto_field == "half_val":
        return flat.view(np.uint16).tolist()
    if dtype.name in ("complex64", "complex128"):
        return flat.view(flat.real.dtype).tolist()
    return flat.tolist()


def from_proto(proto: Any) -> np.ndarray:
    """Decode a TensorProto; the array may share memory with it and may be read-only.

    Args:
        proto: a TensorProto of any pool.

    Returns:
        An array of the proto's shape; strings as an object array of bytes. Not contiguous where one value stands for
        all.

    Raises:
        InvalidArgument: dtype unset or unknown, negative dimension, content of the wrong size, or a shape far larger
            than the values given for it.
    """
    if proto.dtype == 0:
        raise InvalidArgument("a tensor without a dtype")
    dtype = dtype_by_enum(proto.dtype)
    shape = _shape_of(proto)
    try:
        return _values(proto, dtype, shape)
    except (ValueError, OverflowError) as error:
        # NumPy takes fewer dimensions than a message, and no product of them beyond 64 bits.
        raise InvalidArgument(f"a tensor of shape {str(list(shape))[:80]} cannot be held: {error}") from None


def _values(proto: Any, dtype: DType, shape: tuple[int, ...]) -> np.ndarray:
    content = proto.tensor_content
    if dtype.name == "string":
        return filled(_strings(_split_strings(content, math.prod(shape)) if content else proto.string_val), shape)
    if not content:
        return filled(_typed(getattr(proto, dtype.proto_field), dtype), shape)
    expected = math.prod(shape) * dtype.numpy.itemsize
    if len(content) != expected:
        raise InvalidArgument(f"tensor_content has {len(content)} bytes; {dtype.name}{list(shape)} needs {expected}")
    return np.frombuffer(content, dtype=dtype.numpy).reshape(shape)


def _shape_of(proto: Any) -> tuple[int, ...]:
    if proto.tensor_shape.unknown_rank:
        return ()
    shape = tuple(d.size for d in proto.tensor_shape.dim)
    if any(d < 0 for d in shape):
        raise InvalidArgument(f"a tensor of shape {list(shape)} has a negative dimension")
    return shape


def _typed(values: Any, dtype: DType) -> np.ndarray:
    """Return the values of a typed field."""
    if dtype.proto_field == "half_val":
        return np.array(values, dtype=np.int32).astype(np.uint16).view(dtype.numpy)
    if dtype.name in ("complex64", "complex128"):
        pairs = np.array(values, dtype=np.float32 if dtype.name == "complex64" else np.float64)
        return pairs[: pairs.size // 2 * 2].view(dtype.numpy)
    if dtype.proto_field == "int_val":
        return np.array(values, dtype=np.int32).astype(dtype.numpy)
    return np.array(values, dtype=dtype.numpy)


def _strings(values: Any) -> np.ndarray:
    flat = np.empty(len(values), dtype=object)
    flat[:] = list(values)
    return flat


def filled(found: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Give the values of a typed field their shape: too few are filled up, too many are cut off.

    Args:
        found: 1-D values.
        shape: what the tensor says; no dimension is negative.

    Returns:
        An array of the shape; a read-only view with strides of 0 where one value stands for all.

    Raises:
        InvalidArgument: far more values are missing than anyone would leave out.
    """
    count = math.prod(shape)
    if found.size >= count:
        return found[:count].reshape(shape)
    itemsize = _STRING_BYTES if found.dtype == object else found.dtype.itemsize
    if count * itemsize > _MAX_FILLED_BYTES:
        raise InvalidArgument(
            f"a tensor of {count} elements is too large for the {found.size} values that its message holds: filling "
            f"them up would take more than {_MAX_FILLED_BYTES} bytes"
        )
    if found.size > 1:
        return np.concatenate([found, np.repeat(found[-1:], count - found.size)]).reshape(shape)
    if found.size == 0:
        found = np.array([b""], dtype=object) if found.dtype == object else np.zeros(1, found.dtype)
    return np.broadcast_to(found.reshape(()), shape)


def _split_strings(content: bytes, count: int) -> list[bytes]:
    """Read TensorFlow's layout of string content: all lengths as varints, then the bytes."""
    lengths, at = _lengths(content, count)
    if at + sum(lengths) != len(content):
        raise InvalidArgument(f"tensor_content has {len(content)} bytes; its {count} strings need {at + sum(lengths)}")
    ends = list(accumulate(lengths, initial=at))
    return [content[begin:end] for begin, end in pairwise(ends)]


def _lengths(content: bytes, count: int) -> tuple[list[int], int]:
    """Return the lengths and where the bytes after them begin."""
    if count <= len(content) and content[:count].isascii():
        # All of them are varints of one byte.
        return list(content[:count]), count
    lengths, at = [], 0
    for _ in range(count):
        length = shift = 0
        while True:
            if at >= len(content) or shift > 63:
                raise InvalidArgument(f"tensor_content ends inside the lengths of {count} strings")
            byte = content[at]
            at += 1
            length |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                break
        lengths.append(length)
    return lengths, at
