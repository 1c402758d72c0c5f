"""JSON as the REST API reads and writes it: what its requests and answers have in common. No sockets.

Reading takes what tensorflow_model_server takes: NaN and Infinity, which JSON itself does not have, and bytes after
the first value. Of keys that a request has twice the first counts. Bytes are written `{"b64": "..."}`, and so is text
that is no UTF-8. How floats are written is told in `float_text`. Texts of errors are those of tensorflow_model_server,
since clients look for them.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping
from typing import Any

import orjson

from moxserve.errors import InvalidArgument
from moxserve.protocol.float_text import write_floats

__all__ = [
    "as_bytes",
    "b64_json",
    "error_json",
    "excerpt",
    "is_b64",
    "kind_of",
    "loads",
    "read_object",
    "write_floats",
    "write_string",
]

_EXCERPT_BYTES = 256
# The keys that requests have a meaning for, and how they are written.
_KEYS = {key: f'"{key}"'.encode() for key in ("signature_name", "instances", "inputs", "examples", "context")}
_TYPE_NAMES: Mapping[type, str] = {
    type(None): "Null", dict: "Object", list: "Array", str: "String", int: "Number", float: "Number",
}  # fmt: skip
_REASONS = (
    ("Expecting value", "Invalid value."),
    ("Expecting property name", "Missing a name for object member."),
    ("Illegal trailing comma before end of object", "Missing a name for object member."),
    ("Expecting ':'", "Missing a colon after a name of object member."),
    ("Expecting ','", "Missing a comma or closing bracket after an element."),
    ("Unterminated string", "Missing a closing quotation mark in string."),
    ("Invalid \\", "Invalid escape character in string."),
    ("Invalid control character", "Invalid encoding in string."),
)


# Reading


def loads(body: bytes) -> Any:
    """Read the first JSON value of a body, NaN and Infinity included.

    Raises:
        InvalidArgument: it is no JSON; tells the offset.
    """
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError:
        return _loads_leniently(body)


def _loads_leniently(body: bytes) -> Any:
    # What orjson refuses may still be fine here: NaN, bytes after the value, text that is not UTF-8.
    text = body.decode("utf-8", "surrogateescape")
    start = len(text) - len(text.lstrip(" \t\r\n"))
    if start == len(text):
        raise InvalidArgument("JSON Parse error: The document is empty")
    try:
        return _DECODER.raw_decode(text, start)[0]
    except json.JSONDecodeError as error:
        reason = next((ours for theirs, ours in _REASONS if error.msg.startswith(theirs)), error.msg)
        raise InvalidArgument(f"JSON Parse error: {reason} at offset: {error.pos}") from None
    except RecursionError:
        raise InvalidArgument("JSON Parse error: nested too deeply") from None
    except ValueError as error:
        raise InvalidArgument(f"JSON Parse error: {error}") from None


_DECODER = json.JSONDecoder()


def read_object(body: bytes) -> tuple[str, dict[str, Any]]:
    """Read the object that every request is.

    Returns:
        Its signature name, empty when it has none, and the whole object.

    Raises:
        InvalidArgument: it is no JSON object, or its signature name is no text.
    """
    document = loads(body)
    if type(document) is not dict:
        raise InvalidArgument(f"JSON Value: {excerpt(document)} Is not object")
    for key in document:
        if key in _KEYS and body.count(_KEYS[key]) > 1:
            document = _first_of_each_key(body, document)
            break
    name = document.get("signature_name", "")
    if type(name) is not str:
        raise InvalidArgument(
            f"JSON Value: {excerpt(document)} not formatted correctly. 'signature_name' key must be a string value."
        )
    return name, document


def _first_of_each_key(body: bytes, document: dict[str, Any]) -> dict[str, Any]:
    """Read an object whose keys may be there twice, of which the first counts; parsers for Python keep the last."""
    try:
        import simdjson

        parsed: Any = simdjson.Parser().parse(body)
        keys = list(parsed)
        if len(keys) == len(document):
            # The name of an input, or text.
            return document
    except (ImportError, ValueError, RuntimeError):
        # Not installed; or no JSON in the strict sense, or with integers of more than 64 bits.
        pass
    text = body.decode("utf-8", "surrogateescape")
    try:
        found: dict[str, Any] = _FIRST_KEYS.raw_decode(text, len(text) - len(text.lstrip(" \t\r\n")))[0]
    except RecursionError:
        return document
    return found


def _first_values(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        found.setdefault(key, value)
    return found


_FIRST_KEYS = json.JSONDecoder(object_pairs_hook=_first_values)


def kind_of(value: Any) -> str:
    """Return the name of a JSON value's type, as errors tell it."""
    return ("True" if value else "False") if type(value) is bool else _TYPE_NAMES[type(value)]


def is_b64(value: Any) -> bool:
    """Tell whether a value stands for bytes: an object with nothing but `b64`, which is text."""
    return type(value) is dict and len(value) == 1 and type(value.get("b64")) is str


def as_bytes(value: Any) -> bytes:
    """Return the bytes of text, as UTF-8, or of an object that stands for bytes.

    Raises:
        InvalidArgument: it is neither, no base64, or text that UTF-8 cannot write.
    """
    if type(value) is str:
        try:
            return value.encode("utf-8", "surrogateescape")
        except UnicodeEncodeError as error:
            raise InvalidArgument(f"JSON Parse error: a string has a lone surrogate: {error}") from None
    if not is_b64(value):
        raise InvalidArgument(f"JSON Value: {excerpt(value)} not formatted correctly for base64 data")
    text = value["b64"]
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except (binascii.Error, ValueError):
        raise InvalidArgument("Unable to base64 decode") from None


def excerpt(value: Any) -> str:
    """Print a value, cut off; a big document is not printed as a whole first."""
    parts, size = [], 0
    try:
        for part in _ENCODER.iterencode(value):
            parts.append(part)
            size += len(part)
            if size > _EXCERPT_BYTES:
                break
    except RecursionError:
        return "(nested too deeply to print)"
    text = "".join(parts).encode("utf-8", "backslashreplace").decode()
    return text if len(text) <= _EXCERPT_BYTES else text[:_EXCERPT_BYTES] + "..."


_ENCODER = json.JSONEncoder(ensure_ascii=False)


# Writing


def error_json(message: str, request_id: str = "") -> bytes:
    """Write the body of an error.

    Args:
        message: in the words of the original, which clients look for.
        request_id: of the request, under a key of its own; empty leaves the key out, as the original does.
    """
    body = {"error": message, "request_id": request_id} if request_id else {"error": message}
    text = json.dumps(body, indent=4, ensure_ascii=False)
    return text.encode("utf-8", "backslashreplace")


def write_string(value: bytes) -> str:
    """Write bytes as text, as b64 where they are no UTF-8."""
    try:
        return orjson.dumps(value.decode("utf-8")).decode("utf-8")
    except UnicodeDecodeError:
        # As text it would make the whole answer unreadable.
        return b64_json(value)


def b64_json(value: bytes) -> str:
    """Write bytes as b64."""
    return '{"b64": "' + base64.b64encode(value).decode("ascii") + '"}'
