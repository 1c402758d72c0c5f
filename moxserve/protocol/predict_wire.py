"""PredictRequest and PredictResponse as bytes: to arrays and from arrays, without a copy or a loop by element.

A request is walked by hand and its tensors become views of the request's own bytes, as long as it is written as every
client writes it. Of all that protobuf allows beyond that (fields twice, packed values in pieces or not packed,
submessages to be merged, unknown fields) the walk gives up, and protobuf reads the request or that one tensor. So what
a request means is what protobuf and `tensors.from_proto` say, and the walk is a shorter way to the same.

The parts of requests that hardly differ from one to the next (model, signature, shapes) are read once and kept.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from math import prod
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError

from moxserve.errors import InvalidArgument
from moxserve.protocol import messages
from moxserve.protocol.tensors import filled, from_proto
from moxserve.protocol.wire import tag, tensor_head, tensor_payload
from moxserve.types import DTYPES, ModelRef

__all__ = ["PredictMessage", "read_predict", "read_predict_response", "write_predict_request", "write_predict_response"]

# Tags: a field's number, shifted by 3, and 2 for what has a size, 0 for a varint.
_KEY, _VALUE = 0x0A, 0x12
_DTYPE, _SHAPE, _CONTENT, _INT_VAL, _INT64_VAL, _BOOL_VAL = 0x08, 0x12, 0x22, 0x3A, 0x52, 0x5A
_FIXED = {"float_val": 0x2A, "double_val": 0x32, "scomplex_val": 0x4A, "dcomplex_val": 0x62}
_VARINTS = {"int_val": _INT_VAL, "int64_val": _INT64_VAL, "bool_val": _BOOL_VAL}
_NUMPY = {d.enum: d.numpy for d in DTYPES if d.name != "string"}
_TYPED = {**_FIXED, **_VARINTS}
_TYPED_TAG = {d.enum: _TYPED[d.proto_field] for d in DTYPES if d.proto_field in _TYPED}
_VARINT_TAGS = frozenset(_VARINTS.values())
# What is kept of one request to be found again must be short, or requests could fill the memory.
_KEPT_BYTES = 512


class _UnusualError(Exception):
    """What is read is not as clients write it; protobuf must read it."""


@dataclass(frozen=True, slots=True)
class _Layout:
    """How one of the two messages is put together: its name, its map of tensors and the tags of its fields."""

    message: str
    map: str
    spec_tag: int
    map_tag: int
    filter_tag: int | None


_REQUEST = _Layout("PredictRequest", "inputs", 0x0A, 0x12, 0x1A)
_RESPONSE = _Layout("PredictResponse", "outputs", 0x12, 0x0A, None)


# Reading


@dataclass(slots=True)
class _View:
    """Where in a request the values of a tensor are."""

    enum: int
    shape: tuple[int, ...]
    tag: int
    begin: int
    end: int


@dataclass(slots=True)
class PredictMessage:
    """A PredictRequest or PredictResponse whose tensors are still bytes.

    Attributes:
        model: name of the model.
        version: that is asked for, or that answered; None for none.
        label: of the version that is asked for; None for none.
        signature_name: key; empty for the default.
        has_spec: whether the message names a model at all.
        output_filter: outputs that are asked for; empty for all.
    """

    model: str
    version: int | None
    label: str | None
    signature_name: str
    has_spec: bool
    output_filter: tuple[str, ...]
    _data: bytes = field(repr=False)
    _tensors: dict[str, Any] = field(repr=False)

    @property
    def aliases(self) -> Collection[str]:
        """Names of the tensors."""
        return self._tensors.keys()

    def tensors(self) -> dict[str, np.ndarray]:
        """Return the tensors by alias.

        Returns:
            Arrays, strings as object arrays of bytes. They are read-only, keep the whole message alive, may lie at any
            address (`flags.aligned`), and have strides of 0 where one value stands for all.

        Raises:
            InvalidArgument: one is no tensor; with its name. See `tensors.from_proto`.
        """
        found = {}
        for alias, tensor in self._tensors.items():
            try:
                found[alias] = _array(self._data, tensor) if type(tensor) is _View else from_proto(tensor)
            except InvalidArgument as error:
                raise InvalidArgument(f"tensor parsing error: {alias}: {error.message}") from None
            except MemoryError as error:
                raise InvalidArgument(f"tensor parsing error: {alias}: {error}") from None
        return found


def read_predict(data: bytes) -> PredictMessage:
    """Read a serialized PredictRequest.

    Raises:
        InvalidArgument: the bytes are none.
    """
    return _read(data, _REQUEST)


def read_predict_response(data: bytes) -> PredictMessage:
    """Read a serialized PredictResponse.

    Raises:
        InvalidArgument: the bytes are none.
    """
    return _read(data, _RESPONSE)


def _read(data: bytes, layout: _Layout) -> PredictMessage:
    try:
        return _walk(data, layout)
    except (_UnusualError, IndexError, UnicodeDecodeError, DecodeError):
        return _read_with_protobuf(data, layout)


def _read_with_protobuf(data: bytes, layout: _Layout) -> PredictMessage:
    try:
        message = getattr(messages, layout.message).FromString(data)
    except DecodeError as error:
        what = "request" if layout is _REQUEST else "answer"
        raise InvalidArgument(f"the {len(data)} bytes of the {what} are no {layout.message}: {error}") from None
    tensors = dict(getattr(message, layout.map).items())
    wanted = tuple(message.output_filter) if layout.filter_tag else ()
    return PredictMessage(*_spec_of(message.model_spec), message.HasField("model_spec"), wanted, data, tensors)


Spec = tuple[str, "int | None", "str | None", str]


def _spec_of(spec: Any) -> Spec:
    version = spec.version.value if spec.HasField("version") else None
    return spec.name, version, spec.version_label or None, spec.signature_name


def _parse_spec(data: bytes) -> Spec:
    return _spec_of(messages.ModelSpec.FromString(data))


def _parse_shape(data: bytes) -> tuple[int, ...]:
    shape = messages.TensorShapeProto.FromString(data)
    return () if shape.unknown_rank else tuple(dim.size for dim in shape.dim)


_kept_spec = lru_cache(maxsize=1024)(_parse_spec)
_kept_shape = lru_cache(maxsize=1024)(_parse_shape)


def _walk(data: bytes, layout: _Layout) -> PredictMessage:
    at, end = 0, len(data)
    spec: Spec | None = None
    tensors: dict[str, Any] = {}
    wanted = []
    while at < end:
        kind, size = data[at], data[at + 1]
        at += 2
        if size > 0x7F:
            size, at = _long_size(data, at - 1)
        stop = at + size
        if stop > end:
            raise _UnusualError
        if kind == layout.map_tag:
            _read_entry(data, at, stop, tensors)
        elif kind == layout.spec_tag and spec is None:
            part = data[at:stop]
            spec = _kept_spec(part) if size <= _KEPT_BYTES else _parse_spec(part)
        elif kind == layout.filter_tag:
            wanted.append(data[at:stop].decode())
        else:
            raise _UnusualError
        at = stop
    if spec is None:
        return PredictMessage("", None, None, "", False, tuple(wanted), data, tensors)
    return PredictMessage(*spec, True, tuple(wanted), data, tensors)


def _long_size(data: bytes, at: int) -> tuple[int, int]:
    """Read a size of more than 7 bits; return it and where the bytes after it begin."""
    size = 0
    for shift in (0, 7, 14, 21, 28):
        byte = data[at]
        at += 1
        size |= (byte & 0x7F) << shift
        if byte < 0x80:
            return size, at
    raise _UnusualError


def _read_entry(data: bytes, at: int, stop: int, tensors: dict[str, Any]) -> None:
    """Read an entry of the map of tensors; of entries with one key the last one counts."""
    if data[at] != _KEY:
        raise _UnusualError
    size = data[at + 1]
    at += 2
    if size > 0x7F:
        size, at = _long_size(data, at - 1)
    key_end = at + size
    if key_end >= stop or data[key_end] != _VALUE:
        raise _UnusualError
    alias = data[at:key_end].decode()
    size = data[key_end + 1]
    at = key_end + 2
    if size > 0x7F:
        size, at = _long_size(data, at - 1)
    if at + size != stop:
        raise _UnusualError
    tensors[alias] = _find_values(data, at, stop) or messages.TensorProto.FromString(data[at:stop])


def _find_values(data: bytes, at: int, stop: int) -> _View | None:
    """Walk a TensorProto of numbers; None when protobuf must read it."""
    enum = kind = begin = end = 0
    shape: tuple[int, ...] | None = None
    while at < stop:
        part, size = data[at], data[at + 1]
        at += 2
        if part == _DTYPE:
            if size > 0x7F:
                return None
            enum = size
            continue
        if size > 0x7F:
            size, at = _long_size(data, at - 1)
        if at + size > stop:
            return None
        if part == _SHAPE and shape is None:
            piece = data[at : at + size]
            shape = _kept_shape(piece) if size <= _KEPT_BYTES else _parse_shape(piece)
        elif kind == 0 and size and (part == _CONTENT or part == _TYPED_TAG.get(enum)):
            kind, begin, end = part, at, at + size
        else:
            return None
        at += size
    if at != stop or enum not in _NUMPY or not _is_plain(data, enum, kind, begin, end):
        return None
    return _View(enum, shape or (), kind, begin, end)


def _is_plain(data: bytes, enum: int, kind: int, begin: int, end: int) -> bool:
    """Tell whether values lie in the right field as they do in memory, but for varints of one byte."""
    if kind == _CONTENT:
        return True
    if kind != _TYPED_TAG.get(enum):
        # None, or those of a dtype that was said before the one that counts.
        return False
    if kind in _VARINT_TAGS:
        return data[begin:end].isascii()
    numpy_dtype = _NUMPY[enum]
    # A complex number is two values of its field.
    return (end - begin) % (numpy_dtype.itemsize // (2 if numpy_dtype.kind == "c" else 1)) == 0


def _array(data: bytes, view: _View) -> np.ndarray:
    dtype, shape, size = _NUMPY[view.enum], view.shape, view.end - view.begin
    if shape and min(shape) < 0:
        raise InvalidArgument(f"a tensor of shape {list(shape)} has a negative dimension")
    count = prod(shape)
    try:
        if view.tag in _VARINT_TAGS:
            return filled(np.frombuffer(data, np.uint8, size, view.begin).astype(dtype), shape)
        if size == count * dtype.itemsize:
            return np.frombuffer(data, dtype, count, view.begin).reshape(shape)
        if view.tag == _CONTENT:
            raise InvalidArgument(
                f"tensor_content has {size} bytes; {dtype}{list(shape)} needs {count * dtype.itemsize}"
            )
        return filled(np.frombuffer(data, dtype, size // dtype.itemsize, view.begin), shape)
    except (ValueError, OverflowError) as error:
        raise InvalidArgument(f"a tensor of shape {str(list(shape))[:80]} cannot be held: {error}") from None


# Writing


def write_predict_response(
    name: str, version: int, signature: str, outputs: Mapping[str, np.ndarray], *, typed: bool = True
) -> bytes:
    """Write a serialized PredictResponse.

    Args:
        name: of the model.
        version: that answered.
        signature: key of the signature that was run.
        outputs: arrays by alias, written in the order of their names; strings as object arrays of bytes or text.
        typed: whether values go to the typed fields, such as `float_val`, which some clients read directly, instead of
            to `tensor_content`.

    Raises:
        InvalidArgument: an output has elements that no tensor carries.
    """
    parts: list[Any] = []
    for alias in sorted(outputs):
        _add_entry(parts, 1, alias, outputs[alias], typed=typed)
    parts.append(_response_spec(name, version, signature))
    return b"".join(parts)


def write_predict_request(
    model: ModelRef, signature: str, inputs: Mapping[str, np.ndarray], wanted: Sequence[str] = ()
) -> bytes:
    """Write a serialized PredictRequest, numbers as `tensor_content` and strings as `string_val`.

    Args:
        model: which model and which version or label of it.
        signature: key of the signature.
        inputs: arrays by alias, as of `write_predict_response`.
        wanted: outputs to ask for; empty for all.

    Raises:
        InvalidArgument: an input has elements that no tensor carries; with its name.
    """
    head = messages.PredictRequest(output_filter=wanted)
    spec = head.model_spec
    spec.name, spec.signature_name = model.name, signature
    if model.version is not None:
        spec.version.value = model.version
    elif model.label is not None:
        spec.version_label = model.label
    parts: list[Any] = [head.SerializeToString()]
    for alias, array in inputs.items():
        try:
            _add_entry(parts, 2, alias, array, typed=array.dtype.kind in "SUO")
        except InvalidArgument as error:
            raise InvalidArgument(f"input {alias!r}: {error.message}") from None
    return b"".join(parts)


@lru_cache(maxsize=1024)
def _response_spec(name: str, version: int, signature: str) -> bytes:
    response = messages.PredictResponse()
    response.model_spec.name = name
    response.model_spec.version.value = version
    response.model_spec.signature_name = signature
    data: bytes = response.SerializeToString()
    return data


def _add_entry(parts: list[Any], number: int, alias: str, array: np.ndarray, *, typed: bool) -> None:
    """Add an entry of a map from alias to TensorProto, the map being field `number` of its message."""
    enum, content_field, content = tensor_payload(array, typed=typed)
    parts.append(_entry_head(number, alias, enum, array.shape, content_field, len(content)))
    parts.append(content)


@lru_cache(maxsize=1024)
def _entry_head(number: int, alias: str, enum: int, shape: tuple[int, ...], content_field: int, size: int) -> bytes:
    head = tensor_head(enum, shape, content_field, size)
    key = alias.encode()
    key = tag(1, len(key)) + key
    value = tag(2, len(head) + size) + head
    return tag(number, len(key) + len(value) + size) + key + value
