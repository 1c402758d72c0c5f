"""Rows of JSON lines."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from moxserve.client.calls import Array
from moxserve.errors import DataError
from moxserve.predict.readers import LABEL_KEYS, Row, Rows, check_label, fit_row, only_input, to_label
from moxserve.types import Signature

__all__ = ["open_json_lines"]


def open_json_lines(path: str, signature: Signature, label: str | None = None) -> Rows:
    """Open a file of one instance a line: a value, or an object of inputs by name, and the label.

    Args:
        path: the file; bytes in it are `{"b64": …}`.
        signature: what the rows are made for.
        label: key of the labels; None: `label` or `labels`. A line without it has no label.

    Raises:
        UsageError: the label is an input.
    """
    if label is not None:
        check_label(signature, label)
    keys = LABEL_KEYS if label is None else (label,)

    def rows() -> Iterator[Row]:
        with open(path, "rb") as f:
            for number, line in enumerate(f, start=1):
                if line.strip():
                    yield _json_row(f"{os.path.basename(path)}:{number}", line, signature, keys)

    return Rows("JSON lines", rows(), None)


def _json_row(where: str, line: bytes, signature: Signature, label_keys: Sequence[str]) -> Row:
    import orjson

    try:
        value = orjson.loads(line)
    except orjson.JSONDecodeError:
        return _odd_json_row(where, line, signature, label_keys)
    return _value_row(where, value, signature, label_keys)


def _odd_json_row(where: str, line: bytes, signature: Signature, label_keys: Sequence[str]) -> Row:
    """Read a line with the bare NaN or Infinity that Python writes, or give a row that tells what is wrong with it."""
    try:
        return _value_row(where, json.loads(line), signature, label_keys)
    except ValueError as error:
        message = f"{where}: no JSON ({error})"
        return Row(where, lambda: _fail(message))


def _value_row(where: str, value: Any, signature: Signature, label_keys: Sequence[str]) -> Row:
    named = isinstance(value, Mapping) and not _is_b64(value)
    label = None
    key = next((k for k in label_keys if k in value and k not in signature.inputs), None) if named else None
    if key is not None:
        value = dict(value)
        label = to_label(value.pop(key))
    return Row(where, lambda: _json_inputs(value, named, signature, where), label)


def _fail(message: str) -> Mapping[str, Array]:
    raise DataError(message)


def _json_inputs(value: Any, named: bool, signature: Signature, where: str) -> Mapping[str, Array]:
    if not named:
        value = {only_input(signature, where).name: value}
    if set(value) != set(signature.inputs):
        raise DataError(
            f"{where}: has the inputs {', '.join(sorted(value)) or 'none'}; expected {', '.join(signature.inputs)}"
        )
    return {name: fit_row(_unwrap(value[name], where), spec, where) for name, spec in signature.inputs.items()}


def _is_b64(value: Any) -> bool:
    return isinstance(value, Mapping) and set(value) == {"b64"}


def _unwrap(value: Any, where: str) -> Any:
    """Turn `{"b64": …}` objects at any depth into bytes."""
    if isinstance(value, list):
        return [_unwrap(item, where) for item in value]
    if not _is_b64(value):
        return value
    try:
        return base64.b64decode(value["b64"], validate=True)
    except (ValueError, TypeError) as error:
        raise DataError(f"{where}: wrong base64 ({error})") from None
