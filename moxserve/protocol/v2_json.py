"""Bodies of the Open Inference Protocol over REST: JSON, and the extension for binary tensors. No sockets.

Request: `{"id": text, "parameters": {...}, "inputs": [...], "outputs": [...]}`; only `inputs` must be there, other keys
are ignored. An input is `{"name", "shape", "datatype", "data", "parameters"}`. Its data is a list of the elements in C
order, or lists nested as the shape is; numbers for all numeric datatypes (also NaN, Infinity and -Infinity, which JSON
itself does not have), true and false for BOOL, text or `{"b64": "..."}` for BYTES. An output is `{"name",
"parameters"}`.

Binary tensors: the header `Inference-Header-Content-Length` tells how long the JSON is; behind it, in the order of the
inputs, stands the raw data of those that have no `data` but the parameter `binary_data_size`. The answer has the same
form where an output has the parameter `binary_data`, or for all that have it not, where the request has the parameter
`binary_data_output`.

Answer: `{"model_name", "model_version", "id", "outputs": [{"name", "datatype", "shape", "data" or "parameters":
{"binary_data_size"}}]}`, data as a flat list.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Any, cast

import numpy as np
import orjson

from moxserve.errors import InvalidArgument, MoxserveError
from moxserve.protocol.json_numbers import LARGE_BYTES, NumberArray, loads_numbers
from moxserve.protocol.json_values import as_bytes, excerpt, loads, write_floats
from moxserve.protocol.v2 import (
    InferAnswer,
    InferRequest,
    Parameter,
    RequestedOutput,
    checked_shape,
    datatype_of,
    dtype_by_datatype,
    from_raw,
    refuse_extensions,
    shaped,
    to_raw,
)
from moxserve.types import DType, ModelRef

__all__ = ["Body", "infer_request", "infer_response"]

_ACCEPTED: Mapping[str, frozenset[type]] = {
    "b": frozenset((bool,)),
    "i": frozenset((int,)),
    "u": frozenset((int,)),
    "f": frozenset((int, float)),
    "O": frozenset((str, dict)),
}


@dataclass(frozen=True, slots=True)
class Body:
    """The body of an answer.

    Attributes:
        data: all of it.
        json_bytes: how much of it is JSON, when raw data follows; None when all is.
    """

    data: bytes
    json_bytes: int | None


class _Tail:
    """The raw data behind the JSON, handed out piece by piece."""

    def __init__(self, data: memoryview) -> None:
        self._data = data
        self._at = 0

    def take(self, size: int, what: str) -> memoryview:
        left = len(self._data) - self._at
        if size > left:
            raise InvalidArgument(f"{what} has the binary_data_size {size}, but only {left} bytes of data are left")
        self._at += size
        return self._data[self._at - size : self._at]

    def check_used_up(self) -> None:
        if self._at < len(self._data):
            raise InvalidArgument(
                f"{len(self._data) - self._at} bytes of binary data follow those of the last input; the "
                "binary_data_size of the inputs and Inference-Header-Content-Length together must make up the body"
            )


# Requests


def infer_request(model: ModelRef, body: bytes, json_bytes: int | None = None) -> InferRequest:
    """Read a request.

    Args:
        model: that the URL names.
        body: all of it.
        json_bytes: how much of it is JSON; None for all.

    Raises:
        InvalidArgument: it is no such request, or its tensors do not fit what it says of them.
        Unimplemented: it asks for shared memory or a classification.
    """
    if json_bytes is not None and not 0 < json_bytes <= len(body):
        raise InvalidArgument(
            f"Inference-Header-Content-Length is {json_bytes}; expected the length of the JSON at the beginning of the "
            f"body, which has {len(body)} bytes"
        )
    head, tail = (body, b"") if json_bytes is None else (body[:json_bytes], memoryview(body)[json_bytes:])
    if len(head) >= LARGE_BYTES and (document := loads_numbers(head)) is not None:
        # Of what is wrong the lists themselves tell more; a NumberArray can also not be printed.
        with contextlib.suppress(MoxserveError, TypeError):
            return _read(model, document, _Tail(memoryview(tail)))
    return _read(model, loads(head), _Tail(memoryview(tail)))


def _read(model: ModelRef, document: Any, binary: _Tail) -> InferRequest:
    if type(document) is not dict:
        raise InvalidArgument(f"JSON Value: {excerpt(document)} Is not object")
    inputs: dict[str, np.ndarray] = {}
    for i, item in enumerate(_objects(document, "inputs")):
        name = _name(item, f"inputs[{i}]")
        if name in inputs:
            raise InvalidArgument(f"input {name!r} is there twice")
        inputs[name] = _input(item, binary, f"input {name!r}")
    if not inputs:
        raise InvalidArgument("the request has no inputs; expected a list of objects at 'inputs'")
    binary.check_used_up()
    parameters = _parameters(document, "the request")
    all_binary = _flag(parameters, "binary_data_output", False, "the request")
    outputs = tuple(_requested(item, i, all_binary) for i, item in enumerate(_objects(document, "outputs")))
    return InferRequest(model, inputs, outputs, parameters, _text(document, "id", "the request"), all_binary)


def _objects(document: Mapping[str, Any], key: str) -> list[dict[str, Any]]:
    found = document.get(key)
    if found is None:
        return []
    if type(found) is not list or not all(type(item) is dict for item in found):
        raise InvalidArgument(f"{key!r} is {excerpt(found)}; expected a list of objects")
    return found


def _text(item: Mapping[str, Any], key: str, what: str) -> str:
    value = item.get(key, "")
    if type(value) is not str:
        raise InvalidArgument(f"{key!r} of {what} is {excerpt(value)}; expected text")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise InvalidArgument(f"{key!r} of {what} is no text that UTF-8 can write: {error}") from None
    return value


def _name(item: Mapping[str, Any], what: str) -> str:
    name = _text(item, "name", what)
    if not name:
        raise InvalidArgument(f"{what} has no name: {excerpt(item)}")
    return name


def _parameters(item: Mapping[str, Any], what: str) -> dict[str, Parameter]:
    found = item.get("parameters")
    if found is None:
        return {}
    if type(found) is not dict:
        raise InvalidArgument(f"'parameters' of {what} is {excerpt(found)}; expected an object")
    return {key: value for key, value in found.items() if isinstance(value, (bool, int, float, str))}


def _flag(parameters: Mapping[str, Parameter], key: str, default: bool, what: str) -> bool:
    value = parameters.get(key, default)
    if type(value) is not bool:
        raise InvalidArgument(f"parameter {key!r} of {what} is {value!r:.80}; expected true or false")
    return value


def _requested(item: Mapping[str, Any], index: int, all_binary: bool) -> RequestedOutput:
    name = _name(item, f"outputs[{index}]")
    what = f"output {name!r}"
    parameters = _parameters(item, what)
    refuse_extensions(parameters, what)
    return RequestedOutput(name, _flag(parameters, "binary_data", all_binary, what))


def _input(item: Mapping[str, Any], binary: _Tail, what: str) -> np.ndarray:
    dtype = dtype_by_datatype(_text(item, "datatype", what), what)
    dims = item.get("shape")
    shape = checked_shape(dims.values.tolist() if type(dims) is NumberArray else dims, what)
    parameters = _parameters(item, what)
    refuse_extensions(parameters, what)
    size = parameters.get("binary_data_size")
    if size is None:
        if "data" not in item:
            raise InvalidArgument(f"{what} has neither 'data' nor the parameter 'binary_data_size'")
        return _from_json(item["data"], dtype, shape, what)
    if "data" in item:
        raise InvalidArgument(f"{what} has both 'data' and the parameter 'binary_data_size'; expected one of them")
    if type(size) is not int or size < 0:
        raise InvalidArgument(f"parameter 'binary_data_size' of {what} is {size!r:.80}; expected a number of bytes")
    return from_raw(binary.take(size, what), dtype, shape, what)


def _from_json(data: Any, dtype: DType, shape: tuple[int, ...], what: str) -> np.ndarray:
    """Read the elements of a tensor. Lists are flattened level by level in C, never element by element in Python."""
    if type(data) is NumberArray:
        _check_nesting(data.values.shape, shape, what)
        return shaped(_from_numbers(data.values.reshape(-1), dtype, what), shape, what)
    nested: list[int] = []
    level: list[Any] = [data]
    types = {type(data)}
    while types == {list}:
        lengths = set(map(len, level))
        if len(lengths) > 1:
            raise InvalidArgument(
                f"the data of {what} is ragged: lists of {min(lengths)} and of {max(lengths)} elements"
            )
        nested.append(lengths.pop())
        level = list(chain.from_iterable(level))
        types = set(map(type, level))
    _check_nesting(tuple(nested), shape, what)
    return shaped(_elements(level, types, dtype, what), shape, what)


def _check_nesting(nested: tuple[int, ...], shape: tuple[int, ...], what: str) -> None:
    if len(nested) > 1 and nested != shape:
        raise InvalidArgument(f"the data of {what} is nested as {list(nested)}; expected a flat list, or {list(shape)}")


def _from_numbers(flat: np.ndarray, dtype: DType, what: str) -> np.ndarray:
    """Turn int64 or float64 numbers into elements."""
    kind = dtype.numpy.kind
    if kind in "bO" or (kind in "iu" and flat.dtype.kind != "i"):
        raise _mismatch(flat[0], dtype, what)
    if kind in "iu":
        limits: Any = np.iinfo(cast(Any, dtype.numpy))
        if flat.min() < limits.min or flat.max() > limits.max:
            raise _mismatch(flat[0], dtype, what)
        return flat.astype(dtype.numpy)
    with np.errstate(over="ignore"):
        return flat.astype(np.float64, copy=False).astype(dtype.numpy)


def _elements(flat: list[Any], types: set[type], dtype: DType, what: str) -> np.ndarray:
    accepted = _ACCEPTED[dtype.numpy.kind if dtype.numpy.kind in "biuO" else "f"]
    if not types <= accepted:
        raise _mismatch(next(v for v in flat if type(v) not in accepted), dtype, what)
    if dtype.name == "string":
        array = np.empty(len(flat), dtype=object)
        array[:] = list(map(as_bytes, flat))
        return array
    if dtype.numpy.kind in "iu":
        return _integers(flat, dtype, what)
    try:
        with np.errstate(over="ignore"):
            return np.array(flat, np.float64).astype(dtype.numpy)
    except OverflowError:
        raise _mismatch(next(v for v in flat if abs(v) > 2**1000), dtype, what) from None


def _integers(flat: list[int], dtype: DType, what: str) -> np.ndarray:
    limits: Any = np.iinfo(cast(Any, dtype.numpy))
    try:
        wide = np.array(flat, np.uint64 if dtype.name == "uint64" else np.int64)
        array = wide.astype(dtype.numpy)
        if np.array_equal(wide, array):
            return array
    except OverflowError:
        pass
    raise _mismatch(next(v for v in flat if not limits.min <= v <= limits.max), dtype, what)


def _mismatch(value: Any, dtype: DType, what: str) -> InvalidArgument:
    return InvalidArgument(f"the data of {what} holds {excerpt(value)}, which is no {dtype.v2_name}")


# Answers


def infer_response(answer: InferAnswer) -> Body:
    """Write an answer.

    Raises:
        InvalidArgument: a BYTES output that is to be written as JSON is no UTF-8.
        Unimplemented: an output is of a type that the protocol does not have.
    """
    request = answer.request
    binary = {output.name: output.binary for output in request.outputs}
    heads: list[str] = []
    tail: list[bytes | memoryview] = []
    for name, array in answer.outputs.items():
        what = f"output {name!r}"
        members = {"name": name, "datatype": datatype_of(array, what), "shape": array.shape}
        if binary.get(name, request.binary):
            raw = to_raw(array)
            tail.append(raw)
            rest = f'"parameters":{{"binary_data_size":{len(raw)}}}}}'
        else:
            rest = f'"data":[{",".join(_written(array.reshape(-1), what))}]}}'
        heads.append(_json(members)[:-1] + "," + rest)
    document = {"model_name": answer.model, "model_version": str(answer.version)}
    if request.id:
        document["id"] = request.id
    head = f'{_json(document)[:-1]},"outputs":[{",".join(heads)}]}}'.encode()
    return Body(b"".join([head, *tail]) if tail else head, len(head) if tail else None)


def _json(value: Any) -> str:
    return orjson.dumps(value).decode()


def _written(flat: np.ndarray, what: str) -> list[str]:
    if flat.dtype.kind in "iu":
        return list(map(str, flat.tolist()))
    if flat.dtype == np.bool_:
        return ["true" if value else "false" for value in flat.tolist()]
    if flat.dtype == object:
        return [_text_json(item, what) for item in flat]
    return write_floats(flat if flat.dtype in (np.float32, np.float64) else flat.astype(np.float32))


def _text_json(item: Any, what: str) -> str:
    try:
        return _json(item.decode() if isinstance(item, bytes) else str(item))
    except UnicodeDecodeError:
        raise InvalidArgument(
            f"{what} holds bytes that are no UTF-8, which JSON cannot carry; ask for it with the parameter binary_data"
        ) from None
