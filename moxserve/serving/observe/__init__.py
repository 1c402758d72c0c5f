"""What is told about each request: to a log, and to a collector of traces.

`record` is what is noted while a request is answered, `request_id` how requests are named, `recorder` the thread that
does the telling, `access_log` and `tracing` the two places to tell it to. Nothing here is on the way of a request but a
few assignments: lines and spans are written later, by a thread of their own.
"""

from __future__ import annotations

from moxserve.serving.observe.options import ObserveOptions
from moxserve.serving.observe.record import RequestRecord
from moxserve.serving.observe.recorder import Recorder
from moxserve.serving.observe.request_id import new_request_id, valid_request_id

__all__ = ["ObserveOptions", "Recorder", "RequestRecord", "new_request_id", "valid_request_id"]
