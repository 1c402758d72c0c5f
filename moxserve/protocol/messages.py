"""The protobuf messages of TensorFlow Serving and of the Open Inference Protocol, from descriptors in a private pool.

Names are resolved on first use: `messages.PredictRequest()`, `messages.SignatureDefMap()`, `messages.TensorProto()`.
Those of the Open Inference Protocol, of which some have the same short name, by their full one:
`messages.by_full_name("inference.ModelInferRequest")`.
The pool is our own, so these classes live beside TensorFlow's and tensorflow-serving-api's in one process; a message
crosses from one pool to the other as bytes only. Full names are the original ones, so the bytes are the same.
"""

from __future__ import annotations

import os
import threading
from functools import cache
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format

__all__ = ["by_full_name", "descriptor_files", "enum_name", "enum_value", "message_to_json_dict", "parse_text", "pool"]

_PACKAGES = (
    "tensorflow.serving",
    "tensorflow",
    "google.protobuf",
    "tensorflow.serving.FileSystemStoragePathSourceConfig",
    "tensorflow.error",
)


# A second pool would make a second class of each message, and messages of two classes cannot be put together; without
# the lock, functools.cache computes twice when two threads come first at once.
_lock = threading.Lock()


def pool() -> Any:
    """Return the private DescriptorPool with all wire messages."""
    with _lock:
        return _make_pool()


@cache
def _make_pool() -> Any:
    private = descriptor_pool.DescriptorPool()
    for file in descriptor_files():
        private.Add(file)
    return private


def descriptor_files() -> list[Any]:
    """Return the FileDescriptorProtos of all wire messages, dependencies first."""
    path = os.path.join(os.path.dirname(__file__), "descriptors.binpb")
    with open(path, "rb") as f:
        return list(descriptor_pb2.FileDescriptorSet.FromString(f.read()).file)


@cache
def by_full_name(full_name: str) -> Any:
    """Return the message class of a full name, such as `tensorflow.serving.PredictRequest`.

    Raises:
        KeyError: the pool has no such message.
    """
    return message_factory.GetMessageClass(pool().FindMessageTypeByName(full_name))


def __getattr__(name: str) -> Any:
    if name.startswith("_"):
        raise AttributeError(name)
    for package in _PACKAGES:
        try:
            cls = by_full_name(f"{package}.{name}")
        except KeyError:
            continue
        globals()[name] = cls
        return cls
    raise AttributeError(f"no wire message is named {name!r} in {', '.join(_PACKAGES)}")


def enum_name(enum_full_name: str, number: int) -> str:
    """Return the name of an enum value, such as `AVAILABLE`; the number as text when it has none."""
    value = pool().FindEnumTypeByName(enum_full_name).values_by_number.get(number)
    return str(number) if value is None else value.name


def enum_value(enum_full_name: str, name: str) -> int:
    """Return the number of an enum value.

    Raises:
        KeyError: the enum has no such value.
    """
    number: int = pool().FindEnumTypeByName(enum_full_name).values_by_name[name].number
    return number


def parse_text(text: str, message: Any) -> Any:
    """Read protobuf text format into a message and return it.

    Raises:
        google.protobuf.text_format.ParseError: with line and column.
    """
    return text_format.Parse(text, message, descriptor_pool=pool())


def message_to_json_dict(message: Any, **options: Any) -> dict[str, Any]:
    """Turn a message into the dict of its proto3 JSON form, Any fields resolved in the private pool.

    Args:
        message: any message of this pool.
        **options: passed to `google.protobuf.json_format.MessageToDict`.
    """
    from google.protobuf import json_format

    result: dict[str, Any] = json_format.MessageToDict(message, descriptor_pool=pool(), **options)
    return result
