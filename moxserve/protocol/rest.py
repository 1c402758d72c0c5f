"""The JSON bodies of the REST predict API: requests to arrays, arrays to answers. No sockets.

Request: an object with `signature_name` (optional text) and exactly one of two keys; other keys are ignored.

* Row format, `"instances": [...]`: one element a row. All elements are values, if the signature has one input, or all
  are objects from input alias to value with just the signature's aliases. The tensor of an input is its values stacked.
* Column format, `"inputs": ...`: an object from alias to the value of the whole tensor; for a signature with one input
  also that value itself. Inputs need no common batch size.

A value is a number, text, true, false, `{"b64": "..."}` for bytes, or nested lists of them, of equal length at each
level. Its element type is the signature's: float and double take any number, also NaN, Infinity and -Infinity, which
JSON itself does not have; integers take whole numbers without a fraction that are in range; bool takes true and false;
string takes text (sent as UTF-8) and bytes. Other types have no JSON form. Only the first JSON value of a body is
read.

Answer, in the format of the question: `{"predictions": [...]}` with one element a row, each the value of the only
output or an object from alias to value; or `{"outputs": ...}` with the value of the only output or an object from
alias to value. Strings of outputs whose alias ends in `_bytes` are written as b64. What holds for every body is told
in `json_values`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, cast

import numpy as np

from moxserve.errors import InvalidArgument, Unimplemented
from moxserve.protocol.json_numbers import LARGE_BYTES, NumberArray, loads_numbers
from moxserve.protocol.json_values import (
    as_bytes,
    b64_json,
    excerpt,
    is_b64,
    kind_of,
    loads,
    read_object,
    write_floats,
    write_string,
)
from moxserve.types import DType, Signature, TensorSpec

__all__ = ["PredictBody", "parse_predict", "write_predict"]

_CPP_NAMES = {"float32": "float", "float64": "double", "float16": "half"}
_FLOATS = frozenset((int, float))
_FLOAT_DTYPES = (np.dtype(np.float32), np.dtype(np.float64))
_SCALARS = frozenset((int, float, bool, str))
_ACCEPTED: Mapping[str, frozenset[type]] = {
    "float32": _FLOATS,
    "float64": _FLOATS,
    "bool": frozenset((bool,)),
    "string": frozenset((str, dict)),
    **{name: frozenset((int,)) for name in ("int8", "uint8", "int16", "int32", "uint32", "int64", "uint64")},
}


# Reading


@dataclass(frozen=True, slots=True)
class PredictBody:
    """A predict request whose model is not known yet.

    Attributes:
        signature_name: as asked for; empty when it is not.
        row_format: whether to answer in row format.
        document: the whole object.
        body: what it was read from, when the document has NumberArrays in place of lists; else empty.
    """

    signature_name: str
    row_format: bool
    document: Mapping[str, Any]
    body: bytes = field(default=b"", repr=False)

    def tensors(self, signature: Signature) -> dict[str, np.ndarray]:
        """Read the inputs of a signature.

        Returns:
            One array an input, by alias, of the signature's element type.

        Raises:
            InvalidArgument: the body does not fit the signature.
            Unimplemented: an input's element type has no JSON form.
        """
        if self.body:
            found = _read_numbers(self.document, signature.inputs)
            if found is not None:
                return found
            # Something is wrong, or out of the ordinary: the lists themselves tell what.
            return PredictBody(self.signature_name, self.row_format, loads(self.body)).tensors(signature)
        rows, columns = "instances" in self.document, "inputs" in self.document
        if rows and columns:
            raise InvalidArgument(
                f"JSON Value: {excerpt(self.document)} Not formatted correctly expecting only one of 'inputs' or "
                "'instances' keys to exist "
            )
        if not rows and not columns:
            raise InvalidArgument("Missing 'inputs' or 'instances' key")
        if not signature.inputs:
            raise InvalidArgument(f"Failed to get input map for signature: {self.signature_name or 'DEFAULT'}")
        if rows:
            return _read_rows(self.document["instances"], signature.inputs, self.document)
        return _read_columns(self.document["inputs"], signature.inputs)


def parse_predict(body: bytes) -> PredictBody:
    """Read a predict request as far as that goes without its signature.

    Raises:
        InvalidArgument: it is no JSON object, or its signature name is no text.
    """
    if len(body) >= LARGE_BYTES:
        document = loads_numbers(body)
        if document is not None and type(name := document.get("signature_name", "")) is str:
            return PredictBody(name, "instances" in document, document, body)
    name, document = read_object(body)
    return PredictBody(name, "instances" in document, document)


def _read_numbers(document: Mapping[str, Any], inputs: Mapping[str, TensorSpec]) -> dict[str, np.ndarray] | None:
    """Read the inputs from a document with NumberArrays; None when that is not plain."""
    rows = "instances" in document
    if rows == ("inputs" in document):
        return None
    value = document["instances" if rows else "inputs"]
    if type(value) is NumberArray and len(inputs) == 1:
        value = dict.fromkeys(inputs, value)
    elif rows and type(value) is list and all(type(row) is dict and row.keys() == inputs.keys() for row in value):
        value = {alias: [row[alias] for row in value] for alias in inputs}
    if type(value) is not dict or not value.keys() >= inputs.keys():
        return None
    arrays = {}
    for alias, spec in inputs.items():
        array = _number_tensor(value[alias], spec.dtype)
        if array is None:
            return None
        arrays[alias] = array
    return arrays


def _number_tensor(value: Any, dtype: DType) -> np.ndarray | None:
    """Turn a NumberArray, a list of such, or values without one into a tensor; None when that is not plain."""
    if type(value) is NumberArray:
        return value.as_dtype(dtype)
    items = value if type(value) is list else [value]
    if items and all(type(item) is NumberArray for item in items):
        arrays = [item.as_dtype(dtype) for item in items]
        shapes = {None if array is None else array.shape for array in arrays}
        return None if len(shapes) > 1 or None in shapes else np.stack(cast("list[np.ndarray]", arrays))
    if not all(type(item) in _SCALARS for item in items):
        return None
    try:
        return _tensor(value, dtype)
    except (InvalidArgument, Unimplemented):
        return None


def _read_columns(value: Any, inputs: Mapping[str, TensorSpec]) -> dict[str, np.ndarray]:
    if type(value) is not dict or is_b64(value):
        if len(inputs) > 1:
            raise InvalidArgument(
                "inputs is a plain value/list, but expecting an object as multiple input tensors required as per "
                "tensorinfo_map"
            )
        ((alias, spec),) = inputs.items()
        return {alias: _tensor(value, spec.dtype)}
    arrays = {}
    for alias, spec in inputs.items():
        if alias not in value:
            raise InvalidArgument(f"Missing named input: {alias} in 'inputs' object.")
        arrays[alias] = _tensor(value[alias], spec.dtype)
    return arrays


def _read_rows(rows: Any, inputs: Mapping[str, TensorSpec], document: Any) -> dict[str, np.ndarray]:
    if type(rows) is not list:
        raise InvalidArgument(f"JSON Value: {excerpt(document)} Expecting 'instances' to be an list/array")
    if not rows:
        raise InvalidArgument(f"JSON Value: {excerpt(document)} No values in 'instances' array")
    if _is_row_object(rows[0]):
        return _read_row_objects(rows, inputs)
    for i, row in enumerate(rows):
        if type(row) is dict and not is_b64(row):
            raise InvalidArgument(f"Expecting value/list but got object at item {i} of input list")
    if len(inputs) > 1:
        raise InvalidArgument(
            "instances is a plain list, but expecting list of objects as multiple input tensors required as per "
            "tensorinfo_map"
        )
    ((alias, spec),) = inputs.items()
    return {alias: _stack(rows, spec.dtype, "")}


def _read_row_objects(rows: Sequence[Any], inputs: Mapping[str, TensorSpec]) -> dict[str, np.ndarray]:
    names = inputs.keys()
    for i, row in enumerate(rows):
        if not _is_row_object(row):
            raise InvalidArgument(f"Expecting object but got list at item {i} of input list")
        if row.keys() == names:
            continue
        for key in row:
            if key not in names:
                raise InvalidArgument(
                    f"Failed to process element: {i} key: {key} of 'instances' list. Error: INVALID_ARGUMENT: "
                    f"JSON object: does not have named input: {key}"
                )
        raise InvalidArgument(
            f"Failed to process element: {i} of 'instances' list. JSON object: {excerpt(row)} keys must be equal to: "
            f"{','.join(sorted(names))}"
        )
    return {alias: _stack([row[alias] for row in rows], spec.dtype, alias) for alias, spec in inputs.items()}


def _is_row_object(value: Any) -> bool:
    return type(value) is dict and not is_b64(value)


def _stack(rows: list[Any], dtype: DType, key: str) -> np.ndarray:
    """Turn one value a row into one tensor; errors name the row."""
    try:
        return _tensor(rows, dtype)
    except InvalidArgument:
        _blame_row(rows, dtype, key)
        raise


def _blame_row(rows: list[Any], dtype: DType, key: str) -> None:
    place = f" key: {key}" if key else ""
    first: np.ndarray | None = None
    for i, row in enumerate(rows):
        try:
            array = _tensor(row, dtype)
            first = array if first is None else first
            if array.size != first.size:
                raise InvalidArgument(f"Expecting tensor size: {first.size} but got: {array.size}")
            if array.shape != first.shape:
                raise InvalidArgument(f"Expecting shape {_shape(first)} but got: {_shape(array)}")
        except InvalidArgument as error:
            raise InvalidArgument(
                f"Failed to process element: {i}{place} of 'instances' list. Error: INVALID_ARGUMENT: {error.message}"
            ) from None


def _shape(array: np.ndarray) -> str:
    return "[" + ",".join(map(str, array.shape)) + "]"


def _tensor(value: Any, dtype: DType) -> np.ndarray:
    """Turn a value into an array. Lists are flattened level by level in C, never element by element in Python."""
    shape: list[int] = []
    level: list[Any] = [value]
    types = {type(value)}
    while types == {list}:
        lengths = set(map(len, level))
        if len(lengths) > 1:
            _blame_shape(value)
        shape.append(lengths.pop())
        level = list(chain.from_iterable(level))
        types = set(map(type, level))
    if list in types:
        _blame_shape(value)
    return _convert(level, types, dtype).reshape(shape)


def _blame_shape(value: Any) -> None:
    """Raise the error of the first list or value that does not fit the shape that the first elements give."""
    shape = []
    first = value
    while type(first) is list:
        shape.append(len(first))
        first = first[0] if first else None
    rank = len(shape)

    def visit(part: Any, level: int) -> None:
        if type(part) is not list:
            if level != rank:
                raise InvalidArgument(
                    f"JSON Value: {excerpt(part)} found at incorrect level: {level} in the JSON DOM. "
                    f"Expected at level: {rank}"
                )
            return
        if level >= rank:
            raise InvalidArgument(f"Encountered list at unexpected level: {level} expected < {rank}")
        if len(part) != shape[level]:
            raise InvalidArgument(
                f"Encountered list at unexpected size: {len(part)} at level: {level} expected size: {shape[level]}"
            )
        for item in part:
            visit(item, level + 1)

    visit(value, 0)
    raise InvalidArgument(f"JSON Value: {excerpt(value)} is ragged; expected lists of equal length at each level")


def _convert(flat: list[Any], types: set[type], dtype: DType) -> np.ndarray:
    accepted = _ACCEPTED.get(dtype.name)
    if accepted is None:
        first = flat[0] if flat else []
        raise Unimplemented(f"Conversion of JSON Value: {excerpt(first)} to type: {_cpp_name(dtype)}")
    if not types <= accepted:
        raise _mismatch(next(v for v in flat if type(v) not in accepted), dtype)
    if dtype.name == "string":
        return _bytes_array(flat)
    if dtype.numpy.kind in "iu":
        return _int_array(flat, dtype)
    try:
        with np.errstate(over="ignore"):
            return np.array(flat, dtype=dtype.numpy)
    except OverflowError:
        raise _mismatch(next(v for v in flat if abs(v) > 2**1000), dtype) from None


def _int_array(flat: list[int], dtype: DType) -> np.ndarray:
    limits: Any = np.iinfo(cast(Any, dtype.numpy))
    try:
        wide = np.array(flat, dtype=np.uint64 if dtype.name == "uint64" else np.int64)
    except OverflowError:
        wide = None
    if wide is None or (wide.size and (wide.min() < limits.min or wide.max() > limits.max)):
        raise _mismatch(next(v for v in flat if not limits.min <= v <= limits.max), dtype)
    return wide.astype(dtype.numpy)


def _bytes_array(flat: list[Any]) -> np.ndarray:
    array = np.empty(len(flat), dtype=object)
    array[:] = list(map(as_bytes, flat))
    return array


def _mismatch(value: Any, dtype: DType) -> InvalidArgument:
    return InvalidArgument(
        f"JSON Value: {excerpt(value)} Type: {kind_of(value)} is not of expected type: {_cpp_name(dtype)}"
    )


def _cpp_name(dtype: DType) -> str:
    return _CPP_NAMES.get(dtype.name, dtype.name)


# Writing


def write_predict(outputs: Mapping[str, np.ndarray], *, row_format: bool) -> bytes:
    """Write the answer to a predict request.

    Args:
        outputs: arrays by alias; strings as object arrays of bytes.
        row_format: whether the request was in row format; each array then needs the same first dimension.

    Raises:
        InvalidArgument: there is no output, one has no JSON form, or the rows do not match.
    """
    if not outputs:
        raise InvalidArgument("Cannot convert empty tensor map to JSON")
    text = _write_rows(outputs) if row_format else _write_columns(outputs)
    return text.encode("utf-8")


def _write_rows(outputs: Mapping[str, np.ndarray]) -> str:
    batch = None
    for alias, array in outputs.items():
        if array.ndim == 0:
            raise InvalidArgument(f"Tensor name: {alias} has no shape information ")
        batch = len(array) if batch is None else batch
        if len(array) != batch:
            raise InvalidArgument(f"Tensor name: {alias} has inconsistent batch size: {len(array)} expecting: {batch}")
    columns = {alias: _write_items(array, alias) for alias, array in outputs.items()}
    if len(columns) == 1:
        ((_, rows),) = columns.items()
    else:
        keys = [json.dumps(alias, ensure_ascii=False) + ": " for alias in columns]
        rows = [
            "\n        {" + ", ".join(k + cell for k, cell in zip(keys, row, strict=True)) + "}"
            for row in zip(*columns.values(), strict=True)
        ]
    return '{\n    "predictions": [' + ", ".join(rows) + "\n    ]\n}"


def _write_columns(outputs: Mapping[str, np.ndarray]) -> str:
    if len(outputs) == 1:
        ((alias, array),) = outputs.items()
        return '{\n    "outputs": ' + _write_value(array, alias) + "\n}"
    members = [
        f"        {json.dumps(alias, ensure_ascii=False)}: {_write_value(array, alias)}"
        for alias, array in outputs.items()
    ]
    return '{\n    "outputs": {\n' + ",\n".join(members) + "\n    }\n}"


def _write_value(array: np.ndarray, alias: str) -> str:
    if array.ndim == 0:
        return _scalars(array.reshape(1), alias)[0]
    return "[" + ", ".join(_write_items(array, alias)) + "]"


def _write_items(array: np.ndarray, alias: str) -> list[str]:
    """Return the JSON of each element along the first dimension."""
    if array.size == 0:
        _writer(array, alias)
        return [json.dumps(item) for item in array.tolist()]
    if array.dtype in _FLOAT_DTYPES:
        return write_floats(array)
    items = _scalars(array.reshape(-1), alias)
    for size in reversed(array.shape[1:]):
        items = ["[" + ", ".join(items[i : i + size]) + "]" for i in range(0, len(items), size)]
    return items


def _scalars(flat: np.ndarray, alias: str) -> list[str]:
    return _writer(flat, alias)(flat)


def _writer(array: np.ndarray, alias: str) -> Callable[[np.ndarray], list[str]]:
    if array.dtype in _FLOAT_DTYPES:
        return write_floats
    if array.dtype.kind in "iu" and array.dtype != np.uint16:
        return lambda flat: list(map(str, flat.tolist()))
    if array.dtype == np.bool_:
        return lambda flat: ["true" if v else "false" for v in flat.tolist()]
    if array.dtype == object:
        return _write_b64 if alias.endswith("_bytes") else _write_strings
    name = _CPP_NAMES.get(array.dtype.name, array.dtype.name)
    raise InvalidArgument(f"Failed to write JSON value for tensor type: {name}")


def _write_strings(flat: np.ndarray) -> list[str]:
    return [write_string(_raw(v)) for v in flat]


def _write_b64(flat: np.ndarray) -> list[str]:
    return [b64_json(_raw(v)) for v in flat]


def _raw(value: Any) -> bytes:
    return value if isinstance(value, bytes) else str(value).encode()
