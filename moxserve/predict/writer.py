"""The result file: one JSON object a line, in the order of the input, published whole or not at all.

    {"input": "3/0017.png", "label": "3", "predictions": {"classes": 3, "probabilities": [0.0, …]}}
    {"input": "3/0018.png", "label": "3", "error": {"status": "INVALID_ARGUMENT", "message": "…"}}

Strings are text where they are UTF-8, else {"b64": …}. NaN and infinities are written bare, as Python's json reads
them.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from typing import IO, Any

import numpy as np

from moxserve.client.calls import Array
from moxserve.errors import DataError, UsageError
from moxserve.file import fsync_directory, local_copy, staging_directory
from moxserve.file.filesystem import is_remote
from moxserve.file.writable import require_writable
from moxserve.predict.readers import Label

__all__ = ["JsonLines", "encode_line", "json_value", "open_output"]


def json_value(array: Array) -> Any:
    """Turn one row of an output into what the JSON writer takes.

    Raises:
        DataError: the output is of complex numbers, which JSON does not have.
    """
    if array.dtype.kind == "c":
        raise DataError(f"an output of {array.dtype} has no JSON form", hint="leave it out with --outputs")
    if array.dtype.kind == "O":
        return _texts(array.tolist())
    if array.dtype.kind == "V" or array.dtype == np.float16 or array.dtype.name == "bfloat16":
        array = array.astype(np.float32)
    if array.ndim == 0:
        value = array.item()
        return float(str(array)) if array.dtype == np.float32 else value
    return np.ascontiguousarray(array)


def _texts(value: Any) -> Any:
    if isinstance(value, list):
        return [_texts(item) for item in value]
    try:
        return value.decode()
    except UnicodeDecodeError:
        return {"b64": base64.b64encode(value).decode()}


def encode_line(record: Mapping[str, Any], *, finite: bool) -> bytes:
    """Write one record and its line end."""
    if finite:
        import orjson

        return orjson.dumps(record, option=orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_APPEND_NEWLINE)
    return json.dumps(record, default=lambda array: array.tolist()).encode() + b"\n"


class JsonLines:
    """Writes records to an open file.

    Attributes:
        rows: predictions written.
        errors: error records written.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.rows = 0
        self.errors = 0

    def write(self, name: str, label: Label | None, outputs: Mapping[str, Array]) -> None:
        """Write one prediction; arrays without the batch dimension.

        Raises:
            DataError: an output has no JSON form.
        """
        values = {alias: json_value(array) for alias, array in outputs.items()}
        finite = all(bool(np.isfinite(a).all()) for a in outputs.values() if a.dtype.kind in "fV")
        self._put(name, label, {"predictions": values}, finite)
        self.rows += 1

    def write_error(self, name: str, label: Label | None, status: str, message: str) -> None:
        """Write the record of a row that failed."""
        self._put(name, label, {"error": {"status": status, "message": message}}, True)
        self.errors += 1

    def _put(self, name: str, label: Label | None, result: Mapping[str, Any], finite: bool) -> None:
        head: dict[str, Any] = {"input": name}
        if label is not None and label.value is not None:
            head["label"] = label.value
        self._file.write(encode_line({**head, **result}, finite=finite))


@contextlib.contextmanager
def open_output(path: str | os.PathLike[str]) -> Iterator[JsonLines]:
    """Give a writer; the file, or the object of a store, appears when the block ends without an exception.

    Raises:
        UsageError: the path is a directory, or its folder cannot be written.
        DataError: the store does not take it.
    """
    if is_remote(os.fspath(path)):
        require_writable(path)
        with local_copy(path, "w") as local, open(local, "wb") as f:
            yield JsonLines(f)
            f.flush()
        return
    target = os.path.abspath(path)
    if os.path.isdir(target):
        raise UsageError(f"{os.fspath(path)!r} is a directory; expected the name of a file")
    folder = os.path.dirname(target)
    try:
        os.makedirs(folder, exist_ok=True)
        staged = contextlib.ExitStack()
        staging = staged.enter_context(staging_directory(folder))
    except OSError as error:
        raise UsageError(f"{os.fspath(path)!r} cannot be written: {error.strerror}") from None
    with staged:
        temp = os.path.join(staging, "rows.jsonl")
        with open(temp, "wb") as f:
            yield JsonLines(f)
            f.flush()
            os.fsync(f.fileno())
        os.replace(temp, target)
        fsync_directory(folder)
