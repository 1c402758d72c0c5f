r"""Datapoints as bytes: what the serializers write. Reading them runs no code, unlike pickle.

    value   := tag content            all numbers little-endian, lengths and counts uint64
    None, False, True                 no content
    int                               int64; or a length and the two's complement
    float                             float64
    str, bytes                        length, UTF-8 or the bytes
    list, tuple, dict                 count, the values; of a dict key, value, key, value
    array, NumPy number               dtype, shape, the elements in C order
    array of objects                  shape, the values

    record  := "\xc1MX1" value
    dtype   := uint16 length, as `numpy.dtype.str` has it, or the list of fields as in `.npy` files
    shape   := uint8 number of axes, the axes

A subclass, such as a named tuple, is read back as the type that it is derived from.
"""

from __future__ import annotations

import ast
import math
import re
import struct
from collections.abc import Callable
from typing import Any

import numpy as np

from moxserve.errors import DataError

__all__ = ["MAGIC", "dumps", "loads"]

# The first byte begins neither a pickle nor a msgpack value, which older files of tensorpack hold.
MAGIC = b"\xc1MX1"
_DEEPEST = 60
_NONE, _FALSE, _TRUE, _INT, _BIG_INT, _FLOAT, _STR, _BYTES, _LIST, _TUPLE, _DICT, _ARRAY, _NUMBER, _OBJECTS = range(14)
_U64 = struct.Struct("<Q")
_SIMPLE_DTYPE = re.compile(r"[<>|][biufcSUV]\d{1,9}|[<>][mM]8(\[\d{0,9}[a-zA-Zμ]{1,2}\])?")
_TAGS = [bytes([i]) for i in range(14)]


class _Writer:
    """Collects the parts of a record; arrays are not copied until they are joined."""

    def __init__(self) -> None:
        self.parts: list[Any] = [MAGIC]

    def write(self, value: Any, depth: int = 0) -> None:
        """Add a value."""
        if depth > _DEEPEST:
            raise DataError(f"values are nested more than {_DEEPEST} levels deep, or hold themselves")
        # NumPy's numbers first: a float64 is a float, too.
        if isinstance(value, np.generic):
            self._array(_NUMBER, np.asarray(value))
        elif isinstance(value, np.ndarray):
            self._array(_ARRAY, value, depth)
        elif value is None or isinstance(value, bool):
            self.parts.append(_TAGS[_NONE if value is None else _TRUE if value else _FALSE])
        elif isinstance(value, (int, float)):
            self._number(value)
        elif isinstance(value, str):
            self._bytes(_STR, value.encode("utf-8", "surrogatepass"))
        elif isinstance(value, (bytes, bytearray)):
            self._bytes(_BYTES, bytes(value))
        else:
            self._container(value, depth)

    def _number(self, value: int | float) -> None:
        if isinstance(value, float):
            self.parts.append(_TAGS[_FLOAT] + struct.pack("<d", value))
        elif -(2**63) <= value < 2**63:
            self.parts.append(_TAGS[_INT] + struct.pack("<q", value))
        else:
            self._bytes(_BIG_INT, value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True))

    def _bytes(self, tag: int, data: bytes) -> None:
        self.parts += (_TAGS[tag], _U64.pack(len(data)), data)

    def _container(self, value: Any, depth: int) -> None:
        if isinstance(value, dict):
            self.parts += (_TAGS[_DICT], _U64.pack(len(value)))
            items: Any = (part for item in value.items() for part in item)
        elif isinstance(value, (list, tuple)):
            self.parts += (_TAGS[_LIST if isinstance(value, list) else _TUPLE], _U64.pack(len(value)))
            items = value
        else:
            raise DataError(
                f"cannot write a value of type {type(value).__name__}",
                hint="expected None, bool, int, float, str, bytes, list, tuple, dict or NumPy arrays;"
                " map it to these first, with MapData",
            )
        for item in items:
            self.write(item, depth + 1)

    def _array(self, tag: int, array: np.ndarray, depth: int = 0) -> None:
        if isinstance(array, np.ma.MaskedArray):
            raise DataError(
                "cannot write a masked array: its mask would be lost",
                hint="write its `data` and its `mask` as two components, or `filled()`",
            )
        shape = struct.pack(f"<B{array.ndim}Q", array.ndim, *array.shape)
        if array.dtype == object:
            self.parts += (_TAGS[_OBJECTS], shape)
            for item in array.flat:
                self.write(item, depth + 1)
            return
        dtype = _dtype_text(array.dtype).encode()
        self.parts += (_TAGS[tag], struct.pack("<H", len(dtype)), dtype, shape)
        # Plain arrays give their memory as it is; others, such as dates, have to be copied.
        plain = array.flags.c_contiguous and array.dtype.kind in "biufc"
        self.parts.append(array.data if plain else array.tobytes())


def _dtype_text(dtype: np.dtype[Any]) -> str:
    text = dtype.str if dtype.names is None else repr(np.lib.format.dtype_to_descr(dtype))
    # 2: a type of another package, such as bfloat16, whose text says something else.
    if dtype.isbuiltin == 2 or (
        dtype.names is None and not (_SIMPLE_DTYPE.fullmatch(text) and np.dtype(text) == dtype)
    ):
        raise DataError(f"cannot write arrays of dtype {dtype}", hint="convert them with astype first")
    if dtype.hasobject or len(text) > 0xFFFF:
        raise DataError(f"cannot write arrays of dtype {dtype}: it has fields of Python objects, or too many fields")
    return text


def _dtype(text: str) -> np.dtype[Any]:
    if _SIMPLE_DTYPE.fullmatch(text):
        return np.dtype(text)
    if not text.startswith("[("):
        raise ValueError(f"unknown dtype {text!r}")
    dtype: np.dtype[Any] = np.lib.format.descr_to_dtype(ast.literal_eval(text))
    if dtype.hasobject:
        raise ValueError(f"a dtype with objects: {text!r}")
    return dtype


class _Reader:
    """Reads the values of a record; never more than its bytes."""

    def __init__(self, data: Any, start: int) -> None:
        self._data = memoryview(data)
        self.at = start

    @property
    def left(self) -> int:
        """How many bytes are left."""
        return len(self._data) - self.at

    def read(self, depth: int = 0) -> Any:
        """Read the next value."""
        if depth > _DEEPEST:
            raise ValueError(f"nested more than {_DEEPEST} levels deep")
        (tag,) = self._take(1)
        if tag <= _TRUE:
            return (None, False, True)[tag]
        if tag in _SCALARS:
            return _SCALARS[tag](self)
        if tag in (_LIST, _TUPLE):
            items = [self.read(depth + 1) for _ in range(self._count())]
            return items if tag == _LIST else tuple(items)
        if tag == _DICT:
            return {self.read(depth + 1): self.read(depth + 1) for _ in range(self._count())}
        if tag in (_ARRAY, _NUMBER):
            return self._array(tag)
        if tag == _OBJECTS:
            return self._objects(depth)
        raise ValueError(f"unknown tag {tag}")

    def _take(self, size: int) -> memoryview:
        if size > self.left:
            raise ValueError(f"cut off: {self.left} bytes are left of {size}")
        self.at += size
        return self._data[self.at - size : self.at]

    def _count(self) -> int:
        (count,) = _U64.unpack(self._take(8))
        # Each value takes a byte at least: no count makes us wait, or take memory.
        if count > self.left:
            raise ValueError(f"cut off: {self.left} bytes are left for {count} values")
        return int(count)

    def bytes(self) -> bytes:
        """Read a length and as many bytes."""
        return bytes(self._take(self._count()))

    def unpack(self, layout: str) -> tuple[Any, ...]:
        """Read numbers."""
        return struct.unpack(layout, self._take(struct.calcsize(layout)))

    def _shape(self) -> tuple[tuple[int, ...], int]:
        (rank,) = self._take(1)
        shape = self.unpack(f"<{rank}Q")
        return shape, math.prod(shape)

    def _array(self, tag: int) -> Any:
        (length,) = self.unpack("<H")
        dtype = _dtype(str(self._take(length), "utf-8"))
        shape, size = self._shape()
        data = self._take(size * dtype.itemsize)
        array: np.ndarray = np.empty(shape, dtype)
        if data.nbytes:
            # A copy: the array can be written to, and does not keep the whole record in memory.
            array[...] = np.frombuffer(data, dtype).reshape(shape)
        return array if tag == _ARRAY else array[()]

    def _objects(self, depth: int) -> np.ndarray:
        shape, size = self._shape()
        if size > self.left:
            raise ValueError(f"cut off: {self.left} bytes are left for {size} values")
        array = np.empty(size, object)
        for i in range(size):
            array[i] = self.read(depth + 1)
        return array.reshape(shape)


_SCALARS: dict[int, Callable[[_Reader], Any]] = {
    _INT: lambda r: r.unpack("<q")[0],
    _BIG_INT: lambda r: int.from_bytes(r.bytes(), "little", signed=True),
    _FLOAT: lambda r: r.unpack("<d")[0],
    _STR: lambda r: r.bytes().decode("utf-8", "surrogatepass"),
    _BYTES: lambda r: r.bytes(),
}


def dumps(value: Any) -> bytes:
    """Encode a datapoint.

    Args:
        value: None, bools, numbers, str, bytes, NumPy arrays and numbers, and lists, tuples and dicts of these.

    Raises:
        DataError: it holds something else.
    """
    writer = _Writer()
    writer.write(value)
    return b"".join(writer.parts)


def loads(data: Any, allow_pickle: bool = False) -> Any:
    """Decode what `dumps` gave.

    Args:
        data: bytes, or a view of them; nothing of the result points into it.
        allow_pickle: read pickles, too, which files of tensorpack hold. A pickle can run any code: only for files that
            you trust.

    Raises:
        DataError: the bytes are damaged, or something else.
    """
    head = bytes(data[:4])
    if head == MAGIC:
        reader = _Reader(data, len(MAGIC))
        try:
            value = reader.read()
            if reader.left:
                raise ValueError(f"{reader.left} bytes follow its end")
        except (ValueError, TypeError, OverflowError, SyntaxError, RecursionError, MemoryError, struct.error) as error:
            raise DataError(f"a record of {len(data)} bytes is damaged: {error}") from None
        return value
    if head[:1] != b"\x80":
        raise DataError(f"expected a record that begins with {MAGIC!r}, got {len(data)} bytes that begin with {head!r}")
    if not allow_pickle:
        raise DataError(
            "a record is a pickle, as tensorpack writes it; reading it may run any code",
            hint="give allow_pickle=True if you trust whoever wrote the file",
        )
    return _unpickle(data)


def _unpickle(data: Any) -> Any:
    import pickle

    try:
        return pickle.loads(data)
    except Exception as error:
        # Whatever the code in a pickle raises.
        raise DataError(f"a record is a pickle that cannot be read: {type(error).__name__}: {error}") from error
