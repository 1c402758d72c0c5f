"""Large JSON bodies, their nested lists of numbers straight into arrays. No sockets.

`loads` of `json_values` makes a Python object of each number, 30 to 100 ns each, before NumPy takes it over again. Here
simdjson parses the body and hands the numbers over as one block of memory. It flattens nested lists as it does so, and
takes ragged ones: so that no list is looked at one by one, their brackets and commas are compared, in one piece, with
those that lists of equal length would have.

This is a shorter way for bodies that are as they should be. For anything else (NaN, text in between, ragged lists, keys
given twice, bytes after the value, not even JSON) there is no answer, and the caller takes `loads`, which tells what is
wrong.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import Any, cast

import numpy as np

from moxserve.types import DType

__all__ = ["LARGE_BYTES", "NumberArray", "loads_numbers"]

LARGE_BYTES = 4096
"""From this size on `loads_numbers` is worth a try."""

# What makes up the structure of a document. All else goes before two structures are compared.
_STRUCTURE = b'[]{},:"'
_NO_STRUCTURE = bytes(set(range(256)) - set(_STRUCTURE))
_NUMBERS = b"0123456789+-.eE[], \n\r\t"
_SAMPLE_BYTES = 32
# What is no list of numbers is walked in Python, at 2 us for each of them: that must pay.
_BYTES_PER_NODE = 1024
_FREE_NODES, _MAX_NODES, _MAX_KEYS = 8, 2000, 200
# A parser keeps several times the memory of the largest body that it has seen.
_KEPT_PARSERS, _KEPT_BYTES = 2, 8 << 20

_parsers: list[Any] = []


class _UnusualError(Exception):
    """The body is one for the slow way."""


@dataclass(frozen=True, slots=True)
class NumberArray:
    """What stands for nested lists of numbers in a document.

    Attributes:
        values: of any shape, no dimension 0; int64 when all numbers are written as integers, without fraction and
            exponent, else float64. Read-only.
    """

    values: np.ndarray

    def as_dtype(self, dtype: DType) -> np.ndarray | None:
        """Return the numbers as elements of a tensor, rounded as Python rounds them; too large floats become infinite.

        Args:
            dtype: any.

        Returns:
            An array; None when not all numbers are such elements, or no JSON number is one.
        """
        kind, wanted = self.values.dtype.kind, dtype.numpy
        if dtype.name in ("float32", "float64"):
            with np.errstate(over="ignore"):
                # By way of float64, as Python's integers go.
                return self.values.astype(np.float64, copy=False).astype(wanted, copy=False)
        if wanted.kind not in "iu" or dtype.name == "uint16" or kind != "i":
            return None
        limits: Any = np.iinfo(cast(Any, wanted))
        if self.values.min() < limits.min or self.values.max() > limits.max:
            return None
        return self.values.astype(wanted, copy=False)


def loads_numbers(body: bytes) -> Any | None:
    """Read a JSON object with each nested list of numbers as a NumberArray.

    Returns:
        The document: dicts, lists that do not hold numbers alone, NumberArrays, text, numbers, booleans and None. None
        as a whole when the body is not simple or there is no simdjson: nothing is known about it then.
    """
    if not _looks_numeric(body):
        return None
    try:
        import simdjson
    except ImportError:
        return None
    try:
        parser = _parsers.pop()
    except IndexError:
        parser = simdjson.Parser()
    try:
        document = _Reader(simdjson.Object, simdjson.Array).read(parser.parse(body), body)
    except (_UnusualError, ValueError, TypeError, RuntimeError):
        # The parser goes too: the error may still hold what was parsed.
        return None
    if len(_parsers) < _KEPT_PARSERS and len(body) <= _KEPT_BYTES:
        _parsers.append(parser)
    return document


def _looks_numeric(body: bytes) -> bool:
    """Tell, from samples, whether a body may be an object with more numbers than text or small objects."""
    if b"\\" in body or not body[:_SAMPLE_BYTES].lstrip(b" \n\r\t").startswith(b"{"):
        return False
    places = (len(body) * part // 4 for part in (1, 2, 3))
    if all(body[at : at + _SAMPLE_BYTES].translate(None, _NUMBERS) for at in places):
        return False
    return body.count(b"{") <= _nodes(body)


def _nodes(body: bytes) -> int:
    """Return how much that is no list of numbers a body may hold."""
    return min(_MAX_NODES, _FREE_NODES + len(body) // _BYTES_PER_NODE)


class _Reader:
    """Turns what simdjson parsed into a document, and writes down which structure it ought to have."""

    def __init__(self, object_class: Any, array_class: Any) -> None:
        self._object, self._array = object_class, array_class
        self._structure: list[bytes] = []
        self._nodes_left = 0

    def read(self, parsed: Any, body: bytes) -> Any:
        if type(parsed) is not self._object:
            raise _UnusualError
        self._nodes_left = _nodes(body)
        document = self._read_object(parsed)
        if b"".join(self._structure) != body.translate(None, _NO_STRUCTURE):
            raise _UnusualError
        return document

    def _read(self, value: Any) -> Any:
        self._nodes_left -= 1
        if self._nodes_left < 0:
            raise _UnusualError
        if type(value) is self._array:
            return self._read_array(value)
        if type(value) is self._object:
            return self._read_object(value)
        if type(value) is str:
            self._structure.append(_structure_of(value))
        return value

    def _read_object(self, value: Any) -> dict[str, Any]:
        found: dict[str, Any] = {}
        opening = b"{"
        # Each look-up of a key walks the object.
        if len(value) > _MAX_KEYS:
            raise _UnusualError
        for key in value:
            if key in found:
                raise _UnusualError
            self._structure += (opening, _structure_of(key), b":")
            found[key] = self._read(value[key])
            opening = b","
        self._structure.append(b"}" if found else b"{}")
        return found

    def _read_array(self, value: Any) -> Any:
        shape, first = self._shape(value)
        if type(first) is int or type(first) is float:
            # First the numbers, which bound what their lists can be.
            numbers = _numbers(value, whole=type(first) is int, shape=shape)
            self._structure.append(_structure_of_lists(shape))
            return NumberArray(numbers)
        items = []
        opening = b"["
        for item in value:
            self._structure.append(opening)
            items.append(self._read(item))
            opening = b","
        self._structure.append(b"]")
        return items

    def _shape(self, value: Any) -> tuple[tuple[int, ...], Any]:
        """Return the lengths of the first list of each level, and the first element that is none."""
        shape: list[int] = []
        while type(value) is self._array:
            if not len(value):
                raise _UnusualError
            shape.append(len(value))
            value = value[0]
        return tuple(shape), value


def _numbers(value: Any, *, whole: bool, shape: tuple[int, ...]) -> np.ndarray:
    as_buffer: Callable[..., Any] = value.as_buffer
    flat = None
    if whole:
        try:
            flat = np.frombuffer(as_buffer(of_type="i"), np.int64)
        except (TypeError, ValueError):
            # Some are no int64 after all.
            flat = None
    if flat is None:
        flat = np.frombuffer(as_buffer(of_type="d"), np.float64)
    if flat.size != prod(shape):
        raise _UnusualError
    return flat.reshape(shape)


def _structure_of(text: str) -> bytes:
    return b'"' + text.encode().translate(None, _NO_STRUCTURE) + b'"'


def _structure_of_lists(shape: tuple[int, ...]) -> bytes:
    structure = b""
    for length in reversed(shape):
        structure = b"[" + (structure + b",") * (length - 1) + structure + b"]"
    return structure
