"""The messages of `tensorflow.ProfilerService`, as far as they are used; no Python package carries them.

The options of a profile stay bytes here: their message is TensorFlow's own and is read where TensorFlow is. Of a
profile, XSpace, only the way to its events is declared.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

__all__ = ["has_events", "profile_request", "profile_response", "terminate_request"]

_PACKAGE = "tensorflow"
_MESSAGES = {
    "ProfileRequest": (
        (1, "duration_ms", "TYPE_UINT64"),
        (4, "opts", "TYPE_BYTES"),
        (5, "repository_root", "TYPE_STRING"),
        (6, "session_id", "TYPE_STRING"),
        (7, "host_name", "TYPE_STRING"),
    ),
    "ProfileResponse": ((7, "empty_trace", "TYPE_BOOL"),),
    "TerminateRequest": ((1, "session_id", "TYPE_STRING"),),
    "XSpace": ((1, "planes", "XPlane"),),
    "XPlane": ((3, "lines", "XLine"),),
    "XLine": ((4, "events", "XEvent"),),
    "XEvent": (),
}


def profile_request() -> Any:
    """Return the class of `ProfileRequest`: duration_ms, opts (bytes), repository_root, session_id, host_name."""
    return _classes()["ProfileRequest"]


def profile_response() -> Any:
    """Return the class of `ProfileResponse`: empty_trace."""
    return _classes()["ProfileResponse"]


def terminate_request() -> Any:
    """Return the class of `TerminateRequest`: session_id."""
    return _classes()["TerminateRequest"]


def has_events(profile: bytes) -> bool:
    """Tell whether anything was recorded in a serialized XSpace message."""
    space = _classes()["XSpace"].FromString(profile)
    return any(line.events for plane in space.planes for line in plane.lines)


@cache
def _classes() -> dict[str, Any]:
    file_proto = descriptor_pb2.FileDescriptorProto(name="moxserve/profiler.proto", package=_PACKAGE, syntax="proto3")
    for message, fields in _MESSAGES.items():
        declared = file_proto.message_type.add(name=message)
        for number, name, kind in fields:
            entry = declared.field.add(name=name, number=number)
            if kind.startswith("TYPE_"):
                entry.label, entry.type = entry.LABEL_OPTIONAL, getattr(entry, kind)
            else:
                entry.label, entry.type = entry.LABEL_REPEATED, entry.TYPE_MESSAGE
                entry.type_name = f".{_PACKAGE}.{kind}"
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file_proto)
    return {m: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{_PACKAGE}.{m}")) for m in _MESSAGES}
