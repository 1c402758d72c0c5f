"""What is noted of an HTTP request for the access log and for traces, and the request's id as a header field."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from moxserve.serving.observe.current import set_current_record
from moxserve.serving.observe.record import HTTP, RequestRecord, address
from moxserve.serving.observe.request_id import HEADER, new_request_id, valid_request_id

if TYPE_CHECKING:
    from moxserve.serving.rest.exchange import RestAnswer, RestRequest

__all__ = ["begin_request", "end_request"]

_FIELD = HEADER.encode()
# Where the names of models, versions and labels stand, in our own API and in the Open Inference Protocol.
_NAMES = re.compile(r"(/models/|/versions/|/labels/)([^/:]+)")
_PLACES = {"/models/": "{model}", "/versions/": "{version}", "/labels/": "{label}"}
_STATUSES = {
    400: "INVALID_ARGUMENT", 401: "UNAUTHENTICATED", 403: "PERMISSION_DENIED", 404: "NOT_FOUND", 409: "ALREADY_EXISTS",
    429: "RESOURCE_EXHAUSTED", 499: "CANCELLED", 501: "UNIMPLEMENTED", 503: "UNAVAILABLE", 504: "DEADLINE_EXCEEDED",
}  # fmt: skip


def begin_request(request: RestRequest, *, active: bool) -> RequestRecord | None:
    """Take note that a request has begun, and of its id.

    Args:
        request: its `context` gets the id.
        active: whether anybody wants records. If not, only an id that the caller sent is looked at.

    Returns:
        The record, also set as the current one; None when nobody wants it.
    """
    for name, value in request.headers:
        if name == _FIELD:
            request.context.request_id = valid_request_id(value)
    if not active:
        return None
    request.context.request_id = request.context.request_id or new_request_id()
    record = RequestRecord(
        HTTP, f"{request.method} {request.path}", request.headers, address(request.peer), request.context.request_id
    )
    set_current_record(record)
    return record


def end_request(record: RequestRecord, request: RestRequest, answer: RestAnswer) -> None:
    """Take note of how a request ended.

    Args:
        record: to fill in.
        request: as it was asked.
        answer: as it is sent.
    """
    status = request.status or ("OK" if answer.status < 400 else _STATUSES.get(answer.status, "INTERNAL"))
    record.model = record.model or request.model
    if answer.status not in (404, 405) or record.model:
        # Of a path that leads nowhere nothing is known, and anybody can make up any number of them.
        record.route = _NAMES.sub(lambda match: match[1] + _PLACES[match[1]], request.path)
    length = request.header("content-length")
    record.request_bytes = int(length) if length.isdecimal() else 0
    record.end(status, answer.status, len(answer.body))
