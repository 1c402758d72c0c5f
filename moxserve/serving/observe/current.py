"""The record of the request that is being answered, for whoever learns something about it on the way.

gRPC and HTTP answer each request in a task of its own, so what is set there is seen by that request alone. Threads do
not see it.
"""

from __future__ import annotations

from contextvars import ContextVar

from moxserve.serving.observe.record import RequestRecord

__all__ = ["current_record", "set_current_record"]

_CURRENT: ContextVar[RequestRecord | None] = ContextVar("moxserve_request", default=None)


def current_record() -> RequestRecord | None:
    """Return the record of this request; None when nobody wants one."""
    return _CURRENT.get()


def set_current_record(record: RequestRecord) -> None:
    """Make this the record of the request that is being answered."""
    _CURRENT.set(record)
