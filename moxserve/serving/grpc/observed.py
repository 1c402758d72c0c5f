"""What is noted of a gRPC call for the access log and for traces, and the request's id as metadata."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any
from urllib.parse import unquote

from moxserve.serving.observe.current import set_current_record
from moxserve.serving.observe.record import GRPC, RequestRecord, address
from moxserve.serving.observe.request_id import HEADER, new_request_id, valid_request_id

__all__ = ["begin_call", "begin_message"]

Metadata = Iterable[tuple[str, str | bytes]]


def begin_call(method: str, request_bytes: int, context: Any, *, active: bool) -> RequestRecord | None:
    """Take note that a call has begun, and give its id back as trailing metadata.

    Args:
        method: full name, such as `/tensorflow.serving.PredictionService/Predict`.
        request_bytes: size of the message.
        context: of gRPC.
        active: whether anybody wants records. If not, only an id that the caller sent is looked at.

    Returns:
        The record, also set as the current one; None when nobody wants it.
    """
    metadata = context.invocation_metadata() or ()
    request_id = _sent_id(metadata)
    if active:
        request_id = request_id or new_request_id()
    if request_id:
        context.set_trailing_metadata(((HEADER, request_id),))
    return _begin(method, request_bytes, context, metadata, request_id) if active else None


def begin_message(method: str, request_bytes: int, context: Any, *, active: bool) -> RequestRecord | None:
    """Take note that a request within a stream has begun; see `begin_call`. To be called in a task of its own.

    Without an id of the stream each request gets one of its own.
    """
    if not active:
        return None
    metadata = context.invocation_metadata() or ()
    return _begin(method, request_bytes, context, metadata, _sent_id(metadata) or new_request_id())


def _sent_id(metadata: Metadata) -> str:
    request_id = ""
    for name, value in metadata:
        if name == HEADER:
            request_id = valid_request_id(value)
    return request_id


def _begin(method: str, request_bytes: int, context: Any, metadata: Metadata, request_id: str) -> RequestRecord:
    record = RequestRecord(GRPC, method, metadata, _address(context.peer()), request_id)
    record.request_bytes = request_bytes
    set_current_record(record)
    return record


def _address(peer: str) -> str:
    """Turn `ipv6:%5B::1%5D:4711` into `[::1]:4711`; a UNIX socket stays `unix:...`."""
    kind, _, rest = peer.partition(":")
    return address(unquote(rest)) if kind in ("ipv4", "ipv6") else peer
